"""The training of a run: a table of its phases, its learning rates, and curves over the epochs."""

import numpy as np

from keras_transfer.reporting.page import COLORS, GRAY, figure, line_figure
from keras_transfer.utils.console import Table

_NOT_METRICS = ("epoch", "phase", "learning_rate", "seconds", "loss_scale")
_MOST_METRICS = 8
_SHARES = ("accuracy", "top5", "map", "auc", "f1")  # their axis ends at 1


def phase_table(plan, metrics: dict) -> Table:
    """Return the table of a plan, with what each phase did.

    Args:
        plan: `Plan` of the run's schedule.
        metrics: `Run.metrics`.
    """
    planned = plan.phase_table()
    rows = [
        [*row, f"{done['trainable_parameters']:,}", done["epochs"], f"{done['wall_seconds']:.1f} s"]
        for row, done in zip(planned.cells, metrics["phases"])
    ]
    header = [*planned.header, "trained weights", "trained epochs", "time"]
    return Table(header, rows, f"{planned.align}rrr")


def rate_figure(plan) -> dict | None:
    """Return a figure of each stage's learning rate; None if all phases are in closed form."""
    if all(planned.phase.solver == "logistic" for planned in plan.phases):
        return None
    from keras_transfer.schedules import drawing

    height = drawing.height(plan)
    return figure(plan.draw_on, "Learning rate of each stage", width=8, height=height)


def metric_names(history: list[dict]) -> list[str]:
    """Return the metrics of training and validation in `Run.history`, at most eight."""
    names = dict.fromkeys(key.removeprefix("val_") for row in history for key in row)
    return [name for name in names if name not in _NOT_METRICS][:_MOST_METRICS]


def metric_title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def curves(history: list[dict], best_epoch: int) -> list[dict]:
    """Return a figure per metric: training and validation, the phases and the selected epoch."""
    starts: list[tuple] = []
    for row in history:
        if not starts or starts[-1][1] != row["phase"]:
            starts.append((row["epoch"], row["phase"]))

    def curve(name):
        lines = {"training": points(history, name), "validation": points(history, f"val_{name}")}
        frame = _frame(name, starts, len(history))
        return line_figure(metric_title(name), lines, best_epoch=best_epoch, frame=frame)

    return [curve(name) for name in metric_names(history)]


def single_epoch_table(history: list[dict]) -> Table | None:
    """Return a table of the metrics of the only epoch, which makes no curve; None without any."""
    names = metric_names(history)
    values = ([history[0].get(of + name) for of in ("", "val_")] for name in names)
    rows = [
        (metric_title(name), *(None if v is None else f"{v:.4g}" for v in pair))
        for name, pair in zip(names, values)
    ]
    return Table(("after the only epoch", "training", "validation"), rows, "lrr") if rows else None


def comparison_curves(histories: dict[str, list[dict]]) -> list[dict]:
    """Return a figure per validation metric that all histories have, with one line per run.

    Args:
        histories: name of a run → `Run.history`.
    """
    each = [metric_names(history) for history in histories.values()]
    epochs = max(map(len, histories.values()))
    return [
        line_figure(
            f"{metric_title(name)}, validation",
            {run: points(history, f"val_{name}") for run, history in histories.items()},
            frame=_frame(name, [], epochs),
        )
        for name in each[0]
        if all(name in names for names in each)
    ]


def race_figure(race: dict) -> dict:
    """Return a figure of the contenders of `auto`: score against minutes, and the best so far.

    Args:
        race: the content of `race.json`.
    """
    rows = race["contenders"]
    score = race.get("evidence", {}).get("score", "score")

    def draw(axes):
        at, scores = [row["at"] for row in rows], [row["score"] for row in rows]
        axes.step(at, np.maximum.accumulate(scores), where="post", color=GRAY, label="best so far")
        axes.plot(at, scores, "o", color=COLORS[0])
        for row in rows:
            text = " ".join(
                [row["strategy"], *(f"{k}={v:.3g}" for k, v in row["overrides"].items())]
            )
            axes.annotate(text, (row["at"], row["score"]), fontsize=7, rotation=15)
        axes.set(xlabel="minutes since the start", ylabel=f"{score}, validation")
        axes.margins(x=0.25, y=0.25)
        axes.legend()

    return figure(draw, "The contenders of the advisor", width=7)


def points(history: list[dict], name: str) -> list[tuple[float, float]]:
    """Return (epoch, value) of each row that has a value."""
    return [(row["epoch"], row[name]) for row in history if name in row]


def _frame(name, starts, epochs):
    def frame(axes):
        axes.set_xlim(0.5, max(epochs, 1) + 0.5)
        if name.rpartition("_")[2] in _SHARES:
            low, _ = axes.get_ylim()
            axes.set_ylim(min(np.floor(low * 10) / 10, 0.9), 1.005)
        if len(starts) > 1:
            for first, phase in starts:
                axes.axvline(first - 0.5, color=GRAY, lw=1)
                axes.text(
                    first - 0.5,
                    1,
                    f" {phase}",
                    transform=axes.get_xaxis_transform(),
                    va="bottom",
                    fontsize=9,
                    parse_math=False,
                )

    return frame
