"""A plot of a plan: the learning rate of each stage over the epochs."""

import math
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure  # not pyplot, which would look for a screen

from keras_transfer.schedules.plans import Plan
from keras_transfer.utils.files import write_file


def save_plot(plan: Plan, path) -> None:
    """Save the plot as a PNG file."""
    figure = Figure(figsize=(8, height(plan)), layout="constrained")
    draw_rates(plan, figure.add_subplot())
    write_file(Path(path), lambda temporary: figure.savefig(temporary, dpi=120))


def height(plan: Plan) -> float:
    """Return the height of the plot in inches, for a width of 8."""
    return 2.2 + 0.16 * min(len(plan.stage_names) + 1, 60)


def draw_rates(plan: Plan, axes) -> None:
    """Plot the rate of each stage over the epochs on matplotlib's `axes`; gray means frozen."""
    rows = len(plan.stage_names) + 1
    epochs, rates, starts = [0.0], [], [0.0]
    for p in plan.phases:
        steps = np.unique(np.linspace(0, p.steps - 1, min(p.steps, 200)).astype(int))
        closed = p.phase.solver == "logistic"  # has no rate
        multipliers = np.array([*p.rates, 0.0 if closed else p.head_rate])
        rates.append(multipliers[:, None] * p.learning_rate(steps))
        ends = np.append(steps[1:], p.steps) / p.steps_per_epoch
        epochs.extend(starts[-1] + ends)
        starts.append(starts[-1] + p.steps / p.steps_per_epoch)
    values = np.concatenate(rates, axis=1)
    highest = values.max() or 1.0
    mesh = axes.pcolormesh(
        np.array(epochs),
        np.arange(rows + 1),
        np.ma.masked_equal(values, 0),
        norm=LogNorm(highest * 1e-3, highest),
        cmap=colormaps["viridis"].with_extremes(bad="#b9b9b9"),
        rasterized=True,
    )
    for start, p in zip(starts, plan.phases):
        axes.axvline(start, color="white", linewidth=1.5)
        closed = " (closed form)" if p.phase.solver == "logistic" else ""
        name = f" {p.phase.name}{closed}"
        axes.text(start, rows, name, va="bottom", fontsize=9, parse_math=False)
    ticks = [*range(0, rows - 1, math.ceil(rows / 20)), rows - 1]
    labels = ["head" if t == rows - 1 else f"stage {t + 1}" for t in ticks]
    axes.set_yticks([t + 0.5 for t in ticks], labels, fontsize=7)
    axes.set(xlabel="epoch")
    title = f"{plan.schedule.name}: learning rate by stage (gray: frozen)"
    axes.set_title(title, pad=18, parse_math=False)
    axes.figure.colorbar(mesh, ax=axes, label="learning rate")
