"""Turn examples into tf.data batches."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_transfer.data.epochs import ImageMemory, Part, Share, epoch_order, whole
from keras_transfer.errors import InputError
from keras_transfer.modalities.image.augment import Mix, View, resolve_augmentation
from keras_transfer.modalities.image.prepare import augmenter, mixer, resize_and_crop
from keras_transfer.utils.python_calls import python_calls

_PREFETCH_BYTES = 64 << 20  # of fixed views


def images(examples) -> tf.data.Dataset:
    """Return a dataset of decoded images at their original sizes, in order: (uint8 [H, W, 3], label)."""
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
    """Return a dataset of batches (uint8 [B, image_size, image_size, 3], values 0–255; int32 [B]).

    For evaluation: every example once, in order, through `resize_and_crop`; the last batch may be
    smaller.

    For training: an endless stream of epochs (pass `steps_per_epoch` to `fit`, see
    `ImageData.steps`). Each epoch contains every example exactly once and ends with a batch that may
    be smaller. The order is a function of (seed, epoch), an image's variant of (seed, epoch, index of
    the example), and mixing of (seed, epoch, number of the batch), so a stream that starts at epoch 3
    continues one that starts at 0.

    Args:
        examples: an `Examples`.
        image_size: side of the images in the batches, in pixels.
        batch_size: examples per batch.
        training: whether to prepare batches for training. The following arguments, except `memory`,
            `service` and `share`, are for training only.
        augmentation: see `resolve_augmentation`.
        seed: any integer.
        start_epoch: number of the first epoch.
        class_weights: weights for the loss, which become the third part of a batch, see
            `sample_weights`.
        equal_classes: draw equally many examples of each class per epoch, see `epoch_order`.
        memory: caches decoded images; for evaluation the prepared images are cached if they fit.
        mix: how images are mixed; labels become shares, float32 [B, classes].
        classes: number of classes, for `mix`.
        service: address of a tf.data service whose workers prepare the batches, see `data.service`.
        share: return only the part of one process, with weights for loss and metrics as the third
            part of a batch, see `data.epochs`; the stream is endless for evaluation, too. Order and
            variants are those of a single process, but mixing is not.

    Raises:
        InputError: if the augmentation is invalid, or `service` and `share` are combined.
        tf.errors.OpError: while iterating, if a file can no longer be read or decoded; the message
            names it.
    """
    variant = resolve_augmentation(augmentation) if training else None
    if service:
        if share:
            raise InputError(
                "A tf.data service cannot be combined with --distribute: omit one of them."
            )
        from keras_transfer.data.service import service_batches

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
        mixed = stream.map(_mixing(mix, classes), tf.data.AUTOTUNE, deterministic=True)
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
    """Return a dataset of fixed views of some examples; each file is decoded once.

    Args:
        chosen: positions in `examples`, in the desired order.
        views: views of each image; an augmented view is a function of the file's content and the
            view's number.
        batch_size: examples per batch; the last batch may be smaller.
        memory: caches decoded images.

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
        .prefetch(max(2, min(16, _PREFETCH_BYTES // (batch_size * len(views) * 3 * image_size**2))))
    )


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

    return batches.map(weigh)


def sample_weights(labels, class_weights) -> tf.Tensor:
    """Return the weights of examples in the loss: the sum over classes of share times weight.

    Args:
        labels: int [B], or shares float [B, C] if images are mixed; 0/1 or shares [B, C] for several
            labels per image.
        class_weights: float32 [C]; for several labels [C, 2], see `data.epochs.class_weights`.

    Returns:
        float32 [B]; for several labels [B, C], one weight per label.
    """
    if class_weights.shape.rank == 2:
        labels = tf.cast(labels, tf.float32)
        return labels * class_weights[:, 1] + (1 - labels) * class_weights[:, 0]
    if labels.shape.rank == 1:
        return tf.gather(class_weights, labels)
    return tf.linalg.matvec(tf.cast(labels, tf.float32), class_weights)


def _evaluated_part(examples, part: Part, load, image_size, memory):
    """Return an endless dataset of the batches of a part, (images, labels, weights)."""

    def prepare(index, label, weight):
        return resize_and_crop(load(index), image_size), label, weight

    def batches_of(rows, size):
        labels = tf.nest.map_structure(
            lambda array: tf.constant(array[part.places[rows]]), examples.labels
        )
        places = tf.constant(part.places[rows], tf.int32)
        return (
            tf.data.Dataset.from_tensor_slices((places, labels, part.weights[rows]))
            .map(prepare, tf.data.AUTOTUNE, deterministic=True)
            .batch(size)
        )

    # All batches have one size, except the last of each replica.
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
    labels = tf.nest.map_structure(tf.constant, examples.labels)
    count = len(examples)
    classes = examples.labels if equal_classes else None
    part = share.part(count, batch_size) if share else whole(count, batch_size)
    places = tf.constant(part.places, tf.int32)
    numbers = tf.constant(np.repeat(np.arange(len(part.sizes)), part.sizes))
    weights, sizes = tf.constant(part.weights), tf.constant(part.sizes)

    def epoch_rows(epoch):
        order, image_seed = epoch_order(count, seed, epoch, classes)
        order = tf.gather(order, places)
        # An example that occurs twice in an epoch occurs in two variants.
        variant = order if classes is None else places
        return tf.data.Dataset.from_tensor_slices((numbers, order, variant, weights)).map(
            lambda *row: (*row, image_seed)
        )

    def prepare(batch, index, variant, weight, image_seed):
        # The batch has another seed than its images, whose numbers are not negative.
        batch_seed = tf.random.fold_in(image_seed, -1 - batch)
        image = vary(load(index), tf.random.fold_in(image_seed, variant), index)
        made = (batch, image, tf.nest.map_structure(lambda array: array[index], labels), batch_seed)
        return (*made, weight) if share else made

    def size_of(batch):
        return sizes[batch]

    def collect(_, rows):
        return rows.map(lambda _, *row: row).batch(batch_size)

    # The parallel map continues over the ends of epochs. The batches are assembled after it, by
    # their number in the epoch: rows arrive in order, so a batch is complete before the batch with
    # the same number in the next epoch begins.
    seed = tf.constant(seed, tf.int64)
    stream = (
        tf.data.Dataset.range(start_epoch, tf.int64.max)
        .flat_map(epoch_rows)
        .map(prepare, tf.data.AUTOTUNE, deterministic=True)
        .group_by_window(lambda batch, *_: batch, collect, window_size_func=size_of)
    )
    return stream.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def _mixing(mix, classes):
    """Return a function (images, labels, seeds [B, 2], all equal[, weights]) → the mixed batch."""
    if not mix:
        return lambda images, labels, seeds, *weights: (images, labels, *weights)
    mixed = mixer(mix)

    def blend(images, labels, seeds, *weights):
        one_hot = labels.shape.rank == 1
        shares = tf.one_hot(labels, classes) if one_hot else tf.cast(labels, tf.float32)
        return (*mixed(images, shares, seeds[0]), *weights)

    return blend


def _rows(examples):
    return tf.range(len(examples)), tf.nest.map_structure(tf.constant, examples.labels)


def _loader(images, memory=None):
    """Return a graph function from a position to uint8 [H, W, 3]."""
    pixels = images.pixels if memory is None else memory.reader(images)

    def read(index):
        with python_calls:
            return pixels(index)

    # Decoding runs in Python for the formats that TensorFlow decodes wrongly, and for messages that
    # name the file. In the graph it is 10 to 50 % faster, also if it is fused with the crop.
    return lambda index: tf.ensure_shape(
        tf.numpy_function(read, [index], tf.uint8), [None, None, 3]
    )
