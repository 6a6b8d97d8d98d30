"""One name for every source: what a path or a name stands for."""

import os
from collections.abc import Mapping
from pathlib import Path

from keras_transfer.data.records import SCHEMA, from_records
from keras_transfer.data.sources import ImageData, from_directory
from keras_transfer.data.tables import TABLES, from_table
from keras_transfer.data.tfds import from_tfds
from keras_transfer.errors import InputError

TFDS = "tfds:"


def open_data(
    source: str | os.PathLike,
    *,
    val=None,
    task: str = "single_label",
    columns: Mapping | None = None,
    **options,
) -> ImageData:
    """Opens labelled pictures of any kind that has a path or a name.

    Args:
        source: a folder of class folders (`from_directory`), a `.csv`, `.tsv` or `.parquet` file
            (`from_table`), a folder of `write_records` (`from_records`), or `tfds:NAME`
            (`from_tfds`).
        val: folder of validation pictures, for a folder.
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
            f"{source} is {kind}: mark its validation pictures there; --val is for folders."
        )
    return opened()
