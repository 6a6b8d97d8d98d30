"""All metrics of a head with any number of labels per image, as plain data."""

from collections.abc import Mapping, Sequence

import numpy as np

from keras_transfer.evaluation.calibration import calibration_report
from keras_transfer.evaluation.outputs import Sigmoid
from keras_transfer.evaluation.ranking import best_f1_thresholds, rank_classes
from keras_transfer.evaluation.slices import measure_slices
from keras_transfer.utils.statistics import bootstrap, number, share


def measure_labels(
    names: Sequence[str],
    labels: np.ndarray,
    logits: np.ndarray,
    paths: Sequence[str],
    *,
    calibration: Mapping | None = None,
    slices: Mapping[str, Sequence[str]] | None = None,
    most: int = 50,
) -> tuple[dict, dict]:
    """Measure predictions of several labels per image; a label is predicted above 0.5.

    Args:
        names: the L labels.
        labels: 0/1 [N, L], N ≥ 1.
        logits: float32 [N, L], finite.
        calibration: fitted on other images by `calibrate_head`: its `temperature` scales the
            logits, and its `label_thresholds` are tried; without them, the thresholds with the
            best F1 are chosen on these images.
        paths, slices, most: as in `multiclass.measure_classes`.

    Returns:
        The document (see docs/evaluation.md), and columns with one row per image.
    """
    calibration = calibration or {}
    temperature = calibration.get("temperature")
    probabilities = Sigmoid(logits, temperature or 1.0)
    scores, labels = probabilities.confidence_and_truth(labels)
    predicted = logits > 0
    # Logits have the order of the scores, which saturate at 0 and 1.
    ranking = rank_classes(lambda i: logits[:, i], lambda i: labels[:, i], len(names), len(labels))
    fitted = calibration.get("label_thresholds")
    thresholds = best_f1_thresholds(labels, scores) if fitted is None else np.asarray(fitted)
    table = _per_label(names, labels, predicted, scores, thresholds, ranking)
    f1_macro, f1_micro = bootstrap(_macro_and_micro_f1(labels, predicted), len(labels))
    exact = (predicted == labels).all(axis=1)
    document = {
        "task": "multi_label",
        "names": list(names),
        "images": len(labels),
        "map": ranking.macro_precision,
        "auc": ranking.macro_auc,
        "f1_macro": f1_macro,
        "f1_micro": f1_micro,
        "f1_macro_best": number(np.mean([row["f1_best"] for row in table.values()])),
        "exact": share(int(exact.sum()), len(exact)),
        "thresholds_chosen_here": fitted is None,
        "per_label": table,
        "one_class": [name for i, name in enumerate(names) if i not in ranking.ranked],
        "curves": ranking.curves(),
        "calibration": calibration_report(probabilities, labels, temperature),
        "mistakes": _mistakes(names, labels, predicted, scores, paths, most),
        "slices": measure_slices(
            slices, lambda at: {"exact": share(int(exact[at].sum()), len(at))}
        ),
    }
    rows = {
        "labels": ["|".join(n for n, present in zip(names, row) if present) for row in labels],
        "predicted": ["|".join(n for n, p in zip(names, row) if p) for row in predicted],
        **{name: [f"{p:.6f}" for p in scores[:, i]] for i, name in enumerate(names)},
    }
    return document, rows


def _per_label(names, labels, predicted, scores, thresholds, ranking):
    predicted_best = scores > thresholds
    correct, support, positive = (labels & predicted).sum(0), labels.sum(0), predicted.sum(0)
    f1 = _f1(correct, support, positive)
    f1_best = _f1((labels & predicted_best).sum(0), support, predicted_best.sum(0))
    table = {}
    for i, name in enumerate(names):
        recall = share(int(correct[i]), int(support[i]))
        table[name] = {
            "average_precision": number(ranking.average_precision[i]),
            "auc": number(ranking.auc[i]),
            "precision": number(correct[i] / max(positive[i], 1)),
            "recall": recall["value"],
            "recall_low": recall["low"],
            "recall_high": recall["high"],
            "f1": number(f1[i]),
            "support": int(support[i]),
            "threshold": number(thresholds[i]),
            "f1_best": number(f1_best[i]),
        }
    return table


def _macro_and_micro_f1(labels, predicted):
    """Return a function from how often each image is drawn to macro and micro F1."""
    columns = np.hstack([labels & predicted, labels, predicted]).astype("float64")

    def statistic(counts):
        correct, support, positive = np.split(counts @ columns, 3)
        macro = _f1(correct, support, positive).mean()
        return macro, _f1(correct.sum(), support.sum(), positive.sum())

    return statistic


def _f1(correct, support, positive):
    return 2 * correct / np.maximum(support + positive, 1)


def _mistakes(names, labels, predicted, scores, paths, most):
    error = np.abs(scores - labels)
    wrong = np.flatnonzero((predicted != labels).ravel())
    order = wrong[np.argsort(-error.ravel()[wrong], kind="stable")[:most]]
    return [
        {
            "path": paths[i],
            "name": names[j],
            "there": bool(labels[i, j]),
            "score": number(scores[i, j]),
        }
        for i, j in zip(*np.unravel_index(order, error.shape))
    ]
