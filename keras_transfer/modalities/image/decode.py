"""Check and decode encoded images, see `formats`.

TensorFlow is imported only when the first image is decoded, so that files can be checked without it.
"""

import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from keras_transfer.errors import InputError
from keras_transfer.modalities.image.bands import (
    RGB,
    Reading,
    UnsuitableValues,
    channels_of,
    fits,
    is_deep,
    luminance,
    misfit,
    not_whole,
    select,
    to_8_bits,
    to_npy,
    values_of,
)
from keras_transfer.modalities.image.formats import (
    NAMES,
    first_frame,
    format_of,
    is_served,
    read_header,
)
from keras_transfer.modalities.reading import Budget

# TensorFlow's default differs from other decoders by one level on average, and is hardly faster.
DCT_METHOD = "INTEGER_ACCURATE"

_CONTRAST = 4

ORIENTATION_TAG = 0x0112
INTEGER_BYTES = {3: 2, 4: 4, 6: 1, 8: 2, 9: 4, 13: 4}  # TIFF types that Pillow reads as integers
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0")


class Facts(NamedTuple):
    """What checking an image file found.

    Attributes:
        width, height: in pixels as stored, before the orientation is applied; 0 without a header.
        mode: Pillow's name, such as RGB, L, P or CMYK; of files that `bands` reads, NumPy's name of the
            type of the values, such as uint16.
        format: Pillow's name, such as JPEG, MPO (a JPEG of several images) or TIFF; HEIF.
        orientation: EXIF orientation, 1–8.
        digest: BLAKE2b of the whole file, 16 bytes; empty if the file was not read.
        fault: why the file cannot be used; None if it can.
        contrast: greatest difference within a color channel, as the model sees the image, 0–255; of
            the image's center if that is 16 or more.
        served: whether a served model reads the file, 0 or 1.
        channels: number of channels, transparency included.
        bits: that the highest value takes, of greyscale images of more than 8; otherwise 8.
    """

    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    orientation: int = 1
    digest: bytes = b""
    fault: str | None = None
    contrast: int = 255
    served: int = 1
    channels: int = 3
    bits: int = 8

    @property
    def flaw(self) -> str | None:
        """Why the model sees (almost) nothing in a usable image; None if it sees something."""
        if self.contrast >= _CONTRAST:
            return None
        if self.mode in ("RGBA", "LA", "PA", "P"):
            return "one color: its content may be in the transparency, which is dropped"
        return "one color"


# It bounds the memory however many threads there are; a pixel takes up to ten bytes while it is
# decoded. A thread that decodes never waits to read, so this and `READING` cannot block each other.
DECODING = Budget(90_000_000)  # pixels


def examine(contents: bytes) -> Facts:
    """Return the facts about the bytes of an image file, without a digest."""
    if not contents:
        return Facts(fault="empty file")
    try:
        image = open_image(contents)
    except Exception as error:  # plugins raise anything on a broken file
        return Facts(fault=_fault(error, contents))
    orientation = orientation_of(image, contents)
    facts = Facts(image.width, image.height, image.mode, image.format or "", orientation)
    try:
        with DECODING.use(image.width * image.height):
            image.load()
            contrast = _contrast(image if image.mode == "RGB" else to_rgb(image))
            served = int(is_served(image, contents))
            channels, _ = channels_of(image)
            bits = _bits(image)
    except Exception as error:
        return facts._replace(fault=_fault(error, contents))
    # Pillow turns some TIFF files when it loads them.
    return facts._replace(
        width=image.width,
        height=image.height,
        mode=image.info.get("type", image.mode),
        contrast=contrast,
        served=served,
        channels=channels,
        bits=bits,
    )


def _bits(image):
    """Return `Facts.bits`."""
    if not is_deep(image):
        return 8
    high: Any = image.getextrema()[1]
    return max(1, int(high).bit_length())


def _contrast(image):
    """Return `Facts.contrast` of an RGB image; that of its center if it is high, to save time."""
    x, y = image.width // 2, image.height // 2
    contrast = 0
    for part in (image.crop((max(0, x - 32), max(0, y - 32), x + 1, y + 1)), image):
        ranges: Any = part.getextrema()
        contrast = max(high - low for low, high in ranges)
        if contrast >= 4 * _CONTRAST:
            break
    return contrast


def decode(contents: bytes, reading: Reading | None = None) -> np.ndarray:
    """Decode an image file, turned upright as its EXIF orientation says.

    The first frame of an animation is taken; transparency is dropped; 16 bits are scaled to 8.
    TensorFlow's decoder comes first, because the exported model uses it. `opened` has a faster way for
    ordinary files.
    Pillow always reads the header first, because TensorFlow would try to decode any number of pixels.

    Args:
        reading: what a model reads of it; None for RGB as it is shown, whatever the file has.

    Returns:
        uint8 [height, width, channels], 0–255.

    Raises:
        ValueError: if neither decoder can read the bytes, there are too many pixels, or the file does
            not have the channels that the model reads.
    """
    return decode_opened(contents, reading)[0]


def decode_opened(
    contents: bytes, reading: Reading | None = None
) -> tuple[np.ndarray, Image.Image]:
    """Return (what `decode` returns, the opened file)."""
    try:
        image = open_image(contents)
        if reading is not None and not fits(*channels_of(image), reading.channels):
            raise ValueError(misfit(channels_of(image)[0], reading.channels))
        with DECODING.use(image.width * image.height):
            pixels = _pixels(image, contents, reading or RGB)
            return upright(pixels, orientation_of(image, contents)), image
    except Exception as error:  # Pillow's plugins raise many types on broken data
        raise ValueError(f"not a readable image: {error}") from error


def _pixels(image, contents, reading):
    """Return the channels that are read of a file, as stored, of which the header is open."""
    if "bands" in image.info:
        values = values_of(contents) if reading != RGB else np.array(image)
        assert values is not None
        return select(to_8_bits(values, reading.depth), reading.channels)
    if is_deep(image):
        return select(to_8_bits(np.asarray(image)[..., None], reading.depth), reading.channels)
    if reading.channels not in (1, 3):
        return np.array(image)
    pixels = _decode_with_tensorflow(contents)
    if pixels is None:
        image.load()
        pixels = np.array(to_rgb(image))
    return luminance(pixels) if reading.channels == 1 else pixels


def lossless(contents: bytes) -> bytes:
    """Return a file that a served model does not read as one that it reads, with the same values."""
    values, image = values_of(contents), open_image(contents)
    if values is None and is_deep(image):
        values = np.asarray(image)[..., None]
    elif values is None:
        kept = image if image.mode in ("LA", "RGBA") else to_rgb(image)
        values = np.array(kept).reshape(image.height, image.width, -1)
    values = upright(values, orientation_of(image, contents))
    gray = values.shape[-1] == 1 and values.min() >= 0 and values.max() < 1 << 16
    if gray and values.dtype != np.uint8:
        return _png(Image.fromarray(values[..., 0].astype(np.uint16)))
    return encode(values)


def encode(values: np.ndarray) -> bytes:
    """Return an image, [H, W, C], as a PNG file; as a NumPy file if PNG has no such images."""
    if values.dtype != np.uint8 or values.shape[-1] > 4:
        return to_npy(values)
    return _png(Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values))


def _png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def scaled_files(paths, most: int = 8) -> bool:
    """Return whether the first images have no value above 1: they were scaled before they were saved.

    Files that cannot be read are left out.
    """
    highest = []
    for path in paths[:most]:
        try:
            highest.append(max(high for _, high in _extrema(Path(path).read_bytes())))
        except Exception:  # Pillow's plugins raise many types on broken data
            continue
    return bool(highest) and max(highest) <= 1


def _extrema(contents):
    return to_rgb(open_image(contents)).getextrema()


def open_image(contents: bytes) -> Image.Image:
    """Read the header of an encoded image with Pillow.

    Raises:
        UnidentifiedImageError: if the bytes are in none of the formats.
        InputError: if the package that reads them is not installed.
        UnsuitableValues: if its values are floats, which Pillow would clip to 0–255.
        Image.DecompressionBombError: if there are more pixels than `Image.MAX_IMAGE_PIXELS`.
            Pillow only warns up to twice that number, but a small file can unpack to any size.
    """
    limit = Image.MAX_IMAGE_PIXELS
    try:
        image = read_header(io.BytesIO(contents))
        pixels = image.width * image.height
    except Image.DecompressionBombError as error:  # over twice the limit
        pixels = int(re.findall(r"\d+", str(error))[0])
    if limit is not None and pixels > limit:
        raise Image.DecompressionBombError(
            f"{pixels:,} pixels, the limit is {limit:,}; make it smaller"
        )
    if image.mode == "F":
        raise UnsuitableValues(not_whole("float32"))
    return image


def orientation_of(image: Image.Image, contents: bytes) -> int:
    """Return the EXIF orientation of an opened image, 1–8; 1 (upright) if missing or damaged.

    Only EXIF counts (JPEG APP1, PNG eXIf, WebP EXIF), not XMP. `serving` reads it in graph ops by the
    same rules, and `opened` for ordinary files, so change all of them together.
    """
    try:
        if image.format == "PNG" and "exif" not in image.info and b"eXIf" in contents:
            image.load()  # the chunk may follow the pixels
        # `Image.getexif` would fall back to XMP, and warn of damage: once in each process, or as an
        # error, for filters of warnings belong to the process and images are decoded in threads.
        return orientation_in(image.info.get("exif", b""))
    except Exception:  # a damaged file raises many types
        return 1


def orientation_in(block: bytes) -> int:
    """Return the orientation in a block of EXIF data: the last matching entry of the directory."""
    for _ in range(2):
        block = block.removeprefix(b"Exif\0\0")
    if block[:4] not in TIFF_STARTS:
        return 1
    order = "big" if block.startswith(b"M") else "little"

    def number(at, size):
        return int.from_bytes(block[at : at + size], order)

    found, start = 1, number(4, 4)
    for at in range(start + 2, min(start + 2 + 12 * number(start, 2), len(block)) - 11, 12):
        count, size = number(at + 4, 4), INTEGER_BYTES.get(number(at + 2, 2), 0)
        value = at + 8 if count * size <= 4 else number(at + 8, 4)
        if number(at, 2) == ORIENTATION_TAG and size and 1 <= count <= (len(block) - value) / size:
            found = number(value, size) or found
    return found if 1 <= found <= 8 else 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn [H, W, C] as `PIL.ImageOps.exif_transpose` does; orientations 5–8 swap H and W."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB: 16 bits are scaled (Pillow would clip), alpha is dropped."""
    if is_deep(image):
        image = Image.fromarray(to_8_bits(np.asarray(image), RGB.depth))
    if image.mode == "P" and "transparency" in image.info:
        # Through RGBA: Pillow warns when a palette with transparency becomes RGB directly.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _decode_with_tensorflow(contents):
    """Return the pixels of a JPEG, PNG or GIF file; None if Pillow has to decode it.

    TensorFlow 2.21 makes palette indices of a palette BMP, fails on 1-bit BMP and on transparent or
    animated WebP, and makes a GIF as large as its largest image. Other BMP and WebP are equal in both.
    """
    if contents.startswith(b"GIF8"):
        contents = first_frame(contents)
    elif not contents.startswith((b"\xff\xd8\xff", b"\x89PNG")):
        return None
    if contents is None:
        return None
    import tensorflow as tf

    try:
        # Eager and on the CPU, also when called from a tf.data thread next to a GPU.
        with tf.device("CPU:0"):
            if contents.startswith(b"\xff\xd8\xff"):
                return tf.io.decode_jpeg(contents, channels=3, dct_method=DCT_METHOD).numpy()
            return tf.io.decode_image(contents, channels=3, expand_animations=False).numpy()
    except tf.errors.OpError:
        return None


def _fault(error, contents):
    text = " ".join(str(error).split()) or type(error).__name__
    found = format_of(contents[:12])
    if isinstance(error, (InputError, UnsuitableValues)):
        return text
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: {text}"
    if (
        found is not None
        and found.name == "WebP"
        and (size := 8 + int.from_bytes(contents[4:8], "little")) > len(contents)
    ):
        return f"truncated: {len(contents):,} of {size:,} bytes"
    if re.search("truncated|premature|unexpected end", text, re.IGNORECASE):
        return text if text.startswith("truncated: ") else f"truncated: {text}"
    if isinstance(error, UnidentifiedImageError):
        if found is None:
            return f"not an image: no {NAMES} data"
        return f"damaged: it starts like {found.name}, but its header cannot be read"
    return f"damaged: {text}"
