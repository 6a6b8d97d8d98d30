"""Describe how training texts vary, as plain data: presets and fields (no TensorFlow)."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.modalities.documents import read_fields


@dataclass(frozen=True)
class TextAugmentation:
    """How much a training text may vary from epoch to epoch.

    Attributes:
        masked: share of the tokens that the mask token replaces, in [0, 1).

    Raises:
        InputError: if a value is out of its range.
    """

    masked: float = 0.0

    flip = False

    def __post_init__(self):
        number = isinstance(self.masked, (int, float)) and not isinstance(self.masked, bool)
        if not number or not 0 <= self.masked < 1:
            raise InputError(
                f"augmentation: masked must be at least 0 and less than 1, not {self.masked!r}"
            )

    @property
    def changes(self) -> bool:
        """Whether variants differ from the text as in evaluation."""
        return self.masked > 0

    def to_dict(self) -> dict:
        """Return plain data, which `resolve_augmentation` accepts."""
        return asdict(self)


PRESETS = {
    "none": TextAugmentation(),
    "light": TextAugmentation(0.05),
    "medium": TextAugmentation(0.1),
    "heavy": TextAugmentation(0.2),
}


def resolve_augmentation(augmentation) -> TextAugmentation:
    """Return the augmentation that a name, a file or an object stands for.

    Args:
        augmentation: a name in `PRESETS`; a `TextAugmentation`, or a dict of its fields; or the path
            of a .yaml or .json file that contains such a dict.

    Raises:
        InputError: if it is none of these.
    """
    if isinstance(augmentation, TextAugmentation):
        return augmentation
    if isinstance(augmentation, Mapping) and set(augmentation) == {"masked"}:
        return TextAugmentation(**augmentation)
    if isinstance(augmentation, (str, os.PathLike)):
        if str(augmentation) in PRESETS:
            return PRESETS[str(augmentation)]
        if Path(augmentation).suffix in (".yaml", ".yml", ".json"):
            return resolve_augmentation(read_fields(Path(augmentation)))
    raise InputError(
        f"augment: {augmentation!r} does not suit texts; choose one of {', '.join(PRESETS)}, or give "
        "the field masked"
    )
