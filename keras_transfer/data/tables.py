"""Tables (CSV, Parquet, pandas) of image paths and labels as a source."""

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from keras_transfer.data.examples import (
    SEPARATOR,
    Examples,
    ImageData,
    Target,
    label_texts,
    map_labels,
)
from keras_transfer.data.files import TABLES, check_images
from keras_transfer.data.split_rule import SPLIT_NAMES, SplitRule, divide
from keras_transfer.errors import InputError
from keras_transfer.utils.extras import require
from keras_transfer.utils.names import make_options

_MAX_SHOWN = 10
_BINARY = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


@dataclass(frozen=True)
class TableOptions(SplitRule):
    """What the columns of a table hold, and how the missing splits are drawn.

    Attributes:
        path_column: column of image files; relative paths start at `root`.
        label_column: column of classes, names or integers; by default `label`.
        label_columns, targets, heads: columns of other labels, see `read_targets`.
        split_column: column of `train`, `val` or `test`; by default `split`, if it exists.
        group_column: column of groups that stay in one split, such as a person or a patient.
        val_split, test_split, groups, folds, fold, split_file, seed: see `SplitRule`.
    """

    path_column: str = "path"
    label_column: str | None = None
    label_columns: str | Sequence[str] | None = None
    targets: str | Sequence[str] | None = None
    heads: Mapping[str, Mapping] | None = None
    split_column: str | None = None
    group_column: str | None = None

    @property
    def labels(self) -> dict:
        """The arguments of `read_targets` that are given."""
        kinds = ("label_column", "label_columns", "targets", "heads")
        given = {kind: value for kind in kinds if (value := getattr(self, kind))}
        return given or {"label_column": "label"}


def table_columns(columns: Mapping | None, task: str | dict[str, str]) -> dict:
    """Return the options of `from_table` that are given; those of several labels are named so."""
    columns = {name: value for name, value in (columns or {}).items() if value is not None}
    if task == "multi_label" and "label_columns" not in columns:
        columns["label_columns"] = columns.pop("label_column", "label")
    return columns


def from_table(
    table,
    *,
    root: str | os.PathLike | None = None,
    class_names: Sequence[str] | None = None,
    known: Target | dict[str, Target] | None = None,
    progress: bool = True,
    **options,
) -> ImageData:
    """Open images that a table lists, one per row.

    Args:
        table: a `.csv`, `.tsv` or `.parquet` file, a pandas `DataFrame`, or a mapping of column
            names to sequences. (Parquet needs the extra `parquet`.)
        root: by default the table's folder, or the working directory.
        class_names: classes of `label_column` in the desired order; by default sorted.
        known: what a model predicts, to evaluate it: the labels must match, and no splits are drawn;
            rows without a split form the split "all".
        progress: show a bar on stderr, in a terminal or a notebook.
        options: fields of `TableOptions`: `path_column`, `label_column`, `label_columns`, `targets`,
            `heads`, `split_column`, `group_column`, and those of `SplitRule` (`val_split=0.2`, …).

    Raises:
        InputError: if a column is missing, a cell is empty, or there is no usable image.
    """
    settings = make_options(TableOptions, options, "from_table")
    columns, name = read_columns(table)
    cells = _Cells(columns, name)
    split_column = settings.split_column or ("split" if "split" in columns else None)
    given = (settings.path_column, split_column, settings.group_column)
    cells.require([column for column in given if column is not None])
    base = Path(root or (Path(table).parent if isinstance(table, (str, Path)) else "."))
    base = base.expanduser()
    paths = cells.read(settings.path_column, base.joinpath, "which is not a path")
    if not paths:
        raise InputError(f"{name} has no rows.")
    splits = _splits(columns, split_column, name, len(paths), "all" if known else "train")
    if settings.group_column is not None:
        groups = cells.read(settings.group_column, str, "which is not a name")
        group_of = {os.path.normpath(path): group for path, group in zip(paths, groups)}
        settings = replace(
            settings, groups=lambda relative: group_of[os.path.normpath(base / relative)]
        )

    evaluating = known is not None
    if class_names and not evaluating:
        known = Target("single_label", tuple(class_names))
    examples, skipped = {}, []
    for split in ("train", "val", "test", "all"):
        rows = [i for i, given in enumerate(splits) if given == split]
        if not rows:
            continue
        part = {column: [values[i] for i in rows] for column, values in columns.items()}
        numbers = [i + 1 for i in rows]
        labels, known = read_targets(part, **settings.labels, known=known, table=name, rows=numbers)
        labels_of: dict[str, int] = {}  # path → place in `labels`
        for place, i in enumerate(rows):
            first = labels_of.setdefault(str(paths[i]), place)
            both = map_labels(lambda a: a[[first, place]], labels)  # noqa: B023
            one, other = label_texts(both, known)
            if one != other:
                raise InputError(
                    f"{name}, row {i + 1}: {paths[i]} has two labels, {one} and {other}; remove one, "
                    "or train with several labels per image (label_columns)."
                )
        by_class = isinstance(known, Target) and known.task == "single_label"
        ordered_paths = sorted(
            labels_of, key=lambda p: (labels[labels_of[p]] if by_class else 0, p)
        )
        good, faulty = check_images(ordered_paths, progress=progress)
        skipped += faulty
        if not len(good):
            why = f" ({faulty[0].path}: {faulty[0].reason})" if faulty else ""
            raise InputError(
                f"{name} lists no readable image for {split}{why}; check the paths and root."
            )
        places = [labels_of[path] for path in good.names]
        examples[split] = Examples(good, map_labels(lambda a: a[places], labels))  # noqa: B023
    assert known is not None, "read_targets has set it"
    if evaluating:
        names = () if isinstance(known, dict) else known.names
        return ImageData(names, examples, skipped, str(base), known)
    return divide(known, examples, skipped, base, settings)


def _splits(columns, column, table, count, default):
    """Return the split of each row; `default` if the table has no splits."""
    if column is None:
        return [default] * count
    splits = [SPLIT_NAMES.get(str(given).strip().lower()) for given in columns[column]]
    if None in splits:
        row = splits.index(None)
        given = columns[column][row]
        raise InputError(f"{table}, row {row + 1}: split {given!r} is not train, val or test.")
    if default == "train" and "train" not in splits:
        raise InputError(f"{table} has no train rows; it has {', '.join(sorted(set(splits)))}.")
    return splits


def read_columns(table) -> tuple[dict[str, Sequence], str]:
    """Return (column name → values, name of the table) for a file, DataFrame or mapping."""
    if isinstance(table, Mapping):
        columns: dict[str, Sequence] = {str(name): list(of) for name, of in table.items()}
        if len({len(values) for values in columns.values()}) > 1:
            lengths = ", ".join(f"{name} {len(v)}" for name, v in columns.items())
            raise InputError(f"The table's columns differ in length: {lengths}.")
        return columns, "the table"
    if hasattr(table, "columns"):  # a DataFrame of pandas or a similar library
        return {str(name): table[name].to_list() for name in table.columns}, "the table"
    path = Path(table).expanduser()
    if not path.is_file():
        raise InputError(f"no such file: {path}; check the path")
    kind = path.suffix.lower()
    if kind == ".parquet":
        require("pyarrow", f"Reading {path.name}")
        import pyarrow.parquet

        try:
            read = pyarrow.parquet.read_table(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read as Parquet: {error}") from None
        return {name: read[name].to_pylist() for name in read.column_names}, str(path)
    if kind not in TABLES:
        raise InputError(f"{path} is not one of {', '.join(TABLES)}.")
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


# -- labels ---------------------------------------------------------------------------------------


def read_targets(
    columns: Mapping[str, Sequence],
    *,
    label_column: str | None = None,
    label_columns: str | Sequence[str] | None = None,
    targets: str | Sequence[str] | None = None,
    heads: Mapping[str, Mapping] | None = None,
    known: "Target | dict[str, Target] | None" = None,
    table: str = "the table",
    rows: Sequence[int] | None = None,
) -> tuple:
    """Return (labels, target) of the rows of a table; pass exactly one of the first four options.

    Args:
        columns: column name → one value per row.
        label_column: column of classes: names or integers.
        label_columns: a list of columns of 0 and 1 (or true and false), one per label; or the name of
            one column of labels joined by `|`, where a single `|` means no label.
        targets: columns of numbers.
        heads: name of the head → one of the three above: `{"kind": {"label_column": "species"},
            "age": {"targets": ["years"]}}`.
        known: what these labels must match: the target of the training rows.
        table, rows: name of the table and number of each row, for messages; by default 1, 2, ….

    Returns:
        Labels as described in `data.examples`, and the `Target`; with several heads a dict of each.

    Raises:
        InputError: if a column is missing, a cell is empty or invalid, a class or label is not in
            `known`, or (without `known`) a column has the same value in every row.
    """
    options = dict(
        label_column=label_column, label_columns=label_columns, targets=targets, heads=heads
    )
    options = {key: value for key, value in options.items() if value is not None}
    if len(options) != 1:
        raise InputError(
            f"Pass exactly one of label_column, label_columns, targets and heads, not "
            f"{' and '.join(options) or 'none'}."
        )
    ((kind, wanted),) = options.items()
    if kind == "heads":
        return _read_heads(columns, wanted, known, table, rows)
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    cells = _Cells(columns, table, rows)
    cells.require(names)
    cells.columns = {name: list(columns[name]) for name in names}
    if kind == "targets":
        labels, target = _numbers(cells)
    elif kind == "label_column":
        labels, target = _classes(cells, known)
    elif isinstance(wanted, str) and not all(map(_is_binary, columns[wanted])):
        labels, target = _joined_labels(cells, known)
    else:
        labels, target = _binary_columns(cells)
    if known is None:
        _require_variety(labels, target, cells)
    elif target != known:
        assert isinstance(known, Target), "heads are read one at a time"
        raise InputError(
            f"{table} has {target.task} labels {', '.join(target.names)}, but expected are "
            f"{known.task} labels {', '.join(known.names)}."
        )
    return labels, target


def _read_heads(columns, heads, known, table, rows):
    if len(heads) < 2:
        raise InputError(f"heads needs at least two heads, not {len(heads)}.")
    labels, targets_of = {}, {}
    for name, options in heads.items():
        kinds = {"label_column", "label_columns", "targets"}
        if not isinstance(options, Mapping) or options.keys() - kinds:
            raise InputError(
                f"Head {name!r}: pass label_column, label_columns or targets, not {options!r}."
            )
        labels[name], targets_of[name] = read_targets(
            columns, **options, known=known and known[name], table=table, rows=rows
        )
    return labels, targets_of


class _Cells:
    """Columns, with the position of each cell for messages."""

    def __init__(self, columns, table, rows=None):
        self.columns, self.table, self.rows = columns, table, rows

    def require(self, names):
        for name in names:
            if name not in self.columns:
                raise InputError(
                    f"{self.table} has no column {name!r}; it has {', '.join(self.columns)}."
                )

    def read(self, column: str, parse: Callable, problem: str) -> list:
        """Parse each cell; `parse` raises for an invalid cell, `problem` describes it."""
        values = []
        for index, value in enumerate(self.columns[column]):
            if _is_missing(value):
                raise InputError(
                    f"{self.where(index)}: {column} is empty; fill it in or remove the row."
                )
            try:
                values.append(parse(value))
            except (TypeError, ValueError, KeyError):
                raise InputError(
                    f"{self.where(index)}: {column} is {value!r}, {problem}."
                ) from None
        return values

    def find(self, parse: Callable, problem: str, known) -> tuple[list[list[int]], tuple]:
        """Return the positions of the names in each cell, which `parse` returns, and all names."""
        (column,) = self.columns
        read = self.read(column, parse, problem)
        names = known.names if known else tuple(sorted(set().union(*read)))
        at = {name: i for i, name in enumerate(names)}
        for index, found in enumerate(read):
            for name in found:
                if name not in at:
                    listed = ", ".join(names[:_MAX_SHOWN]) + ", …" * (len(names) > _MAX_SHOWN)
                    raise InputError(
                        f"{self.where(index)}: {column} has {name!r}, which is not among the known "
                        f"{listed}."
                    )
        return [[at[name] for name in found] for found in read], names

    def where(self, index):
        return f"{self.table}, row {index + 1 if self.rows is None else self.rows[index]}"


def _is_missing(value):
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # pandas
        return True
    return bool(value != value) or (isinstance(value, str) and not value.strip())


def _numbers(cells):
    def number(value):
        if isinstance(value, (bool, np.bool_)) or not np.isfinite(float(value)):
            raise ValueError
        return float(value)

    read = [cells.read(name, number, "which is not a number") for name in cells.columns]
    return np.array(read, np.float32).T.copy(), Target("regression", tuple(cells.columns))


def _classes(cells, known):
    found, names = cells.find(_class_name, "which is not a class name", known)
    return np.array(found, np.int32).reshape(-1), Target("single_label", names)


def _class_name(value):
    if isinstance(value, (float, np.floating)):  # how pandas stores integers with missing values
        if not float(value).is_integer():
            raise ValueError
        value = int(value)
    return [str(value).strip()]


def _binary_columns(cells):
    read = [
        cells.read(name, _binary, "but must be 0 or 1 (or true or false)") for name in cells.columns
    ]
    return np.array(read, np.float32).T.copy(), Target("multi_label", tuple(cells.columns))


def _binary(value):
    return _BINARY[str(value).strip().lower()]


def _is_binary(value):
    return _is_missing(value) or str(value).strip().lower() in _BINARY


def _joined_labels(cells, known):
    def parts(value):
        return {part.strip() for part in str(value).split(SEPARATOR)} - {""}

    found, names = cells.find(parts, "which is not a list of labels", known)
    labels = np.zeros((len(found), len(names)), np.float32)
    for row, positions in zip(labels, found):
        row[positions] = 1
    return labels, Target("multi_label", names)


def _require_variety(labels, target, cells):
    columns = ", ".join(cells.columns)
    if target.task == "single_label":
        if len(target.names) < 2:
            raise InputError(
                f"{cells.table}: {columns} has only one class ({', '.join(target.names)})."
            )
        return
    same = [name for name, column in zip(target.names, labels.T) if np.ptp(column) == 0]
    if same or not target.names:
        what = f"{', '.join(same)} is the same in every row" if same else f"{columns} has no label"
        raise InputError(f"{cells.table}: {what}: there is nothing to learn; remove it.")
