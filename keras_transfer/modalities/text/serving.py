"""Texts in exported models: strings, and the bytes of files, in TensorFlow ops alone."""

from collections.abc import Callable

import tensorflow as tf

from keras_transfer.modalities.text.framing import TextFraming
from keras_transfer.modalities.text.tokens import errors_of, token_ids, tokens_of


def padded_ids(texts, framing: TextFraming) -> tf.Tensor:
    """Return the model input of strings [N], int32 [N, framing.size]."""
    ids = token_ids(texts, framing)
    missing = framing.size - tf.shape(ids)[1]
    padding = tokens_of(framing.required).padding
    ids = tf.pad(ids, [[0, 0], [0, missing]], constant_values=padding)
    return tf.ensure_shape(ids, [None, framing.size])


def decoder(framing: TextFraming) -> Callable:
    """Return a graph function from the bytes of a text to its token ids, int32 [framing.size]."""

    def decode(contents):
        error = errors_of(contents[None])[0]
        with tf.control_dependencies([tf.debugging.Assert(error == "", [error])]):
            return padded_ids(contents[None], framing)[0]

    return decode


def batch_decoder(framing: TextFraming) -> Callable:
    """Return a graph function from strings [N] to (token ids, int32 [N, T], error [N])."""

    def prepare(texts):
        error = errors_of(texts)
        return token_ids(tf.where(error == "", texts, ""), framing), error

    return prepare


def requests(framing: TextFraming) -> dict[str, tuple[list[tf.TensorSpec], Callable]]:
    """Return the signature of strings, see `Modality.requests`."""
    spec = tf.TensorSpec([None], tf.string, "texts")
    return {"serving_default": ([spec], batch_decoder(framing))}
