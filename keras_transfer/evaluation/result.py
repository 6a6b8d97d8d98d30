"""An evaluation as plain data, as a Markdown table, and as files."""

import json
from dataclasses import dataclass
from pathlib import Path

from keras_transfer.utils.files import csv_text, write_text
from keras_transfer.utils.tables import printable

EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.csv"
_ROWS = 30  # of a table; the weakest classes where there are more
_PAIRS = 10


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What came of `assess`.

    Attributes:
        document: everything, as plain data for JSON, see docs/evaluation.md: `split`, `images`,
            `skipped` (files), `tta`, `calibrated_on` and, by name, `heads` (of a single head the name is `output`).
        brief: what `evaluate` returns.
        predictions: column → a text an image: path, truth, prediction, scores, slices.
    """

    document: dict
    brief: dict
    predictions: dict[str, list[str]]

    def to_dict(self) -> dict:
        """The document: no NaN, no arrays."""
        return self.document

    def predictions_csv(self) -> str:
        """A row per image, in the order of the data."""
        return csv_text(self.predictions, zip(*self.predictions.values()))

    def table(self) -> str:
        """Markdown: a summary of each head, its classes (of many the weakest), what is confused,
        thresholds and slices."""
        return markdown(self.document)

    def save(self, folder) -> list[Path]:
        """Writes evaluation.json, predictions.csv and images; each appears whole or not at all.

        Returns the files.
        """
        from keras_transfer.evaluation.plots import draw

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Without indents: a confusion of 1,000 classes would be a million lines.
        document = json.dumps(self.document, allow_nan=False)
        write_text(folder / EVALUATION, document + "\n")
        write_text(folder / PREDICTIONS, self.predictions_csv())
        return [folder / EVALUATION, folder / PREDICTIONS, *draw(self.document, folder)]


def markdown(document: dict) -> str:
    """`Evaluation.table` of a document, which may have been read from evaluation.json."""
    where = f"{document['images']} images of {document['split']}"
    if document["skipped"]:
        where += f", {document['skipped']} files skipped"
    if document["tta"] is not None:
        where += f", mean of views ({document['tta']})"
    calibrated = document["calibrated_on"]
    if calibrated:
        where += f"; calibrated on {calibrated['images']} images of {calibrated['split']}"
        if calibrated["split"] == document["split"]:
            where += " (the same split, which flatters)"
    parts = [f"{where[0].upper()}{where[1:]}."]
    for name, head in document["heads"].items():
        if len(document["heads"]) > 1:
            parts.append(f"## {name}")
        parts += _SECTIONS[head["task"]](head)
        parts += [_slices(by, rows) for by, rows in head["slices"].items()]
    return "\n\n".join(parts)


def summary(head: dict) -> str:
    """Markdown: the measures of one head with their intervals; of numbers a row a target."""
    return next(iter(_SECTIONS[head["task"]](head)))


def _classes(head):
    summary = [
        (name, head[key])
        for name, key in (
            ("accuracy", "accuracy"),
            ("top-5", "top5"),
            ("balanced accuracy", "balanced_accuracy"),
            ("F1, macro", "f1_macro"),
            ("F1, weighted", "f1_weighted"),
            ("AUC, macro", "auc"),
            ("average precision, macro", "average_precision"),
        )
        if head[key] is not None
    ]
    abstention = head["abstention"]
    summary.append(("AURC", abstention["aurc"]))
    yield _summary([*summary, *_calibration(head["calibration"])])
    yield _per_class("class", head["per_class"])
    pairs = [
        (p["label"], p["predicted"], p["count"], _cell(p["share"]))
        for p in head["confused"][:_PAIRS]
    ]
    if pairs:
        yield _table(("class", "taken for", "images", "share of the class"), pairs)
    rows = [
        (
            f"{t['wanted']:g}",
            _cell(t["threshold"], 4),
            _cell(t["coverage"]),
            _cell(t["precision"]),
            "these images" if t["chosen_here"] else "validation",
        )
        for t in abstention["thresholds"]
    ]
    if rows:
        header = ("wanted precision", "threshold", "answered", "precision", "threshold chosen on")
        yield _table(header, rows)


def _labels(head):
    names = ("map", "auc", "f1_macro", "f1_micro", "f1_macro_best", "exact")
    shown = (
        "mAP",
        "AUC, macro",
        "F1, macro",
        "F1, micro",
        "F1, macro, best thresholds",
        "all right",
    )
    yield _summary(
        [*((s, head[n]) for s, n in zip(shown, names)), *_calibration(head["calibration"])]
    )
    yield _per_class("label", head["per_label"])


def _values(head):
    kinds = list(next(iter(head["per_target"].values())))
    yield _table(
        ("target", *kinds),
        [
            (name, *(_cell(row[kind], 4) for kind in kinds))
            for name, row in head["per_target"].items()
        ],
    )


_SECTIONS = {"single_label": _classes, "multi_label": _labels, "regression": _values}


def _calibration(found):
    names = (("log loss", "log_loss"), ("Brier", "brier"), ("ECE", "ece"))
    names += (("ECE, adaptive bins", "ece_adaptive"),)
    if found["after"] is None:
        return [(name, found["before"][key]) for name, key in names]
    rows = [("temperature", found["temperature"])]
    for when in ("before", "after"):
        rows += [(f"{name}, {when}", found[when][key]) for name, key in names]
    return rows


def _summary(rows):
    cells = [
        (name, _cell(value, 4), _ends(value, 4) if isinstance(value, dict) else "")
        for name, value in rows
    ]
    return _table(("measure", "value", "95 % interval"), cells)


def _per_class(kind, rows):
    header = [key for key in next(iter(rows.values())) if key not in ("recall_low", "recall_high")]
    names = list(rows)
    if len(names) > _ROWS:
        names = sorted((n for n in names if rows[n]["support"]), key=lambda n: rows[n]["f1"])
        names = names[:_ROWS]
        kind = f"{kind} (weakest {len(names)} of {len(rows)})"
    cells = []
    for name in names:
        row = rows[name]
        recall = {"value": row["recall"], "low": row["recall_low"], "high": row["recall_high"]}
        cells.append((name, *(_cell(recall if k == "recall" else row[k]) for k in header)))
    return _table((kind, *(key.replace("_", " ") for key in header)), cells)


def _slices(by, rows):
    kinds = [key for key in rows[0] if key not in ("value", "images")]
    cells = [(row["value"], row["images"], *(_cell(row[k]) for k in kinds)) for row in rows]
    return _table((by, "images", *kinds), cells)


def _table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)


def _plain(cell):
    return " ".join(printable(str(cell)).split()).replace("|", "\\|")


def _cell(value, digits=3):
    """A number, or one with its interval."""
    if isinstance(value, dict):
        ends = _ends(value, digits)
        return _cell(value["value"], digits) + (f" [{ends}]" if ends and digits == 3 else "")
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def _ends(value, digits):
    if value["low"] is None:
        return ""
    ends = f"{value['low']:.{digits}f}, {value['high']:.{digits}f}"
    chance = f" (by chance up to {value['by_chance']:.{digits}f})" if "by_chance" in value else ""
    return ends + chance
