"""The evaluation of one head as data for the report: metrics, confusion, calibration, galleries."""

from collections.abc import Sequence
from dataclasses import dataclass

from keras_transfer.evaluation.plots import plot_reliability, plot_risk
from keras_transfer.evaluation.result import (
    format_value,
    slices_table,
    summary_table,
    thresholds_table,
)
from keras_transfer.reporting.confusion import confusion, often_predicted_as
from keras_transfer.reporting.gallery import Budget, Shot, gallery, gallery_items
from keras_transfer.reporting.page import figure
from keras_transfer.utils.tables import printable

_LONG = 20  # rows; a longer table scrolls by itself and has a search box


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


@dataclass(frozen=True)
class Cell:
    """A cell of a sortable table.

    Attributes:
        text: content.
        value: the number to sort by, as text; empty if it is missing; None to sort by the text.
    """

    text: str
    value: str | None = None


@dataclass(frozen=True)
class SortableTable:
    """A table that the reader can sort by any column.

    Attributes:
        label: description for screen readers.
        header: names of the columns.
        rows: cells, in the initial order.
        sorted_by: the column of the initial order.
    """

    label: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    sorted_by: int

    @property
    def long(self) -> bool:
        return len(self.rows) > _LONG


def _per_name(kind, head):
    """Return a table of all classes or labels, those with the lowest F1 first."""
    table = head["per_class" if kind == "class" else "per_label"]
    confused = often_predicted_as(head) if "confusion" in head else [""] * len(table)
    rows = []
    for (name, row), others in zip(table.items(), confused):
        # A class without images has no recall and F1: it comes last in any order.
        present = row["support"] > 0
        recall = {"value": row["recall"], "low": row["recall_low"], "high": row["recall_high"]}
        cells = [
            Cell(printable(name)),
            _number(row["f1"] if present else None),
            _number(row["recall"] if present else None, format_value(recall) if present else "–"),
            _number(row["precision"]),
            _number(row["support"]),
            _number(row["auc"]),
        ]
        if "confusion" in head:
            cells.append(Cell(others))
        else:
            cells += [_number(row["threshold"]), _number(row["f1_best"])]
        rows.append(cells)
    rows.sort(key=lambda cells: (cells[1].value == "", float(cells[1].value or 0)))
    header = [kind, "F1", "recall [95 %]", "precision", "images", "AUC"]
    if "confusion" in head:
        header.append("most often predicted as")
    else:
        header += ["best threshold", "F1 at best threshold"]
    return SortableTable(f"metrics of each {kind}", header, rows, 1)


def _number(value, text=None):
    value_text = "" if value is None else f"{value:.6g}"
    return Cell(format_value(value) if text is None else text, value_text)


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
