"""The head in closed form: linear models on features, by scikit-learn."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression, Ridge

from keras_transfer.features.blocks import Blocks, Rows, scales
from keras_transfer.features.cross_validation import (
    MAX_FOR_CHOOSING,
    chosen_alphas,
    cross_validated,
    folds_of,
    log_loss,
    spread,
)
from keras_transfer.features.threads import parallel_fits, shared_fits
from keras_transfer.utils.console import progress_bar

_LARGE = 2e8  # rows × features × classes from which all cores work on one fit
_JITTER = 1e-10  # share of the sum of squares that is added to that of each row
_MOST_SOLVED = 16  # results of `solve` that are remembered

_solved: dict[bytes, "LinearHead"] = {}


@dataclass(frozen=True, eq=False)
class LinearHead:
    """Weights of a Dense layer from features [N, D] to logits or values [N, C].

    Attributes:
        kernel: float32 [D, C].
        bias: float32 [C].
        strength: inverse regularization strength chosen by cross-validation: C in scikit-learn,
            1/alpha for ridge; the median if labels or numbers have one each.
        cross_validation: loss on the folds at that strength (the mean for several labels); None if
            a class had too few examples for folds, or each fold lacks what it is tested on.
        criterion: name of the loss.
        held_out: outputs (logits or values) for each row by heads that were fitted without it and
            the rows of its group, float [N, C]; NaN where a row was in no fold, or its class only there.
        held_out_part: the same of the head on the `part`; None without one.
        chosen: everything that cross-validation chose, plain data for `solve(chosen=…)`; nothing if it
            could not.
    """

    kernel: np.ndarray
    bias: np.ndarray
    strength: float
    cross_validation: float | None = None
    criterion: str = "log loss"
    held_out: np.ndarray | None = None
    held_out_part: np.ndarray | None = None
    chosen: dict[str, list] = field(default_factory=dict)

    def __str__(self):
        chosen = f"strength {self.strength:.3g}"
        if self.cross_validation is None:
            return chosen
        return f"{chosen} by cross-validation, {self.criterion} {self.cross_validation:.4f}"


def solve(
    task: str,
    features: np.ndarray | Rows,
    targets: np.ndarray,
    groups: np.ndarray,
    *,
    class_weights: np.ndarray | None = None,
    part: np.ndarray | None = None,
    seed: int = 0,
    views: int = 1,
    chosen: dict[str, list] | None = None,
) -> LinearHead:
    """Fit the head of a task: `logistic_regression`, `label_regressions` or `ridge_regression`.

    The last results are remembered, as evidence and several trainings need the same head.

    Args:
        features: float [N, D]; or `Rows`, which are read in blocks and need not fit into memory.
        class_weights: from `data.examples.class_weights`; like `part`, it does not apply to numbers.
        views: V, where the rows are N / V examples, and these again in other views; so many examples are in
            cross-validation as with one.
        chosen: that of a head for the same task and features of fewer examples, instead of a further
            cross-validation.
    """

    def fitted():
        options: dict = dict(class_weights=class_weights, part=part)
        fit = {"single_label": logistic_regression, "multi_label": label_regressions}.get(task)
        if fit is None:
            fit, options = ridge_regression, {}
        return fit(features, targets, groups, seed=seed, views=views, chosen=chosen, **options)

    if isinstance(features, Rows):  # reading them takes long, too
        return fitted()
    arrays = features, targets, groups, class_weights, part
    key = hashlib.blake2b(f"{task} {seed} {views} {chosen}".encode())
    for array in arrays:
        key.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    if (found := _solved.get(key.digest())) is None:
        found = fitted()
        while len(_solved) >= _MOST_SOLVED:
            del _solved[next(iter(_solved))]
        _solved[key.digest()] = found
    return found


def logistic_regression(
    features: np.ndarray | Rows,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    class_weights: np.ndarray | None = None,
    part: np.ndarray | None = None,
    seed: int = 0,
    views: int = 1,
    most: int | None = None,
    chosen: dict[str, list] | None = None,
) -> LinearHead:
    """Fit the head that a Dense layer would become by endless training with weight decay.

    The features are standardized (see `Standardized`), and the result is folded back into kernel and
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
        views: see `solve`.
        most: maximum number of examples on which the strength is chosen, see `folds_of`.
        chosen: see `solve`.
    """
    inputs = _inputs(features, part)
    return _logistic(
        inputs, labels, groups, class_weights, chosen, seed=seed, most=most, views=views
    )


def _inputs(features, part) -> list:
    kind = Blocks if isinstance(features, Rows) else Standardized
    return [kind(features, chosen) for chosen in ([None] if part is None else [part, None])]


def _logistic(inputs, labels, groups, class_weights, chosen, **sampling) -> LinearHead:
    weights = None if class_weights is None else dict(enumerate(class_weights.tolist()))
    told: dict = {}
    known = bool(chosen)
    if not chosen:
        chosen, told = _choose(inputs, labels, groups, weights, sampling)
    kernels, biases = [], []
    for x, strength, share in zip(inputs, chosen["strengths"], chosen["shares"]):
        coefficients, offsets = x.logistic(labels, strength, weights)
        kernel, bias = x.unfolded(share * coefficients, share * offsets)
        kernels.append(kernel)
        biases.append(bias)
    kernel, bias = np.sum(kernels, axis=0), np.sum(biases, axis=0)
    strength = chosen["strengths"][-1]
    return LinearHead(kernel, bias, strength, chosen=chosen if told or known else {}, **told)


def _choose(inputs, labels, groups, weights, sampling) -> tuple[dict, dict]:
    """Return (strength and share of each head, what a `LinearHead` tells of cross-validation)."""
    rows, splits = folds_of(labels, groups, width=inputs[-1].width, **sampling)
    found = [cross_validated(x.sample(rows), labels[rows], splits, weights) for x in inputs]
    scores = [held_out for _, held_out in found if held_out is not None]
    shares, told = np.ones(len(inputs)) / len(inputs), {}
    if scores:
        shares, loss = _blend(scores, labels[rows])
        held_out = spread(np.tensordot(shares, np.stack(scores), 1), rows, len(labels))
        told = {"cross_validation": loss, "held_out": held_out}
        if len(scores) > 1:
            told["held_out_part"] = spread(scores[0], rows, len(labels))
    # The losses of more rows weigh more against the penalty.
    per_row = len(rows) / len(labels) if scores else 1.0
    strengths = [per_row * strength for strength, _ in found]
    return {"strengths": strengths, "shares": shares.tolist()}, told


def _blend(scores, labels):
    """Return (weights of several heads > 0, log loss of the weighted sum of their scores)."""
    if len(scores) == 1:
        return np.ones(1), log_loss(scores[0], labels)
    stacked = np.stack(scores)
    count = np.isfinite(stacked[0]).all(axis=1).sum()

    def loss(weights):
        return log_loss(np.tensordot(weights, stacked, 1), labels)

    def penalized(logarithms):
        # Few rows alone could raise the sum of the weights without end, or lower it to 0: a prior, log-normal
        # around 1, that counts as much as one row.
        weights = np.exp(logarithms)
        return loss(weights) + np.log(weights.sum()) ** 2 / (2 * count)

    found = minimize(penalized, np.log(np.full(len(scores), 1 / len(scores))))
    weights = np.exp(found.x)
    return weights, loss(weights)


def label_regressions(
    features: np.ndarray | Rows,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    class_weights: np.ndarray | None = None,
    part: np.ndarray | None = None,
    seed: int = 0,
    views: int = 1,
    chosen: dict[str, list] | None = None,
) -> LinearHead:
    """Fit a logistic regression for each label, with a strength of its own.

    Args:
        features, groups, part, seed, views: see `logistic_regression`.
        labels: 0/1 [N, L]. A label with the same value for all examples gets a constant logit, from
            its frequency.
        class_weights: float [L, 2], weights of absent and present labels.
        chosen: see `solve`; a list for each label, empty where it had the same value for all.
    """
    count = labels.shape[1]
    before = chosen or {name: [[]] * count for name in ("strengths", "shares")}
    after: dict[str, list] = {name: [[] for _ in range(count)] for name in before}
    most = max(500, min(MAX_FOR_CHOOSING, 8 * MAX_FOR_CHOOSING // count))
    inputs = _inputs(features, part)
    kernel = np.zeros((features.shape[1], count), "float32")
    bias = np.zeros(count, "float32")
    held_out = {name: np.full(labels.shape, np.nan) for name in ("held_out", "held_out_part")}
    heads = []
    for i in progress_bar(range(count), "fitting", unit="labels"):
        column = labels[:, i].astype("int64")
        positive = int(column.sum())
        if positive in (0, len(column)):
            bias[i] = np.log((positive + 0.5) / (len(column) - positive + 0.5))
            for outputs in held_out.values():
                outputs[:, i] = bias[i]
            continue
        weights = None if class_weights is None else class_weights[i]
        known = {name: values[i] for name, values in before.items() if values[i]}
        head = _logistic(inputs, column, groups, weights, known, seed=seed, most=most, views=views)
        for name, values in head.chosen.items():
            after[name][i] = values
        kernel[:, i] = head.kernel[:, 1] - head.kernel[:, 0]
        bias[i] = head.bias[1] - head.bias[0]
        heads.append(head)
        for name, outputs in held_out.items():
            if (pair := getattr(head, name)) is not None:
                outputs[:, i] = pair[:, 1] - pair[:, 0]
    losses = [head.cross_validation for head in heads if head.cross_validation is not None]
    return LinearHead(
        kernel,
        bias,
        float(np.median([head.strength for head in heads])) if heads else 1.0,
        float(np.mean(losses)) if losses else None,
        held_out=held_out["held_out"] if losses else None,
        held_out_part=held_out["held_out_part"] if losses and part is not None else None,
        chosen=after,
    )


def ridge_regression(
    features: np.ndarray | Rows,
    targets: np.ndarray,
    groups: np.ndarray,
    *,
    seed: int = 0,
    views: int = 1,
    chosen: dict[str, list] | None = None,
) -> LinearHead:
    """Fit ridge regression with the penalty that minimizes the error in 5-fold cross-validation.

    Args:
        features, groups, seed, views: see `logistic_regression`.
        targets: float [N, C], preferably standardized; each has a penalty of its own.
        chosen: see `solve`; penalties for one row, as the errors of more rows weigh more.
    """
    (inputs,) = _inputs(features, None)
    count, loss, held_out = len(targets), None, None
    if chosen:
        alphas = np.array(chosen["penalties"]) * count
    else:
        alphas, loss, held_out = chosen_alphas(inputs, targets, groups, seed, views)
    kernel, bias = inputs.unfolded(*inputs.ridge(targets, alphas))
    return LinearHead(
        kernel,
        bias,
        float(1 / np.median(alphas)),
        loss,
        "squared error",
        held_out,
        chosen={"penalties": (alphas / count).tolist()} if chosen or loss is not None else {},
    )


def _factor(rows):
    """Return coordinates of rows in a basis of the space that they span, float64 [N, N].

    None, unless there are far fewer rows than features.
    """
    if 3 * len(rows) >= 2 * rows.shape[1]:
        return None
    gram = rows.astype("float64") @ rows.T
    # Centered rows are dependent: without this, one of the values on the diagonal would be the root of 0.
    size = np.trace(gram) * _JITTER
    return np.linalg.cholesky(gram + size * np.eye(len(rows))) if size else None


class Standardized:
    """Features, centered and scaled (see `blocks.scales`), on which the solvers work.

    Where there are far fewer rows than features, the rows are expressed in a basis of the space that
    they span. A penalty on squares does not see such a rotation, and fits take a fraction of the time.

    Args:
        features: float [N, D].
        columns: positions of those that count; by default all.

    Attributes:
        rows: float32 [N, K].
        width: D.
    """

    def __init__(self, features: np.ndarray, columns: np.ndarray | None = None):
        self.columns, self.width = columns, features.shape[1]
        features = features if columns is None else features[:, columns]
        # One copy only, as features may take a gigabyte. Differences of large values need float64 sums.
        self.mean = features.mean(axis=0, dtype="float64")
        self.scale = scales(self.mean, features.var(axis=0, dtype="float64"))
        rows = (features - self.mean.astype("float32")) / self.scale.astype("float32")
        factor, self.basis = _factor(rows), None
        if factor is not None:
            self.basis = solve_triangular(factor, rows, lower=True).T
            rows = factor
        self.rows = rows.astype("float32", copy=False)

    def sample(self, rows: np.ndarray) -> np.ndarray:
        """Return some rows for cross-validation, up to a rotation, float32 [n, K]."""
        factor = _factor(self.rows[rows])
        return self.rows[rows] if factor is None else factor.astype("float32")

    def logistic(self, labels, strength, class_weight) -> tuple[np.ndarray, np.ndarray]:
        """Return (weights [C, K], offsets [C]) of multinomial logistic regression."""
        work = self.rows.size * int(labels.max() + 1)  # more than 32 bits hold
        with parallel_fits() if work < _LARGE else shared_fits():
            fitted = LogisticRegression(C=strength, max_iter=300, class_weight=class_weight)
            fitted.fit(self.rows, labels)
        weights, offsets = fitted.coef_, fitted.intercept_
        if len(weights) == 1:  # two classes have one logit, of which each class gets half
            return np.concatenate([-weights, weights]) / 2, np.append(-offsets, offsets) / 2
        return weights, offsets

    def ridge(self, targets, alphas) -> tuple[np.ndarray, np.ndarray]:
        """Return (weights [C, K], offsets [C]) of ridge regression."""
        fitted = Ridge(alphas).fit(self.rows, targets)
        return np.reshape(fitted.coef_, (targets.shape[1], -1)), fitted.intercept_

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
