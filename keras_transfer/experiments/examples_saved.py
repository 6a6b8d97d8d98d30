"""How many images transfer saves: what training from scratch needs to be as good."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_transfer.experiments.learning_curves import CONFIDENCE

_RESAMPLES = 2000
_ROUNDING = 1e-9  # means of equal accuracies may differ in the last digit


@dataclass(frozen=True)
class Saving:
    """Transfer is as good as training from scratch on `ratio` times the images.

    Attributes:
        ratio: that number, or its bound.
        bound: `"least"` where training from scratch gets there with no size that was tried (the ratio
            is then that of the largest), `"most"` where the smallest size is enough, else None.
        low, high: interval over the seeds; None where it is open on that side, or there is one seed.
    """

    ratio: float
    bound: str | None
    low: float | None
    high: float | None

    def __str__(self):
        sign = {"least": "≥ ", "most": "≤ ", None: ""}[self.bound]
        text = f"{sign}{self.ratio:.2g}×"
        if self.low is None and self.high is None:
            return text
        ends = ("–" if end is None else f"{end:.2g}" for end in (self.low, self.high))
        return f"{text} [{', '.join(ends)}]"


def savings(images: Sequence[int], transfer: np.ndarray, scratch: np.ndarray) -> list[Saving]:
    """What transfer saves at each size.

    The accuracy from scratch as a function of the number of images is made to rise (isotonic
    regression: noise in it must not make more images worse) and is linear in the logarithm between
    the sizes. It is not continued beyond them: there only a bound is known.

    The interval is a percentile bootstrap over the seeds: a seed is drawn with all its sizes and both
    arms. Few seeds have few different samples (three have ten), so that it is narrow rather than wide.

    Args:
        images: of the training part at each size [S], rising.
        transfer, scratch: accuracy in the end, [seeds, S].
    """
    images = np.asarray(images, "float64")
    seeds = len(transfer)
    measured = _ratios(images, transfer.mean(axis=0), scratch.mean(axis=0))
    draws = np.random.default_rng(0).integers(seeds, size=(_RESAMPLES, seeds))
    draws, times = np.unique(np.sort(draws, axis=1), axis=0, return_counts=True)
    found = [_ratios(images, transfer[d].mean(axis=0), scratch[d].mean(axis=0)) for d in draws]
    found = np.repeat(found, times, axis=0)
    # Not interpolated: some may be infinite.
    tail = (1 - CONFIDENCE) / 2
    ends = np.quantile(found, (tail, 1 - tail), axis=0, method="inverted_cdf")
    return [
        _saving(ratio, low, high, images, size, seeds)
        for ratio, low, high, size in zip(measured, *ends, images)
    ]


def images_needed(images: np.ndarray, accuracy: np.ndarray, level: float) -> float:
    """The number of images with which `accuracy` [S] at `images` [S] comes to a level.

    inf where it never does, 0 where the least number is more than enough.
    """
    from scipy.optimize import isotonic_regression

    rising = isotonic_regression(accuracy).x
    if level > rising[-1] + _ROUNDING:
        return np.inf
    if level < rising[0] - _ROUNDING:
        return 0.0
    after = int(np.argmax(rising >= level - _ROUNDING))
    if after == 0:
        return float(images[0])
    share = (level - rising[after - 1]) / (rising[after] - rising[after - 1])
    return float(images[after - 1] * (images[after] / images[after - 1]) ** share)


def _ratios(images, transfer, scratch):
    return [images_needed(images, scratch, level) / n for n, level in zip(images, transfer)]


def _saving(ratio, low, high, images, size, seeds):
    least, most = images[0] / size, images[-1] / size
    bound = "least" if np.isinf(ratio) else "most" if ratio == 0 else None
    ratio = float(np.clip(ratio, least, most))
    if seeds < 2:
        return Saving(ratio, bound, None, None)
    return Saving(
        ratio,
        bound,
        None if low == 0 else float(min(low, most)),
        None if np.isinf(high) else float(max(high, least)),
    )
