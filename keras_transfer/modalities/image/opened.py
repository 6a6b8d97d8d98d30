"""Images whose headers have been read, and whose pixels are decoded at the size that is needed.

Ordinary JPEG and PNG files are decoded by OpenCV or Pillow, several times faster than the general
path in `decode`; a JPEG can be reduced to a half, a quarter or an eighth meanwhile. The pixels are those
of `decode.decode`, bit for bit, because all three call the same libraries. Everything else takes the
general path.
"""

import io
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from keras_transfer.modalities.image import decode as decoding
from keras_transfer.modalities.image.bands import RGB, Reading, is_deep, luminance, select
from keras_transfer.modalities.image.resample import opencv, reduced

# Markers of JPEG: frames with Huffman codes (baseline, extended, progressive), and others to look at.
_FRAMES = (0xC0, 0xC1, 0xC2)
_SCAN, _EXIF, _ADOBE, _END = 0xDA, 0xE1, 0xEE, b"\xff\xd9"
_ALONE = (0x01, *range(0xD0, 0xDA))  # markers without a length
_OTHER_FRAMES = (0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))


class Opened:
    """An image of known size.

    Attributes:
        height, width: in pixels, upright.
    """

    def __init__(
        self, height: int, width: int, decode: Callable[[int, Reading | None], np.ndarray]
    ):
        self.height, self.width = height, width
        self._decode = decode
        self._decoded: dict[tuple, np.ndarray] = {}

    def pixels(self, reduction: int = 1, reading: Reading | None = None) -> np.ndarray:
        """Return uint8 [about height / reduction, about width / reduction, channels], decoded once.

        Pixel (0, 0) covers the first `reduction` × `reduction` pixels of the whole image.

        Args:
            reduction: 1, 2, 4 or 8.
            reading: what a model reads; None for RGB as it is shown, whatever the file has.

        Raises:
            ValueError: if the image cannot be decoded, or does not have the channels of `reading`.
        """
        if (reduction, reading) not in self._decoded:
            self._decoded[reduction, reading] = self._decode(reduction, reading)
        return self._decoded[reduction, reading]


def open_pixels(pixels: np.ndarray) -> Opened:
    """Return a decoded image, uint8 [H, W, C]."""
    height, width, _ = pixels.shape

    def decode(reduction, reading):
        return reduced(select(pixels, reading and reading.channels), reduction)

    return Opened(height, width, decode)


def open_contents(contents: bytes) -> Opened:
    """Return an encoded image (see `decode.decode`), of which only the header is read if it is ordinary.

    Raises:
        ValueError: if it has to be decoded to know its size, and cannot be.
    """
    header = _jpeg_header(contents) or _png_header(contents)
    limit = Image.MAX_IMAGE_PIXELS
    if header is None or (limit is not None and header.height * header.width > limit):
        return _open_whole(contents)
    height, width = header.height, header.width
    if header.orientation >= 5:
        height, width = width, height

    def decode(reduction, reading):
        if reading is None or reading.channels == RGB.channels:
            return _decode(contents, header, reduction)
        if reading.channels == 1:
            return luminance(_decode(contents, header, reduction))
        return reduced(decoding.decode(contents, reading), reduction)

    return Opened(height, width, decode)


def _open_whole(contents):
    """Return an image that has to be decoded to know its size."""
    pixels, image = decoding.decode_opened(contents)
    banded, deep = "bands" in image.info, is_deep(image)

    def decode(reduction, reading):
        same = reading is None or (reading == RGB if deep else reading.channels == RGB.channels)
        if same and (reading is None or not banded):
            return reduced(pixels, reduction)
        return reduced(decoding.decode(contents, reading), reduction)

    return Opened(*pixels.shape[:2], decode)


class _Header(NamedTuple):
    kind: str
    height: int
    width: int
    orientation: int = 1


def _decode(contents, header, reduction):
    scaled = reduction if header.kind == "JPEG" else 1
    shape = (-(-header.height // scaled), -(-header.width // scaled), 3)
    with decoding.DECODING.use(shape[0] * shape[1]):
        pixels = (_by_pillow if opencv() is None else _by_opencv)(contents, header, scaled)
    if pixels is None or pixels.shape != shape:  # the general path says what is wrong, if anything
        return reduced(decoding.decode(contents), reduction)
    return reduced(decoding.upright(pixels, header.orientation), reduction // scaled)


def _by_opencv(contents, header, scaled):
    """Return the pixels as stored; None if OpenCV cannot read them."""
    cv2 = opencv()
    rgb = getattr(cv2, "IMREAD_COLOR_RGB", None)  # since OpenCV 4.11, for whole images
    flags = {
        1: rgb or cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }[scaled]
    try:
        pixels = cv2.imdecode(
            np.frombuffer(contents, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error:
        return None
    if pixels is None or flags == rgb:
        return pixels
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _by_pillow(contents, header, scaled):
    try:
        image = Image.open(io.BytesIO(contents), formats=[header.kind])
        image.draft("RGB", (image.width // scaled, image.height // scaled))
        return np.array(decoding.to_rgb(image))
    except Exception:  # Pillow's plugins raise many types on broken data
        return None


def _jpeg_header(contents) -> _Header | None:
    """Return the header of a complete JPEG of one or three colors; None for anything else.

    The orientation follows the rules of `decode.orientation_of`; files whose markers or colors are
    unusual are left to the general path.
    """
    if contents[:3] != b"\xff\xd8\xff":
        return None
    at, size, exif = 2, None, b""
    while True:
        marker = contents[at + 1 : at + 2]
        if contents[at : at + 1] != b"\xff" or not marker or marker[0] in (*_ALONE, 0xFF):
            return None
        length = int.from_bytes(contents[at + 2 : at + 4], "big")
        body = contents[at + 4 : at + 2 + length]
        if marker[0] == _SCAN:
            break
        if marker[0] in _OTHER_FRAMES or (marker[0] in _FRAMES and (size or len(body) < 6)):
            return None
        if marker[0] in _FRAMES:
            precision, height, width, colors = struct.unpack(">BHHB", body[:6])
            if precision != 8 or colors not in (1, 3) or not height or not width:
                return None
            size = height, width
        elif marker[0] == _EXIF and body[:6] == b"Exif\0\0":
            if exif:
                return None
            exif = body
        elif marker[0] == _ADOBE and body[:5] == b"Adobe" and body[11:12] != b"\x01":
            return None  # RGB or CMYK instead of YCbCr
        at += 2 + length
    # There is no such pair of bytes within the scans, so a file without it is truncated.
    if size is None or contents.rfind(_END, at) < 0:
        return None
    return _Header("JPEG", *size, decoding.orientation_in(exif))


def _png_header(contents) -> _Header | None:
    """Return the header of a complete PNG of 8 bits that is not animated or rotated; None otherwise."""
    if contents[:8] != b"\x89PNG\r\n\x1a\n" or contents[12:16] != b"IHDR":
        return None
    width, height, bits = struct.unpack(">IIB", contents[16:25])
    if bits != 8 or contents[-8:-4] != b"IEND" or not height or not width:
        return None
    if any(kind in contents for kind in (b"eXIf", b"acTL", b"tRNS")):
        return None
    return _Header("PNG", height, width)
