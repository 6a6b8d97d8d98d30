"""Cross-validation of linear models: folds that do not share groups, and the strength with the lowest loss."""

import math

import joblib
import numpy as np
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from keras_transfer.data.splits import stratified_sample
from keras_transfer.features.threads import parallel_fits

_STRENGTHS = np.logspace(-4, 1, 11)
_START = 4  # of them; strong penalties, which are seldom best, take many steps to fit
_WORSE = 2  # strengths in a row that raise the loss, after which no further one is tried
# Largest derivative of the loss at which a fit on folds ends. With scikit-learn's 1e-4, on four sets of the tuning
# half of the accuracy bench, the log loss of closed forms is the same to 0.0005, after three times as long.
_TOLERANCE = 1e-3
# Rows of cross-validation, whose strength is used for all. With twice as many, MNIST has the same accuracy after
# twice the time; the 77 classes of banking77's training texts need more than this.
MAX_FOR_CHOOSING = 1500
MOST_FOR_CHOOSING = 3000
_PER_CLASS = 40  # rows, if these are more in all, up to `MOST_FOR_CHOOSING`
# Most rows × features × classes of cross-validation: where they are more, fewer rows have to do.
_MOST_WORK = 3e8
_LEAST_PER_CLASS = 5  # rows, however many classes there are
FOLDS = 5
LEAST_PROBABILITY = 1e-12
_ALPHAS = np.logspace(-1, 6, 15)  # of ridge regression


def folds_of(labels, groups, seed, most=None, width=1, views=1):
    """Return (rows for cross-validation, its splits; none if a class is too small for folds).

    Args:
        most: number of examples; by default as many as choosing a strength needs.
        width: number of features; with many of them, or many classes, fewer examples have to do.
        views: rows of each example, see `rows_of`; those of all views of the same examples are returned.
    """
    every, every_group = labels, groups
    labels, groups = (values[: len(values) // views] for values in (labels, groups))
    rows, classes = np.arange(len(labels)), labels.max() + 1
    most = most or max(MAX_FOR_CHOOSING, min(MOST_FOR_CHOOSING, _PER_CLASS * classes))
    most = min(most, max(int(_MOST_WORK / (width * classes)), _LEAST_PER_CLASS * classes))
    if len(labels) > most:
        rows = stratified_sample(labels, most, groups=groups, seed=seed)
        if fewest_groups(labels[rows], groups[rows], classes) < 2:
            # Large groups fill the sample: some rows of each have to do.
            rows = stratified_sample(labels, most, seed=seed)
    folds = min(FOLDS, fewest_groups(labels[rows], groups[rows], classes))
    rows = rows_of(rows, len(labels), views)
    if folds < 2:
        return rows, []
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return rows, list(splitter.split(rows, every[rows], every_group[rows]))


def rows_of(examples, count, views):
    """Return the rows of some of `count` examples, of which each view is `count` rows further down."""
    return np.concatenate([examples + view * count for view in range(views)])


def fewest_groups(labels, groups, classes):
    """Return the number of distinct groups of the class that has the fewest."""
    # A group, such as a writer, may have examples of all classes.
    pairs = np.unique(np.stack([labels, groups]), axis=1)
    return np.bincount(pairs[0], minlength=classes).min()


def cross_validated(rows, labels, splits, class_weight):
    """Return (strength, log probabilities [N, C] of held-out rows at that strength, or None).

    See `log_probabilities` for rows that are NaN. They count nowhere: one of them would weigh more than
    all others, and strong penalties, even outputs that are the same for all, would seem best.
    """
    if not any(_can_tell(labels, *split) for split in splits):
        return 1.0, None
    options = dict(max_iter=100, tol=_TOLERANCE, warm_start=True, class_weight=class_weight)
    # Each continues with the next strength.
    models = [LogisticRegression(**options) for _ in splits]
    least, best = math.inf, (1.0, None)
    with parallel_fits(), joblib.Parallel() as parallel:
        for path in (_STRENGTHS[_START:], _STRENGTHS[:_START][::-1]):
            worse = 0
            for strength in path:
                one = joblib.delayed(log_probabilities)
                found = parallel(
                    one(model.set_params(C=strength), rows, labels, *split)
                    for model, split in zip(models, splits)
                )
                held_out = np.empty((len(labels), labels.max() + 1))
                for (_, test), part in zip(splits, found):
                    held_out[test] = part
                loss = log_loss(held_out, labels)
                if loss < least:
                    least, best, worse = loss, (float(strength), held_out), 0
                else:
                    worse += 1
                if worse == _WORSE:
                    break
            if best[0] > _STRENGTHS[_START]:
                break
    return best


def _can_tell(labels, train, test):
    known = np.unique(labels[train])
    return len(known) > 1 and np.isin(labels[test], known).any()


def log_probabilities(model, rows, labels, train, test) -> np.ndarray:
    """Fit a classifier on some rows; return log probabilities of others, float [M, C].

    Those of a class that the training part lacks, because of groups or because examples are few, are NaN;
    all are if it has one class.
    """
    probabilities = np.full((len(test), labels.max() + 1), np.nan)
    if _can_tell(labels, train, test):
        model.fit(rows[train], labels[train])
        possible = np.isin(labels[test], model.classes_)
        probabilities[possible] = LEAST_PROBABILITY
        found = model.predict_proba(rows[test[possible]]).clip(LEAST_PROBABILITY)
        probabilities[np.ix_(possible, model.classes_)] = found
    return np.log(probabilities)


def log_loss(scores, labels) -> float:
    """Return the mean log loss of logits [N, C]; rows of NaN are left out."""
    return float(-np.nanmean(log_softmax(scores, axis=1)[np.arange(len(labels)), labels]))


def spread(values, rows, count) -> np.ndarray:
    """Return values of some rows as an array of all rows; the others are NaN."""
    whole = np.full((count, values.shape[1]), np.nan)
    whole[rows] = values
    return whole


def chosen_alphas(inputs, targets, groups, seed, views=1):
    """Return (penalty of each target, error in cross-validation, held-out outputs; None without folds)."""
    count = len(targets) // views
    rows = np.sort(np.random.default_rng(seed).permutation(count)[:MAX_FOR_CHOOSING])
    rows = rows_of(rows, count, views)
    alphas, loss, held_out = np.ones(targets.shape[1]), None, None
    folds = min(FOLDS, len(np.unique(groups[rows])))
    if folds > 1:
        outputs = np.empty((len(_ALPHAS), len(rows), targets.shape[1]))
        sample = inputs.sample(rows)
        splitter = GroupKFold(folds, shuffle=True, random_state=seed)
        for train, test in splitter.split(rows, groups=groups[rows]):
            outputs[:, test] = _ridge_path(sample[train], targets[rows[train]], sample[test])
        errors = np.square(outputs - targets[rows]).mean(axis=1)
        best = errors.argmin(axis=0)
        columns = np.arange(targets.shape[1])
        alphas = _ALPHAS[best] * (len(targets) / len(rows))  # the errors of more rows weigh more
        loss = float(errors[best, columns].mean())
        held_out = spread(outputs[best, :, columns].T, rows, len(targets))
    return alphas, loss, held_out


def _ridge_path(rows, targets, others) -> np.ndarray:
    """Return predictions for other rows at each of `_ALPHAS`, float64 [A, M, C]."""
    center, mean = rows.mean(axis=0), targets.mean(axis=0)
    rows, others = (rows - center).astype("float64"), (others - center).astype("float64")
    values, vectors = np.linalg.eigh(rows @ rows.T)
    coefficients = vectors.T @ (targets - mean)
    projected = others @ rows.T @ vectors
    return np.stack(
        [mean + projected @ (coefficients / (values.clip(0)[:, None] + a)) for a in _ALPHAS]
    )
