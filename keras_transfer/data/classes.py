"""The classes of a dataset: their order, and that each has an image."""

import re
from collections.abc import Iterable, Sequence

from keras_transfer.data.examples import Target, label_counts
from keras_transfer.data.files import Skipped
from keras_transfer.errors import InputError

_MAX_SHOWN = 10
_REMEDY = "add images, or leave the class out"


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names in the order of classes: sorted, by value if all are integers (2 before 10)."""
    names = set(names)
    if all(re.fullmatch(r"[+-]?[0-9]+", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def require_each_class(
    labels,
    targets: Target | dict[str, Target],
    where,
    skipped: Sequence[Skipped] = (),
    remedy: str = _REMEDY,
) -> None:
    """Raise InputError if a class or label has no image, for a model would have an empty output.

    Args:
        labels: those of the training images that can be read.
        targets: what the labels are.
        where: the source, for the message.
        skipped: images that cannot be read; the first is named.
        remedy: what to do.
    """
    if isinstance(targets, dict):
        for name, target in targets.items():
            require_each_class(labels[name], target, where, skipped, remedy)
        return
    empty = [name for name, count in label_counts(labels, targets).items() if not count]
    if empty:
        several = len(empty) > 1
        names = ", ".join(empty[:_MAX_SHOWN]) + ", …" * (len(empty) > _MAX_SHOWN)
        why = f" ({skipped[0].path}: {skipped[0].reason})" if skipped else ""
        raise InputError(
            f"{'classes' if several else 'class'} {names} {'have' if several else 'has'} no readable "
            f"image in {where}{why}; {remedy}"
        )
