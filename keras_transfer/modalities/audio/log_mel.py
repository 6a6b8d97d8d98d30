"""The front end: windows of samples become log-mel images for networks of images.

In a layer the Fourier transform is a convolution, the only form that converts to LiteRT, ONNX and
OpenVINO alike; training and SavedModels use a fast transform. Each clip is scaled by its own maximum, so it looks the same
alone and in a batch of louder ones. `scripts/audio_digits.py --tune` compared ranges and paddings.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from scipy.fft import rfft
from scipy.sparse import csr_array

from keras_transfer.modalities.audio.framing import ClipFraming

_WINDOW = 0.025  # seconds of a spectrum
_LOWEST = 60.0  # Hz
_BANDS = 64
_RANGE = 30.0  # decibels below the clip's maximum, which become 0
_LEAST_POWER = 1e-16  # of digital silence
_HERTZ, _MELS = 700, 2595  # of the mel scale: mels = 2595 · log10(1 + hertz / 700)


def image_of(window: np.ndarray, framing: ClipFraming) -> np.ndarray:
    """Return the log-mel image of a window, see `shades`.

    Args:
        window: float32 [framing.samples], -1 to 1.

    Returns:
        uint8 [height, width, 3].
    """
    hann = hann_window(framing)
    pieces = np.lib.stride_tricks.sliding_window_view(np.pad(window, _margins(framing)), len(hann))
    # A fast transform and sparse products: BLAS would share such small ones among the cores, which
    # takes ten times as long.
    found = rfft(pieces[:: framing.hop] * hann, points_of(hann))
    mel, rows = _sparse(framing)
    bands = (mel @ (np.square(found.real) + np.square(found.imag)).T).T
    image = np.round(rows @ _values(bands[None], framing, np)[0].T).astype("uint8")
    return np.repeat(image[..., None], 3, axis=-1)


def shades(windows: Any, framing: ClipFraming, ops: Any, power: Callable | None = None) -> Any:
    """Return the shades of log-mel images: low frequencies at the bottom, time from left to right.

    Args:
        windows: float32 [N, framing.samples], -1 to 1.
        ops: `keras.ops`.
        power: function from the windows between zeros to the power of their spectra, float32
            [N, spectra, bins]; by default a convolution.

    Returns:
        float32 [N, height, width]: 255 is the maximum of the clip, 0 is 30 dB or more below it.
    """
    fourier, mel, rows = _matrices(framing)
    padded = ops.pad(windows, [[0, 0], list(_margins(framing))])

    def convolved(padded):
        strides, kernel = (framing.hop, 1), fourier[:, None, None, :]
        waves = ops.conv(padded[:, :, None, None], kernel, strides, "valid")[:, :, 0]
        return ops.square(waves[..., : len(mel)]) + ops.square(waves[..., len(mel) :])

    values = _values(ops.matmul((power or convolved)(padded), mel), framing, ops)
    return ops.transpose(ops.matmul(values, rows), (0, 2, 1))


def _values(bands, framing, ops):
    """Return shades [N, width, bands] of the power of bands [N, width · framing.spectra, bands]."""
    bands = ops.reshape(bands, (-1, framing.columns, framing.spectra, _BANDS))
    level = (10 / np.log(10).item()) * ops.log(ops.maximum(ops.mean(bands, axis=2), _LEAST_POWER))
    top = ops.max(level, axis=(1, 2), keepdims=True)
    return ops.maximum(level - top + _RANGE, 0.0) * (255 / _RANGE)


def _margins(framing):
    """Return the zeros before and after a window, so that spectra are centered on their hops."""
    extra = len(hann_window(framing)) - framing.hop
    return extra // 2, extra - extra // 2


@cache
def hann_window(framing: ClipFraming) -> np.ndarray:
    """Return Hann's window of a spectrum, whose sum is 1."""
    length = max(framing.hop, round(_WINDOW * framing.rate))
    window = np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2
    return (window / window.sum()).astype("float32")


def points_of(hann: np.ndarray) -> int:
    """Return the points of a transform: twice as fine as the window alone."""
    return 2 << (len(hann) - 1).bit_length()


@cache
def _matrices(framing):
    """Return (Fourier transform [window, 2·bins], mel bands [bins, bands], rows [bands, height])."""
    hann = hann_window(framing)
    length, points = len(hann), points_of(hann)
    frequencies = np.arange(points // 2 + 1) * framing.rate / points
    angle = 2 * np.pi * np.arange(length)[:, None] * frequencies / framing.rate
    scale = hann[:, None]
    fourier = np.concatenate([np.cos(angle) * scale, np.sin(angle) * scale], axis=1)
    highest, lowest = (_MELS * np.log10(1 + f / _HERTZ) for f in (framing.rate / 2, _LOWEST))
    edges = _HERTZ * (10 ** (np.linspace(lowest, highest, _BANDS + 2) / _MELS) - 1)
    low, center, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies[:, None] - low) / (center - low)
    falling = (high - frequencies[:, None]) / (high - center)
    mel = np.maximum(0, np.minimum(rising, falling))
    mel /= np.maximum(mel.sum(axis=0), 1e-9)  # the mean power of a band
    # Bands are interpolated to the image's rows, from the highest at the top to the lowest.
    place = np.clip((np.arange(framing.rows) + 0.5) / framing.rows * _BANDS - 0.5, 0, _BANDS - 1)
    rows = np.maximum(0, 1 - np.abs(np.arange(_BANDS)[:, None] - place))[:, ::-1]
    return tuple(np.ascontiguousarray(m, "float32") for m in (fourier, mel, rows))


@cache
def _sparse(framing):
    """Return the transposed mel bands and rows."""
    _, mel, rows = _matrices(framing)
    return csr_array(mel.T), csr_array(rows.T)
