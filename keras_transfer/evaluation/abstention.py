"""Answering only where the model is sure: what is still answered, and how often that is right."""

import numpy as np

from keras_transfer.utils.statistics import number, share

_POINTS = 101


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> dict:
    """The risk (share of wrong answers) where only the surest images are answered.

    Images that the model is equally sure of are taken in all orders, in the mean.

    Args:
        confidence: float [N], N ≥ 1.
        right: bool [N].

    Returns:
        Plain data: `aurc`, the mean risk over all coverages 1/N … 1 (Geifman and El-Yaniv 2017,
        arXiv:1705.08500); `excess_aurc`, what it is above that of the best possible order (Geifman et
        al. 2019, arXiv:1805.08206); and the curve: `coverage` and `risk`.
    """
    count = len(confidence)
    accepted, errors, _ = _steps(confidence, right)
    answered = np.arange(1, count + 1)
    wrong = np.interp(answered, np.r_[0, accepted], np.r_[0, errors])
    risks = wrong / answered
    best = np.maximum(0, answered - (count - wrong[-1])) / answered
    chosen = np.unique(np.linspace(1, count, _POINTS).round().astype(int)) - 1
    return {
        "aurc": number(risks.mean()),
        "excess_aurc": number(risks.mean() - best.mean()),
        "coverage": np.round(answered[chosen] / count, 6).tolist(),
        "risk": np.round(risks[chosen], 6).tolist(),
    }


def threshold_for(confidence: np.ndarray, right: np.ndarray, precision: float) -> float | None:
    """The confidence from which on answers are right in at least a wanted share, as many as can be.

    None where even the surest are not.

    Args:
        precision: in (0, 1].
    """
    accepted, errors, values = _steps(confidence, right)
    enough = np.flatnonzero(1 - errors / accepted >= precision - 1e-12)
    return float(values[enough[-1]]) if len(enough) else None


def at_threshold(confidence: np.ndarray, right: np.ndarray, threshold: float) -> dict:
    """`coverage` and `precision` of answers from a confidence on, both with Wilson intervals."""
    answered = confidence >= threshold
    return {
        "coverage": share(int(answered.sum()), len(answered)),
        "precision": share(int(right[answered].sum()), int(answered.sum())),
    }


def _steps(confidence, right):
    """At each distinct confidence, falling: (how many are at least as sure, how many of them are
    wrong, the confidence)."""
    order = np.argsort(-confidence, kind="stable")
    values, wrong = confidence[order], np.cumsum(~np.asarray(right, bool)[order])
    last = np.flatnonzero(np.r_[values[1:] != values[:-1], True])
    return last + 1, wrong[last], values[last]
