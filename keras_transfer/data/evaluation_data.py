"""Images for a trained model: labeled ones to evaluate it, unlabeled ones to predict."""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_transfer.data.arrays import Contents
from keras_transfer.data.classes import in_recorded_order
from keras_transfer.data.examples import Examples, ImageData, Target, map_labels, relative_paths
from keras_transfer.data.files import TABLES, Skipped, check_contents, check_examples
from keras_transfer.data.folders import files_below, read_splits
from keras_transfer.data.sources import (
    check_tree,
    label,
    library_of,
    open_data,
    require_folder_task,
    require_images,
)
from keras_transfer.data.split_rule import read_split_file
from keras_transfer.data.tables import from_table, table_columns
from keras_transfer.errors import InputError
from keras_transfer.modalities import Modality, kinds_of_examples, known_extensions


def open_labeled(
    source: str | os.PathLike,
    known: Target | dict[str, Target],
    *,
    split: str | None = None,
    split_file: str | os.PathLike | None = None,
    columns: Mapping | None = None,
    progress: bool = True,
) -> ImageData:
    """Open images to evaluate a model on: a folder or a table, see `labeled_images`.

    Args:
        known: what the model predicts.
        columns: options of `from_table`, see `open_data`.

    Raises:
        InputError: see `labeled_images`.
    """
    path = Path(source).expanduser()
    if library_of(source):
        options: dict[str, Any] = {"progress": progress, "split_file": split_file}
        if library_of(source) == "hf:":
            options["known"] = known
        data = open_data(source, columns=columns, **options)
        data = in_recorded_order(data, known)
        if data.targets != known:
            names = ", ".join(data.class_names)
            raise InputError(f"{source} has other labels than the model: {names}.")
        return _only(data, split, source)
    if path.suffix.lower() not in TABLES:
        if isinstance(known, dict):
            raise InputError(f"{path} is a folder, which cannot label several heads: pass a table.")
        return labeled_images(
            path,
            known.names,
            split=split,
            split_file=split_file,
            task=known.task,
            progress=progress,
        )
    options = table_columns(columns, map_labels(lambda target: target.task, known))
    options.pop("group_column", None)
    data = from_table(path, **options, known=known, progress=progress)
    chosen = split or usual_split(data)
    # A run may have drawn its validation rows from those of train.
    drawn = next((name for name in ("all", "train") if name in data.examples), None)
    if (
        drawn
        and split_file is not None
        and chosen != "all"
        and (drawn == "all" or chosen not in data.examples)
    ):
        listed, whole = read_split_file(split_file), data.examples[drawn]
        names = relative_paths(whole.names, data.root)
        rows = [i for i, name in enumerate(names) if listed.get(name) == chosen]
        data.examples = {chosen: whole.take(np.array(rows, int))} if rows else {}
    return _only(data, chosen, path)


def usual_split(data: ImageData) -> str:
    """Return the split that is measured if none is named."""
    return next(name for name in ("test", "val", "all", "train") if name in data.examples)


def _only(data: ImageData, split: str | None, source) -> ImageData:
    """Return the data with one split."""
    chosen = split or usual_split(data)
    if chosen not in data.examples:
        raise InputError(f"{source} has no split {chosen}; it has {', '.join(data.examples)}.")
    data.examples = {chosen: data.examples[chosen]}
    return data


def labeled_images(
    root: str | os.PathLike,
    class_names: Sequence[str],
    *,
    split: str | None = None,
    split_file: str | os.PathLike | None = None,
    task: str = "single_label",
    progress: bool = True,
) -> ImageData:
    """Read images of known classes from a folder; the result has one split.

    Args:
        root: `root/<class>/` or `root/{train,val,test}/<class>/`; classes may be missing.
        class_names: the model's classes, in the order of its outputs.
        split: "train", "val" or "test"; by default test, else val. A folder without splits has the
            one split "all".
        split_file: a list of splits (of a run) from which `split` is taken, for such a folder.
        task: see `from_directory`.
        progress: show a bar on stderr, in a terminal or a notebook.

    Raises:
        InputError: if the split does not exist, the model does not know a class, or there is no
            image.
    """
    require_folder_task(task)
    root = Path(root).expanduser()
    written = {unicodedata.normalize("NFC", name): name for name in class_names}
    tree = read_splits(root, written)
    chosen = split or next((name for name in ("test", "val", "all") if name in tree), None)
    if "all" in tree and split not in (None, "all") and split_file is not None:
        tree[split] = _listed(tree["all"], root, split, split_file)
    if chosen not in tree:
        raise InputError(f"{root} has no split {chosen or 'test or val'}; it has {', '.join(tree)}")
    tree[chosen] = {written.get(name, name): files for name, files in tree[chosen].items()}
    unknown = sorted(set(tree[chosen]) - set(class_names))
    if unknown:
        raise InputError(
            f"{root} has classes that the model does not know: {', '.join(unknown)}; "
            f"it knows {', '.join(class_names)}"
        )
    rows, checked = check_tree({chosen: tree[chosen]}, progress)
    target = Target(task, tuple(class_names))
    examples = label(checked, rows[chosen], target)
    require_images(examples, root, checked.skipped)
    return ImageData(target.names, {chosen: examples}, checked.skipped, str(root), target)


def unlabeled_images(
    root: str | os.PathLike, *, progress: bool = True
) -> tuple[Examples, list[Skipped]]:
    """Return (the readable images below a folder, all with label 0; the files left out).

    Raises:
        InputError: if there is no such folder, or no readable image in it.
    """
    folder = Path(root).expanduser()
    if folder.is_file():
        raise InputError(f"{root} is a file: pass a folder of images.")
    files, skipped = check_examples(list_images([folder]), progress=progress)
    examples = Examples(files, np.zeros(len(files), "int32"))
    require_images(examples, root, skipped)
    return examples, skipped


def examples_to_predict(
    given: Sequence[str | os.PathLike],
    modality: Modality,
    lines: str | os.PathLike | None = None,
    framing=None,
) -> tuple[Any, list[Skipped]]:
    """Return (a reader of the usable examples, the others with the reason).

    Args:
        given: files and folders; or examples themselves, if they can be typed and no such file exists.
        modality: of the examples.
        lines: a file with one more example on each line, if they can be typed.
        framing: of the model.

    Raises:
        InputError: see `list_images`; or `lines` cannot be read.
    """
    check_to_predict(given, modality, lines)
    typed = [os.fsencode(one) for one in given]
    titles = [str(one) for one in given]
    if lines is not None:
        read = Path(lines).expanduser().read_bytes().splitlines()
        titles += [
            line.decode(errors="replace").strip() or f"{lines}, line {number}"
            for number, line in enumerate(read, 1)
        ]
        typed += read
    elif not modality.typed or any(map(_exists, given)):
        return check_examples(list_images(given), framing=framing)
    checked = check_contents(typed, titles, modality)
    return Contents(typed, titles, modality).take(checked.usable()), checked.skipped


def check_to_predict(given, modality: Modality, lines=None) -> None:
    """Raise InputError if `examples_to_predict` would, before anything is read."""
    if lines is not None:
        if not modality.typed:
            raise InputError(
                f"A file of lines contains texts, but the model reads {modality.many}."
            )
        if not Path(lines).expanduser().is_file():
            raise InputError(f"no such file: {lines}; check the path")
        if any(map(_exists, given)):
            raise InputError("Pass files or --lines, not both: each line is one text.")
    elif not modality.typed or not given or any(map(_exists, given)):
        for path in filter(_exists, given) if modality.typed else ():
            if Path(path).suffix.lower() in TABLES:
                raise InputError(
                    f"{path} is a table: write its texts to a file, one per line, and pass it with "
                    "--lines FILE. `keras-transfer evaluate` measures on tables with labels."
                )
        list_images(given)
    else:
        known = known_extensions() | {*TABLES}
        for one in given:
            path = os.fspath(one)
            if " " not in path and (path.endswith("/") or Path(path).suffix.lower() in known):
                raise InputError(f"no such file or folder: {path}; check the path")


def _exists(path):
    try:
        return os.fspath(path) != "" and Path(path).expanduser().exists()
    except (
        OSError,
        RuntimeError,
        ValueError,
    ):  # longer than a name can be, or a home that is unknown
        return False


def list_images(paths: Sequence[str | os.PathLike]) -> list[str]:
    """Expand files and folders to image paths, in the order given.

    A folder stands for every visible file below it, sorted. Files that cannot be used are skipped and
    counted when they are read.

    Raises:
        InputError: if a path does not exist, or a folder contains no file.
    """
    files = []
    if any(os.fspath(path) == "" for path in paths):
        raise InputError("the name of a file or folder is empty; check the path")
    for path in (Path(path).expanduser() for path in paths):
        if not path.exists():
            raise InputError(f"no such file or folder: {path}; check the path")
        images = [str(path)]
        if path.is_dir():
            images = files_below(path)
        if not images:
            raise InputError(
                f"no {kinds_of_examples()} in {path}; file types: "
                f"{' '.join(sorted(known_extensions()))}"
            )
        files += images
    if not files:
        raise InputError("no examples given; name at least one file or folder")
    return files


def _listed(classes, root, split, split_file):
    """Return the files of each class that a list assigns to a split."""
    listed = read_split_file(split_file)
    chosen = {}
    for name, files in classes.items():
        paths = relative_paths(files, root)
        chosen[name] = [f for f, path in zip(files, paths) if listed.get(path) == split]
    if not any(chosen.values()):
        raise InputError(f"{split_file} names no {split} example in {root}")
    return chosen
