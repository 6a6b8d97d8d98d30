"""Batches that other machines prepare, through the tf.data service."""

import os

import tensorflow as tf

from keras_transfer.data.batches import Training
from keras_transfer.data.order import epoch_order
from keras_transfer.data.readers import Files
from keras_transfer.errors import InputError
from keras_transfer.modalities import Framing

_MAX_WAITING = 256  # batches that arrive before a missing one, which then counts as lost


def service_batches(
    examples, address: str, framing: Framing, batch_size: int, settings: Training | None
) -> tf.data.Dataset:
    """Return the batches of `batches.batches`, prepared by the workers of a tf.data service.

    Each batch is assigned to one worker, and the batches are put in order here, so the result does not
    depend on the workers or their number. The workers read the files by the same paths, and decode and
    resample in graph ops like an exported model, so they do not need this package; their pixels differ
    by less than one level on average from those that are prepared here.

    Args:
        examples: `Examples` of files.
        address: address of the dispatcher, `"grpc://HOST:PORT"`.
        framing: size and crop of the images.
        batch_size: see `batches.batches`.
        settings: how to draw and vary the examples for training; None for evaluation.

    Returns:
        For evaluation (images, labels), once and in order. For training an endless stream of (images,
        labels, seeds int64 [1, 2] of the batch), not mixed or weighted yet.

    Raises:
        InputError: if the images are not files, or the augmentation needs Python.
        tf.errors.OpError: while iterating, if a file cannot be read or decoded, or a worker is lost.
    """
    if not isinstance(examples.images, Files):
        raise InputError("The tf.data service reads files: write these images to a folder first.")
    modality, count = examples.modality, len(examples)
    variant = modality.resolve_augmentation(settings.augmentation) if settings else None
    vary = modality.varier(variant, framing)
    steps = -(-count // batch_size)
    paths = tf.constant([os.fsencode(name) for name in examples.names])
    labels = tf.constant(examples.labels)
    drawn = examples.labels if settings and settings.equal_classes else None

    def order_in(number):
        return epoch_order(count, tf.constant(settings.seed, tf.int64), number // steps, drawn)

    def batch_of(number):
        places = tf.range(count)[number % steps * batch_size :][:batch_size]
        order, image_seed = order_in(number) if settings else (tf.range(count), None)
        chosen = tf.gather(order, places)
        variants = chosen if drawn is None else places

        def prepare(row):
            index, number = row
            contents = tf.io.read_file(paths[index])
            if not settings:
                return vary(contents, None)
            return vary(contents, tf.random.fold_in(image_seed, tf.cast(number, tf.int64)))

        made = tf.TensorSpec(framing.shape, modality.input_dtype)
        images = tf.map_fn(prepare, (chosen, variants), fn_output_signature=made)
        return number, images, tf.gather(labels, chosen)

    first, last = (settings.start_epoch * steps, tf.int64.max) if settings else (0, steps)
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
            tf.TensorSpec([None, *framing.shape], modality.input_dtype),
            tf.TensorSpec([None, *labels.shape[1:]], labels.dtype),
        ),
    )
    if not settings:
        stream = stream.map(lambda number, *batch: batch)
        return stream.apply(tf.data.experimental.assert_cardinality(steps))

    def seeded(number, images, labels):
        batch_seed = tf.random.fold_in(order_in(number)[1], -1 - number % steps)
        return images, labels, batch_seed[None]

    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return stream.map(seeded).apply(endless)


def _in_order(made, expected):
    """Yield batches, which begin with their number, in order."""
    waiting = {}
    for number, *batch in made:
        waiting[int(number)] = batch
        while expected in waiting:
            yield expected, *waiting.pop(expected)
            expected += 1
        if len(waiting) > _MAX_WAITING:
            break
    if waiting:
        raise RuntimeError(
            f"batch {expected} did not arrive: a worker of the tf.data service was lost; start it "
            "again and continue with --resume"
        )
