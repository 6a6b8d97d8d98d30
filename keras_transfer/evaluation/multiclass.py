"""Everything that is measured of a head with one class per image, as plain data."""

from collections.abc import Mapping, Sequence
from operator import attrgetter

import numpy as np

from keras_transfer.evaluation.abstention import at_threshold, risk_coverage, threshold_for
from keras_transfer.evaluation.probabilities import Softmax
from keras_transfer.evaluation.ranking import ranking
from keras_transfer.evaluation.reliability import before_and_after
from keras_transfer.evaluation.slices import sliced
from keras_transfer.utils.statistics import bootstrap, interval, number, share

_CONFUSED = 50


def measure_classes(
    names: Sequence[str],
    labels: np.ndarray,
    logits: np.ndarray,
    paths: Sequence[str],
    *,
    temperature: float | None = None,
    thresholds: Mapping[float, float | None] | None = None,
    precision: float | None = None,
    slices: Mapping[str, Sequence[str]] | None = None,
    most: int = 50,
    seed: int = 0,
) -> tuple[dict, dict]:
    """Measures answers of one class per image.

    Args:
        names: of the C classes.
        labels: int [N], N ≥ 1.
        logits: float32 [N, C], finite.
        paths: what to call the images.
        temperature: fitted on other images; probabilities are divided so, and calibration is measured
            before and after.
        thresholds: wanted precision → the confidence that was found for it on other images.
        precision: a wanted precision, in (0, 1]; without a threshold in `thresholds` one is chosen on
            these images.
        slices: what the images are parted by → the slice of each.
        most: mistakes and unsure images that are listed.
        seed: of the bootstrap intervals.

    Returns:
        The document (see docs/evaluation.md), and columns of a row per image.
    """
    soft = Softmax(logits, temperature or 1.0)
    right = soft.predicted == labels
    confidence, truth = soft.confidence, np.exp(soft.log_of(labels))
    table, matrix = _per_class(names, labels, soft.predicted)
    ranks = ranking(soft.log_column, lambda c: labels == c, len(names), len(labels))
    for i, row in enumerate(table.values()):
        row["auc"] = number(ranks.auc[i])
        row["average_precision"] = number(ranks.average_precision[i])
    support = matrix.sum(axis=1)
    recall = np.array([row["recall"] for row in table.values()])
    f1 = np.array([row["f1"] for row in table.values()])
    rank = soft.rank_of(labels)
    (f1_macro,) = bootstrap(_macro_f1(labels, soft.predicted, len(names)), len(labels), seed=seed)
    document = {
        "task": "single_label",
        "names": list(names),
        "images": len(labels),
        "accuracy": share(int(right.sum()), len(right)),
        "top5": share(int((rank < 5).sum()), len(right)) if len(names) > 5 else None,
        "balanced_accuracy": number(recall[support > 0].mean()),
        "f1_macro": f1_macro,
        "f1_weighted": number(f1 @ support / support.sum()),
        "auc": ranks.macro_auc,
        "average_precision": ranks.macro_precision,
        "per_class": table,
        "absent": [name for name, n in zip(names, support) if not n],
        "confusion": matrix.tolist(),
        "confused": confused(names, matrix),
        "curves": ranks.curves(),
        "calibration": before_and_after(
            soft, labels, attrgetter("confidence"), right, temperature, seed
        ),
        "abstention": {
            **risk_coverage(confidence, right),
            "thresholds": _thresholds(confidence, right, thresholds or {}, precision),
        },
        "mistakes": _listed(names, labels, soft, truth, paths, _worst(right, confidence, most)),
        "unsure": _listed(
            names, labels, soft, truth, paths, np.argsort(confidence, kind="stable")[:most]
        ),
        "slices": {
            by: sliced(values, lambda at: {"accuracy": share(int(right[at].sum()), len(at))})
            for by, values in (slices or {}).items()
        },
    }
    rows = {
        "label": [names[c] for c in labels],
        "predicted": [names[c] for c in soft.predicted],
        "score": [f"{score:.6f}" for score in confidence],
        "label_score": [f"{score:.6f}" for score in truth],
        "correct": [str(int(r)) for r in right],
    }
    return document, rows


def _per_class(names, labels, predicted):
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    classes = np.arange(len(names))
    found = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    matrix = confusion_matrix(labels, predicted, labels=classes)
    table = {}
    for i, (name, precision, recall, f1, support) in enumerate(zip(names, *found)):
        ends = share(int(matrix[i, i]), int(support))
        table[name] = {
            "precision": number(precision),
            "recall": number(recall),
            "recall_low": ends["low"],
            "recall_high": ends["high"],
            "f1": number(f1),
            "support": int(support),
        }
    return table, matrix


def _macro_f1(labels, predicted, classes):
    """The mean F1 of the classes that occur, from how often each image is drawn."""
    right = labels == predicted

    def statistic(counts):
        support, found = (np.bincount(c, counts, minlength=classes) for c in (labels, predicted))
        hits = np.bincount(labels, counts * right, minlength=classes)
        there = support > 0
        return (2 * hits[there] / (support + found)[there]).mean()

    return statistic


def confused(names: Sequence[str], matrix: np.ndarray, most: int = _CONFUSED) -> list[dict]:
    """The pairs of classes that are most often taken for each other, of a confusion matrix [C, C].

    Returns `label`, `predicted`, `count`, and `share` of the label's images, most frequent first.
    """
    wrong = np.array(matrix)
    support = wrong.sum(axis=1)
    np.fill_diagonal(wrong, 0)
    rows, columns = np.nonzero(wrong)
    order = np.lexsort((-wrong[rows, columns] / support[rows], -wrong[rows, columns]))[:most]
    return [
        {
            "label": names[r],
            "predicted": names[c],
            "count": int(wrong[r, c]),
            "share": number(wrong[r, c] / support[r]),
        }
        for r, c in zip(rows[order], columns[order])
    ]


def _thresholds(confidence, right, known, precision):
    wanted = sorted({*known, *([precision] if precision else [])})
    return [
        threshold_row(
            confidence,
            right,
            one,
            known[one] if one in known else threshold_for(confidence, right, one),
            one not in known,
        )
        for one in wanted
    ]


def threshold_row(confidence, right, wanted: float, threshold: float | None, here: bool) -> dict:
    """What comes of a threshold for a wanted precision; `here`: it was chosen on these images."""
    if threshold is None:
        nothing = {"coverage": share(0, len(right)), "precision": interval(None)}
    else:
        nothing = at_threshold(confidence, right, threshold)
    return {"wanted": wanted, "threshold": threshold, "chosen_here": here, **nothing}


def _worst(right, confidence, most):
    wrong = np.flatnonzero(~right)
    return wrong[np.argsort(-confidence[wrong], kind="stable")[:most]]


def _listed(names, labels, soft, truth, paths, chosen):
    return [
        {
            "path": paths[i],
            "label": names[labels[i]],
            "predicted": names[soft.predicted[i]],
            "score": number(soft.confidence[i]),
            "label_score": number(truth[i]),
            "top": [{"label": names[c], "score": score} for c, score in soft.top(i, 5)],
        }
        for i in chosen
    ]
