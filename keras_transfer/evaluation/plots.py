"""An evaluation as images: confusion, reliability, risk against coverage, ROC and precision-recall."""

from functools import partial
from pathlib import Path

import numpy as np

from keras_transfer.utils.files import write_file
from keras_transfer.utils.plotting import BLUE, GREEN, RED
from keras_transfer.utils.tables import printable

_LABELLED = 30  # classes whose names fit beside a matrix
_PAIRS = 12
_EXACT_ORDER = 200  # classes for which the best order of the clusters is searched
_GREY = "#7a7a7a"


def draw(document: dict, folder) -> list[Path]:
    """Draws what an evaluation's document has into PNG files, each of which appears whole.

    Args:
        document: of `Evaluation.to_dict`, or read from evaluation.json.
        folder: exists.

    Returns:
        The files: confusion.png, reliability.png, risk_coverage.png and curves.png, as far as they
        suit the task; of several heads with the head's name and `_` before.
    """
    files = []
    for name, head in document["heads"].items():
        prefix = f"{name}_" if len(document["heads"]) > 1 else ""
        for kind, needs, draw_one in (
            ("confusion", "confusion", draw_confusion),
            ("reliability", "calibration", draw_reliability),
            ("risk_coverage", "abstention", draw_risk),
            ("curves", "curves", draw_curves),
        ):
            if needs not in head:
                continue
            figure = draw_one(head)
            path = Path(folder) / f"{prefix}{kind}.png"
            write_file(path, partial(figure.savefig, dpi=110))
            files.append(path)
    return files


def similarity_order(confusion: np.ndarray) -> np.ndarray:
    """An order of the classes in which those that are taken for each other stand together, int [C].

    Average-linkage clusters of the distance 1 − (how often either is taken for the other), their
    leaves turned so that neighbours are near (Bar-Joseph et al. 2001).
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    shares = row_shares(confusion)
    if len(shares) < 3:
        return np.arange(len(shares))
    near = (shares + shares.T) / 2
    np.fill_diagonal(near, 1.0)
    tree = linkage(
        squareform(1 - near, checks=False),
        "average",
        optimal_ordering=len(shares) <= _EXACT_ORDER,
    )
    return leaves_list(tree)


def row_shares(confusion: np.ndarray) -> np.ndarray:
    """Counts [C, C] as shares of each row; a class without images has zeros."""
    confusion = np.asarray(confusion, "float64")
    return confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)


def draw_confusion(head: dict):
    """The confusion matrix of a head of classes: rows are true, shares of each row are coloured.

    Up to 30 classes have their names on both sides and counts in the cells. Of more only the most
    confused pairs are named, beside the matrix, with a number each in it.
    """
    counts, names = np.array(head["confusion"]), head["names"]
    many = len(names) > _LABELLED
    order = similarity_order(counts)
    place = {names[c]: i for i, c in enumerate(order)}
    side = 8 if many else max(4, 1.5 + 0.35 * len(names))
    figure = _figure(side + (3.5 if many else 0), side + 0.8)
    axes, beside = (
        figure.subplots(1, 2, width_ratios=[side, 3.5]) if many else (figure.subplots(), None)
    )
    shares = row_shares(counts)[np.ix_(order, order)]
    # Few mistakes in a hundred must still be seen: colours follow the square root.
    image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, location="bottom", fraction=0.03, pad=0.02)
    ticks = np.array([0, *([0.01] if many else []), 0.05, 0.2, 0.5, 1])
    bar.set_ticks(np.sqrt(ticks), labels=[f"{100 * t:.0f} %" for t in ticks])
    axes.set(xlabel="predicted", ylabel="true")
    if many:
        _name_pairs(axes, beside, head, place)
    else:
        shown = [printable(names[c])[:24] for c in order]
        axes.set_xticks(
            range(len(names)), shown, rotation=60, ha="right", fontsize=8, parse_math=False
        )
        axes.set_yticks(range(len(names)), shown, fontsize=8, parse_math=False)
        for (i, j), n in np.ndenumerate(counts[np.ix_(order, order)]):
            if n:
                dark = shares[i, j] > 0.35
                axes.text(j, i, n, ha="center", va="center", fontsize=7, color="w" if dark else "k")
    accuracy = head["accuracy"]
    figure.suptitle(
        f"Accuracy {100 * accuracy['value']:.1f} % "
        f"[{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}], {head['images']} images"
        + ("\nsimilar classes side by side" if len(names) > 2 else ""),
        fontsize=10,
    )
    return figure


def _name_pairs(axes, beside, head, place):
    axes.set(xticks=[], yticks=[], xlabel=f"predicted ({len(place)} classes)")
    lines = ["most confused (true → predicted)"]
    for number, pair in enumerate(head["confused"][:_PAIRS], 1):
        x, y = place[pair["predicted"]], place[pair["label"]]
        axes.plot(x, y, "s", ms=7, mfc="none", mec=RED, mew=1.2)
        # Away from the diagonal, where the squares are dense.
        side, align = (6, "left") if x > y else (-6, "right")
        axes.annotate(
            str(number),
            (x, y),
            (side, 0),
            textcoords="offset points",
            fontsize=9,
            color=RED,
            ha=align,
            va="center",
        )
        lines.append(
            f"{number}. {printable(pair['label'])[:20]} → {printable(pair['predicted'])[:20]}: {pair['count']} "
            f"({100 * pair['share']:.0f} %)"
        )
    beside.set_axis_off()
    beside.text(0, 1, "\n".join(lines), va="top", fontsize=9, linespacing=1.6, parse_math=False)


def draw_reliability(head: dict):
    """How often a head is right against how sure it is, before and (if there is one) after its
    temperature; bars below are how many images are in each bin."""
    found = head["calibration"]
    figure = _figure(6, 6.5)
    upper, lower = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    upper.plot([0, 1], [0, 1], ":", color=_GREY, label="as sure as right")
    width = 0.42 / 15
    for shift, colour, when in ((-1, RED, "before"), (1, GREEN, "after")):
        if found[when] is None:
            continue
        bins = found[when]["bins"]
        x = np.array([b["confidence"] for b in bins])
        y = np.array([b["right"]["value"] for b in bins])
        ends = np.array([[b["right"]["low"], b["right"]["high"]] for b in bins]).T
        ece = found[when]["ece"]
        label = f"ECE {100 * ece['value']:.1f} % (by chance up to {100 * ece['by_chance']:.1f} %)"
        if found["after"] is not None:
            label = f"{when}: {label}" + (
                f"\ntemperature {found['temperature']:.2f}" if when == "after" else ""
            )
        error = np.maximum(np.abs(ends - y), 0)
        upper.errorbar(x, y, error, fmt="o-", color=colour, capsize=2, ms=4, lw=1.3, label=label)
        middle = np.array([(b["low"] + b["high"]) / 2 for b in bins])
        if found["after"] is not None:
            middle = middle + shift * width / 2
        lower.bar(middle, [b["count"] for b in bins], width, color=colour, alpha=0.7)
    several = head["task"] == "multi_label"
    upper.set(
        ylabel="label there (share, 95 % interval)" if several else "right (share, 95 % interval)",
        xlim=(0, 1),
        ylim=(-0.02, 1.02),
    )
    upper.legend(loc="upper left", fontsize=9)
    upper.grid(alpha=0.3)
    lower.set(xlabel="probability" if several else "confidence", ylabel="images")
    lower.set_yscale("symlog")
    return figure


def draw_risk(head: dict):
    """The share of wrong answers against the share of images that are answered, surest first."""
    found = head["abstention"]
    figure = _figure(6, 4.5)
    axes = figure.subplots()
    axes.plot(found["coverage"], found["risk"], color=BLUE, lw=2)
    for row in found["thresholds"]:
        if row["threshold"] is None or row["precision"]["value"] is None:
            continue
        x, y = row["coverage"]["value"], 1 - row["precision"]["value"]
        axes.plot(x, y, "o", color=RED)
        axes.annotate(
            f"{100 * row['wanted']:g} % wanted:\nconfidence ≥ {row['threshold']:.3f}",
            (x, y),
            (-8, 10),
            textcoords="offset points",
            fontsize=8,
            ha="right",
        )
    axes.set(
        xlabel="coverage (share answered)",
        ylabel="risk (share of the answers that is wrong)",
        xlim=(0, 1.02),
        ylim=(0, None),
        title=f"AURC {found['aurc']:.4f} ({found['excess_aurc']:.4f} above the best order)",
    )
    axes.grid(alpha=0.3)
    return figure


def draw_curves(head: dict):
    """ROC and precision-recall of each class against the rest, and their means."""
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
            axes.plot(x, row, color=_GREY, lw=0.7, alpha=max(0.05, min(0.6, 8 / len(rows))))
        if rows:
            axes.plot(x, curves[kind]["macro"], color=GREEN, lw=2.2)
        axes.set(
            xlim=(0, 1), ylim=(0, 1.02), title=f"{title} {'–' if area is None else f'{area:.4f}'}"
        )
        axes.grid(alpha=0.3)
        if kind == "roc":
            axes.plot(x, x, ":", color=_GREY)
            # What matters is at the left: the axis is stretched there.
            axes.set_xscale("function", functions=(np.sqrt, np.square))
            axes.set_xticks([0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1])
            axes.set(xlabel="false positive rate", ylabel="true positive rate")
        else:
            axes.set(xlabel="recall", ylabel="precision")
    figure.suptitle("grey: each class against the rest; green: their mean", fontsize=10)
    return figure


def _figure(width, height):
    from matplotlib.figure import Figure  # no pyplot: it would look for a screen

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")
