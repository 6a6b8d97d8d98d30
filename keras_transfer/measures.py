"""One pass of predictions, and how good they are class by class."""

from itertools import islice

import keras
import numpy as np
from tqdm.auto import tqdm


def outputs_of(model: keras.Model, batches, total: int):
    """Labels [N] (or [N, C]) and raw outputs float32 [N, C], from one pass over (inputs, labels).

    `total` is the number of batches that are taken.
    """
    labels, outputs = [], []
    bar = tqdm(islice(batches, total), total=total, unit="batch", leave=False, disable=None)
    for inputs, batch_labels in bar:
        inputs = np.asarray(inputs)
        labels.append(np.asarray(batch_labels))
        count, size = len(labels[-1]), len(labels[0])
        if count < size:  # filled up: another shape would be compiled anew
            inputs = np.concatenate([inputs, np.repeat(inputs[-1:], size - count, axis=0)])
        outputs.append(np.asarray(model.predict_on_batch(inputs), "float32")[:count])
    return np.concatenate(labels), np.concatenate(outputs)


def class_measures(head, labels: np.ndarray, outputs: np.ndarray) -> dict:
    """Plain data for JSON.

    Args:
        head: of the model, `Classification` or `MultiLabel`.
        labels: int [N]; 0/1 [N, C] of a multi-label head.
        outputs: logits [N, C].

    Returns:
        `per_class`: name → `precision`, `recall`, `f1` (0 where they are not defined), `support`;
        `balanced_accuracy`: the mean recall of the classes that occur; of a multi-label head the
        mean over labels of that of "there" and "not there".
    """
    from sklearn.metrics import precision_recall_fscore_support

    def measured(labels, predicted, classes):
        return precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)

    if labels.ndim == 2:
        columns = list(zip(labels.T, (outputs > 0).astype("int32").T))
        precision, recall, f1, support = np.hstack([measured(y, p, [1]) for y, p in columns])
        balanced = [_mean_recall(y, p) for y, p in columns]
    else:
        classes = np.arange(len(head.names))
        precision, recall, f1, support = measured(labels, outputs.argmax(axis=1), classes)
        balanced = recall[support > 0]
    return {
        "per_class": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
            for name, p, r, f, s in zip(head.names, precision, recall, f1, support)
        },
        "balanced_accuracy": float(np.mean(balanced)),
    }


def _mean_recall(labels, predicted):
    return np.mean([(predicted[labels == value] == value).mean() for value in np.unique(labels)])
