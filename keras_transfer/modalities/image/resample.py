"""Crop a box of an image and resample it, by OpenCV or Pillow: both release Python's lock.

Resampling is bilinear and antialiased, and defined by two steps per axis:

1. If the image is made smaller, each pixel becomes the average of itself and a few neighbors, with weights
   that depend on the scale (`weights`), rounded to a whole number.
2. Results are interpolated between the two nearest pixels.

Both steps are fast everywhere. Together they come close to the average of the pixels in a triangle
as wide as two results (Pillow's BILINEAR; `tf.image.resize(antialias=True)`), which OpenCV does not have.
`prepare` does the same in graph ops. `scripts/image_differences.py` prints the differences.
"""

import math
import threading
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

_SPARE = 16  # results before a box, computed to begin at a whole pixel
_SHIFT = 1 / 32  # by which a box may be shifted, in pixels; OpenCV's maps are as coarse
STEPS = 32  # scales for which weights are computed, per pixel
LARGEST_STEP = 8  # pixels per result; above, weights would be many, and the triangle itself is used


@cache
def opencv() -> Any:
    """Return the module `cv2`; None if it is not installed, and Pillow has to do."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2


class _OneThread:
    """A context in which OpenCV starts no threads, because images are processed in parallel already.

    The number belongs to the process, so it is given back when the last call ends.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._calls = 0

    def __enter__(self):
        if (cv2 := opencv()) is None:
            return
        with self._lock:
            if not self._calls:
                self._before = cv2.getNumThreads()
                cv2.setNumThreads(0)
            self._calls += 1

    def __exit__(self, *_):
        if (cv2 := opencv()) is None:
            return
        with self._lock:
            self._calls -= 1
            if not self._calls:
                cv2.setNumThreads(self._before)


one_thread = _OneThread()


def resample(pixels: np.ndarray, box: tuple, out: np.ndarray, flip: bool = False) -> None:
    """Write a box of an image, scaled, into `out`.

    Args:
        pixels: uint8 [H, W, 3].
        box: (top, left, height, width), see `boxes`.
        out: uint8 [rows, columns, 3], contiguous.
        flip: exchange left and right of the result.
    """
    cv2 = opencv()
    step = max(side / results for side, results in zip(box[2:], out.shape))
    if step > LARGEST_STEP or (cv2 is None and step <= 1):
        by = _by_pillow
    else:
        by = _by_numpy if cv2 is None else _by_opencv
    made = by(pixels, tuple(map(float, box)), *out.shape[:2])
    if not flip:
        np.copyto(out, made)
    elif cv2 is None:
        np.copyto(out, made[:, ::-1])
    else:
        cv2.flip(made, 1, dst=out)


def reduced(pixels: np.ndarray, times: int) -> np.ndarray:
    """Return an image as averages of squares of `times` × `times` pixels; a rest at the end is lost."""
    if times == 1:
        return pixels
    cv2 = opencv()
    if cv2 is None:
        return np.asarray(Image.fromarray(pixels).reduce(times))
    height, width = (max(1, side // times) for side in pixels.shape[:2])
    whole = pixels[: height * times, : width * times]
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)


def weights(step: float) -> np.ndarray:
    """Return the weights of pixels at distances 0, 1, …: float32 [1 to `LARGEST_STEP`], see `table`."""
    return _fitted(max(STEPS, round(step * STEPS)))


def table() -> np.ndarray:
    """Return the weights for every scale, float32 [scales, `LARGEST_STEP`], padded with zeros.

    Row n is for 1 + n / `STEPS` pixels per result.
    """
    rows = np.zeros((STEPS * (LARGEST_STEP - 1) + 1, LARGEST_STEP), np.float32)
    for n, row in enumerate(rows):
        found = _fitted(STEPS + n)
        row[: len(found)] = found
    return rows


@cache
def _fitted(scale: int) -> np.ndarray:
    """Return the weights for `scale` / `STEPS` pixels per result.

    For results at any place between pixels, averaging with them and then interpolating is nearest to the
    average in the triangle: by least squares, of running sums, because power in images falls with
    the square of the frequency.
    """
    step = scale / STEPS
    reach = max(1, math.ceil(step) - 1)
    place = np.arange(STEPS)[:, None] / STEPS
    pixels = np.arange(-reach - 1, reach + 3) - place
    wanted = np.maximum(0, 1 - np.abs(pixels) / step)
    wanted /= wanted.sum(axis=1, keepdims=True)
    neighbors = np.arange(-reach, reach + 1)
    made = np.maximum(0, 1 - np.abs(pixels[..., None] - neighbors))
    wanted = np.cumsum(wanted, axis=1).ravel()
    made = np.cumsum(made, axis=1).reshape(len(wanted), -1)
    center = made[:, reach]  # its weight is what the others leave of 1
    pairs = made[:, reach + 1 :] + made[:, :reach][:, ::-1] - 2 * center[:, None]
    found = np.linalg.lstsq(pairs, wanted - center, rcond=None)[0]
    # In 256ths that are not negative and sum to 1, OpenCV computes in integers, which is fastest.
    parts = np.maximum(0, np.rint(found * 256))
    parts = np.array([256 - 2 * parts.sum(), *parts])
    return (parts[: np.flatnonzero(parts)[-1] + 1] / 256).astype(np.float32)


def _by_pillow(pixels, box, down, across):
    top, left, height, width = box
    limits = (pixels.shape[1], pixels.shape[0]) * 2
    corners = (left, top, left + width, top + height)
    inside = [min(max(0.0, at), limit) for at, limit in zip(corners, limits)]
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((across, down), Image.Resampling.BILINEAR, inside))


def _by_numpy(pixels, box, *size):
    steps = [length / results for length, results in zip(box[2:], size)]
    for axis, step in enumerate(steps):
        pixels = _averaged(pixels, weights(step), axis)
    pixels = np.rint(pixels)
    for axis, step in enumerate(steps):
        pixels = _interpolated(pixels, box[axis], step, size[axis], axis)
    return np.rint(pixels).astype(np.uint8)


def _averaged(pixels, weights, axis):
    """Average with neighbors at distances 0, 1, … along an axis: float32."""
    reach, count = len(weights) - 1, pixels.shape[axis]
    ends = [(reach, reach) if n == axis else (0, 0) for n in range(3)]
    padded = np.moveaxis(np.pad(pixels.astype(np.float32), ends, "edge"), axis, 0)
    shifted = (weights[abs(n)] * padded[reach + n :][:count] for n in range(-reach, reach + 1))
    return np.moveaxis(sum(shifted), 0, axis)


def _interpolated(pixels, low, step, size, axis):
    last = pixels.shape[axis] - 1
    at = np.clip(low + (np.arange(size) + 0.5) * step - 0.5, 0, last)
    before = at.astype(int)
    share = (at - before).astype(np.float32).reshape([-1 if n == axis else 1 for n in range(3)])
    one, other = (np.take(pixels, np.minimum(before + n, last), axis) for n in (0, 1))
    return one + share * (other - one)


def _by_opencv(pixels, box, down, across):
    cv2 = opencv()
    top, left, height, width = box
    rows = _Span(top, height / down, down, pixels.shape[0])
    columns = _Span(left, width / across, across, pixels.shape[1])
    part = _smoothed(pixels, rows, columns)
    if rows.aligned and columns.aligned:
        # Without a size, OpenCV takes the scales as they are.
        made = cv2.resize(
            part, None, fx=1 / columns.step, fy=1 / rows.step, interpolation=cv2.INTER_LINEAR
        )
        made = made[rows.spare :, columns.spare :][:down, :across]
        if made.shape == (down, across, 3):
            return made
    first = [
        (spare + 0.5) * span.step - 0.5
        for span, spare in ((columns, columns.exact), (rows, rows.exact))
    ]
    matrix = np.array([[columns.step, 0, first[0]], [0, rows.step, first[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        part, matrix, (across, down), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )


def _smoothed(pixels, rows, columns):
    """Return the pixels that two spans need, averaged as their steps demand."""
    down, across = (weights(span.step) for span in (rows, columns))
    if len(down) == len(across) == 1:
        return pixels[rows.start : rows.after, columns.start : columns.after]
    cv2 = opencv()
    # Pixels just outside the box count, too.
    above, left = min(rows.start, len(down) - 1), min(columns.start, len(across) - 1)
    part = pixels[
        rows.start - above : rows.after + len(down) - 1,
        columns.start - left : columns.after + len(across) - 1,
    ]
    down, across = (np.concatenate([side[:0:-1], side]) for side in (down, across))
    made = cv2.sepFilter2D(part, -1, across, down, borderType=cv2.BORDER_REPLICATE)
    return made[above:, left:]


class _Span:
    """The pixels along one axis that a box needs.

    OpenCV's fast function begins at a whole pixel. A few results before the box are therefore
    computed as well, as many as bring the beginning to one.

    Attributes:
        step: pixels per result.
        start: pixel at which the first result, before the box, begins.
        spare: number of results before the box.
        exact: the same number without rounding the start.
        aligned: whether the start is near enough to a whole pixel.
        after: limit of the pixels that are read.
    """

    __slots__ = ("after", "aligned", "exact", "spare", "start", "step")

    def __init__(self, low: float, step: float, size: int, count: int):
        best, self.spare = 2.0, 0
        for spare in range(min(_SPARE, int(low / step + _SHIFT)) + 1):
            at = low - spare * step
            shift = abs(at - round(at))
            if shift < best:
                best, self.spare = shift, spare
                if shift <= _SHIFT:
                    break
        self.step, self.aligned = step, best <= 2 * _SHIFT
        self.start = max(0, round(low - self.spare * step))
        self.exact = (low - self.start) / step
        self.after = min(count, int(low + size * step) + int(step) + 3)
