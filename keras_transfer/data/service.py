"""Batches made on other machines, by the tf.data service."""

import os

import tensorflow as tf

from keras_transfer.data.augmentation import Augmentation, resolve_augmentation
from keras_transfer.data.pictures import Files
from keras_transfer.data.pipeline import epoch_order
from keras_transfer.data.serving import decode_in_graph
from keras_transfer.data.sources import Examples
from keras_transfer.data.transforms import augment, resize_and_crop
from keras_transfer.errors import InputError

_MOST_WAITING = 256  # batches that came before an earlier one: more means that it is lost


def service_batches(
    examples: Examples,
    address: str,
    *,
    image_size: int,
    batch_size: int,
    training: bool = False,
    augmentation: str | Augmentation = "light",
    seed: int = 0,
    start_epoch: int = 0,
) -> tf.data.Dataset:
    """What `pipeline.batches` gives, made by the workers of a tf.data service.

    Whole batches are handed out to the workers, each once, and put into their order here: which worker
    made a batch, and how many there are, changes nothing. The workers read the files by the same paths
    and decode as an exported model does, so that they need this package no more than it needs them.

    Args:
        address: of the dispatcher, `"grpc://HOST:PORT"`.
        examples: of files.

    Raises:
        InputError: pictures that are no files, or an augmentation that needs Python.
        tf.errors.OpError: while iterating: a file that cannot be read or decoded, or a worker that was
            lost with a batch.
    """
    if not isinstance(examples.pictures, Files):
        raise InputError("The tf.data service reads files: write these pictures to a folder first.")
    variant = resolve_augmentation(augmentation)
    if training and not isinstance(variant, Augmentation):
        raise InputError(
            "The tf.data service runs without Python: choose a preset or an Augmentation for it."
        )
    count = len(examples)
    steps = -(-count // batch_size)
    paths = tf.constant([os.fsencode(name) for name in examples.names])
    labels = tf.constant(examples.labels)

    def load(path):
        return decode_in_graph(tf.io.read_file(path))

    def batch_of(number):
        first = number % steps * batch_size
        if training:
            order, picture_seed = epoch_order(count, tf.constant(seed, tf.int64), number // steps)
            chosen = order[first : first + batch_size]
        else:
            chosen = tf.range(count)[first : first + batch_size]

        def prepare(index):
            if not training:
                return resize_and_crop(load(paths[index]), image_size)
            own_seed = tf.random.fold_in(picture_seed, index)
            return augment(load(paths[index]), image_size, variant, own_seed)

        pictures = tf.map_fn(
            prepare,
            chosen,
            fn_output_signature=tf.TensorSpec([image_size, image_size, 3], tf.uint8),
        )
        return number, pictures, tf.gather(labels, chosen)

    first, last = (start_epoch * steps, tf.int64.max) if training else (0, steps)
    made = (
        tf.data.Dataset.range(first, last)
        .map(batch_of, tf.data.AUTOTUNE, deterministic=True)
        .apply(
            tf.data.experimental.service.distribute(
                tf.data.experimental.service.ShardingPolicy.DYNAMIC, address
            )
        )
    )
    signature = (
        tf.TensorSpec([None, image_size, image_size, 3], tf.uint8),
        tf.TensorSpec([None, *examples.labels.shape[1:]], labels.dtype),
    )
    ordered = tf.data.Dataset.from_generator(lambda: _in_order(made, first), output_signature=signature)
    cardinality = tf.data.INFINITE_CARDINALITY if training else steps
    return ordered.apply(tf.data.experimental.assert_cardinality(cardinality)).prefetch(2)


def _in_order(made, expected):
    """(pictures, labels) of (number, pictures, labels), by number."""
    waiting = {}
    for number, *batch in made:
        waiting[int(number)] = batch
        while expected in waiting:
            yield tuple(waiting.pop(expected))
            expected += 1
        if len(waiting) > _MOST_WAITING:
            break
    if waiting:
        raise RuntimeError(
            f"batch {expected} did not come: a worker of the tf.data service was lost with it; start "
            "it again and go on with --resume"
        )
