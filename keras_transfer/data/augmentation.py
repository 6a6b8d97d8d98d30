"""What may change in a training picture: plain data (no TensorFlow)."""

from dataclasses import dataclass

from keras_transfer.errors import InputError


@dataclass(frozen=True)
class Augmentation:
    """How much a training picture may vary from epoch to epoch.

    Attributes:
        crop: cut out a random box and stretch it to the model's input; otherwise the
            picture is resized and cropped as in evaluation.
        min_area: smallest share of the picture's area that such a box covers, in (0, 1].
        max_aspect: most extreme width:height of the box, or height:width; at least 1.
        flip: mirror left and right half of the time.
        brightness: largest relative change of all values, in [0, 1]: factor 1 ± brightness.
        contrast: largest relative change of the distance to the mean grey, in [0, 1].
        saturation: largest relative change of the distance to each pixel's grey, in [0, 1].
        hue: largest turn of the hue, as a share of the colour circle, in [0, 0.5].

    Raises:
        InputError: a value out of its range.
    """

    crop: bool = True
    min_area: float = 0.6
    max_aspect: float = 4 / 3
    flip: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self):
        ranges = {
            "brightness": (0, 1),
            "contrast": (0, 1),
            "saturation": (0, 1),
            "hue": (0, 0.5),
            "max_aspect": (1, 100),
            # An area of zero has no pixels; the smallest that makes sense is far above this.
            "min_area": (1e-3, 1),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(
                    f"augmentation: {name} must lie between {low} and {high}, not {value}"
                )


AUGMENTATIONS = {
    "none": Augmentation(crop=False, min_area=1.0, max_aspect=1.0, flip=False),
    "light": Augmentation(),
    "medium": Augmentation(brightness=0.2, contrast=0.2, saturation=0.2),
    "heavy": Augmentation(min_area=0.2, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.05),
}


def resolve_augmentation(augmentation: str | Augmentation) -> Augmentation:
    """Look up a name in `AUGMENTATIONS`; an `Augmentation` is returned as it is.

    Raises:
        InputError: no such name.
    """
    if isinstance(augmentation, Augmentation):
        return augmentation
    if augmentation not in AUGMENTATIONS:
        raise InputError(
            f"no augmentation named {augmentation!r}; choose one of {', '.join(AUGMENTATIONS)}"
        )
    return AUGMENTATIONS[augmentation]
