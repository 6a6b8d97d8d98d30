"""Describe how training images vary, as plain data: presets, files, objects, mixing (no TensorFlow)."""

import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Union

from keras_transfer.errors import InputError
from keras_transfer.modalities.documents import read_fields
from keras_transfer.modalities.views import MIXES, Mix, View, views_of  # noqa: F401 - re-exported

if TYPE_CHECKING:
    from keras_transfer.modalities.image.transforms import Albumentations, KerasLayer


# Ranges of the fields other than [0, 1]. An area of zero has no pixels.
_RANGES = {"min_area": (1e-3, 1), "max_aspect": (1, 100), "rotate": (0, 180), "hue": (0, 0.5)}


@dataclass(frozen=True)
class Augmentation:
    """How much a training image may vary from epoch to epoch.

    Attributes:
        crop: crop a random box and stretch it to the model's input; otherwise the image is
            resized and cropped as in evaluation.
        min_area: smallest share of the image's area that the box covers, in (0, 1].
        max_aspect: largest ratio of the box's longer side to its shorter side, at least 1.
        flip: mirror left and right with probability 0.5.
        rotate: largest rotation in either direction, in degrees, in [0, 180]; corners are filled
            by reflection.
        brightness: largest relative change of all values, in [0, 1]: factor 1 ± brightness.
        contrast: largest relative change of the distance to the mean gray, in [0, 1].
        saturation: largest relative change of the distance to each pixel's gray, in [0, 1].
        hue: largest rotation of the hue, as a share of the color circle, in [0, 0.5].
        rand_augment: strength, in [0, 1], of two operations applied last, drawn from ten of
            RandAugment's (arXiv:1909.13719; each is a Keras layer): rotations, shears, shifts,
            colors. 1 is the widest range of the paper.

    Raises:
        InputError: if a value is out of its range.
    """

    crop: bool = True
    min_area: float = 0.6
    max_aspect: float = 4 / 3
    flip: bool = True
    rotate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    rand_augment: float = 0.0

    def __post_init__(self):
        for name, value in asdict(self).items():
            if name in ("crop", "flip"):
                if not isinstance(value, bool):
                    raise InputError(f"augmentation: {name} must be true or false, not {value!r}")
                continue
            low, high = _RANGES.get(name, (0, 1))
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise InputError(
                    f"augmentation: {name} must be between {low} and {high}, not {value}"
                )

    def to_dict(self) -> dict:
        """Return plain data, which `resolve_augmentation` accepts."""
        return asdict(self)

    @property
    def changes(self) -> bool:
        """Whether variants differ from the image as in evaluation."""
        return self != AUGMENTATIONS["none"]


# `AUGMENTATIONS["name"] = Augmentation(…)` adds a preset for this process.
AUGMENTATIONS = {
    "none": Augmentation(crop=False, min_area=1.0, max_aspect=1.0, flip=False),
    "flip": Augmentation(crop=False, min_area=1.0, max_aspect=1.0),
    "light": Augmentation(),
    "medium": Augmentation(brightness=0.2, contrast=0.2, saturation=0.2),
    "heavy": Augmentation(min_area=0.2, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.05),
    "randaugment": Augmentation(rand_augment=0.5),
}

# Each kind has `flip` (whether it may mirror images), `changes` and `to_dict`.
Variation = Union[Augmentation, "Albumentations", "KerasLayer"]


def resolve_augmentation(augmentation) -> Variation:
    """Return the augmentation that a name, a file or an object stands for.

    Args:
        augmentation: a name in `AUGMENTATIONS`; an `Augmentation`, or a dict of its fields, which
            may start from a preset (`{"preset": "medium", "flip": False}`); a transform of
            albumentations; a Keras layer; a dict that either was serialized as; or the path of a
            .yaml or .json file that contains one of these dicts.

    Raises:
        InputError: if it is none of these, or cannot be serialized and rebuilt.
    """
    if isinstance(augmentation, Augmentation):
        return augmentation
    if isinstance(augmentation, dict):
        return _from_dict(augmentation)
    if isinstance(augmentation, (str, os.PathLike)):
        if str(augmentation) in AUGMENTATIONS:
            return AUGMENTATIONS[str(augmentation)]
        return _from_file(Path(augmentation))
    from keras_transfer.modalities.image.transforms import Albumentations, KerasLayer

    if isinstance(augmentation, Albumentations | KerasLayer):
        return augmentation
    # Compare names, so that neither library is imported unless the user has imported it.
    origins = {kind.__module__.partition(".")[0] for kind in type(augmentation).__mro__}
    if "albumentations" in origins:
        return Albumentations.of(augmentation)
    if "keras" in origins:
        return KerasLayer.of(augmentation)
    raise InputError(
        f"augment: {augmentation!r} is not a name, fields of an Augmentation, a transform of "
        "albumentations or a Keras layer"
    )


def without_flip(augmentation) -> Variation:
    """Return the augmentation without mirror images.

    Raises:
        InputError: if a transform or layer mirrors, because it cannot be changed here.
    """
    augmentation = resolve_augmentation(augmentation)
    if isinstance(augmentation, Augmentation):
        return replace(augmentation, flip=False)
    if augmentation.flip:
        raise InputError("--no-flip: the given augmentation mirrors images; remove that from it")
    return augmentation


def _from_dict(config) -> Variation:
    if "transform" in config or "class_name" in config:
        from keras_transfer.modalities.image.transforms import Albumentations, KerasLayer

        kind = Albumentations if "transform" in config else KerasLayer
        return kind.from_dict(config)
    values = dict(config)
    preset = values.pop("preset", None)
    names = [field.name for field in fields(Augmentation)]
    unknown = [str(name) for name in values if name not in names]
    if unknown:
        raise InputError(
            f"augment: unknown field {', '.join(unknown)}; the fields are preset, "
            f"{', '.join(names)}"
        )
    if preset is None:
        return Augmentation(**values)
    if str(preset) not in AUGMENTATIONS:
        raise InputError(
            f"augment: unknown preset {preset!r}; choose one of {', '.join(AUGMENTATIONS)}"
        )
    return replace(AUGMENTATIONS[str(preset)], **values)


def _from_file(path) -> Variation:
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise InputError(
            f"unknown augmentation {str(path)!r}; choose one of {', '.join(AUGMENTATIONS)}, or "
            "give a .yaml or .json file"
        )
    config = read_fields(path)
    try:
        return _from_dict(config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
