"""Folders of images as `ImageData`: by classes, by labels, or of known classes."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from keras_transfer.data import targets
from keras_transfer.data.examples import Examples, ImageData, relative
from keras_transfer.data.files import Skipped, list_images, read_splits, read_tree
from keras_transfer.data.index import Checked, check_files, check_images
from keras_transfer.data.multilabel_folders import merge_copies
from keras_transfer.data.readers import joined
from keras_transfer.data.split_rule import SplitRule, read_split_file
from keras_transfer.data.targets import Target
from keras_transfer.errors import InputError

FOLDER_TASKS = ("single_label", "multi_label")


def from_directory(
    root: str | os.PathLike,
    *,
    val: str | os.PathLike | None = None,
    val_split: float = 0.2,
    test_split: float = 0.0,
    groups: str | Callable[[str], str] | None = None,
    folds: int | None = None,
    fold: int | None = None,
    split_file: str | os.PathLike | None = None,
    seed: int = 0,
    task: str = "single_label",
    progress: bool = True,
) -> ImageData:
    """Index an image folder, leave out what cannot be decoded, and split it.

    Every file is decoded once to check it. The validation images are, in this order of
    preference: those of `val`, those of `root/val`, or a stratified share of the training
    images. Test images are those of `root/test`, or a share where one is asked for. An explicit
    list in `split_file` wins over all of these.

    Args:
        root: `root/<class>/` or `root/{train,val,test}/<class>/`, see `read_tree`.
        val: another folder `val/<class>/` with the same classes.
        val_split, test_split: shares for validation, where none are given, and for testing.
        groups, folds, fold, split_file: other ways to split, see `SplitRule`.
        seed: of the split. It does not depend on names: a renamed file stays on its side.
        task: `"multi_label"`: the folders are labels, and an image that lies in several of them has
            several, see `data.copies.merge_copies`.
        progress: show a bar on stderr, in a terminal or a notebook.

    Raises:
        InputError: the folder cannot be used as it is; the message says what to do.
    """
    require_folder_task(task)
    rule = SplitRule(val_split, test_split, groups, folds, fold, split_file, seed)
    root = Path(root).expanduser()
    tree = read_tree(root)
    train_folder = root if "all" in tree else root / "train"
    if "all" in tree:
        tree = {"train": tree["all"]}
    if val is not None:
        tree["val"] = _read_val(val, tree["train"])
    # What can be told from the names alone is told before the long check.
    rule.check(tree)
    _require_each_class(tree["train"], train_folder, [])
    class_names = tuple(tree["train"])
    tree, checked = _check(tree, progress)
    skipped = checked.skipped
    _require_each_class(tree["train"], train_folder, skipped)

    target = Target(task, class_names)
    examples = {split: _label(checked, classes, target) for split, classes in tree.items()}
    for split, part in examples.items():
        where = val if split == "val" and val is not None else f"the {split} folder of {root}"
        _require_images(part, where, skipped)
    data = assembled(target, examples, skipped, root, rule)
    data.source = {"data": str(root), "task": task, **({"val": str(val)} if val else {})}
    return data


def assembled(
    target: Target | dict[str, Target],
    examples: dict[str, Examples],
    skipped: list[Skipped],
    root,
    rule: SplitRule,
) -> ImageData:
    """What every source ends with: what is not divided yet is divided by the rule.

    Raises:
        InputError: the images cannot be divided so.
    """
    if rule.check(examples):
        examples = _divided(examples, rule, root, target, skipped)
    in_order = {split: examples[split] for split in ("train", "val", "test") if split in examples}
    names = () if isinstance(target, dict) else target.names
    return ImageData(names, in_order, skipped, str(root), target)


def labelled_images(
    root: str | os.PathLike,
    class_names: Sequence[str],
    *,
    split: str | None = None,
    split_file: str | os.PathLike | None = None,
    task: str = "single_label",
    progress: bool = True,
) -> ImageData:
    """Read images of known classes, to evaluate a model on; the result has one split.

    Args:
        root: `root/<class>/` or `root/{train,val,test}/<class>/`; classes may be missing.
        class_names: the model's classes, in the order of its outputs.
        split: "train", "val" or "test"; by default test, else val. A folder without splits
            has the one split "all".
        split_file: a list of splits (of a run), for such a folder: `split` is what it says.
        task: as in `from_directory`.
        progress: show a bar on stderr, in a terminal or a notebook.

    Raises:
        InputError: no such split, a class that the model does not know, or no image.
    """
    require_folder_task(task)
    root = Path(root).expanduser()
    tree = read_splits(root)
    chosen = split or next((name for name in ("test", "val", "all") if name in tree), None)
    if "all" in tree and split not in (None, "all") and split_file is not None:
        tree[split] = _listed(tree["all"], root, split, split_file)
    if chosen not in tree:
        raise InputError(f"{root} has no split {chosen or 'test or val'}; it has {', '.join(tree)}")
    unknown = sorted(set(tree[chosen]) - set(class_names))
    if unknown:
        raise InputError(
            f"{root} has classes that the model does not know: {', '.join(unknown)}; "
            f"it knows {', '.join(class_names)}"
        )
    tree, checked = _check({chosen: tree[chosen]}, progress)
    target = Target(task, tuple(class_names))
    examples = _label(checked, tree[chosen], target)
    _require_images(examples, root, checked.skipped)
    return ImageData(target.names, {chosen: examples}, checked.skipped, str(root), target)


def unlabelled_images(
    root: str | os.PathLike, *, progress: bool = True
) -> tuple[Examples, list[Skipped]]:
    """Read the images below a folder, whatever folders and names say of them.

    Returns:
        (the readable images, all labels 0; the files left out).

    Raises:
        InputError: no such folder, or no readable image in it.
    """
    folder = Path(root).expanduser()
    if folder.is_file():
        raise InputError(f"{root} is a file: give a folder of images.")
    files, skipped = check_images(list_images([folder]), progress=progress)
    if not len(files):
        first = skipped[0]
        raise InputError(f"no readable image in {root} ({first.path}: {first.reason})")
    return Examples(files, np.zeros(len(files), "int32")), skipped


def require_folder_task(task) -> None:
    """Raises InputError for a task whose labels folders cannot say."""
    if task not in FOLDER_TASKS:
        raise InputError(
            f"Folders say {' or '.join(FOLDER_TASKS)}, not {task}: for numbers and several heads "
            "give a table."
        )


def _listed(classes, root, split, split_file):
    """The files of each class that a list puts into a split."""
    listed = read_split_file(split_file)
    chosen = {
        name: [f for f, short in zip(files, relative(files, root)) if listed.get(short) == split]
        for name, files in classes.items()
    }
    if not any(chosen.values()):
        raise InputError(f"{split_file} names no {split} image in {root}")
    return chosen


def _read_val(val, train: dict[str, list[str]]) -> dict[str, list[str]]:
    tree = read_tree(val)
    if "all" not in tree:
        raise InputError(
            f"{val} has splits of its own; give the one folder that holds the class folders"
        )
    missing, unknown = sorted(set(train) - set(tree["all"])), sorted(set(tree["all"]) - set(train))
    if missing or unknown:
        differences = [f"it lacks {', '.join(missing)}"] if missing else []
        differences += [f"train lacks {', '.join(unknown)}"] if unknown else []
        raise InputError(
            f"the classes of {val} are not those of train: {' and '.join(differences)}; "
            "both need the same class folders"
        )
    return tree["all"]


def _check(tree, progress: bool):
    """Check all files: (split -> class -> rows of the usable ones, what was found in the rows)."""
    paths = [path for classes in tree.values() for files in classes.values() for path in files]
    checked = check_files(paths, progress=progress)
    rows: dict[str, dict] = {}
    start = 0
    for split, classes in tree.items():
        rows[split] = {}
        for name, files in classes.items():
            rows[split][name] = checked.usable(range(start, start + len(files)))
            start += len(files)
    return rows, checked


def _divided(examples, rule, root, target, skipped):
    """The examples by the rule, which may take them out of the splits that they are in."""
    parts = list(examples.values())
    labels = targets.joined([part.labels for part in parts])
    whole = Examples(joined([part.images for part in parts]), labels)
    given = np.repeat(list(examples), [len(part) for part in parts])
    left_out = relative((item.path for item in skipped), root)
    splits = rule.assign(whole, relative(whole.names, root), given, target, left_out)
    return {split: whole.take(np.flatnonzero(splits == split)) for split in set(splits)}


def _label(checked: Checked, classes: dict[str, np.ndarray], target: Target) -> Examples:
    nothing = np.zeros(0, np.int64)
    rows = [classes.get(name, nothing) for name in target.names]
    labels = np.repeat(np.arange(len(rows), dtype=np.int32), [len(r) for r in rows])
    files = checked.files(np.concatenate(rows))
    if target.task == "multi_label":
        return Examples(*merge_copies(files, labels, target.names))
    return Examples(files, labels)


def _require_images(examples: Examples, where, skipped: list[Skipped]) -> None:
    if not len(examples):
        why = f" ({skipped[0].path}: {skipped[0].reason})" if skipped else ""
        raise InputError(f"no readable image in {where}{why}; add images or leave it out")


def _require_each_class(
    classes: dict[str, list[str]], folder: Path, skipped: list[Skipped]
) -> None:
    for name, files in classes.items():
        if len(files):
            continue
        class_folder = folder / name
        first = next((s for s in skipped if class_folder in Path(s.path).parents), None)
        why = f"{first.path}: {first.reason}" if first else "it is empty"
        raise InputError(
            f"class {name} has no readable image in {class_folder} ({why}); "
            "add images or remove the folder"
        )
