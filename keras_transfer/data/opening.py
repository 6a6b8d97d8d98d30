"""One name for every source: what a path or a name stands for."""

import os
from pathlib import Path

from keras_transfer.data.records import SCHEMA, from_records
from keras_transfer.data.sources import ImageData, from_directory
from keras_transfer.data.tables import TABLES, from_table
from keras_transfer.data.tfds import from_tfds
from keras_transfer.errors import InputError

TFDS = "tfds:"


def open_data(source: str | os.PathLike, *, val=None, **options) -> ImageData:
    """Opens labelled pictures of any kind that has a path or a name.

    Args:
        source: a folder of class folders (`from_directory`), a `.csv`, `.tsv` or `.parquet` file
            (`from_table`), a folder of `write_records` (`from_records`), or `tfds:NAME`
            (`from_tfds`).
        val: folder of validation pictures, for a folder.
        options: of those functions; `val_split`, `seed` and `progress` are common to all.

    Raises:
        InputError: see those functions.
    """
    path = Path(source).expanduser()
    if str(source).startswith(TFDS):
        kind, opened = "TensorFlow Datasets", lambda: from_tfds(str(source)[len(TFDS) :], **options)
    elif path.suffix.lower() in TABLES:
        kind, opened = "a table", lambda: from_table(path, **options)
    elif (path / SCHEMA).is_file():
        kind, opened = "TFRecord shards", lambda: from_records(path, **options)
    else:
        return from_directory(path, val=val, **options)
    if val is not None:
        raise InputError(
            f"{source} is {kind}: mark its validation pictures there; --val is for folders."
        )
    return opened()
