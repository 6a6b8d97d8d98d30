"""Arrays on disk, a row per image, addressed by content (no Keras, no TensorFlow).

A table is a folder of shards; its name is a digest of all that the rows depend on but the image:
the network up to the cut, the engine, the view, the number format. A row is found by the digest of
its image's file. So whatever a run computes is found again by every run that needs the same
numbers of the same image, and by none that needs others.

Shards are written under a temporary name, seen on the disk and renamed, and never changed after.
Two processes that fill the same table each add shards of their own; no lock is needed, and what both
computed lies there twice until the table goes. Each shard carries checksums of its header, its
digests and its rows, which are compared when it is opened: a shard that is damaged or cut short is
removed, and its rows are computed again.
"""

import hashlib
import json
import math
import os
import shutil
import struct
import uuid
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes  # noqa: F401  (teaches NumPy the name "bfloat16")
import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.utils.files import cache_folder

DTYPES = ("float32", "float16", "bfloat16", "uint8")
DIGEST = 16  # bytes
_MAGIC = b"KTSHARD1"
_ALIGN = 64
_SHARD_BYTES = 64 << 20
_DEFAULT_LIMIT = 20 << 30
_META = "table.json"


class Damaged(Exception):
    """A shard that is not what was written."""


@dataclass(frozen=True)
class TableInfo:
    """A table for people: what it is of, how large, when it was last used (seconds since 1970)."""

    key: str
    about: dict
    bytes: int
    used: float


class Store:
    """The feature tables of this machine.

    Args:
        root: folder; by default `features` in `machine.cache_folder()`.
        limit: most bytes that all tables may take; what was not used for longest goes first. By
            default `KERAS_TRANSFER_CACHE_GB` (gigabytes), else 20 GiB.
    """

    def __init__(self, root: Path | None = None, limit: int | None = None):
        self.root = Path(root) if root else cache_folder() / "features"
        self.limit = _limit() if limit is None else limit

    def table(self, identity: dict, about: dict) -> "Table":
        """The table of all that `identity` says; it appears on disk with its first shard.

        Args:
            identity: plain data that the rows depend on; its digest is the table's name.
            about: plain data for people.
        """
        text = json.dumps(identity, sort_keys=True)
        key = hashlib.blake2b(text.encode(), digest_size=DIGEST).hexdigest()
        return Table(self.root / key, about)

    def list(self) -> list[TableInfo]:
        """All tables, the one used last first."""
        found = []
        for folder in self.root.glob("*/"):
            try:
                about = json.loads((folder / _META).read_text(encoding="utf-8"))
                used = (folder / _META).stat().st_mtime
            except (OSError, ValueError):
                about, used = {}, 0.0
            found.append(TableInfo(folder.name, about, _size(folder), used))
        return sorted(found, key=lambda info: -info.used)

    def free(self) -> int:
        """Bytes that may be written: to the limit, and not the last tenth of the disk's room."""
        folder = next(p for p in (self.root, *self.root.parents) if p.exists())
        return max(0, min(self.limit, int(0.9 * shutil.disk_usage(folder).free)))

    def trim(self, keep: Iterable[str] = (), limit: int | None = None) -> int:
        """Removes tables, the one unused for longest first, until the rest fit; returns the bytes.

        Args:
            keep: keys of tables that stay.
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


def _limit():
    text = os.environ.get("KERAS_TRANSFER_CACHE_GB")
    if not text:
        return _DEFAULT_LIMIT
    try:
        return int(float(text) * (1 << 30))
    except ValueError:
        raise InputError(
            f"KERAS_TRANSFER_CACHE_GB is {text!r}: give a number of gigabytes."
        ) from None


def _size(folder):
    total = 0
    for file in folder.glob("*"):
        try:
            total += file.stat().st_size
        except FileNotFoundError:  # another process removed it meanwhile
            continue
    return total


class Table:
    """Rows of one shape and dtype, found by the digests of their images."""

    def __init__(self, folder: Path, about: dict):
        self.folder, self.about = Path(folder), about
        self.shards: list[np.ndarray] = []
        self.where: dict[bytes, tuple[int, int]] = {}  # digest → (shard, row)
        self.damaged: list[str] = []
        self._open: dict[str, int] = {}  # file name → shard, or -1

    @property
    def key(self) -> str:
        return self.folder.name

    def refresh(self) -> None:
        """Opens the shards that were not seen yet; damaged ones are removed and listed."""
        for file in sorted(self.folder.glob("[!.]*.shard")):  # a dot: in the making
            if file.name in self._open:
                continue
            try:
                digests, rows = read_shard(file)
            except FileNotFoundError:  # removed by another process
                continue
            except (Damaged, OSError) as error:
                self.damaged.append(f"{file.name}: {error}")
                file.unlink(missing_ok=True)
                continue
            self._take(file.name, digests, rows)
        self._clean()
        if self.where:
            self._touch()

    def missing(self, digests: Iterable[bytes]) -> list[int]:
        """Positions of those that have no row, each image once."""
        wanted: dict[bytes, int] = {}
        for i, digest in enumerate(digests):
            if digest not in self.where:
                wanted.setdefault(digest, i)
        return list(wanted.values())

    def add(self, digests: list[bytes], rows: np.ndarray, on_disk: bool = True) -> None:
        """Adds a shard of rows [N, …]; in memory only where `on_disk` is False.

        Raises:
            OSError: the disk is full or cannot be written to; nothing is added.
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
        """(shard, row) of each [N, 2]."""
        return np.array([self.where[d] for d in digests], "int64").reshape(-1, 2)

    def gather(self, places: np.ndarray) -> np.ndarray:
        """The rows at `places` [N, 2], in that order."""
        out = np.empty((len(places), *self.shards[0].shape[1:]), self.shards[0].dtype)
        for shard in np.unique(places[:, 0]):
            here = places[:, 0] == shard
            out[here] = self.shards[shard][places[here, 1]]
        return out

    def _take(self, name, digests, rows):
        self._open[name] = len(self.shards)
        for i, digest in enumerate(digests):
            self.where.setdefault(digest, (len(self.shards), i))
        self.shards.append(rows)

    def _write_about(self):
        temporary = self.folder / f".{os.getpid()}.{_META}"
        temporary.write_text(json.dumps(self.about), encoding="utf-8")
        temporary.replace(self.folder / _META)

    def _touch(self):
        """Says that the table is in use."""
        try:
            os.utime(self.folder / _META)
        except OSError:
            try:
                self._write_about()
            except OSError:  # a cache that can only be read
                return

    def _clean(self):
        """Removes what processes that are gone were writing."""
        for file in self.folder.glob(".*"):
            process = file.name.split(".")[1]
            if process.isdecimal() and not _alive(int(process)):
                file.unlink(missing_ok=True)


def _alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


class Writer:
    """Collects rows for a table and writes them a shard at a time, so that memory stays bounded.

    Where the disk is full the rows stay in memory from then on; `full` says so.
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
    """Writes a shard file: magic, header (JSON) with its length and checksum, digests, rows."""
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
    """(digests, rows): the rows are a read-only memory map.

    Raises:
        Damaged: checksums or lengths do not fit.
    """
    with path.open("rb") as file:
        start = file.read(len(_MAGIC) + 8)
        if len(start) < len(_MAGIC) + 8 or start[: len(_MAGIC)] != _MAGIC:
            raise Damaged("it does not begin like a shard")
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
            raise Damaged("it is cut short")
    rows = np.memmap(path, np.dtype(header["dtype"]), "r", offset, shape)
    if verify and zlib.crc32(_bytes_of(rows)) != header["rows_crc"]:
        raise Damaged("its rows are damaged")
    return [names[i : i + DIGEST] for i in range(0, len(names), DIGEST)], rows


def shown_bytes(size: int) -> str:
    """A number of bytes for people."""
    unit = min(4, int(math.log2(max(1, size)) // 10))
    return f"{size / (1 << 10 * unit):.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def _bytes_of(rows: np.ndarray) -> memoryview:
    """The bytes of an array that lies in one piece, without a copy."""
    return (rows.view("uint8").reshape(-1) if rows.size else rows.view("uint8")).data


def _aligned(position):
    return -(-position // _ALIGN) * _ALIGN


_ROW = bytes(DIGEST)  # a table of one row


def kept(store: Store, what: str, identity: dict, about: dict, compute: Callable[[], dict]) -> dict:
    """What `compute` gave when it was first asked; where nothing is kept, or damaged, it is asked.

    Args:
        what: kind of conclusion, with the version of its formulas.
        identity: plain data; all that the answer depends on.
        about: for people, see `Store.table`.
        compute: gives plain data, floats among it come back to the last bit.
    """
    table = store.table({"what": what, **identity}, {**about, "dtype": "uint8", "shape": []})
    table.refresh()
    if table.missing([_ROW]):
        text = json.dumps(compute()).encode()
        writer = Writer(table)
        writer.add([_ROW], np.frombuffer(text, "uint8")[None])
        writer.flush()
        store.trim(keep=[table.key])
    (row,) = table.gather(table.locate([_ROW]))
    return json.loads(row.tobytes())


def concluded(
    prefix,
    store: Store,
    what: str,
    compute: Callable[[], dict],
    *,
    of: str,
    engine: str = "keras",
    view: str = "plain",
    **identity,
) -> dict:
    """`kept`, of what follows from a prefix's features.

    Args:
        of: what was looked at, for people.
        engine, view: by which, and of what, the features are.
        identity: all that the answer depends on beside the prefix and the engine.
    """
    identity = {**prefix.identity, "engine": engine, **identity}
    about = {
        "backbone": f"{prefix.name}: {of}",
        "image_size": prefix.image_size,
        "engine": engine,
        "view": view,
    }
    return kept(store, what, identity, about, compute)


def digest_of(*parts: list[bytes] | np.ndarray) -> str:
    """A digest of lists of digests and of arrays, in their order."""
    digest = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        if isinstance(part, np.ndarray):
            head, data = f"{part.dtype} {part.shape}", np.ascontiguousarray(part).tobytes()
        else:
            head, data = f"{len(part)} digests", b"".join(part)
        digest.update(head.encode() + b"\0" + data)
    return digest.hexdigest()
