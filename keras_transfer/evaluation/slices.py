"""Groups of examples that are measured separately: by folder, by size, or by a column of a table."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from keras_transfer.data.files import TABLES, check_readers
from keras_transfer.data.label_columns import Cells
from keras_transfer.data.table_files import read_columns
from keras_transfer.data.tables import TableOptions, rows_of
from keras_transfer.errors import InputError

_MOST_SLICES = 100


def slice_values(
    data, split: str, by: str, *, table=None, columns: Mapping | None = None
) -> list[str]:
    """Return the slice of each example of a split.

    Args:
        data: a `data.ImageData`.
        split: one of `data.examples`.
        by: `"folder"`, the folder below the data's root; `"size"`, the shorter side in pixels, the
            length in seconds or in words; or a column of `table`.
        table: path of the table that the data came from, if any.
        columns: options of `from_table`, which name its column of paths or texts.

    Raises:
        InputError: if there is no such column, or no table.
    """
    names = data.examples[split].names
    if by == "folder":
        return [_folder(name, data.root) for name in names]
    if by == "size":
        return data.modality.sizes(
            check_readers([data.examples[split].images], data.modality).columns
        )
    return column_values(table, by, names, columns)


def column_values(
    table, column: str, names: Sequence[str], columns: Mapping | None = None
) -> list[str]:
    """Return the value of a table's column for each example; relative paths start at its folder.

    Raises:
        InputError: if the table or the column is missing, or an example is not in the table.
    """
    cells, source = check_columns(table, column, columns)
    of_path = dict(zip(source.names, cells.columns[column]))
    missing = next((name for name in names if name not in of_path), None)
    if missing is not None:
        raise InputError(f"{cells.name} has no row for {missing}.")
    return [str(of_path[name]) for name in names]


def check_columns(table, column: str, columns: Mapping | None = None) -> tuple:
    """Return the cells of a table that has a column, and what its rows stand for.

    Raises:
        InputError: if the table, or that column or the one of the examples, is missing.
    """
    if table is None or Path(table).suffix.lower() not in TABLES:
        raise InputError(
            f"Invalid slice {column}: choose folder, size, or a column of a table; "
            f"{table or 'this data'} is not a table."
        )
    cells = read_columns(table)
    named = {k: v for k, v in (columns or {}).items() if k in ("path_column", "text_column")}
    options = TableOptions(**named)
    kind, examples = options.examples(cells)
    Cells(cells.columns, cells.name).require([column, *options.pair])
    cells = options.joined(cells)
    Cells(cells.columns, cells.name).require([column, examples])
    return cells, rows_of(cells, kind, examples, Path(table).parent.expanduser())


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
        {"value": str(names[i]), "images": int(counts[i]), **measure(np.flatnonzero(groups == i))}
        for i in sorted(largest, key=lambda i: _natural(names[i]))
    ]


def _natural(name):
    """Return a sort key that orders numbers by value: 64–127 px comes before 128–255 px."""
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", name) if p]


def _folder(name, root):
    folder = os.path.dirname(os.path.relpath(name, root)).replace(os.sep, "/")  # noqa: PTH120
    return folder or "."
