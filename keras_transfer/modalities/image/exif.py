"""The orientation that a camera notes in an image file, and what it means for the pixels.

`data.serving` reads it in TensorFlow's ops by the same rules, for exported models; a rule changed
here is changed there.
"""

import struct
from collections.abc import Iterator

import numpy as np

MOST_PARTS = 4096  # of a file that are looked through; one of an image has a few or some hundred
TAG = 0x0112
WIDTHS = {1: "B", 3: "H", 4: "I"}  # TIFF's numbers for whole numbers without a sign


def orientation(contents: bytes) -> int:
    """EXIF's orientation of a JPEG, PNG or WebP file, 1–8; 1, upright, where there is none.

    It is read where EXIF keeps it (JPEG's APP1 segment, the eXIf chunk of PNG, the EXIF chunk of
    WebP); XMP is not looked at. What is damaged counts as not there.
    """
    for number, block in enumerate(_blocks(contents)):
        if number == MOST_PARTS:
            break
        if block is not None:
            return _orientation_in(block.removeprefix(b"Exif\0\0"))
    return 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns [H, W, C] as `PIL.ImageOps.exif_transpose` does; orientations 5–8 swap H and W."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _blocks(contents) -> Iterator[bytes | None]:
    """One item for each part of the file: the EXIF block, or None for any other part."""
    if contents[:3] == b"\xff\xd8\xff":
        return _segments(contents)
    if contents[:8] == b"\x89PNG\r\n\x1a\n":
        return _chunks(contents, 8, ">I4s", b"eXIf", after=4)
    if contents[:4] == b"RIFF" and contents[8:12] == b"WEBP":
        return _chunks(contents, 12, "<4sI", b"EXIF", even=True)
    return iter(())


def _segments(contents):
    at = 2
    while contents[at : at + 1] == b"\xff" and at + 4 <= len(contents):
        marker = contents[at + 1]
        if marker in (0xD9, 0xDA):  # the end, or the pixels
            return
        if marker == 0xFF:  # a byte that fills
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # without data
            at += 2
        else:
            end = at + 2 + int.from_bytes(contents[at + 2 : at + 4], "big")
            is_exif = marker == 0xE1 and contents[at + 4 : at + 10] == b"Exif\0\0"
            at, start = end, at + 4
            if is_exif:
                yield contents[start:end]
                return
        yield None


def _chunks(contents, at, header, wanted, after=0, even=False):
    while at + 8 <= len(contents):
        fields = struct.unpack_from(header, contents, at)
        size, kind = fields if isinstance(fields[0], int) else fields[::-1]
        if kind == wanted:
            yield contents[at + 8 : at + 8 + size]
            return
        at += 8 + size + after + (size % 2 if even else 0)
        yield None


def _orientation_in(block):
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return 1
    found = 1
    try:
        (at,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, values, value = struct.unpack_from(f"{order}HHI4s", block, entry)
            if tag == TAG and kind in WIDTHS and values == 1:
                (found,) = struct.unpack_from(order + WIDTHS[kind], value)
    except struct.error:  # cut short: what was found before counts
        pass
    return found if 1 <= found <= 8 else 1
