"""What an epoch consists of: its order, class weights, and the share of each process.

Everything here is a pure function of its arguments. All processes know the order of an epoch and divide
it into the same global batches. Each device computes an equal piece of each batch. A batch that does not
divide, such as the last one of an epoch, is filled with examples of its own that have weight 0, and the
others weigh more, so that the mean over the pieces' means is the mean over the batch. Pieces are equal
because XLA needs equal shapes on all devices, and they are filled with examples because zeros, or no
examples, would distort the statistics of BatchNorm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from keras_transfer.errors import InputError

BALANCES = ("none", "weights", "sampling")


# -- order ----------------------------------------------------------------------------------------


def epoch_order(count: int, seed, epoch, classes: np.ndarray | None = None) -> tuple:
    """Return an epoch's order, int32 [count], and the seed of its variants, int64 [2], as tensors.

    Each example occurs once. With `classes`, int [count], the numbers of examples per class differ by
    at most one, and so do the numbers of times that the examples of a class occur.
    """
    import tensorflow as tf

    order_seed, image_seed = tf.unstack(tf.random.split(tf.stack([seed, epoch]), 2))
    shuffle = tf.random.experimental.stateless_shuffle
    order = shuffle(tf.range(count), order_seed)
    if classes is not None:
        order = _equally_drawn(order, classes, order_seed)
    return order, image_seed


def _equally_drawn(order, classes, seed):
    import tensorflow as tf

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


class ImageMemory:
    """Decoded images, cached for later epochs until the limit is reached.

    Args:
        limit: maximum size, in bytes.
    """

    def __init__(self, limit: int):
        self.limit, self.bytes = limit, 0
        self._pixels: dict[tuple[int, int], np.ndarray] = {}
        self._readers: list = []  # keeps the readers alive, whose ids are in the keys

    def reserve(self, size: int) -> bool:
        """Reserve memory; return False if it is not available."""
        fits = self.bytes + size <= self.limit
        self.bytes += size if fits else 0
        return fits

    def reader(self, images):
        """Return a cached version of `images.pixels`."""
        if all(reader is not images for reader in self._readers):
            self._readers.append(images)

        def pixels(index):
            key = (id(images), int(index))
            image = self._pixels.get(key)
            if image is None:
                image = images.pixels(index)
                if self.reserve(image.nbytes):
                    self._pixels[key] = image
            return image

        return pixels


# -- classes of unequal size ----------------------------------------------------------------------


def check_balance(balance: str, tasks: Sequence[str]) -> None:
    """Raise InputError if a way to balance does not exist or does not suit a model's tasks."""
    if balance not in BALANCES:
        raise InputError(f"balance must be one of {', '.join(BALANCES)}, not {balance!r}.")
    if balance == "none":
        return
    if "regression" in tasks:
        raise InputError("balance cannot be used for regression, which has no classes: use 'none'.")
    if len(tasks) > 1:
        raise InputError("balance cannot be used for several heads: use 'none'.")
    if balance == "sampling" and tasks[0] != "single_label":
        raise InputError(
            "balance 'sampling' needs one class per image: use 'weights' for several labels."
        )


def check_class_weights(weights: str | dict | None, heads: Mapping) -> None:
    """Raise InputError if `weights` do not fit the classes of a model's only head."""
    if weights is None:
        return
    if len(heads) > 1:
        raise InputError("class_weights cannot be used for several heads.")
    (head,) = heads.values()
    if head.task == "regression":
        raise InputError("class_weights cannot be used for regression, which has no classes.")
    if isinstance(weights, dict) and set(weights) != set(head.names):
        raise InputError(
            f"class_weights has {sorted(weights)}, but the classes are {list(head.names)}."
        )


def class_weights(weights: str | dict, names: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """Return the weight of each class in the loss.

    `"balanced"` is the inverse frequency: N / (C · n_c) for a class with n_c of N images, so that
    all classes have the same total weight and the mean weight of an image is 1. With any number of
    labels per image, each label is balanced separately: N / (2 · n) for the n images that have it and
    N / (2 · (N − n)) for the others.

    Args:
        weights: `"balanced"`, or a weight for each name (for several labels per image: the weight of
            images that have the label; the others have weight 1).
        names: the classes.
        labels: labels of the training images, int [N] or 0/1 [N, C].

    Returns:
        float32 [C]; for labels [N, C] float32 [C, 2], of images without and with the label.
    """
    several = labels.ndim == 2
    if weights != "balanced":
        values = np.array([weights[name] for name in names], "float32")  # type: ignore[index]
        return np.stack([np.ones_like(values), values], axis=1) if several else values
    if several:
        positive = labels.sum(axis=0)
        counts = np.stack([len(labels) - positive, positive], axis=1)
        return (len(labels) / (2 * np.maximum(1, counts))).astype("float32")
    counts = np.bincount(labels, minlength=len(names))
    return (len(labels) / (len(names) * np.maximum(1, counts))).astype("float32")


# -- several processes ----------------------------------------------------------------------------


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


def whole(count: int, batch_size: int) -> Part:
    """Return the part of a single process: everything."""
    return Share(1, 0, 1).part(count, batch_size)


def own(count: int, processes: int, index: int) -> np.ndarray:
    """Return the positions that a process computes without batches, int64 [≤ ⌈count / processes⌉]."""
    return np.arange(index, count, processes)
