"""What is known of image files, each decoded once and remembered for the next time (no TensorFlow).

The index is an SQLite file in the user's cache folder. It is nothing but a memory: where it is
damaged it is made anew, where it cannot be written the files are examined again.
"""

import hashlib
import os
import sqlite3
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from keras_transfer.data.files import Skipped, in_threads, stamp_of
from keras_transfer.data.readers import Files
from keras_transfer.modalities.image.check import Facts, examine_file
from keras_transfer.utils.console import progress_bar, say
from keras_transfer.utils.files import cache_folder

RULES = 1  # of examining: raise it when `examine` finds something else in the same file
_FILE = "images-1.sqlite"  # another number where the columns change
_LOOKED_UP = 4096  # files in one query
_WRITTEN = 1000  # in one transaction
_KEPT_DAYS = 365
_COLUMNS = (
    "size, mtime_ns, ctime_ns, inode, rules, "
    "width, height, mode, format, orientation, digest, fault"
)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Checked:
    """What was found in some files, in columns.

    Attributes:
        names: their paths, N of them.
        width, height: int32 [N], as stored, before the orientation is applied.
        mode, format: bytes [N], Pillow's names.
        orientation: uint8 [N], EXIF's 1–8.
        digests: uint8 [N, 16], BLAKE2b of the whole file; zeros where it was not read.
        stamps: int64 [N, 4], of the files when they were examined, see `files.stamp_of`.
        faults: position → why the file cannot be used.
    """

    def __init__(self, names: Sequence[str]):
        count = len(names)
        self.names = names
        self.width, self.height = np.zeros((2, count), np.int32)
        self.mode, self.format = np.zeros((2, count), "S8")
        self.orientation = np.ones(count, np.uint8)
        self.digests = np.zeros((count, 16), np.uint8)
        self.stamps = np.zeros((count, 4), np.int64)
        self.faults: dict[int, str] = {}

    def set(self, at: int, stamp: tuple[int, int, int, int], facts: Facts) -> None:
        self.stamps[at] = stamp
        self.width[at], self.height[at] = facts.width, facts.height
        self.mode[at], self.format[at] = facts.mode, facts.format
        self.orientation[at] = facts.orientation
        if facts.digest:
            self.digests[at] = np.frombuffer(facts.digest, np.uint8)
        if facts.fault is not None:
            self.faults[at] = facts.fault

    def usable(self, rows: Iterable[int] | None = None) -> np.ndarray:
        """Those of `rows` (by default of all) that have no fault."""
        rows = range(len(self.names)) if rows is None else rows
        return np.array([row for row in rows if row not in self.faults], np.int64)

    def files(self, rows: np.ndarray) -> Files:
        """The files at `rows` as a place of images, with their digests."""
        known = self.digests[rows], self.stamps[rows]
        return Files([self.names[row] for row in rows], known)

    @property
    def skipped(self) -> list[Skipped]:
        """The files that cannot be used, in order."""
        return [Skipped(self.names[row], self.faults[row]) for row in sorted(self.faults)]


def check_images(paths: Sequence[str], *, progress: bool = True) -> tuple[Files, list[Skipped]]:
    """Find out which files can be decoded in full: (those, the others with the reason), in order.

    See `check_files`.
    """
    checked = check_files(paths, progress=progress)
    return checked.files(checked.usable()), checked.skipped


def check_files(paths: Sequence[str], *, progress: bool = True) -> Checked:
    """Read and decode every file that is new or changed, in threads; know the others.

    A file is known where path, size, times of change and inode are those it had. A file that was
    changed in the very moment it was examined is examined again the next time.

    Args:
        paths: files, whether images or not.
        progress: show a bar on stderr, in a terminal or a notebook.
    """
    checked = Checked(paths)
    seen = progress_bar(label="checking images", total=len(paths), unit="files", visible=progress)
    # Warnings are silenced here, not in the threads: the filters belong to the process.
    with seen, warnings.catch_warnings(), _Index(cache_folder() / _FILE) as index:
        warnings.simplefilter("ignore")
        for row, key, stamp, settled, facts in in_threads(_examine, _unknown(checked, index, seen)):
            checked.set(row, stamp, facts)
            if settled:
                index.keep(key, stamp, facts)
            seen.update()
    return checked


def _unknown(checked, index, bar) -> Iterator[tuple]:
    """(row, path, key) of each file that the index does not know; of the others it sets the facts."""
    for start in range(0, len(checked.names), _LOOKED_UP):
        paths = checked.names[start : start + _LOOKED_UP]
        keys = [_key(path) for path in paths]
        known = index.find(keys)
        for row, (path, key) in enumerate(zip(paths, keys), start):
            stamp, facts = known.get(key, (None, None))
            if facts is not None and stamp == stamp_of(path):
                checked.set(row, stamp, facts)
                bar.update()
            else:
                yield row, path, key


def _examine(unknown):
    """(row, key, stamp, whether the facts will be true for as long as the stamp is, facts)."""
    row, path, key = unknown
    stamp, now = stamp_of(path), time.time_ns()
    facts = examine_file(path)
    _, mtime, ctime, _ = stamp
    # Within one tick of the file system's clock another change has the same time.
    coarse = mtime % 1_000_000_000 == ctime % 1_000_000_000 == 0
    old = now - ctime > (2_000_000_000 if coarse else 100_000_000)
    return row, key, stamp, bool(facts.digest) and old and stamp_of(path) == stamp, facts


def _key(path) -> int:
    name = os.fsencode(os.path.abspath(path))  # noqa: PTH100 - a million times
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)


def _rules() -> str:
    return f"{RULES}, Pillow {PIL.__version__}, {Image.MAX_IMAGE_PIXELS} pixels"


class _Index:
    """The SQLite file. No error of it reaches the caller: what cannot be found is not known."""

    def __init__(self, file: Path):
        self.file = file
        self._rules = _rules()
        self._new: list = []
        self._connection = None
        self._try(self._open)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._try(self._write)
        if self._connection:
            self._connection.close()

    def find(self, keys: Sequence[int]) -> dict[int, tuple[tuple, Facts]]:
        """Key → (stamp, facts) of the files that were examined by today's rules."""
        found = {}
        for key, checksum, *values in self._try(self._read, keys) or ():
            if values[4] == self._rules and checksum == _checksum(key, values):
                found[key] = tuple(values[:4]), Facts(*values[5:])
        return found

    def keep(self, key: int, stamp: tuple, facts: Facts) -> None:
        values = [*stamp, self._rules, *facts]
        self._new.append((key, _checksum(key, values), int(time.time() // 86400), *values))
        if len(self._new) >= _WRITTEN:
            self._try(self._write)

    def _open(self):
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # Another process that writes is waited for.
        self._connection = sqlite3.connect(self.file, timeout=30)
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS images (key INTEGER PRIMARY KEY, checksum, day, "
            f"{_COLUMNS})"
        )

    def _read(self, keys):
        wanted = ",".join(map(str, keys))
        return self._connection.execute(
            f"SELECT key, checksum, {_COLUMNS} FROM images WHERE key IN ({wanted})"
        ).fetchall()

    def _write(self):
        new, self._new = self._new, []
        if not new:
            return
        with self._connection as connection:
            marks = ",".join("?" * len(new[0]))
            connection.executemany(f"INSERT OR REPLACE INTO images VALUES ({marks})", new)
            connection.execute("DELETE FROM images WHERE day < ?", (new[0][2] - _KEPT_DAYS,))

    def _try(self, action, *arguments):
        """What `action` gives; None where the file is of no use."""
        if self._connection is None and action != self._open:
            return None
        try:
            return action(*arguments)
        except (sqlite3.Error, OSError) as error:
            damaged = getattr(error, "sqlite_errorcode", None) in _DAMAGED
            if self._connection:
                self._connection.close()
            self._connection = None
            if damaged and _remove(self.file):
                say(f"index: {self.file} was damaged ({error}) and is made anew")
                return self._try(self._open)
            say(f"index: images are not remembered, {self.file} cannot be used ({error})")


def _remove(file) -> bool:
    try:
        file.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _checksum(key, values):
    return zlib.crc32(repr((key, values)).encode())
