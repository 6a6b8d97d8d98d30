"""Clips in memory: whole numbers become floats, and channels one."""

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.modalities.audio.decode import mono
from keras_transfer.modalities.audio.framing import RATES


class Cast:
    """Convert the clips of a split to (float32 [n], rate), one by one.

    Args:
        split: its name, for messages.
        rate: samples per second.

    Raises:
        InputError: if the rate is out of its range.
    """

    def __init__(self, split: str, rate: int):
        whole = isinstance(rate, (int, np.integer)) and not isinstance(rate, bool)
        if not whole or not RATES[0] <= rate <= RATES[1]:
            raise InputError(
                f"rate must be a whole number of samples per second, {RATES[0]} to {RATES[1]}, not "
                f"{rate!r}."
            )
        self.rate = int(rate)

    def __call__(self, samples, name: str) -> tuple[np.ndarray, int]:
        samples = np.asarray(samples)
        if samples.ndim not in (1, 2) or samples.dtype.kind not in "iuf":
            raise InputError(
                f"{name} is {samples.dtype} {list(samples.shape)}, not a clip: pass samples [n] or [n, "
                "channels], floats from -1 to 1 or whole numbers."
            )
        if samples.ndim == 2 and 0 < len(samples) < samples.shape[1]:
            raise InputError(
                f"{name} has the shape {list(samples.shape)}, which is {len(samples)} samples of "
                f"{samples.shape[1]} channels: pass [n, channels], such as the transposed array."
            )
        if samples.dtype.kind in "iu":
            limits = np.iinfo(samples.dtype)
            middle = (int(limits.max) + int(limits.min) + 1) / 2
            samples = (samples - middle) / (int(limits.max) + 1 - middle)
        elif np.abs(samples).max(initial=0) > 1.5:
            raise InputError(
                f"{name} has values up to {np.abs(samples).max():.3g}: floats must lie between -1 and 1."
            )
        return mono(samples.astype("float32")), self.rate

    def report(self) -> None:
        """There is nothing to print."""
