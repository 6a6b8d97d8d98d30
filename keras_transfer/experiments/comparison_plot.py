"""Plots of learning curves and of a comparison."""

from pathlib import Path

import numpy as np

from keras_transfer.experiments.comparison import ARMS, AtSize, Comparison
from keras_transfer.experiments.learning_curves import Curve, Saving
from keras_transfer.utils.files import write_file
from keras_transfer.utils.plotting import COLORS, save

_COLORS = dict(zip(ARMS, COLORS))
_DARK = "#333333"


def draw_curves(curves: dict[str, Curve], path: Path, title: str) -> None:
    """Draw learning curves into a PNG file."""
    from matplotlib.figure import Figure  # pyplot would look for a display

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, curve), color in zip(curves.items(), COLORS):
        epochs = np.arange(1, len(curve.accuracy) + 1)
        label = f"{name}: starts at {curve.start:.2f}, ends at {curve.asymptote:.3f}"
        axes.plot(epochs, curve.accuracy, "o-", color=color, markersize=4, label=label)
    axes.set(xlabel="epoch", ylabel="validation accuracy", title=title, ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    write_file(path, lambda temporary: save(figure, temporary, dpi=120))


def draw(comparison: Comparison, size: AtSize, path: Path, title: str | None = None) -> None:
    """Draw a comparison into a PNG file: accuracy over epochs at one size, and over the sizes.

    Args:
        comparison: the whole comparison, for the right panel.
        size: one of its sizes, for the left panel.
        path: of the file.
        title: backbone and strategy by default.
    """
    from matplotlib.figure import Figure  # pyplot would look for a display

    figure = Figure(figsize=(12, 5), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    _draw_epochs(left, comparison, size)
    _draw_sizes(right, comparison, size)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    seeds = len(comparison.seeds)
    figure.suptitle(
        f"{title or f'{comparison.backbone}, {comparison.strategy}'}: transfer against training from "
        f"scratch ({seeds} seed{'s' * (seeds > 1)}, {comparison.val_images} validation examples)",
        fontsize=12,
    )
    write_file(path, lambda temporary: save(figure, temporary, dpi=110))


def _draw_epochs(axes, comparison, size):
    for arm in ARMS:
        # With early stopping the seeds differ in length: draw the epochs that all of them have.
        shortest = min(len(curve.accuracy) for curve in size.curves(arm))
        rows = np.array([curve.accuracy[:shortest] for curve in size.curves(arm)])
        epochs, mean = np.arange(1, shortest + 1), rows.mean(axis=0)
        band = {"color": _COLORS[arm], "alpha": 0.18, "lw": 0}
        axes.fill_between(epochs, rows.min(axis=0), rows.max(axis=0), **band)
        axes.plot(epochs, mean, "-", color=_COLORS[arm], lw=2)
    found = size.advantages
    longest = max(len(curve.accuracy) for arm in ARMS for curve in size.curves(arm))
    for at, measure in ((1, "start"), (longest, "asymptote")):
        transfer, scratch = (size.mean(arm, measure) for arm in ARMS)
        _arrow(axes, (at, scratch), (at, transfer))
    note = [f"start {found.start.points(0)} points"]
    if found.slope is not None:
        level = float(np.mean(size.levels))
        transfer, scratch = (size.epochs_to_level(arm) for arm in ARMS)
        _arrow(axes, (scratch, level), (transfer, level))
        note.append(
            f"slope {found.slope.points()} points per epoch:\n  {100 * level:.0f} % after "
            f"{transfer:.3g} epochs, not {scratch:.3g}"
        )
    note.append(f"end {found.asymptote.points(0)} points")
    axes.text(
        0.98,
        0.03,
        "\n".join(note),
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        fontsize=9,
        color=_DARK,
        bbox={"facecolor": "white", "edgecolor": "#cccccc", "alpha": 0.9},
    )
    axes.axhline(size.chance, color="#7a7a7a", ls=":", lw=1)
    axes.set(
        xlabel="epoch",
        ylabel=f"validation {comparison.score} (band: all seeds)",
        ylim=(0, 1.02),
        xlim=(0, longest + 1),
    )
    axes.set_title(f"{size.a_class} examples{comparison.each}", fontsize=11)
    axes.grid(alpha=0.3)


def _draw_sizes(axes, comparison, chosen):
    sizes = comparison.sizes
    images = np.array([size.images for size in sizes])
    for arm, label in ARMS.items():
        rows = np.array([[curve.asymptote for curve in size.curves(arm)] for size in sizes])
        mean = rows.mean(axis=1)
        spread = np.stack([mean - rows.min(axis=1), rows.max(axis=1) - mean])
        style = {"color": _COLORS[arm], "capsize": 3, "markersize": 4, "label": label}
        axes.errorbar(images, mean, spread, fmt="o-", **style)
    at = saving_to_draw(comparison.savings, sizes.index(chosen))
    if at is not None:
        saving, start = comparison.savings[at], sizes[at].images
        level = sizes[at].mean("transfer", "asymptote")
        _arrow(axes, (start, level), (start * saving.ratio, level))
        axes.annotate(
            f"{saving} the examples",
            (start * saving.ratio**0.5, level),
            (0, 7),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=10,
            color=_DARK,
        )
    axes.set_xscale("log")
    axes.set_xticks(images, [f"{size.images}\n({size.a_class})" for size in sizes])
    axes.minorticks_off()
    axes.axhline(chosen.chance, color="#7a7a7a", ls=":", lw=1, label="nothing learned")
    axes.set(
        xlabel=f"training examples ({comparison.each.strip() or 'requested'})",
        ylabel=f"final {comparison.score} (bars: all seeds)",
        ylim=(0, 1.08),
    )
    axes.set_title("more images", fontsize=11)
    axes.grid(alpha=0.3)


def saving_to_draw(savings: list[Saving], chosen: int) -> int | None:
    """Return the index of the size whose saving is drawn.

    It is the chosen size, unless only a bound of 1× is known of its saving (there is no larger or
    no smaller size); then the next smaller one that is known better.
    """
    known = [i for i, saving in enumerate(savings) if saving.bound is None or saving.ratio != 1]
    return max((i for i in known if i <= chosen), default=None)


def _arrow(axes, start, end):
    style = {"arrowstyle": "->", "color": _DARK, "lw": 1.5}
    axes.annotate("", end, start, arrowprops=style, zorder=5)
