"""Versions of examples: fixed views, and mixtures of a batch, as plain data (no TensorFlow)."""

from dataclasses import asdict, dataclass
from typing import Any

from keras_transfer.errors import InputError
from keras_transfer.modalities import resolve_augmentation

_ALPHAS = {"none": None, "mixup": 0.2, "cutmix": 1.0}
MIXES = tuple(_ALPHAS)


@dataclass(frozen=True)
class Mix:
    """How the examples of a training batch, and their labels, are mixed with each other.

    Attributes:
        kind: `"none"`; `"mixup"` adds two images with weights λ and 1-λ (arXiv:1710.09412);
            `"cutmix"` pastes a box of one image, 1-λ of the area, into the other
            (arXiv:1905.04899).
        alpha: λ is drawn from Beta(alpha, alpha); above 0, and at most 1 for CutMix. None is the
            paper's value: 0.2 for MixUp, 1 for CutMix.

    Raises:
        InputError: if the kind is unknown or alpha is out of range.
    """

    kind: str = "none"
    alpha: float | None = None

    def __post_init__(self):
        if self.kind not in MIXES:
            raise InputError(f"mix must be one of {', '.join(MIXES)}, not {self.kind!r}.")
        if self.alpha is None:
            object.__setattr__(self, "alpha", _ALPHAS[self.kind])
        elif self.kind == "none":
            object.__setattr__(self, "alpha", None)
        elif not self.alpha > 0 or (self.kind == "cutmix" and self.alpha > 1):
            bounds = "above 0" + (" and at most 1" if self.kind == "cutmix" else "")
            raise InputError(f"mix_alpha for {self.kind} must be {bounds}, not {self.alpha}.")

    def __bool__(self):
        return self.kind != "none"


@dataclass(frozen=True)
class View:
    """One deterministic version of an example.

    Attributes:
        kind: `"plain"` (as in evaluation), `"mirror"` (the same, left and right exchanged) or
            `"augmented"` (one variant, determined by the example's content and `number`).
        number: number of an augmented view, ≥ 0.
        augmentation: augmentation of an augmented view.
    """

    kind: str = "plain"
    number: int = 0
    augmentation: Any = None

    def identity(self) -> dict:
        """Return plain data that identifies this view."""
        return asdict(self)


def views_of(augmentation, count: int) -> tuple[View, ...]:
    """Return `count` augmented views, or the plain view if nothing varies."""
    augmentation = resolve_augmentation(augmentation)
    if not augmentation.changes:
        return (View(),)
    return tuple(View("augmented", number, augmentation) for number in range(count))
