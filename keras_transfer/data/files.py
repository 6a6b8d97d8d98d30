"""Check files of examples, with an index of those that were checked before.

The index is an SQLite file in the user's cache folder and nothing but a cache: if it is damaged, it is
created again; if it cannot be written, the files are examined again next time.
"""

import hashlib
import os
import sqlite3
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from keras_transfer.data.flaws import report_flaws
from keras_transfer.data.readers import Files, encoded_bytes, file_stamp, in_threads
from keras_transfer.modalities import Modality, modality_of_files
from keras_transfer.modalities.reading import digest, examine_file
from keras_transfer.utils.console import progress_bar, say
from keras_transfer.utils.files import cache_folder

# File names by which a source is recognized.
TABLES = (".csv", ".tsv", ".parquet")
SCHEMA = "schema.json"  # in a folder of TFRecord shards

_INDEX = "{}-4.sqlite"  # increase the number when the columns change
_QUERY_SIZE = 4096  # files in one query
_TRANSACTION_SIZE = 1000  # files in one transaction
_MAX_AGE = 365  # days
_STAMP = ("size", "mtime_ns", "ctime_ns", "inode", "rules")
_TEXT = "S16"  # of facts, such as the name of a format
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


# -- checking -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Skipped:
    """A file that is left out, and the reason in plain words."""

    path: str
    reason: str


class Checked:
    """Facts about checked files, in columns.

    Attributes:
        names: their N paths.
        modality: of the examples.
        columns: name of a fact of the modality → its values [N]: int32, or bytes for text.
        digests: uint8 [N, 16], BLAKE2b of the whole file; zeros if it was not read.
        stamps: int64 [N, 4], see `file_stamp`, at the time of the check.
        faults: position → why the file cannot be used.
        flaws: position → why the model sees (almost) nothing in a usable file.
    """

    def __init__(self, names: Sequence[str], modality: Modality):
        count = len(names)
        self.names, self.modality = names, modality
        defaults = modality.facts()._asdict()
        self.columns = {
            name: np.full(count, value, _TEXT if isinstance(value, str) else np.int32)
            for name, value in defaults.items()
            if isinstance(value, (int, str))
        }
        self.digests = np.zeros((count, 16), np.uint8)
        self.stamps = np.zeros((count, 4), np.int64)
        self.faults: dict[int, str] = {}
        self.flaws: dict[int, str] = {}

    def set(self, at: int, stamp: tuple[int, int, int, int], facts) -> None:
        self.stamps[at] = stamp
        for name, column in self.columns.items():
            column[at] = getattr(facts, name)
        if facts.digest:
            self.digests[at] = np.frombuffer(facts.digest, np.uint8)
        if facts.fault is not None:
            self.faults[at] = facts.fault
        elif facts.flaw is not None:
            self.flaws[at] = facts.flaw

    def usable(self, rows: Iterable[int] | None = None) -> np.ndarray:
        """Return those of `rows` (by default of all) that have no fault."""
        rows = range(len(self.names)) if rows is None else rows
        return np.array([row for row in rows if row not in self.faults], np.int64)

    def files(self, rows: np.ndarray) -> Files:
        """Return a reader of the files at `rows`, with their digests."""
        known = self.digests[rows], self.stamps[rows]
        return Files([self.names[row] for row in rows], known, self.modality)

    def misfits(self, framing) -> list[Skipped]:
        """Return the files that are not faulty, but that a model with a framing cannot read."""
        found = self.modality.misfits(self.columns, framing).items()
        return [Skipped(self.names[row], why) for row, why in found if row not in self.faults]

    @property
    def skipped(self) -> list[Skipped]:
        """The files that cannot be used, in order."""
        return [Skipped(self.names[row], self.faults[row]) for row in sorted(self.faults)]


def check_examples(
    paths: Sequence[str], *, modality: Modality | None = None, framing=None, progress: bool = True
) -> tuple[Files, list[Skipped]]:
    """Return the files that can be decoded in full, and the others with the reason, in order.

    See `check_files`.

    Args:
        framing: of the model that has to read them; None for any.
    """
    checked = check_files(paths, modality=modality, progress=progress)
    if framing is not None and framing.modality == checked.modality.name:
        misfits = checked.modality.misfits(checked.columns, framing)
        checked.faults = misfits | checked.faults
    report_flaws(checked)
    return checked.files(checked.usable()), checked.skipped


def check_files(
    paths: Sequence[str], *, modality: Modality | None = None, progress: bool = True
) -> Checked:
    """Read and decode every new or changed file, in threads; look up the others in the index.

    A file is known if its path, size, times and inode are unchanged. A file that changed at the
    moment it was examined is examined again next time.

    Args:
        paths: files of any kind.
        modality: that they should have; by default, most of their extensions tell.
        progress: show a bar on stderr, in a terminal or a notebook.
    """
    modality = modality or modality_of_files(paths)
    checked = Checked(paths, modality)
    bar = progress_bar(
        label=f"checking {modality.many}", total=len(paths), unit="files", visible=progress
    )
    # Warnings are silenced here and not in the threads, because filters belong to the process.
    with bar, warnings.catch_warnings(), _Index(modality) as index:
        warnings.simplefilter("ignore")
        for row, key, stamp, settled, facts in in_threads(
            partial(_examine, modality), _unknown(checked, index, bar)
        ):
            checked.set(row, stamp, facts)
            if settled:
                index.add(key, stamp, facts)
            bar.update()
    return checked


def check_contents(encoded: Sequence[bytes], names: Sequence[str], modality: Modality) -> Checked:
    """Examine the bytes of examples in memory."""
    checked = Checked(names, modality)
    for row, contents in enumerate(encoded):
        facts = modality.examine(contents)._replace(digest=digest(contents))
        checked.set(row, (0, 0, 0, 0), facts)
    return checked


def check_readers(readers: Sequence, modality: Modality) -> Checked:
    """Return the facts about the examples of some readers, see `data.readers`, one after the other."""
    names = [name for reader in readers for name in reader.names]
    if all(isinstance(reader, Files) for reader in readers):
        return check_files(names, modality=modality, progress=False)
    encoded = [encoded_bytes(reader, row) for reader in readers for row in range(len(reader))]
    return check_contents(encoded, names, modality)


def _unknown(checked, index, bar) -> Iterator[tuple]:
    """Yield (row, path, key) of files that are not in the index; set the facts of the others."""
    for start in range(0, len(checked.names), _QUERY_SIZE):
        paths = checked.names[start : start + _QUERY_SIZE]
        keys = [_key(path) for path in paths]
        known = index.find(keys)
        for row, (path, key) in enumerate(zip(paths, keys), start):
            stamp, facts = known.get(key, (None, None))
            if facts is not None and stamp == file_stamp(path):
                checked.set(row, stamp, facts)
                bar.update()
            else:
                yield row, path, key


def _examine(modality, unknown):
    """Return (row, key, stamp, whether the facts hold as long as the stamp does, facts)."""
    row, path, key = unknown
    stamp, now = file_stamp(path), time.time_ns()
    facts = examine_file(path, modality)
    _, mtime, ctime, _ = stamp
    # Two changes within one tick of the file system's clock have the same time.
    coarse = mtime % 1_000_000_000 == ctime % 1_000_000_000 == 0
    old = now - ctime > (2_000_000_000 if coarse else 100_000_000)
    return row, key, stamp, bool(facts.digest) and old and file_stamp(path) == stamp, facts


def _key(path) -> int:
    name = os.fsencode(os.path.abspath(path))  # noqa: PTH100 - faster, for a million files
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)


class _Index:
    """The SQLite file. It raises no errors: a file that cannot be looked up counts as unknown."""

    def __init__(self, modality: Modality):
        self.file = cache_folder() / _INDEX.format(modality.many)
        self._facts, self._rules = modality.facts, modality.rules
        self._columns = ", ".join([*_STAMP, *modality.facts._fields])
        self._new: list = []
        self._connection = None
        self._try(self._open)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._try(self._write)
        if self._connection:
            self._connection.close()

    def find(self, keys: Sequence[int]) -> dict[int, tuple[tuple, Any]]:
        """Return key → (stamp, facts) of the files that were examined by the current rules."""
        known = {}
        for key, checksum, *values in self._try(self._read, keys) or ():
            if values[4] == self._rules and checksum == _checksum(key, values):
                known[key] = tuple(values[:4]), self._facts(*values[5:])
        return known

    def add(self, key: int, stamp: tuple, facts) -> None:
        values = [*stamp, self._rules, *facts]
        self._new.append((key, _checksum(key, values), int(time.time() // 86400), *values))
        if len(self._new) >= _TRANSACTION_SIZE:
            self._try(self._write)

    def _open(self):
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # The timeout lets another process finish writing.
        self._connection = sqlite3.connect(self.file, timeout=30)
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS images (key INTEGER PRIMARY KEY, checksum, day, "
            f"{self._columns})"
        )

    def _read(self, keys):
        wanted = ",".join(map(str, keys))
        return self._connection.execute(
            f"SELECT key, checksum, {self._columns} FROM images WHERE key IN ({wanted})"
        ).fetchall()

    def _write(self):
        new, self._new = self._new, []
        if not new:
            return
        with self._connection as connection:
            marks = ",".join("?" * len(new[0]))
            connection.executemany(f"INSERT OR REPLACE INTO images VALUES ({marks})", new)
            connection.execute("DELETE FROM images WHERE day < ?", (new[0][2] - _MAX_AGE,))

    def _try(self, action, *arguments):
        """Return the result of `action`; None if the file cannot be used."""
        if self._connection is None and action != self._open:
            return None
        try:
            return action(*arguments)
        except (sqlite3.Error, OSError) as error:
            damaged = getattr(error, "sqlite_errorcode", None) in _DAMAGED
            if self._connection:
                self._connection.close()
            self._connection = None
            if damaged:
                with suppress(OSError):
                    self.file.unlink(missing_ok=True)
                    say(f"index: {self.file} was damaged ({error}) and has been replaced")
                    return self._try(self._open)
            say(f"index: {self.file} cannot be used, so checked files are not cached ({error})")


def _checksum(key, values):
    return zlib.crc32(repr((key, values)).encode())
