"""Files that appear whole or not at all, whoever is looking on or ends the process: text, tables, arrays."""

import csv
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np


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
