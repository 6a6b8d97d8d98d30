"""The image of a comparison: over the epochs at one size, and over the sizes."""

import numpy as np

from keras_transfer.utils.files import write_file
from keras_transfer.utils.plotting import COLOURS

_NAMES = {"transfer": "transfer", "scratch": "from scratch"}
_COLOUR = dict(zip(_NAMES, COLOURS))
_DARK = "#333333"


def draw(comparison, size, path, title: str | None = None) -> None:
    """Draws both panels into a PNG file.

    Args:
        comparison: a `Comparison`.
        size: an `AtSize` of it, for the left panel.
        title: by default backbone and strategy.
    """
    from matplotlib.figure import Figure  # no pyplot: it would look for a screen

    figure = Figure(figsize=(12, 5), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    _draw_epochs(left, size)
    _draw_sizes(right, comparison, size)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    seeds = len(comparison.seeds)
    figure.suptitle(
        f"{title or f'{comparison.backbone}, {comparison.strategy}'}: transfer against training from "
        f"scratch ({seeds} seed{'s' * (seeds > 1)}, {comparison.val_images} images measured on)",
        fontsize=12,
    )
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=110))


def _draw_epochs(axes, size):
    for arm in _NAMES:
        # With early stopping seeds differ in length: as far as all of them go.
        shortest = min(len(curve.accuracy) for curve in getattr(size, arm))
        rows = np.array([curve.accuracy[:shortest] for curve in getattr(size, arm)])
        epochs, mean = np.arange(1, shortest + 1), rows.mean(axis=0)
        axes.fill_between(
            epochs, rows.min(axis=0), rows.max(axis=0), color=_COLOUR[arm], alpha=0.18, lw=0
        )
        axes.plot(epochs, mean, "-", color=_COLOUR[arm], lw=2)
    found = size.advantages
    longest = max(len(c.accuracy) for arm in _NAMES for c in getattr(size, arm))
    ends = [size.mean(arm, "asymptote") for arm in _NAMES]
    starts = [size.mean(arm, "start") for arm in _NAMES]
    _arrow(axes, (1, starts[1]), (1, starts[0]))
    _arrow(axes, (longest, ends[1]), (longest, ends[0]))
    note = [f"start {found.start.points(0)} points"]
    if found.slope is not None:
        level = float(np.mean(size.levels))
        epochs = [size.epochs_to_level(arm) for arm in _NAMES]
        _arrow(axes, (epochs[1], level), (epochs[0], level))
        note.append(
            f"slope {found.slope.points()} points an epoch:\n  {100 * level:.0f} % after "
            f"{epochs[0]:.3g} epochs, not {epochs[1]:.3g}"
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
        ylabel="validation accuracy (band: all seeds)",
        ylim=(0, 1.02),
        xlim=(0, longest + 1),
    )
    axes.set_title(f"{size.a_class} images a class", fontsize=11)
    axes.grid(alpha=0.3)


def _draw_sizes(axes, comparison, chosen):
    sizes = comparison.sizes
    images = np.array([size.images for size in sizes])
    for arm, name in _NAMES.items():
        rows = np.array([[curve.asymptote for curve in getattr(size, arm)] for size in sizes])
        mean = rows.mean(axis=1)
        spread = np.stack([mean - rows.min(axis=1), rows.max(axis=1) - mean])
        axes.errorbar(
            images,
            mean,
            spread,
            fmt="o-",
            color=_COLOUR[arm],
            capsize=3,
            markersize=4,
            label=name,
        )
    at = where_to_read(comparison.savings, sizes.index(chosen))
    if at is not None:
        saving, start = comparison.savings[at], sizes[at].images
        level = sizes[at].mean("transfer", "asymptote")
        _arrow(axes, (start, level), (start * saving.ratio, level))
        axes.annotate(
            f"{saving} the images",
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
    axes.axhline(chosen.chance, color="#7a7a7a", ls=":", lw=1, label="always the largest class")
    axes.set(
        xlabel="training images (a class)",
        ylabel="accuracy in the end (bars: all seeds)",
        ylim=(0, 1.08),
    )
    axes.set_title("with more images", fontsize=11)
    axes.grid(alpha=0.3)


def where_to_read(savings, chosen):
    """The size whose saving is drawn: the chosen one, or, where all that is known of it is a bound of
    1× (no larger or no smaller one was tried), the next smaller that has something to say."""
    said = [i for i, saving in enumerate(savings) if saving.bound is None or saving.ratio != 1]
    return max((i for i in said if i <= chosen), default=None)


def _arrow(axes, start, end):
    axes.annotate(
        "", end, start, arrowprops={"arrowstyle": "->", "color": _DARK, "lw": 1.5}, zorder=5
    )
