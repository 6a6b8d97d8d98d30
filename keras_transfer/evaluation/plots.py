"""Plots of an evaluation: confusion, reliability, risk and coverage, ROC and precision-recall."""

from functools import partial
from pathlib import Path

import numpy as np

from keras_transfer.utils.console import printable
from keras_transfer.utils.files import write_file
from keras_transfer.utils.plotting import save

# Of middle lightness, so that they can be told apart on white and on black, and by most color-blind
# readers (ColorBrewer Dark2 and Okabe-Ito).
COLORS = (
    *("#d95f02", "#1b9e77", "#7d78c4", "#e7298a", "#66a61e"),
    *("#e6ab02", "#a6761d", "#3d8fd1", "#d7301f", "#17a2b8"),
)
GRAY = "#8a8a8a"
_BEFORE, _AFTER = COLORS[:2]
_MOST_NAMED = 30  # classes whose names fit next to a matrix
_MOST_PAIRS = 12
_MOST_EXACT_ORDER = 200  # classes for which the optimal order of the clusters is searched


def save_plots(document: dict, folder) -> list[Path]:
    """Draw an evaluation into PNG files, each written atomically.

    Args:
        document: from `Evaluation.to_dict` or evaluation.json.
        folder: an existing folder.

    Returns:
        The files: confusion.png, reliability.png, risk_coverage.png and curves.png, as far as they
        suit the task; with several heads, the name of the head and `_` come first.
    """
    files = []
    for name, head in document["heads"].items():
        prefix = f"{name}_" if len(document["heads"]) > 1 else ""
        for kind, key, draw in (
            ("confusion", "confusion", _confusion_figure),
            ("reliability", "calibration", _reliability_figure),
            ("risk_coverage", "abstention", _risk_figure),
            ("curves", "curves", _ranking_figure),
        ):
            if key in head:
                path = Path(folder) / f"{prefix}{kind}.png"
                write_file(path, partial(save, draw(head), dpi=110))
                files.append(path)
    return files


def _figure(width, height):
    from matplotlib.figure import Figure  # pyplot would look for a display

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


# -- confusion ------------------------------------------------------------------------------------


def similarity_order(confusion: np.ndarray) -> np.ndarray:
    """Order the classes so that classes that are confused come next to each other, int [C].

    Average-linkage clusters of the distance 1 − (how often either is predicted as the other), with
    leaves ordered so that neighbors are similar (Bar-Joseph et al. 2001).
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    shares = row_shares(confusion)
    if len(shares) < 3:
        return np.arange(len(shares))
    similarity = (shares + shares.T) / 2
    np.fill_diagonal(similarity, 1.0)
    tree = linkage(
        squareform(1 - similarity, checks=False),
        "average",
        optimal_ordering=len(shares) <= _MOST_EXACT_ORDER,
    )
    return leaves_list(tree)


def row_shares(confusion: np.ndarray) -> np.ndarray:
    """Return counts [C, C] as shares of each row; rows without images are zero."""
    confusion = np.asarray(confusion, "float64")
    return confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)


def _confusion_figure(head):
    """Draw the confusion matrix: rows are true classes, colors show shares of each row.

    Up to 30 classes have their names on both axes and counts in the cells. With more, only the most
    confused pairs are numbered in the matrix and named next to it.
    """
    counts, names = np.array(head["confusion"]), head["names"]
    many = len(names) > _MOST_NAMED
    order = similarity_order(counts)
    side = 8 if many else max(4, 1.5 + 0.35 * len(names))
    figure = _figure(side + (3.5 if many else 0), side + 0.8)
    axes, legend = (
        figure.subplots(1, 2, width_ratios=[side, 3.5]) if many else (figure.subplots(), None)
    )
    counts = counts[np.ix_(order, order)]
    shares = row_shares(counts)
    # Colors follow the square root, so that a few mistakes in a hundred are visible.
    image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, location="bottom", fraction=0.03, pad=0.02)
    ticks = np.array([0, *([0.01] if many else []), 0.05, 0.2, 0.5, 1])
    bar.set_ticks(np.sqrt(ticks), labels=[f"{100 * t:.0f} %" for t in ticks])
    axes.set(xlabel="predicted", ylabel="true")
    if many:
        place = {names[c]: i for i, c in enumerate(order)}
        _number_pairs(axes, legend, head["confused"][:_MOST_PAIRS], place)
    else:
        ticks = [printable(names[c])[:24] for c in order]
        style = {"fontsize": 8, "parse_math": False}
        axes.set_xticks(range(len(names)), ticks, rotation=60, ha="right", **style)
        axes.set_yticks(range(len(names)), ticks, **style)
        for (i, j), n in np.ndenumerate(counts):
            if n:
                color = "w" if shares[i, j] > 0.35 else "k"
                axes.text(j, i, n, ha="center", va="center", fontsize=7, color=color)
    accuracy, low, high = (100 * head["accuracy"][key] for key in ("value", "low", "high"))
    title = f"Accuracy {accuracy:.1f} % [{low:.1f}, {high:.1f}], {head['images']} examples"
    note = "\nsimilar classes are adjacent" if len(names) > 2 else ""
    figure.suptitle(title + note, fontsize=10)
    return figure


def _number_pairs(axes, legend, pairs, place):
    axes.set(xticks=[], yticks=[], xlabel=f"predicted ({len(place)} classes)")
    lines = ["most confused (true → predicted)"]
    for number, pair in enumerate(pairs, 1):
        x, y = place[pair["predicted"]], place[pair["label"]]
        axes.plot(x, y, "s", ms=7, mfc="none", mec=_BEFORE, mew=1.2)
        # Away from the diagonal, where the squares are dense.
        shift, align = (6, "left") if x > y else (-6, "right")
        style = {"fontsize": 9, "color": _BEFORE, "ha": align, "va": "center"}
        axes.annotate(str(number), (x, y), (shift, 0), textcoords="offset points", **style)
        label, predicted = (printable(pair[key])[:20] for key in ("label", "predicted"))
        share = f"{100 * pair['share']:.0f} %"
        lines.append(f"{number}. {label} → {predicted}: {pair['count']} ({share})")
    legend.set_axis_off()
    legend.text(0, 1, "\n".join(lines), va="top", fontsize=9, linespacing=1.6, parse_math=False)


# -- reliability, risk and coverage ---------------------------------------------------------------


def plot_reliability(axes, head: dict) -> None:
    """Plot the share of correct predictions against confidence, before and after scaling.

    Args:
        axes: of matplotlib.
        head: one head of an evaluation's document, with `calibration`.
    """
    axes.plot([0, 1], [0, 1], ":", color=GRAY, label="perfect calibration")
    for when, color, result in _scalings(head):
        bins = result["bins"]
        y = np.array([b["right"]["value"] for b in bins])
        ends = np.array([[b["right"]["low"], b["right"]["high"]] for b in bins]).T
        axes.errorbar(
            [b["confidence"] for b in bins],
            y,
            np.maximum(np.abs(ends - y), 0),
            fmt="o-",
            color=color,
            capsize=2,
            ms=4,
            lw=1.3,
            label=f"{when}: ECE {100 * result['ece']['value']:.1f} %",
        )
    several = head["task"] == "multi_label"
    axes.set(
        xlabel="probability" if several else "confidence",
        ylabel="label present (share)" if several else "correct (share)",
        xlim=(0, 1),
        ylim=(-0.02, 1.02),
    )
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left", fontsize=9)


def _scalings(head):
    """Return (title, color, result) of the model before and, if calibrated, after scaling."""
    before, after = head["calibration"]["before"], head["calibration"]["after"]
    if after is None:
        return [("model", _BEFORE, before)]
    return [("before scaling", _BEFORE, before), ("after scaling", _AFTER, after)]


def _reliability_figure(head):
    """Draw reliability, and below how many examples have which confidence."""
    figure = _figure(6, 6.5)
    upper, lower = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    plot_reliability(upper, head)
    scalings = _scalings(head)
    for _, color, result in scalings:
        edges = [*(b["low"] for b in result["bins"]), result["bins"][-1]["high"]]
        widths = np.maximum(np.diff(edges), 1e-3)
        counts = np.array([b["count"] for b in result["bins"]])
        lower.stairs(counts / (100 * widths), edges, color=color)
    lower.set(xlabel=upper.get_xlabel(), ylabel="per 1 %")
    upper.set_xlabel("")
    lower.set_yscale("symlog")
    return figure


def plot_risk(axes, head: dict) -> None:
    """Plot the share of wrong answers against the share of images that are answered.

    Args:
        axes: of matplotlib.
        head: one head of an evaluation's document, with `abstention`.
    """
    abstention = head["abstention"]
    axes.plot(abstention["coverage"], abstention["risk"], color=COLORS[2], lw=2)
    for row in abstention["thresholds"]:
        if row["threshold"] is None or row["precision"]["value"] is None:
            continue
        x, y = row["coverage"]["value"], 1 - row["precision"]["value"]
        axes.plot(x, y, "o", color=COLORS[0])
        note, style = f"confidence ≥ {row['threshold']:.2f}", {"fontsize": 8, "ha": "right"}
        axes.annotate(note, (x, y), (-6, 6), textcoords="offset points", **style)
    axes.set(
        xlabel="coverage (share answered, most confident first)",
        ylabel="risk (share of answers that are wrong)",
        xlim=(0, 1.02),
        ylim=(0, None),
    )
    axes.grid(alpha=0.25)


def _risk_figure(head):
    figure = _figure(6, 4.5)
    axes = figure.subplots()
    plot_risk(axes, head)
    area, excess = head["abstention"]["aurc"], head["abstention"]["excess_aurc"]
    axes.set_title(f"AURC {area:.4f} ({excess:.4f} above the best order)")
    return figure


# -- ranking --------------------------------------------------------------------------------------


def _ranking_figure(head):
    """Draw ROC and precision-recall curves of each class against the rest, and their means."""
    curves = head["curves"]
    areas = head.get("average_precision", head.get("map"))
    figure = _figure(11, 5)
    for axes, x, kind, area, title in zip(
        figure.subplots(1, 2),
        (curves["false_positive_rate"], curves["recall"]),
        ("roc", "precision"),
        (head["auc"]["value"], areas),
        ("ROC, mean AUC", "precision-recall, mean average precision"),
    ):
        rows = [row for row in curves[kind]["per_class"] if row is not None]
        for row in rows:
            axes.plot(x, row, color=GRAY, lw=0.7, alpha=max(0.05, min(0.6, 8 / len(rows))))
        if rows:
            axes.plot(x, curves[kind]["macro"], color=_AFTER, lw=2.2)
        value = "–" if area is None else f"{area:.4f}"
        axes.set(xlim=(0, 1), ylim=(0, 1.02), title=f"{title} {value}")
        axes.grid(alpha=0.25)
        if kind == "roc":
            axes.plot(x, x, ":", color=GRAY)
            # The left end matters most, so it is stretched.
            axes.set_xscale("function", functions=(np.sqrt, np.square))
            axes.set_xticks([0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1])
            axes.set(xlabel="false positive rate", ylabel="true positive rate")
        else:
            axes.set(xlabel="recall", ylabel="precision")
    figure.suptitle("gray: each class against the rest; green: their mean", fontsize=10)
    return figure
