"""Groups of images that are measured separately: by folder, by size, or by a column of a table."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from keras_transfer.data.files import TABLES
from keras_transfer.data.label_columns import Cells
from keras_transfer.data.readers import Files
from keras_transfer.data.table_files import TableCells, read_columns
from keras_transfer.data.tables import image_paths
from keras_transfer.errors import InputError

_SIZES = (64, 128, 256, 512, 1024, 2048)
_MOST_SLICES = 100


def slice_values(data, split: str, by: str, *, table=None, path_column: str = "path") -> list[str]:
    """Return the slice of each image of a split.

    Args:
        data: a `data.ImageData`.
        split: one of `data.examples`.
        by: `"folder"`, the folder below the data's root; `"size"`, the shorter side in pixels; or a
            column of `table`.
        table: path of the table that the data came from, if any.
        path_column: its column of paths.

    Raises:
        InputError: if there is no such column, or no table.
    """
    names = data.examples[split].names
    if by == "folder":
        return [_folder(name, data.root) for name in names]
    if by == "size":
        return _sizes(data.examples[split].images)
    return column_values(table, by, names, path_column)


def column_values(table, column: str, names: Sequence[str], path_column: str = "path") -> list[str]:
    """Return the value of a table's column for each path; relative paths start at its folder.

    Raises:
        InputError: if the table or the column is missing, or a path is not in the table.
    """
    cells = check_columns(table, column, path_column)
    paths = image_paths(cells, path_column, Path(table).parent.expanduser())
    of_path = {str(path): value for path, value in zip(paths, cells.columns[column])}
    missing = next((name for name in names if name not in of_path), None)
    if missing is not None:
        raise InputError(f"{cells.name} has no row for {missing}.")
    return [str(of_path[name]) for name in names]


def check_columns(table, *required: str) -> TableCells:
    """Return the cells of a table that has the required columns.

    Raises:
        InputError: if the table or one of the required columns is missing.
    """
    if table is None or Path(table).suffix.lower() not in TABLES:
        raise InputError(
            f"Invalid slice {required[0]}: choose folder, size, or a column of a table; "
            f"{table or 'this data'} is not a table."
        )
    cells = read_columns(table)
    Cells(cells.columns, cells.name).require(required)
    return cells


def measure_slices(
    slices: Mapping[str, Sequence[str]] | None, measure: Callable[[np.ndarray], dict]
) -> dict[str, list[dict]]:
    """Measure every slice of every grouping.

    Args:
        slices: name of a grouping → the slice of each image [N].
        measure: maps positions of images, int [n], to plain data.

    Returns:
        Name of the grouping → `value`, `images` and the measured data of each slice, in the natural
        order of the values; only the 100 largest slices.
    """
    return {by: _measure_groups(values, measure) for by, values in (slices or {}).items()}


def _measure_groups(values, measure):
    texts = np.asarray(values, object).astype(str)
    names, groups, counts = np.unique(texts, return_inverse=True, return_counts=True)
    largest = np.sort(np.argsort(-counts, kind="stable")[:_MOST_SLICES])
    return [
        {
            "value": str(names[i]),
            "images": int(counts[i]),
            **measure(np.flatnonzero(groups == i)),
        }
        for i in sorted(largest, key=lambda i: _natural(names[i]))
    ]


def _natural(name):
    """Return a sort key that orders numbers by value: 64–127 px comes before 128–255 px."""
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", name) if p]


def _folder(name, root):
    folder = os.path.dirname(os.path.relpath(name, root)).replace(os.sep, "/")  # noqa: PTH120
    return folder or "."


def _sizes(images):
    if isinstance(images, Files):
        from keras_transfer.data.files import check_files

        checked = check_files(images.names, progress=False)
        shorter = np.minimum(checked.columns["width"], checked.columns["height"])
    else:
        shorter = [images.shorter_side(i) for i in range(len(images))]
    bounds = [f"0–{_SIZES[0] - 1} px", *(f"{a}–{b - 1} px" for a, b in pairwise(_SIZES))]
    bounds.append(f"{_SIZES[-1]} px or more")
    return [bounds[i] for i in np.searchsorted(_SIZES, shorter, side="right")]
