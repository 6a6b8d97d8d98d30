"""A folder that appears whole or not at all, whoever is looking on."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keras_transfer.errors import InputError


def check_free(out) -> None:
    """Raises InputError where something lies at `out` already."""
    if Path(out).exists():
        raise InputError(f"{out} exists: choose another version directory for the export.")


@contextmanager
def whole(out) -> Iterator[Path]:
    """Gives a folder to write into, and renames it to `out` when all is written and on the disk.

    It lies beside `out`, for only within a file system is renaming one step, and its name begins with a
    dot: TF Serving takes only folders whose names are numbers for versions. Where the block raises,
    nothing is left.

    Raises:
        InputError: something lies at `out`, before or after the writing.
    """
    out = Path(out)
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{os.getpid()}.{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had our number
    temporary.mkdir()
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _to_disk(path)
        check_free(out)
        try:
            temporary.rename(out)
        except OSError:  # another export was faster
            check_free(out)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _to_disk(path):
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
