"""What may change in a training image: presets, files and objects, as plain data (no TensorFlow)."""

import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.modalities.image.compose import Albumentations
from keras_transfer.modalities.image.layers import KerasLayer


@dataclass(frozen=True)
class Augmentation:
    """How much a training image may vary from epoch to epoch.

    Attributes:
        crop: cut out a random box and stretch it to the model's input; otherwise the
            image is resized and cropped as in evaluation.
        min_area: smallest share of the image's area that such a box covers, in (0, 1].
        max_aspect: most extreme width:height of the box, or height:width; at least 1.
        flip: mirror left and right half of the time.
        rotate: largest turn to either side, in degrees, in [0, 180]; corners are filled by
            reflection.
        brightness: largest relative change of all values, in [0, 1]: factor 1 ± brightness.
        contrast: largest relative change of the distance to the mean grey, in [0, 1].
        saturation: largest relative change of the distance to each pixel's grey, in [0, 1].
        hue: largest turn of the hue, as a share of the colour circle, in [0, 0.5].
        rand_augment: strength, in [0, 1], of two operations drawn last from ten of RandAugment
            (arXiv:1909.13719, each a layer of Keras): turns, shears, shifts, colours. 1 is the
            widest range of the paper.

    Raises:
        InputError: a value out of its range.
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
        ranges = {
            "brightness": (0, 1),
            "contrast": (0, 1),
            "saturation": (0, 1),
            "hue": (0, 0.5),
            "rotate": (0, 180),
            "rand_augment": (0, 1),
            "max_aspect": (1, 100),
            # An area of zero has no pixels; the smallest that makes sense is far above this.
            "min_area": (1e-3, 1),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise InputError(
                    f"augmentation: {name} must lie between {low} and {high}, not {value}"
                )
        for name in ("crop", "flip"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(
                    f"augmentation: {name} must be true or false, not {getattr(self, name)!r}"
                )

    def to_dict(self) -> dict:
        """Plain data; `resolve_augmentation` takes it back."""
        return asdict(self)


# Open: `AUGMENTATIONS["name"] = Augmentation(…)` adds one for this process.
AUGMENTATIONS = {
    "none": Augmentation(crop=False, min_area=1.0, max_aspect=1.0, flip=False),
    "light": Augmentation(),
    "medium": Augmentation(brightness=0.2, contrast=0.2, saturation=0.2),
    "heavy": Augmentation(min_area=0.2, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.05),
    "randaugment": Augmentation(rand_augment=0.5),
}

# What images are varied by: ours, or that of a library. Each knows whether it mirrors (`flip`),
# and is written down by `to_dict`.
Variation = Augmentation | Albumentations | KerasLayer


@dataclass(frozen=True)
class View:
    """One fixed way to look at an image, the same whenever it is asked for.

    Attributes:
        kind: `"plain"` (as in evaluation), `"mirror"` (the same, left and right exchanged) or
            `"augmented"` (one variant, which follows from the image's content and `number`).
        number: of an augmented view, ≥ 0.
        augmentation: of an augmented view.
    """

    kind: str = "plain"
    number: int = 0
    augmentation: Variation | None = None

    def identity(self) -> dict:
        """Plain data that tells this view from any other."""
        return asdict(self)


def views_of(augmentation, count: int) -> tuple[View, ...]:
    """`count` augmented views, or the plain one where nothing varies."""
    augmentation = resolve_augmentation(augmentation)
    if augmentation == AUGMENTATIONS["none"]:
        return (View(),)
    return tuple(View("augmented", number, augmentation) for number in range(count))


def resolve_augmentation(augmentation) -> Variation:
    """What a name, a file or an object means.

    Args:
        augmentation: a name in `AUGMENTATIONS`; an `Augmentation`, or a dict of its fields, which
            may start from a preset (`{"preset": "medium", "flip": False}`); a transform of
            albumentations; a Keras layer; a dict that either was written down as; or the path of a
            .yaml or .json file with any of these dicts.

    Raises:
        InputError: none of these, or one that cannot be written down and made again.
    """
    if isinstance(augmentation, Variation):
        return augmentation
    if isinstance(augmentation, dict):
        return _from_dict(augmentation)
    if isinstance(augmentation, (str, os.PathLike)):
        if str(augmentation) in AUGMENTATIONS:
            return AUGMENTATIONS[str(augmentation)]
        return _from_file(Path(augmentation))
    # By name: neither library is imported for a user who has none of its objects.
    origins = {kind.__module__.partition(".")[0] for kind in type(augmentation).__mro__}
    if "albumentations" in origins:
        return Albumentations.of(augmentation)
    if "keras" in origins:
        return KerasLayer.of(augmentation)
    raise InputError(
        f"augment: {augmentation!r} is neither a name, fields of an Augmentation, a transform of "
        "albumentations nor a Keras layer"
    )


def plain_augmentation(augmentation) -> str | dict:
    """What a config file says of it: a preset's name as it is, all else written out."""
    if isinstance(augmentation, str) and augmentation in AUGMENTATIONS:
        return augmentation
    return resolve_augmentation(augmentation).to_dict()


def without_flip(augmentation) -> Variation:
    """The same, without mirror images.

    Raises:
        InputError: a transform or layer that mirrors: what else it does is the user's to keep.
    """
    augmentation = resolve_augmentation(augmentation)
    if isinstance(augmentation, Augmentation):
        return replace(augmentation, flip=False)
    if augmentation.flip:
        raise InputError("--no-flip: the augmentation that was given mirrors; take that out of it")
    return augmentation


def _from_dict(given) -> Variation:
    if "transform" in given:
        return Albumentations.from_dict(given)
    if "class_name" in given:
        return KerasLayer.from_dict(given)
    own = dict(given)
    preset = own.pop("preset", None)
    names = [field.name for field in fields(Augmentation)]
    unknown = [str(name) for name in own if name not in names]
    if unknown:
        raise InputError(
            f"augment: there is no field {', '.join(unknown)}; an augmentation has preset, "
            f"{', '.join(names)}"
        )
    if preset is None:
        return Augmentation(**own)
    if str(preset) not in AUGMENTATIONS:
        raise InputError(
            f"augment: no preset named {preset!r}; choose one of {', '.join(AUGMENTATIONS)}"
        )
    return replace(AUGMENTATIONS[str(preset)], **own)


def _from_file(path) -> Variation:
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise InputError(
            f"no augmentation named {str(path)!r}; choose one of {', '.join(AUGMENTATIONS)}, or "
            "give a .yaml or .json file"
        )
    import yaml

    try:
        given = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"augment: {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            f"augment: {path} is no YAML or JSON: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(given, dict):
        raise InputError(f"augment: {path} must hold names and values")
    try:
        return _from_dict(given)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
