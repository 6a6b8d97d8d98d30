"""Atomic writes: a file or a folder appears complete or not at all, even if the process is killed."""

import csv
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from keras_transfer.errors import InputError


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, sees it on the disk and renames it."""
    # The last suffix stays: Keras chooses the format by it.
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """The same for text, as UTF-8."""
    # A file's name need not be UTF-8: its bytes are written as they are.
    data = text.encode("utf-8", "surrogateescape")
    write_file(path, lambda temporary: temporary.write_bytes(data))


def csv_text(header: Iterable[str], rows: Iterable[Iterable]) -> str:
    """Rows of a table as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def write_arrays(path: Path, arrays: dict) -> None:
    """Name → array, as an .npz file."""

    def write(temporary):
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    write_file(path, write)


def read_arrays(path: Path) -> dict:
    """What `write_arrays` wrote."""
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
