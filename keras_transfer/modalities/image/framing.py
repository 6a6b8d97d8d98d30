"""How images are resized for a model: the side of the square, and how much of an image it shows.

Importing this module loads neither Keras nor TensorFlow.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.modalities import Framing as Base
from keras_transfer.modalities.image.bands import RGB, Reading, checked_reading
from keras_transfer.utils.image_sizes import changed, checked_size, sides

DEFAULT_CROP = 0.875
_WHOLE = 1.0
_LEAST_SIZE = 96  # below, networks for 224 px see little
_SAMPLE = 200  # images whose headers are read


@dataclass(frozen=True)
class Framing(Base):
    """The rectangle that a model reads of an image, mostly a square.

    Attributes:
        size: its side, in pixels, or `"96x192"`: height and width; None leaves it open.
        crop: share of the largest central rectangle of that shape that is shown (for a square: of the
            image's shorter side), in (0, 1]; None leaves it open.
        depth, channels: see `bands.Reading`; None leaves them as they are by default.

    Raises:
        InputError: a value is out of its range.
    """

    modality: ClassVar[str] = "image"

    size: int | str | None = None
    crop: float | None = None
    depth: str | None = None
    channels: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "size", checked_size(self.size))
        object.__setattr__(self, "crop", checked_crop(self.crop))
        checked_reading(*self.reading)

    @classmethod
    def of(cls, image_size: "int | str | Framing | None") -> "Framing":
        """Return an image size as a framing, and a framing as it is."""
        return image_size if isinstance(image_size, Framing) else cls(image_size)

    @property
    def settled(self) -> bool:
        """Whether the crop is decided."""
        return self.crop is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a model input."""
        return (*sides(self.square[0]), self.reading.channels)

    @property
    def built_channels(self) -> int | None:
        return self.channels

    @property
    def reading(self) -> Reading:
        """What the model reads of a file."""
        channels = RGB.channels if self.channels is None else self.channels
        return Reading(channels, RGB.depth if self.depth is None else self.depth)

    def settled_as(self, chosen: Base) -> Base:
        if not isinstance(chosen, Framing):
            return chosen
        depth, channels = self.depth or chosen.depth, self.channels or chosen.channels
        return replace(chosen, depth=depth, channels=channels)

    def at(self, size: int | str | None) -> "Framing":
        """Return the same framing for another size."""
        return replace(self, size=size)

    def to_dict(self) -> dict:
        """Return everything but the size, as plain data."""
        channels = {} if self.channels in (None, RGB.channels) else {"channels": self.channels}
        return {"crop": self.crop, "depth": self.depth, **channels}

    def recorded(self) -> dict:
        return {**self.to_dict(), "depth": self.reading.depth}

    def __str__(self) -> str:
        reading = self.reading
        channels = f", {self.channels} channels" if reading.channels != RGB.channels else ""
        depth = f", depth {self.depth}" if reading.depth != RGB.depth else ""
        return f"crop {self.crop}{depth}{channels}"

    @property
    def square(self) -> tuple[int | str, float]:
        """(size, crop) for `prepare.resize_and_crop`, with `DEFAULT_CROP` where it is open."""
        if self.size is None:
            raise InputError("Pass image_size: for example 224, or 96x192.")
        return self.size, self.crop or DEFAULT_CROP


def checked_crop(crop: Any) -> float | None:
    """Return a crop as a float, and None as it is; raise InputError for anything else."""
    if crop is None:
        return None
    try:
        share = float("nan") if isinstance(crop, bool) else float(crop)
    except (TypeError, ValueError):
        share = float("nan")
    if not 0 < share <= 1:
        raise InputError(
            f"crop must be a number above 0 and at most 1, not {crop!r}: the share of an image's "
            "shorter side that the model sees."
        )
    return share


def choose_crop(data, image_size: int | str) -> tuple[float, str]:
    """Return the crop that suits some data, and the reason in words.

    Images that are enlarged to the model's size are shown whole: there is no detail to gain from a
    closer look, and a crop only removes content. From larger images, as from those of ImageNet, the
    central 0.875 is cut. `scripts/accuracy.py` can measure both (`lp_ft_crop1` and the grid).

    Args:
        data: an `ImageData`, of which the training images count, or `Examples`.
        image_size: of the model, in pixels.
    """
    median = median_side(data)
    if median is None:
        return DEFAULT_CROP, "there are no images to decide it by"
    enlarged = median <= min(sides(image_size))
    reason = (
        f"the originals' median shorter side, {median:g} px, is {'not ' * enlarged}above the image "
        f"size, {image_size} px"
    )
    return _WHOLE if enlarged else DEFAULT_CROP, reason


def crops(data, image_size: int | str) -> tuple[float, ...]:
    """Return the crops that are worth comparing for some data, that of `choose_crop` first."""
    chosen, _ = choose_crop(data, image_size)
    return chosen, *(crop for crop in (_WHOLE, DEFAULT_CROP) if crop != chosen)


def smaller_sizes(image_size: int | str) -> tuple[int | str, ...]:
    """Return image sizes that are worth comparing with a larger one, the largest first.

    They differ from it by multiples of 32, so that every layer pads the same way.
    """
    least = min(sides(image_size))
    smaller = (round(least * share / 32) * 32 for share in (0.3, 0.43, 0.57))
    return tuple(changed(image_size, -s) for s in smaller if s and least - s >= _LEAST_SIZE)


def median_side(data) -> float | None:
    """Return the median of the shorter sides of at most 200 training images; None if there are none.

    Args:
        data: see `choose_crop`.
    """
    splits = getattr(data, "examples", {"train": data})
    images = splits.get("train", next(iter(splits.values()))).images
    # Spread over the classes, which follow one another.
    rows = np.unique(np.linspace(0, len(images) - 1, min(len(images), _SAMPLE)).astype(int))
    return float(np.median([images.shorter_side(row) for row in rows])) if len(rows) else None
