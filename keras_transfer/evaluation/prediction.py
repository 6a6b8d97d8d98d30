"""Predictions for unlabeled images, as objects, CSV and JSON."""

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from keras_transfer.data.evaluation_data import list_images
from keras_transfer.data.examples import SEPARATOR, Examples, ImageData
from keras_transfer.data.files import Skipped, check_images
from keras_transfer.errors import InputError
from keras_transfer.evaluation.outputs import collect
from keras_transfer.models.builders import by_head, heads_of


@dataclass(frozen=True)
class Prediction:
    """Prediction of a single-label model for one image.

    Attributes:
        path: file of the image.
        label: the class with the highest score.
        score: its probability in [0, 1].
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
    """Prediction of a multi-label model for one image.

    Attributes:
        path: file of the image.
        labels: the labels with a score above 0.5, highest first.
        scores: label → probability in [0, 1].
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
    """Prediction of a regression model for one image.

    Attributes:
        path: file of the image.
        values: target → value, in its units.
    """

    path: str
    values: dict[str, float]

    def _cells(self):
        return [(name, f"{value:.7g}") for name, value in self.values.items()]

    def _document(self):
        return {"values": self.values}


@dataclass(frozen=True)
class HeadsPrediction:
    """Prediction of a model with several heads for one image.

    Attributes:
        path: file of the image.
        heads: name of each head → its prediction.
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
    """Predict images.

    Args:
        model: from `build_model`, trained.
        paths: files, and folders that are searched to any depth.
        batch_size: images per batch.

    Returns:
        Predictions in the order of the paths, of the type for the model's task, and the files that
        could not be read.

    Raises:
        InputError: if a path does not exist, there is no readable image, or outputs are not finite.
    """
    good, skipped = check_images(list_images(paths))
    if not len(good):
        raise InputError(f"No readable image in {paths[0]}: {skipped[0].reason}.")
    unlabeled = Examples(good, np.zeros(len(good), "int32"))
    data = ImageData(("any",), {"all": unlabeled}, skipped, "")
    _, outputs = collect(model, data, "all", batch_size=batch_size)
    heads = heads_of(model)
    by_name = {}
    for name, values in by_head(heads, outputs).items():
        head = heads[name]
        scores = keras.ops.convert_to_numpy(head.scores(values))
        make = _PREDICTIONS[head.task]
        by_name[name] = [make(path, head.names, row) for path, row in zip(good.names, scores)]
    if len(heads) == 1:
        return by_name.popitem()[1], skipped
    rows = zip(*by_name.values())
    return [
        HeadsPrediction(path, dict(zip(by_name, row))) for path, row in zip(good.names, rows)
    ], skipped


def predictions_csv(predictions: list[AnyPrediction]) -> str:
    """Return a CSV table with one row per image.

    The columns are `path` and, for classes, `label`, `score` and `top1` to `top5` as `name=score`;
    for labels, `labels` joined by `|` and the score of each label; for numbers, the value of each
    target. With several heads, the name of the head and `_` come first.
    """
    from keras_transfer.utils.files import csv_text

    rows = [[("path", p.path), *p._cells()] for p in predictions]
    header = [column for column, _ in rows[0]] if rows else ["path"]
    return csv_text(header, ([cell for _, cell in row] for row in rows))


def predictions_json(predictions: list[AnyPrediction], skipped: list[Skipped]) -> dict:
    """Return predictions and skipped files as plain data for JSON."""
    return {
        "predictions": [{"path": p.path, **p._document()} for p in predictions],
        "skipped": [{"path": str(Path(s.path)), "reason": s.reason} for s in skipped],
    }
