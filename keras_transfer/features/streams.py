"""Activations as tf.data streams of batches; imported lazily, because models also train without TensorFlow."""

import numpy as np
import tensorflow as tf

from keras_transfer.data.batches import weighted
from keras_transfer.data.epochs import Share, epoch_order, whole
from keras_transfer.data.examples import count_examples as count_of
from keras_transfer.data.examples import map_labels
from keras_transfer.features.extraction import Activations
from keras_transfer.utils.python_calls import python_calls


def evaluation_batches(
    activations: Activations,
    labels: np.ndarray,
    *,
    batch_size: int,
    dtype: str = "float32",
    share: Share | None = None,
) -> tf.data.Dataset:
    """Every image once, in order, in its first view: (`dtype` [B, …], int32 [B]).

    With `share` a process's parts with weights, endless, like `pipeline.batches` of it.
    """
    loaded = _loader(activations, labels, dtype)
    if share:
        part = share.part(count_of(labels), batch_size, evaluating=True)
        stream = _pieces(part).map(
            lambda places, weights: (*loaded(places, tf.zeros_like(places)), weights)
        )
        return stream.repeat().prefetch(tf.data.AUTOTUNE)
    rows = tf.data.Dataset.range(count_of(labels), output_type=tf.int32).batch(batch_size)
    return rows.map(lambda rows: loaded(rows, tf.zeros_like(rows))).prefetch(tf.data.AUTOTUNE)


def training_batches(
    activations: Activations,
    labels: np.ndarray,
    *,
    batch_size: int,
    dtype: str = "float32",
    seed: int = 0,
    start_epoch: int = 0,
    class_weights: np.ndarray | None = None,
    equal_classes: bool = False,
    share: Share | None = None,
) -> tf.data.Dataset:
    """An endless stream of epochs, like `pipeline.batches` of the same images, seed and balance.

    In each epoch each image comes once (unless classes are drawn equally), in a view that depends
    on (seed, epoch, image).
    """
    count, views = count_of(labels), activations.views
    loaded = _loader(activations, labels, dtype)
    classes = labels if equal_classes else None
    seed = tf.constant(seed, tf.int64)
    part = share.part(count, batch_size) if share else whole(count, batch_size)

    def epoch_batches(epoch):
        order, view_seed = epoch_order(count, seed, epoch, classes)
        chosen = tf.random.stateless_uniform([count], view_seed, 0, views, tf.int32)
        return _pieces(part).map(
            lambda places, weights: (tf.gather(order, places), tf.gather(chosen, places), weights)
        )

    def load(rows, views, weights):
        made = loaded(rows, views)
        return (*made, weights) if share else made

    stream = (
        tf.data.Dataset.range(start_epoch, tf.int64.max)
        .flat_map(epoch_batches)
        .map(load, tf.data.AUTOTUNE, deterministic=True)
    )
    stream = weighted(stream, class_weights).prefetch(tf.data.AUTOTUNE)
    return stream.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def _pieces(part):
    """(places int32 [B], weights float32 [B]) of each batch of a part."""
    places, weights = tf.constant(part.places, tf.int32), tf.constant(part.weights)
    ends = np.cumsum(part.sizes)
    bounds = tf.data.Dataset.from_tensor_slices((ends - part.sizes, ends))
    return bounds.map(lambda start, end: (places[start:end], weights[start:end]))


def _loader(activations, labels, dtype):
    kept = activations.tables[0].shards[0]
    targets = map_labels(tf.constant, labels)

    def gather(rows, views):
        with python_calls:
            return activations.gather(rows, views)

    def load(rows, views):
        values = tf.numpy_function(gather, [rows, views], tf.as_dtype(kept.dtype))
        values = tf.cast(tf.ensure_shape(values, [None, *kept.shape[1:]]), dtype)
        return values, map_labels(lambda array: tf.gather(array, rows), targets)

    return load
