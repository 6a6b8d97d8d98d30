"""Examples that are unlike all others, or unlike their class, and what is odd about them.

The distance to the k-th neighbor (arXiv:2204.06507) is compared with those of the other examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_transfer.diagnosis.seen import Distinct, nearest
from keras_transfer.modalities.sketch import Oddity

# Robust standard deviations of the logarithm of a distance, beyond which an example is an outlier. On the
# tuning half of `scripts/outliers.py`, 0.6 to 2.5 % of the ordinary examples are.
_DEVIATIONS = 2.5
_MAD = 1.4826  # standard deviations per median absolute deviation, for a normal distribution
_LEAST = 20  # examples of a class by which one of them can be judged


@dataclass(frozen=True, eq=False)
class Outliers:
    """Examples that are outliers.

    Attributes:
        rows: their positions, the most unusual first: int [K].
        scores: robust standard deviations from the median, in the most unusual respect of each.
        reasons: in words.
    """

    rows: np.ndarray
    scores: np.ndarray
    reasons: list[str]


def find_outliers(
    distinct: Distinct, classes: np.ndarray | None, oddities: Sequence[Oddity]
) -> Outliers:
    """Return the outliers among the examples of a dataset, of which copies count once.

    Args:
        classes: of all N examples, int [N]; None if they have none.
        oddities: of the modality.
    """
    found = {"unlike all others": deviations(distinct.neighbors.last)}
    if classes is not None:
        found["unlike its class"] = _within(distinct.units, classes[distinct.rows])
    limits = dict.fromkeys(found, _DEVIATIONS)
    for oddity in oddities if distinct.traits.shape[1] else ():
        values = distinct.traits[:, oddity.trait]
        low = -deviations(values, logarithm=False)
        odd = values < oddity.below
        if oddity.deviations is not None:
            odd |= low > oddity.deviations
        found[oddity.text] = np.where(odd, np.maximum(low, _DEVIATIONS), 0)
        limits[oddity.text] = 0.0
    table = np.stack(list(found.values()))
    over = table > np.array(list(limits.values()))[:, None]
    scores = np.where(over, table, 0).max(axis=0)
    rows = np.flatnonzero(over.any(axis=0))
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    names = list(found)
    reasons = [", ".join(names[i] for i in np.flatnonzero(over[:, row])) for row in rows]
    return Outliers(distinct.rows[rows], scores[rows], reasons)


def deviations(values: np.ndarray, logarithm: bool = True) -> np.ndarray:
    """Return how many robust standard deviations each value is above the median, [N]."""
    if not len(values):
        return np.zeros(0)
    values = np.log(np.maximum(values, 1e-6)) if logarithm else np.asarray(values, float)
    away = values - np.median(values)
    return away / max(_MAD * np.median(np.abs(away)), 1e-6)


def _within(units, classes):
    found = np.zeros(len(classes))
    for name in np.unique(classes):
        rows = np.flatnonzero(classes == name)
        if len(rows) >= _LEAST:
            found[rows] = deviations(nearest(units[rows]).last)
    return found
