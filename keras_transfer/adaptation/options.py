"""Method names, and the options of an adaptation, validated before Keras is imported."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from keras_transfer.adaptation import BATCH_NORM, KEEP, METHOD_NAMES
from keras_transfer.data import plain_augmentation
from keras_transfer.errors import InputError
from keras_transfer.modalities.image.framing import checked_crop
from keras_transfer.models.sources.applications import BACKBONES
from keras_transfer.models.sources.backbones import check_backbone
from keras_transfer.schedules.recipes import AUTO
from keras_transfer.utils.names import check_minutes


def check_methods(names: Sequence[str]) -> None:
    """Check, without Keras, that methods exist and can be combined.

    Raises:
        InputError: an unknown method, a duplicate, or an invalid combination.
    """
    for name in names:
        if name not in METHOD_NAMES:
            raise InputError(f"Unknown method '{name}'. Choose from {', '.join(METHOD_NAMES)}.")
    check_combination(names)


def check_combination(names: Sequence[str]) -> None:
    """Check that methods, which may be the user's own, can be combined."""
    if len(set(names)) < len(names):
        raise InputError(f"A method is given twice: {', '.join(names)}.")
    if len(names) > 1 and "shot" in names:
        raise InputError(
            f"Cannot combine {', '.join(names)}: SHOT never sees the source, the others need it. "
            "Run SHOT on the model that the others have adapted."
        )
    if "adabn" in names[1:-1]:
        raise InputError("AdaBN must be the first method (before training) or the last (after it).")


def no_batch_norm(name: str) -> InputError:
    """Return the error for AdaBN on a model or backbone without BatchNorm."""
    return InputError(
        f"AdaBN needs BatchNorm, which {name} does not have: choose another method or backbone."
    )


@dataclass(frozen=True)
class CommonOptions:
    """Options of both `adapt` and `Adaptation`.

    Attributes:
        epochs: passes over the larger domain, ≥ 1; by default as many as the trainer uses for as
            many images.
        batch_size: images of each domain per step, ≥ 1.
        augment: of the training images of both domains, see `resolve_augmentation`.
        batch_norm: see `Adapter`.
        keep: `"last"`, or `"selected"` without target labels: the epoch whose weights the model
            ends with, see `EpochChoice`. Epochs are scored on at most 2000 target images.
        seed: of everything random.
    """

    epochs: int | None = None
    batch_size: int = 32
    augment: object = "light"
    batch_norm: str = "joint"
    keep: str = "last"
    seed: int = 0

    def __post_init__(self):
        self._check_least("epochs", 1)
        self._check_least("batch_size", 1)
        check_choice("keep", self.keep, KEEP)
        check_choice("batch_norm", self.batch_norm, BATCH_NORM)

    def _check_least(self, name, least):
        value = getattr(self, name)
        if value is not None and value < least:
            raise InputError(f"{name} must be {least} or more, not {value}.")


def check_choice(name: str, value, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}, not {value!r}.")


@dataclass(frozen=True)
class AdaptOptions(CommonOptions):
    """Options of `adapt`. A phase overrides `batch_size` and `augment`, and replaces `epochs`.

    Attributes:
        strong: augmentation of the second view of a target image, for FixMatch; by default
            `augment` followed by two operations of RandAugment at full strength.
        verbose: 0 prints nothing.
    """

    strong: object = None
    verbose: str | int = "auto"


@dataclass(frozen=True)
class RunOptions(CommonOptions):
    """Options of `Adaptation`, which `config.yaml` records.

    Attributes:
        method: names from `METHOD_NAMES`, as a list or separated by commas.
        backbone: as `build_model` takes it: a name, a `.keras` file or a run. `"auto"` is the first
            in the advisor's shortlist whose weights are on this machine.
        weights: of the backbone, see `build_model`.
        learning_rate: the highest, > 0; that of `default_phase` by default.
        image_size: the backbone's by default.
        crop: see `build_model`; by default, or if "auto", the images of the source decide.
        precision: see `precision.set_precision`.
        freeze: see `freezing.frozen_stages`.
        bottleneck: width of the layer whose output is aligned, ≥ 0; 0 aligns the backbone's output.
        target_labels: True if the target has class folders: report the accuracy on them. Nothing
            else depends on the labels.
        val, val_split, columns: of the source, see `open_data`.
        minutes: limit of the adaptation, > 0: as many epochs are planned as are expected to fit, at most
            the default or `epochs`, and the training ends at the limit.
    """

    method: str | Sequence[str] = "dann"
    backbone: str = AUTO
    weights: str | None = "imagenet"
    learning_rate: float | None = None
    image_size: int | str | None = None
    crop: float | str | None = None
    precision: str = AUTO
    freeze: str = "none"
    bottleneck: int = 256
    target_labels: bool = False
    val: str | None = None
    val_split: float = 0.2
    columns: dict | None = None
    minutes: float | None = None

    def __post_init__(self):
        names = self.method.split(",") if isinstance(self.method, str) else self.method
        names = [str(name).strip() for name in names]
        if not any(names):
            raise InputError("Give at least one method.")
        check_methods(names)
        super().__post_init__()
        self._check_least("bottleneck", 0)
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise InputError(f"learning_rate must be above 0, not {self.learning_rate}.")
        check_minutes(self.minutes)
        for name, value in {
            "method": ",".join(names),
            "backbone": str(self.backbone),
            "augment": plain_augmentation(self.augment),
            "val": self.val and str(self.val),
            "crop": None if self.crop == AUTO else checked_crop(self.crop),
        }.items():
            object.__setattr__(self, name, value)

    @property
    def methods(self) -> list[str]:
        """Names of the methods."""
        return str(self.method).split(",")

    def with_backbone(self, backbone: str, precision: str) -> "RunOptions":
        """Return the options with a backbone and a precision, after checking the backbone.

        Raises:
            InputError: several backbones, an unknown one, or one without BatchNorm for AdaBN.
        """
        if "," in backbone:
            raise InputError(f"Give one backbone, not '{backbone}'.")
        if "adabn" in self.methods and backbone in BACKBONES and not BACKBONES[backbone].batch_norm:
            raise no_batch_norm(backbone)
        check_backbone(backbone, self.image_size, self.weights)
        return replace(self, backbone=backbone, precision=precision)

    def to_dict(self) -> dict:
        """Return plain data for `config.yaml`; the schedule there records epochs and rate."""
        plain = asdict(self) | {"weights": self.weights or "none"}
        return {name: plain[name] for name in _RECORDED}


_RECORDED = (
    *("method", "backbone", "weights", "val", "val_split", "columns", "batch_size", "augment"),
    *("freeze", "batch_norm", "bottleneck", "keep", "target_labels", "seed"),
)
