"""Split examples into training and validation parts (numpy only)."""

from collections.abc import Sequence

import numpy as np

from keras_transfer.errors import InputError


def stratified_split(
    labels: np.ndarray,
    fraction: float,
    seed: int,
    class_names: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a validation part that keeps the class shares.

    The validation part has `round(n * fraction)` examples, shared out among the classes by
    largest remainder, except that every class has at least one example on each side.

    Args:
        labels: whole numbers of shape [n].
        fraction: share of the validation part, strictly between 0 and 1.
        seed: any whole number; the same one gives the same split.
        class_names: name of each label, for the error message only.

    Returns:
        Indices into `labels`, (train, val), each sorted, disjoint and together complete.

    Raises:
        InputError: `fraction` out of range, or a class with fewer than two examples.
    """
    require_fraction(fraction)
    classes, counts = np.unique(labels, return_counts=True)
    for label, count in zip(classes, counts):
        if count < 2:
            name = class_names[label] if class_names is not None else label
            raise InputError(
                f"too few pictures to split: class {name} has {count} readable picture; "
                "add pictures or give a validation folder with --val"
            )
    rng = np.random.default_rng(abs(int(seed)))
    val = [
        rng.permutation(np.flatnonzero(labels == label))[:size]
        for label, size in zip(classes, _val_sizes(counts, fraction))
    ]
    in_val = np.zeros(len(labels), bool)
    in_val[np.concatenate(val)] = True
    return np.flatnonzero(~in_val), np.flatnonzero(in_val)


def require_fraction(fraction: float) -> None:
    """Raise InputError unless 0 < fraction < 1."""
    if not 0 < fraction < 1:
        raise InputError(
            f"the validation share must lie between 0 and 1 (both excluded), not {fraction}; "
            "0.2 is usual (--val-split 0.2)"
        )


def _val_sizes(counts: np.ndarray, fraction: float) -> np.ndarray:
    quotas = counts * fraction
    sizes = np.clip(np.floor(quotas).astype(int), 1, counts - 1)
    target = np.clip(round(counts.sum() * fraction), len(counts), (counts - 1).sum())
    # One example at a time, to or from the class that is furthest from its quota.
    while sizes.sum() < target:
        sizes[np.argmax(np.where(sizes < counts - 1, quotas - sizes, -np.inf))] += 1
    while sizes.sum() > target:
        sizes[np.argmin(np.where(sizes > 1, quotas - sizes, np.inf))] -= 1
    return sizes
