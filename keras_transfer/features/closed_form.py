"""Linear models on features, by scikit-learn: the closed-form head and the cross-validated probe."""

import os
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import joblib
import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from keras_transfer.data.splits import stratified_sample
from keras_transfer.utils.console import progress_bar

_STRENGTHS = np.logspace(-4, 1, 11)
_WORSE = 2  # strengths in a row that raise the loss, after which no weaker penalty is tried
_MAX_FOR_CHOOSING = 3000  # rows of cross-validation; the strength that it chooses is used for all
_FOLDS = 5
_LEAST_PROBABILITY = 1e-12
_ALPHAS = np.logspace(-1, 6, 15)  # of ridge regression
_PROBE_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)  # of the probe: C times the number of features


@dataclass(frozen=True)
class LinearHead:
    """Weights of a Dense layer from features [N, D] to logits or values [N, C].

    Attributes:
        kernel: float32 [D, C].
        bias: float32 [C].
        strength: inverse regularization strength chosen by cross-validation: C in scikit-learn,
            1/alpha for ridge; the median if labels or numbers have one each.
        cross_validation: loss on the folds at that strength (the mean for several labels); None if
            a class had too few examples for folds.
        criterion: name of the loss.
    """

    kernel: np.ndarray
    bias: np.ndarray
    strength: float
    cross_validation: float | None
    criterion: str = "log loss"

    def __str__(self):
        chosen = f"strength {self.strength:.3g}"
        if self.cross_validation is None:
            return chosen
        return f"{chosen} by cross-validation, {self.criterion} {self.cross_validation:.4f}"


def solve(
    task: str,
    features: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    *,
    class_weights: np.ndarray | None = None,
    part: np.ndarray | None = None,
    seed: int = 0,
) -> LinearHead:
    """Fit the head of a task: `logistic_regression`, `label_regressions` or `ridge_regression`.

    Args:
        class_weights: from `data.examples.class_weights`; like `part`, it does not apply to numbers.
    """
    if task == "regression":
        return ridge_regression(features, targets, groups)
    fit = logistic_regression if task == "single_label" else label_regressions
    return fit(features, targets, groups, class_weights=class_weights, part=part, seed=seed)


def logistic_regression(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    class_weights: np.ndarray | None = None,
    part: np.ndarray | None = None,
    seed: int = 0,
    most: int = _MAX_FOR_CHOOSING,
) -> LinearHead:
    """Fit the head that a Dense layer would become by endless training with weight decay.

    The features are standardized (see `_Standardized`), and the result is folded back into kernel and
    bias. The strength is the one with the lowest log loss in stratified 5-fold cross-validation.

    With `part`, another head is fitted on these features alone, and the result is the weighted sum of
    the two whose weights minimize the log loss on the held-out rows (stacking, doi:10.1016/S0893-6080(05)80023-1).
    The two err on different rows, so the sum is often better than either.

    Args:
        features: float [N, D].
        labels: int [N], 0 ≤ label < C; each occurs.
        groups: int [N]; rows of the same example have the same number, and stay in one fold.
        class_weights: float [C].
        part: positions of some features, int.
        seed: seed of the folds.
        most: maximum number of rows on which the strength is chosen.
    """
    inputs = _inputs(features, part)
    return _logistic(inputs, labels, groups, class_weights, seed, most)


def _inputs(features, part) -> list["_Standardized"]:
    columns = [None] if part is None else [part, None]
    return [_Standardized(features, chosen) for chosen in columns]


def _logistic(inputs, labels, groups, class_weights, seed, most) -> LinearHead:
    weights = None if class_weights is None else dict(enumerate(class_weights.tolist()))
    rows, splits = _folds(labels, groups, seed, most)
    found = [_cross_validated(x.rows[rows], labels[rows], splits, weights) for x in inputs]
    losses = [held_out for _, held_out in found if held_out is not None]
    shares, loss = (
        _blend(losses, labels[rows]) if splits else (np.ones(len(inputs)) / len(inputs), None)
    )
    kernels, biases = [], []
    for x, share, (strength, _) in zip(inputs, shares, found):
        with _parallel_fits():
            fitted = LogisticRegression(C=strength, max_iter=300, class_weight=weights)
            fitted.fit(x.rows, labels)
        coefficients, offsets = fitted.coef_, fitted.intercept_
        if len(coefficients) == 1:  # two classes have one logit, of which each class gets half
            coefficients = np.concatenate([-coefficients, coefficients]) / 2
            offsets = np.append(-offsets, offsets) / 2
        kernel, bias = x.unfolded(share * coefficients, share * offsets)
        kernels.append(kernel)
        biases.append(bias)
    return LinearHead(np.sum(kernels, axis=0), np.sum(biases, axis=0), found[-1][0], loss)


def _folds(labels, groups, seed, most):
    """Return (rows for cross-validation, its splits; none if a class is too small for folds)."""
    rows = np.arange(len(labels))
    if len(labels) > most:
        rows = stratified_sample(labels, most, groups=groups, seed=seed)
    first = np.unique(groups[rows], return_index=True)[1]
    counts = np.bincount(labels[rows][first], minlength=labels.max() + 1)
    folds = min(_FOLDS, counts.min())
    if folds < 2:
        return rows, []
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return rows, list(splitter.split(rows, labels[rows], groups[rows]))


def _cross_validated(rows, labels, splits, class_weight):
    """Return (strength, log probabilities [N, C] of held-out rows at that strength, or None)."""
    if not splits:
        return 1.0, None
    options = dict(max_iter=100, warm_start=True, class_weight=class_weight)
    models = [
        LogisticRegression(**options) for _ in splits
    ]  # each continues with the next strength
    losses: list[float] = []
    with _parallel_fits(), joblib.Parallel() as parallel:
        for strength in _STRENGTHS:
            one = joblib.delayed(_held_out)
            found = parallel(
                one(model.set_params(C=strength), rows, labels, *split)
                for model, split in zip(models, splits)
            )
            held_out = np.empty((len(labels), labels.max() + 1))
            for (_, test), part in zip(splits, found):
                held_out[test] = part
            losses.append(_log_loss(held_out, labels))
            if losses[-1] == min(losses):
                best = float(strength), held_out
            if len(losses) - 1 - np.argmin(losses) >= _WORSE:
                break
    return best


def _held_out(model, rows, labels, train, test):
    model.fit(rows[train], labels[train])
    # The probability of a class that the training part lacks is 0.
    probabilities = np.full((len(test), labels.max() + 1), _LEAST_PROBABILITY)
    probabilities[:, model.classes_] = model.predict_proba(rows[test]).clip(_LEAST_PROBABILITY)
    return np.log(probabilities)


def _log_loss(scores, labels) -> float:
    return float(-log_softmax(scores, axis=1)[np.arange(len(labels)), labels].mean())


def _blend(scores, labels):
    """Return (weights of several heads > 0, log loss of the weighted sum of their scores)."""
    if len(scores) == 1:
        return np.ones(1), _log_loss(scores[0], labels)
    stacked = np.stack(scores)

    def loss(logarithms):
        return _log_loss(np.tensordot(np.exp(logarithms), stacked, 1), labels)

    found = minimize(loss, np.log(np.full(len(scores), 1 / len(scores))))
    return np.exp(found.x), float(found.fun)


def label_regressions(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    class_weights: np.ndarray | None = None,
    part: np.ndarray | None = None,
    seed: int = 0,
) -> LinearHead:
    """Fit a logistic regression for each label, with a strength of its own.

    Args:
        features, groups, part, seed: see `logistic_regression`.
        labels: 0/1 [N, L]. A label with the same value for all examples gets a constant logit, from
            its frequency.
        class_weights: float [L, 2], weights of absent and present labels.
    """
    count = labels.shape[1]
    most = max(500, min(_MAX_FOR_CHOOSING, 4 * _MAX_FOR_CHOOSING // count))
    inputs = _inputs(features, part)
    kernel = np.zeros((features.shape[1], count), "float32")
    bias = np.zeros(count, "float32")
    heads = []
    for i in progress_bar(range(count), "fitting", unit="labels"):
        column = labels[:, i].astype("int64")
        positive = int(column.sum())
        if positive in (0, len(column)):
            bias[i] = np.log((positive + 0.5) / (len(column) - positive + 0.5))
            continue
        weights = None if class_weights is None else class_weights[i]
        head = _logistic(inputs, column, groups, weights, seed, most)
        kernel[:, i] = head.kernel[:, 1] - head.kernel[:, 0]
        bias[i] = head.bias[1] - head.bias[0]
        heads.append(head)
    losses = [head.cross_validation for head in heads if head.cross_validation is not None]
    return LinearHead(
        kernel,
        bias,
        float(np.median([head.strength for head in heads])) if heads else 1.0,
        float(np.mean(losses)) if losses else None,
    )


def ridge_regression(features: np.ndarray, targets: np.ndarray, groups: np.ndarray) -> LinearHead:
    """Fit ridge regression with the penalty that minimizes the leave-one-out error.

    Args:
        features, groups: see `logistic_regression`.
        targets: float [N, C], preferably standardized; each has a penalty of its own.
    """
    inputs = _Standardized(features)
    rows = np.unique(groups, return_index=True)[1][:_MAX_FOR_CHOOSING]  # one view per example
    alphas, loss = np.ones(targets.shape[1]), None
    if len(rows) > 2:
        search = RidgeCV(_ALPHAS, alpha_per_target=True).fit(inputs.rows[rows], targets[rows])
        alphas, loss = np.ravel(search.alpha_), float(-np.mean(search.best_score_))
        alphas = alphas * (len(targets) / len(rows))  # the errors of more rows weigh more
    fitted = Ridge(alphas).fit(inputs.rows, targets)
    weights = np.reshape(fitted.coef_, (targets.shape[1], -1))
    strength = float(1 / np.median(alphas))
    return LinearHead(*inputs.unfolded(weights, fitted.intercept_), strength, loss, "squared error")


class _Standardized:
    """Features, centered and scaled, on which the solvers work.

    Each is divided by the geometric mean of its own deviation and that of all features together.
    Divided by their own, features that hardly vary become as important as the others; by a common
    one, those of stages with small activations do not count.

    Where there are far fewer rows than features, the rows are expressed in a basis of the space that
    they span. A penalty on squares does not see such a rotation, and fits take a fraction of the time.

    Args:
        features: float [N, D].
        columns: positions of those that count; by default all.

    Attributes:
        rows: float32 [N, K].
    """

    def __init__(self, features: np.ndarray, columns: np.ndarray | None = None):
        self.columns, self.width = columns, features.shape[1]
        features = features if columns is None else features[:, columns]
        # One copy only, as features may take a gigabyte. Differences of large values need float64 sums.
        self.mean = features.mean(axis=0, dtype="float64")
        common = max(float(features.std(dtype="float64")), 1e-12)
        own = np.maximum(features.std(axis=0, dtype="float64"), 1e-3 * common)
        self.scale = np.sqrt(own * common)
        rows = (features - self.mean.astype("float32")) / self.scale.astype("float32")
        self.rows, self.basis = rows.astype("float32", copy=False), None
        if 2 * len(rows) < rows.shape[1]:
            values, vectors = np.linalg.eigh(self.rows.astype("float64") @ self.rows.T)
            large = values > 1e-9 * max(values[-1], 1e-12)
            if large.any():  # or all rows are equal
                lengths, vectors = np.sqrt(values[large]), vectors[:, large]
                self.basis = self.rows.T @ (vectors / lengths)
                self.rows = (vectors * lengths).astype("float32")

    def unfolded(self, weights, offsets) -> tuple[np.ndarray, np.ndarray]:
        """Return (kernel [D, C], bias [C]) on the features from weights [C, K], offsets on rows."""
        kernel = weights.T.astype("float64")
        if self.basis is not None:
            kernel = self.basis @ kernel
        kernel = kernel / self.scale[:, None]
        bias = offsets - self.mean @ kernel
        if self.columns is not None:
            whole = np.zeros((self.width, kernel.shape[1]))
            whole[self.columns] = kernel
            kernel = whole
        return kernel.astype("float32"), bias.astype("float32")


@dataclass(frozen=True, eq=False)
class Probe:
    """Result of `cross_validated_probe`.

    Attributes:
        predictions: predicted label of each row while it was held out, int [N].
        correct: which predictions are right, bool [N]. The folds depend on labels, groups and seed
            alone, so for two sets of features of the same rows these are paired.
        accuracy: share of right predictions, 0–1.
        standard_error: standard error of `accuracy` over the groups. Other folds would give a
            slightly different accuracy, which this does not include.
        fold_accuracies: share of right predictions in each fold.
        other_predictions: predictions on each of `others`, int [N].
    """

    predictions: np.ndarray
    correct: np.ndarray
    accuracy: float
    standard_error: float
    fold_accuracies: tuple[float, ...]
    other_predictions: tuple[np.ndarray, ...] = ()


def cross_validated_probe(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    folds: int = 5,
    seed: int = 0,
    max_dims: int = 256,
    balanced: bool = False,
    others: Sequence[np.ndarray] = (),
) -> Probe | None:
    """Measure how well a linear classifier on features predicts labels it was not fitted on.

    In each stratified fold, a logistic regression is fitted on the other folds' features, which are
    standardized and reduced to their principal components (Alain and Bengio, arXiv:1610.01644). Of
    four regularization strengths, the one with the lowest log loss on all held-out rows counts.
    This choice makes the accuracy optimistic, but by much less than its standard error.

    Args:
        features: float [N, D].
        labels: int [N].
        groups: int [N]; rows of one group (copies or views of an example) stay in one fold. By
            default each row is its own group.
        folds: maximum number of folds; there are no more than groups in the largest class. A class
            that the training part of a fold lacks is predicted wrongly there.
        seed: seed of the folds.
        max_dims: maximum number of principal components.
        balanced: weight each row inversely to the frequency of its class.
        others: other features of the same rows (such as those of mirrored images), float [N, D],
            for which each fold's classifier makes predictions too.

    Returns:
        None if no class has two groups, so that nothing can be both learned and tested.
    """
    classes, targets = np.unique(labels, return_inverse=True)
    if groups is None:
        groups = np.arange(len(targets))
    _, first, groups = np.unique(groups, return_index=True, return_inverse=True)
    folds = min(folds, int(np.bincount(targets[first]).max()))
    if folds < 2:
        return None
    inputs = [np.asarray(x, "float64") for x in (features, *others)]
    counts = np.bincount(targets)
    weights = (len(targets) / len(counts) / counts if balanced else np.ones(len(counts)))[targets]

    with _parallel_fits():
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        splits = list(splitter.split(targets, targets, groups))
        one = joblib.delayed(_probe_fold)
        results = joblib.Parallel()(
            one(inputs, targets, weights, *split, max_dims, seed) for split in splits
        )
    best = int(np.argmin(sum(losses for losses, _ in results)))
    predictions = np.empty((len(inputs), len(targets)), targets.dtype)
    for (_, test), (_, predicted) in zip(splits, results):
        predictions[:, test] = predicted[best]
    correct = predictions[0] == targets
    accuracy = correct.mean()
    influence = np.bincount(groups, correct - accuracy) * len(first) / len(targets)
    return Probe(
        predictions=classes[predictions[0]],
        correct=correct,
        accuracy=float(accuracy),
        standard_error=float(influence.std(ddof=1) / np.sqrt(len(first))),
        fold_accuracies=tuple(float(correct[test].mean()) for _, test in splits),
        other_predictions=tuple(classes[row] for row in predictions[1:]),
    )


def _probe_fold(inputs, targets, weights, train, test, max_dims, seed):
    """(log losses [S], predictions [S, inputs, rows]) on the test rows, by strength."""
    known = np.unique(targets[train])
    if len(known) == 1:
        shape = (len(_PROBE_STRENGTHS), len(inputs), len(test))
        return np.zeros(len(_PROBE_STRENGTHS)), np.full(shape, known[0])
    width = inputs[0].shape[1]
    components = PCA(min(max_dims, len(train), width), random_state=seed)
    reduce = make_pipeline(StandardScaler(), components)
    fitted = reduce.fit_transform(inputs[0][train])
    held_out = [reduce.transform(x[test]) for x in inputs]
    model = LogisticRegression(warm_start=True)
    losses, predictions = [], []
    for strength in _PROBE_STRENGTHS:
        model.set_params(C=strength / width).fit(fitted, targets[train], weights[train])
        # The probability of a class that the training part lacks is 0.
        of_label = model.predict_proba(held_out[0]) * (known == targets[test][:, None])
        losses.append(-np.log(of_label.sum(axis=1).clip(1e-12)) @ weights[test])
        predictions.append([model.predict(x) for x in held_out])
    return np.array(losses), np.array(predictions)


@contextmanager
def _parallel_fits():
    """Run joblib's jobs side by side, each on one core, without convergence warnings.

    This takes a sixth of the time that BLAS needs to share such small products among cores for
    which TensorFlow's threads compete. The weakest regularizations may not converge; they are not
    chosen.
    """
    with (
        warnings.catch_warnings(),
        threadpool_limits(1, "blas"),
        joblib.parallel_config("threading", n_jobs=os.cpu_count()),
    ):
        warnings.simplefilter("ignore")
        yield
