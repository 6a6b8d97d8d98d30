"""One pass of predictions, and how good they are: of classes, labels, numbers, and several heads."""

import keras
import numpy as np

from keras_transfer.data.targets import count, joined, map_labels
from keras_transfer.models.builders import by_head
from keras_transfer.utils.console import progress_bar
from keras_transfer.utils.statistics import wilson_interval


def outputs_of(model: keras.Model, batches, total: int | None = None):
    """Labels and raw outputs float32 [N, C], from one pass over (inputs, labels); dicts where the
    labels or the model have several heads."""
    labels, outputs = [], []
    for inputs, batch_labels in progress_bar(batches, "predicting", total=total, unit="batches"):
        labels.append(map_labels(np.asarray, batch_labels))
        outputs.append(answers(model, np.asarray(inputs), count(labels[0])))
    return joined(labels), joined(outputs)


def answers(model: keras.Model, inputs: np.ndarray, size: int):
    """Raw outputs float32 [n, C] of n ≤ `size` inputs; of several heads a dict."""
    rows = len(inputs)
    if rows < size:  # filled up: another shape would be compiled anew
        inputs = np.concatenate([inputs, np.repeat(inputs[-1:], size - rows, axis=0)])
    found = model.predict_on_batch(inputs)
    return map_labels(lambda values: np.asarray(values, "float32")[:rows], found)


def measured(heads, labels, outputs) -> dict:
    """What `evaluation.evaluate` returns, of labels and outputs of `outputs_of`; without `confusion`.

    Args:
        heads: `heads_of(model)`.
    """
    labels, outputs = by_head(heads, labels), by_head(heads, outputs)
    found = {
        name: {"task": head.task, **_measured(head, labels[name], outputs[name])}
        for name, head in heads.items()
    }
    images = {"images": len(next(iter(labels.values())))}
    if len(heads) == 1:
        return {**images, **found.popitem()[1]}
    loss = sum(head.weight * found[name]["loss"] for name, head in heads.items())
    return {**images, "loss": loss, "heads": found}


def confusion(labels, outputs) -> list[list[int]]:
    """Counts, row: true class, column: predicted."""
    from sklearn.metrics import confusion_matrix

    classes = np.arange(outputs.shape[1])
    return confusion_matrix(labels, outputs.argmax(axis=1), labels=classes).tolist()


def _measured(head, labels, outputs):
    loss = {"loss": float(keras.ops.convert_to_numpy(head.loss()(labels, outputs)))}
    measure = {
        "single_label": _measured_classes,
        "multi_label": _measured_labels,
        "regression": _measured_values,
    }[head.task]
    # Raw outputs rank like scores, which are equal to each other where they are near 0 and 1.
    return {**loss, **measure(head.names, labels, outputs)}


def _measured_classes(names, labels, outputs):
    from sklearn.metrics import precision_recall_fscore_support

    predicted = outputs.argmax(axis=1)
    classes = np.arange(len(names))
    per_class = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    correct = int((predicted == labels).sum())
    result = {
        "accuracy": correct / len(labels),
        "accuracy_interval": list(wilson_interval(correct, len(labels))),
    }
    if len(names) > 5:
        # Counted rather than sorted: positions of a thousand classes would be twice the outputs.
        above = (outputs > outputs[np.arange(len(labels)), labels][:, None]).sum(axis=1)
        result["top5"] = float((above < 5).mean())
    columns = ("precision", "recall", "f1", "support")
    result["per_class"] = _rows(names, dict(zip(columns, per_class)))
    recall, support = per_class[1], per_class[3]
    result["balanced_accuracy"] = float(np.mean(recall[support > 0]))
    return result


def _measured_labels(names, labels, outputs):
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    labels, predicted = labels.astype(int), (outputs > 0).astype(int)
    varied = np.flatnonzero(np.ptp(labels, axis=0))
    precision, auc = np.full((2, len(names)), np.nan)
    for i in varied:
        precision[i] = average_precision_score(labels[:, i], outputs[:, i])
        auc[i] = roc_auc_score(labels[:, i], outputs[:, i])
    right, support, found = (labels * predicted).sum(0), labels.sum(0), predicted.sum(0)
    rows = {
        "average_precision": precision,
        "auc": auc,
        "precision": right / np.maximum(found, 1),
        "recall": right / np.maximum(support, 1),
        "f1": 2 * right / np.maximum(support + found, 1),
        "support": support,
    }
    balanced = [_mean_recall(*column) for column in zip(labels.T, predicted.T)]
    return {
        "map": float(precision[varied].mean()) if len(varied) else None,
        "auc": float(auc[varied].mean()) if len(varied) else None,
        "f1_macro": float(rows["f1"].mean()),
        "f1_micro": float(f1_score(labels.ravel(), predicted.ravel(), zero_division=0)),
        "balanced_accuracy": float(np.mean(balanced)),
        "per_label": _rows(names, rows),
        "one_class": [name for i, name in enumerate(names) if i not in varied],
    }


def _mean_recall(labels, predicted):
    """The mean recall of "there" and "not there", as far as they occur."""
    return np.mean([(predicted[labels == value] == value).mean() for value in np.unique(labels)])


def _measured_values(names, labels, outputs):
    labels = labels.astype("float64")
    errors = outputs - labels
    squared, variance = np.square(errors).mean(axis=0), labels.var(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where(variance > 0, 1 - squared / variance, np.nan)
    rows = {"mae": np.abs(errors).mean(axis=0), "rmse": np.sqrt(squared), "r2": r2}
    means = {key: _number(np.mean(row)) for key, row in rows.items()}
    return {**means, "per_target": _rows(names, rows)}


def _rows(names, columns):
    """name → column → number; NaN as None."""
    return {
        name: {column: _number(values[i]) for column, values in columns.items()}
        for i, name in enumerate(names)
    }


def _number(value):
    value = value.item()
    return None if value != value else value
