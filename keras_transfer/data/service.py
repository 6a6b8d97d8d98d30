"""Batches made on other machines, by the tf.data service."""

import os

import tensorflow as tf

from keras_transfer.data.order import epoch_order
from keras_transfer.data.readers import Files
from keras_transfer.errors import InputError
from keras_transfer.modalities.image.compose import Albumentations
from keras_transfer.modalities.image.prepare import augmenter, resize_and_crop
from keras_transfer.modalities.image.serving import decode_in_graph

_MOST_WAITING = 256  # batches that came before an earlier one: more means that it is lost


def service_batches(
    examples,
    address: str,
    image_size: int,
    batch_size: int,
    variant,
    seed: int,
    start_epoch: int,
    equal_classes: bool,
) -> tf.data.Dataset:
    """What `pipeline.batches` gives, made by the workers of a tf.data service.

    Whole batches are handed out to the workers, each once, and put into their order here: which worker
    made a batch, and how many there are, changes nothing. The workers read the files by the same paths
    and decode as an exported model does, so that they need this package no more than it needs them.

    Args:
        examples: of files.
        address: of the dispatcher, `"grpc://HOST:PORT"`.
        variant: of `resolve_augmentation`; None is evaluation.
        image_size, batch_size, seed, start_epoch, equal_classes: see `pipeline.batches`.

    Returns:
        Evaluation: (images, labels), once and in order. Training: an endless stream of (images,
        labels, seeds int64 [1, 2] of the batch), neither mixed nor weighted yet.

    Raises:
        InputError: images that are no files, or an augmentation that needs Python.
        tf.errors.OpError: while iterating: a file that cannot be read or decoded, or a worker that was
            lost with a batch.
    """
    if not isinstance(examples.images, Files):
        raise InputError("The tf.data service reads files: write these images to a folder first.")
    if isinstance(variant, Albumentations):
        raise InputError(
            "The tf.data service runs without Python, and so without albumentations: choose a preset, "
            "an Augmentation or a Keras layer for it."
        )
    training = variant is not None
    count = len(examples)
    steps = -(-count // batch_size)
    paths = tf.constant([os.fsencode(name) for name in examples.names])
    labels = tf.constant(examples.labels)
    vary = augmenter(variant, image_size, examples.names) if training else None
    drawn = examples.labels if equal_classes else None

    def order_in(number):
        return epoch_order(count, tf.constant(seed, tf.int64), number // steps, drawn)

    def load(index):
        return decode_in_graph(tf.io.read_file(paths[index]))

    def batch_of(number):
        places = tf.range(count)[number % steps * batch_size :][:batch_size]
        if training:
            order, image_seed = order_in(number)
            chosen = tf.gather(order, places)
            variants = chosen if drawn is None else places

            def prepare(row):
                index, variant = row
                return vary(load(index), tf.random.fold_in(image_seed, variant), index)
        else:
            chosen = variants = places

            def prepare(row):
                return resize_and_crop(load(row[0]), image_size)

        made = tf.TensorSpec([image_size, image_size, 3], tf.uint8)
        images = tf.map_fn(prepare, (chosen, variants), fn_output_signature=made)
        return number, images, tf.gather(labels, chosen)

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
    stream = tf.data.Dataset.from_generator(
        lambda: _in_order(made, first),
        output_signature=(
            tf.TensorSpec([], tf.int64),
            tf.TensorSpec([None, image_size, image_size, 3], tf.uint8),
            tf.TensorSpec([None, *labels.shape[1:]], labels.dtype),
        ),
    )
    if not training:
        stream = stream.map(lambda number, *batch: batch)
        return stream.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(2)

    def seeded(number, images, labels):
        batch_seed = tf.random.fold_in(order_in(number)[1], -1 - number % steps)
        return images, labels, batch_seed[None]

    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return stream.map(seeded).apply(endless)


def _in_order(made, expected):
    """The batches, which begin with their number, by that number."""
    waiting = {}
    for number, *batch in made:
        waiting[int(number)] = batch
        while expected in waiting:
            yield expected, *waiting.pop(expected)
            expected += 1
        if len(waiting) > _MOST_WAITING:
            break
    if waiting:
        raise RuntimeError(
            f"batch {expected} did not come: a worker of the tf.data service was lost with it; start "
            "it again and go on with --resume"
        )
