"""What one image file is, and whether it can be decoded (no TensorFlow)."""

import hashlib
import io
import re
import stat
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

EXTENSIONS = {".jpg", ".jpeg", ".jpe", ".png", ".gif", ".bmp", ".webp"}

# Pillow's names. Pillow opens MPO, the stereo JPEG of some phones, through "JPEG".
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")

ORIENTATION = 0x0112  # the tag of EXIF
_STARTS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"RIFF": "WebP"}
MOST_BYTES = 512 << 20  # of a file: more than the largest image needs in any format


class Facts(NamedTuple):
    """What is known of an image file.

    Attributes:
        width, height: as stored, before the orientation is applied; 0 where it has no header.
        mode: Pillow's name, such as RGB, L, P or CMYK.
        format: JPEG, MPO (a JPEG of several images), PNG, GIF, BMP or WEBP.
        orientation: EXIF's, 1–8.
        digest: BLAKE2b of the whole file, 16 bytes; empty where it was not read.
        fault: why it cannot be used, in plain words; None where it can.
    """

    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    orientation: int = 1
    digest: bytes = b""
    fault: str | None = None


class Room:
    """Lets threads in while what they bring fits together; one alone may bring more.

    Args:
        limit: of all amounts inside.
    """

    def __init__(self, limit: int):
        self.limit, self._used = limit, 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, amount: int):
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + amount <= self.limit)
            self._used += amount
        try:
            yield
        finally:
            with self._changed:
                self._used -= amount
                self._changed.notify_all()


# However many threads there are. A pixel takes up to ten bytes while it is decoded. Who has room to
# decode never waits for room to read, so the two cannot block each other.
READING = Room(128 << 20)  # bytes
DECODING = Room(90_000_000)  # pixels


def open_image(contents: bytes) -> Image.Image:
    """Read the header of an encoded image with Pillow; the file's name does not matter.

    Raises:
        UnidentifiedImageError: if the bytes are not in one of `FORMATS`.
        Image.DecompressionBombError: if there are more pixels than `Image.MAX_IMAGE_PIXELS`.
            Pillow only warns up to twice that number, but a small file can unpack to any size.
    """
    limit = Image.MAX_IMAGE_PIXELS
    try:
        image = Image.open(io.BytesIO(contents), formats=FORMATS)
        pixels = image.width * image.height
    except Image.DecompressionBombError as error:  # over twice the limit
        pixels = int(re.findall(r"\d+", str(error))[0])
    if limit is not None and pixels > limit:
        raise Image.DecompressionBombError(
            f"{pixels:,} pixels, at most {limit:,} are read; make it smaller"
        )
    return image


def orientation_of(image: Image.Image, contents: bytes) -> int:
    """Return EXIF's orientation of a JPEG, PNG or WebP file, 1–8; 1, upright, where there is none.

    XMP is ignored, as in an exported model (`serving`), and damaged EXIF counts as missing.

    Args:
        image: from `open_image`.
        contents: the bytes of the same file.
    """
    if image.format not in ("JPEG", "MPO", "PNG", "WEBP"):
        return 1
    exif = Image.Exif()
    try:
        if image.format == "PNG" and "exif" not in image.info and b"eXIf" in contents:
            image.load()  # the chunk may follow the pixels
        exif.load(image.info.get("exif", b""))
        orientation = exif.get(ORIENTATION)
    except Exception:  # Pillow raises many types on damaged EXIF
        return 1
    return orientation if orientation in range(1, 9) else 1


def examine_file(path: str) -> Facts:
    """Reads a file once, whole: what it is, its digest, and whether every pixel can be decoded."""
    extension = Path(path).suffix.lower()
    if extension not in EXTENSIONS:
        return Facts(fault=f"unsupported file type {extension or '(no extension)'}")
    try:
        found = Path(path).stat()
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
            return Facts(fault="cannot be read: not a regular file")
        if found.st_size > MOST_BYTES:
            return Facts(
                fault=f"too large: a file of {found.st_size >> 20:,} MiB, at most "
                f"{MOST_BYTES >> 20} are read; make it smaller"
            )
        with READING.taken(found.st_size):
            contents = Path(path).read_bytes()
            return examine(contents)._replace(digest=digest(contents))
    except FileNotFoundError as error:
        link = Path(path).is_symlink()
        return Facts(fault=f"cannot be read: {'a link to nothing' if link else error.strerror}")
    except OSError as error:
        return Facts(fault=f"cannot be read: {error.strerror}")


def examine(contents: bytes) -> Facts:
    """The same of the bytes of an image file, without a digest."""
    if not contents:
        return Facts(fault="empty file")
    try:
        image = open_image(contents)
    except Exception as error:  # plugins raise anything on a broken file
        return Facts(fault=_fault(error, contents))
    facts = Facts(
        image.width, image.height, image.mode, image.format or "", orientation_of(image, contents)
    )
    try:
        with DECODING.taken(image.width * image.height):
            image.load()
    except Exception as error:
        return facts._replace(fault=_fault(error, contents))
    return facts


def digest(*parts) -> bytes:
    """16 bytes (BLAKE2b) that stand for the content of some bytes."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        made.update(part)
    return made.digest()


def _fault(error, contents):
    text = " ".join(str(error).split()) or type(error).__name__
    kind = next((kind for start, kind in _STARTS.items() if contents.startswith(start)), None)
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: {text}"
    if kind == "WebP" and (size := 8 + int.from_bytes(contents[4:8], "little")) > len(contents):
        return f"truncated: {len(contents):,} of {size:,} bytes"
    if re.search("truncated|premature|unexpected end", text, re.IGNORECASE):
        return f"truncated: {text}"
    if isinstance(error, UnidentifiedImageError):
        if kind is None:
            return "not an image: no JPEG, PNG, GIF, BMP or WebP data"
        return f"damaged: it begins as {kind}, but the header cannot be read"
    return f"damaged: {text}"
