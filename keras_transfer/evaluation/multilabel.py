"""Everything that is measured of a head with any number of labels per image, as plain data."""

from collections.abc import Mapping, Sequence
from operator import attrgetter

import numpy as np

from keras_transfer.evaluation.probabilities import Sigmoid
from keras_transfer.evaluation.ranking import ranking
from keras_transfer.evaluation.reliability import before_and_after
from keras_transfer.evaluation.slices import sliced
from keras_transfer.utils.statistics import bootstrap, number, share


def measure_labels(
    names: Sequence[str],
    labels: np.ndarray,
    logits: np.ndarray,
    paths: Sequence[str],
    *,
    temperature: float | None = None,
    label_thresholds: Sequence[float] | None = None,
    slices: Mapping[str, Sequence[str]] | None = None,
    most: int = 50,
    seed: int = 0,
) -> tuple[dict, dict]:
    """Measures answers of several labels per image, each said to be there above a probability of 0.5.

    Args:
        labels: 0/1 [N, L], N ≥ 1.
        logits: float32 [N, L], finite.
        label_thresholds: of each label, the probability that was best for F1 on other images;
            without them they are chosen on these.
        temperature, paths, slices, most, seed: as in `classes.measure_classes`.

    Returns:
        The document (see docs/evaluation.md), and columns of a row per image.
    """
    labels = labels > 0
    sigmoid = Sigmoid(logits, temperature or 1.0)
    scores = sigmoid.scores
    predicted = logits > 0
    # Raw outputs rank like scores, which are equal to each other where they are near 0 and 1.
    ranks = ranking(lambda i: logits[:, i], lambda i: labels[:, i], len(names), len(labels))
    chosen_here = label_thresholds is None
    best = best_thresholds(labels, scores) if chosen_here else np.asarray(label_thresholds)
    table = _per_label(names, labels, predicted, scores > best, ranks, best)
    f1_macro, f1_micro = bootstrap(_f1(labels, predicted), len(labels), seed=seed)
    exact = (predicted == labels).all(axis=1)
    document = {
        "task": "multi_label",
        "names": list(names),
        "images": len(labels),
        "map": ranks.macro_precision,
        "auc": ranks.macro_auc,
        "f1_macro": f1_macro,
        "f1_micro": f1_micro,
        "f1_macro_best": number(np.mean([row["f1_best"] for row in table.values()])),
        "exact": share(int(exact.sum()), len(exact)),
        "thresholds_chosen_here": chosen_here,
        "per_label": table,
        "one_class": [name for i, name in enumerate(names) if i not in ranks.ranked],
        "curves": ranks.curves(),
        "calibration": before_and_after(
            sigmoid, labels, attrgetter("scores"), labels, temperature, seed
        ),
        "mistakes": _mistakes(names, labels, predicted, scores, paths, most),
        "slices": {
            by: sliced(values, lambda at: {"exact": share(int(exact[at].sum()), len(at))})
            for by, values in (slices or {}).items()
        },
    }
    rows = {
        "labels": ["|".join(n for n, there in zip(names, row) if there) for row in labels],
        "predicted": ["|".join(n for n, there in zip(names, row) if there) for row in predicted],
        **{name: [f"{p:.6f}" for p in scores[:, i]] for i, name in enumerate(names)},
    }
    return document, rows


def best_thresholds(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Of each label [L] the probability above which F1 is highest on these images.

    0.5 where no image has the label.

    Args:
        labels: bool [N, L].
        scores: float [N, L].
    """
    from sklearn.metrics import precision_recall_curve

    best = np.full(labels.shape[1], 0.5)
    for i in np.flatnonzero(labels.any(axis=0)):
        precision, recall, thresholds = precision_recall_curve(labels[:, i], scores[:, i])
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        at = int(f1[:-1].argmax())
        # Half way to the next lower score: what is as good on these is not at the edge for others.
        below = thresholds[at - 1] if at else 0.0
        best[i] = (thresholds[at] + below) / 2
    return best


def _per_label(names, labels, predicted, at_best, ranks, best):
    right, support, found = (labels & predicted).sum(0), labels.sum(0), predicted.sum(0)
    f1_best = _f1_of((labels & at_best).sum(0), support, at_best.sum(0))
    table = {}
    for i, name in enumerate(names):
        recall = share(int(right[i]), int(support[i]))
        table[name] = {
            "average_precision": number(ranks.average_precision[i]),
            "auc": number(ranks.auc[i]),
            "precision": number(right[i] / max(found[i], 1)),
            "recall": recall["value"],
            "recall_low": recall["low"],
            "recall_high": recall["high"],
            "f1": number(_f1_of(right[i], support[i], found[i])),
            "support": int(support[i]),
            "threshold": number(best[i]),
            "f1_best": number(f1_best[i]),
        }
    return table


def _f1(labels, predicted):
    """Macro and micro F1, from how often each image is drawn."""
    columns = np.hstack([labels & predicted, labels, predicted]).astype("float64")

    def statistic(counts):
        right, support, found = np.split(counts @ columns, 3)
        return _f1_of(right, support, found).mean(), _f1_of(right.sum(), support.sum(), found.sum())

    return statistic


def _f1_of(right, support, found):
    return 2 * right / np.maximum(support + found, 1)


def _mistakes(names, labels, predicted, scores, paths, most):
    off = np.abs(scores - labels)
    wrong = np.flatnonzero((predicted != labels).ravel())
    order = wrong[np.argsort(-off.ravel()[wrong], kind="stable")[:most]]
    return [
        {
            "path": paths[i],
            "name": names[j],
            "there": bool(labels[i, j]),
            "score": number(scores[i, j]),
        }
        for i, j in zip(*np.unravel_index(order, off.shape))
    ]
