"""The evaluation of one head as data for the report: metrics, confusion, calibration, galleries."""

import io

import numpy as np
from PIL import Image

from keras_transfer.evaluation.plots import (
    plot_reliability,
    plot_risk,
    row_shares,
    similarity_order,
)
from keras_transfer.evaluation.result import (
    confused_table,
    format_value,
    slices_table,
    summary_table,
    thresholds_table,
)
from keras_transfer.reporting.gallery import Budget, Shot, gallery, gallery_items
from keras_transfer.reporting.page import data_uri, figure
from keras_transfer.utils.console import printable

_LONG = 20  # rows; a longer table scrolls by itself and has a search box
_MOST_WHOLE = 20  # classes of a confusion matrix as a table
_MOST_PART = 16  # with more classes, the most confused ones in such a table
_MOST_POINTS = 400  # side of the image of a large matrix
_CORRECT, _WRONG = (27, 158, 119), (217, 95, 2)


def head_scores(title: str, head: dict, shots: dict[str, dict[str, Shot]], budget: Budget) -> dict:
    """Return the data of one head, for the template.

    Args:
        title: name of the head; empty for the only one.
        head: one head of an evaluation's document.
        shots: `mistakes` and `unsure` → path → pixels.
        budget: for thumbnails.
    """
    galleries = {"mistakes": "Most confident errors", "unsure": "Least confident predictions"}
    if head["task"] == "regression":
        galleries["mistakes"] = "Largest errors"
    kind = {"single_label": "class", "multi_label": "label"}.get(head["task"])
    return {
        "title": printable(title),
        "kind": kind,
        "summary": summary_table(head),
        "per_name": _per_name(kind, head) if kind else None,
        "confusion": confusion(head) if "confusion" in head else None,
        "calibration": _calibration(head) if "calibration" in head else None,
        "galleries": {
            name: _gallery(words, gallery_items(head, name), shots.get(name, {}), budget)
            for name, words in galleries.items()
        },
        "slices": [slices_table(by, rows) for by, rows in head["slices"].items()],
    }


def _gallery(title, items, shots, budget):
    return {"title": title, **gallery(items, shots, budget)} if items else None


def _per_name(kind, head):
    """Return a sortable table of all classes or labels, those with the lowest F1 first.

    Each cell is (text, number to sort by); the number is None in columns of text and empty text
    where it is missing.
    """
    table = head["per_class" if kind == "class" else "per_label"]
    confused = _often_predicted_as(head) if "confusion" in head else [None] * len(table)
    rows = []
    for (name, row), others in zip(table.items(), confused):
        recall = {"value": row["recall"], "low": row["recall_low"], "high": row["recall_high"]}
        cells = [(printable(name), None), _cell(row["f1"]), _cell(row["recall"], recall)]
        if not row["support"]:  # without images, both are undefined and come last
            cells[1:] = [_cell(None)] * 2
        cells += [_cell(row[key]) for key in ("precision", "support", "auc")]
        if others is None:
            cells += [_cell(row["threshold"]), _cell(row["f1_best"])]
        else:
            cells.append((others, None))
        rows.append(cells)
    rows.sort(key=lambda cells: (cells[1][1] == "", float(cells[1][1] or 0)))
    last = ["most often predicted as"]
    if "confusion" not in head:
        last = ["best threshold", "F1 at best threshold"]
    header = [kind, "F1", "recall [95 %]", "precision", "images", "AUC", *last]
    return {"header": header, "rows": rows, "sorted_by": 1, "long": len(rows) > _LONG}


def _cell(value, shown=None):
    return format_value(value if shown is None else shown), "" if value is None else f"{value:.6g}"


def _calibration(head):
    before, after = head["calibration"]["before"], head["calibration"]["after"]
    text = f"Expected calibration error (ECE): {100 * before['ece']['value']:.1f} %"
    if after is not None:
        text += (
            f"; {100 * after['ece']['value']:.1f} % after temperature scaling, which divides all "
            f"logits by {head['calibration']['temperature']:.2f}"
        )
    text += (
        ". With this number of images, a perfectly calibrated model has up to "
        f"{100 * (after or before)['ece']['by_chance']:.1f} % by chance."
    )
    figures = [figure(lambda axes: plot_reliability(axes, head), "Reliability", height=3.8)]
    thresholds = None
    if "abstention" in head:
        draw = figure(lambda axes: plot_risk(axes, head), "Risk and coverage", height=3.8)
        figures.append(draw)
        rows = head["abstention"]["thresholds"]
        thresholds = thresholds_table(rows) if rows else None
    return {"text": text, "figures": figures, "thresholds": thresholds}


# -- confusion matrix -----------------------------------------------------------------------------


def confusion(head: dict) -> dict:
    """Return the data of a confusion matrix, for the template.

    Args:
        head: one head of an evaluation's document, with one class per example.

    Returns:
        `matrix` (`names` and `rows` of (count, shade in 0–1); of many classes only the most
        confused ones), `whole` (an image of the whole matrix as a data URI, or None), `classes`
        (their number) and `pairs`, a table of the most confused pairs, or None.
    """
    counts, names = np.array(head["confusion"]), [printable(n) for n in head["names"]]
    order = similarity_order(counts).tolist()
    whole = None
    if len(names) > _MOST_WHOLE:
        whole = _image(counts[np.ix_(order, order)])
        most_confused = set(_most_confused(counts))
        order = [i for i in order if i in most_confused]
    # Shades follow the square root, so that a few mistakes in a hundred are visible.
    shades = 0.75 * np.sqrt(row_shares(counts))
    matrix = {
        "names": [names[i] for i in order],
        "rows": [[(int(counts[r, c]), f"{shades[r, c]:.2f}") for c in order] for r in order],
    }
    pairs = confused_table(head["confused"]) if head["confused"] and len(names) > 2 else None
    return {"matrix": matrix, "whole": whole, "classes": len(names), "pairs": pairs}


def _often_predicted_as(head: dict, most: int = 3) -> list[str]:
    """Return, for each class, the classes that it is most often confused with: `bees ×3`."""
    counts, names = np.array(head["confusion"]), head["names"]
    np.fill_diagonal(counts, 0)
    texts = []
    for row in counts:
        best = [c for c in np.argsort(-row, kind="stable")[:most] if row[c]]
        texts.append(", ".join(f"{printable(names[c])} ×{row[c]}" for c in best))
    return texts


def _most_confused(counts):
    """Return the classes of the most frequent mistakes, as many as a table can show."""
    wrong = counts + counts.T
    np.fill_diagonal(wrong, 0)
    chosen: list[int] = []
    for at in np.argsort(-wrong, axis=None, kind="stable")[: 4 * _MOST_PART**2]:
        r, c = np.unravel_index(at, wrong.shape)
        new = {int(r), int(c)} - set(chosen)
        if not wrong[r, c] or len(chosen) + len(new) > _MOST_PART:
            break
        chosen += sorted(new)
    return chosen


def _image(counts):
    """Draw a matrix, one point per cell or per block of cells; orange marks mistakes."""
    block = -(-len(counts) // _MOST_POINTS)
    shares, wrong_shares = row_shares(counts), row_shares(counts)
    np.fill_diagonal(wrong_shares, 0)
    strength, wrong = _block_maximum(shares, block), _block_maximum(wrong_shares, block)
    # A block may contain both: mistakes matter more.
    strength = np.where(wrong > 0, wrong, strength)
    pixels = np.empty((*strength.shape, 4), "uint8")
    pixels[..., :3] = np.where(wrong[..., None] > 0, _WRONG, _CORRECT)
    opacity = np.where(strength > 0, 0.25 + 0.75 * np.sqrt(strength), 0)
    pixels[..., 3] = np.round(255 * opacity)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return data_uri("image/png", buffer.getvalue())


def _block_maximum(values, block):
    """Return the maximum of each block × block square."""
    side = -(-len(values) // block) * block
    padded = np.pad(values, (0, side - len(values)))
    return padded.reshape(side // block, block, -1, block).max(axis=(1, 3))
