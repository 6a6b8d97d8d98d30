"""How well scores rank examples: ROC and precision-recall curves, thresholds, abstention."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from keras_transfer.utils.statistics import interval, normal, number, share

# With many classes, low false-positive rates matter most, so the grid is denser there.
FALSE_POSITIVE_RATES = np.linspace(0, 1, 101) ** 2
RECALLS = np.linspace(0, 1, 101)
_CURVE_POINTS = 101


# -- each class against the rest ------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """Ranking metrics of C classes, each against the rest.

    Attributes:
        auc, average_precision: float [C]; NaN for a class that all or no examples belong to.
        macro_auc: mean AUC with its interval (DeLong et al. 1988).
        roc: true-positive rate at each of `FALSE_POSITIVE_RATES`, float [C, 101].
        precision: precision at each of `RECALLS`, float [C, 101].
    """

    auc: np.ndarray
    average_precision: np.ndarray
    macro_auc: dict
    roc: np.ndarray
    precision: np.ndarray

    @property
    def ranked(self) -> np.ndarray:
        """Positions of the classes that have an AUC, int."""
        return np.flatnonzero(np.isfinite(self.auc))

    @property
    def macro_precision(self) -> float | None:
        """Mean of the average precisions."""
        return number(self.average_precision[self.ranked].mean()) if len(self.ranked) else None

    def curves(self) -> dict:
        """Return plain data for JSON: the grids, each class's curves (or None), and their means."""

        def rows(values):
            return [None if row[0] != row[0] else np.round(row, 4).tolist() for row in values]

        def mean(values):
            if not len(self.ranked):
                return None
            return np.round(values[self.ranked].mean(axis=0), 4).tolist()

        return {
            "false_positive_rate": np.round(FALSE_POSITIVE_RATES, 6).tolist(),
            "recall": np.round(RECALLS, 4).tolist(),
            "roc": {"macro": mean(self.roc), "per_class": rows(self.roc)},
            "precision": {"macro": mean(self.precision), "per_class": rows(self.precision)},
        }


def rank_classes(
    scores: Callable[[int], np.ndarray],
    positive: Callable[[int], np.ndarray],
    classes: int,
    examples: int,
) -> Ranking:
    """Compute ranking metrics of each class; one column is in memory at a time.

    Args:
        scores: maps a class to the scores of all examples, float [N].
        positive: maps a class to which examples belong to it, bool [N].
        classes: number of classes C.
        examples: number of examples N.
    """
    auc, precision = np.full((2, classes), np.nan)
    roc, pr = np.full((2, classes, len(RECALLS)), np.nan)
    influence, has_error = np.zeros(examples), True
    for i in range(classes):
        of_class = positive(i)
        if of_class.all() or not of_class.any():
            continue
        column = scores(i)
        auc[i], part = _auc(column, of_class)
        influence += part
        # One example of a class does not show how much such examples vary.
        has_error = has_error and min(of_class.sum(), (~of_class).sum()) > 1
        roc[i], pr[i], precision[i] = _curves(column, of_class)
    ranked = np.isfinite(auc)
    macro = interval(None)
    if ranked.any():
        value = auc[ranked].mean()
        macro = interval(value)
        if has_error:
            macro = normal(value, np.sqrt(np.square(influence / ranked.sum()).sum()))
    return Ranking(auc, precision, macro, roc, pr)


def per_name_rows(names, hits, rates: dict, ranking: Ranking, columns: dict | None = None) -> dict:
    """Return one row per class or label as plain data.

    Args:
        names: the C classes or labels.
        hits: number of correct predictions of each, int [C].
        rates: result of `measures.hit_rates`.
        ranking: of the same classes.
        columns: further columns [C].

    Returns:
        Name → precision, recall with its Wilson interval (`recall_low`, `recall_high`), F1,
        support, AUC, average precision and the further columns.
    """
    rows = {}
    for i, name in enumerate(names):
        ends = share(int(hits[i]), int(rates["support"][i]))
        rows[name] = {
            "precision": number(rates["precision"][i]),
            "recall": number(rates["recall"][i]),
            "recall_low": ends["low"],
            "recall_high": ends["high"],
            "f1": number(rates["f1"][i]),
            "support": number(rates["support"][i]),
            "auc": number(ranking.auc[i]),
            "average_precision": number(ranking.average_precision[i]),
            **{key: number(values[i]) for key, values in (columns or {}).items()},
        }
    return rows


def _auc(scores, positive):
    """Return (area under the ROC curve, contribution of each example to its error).

    A placement is the share of negative examples that score lower than a positive one, counting
    ties half, or the reverse; the area is the mean placement. DeLong's variance is the variance of
    the placements of both kinds. Per example, the contributions of classes, which share their
    examples, can be added before they are squared.
    """
    above, below = scores[positive], scores[~positive]
    of_positive = _placements(above, below)
    of_negative = 1 - _placements(below, above)
    area, part = of_positive.mean(), np.zeros(len(scores))
    for chosen, placements in ((positive, of_positive), (~positive, of_negative)):
        n = len(placements)
        part[chosen] = (placements - area) / np.sqrt(n * max(n - 1, 1))
    return area, part


def _placements(values, others):
    others = np.sort(others)
    low, high = (np.searchsorted(others, values, side) for side in ("left", "right"))
    return (low + high) / (2 * len(others))


def _curves(scores, positive):
    from sklearn.metrics import roc_curve

    false_positives, recall, _ = roc_curve(positive, scores, drop_intermediate=False)
    correct = recall * positive.sum()
    precision = correct[1:] / (correct[1:] + false_positives[1:] * (~positive).sum())
    average = np.sum(np.diff(recall) * precision)
    at = np.searchsorted(recall[1:], RECALLS - 1e-12)
    return np.interp(FALSE_POSITIVE_RATES, false_positives, recall), precision[at], average


def best_f1_thresholds(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the threshold of each label [L] with the highest F1 on these examples.

    It is 0.5 for a label that no example has.

    Args:
        labels: bool [N, L].
        scores: float [N, L].
    """
    from sklearn.metrics import precision_recall_curve

    best = np.full(labels.shape[1], 0.5)
    for i in np.flatnonzero(labels.any(axis=0)):
        precision, recall, thresholds = precision_recall_curve(labels[:, i], scores[:, i])
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        at = int(f1[:-1].argmax())
        # Halfway to the next lower score: a threshold at the edge would not suit other examples.
        below = thresholds[at - 1] if at else 0.0
        best[i] = (thresholds[at] + below) / 2
    return best


# -- abstention: answer only with enough confidence -----------------------------------------------


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> dict:
    """Compute the risk (share of wrong answers) if only the most confident answers are given.

    For equally confident answers, the result is the mean over all orders.

    Args:
        confidence: float [N], N ≥ 1.
        correct: bool [N].

    Returns:
        Plain data: `aurc`, the mean risk over all coverages 1/N … 1 (Geifman and El-Yaniv 2017,
        arXiv:1705.08500); `excess_aurc`, its difference from that of the best possible order
        (Geifman et al. 2019, arXiv:1805.08206); and the curve: `coverage` and `risk`.
    """
    count = len(confidence)
    accepted, errors, _ = _steps(confidence, correct)
    answered = np.arange(1, count + 1)
    wrong = np.interp(answered, np.r_[0, accepted], np.r_[0, errors])
    risks = wrong / answered
    best = np.maximum(0, answered - (count - wrong[-1])) / answered
    chosen = np.unique(np.linspace(1, count, _CURVE_POINTS).round().astype(int)) - 1
    return {
        "aurc": number(risks.mean()),
        "excess_aurc": number(risks.mean() - best.mean()),
        "coverage": np.round(answered[chosen] / count, 6).tolist(),
        "risk": np.round(risks[chosen], 6).tolist(),
    }


def threshold_for_precision(
    confidence: np.ndarray, correct: np.ndarray, precision: float
) -> float | None:
    """Return the lowest confidence threshold at which a share `precision` of answers is correct.

    It is None if even the most confident answers do not reach that precision.

    Args:
        confidence: float [N].
        correct: bool [N].
        precision: in (0, 1].
    """
    accepted, errors, values = _steps(confidence, correct)
    enough = np.flatnonzero(1 - errors / accepted >= precision - 1e-12)
    return float(values[enough[-1]]) if len(enough) else None


def threshold_result(confidence: np.ndarray, correct: np.ndarray, threshold: float | None) -> dict:
    """Return `coverage` and `precision` of the answers at or above a threshold, with intervals.

    Args:
        threshold: None answers nothing.
    """
    answered = confidence >= (np.inf if threshold is None else threshold)
    return {
        "coverage": share(int(answered.sum()), len(answered)),
        "precision": share(int(correct[answered].sum()), int(answered.sum())),
    }


def _steps(confidence, correct):
    """Return, for each distinct confidence in decreasing order, (number of answers with at least
    that confidence, number of wrong ones among them, the confidence)."""
    order = np.argsort(-confidence, kind="stable")
    values, wrong = confidence[order], np.cumsum(~np.asarray(correct, bool)[order])
    last = np.flatnonzero(np.r_[values[1:] != values[:-1], True])
    return last + 1, wrong[last], values[last]
