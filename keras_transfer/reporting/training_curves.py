"""How it was trained: the schedule as an image and a table, and the curves over its phases."""

import numpy as np

from keras_transfer.reporting import page

_NOT_MEASURES = ("epoch", "phase", "learning_rate", "seconds", "loss_scale")
_MOST_FIGURES = 8
_UP_TO_ONE = ("accuracy", "top5", "map", "auc", "f1")  # shares: their axis ends at 1


def schedule(plan, metrics: dict) -> list[str]:
    """HTML: each stage's rate over the epochs, and a row a phase.

    Args:
        plan: `plans.Plan` of the run.
        metrics: of the run.
    """
    rows = []
    for planned, done in zip(plan.phases, metrics["phases"]):
        phase = planned.phase
        closed = phase.solver == "logistic"
        trained = [f"{phase.learning_rate * rate:.3g}" for rate in planned.rates if rate] or ["–"]
        rows.append(
            (
                phase.name,
                f"{planned.frozen} of {len(planned.rates)} stages",
                f"{done['trainable_parameters']:,}",
                f"{done['epochs']} of {planned.epochs}",
                planned.image_size,
                planned.batch_size,
                "closed form" if closed else phase.shape,
                "–" if closed else f"{phase.learning_rate * planned.head_rate:.3g}",
                trained[-1],
                trained[0],
                f"{done['wall_seconds']:.1f} s",
            )
        )
    header = ("phase", "frozen", "trained weights", "epochs", "px", "batch", "rate's shape", "head")
    header += ("last stage", "first that trains", "time")
    parts = [page.table(header, rows, "phases")]
    if any(planned.phase.solver != "logistic" for planned in plan.phases):
        image = page.figure(
            plan.draw_on, "Learning rate of each stage", width=8, height=plan.height
        )
        parts.append(f'<div class="drawing">{image}</div>')
    return parts


def curves(rows: list[dict], best_epoch: int) -> str:
    """HTML: a figure a measure, of training and validation, with the phases and the kept epoch; of
    a single epoch, which is no curve, a table.

    Args:
        rows: of `Run.history`.
    """
    measures = measured(rows)
    if not measures:
        return ""
    if len(rows) == 1:
        found = [[rows[0].get(of + name) for of in ("", "val_")] for name in measures]
        cells = [
            (_title(name), *("–" if v is None else f"{v:.4g}" for v in values))
            for name, values in zip(measures, found)
        ]
        return page.table(("after the only epoch", "training", "validation"), cells, "measures")
    starts = _starts(rows)

    def drawing(name):
        def draw(axes):
            for key, label, colour, marker in (
                (name, "training", page.COLOURS[0], "o"),
                (f"val_{name}", "validation", page.COLOURS[1], "s"),
            ):
                points = [(row["epoch"], row[key]) for row in rows if key in row]
                if points:
                    axes.plot(
                        *zip(*points), f"{marker}-", color=colour, label=label, ms=3.5, lw=1.5
                    )
            _frame(axes, name, starts, len(rows))
            axes.axvline(best_epoch, color="#8a8a8a", ls="--", lw=1, label="kept epoch")
            axes.legend(fontsize=9)

        return draw

    return page.grid(*(page.figure(drawing(name), _title(name)) for name in measures))


def curves_beside(histories: dict[str, list[dict]], names) -> str:
    """HTML: a figure a measure of validation, with a line a run.

    Args:
        histories: name of a run → rows of `Run.history`.
        names: measures, see `measured`.
    """

    def drawing(name):
        def draw(axes):
            for (run, rows), colour in zip(histories.items(), page.COLOURS):
                points = [(r["epoch"], r[f"val_{name}"]) for r in rows if f"val_{name}" in r]
                if points:
                    # "_" would hide a line from the legend, "$" begin a formula.
                    label = " " + run.replace("$", r"\$")
                    axes.plot(*zip(*points), "o-", color=colour, label=label, ms=3.5, lw=1.5)
            _frame(axes, name, [], max(map(len, histories.values())))
            axes.legend(fontsize=9)

        return draw

    return page.grid(*(page.figure(drawing(n), f"{_title(n)}, validation") for n in names))


def measured(rows: list[dict]) -> list[str]:
    """The measures of training and validation that a history has, at most eight."""
    names = dict.fromkeys(key.removeprefix("val_") for row in rows for key in row)
    return [name for name in names if name not in _NOT_MEASURES][:_MOST_FIGURES]


def _starts(rows):
    """(first epoch, name) of each phase."""
    found = []
    for row in rows:
        if not found or found[-1][1] != row["phase"]:
            found.append((row["epoch"], row["phase"]))
    return found


def _frame(axes, name, starts, epochs):
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set(xlabel="epoch", xlim=(0.5, max(epochs, 1) + 0.5))
    if name.rpartition("_")[2] in _UP_TO_ONE:
        low, _ = axes.get_ylim()
        axes.set_ylim(min(np.floor(low * 10) / 10, 0.9), 1.005)
    if len(starts) > 1:
        for first, phase in starts:
            axes.axvline(first - 0.5, color="#8a8a8a", lw=1)
            axes.text(
                first - 0.5,
                1,
                f" {phase}",
                transform=axes.get_xaxis_transform(),
                va="bottom",
                fontsize=9,
                parse_math=False,
            )
    axes.grid(alpha=0.25)


def _title(name):
    return name.replace("_", " ").capitalize()
