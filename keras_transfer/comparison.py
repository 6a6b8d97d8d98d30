"""What transfer brought: start, slope and asymptote against training from scratch.

The three measures are those of Torrey and Shavlik, "Transfer Learning" (2009): a higher start, a
higher slope and a higher asymptote of the learning curve.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_transfer.runs import HISTORY, Run, write_file


@dataclass(frozen=True)
class Curve:
    """A learning curve in three numbers.

    Attributes:
        accuracy: validation accuracy after each epoch, 0–1.
        start: accuracy after the first epoch.
        slope: gain an epoch, from the first epoch to the one that first reaches 95 % of the
            asymptote; NaN where the first epoch is there already.
        asymptote: mean accuracy of the last quarter of the epochs.
    """

    accuracy: tuple[float, ...]
    start: float
    slope: float
    asymptote: float

    @classmethod
    def of(cls, accuracy) -> "Curve":
        accuracy = tuple(float(a) for a in accuracy)
        asymptote = float(np.mean(accuracy[-max(1, len(accuracy) // 4) :]))
        epochs = next(i for i, a in enumerate(accuracy) if a >= 0.95 * asymptote)
        slope = (accuracy[epochs] - accuracy[0]) / epochs if epochs else float("nan")
        return cls(accuracy, accuracy[0], slope, asymptote)


def read_curve(run: Run) -> Curve:
    """The curve of a run's `val_accuracy`."""
    with (run.path / HISTORY).open(encoding="utf-8", newline="") as file:
        return Curve.of(row["val_accuracy"] for row in csv.DictReader(file))


def table(curves: dict[str, Curve]) -> str:
    """A line a curve."""
    lines = [f"{'':<20}{'start':>10}{'slope/epoch':>13}{'asymptote':>11}{'epochs':>8}"]
    for name, c in curves.items():
        slope = "at once" if np.isnan(c.slope) else f"{c.slope:.4f}"
        lines.append(
            f"{name:<20}{c.start:>10.3f}{slope:>13}{c.asymptote:>11.3f}{len(c.accuracy):>8}"
        )
    return "\n".join(lines)


def draw(curves: dict[str, Curve], path: Path, title: str) -> None:
    """Draws the curves into a PNG file."""
    from matplotlib.figure import Figure  # no pyplot: it would look for a screen

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, curve), colour in zip(curves.items(), ("#0b6e4f", "#c0392b", "#1f4e8c")):
        epochs = np.arange(1, len(curve.accuracy) + 1)
        label = f"{name}: {curve.start:.2f} at first, {curve.asymptote:.3f} in the end"
        axes.plot(epochs, curve.accuracy, "o-", color=colour, markersize=4, label=label)
    axes.set(xlabel="epoch", ylabel="validation accuracy", title=title, ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=120))
