"""Make log-mel images of clips: decode, resample, cut, vary and transform, in NumPy."""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np

from keras_transfer.modalities.audio.augment import ClipAugmentation
from keras_transfer.modalities.audio.framing import ClipFraming
from keras_transfer.modalities.audio.log_mel import image_of
from keras_transfer.modalities.one_by_one import OneByOne
from keras_transfer.modalities.views import View

_LEAST_NOISE = 0.01
_MASKS = 2  # of each kind


class Preparation(OneByOne):
    """Makes views of single clips; see `modalities.image.preparation.Preparation`.

    Args:
        clips: a reader, see `data.files`.
        views: the V views to make of each clip.
        framing: with a size.
        memory: a `data.memory.Memory`, which caches resampled clips.
    """

    dtype = "uint8"
    draws = 0  # everything is drawn from the seeds
    busy = nullcontext()

    def __init__(self, clips, views: Sequence[View], framing: ClipFraming, memory=None):
        self.shape = framing.shape
        self.finish = [None] * len(views)
        self._clips, self._framing, self._memory = clips, framing, memory
        self._variants = [view.augmentation for view in views]

    def make(self, index: int, draws: np.ndarray, seeds: np.ndarray, out: np.ndarray) -> None:
        """Write the views of one clip into `out`, uint8 [V, height, width, 3].

        Raises:
            ValueError: if the clip cannot be read; the message names it.
        """
        samples = self._samples(index)
        for augmentation, seed, view in zip(self._variants, seeds, out):
            if augmentation is None:
                view[:] = image_of(window_of(samples, self._framing), self._framing)
            else:
                rng = np.random.default_rng(np.abs(seed))
                view[:] = _varied(samples, self._framing, augmentation, rng)

    def _samples(self, index):
        rate = self._framing.rate

        def read():
            return self._clips.read(index, lambda clip: clip.samples(rate))

        if self._memory is None:
            return read()
        return self._memory.cached(self._clips, (int(index), rate), read)


def window_of(samples: np.ndarray, framing: ClipFraming, shift: int = 0) -> np.ndarray:
    """Return the middle of a clip, or the clip in the middle of zeros: float32 [framing.samples].

    Args:
        shift: samples by which the clip comes later.
    """
    window = np.zeros(framing.samples, "float32")
    start = (len(window) - len(samples)) // 2 + shift
    first, last = max(0, start), min(len(window), start + len(samples))
    if first < last:
        window[first:last] = samples[first - start : last - start]
    return window


def _varied(samples, framing: ClipFraming, augmentation: ClipAugmentation, rng):
    most = augmentation.shift * framing.samples
    shift = round(rng.uniform(-most, most))
    if augmentation.speed:
        samples = _faster(samples, (1 + augmentation.speed) ** rng.uniform(-1, 1))
    window = window_of(samples, framing, shift)
    if augmentation.noise:
        least = min(_LEAST_NOISE, augmentation.noise)
        share = np.exp(rng.uniform(np.log(least), np.log(augmentation.noise)))
        power = np.mean(np.square(samples, dtype="float64")) if len(samples) else 0.0
        amplitude = share * np.sqrt(power)
        window += rng.normal(0, amplitude, len(window)).astype("float32")
    image = image_of(window, framing)
    gray = round(float(image.mean()))
    for _ in range(_MASKS):
        image[_masked(rng, augmentation.bands, framing.rows)] = gray
        image[:, _masked(rng, augmentation.times, framing.columns)] = gray
    return image


def _faster(samples, factor):
    """Return a clip at another speed, like a tape: tones become higher by the same factor."""
    if len(samples) < 2:  # resampled, of a clip of a few samples nothing may be left
        return samples
    places = np.arange(0, len(samples) - 1, factor)
    return np.interp(places, np.arange(len(samples)), samples).astype("float32")


def _masked(rng, share, size):
    width = int(rng.uniform(0, share * size))
    start = int(rng.integers(0, size - width + 1))
    return slice(start, start + width)
