"""One name for every source: what a path or a name stands for."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from keras_transfer.data.examples import ImageData
from keras_transfer.data.folders import from_directory, labelled_images
from keras_transfer.data.records import SCHEMA, from_records
from keras_transfer.data.split_rule import read_split_file
from keras_transfer.data.tables import TABLES, from_table
from keras_transfer.data.targets import Target
from keras_transfer.data.tfds import from_tfds
from keras_transfer.errors import InputError

TFDS = "tfds:"


def require_source(source: str | os.PathLike) -> None:
    """Raises InputError where nothing lies at a path, at once."""
    if not str(source).startswith(TFDS) and not Path(source).expanduser().exists():
        raise InputError(f"no such folder or file: {source}; check the path")


def open_data(
    source: str | os.PathLike,
    *,
    val=None,
    task: str = "single_label",
    columns: Mapping | None = None,
    **options,
) -> ImageData:
    """Opens labelled images of any kind that has a path or a name.

    Args:
        source: a folder of class folders (`from_directory`), a `.csv`, `.tsv` or `.parquet` file
            (`from_table`), a folder of `write_records` (`from_records`), or `tfds:NAME`
            (`from_tfds`).
        val: folder of validation images, for a folder.
        task: `"multi_label"`: of a folder see `from_directory`; of a table `label_column` has labels
            joined by `|`.
        columns: of a table: its arguments `label_column`, `targets` and so on.
        options: of those functions: `progress`, and the fields of `SplitRule`.

    Raises:
        InputError: see those functions; or options of another kind of source.
    """
    path = Path(source).expanduser()
    columns = {name: value for name, value in (columns or {}).items() if value is not None}
    if str(source).startswith(TFDS):
        kind, opened = "TensorFlow Datasets", lambda: from_tfds(str(source)[len(TFDS) :], **options)
    elif path.suffix.lower() in TABLES:
        if task == "multi_label" and "label_columns" not in columns:
            columns["label_columns"] = columns.pop("label_column", "label")
        kind, opened = "a table", lambda: from_table(path, **columns, **options)
    elif (path / SCHEMA).is_file():
        kind, opened = "TFRecord shards", lambda: from_records(path, **options)
    else:
        kind, opened = None, lambda: from_directory(path, val=val, task=task, **options)
    if columns and kind != "a table":
        raise InputError(f"{source} is no table: {', '.join(columns)} mean nothing for it.")
    if kind and val is not None:
        raise InputError(
            f"{source} is {kind}: mark its validation images there; --val is for folders."
        )
    return opened()


def open_labelled(
    source: str | os.PathLike,
    known: Target | dict[str, Target],
    *,
    split: str | None = None,
    split_file: str | os.PathLike | None = None,
    columns: Mapping | None = None,
    progress: bool = True,
) -> ImageData:
    """Opens images to measure a model on: a folder (`labelled_images`) or a table.

    Args:
        known: what the model answers.
        split: by default test, else val, else all; "all" is what has no splits.
        split_file: a list of splits (of a run), for a source without splits of its own.
        columns: of a table, as in `open_data`.

    Raises:
        InputError: no such split, labels that the model does not know, or no image.
    """
    path = Path(source).expanduser()
    if path.suffix.lower() not in TABLES:
        if isinstance(known, dict):
            raise InputError(f"{path} is a folder, which cannot label several heads: give a table.")
        return labelled_images(
            path,
            known.names,
            split=split,
            split_file=split_file,
            task=known.task,
            progress=progress,
        )
    columns = {name: value for name, value in (columns or {}).items() if value is not None}
    columns.pop("group_column", None)
    if isinstance(known, Target) and known.task == "multi_label":
        columns.setdefault("label_columns", columns.pop("label_column", "label"))
    data = from_table(path, **columns, known=known, progress=progress)
    chosen = split or next((n for n in ("test", "val", "all", "train") if n in data.examples), "")
    if "all" in data.examples and chosen != "all" and split_file is not None:
        listed, whole = read_split_file(split_file), data.examples["all"]
        relative = [os.path.relpath(name, data.root).replace(os.sep, "/") for name in whole.names]
        rows = [i for i, name in enumerate(relative) if listed.get(name) == chosen]
        data.examples = {chosen: whole.take(np.array(rows, int))} if rows else {}
    if chosen not in data.examples:
        raise InputError(f"{path} has no split {chosen}; it has {', '.join(data.examples)}.")
    data.examples = {chosen: data.examples[chosen]}
    return data
