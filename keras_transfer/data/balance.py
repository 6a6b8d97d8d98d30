"""Classes of unequal size: what each class weighs in the loss (NumPy only)."""

from collections.abc import Mapping, Sequence

import numpy as np

from keras_transfer.errors import InputError

BALANCES = ("none", "weights", "sampling")


def check_balance(balance: str, tasks: Sequence[str]) -> None:
    """Raise InputError where a way to balance does not exist or means nothing for a model's tasks."""
    if balance not in BALANCES:
        raise InputError(f"balance must be one of {', '.join(BALANCES)}, not {balance!r}.")
    if balance == "none":
        return
    if "regression" in tasks:
        raise InputError(
            "balance means nothing for regression, which has no classes: leave it none."
        )
    if len(tasks) > 1:
        raise InputError("balance means nothing for several heads: leave it none.")
    if balance == "sampling" and tasks[0] != "single_label":
        raise InputError(
            "balance 'sampling' needs one class per image: use 'weights' for several labels."
        )


def check_class_weights(weights: str | dict | None, heads: Mapping) -> None:
    """Raise InputError where `weights` are not those of the classes of a model's only head."""
    if weights is None:
        return
    if len(heads) > 1:
        raise InputError("class_weights mean nothing for several heads.")
    (head,) = heads.values()
    if head.task == "regression":
        raise InputError("class_weights mean nothing for regression, which has no classes.")
    if isinstance(weights, dict) and set(weights) != set(head.names):
        raise InputError(
            f"class_weights has {sorted(weights)}, but the classes are {list(head.names)}."
        )


def class_weights(weights: str | dict, names: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """What each class weighs.

    `"balanced"` is the inverse frequency: N / (C · n_c) of a class with n_c of N images, so that
    all classes weigh the same in sum and the mean weight of an image is 1. Where an image has any
    number of labels, each label is a question with two answers, balanced by itself: N / (2 · n) for
    its n images and N / (2 · (N − n)) for the others.

    Args:
        weights: `"balanced"`, or a weight for each name (of several labels: of those that are
            there; what is not there weighs 1).
        names: the classes.
        labels: of the training images, int [N] or 0/1 [N, C].

    Returns:
        float32 [C]; for labels [N, C] float32 [C, 2], of what is not there and of what is.
    """
    several = labels.ndim == 2
    if weights != "balanced":
        given = np.array([weights[name] for name in names], "float32")  # type: ignore[index]
        return np.stack([np.ones_like(given), given], axis=1) if several else given
    if several:
        there = labels.sum(axis=0)
        counts = np.stack([len(labels) - there, there], axis=1)
        return (len(labels) / (2 * np.maximum(1, counts))).astype("float32")
    counts = np.bincount(labels, minlength=len(names))
    return (len(labels) / (len(names) * np.maximum(1, counts))).astype("float32")
