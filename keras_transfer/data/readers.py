"""Where images lie: each place gives an image's pixels by its position.

A place has `names` (list[str]), `pixels(i)` (uint8 [H, W, 3]; ValueError naming it where it cannot be
read), `digests` (16 bytes each, of the content), `take(indices)` and `len`. TensorFlow is imported when
the first image is decoded.
"""

import io
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from keras_transfer.data.files import digest_files, each, stamp_of
from keras_transfer.modalities.image.check import digest, examine


class Encoded:
    """Images as the bytes of image files; `contents` says where those come from."""

    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def contents(self, index: int) -> bytes:
        """The encoded bytes.

        Raises:
            OSError: they cannot be read.
            ValueError: they are damaged.
        """
        raise NotImplementedError

    def pixels(self, index: int) -> np.ndarray:
        """The image, uint8 [H, W, 3].

        Raises:
            ValueError: it cannot be read or decoded; the message names it.
        """
        from keras_transfer.modalities.image.decode import decode

        try:
            return decode(self.contents(index))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ValueError(f"{self.names[index]}: {reason}") from error

    @cached_property
    def digests(self) -> list[bytes]:
        """A digest of each image's content."""
        return [digest(self.contents(i)) for i in range(len(self))]


class Files(Encoded):
    """Image files on disk.

    Args:
        names: their paths.
        known: their digests, uint8 [N, 16], and the stamps of the files they are of, int64 [N, 4]
            (`files.stamp_of`), so that only a file that has changed is read for its digest.
    """

    def __init__(self, names: Sequence[str], known: tuple[np.ndarray, np.ndarray] | None = None):
        self.names = list(names)
        self._known = known

    def contents(self, index: int) -> bytes:
        return Path(self.names[index]).read_bytes()

    @cached_property
    def digests(self) -> list[bytes]:
        if self._known is None:
            return digest_files(self.names)
        digests, stamps = self._known
        now = np.array([stamp_of(name) for name in self.names], np.int64).reshape(-1, 4)
        found = [row.tobytes() for row in digests]
        changed = np.flatnonzero((now != stamps).any(axis=1))
        for i, read in zip(changed, digest_files([self.names[i] for i in changed])):
            found[i] = read
        return found

    def take(self, indices) -> "Files":
        """The images at `indices`, in that order."""
        known = self._known and tuple(column[indices] for column in self._known)
        return Files([self.names[i] for i in indices], known)


class Contents(Encoded):
    """Encoded images in memory.

    Args:
        encoded: the bytes of each image's file.
        names: for messages and predictions; by default `image 0` and so on.
    """

    def __init__(self, encoded: Sequence[bytes], names: Sequence[str] | None = None):
        self.encoded = list(encoded)
        self.names = _numbered(len(self.encoded)) if names is None else list(names)

    def contents(self, index: int) -> bytes:
        return self.encoded[index]

    def take(self, indices) -> "Contents":
        return Contents([self.encoded[i] for i in indices], [self.names[i] for i in indices])


class Arrays:
    """Decoded images in memory.

    Args:
        arrays: uint8 [N, H, W, 3], or a sequence of uint8 [H, W, 3] of their own sizes.
        names: for messages and predictions; by default `image 0` and so on.
    """

    def __init__(self, arrays: Sequence[np.ndarray], names: Sequence[str] | None = None):
        self.arrays = arrays
        self.names = _numbered(len(arrays)) if names is None else list(names)

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, index: int) -> np.ndarray:
        return self.arrays[index]

    @cached_property
    def digests(self) -> list[bytes]:
        return [digest(repr(a.shape).encode(), np.ascontiguousarray(a).data) for a in self.arrays]

    def take(self, indices) -> "Arrays":
        return Arrays([self.arrays[i] for i in indices], [self.names[i] for i in indices])


def find_faults(images, *, progress: bool = True) -> list[str | None]:
    """Why each image cannot be used, in plain words; None where it can. For places in memory or
    in shards; files are checked by `index.check_images`."""

    def fault(index):
        if isinstance(images, Arrays):
            return _array_fault(images.arrays[index])
        try:
            return examine(images.contents(index)).fault
        except (OSError, ValueError) as error:
            return str(error)

    return each(fault, range(len(images)), "checking images", progress)


def encoded_bytes(images, index: int) -> bytes:
    """An image as the bytes of a file; one that is an array as PNG."""
    if isinstance(images, Encoded):
        return images.contents(index)
    buffer = io.BytesIO()
    Image.fromarray(images.pixels(index)).save(buffer, "PNG")
    return buffer.getvalue()


def _array_fault(array):
    if getattr(array, "dtype", None) != np.uint8:
        return f"not uint8 but {getattr(array, 'dtype', type(array).__name__)}"
    if array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        return f"not of shape [height, width, 3] but {list(array.shape)}"
    return None


class _Joined:
    """Several places as one."""

    def __init__(self, places, rows: np.ndarray):
        self.places, self.rows = places, rows  # int64 [N, 2]: which place, which image there
        self.names = [places[p].names[i] for p, i in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def pixels(self, index: int) -> np.ndarray:
        place, row = self.rows[index]
        return self.places[place].pixels(row)

    @cached_property
    def digests(self) -> list[bytes]:
        return [self.places[p].digests[i] for p, i in self.rows]

    def take(self, indices):
        rows = self.rows[indices]
        used = np.unique(rows[:, 0])
        if len(used) == 1:
            return self.places[used[0]].take(rows[:, 1])
        return _Joined(self.places, rows)


def joined(places: Sequence):
    """The images of several places, one after the other."""
    if len(places) == 1:
        return places[0]
    rows = [(p, i) for p, place in enumerate(places) for i in range(len(place))]
    return _Joined(places, np.array(rows, np.int64).reshape(-1, 2))


def as_images(images):
    """Paths as `Files`; anything else as it is."""
    if isinstance(images, (list, tuple)) and all(isinstance(p, (str, os.PathLike)) for p in images):
        return Files([str(p) for p in images])
    return images


def _numbered(count):
    return [f"image {i}" for i in range(count)]
