"""The order of an epoch's examples, and the part of it that one process computes.

All processes know the order of an epoch and divide it into the same global batches. Each device computes
an equal piece of each batch. A batch that does not divide, such as the last one of an epoch, is filled
with examples of its own that have weight 0, and the others weigh more, so that the mean over the pieces'
means is the mean over the batch. Pieces are equal because XLA needs equal shapes on all devices, and they
are filled with examples because zeros, or no examples, would distort the statistics of BatchNorm.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

_WINDOW = 50  # batches among which examples are sorted by length
# AutoGraph takes longer to look for Python's control flow, of which there is none, than all else.
as_written = tf.autograph.experimental.do_not_convert


def epoch_order(
    count: int,
    seed,
    epoch,
    classes: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    batch_size: int = 1,
) -> tuple:
    """Return an epoch's order, int32 [count], and the seed of its variants, int64 [2], as tensors.

    Each example occurs once. With `classes`, int [count], the numbers of examples per class differ by
    at most one, and so do the numbers of times that the examples of a class occur. With `lengths`, int
    [count], examples of about the same length share a batch.
    """
    order_seed, image_seed = tf.unstack(tf.random.split(tf.stack([seed, epoch]), 2))
    shuffle = tf.random.experimental.stateless_shuffle
    order = shuffle(tf.range(count), order_seed)
    if classes is not None:
        order = _equally_drawn(order, classes, order_seed)
    if lengths is not None:
        order = _grouped(order, tf.constant(lengths, tf.int64), batch_size, order_seed)
    return order, image_seed


def _grouped(order, lengths, batch_size, seed):
    """Sort an order by length within windows of many batches, and shuffle the batches.

    The last batch of an epoch, if it is smaller, is a random one.
    """
    full = tf.size(order) // batch_size
    whole, rest = order[: full * batch_size], order[full * batch_size :]
    window = tf.cast(tf.range(tf.size(whole)) // (_WINDOW * batch_size), tf.int64)
    longest = tf.reduce_max(lengths) + 1
    places = tf.argsort(window * longest + tf.gather(lengths, whole), stable=True)
    batches = tf.reshape(tf.gather(whole, places), [full, batch_size])
    _, batch_seed = tf.unstack(tf.random.split(seed, 2))
    batches = tf.gather(
        batches, tf.random.experimental.stateless_shuffle(tf.range(full), batch_seed)
    )
    return tf.concat([tf.reshape(batches, [-1]), rest], 0)


def _equally_drawn(order, classes, seed):
    present, classes = np.unique(classes, return_inverse=True)
    counts = np.bincount(classes)
    starts = np.cumsum(counts) - counts
    shuffle = tf.random.experimental.stateless_shuffle
    class_seed, place_seed = tf.unstack(tf.random.split(seed, 2))
    # The examples class by class, each class in this epoch's order; its slots take them in turn.
    in_order = tf.gather(tf.constant(classes, tf.int32), order)
    by_class = tf.gather(order, tf.argsort(in_order, stable=True))
    slots = tf.range(len(classes))
    turns = shuffle(tf.range(len(present)), class_seed)  # the first may occur once more
    which = tf.gather(turns, slots % len(present))
    turn = (slots // len(present)) % tf.gather(tf.constant(counts, tf.int32), which)
    places = tf.gather(tf.constant(starts, tf.int32), which) + turn
    return shuffle(tf.gather(by_class, places), place_seed)


@dataclass(frozen=True)
class Part:
    """The part of a sequence of examples that one process computes.

    Attributes:
        places: int64 [K]: positions in the sequence, in the order of computation.
        weights: float32 [K]: 0 for examples that fill a batch, see `Share.part`.
        sizes: int64 [G]: lengths of the batches into which `places` is divided.
    """

    places: np.ndarray
    weights: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True)
class Share:
    """The devices of one process among all devices.

    Attributes:
        replicas: number of all devices.
        first: number of this process's first device.
        local: number of its devices.
        joined: the process receives its piece of a global batch as one batch (JAX divides it), not
            as one for each device (`tf.distribute`).
    """

    replicas: int
    first: int
    local: int
    joined: bool = False

    def part(self, count: int, batch_size: int, *, evaluating: bool = False) -> Part:
        """Return this process's part of `count` examples in global batches of `batch_size`.

        Args:
            evaluating: give all examples the same weight, so that the mean over an epoch is exact;
                otherwise those of one batch, so that the mean over each batch is exact.
        """
        full, rest = divmod(count, batch_size)
        batches = [(batch_size, np.arange(full) * batch_size)]
        if rest:
            batches.append((rest, np.array([full * batch_size])))
        batches = [(size, starts) for size, starts in batches if len(starts)]
        filled = self.replicas * sum(-(-size // self.replicas) * len(s) for size, s in batches)
        places, weights, sizes = [], [], []
        for size, starts in batches:
            each = -(-size // self.replicas)
            rows = np.arange(self.first * each, (self.first + self.local) * each)
            weight = filled / count if evaluating else each * self.replicas / size
            places.append((starts[:, None] + rows % size).ravel())
            weights.append(np.tile(np.where(rows < size, weight, 0.0), len(starts)))
            pieces = [each * self.local] if self.joined else [each] * self.local
            sizes.append(np.tile(pieces, len(starts)))
        return Part(
            np.concatenate(places).astype("int64"),
            np.concatenate(weights).astype("float32"),
            np.concatenate(sizes).astype("int64"),
        )


ALONE = Share(1, 0, 1)


def slices(part: Part) -> tf.data.Dataset:
    """Return a dataset of each batch of a part: (places int32 [B], weights float32 [B])."""
    places, weights = tf.constant(part.places, tf.int32), tf.constant(part.weights)
    ends = np.cumsum(part.sizes)
    bounds = tf.data.Dataset.from_tensor_slices((ends - part.sizes, ends))
    return bounds.map(as_written(lambda start, end: (places[start:end], weights[start:end])))
