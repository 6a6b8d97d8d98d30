"""The front end: windows of samples become log-mel images for networks of images.

In an exported model the Fourier transform is a convolution, the only form that converts to LiteRT, ONNX
and OpenVINO alike. Each clip is scaled by its own maximum, so it looks the same alone and in a batch of
louder ones. `scripts/audio_digits.py --tune` compared ranges and paddings.
"""

from functools import cache
from typing import Any

import numpy as np

from keras_transfer.modalities.audio.framing import ClipFraming

_WINDOW = 0.025  # seconds of a spectrum
_LOWEST = 20.0  # Hz
_BANDS = 64
_RANGE = 40.0  # decibels below the clip's maximum, which become 0
_LEAST_POWER = 1e-16  # of digital silence
_HERTZ, _MELS = 700, 2595  # of the mel scale: mels = 2595 · log10(1 + hertz / 700)


def image_of(window: np.ndarray, framing: ClipFraming) -> np.ndarray:
    """Return the log-mel image of a window, see `shades`.

    Args:
        window: float32 [framing.samples], -1 to 1.

    Returns:
        uint8 [size, size, 3].
    """
    fourier, *_ = _matrices(framing)
    pieces = np.lib.stride_tricks.sliding_window_view(
        np.pad(window, _margins(framing)), len(fourier)
    )
    waves = pieces[:: framing.hop] @ fourier
    image = np.round(shades(waves[None], framing)[0]).astype("uint8")
    return np.repeat(image[..., None], 3, axis=-1)


def waves_of(windows: Any, framing: ClipFraming, ops: Any) -> Any:
    """Return the spectra of windows [N, samples], [N, spectra, 2·bins], by a convolution.

    Args:
        ops: `keras.ops`.
    """
    fourier, *_ = _matrices(framing)
    padded = ops.pad(windows, [[0, 0], list(_margins(framing))])
    strides, kernel = (framing.hop, 1), fourier[:, None, None, :]
    return ops.conv(padded[:, :, None, None], kernel, strides, "valid")[:, :, 0]


def shades(waves: Any, framing: ClipFraming, ops: Any = np) -> Any:
    """Return the shades of log-mel images: low frequencies at the bottom, time from left to right.

    Args:
        waves: real and imaginary parts of the spectra, float32 [N, size · framing.spectra, 2·bins].
        ops: `numpy` or `keras.ops`.

    Returns:
        float32 [N, size, size]: 255 is the maximum of the clip, 0 is 40 dB or more below it.
    """
    _, mel, rows = _matrices(framing)
    bins = len(mel)
    power = ops.square(waves[..., :bins]) + ops.square(waves[..., bins:])
    bands = ops.reshape(ops.matmul(power, mel), (-1, framing.size, framing.spectra, _BANDS))
    level = (10 / np.log(10).item()) * ops.log(ops.maximum(ops.mean(bands, axis=2), _LEAST_POWER))
    top = ops.max(level, axis=(1, 2), keepdims=True)
    values = ops.maximum(level - top + _RANGE, 0.0) * (255 / _RANGE)
    return ops.transpose(ops.matmul(values, rows), (0, 2, 1))


def _margins(framing):
    """Return the zeros before and after a window, so that spectra are centered on their hops."""
    extra = len(_matrices(framing)[0]) - framing.hop
    return extra // 2, extra - extra // 2


@cache
def _matrices(framing):
    """Return (Fourier transform [window, 2·bins], mel bands [bins, bands], rows [bands, size])."""
    length = max(framing.hop, round(_WINDOW * framing.rate))
    points = 2 << (length - 1).bit_length()  # twice as fine as the window alone
    frequencies = np.arange(points // 2 + 1) * framing.rate / points
    angle = 2 * np.pi * np.arange(length)[:, None] * frequencies / framing.rate
    window = np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2  # Hann's
    scale = window[:, None] / window.sum()
    fourier = np.concatenate([np.cos(angle) * scale, np.sin(angle) * scale], axis=1)
    highest, lowest = (_MELS * np.log10(1 + f / _HERTZ) for f in (framing.rate / 2, _LOWEST))
    edges = _HERTZ * (10 ** (np.linspace(lowest, highest, _BANDS + 2) / _MELS) - 1)
    low, center, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies[:, None] - low) / (center - low)
    falling = (high - frequencies[:, None]) / (high - center)
    mel = np.maximum(0, np.minimum(rising, falling))
    mel /= np.maximum(mel.sum(axis=0), 1e-9)  # the mean power of a band
    # Bands are interpolated to the image's rows, from the highest at the top to the lowest.
    place = np.clip((np.arange(framing.size) + 0.5) / framing.size * _BANDS - 0.5, 0, _BANDS - 1)
    rows = np.maximum(0, 1 - np.abs(np.arange(_BANDS)[:, None] - place))[:, ::-1]
    return tuple(np.ascontiguousarray(m, "float32") for m in (fourier, mel, rows))
