"""A list of problems in a dataset, as a table to edit, and its actions applied to the data.

`keras-transfer check --deep --write-list FILE.csv` writes the list. A person fills in the column `action`:
`relabel` (to what the column `suggested` says, which may be edited), `drop`, or `keep`; an empty cell changes
nothing either.
"""

import csv
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from keras_transfer.data.classes import require_each_class
from keras_transfer.data.examples import (
    SEPARATOR,
    Examples,
    ImageData,
    Target,
    map_labels,
    relative_paths,
)
from keras_transfer.data.files import Skipped
from keras_transfer.errors import InputError
from keras_transfer.utils.console import counted, listed, say, verb
from keras_transfer.utils.files import csv_rows

FIELDS = ("path", "problem", "label", "suggested", "score", "related", "action", "reason")
ACTIONS = ("relabel", "drop", "keep")


def correct(data: ImageData, path: str | os.PathLike) -> ImageData:
    """Return a dataset with other labels, or without some examples, as a list says.

    The examples stay in their splits; a label changes, and an example that is dropped is listed in
    `skipped`.

    Args:
        path: a CSV file with the columns `path`, `suggested` and `action`, see `FIELDS`.

    Raises:
        InputError: the file, an action or a label is invalid, or a class loses all its training examples.
    """
    actions = read_corrections(path)
    known: set[str] = set()
    dropped, examples = [], {}
    for split, part in data.examples.items():
        names = relative_paths(part.names, data.root)
        known.update(names)
        rows, labels = [], map_labels(np.copy, part.labels)
        for row, name in enumerate(names):
            action, suggested, line = actions.get(name, ("keep", "", 0))
            if action == "drop":
                dropped.append(Skipped(part.names[row], f"dropped by {Path(path).name}"))
                continue
            rows.append(row)
            if action == "relabel":
                _relabel(labels, row, suggested, data.targets, f"{path}, line {line}")
        whole = Examples(part.images, labels, part.groups)
        examples[split] = whole if len(rows) == len(part) else whole.take(np.array(rows, int))
    if missing := sorted(actions.keys() - known):
        if len(missing) == len(actions) and "train" in examples:
            first = next(iter(sorted(known)), "")
            raise InputError(
                f"{path} names none of the examples: its paths must be relative to {data.root}, like "
                f"{first}, not {missing[0]}"
            )
        if "train" in examples:
            say(
                f"{path} names {counted(len(missing), 'example')} that {verb(len(missing))} not in the data: {listed(missing)}"
            )
    if "train" in examples:
        require_each_class(examples["train"].labels, data.targets, path)
    relabeled = sum(action == "relabel" for name, (action, *_) in actions.items() if name in known)
    say(f"{path}: {relabeled} relabeled, {len(dropped)} dropped")
    changed = replace(data, examples=examples, skipped=[*data.skipped, *dropped])
    changed.source = data.source
    return changed


def read_corrections(path: str | os.PathLike) -> dict[str, tuple[str, str, int]]:
    """Read a list: path → (action, suggested label, line), of the rows that change something.

    Raises:
        InputError: the file or a column is missing, an action is unknown, or actions contradict.
    """
    path = Path(path).expanduser()
    found: dict[str, tuple[str, str, int]] = {}
    try:
        reader = csv_rows(path)
        missing = {"path", "suggested", "action"} - set(reader.fieldnames or ())
        if missing:
            raise InputError(
                f"{path} has no column {' and no column '.join(sorted(missing))}; "
                "`keras-transfer check DATA --deep --write-list` writes such a list"
            )
        for row in reader:
            action, line = (row["action"] or "").strip().lower(), reader.line_num
            if action in ("", "keep"):
                continue
            if action not in ACTIONS:
                raise InputError(
                    f"{path}, line {line}: action {action!r} must be one of {', '.join(ACTIONS)}"
                )
            if not row["path"]:
                raise InputError(f"{path}, line {line} has no path: fill it in or remove the line")
            value = action, row["suggested"] or "", line
            other = found.setdefault(row["path"], value)
            if other[0] != action or (action == "relabel" and other[1] != value[1]):
                raise InputError(
                    f"{path}, lines {other[2]} and {line}: {row['path']} has two different actions; "
                    "choose one"
                )
    except OSError as error:
        raise InputError(f"cannot read the list {path}: {error.strerror}") from None
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file: {error}") from None
    return found


def _relabel(labels: Any, row: int, text: str, targets: Any, where: str) -> None:
    """Write a label, in the form of `label_texts`, into a row of the labels."""
    if not isinstance(targets, dict):
        labels[row] = _parsed(text, targets, where)
        return
    parts = dict(part.split(": ", 1) for part in text.split("; ") if ": " in part)
    for head, target in targets.items():
        labels[head][row] = _parsed(parts.get(head, ""), target, where)


def _parsed(text: str, target: Target, where: str):
    """Return a label as text, in the form of `label_texts`, as its number or row."""
    parse = {"single_label": _class, "multi_label": _several}.get(target.task, _numbers)
    label = parse(text, target.names)
    if label is None:
        raise InputError(
            f"{where}: {text!r} is not a label of the data; write it like {_EXAMPLES[target.task]}, "
            f"with the names {listed(target.names)}"
        )
    return label


_EXAMPLES = {"single_label": "cat", "multi_label": "red|round", "regression": "age=31"}


def _class(text, names):
    return names.index(text) if text in names else None


def _several(text, names):
    parts = text.split(SEPARATOR) if text else []
    if not set(parts) <= set(names):
        return None
    return np.isin(names, parts).astype("float32")


def _numbers(text, names):
    values = dict(part.split("=", 1) for part in text.split(", ") if "=" in part)
    try:
        return np.array([float(values[name]) for name in names], "float32")
    except (KeyError, ValueError):
        return None
