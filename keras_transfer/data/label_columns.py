"""Labels from the columns of a table: classes, several labels, numbers, and one of these per head."""

import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from keras_transfer.data.classes import sorted_names
from keras_transfer.data.examples import SEPARATOR, Target
from keras_transfer.errors import InputError
from keras_transfer.utils.console import listed, say

LABEL_KINDS = ("label_column", "label_columns", "targets")
# What several columns may be named for; a pair of texts is two.
MOST_COLUMNS = {"label_columns": math.inf, "targets": math.inf, "text_column": 2}
_BINARY = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
_EMPTY = {"", "NA", "N/A", "#N/A", "NaN", "nan", "<NA>", "null", "NULL"}  # as text
_BRACKETS = re.compile(r"[\[({]((.*['\",].*)|[\s\d.]*)[\])}]", re.DOTALL)
_LARGEST = float(np.finfo(np.float32).max)
_SHOWN = 100  # characters of a cell in a message
_INTEGRAL = re.compile(r"[+-]?\d+(\.0+)?")  # pandas writes integers so where values are missing


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
        label_column: column of classes: names or integers. Lists are read as several labels.
        label_columns: a list of columns of 0 and 1 (or true and false), one per label; or the name of
            one column of lists, or of labels joined by `|`, where a single `|` means no label.
        targets: columns of numbers.
        heads: name of the head → one of the three above: `{"kind": {"label_column": "species"},
            "age": {"targets": ["years"]}}`.
        known: what these labels must match: the target of the training rows.
        table, rows: name of the table and number of each row, for messages; by default 1, 2, ….

    Returns:
        Labels as described in `data.examples`, and the `Target`; with several heads a dict of each.
        Classes are sorted by name, or by value if all are integers.

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
    names = column_names(kind, wanted)
    cells = Cells(columns, table, rows)
    cells.require(names)
    cells.columns = {name: list(columns[name]) for name in names}
    if kind == "targets":
        labels, target = _numbers(cells)
    elif kind == "label_column" and not has_lists(columns[names[0]]):
        labels, target = _classes(cells, known)
    elif isinstance(wanted, str) and not all(map(_is_binary, columns[wanted])):
        labels, target = _several_labels(cells, known)
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


def column_names(kind: str, wanted) -> list[str]:
    """Return the names of the columns that an argument gives; InputError if it gives no names."""
    most = MOST_COLUMNS.get(kind, 1)
    names = [wanted] if isinstance(wanted, (str, int)) else wanted
    valid = isinstance(names, Sequence) or (hasattr(names, "__iter__") and not _is_map(names))
    names = [str(name).strip() for name in names] if valid else []
    if not 0 < len(names) <= most:
        what = "the name of one column" if most == 1 else "names of columns"
        what += ", at most 2" if most == 2 else ""
        raise InputError(f"{kind} must be {what}, not {wanted!r}.")
    return names


def _is_map(value):
    return isinstance(value, (Mapping, set, frozenset))


def _read_heads(columns, heads, known, table, rows):
    if not isinstance(heads, Mapping):
        raise InputError(
            "heads must be names and columns, such as {'kind': {'label_column': 'species'}}, not "
            f"{heads!r}."
        )
    if len(heads) < 2:
        raise InputError(f"heads needs at least two heads, not {len(heads)}.")
    if known is not None and (not isinstance(known, dict) or known.keys() != heads.keys()):
        expected = f"the heads {', '.join(known)}" if isinstance(known, dict) else "one head"
        raise InputError(
            f"{table}: the heads {', '.join(heads)} are named, but expected is {expected}."
        )
    labels, targets_of = {}, {}
    for name, options in heads.items():
        if not isinstance(options, Mapping) or options.keys() - set(LABEL_KINDS):
            raise InputError(
                f"Head {name!r}: pass label_column, label_columns or targets, not {options!r}."
            )
        labels[name], targets_of[name] = read_targets(
            columns, **options, known=known and known[name], table=table, rows=rows
        )
    return labels, targets_of


def columns_of_labels(options: Mapping, known=None) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield (kind, column, names that its cells may have) of the options of `read_targets`."""
    for kind, wanted in options.items():
        if kind == "heads":
            for head, one in wanted.items() if isinstance(wanted, Mapping) else ():
                if isinstance(one, Mapping):
                    names = known.get(head) if isinstance(known, dict) else None
                    yield from columns_of_labels(one, names)
        else:
            names = known.names if isinstance(known, Target) else ()
            for column in column_names(kind, wanted):
                yield kind, column, names


def rows_without_labels(
    columns: Mapping[str, Sequence], options: Mapping, known=None
) -> dict[int, str]:
    """Return position → column of the rows in which a label is empty, or says `NA` or `nan`.

    Args:
        options: the arguments of `read_targets` that name columns.
        known: targets or None; a class of that name is not an empty cell.
    """
    found: dict[int, str] = {}
    for _, column, names in columns_of_labels(options, known):
        for i, value in enumerate(columns[column]):
            if is_missing(value, names):
                found.setdefault(i, column)
    return dict(sorted(found.items()))


def has_lists(values) -> bool:
    """Return whether cells are lists, tuples, sets or arrays, not texts and numbers."""
    return any(_is_list(value) for value in values)


class Cells:
    """Columns, with the position of each cell for messages."""

    def __init__(self, columns, table, rows=None):
        self.columns, self.table, self.rows = columns, table, rows

    def require(self, names):
        for name in names:
            if name not in self.columns:
                raise InputError(
                    f"{self.table} has no column {name!r}; it has {', '.join(self.columns)}."
                )

    def read(self, column: str, parse: Callable, problem: str, names: Sequence[str] = ()) -> list:
        """Parse each cell; `parse` raises for an invalid cell, `problem` describes it.

        Args:
            names: texts that are not empty cells, whatever they are.
        """
        values = []
        for index, value in enumerate(self.columns[column]):
            if is_missing(value, names):
                raise InputError(
                    f"{self.where(index)}: {column} is empty; fill it in or remove the row."
                )
            try:
                values.append(parse(value))
            except InputError:
                raise
            except (TypeError, ValueError, KeyError):
                raise InputError(
                    f"{self.where(index)}: {column} is {_shown(value)}, {problem}."
                ) from None
        return values

    def find(self, parse: Callable, problem: str, known) -> tuple[list[list[int]], tuple]:
        """Return the positions of the names in each cell, which `parse` returns, and all names."""
        (column,) = self.columns
        read = self.read(column, parse, problem, known.names if known else ())
        names = known.names if known else sorted_names(set().union(*read))
        at = {name: i for i, name in enumerate(names)}
        for index, found in enumerate(read):
            for name in found:
                if name not in at:
                    raise InputError(
                        f"{self.where(index)}: {column} has {name!r}, which is not among the known "
                        f"{listed(names)}."
                    )
        return [[at[name] for name in found] for found in read], names

    def where(self, index):
        return f"{self.table}, row {index + 1 if self.rows is None else self.rows[index]}"


def _shown(value) -> str:
    """Return a cell for a message; a cell may be a whole text or the bytes of an image."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def is_missing(value, names: Sequence[str] = ()) -> bool:
    """Return whether a cell is empty; a text such as `NA` is not if it is one of `names`."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # pandas
        return True
    if isinstance(value, str):
        return value.strip() in _EMPTY and value.strip() not in names
    return not _is_list(value) and bool(value != value)


def _is_list(value):
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, (list, tuple, set, frozenset))


# -- numbers --------------------------------------------------------------------------------------


def _numbers(cells):
    def number(value):
        if isinstance(value, (bool, np.bool_)) or not abs(float(value)) <= _LARGEST:
            raise ValueError
        return float(value)

    problem = f"which is not a number up to {_LARGEST:.2g} (decimals are written with a point)"
    read = [cells.read(name, number, problem) for name in cells.columns]
    return np.array(read, np.float32).T.copy(), Target("regression", tuple(cells.columns))


# -- classes --------------------------------------------------------------------------------------


def _classes(cells, known):
    (column,) = cells.columns
    names = known.names if known else ()
    texts = set(cells.read(column, _text, "which is not UTF-8", names))
    integers = all(_INTEGRAL.fullmatch(text) for text in texts) and not texts <= set(names)

    def class_name(value):
        if isinstance(
            value, (float, np.floating)
        ):  # how pandas stores integers with missing values
            if not float(value).is_integer():
                raise ValueError
            value = int(value)
        text = _text(value)
        return [text.partition(".")[0] if integers else text]

    _refuse_list_texts(cells, names)
    found, names = cells.find(class_name, "which is not a class name", known)
    return np.array(found, np.int32).reshape(-1), Target("single_label", names)


def _text(value):
    return (value.decode() if isinstance(value, bytes) else str(value)).strip()


def _refuse_list_texts(cells, names, joined=False):
    """Raise InputError if a cell contains a list as text, which would become one label's name.

    Commas may belong to a name (`tench, Tinca tinca`), so a cell with separators is a list if one of
    its parts occurs in another cell too, or if the cells are said to contain several labels.
    """
    ((column, values),) = cells.columns.items()
    texts = [_text(value) if isinstance(value, (str, bytes)) else "" for value in values]
    parts = {text: _parts(text) for text in {*texts} - {*names}}
    occurs = Counter(part for found in parts.values() for part in {*found})
    suspects = {
        text
        for text, found in parts.items()
        if _BRACKETS.fullmatch(text)
        or (len(found) > 1 and (joined or any(occurs[part] > 1 for part in found)))
    }
    index = next((i for i, text in enumerate(texts) if text in suspects), None)
    if index is not None:
        option = f"label_columns={column!r}, {shlex.join(['--column', f'labels={column}'])}"
        raise InputError(
            f"{cells.where(index)}: {column} is {texts[index]!r}, which looks like a list: write several "
            f"labels as {SEPARATOR.join(_parts(texts[index])[:3] or ['a', 'b'])}, joined by {SEPARATOR}"
            + ("." if joined else f", and pass {option} (or pass class_names if it is one name).")
        )
    joined_names = [text for text, found in parts.items() if len(found) > 1]
    if joined_names and not joined:
        say(
            f"{cells.table}: {column} has names such as {min(joined_names)!r}; each is one class (for several "
            f"labels, joined by {SEPARATOR}, pass --column {shlex.quote(f'labels={column}')})"
        )


def _parts(text):
    parts = re.split(r"[,;|]|(?<=['\"])\s+(?=['\"])", text.strip("[](){} "))
    return [part for part in (part.strip(" '\"\n") for part in parts) if part]


# -- several labels -------------------------------------------------------------------------------


def _binary_columns(cells):
    read = [
        cells.read(name, _binary, "but must be 0 or 1 (or true or false)") for name in cells.columns
    ]
    return np.array(read, np.float32).T.copy(), Target("multi_label", tuple(cells.columns))


def _binary(value):
    return _BINARY[str(value).strip().lower()]


def _is_binary(value):
    return is_missing(value) or str(value).strip().lower() in _BINARY


def _several_labels(cells, known):
    def labels_of(value):
        parts = list(value) if _is_list(value) else _text(value).split(SEPARATOR)
        return {_text(part) for part in parts if not is_missing(part)} - {""}

    (values,) = cells.columns.values()
    if not any(isinstance(value, str) and SEPARATOR in value for value in values):
        _refuse_list_texts(cells, known.names if known else (), joined=True)
    found, names = cells.find(labels_of, "which is not a list of labels", known)
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
