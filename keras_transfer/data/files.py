"""Find image files in folders (no TensorFlow)."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.modalities.image.check import EXTENSIONS
from keras_transfer.utils.console import progress_bar

# Names (lower case) that operating systems leave in folders; hidden files are ignored anyway.
_DROPPINGS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"}

_AHEAD = 256

SPLIT_OF_FOLDER = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
# Folders called like this are splits that we do not know by that name, never classes.
_LOOKS_LIKE_A_SPLIT = {*SPLIT_OF_FOLDER, "training", "testing"}


@dataclass(frozen=True)
class Skipped:
    """A file that is left out, and why, in plain words."""

    path: str
    reason: str


def read_tree(root: str | os.PathLike) -> dict[str, dict[str, list[str]]]:
    """List every file of a labelled image folder: split -> class -> sorted paths.

    Two layouts are recognised by themselves:

    - `root/<class>/...`: one split, named "all";
    - `root/{train,val,test}/<class>/...`: the splits that exist, in this order
      (`valid` and `validation` are accepted for `val`; other folders are ignored).

    Files may lie at any depth below their class folder and are not opened here. Classes
    are sorted by name; hidden files and droppings of the operating system are ignored.

    Raises:
        InputError: no such folder, no class folders, a single class, or a class in val
            or test that train does not have.
    """
    tree = read_splits(root)
    known = tree["train"] if "train" in tree else tree["all"]
    if len(known) < 2:
        raise InputError(
            f"only one class ({next(iter(known))}) in {root}; classification needs at least two"
        )
    for split, classes in tree.items():
        unknown = sorted(set(classes) - set(known))
        if unknown:
            raise InputError(
                f"{split} in {root} has classes that train has not: {', '.join(unknown)}; "
                "add them to train or remove them"
            )
    return tree


def read_splits(root: str | os.PathLike) -> dict[str, dict[str, list[str]]]:
    """Do what `read_tree` does, whatever the classes are: for images to evaluate on.

    Raises:
        InputError: no such folder, or no class folders.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise InputError(f"no such folder: {root}; check the path")
    if not root.is_dir():
        raise InputError(f"{root} is a file; give the folder that holds the class folders")
    train = root / "train"
    if train.is_dir() and _subfolders(train):
        return {split: _read_classes(folder) for split, folder in _find_splits(root).items()}
    classes = _read_classes(root)
    if all(name.lower() in _LOOKS_LIKE_A_SPLIT for name in classes):
        raise InputError(
            f"{root} holds {', '.join(classes)} but no train/<class>/ folder; "
            "lay the images out as train/<class>/ and val/<class>/"
        )
    return {"all": classes}


def digest_files(paths: list[str], *, progress: bool = True) -> list[bytes]:
    """A 16-byte digest (BLAKE2b) of each file's whole content, in order.

    Raises:
        InputError: a file cannot be read any more.
    """
    return each(_digest, paths, "reading images", progress)


def stamp_of(path: str) -> tuple[int, int, int, int]:
    """(size, time of change in ns, time of the inode's change in ns, inode): another whenever the
    file is. Zeros where there is no file."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a million times
    except OSError:
        return 0, 0, 0, 0
    inode = found.st_ino & (1 << 63) - 1  # SQLite's and NumPy's numbers have a sign
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, inode


def each(function, items, title, progress):
    """What `function` says of each item, in order; in threads, with a bar on stderr."""
    answers = in_threads(function, items)
    return list(progress_bar(answers, title, total=len(items), unit="files", visible=progress))


def in_threads(function: Callable, items: Iterable) -> Iterator:
    """The same, one by one; of the items no more than a few hundred are taken ahead."""
    pool = ThreadPoolExecutor(os.cpu_count())
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # where it was interrupted


def _digest(path):
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError as error:
        raise InputError(f"{path} cannot be read any more: {error.strerror}.") from None


def list_images(paths: Sequence[str | os.PathLike]) -> list[str]:
    """Expand files and folders to image paths, in the order given.

    A file is kept whatever its name; a folder gives every file below it with one of
    `EXTENSIONS`, sorted.

    Raises:
        InputError: a path does not exist, or a folder holds no image.
    """
    found = []
    for path in (Path(path).expanduser() for path in paths):
        if path.is_dir():
            images = [file for file in _files_below(path) if _extension(file) in EXTENSIONS]
            if not images:
                raise InputError(f"no images in {path}; file types: {' '.join(sorted(EXTENSIONS))}")
            found.extend(images)
        elif path.exists():
            found.append(str(path))
        else:
            raise InputError(f"no such file or folder: {path}; check the path")
    if not found:
        raise InputError("no images given; name at least one file or folder")
    return found


def _extension(path: str | Path) -> str:
    return Path(path).suffix.lower()


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _DROPPINGS


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if _is_visible(entry.name))
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}") from None


def _subfolders(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if entry.is_dir()]


def _files_below(folder: Path) -> list[str]:
    def refuse(error: OSError) -> None:
        raise InputError(f"cannot read the folder {error.filename}: {error.strerror}")

    files: list[str] = []
    seen = {folder.resolve()}
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        files.extend(str(Path(parent, name)) for name in names if _is_visible(name))
        # Each real folder once: a link may lead back to a folder above it.
        unseen = []
        for name in sorted(filter(_is_visible, folders)):
            real = Path(parent, name).resolve()
            if real not in seen:
                seen.add(real)
                unseen.append(name)
        folders[:] = unseen
    return sorted(files)


def _find_splits(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in _subfolders(root):
        split = SPLIT_OF_FOLDER.get(folder.name)
        if split in found:
            raise InputError(
                f"{root} has two folders for {split}: {found[split].name} and {folder.name}; "
                "keep one"
            )
        if split:
            found[split] = folder
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _read_classes(folder: Path) -> dict[str, list[str]]:
    classes = _subfolders(folder)
    if not classes:
        loose = any(_extension(entry) in EXTENSIONS for entry in _entries(folder))
        where = "images lie directly in it" if loose else "it has no sub-folders"
        raise InputError(
            f"no class folders in {folder}: {where}; put each class's images in "
            f"{folder / '<class>'}/"
        )
    return {class_folder.name: _files_below(class_folder) for class_folder in classes}
