"""What images are labelled with: columns of a table as arrays, and what is known of such arrays.

Labels of n images are an int32 array [n] (one class each), a float32 array [n, L] of 0 and 1 (any
number of labels each), a float32 array [n, D] (numbers), or a dict of such arrays, one a head. No
TensorFlow here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from keras_transfer.errors import InputError

TASKS = ("single_label", "multi_label", "regression")
SEPARATOR = "|"
_MOST_SHOWN = 10


@dataclass(frozen=True)
class Target:
    """What one head is taught.

    Attributes:
        task: one of `TASKS`.
        names: of the classes, of the labels, or of the numbers, in the order of the array.
    """

    task: str
    names: tuple[str, ...]

    def __post_init__(self):
        if self.task not in TASKS:
            raise InputError(f"task must be one of {', '.join(TASKS)}, not {self.task!r}.")
        object.__setattr__(self, "names", tuple(map(str, self.names)))


def described(config: dict) -> "Target | dict[str, Target]":
    """What a run answers, as its `config.yaml` says it."""
    if "heads" in config:
        return {name: Target(**head) for name, head in config["heads"].items()}
    return Target(**config["head"])


# -- from columns ---------------------------------------------------------------------------------


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
    """(labels, target) of the rows of a table; exactly one of the first four options is given.

    Args:
        columns: column name → a value a row.
        label_column: of one class a row: names or whole numbers.
        label_columns: a list of columns of 0 and 1 (or true and false), one a label; or the name of
            one column of labels joined by `|`, where a lone `|` says that the image has none.
        targets: columns of numbers.
        heads: name of the head → one of the three above: `{"kind": {"label_column": "species"},
            "age": {"targets": ["years"]}}`.
        known: what these labels must fit: the result for the training rows.
        table, rows: what to call the table, and each row's number, in messages. [1, 2, …]

    Returns:
        Labels as this module has them, and the `Target` (of several heads a dict of both).

    Raises:
        InputError: no such column, a cell that is empty or no such value, a class or label that is
            not `known`, or (where nothing is known) a column that is the same in every row.
    """
    given = {
        "label_column": label_column,
        "label_columns": label_columns,
        "targets": targets,
        "heads": heads,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if len(given) != 1:
        raise InputError(
            f"Give one of label_column, label_columns, targets and heads, not "
            f"{' and '.join(given) or 'none'}."
        )
    ((kind, wanted),) = given.items()
    if kind == "heads":
        return _read_heads(columns, wanted, known, table, rows)
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if name not in columns:
            raise InputError(f"{table} has no column {name!r}; it has {', '.join(columns)}.")
    cells = _Cells({name: list(columns[name]) for name in names}, table, rows)
    if kind == "targets":
        found = _numbers(cells)
    elif kind == "label_column":
        found = _classes(cells, known)
    elif isinstance(wanted, str) and not all(map(_is_binary, columns[wanted])):
        found = _joined_labels(cells, known)
    else:
        found = _binary_columns(cells)
    labels, target = found
    if known is None:
        _require_variety(labels, target, cells)
    elif target != known:
        assert isinstance(known, Target), "several heads are read one by one"
        raise InputError(
            f"{table} has {target.task} labels {', '.join(target.names)}; known are {known.task} "
            f"labels {', '.join(known.names)}."
        )
    return labels, target


def _read_heads(columns, heads, known, table, rows):
    if len(heads) < 2:
        raise InputError(f"heads needs two heads or more, not {len(heads)}.")
    labels, found = {}, {}
    for name, options in heads.items():
        if not isinstance(options, Mapping) or options.keys() - {
            "label_column",
            "label_columns",
            "targets",
        }:
            raise InputError(
                f"Head {name!r}: give label_column, label_columns or targets, not {options!r}."
            )
        labels[name], found[name] = read_targets(
            columns, **options, known=known and known[name], table=table, rows=rows
        )
    return labels, found


class _Cells:
    """Columns with the means to say where something is wrong."""

    def __init__(self, columns, table, rows):
        self.columns, self.table = columns, table
        self.rows = rows

    def read(self, column: str, parse: Callable, what: str) -> list:
        """Each cell through `parse`, which raises ValueError where it is not `what`."""
        return [self._parsed(column, i, x, parse, what) for i, x in enumerate(self.columns[column])]

    def _parsed(self, column, index, value, parse, what):
        if _is_missing(value):
            raise InputError(
                f"{self.where(index)}: {column} is empty; fill it in or remove the row."
            )
        try:
            return parse(value)
        except (TypeError, ValueError):
            raise InputError(f"{self.where(index)}: {column} is {value!r}, {what}.") from None

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

    read = [cells.read(name, number, "which is no number") for name in cells.columns]
    return np.array(read, np.float32).T.copy(), Target("regression", tuple(cells.columns))


def _classes(cells, known):
    (column,) = cells.columns
    values = cells.read(column, _class_name, "which is no name of a class")
    names = known.names if known else tuple(sorted(set(values)))
    at = {name: i for i, name in enumerate(names)}
    for i, value in enumerate(values):
        if value not in at:
            raise _unknown(cells, i, column, value, names)
    return np.array([at[value] for value in values], np.int32), Target("single_label", names)


def _class_name(value):
    if isinstance(value, (float, np.floating)):  # what pandas makes of whole numbers with gaps
        if not float(value).is_integer():
            raise ValueError
        value = int(value)
    return str(value).strip()


def _binary_columns(cells):
    read = [
        cells.read(name, _binary, "but must be 0 or 1 (or true or false)") for name in cells.columns
    ]
    return np.array(read, np.float32).T.copy(), Target("multi_label", tuple(cells.columns))


_BINARY = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


def _binary(value):
    try:
        return _BINARY[str(value).strip().lower()]
    except KeyError:
        raise ValueError from None


def _is_binary(value):
    return _is_missing(value) or str(value).strip().lower() in _BINARY


def _joined_labels(cells, known):
    (column,) = cells.columns

    def parts(value):
        return {part.strip() for part in str(value).split(SEPARATOR)} - {""}

    read = cells.read(column, parts, "which is no list of labels")
    names = known.names if known else tuple(sorted(set().union(*read)))
    at = {name: i for i, name in enumerate(names)}
    labels = np.zeros((len(read), len(names)), np.float32)
    for i, found in enumerate(read):
        for label in found:
            if label not in at:
                raise _unknown(cells, i, column, label, names)
            labels[i, at[label]] = 1
    return labels, Target("multi_label", names)


def _unknown(cells, index, column, value, names):
    shown = ", ".join(names[:_MOST_SHOWN]) + ", …" * (len(names) > _MOST_SHOWN)
    return InputError(
        f"{cells.where(index)}: {column} has {value!r}, which is none of the known {shown}."
    )


def _require_variety(labels, target, cells):
    columns = ", ".join(cells.columns)
    if target.task == "single_label":
        if len(target.names) < 2:
            raise InputError(
                f"{cells.table}: {columns} has one class only ({', '.join(target.names)})."
            )
        return
    same = [name for name, column in zip(target.names, labels.T) if np.ptp(column) == 0]
    if same or not target.names:
        what = f"{', '.join(same)} is the same in every row" if same else f"{columns} has no label"
        raise InputError(f"{cells.table}: {what}: there is nothing to learn; leave it out.")


# -- of arrays --------------------------------------------------------------------------------------


def map_labels(function: Callable, labels):
    """`function` of each head's array."""
    if isinstance(labels, dict):
        return {name: function(array) for name, array in labels.items()}
    return function(labels)


def count(labels) -> int:
    """Number of images."""
    return len(next(iter(labels.values())) if isinstance(labels, dict) else labels)


def joined(parts: Sequence):
    """The labels of several parts, one after the other."""
    if isinstance(parts[0], dict):
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)


def strata(labels, target) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """(labels that a split shall share out evenly, the names of their classes or None).

    Those of the head; of several heads those of the first that has classes, else of the first.
    """
    if isinstance(target, dict):
        first = min(target, key=lambda name: TASKS.index(target[name].task))
        labels, target = labels[first], target[first]
    return labels, None if target.task == "regression" else target.names


def rough_classes(labels) -> np.ndarray:
    """A class for each image, int [n], to compare features by: its class; of several labels the
    first it has; of numbers which side of the median; of several heads the first one's."""
    if isinstance(labels, dict):
        labels = next(iter(labels.values()))
    if labels.ndim == 1:
        return labels
    if np.isin(labels, (0, 1)).all():
        return labels.argmax(axis=1)
    return (labels[:, 0] > np.median(labels[:, 0])).astype(int)


def shown(labels, targets) -> list[str]:
    """Each image's labels in words, e.g. `ant`, `red|round`, `age=31`."""
    if isinstance(targets, dict):
        parts = [[f"{n}: {text}" for text in shown(labels[n], t)] for n, t in targets.items()]
        return ["; ".join(texts) for texts in zip(*parts)]
    if targets.task == "single_label":
        return [targets.names[label] for label in labels]
    if targets.task == "multi_label":
        return [SEPARATOR.join(targets.names[i] for i in np.flatnonzero(row)) for row in labels]
    return [", ".join(f"{n}={x:.9g}" for n, x in zip(targets.names, row)) for row in labels]


def counts_of(labels, target: Target) -> dict[str, int]:
    """Number of images of each class, or with each label; of numbers there are none."""
    if target.task == "regression":
        return {}
    if target.task == "multi_label":
        counts = labels.sum(axis=0).astype(int)
    else:
        counts = np.bincount(labels, minlength=len(target.names))
    return dict(zip(target.names, counts.tolist()))


def summary(labels, targets) -> str:
    """What the labels are, in a line: `ants 12, bees 30`, or `age 3 to 80, mean 31.5`."""
    if isinstance(targets, dict):
        return "; ".join(f"{n}: {summary(labels[n], t)}" for n, t in targets.items())
    if targets.task == "regression":
        texts = [
            f"{name} {column.min():.4g} to {column.max():.4g}, mean {column.mean():.4g}"
            for name, column in zip(targets.names, labels.T)
        ]
    else:
        texts = [f"{name} {n}" for name, n in counts_of(labels, targets).items()]
    if len(texts) > _MOST_SHOWN:
        texts = [*texts[:_MOST_SHOWN], f"and {len(texts) - _MOST_SHOWN} more"]
    return ", ".join(texts)
