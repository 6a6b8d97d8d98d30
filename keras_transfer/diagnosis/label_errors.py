"""Labels that are probably wrong: confident learning on outputs of heads that did not see the example.

A classifier is taken to be confident of a class if its probability reaches the mean probability over the
examples with that label, so that a class on which it is timid has a lower threshold (arXiv:1911.00068).
An example that is confidently of another class than its label says is a suspect.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, softmax

from keras_transfer.data.examples import Target
from keras_transfer.utils.statistics import bootstrap, share

_RESAMPLES = 200
_MAX_PAIRS = 10
# A threshold is at most this: where a class is recognized almost with certainty, half of its examples, and of
# the wrong labels that belong to it, would be below the mean.
_SURE = 0.9
_DEVIATIONS = 4.0  # of a residual, beyond which a number is a suspect
_MAD = 1.4826  # standard deviations per median absolute deviation, for a normal distribution


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """Labels of one head that are probably wrong.

    Attributes:
        rows: positions of the suspects, the most doubtful first: int [K].
        suggested: what their labels probably are, in the form of the labels.
        scores: how doubtful the labels are: for classes and labels, one minus the probability of the label
            as given, 0 to 1; for numbers, the residual in standard deviations.
        wrong: interval of the estimated share of wrong labels.
        pairs: (label, probable label, estimated number of examples), the most frequent first.
        judged: number of examples that could be judged.
    """

    rows: np.ndarray
    suggested: np.ndarray
    scores: np.ndarray
    wrong: dict
    pairs: list[tuple[str, str, float]]
    judged: int


def find_label_errors(target: Target, outputs: np.ndarray, labels: np.ndarray) -> LabelErrors:
    """Return the labels that contradict the outputs of `features.closed_form.held_out_outputs`.

    Args:
        outputs: float [N, C]; rows of NaN are not judged.
        labels: in the form of `data.examples`, N rows.
    """
    find = {"single_label": _wrong_classes, "multi_label": _wrong_labels}
    return find.get(target.task, _wrong_numbers)(target, outputs, labels)


def confident_classes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the class of which each row is confidently a member, int [N]; −1 if there is none.

    Args:
        probabilities: held-out, float [N, C].
        labels: int [N].
    """
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    own = probabilities[np.arange(len(labels)), labels]
    sums = np.bincount(labels, own, minlength=len(counts))
    thresholds = np.where(counts, np.minimum(sums / np.maximum(counts, 1), _SURE), np.inf)
    reached = probabilities >= thresholds - 1e-9
    found = np.where(reached, probabilities, -1.0).argmax(axis=1)
    return np.where(reached.any(axis=1), found, -1)


def doubts(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return one minus the probability of each row's label, by which labels are ranked: float [N].

    On two tuning sets of `scripts/accuracy_data.py` (clothing and aerial), its average precision was higher
    than that of the margin to the most probable other class.
    """
    return 1 - probabilities[np.arange(len(labels)), labels]


def best_others(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the most probable class other than the label, of each row: int [N]."""
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -1
    return others.argmax(axis=1)


def _wrong_share(labels, confident, weights, count):
    """Return the share of wrong labels by the confident joint, calibrated to the counts of labels."""
    known = confident >= 0
    sure = np.bincount(labels[known], weights[known], minlength=count)
    off = known & (confident != labels)
    wrong = np.bincount(labels[off], weights[off], minlength=count)
    totals = np.bincount(labels, weights, minlength=count)
    rates = np.divide(wrong, sure, out=np.zeros(count), where=sure > 0)
    return float(rates @ totals)


def _wrong_classes(target, outputs, labels):
    judged = np.flatnonzero(~np.isnan(outputs).any(axis=1))
    outputs = np.pad(
        outputs, ((0, 0), (0, len(target.names) - outputs.shape[1])), constant_values=-40
    )
    probabilities, labels = softmax(outputs[judged], axis=1), labels[judged]
    confident = confident_classes(probabilities, labels)
    best, scores = best_others(probabilities, labels), doubts(probabilities, labels)
    doubtful = probabilities[np.arange(len(labels)), best] > 1 - scores
    off = np.flatnonzero((confident >= 0) & (confident != labels))
    count = len(target.names)
    expected = _wrong_share(labels, confident, np.ones(len(labels)), count)
    order = np.argsort(-scores, kind="stable")[: round(expected)]
    # Those that are not confidently of any class are as often wrong as the others.
    suspects = np.union1d(off, order[doubtful[order]])
    suspects = suspects[np.argsort(-scores[suspects], kind="stable")]

    def statistic(weights):
        total = weights.sum()
        return _wrong_share(labels, confident, weights, count) / total if total else np.nan

    joint = np.zeros((count, count))
    np.add.at(joint, (labels[off], confident[off]), 1)
    sure = np.bincount(labels[confident >= 0], minlength=count)
    joint *= (np.bincount(labels, minlength=count) / np.maximum(sure, 1))[:, None]
    order = np.argsort(-joint, axis=None, kind="stable")[:_MAX_PAIRS]
    names = target.names
    return LabelErrors(
        judged[suspects],
        best[suspects].astype("int32"),
        scores[suspects],
        bootstrap(statistic, len(judged), resamples=_RESAMPLES)[0] if len(judged) else share(0, 0),
        [
            (names[given], names[true], float(joint[given, true]))
            for given, true in zip(*np.unravel_index(order, joint.shape))
            if joint[given, true] > 0
        ],
        len(judged),
    )


def _wrong_labels(target, outputs, labels):
    columns = np.flatnonzero(~np.isnan(outputs).all(axis=0))
    judged = np.flatnonzero(~np.isnan(outputs[:, columns]).any(axis=1))
    given = labels[np.ix_(judged, columns)].astype(int)
    chances = expit(outputs[np.ix_(judged, columns)])
    confident, scores = np.full(given.shape, -1), np.zeros(given.shape)
    for i in range(len(columns)):
        pair = np.stack([1 - chances[:, i], chances[:, i]], axis=1)
        confident[:, i] = confident_classes(pair, given[:, i])
        scores[:, i] = doubts(pair, given[:, i])
    off = (confident >= 0) & (confident != given)
    highest = np.where(off, scores, -np.inf).max(axis=1, initial=-np.inf)
    suspects = np.flatnonzero((off & (scores > 0.5)).any(axis=1))
    suspects = suspects[np.argsort(-highest[suspects], kind="stable")]
    suggested = labels[judged[suspects]].copy()
    suggested[:, columns] = np.where(scores[suspects] > 0.5, 1 - given[suspects], given[suspects])

    def statistic(weights):
        total = weights.sum() * max(1, len(columns))
        wrong = sum(
            _wrong_share(given[:, i], confident[:, i], weights, 2) for i in range(len(columns))
        )
        return wrong / total if total else np.nan

    pairs = [
        (f"{'' if there else 'without '}{target.names[column]}", side, float(count))
        for i, column in enumerate(columns)
        for there, side in ((0, "present"), (1, "absent"))
        if (count := (off[:, i] & (given[:, i] == there)).sum())
    ]
    return LabelErrors(
        judged[suspects],
        suggested,
        highest[suspects],
        bootstrap(statistic, len(judged), resamples=_RESAMPLES)[0] if len(judged) else share(0, 0),
        sorted(pairs, key=lambda pair: -pair[2])[:_MAX_PAIRS],
        len(judged),
    )


def _wrong_numbers(target, outputs, labels):
    judged = np.flatnonzero(~np.isnan(outputs).any(axis=1))
    residuals = outputs[judged] - labels[judged]
    residuals = residuals - np.median(residuals, axis=0)
    deviation = np.maximum(_MAD * np.median(np.abs(residuals), axis=0), 1e-12)
    scores = (np.abs(residuals) / deviation).max(axis=1, initial=0)
    suspects = np.flatnonzero(scores > _DEVIATIONS)
    suspects = suspects[np.argsort(-scores[suspects], kind="stable")]
    return LabelErrors(
        judged[suspects],
        outputs[judged[suspects]].astype("float32"),
        scores[suspects],
        share(len(suspects), len(judged)),
        [],
        len(judged),
    )
