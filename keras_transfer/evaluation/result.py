"""The result of `assess`: plain data, tables, and files."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from keras_transfer.utils.console import Table, counted
from keras_transfer.utils.files import csv_text, explain_writing, write_text

EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.csv"
_MOST_NAMES = 30  # rows of a table of classes
_MOST_PAIRS = 10


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Result of `assess`.

    Attributes:
        document: all metrics as plain data for JSON, see docs/evaluation.md: `split`, `images`,
            `skipped` (number of files), `tta`, `calibrated_on` and `heads` by name (a single head
            is called `output`).
        brief: the result of `evaluate`.
        predictions: column → one text per image: path, truth, prediction, scores, slices.
    """

    document: dict
    brief: dict
    predictions: dict[str, list[str]]

    def to_dict(self) -> dict:
        """Return the document: no NaN, no arrays."""
        return self.document

    def predictions_csv(self) -> str:
        """Return one row per image, in the order of the data."""
        return csv_text(self.predictions, zip(*self.predictions.values()))

    def table(self) -> str:
        """Return Markdown: for each head a summary, its classes (the weakest if there are many),
        confused pairs, thresholds and slices."""
        return markdown(self.document)

    def save(self, folder) -> list[Path]:
        """Write evaluation.json, predictions.csv and plots, each atomically; return the files."""
        from keras_transfer.evaluation.plots import save_plots

        folder = Path(folder)
        with explain_writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        # Without indents: the confusion matrix of 1,000 classes would have a million lines.
        document = json.dumps(self.document, allow_nan=False)
        write_text(folder / EVALUATION, document + "\n")
        write_text(folder / PREDICTIONS, self.predictions_csv())
        return [folder / EVALUATION, folder / PREDICTIONS, *save_plots(self.document, folder)]


def markdown(document: dict) -> str:
    """Return `Evaluation.table` for a document, which may come from evaluation.json."""
    where = f"{counted(document['images'], 'example')} of {document['split']}"
    if document["skipped"]:
        where += f", {counted(document['skipped'], 'file')} skipped"
    if document["tta"] is not None:
        where += f", mean of views ({document['tta']})"
    calibrated = document["calibrated_on"]
    if calibrated:
        where += (
            f"; calibrated on {counted(calibrated['images'], 'example')} of {calibrated['split']}"
        )
        if calibrated["split"] == document["split"]:
            where += " (the same split, which is optimistic)"
    paragraphs = [f"{where[0].upper()}{where[1:]}."]
    for name, head in document["heads"].items():
        if len(document["heads"]) > 1:
            paragraphs.append(f"## {name}")
        paragraphs += [table.markdown() for table in _tables(head)]
    return "\n\n".join(paragraphs)


def _tables(head) -> Iterator[Table]:
    yield summary_table(head)
    if "per_class" in head:
        yield _names_table("class", head["per_class"])
        if head["confused"]:
            yield confused_table(head["confused"][:_MOST_PAIRS])
        if head["abstention"]["thresholds"]:
            yield thresholds_table(head["abstention"]["thresholds"])
    if "per_label" in head:
        yield _names_table("label", head["per_label"])
    for by, rows in head["slices"].items():
        yield slices_table(by, rows)


_SUMMARY = {
    "single_label": {
        "accuracy": "accuracy",
        "top5": "top-5 accuracy",
        "balanced_accuracy": "balanced accuracy",
        "f1_macro": "F1, macro",
        "f1_weighted": "F1, weighted",
        "auc": "AUC, macro",
        "average_precision": "average precision, macro",
    },
    "multi_label": {
        "map": "mean average precision",
        "auc": "AUC, macro",
        "f1_macro": "F1, macro",
        "f1_micro": "F1, micro",
        "f1_macro_best": "F1, macro, best thresholds",
        "exact": "all labels correct",
    },
}
_CALIBRATION = {
    "log_loss": "log loss",
    "brier": "Brier score",
    "ece": "ECE",
    "ece_adaptive": "ECE, adaptive bins",
}


def summary_values(head: dict) -> dict:
    """Return the main metrics of one head: title → a number, or an interval as a dict."""
    if head["task"] == "regression":
        return {
            f"{name}: {kind}": value
            for name, row in head["per_target"].items()
            for kind, value in row.items()
        }
    values = {title: head[key] for key, title in _SUMMARY[head["task"]].items()}
    if "abstention" in head:
        values["AURC"] = head["abstention"]["aurc"]
    calibration = head["calibration"]
    if calibration["after"] is None:
        values |= {title: calibration["before"][key] for key, title in _CALIBRATION.items()}
    else:
        values["temperature"] = calibration["temperature"]
        for when in ("before", "after"):
            for key, title in _CALIBRATION.items():
                values[f"{title}, {when} scaling"] = calibration[when][key]
    return {title: value for title, value in values.items() if value is not None}


def summary_table(head: dict) -> Table:
    """Return a table of the main metrics of one head, with their intervals."""
    rows = []
    for title, value in summary_values(head).items():
        value = value if isinstance(value, dict) else {"value": value, "low": None}
        ends = "" if value["low"] is None else _format_ends(value, 4)
        if "by_chance" in value and ends:
            ends += f" (by chance up to {value['by_chance']:.4f})"
        rows.append((title, format_value(value["value"], 4), ends))
    return Table(("metric", "value", "95 % interval"), rows, "lrl")


def _names_table(kind, rows):
    columns = [key for key in next(iter(rows.values())) if key not in ("recall_low", "recall_high")]
    names = list(rows)
    if len(names) > _MOST_NAMES:
        names = sorted((n for n in names if rows[n]["support"]), key=lambda n: rows[n]["f1"])
        names = names[:_MOST_NAMES]
        kind = f"{kind} (weakest {len(names)} of {len(rows)})"

    def cell(row, column):
        if column != "recall":
            return format_value(row[column])
        return format_value(
            {"value": row["recall"], "low": row["recall_low"], "high": row["recall_high"]}
        )

    cells = ((name, *(cell(rows[name], column) for column in columns)) for name in names)
    header = (kind, *(column.replace("_", " ") for column in columns))
    return Table(header, cells, "l" + "r" * len(columns))


def confused_table(pairs: list[dict]) -> Table:
    """Return a table of `confused` pairs of an evaluation."""
    rows = ((p["label"], p["predicted"], p["count"], f"{100 * p['share']:.0f} %") for p in pairs)
    return Table(("class", "predicted as", "examples", "share of the class"), rows, "llrr")


def thresholds_table(rows: list[dict]) -> Table:
    """Return a table of the `abstention` thresholds of an evaluation."""
    cells = (
        (
            f"{row['wanted']:g}",
            format_value(row["threshold"], 4),
            format_value(row["coverage"]),
            format_value(row["precision"]),
            "these examples (optimistic)" if row["chosen_here"] else "validation examples",
        )
        for row in rows
    )
    header = ("wanted precision", "threshold", "coverage", "precision", "threshold chosen on")
    return Table(header, cells, "rrrrl")


def slices_table(by: str, rows: list[dict]) -> Table:
    """Return a table of one grouping in the `slices` of an evaluation."""
    kinds = [key for key in rows[0] if key not in ("value", "images")]
    cells = (
        (row["value"], row["images"], *(format_value(row[kind]) for kind in kinds)) for row in rows
    )
    return Table((by, "examples", *kinds), cells, "l" + "r" * (1 + len(kinds)))


def format_value(value, digits: int = 3) -> str:
    """Format a number, or an interval as `0.912 [0.880, 0.936]`; a missing number is a dash."""
    if isinstance(value, dict):
        ends = "" if value["low"] is None else f" [{_format_ends(value, 3)}]"
        return format_value(value["value"], digits) + ends
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def _format_ends(value, digits):
    return f"{value['low']:.{digits}f}, {value['high']:.{digits}f}"
