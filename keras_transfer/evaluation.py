"""One pass of predictions, and what is read from it."""

import math
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from keras_transfer.data.files import Skipped, list_pictures
from keras_transfer.data.index import check_pictures
from keras_transfer.data.sources import Examples, ImageData
from keras_transfer.errors import InputError
from keras_transfer.heads import Classification, head_of
from keras_transfer.measures import class_measures, outputs_of
from keras_transfer.precision import jit_compile


@dataclass(frozen=True)
class Prediction:
    """What the model says of one picture.

    Attributes:
        path: the picture's file.
        label: the name with the highest score.
        score: that score; a probability in [0, 1] for classes and labels.
        top: up to five (name, score), highest first.
    """

    path: str
    label: str
    score: float
    top: tuple[tuple[str, float], ...]


def predict(model, paths, *, batch_size: int = 32) -> tuple[list[Prediction], list[Skipped]]:
    """Predicts pictures and whole folders of them.

    Args:
        model: from `build_model`, trained.
        paths: files and folders (searched to any depth).

    Returns:
        Predictions in the order of the paths, and the files that could not be read.

    Raises:
        InputError: a path does not exist, or there is no picture.
    """
    head = head_of(model)
    good, skipped = check_pictures(list_pictures(paths))
    if not len(good):
        raise InputError(f"No readable picture in {paths[0]}: {skipped[0].reason}.")
    unlabelled = Examples(good, np.zeros(len(good), "int32"))
    _, outputs = collect(
        model, ImageData(head.names, {"all": unlabelled}, skipped, ""), "all", batch_size=batch_size
    )
    predictions = []
    for path, scores in zip(good.names, keras.ops.convert_to_numpy(head.scores(outputs))):
        order = np.argsort(-scores, kind="stable")[:5]
        top = tuple((head.names[i], float(scores[i])) for i in order)
        predictions.append(Prediction(path, *top[0], top))
    return predictions, skipped


def evaluate(model, data: ImageData, split: str = "val", *, batch_size: int = 32) -> dict:
    """Measures a single-label model on labelled pictures, in one pass.

    Args:
        model: from `build_model`, trained; its classes are `data.class_names`.
        data: labelled pictures.
        split: which of `data.examples`.

    Returns:
        Plain data for JSON: `pictures`, `accuracy`, `accuracy_interval` (95 %, Wilson), `loss`,
        `top5` (where there are more than five classes), `per_class` and `balanced_accuracy` (see
        `measures.class_measures`) and `confusion` (row: true class, column: predicted).

    Raises:
        InputError: other classes than the model's, or no such split.
    """
    from sklearn.metrics import confusion_matrix

    head = head_of(model)
    if not isinstance(head, Classification):
        raise InputError(f"evaluate measures single-label models, not {head.task}.")
    if tuple(data.class_names) != head.names:
        raise InputError(f"The model's classes are {head.names}, the data's {data.class_names}.")
    labels, outputs = collect(model, data, split, batch_size=batch_size)
    predicted = outputs.argmax(axis=1)
    classes = np.arange(len(head.names))
    correct = int((predicted == labels).sum())
    result = {
        "pictures": len(labels),
        "accuracy": correct / len(labels),
        "accuracy_interval": list(wilson_interval(correct, len(labels))),
        "loss": float(keras.ops.convert_to_numpy(head.loss()(labels, outputs))),
    }
    if len(head.names) > 5:
        in_top5 = (np.argsort(-outputs, axis=1)[:, :5] == labels[:, None]).any(axis=1)
        result["top5"] = float(in_top5.mean())
    result |= class_measures(head, labels, outputs)
    result["confusion"] = confusion_matrix(labels, predicted, labels=classes).tolist()
    return result


def collect(model, data: ImageData, split: str, *, batch_size: int = 32):
    """Labels int32 [N] and raw outputs float32 [N, C] of a split, from the same pass."""
    if not model.compiled:
        model.jit_compile = jit_compile()
    batches = data.batches(split, image_size=model.input_shape[1], batch_size=batch_size)
    return outputs_of(model, batches, data.steps(split, batch_size))


def wilson_interval(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Confidence interval of a share (Wilson 1927), 95 % by default; right for few pictures too."""
    share = correct / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def predictions_csv(predictions: list[Prediction]) -> str:
    """Columns path, label, score, then top1…top5 as `name=score`."""
    from keras_transfer.runs import csv_text

    width = max((len(p.top) for p in predictions), default=0)
    header = ["path", "label", "score", *(f"top{i + 1}" for i in range(width))]
    rows = (
        [p.path, p.label, f"{p.score:.6f}", *(f"{name}={score:.6f}" for name, score in p.top)]
        for p in predictions
    )
    return csv_text(header, rows)


def predictions_json(predictions: list[Prediction], skipped: list[Skipped]) -> dict:
    return {
        "predictions": [
            {
                "path": p.path,
                "label": p.label,
                "score": p.score,
                "top": [{"label": name, "score": score} for name, score in p.top],
            }
            for p in predictions
        ],
        "skipped": [{"path": str(Path(s.path)), "reason": s.reason} for s in skipped],
    }
