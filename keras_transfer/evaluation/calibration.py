"""What is fitted on validation images, after training: temperatures and thresholds."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.evaluation.abstention import threshold_for
from keras_transfer.evaluation.multilabel import best_thresholds
from keras_transfer.evaluation.probabilities import PROBABILITIES, Softmax
from keras_transfer.evaluation.reliability import fit_temperature
from keras_transfer.evaluation.tta import views_for

PRECISIONS = (0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Calibration:
    """What validation images say about a model's probabilities.

    Attributes:
        split: which images those were.
        images: how many.
        tta: the views that were averaged: None, `"mirror"` or their number.
        heads: name of each head with probabilities → plain data: `temperature`,
            `log_loss_before` and `log_loss_after`; of classes `thresholds`, rows of `precision` and
            `threshold` (None: not to be had); of labels `label_thresholds`, one a label, for F1.
    """

    split: str
    images: int
    tta: str | int | None
    heads: dict[str, dict]

    def to_dict(self) -> dict:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict) -> "Calibration":
        """What `to_dict` gave.

        Raises:
            InputError: it is something else.
        """
        try:
            return cls(found["split"], found["images"], found["tta"], dict(found["heads"]))
        except (KeyError, TypeError, ValueError):
            raise InputError(
                "This is no calibration: write it anew with `keras-transfer evaluate --calibrate`."
            ) from None


def calibrate(
    model,
    data,
    split: str = "val",
    *,
    tta: str | int | None = None,
    augmentation="light",
    precisions: Sequence[float] = PRECISIONS,
    batch_size: int = 32,
) -> Calibration:
    """Fits temperatures, and thresholds on the probabilities that they give.

    Args:
        model: from `build_model`, trained.
        data: labelled images; those of `split` must not be among what the model was trained on.
        tta, augmentation: see `views.views_for`.
        precisions: for which thresholds are chosen, each in (0, 1].

    Raises:
        InputError: labels of other tasks or names than the model's, no such split, or a precision out
            of range.
    """
    from keras_transfer.evaluation.outputs import collect
    from keras_transfer.models.builders import by_head, check_targets, heads_of

    for precision in precisions:
        check_precision(precision)
    views, heads = views_for(tta, augmentation), heads_of(model)
    check_targets(heads, data)
    labels, outputs = collect(model, data, split, batch_size=batch_size, views=views)
    labels, outputs = by_head(heads, labels), by_head(heads, outputs)
    found = {
        name: fitted(head.task, labels[name], outputs[name], precisions)
        for name, head in heads.items()
        if head.task in PROBABILITIES
    }
    return Calibration(split, len(data.examples[split]), tta, found)


def check_precision(precision: float, tasks: Collection[str] = ("single_label",)) -> None:
    """Raises InputError for what is no share, or where no head of these tasks gives one class."""
    if not 0 < precision <= 1:
        raise InputError(f"precision {precision:g}: give a share above 0, at most 1, e.g. 0.99.")
    if "single_label" not in tasks:
        raise InputError(
            f"precision is for answers of one class per image; this model's are {', '.join(tasks)}."
        )


def fitted(
    task: str, labels: np.ndarray, logits: np.ndarray, precisions: Sequence[float] = PRECISIONS
) -> dict:
    """What `Calibration.heads` has for one head.

    Args:
        task: `"single_label"` or `"multi_label"`.
        labels: int [N], or 0/1 [N, L].
        logits: float32 [N, C], finite.
    """
    temperature = fit_temperature(task, logits, labels)
    make = PROBABILITIES[task]
    after = make(logits, temperature)
    found: dict[str, Any] = {
        "temperature": temperature,
        "log_loss_before": make(logits).log_loss(labels),
        "log_loss_after": after.log_loss(labels),
    }
    if isinstance(after, Softmax):
        right = after.predicted == labels
        found["thresholds"] = [
            {"precision": p, "threshold": threshold_for(after.confidence, right, p)}
            for p in sorted(set(precisions))
        ]
    else:
        found["label_thresholds"] = best_thresholds(labels > 0, after.scores).tolist()
    return found
