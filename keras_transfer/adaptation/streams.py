"""Batches of a domain: whatever Keras iterates over, read again and again, from any position."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from keras_transfer.errors import InputError


class Stream:
    """One domain's batches.

    Args:
        given: a `tf.data.Dataset`, a `keras.utils.PyDataset`, a data loader, a list of batches; or
            a function of a number n ≥ 0 that gives the endless batches from the n-th on.
        domain: `"source"` or `"target"`, for messages.
        length: number of batches of a pass, where `given` cannot say it.
    """

    def __init__(
        self, given: Iterable | Callable[[int], Iterable], domain: str, length: int | None = None
    ):
        if isinstance(given, Stream):
            given, length = given.given, length or given.length
        iterable = hasattr(given, "__iter__") or hasattr(given, "__getitem__")
        if isinstance(given, np.ndarray):
            raise InputError(
                f"The {domain} is an array: give batches, e.g. "
                f"tf.data.Dataset.from_tensor_slices({domain}).batch(32)."
            )
        if not iterable and not callable(given):
            raise InputError(
                f"The {domain} must be batches (a tf.data.Dataset, a PyDataset, …), not "
                f"{type(given).__name__}."
            )
        self.given: Any = given
        self.domain = domain
        self.starts = given if callable(given) and not iterable else None
        self.length = length or _length(given)

    def first(self):
        """The first batch; InputError where there is none."""
        once = self.starts(0) if self.starts else self.given
        passed = iter(_pass(once))
        found = next(passed, None)
        if once is passed and found is not None:  # an iterator: nothing of it is lost
            self.given = itertools.chain([found], once)
        if found is None:
            raise InputError(f"There is no image in the {self.domain}: its stream has no batch.")
        return found

    def once(self, most: int):
        """The batches of one pass in order, or the first `most` where a pass does not end."""
        batches = self.starts(0) if self.starts else _pass(self.given)
        return itertools.islice(batches, self.length or most)

    def endless(self, start: int):
        """The batches from the `start`-th on, pass after pass: tf.data where it is of tf.data."""
        if self.starts:
            return self.starts(start)
        if is_tf_data(self.given):
            return self.given.repeat().skip(start)
        return itertools.islice(self._again(), start, None)

    def _again(self):
        for number in itertools.count(1):
            empty = True
            for batch in _pass(self.given):
                empty = False
                yield batch
            if empty:
                raise InputError(
                    f"The {self.domain}'s stream ended after {number - 1} passes and cannot be read "
                    "again: give a data set rather than an iterator."
                )


def together(streams: dict[str, Stream], start: int, join: Callable):
    """`join(batch of each stream)` from the `start`-th step on, without end.

    A `tf.data.Dataset` where all streams are of tf.data, so that it is TensorFlow that joins them;
    else a generator of NumPy arrays.
    """
    parts = [stream.endless(start) for stream in streams.values()]
    if all(is_tf_data(part) for part in parts):
        joined = type(parts[0]).zip(tuple(parts)).map(lambda *batches: join(*batches))
        return joined.prefetch(2)
    return (join(*(_arrays(batch) for batch in batches)) for batches in zip(*parts))


def two_views(images: Stream, others: Stream) -> Stream:
    """Batches of both, (images, other views of them); both streams are of tf.data, in one order."""

    def start(number):
        batches = images.endless(number)
        return type(batches).zip((batches, others.endless(number)))

    return Stream(start, images.domain, images.length)


def is_tf_data(given) -> bool:
    """True for a `tf.data.Dataset`, told without TensorFlow."""
    return hasattr(given, "element_spec") and hasattr(given, "repeat")


def _length(given):
    """Batches of a pass; None where it has no end or none is known."""
    if is_tf_data(given):
        count = int(given.cardinality())
        return count if count >= 0 else None
    try:
        return len(given)
    except (TypeError, NotImplementedError):
        return None


def _pass(given):
    return _with_its_end(given) if hasattr(given, "on_epoch_end") else iter(given)


def _with_its_end(given):
    """A pass of a PyDataset, which may shuffle itself after it."""
    yield from given
    given.on_epoch_end()


def _arrays(batch):
    if isinstance(batch, (tuple, list)):
        return tuple(_arrays(part) for part in batch)
    return np.asarray(batch)


# -- what a batch must be -------------------------------------------------------------------------


def images_of(batch):
    """The images of a target's batch: the batch itself, or the first part of it."""
    return batch[0] if isinstance(batch, (tuple, list)) else batch


def check_target(batch, shape: tuple, views: bool = False) -> None:
    """Raises InputError where a batch of the target is not images of that [H, W, 3] alone.

    Args:
        views: it must be images and another view of each.
    """
    parts = batch if isinstance(batch, (tuple, list)) else (batch,)
    if isinstance(batch, dict) or (len(parts) != 1 and not views):
        raise InputError(
            "The target gives more than images: leave its labels out (with tf.data: "
            "target.map(lambda images, labels: images)), so that they can reach nothing."
        )
    if views and len(parts) != 2:
        raise InputError(
            "FixMatch needs another view of each target image: give (images, strongly augmented "
            "images), with tf.data: target.map(lambda images: (images, augment(images)))."
        )
    for part in parts:
        _check_images(part, "target", shape)


def check_source(batch, shape: tuple, classes: int) -> None:
    """Raises InputError where a batch of the source is not images of that [H, W, 3] and labels."""
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        raise InputError(
            "The source must give (images, labels) or (images, labels, weights): labels are "
            "what the target learns from."
        )
    _check_images(batch[0], "source", shape)
    labels = np.asarray(batch[1])
    if labels.shape == (*labels.shape[:1], classes) and labels.dtype.kind == "f":
        return  # shares of the classes, as mixed images have them
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"The source's labels must be integers [N], not {labels.dtype} {list(labels.shape)}."
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise InputError(
            f"The source's labels reach from {labels.min()} to {labels.max()}, but the model has "
            f"{classes} classes: 0 to {classes - 1}."
        )


def _check_images(images, domain, shape):
    found = tuple(getattr(images, "shape", ()))
    if len(found) == 1:
        raise InputError(
            f"The {domain} gives labels in place of images: its batches are [N] rather than "
            "[N, H, W, 3]."
        )
    if len(found) != 4:
        raise InputError(
            f"The {domain} must give batches of images [N, H, W, 3], not {list(found)}."
        )
    if found[1:] != shape:
        raise InputError(
            f"The {domain}'s images are {_size(found[1:])}, the model takes {_size(shape)}: "
            "resize them, or build the model for that image size."
        )


def _size(shape):
    return "×".join(map(str, shape))
