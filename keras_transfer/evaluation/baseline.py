"""The simple model that a modality's users would try first, to show next to a result.

For texts it is logistic regression on TF-IDF features. It is fitted by scikit-learn in seconds and
needs neither Keras nor a pretrained model.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_transfer.data.examples import Examples, ImageData, Target
from keras_transfer.data.splits import folds, stratified_sample
from keras_transfer.evaluation.result import summary_values
from keras_transfer.evaluation.tasks import MEASURES
from keras_transfer.utils.console import say

_STRENGTHS = (1.0, 10.0, 100.0)  # inverse of the regularization: features of unit norm need little
_FOLDS, _MOST = 3, 1500  # of the advice
_FOR_STRENGTH = 1000  # training examples on which the strength is chosen


@dataclass(frozen=True, eq=False)
class Baseline:
    """A fitted baseline.

    Attributes:
        name: in words, such as `TF-IDF + logistic regression`.
        targets: what it predicts, by head; a single head is called `output`.
    """

    name: str
    targets: dict[str, Target]
    _features: Any
    _models: dict[str, Any]

    def outputs(self, examples: Examples) -> dict[str, np.ndarray]:
        """Return raw outputs [N, C] by head: logits, or the values of a regression."""
        features = self._features.transform(_decoded(examples))
        return {
            name: _OUTPUTS[self.targets[name].task](model, features, len(self.targets[name].names))
            for name, model in self._models.items()
        }

    def measure(self, examples: Examples) -> dict[str, dict]:
        """Return head → the document of `evaluation.tasks`, on labeled examples."""
        labels, outputs = _by_head(examples.labels), self.outputs(examples)
        return {
            name: MEASURES[target.task](
                target.names, labels[name], outputs[name], examples.names, most=0
            )[0]
            for name, target in self.targets.items()
        }

    def accuracy(self, examples: Examples) -> float:
        """Return the accuracy on labeled examples of one class each."""
        return float((self.outputs(examples)["output"].argmax(axis=1) == examples.labels).mean())


def fit_baseline(examples: Examples, targets: Target | dict[str, Target]) -> Baseline | None:
    """Fit the baseline of the examples' modality; return None if it has none.

    The strength of the regularization is the one with the lowest loss in 3-fold cross-validation on at
    most 1,000 of the examples; near-duplicates and groups stay in one fold.
    """
    modality = examples.modality
    if modality.baseline is None:
        return None
    decoded = _decoded(examples)
    features = modality.baseline_features(decoded)
    matrix = features.fit_transform(decoded)
    of_heads = {"output": targets} if isinstance(targets, Target) else targets
    labels = _by_head(examples.labels)
    models = {
        name: _fitted(target, matrix, labels[name], examples.together)
        for name, target in of_heads.items()
    }
    kinds = dict.fromkeys(_NAMES[target.task] for target in of_heads.values())
    return Baseline(f"{modality.baseline} + {' and '.join(kinds)}", of_heads, features, models)


def baseline_note(data: ImageData, seed: int = 0) -> str | None:
    """Return a sentence on the baseline's accuracy, cross-validated on the training examples.

    At most 1,500 examples are used; groups and near-duplicates stay in one fold. None without a
    baseline, or for other labels than one class per example.
    """
    train = data.examples["train"]
    if data.modality.baseline is None or data.task != "single_label":
        return None
    train = train.take(stratified_sample(np.asarray(train.labels), _MOST, seed=seed))
    labels = np.asarray(train.labels)
    parts = folds(labels, _FOLDS, train.digests, groups=train.together.tolist(), seed=seed)
    right, name = 0.0, ""
    for part in parts:
        rest = np.setdiff1d(np.arange(len(train)), part)
        if len(np.unique(labels[rest])) < 2:
            return None
        baseline = fit_baseline(train.take(rest), data.targets)
        assert baseline is not None, "the modality has one"
        right += baseline.accuracy(train.take(part)) * len(part)
        name = baseline.name
    return (
        f"{name}, the simple model to beat, is right for {100 * right / len(train):.1f} % of {len(train)} "
        f"training {data.modality.many} ({_FOLDS}-fold cross-validation)."
    )


def measure_baseline(data: ImageData, split: str) -> dict | None:
    """Return the result of the baseline, fitted on train and measured on a split, as plain data.

    Returns:
        `name` and `heads`: name → title of each main metric → value; None without a baseline, or
        without training examples.
    """
    train = data.examples.get("train")
    if data.modality.baseline is None or train is None or split == "train":
        return None
    say(
        f"fitting a linear model on {data.modality.baseline} of {len(train)} {data.modality.many}, to compare with"
    )
    baseline = fit_baseline(train, data.targets)
    assert baseline is not None, "the modality has one"
    heads = baseline.measure(data.examples[split])
    return {
        "name": baseline.name,
        "heads": {
            name: dict([next(iter(summary_values(head).items()))]) for name, head in heads.items()
        },
    }


def _decoded(examples: Examples) -> list:
    return [examples.images.decoded(row) for row in range(len(examples))]


def _by_head(labels) -> dict[str, np.ndarray]:
    return labels if isinstance(labels, dict) else {"output": labels}


def _fitted(target, matrix, labels, groups):
    """Return a fitted model of a task, its strength chosen by cross-validation."""
    strength = _chosen_strength(target, matrix, labels, groups)
    return _MODELS[target.task](strength).fit(matrix, labels)


def _chosen_strength(target, matrix, labels, groups) -> float:
    from sklearn.model_selection import GroupKFold

    rows = np.sort(np.random.default_rng(0).permutation(len(labels))[:_FOR_STRENGTH])
    if len(np.unique(groups[rows])) < _FOLDS:
        return _STRENGTHS[0]
    splitter = GroupKFold(_FOLDS, shuffle=True, random_state=0)
    parts = [(rows[a], rows[b]) for a, b in splitter.split(rows, groups=groups[rows])]
    if target.task == "single_label" and min(len(np.unique(labels[a])) for a, _ in parts) < 2:
        return _STRENGTHS[0]
    losses = {}
    for strength in _STRENGTHS:
        losses[strength] = 0.0
        for train, held_out in parts:
            model = _MODELS[target.task](strength).fit(matrix[train], labels[train])
            outputs = _OUTPUTS[target.task](model, matrix[held_out], len(target.names))
            losses[strength] += _LOSSES[target.task](outputs, labels[held_out])
    return min(_STRENGTHS, key=losses.__getitem__)


def _logistic(strength):
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=300, tol=1e-3)


def _several(strength):
    from sklearn.multiclass import OneVsRestClassifier

    return OneVsRestClassifier(_logistic(strength))


def _ridge(strength):
    from sklearn.linear_model import Ridge

    return Ridge(alpha=1 / strength)


_NAMES = {
    "single_label": "logistic regression",
    "multi_label": "logistic regression",
    "regression": "ridge regression",
}
_MODELS = {"single_label": _logistic, "multi_label": _several, "regression": _ridge}


def _class_logits(model, features, count):
    logits = np.full((features.shape[0], count), -50.0)  # of classes without a training example
    logits[:, model.classes_] = np.maximum(model.predict_log_proba(features), -50.0)
    return logits


_OUTPUTS = {
    "single_label": _class_logits,
    "multi_label": lambda model, features, count: model.decision_function(features).reshape(
        -1, count
    ),
    "regression": lambda model, features, count: model.predict(features).reshape(-1, count),
}
# (outputs [N, C], labels) → sum of the losses.
_LOSSES: dict[str, Any] = {
    "single_label": lambda outputs, labels: -outputs[np.arange(len(labels)), labels].sum(),
    "multi_label": lambda outputs, labels: (np.logaddexp(0, outputs) - labels * outputs).sum(),
    "regression": lambda outputs, values: np.square(outputs - values).sum(),
}
