"""All metrics of a head with one class per image, as plain data."""

from collections.abc import Mapping, Sequence

import numpy as np

from keras_transfer.evaluation.calibration import calibration_report
from keras_transfer.evaluation.measures import confusion_counts, hit_rates
from keras_transfer.evaluation.outputs import Softmax
from keras_transfer.evaluation.ranking import (
    per_name_rows,
    rank_classes,
    risk_coverage,
    threshold_for_precision,
    threshold_result,
)
from keras_transfer.evaluation.slices import measure_slices
from keras_transfer.utils.statistics import bootstrap, number, share

_MOST_CONFUSED = 50


def measure_classes(
    names: Sequence[str],
    labels: np.ndarray,
    logits: np.ndarray,
    paths: Sequence[str],
    *,
    calibration: Mapping | None = None,
    precision: float | None = None,
    slices: Mapping[str, Sequence[str]] | None = None,
    most: int = 50,
) -> tuple[dict, dict]:
    """Measure predictions of one class per image.

    Args:
        names: the C classes.
        labels: int [N], N ≥ 1.
        logits: float32 [N, C], finite.
        paths: names of the images [N].
        calibration: fitted on other images by `calibrate_head`; its `temperature` scales the
            logits, and its `thresholds` are tried.
        precision: wanted precision in (0, 1]; if `calibration` has no threshold for it, one is
            chosen on these images.
        slices: name of a grouping → the group of each image [N].
        most: maximum number of mistakes and of uncertain images to list.

    Returns:
        The document (see docs/evaluation.md), and columns with one row per image.
    """
    calibration = calibration or {}
    temperature = calibration.get("temperature")
    probabilities = Softmax(logits, temperature or 1.0)
    predicted = probabilities.predicted
    confidence, correct = probabilities.confidence_and_truth(labels)
    truth = np.exp(probabilities.log_of(labels))
    matrix = confusion_counts(labels, predicted, len(names))
    hits, support = np.diag(matrix), matrix.sum(axis=1)
    rates = hit_rates(hits, support, matrix.sum(axis=0))
    ranking = rank_classes(probabilities.log_column, lambda c: labels == c, len(names), len(labels))
    rank = probabilities.rank_of(labels)
    (f1_macro,) = bootstrap(_macro_f1(labels, predicted, len(names)), len(labels))

    def listed(positions):
        return [
            {
                "path": paths[i],
                "label": names[labels[i]],
                "predicted": names[predicted[i]],
                "score": number(confidence[i]),
                "label_score": number(truth[i]),
                "top": [
                    {"label": names[c], "score": score} for c, score in probabilities.top(i, 5)
                ],
            }
            for i in positions[:most]
        ]

    wrong = np.flatnonzero(~correct)
    document = {
        "task": "single_label",
        "names": list(names),
        "images": len(labels),
        "accuracy": share(int(correct.sum()), len(correct)),
        "top5": share(int((rank < 5).sum()), len(rank)) if len(names) > 5 else None,
        "balanced_accuracy": number(rates["recall"][support > 0].mean()),
        "f1_macro": f1_macro,
        "f1_weighted": number(rates["f1"] @ support / support.sum()),
        "auc": ranking.macro_auc,
        "average_precision": ranking.macro_precision,
        "per_class": per_name_rows(names, hits, rates, ranking),
        "absent": [name for name, n in zip(names, support) if not n],
        "confusion": matrix.tolist(),
        "confused": confused_pairs(names, matrix),
        "curves": ranking.curves(),
        "calibration": calibration_report(probabilities, labels, temperature),
        "abstention": {
            **risk_coverage(confidence, correct),
            "thresholds": _thresholds(confidence, correct, calibration, precision),
        },
        "mistakes": listed(wrong[np.argsort(-confidence[wrong], kind="stable")]),
        "unsure": listed(np.argsort(confidence, kind="stable")),
        "slices": measure_slices(
            slices, lambda at: {"accuracy": share(int(correct[at].sum()), len(at))}
        ),
    }
    rows = {
        "label": [names[c] for c in labels],
        "predicted": [names[c] for c in predicted],
        "score": [f"{score:.6f}" for score in confidence],
        "label_score": [f"{score:.6f}" for score in truth],
        "correct": [str(int(r)) for r in correct],
    }
    return document, rows


def _macro_f1(labels, predicted, classes):
    """Return a function from how often each image is drawn to the mean F1 of classes that occur."""
    correct = labels == predicted

    def statistic(counts):
        support, positive = (np.bincount(c, counts, minlength=classes) for c in (labels, predicted))
        hits = np.bincount(labels, counts * correct, minlength=classes)
        return hit_rates(hits, support, positive)["f1"][support > 0].mean()

    return statistic


def confused_pairs(
    names: Sequence[str], matrix: np.ndarray, most: int = _MOST_CONFUSED
) -> list[dict]:
    """Return the pairs of classes that are confused most often, the most frequent first.

    Args:
        names: the C classes.
        matrix: confusion matrix [C, C]; rows are true classes.
        most: maximum number of pairs.

    Returns:
        `label`, `predicted`, `count` and `share` (of the label's images) of each pair. Of pairs
        with the same count, the one with the larger share comes first.
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


def _thresholds(confidence, correct, calibration, precision):
    fitted = {row["precision"]: row["threshold"] for row in calibration.get("thresholds", ())}
    rows = []
    for wanted in sorted({*fitted, *([precision] if precision else [])}):
        chosen_here = wanted not in fitted
        threshold = (
            threshold_for_precision(confidence, correct, wanted) if chosen_here else fitted[wanted]
        )
        row = {"wanted": wanted, "threshold": threshold, "chosen_here": chosen_here}
        rows.append({**row, **threshold_result(confidence, correct, threshold)})
    return rows
