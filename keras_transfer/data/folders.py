"""Layouts of image folders: class folders, alone or below folders of splits."""

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from keras_transfer.data.classes import sorted_names
from keras_transfer.data.files import TABLES
from keras_transfer.data.split_rule import SPLIT_NAMES
from keras_transfer.errors import InputError
from keras_transfer.modalities import kinds_of_files
from keras_transfer.utils.console import counted, listed, printable, say, verb

# Names (lower case) that systems and network drives leave in folders; hidden ones are ignored anyway.
_SYSTEM = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r"),
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
    *("$recycle.bin", "recycler", "system volume information", "lost+found"),
}
_LETTERS = re.compile(r"[^\W\d_]+")  # the words of seg_train, test2017
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # begins a word: TrainImages
_SPLIT_WORD = re.compile(r"(training|train|validation|valid|val|dev|eval|testing|test)(set|data)?")
_NEUTRAL = ("set", "data", "dataset", "folder", "images", "imgs", "photos", "pictures", "split")

Tree = dict[str, dict[str, list[str]]]  # split → class → sorted paths


def read_tree(root: str | os.PathLike) -> Tree:
    """List every file of a labeled image folder: split → class → sorted paths.

    Two layouts are recognized:

    - `root/<class>/...`: one split, named "all";
    - `root/<split>/<class>/...`: the splits that exist, in the order train, val, test. A folder is a
      split if its name says so, in any case and with other words: `train`, `Training`, `seg_train`;
      `val`, `valid`, `validation`, `dev`, `eval`; `test`, `testing`. Unless one is named `train`
      (or `train_images`, …), two must contain folders of the same names.

    What is left out is printed: other folders beside splits, and images beside class folders. Files
    may lie at any depth and are not opened. Classes are sorted by name, in Unicode's composed form, or
    by value if all are integers; hidden files and those that systems leave behind are ignored.

    Raises:
        InputError: if there is no such folder, there are no class folders or only one, val or test
            has a class that train does not have, or the layout can be understood in two ways.
    """
    tree = read_splits(root)
    known = tree["train"] if "train" in tree else tree["all"]
    if len(known) < 2:
        raise InputError(_only_one(Path(root).expanduser(), tree))
    for split, classes in tree.items():
        unknown = sorted(set(classes) - set(known))
        if unknown:
            raise InputError(
                f"{split} in {root} has classes that train lacks: {', '.join(unknown)}; "
                "add them to train or remove them"
            )
    return tree


def read_splits(root: str | os.PathLike, known: Iterable[str] = ()) -> Tree:
    """List files like `read_tree`, whatever the classes are.

    Args:
        known: the classes of a model. Folders of them tell splits even if there is none to train on.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise InputError(f"no such folder: {root}; check the path")
    if not root.is_dir():
        raise InputError(
            f"{root} is a file; pass the folder that contains the class folders, or a table "
            f"({', '.join(TABLES)})"
        )
    inside = _Inside()
    splits = _held_out(root, inside, set(known)) or _find_splits(root, inside)
    return {
        split: _read_classes(folder, inside) for split, folder in (splits or {"all": root}).items()
    }


def files_below(folder: Path) -> list[str]:
    """Return the sorted visible files at any depth below a folder; links are followed.

    Links to folders around it are among them, to be listed as skipped: they lead to other classes.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot read the folder {error.filename}: {error.strerror}")

    files: list[str] = []
    whole = folder.resolve()
    seen = {whole}
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        files.extend(str(Path(parent, name)) for name in names if _is_visible(name))
        # Visit each real folder once, because a link may lead to a folder that was visited.
        unseen = []
        for name in sorted(filter(_is_visible, folders)):
            real = Path(parent, name).resolve()
            if real in whole.parents:
                files.append(str(Path(parent, name)))
            elif real not in seen:
                seen.add(real)
                unseen.append(name)
        folders[:] = unseen
    return sorted(files)


def split_of(name: str) -> str | None:
    """Return the split that a folder's name states as a word of its own: "train", "val", "test" or None.

    `seg_train`, `TrainImages` and `VAL` state one; `testudo`, `strain` and `train_val` state none.
    """
    return _split_and_rest(name)[0]


def _split_and_rest(name):
    """Return (the split that a name states or None, its other words)."""
    for text in (_CAPITAL.sub(" ", name), name):
        words = [word.lower() for word in _LETTERS.findall(text)]
        found = {SPLIT_NAMES[m[1]]: word for word in words if (m := _SPLIT_WORD.fullmatch(word))}
        if len(found) == 1:
            ((split, stated),) = found.items()
            return split, tuple(word for word in words if word not in (stated, *_NEUTRAL))
    return None, tuple(words)


def _held_out(root: Path, inside: "_Inside", known: set[str]) -> dict[str, Path]:
    """Return split → folder if there are only val and test, with classes that a model knows."""
    found: dict[str, Path] = {}
    for folder in inside[root][0]:
        split, rest = _split_and_rest(folder.name)
        below = {unicodedata.normalize("NFC", f.name) for f in inside[folder][0]}
        if split not in ("val", "test") or rest or split in found or not below & known:
            return {}
        found[split] = folder
    return {} if known & {folder.name for folder in found.values()} else found


def _find_splits(root: Path, inside: "_Inside") -> dict[str, Path]:
    """Return split → folder; empty if the folders are classes."""
    folders, _ = inside[root]
    names = {folder: _split_and_rest(folder.name) for folder in folders}
    stated = {folder: split for folder, (split, _) in names.items() if split}
    rest = {folder: names[folder][1] for folder in stated}
    below = {folder: {f.name for f in inside[folder][0]} for folder in stated}
    plain = {folder for folder in stated if not rest[folder]}

    def same_layout(a, b):
        """Whether two folders look like splits of one dataset: a shared name may be chance."""
        shared = len(below[a] & below[b])
        return shared > 1 or (shared and (rest[a] == rest[b] or not (rest[a] and rest[b])))

    alike = {f for f in stated if any(same_layout(f, g) for g in stated if g != f)}
    if not alike and not any(stated[f] == "train" and below[f] for f in plain):
        _refuse_splits_without_classes(root, inside, stated, rest, below)
        return {}
    found: dict[str, Path] = {}
    for folder, split in stated.items():
        # A folder of test images often has no labels.
        labeled = below[folder] or split == "val"
        if not (folder in alike or (folder in plain and labeled)):
            continue
        if other := found.get(split):
            raise InputError(
                f"{root} has two folders for {split}: {other.name} and {folder.name}; keep one"
            )
        found[split] = folder
    if "train" not in found:
        raise InputError(
            f"{root} contains the splits {', '.join(f.name for f in found.values())}, but none to "
            "train on: add train/<class>/"
        )
    others = {f: len(_images(files_below(f))) for f in folders if f not in found.values()}
    if len(found) == 1 and sum(map(bool, others.values())) > 1:
        like = ", ".join(folder.name for folder, count in others.items() if count)
        raise InputError(
            f"{root}: is {found['train'].name} the training images, or a class like {like}? Move "
            "the folders that are not of this dataset away, or rename it"
        )
    for folder, count in others.items():
        if count:
            say(
                f"ignored: {printable(str(folder))}, with {counted(count, 'image')}: not a split with class folders"
            )
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _refuse_splits_without_classes(root, inside, stated, rest, below):
    """Raise InputError if folders are splits without class folders or with different ones, or if each
    class has splits."""
    folders, _ = inside[root]
    alike = len(set(rest.values())) == 1
    flat = len(set(stated.values())) > 1 and alike and not any(below.values())
    if flat and len(stated) == len(folders):
        names = ", ".join(folder.name for folder in folders)
        raise InputError(
            f"{root} contains {names} without class folders, and no train/<class>/ folder; arrange "
            "the images as train/<class>/ and val/<class>/, or pass a table"
        )
    for folder in stated:
        for other in () if rest[folder] else folders:
            names = {f.name for f in inside[other][0]}
            if other != folder and len(below[folder] & names) > 1:
                raise InputError(
                    f"{root} contains {folder.name} and {other.name} with the same class folders, but "
                    "none is called train: rename the one to train on"
                )
    nested = [folder for folder in stated if below[folder]]
    rests = {rest[folder] for folder in nested}
    if len({stated[folder] for folder in nested}) > 1 and (len(rests) == 1 or () in rests):
        names = ", ".join(f"{f.name} ({listed(sorted(below[f]))})" for f in nested)
        raise InputError(
            f"{root} contains {names}: are these splits, or classes? Splits need class folders of the "
            "same names; rename classes whose names state a split"
        )
    inner = [{split_of(f.name) for f in inside[folder][0]} for folder in folders]
    if len(folders) > 1 and all("train" in splits and len(splits - {None}) > 1 for splits in inner):
        first = folders[0]
        names = ", ".join(f"{first.name}/{f.name}" for f in inside[first][0])
        raise InputError(
            f"{root} has splits inside each class ({names}); arrange the images as "
            "train/<class>/ and val/<class>/, or the splits would be mixed"
        )


def _read_classes(folder: Path, inside: "_Inside") -> dict[str, list[str]]:
    classes, others = inside[folder]
    loose = len(_images(others))
    if not classes:
        where = "images lie directly in it" if loose else "it has no subfolders"
        raise InputError(
            f"no class folders in {folder}: {where}; put each class's images in "
            f"{folder / '<class>'}/"
        )
    if loose:
        say(
            f"ignored: {counted(loose, 'image')} directly in {printable(str(folder))}, outside its class folders"
        )
    found: dict[str, list[str]] = {}
    nested: list[str] = []
    for entry in classes:
        # macOS writes é as two characters: both forms are one class.
        name = unicodedata.normalize("NFC", entry.name)
        if name in found:
            say(f"{printable(str(entry))} has the same name as another folder: they are one class")
        files = files_below(entry)
        nested += [path for path in _images(files) if Path(path).parent != entry]
        found[name] = sorted(found.get(name, []) + files)
    if nested:
        say(
            f"{counted(len(nested), 'image')} in {printable(str(folder))} "
            f"{verb(len(nested), 'lies', 'lie')} in folders inside class folders "
            f"(first {printable(str(Path(nested[0]).parent))}): part of the class around them"
        )
    return {name: found[name] for name in sorted_names(found)}


def _only_one(root, tree):
    """Return the message for a folder with one class, which may contain the dataset itself."""
    ((name, _),) = (tree["train"] if "train" in tree else tree["all"]).items()
    message = f"only one class ({name}) in {root}; classification needs at least two"
    innermost, inside, below = root / name, _Inside(), []
    while "all" in tree and len(below := inside[innermost][0]) == 1:
        innermost = below[0]
    if len(below) > 1:
        return f"{message}. {innermost} contains {listed(f.name for f in below)}: pass that folder"
    return message


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _SYSTEM


class _Inside(dict):
    """Folder → (its visible subfolders, its other visible entries), sorted; each is listed once."""

    def __missing__(self, folder: Path) -> tuple[list[Path], list[Path]]:
        try:
            entries = sorted(entry for entry in folder.iterdir() if _is_visible(entry.name))
        except OSError as error:
            raise InputError(f"cannot read the folder {folder}: {error.strerror}") from None
        folders = [entry for entry in entries if entry.is_dir()]
        self[folder] = folders, sorted(set(entries) - set(folders))
        return self[folder]


def _images(files):
    return [path for paths in kinds_of_files(files).values() for path in paths]
