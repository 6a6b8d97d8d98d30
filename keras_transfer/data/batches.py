"""Examples to tf.data batches."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_transfer.data.memory import ImageMemory
from keras_transfer.data.mixing import Mix, mixer
from keras_transfer.data.order import epoch_order
from keras_transfer.data.service import service_batches
from keras_transfer.data.sharding import Part, Share, whole
from keras_transfer.data.targets import map_labels
from keras_transfer.errors import InputError
from keras_transfer.modalities.image.augment import View, resolve_augmentation
from keras_transfer.modalities.image.prepare import augmenter, resize_and_crop
from keras_transfer.utils.python_calls import python_calls

_AHEAD = 64 << 20  # bytes of fixed views that may wait


def images(examples) -> tf.data.Dataset:
    """Decoded images of their own sizes, in order: (uint8 [H, W, 3], int32 label)."""
    load = _loader(examples.images)
    return (
        tf.data.Dataset.from_tensor_slices(_rows(examples))
        .map(lambda index, label: (load(index), label), tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def batches(
    examples,
    *,
    image_size: int,
    batch_size: int,
    training: bool = False,
    augmentation="light",
    seed: int = 0,
    start_epoch: int = 0,
    class_weights: np.ndarray | None = None,
    equal_classes: bool = False,
    memory: ImageMemory | None = None,
    mix: Mix = Mix(),
    classes: int = 0,
    service: str | None = None,
    share: Share | None = None,
) -> tf.data.Dataset:
    """Batches (uint8 [B, image_size, image_size, 3], values 0-255; int32 [B]).

    Not training: every example once, in order, through `resize_and_crop`; the last batch may
    be smaller. `augmentation`, `seed`, `start_epoch` and the balance are not used.

    Training: an endless stream of epochs from `start_epoch` on (give `fit` its
    `steps_per_epoch`, see `ImageData.steps`). Each epoch has every example exactly once and
    ends in a batch of its own, maybe smaller. The order depends on (seed, epoch) alone and an
    image's variant on (seed, epoch, index of the example) alone, so a stream started at
    epoch 3 repeats what one started at 0 gives from its fourth epoch on.

    With `equal_classes` an epoch has as many examples, of each class equally many, see
    `epoch_order`. With `class_weights` the batches have the weights for the loss as a third part,
    see `sample_weights`.

    With `memory` a file is decoded once; evaluation keeps what it made of it, too, where that fits.

    `augmentation` is what `resolve_augmentation` takes. With a `mix`, training labels are shares of
    `classes` classes, float32 [B, classes]. What is mixed depends on (seed, epoch, number of the
    batch) alone.

    With `service`, the address of a tf.data service, its workers make the batches, see
    `data.service`.

    With `share` these are one process's parts of the batches, in which its examples have weights for
    the loss and the metrics as a third part, see `distribution.sharding`; not training, the stream is
    endless too. Order and variants are those of a single process; what is mixed is not.

    Raises:
        InputError: no such augmentation, or a service and a share.
        tf.errors.OpError: while iterating, a file that cannot be read or decoded any more;
            the message names it.
    """
    variant = resolve_augmentation(augmentation) if training else None
    if service:
        if share:
            raise InputError(
                "A tf.data service cannot be used with --distribute: leave out either."
            )
        stream = service_batches(
            examples, service, image_size, batch_size, variant, seed, start_epoch, equal_classes
        )
        if not training:
            return stream
    elif training:
        stream = _training_batches(
            examples,
            image_size,
            batch_size,
            variant,
            seed,
            start_epoch,
            equal_classes,
            memory,
            share,
        )
    if training:
        mixed = stream.map(_blender(mix, classes), tf.data.AUTOTUNE, deterministic=True)
        return weighted(mixed, class_weights).prefetch(tf.data.AUTOTUNE)
    load = _loader(examples.images)
    if share:
        part = share.part(len(examples), batch_size, evaluating=True)
        return _evaluated_part(examples, part, load, image_size, memory)

    def prepare(index, label):
        return resize_and_crop(load(index), image_size), label

    made = tf.data.Dataset.from_tensor_slices(_rows(examples)).map(
        prepare, tf.data.AUTOTUNE, deterministic=True
    )
    if memory is not None and memory.reserve(len(examples) * 3 * image_size**2):
        made = made.cache()
    return made.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def views(
    examples,
    chosen: Sequence[int],
    views: Sequence[View],
    image_size: int,
    batch_size: int,
    memory: ImageMemory | None = None,
) -> tf.data.Dataset:
    """Fixed views of some examples, each file decoded once.

    Args:
        chosen: positions in `examples`, in the order wanted.
        views: what to make of each; an augmented view follows from the file's content and the
            view's number.
        batch_size: examples a batch, the last of which may be smaller.
        memory: where decoded images are kept for another time.

    Returns:
        uint8 [V, B, image_size, image_size, 3], in order.
    """
    load = _loader(examples.images, memory)
    seeds = tf.constant(
        [int.from_bytes(examples.digests[i][:8], "little") >> 1 for i in chosen], tf.int64
    )

    variants = {
        view.augmentation: augmenter(view.augmentation, image_size, examples.names)
        for view in views
        if view.augmentation is not None
    }

    def prepare(index, seed):
        image = load(index)
        plain = resize_and_crop(image, image_size)
        made = {
            "plain": lambda view: plain,
            "mirror": lambda view: tf.reverse(plain, [1]),
            "augmented": lambda view: variants[view.augmentation](
                image, tf.stack([seed, view.number]), index
            ),
        }
        return tf.stack([made[view.kind](view) for view in views])

    return (
        tf.data.Dataset.from_tensor_slices((tf.constant(chosen, tf.int32), seeds))
        .map(prepare, tf.data.AUTOTUNE, deterministic=True)
        .batch(batch_size)
        .map(
            lambda batch: (
                tf.transpose(batch, [1, 0, 2, 3, 4]) if len(views) > 1 else batch[None, :, 0]
            )
        )
        .prefetch(max(2, min(16, _AHEAD // (batch_size * len(views) * 3 * image_size**2))))
    )


def weighted(batches: tf.data.Dataset, class_weights: np.ndarray | None) -> tf.data.Dataset:
    """(inputs, labels[, weights]) with the labels' weights, where there are any; endless as before."""
    if class_weights is None:
        return batches
    weights = tf.constant(class_weights, tf.float32)

    def weigh(inputs, labels, given=None):
        found = sample_weights(labels, weights)
        if given is not None:  # of a share: [B], also where each of several labels has its own
            found *= tf.reshape(given, [-1] + [1] * (found.shape.rank - 1))
        return inputs, labels, found

    return batches.map(weigh)


def sample_weights(labels, class_weights) -> tf.Tensor:
    """What examples weigh in the loss: the sum over classes of label share times weight.

    Args:
        labels: int [B], or shares float [B, C] where images are mixed; 0/1 or shares [B, C] of
            several labels per image.
        class_weights: float32 [C]; of several labels [C, 2], see `data.balance.class_weights`.

    Returns:
        float32 [B]; of several labels [B, C], each with its own.
    """
    if class_weights.shape.rank == 2:
        labels = tf.cast(labels, tf.float32)
        return labels * class_weights[:, 1] + (1 - labels) * class_weights[:, 0]
    if labels.shape.rank == 1:
        return tf.gather(class_weights, labels)
    return tf.linalg.matvec(tf.cast(labels, tf.float32), class_weights)


def _evaluated_part(examples, part: Part, load, image_size, memory):
    """Batches of a part, (images, labels, weights), again and again."""

    def prepare(index, label, weight):
        return resize_and_crop(load(index), image_size), label, weight

    def batches_of(rows, size):
        labels = map_labels(lambda array: tf.constant(array[part.places[rows]]), examples.labels)
        places = tf.constant(part.places[rows], tf.int32)
        return (
            tf.data.Dataset.from_tensor_slices((places, labels, part.weights[rows]))
            .map(prepare, tf.data.AUTOTUNE, deterministic=True)
            .batch(size)
        )

    # All batches are of one size but the last, which every replica has one of.
    first = int((part.sizes == part.sizes[0]).sum())
    split = int(part.sizes[:first].sum())
    made = batches_of(slice(0, split), int(part.sizes[0]))
    if first < len(part.sizes):
        made = made.concatenate(batches_of(slice(split, None), int(part.sizes[-1])))
    if memory is not None and memory.reserve(len(part.places) * 3 * image_size**2):
        made = made.cache()
    return made.repeat().prefetch(tf.data.AUTOTUNE)


def _training_batches(
    examples, image_size, batch_size, augmentation, seed, start_epoch, equal_classes, memory, share
):
    load = _loader(examples.images, memory)
    vary = augmenter(augmentation, image_size, examples.names)
    labels = map_labels(tf.constant, examples.labels)
    count = len(examples)
    classes = examples.labels if equal_classes else None
    part = share.part(count, batch_size) if share else whole(count, batch_size)
    places = tf.constant(part.places, tf.int32)
    numbers = tf.constant(np.repeat(np.arange(len(part.sizes)), part.sizes))
    weights, sizes = tf.constant(part.weights), tf.constant(part.sizes)

    def epoch_rows(epoch):
        order, image_seed = epoch_order(count, seed, epoch, classes)
        order = tf.gather(order, places)
        # What comes twice in an epoch comes in two variants.
        variant = order if classes is None else places
        return tf.data.Dataset.from_tensor_slices((numbers, order, variant, weights)).map(
            lambda *row: (*row, image_seed)
        )

    def prepare(batch, index, variant, weight, image_seed):
        # A batch's seed is none of its images': their numbers are not negative.
        batch_seed = tf.random.fold_in(image_seed, -1 - batch)
        image = vary(load(index), tf.random.fold_in(image_seed, variant), index)
        made = (batch, image, map_labels(lambda array: array[index], labels), batch_seed)
        return (*made, weight) if share else made

    def size_of(batch):
        return sizes[batch]

    def collect(_, rows):
        return rows.map(lambda _, *row: row).batch(batch_size)

    # The parallel map runs over the epochs' ends without a pause. The batches are put together
    # after it, by their number in the epoch: rows come in order, so one batch is complete
    # before the one of the same number in the next epoch begins.
    seed = tf.constant(seed, tf.int64)
    stream = (
        tf.data.Dataset.range(start_epoch, tf.int64.max)
        .flat_map(epoch_rows)
        .map(prepare, tf.data.AUTOTUNE, deterministic=True)
        .group_by_window(lambda batch, *_: batch, collect, window_size_func=size_of)
    )
    return stream.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def _blender(mix, classes):
    """A function of a training batch (images, labels, seeds [B, 2], all equal[, weights]) →
    (images, labels[, weights])."""
    if not mix:
        return lambda images, labels, seeds, *weights: (images, labels, *weights)
    mixed = mixer(mix)

    def blend(images, labels, seeds, *weights):
        one_hot = labels.shape.rank == 1
        shares = tf.one_hot(labels, classes) if one_hot else tf.cast(labels, tf.float32)
        return (*mixed(images, shares, seeds[0]), *weights)

    return blend


def _rows(examples):
    return tf.range(len(examples)), map_labels(tf.constant, examples.labels)


def _loader(images, memory=None):
    """A graph function from a position to uint8 [H, W, 3]."""
    pixels = images.pixels if memory is None else memory.reader(images)

    def read(index):
        with python_calls:
            return pixels(index)

    # In Python rather than in the graph, for the formats that TensorFlow decodes wrongly, and for
    # messages that name the file. In the graph it is a tenth to a half faster, fused with the crop
    # no more than that.
    return lambda index: tf.ensure_shape(
        tf.numpy_function(read, [index], tf.uint8), [None, None, 3]
    )
