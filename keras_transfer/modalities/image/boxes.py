"""Which part of an image is shown: one definition for NumPy and for TensorFlow graphs.

A box is (top, left, height, width), in pixels of the upright image, and may lie between pixels.
"""

import math
from typing import Any

import numpy as np

# Numbers in [0, 1) that a random box and its orientation are made from, in this order.
DRAWS = ("area", "aspect", "top", "left", "flip")
REDUCTIONS = (2, 4, 8)
# How many times larger than the result a box must be after a reduction. With less, pixels of the
# test's photographs differ by more than one level on average from those without a reduction.
LEAST_SCALE = 1.7


def central_box(height: Any, width: Any, size: int, crop: float, ops: Any = np) -> tuple:
    """Return the central square whose side is the share `crop` of the shorter side.

    The share is rounded so that the shorter side becomes a whole number of pixels, `size / crop`.

    Args:
        height, width: of the image, float32.
        size: side of the result that is made from the box, in pixels.
        ops: `numpy` or `tensorflow`.
    """
    side = ops.minimum(height, width) * (size / round(size / crop))
    return (height - side) / 2, (width - side) / 2, side, side


def random_box(height: Any, width: Any, augmentation, draws: Any, ops: Any = np) -> tuple:
    """Return the box of a random crop.

    Args:
        height, width: of the image, float32.
        augmentation: an `Augmentation`, of which `min_area` and `max_aspect` count.
        draws: float32 [5], in [0, 1), see `DRAWS`.
        ops: `numpy` or `tensorflow`.
    """
    # Draw the aspect ratio first, then an area that fits the image at that ratio: no draw is
    # rejected, and a very wide image is not squashed.
    log_aspect = math.log(augmentation.max_aspect)
    aspect = ops.exp((2 * draws[1] - 1) * log_aspect)
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
    return ops.floor(top / times) * times, ops.floor(left / times) * times, height, width


def is_flipped(draws):
    """Return whether left and right are exchanged."""
    return draws[4] < 0.5


def reduction(box: tuple, size: int) -> int:
    """Return how many times smaller an image may be made before a box of it is resampled: 1 to 8."""
    scale = min(box[2], box[3]) / size
    return next((r for r in reversed(REDUCTIONS) if scale >= LEAST_SCALE * r), 1)
