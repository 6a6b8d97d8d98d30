"""Images of any number of channels and of 16 bits: NumPy and TIFF files, and how values become 0–255.

A model reads all its channels (`Reading`). Thumbnails, sketches and checks show the first three.
"""

import ast
import io
import struct
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

from keras_transfer.errors import InputError
from keras_transfer.utils.extras import require

DEPTHS = ("auto", "full")
NPY = b"\x93NUMPY"
# Types of the values in NumPy files that a served model reads, and their numbers of bytes.
TYPES = {"|u1": 1, "<u2": 2, "<i4": 4}
# What Pillow's modes hold, transparency included.
_MODES = {"1": 1, "L": 1, "I": 1, "LA": 2, "La": 2, "RGBA": 4, "RGBa": 4}
GRAY = (19595, 38470, 7471)  # of 65536: Pillow's weights of red, green and blue
_SAMPLES, _COLORS, _INKS = 277, 262, 5  # of TIFF: the tags of samples and colors; CMYK
_BITS, _KIND, _FLOAT = 258, 339, 3  # the tags of the bits of a sample and of its kind; floats


class UnsuitableValues(ValueError):
    """The values in a file are not those of an image."""


class Reading(NamedTuple):
    """What a model reads of an image file.

    Attributes:
        channels: number of channels.
        depth: `"auto"` scales values of more than 8 bits by the range that an image uses, `"full"` by
            that of 16 bits.
    """

    channels: int = 3
    depth: str = DEPTHS[0]


RGB = Reading()


def checked_reading(channels: Any, depth: Any) -> Reading:
    """Return a reading; raise InputError if a value is out of its range."""
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise InputError(f"channels must be a whole number of 1 or more, not {channels!r}.")
    if depth not in DEPTHS:
        raise InputError(f"depth must be {' or '.join(DEPTHS)}, not {depth!r}.")
    return Reading(channels, depth)


def is_deep(image: Image.Image) -> bool:
    """Return whether a Pillow image is greyscale of more than 8 bits."""
    return image.mode == "I" or image.mode.startswith("I;16")


def to_8_bits(values: np.ndarray, depth: str) -> np.ndarray:
    """Scale whole numbers of more than 8 bits to uint8; `serving` does the same in graph ops.

    Args:
        values: of one image, of any shape.
        depth: see `Reading`.
    """
    if values.dtype == np.uint8:
        return values
    wide = values.astype(np.int64)
    if depth == "full":
        return np.clip(wide >> 8, 0, 255).astype(np.uint8)
    low = wide.min()
    span = max(1, int(wide.max() - low))
    return ((255 * (wide - low) + span // 2) // span).astype(np.uint8)


def luminance(pixels: np.ndarray) -> np.ndarray:
    """Return the brightness of RGB pixels, uint8 [H, W, 1], as Pillow's mode L has it."""
    summed = pixels.astype(np.int32) @ np.array(GRAY, np.int32)
    return ((summed + 0x8000) >> 16).astype(np.uint8)[..., None]


def select(pixels: np.ndarray, channels: int | None) -> np.ndarray:
    """Return the channels that a model reads of an image, uint8 [H, W, C].

    Args:
        channels: their number; None for the three that are shown.

    Raises:
        ValueError: the image has another number.
    """
    found = pixels.shape[-1]
    if channels == found:
        return pixels
    if channels in (None, 3) and found == 1:
        return np.repeat(pixels, 3, axis=-1)
    if channels is None:
        return np.ascontiguousarray(pixels[..., [0, min(1, found - 1), min(2, found - 1)]])
    if channels == 1 and found == 3:
        return luminance(pixels)
    raise ValueError(misfit(found, channels))


def misfit(found: int, channels: int) -> str:
    """Return why an image does not suit a model with another number of channels."""
    return f"{found} channels, but the model reads {channels}"


def fits(found: int, banded: bool, channels: int) -> bool:
    """Return whether an image suits a model that reads some number of channels.

    Args:
        found: channels of the image.
        banded: whether they are those of a NumPy file or a TIFF file of several bands. In other files
            they may include transparency, which is dropped.
    """
    if channels in (1, 3):
        return found in (1, 3) or (not banded and found in (2, 4))
    return found == channels


# -- files ------------------------------------------------------------------------------------------


def is_type(mode: str) -> bool:
    """Return whether `Facts.mode` is the type of the values in a file that `values_of` reads."""
    return mode.startswith(("int", "uint"))


def channels_of(image: Image.Image) -> tuple[int, bool]:
    """Return the number of channels in the file of an opened image, and `banded` of `fits`."""
    if "bands" in image.info:
        return image.info["bands"], True
    return 1 if is_deep(image) else _MODES.get(image.mode, 3), False


def values_of(contents: bytes) -> np.ndarray | None:
    """Return the values of a NumPy file, or of a TIFF file of several bands; None for other files.

    Returns:
        [H, W, B], whole numbers of 8 to 32 bits.

    Raises:
        ValueError: the file is damaged, or of another shape or type.
    """
    if contents.startswith(NPY):
        return _whole_numbers(_read_npy(contents))
    if not contents.startswith((b"II", b"MM")):
        return None
    tags = _tags(contents)
    if _FLOAT in np.ravel(tags.get(_KIND, 1)):
        raise UnsuitableValues(not_whole(f"float{max(np.ravel(tags.get(_BITS, 32)))}"))
    if not _has_bands(tags):
        return None
    require("tifffile", "Reading TIFF files of several bands")
    import tifffile

    with tifffile.TiffFile(io.BytesIO(contents)) as file:
        page: Any = file.pages[0]
        _check_pixels(page.imagelength, page.imagewidth)
        values = page.asarray()
        if page.axes.startswith("S"):  # one band after the other
            values = np.moveaxis(values, 0, -1)
    return _whole_numbers(values)


def _tags(contents):
    """Return the tags of a TIFF file that tell its values; none if they cannot be read."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(contents[:8])
        file = io.BytesIO(contents)
        file.seek(tags.next)
        tags.load(file)
        return {tag: tags[tag] for tag in (_SAMPLES, _COLORS, _BITS, _KIND) if tag in tags}
    except Exception:  # Pillow raises many types on broken data, and explains the cause
        return {}


def _has_bands(tags):
    """Return whether a TIFF file has other colors than Pillow reads in full: two, or more than four."""
    samples = tags.get(_SAMPLES, 1)
    sixteen = max(np.ravel(tags.get(_BITS, 8))) > 8
    return samples == 2 or samples > 4 or (samples == 4 and sixteen and tags.get(_COLORS) != _INKS)


def not_whole(kind) -> str:
    """Return why an image whose values have another type cannot be used."""
    return f"its values are {kind}: save whole numbers, of 8 bits (0–255) or of 16"


def _read_npy(contents):
    shape, order, kind, start = npy_header(contents)
    if len(shape) in (2, 3):
        _check_pixels(*shape[:2])
    size = int(np.prod(shape, dtype=object)) * kind.itemsize
    if kind.hasobject:
        raise UnsuitableValues(not_whole(kind))
    if len(contents) - start < size:
        raise ValueError("truncated: the file ends too early")
    values = np.frombuffer(contents, kind, offset=start, count=size // kind.itemsize)
    return values.reshape(shape, order=order)


def npy_header(contents: bytes) -> tuple[tuple[int, ...], str, np.dtype, int]:
    """Return (shape, order "C" or "F", type, start of the values) of a NumPy file.

    Raises:
        ValueError: it is damaged.
    """
    try:
        wide = contents[6] > 1
        (length,) = struct.unpack_from("<I" if wide else "<H", contents, 8)
        start = (12 if wide else 10) + length
        header = ast.literal_eval(contents[start - length : start].decode("latin-1"))
        shape = tuple(map(int, header["shape"]))
        order = "F" if header["fortran_order"] else "C"
        return shape, order, np.dtype(header["descr"]), start
    except Exception as error:  # literal_eval raises many types
        raise ValueError(f"its header cannot be read ({type(error).__name__})") from None


def npy_is_served(contents: bytes) -> bool:
    """Return whether a served model reads a NumPy file: three axes, of a type in `TYPES`."""
    shape, order, kind, _ = npy_header(contents)
    return contents[6] == 1 and len(shape) == 3 and order == "C" and kind.str in TYPES


def to_npy(values: np.ndarray) -> bytes:
    """Return values as a NumPy file that a served model reads."""
    narrow = values.astype({1: "|u1", 2: "<u2"}.get(values.dtype.itemsize, "<i4"))
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(narrow), version=(1, 0))
    return buffer.getvalue()


def _whole_numbers(values):
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or 0 in values.shape:
        raise UnsuitableValues(f"its shape is {list(values.shape)}, not [height, width, channels]")
    if values.dtype.kind not in "biu" or values.dtype.itemsize > 4:
        raise UnsuitableValues(not_whole(values.dtype))
    return values.astype(np.uint8) if values.dtype == bool else values


def _check_pixels(height, width):
    limit, pixels = Image.MAX_IMAGE_PIXELS, int(height) * int(width)
    if limit is not None and pixels > limit:
        raise Image.DecompressionBombError(
            f"{pixels:,} pixels, the limit is {limit:,}; make it smaller"
        )


def shown(values: np.ndarray) -> Image.Image:
    """Return the first three bands as a Pillow image, for thumbnails and checks."""
    image = Image.fromarray(select(to_8_bits(values, DEPTHS[0]), None))
    image.info["bands"] = values.shape[-1]
    image.info["type"] = str(values.dtype)
    return image
