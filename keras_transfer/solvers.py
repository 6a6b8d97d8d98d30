"""The head in closed form: multinomial logistic regression by scikit-learn."""

import os
import warnings
from dataclasses import dataclass

import numpy as np

_STRENGTHS = np.logspace(-3, 1, 9)
_MOST_FOR_CHOOSING = 5000  # rows of cross-validation; the strength found serves for all
_FOLDS = 5


@dataclass(frozen=True)
class LinearHead:
    """Weights of a Dense layer from features [N, D] to logits [N, C].

    Attributes:
        kernel: float32 [D, C].
        bias: float32 [C].
        strength: inverse regularisation C that cross-validation chose, in scikit-learn's sense.
        cross_validation: log loss of the folds at that strength; None where there were too few
            pictures of a class for folds.
    """

    kernel: np.ndarray
    bias: np.ndarray
    strength: float
    cross_validation: float | None


def logistic_regression(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    class_weights: dict[int, float] | None = None,
    seed: int = 0,
) -> LinearHead:
    """Fits the head that a Dense layer would be after endless training with weight decay.

    Features are centred and divided by one standard deviation of them all (not one each: a feature
    that hardly varies is not made as important as the others), and the result is folded back into
    kernel and bias. The strength is the one with the least log loss in stratified 5-fold
    cross-validation.

    Args:
        features: float [N, D].
        labels: int [N], 0 ≤ label < C, each of them at least once.
        groups: int [N], rows of the same picture: they stay together in the folds.
        class_weights: label → weight.
        seed: of the folds.
    """
    import joblib
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.model_selection import StratifiedGroupKFold
    from threadpoolctl import threadpool_limits

    # One copy only: features may be a gigabyte. The differences of large values need float64 sums.
    mean = features.mean(axis=0, dtype="float64")
    scale = max(float(features.std(dtype="float64")), 1e-12)
    scaled = ((features - mean.astype("float32")) / np.float32(scale)).astype("float32", copy=False)
    options = dict(max_iter=300, class_weight=class_weights)
    folds = min(_FOLDS, np.bincount(labels[np.unique(groups, return_index=True)[1]]).min())
    # The folds side by side, each on one core: a sixth of the time that BLAS takes to share such
    # small products among cores that TensorFlow's threads wait on too.
    with (
        warnings.catch_warnings(),
        threadpool_limits(1, "blas"),
        joblib.parallel_config("threading", n_jobs=os.cpu_count()),
    ):
        # The weakest regularisations may not converge in 300 steps; they are not chosen.
        warnings.simplefilter("ignore")
        if folds < 2:
            strength, loss = 1.0, None
        else:
            chosen = _some(labels, groups, seed)
            splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(
                scaled[chosen], labels[chosen], groups[chosen]
            )
            search = LogisticRegressionCV(
                Cs=_STRENGTHS,
                cv=list(splits),
                scoring="neg_log_loss",
                refit=False,
                use_legacy_attributes=False,
                **options,
            ).fit(scaled[chosen], labels[chosen])
            mean_scores = (
                np.asarray(search.scores_).reshape(folds, -1, len(_STRENGTHS)).mean((0, 1))
            )
            best = int(np.argmax(mean_scores))
            strength, loss = float(_STRENGTHS[best]), float(-mean_scores[best])
        fitted = LogisticRegression(C=strength, **options).fit(scaled, labels)
    weights, offsets = fitted.coef_, fitted.intercept_
    if len(weights) == 1:  # two classes: one logit, of which each class gets half
        weights, offsets = np.concatenate([-weights, weights]) / 2, np.append(-offsets, offsets) / 2
    kernel = weights.T.astype("float64") / scale
    bias = offsets - mean @ kernel
    return LinearHead(kernel.astype("float32"), bias.astype("float32"), strength, loss)


def _some(labels, groups, seed):
    """Rows of at most `_MOST_FOR_CHOOSING` rows' worth of pictures, each class in its share."""
    if len(labels) <= _MOST_FOR_CHOOSING:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(groups.max() + 1)
    share = _MOST_FOR_CHOOSING / len(labels)
    rank = np.empty_like(order)
    for label in np.unique(labels):
        members = np.unique(groups[labels == label])
        ranked = members[np.argsort(order[members])]
        rank[ranked] = np.arange(len(ranked))
        rank[ranked[max(_FOLDS, round(share * len(ranked))) :]] = np.iinfo(order.dtype).max
    return np.flatnonzero(rank[groups] < np.iinfo(order.dtype).max)
