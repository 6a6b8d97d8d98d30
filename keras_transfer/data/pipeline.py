"""Examples to tf.data batches."""

import atexit
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_transfer.data.augmentation import Augmentation, View, resolve_augmentation
from keras_transfer.data.decode import decode
from keras_transfer.data.sources import Examples
from keras_transfer.data.transforms import augment, resize_and_crop


def pictures(examples: Examples) -> tf.data.Dataset:
    """Decoded pictures of their own sizes, in order: (uint8 [H, W, 3], int32 label)."""
    paths, labels = _tensors(examples)
    return (
        tf.data.Dataset.from_tensor_slices((paths, labels))
        .map(lambda path, label: (_load(path), label), tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def batches(
    examples: Examples,
    *,
    image_size: int,
    batch_size: int,
    training: bool = False,
    augmentation: str | Augmentation = "light",
    seed: int = 0,
    start_epoch: int = 0,
    memory: "PictureMemory | None" = None,
) -> tf.data.Dataset:
    """Batches (uint8 [B, image_size, image_size, 3], values 0-255; int32 [B]).

    Not training: every example once, in order, through `resize_and_crop`; the last batch may
    be smaller. `augmentation`, `seed` and `start_epoch` are not used.

    Training: an endless stream of epochs from `start_epoch` on (give `fit` its
    `steps_per_epoch`, see `ImageData.steps`). Each epoch has every example exactly once and
    ends in a batch of its own, maybe smaller. The order depends on (seed, epoch) alone and a
    picture's variant on (seed, epoch, index of the example) alone, so a stream started at
    epoch 3 repeats what one started at 0 gives from its fourth epoch on.

    With `memory` a file is decoded once; evaluation keeps what it made of it, too, where that fits.

    Raises:
        InputError: no such augmentation.
        tf.errors.OpError: while iterating, a file that cannot be read or decoded any more;
            the message names it.
    """
    if training:
        variant = resolve_augmentation(augmentation)
        return _training_batches(
            examples, image_size, batch_size, variant, seed, start_epoch, memory
        )
    paths, labels = _tensors(examples)

    def prepare(path, label):
        return resize_and_crop(_load(path), image_size), label

    made = tf.data.Dataset.from_tensor_slices((paths, labels)).map(
        prepare, tf.data.AUTOTUNE, deterministic=True
    )
    if memory is not None and memory.reserve(len(examples) * 3 * image_size**2):
        made = made.cache()
    return made.batch(batch_size).prefetch(tf.data.AUTOTUNE)


class PictureMemory:
    """Decoded pictures, kept for the next epoch as long as there is room.

    Args:
        limit: most bytes.
    """

    def __init__(self, limit: int):
        self.limit, self.bytes = limit, 0
        self._pictures: dict[bytes, np.ndarray] = {}

    def reserve(self, size: int) -> bool:
        """True where so many bytes still fit; they are taken then."""
        fits = self.bytes + size <= self.limit
        self.bytes += size if fits else 0
        return fits

    def read(self, path: bytes) -> np.ndarray:
        """The file's picture, decoded or remembered."""
        picture = self._pictures.get(path)
        if picture is None:
            picture = _read(path)
            if self.reserve(picture.nbytes):
                self._pictures[path] = picture
        return picture


def views(
    examples: Examples,
    chosen: Sequence[int],
    views: Sequence[View],
    image_size: int,
    batch_size: int,
    memory: "PictureMemory | None" = None,
) -> tf.data.Dataset:
    """Fixed views of some examples, each file decoded once.

    Args:
        chosen: positions in `examples`, in the order wanted.
        views: what to make of each; an augmented view follows from the file's content and the
            view's number.
        batch_size: examples a batch, the last of which may be smaller.
        memory: where decoded pictures are kept for another time.

    Returns:
        uint8 [V, B, image_size, image_size, 3], in order.
    """
    paths = tf.constant([os.fsencode(examples.paths[i]) for i in chosen], tf.string)
    seeds = tf.constant(
        [int.from_bytes(examples.digests[i][:8], "little") >> 1 for i in chosen], tf.int64
    )

    def prepare(path, seed):
        picture = _load(path, None if memory is None else memory.read)
        plain = resize_and_crop(picture, image_size)
        made = {
            "plain": lambda view: plain,
            "mirror": lambda view: tf.reverse(plain, [1]),
            "augmented": lambda view: augment(
                picture, image_size, view.augmentation, tf.stack([seed, view.number])
            ),
        }
        return tf.stack([made[view.kind](view) for view in views])

    return (
        tf.data.Dataset.from_tensor_slices((paths, seeds))
        .map(prepare, tf.data.AUTOTUNE, deterministic=True)
        .batch(batch_size)
        .map(
            lambda batch: (
                tf.transpose(batch, [1, 0, 2, 3, 4]) if len(views) > 1 else batch[None, :, 0]
            )
        )
        .prefetch(2)
    )


def epoch_order(count: int, seed, epoch) -> tuple[tf.Tensor, tf.Tensor]:
    """(order int32 [count], seed int64 [2] of the pictures' variants) of an epoch."""
    order_seed, picture_seed = tf.unstack(tf.random.split(tf.stack([seed, epoch]), 2))
    return tf.random.experimental.stateless_shuffle(tf.range(count), order_seed), picture_seed


def _training_batches(examples, image_size, batch_size, augmentation, seed, start_epoch, memory):
    read = _read if memory is None else memory.read
    paths, labels = _tensors(examples)
    count = len(examples)

    def epoch_rows(epoch):
        order, picture_seed = epoch_order(count, seed, epoch)
        batch = tf.range(count, dtype=tf.int64) // batch_size
        return tf.data.Dataset.from_tensor_slices((batch, order)).map(
            lambda batch, index: (batch, index, picture_seed)
        )

    def prepare(batch, index, picture_seed):
        picture_seed = tf.random.fold_in(picture_seed, index)
        picture = augment(_load(paths[index], read), image_size, augmentation, picture_seed)
        return batch, picture, labels[index]

    def size_of(batch):
        return tf.minimum(count - batch * batch_size, batch_size)

    def collect(_, rows):
        return rows.map(lambda _, picture, label: (picture, label)).batch(batch_size)

    # The parallel map runs over the epochs' ends without a pause. The batches are put together
    # after it, by their number in the epoch: rows come in order, so one batch is complete
    # before the one of the same number in the next epoch begins.
    seed = tf.constant(seed, tf.int64)
    stream = (
        tf.data.Dataset.range(start_epoch, tf.int64.max)
        .flat_map(epoch_rows)
        .map(prepare, tf.data.AUTOTUNE, deterministic=True)
        .group_by_window(lambda batch, *_: batch, collect, window_size_func=size_of)
        .prefetch(tf.data.AUTOTUNE)
    )
    return stream.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def _tensors(examples):
    # Paths as bytes: a file name need not be valid UTF-8.
    paths = tf.constant([os.fsencode(path) for path in examples.paths], tf.string)
    return paths, tf.constant(examples.labels, tf.int32)


def _load(path, read=None):
    # In Python rather than in the graph, for the formats that TensorFlow decodes wrongly, and for
    # messages that name the file. In the graph it is a tenth to a half faster, fused with the crop
    # no more than that.
    picture = tf.numpy_function(read or _read, [path], tf.uint8)
    return tf.ensure_shape(picture, [None, None, 3])


def _read(path: bytes) -> np.ndarray:
    name = os.fsdecode(path)
    with python_calls:
        try:
            return decode(Path(name).read_bytes())
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ValueError(f"{name}: {reason}") from error


class _PythonCalls:
    """Calls from tf.data's threads into Python, to be ended before the interpreter is.

    A stream prefetches for as long as it lives. Python kills a thread that asks for the
    interpreter while it shuts down; the dataset then waits for that call for ever, and the
    program hangs at its end (4 of 6 runs that kept a training iterator did).
    """

    def __init__(self):
        self.closing = False
        self.running = set()
        self.last = -float("inf")

    def __enter__(self):
        self.last = time.monotonic()
        if self.closing:
            # TensorFlow takes this for the end of the data: no warning, no more work.
            raise StopIteration("Python is shutting down")
        self.running.add(threading.get_ident())

    def __exit__(self, *_):
        self.running.discard(threading.get_ident())
        self.last = time.monotonic()

    def close(self, quiet_seconds: float = 0.1, most_seconds: float = 10.0) -> None:
        """Refuse new calls; return when none has come for a while."""
        self.closing = True
        end = time.monotonic() + most_seconds
        while time.monotonic() < end and (
            self.running or time.monotonic() < self.last + quiet_seconds
        ):
            time.sleep(0.01)


python_calls = _PythonCalls()
atexit.register(python_calls.close)
