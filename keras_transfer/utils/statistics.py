"""95 % confidence intervals of measured numbers, as plain data."""

import math
from collections.abc import Callable

import numpy as np

RESAMPLES = 1000
_TAIL = 0.025
_DEVIATIONS = 1.959963984540054  # standard deviations, two-sided 95 % of a normal distribution


def interval(value, low=None, high=None) -> dict:
    """Return `{"value", "low", "high"}` as plain numbers; unknown ends are None."""
    return {"value": number(value), "low": number(low), "high": number(high)}


def number(value) -> float | int | None:
    """Return a plain number; None instead of NaN."""
    if value is None:
        return None
    value = value.item() if hasattr(value, "item") else value
    return None if value != value else value


def share(correct, count) -> dict:
    """Return a share of `count` examples with its Wilson interval; None if `count` is 0."""
    if not count:
        return interval(None)
    return interval(correct / count, *wilson_interval(int(correct), int(count)))


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    count: int,
    *,
    highest: float | np.ndarray = 1.0,
    lowest: float | np.ndarray = 0.0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict]:
    """Return basic bootstrap intervals of statistics of `count` examples.

    The distance from the statistic to its resamples estimates the distance from the truth to the
    statistic (Davison and Hinkley 1997, 5.2). This corrects a statistic whose resamples are biased,
    such as the calibration error; percentiles would double its bias.

    Args:
        statistic: takes how often each example was drawn, float [count], and returns K numbers;
            NaN if one is undefined for these examples.
        count: number of examples.
        highest, lowest: bounds of the statistics.
        resamples: number of resamples.
        seed: the same seed gives the same intervals.

    Returns:
        K intervals, without ends if there is one example or no resample has the statistic.
    """
    value = np.atleast_1d(np.asarray(statistic(np.ones(count)), "float64"))
    if count < 2:
        return [interval(v) for v in value]
    random = np.random.default_rng(seed)
    samples = np.array(
        [
            np.atleast_1d(
                statistic(np.bincount(random.integers(count, size=count), minlength=count) * 1.0)
            )
            for _ in range(resamples)
        ],
        "float64",
    )
    result = []
    bounds = (np.broadcast_to(bound, value.shape) for bound in (lowest, highest))
    for v, column, bottom, top in zip(value, samples.T, *bounds):
        finite = column[np.isfinite(column)]
        if not len(finite) or v != v:
            result.append(interval(v))
            continue
        low, high = np.clip(2 * v - np.quantile(finite, (1 - _TAIL, _TAIL)), bottom, top)
        result.append(interval(v, min(low, v), max(high, v)))
    return result


def normal(value: float, error: float, highest: float = 1.0, lowest: float = 0.0) -> dict:
    """Return the interval of an estimate with a standard error, clipped to its bounds."""
    reach = _DEVIATIONS * error
    return interval(value, max(lowest, value - reach), min(highest, value + reach))


def wilson_interval(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the confidence interval of a share (Wilson 1927), valid for few examples too."""
    share = correct / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
