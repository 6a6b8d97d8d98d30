"""Predictions for unlabeled images, as objects, CSV and JSON."""

from dataclasses import dataclass

import keras
import numpy as np

from keras_transfer.data.evaluation_data import examples_to_predict
from keras_transfer.data.examples import SEPARATOR, Examples, ImageData
from keras_transfer.data.files import Skipped
from keras_transfer.errors import InputError
from keras_transfer.evaluation.outputs import collect
from keras_transfer.models.builders import by_head, heads_of
from keras_transfer.models.framing import framing_of, modality_of


@dataclass(frozen=True)
class Prediction:
    """Prediction of a single-label model for one image.

    Attributes:
        path: file of the example, or the text.
        label: the class with the highest score.
        score: its probability in [0, 1].
        top: up to five (name, score), highest first.
    """

    path: str
    label: str
    score: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class LabelsPrediction:
    """Prediction of a multi-label model for one image.

    Attributes:
        path: file of the example, or the text.
        labels: the labels with a score above 0.5, highest first.
        scores: label → probability in [0, 1].
    """

    path: str
    labels: tuple[str, ...]
    scores: dict[str, float]


@dataclass(frozen=True)
class ValuesPrediction:
    """Prediction of a regression model for one image.

    Attributes:
        path: file of the example, or the text.
        values: target → value, in its units.
    """

    path: str
    values: dict[str, float]


@dataclass(frozen=True)
class HeadsPrediction:
    """Prediction of a model with several heads for one image.

    Attributes:
        path: file of the example, or the text.
        heads: name of each head → its prediction.
    """

    path: str
    heads: dict[str, Prediction | LabelsPrediction | ValuesPrediction]


AnyPrediction = Prediction | LabelsPrediction | ValuesPrediction | HeadsPrediction


def predict(
    model, paths=(), *, lines=None, batch_size: int = 32
) -> tuple[list[AnyPrediction], list[Skipped]]:
    """Predict images, clips or texts.

    Args:
        model: from `build_model`, trained.
        paths: files, and folders that are searched to any depth; or texts themselves.
        lines: a file with one text per line.
        batch_size: examples per batch.

    Returns:
        Predictions in the order of the paths, of the type for the model's task, and the files that
        could not be read.

    Raises:
        InputError: if a path does not exist, there is no readable image, or outputs are not finite.
    """
    good, skipped = examples_to_predict(paths, modality_of(model), lines, framing_of(model))
    require_usable(good, skipped, modality_of(model))
    unlabeled = Examples(good, np.zeros(len(good), "int32"))
    data = ImageData(("any",), {"all": unlabeled}, skipped, "")
    _, outputs = collect(model, data, "all", batch_size=batch_size)
    heads = heads_of(model)
    by_name = {}
    for name, values in by_head(heads, outputs).items():
        head = heads[name]
        scores = keras.ops.convert_to_numpy(head.scores(values))
        by_name[name] = [_prediction(path, head, row) for path, row in zip(good.names, scores)]
    if len(heads) == 1:
        return by_name.popitem()[1], skipped
    rows = zip(*by_name.values())
    return [
        HeadsPrediction(path, dict(zip(by_name, row))) for path, row in zip(good.names, rows)
    ], skipped


def require_usable(good, skipped: list[Skipped], modality) -> None:
    """Raise InputError if none of the examples from `examples_to_predict` can be used."""
    if not len(good):
        first = skipped[0] if skipped else Skipped("the given file", "it is empty")
        raise InputError(f"No readable {modality.one} in {first.path}: {first.reason}.")


def _prediction(path, head, scores):
    order = np.argsort(-scores, kind="stable")
    if head.task == "single_label":
        top = tuple((head.names[i], float(scores[i])) for i in order[:5])
        return Prediction(path, *top[0], top)
    by_name = dict(zip(head.names, scores.tolist()))
    if head.task == "regression":
        return ValuesPrediction(path, by_name)
    return LabelsPrediction(path, tuple(head.names[i] for i in order if scores[i] > 0.5), by_name)


def predictions_csv(predictions: list[AnyPrediction]) -> str:
    """Return a CSV table with one row per image.

    The columns are `path` and, for classes, `label`, `score` and `top1` to `top5` as `name=score`;
    for labels, `labels` joined by `|` and the score of each label; for numbers, the value of each
    target. With several heads, the name of the head and `_` come first.
    """
    from keras_transfer.utils.files import csv_text

    rows = [[("path", p.path), *_cells(p)] for p in predictions]
    header = [column for column, _ in rows[0]] if rows else ["path"]
    return csv_text(header, ([cell for _, cell in row] for row in rows))


def _cells(prediction):
    """Return (column, text) pairs; names may be equal to those of other columns."""
    match prediction:
        case Prediction(label=label, score=score, top=top):
            others = [(f"top{i}", f"{name}={s:.6f}") for i, (name, s) in enumerate(top, 1)]
            return [("label", label), ("score", f"{score:.6f}"), *others]
        case LabelsPrediction(labels=labels, scores=scores):
            each = [(name, f"{score:.6f}") for name, score in scores.items()]
            return [("labels", SEPARATOR.join(labels)), *each]
        case ValuesPrediction(values=values):
            return [(name, f"{value:.7g}") for name, value in values.items()]
    return [
        (f"{name}_{column}", cell)
        for name, one in prediction.heads.items()
        for column, cell in _cells(one)
    ]


def predictions_json(predictions: list[AnyPrediction], skipped: list[Skipped]) -> dict:
    """Return predictions and skipped files as plain data for JSON."""
    return {
        "predictions": [{"path": p.path, **_document(p)} for p in predictions],
        "skipped": [{"path": str(s.path), "reason": s.reason} for s in skipped],
    }


def _document(prediction):
    match prediction:
        case Prediction(label=label, score=score, top=top):
            others = [{"label": name, "score": s} for name, s in top]
            return {"label": label, "score": score, "top": others}
        case LabelsPrediction(labels=labels, scores=scores):
            return {"labels": list(labels), "scores": scores}
        case ValuesPrediction(values=values):
            return {"values": values}
    return {"heads": {name: _document(one) for name, one in prediction.heads.items()}}
