"""Atomic writes, the cache folder, and facts about this machine.

A file or a folder appears complete or not at all, even if the process is killed.
"""

import codecs
import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from keras_transfer.errors import InputError


def write_file(path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file next to `path`, sync it to disk and rename it.

    A symbolic link stays a link, and the mode of a file that is replaced stays. Devices, FIFOs and
    open descriptors (`/dev/stdout`) receive the bytes instead.

    Raises:
        InputError: if the file cannot be written.
    """
    path = Path(path)
    with explain_writing(path):
        target = _replaceable(path)
        if target is None:
            with tempfile.TemporaryDirectory() as folder:
                temporary = Path(folder) / path.name
                write(temporary)
                _copy_into(temporary, path)
            return
        # The suffix stays the same, because Keras derives the format from it.
        temporary = target.with_name(f".{os.getpid()}.{target.name}")
        try:
            write(temporary)
            if target.exists():
                shutil.copymode(target, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _replaceable(path):
    """Return the regular file that `path` leads to, which may be missing; None for anything else."""
    for _ in range(40):  # Linux's limit of links
        if _descriptor(path) is not None:
            return None
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
    return None if path.exists() and not path.is_file() else path


def _descriptor(path):
    """Return the number of the open file that a path such as `/dev/stdout` names, or None."""
    found = re.fullmatch(
        r"/dev/(stdin|stdout|stderr)|(?:/dev|/proc/(?:self|thread-self|\d+))/fd/(\d+)", str(path)
    )
    if found is None:
        return None
    return ("stdin", "stdout", "stderr").index(found[1]) if found[1] else int(found[2])


def _copy_into(source, path):
    while _descriptor(path) is None and path.is_symlink():
        path = path.parent / path.readlink()
    number = _descriptor(path)
    # Opening /dev/stdout anew would start at the beginning of the file that it was redirected to.
    opened = path if number is None else os.dup(number)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    with source.open("rb") as read, open(opened, "wb") as written:  # noqa: PTH123 (a descriptor)
        shutil.copyfileobj(read, written)


def check_output(path) -> None:
    """Raise InputError if a file cannot be written to `path`, before the work begins."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a directory: choose a file.")
    target = _replaceable(path)
    if target is not None:
        _check_parent(path, target.parent)
    elif not os.access(path, os.W_OK):
        raise InputError(f"Cannot write {path}: it cannot be opened. Choose another place.")


def check_output_folder(path) -> None:
    """Raise InputError if nothing can be written in a folder, which may be missing."""
    path = Path(path)
    place = Path(os.path.realpath(path))
    _check_parent(path, next(p for p in (place, *place.parents) if p.exists()))


def _check_parent(path, parent):
    if not parent.exists():
        raise InputError(
            f"Cannot write {path}: the folder {parent} does not exist. Create it, or choose another "
            "place."
        )
    if not parent.is_dir():
        raise InputError(f"Cannot write {path}: {parent} is a file. Choose another place.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"Cannot write {path}: the folder {parent} is read-only. Change its permissions, or choose "
            "another place."
        )


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REMEDIES = {
    **dict.fromkeys(_FULL, "Free some disk space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "Change its permissions"),
    errno.ENOENT: "Create the folder",
}


@contextmanager
def explain_writing(path, only: Collection[int] = ()) -> Iterator[None]:
    """Turn an OSError in the block into an InputError that names `path`.

    Args:
        path: what is written.
        only: numbers of errors (`errno`); empty for all.
    """
    try:
        yield
    except OSError as error:
        if only and error.errno not in only:
            raise
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        remedy = _REMEDIES.get(error.errno or 0)
        remedy = f"{remedy}, or choose another place." if remedy else "Choose another place."
        raise InputError(f"Cannot write {path}: {reason}. {remedy}") from error


@contextmanager
def locked(path, message: str) -> Iterator[None]:
    """Lock a file or a folder for this process; the system releases the lock if the process dies.

    It does nothing where the system has no such locks.

    Raises:
        InputError: with `message`, if another process has locked it.
    """
    try:
        import fcntl
    except ImportError:  # not POSIX
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(message) from None
        yield
    finally:
        os.close(descriptor)


def encode_text(text: str) -> bytes:
    """Return text as UTF-8. Names of files need not be UTF-8: they get their own bytes back.

    Raises:
        InputError: for half of a surrogate pair, which no file name contains.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        found = ascii(text[error.start])
        raise InputError(f"{found} is not valid text: remove it from the names.") from None


def decode_text(data: bytes) -> str:
    """Return the text that `encode_text` encoded; bytes that are not UTF-8 become surrogates."""
    return data.decode("utf-8", "surrogateescape")


def write_text(path, text: str) -> None:
    """Write text as `encode_text` encodes it, see `write_file`."""
    data = encode_text(text)
    write_file(path, lambda temporary: temporary.write_bytes(data))


def read_text(path) -> str:
    """Return the text that `write_text` wrote, with its line breaks as they are, without a BOM."""
    return decode_text(Path(path).read_bytes().removeprefix(codecs.BOM_UTF8))


def csv_text(header: Iterable[str], rows: Iterable[Iterable]) -> str:
    """Return the rows of a table as CSV; `csv_rows` reads any text in it back."""
    lines: list[str] = []
    # The writer quotes only the line breaks that it writes itself: \r\n, which readers need quoted.
    writer = csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n")
    writer.writerow(header)
    writer.writerows(rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


def csv_rows(path) -> csv.DictReader:
    """Return a reader of the rows of a CSV file in UTF-8; names that are not UTF-8 are preserved.

    Spreadsheets of some countries save what they have opened with semicolons, which are read, too.
    """
    text = read_text(path)
    header = text.partition("\n")[0]
    delimiter = ";" if ";" in header and "," not in header else ","
    return csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)


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


def absolute_paths(settings: dict, names) -> dict:
    """Return settings in which those of `names` that are paths of files or folders are absolute.

    They can then be found from any working directory. Other names, such as `tfds:NAME`, stay.
    """

    def absolute(place):
        path = Path(place).expanduser()
        return str(path.absolute() if path.exists() else place)

    return {**settings, **{name: absolute(settings[name]) for name in names if settings.get(name)}}


def check_new_folder(out) -> None:
    """Raise InputError if `out` exists."""
    if os.path.lexists(out):
        raise InputError(f"{out} exists. Choose another directory.")


@contextmanager
def plain_path(folder) -> Iterator[Path]:
    """Yield a path of a folder for libraries that open files by UTF-8: a link, if its own is not."""
    folder = Path(folder).absolute()
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as place:
            link = Path(place) / "folder"
            link.symlink_to(folder, target_is_directory=True)
            yield link
    else:
        yield folder


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
    temporary = out.with_name(f".{os.getpid()}.{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process with the same number
    with explain_writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    try:
        with explain_writing(out, only=_FULL):
            yield temporary
        with explain_writing(out):
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
        return Path(chosen).expanduser()  # a notebook's %env does not
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
        except (OSError, InputError):
            return results[key]  # the cache folder cannot be written to
    return results.get(key)


def cpu_flags() -> set[str]:
    """Return the processor's capabilities as Linux names them; empty on other systems."""
    try:
        return set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return set()


def bytes_of(gigabytes: float | str) -> int:
    """Return a number of gigabytes in bytes; -1 if it is not one, such as nan."""
    try:
        return int(float(gigabytes) * (1 << 30))
    except (ValueError, OverflowError):
        return -1


def bytes_in(variable: str, default: int, least: int = 0) -> int:
    """Return what a variable of the environment sets in gigabytes, in bytes.

    Raises:
        InputError: it is not a number, or too small.
    """
    text = os.environ.get(variable)
    if not text:
        return default
    if (found := bytes_of(text)) < least:
        positive = "positive " if least else ""
        raise InputError(f"{variable} is {text!r}: set it to a {positive}number of gigabytes.")
    return found


def total_memory() -> int:
    """Return the bytes of the machine's memory, or of its container's limit; 4 GiB if it is unknown."""
    limits = []
    with suppress(OSError, ValueError, AttributeError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # "max" is no number
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return min(limits, default=4 << 30)


def free_memory() -> int:
    """Return the bytes that a program can still allocate; 4 GiB if the system does not tell."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        return 1024 * int(text.split("MemAvailable:")[1].split()[0])
    except (OSError, IndexError, ValueError):  # not Linux
        return 4 << 30
