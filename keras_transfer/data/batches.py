"""Turn examples into tf.data batches: streams of an epoch, and fixed views."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from keras_transfer.data.memory import ImageMemory
from keras_transfer.data.order import ALONE, Share, as_written, epoch_order, slices
from keras_transfer.modalities import Framing
from keras_transfer.modalities.views import Mix, View
from keras_transfer.utils.names import make_options
from keras_transfer.utils.python_calls import python_calls

_PREFETCH_BYTES = 64 << 20  # of fixed views
_AT_ONCE = 2  # batches that share the threads, so that none waits for the end of a batch


@dataclass(frozen=True)
class Training:
    """Options of `batches` that are for training only.

    Attributes:
        augmentation: see `resolve_augmentation`.
        seed: any integer.
        start_epoch: number of the first epoch.
        class_weights: weights for the loss, which become the third part of a batch, see
            `sample_weights`.
        equal_classes: draw equally many examples of each class per epoch, see `epoch_order`.
        mix: how images are mixed; labels become shares, float32 [B, classes].
        classes: number of classes, for `mix`.
    """

    augmentation: Any = "light"
    seed: int = 0
    start_epoch: int = 0
    class_weights: np.ndarray | None = None
    equal_classes: bool = False
    mix: Mix = field(default_factory=Mix)
    classes: int = 0


def images(examples) -> tf.data.Dataset:
    """Return a dataset of whole decoded examples, in order: (uint8 [H, W, 3], label) for images."""
    decoded, kinds = examples.images.decoded, examples.modality.decoded

    def read(index):
        with python_calls:
            return decoded(index)

    def load(index):
        parts = tf.numpy_function(read, [index], [tf.as_dtype(d) for d, _ in kinds])
        parts = [tf.ensure_shape(part, shape) for part, (_, shape) in zip(parts, kinds)]
        return tuple(parts) if len(parts) > 1 else parts[0]

    labels = tf.nest.map_structure(tf.constant, examples.labels)
    return (
        tf.data.Dataset.from_tensor_slices((tf.range(len(examples)), labels))
        .map(as_written(lambda i, label: (load(i), label)), tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def batches(
    examples,
    *,
    image_size: int | str | Framing,
    batch_size: int,
    training: bool = False,
    memory: ImageMemory | None = None,
    service: str | None = None,
    share: Share | None = None,
    **options,
) -> tf.data.Dataset:
    """Return a dataset of batches (uint8 [B, height, width, 3], values 0–255; int32 [B]).

    For evaluation: every example once, in order, its center as `resize_and_crop` shows it; the last batch
    may be smaller.

    For training: an endless stream of epochs (pass `steps_per_epoch` to `fit`, see
    `ImageData.steps`). Each epoch contains every example exactly once and ends with a batch that may
    be smaller. The order is a function of (seed, epoch) (and of the batch size, where examples of
    like length share a batch), an image's variant of (seed, epoch, index of the example), and mixing of
    (seed, epoch, number of the batch), so a stream that starts at epoch 3 continues one that starts at 0.

    Args:
        examples: an `Examples`.
        image_size: size of the images in the batches, such as 224 or `"96x192"`; or a `Framing`, which also says how
            much of an image a central crop shows (`models.framing.framing_of(model)`).
        batch_size: examples per batch.
        training: whether to prepare batches for training.
        memory: caches decoded images; for evaluation the prepared images are cached if they fit.
        service: address of a tf.data service whose workers prepare the batches, see `data.service`.
        share: return only the part of one process, with weights for loss and metrics as the third
            part of a batch; the stream is endless for evaluation, too. Order and variants are those
            of a single process, but mixing is not.
        options: fields of `Training`.

    Raises:
        InputError: if the augmentation or an option is invalid.
        tf.errors.OpError: while iterating, if a file can no longer be read or decoded; the message
            names it.
    """
    framing = examples.modality.framing_for(image_size, examples)
    settings = make_options(Training, options, "batches")
    if service:
        from keras_transfer.data.service import service_batches

        drawn = settings if training else None
        stream = service_batches(examples, service, framing, batch_size, drawn)
    elif training:
        stream = _training_batches(examples, framing, batch_size, settings, memory, share)
    else:
        stream = _evaluation_batches(examples, framing, batch_size, memory, share)
    if training:
        mixing = _mixing(examples.modality, settings.mix, settings.classes)
        mixed = stream.map(mixing, tf.data.AUTOTUNE, deterministic=True)
        stream = weighted(mixed, settings.class_weights)
    return stream.prefetch(tf.data.AUTOTUNE)


def views(
    examples,
    chosen: Sequence[int],
    views: Sequence[View],
    image_size: int | str | Framing,
    batch_size: int,
    memory: ImageMemory | None = None,
) -> tf.data.Dataset:
    """Return a dataset of fixed views of some examples; each file is decoded once.

    Args:
        chosen: positions in `examples`, in the desired order.
        views: views of each image; an augmented view is a function of the file's content and the
            view's number.
        image_size: see `batches`.
        batch_size: examples per batch; the last batch may be smaller.
        memory: caches decoded images.

    Returns:
        uint8 [V, B, height, width, 3], in order.
    """
    framing = examples.modality.framing_for(image_size, examples)
    preparation = examples.modality.preparation(examples.images, views, framing, memory)
    digests = [int.from_bytes(examples.digests[i][:8], "little") >> 1 for i in chosen]
    numbers = [view.number for view in views]
    seeds = np.stack(np.broadcast_arrays(np.array(digests, "int64")[:, None], numbers), axis=2)
    rows = tf.data.Dataset.from_tensor_slices((np.array(chosen, "int32"), seeds))
    stream = rows.batch(batch_size).map(
        as_written(lambda rows, seeds: (rows, tf.transpose(seeds, [1, 0, 2])))
    )
    size = batch_size * len(views) * max(1, preparation.nbytes)
    ahead = max(2, min(16, _PREFETCH_BYTES // size))
    return prepared(stream, preparation, lambda examples: examples).prefetch(ahead)


def prepared(
    rows: tf.data.Dataset, preparation, then: Callable, *, drawn: bool = True
) -> tf.data.Dataset:
    """Prepare batches of examples.

    Args:
        rows: of (positions int32 [B], seeds int64 [V, B, 2], anything else …).
        preparation: what the modality does, see `modalities.image.preparation`.
        then: a graph function (examples [V, B, …], anything else …) → element of the result.
        drawn: whether anything is random.

    Returns:
        A dataset in the same order.

    A call into Python costs as much as a small image, and tf.data's threads wait for one another
    there. So one call makes a whole batch, in threads of its own.
    """
    kind, count = preparation.dtype, preparation.draws

    def make(rows, draws, seeds):
        with python_calls:
            return preparation.batch(rows, draws, seeds)

    def draw(seeds):
        if not drawn:
            return tf.zeros([*tf.unstack(tf.shape(seeds)[:2]), count])
        made = tf.map_fn(
            lambda seed: tf.random.stateless_uniform([count], seed),
            tf.reshape(seeds, [-1, 2]),
            fn_output_signature=tf.float32,
        )
        return tf.reshape(made, [*tf.unstack(tf.shape(seeds)[:2]), count])

    def call(rows, seeds, *rest):
        made = tf.numpy_function(make, [rows, draw(seeds), seeds], kind)
        views = len(preparation.finish)
        return (tf.ensure_shape(made, [views, None, *preparation.shape]), seeds, *rest)

    def finished(examples, seeds, *rest):
        done = [
            part
            if finish is None
            else tf.map_fn(lambda row: finish(*row), (part, seed), fn_output_signature=kind)  # noqa: B023
            for finish, part, seed in zip(
                preparation.finish, tf.unstack(examples), tf.unstack(seeds, len(preparation.finish))
            )
        ]
        return tf.ensure_shape(tf.stack(done), examples.shape), seeds, *rest

    stream = rows.map(as_written(call), _AT_ONCE, deterministic=True)
    if any(preparation.finish):
        stream = stream.map(finished, tf.data.AUTOTUNE, deterministic=True)
    return stream.map(as_written(lambda examples, _, *rest: then(examples, *rest)))


def weighted(batches: tf.data.Dataset, class_weights: np.ndarray | None) -> tf.data.Dataset:
    """Multiply class weights, if any, into the weights of (inputs, labels[, weights])."""
    if class_weights is None:
        return batches
    weights = tf.constant(class_weights, tf.float32)

    def weigh(inputs, labels, shared=None):
        result = sample_weights(labels, weights)
        if shared is not None:  # of a share: [B], even if the result has a weight per label
            result *= tf.reshape(shared, [-1] + [1] * (result.shape.rank - 1))
        return inputs, labels, result

    return batches.map(as_written(weigh))


def sample_weights(labels, class_weights) -> tf.Tensor:
    """Return the weights of examples in the loss: the sum over classes of share times weight.

    Args:
        labels: int [B], or shares float [B, C] if images are mixed; 0/1 or shares [B, C] for several
            labels per image.
        class_weights: float32 [C]; for several labels [C, 2], see `data.examples.class_weights`.

    Returns:
        float32 [B]; for several labels [B, C], one weight per label.
    """
    if class_weights.shape.rank == 2:
        labels = tf.cast(labels, tf.float32)
        return labels * class_weights[:, 1] + (1 - labels) * class_weights[:, 0]
    if labels.shape.rank == 1:
        return tf.gather(class_weights, labels)
    return tf.linalg.matvec(tf.cast(labels, tf.float32), class_weights)


# -- streams --------------------------------------------------------------------------------------


def _evaluation_batches(examples, framing, batch_size, memory, share):
    """Return (images, labels) once; with a share an endless dataset of (images, labels, weights)."""
    preparation = examples.modality.preparation(examples.images, [View()], framing)
    labels = tf.nest.map_structure(tf.constant, examples.labels)
    part = (share or ALONE).part(len(examples), batch_size, evaluating=True)

    def rows(places, weights):
        seeds = tf.zeros([1, tf.size(places), 2], tf.int64)
        return places, seeds, places, weights

    def labeled(images, places, weights):
        made = images[0], tf.nest.map_structure(lambda array: tf.gather(array, places), labels)
        return (*made, weights) if share else made

    stream = slices(part).map(as_written(rows))
    made = prepared(stream, preparation, labeled, drawn=False)
    if memory is not None and memory.reserve(len(part.places) * preparation.nbytes):
        made = made.cache()
    return made.repeat() if share else made


def _training_batches(examples, framing, batch_size, settings, memory, share):
    view = View("augmented", 0, examples.modality.resolve_augmentation(settings.augmentation))
    preparation = examples.modality.preparation(examples.images, [view], framing, memory)
    labels = tf.nest.map_structure(tf.constant, examples.labels)
    count = len(examples)
    classes = examples.labels if settings.equal_classes else None
    part = (share or ALONE).part(count, batch_size)
    seed = tf.constant(settings.seed, tf.int64)

    def epoch_batches(epoch):
        order, image_seed = epoch_order(
            count, seed, epoch, classes, preparation.lengths, batch_size
        )

        def batch(number, piece):
            places, weights = piece
            rows = tf.gather(order, places)
            # An example that occurs twice in an epoch occurs in two variants.
            seeds = fold_in_each(image_seed, rows if classes is None else places)
            # The batch has another seed than its images, whose numbers are not negative.
            batch_seed = tf.random.fold_in(image_seed, -1 - number)
            return rows, seeds[None], rows, batch_seed, weights

        return slices(part).enumerate().map(as_written(batch))

    def labeled(images, rows, batch_seed, weights):
        found = tf.nest.map_structure(lambda array: tf.gather(array, rows), labels)
        made = images[0], found, batch_seed[None]
        return (*made, weights) if share else made

    # The parallel map continues over the ends of epochs.
    epochs = tf.data.Dataset.range(settings.start_epoch, tf.int64.max)
    stream = prepared(epochs.flat_map(as_written(epoch_batches)), preparation, labeled)
    return stream.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def fold_in_each(seed, numbers) -> tf.Tensor:
    """Return `tf.random.fold_in(seed, n)` of each number: int64 [N, 2]."""
    first = tf.random.fold_in(seed, tf.constant(0, tf.int64))[0]
    return tf.stack([tf.fill(tf.shape(numbers), first), tf.cast(numbers, tf.int64)], axis=1)


def _mixing(modality, mix, classes):
    """Return a function (images, labels, seed [1, 2][, weights]) → the mixed batch."""
    if not mix:
        return lambda images, labels, seed, *weights: (images, labels, *weights)
    mixed = modality.mixer(mix)

    def blend(images, labels, seed, *weights):
        one_hot = labels.shape.rank == 1
        shares = tf.one_hot(labels, classes) if one_hot else tf.cast(labels, tf.float32)
        return (*mixed(images, shares, seed[0]), *weights)

    return blend
