"""All metrics of a head, by its task: one class per example, any number of labels, or numbers.

Each function returns the head's document (see docs/evaluation.md) and columns with one row per image.
They take:

- names of the C classes, labels or targets, and the true labels of N ≥ 1 images;
- raw outputs, finite, float [N, C];
- paths: names of the images [N];
- calibration: fitted on other images by `calibrate_head`; its temperature scales the logits, and its
  thresholds are tried;
- slices: name of a grouping → the group of each image [N];
- most: maximum number of mistakes and of uncertain images to list.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from keras_transfer.evaluation.calibration import calibration_report
from keras_transfer.evaluation.measures import confusion_counts, hit_rates
from keras_transfer.evaluation.outputs import Sigmoid, Softmax
from keras_transfer.evaluation.ranking import (
    best_f1_thresholds,
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
    """Measure predictions of one class per example.

    Args:
        labels: int [N].
        precision: wanted precision in (0, 1]; if `calibration` has no threshold for it, one is
            chosen on these images.
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


def confused_pairs(names: Sequence[str], matrix: np.ndarray) -> list[dict]:
    """Return the pairs of classes that are confused most often: count, and share of the true class.

    Of pairs with the same count in the confusion matrix [C, C], the larger share comes first.
    """
    wrong = np.array(matrix)
    support = wrong.sum(axis=1)
    np.fill_diagonal(wrong, 0)
    rows, columns = np.nonzero(wrong)
    order = np.lexsort((-wrong[rows, columns] / support[rows], -wrong[rows, columns]))[
        :_MOST_CONFUSED
    ]
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
        if chosen_here:
            fitted[wanted] = threshold_for_precision(confidence, correct, wanted)
        row = {"wanted": wanted, "threshold": fitted[wanted], "chosen_here": chosen_here}
        rows.append({**row, **threshold_result(confidence, correct, fitted[wanted])})
    return rows


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
    """Measure predictions of several labels per image, 0/1 [N, L]; a label is predicted above 0.5.

    Without a calibration, the thresholds with the best F1 are chosen on these images.
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
    rates, best_rates = (
        hit_rates((labels & positive).sum(axis=0), labels.sum(axis=0), positive.sum(axis=0))
        for positive in (predicted, scores > thresholds)
    )
    columns = {"threshold": thresholds, "f1_best": best_rates["f1"]}
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
        "f1_macro_best": number(best_rates["f1"].mean()),
        "exact": share(int(exact.sum()), len(exact)),
        "thresholds_chosen_here": fitted is None,
        "per_label": per_name_rows(
            names, (labels & predicted).sum(axis=0), rates, ranking, columns
        ),
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
    }
    for i, name in enumerate(names):
        add_column(rows, name, [f"{p:.6f}" for p in scores[:, i]])
    return document, rows


def add_column(rows: dict[str, list[str]], name: str, values: list[str]) -> None:
    """Add a column; a name that is taken, such as a label `predicted`, gets an underscore."""
    while name in rows:
        name += "_"
    rows[name] = values


def _macro_and_micro_f1(labels, predicted):
    """Return a function from how often each image is drawn to macro and micro F1."""
    columns = np.hstack([labels & predicted, labels, predicted]).astype("float64")

    def statistic(draws):
        counts = np.split(draws @ columns, 3)
        return hit_rates(*counts)["f1"].mean(), hit_rates(*map(np.sum, counts))["f1"]

    return statistic


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


def measure_values(
    names: Sequence[str],
    labels: np.ndarray,
    values: np.ndarray,
    paths: Sequence[str],
    *,
    slices: Mapping[str, Sequence[str]] | None = None,
    most: int = 50,
) -> tuple[dict, dict]:
    """Measure predicted numbers, float [N, D] in the targets' units; the mistakes are the largest errors."""
    labels, values = labels.astype("float64"), values.astype("float64")
    errors = values - labels
    # Errors are compared on the scale of their target, which may be years or grams.
    scale = np.maximum(labels.std(axis=0), np.abs(errors).mean(axis=0))
    relative = np.abs(errors) / np.where(scale > 0, scale, 1)
    largest = np.argsort(-relative.ravel(), kind="stable")[:most]

    def of_slice(at):
        return {f"mae_{name}": number(np.abs(errors[at, i]).mean()) for i, name in enumerate(names)}

    document = {
        "task": "regression",
        "names": list(names),
        "images": len(labels),
        "per_target": _per_target(names, labels, errors),
        "mistakes": [
            {
                "path": paths[i],
                "name": names[j],
                "label": number(labels[i, j]),
                "value": number(values[i, j]),
                "error": number(errors[i, j]),
            }
            for i, j in zip(*np.unravel_index(largest, relative.shape))
        ],
        "slices": measure_slices(slices, of_slice),
    }
    rows: dict[str, list[str]] = {}
    for i, name in enumerate(names):
        add_column(rows, name, [f"{x:.9g}" for x in labels[:, i]])
        add_column(rows, f"{name}_predicted", [f"{x:.9g}" for x in values[:, i]])
    return document, rows


def _per_target(names, labels, errors):
    """Return `mae`, `rmse`, `r2` and `bias` of each target, with bootstrap intervals."""
    # Centered, because squares of numbers far from zero would leave only rounding errors.
    centered = labels - labels.mean(axis=0)
    columns = np.hstack([np.abs(errors), np.square(errors), errors, centered, np.square(centered)])
    constant = np.ptp(labels, axis=0) == 0

    def statistic(counts):
        absolute, squared, bias, mean, square = np.split(counts @ columns / counts.sum(), 5)
        variance = np.where(constant, 0, square - mean**2)
        with np.errstate(divide="ignore", invalid="ignore"):
            r2 = np.where(variance > 1e-12 * square, 1 - squared / variance, np.nan)
        return np.concatenate([absolute, np.sqrt(squared), r2, bias])

    d = len(names)
    highest = np.repeat([np.inf, np.inf, 1.0, np.inf], d)
    lowest = np.repeat([0.0, 0.0, -np.inf, -np.inf], d)
    intervals = bootstrap(statistic, len(labels), highest=highest, lowest=lowest)
    kinds = ("mae", "rmse", "r2", "bias")
    return {
        name: {kind: intervals[k * d + i] for k, kind in enumerate(kinds)}
        for i, name in enumerate(names)
    }


MEASURES: dict[str, Callable[..., tuple[dict, dict]]] = {
    "single_label": measure_classes,
    "multi_label": measure_labels,
    "regression": measure_values,
}
