"""Encoded picture bytes to RGB pixels."""

import numpy as np
import tensorflow as tf
from PIL import Image

from keras_transfer.data.files import open_picture


def decode(contents: bytes) -> np.ndarray:
    """Decode JPEG, PNG, GIF, BMP or WebP to RGB.

    Of an animation the first frame is taken; transparency is dropped; 16 bits are scaled
    down to 8; EXIF orientation is not applied (nor is it by TensorFlow or torchvision).

    TensorFlow's decoder comes first, because an exported model has that one: JPEG decoders
    differ by several levels. Pillow takes what TensorFlow 2.21 does not decode or decodes
    wrongly, see `_needs_pillow`.

    Args:
        contents: the bytes of the file.

    Returns:
        uint8 [height, width, 3], 0-255.

    Raises:
        ValueError: neither decoder can read the bytes; the message says why.
    """
    if not _needs_pillow(contents):
        try:
            # Eager and on the CPU, also when called from a tf.data thread beside a GPU.
            with tf.device("CPU:0"):
                return tf.io.decode_image(contents, channels=3, expand_animations=False).numpy()
        except tf.errors.OpError:
            pass
    return _decode_with_pillow(contents)


def _needs_pillow(contents: bytes) -> bool:
    # Measured with TensorFlow 2.21: a palette BMP comes out as its palette indices, a 1-bit
    # BMP fails, a WebP with transparency or animation fails (and with channels=0 an animated
    # one corrupts the heap). Plain 24-bit BMP and WebP give the same pixels in both.
    is_bmp = contents[:2] == b"BM"
    is_webp = contents[:4] == b"RIFF" and contents[8:12] == b"WEBP"
    return is_bmp or is_webp


def _decode_with_pillow(contents: bytes) -> np.ndarray:
    try:
        picture = open_picture(contents)
        picture.load()
        return np.array(to_rgb(picture))
    except Exception as error:  # Pillow's plugins raise many types on broken data
        raise ValueError(f"not a readable picture: {error}") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB: 16 bits are scaled (Pillow would clip), alpha dropped."""
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        grey = np.clip(np.asarray(picture).astype(np.int64) >> 8, 0, 255)
        picture = Image.fromarray(grey.astype(np.uint8))
    if picture.mode == "P":
        # By way of RGBA: straight to RGB, Pillow warns when the palette has transparency.
        picture = picture.convert("RGBA")
    return picture.convert("RGB")
