"""Crop a box of an image and resample it, by OpenCV or Pillow: both release Python's lock.

Resampling is bilinear and antialiased. An enlarged image is interpolated between its pixels, which OpenCV
does fastest; of one that is made smaller, each result is the average of the pixels in a triangle as
wide as two results (Pillow's BILINEAR; `tf.image.resize(antialias=True)`), which OpenCV does not have.
`scripts/image_differences.py` prints how far results differ from those of the exported graph.
"""

import threading
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

_SPARE = 16  # results before a box, computed to begin at a whole pixel
_SHIFT = 1 / 32  # by which a box may be shifted, in pixels; OpenCV's maps are as coarse


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
        pixels: uint8 [H, W, C].
        box: (top, left, height, width), see `boxes`.
        out: uint8 [rows, columns, C], contiguous.
        flip: exchange left and right of the result.
    """
    if out.shape[-1] != 3:
        by_threes(lambda part, made: resample(part, box, made, flip), pixels, out)
        return
    cv2 = opencv()
    smaller = any(side > results for side, results in zip(box[2:], out.shape))
    by = _by_pillow if cv2 is None or smaller else _by_opencv
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
    if pixels.shape[-1] != 3:
        height, width = (max(1, side // times) for side in pixels.shape[:2])
        out = np.empty((height, width, pixels.shape[-1]), np.uint8)
        by_threes(
            lambda part, made: np.copyto(made, reduced(part, times)[:height, :width]), pixels, out
        )
        return out
    cv2 = opencv()
    if cv2 is None:
        return np.asarray(Image.fromarray(pixels).reduce(times))
    height, width = (max(1, side // times) for side in pixels.shape[:2])
    whole = pixels[: height * times, : width * times]
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)


def by_threes(function, pixels: np.ndarray, out: np.ndarray) -> None:
    """Call a function of (pixels, out) of three channels for all channels, three at a time."""
    count = pixels.shape[-1]
    for first in range(0, count, 3):
        at = [min(first + n, count - 1) for n in range(3)]
        made = np.empty((*out.shape[:2], 3), np.uint8)
        function(np.ascontiguousarray(pixels[..., at]), made)
        out[..., first : first + 3] = made[..., : count - first]


def _by_pillow(pixels, box, down, across):
    top, left, height, width = box
    limits = (pixels.shape[1], pixels.shape[0]) * 2
    corners = (left, top, left + width, top + height)
    inside = [min(max(0.0, at), limit) for at, limit in zip(corners, limits)]
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((across, down), Image.Resampling.BILINEAR, inside))


def _by_opencv(pixels, box, down, across):
    cv2 = opencv()
    top, left, height, width = box
    rows = _Span(top, height / down, down, pixels.shape[0])
    columns = _Span(left, width / across, across, pixels.shape[1])
    part = pixels[rows.start : rows.after, columns.start : columns.after]
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
