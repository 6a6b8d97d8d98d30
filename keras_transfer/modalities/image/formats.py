"""The formats of image files: how each is recognized, and which of them a served model reads."""

import importlib.util
from typing import BinaryIO, NamedTuple

from PIL import Image

from keras_transfer.modalities.image.bands import NPY, npy_is_served, shown, values_of
from keras_transfer.utils.extras import is_installed, require


class Format(NamedTuple):
    """A row of the table.

    Attributes:
        name: for people.
        pillow: Pillow's name; None if another package reads it.
        extensions: of its files, lower case, with the dot.
        starts: (position, bytes) by any of which a file is recognized, within its first 12 bytes. Empty
            where they are too short to tell it from anything else.
        served: whether TensorFlow ops can read its ordinary files.
    """

    name: str
    pillow: str | None
    extensions: tuple[str, ...]
    starts: tuple[tuple[int, bytes], ...] = ()
    served: bool = False


def _either(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


# Pillow opens MPO, the stereo JPEG of some phones, through "JPEG".
FORMATS = (
    Format(
        "JPEG", "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), ((0, b"\xff\xd8\xff"),), True
    ),
    Format("PNG", "PNG", (".png",), ((0, b"\x89PNG"),), True),
    Format("GIF", "GIF", (".gif",), ((0, b"GIF8"),), True),
    Format("BMP", "BMP", (".bmp",), served=True),
    Format("WebP", "WEBP", (".webp",), ((8, b"WEBP"),), True),
    Format(
        "TIFF",
        "TIFF",
        (".tif", ".tiff"),
        tuple((0, s) for s in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    ),
    Format(
        "JPEG 2000",
        "JPEG2000",
        (".jp2", ".j2k", ".jpx"),
        ((0, b"\0\0\0\x0cjP  \r\n\x87\n"), (0, b"\xff\x4f\xff\x51")),
    ),
    Format("PPM", "PPM", (".ppm", ".pgm", ".pbm", ".pnm")),
    Format("AVIF", "AVIF", (".avif",), ((4, b"ftypavif"), (4, b"ftypavis"))),
    Format("NumPy", None, (".npy",), ((0, NPY),), True),
    Format(
        "HEIC",
        None,
        (".heic", ".heif"),
        tuple(
            (4, b"ftyp" + brand) for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1")
        ),
    ),
)
EXTENSIONS = frozenset(extension for one in FORMATS for extension in one.extensions)
NAMES = _either([one.name for one in FORMATS])
SERVED = _either([one.name for one in FORMATS if one.served])

# Older versions of Pillow do not know AVIF, and refuse a name that they do not know.
_PILLOW = [
    one.pillow
    for one in FORMATS
    if one.pillow and (one.pillow != "AVIF" or importlib.util.find_spec("PIL.AvifImagePlugin"))
]


def format_of(start: bytes) -> Format | None:
    """Return the format that the first bytes of a file tell, or None."""
    for one in FORMATS:
        if any(start[at:].startswith(expected) for at, expected in one.starts):
            return one
    return None


def read_header(file: BinaryIO) -> Image.Image:
    """Return an image of which only the header is read, if its format allows that.

    Args:
        file: at its start, and open as long as the image is not loaded.

    Raises:
        UnidentifiedImageError: the bytes are in none of the formats.
        InputError: the package that reads them is not installed.
    """
    start = file.read(64)
    file.seek(0)
    found = format_of(start[:12])
    # AVIF, too, may start with HEIC's general brand; its own is then among the compatible ones.
    if found is not None and found.name in ("NumPy", "TIFF"):
        values = values_of(file.read())
        file.seek(0)
        if values is not None:
            image = shown(values)
            image.format = found.name
            return image
    if found is None or found.pillow is not None or b"avif" in start[12:]:
        return Image.open(file, formats=_PILLOW)
    require("pillow_heif", f"Reading {found.name}")
    import pillow_heif  # without its plugin, which would change Pillow for the whole process

    image = pillow_heif.open_heif(file)
    limit, (width, height) = Image.MAX_IMAGE_PIXELS, image.size
    if limit is not None and width * height > limit:  # before it is decoded
        raise Image.DecompressionBombError(f"({width * height} pixels)")
    made = image.to_pillow()
    made.format = "HEIF"
    return made


def reader_versions() -> str:
    """Return the versions of what reads images, for `Modality.rules`."""
    import PIL

    heif = "with" if is_installed("pillow_heif") else "without"
    bands = "with" if is_installed("tifffile") else "without"
    return f"Pillow {PIL.__version__}, {heif} HEIC, {bands} tifffile"


def is_served(image: Image.Image, contents: bytes) -> bool:
    """Return whether TensorFlow ops read a file as Pillow does, see `serving.open_in_graph`."""
    if image.format == "BMP":
        depth, packing = contents[28:30], contents[30:34]
        header = int.from_bytes(contents[14:18], "little")
        return (depth, packing) == (b"\x18\0", bytes(4)) and header >= 40
    if image.format == "GIF":
        return first_frame(contents) is not None
    if image.format == "WEBP":
        return image.mode == "RGB" and not getattr(image, "is_animated", False)
    if image.format == "NumPy":
        return npy_is_served(contents)
    return image.format in ("JPEG", "MPO", "PNG")


def first_frame(gif: bytes) -> bytes | None:
    """Return a GIF file with only the first image; None if that does not fill the canvas.

    TensorFlow would unpack all images, and ignores the canvas.
    """
    try:
        at = 13 + _color_table_size(gif[10])
        while gif[at] == 0x21:  # an extension
            at = _blocks_end(gif, at + 2)
        if gif[at] != 0x2C or gif[at + 1 : at + 9] != bytes(4) + gif[6:10]:
            return None
        return gif[: _blocks_end(gif, at + 11 + _color_table_size(gif[at + 9]))] + b";"
    except IndexError:  # truncated
        return None


def _color_table_size(flags):
    """Bytes of the color table that follows."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _blocks_end(gif, at):
    while gif[at]:
        at += 1 + gif[at]
    return at + 1
