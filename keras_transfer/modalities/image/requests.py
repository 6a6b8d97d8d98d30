"""What a served model of images is asked, in TensorFlow ops: the signatures of decoded images."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_transfer.modalities.image.decode import encode
from keras_transfer.modalities.image.framing import Framing
from keras_transfer.modalities.image.prepare import resize_and_crop

NOT_FINITE = "has values that are not finite"


def requests(framing: Framing) -> dict[str, tuple[list[tf.TensorSpec], Callable]]:
    """Return the signatures of decoded images, see `Modality.requests`."""
    any_size = [None, None, None, framing.reading.channels]

    def floats(images):
        # Values 0–255, as in training; images scaled to 0–1 would look black.
        valid = tf.reduce_all(tf.math.is_finite(images), axis=[1, 2, 3])
        images = tf.where(valid[:, None, None, None], images, tf.zeros_like(images))
        return resize_and_crop(images, *framing.square), tf.where(valid, "", NOT_FINITE)

    def pixels(images):
        return resize_and_crop(images, *framing.square), tf.fill(tf.shape(images)[:1], "")

    return {
        "serving_default": ([tf.TensorSpec(any_size, tf.float32, "images")], floats),
        "serve_uint8": ([tf.TensorSpec(any_size, tf.uint8, "images")], pixels),
    }


def trial(image: np.ndarray, framing: Framing) -> tuple[tf.Tensor, dict]:
    """Return an image as a model input, and as requests, see `Modality.trial`."""
    return resize_and_crop(image, *framing.square), {
        "serving_default": {"images": image.astype("float32")},
        "serve_uint8": {"images": image},
        "serve_bytes": {"bytes": encode(image)},
    }
