"""How far a measured number can be trusted: intervals of 95 %, as plain data."""

import math
from collections.abc import Callable

import numpy as np

RESAMPLES = 1000
_TAIL = 0.025
_DEVIATIONS = 1.959963984540054  # of a normal distribution, two-sided 95 %


def interval(value, low=None, high=None) -> dict:
    """`{"value", "low", "high"}` of plain numbers; what is not known is None."""
    return {"value": number(value), "low": number(low), "high": number(high)}


def number(value) -> float | int | None:
    """A plain number; None in place of NaN."""
    if value is None:
        return None
    value = value.item() if hasattr(value, "item") else value
    return None if value != value else value


def share(correct, count) -> dict:
    """A share of `count` images with its interval (Wilson 1927); of none all three are None."""
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
    """Intervals of some statistics of `count` images, by drawing images anew.

    They are basic bootstrap intervals (Davison and Hinkley 1997, 5.2): the distance from the statistic
    to its resamples is taken for that from the truth to the statistic. A statistic whose resamples lie
    on one side, as those of the calibration error do, is so set right; percentiles would double
    its bias.

    Args:
        statistic: from how often each image was drawn, float [count], to K numbers; NaN where
            one cannot be had from these images.
        highest, lowest: what the statistics can be at most and at least.
        resamples: how many.
        seed: of the draws: the same seed gives the same intervals.

    Returns:
        K intervals. Without ends where there is one image, or no resample has the statistic.
    """
    value = np.atleast_1d(np.asarray(statistic(np.ones(count)), "float64"))
    if count < 2:
        return [interval(v) for v in value]
    random = np.random.default_rng(seed)
    found = np.array(
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
    for v, column, bottom, top in zip(value, found.T, *bounds):
        kept = column[np.isfinite(column)]
        if not len(kept) or v != v:
            result.append(interval(v))
            continue
        low, high = np.clip(2 * v - np.quantile(kept, (1 - _TAIL, _TAIL)), bottom, top)
        result.append(interval(v, min(low, v), max(high, v)))
    return result


def normal(value: float, error: float, highest: float = 1.0, lowest: float = 0.0) -> dict:
    """The interval of an estimate with a standard error, within what is possible."""
    reach = _DEVIATIONS * error
    return interval(value, max(lowest, value - reach), min(highest, value + reach))


def wilson_interval(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Confidence interval of a share (Wilson 1927), 95 % by default; right for few images too."""
    share = correct / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
