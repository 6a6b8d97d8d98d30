"""Outputs for each example by heads that were fitted without it."""

import joblib
import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold

from keras_transfer.features.closed_form import Standardized
from keras_transfer.features.cross_validation import (
    FOLDS,
    LEAST_PROBABILITY,
    MOST_FOR_CHOOSING,
    chosen_alphas,
    cross_validated,
    folds_of,
    log_probabilities,
)
from keras_transfer.features.threads import parallel_fits
from keras_transfer.utils.console import progress_bar


def held_out_outputs(
    task: str, features: np.ndarray, targets: np.ndarray, groups: np.ndarray, *, seed: int = 0
) -> np.ndarray:
    """Return outputs for every row by heads that were fitted without it and its group: float [N, C].

    The strength is chosen as in `solve`, on a sample if there are many rows; then heads of that strength
    are fitted without each fold. The outputs are log probabilities of classes, logits of labels, or
    numbers; NaN for the rows of a class or label that has fewer than two groups, and for those that are
    alone with their class in a fold.

    Args:
        task, features, targets, groups, seed: see `solve`.
    """
    heads = {"single_label": _held_out_classes, "multi_label": _held_out_labels}
    inputs = Standardized(features)
    return heads.get(task, _held_out_numbers)(inputs, targets, groups, seed)


def _held_out_classes(inputs, labels, groups, seed):
    outputs = np.full((len(labels), labels.max() + 1), np.nan)
    pairs = np.unique(np.stack([labels, groups]), axis=1)
    usable = np.flatnonzero(np.bincount(pairs[0])[labels] > 1)
    classes, own = np.unique(labels[usable], return_inverse=True)
    if len(classes) < 2:
        return outputs
    rows, splits = folds_of(own, groups[usable], seed, MOST_FOR_CHOOSING, inputs.width)
    strength, found = cross_validated(inputs.sample(usable[rows]), own[rows], splits, None)
    if found is None:
        return outputs
    if len(rows) < len(own):
        _, splits = folds_of(own, groups[usable], seed, len(own))
        options = dict(C=strength, max_iter=100)
        found, sample = np.empty((len(own), len(classes))), inputs.sample(usable)
        with parallel_fits(), joblib.Parallel() as parallel:
            one = joblib.delayed(log_probabilities)
            parts = parallel(one(LogisticRegression(**options), sample, own, *s) for s in splits)
        for (_, test), part in zip(splits, parts):
            found[test] = part
    outputs[usable] = np.log(LEAST_PROBABILITY)
    outputs[np.ix_(usable, classes)] = found
    return outputs


def _held_out_labels(inputs, labels, groups, seed):
    outputs = np.full(labels.shape, np.nan)
    for i in progress_bar(range(labels.shape[1]), "fitting", unit="labels"):
        pair = _held_out_classes(inputs, labels[:, i].astype("int64"), groups, seed)
        if pair.shape[1] == 2:
            outputs[:, i] = pair[:, 1] - pair[:, 0]
    return outputs


def _held_out_numbers(inputs, targets, groups, seed):
    outputs = np.full(targets.shape, np.nan)
    folds = min(FOLDS, len(np.unique(groups)))
    if folds < 2:
        return outputs
    alphas, _, found = chosen_alphas(inputs, targets, groups, seed)
    if not np.isnan(found).any():
        return found
    rows = inputs.rows
    splitter = GroupKFold(folds, shuffle=True, random_state=seed)
    for train, test in splitter.split(rows, groups=groups):
        fitted = Ridge(alphas).fit(rows[train], targets[train])
        outputs[test] = fitted.predict(rows[test]).reshape(len(test), -1)
    return outputs
