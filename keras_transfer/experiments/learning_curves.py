"""Two learning curves against each other: a higher start, a higher slope, a higher asymptote.

The three are those of Torrey and Shavlik, "Transfer Learning" (2009). The second is there the time
that it takes to learn the task; Taylor and Stone (JMLR 10, 2009) measure it as the time to a
threshold, and so does this module.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_transfer.runs import HISTORY, Run
from keras_transfer.utils.files import write_file
from keras_transfer.utils.plotting import COLOURS

LEVEL = 0.95  # of the way from chance to the lower asymptote
CONFIDENCE = 0.95


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
        """After the first epoch. Before it a new head knows nothing, whatever it stands on."""
        return self.accuracy[0]

    @property
    def asymptote(self) -> float:
        """Mean of the last quarter of the epochs, which hangs on no lucky last one."""
        return float(np.mean(self.accuracy[-max(1, len(self.accuracy) // 4) :]))

    def epochs_to(self, level: float) -> int:
        """The first epoch, from 1, after which the accuracy is `level`, at most the highest one."""
        return next(i for i, a in enumerate(self.accuracy, 1) if a >= level)


def read_curve(run: Run) -> Curve:
    """The curve of a run's `val_accuracy`."""
    with (run.path / HISTORY).open(encoding="utf-8", newline="") as file:
        return Curve.of(row["val_accuracy"] for row in csv.DictReader(file))


def common_level(curves: Sequence[Curve], chance: float) -> float | None:
    """An accuracy that all curves come to: 95 % of the way from chance to the lowest asymptote.

    None where one of them ends no higher than chance.
    """
    lowest = min(curve.asymptote for curve in curves)
    return chance + LEVEL * (lowest - chance) if lowest > chance else None


def slope(curve: Curve, level: float, chance: float) -> float:
    """Accuracy gained an epoch, from chance before the first one up to `level`.

    Both curves of a comparison are asked for the same level and begin at the same chance, so that
    one that starts high is not called slow because it has little left to gain.
    """
    return (level - chance) / curve.epochs_to(level)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and where it lies with 95 % confidence.

    Attributes:
        mean: over the seeds.
        low, high: the ends; None where there is one seed, which tells nothing about chance.
    """

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Student's t interval of the mean, which holds for few seeds (with three it is 4.3 standard
        errors to each side) as far as seeds vary normally."""
        from scipy.stats import t

        values = np.asarray(values, "float64")
        mean, n = float(values.mean()), len(values)
        if n < 2:
            return cls(mean, None, None)
        half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
        return cls(mean, mean - half, mean + half)

    @property
    def sign(self) -> int:
        """1 or -1 where the interval is above or below 0; 0 where that cannot be told."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)

    def points(self, digits: int = 1) -> str:
        """In percentage points, with a sign."""
        text = f"{100 * self.mean:+.{digits}f}"
        if self.low is None or self.high is None:
            return text
        return f"{text} [{100 * self.low:+.{digits}f}, {100 * self.high:+.{digits}f}]"


def table(curves: dict[str, Curve], chance: float) -> str:
    """A line a curve; epochs and slope are those to an accuracy that all come to."""
    level = common_level(list(curves.values()), chance)
    to = "epochs to level" if level is None else f"epochs to {level:.2f}"
    lines = [f"{'':<20}{'start':>10}{to:>17}{'slope/epoch':>13}{'asymptote':>11}{'epochs':>8}"]
    for name, c in curves.items():
        reached = "–" if level is None else c.epochs_to(level)
        rise = "–" if level is None else f"{slope(c, level, chance):.4f}"
        lines.append(
            f"{name:<20}{c.start:>10.3f}{reached:>17}{rise:>13}{c.asymptote:>11.3f}"
            f"{len(c.accuracy):>8}"
        )
    return "\n".join(lines)


def draw(curves: dict[str, Curve], path: Path, title: str) -> None:
    """Draws the curves into a PNG file."""
    from matplotlib.figure import Figure  # no pyplot: it would look for a screen

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, curve), colour in zip(curves.items(), COLOURS):
        epochs = np.arange(1, len(curve.accuracy) + 1)
        label = f"{name}: {curve.start:.2f} at first, {curve.asymptote:.3f} in the end"
        axes.plot(epochs, curve.accuracy, "o-", color=colour, markersize=4, label=label)
    axes.set(xlabel="epoch", ylabel="validation accuracy", title=title, ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=120))
