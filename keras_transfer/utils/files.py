"""Atomic writes, the cache folder, and facts about this machine.

A file or a folder appears complete or not at all, even if the process is killed.
"""

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from keras_transfer.errors import InputError


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file next to `path`, sync it to disk and rename it."""
    # The suffix stays the same, because Keras derives the format from it.
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8."""
    # File names need not be UTF-8; their bytes are preserved.
    data = text.encode("utf-8", "surrogateescape")
    write_file(path, lambda temporary: temporary.write_bytes(data))


def csv_text(header: Iterable[str], rows: Iterable[Iterable]) -> str:
    """Return the rows of a table as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def write_arrays(path: Path, arrays: dict) -> None:
    """Write name → array as an .npz file."""

    def write(temporary):
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    write_file(path, write)


def read_arrays(path: Path) -> dict:
    """Return the arrays that `write_arrays` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def check_new_folder(out) -> None:
    """Raise InputError if `out` exists."""
    if Path(out).exists():
        raise InputError(f"{out} exists. Choose another directory.")


@contextmanager
def new_folder(out) -> Iterator[Path]:
    """Open a temporary folder to write into, and rename it to `out` once all of it is on disk.

    It is created next to `out`, because renaming is atomic only within a file system. Its name begins
    with a dot, so that TF Serving does not take it for a version. If the block raises, it is removed.

    Raises:
        InputError: if `out` exists, before or after writing.
    """
    out = Path(out)
    check_new_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{os.getpid()}.{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process with the same number
    temporary.mkdir()
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            file = os.open(path, os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)
        check_new_folder(out)
        try:
            temporary.rename(out)
        except OSError:  # another process was faster
            check_new_folder(out)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def cache_folder() -> Path:
    """Return the folder for files that can be made again.

    It is `$KERAS_TRANSFER_CACHE`, or the user's cache folder of the operating system.
    """
    chosen = os.environ.get("KERAS_TRANSFER_CACHE")
    if chosen:
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("keras_transfer", appauthor=False))


def remembered(subject: str, key: str, measure: Callable[[], object] | None = None):
    """Return a measurement of this kind of machine, from the cache folder if it was made before.

    Args:
        subject: name of the cache file.
        key: everything that the result depends on.
        measure: returns plain data; without it, return None if nothing was measured before.
    """
    cpu = hashlib.sha256(" ".join(sorted(cpu_flags())).encode()).hexdigest()[:12]
    file = cache_folder() / f"{subject}-{cpu}.json"
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        results = {}
    if key not in results and measure is not None:
        results[key] = measure()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(results, indent=1))
        except OSError:
            return results[key]  # the cache folder cannot be written to
    return results.get(key)


def cpu_flags() -> set[str]:
    """Return the processor's capabilities as Linux names them; empty on other systems."""
    try:
        return set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return set()


def free_memory() -> int:
    """Return the bytes that a program can still allocate; 4 GiB if the system does not tell."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        return 1024 * int(text.split("MemAvailable:")[1].split()[0])
    except (OSError, IndexError, ValueError):  # not Linux
        return 4 << 30
