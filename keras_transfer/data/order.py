"""In which order an epoch's examples come: a function of seed and epoch alone, as TensorFlow's ops."""

import numpy as np
import tensorflow as tf


def epoch_order(
    count: int, seed, epoch, classes: np.ndarray | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """(order int32 [count], seed int64 [2] of the images' variants) of an epoch.

    Each example comes once. With `classes` int [count] each class comes equally often, to one, and
    each example of a class as often as the others, to one.
    """
    order_seed, image_seed = tf.unstack(tf.random.split(tf.stack([seed, epoch]), 2))
    order = _shuffle(tf.range(count), order_seed)
    if classes is not None:
        order = _equally_drawn(order, classes, order_seed)
    return order, image_seed


_shuffle = tf.random.experimental.stateless_shuffle


def _equally_drawn(order, classes, seed):
    present, classes = np.unique(classes, return_inverse=True)
    counts = np.bincount(classes)
    starts = np.cumsum(counts) - counts
    class_seed, place_seed = tf.unstack(tf.random.split(seed, 2))
    # The examples class by class, each class in this epoch's order: its slots take them in turn.
    in_order = tf.gather(tf.constant(classes, tf.int32), order)
    by_class = tf.gather(order, tf.argsort(in_order, stable=True))
    slots = tf.range(len(classes))
    turns = _shuffle(tf.range(len(present)), class_seed)  # the first ones may come once more
    which = tf.gather(turns, slots % len(present))
    turn = (slots // len(present)) % tf.gather(tf.constant(counts, tf.int32), which)
    places = tf.gather(tf.constant(starts, tf.int32), which) + turn
    return _shuffle(tf.gather(by_class, places), place_seed)
