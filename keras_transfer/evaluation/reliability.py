"""Whether probabilities mean what they say: reliability, calibration error, temperature."""

import numpy as np

from keras_transfer.evaluation.probabilities import PROBABILITIES, blocks
from keras_transfer.utils.statistics import RESAMPLES, bootstrap, number, share

BINS = 15
_TEMPERATURES = (0.05, 20.0)


def reliability(confidence: np.ndarray, right: np.ndarray, *, seed: int = 0) -> dict:
    """Compares how sure a model is with how often it is right.

    Args:
        confidence: probabilities in [0, 1], float [N], or [N, L] where an image has several.
        right: of each, whether what it is the probability of is so; bool or 0/1, same shape.
        seed: of the intervals.

    Returns:
        Plain data: `ece`, the expected calibration error Σ_b n_b/n · |right_b − confidence_b| over 15
        bins of equal width (Naeini et al. 2015; Guo et al. 2017), and `ece_adaptive`, over bins of as
        many images each, as far as ties allow (Nguyen and O'Connor 2015), both with bootstrap
        intervals and `by_chance`: what a model that is as sure as it is right stays below in 95 of
        100 such samples (consistency resampling, Bröcker and Smith 2007), for the error of a sample is
        never 0. Up to that the interval begins at 0. And `bins`, those of equal width that are not empty: `low`, `high`, `count`,
        `confidence` (mean), `right` (share, with its Wilson interval).
    """
    confidence, right = np.asarray(confidence, "float64"), np.asarray(right, "float64")
    images, each = len(confidence), confidence[0].size
    found = [_gaps(confidence, right, edges(confidence)) for edges in (_even, _adaptive)]

    def errors(counts):
        return [np.abs(counts @ gaps).sum() / (counts.sum() * each) for gaps, _ in found]

    ece, adaptive = bootstrap(errors, images, seed=seed)
    for error, (_, bins) in zip((ece, adaptive), found):
        error["by_chance"] = _by_chance(confidence, bins, seed)
        if error["low"] is not None and error["value"] <= error["by_chance"]:
            error["low"] = 0.0
    bins = found[0][1].reshape(-1)
    confidence, right, edges = confidence.reshape(-1), right.reshape(-1), _even(confidence)
    rows = []
    for i in np.unique(bins):
        of_bin = bins == i
        count = int(of_bin.sum())
        rows.append(
            {
                "low": number(edges[i]),
                "high": number(edges[i + 1]),
                "count": count,
                "confidence": number(confidence[of_bin].mean()),
                "right": share(int(right[of_bin].sum()), count),
            }
        )
    return {"ece": ece, "ece_adaptive": adaptive, "bins": rows}


def _even(confidence):
    return np.linspace(0, 1, BINS + 1)


def _adaptive(confidence):
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, BINS + 1)))
    return edges if len(edges) > 1 else np.repeat(edges, 2)


def _gaps(confidence, right, edges):
    """(Σ of confidence − right of each image in each bin [N, B], the bins)."""
    bins = np.clip(np.searchsorted(edges, confidence) - 1, 0, len(edges) - 2)
    gaps = np.zeros((len(confidence), len(edges) - 1))
    rows = np.arange(len(confidence)).reshape(-1, *(1,) * (confidence.ndim - 1))
    np.add.at(gaps, (np.broadcast_to(rows, bins.shape), bins), confidence - right)
    return gaps, bins


def _by_chance(confidence, bins, seed):
    """The 95 % quantile of the error where each is right with the probability that is said.

    The sum of a bin then has the variance Σ p (1 − p), and is taken to be normal.
    """
    spread = np.sqrt(np.bincount(bins.reshape(-1), (confidence * (1 - confidence)).reshape(-1)))
    drawn = np.random.default_rng(seed).standard_normal((RESAMPLES, len(spread))) * spread
    return number(np.quantile(np.abs(drawn).sum(axis=1), 0.95) / confidence.size)


def fit_temperature(task: str, logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the least log loss on images that the model did not learn from.

    One number leaves every answer as it is and changes only how sure the model is (temperature
    scaling, Guo et al. 2017, arXiv:1706.04599). Searched in log T, for 0.05 ≤ T ≤ 20.

    Args:
        task: `"single_label"` (softmax) or `"multi_label"` (sigmoid).
        logits: float [N, C].
        labels: int [N], or 0/1 [N, C].

    Returns:
        T; 1.0 where the loss has no minimum in that range. That is so where no image is taken for
        another class: then being surer is always better, and how sure to be cannot be told.
    """
    from scipy.optimize import minimize_scalar

    log_range = np.log(_TEMPERATURES)
    loss = _softmax_loss if task == "single_label" else _sigmoid_loss
    found = minimize_scalar(
        lambda log_t: loss(logits, labels, np.exp(log_t)),
        bounds=log_range,
        method="bounded",
        options={"xatol": 1e-4},
    )
    if np.abs(found.x - log_range).min() < 1e-2:
        return 1.0
    return float(np.exp(found.x))


def _softmax_loss(logits, labels, temperature):
    return PROBABILITIES["single_label"](logits, temperature).log_loss(labels)


def _sigmoid_loss(logits, labels, temperature):
    total = 0.0
    for rows, block in blocks(logits, temperature):
        total += np.logaddexp(0, np.where(labels[rows] > 0, -block, block)).sum()
    return total / logits.size


def before_and_after(probabilities, labels, confidence_of, right, temperature, seed: int) -> dict:
    """What `calibration_of` gives before and after a temperature; `after` is None where there is none.

    Args:
        probabilities: `Softmax` or `Sigmoid`, with the temperature.
        confidence_of: gives of such probabilities the array that is compared with `right`.
        temperature: as it is reported; None: none was fitted.
    """

    def measured(found):
        return calibration_of(found, labels, confidence_of(found), right, seed=seed)

    final = measured(probabilities)
    if temperature is None:
        return {"temperature": None, "before": final, "after": None}
    plain = type(probabilities)(probabilities.logits)
    return {"temperature": temperature, "before": measured(plain), "after": final}


def calibration_of(probabilities, labels, confidence, right, *, seed: int = 0) -> dict:
    """`log_loss`, `brier` and what `reliability` gives, of `Softmax` or `Sigmoid` probabilities."""
    return {
        "log_loss": probabilities.log_loss(labels),
        "brier": probabilities.brier(labels),
        **reliability(confidence, right, seed=seed),
    }
