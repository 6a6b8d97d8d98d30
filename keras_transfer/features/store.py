"""Arrays on disk, one row per example, addressed by content (without Keras and TensorFlow).

A table is a folder of shards. Its name is a digest of everything but the example that the rows
depend on: the network up to the cut, the engine, the view, the number format. A row is found by the
digest of its example's file. So every run that needs the same numbers of the same example finds
them, and no other run does.

Shards are written under a temporary name, verified and renamed, and never changed afterwards. If
two processes fill the same table, each adds shards of its own; no lock is needed, and rows that both
computed are stored twice. Each shard carries checksums of its header, digests and rows, which are
verified when it is opened: a damaged or truncated shard is removed, and its rows are computed again.
"""

import hashlib
import json
import os
import shutil
import struct
import uuid
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes  # noqa: F401  (teaches NumPy the name "bfloat16")
import numpy as np

from keras_transfer.utils.files import bytes_in, cache_folder

DTYPES = ("float32", "float16", "bfloat16", "uint8")
DIGEST = 16  # bytes
ROW_FORMAT = 3  # of the meaning of features: increase it if decoding, views or preprocessing change
_MAGIC = b"KTSHARD1"
_ALIGN = 64
_SHARD_BYTES = 64 << 20
_DEFAULT_LIMIT = 20 << 30
_META = "table.json"
_SINGLE_ROW = bytes(DIGEST)  # digest of the row in a table of one row


class Damaged(Exception):
    """A shard that is not as it was written."""


@dataclass(frozen=True)
class TableInfo:
    """Description of a table: contents, size, and time of last use (seconds since 1970)."""

    key: str
    about: dict
    bytes: int
    used: float


class Store:
    """The feature tables of this machine.

    Args:
        root: folder; by default `features` in `utils.files.cache_folder()`.
        limit: maximum bytes of all tables; the least recently used are removed first. By default
            `KERAS_TRANSFER_CACHE_GB` (gigabytes), or else 20 GiB.
    """

    def __init__(self, root: Path | None = None, limit: int | None = None):
        self.root = Path(root) if root else cache_folder() / "features"
        self.limit = bytes_in("KERAS_TRANSFER_CACHE_GB", _DEFAULT_LIMIT) if limit is None else limit

    def table(self, identity: dict, about: dict) -> "Table":
        """Return the table for an identity; it appears on disk with its first shard.

        Args:
            identity: plain data on which the rows depend; its digest is the table's name.
            about: plain data that describes the table to people.
        """
        text = json.dumps(identity, sort_keys=True)
        key = hashlib.blake2b(text.encode(), digest_size=DIGEST).hexdigest()
        return Table(self.root / key, about)

    def list(self) -> list[TableInfo]:
        """Return all tables, the most recently used first."""
        tables = []
        for folder in self.root.glob("*/"):
            try:
                about = json.loads((folder / _META).read_text(encoding="utf-8"))
                used = (folder / _META).stat().st_mtime
            except (OSError, ValueError):
                about, used = {}, 0.0
            tables.append(TableInfo(folder.name, about, _size(folder), used))
        return sorted(tables, key=lambda info: -info.used)

    def free(self) -> int:
        """Return the bytes that may be written: up to the limit, and 90 % of the disk's free space."""
        folder = next(p for p in (self.root, *self.root.parents) if p.exists())
        return max(0, min(self.limit, int(0.9 * shutil.disk_usage(folder).free)))

    def trim(self, keep: Iterable[str] = (), limit: int | None = None) -> int:
        """Remove the least recently used tables until the rest fit; return the bytes removed.

        Args:
            keep: keys of tables to leave.
            limit: another limit than the store's; 0 removes all.
        """
        tables = self.list()
        total, removed = sum(t.bytes for t in tables), 0
        limit = self.limit if limit is None else limit
        for info in reversed(tables):
            if total - removed <= limit:
                break
            if info.key not in keep:
                shutil.rmtree(self.root / info.key, ignore_errors=True)
                removed += info.bytes
        return removed


def _size(folder):
    total = 0
    for file in folder.glob("*"):
        try:
            total += file.stat().st_size
        except FileNotFoundError:  # another process has just removed it
            continue
    return total


class Table:
    """Rows of one shape and dtype, found by the digests of their examples."""

    def __init__(self, folder: Path, about: dict):
        self.folder, self.about = Path(folder), about
        self.shards: list[np.ndarray] = []
        self.where: dict[bytes, tuple[int, int]] = {}  # digest → (shard, row)
        self.damaged: list[str] = []
        self._seen: set[str] = set()  # names of opened files

    @property
    def key(self) -> str:
        return self.folder.name

    def refresh(self) -> None:
        """Open new shards; damaged ones are removed and listed in `damaged`."""
        for file in sorted(self.folder.glob("[!.]*.shard")):  # a dot: being written
            if file.name in self._seen:
                continue
            try:
                digests, rows = read_shard(file)
            except FileNotFoundError:  # removed by another process
                continue
            except (Damaged, OSError) as error:
                self.damaged.append(f"{file.name}: {error}")
                _remove(file)
                continue
            self._take(file.name, digests, rows)
        self._clean()
        if self.where:
            self._touch()

    def missing(self, digests: Iterable[bytes]) -> list[int]:
        """Return positions of digests without a row, each digest once."""
        wanted: dict[bytes, int] = {}
        for i, digest in enumerate(digests):
            if digest not in self.where:
                wanted.setdefault(digest, i)
        return list(wanted.values())

    def add(self, digests: list[bytes], rows: np.ndarray, on_disk: bool = True) -> None:
        """Add a shard of rows [N, …], in memory only if `on_disk` is False.

        Raises:
            OSError: the disk is full or not writable; nothing is added.
        """
        if not on_disk:
            self._take(f"memory-{uuid.uuid4().hex}", digests, rows)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{uuid.uuid4().hex}.shard"
        try:
            write_shard(self.folder / name, digests, rows)
        except FileNotFoundError:  # the table was removed while this shard was written
            self.folder.mkdir(parents=True, exist_ok=True)
            write_shard(self.folder / name, digests, rows)
        if not (self.folder / _META).is_file():
            self._write_about()
        _, rows = read_shard(self.folder / name, verify=False)  # pages, not memory
        self._take(name, digests, rows)

    def locate(self, digests: Iterable[bytes]) -> np.ndarray:
        """Return (shard, row) of each digest, int64 [N, 2]."""
        return np.array([self.where[d] for d in digests], "int64").reshape(-1, 2)

    def gather(self, places: np.ndarray) -> np.ndarray:
        """Return the rows at `places` [N, 2], in that order."""
        out = np.empty((len(places), *self.shards[0].shape[1:]), self.shards[0].dtype)
        for shard in np.unique(places[:, 0]):
            here = places[:, 0] == shard
            out[here] = self.shards[shard][places[here, 1]]
        return out

    def _take(self, name, digests, rows):
        self._seen.add(name)
        for i, digest in enumerate(digests):
            self.where.setdefault(digest, (len(self.shards), i))
        self.shards.append(rows)

    def _write_about(self):
        temporary = self.folder / f".{os.getpid()}.{_META}"
        temporary.write_text(json.dumps(self.about), encoding="utf-8")
        temporary.replace(self.folder / _META)

    def _touch(self):
        """Record that the table is in use."""
        try:
            os.utime(self.folder / _META)
        except OSError:
            try:
                self._write_about()
            except OSError:  # a read-only cache
                return

    def _clean(self):
        """Remove unfinished files of processes that have ended."""
        for file in self.folder.glob(".*"):
            process = file.name.split(".")[1]
            if process.isdecimal() and not _alive(int(process)):
                _remove(file)


def _remove(file):
    """Remove a file, unless another process has done so, or the cache is read-only."""
    with suppress(OSError):
        file.unlink()


def _alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


class Writer:
    """Collects rows for a table and writes them one shard at a time, so that memory stays bounded.

    If the disk is full, rows stay in memory from then on, and `full` is set.
    """

    def __init__(self, table: Table, on_disk: bool = True, shard_bytes: int = _SHARD_BYTES):
        self.table, self.on_disk, self.shard_bytes = table, on_disk, shard_bytes
        self.full: OSError | None = None
        self._digests: list[bytes] = []
        self._rows: list[np.ndarray] = []
        self._bytes = 0

    def add(self, digests: list[bytes], rows: np.ndarray) -> None:
        self._digests.extend(digests)
        self._rows.append(rows)
        self._bytes += rows.nbytes
        if self._bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        if not self._digests:
            return
        rows = np.concatenate(self._rows)
        try:
            self.table.add(self._digests, rows, self.on_disk)
        except OSError as error:
            self.full, self.on_disk = error, False
            self.table.add(self._digests, rows, False)
        self._digests, self._rows, self._bytes = [], [], 0


def write_shard(path: Path, digests: list[bytes], rows: np.ndarray) -> None:
    """Write a shard file: magic, header (JSON) with its length and checksum, digests, rows."""
    rows = np.ascontiguousarray(rows)
    names = b"".join(digests)
    if len(names) != DIGEST * len(rows):
        raise ValueError(f"{len(rows)} rows need as many digests of {DIGEST} bytes.")
    data = _bytes_of(rows)
    header = json.dumps(
        {
            "rows": len(rows),
            "shape": list(rows.shape[1:]),
            "dtype": rows.dtype.name,
            "digests_crc": zlib.crc32(names),
            "rows_crc": zlib.crc32(data),
        }
    ).encode()
    start = _aligned(len(_MAGIC) + 8 + len(header) + len(names))
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(_MAGIC + struct.pack("<II", len(header), zlib.crc32(header)))
            file.write(header + names)
            file.write(b"\0" * (start - file.tell()))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_shard(path: Path, verify: bool = True) -> tuple[list[bytes], np.ndarray]:
    """Return (digests, rows); the rows are a read-only memory map.

    Raises:
        Damaged: checksums or lengths do not match.
    """
    with path.open("rb") as file:
        start = file.read(len(_MAGIC) + 8)
        if len(start) < len(_MAGIC) + 8 or start[: len(_MAGIC)] != _MAGIC:
            raise Damaged("it does not start like a shard")
        length, crc = struct.unpack("<II", start[len(_MAGIC) :])
        header = file.read(length)
        if len(header) != length or zlib.crc32(header) != crc:
            raise Damaged("its header is damaged")
        header = json.loads(header)
        names = file.read(DIGEST * header["rows"])
        if zlib.crc32(names) != header["digests_crc"]:
            raise Damaged("its digests are damaged")
        shape = (header["rows"], *header["shape"])
        offset = _aligned(file.tell())
        needed = offset + int(np.prod(shape)) * np.dtype(header["dtype"]).itemsize
        if os.fstat(file.fileno()).st_size != needed:
            raise Damaged("it is truncated")
    rows = np.memmap(path, np.dtype(header["dtype"]), "r", offset, shape)
    if verify and zlib.crc32(_bytes_of(rows)) != header["rows_crc"]:
        raise Damaged("its rows are damaged")
    return [names[i : i + DIGEST] for i in range(0, len(names), DIGEST)], rows


def _bytes_of(rows: np.ndarray) -> memoryview:
    """Return the bytes of a contiguous array, without a copy."""
    return (rows.view("uint8").reshape(-1) if rows.size else rows.view("uint8")).data


def _aligned(position):
    return -(-position // _ALIGN) * _ALIGN


def cached_result(
    store: Store, kind: str, identity: dict, about: dict, compute: Callable[[], dict]
) -> dict:
    """Return a stored result, or compute and store it if it is missing or damaged.

    Args:
        kind: kind of result, with the version of its formulas.
        identity: plain data; everything else that the result depends on.
        about: for people, see `Store.table`.
        compute: returns plain data; floats in it are restored to the last bit.
    """
    found = recall(store, kind, identity, about)
    return remember(store, kind, identity, about, compute()) if found is None else found


def recall(store: Store, kind: str, identity: dict, about: dict | None = None) -> dict | None:
    """Return a stored result, or None if it is missing or damaged; see `cached_result`."""
    table = _single(store, kind, identity, about or {})
    table.refresh()
    if table.missing([_SINGLE_ROW]):
        return None
    (row,) = table.gather(table.locate([_SINGLE_ROW]))
    return json.loads(row.tobytes())


def remember(store: Store, kind: str, identity: dict, about: dict, value: dict) -> dict:
    """Store a result in the place of an earlier one, and return it as it will be read."""
    table = _single(store, kind, identity, about)
    shutil.rmtree(table.folder, ignore_errors=True)
    text, writer = json.dumps(value), Writer(table)
    writer.add([_SINGLE_ROW], np.frombuffer(text.encode(), "uint8")[None])
    writer.flush()
    store.trim(keep=[table.key])
    return json.loads(text)


def _single(store, kind, identity, about):
    """Return the table of one result."""
    return store.table({"what": kind, **identity}, {**about, "dtype": "uint8", "shape": []})


def concluded(
    prefix,
    store: Store,
    kind: str,
    compute: Callable[[], dict],
    *,
    of: str,
    engine: str = "keras",
    view: str = "plain",
    **identity,
) -> dict:
    """Return a conclusion from a prefix's features, computed once; see `cached_result`.

    Args:
        prefix: a `features.prefix.Prefix`.
        of: the examples, in words.
        engine, view: engine and view of the features.
        identity: everything else that the result depends on.
    """
    about = {
        "backbone": f"{prefix.name}: {of}",
        "image_size": prefix.image_size,
        "engine": engine,
        "view": view,
    }
    return cached_result(
        store, kind, {**prefix.identity, "engine": engine, **identity}, about, compute
    )


def digest_of(*parts: list[bytes] | np.ndarray) -> str:
    """Return a digest of lists of digests and of arrays, in their order."""
    digest = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        if isinstance(part, np.ndarray):
            head, data = f"{part.dtype} {part.shape}", np.ascontiguousarray(part).tobytes()
        else:
            head, data = f"{len(part)} digests", b"".join(part)
        digest.update(head.encode() + b"\0" + data)
    return digest.hexdigest()
