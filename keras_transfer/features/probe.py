"""The cross-validated linear probe: how well features predict labels it was not fitted on."""

from collections.abc import Sequence
from dataclasses import dataclass

import joblib
import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from keras_transfer.features.threads import parallel_fits

_PROBE_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)  # C times the number of features


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

    with parallel_fits():
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
