"""What may change in a training picture: plain data (no TensorFlow)."""

from dataclasses import asdict, dataclass

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


@dataclass(frozen=True)
class View:
    """One fixed way to look at a picture, the same whenever it is asked for.

    Attributes:
        kind: `"plain"` (as in evaluation), `"mirror"` (the same, left and right exchanged) or
            `"augmented"` (one variant, which follows from the picture's content and `number`).
        number: of an augmented view, ≥ 0.
        augmentation: of an augmented view.
    """

    kind: str = "plain"
    number: int = 0
    augmentation: Augmentation | None = None

    def identity(self) -> dict:
        """Plain data that tells this view from any other."""
        return asdict(self)


def views_of(augmentation: str | Augmentation, count: int) -> tuple[View, ...]:
    """`count` augmented views, or the plain one where nothing varies."""
    augmentation = resolve_augmentation(augmentation)
    if augmentation == AUGMENTATIONS["none"]:
        return (View(),)
    return tuple(View("augmented", number, augmentation) for number in range(count))


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
