"""Parts of the images that are measured by themselves: by folder, by size, by a column of a table."""

import os
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from keras_transfer.data.readers import Files
from keras_transfer.errors import InputError

_SIZES = (64, 128, 256, 512, 1024, 2048)
_MOST = 100


def slice_values(data, split: str, by: str, *, table=None, path_column: str = "path") -> list[str]:
    """Which slice each image of a split is in.

    Args:
        data: a `data.ImageData`.
        by: `"folder"`, the folder below the data's root; `"size"`, the shorter side in pixels; or a
            column of `table`.
        table: the file that the data came from, where they did.
        path_column: its column of paths.

    Raises:
        InputError: there is no such column, or no table.
    """
    names = data.examples[split].names
    if by == "folder":
        return [_folder(name, data.root) for name in names]
    if by == "size":
        return _sizes(data.examples[split].images)
    return column_values(table, by, names, path_column)


def column_values(table, column: str, names: Sequence[str], path_column: str = "path") -> list[str]:
    """What a table's column says of each path; relative paths in it lie below its folder.

    Raises:
        InputError: no table, no such column, or a path that is not in it.
    """
    columns, where = check_columns(table, column, path_column)
    base = Path(table).parent.expanduser()
    of_path = {str(base / p): v for p, v in zip(columns[path_column], columns[column])}
    missing = next((name for name in names if name not in of_path), None)
    if missing is not None:
        raise InputError(f"{where} has no row for {missing}.")
    return [str(of_path[name]) for name in names]


def check_columns(table, *wanted: str) -> tuple[dict, str]:
    """The columns of a table and what to call it.

    Raises:
        InputError: no table, or no such column.
    """
    from keras_transfer.data.tables import TABLES, read_columns

    column = wanted[0]
    if table is None or Path(table).suffix.lower() not in TABLES:
        raise InputError(
            f"slice {column}: give folder, size, or a column of a table; {table or 'these images'} "
            "is no table."
        )
    columns, where = read_columns(table)
    for name in wanted:
        if name not in columns:
            raise InputError(f"{where} has no column {name!r}; it has {', '.join(columns)}.")
    return columns, where


def sliced(values: Sequence[str], measure: Callable[[np.ndarray], dict]) -> list[dict]:
    """What `measure` says of each slice, in order of their names; of over 100 slices those with the
    most images.

    Args:
        values: of each image, its slice.
        measure: from positions, int [n], to plain data.
    """
    texts = np.asarray(values, object).astype(str)
    names, slices, counts = np.unique(texts, return_inverse=True, return_counts=True)
    kept = np.sort(np.argsort(-counts, kind="stable")[:_MOST])
    order = sorted(kept, key=lambda i: _natural(names[i]))
    return [
        {
            "value": str(names[i]),
            "images": int(counts[i]),
            **measure(np.flatnonzero(slices == i)),
        }
        for i in order
    ]


def _natural(name):
    """Numbers in a name count as such: 64–127 px comes before 128–255 px."""
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", name) if p]


def _folder(name, root):
    folder = os.path.dirname(os.path.relpath(name, root)).replace(os.sep, "/")  # noqa: PTH120
    return folder or "."


def _sizes(images):
    if isinstance(images, Files):
        from keras_transfer.data.index import check_files

        checked = check_files(images.names, progress=False)
        shorter = np.minimum(checked.width, checked.height)
    else:
        shorter = [min(images.pixels(i).shape[:2]) for i in range(len(images))]
    bounds = [f"0–{_SIZES[0] - 1} px", *(f"{a}–{b - 1} px" for a, b in pairwise(_SIZES))]
    bounds.append(f"{_SIZES[-1]} px or more")
    return [bounds[i] for i in np.searchsorted(_SIZES, shorter, side="right")]
