"""Where pictures lie: each place gives a picture's pixels by its position (no TensorFlow until then)."""

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from keras_transfer.data.files import digest_files


class Files:
    """Picture files on disk.

    Args:
        names: their paths.
    """

    def __init__(self, names: Sequence[str]):
        self.names = list(names)

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, index: int) -> np.ndarray:
        """The picture, uint8 [H, W, 3].

        Raises:
            ValueError: it cannot be read or decoded; the message names it.
        """
        from keras_transfer.data.decode import decode

        name = self.names[index]
        try:
            return decode(Path(name).read_bytes())
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ValueError(f"{name}: {reason}") from error

    @cached_property
    def digests(self) -> list[bytes]:
        """A digest of each picture's content."""
        return digest_files(self.names)

    def take(self, indices) -> "Files":
        """The pictures at `indices`, in that order."""
        return Files([self.names[i] for i in indices])


class Arrays:
    """Decoded pictures in memory.

    Args:
        arrays: uint8 [N, H, W, 3], or a sequence of uint8 [H, W, 3] of their own sizes.
        names: for messages and predictions; by default `picture 0` and so on.
    """

    def __init__(self, arrays: Sequence[np.ndarray], names: Sequence[str] | None = None):
        self.arrays = arrays
        self.names = [f"picture {i}" for i in range(len(arrays))] if names is None else list(names)

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, index: int) -> np.ndarray:
        return self.arrays[index]

    @cached_property
    def digests(self) -> list[bytes]:
        return [_digest(array) for array in self.arrays]

    def take(self, indices) -> "Arrays":
        return Arrays([self.arrays[i] for i in indices], [self.names[i] for i in indices])


def _digest(array):
    digest = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


Pictures = Files | Arrays


def as_pictures(pictures) -> Pictures:
    """Paths as `Files`; anything else as it is."""
    if isinstance(pictures, (list, tuple)) and all(
        isinstance(p, (str, os.PathLike)) for p in pictures
    ):
        return Files([str(p) for p in pictures])
    return pictures
