"""Predict batches and compute the metrics of each task: all that training needs of this package."""

import keras
import numpy as np

from keras_transfer.data.examples import count_examples, join_labels, map_labels
from keras_transfer.models.builders import by_head
from keras_transfer.models.framing import framing_of
from keras_transfer.utils.console import progress_bar
from keras_transfer.utils.statistics import number, wilson_interval

_FEW_BATCHES = 2  # which take less time layer by layer than a graph takes to build


def predict_batches(model: keras.Model, batches, total: int | None = None):
    """Return labels and raw outputs from one pass over batches.

    Args:
        model: any Keras model.
        batches: yields (inputs, labels).
        total: number of batches, for the progress bar.

    Returns:
        (labels [N, …], outputs float32 [N, C]); each is a dict if it has several heads.
    """
    labels, outputs = [], []
    few = total is not None and total <= _FEW_BATCHES and keras.backend.backend() == "tensorflow"
    for inputs, batch_labels in progress_bar(batches, "predicting", total=total, unit="batches"):
        labels.append(map_labels(np.asarray, batch_labels))
        size = count_examples(labels[0])
        outputs.append(predict_batch(model, np.asarray(inputs), size, compiled=not few))
    return join_labels(labels), join_labels(outputs)


def predict_split(model: keras.Model, data, split: str, batch_size: int):
    """Return labels and raw outputs of a split, in its order, see `predict_batches`.

    Examples of about the same length are computed together.
    """
    from keras_transfer.data.batches import batches

    total = data.steps(split, batch_size)  # raises InputError for a missing split
    examples = data.examples[split]
    framing = examples.modality.framing_for(framing_of(model), examples)
    order = np.array(examples.by_length(np.arange(len(examples)), framing), int)
    in_order = np.array_equal(order, np.arange(len(order)))
    chosen = examples if in_order else examples.take(order)
    stream = batches(chosen, image_size=framing, batch_size=batch_size)
    found = predict_batches(model, stream, total)
    places = np.argsort(order)
    return tuple(map_labels(lambda values: values[places], one) for one in found)


def predict_batch(model: keras.Model, inputs: np.ndarray, size: int, *, compiled: bool = True):
    """Return raw outputs float32 [n, C] for n ≤ `size` inputs; a dict for several heads.

    A smaller batch is padded to `size`, because a new shape would be compiled anew.

    Args:
        compiled: False calls the model layer by layer, which is slower, but starts at once.
    """
    if not compiled:
        outputs = model(inputs, training=False)
        return map_labels(lambda values: np.asarray(values, "float32"), outputs)
    rows = len(inputs)
    if rows < size:
        inputs = np.concatenate([inputs, np.repeat(inputs[-1:], size - rows, axis=0)])
    outputs = model.predict_on_batch(inputs)
    return map_labels(lambda values: np.asarray(values, "float32")[:rows], outputs)


def compute_metrics(heads, labels, outputs) -> dict:
    """Compute what `evaluate` returns, without the confusion matrix.

    Args:
        heads: `heads_of(model)`.
        labels, outputs: as returned by `predict_batches`.
    """
    labels, outputs = by_head(heads, labels), by_head(heads, outputs)
    metrics = {
        name: {"task": head.task, **_head_metrics(head, labels[name], outputs[name])}
        for name, head in heads.items()
    }
    images = {"images": len(next(iter(labels.values())))}
    if len(heads) == 1:
        return {**images, **metrics.popitem()[1]}
    loss = sum(head.weight * metrics[name]["loss"] for name, head in heads.items())
    return {**images, "loss": loss, "heads": metrics}


def _head_metrics(head, labels, outputs):
    loss = {"loss": float(keras.ops.convert_to_numpy(head.loss()(labels, outputs)))}
    compute = {
        "single_label": _class_metrics,
        "multi_label": _label_metrics,
        "regression": _target_metrics,
    }[head.task]
    # Metrics that rank use raw outputs: the order is that of the scores, which saturate at 0 and 1.
    return {**loss, **compute(head.names, labels, outputs)}


def _class_metrics(names, labels, outputs):
    matrix = confusion_counts(labels, outputs.argmax(axis=1), len(names))
    hits, support = np.diag(matrix), matrix.sum(axis=1)
    rates = hit_rates(hits, support, matrix.sum(axis=0))
    correct = int(hits.sum())
    result = {
        "accuracy": correct / len(labels),
        "accuracy_interval": list(wilson_interval(correct, len(labels))),
    }
    if len(names) > 5:
        # Counted, not sorted: sorting a thousand classes would take twice the memory of the outputs.
        above = (outputs > outputs[np.arange(len(labels)), labels][:, None]).sum(axis=1)
        result["top5"] = float((above < 5).mean())
    result["per_class"] = _rows(names, rates)
    result["balanced_accuracy"] = float(np.mean(rates["recall"][support > 0]))
    return result


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return the confusion matrix, int [C, C]; rows are true classes, columns predicted ones."""
    pairs = labels.astype("int64") * classes + predicted
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def hit_rates(hits, support, predicted) -> dict[str, np.ndarray]:
    """Return precision, recall, F1 and support of each class or label; 0 if they are undefined.

    Args:
        hits: number of correct predictions of each, [C].
        support: number of examples that have it, [C].
        predicted: number of examples for which it is predicted, [C].
    """
    return {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": 2 * hits / np.maximum(support + predicted, 1),
        "support": support,
    }


def _label_metrics(names, labels, outputs):
    from sklearn.metrics import average_precision_score, roc_auc_score

    labels, predicted = labels > 0, outputs > 0
    varied = np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0))
    precision, auc = np.full((2, len(names)), np.nan)
    for i in varied:
        precision[i] = average_precision_score(labels[:, i], outputs[:, i])
        auc[i] = roc_auc_score(labels[:, i], outputs[:, i])
    counts = [(labels & predicted).sum(axis=0), labels.sum(axis=0), predicted.sum(axis=0)]
    rates = hit_rates(*counts)
    balanced = [_mean_recall(*column) for column in zip(labels.T, predicted.T)]
    return {
        "map": float(precision[varied].mean()) if len(varied) else None,
        "auc": float(auc[varied].mean()) if len(varied) else None,
        "f1_macro": float(rates["f1"].mean()),
        "f1_micro": float(hit_rates(*map(np.sum, counts))["f1"]),
        "balanced_accuracy": float(np.mean(balanced)),
        "per_label": _rows(names, {"average_precision": precision, "auc": auc, **rates}),
        "one_class": [name for i, name in enumerate(names) if i not in varied],
    }


def _mean_recall(labels, predicted):
    """Return the mean recall over both values of a label, as far as they occur."""
    return np.mean([(predicted[labels == value] == value).mean() for value in np.unique(labels)])


def _target_metrics(names, labels, outputs):
    labels = labels.astype("float64")
    errors = outputs - labels
    squared, variance = np.square(errors).mean(axis=0), labels.var(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where(variance > 0, 1 - squared / variance, np.nan)
    rows = {"mae": np.abs(errors).mean(axis=0), "rmse": np.sqrt(squared), "r2": r2}
    means = {key: number(np.mean(row)) for key, row in rows.items()}
    return {**means, "per_target": _rows(names, rows)}


def _rows(names, columns):
    """Return name → column → number, with None in place of NaN."""
    return {
        name: {column: number(values[i]) for column, values in columns.items()}
        for i, name in enumerate(names)
    }
