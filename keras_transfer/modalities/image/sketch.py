"""The sketch of an image: difference hashes of views of it, and traits.

The views are its eight rotations and mirror images, two central crops, and two that are slightly tilted.
"""

import numpy as np
from PIL import Image

from keras_transfer.modalities.sketch import Oddity, Sketch

_SIDE, _HASHED, _BITS = 128, 64, 16  # pixels; pixels; the hash has 16 × 16 bits
_CROPS, _TILTS = (0.93, 0.86), (3, -3)  # shares of the side; degrees
_TILTED = 0.93  # share of the side that is left without empty corners

NEAR = 1.1  # chosen by `scripts/near_duplicates.py --half tuning`
ODDITIES = (
    Oddity("one color", 1, 3.0),
    Oddity("dark", 0, 40.0),
    Oddity("blurred", 2, -np.inf, 4.0),
)


def sketch(opened) -> Sketch:
    """Return the sketch of an `Opened` image.

    The traits are the 95th percentile of the brightness and its standard deviation, both 0 to 255, and
    the logarithm of the share of that variance that is in the finest detail.
    """
    from imagehash import dhash

    side = min(opened.height, opened.width)
    reduction = next(r for r in (8, 4, 2, 1) if r == 1 or side >= r * _SIDE)
    gray = Image.fromarray(opened.pixels(reduction)).convert("L").resize((_SIDE, _SIDE))
    bits = np.stack([dhash(view, _BITS).hash.ravel() for view in _views(gray)])
    values = np.asarray(gray, "float32")
    inner = values[1:-1, 1:-1]
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    fine = np.log((4 * inner - around).var() + 1) - np.log(values.var() + 1)
    return Sketch(bits, np.array([np.percentile(values, 95), values.std(), fine], "float32"))


def _views(gray):
    small = _center(gray, 1)
    yield small
    yield from (small.transpose(turn) for turn in Image.Transpose)
    yield from (_center(gray, share) for share in _CROPS)
    for degrees in _TILTS:
        yield _center(gray.rotate(degrees, Image.Resampling.BILINEAR), _TILTED)


def _center(image, share):
    edge = (1 - share) / 2 * _SIDE
    return image.resize((_HASHED, _HASHED), box=(edge, edge, _SIDE - edge, _SIDE - edge))
