"""Batches of a domain: anything that Keras iterates over, read repeatedly, from any position."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from keras_transfer.errors import InputError

MOST_BATCHES = 1000  # read from a stream of unknown length for one pass


class Stream:
    """The batches of one domain.

    Args:
        batches: a `tf.data.Dataset`, a `keras.utils.PyDataset`, a data loader or a list of batches;
            or a function of a number n ≥ 0 that returns the endless batches from the n-th on.
        domain: `"source"` or `"target"`, for messages.
        length: number of batches per pass, if `batches` does not know it.
    """

    def __init__(
        self, batches: Iterable | Callable[[int], Iterable], domain: str, length: int | None = None
    ):
        if isinstance(batches, Stream):
            batches, length = batches.batches, length or batches.length
        iterable = hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")
        if isinstance(batches, np.ndarray):
            raise InputError(
                f"The {domain} is an array: give batches, e.g. "
                f"tf.data.Dataset.from_tensor_slices({domain}).batch(32)."
            )
        if not iterable and not callable(batches):
            raise InputError(
                f"The {domain} must be batches (a tf.data.Dataset, a PyDataset, …), not "
                f"{type(batches).__name__}."
            )
        self.batches: Any = batches
        self.domain = domain
        self.start_at = batches if callable(batches) and not iterable else None
        self.length = length or _length(batches)

    def first(self):
        """Return the first batch.

        Raises:
            InputError: the stream is empty.
        """
        batches = self.start_at(0) if self.start_at else self.batches
        iterator = iter(_pass(batches))
        first = next(iterator, None)
        if first is None:
            raise InputError(f"The {self.domain} contains no images: its stream is empty.")
        if batches is iterator:  # puts the batch back
            self.batches = itertools.chain([first], batches)
        return first

    def one_pass(self, most: int = MOST_BATCHES):
        """Return the batches of one pass in order, or the first `most` if the length is unknown."""
        batches = self.start_at(0) if self.start_at else _pass(self.batches)
        return itertools.islice(batches, self.length or most)

    def endless(self, start: int):
        """Return the batches from the `start`-th on, pass after pass; tf.data for tf.data."""
        if self.start_at:
            return self.start_at(start)
        if is_tf_data(self.batches):
            return self.batches.repeat().skip(start)
        return itertools.islice(self._repeat(), start, None)

    def _repeat(self):
        for number in itertools.count(1):
            empty = True
            for batch in _pass(self.batches):
                empty = False
                yield batch
            if empty:
                raise InputError(
                    f"The stream of the {self.domain} ended after {number - 1} passes and cannot be "
                    "read again: give a dataset rather than an iterator."
                )


def together(streams: dict[str, Stream], start: int, join: Callable):
    """Return endless `join(batch of each stream)`, from the `start`-th step on.

    The result is a `tf.data.Dataset` if all streams are, so that TensorFlow joins the batches;
    otherwise a generator of NumPy arrays.
    """
    parts = [stream.endless(start) for stream in streams.values()]
    if all(is_tf_data(part) for part in parts):
        joined = type(parts[0]).zip(tuple(parts)).map(lambda *batches: join(*batches))
        return joined.prefetch(2)
    return (join(*(_arrays(batch) for batch in batches)) for batches in zip(*parts))


def two_views(images: Stream, views: Stream) -> Stream:
    """Return batches of (images, other views of them), from two tf.data streams in the same order."""

    def start_at(number):
        batches = images.endless(number)
        return type(batches).zip((batches, views.endless(number)))

    return Stream(start_at, images.domain, images.length)


def is_tf_data(batches) -> bool:
    """Return True for a `tf.data.Dataset`, without importing TensorFlow."""
    return hasattr(batches, "element_spec") and hasattr(batches, "repeat")


def _length(batches):
    """Return the number of batches per pass, or None if it is infinite or unknown."""
    if is_tf_data(batches):
        count = int(batches.cardinality())
        return count if count >= 0 else None
    try:
        return len(batches)
    except (TypeError, NotImplementedError):
        return None


def _pass(batches):
    return _ended_pass(batches) if hasattr(batches, "on_epoch_end") else iter(batches)


def _ended_pass(dataset):
    """Iterate over a PyDataset and tell it afterwards, because it may shuffle itself."""
    yield from dataset
    dataset.on_epoch_end()


def _arrays(batch):
    if isinstance(batch, (tuple, list)):
        return tuple(_arrays(part) for part in batch)
    return np.asarray(batch)


# -- validation of batches ------------------------------------------------------------------------


def images_of(batch):
    """Return the images of a target batch: the batch itself, or its first part."""
    return batch[0] if isinstance(batch, (tuple, list)) else batch


def check_target(batch, shape: tuple, views: bool = False) -> None:
    """Raise InputError unless a target batch contains only images of a shape [H, W, 3].

    Args:
        batch: the first batch.
        shape: that the model takes.
        views: the batch must contain the images and another view of each.
    """
    parts = batch if isinstance(batch, (tuple, list)) else (batch,)
    if isinstance(batch, dict) or (len(parts) != 1 and not views):
        raise InputError(
            "The target must contain images only: remove its labels (with tf.data: "
            "target.map(lambda images, labels: images)), so that nothing can depend on them."
        )
    if views and len(parts) != 2:
        raise InputError(
            "FixMatch needs another view of each target image: give (images, strongly augmented "
            "images), with tf.data: target.map(lambda images: (images, augment(images)))."
        )
    for part in parts:
        _check_images(part, "target", shape)


def check_source(batch, shape: tuple, classes: int) -> None:
    """Raise InputError unless a source batch contains images of a shape [H, W, 3] and labels."""
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        raise InputError("The source must give (images, labels) or (images, labels, weights).")
    _check_images(batch[0], "source", shape)
    labels = np.asarray(batch[1])
    if labels.shape == (*labels.shape[:1], classes) and labels.dtype.kind == "f":
        return  # soft labels, e.g. of mixed images
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"The source labels must be integers [N], not {labels.dtype} {list(labels.shape)}."
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise InputError(
            f"The source labels range from {labels.min()} to {labels.max()}, but the model has "
            f"{classes} classes: 0 to {classes - 1}."
        )


def _check_images(images, domain, shape):
    found = tuple(getattr(images, "shape", ()))
    if len(found) == 1:
        raise InputError(
            f"The {domain} gives labels in place of images: its batches have shape [N], not "
            "[N, H, W, 3]."
        )
    if len(found) != 4:
        raise InputError(
            f"The {domain} must give batches of images [N, H, W, 3], not {list(found)}."
        )
    if found[1:] != shape:
        raise InputError(
            f"The {domain} images are {_size(found[1:])}, but the model takes {_size(shape)}: "
            "resize them, or build the model for that image size."
        )


def _size(shape):
    return "×".join(map(str, shape))
