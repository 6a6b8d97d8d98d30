"""All metrics of a head with any number of labels per image, as plain data."""

from collections.abc import Mapping, Sequence

import numpy as np

from keras_transfer.evaluation.calibration import calibration_report
from keras_transfer.evaluation.measures import hit_rates
from keras_transfer.evaluation.outputs import Sigmoid
from keras_transfer.evaluation.ranking import best_f1_thresholds, per_name_rows, rank_classes
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
        **{name: [f"{p:.6f}" for p in scores[:, i]] for i, name in enumerate(names)},
    }
    return document, rows


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
