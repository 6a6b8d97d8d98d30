"""Image sizes as plain data: a number for a square, and text such as `"96x192"` for height × width."""

import re
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from keras_transfer.errors import InputError


def checked_size(size: Any) -> Any:
    """Return an image size as plain data: a square as a number, another as `"HEIGHTxWIDTH"`, None as it is.

    Args:
        size: None, a number of pixels, `"96x192"`, or (height, width).

    Raises:
        InputError: if it is anything else.
    """
    if size is None:
        return None
    numbers = size if isinstance(size, (tuple, list)) else [size]
    if isinstance(size, str) and re.fullmatch(r"[0-9]+(x[0-9]+)?", size):
        numbers = [int(number) for number in size.split("x")]
    valid = all(
        isinstance(n, Integral) and not isinstance(n, bool) and int(n) >= 1 for n in numbers
    )
    if not valid or len(numbers) not in (1, 2):
        raise InputError(
            f"image_size must be a whole number of pixels, 1 or more, for a square, such as 224, or "
            f"height and width, such as 96x192, not {size!r}."
        )
    height, width = int(numbers[0]), int(numbers[-1])
    return height if height == width else f"{height}x{width}"


def sides(size: Any) -> tuple[int, int]:
    """Return (height, width) of a size; see `checked_size`."""
    height, _, width = str(checked_size(size)).partition("x")
    return int(height), int(width or height)


def size_of(shape: Sequence) -> Any:
    """Return the size of model inputs [N, H, W, 3], or [N, T] with T tokens; None if it is open."""
    return checked_size(shape[1:3] if len(shape) == 4 and None not in shape[1:3] else shape[1])


def changed(size: int | str, change: int) -> int | str:
    """Return a size whose sides are larger by some pixels."""
    return checked_size([side + change for side in sides(size)])
