"""Tables (CSV, Parquet, pandas) of image paths and labels as a source."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_transfer.data.examples import Examples, ImageData
from keras_transfer.data.files import SPLIT_OF_FOLDER, Skipped
from keras_transfer.data.folders import assembled
from keras_transfer.data.index import check_images
from keras_transfer.data.split_rule import SplitRule
from keras_transfer.data.targets import Target, map_labels, read_targets, shown
from keras_transfer.errors import InputError

TABLES = (".csv", ".tsv", ".parquet")


def from_table(
    table,
    *,
    path_column: str = "path",
    label_column: str | None = None,
    label_columns: str | Sequence[str] | None = None,
    targets: str | Sequence[str] | None = None,
    heads: Mapping[str, Mapping] | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
    root: str | os.PathLike | None = None,
    class_names: Sequence[str] | None = None,
    known: Target | dict[str, Target] | None = None,
    progress: bool = True,
    **rule,
) -> ImageData:
    """Images named in a table, one row each.

    Args:
        table: a `.csv`, `.tsv` or `.parquet` file, a pandas `DataFrame`, or a mapping of column
            names to sequences. (Parquet needs `pip install pyarrow`.)
        path_column: the images' files; relative ones lie below `root`.
        label_column: the class of each, names or integers; by default `label`.
        label_columns, targets, heads: other labels in its place, see `data.targets.read_targets`.
        split_column: `train`, `val` or `test` of each; by default `split`, where there is one.
        group_column: what is never parted in a split, a person or a patient.
        root: by default the table's folder, or the working directory.
        class_names: of `label_column` in the order wanted; by default sorted.
        known: what a model answers, to measure it: the labels must fit, and nothing is divided; rows
            without a split are the split "all".
        progress: show a bar on stderr, in a terminal or a notebook.
        rule: how what is not divided yet is divided: fields of `SplitRule` (`val_split=0.2`, …).

    Raises:
        InputError: a column that the table does not have, empty cells, or no usable image.
    """
    columns, name = read_columns(table)
    split_column = split_column or ("split" if "split" in columns else None)
    for column in (path_column, split_column, group_column):
        if column is not None and column not in columns:
            raise InputError(f"{name} has no column {column!r}; it has {', '.join(columns)}.")
    base = Path(root or (Path(table).parent if isinstance(table, (str, Path)) else "."))
    base = base.expanduser()
    kinds: dict[str, Any] = dict(
        label_column=label_column, label_columns=label_columns, targets=targets, heads=heads
    )
    if not any(kinds.values()):
        kinds["label_column"] = "label"
    paths = [base / path for path in _filled(columns, path_column, name)]
    splits = _splits(columns, split_column, name, len(paths), "all" if known else "train")
    if group_column is not None:
        groups = dict(zip(paths, _filled(columns, group_column, name)))
        rule["groups"] = lambda relative: groups[Path(os.path.normpath(base / relative))]
        groups = {Path(os.path.normpath(path)): group for path, group in groups.items()}

    divided = known is not None
    if class_names and not divided:
        known = Target("single_label", tuple(class_names))
    examples, skipped = {}, []
    for split in ("train", "val", "test", "all"):
        rows = [i for i, given in enumerate(splits) if given == split]
        if not rows:
            continue
        part = {column: [values[i] for i in rows] for column, values in columns.items()}
        numbers = [i + 1 for i in rows]
        labels, known = read_targets(part, **kinds, known=known, table=name, rows=numbers)
        labels_of: dict[str, int] = {}  # path → place in `labels`
        for place, i in enumerate(rows):
            first = labels_of.setdefault(str(paths[i]), place)
            one, other = shown(map_labels(lambda a: a[[first, place]], labels), known)  # noqa: B023
            if one != other:
                raise InputError(
                    f"{name}, row {i + 1}: {paths[i]} has two labels, {one} and {other}; keep one, or "
                    "train with several labels per image (label_columns)."
                )
        ordered = isinstance(known, Target) and known.task == "single_label"
        found = sorted(labels_of, key=lambda p: (labels[labels_of[p]] if ordered else 0, p))
        good, faulty = check_images(found, progress=progress)
        skipped += faulty
        if not len(good):
            raise InputError(_nothing(name, split, faulty))
        places = [labels_of[path] for path in good.names]
        examples[split] = Examples(good, map_labels(lambda a: a[places], labels))  # noqa: B023
    assert known is not None, "read_targets has said what the labels are"
    if divided:
        names = () if isinstance(known, dict) else known.names
        return ImageData(names, examples, skipped, str(base), known)
    return assembled(known, examples, skipped, base, SplitRule(**rule))


def _filled(columns, column, table):
    for number, value in enumerate(columns[column], 1):
        if value is None or value == "" or value != value:  # NaN is what pandas has for nothing
            raise InputError(
                f"{table}, row {number}: {column} is empty; fill it in or remove the row."
            )
    if not len(columns[column]):
        raise InputError(f"{table} has no rows.")
    return columns[column]


def _splits(columns, column, table, count, without):
    """The split of each row; `without` where the table has none."""
    if column is None:
        return [without] * count
    splits = [SPLIT_OF_FOLDER.get(str(given).strip().lower()) for given in columns[column]]
    if None in splits:
        row = splits.index(None)
        given = columns[column][row]
        raise InputError(f"{table}, row {row + 1}: split {given!r} is none of train, val, test.")
    if without == "train" and "train" not in splits:
        raise InputError(f"{table} has no row of train; it has {', '.join(sorted(set(splits)))}.")
    return splits


def read_columns(table) -> tuple[dict[str, Sequence], str]:
    """(column name → values, what to call the table) of a file, DataFrame or mapping."""
    if isinstance(table, Mapping):
        columns: dict[str, Sequence] = {str(name): list(of) for name, of in table.items()}
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
        try:
            read = pyarrow.parquet.read_table(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read as Parquet: {error}") from None
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


def _nothing(name, split, faulty: list[Skipped]):
    why = f" ({faulty[0].path}: {faulty[0].reason})" if faulty else ""
    return f"{name} names no readable image of {split}{why}; check the paths and root."
