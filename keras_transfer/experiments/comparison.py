"""Result of a comparison: learning curves, advantages with intervals, images saved, table and verdict.

The three advantages are those of Torrey and Shavlik, "Transfer Learning" (2009): a higher start, a
higher slope, a higher asymptote. The second one is the time that it takes to learn the task; Taylor
and Stone (JMLR 10, 2009) measure it as the time to a threshold, and so does this module.
"""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.runs import HISTORY, Run
from keras_transfer.utils.files import write_text

JSON, IMAGE, TABLE = "comparison.json", "comparison.png", "comparison.md"
ARMS = {"transfer": "transfer", "scratch": "from scratch"}  # name → label
LEVEL = 0.95  # of the way from chance to the lower asymptote
CONFIDENCE = 0.95
_RESAMPLES = 2000
_ROUNDING = 1e-9  # means of equal accuracies may differ in the last digit


# -- learning curves ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A learning curve.

    Attributes:
        accuracy: validation accuracy after each epoch, 0–1; at least one.
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


def read_curve(run: Run) -> Curve:
    """Read the curve of `val_accuracy` from the history of a run."""
    with (run.path / HISTORY).open(encoding="utf-8", newline="") as file:
        return Curve.of(row["val_accuracy"] for row in csv.DictReader(file))


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


# -- the comparison -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Advantages:
    """Transfer minus training from scratch, each the mean of differences within a seed.

    Attributes:
        start: accuracy after the first epoch.
        slope: accuracy gained per epoch up to the common level; None if an arm learned nothing
            with a seed.
        asymptote: mean accuracy of the last quarter of the epochs.
    """

    start: Interval
    slope: Interval | None
    asymptote: Interval


@dataclass(frozen=True)
class AtSize:
    """Both arms at one size of the training split.

    Attributes:
        a_class: requested training images per class; a smaller class contributes all it has.
        images: training images in total.
        transfer, scratch: a curve per seed.
        chance: accuracy of always predicting the largest class.
    """

    a_class: int
    images: int
    transfer: tuple[Curve, ...]
    scratch: tuple[Curve, ...]
    chance: float

    def curves(self, arm: str) -> tuple[Curve, ...]:
        """Return the curves of `"transfer"` or `"scratch"`."""
        return getattr(self, arm)

    @cached_property
    def levels(self) -> list[float] | None:
        """For each seed the accuracy that both arms reach; None if an arm learned nothing."""
        levels = [common_level(pair, self.chance) for pair in zip(self.transfer, self.scratch)]
        known = [level for level in levels if level is not None]
        return known if len(known) == len(levels) else None

    def slopes(self, arm: str) -> np.ndarray | None:
        """Return the slope up to the common level for each seed, or None if there is no level."""
        if not self.levels:
            return None
        pairs = zip(self.curves(arm), self.levels)
        return np.array([slope(curve, level, self.chance) for curve, level in pairs])

    @cached_property
    def advantages(self) -> Advantages:
        pairs = list(zip(self.transfer, self.scratch))
        slopes = [self.slopes(arm) for arm in ARMS]
        return Advantages(
            start=Interval.of([t.start - s.start for t, s in pairs]),
            slope=None if slopes[0] is None else Interval.of(slopes[0] - slopes[1]),
            asymptote=Interval.of([t.asymptote - s.asymptote for t, s in pairs]),
        )

    def slope(self, arm: str) -> float | None:
        """Return the mean slope over the seeds."""
        slopes = self.slopes(arm)
        return None if slopes is None else float(np.mean(slopes))

    def epochs_to_level(self, arm: str) -> float | None:
        """Return the number of epochs to the common level, mean over the seeds."""
        if not self.levels:
            return None
        pairs = zip(self.curves(arm), self.levels)
        return float(np.mean([curve.epochs_to(level) for curve, level in pairs]))

    def mean(self, arm: str, measure: str) -> float:
        """Return the mean of `start` or `asymptote` over the seeds."""
        return float(np.mean([getattr(curve, measure) for curve in self.curves(arm)]))

    @property
    def negative(self) -> bool:
        """True if transfer ends significantly worse than training from scratch."""
        return self.advantages.asymptote.sign < 0


@dataclass(frozen=True)
class Comparison:
    """Transfer against training from scratch, at several sizes of the training split.

    Attributes:
        backbone, strategy: of transfer.
        classes, val_images: number of classes, and of validation images.
        seeds: one per curve of a size.
        scratch_budget: epochs from scratch per epoch of transfer.
        sizes: from the smallest to the largest.
    """

    backbone: str
    strategy: str
    classes: int
    val_images: int
    seeds: tuple[int, ...]
    scratch_budget: float
    sizes: tuple[AtSize, ...]

    @cached_property
    def savings(self) -> list[Saving]:
        """Images saved at each size."""
        ends = [
            np.array([[curve.asymptote for curve in size.curves(arm)] for size in self.sizes]).T
            for arm in ARMS
        ]
        return savings([size.images for size in self.sizes], *ends)

    @property
    def negative(self) -> tuple[int, ...]:
        """The sizes (images per class) with negative transfer."""
        return tuple(size.a_class for size in self.sizes if size.negative)

    def at(self, a_class: int | None = None) -> AtSize:
        """Return one size by its images per class; by default the one in the middle.

        Raises:
            InputError: this size was not compared.
        """
        if a_class is None:
            return self.sizes[(len(self.sizes) - 1) // 2]
        for size in self.sizes:
            if size.a_class == a_class:
                return size
        compared = ", ".join(str(size.a_class) for size in self.sizes)
        raise InputError(f"{a_class} images per class were not compared. Choose from {compared}.")

    @property
    def verdict(self) -> str:
        """Conclusion for each size, in one or two sentences."""
        lines = [self._conclusion(*pair) for pair in zip(self.sizes, self.savings)]
        if len(self.seeds) == 1:
            lines.append("With one seed, none of these differences can be told from chance.")
        return "\n".join(lines)

    def _conclusion(self, size, saving):
        text = f"{size.a_class} image{'s' * (size.a_class != 1)} per class: "
        best = max(size.mean(arm, "asymptote") for arm in ARMS)
        error = math.sqrt(size.chance * (1 - size.chance) / self.val_images)
        if best <= size.chance + 2 * error:
            return (
                f"{text}neither arm learns anything measurable on {self.val_images} images "
                f"(transfer {_percent(size.mean('transfer', 'asymptote'))}, from scratch "
                f"{_percent(size.mean('scratch', 'asymptote'))}, chance {_percent(size.chance)})."
            )
        parts = (
            _difference(size.advantages.start, "start"),
            _speed(size),
            _difference(size.advantages.asymptote, "end"),
        )
        text += f"transfer {', '.join(parts)}; training from scratch "
        if saving.bound == "least":
            text += f"is not as good at any size ({saving} the images)."
        else:
            text += f"needs {saving} the images."
        if size.negative:
            text += (
                f" Negative transfer: the weights of {self.backbone} hurt here. Train from scratch, "
                "or try another backbone, a higher learning rate or fewer frozen stages."
            )
        return text

    def to_dict(self) -> dict:
        """Return all numbers as plain data, for JSON; accuracies are 0–1."""
        return {
            "backbone": self.backbone,
            "strategy": self.strategy,
            "classes": self.classes,
            "val_images": self.val_images,
            "chance": self.sizes[0].chance,
            "seeds": list(self.seeds),
            "scratch_budget": self.scratch_budget,
            "confidence": CONFIDENCE,
            "sizes": [
                {
                    "a_class": size.a_class,
                    "images": size.images,
                    **{arm: _plain_arm(size, arm) for arm in ARMS},
                    "advantages": asdict(size.advantages),
                    "images_saved": asdict(saving),
                    "negative_transfer": size.negative,
                }
                for size, saving in zip(self.sizes, self.savings)
            ],
            "negative_transfer": list(self.negative),
            "verdict": self.verdict,
        }

    def table(self) -> str:
        """Return three rows per size as Markdown: accuracies in percent, differences in points."""
        lines = [
            "| images per class | | start | slope per epoch | epochs to the same level | end | as good "
            "as from scratch with |",
            "|---|---|---|---|---|---|---|",
        ]
        for size, saving in zip(self.sizes, self.savings):
            for arm, label in ARMS.items():
                epochs, rise = size.epochs_to_level(arm), size.slope(arm)
                lines.append(
                    f"| {size.a_class if arm == 'transfer' else ''} | {label} "
                    f"| {100 * size.mean(arm, 'start'):.1f} "
                    f"| {'–' if rise is None else f'{100 * rise:.1f}'} "
                    f"| {'–' if epochs is None else f'{epochs:.1f}'} "
                    f"| {100 * size.mean(arm, 'asymptote'):.1f} | |"
                )
            found = size.advantages
            rise = "–" if found.slope is None else found.slope.points()
            lines.append(
                f"| | **difference** | {found.start.points()} | {rise} | "
                f"| {found.asymptote.points()} | {saving} the images |"
            )
        return "\n".join(lines)

    def draw(self, path, *, a_class: int | None = None, title: str | None = None) -> None:
        """Draw the curves at one size (see `at`) and the accuracy at all sizes into a PNG file."""
        from keras_transfer.experiments.comparison_plot import draw

        draw(self, self.at(a_class), Path(path), title)

    def write(self, folder, *, a_class: int | None = None) -> None:
        """Write `comparison.json`, `comparison.md` and `comparison.png`; `a_class` as in `draw`."""
        folder = Path(folder)
        self.draw(folder / IMAGE, a_class=a_class)
        write_text(folder / TABLE, f"{self}\n")
        write_text(folder / JSON, json.dumps(self.to_dict(), indent=2) + "\n")

    def __str__(self):
        return f"{self.table()}\n\n{self.verdict}"


def _plain_arm(size, arm):
    return {
        "curves": [list(curve.accuracy) for curve in size.curves(arm)],
        "start": size.mean(arm, "start"),
        "slope": size.slope(arm),
        "epochs_to_level": size.epochs_to_level(arm),
        "asymptote": size.mean(arm, "asymptote"),
    }


def _difference(change, what):
    if change.uncertain:
        return f"shows no significant advantage at the {what} ({change.points()} points)"
    if change.mean == 0:
        return f"is equal at the {what}"
    return f"{what}s {'higher' if change.mean > 0 else 'lower'} ({change.points()} points)"


def _speed(size):
    change = size.advantages.slope
    if change is None:
        ahead = size.advantages.asymptote.mean > 0
        return "is the only arm that learns" if ahead else "does not learn"
    level = _percent(float(np.mean(size.levels)))
    transfer, scratch = (size.epochs_to_level(arm) for arm in ARMS)
    epochs = f"{level} after {transfer:.3g} epochs, from scratch after {scratch:.3g}"
    if change.uncertain:
        return f"learns at no significantly different speed ({epochs})"
    if transfer == scratch:
        return f"learns equally fast ({epochs})"
    return f"learns {'faster' if change.mean > 0 else 'slower'} ({epochs})"


def _percent(share):
    return f"{100 * share:.1f} %"
