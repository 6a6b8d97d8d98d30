"""The classes of a dataset: their order, and that each has an image."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from keras_transfer.data.examples import ImageData, Target, label_counts
from keras_transfer.data.files import Skipped
from keras_transfer.errors import InputError
from keras_transfer.utils.console import listed


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names in the order of classes: sorted, by value if all are integers (2 before 10)."""
    names = set(names)
    if all(re.fullmatch(r"[+-]?[0-9]+", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def require_each_class(
    labels, targets: Target | dict[str, Target], where, skipped: Sequence[Skipped] = ()
) -> None:
    """Raise InputError if a class or label has no image, for a model would have an empty output.

    Args:
        labels: those of the training images that can be read.
        targets: what the labels are.
        where: the source, for the message.
        skipped: images that cannot be read; one is named, in a folder of the class if there is one.
    """
    if isinstance(targets, dict):
        for name, target in targets.items():
            require_each_class(labels[name], target, where, skipped)
        return
    empty = [name for name, count in label_counts(labels, targets).items() if not count]
    if empty:
        several = len(empty) > 1
        own = [item for item in skipped if empty[0] in Path(item.path).parts]
        why = next((f" ({item.path}: {item.reason})" for item in (*own, *skipped)), "")
        raise InputError(
            f"{'classes' if several else 'class'} {listed(empty)} {'have' if several else 'has'} no "
            f"readable example in {where}{why}; add some, or leave the class out"
        )


def in_recorded_order(
    data: ImageData, recorded: Target | dict[str, Target], *, sort: bool = False
) -> ImageData:
    """Return the data with its classes in the order that a run recorded, if they are the same classes.

    Before 0.2, integers were sorted as text. Data with other classes is returned as it is.

    Args:
        recorded: the targets of a run or a model.
        sort: let the images come class by class again, as a source lists them.
    """
    several = isinstance(data.targets, dict)
    if several != isinstance(recorded, dict):
        return data

    def by_head(values) -> dict[str, Any]:
        return values if several else {"": values}

    def whole(values: dict):
        return values if several else values[""]

    targets, old = by_head(data.targets), by_head(recorded)
    orders = {name: _order(target, old.get(name)) for name, target in targets.items()}
    if all(order is None for order in orders.values()):
        return data
    examples = {}
    for split, part in data.examples.items():
        labels = {
            name: _reordered(array, orders[name]) for name, array in by_head(part.labels).items()
        }
        examples[split] = replace(part, labels=whole(labels))
        if sort and not several and labels[""].ndim == 1:
            examples[split] = examples[split].take(np.argsort(labels[""], kind="stable"))
    new = {name: t if orders[name] is None else old[name] for name, t in targets.items()}
    names = data.class_names if several else new[""].names
    changed = replace(data, class_names=names, examples=examples, targets=whole(new))
    changed.source = data.source
    return changed


def _order(target: Target, recorded: Target | None) -> np.ndarray | None:
    """Return the place of each class of `target` in `recorded`; None if it is the same, or cannot be."""
    if recorded is None or recorded == target or recorded.task != target.task:
        return None
    if sorted(recorded.names) != sorted(target.names) or target.task == "regression":
        return None
    return np.array([recorded.names.index(name) for name in target.names], np.int32)


def _reordered(labels: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    if order is None:
        return labels
    return order[labels] if labels.ndim == 1 else labels[:, np.argsort(order)]
