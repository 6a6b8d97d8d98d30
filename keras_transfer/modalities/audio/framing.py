"""How a model reads clips: sample rate, window and size of the log-mel image.

Importing this module loads neither Keras nor TensorFlow.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.modalities import Framing
from keras_transfer.utils.image_sizes import checked_size, sides

RATES = (1000, 192_000)  # that can be read, in Hz
_MOST_RATE = 16_000  # Hz; speech and most sounds have little above 8 kHz
_MOST_SECONDS = 10.0
_SHARE = 0.95  # of the training clips that are read whole
_HOP = 0.010  # seconds between two spectra, at most


@dataclass(frozen=True)
class ClipFraming(Framing):
    """The part of a clip that a model reads, and the image that it becomes.

    Attributes:
        size: of the image, in pixels: 96, or `"96x192"` for 96 rows of mel bands and 192 columns of time;
            None leaves it open.
        rate: samples per second, to which clips are resampled.
        seconds: length of the window. Longer clips are cut to their middle; shorter ones lie in the
            middle, between zeros.

    Raises:
        InputError: a value is out of its range.
    """

    modality: ClassVar[str] = "audio"

    size: int | str | None = None
    rate: int = _MOST_RATE
    seconds: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "size", checked_size(self.size))
        if not RATES[0] <= self.rate <= RATES[1]:
            raise InputError(
                f"The sample rate must be {RATES[0]} to {RATES[1]} Hz, not {self.rate}."
            )
        if not 0.01 <= self.seconds <= 60:
            raise InputError(f"The window must be 0.01 to 60 seconds long, not {self.seconds}.")

    @property
    def settled(self) -> bool:
        return True

    def at(self, size: int | str | None) -> "ClipFraming":
        """Return the same framing for another size."""
        return replace(self, size=size)

    def to_dict(self) -> dict:
        """Return everything but the size, as plain data."""
        return {"modality": self.modality, "rate": self.rate, "seconds": self.seconds}

    def __str__(self) -> str:
        return f"window {self.seconds:g} s at {self.rate} Hz"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a model input; an InputError if the size is open."""
        if self.size is None:
            raise InputError("Pass image_size: of the log-mel image, for example 96 or 96x192.")
        return (*sides(self.size), 3)

    @property
    def rows(self) -> int:
        """Height of the image."""
        return self.shape[0]

    @property
    def columns(self) -> int:
        """Width of the image."""
        return self.shape[1]

    @property
    def spectra(self) -> int:
        """Number of spectra in a column of the image, which shows their mean."""
        return max(1, math.ceil(self.seconds / (self.columns * _HOP)))

    @property
    def hop(self) -> int:
        """Samples from one spectrum to the next."""
        return max(1, math.ceil(self.rate * self.seconds / (self.columns * self.spectra)))

    @property
    def samples(self) -> int:
        """Length of the window, rounded up to whole columns of the image."""
        return self.hop * self.columns * self.spectra


def choose_framing(seconds: np.ndarray, rates: np.ndarray) -> tuple[ClipFraming, str]:
    """Return the framing that suits some clips, and the reason in words.

    The window is so long that 95 % of the clips fit, at most 10 seconds. The rate is one that 90 % of
    the clips reach, at most 16 kHz: where some were recorded at a higher rate, the model could learn
    the recorder instead of the sound.

    Args:
        seconds, rates: of the training clips, [N].
    """
    if not len(seconds):
        return ClipFraming(), "there are no clips to decide it by"
    long = float(np.quantile(seconds, _SHARE, method="higher"))
    window = min(_MOST_SECONDS, max(0.1, math.ceil(10 * long) / 10))
    rate = min(_MOST_RATE, int(np.quantile(rates, 0.1, method="lower")))
    fit = float((seconds <= window).mean())
    return ClipFraming(rate=max(RATES[0], rate), seconds=window), (
        f"{fit:.0%} of the clips are not longer, and nine of ten have a rate of {rate} Hz or more"
    )
