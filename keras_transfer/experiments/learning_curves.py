"""Learning curves and what a comparison measures on them, as numbers with intervals.

The three advantages of transfer are those of Torrey and Shavlik, "Transfer Learning" (2009): a higher
start, a higher slope, a higher asymptote. The second one is the time that it takes to learn the task;
Taylor and Stone (JMLR 10, 2009) measure it as the time to a threshold, and so does this module.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_transfer.experiments.scores import ACCURACY, Score
from keras_transfer.runs import HISTORY, Run
from keras_transfer.utils.console import Table

LEVEL = 0.95  # of the way from chance to the lower asymptote
CONFIDENCE = 0.95
_RESAMPLES = 2000
_ROUNDING = 1e-9  # means of equal accuracies may differ in the last digit


@dataclass(frozen=True)
class Curve:
    """A learning curve.

    Attributes:
        accuracy: validation accuracy after each epoch, at most 1, or the score that the task has instead
            (see `scores`); at least one.
    """

    accuracy: tuple[float, ...]

    @classmethod
    def of(cls, accuracy) -> "Curve":
        return cls(tuple(float(a) for a in accuracy))

    @property
    def start(self) -> float:
        """Accuracy after the first epoch. Before it a new head is at chance on any backbone."""
        return self.accuracy[0]

    @property
    def asymptote(self) -> float:
        """Mean accuracy of the last quarter of the epochs, which does not depend on a lucky last one."""
        return float(np.mean(self.accuracy[-max(1, len(self.accuracy) // 4) :]))

    def epochs_to(self, level: float) -> int:
        """Return the first epoch, from 1, after which the accuracy is at least `level`."""
        return next(i for i, a in enumerate(self.accuracy, 1) if a >= level)


def read_curve(run: Run, score: Score = ACCURACY) -> Curve:
    """Read the curve of a score on the validation examples from the history of a run."""
    with (run.path / HISTORY).open(encoding="utf-8", newline="") as file:
        return Curve.of(score.in_epoch(row) for row in csv.DictReader(file))


def common_level(curves: Sequence[Curve], chance: float) -> float | None:
    """Return an accuracy that all curves reach: 95 % of the way from chance to the lowest asymptote.

    None if a curve ends no higher than chance.
    """
    lowest = min(curve.asymptote for curve in curves)
    return chance + LEVEL * (lowest - chance) if lowest > chance else None


def slope(curve: Curve, level: float, chance: float) -> float:
    """Return the accuracy gained per epoch, from chance before the first one up to `level`.

    All curves of a comparison share chance and level. Otherwise a curve that starts high would
    count as slow, because it has little left to gain.
    """
    return (level - chance) / curve.epochs_to(level)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, with its 95 % confidence interval.

    Attributes:
        mean: over the seeds.
        low, high: ends of the interval; None for a single seed.
    """

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Compute Student's t interval of the mean.

        It is valid for few seeds (for three it spans 4.3 standard errors to each side), provided
        that the values are normally distributed.
        """
        from scipy.stats import t

        values = np.asarray(values, "float64")
        mean, n = float(values.mean()), len(values)
        if n < 2:
            return cls(mean, None, None)
        half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
        return cls(mean, mean - half, mean + half)

    @property
    def sign(self) -> int:
        """1 or -1 if the interval is above or below 0; 0 if it is not, or there is one seed."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)

    @property
    def uncertain(self) -> bool:
        """True if there is an interval and it contains 0."""
        return self.low is not None and self.sign == 0

    def points(self, digits: int = 1) -> str:
        """Format in percentage points, with a sign."""
        text = f"{100 * self.mean:+.{digits}f}"
        if self.low is None or self.high is None:
            return text
        return f"{text} [{100 * self.low:+.{digits}f}, {100 * self.high:+.{digits}f}]"


# -- images saved ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saving:
    """Training from scratch needs `ratio` times the images to be as accurate as transfer.

    Attributes:
        ratio: that number, or its bound.
        bound: `"least"` if training from scratch is not as accurate at any size (the ratio is then
            that of the largest), `"most"` if it is more accurate at the smallest, else None.
        low, high: interval over the seeds; None if it is open on that side, or for a single seed.
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
    """Return how many images transfer saves at each size.

    The accuracy from scratch as a function of the number of images is made monotonic (isotonic
    regression, because noise must not make more images worse) and is linear in the logarithm
    between the sizes. Beyond them only a bound is known.

    The interval is a percentile bootstrap over the seeds, each drawn with all its sizes and both
    arms. Few seeds allow few different samples (three allow ten), so the interval is rather narrow.

    Args:
        images: number of training images at each size [S], increasing.
        transfer, scratch: final accuracy, [seeds, S].
    """
    images = np.asarray(images, "float64")
    seeds = len(transfer)
    measured = _ratios(images, transfer.mean(axis=0), scratch.mean(axis=0))
    draws = np.random.default_rng(0).integers(seeds, size=(_RESAMPLES, seeds))
    draws, times = np.unique(np.sort(draws, axis=1), axis=0, return_counts=True)
    resampled = [_ratios(images, transfer[d].mean(axis=0), scratch[d].mean(axis=0)) for d in draws]
    tail = (1 - CONFIDENCE) / 2
    # Not interpolated, because some ratios may be infinite.
    ends = np.quantile(
        np.repeat(resampled, times, axis=0), (tail, 1 - tail), axis=0, method="inverted_cdf"
    )
    return [
        _saving(ratio, low, high, images, size, seeds)
        for ratio, low, high, size in zip(measured, *ends, images)
    ]


def images_needed(images: np.ndarray, accuracy: np.ndarray, level: float) -> float:
    """Return the number of images at which `accuracy` [S], measured at `images` [S], reaches a level.

    inf if it never does, 0 if it exceeds the level already at the smallest number.
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
    low = None if low == 0 else float(min(low, most))
    return Saving(ratio, bound, low, None if np.isinf(high) else float(max(high, least)))


def curve_table(curves: dict[str, Curve], chance: float) -> str:
    """Return a text table with a row per curve; epochs and slope are those to an accuracy that all curves reach."""
    level = common_level(list(curves.values()), chance)
    rows = [
        [
            name,
            f"{c.start:.3f}",
            None if level is None else c.epochs_to(level),
            None if level is None else f"{slope(c, level, chance):.4f}",
            f"{c.asymptote:.3f}",
            len(c.accuracy),
        ]
        for name, c in curves.items()
    ]
    to_level = "epochs to level" if level is None else f"epochs to {level:.2f}"
    header = ("", "start", to_level, "slope/epoch", "asymptote", "epochs")
    return Table(header, rows, "lrrrrr").text()
