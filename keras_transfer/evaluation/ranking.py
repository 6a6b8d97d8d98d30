"""How well scores rank the images of each class before all others: ROC, precision-recall, areas."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from keras_transfer.utils.statistics import interval, normal, number

# Few false alarms matter most where classes are many: the grid is denser there.
FALSE_ALARMS = np.linspace(0, 1, 101) ** 2
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Ranking:
    """Of C classes, each against the rest.

    Attributes:
        auc, average_precision: float [C]; NaN where all images are of the class, or none.
        macro_auc: their mean, with its interval (DeLong et al. 1988).
        roc: true-positive rate at each of `FALSE_ALARMS`, float [C, 101].
        precision: at each of `RECALLS`, float [C, 101].
    """

    auc: np.ndarray
    average_precision: np.ndarray
    macro_auc: dict
    roc: np.ndarray
    precision: np.ndarray

    @property
    def ranked(self) -> np.ndarray:
        """Positions of the classes that have a ranking."""
        return np.flatnonzero(np.isfinite(self.auc))

    @property
    def macro_precision(self) -> float | None:
        """The mean of the average precisions."""
        return number(self.average_precision[self.ranked].mean()) if len(self.ranked) else None

    def curves(self) -> dict:
        """Plain data for JSON: the grids, each class's curves (None without), and their means."""

        def rows(values):
            return [None if row[0] != row[0] else np.round(row, 4).tolist() for row in values]

        def mean(values):
            if not len(self.ranked):
                return None
            return np.round(values[self.ranked].mean(axis=0), 4).tolist()

        return {
            "false_positive_rate": np.round(FALSE_ALARMS, 6).tolist(),
            "recall": np.round(RECALLS, 4).tolist(),
            "roc": {"macro": mean(self.roc), "per_class": rows(self.roc)},
            "precision": {"macro": mean(self.precision), "per_class": rows(self.precision)},
        }


def ranking(
    scores: Callable[[int], np.ndarray],
    positive: Callable[[int], np.ndarray],
    classes: int,
    images: int,
) -> Ranking:
    """Ranks the images by each class in turn; one column is in memory at a time.

    Args:
        scores: from a class to what the images are ranked by, float [N].
        positive: from a class to which images are of it, bool [N].
    """
    auc, precision = np.full((2, classes), np.nan)
    roc, pr = np.full((2, classes, len(RECALLS)), np.nan)
    influence, errors = np.zeros(images), True
    for i in range(classes):
        of_class = positive(i)
        if of_class.all() or not of_class.any():
            continue
        column = scores(i)
        auc[i], part = _auc(column, of_class)
        influence += part
        errors = errors and min(of_class.sum(), (~of_class).sum()) > 1
        roc[i], pr[i], precision[i] = _curves(column, of_class)
    ranked = np.isfinite(auc)
    macro = interval(None)
    if ranked.any():
        value = auc[ranked].mean()
        macro = interval(value)
        if errors:  # one image of a class says nothing of how much such images vary
            macro = normal(value, np.sqrt(np.square(influence / ranked.sum()).sum()))
    return Ranking(auc, precision, macro, roc, pr)


def _auc(scores, positive):
    """(area under the ROC curve, what each image adds to its error).

    The area is the mean over positive images of the share of negative ones below them, ties half:
    their placements. DeLong's variance is that of the placements of both kinds. As a number per image
    it can be added up over classes, which share their images, before it is squared.
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
    left, right = (np.searchsorted(others, values, side) for side in ("left", "right"))
    return (left + right) / (2 * len(others))


def _curves(scores, positive):
    from sklearn.metrics import roc_curve

    false_alarms, recall, _ = roc_curve(positive, scores, drop_intermediate=False)
    right = recall * positive.sum()
    precision = right[1:] / (right[1:] + false_alarms[1:] * (~positive).sum())
    average = np.sum(np.diff(recall) * precision)
    at = np.searchsorted(recall[1:], RECALLS - 1e-12)
    return np.interp(FALSE_ALARMS, false_alarms, recall), precision[at], average
