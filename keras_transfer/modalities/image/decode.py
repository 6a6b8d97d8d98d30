"""Encoded image bytes to RGB pixels, upright."""

import numpy as np
import tensorflow as tf
from PIL import Image

from keras_transfer.modalities.image.check import DECODING, open_image, orientation_of


def decode(contents: bytes) -> np.ndarray:
    """Decode JPEG, PNG, GIF, BMP or WebP to RGB, turned as EXIF's orientation says.

    Of an animation the first frame is taken; transparency is dropped; 16 bits are scaled
    down to 8.

    TensorFlow's decoder comes first, because an exported model has that one: JPEG decoders
    differ by several levels. Pillow takes what TensorFlow 2.21 does not decode or decodes
    wrongly, see `_for_tensorflow`. Pillow always reads the header first: TensorFlow would try to
    decode any number of pixels.

    Args:
        contents: the bytes of the file.

    Returns:
        uint8 [height, width, 3], 0-255.

    Raises:
        ValueError: neither decoder can read the bytes, or they are too many pixels; the message
            says why.
    """
    try:
        image = open_image(contents)
        with DECODING.taken(image.width * image.height):
            pixels = _decode_with_tensorflow(contents)
            if pixels is None:
                image.load()
                pixels = np.array(to_rgb(image))
            return upright(pixels, orientation_of(image, contents))
    except Exception as error:  # Pillow's plugins raise many types on broken data
        raise ValueError(f"not a readable image: {error}") from error


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns [H, W, C] as `PIL.ImageOps.exif_transpose` does; orientations 5–8 swap H and W."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _decode_with_tensorflow(contents):
    contents = _for_tensorflow(contents)
    if contents is None:
        return None
    try:
        # Eager and on the CPU, also when called from a tf.data thread beside a GPU.
        with tf.device("CPU:0"):
            return tf.io.decode_image(contents, channels=3, expand_animations=False).numpy()
    except tf.errors.OpError:
        return None


def _for_tensorflow(contents: bytes) -> bytes | None:
    """What TensorFlow gets to decode; None where that is Pillow's work.

    Measured with TensorFlow 2.21: a palette BMP comes out as its palette indices, a 1-bit
    BMP fails, a WebP with transparency or animation fails (and with channels=0 an animated
    one corrupts the heap). Plain 24-bit BMP and WebP give the same pixels in both. A GIF comes out
    as large as the largest of its images, whatever its canvas is.
    """
    if contents[:2] == b"BM" or (contents[:4] == b"RIFF" and contents[8:12] == b"WEBP"):
        return None
    if contents[:4] == b"GIF8":
        return first_frame(contents)
    return contents


def first_frame(gif: bytes) -> bytes | None:
    """The file with its first image only; TensorFlow would unpack all of them.

    Returns:
        None where that image does not fill the canvas, which TensorFlow does not know of.
    """
    try:
        at = 13 + _colours(gif[10])
        while gif[at] == 0x21:  # an extension
            at = _blocks_end(gif, at + 2)
        if gif[at] != 0x2C or gif[at + 1 : at + 9] != bytes(4) + gif[6:10]:
            return None
        return gif[: _blocks_end(gif, at + 11 + _colours(gif[at + 9]))] + b";"
    except IndexError:  # cut short
        return None


def _colours(flags):
    """Bytes of the colour table that follows."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _blocks_end(gif, at):
    while gif[at]:
        at += 1 + gif[at]
    return at + 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB: 16 bits are scaled (Pillow would clip), alpha dropped."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        image = Image.fromarray(grey.astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        # By way of RGBA: straight to RGB, Pillow warns when the palette has transparency.
        image = image.convert("RGBA")
    return image.convert("RGB")
