"""Read whole files of any modality, within limits on memory that all threads share."""

import hashlib
import stat
import threading
from contextlib import contextmanager
from pathlib import Path

from keras_transfer.modalities import Modality

_MAX_FILE_BYTES = 512 << 20  # more than the largest example needs in any format
_START = 12  # bytes that tell the format


class Budget:
    """Limits what all threads together use; a single thread may exceed the limit alone."""

    def __init__(self, limit: int):
        self.limit, self._used = limit, 0
        self._changed = threading.Condition()

    @contextmanager
    def use(self, amount: int):
        """Wait until `amount` is available; it is in use within the `with` block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + amount <= self.limit)
            self._used += amount
        try:
            yield
        finally:
            with self._changed:
                self._used -= amount
                self._changed.notify_all()


READING = Budget(128 << 20)  # bytes, however many threads read


def examine_file(path: str, modality: Modality):
    """Read a whole file once: return its facts, its digest, and whether all of it decodes."""
    facts = modality.facts
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
            above = Path(path).parent.resolve().is_relative_to(Path(path).resolve())
            reason = "the link leads to a folder above it" if above else "not a regular file"
            return facts(fault=f"cannot be read: {reason}")
        if status.st_size > _MAX_FILE_BYTES:
            return facts(
                fault=f"too large: the file has {status.st_size >> 20:,} MiB, the limit is "
                f"{_MAX_FILE_BYTES >> 20} MiB; make it smaller"
            )
        extension = Path(path).suffix.lower()
        if extension not in modality.extensions and not modality.looks_right(_start(path)):
            return facts(fault=f"unsupported file type {extension or '(no extension)'}")
        with READING.use(status.st_size):
            contents = Path(path).read_bytes()
            return modality.examine(contents)._replace(digest=digest(contents))
    except FileNotFoundError as error:
        reason = "the link is broken" if Path(path).is_symlink() else error.strerror
        return facts(fault=f"cannot be read: {reason}")
    except OSError as error:
        return facts(fault=f"cannot be read: {error.strerror}")


def _start(path):
    with Path(path).open("rb") as file:
        return file.read(_START)


def digest(*parts) -> bytes:
    """Return a 16-byte digest (BLAKE2b) of the concatenated parts."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        made.update(part)
    return made.digest()
