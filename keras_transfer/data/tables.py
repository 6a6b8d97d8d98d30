"""Tables (CSV, Parquet, pandas) of picture paths and labels as a source."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from keras_transfer.data.arrays import encode_labels
from keras_transfer.data.files import Skipped
from keras_transfer.data.index import check_pictures
from keras_transfer.data.sources import Examples, ImageData, assembled
from keras_transfer.data.split_rule import SplitRule
from keras_transfer.errors import InputError

TABLES = (".csv", ".tsv", ".parquet")
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def from_table(
    table,
    *,
    path_column: str = "path",
    label_column: str = "label",
    split_column: str | None = None,
    root: str | os.PathLike | None = None,
    class_names: Sequence[str] | None = None,
    progress: bool = True,
    **rule,
) -> ImageData:
    """Pictures named in a table, one row each.

    Args:
        table: a `.csv`, `.tsv` or `.parquet` file, a pandas `DataFrame`, or a mapping of column
            names to sequences. (Parquet needs `pip install pyarrow`.)
        path_column: the pictures' files; relative ones lie below `root`.
        label_column: the class of each, names or integers.
        split_column: `train`, `val` or `test` of each; by default `split`, where there is one.
        root: by default the table's folder, or the working directory.
        class_names: in the order wanted; by default sorted.
        progress: show a bar on stderr, if that is a terminal.
        rule: how what is not divided yet is divided: fields of `SplitRule` (`val_split=0.2`, …).

    Raises:
        InputError: a column that the table does not have, empty cells, or no usable picture.
    """
    columns, name = read_columns(table)
    for column in (path_column, label_column, *([split_column] if split_column else ())):
        if column not in columns:
            raise InputError(f"{name} has no column {column!r}; it has {', '.join(columns)}.")
    split_column = split_column or ("split" if "split" in columns else None)
    base = Path(root or (Path(table).parent if isinstance(table, (str, Path)) else "."))
    base = base.expanduser()
    if not len(columns[path_column]):
        raise InputError(f"{name} has no rows.")

    rows = {}  # split → path → label; sorted by path, as the pictures of a folder are
    for number, path in enumerate(columns[path_column], 1):
        label = columns[label_column][number - 1]
        if _empty(path) or _empty(label):
            what = path_column if _empty(path) else label_column
            raise InputError(
                f"{name}, row {number}: {what} is empty; fill it in or remove the row."
            )
        split = columns[split_column][number - 1] if split_column else "train"
        if str(split).lower() not in _SPLITS:
            raise InputError(f"{name}, row {number}: split {split!r} is none of train, val, test.")
        part = rows.setdefault(_SPLITS[str(split).lower()], {})
        path = str(base / path)
        if part.setdefault(path, label) != label:
            raise InputError(
                f"{name}, row {number}: {path} has two labels, {part[path]} and {label}; "
                "keep one, or train with several labels a picture."
            )
    if "train" not in rows:
        raise InputError(f"{name} has no row of train; it has {', '.join(rows)}.")
    names, labels = encode_labels({s: list(part.values()) for s, part in rows.items()}, class_names)
    examples, skipped = {}, []
    for split, part in rows.items():
        found = sorted(zip(labels[split].tolist(), part))  # by class, then path
        good, faulty = check_pictures([path for _, path in found], progress=progress)
        skipped += faulty
        if not len(good):
            raise InputError(_nothing(name, split, faulty))
        label_of = {path: label for label, path in found}
        examples[split] = Examples(good, _array([label_of[path] for path in good.names]))
    return assembled(names, examples, skipped, base, SplitRule(**rule))


def read_columns(table) -> tuple[dict[str, Sequence], str]:
    """(column name → values, what to call the table) of a file, DataFrame or mapping."""
    if isinstance(table, Mapping):
        columns = {str(name): list(values) for name, values in table.items()}
        if len({len(values) for values in columns.values()}) > 1:
            lengths = ", ".join(f"{name} {len(v)}" for name, v in columns.items())
            raise InputError(f"The table's columns differ in length: {lengths}.")
        return columns, "the table"
    if hasattr(table, "columns"):  # a DataFrame, of pandas or of its kin
        return {str(name): table[name].to_list() for name in table.columns}, "the table"
    path = Path(table).expanduser()
    if not path.is_file():
        raise InputError(f"no such file: {path}; check the path")
    kind = path.suffix.lower()
    if kind == ".parquet":
        try:
            import pyarrow.parquet
        except ImportError:
            raise InputError(f"{path}: Parquet needs `pip install pyarrow`.") from None
        read = pyarrow.parquet.read_table(path)
        return {name: read[name].to_pylist() for name in read.column_names}, str(path)
    if kind not in TABLES:
        raise InputError(f"{path} is none of {', '.join(TABLES)}.")
    return _read_csv(path, "\t" if kind == ".tsv" else ","), str(path)


def _read_csv(path, delimiter):
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = csv.reader(file, delimiter=delimiter, strict=True)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 CSV: {error}.") from None
    except ValueError:
        raise InputError(f"{path} is empty.") from None
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise InputError(
                f"{path}, row {number} has {len(row)} cells, but the header has {len(header)}; "
                "put quotes around cells with commas."
            )
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def _empty(value):
    return value is None or value == "" or value != value  # NaN is what pandas has for nothing


def _nothing(name, split, faulty: list[Skipped]):
    why = f" ({faulty[0].path}: {faulty[0].reason})" if faulty else ""
    return f"{name} names no readable picture of {split}{why}; check the paths and root."


def _array(labels):
    import numpy as np

    return np.array(labels, np.int32)
