"""Which part of an image is shown: one definition for NumPy and for TensorFlow graphs.

A box is (top, left, height, width), in pixels of the upright image, and may lie between pixels.
"""

import math
from typing import Any

import numpy as np

from keras_transfer.utils.image_sizes import sides

# Numbers in [0, 1) that a random box and its orientation are made from, in this order.
DRAWS = ("area", "aspect", "top", "left", "flip")
REDUCTIONS = (2, 4, 8)
# How many times larger than the result a box must be after a reduction. With less, pixels of the
# test's photographs differ by more than one level on average from those without a reduction.
LEAST_SCALE = 1.7


def central_box(height: Any, width: Any, size: int | str, crop: float, ops: Any = np) -> tuple:
    """Return the share `crop` of the largest central rectangle that has the shape of the result.

    The share is rounded so that, for a square, the shorter side becomes a whole number of pixels,
    `size / crop`.

    Args:
        height, width: of the image, float32.
        size: of the result that is made from the box, see `utils.image_sizes`.
        ops: `numpy` or `tensorflow`.
    """
    rows, columns = sides(size)
    tall = ops.minimum(height, width * (rows / columns)) * (rows / round(rows / crop))
    wide = tall * (columns / rows)
    return (height - tall) / 2, (width - wide) / 2, tall, wide


def random_box(
    height: Any, width: Any, augmentation, draws: Any, size: int | str, ops: Any = np
) -> tuple:
    """Return the box of a random crop.

    Args:
        height, width: of the image, float32.
        augmentation: an `Augmentation`, of which `min_area` and `max_aspect` count.
        draws: float32 [5], in [0, 1), see `DRAWS`.
        size: see `central_box`.
        ops: `numpy` or `tensorflow`.
    """
    # Draw the aspect ratio first, then an area that fits the image at that ratio: no draw is
    # rejected, and a very wide image is not squashed.
    log_aspect = math.log(augmentation.max_aspect)
    rows, columns = sides(size)
    aspect = ops.exp((2 * draws[1] - 1) * log_aspect) * (columns / rows)
    largest = ops.minimum(width / (height * aspect), height * aspect / width)
    smallest = ops.minimum(augmentation.min_area, largest)
    area = (smallest + draws[0] * (largest - smallest)) * height * width
    box_height, box_width = ops.sqrt(area / aspect), ops.sqrt(area * aspect)
    top, left = draws[2] * (height - box_height), draws[3] * (width - box_width)
    return top, left, box_height, box_width


def aligned(box: tuple, times: Any, ops: Any = np) -> tuple:
    """Move a box to the whole pixel before it, of an image that is reduced `times`.

    Random boxes may lie anywhere, and those are resampled in half of the time.
    """
    top, left, height, width = box
    # Rounding of a random box may have put it just before the image.
    top, left = (ops.floor(ops.maximum(0.0, at) / times) * times for at in (top, left))
    return top, left, height, width


def is_flipped(draws):
    """Return whether left and right are exchanged."""
    return draws[4] < 0.5


def reduction(box: tuple, size: int | str) -> int:
    """Return how many times smaller an image may be made before a box of it is resampled: 1 to 8."""
    scale = min(side / results for side, results in zip(box[2:], sides(size)))
    return next((r for r in reversed(REDUCTIONS) if scale >= LEAST_SCALE * r), 1)
