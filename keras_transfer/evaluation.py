"""One pass of predictions, and what is read from it."""

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from keras_transfer.data.files import Skipped, list_pictures
from keras_transfer.data.index import check_pictures
from keras_transfer.data.sources import Examples, ImageData
from keras_transfer.data.targets import SEPARATOR
from keras_transfer.errors import InputError
from keras_transfer.heads import by_head, check_targets, heads_of
from keras_transfer.measures import confusion, measured, outputs_of
from keras_transfer.precision import jit_compile


@dataclass(frozen=True)
class Prediction:
    """What a single-label model says of one picture.

    Attributes:
        path: the picture's file.
        label: the name with the highest score.
        score: that score; a probability in [0, 1].
        top: up to five (name, score), highest first.
    """

    path: str
    label: str
    score: float
    top: tuple[tuple[str, float], ...]

    def _cells(self):
        top = [(f"top{i + 1}", f"{name}={score:.6f}") for i, (name, score) in enumerate(self.top)]
        return [("label", self.label), ("score", f"{self.score:.6f}"), *top]

    def _document(self):
        top = [{"label": name, "score": score} for name, score in self.top]
        return {"label": self.label, "score": self.score, "top": top}


@dataclass(frozen=True)
class LabelsPrediction:
    """What a multi-label model says of one picture.

    Attributes:
        path: the picture's file.
        labels: the names with a score over 0.5, highest first.
        scores: of all names; probabilities in [0, 1].
    """

    path: str
    labels: tuple[str, ...]
    scores: dict[str, float]

    def _cells(self):
        scores = [(name, f"{score:.6f}") for name, score in self.scores.items()]
        return [("labels", SEPARATOR.join(self.labels)), *scores]

    def _document(self):
        return {"labels": list(self.labels), "scores": self.scores}


@dataclass(frozen=True)
class ValuesPrediction:
    """What a regression model says of one picture.

    Attributes:
        path: the picture's file.
        values: of each target, in its units.
    """

    path: str
    values: dict[str, float]

    def _cells(self):
        return [(name, f"{value:.7g}") for name, value in self.values.items()]

    def _document(self):
        return {"values": self.values}


@dataclass(frozen=True)
class HeadsPrediction:
    """What a model with several heads says of one picture.

    Attributes:
        path: the picture's file.
        heads: name of each head → its prediction, one of the three others.
    """

    path: str
    heads: dict[str, Prediction | LabelsPrediction | ValuesPrediction]

    def _cells(self):
        return [
            (f"{name}_{column}", cell)
            for name, one in self.heads.items()
            for column, cell in one._cells()
        ]

    def _document(self):
        return {"heads": {name: one._document() for name, one in self.heads.items()}}


AnyPrediction = Prediction | LabelsPrediction | ValuesPrediction | HeadsPrediction


def _class_prediction(path, names, scores):
    order = np.argsort(-scores, kind="stable")[:5]
    top = tuple((names[i], float(scores[i])) for i in order)
    return Prediction(path, *top[0], top)


def _labels_prediction(path, names, scores):
    order = np.argsort(-scores, kind="stable")
    labels = tuple(names[i] for i in order if scores[i] > 0.5)
    return LabelsPrediction(path, labels, dict(zip(names, scores.tolist())))


def _values_prediction(path, names, scores):
    return ValuesPrediction(path, dict(zip(names, scores.tolist())))


_PREDICTIONS = {
    "single_label": _class_prediction,
    "multi_label": _labels_prediction,
    "regression": _values_prediction,
}


def predict(model, paths, *, batch_size: int = 32) -> tuple[list[AnyPrediction], list[Skipped]]:
    """Predicts pictures and whole folders of them.

    Args:
        model: from `build_model`, trained.
        paths: files and folders (searched to any depth).

    Returns:
        Predictions in the order of the paths, of the class that suits the task, and the files that
        could not be read.

    Raises:
        InputError: a path does not exist, or there is no picture.
    """
    good, skipped = check_pictures(list_pictures(paths))
    if not len(good):
        raise InputError(f"No readable picture in {paths[0]}: {skipped[0].reason}.")
    unlabelled = Examples(good, np.zeros(len(good), "int32"))
    data = ImageData(("any",), {"all": unlabelled}, skipped, "")
    _, outputs = collect(model, data, "all", batch_size=batch_size)
    heads = heads_of(model)
    of_head = {}
    for name, values in by_head(heads, outputs).items():
        head = heads[name]
        scores = keras.ops.convert_to_numpy(head.scores(values))
        make = _PREDICTIONS[head.task]
        of_head[name] = [make(path, head.names, row) for path, row in zip(good.names, scores)]
    if len(heads) == 1:
        return of_head.popitem()[1], skipped
    rows = zip(*of_head.values())
    return [
        HeadsPrediction(path, dict(zip(of_head, row))) for path, row in zip(good.names, rows)
    ], skipped


def evaluate(model, data: ImageData, split: str = "val", *, batch_size: int = 32) -> dict:
    """Measures a model on labelled pictures, in one pass.

    Args:
        model: from `build_model`, trained; it answers what `data.targets` says.
        data: labelled pictures.
        split: which of `data.examples`.

    Returns:
        Plain data for JSON: `pictures`, `task`, `loss`, and

        - of classes `accuracy`, `accuracy_interval` (95 %, Wilson), `top5` (where there are more than
          five classes), `balanced_accuracy` (the mean recall of the classes that occur), `per_class`
          (precision, recall, f1, support for each name) and `confusion` (row: true class, column:
          predicted);
        - of labels `map` (mean average precision), `auc`, `f1_macro`, `f1_micro` (at 0.5),
          `balanced_accuracy`, `per_label`
          (average_precision, auc, precision, recall, f1, support) and `one_class`: the labels which
          all of these pictures have, or none, and which are left out of `map` and `auc`;
        - of numbers `mae`, `rmse`, `r2` (means over the targets) and `per_target`, in its units; R² is
          None where a target is the same in all of these pictures;
        - of several heads `heads`: the same for each; `loss` is the weighted sum.

    Raises:
        InputError: labels of other tasks or names than the model's, or no such split.
    """
    heads = heads_of(model)
    check_targets(heads, data)
    labels, outputs = collect(model, data, split, batch_size=batch_size)
    result = measured(heads, labels, outputs)
    labels, outputs = by_head(heads, labels), by_head(heads, outputs)
    for name, head in heads.items():
        if head.task == "single_label":
            of_head = result["heads"][name] if "heads" in result else result
            of_head["confusion"] = confusion(labels[name], outputs[name])
    return result


def collect(model, data: ImageData, split: str, *, batch_size: int = 32):
    """Labels and raw outputs (float32 [N, C]) of a split, from the same pass; dicts where the data
    or the model have several heads."""
    if not model.compiled:
        model.jit_compile = jit_compile()
    batches = data.batches(split, image_size=model.input_shape[1], batch_size=batch_size)
    return outputs_of(model, batches, data.steps(split, batch_size))


def shown(result: dict, split: str) -> str:
    """What `evaluate` found, for people: a line, and a table a row for each class, label or target."""
    where = f"{result['pictures']} pictures of {split}"
    skipped = f", {result['skipped']} files skipped" if "skipped" in result else ""
    if "heads" not in result:
        line, *rows = _shown_task(result, where)
        return "\n".join([line + skipped, *rows])
    lines = [f"{where}, loss {result['loss']:.4f}{skipped}"]
    for name, one in result["heads"].items():
        line, *rows = _shown_task(one, where)
        lines += [f"{name}: {line}", *rows]
    return "\n".join(lines)


def _shown_task(result, where):
    if result["task"] == "single_label":
        low, high = result["accuracy_interval"]
        line = f"accuracy {result['accuracy']:.4f} (95 % interval {low:.3f}–{high:.3f}, {where})"
        line += f", balanced {result['balanced_accuracy']:.4f}"
        rows, kind = result["per_class"], "class"
    elif result["task"] == "multi_label":
        names = ("map", "auc", "f1_macro", "f1_micro")
        line = ", ".join(f"{name} {_cell(result[name], 4)}" for name in names) + f" ({where})"
        if result["one_class"]:
            line += f", without {', '.join(result['one_class'])} (the same in all pictures)"
        rows, kind = result["per_label"], "label"
    else:
        line = ", ".join(f"{name} {_cell(result[name], 4)}" for name in ("mae", "rmse", "r2"))
        line += f" ({where})"
        rows, kind = result["per_target"], "target"
    header = list(next(iter(rows.values())))
    widths = [max(10, len(column) + 2) for column in header]
    lines = [f"{line}, loss {result['loss']:.4f}"]
    lines.append(f"{kind:<24}" + "".join(f"{c:>{w}}" for c, w in zip(header, widths)))
    for name, row in rows.items():
        cells = (f"{_cell(row[c]):>{w}}" for c, w in zip(header, widths))
        lines.append(f"{name[:23]:<24}" + "".join(cells))
    return lines


def _cell(value, digits=3):
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def predictions_csv(predictions: list[AnyPrediction]) -> str:
    """Columns path and, of classes, label, score, then top1…top5 as `name=score`; of labels `labels`
    joined by `|`, then the score of each; of numbers the value of each; of several heads those of
    each, after its name and `_`."""
    from keras_transfer.runs import csv_text

    rows = [[("path", p.path), *p._cells()] for p in predictions]
    header = [column for column, _ in rows[0]] if rows else ["path"]
    return csv_text(header, ([cell for _, cell in row] for row in rows))


def predictions_json(predictions: list[AnyPrediction], skipped: list[Skipped]) -> dict:
    return {
        "predictions": [{"path": p.path, **p._document()} for p in predictions],
        "skipped": [{"path": str(Path(s.path)), "reason": s.reason} for s in skipped],
    }
