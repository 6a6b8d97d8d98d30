"""Readers that decode examples, and threads that read files.

A reader gives an example by its position. It has `modality`, `names` (list[str]), `read(i, use)` (the
result of `use`, a function of what `Modality.open` returns; a ValueError names an example that cannot be
read), `decoded(i)` (whole; an image is uint8 [H, W, 3]), `media(i)` (what a page can play), `digests` (16
bytes each, of the content), `alike` (the same for near-duplicates), `take(indices)` and a length.
"""

import hashlib
import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.modalities import Modality, modality_of_files
from keras_transfer.modalities.image.formats import read_header
from keras_transfer.modalities.reading import digest
from keras_transfer.utils.console import progress_bar

_AHEAD = 256  # items that threads take in advance


class Encoded:
    """Base of readers whose examples are the bytes of files; `contents` returns them."""

    names: list[str]
    modality: Modality

    def __len__(self) -> int:
        return len(self.names)

    def contents(self, index: int) -> bytes:
        """Return the encoded bytes; an OSError or a ValueError says why they cannot be read."""
        raise NotImplementedError

    def read(self, index: int, use: Callable):
        """Return `use(example)` of an opened example; a ValueError names one that cannot be decoded."""
        return self._read(index, lambda i: use(self.modality.open(self.contents(i))))

    def decoded(self, index: int):
        """Return the whole example; a ValueError names one that cannot be decoded."""
        return self.read(index, self.modality.whole)

    def media(self, index: int) -> tuple[str, bytes] | None:
        """Return (MIME type, bytes) of what a page can play, or None."""
        return self._read(index, lambda i: self.modality.media(self.contents(i)))

    def shorter_side(self, index: int) -> int:
        """Return the image's shorter side in pixels, from its header."""
        return self._read(index, lambda i: min(read_header(io.BytesIO(self.contents(i))).size))

    def _read(self, index, read: Callable):
        try:
            return read(index)
        except OSError as error:
            raise InputError(
                f"{self.names[index]} can no longer be read: {error.strerror or error}. Restore it, then continue."
            ) from error
        except InputError:
            raise
        except ValueError as error:
            raise ValueError(f"{self.names[index]}: {error}") from error

    @cached_property
    def digests(self) -> list[bytes]:
        """A digest of each image's content."""
        return [digest(self.contents(i)) for i in range(len(self))]

    @cached_property
    def alike(self) -> list[bytes]:
        """A digest of each example that it shares with its duplicates and near-duplicates."""
        if self.modality.alike is None:
            return self.digests
        return [self.modality.alike(self.contents(i)) for i in range(len(self))]


class Files(Encoded):
    """Files on disk.

    Args:
        names: their paths.
        modality: of the examples; by default, their extensions tell.
        known: their digests, uint8 [N, 16], and the stamps they belong to, int64 [N, 4] (see
            `file_stamp`), so that only files that have changed are read for their digest.
    """

    def __init__(
        self,
        names: Sequence[str],
        known: tuple[np.ndarray, np.ndarray] | None = None,
        modality: Modality | None = None,
    ):
        self.names = list(names)
        self.modality = modality or modality_of_files(self.names)
        self._known = known

    def contents(self, index: int) -> bytes:
        return Path(self.names[index]).read_bytes()

    def shorter_side(self, index: int) -> int:
        return self._read(index, self._header_side)

    def _header_side(self, index):
        with Path(self.names[index]).open("rb") as file:
            return min(read_header(file).size)  # the pixels are not read

    @cached_property
    def digests(self) -> list[bytes]:
        if self._known is None:
            return digest_files(self.names)
        digests, stamps = self._known
        now = np.array([file_stamp(name) for name in self.names], np.int64).reshape(-1, 4)
        current = [row.tobytes() for row in digests]
        changed = np.flatnonzero((now != stamps).any(axis=1))
        for i, new in zip(changed, digest_files([self.names[i] for i in changed])):
            current[i] = new
        return current

    def take(self, indices) -> "Files":
        """Return the images at `indices`, in that order."""
        known = self._known and tuple(column[indices] for column in self._known)
        return Files([self.names[i] for i in indices], known, self.modality)


class _Concatenated:
    """Several readers as one."""

    def __init__(self, readers, rows: np.ndarray):
        self.readers, self.rows = readers, rows  # int64 [N, 2]: number of the reader, position
        self.names = [readers[r].names[i] for r, i in rows]
        self.modality = readers[0].modality

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int, use: Callable):
        reader, row = self.rows[index]
        return self.readers[reader].read(row, use)

    def decoded(self, index: int):
        return self.read(index, self.modality.whole)

    def contents(self, index: int) -> bytes:
        reader, row = self.rows[index]
        return encoded_bytes(self.readers[reader], row)

    def media(self, index: int):
        reader, row = self.rows[index]
        return self.readers[reader].media(row)

    def shorter_side(self, index: int) -> int:
        reader, row = self.rows[index]
        return self.readers[reader].shorter_side(row)

    @cached_property
    def digests(self) -> list[bytes]:
        return [self.readers[r].digests[i] for r, i in self.rows]

    @cached_property
    def alike(self) -> list[bytes]:
        return [self.readers[r].alike[i] for r, i in self.rows]

    def take(self, indices):
        rows = self.rows[indices]
        used = np.unique(rows[:, 0])
        if len(used) == 1:
            return self.readers[used[0]].take(rows[:, 1])
        return _Concatenated(self.readers, rows)


def concatenated(readers: Sequence):
    """Return a reader of the examples of several readers, one after the other."""
    if len(readers) == 1:
        return readers[0]
    rows = [(r, i) for r, reader in enumerate(readers) for i in range(len(reader))]
    return _Concatenated(readers, np.array(rows, np.int64).reshape(-1, 2))


def as_reader(images):
    """Return `Files` for a list of paths; anything else is a reader already."""
    if isinstance(images, (list, tuple)) and all(isinstance(p, (str, os.PathLike)) for p in images):
        return Files([str(p) for p in images])
    return images


def encoded_bytes(images, index: int) -> bytes:
    """Return an example as the bytes of a file, such as a PNG for an array."""
    if isinstance(images, (Encoded, _Concatenated)):
        return images.contents(index)
    return images.modality.encode(images.decoded(index))


# -- reading in threads ---------------------------------------------------------------------------


def digest_files(paths: list[str], *, progress: bool = True) -> list[bytes]:
    """Return a 16-byte digest (BLAKE2b) of each file's whole content, in order.

    Raises:
        InputError: if a file can no longer be read.
    """
    return each(_digest, paths, "reading files", progress)


def file_stamp(path: str) -> tuple[int, int, int, int]:
    """Return size, modification and change time in ns, and inode; zeros if there is no file.

    A file that was changed or replaced has another stamp.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - faster, for a million files
    except OSError:
        return 0, 0, 0, 0
    inode = status.st_ino & (1 << 63) - 1  # SQLite's and NumPy's integers are signed
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, inode


def each(function, items, title, progress):
    """Return the results of `function` in order; run it in threads with a bar on stderr."""
    results = in_threads(function, items)
    return list(progress_bar(results, title, total=len(items), unit="files", visible=progress))


def in_threads(function: Callable, items: Iterable) -> Iterator:
    """Yield the results of `function` in order; a few hundred items are taken in advance."""
    pool = ThreadPoolExecutor(os.cpu_count())
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # in case of an interruption


def _digest(path):
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError as error:
        raise InputError(f"{path} can no longer be read: {error.strerror}.") from None
