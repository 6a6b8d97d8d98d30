"""How far probabilities can be trusted, and the temperature and thresholds that improve them."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.evaluation.outputs import PROBABILITIES, Softmax, collect, resolve_views
from keras_transfer.evaluation.ranking import best_f1_thresholds, threshold_for_precision
from keras_transfer.utils.statistics import RESAMPLES, bootstrap, number, share

PRECISIONS = (0.9, 0.95, 0.99)
BINS = 15
_LEAST_IN_BIN = 20  # of the plot
_TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True)
class Calibration:
    """Temperatures and thresholds of a model, fitted on validation images.

    Attributes:
        split: the split on which they were fitted.
        images: number of images in it.
        tta: test-time augmentation used: None, `"mirror"` or a number of views.
        heads: name of each head with probabilities → plain data: `temperature`,
            `log_loss_before` and `log_loss_after`; for classes also `thresholds`, rows of
            `precision` and `threshold` (None if that precision is not reached); for labels also
            `label_thresholds`, the best threshold of each label for F1.
    """

    split: str
    images: int
    tta: str | int | None
    heads: dict[str, dict]

    def to_dict(self) -> dict:
        """Return plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> "Calibration":
        """Restore a calibration from `to_dict`.

        Raises:
            InputError: if the data is anything else.
        """
        try:
            return cls(data["split"], data["images"], data["tta"], dict(data["heads"]))
        except (KeyError, TypeError, ValueError):
            raise InputError(
                "Invalid calibration: write it again with `keras-transfer evaluate --calibrate`."
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
    """Fit temperatures, and thresholds on the resulting probabilities.

    Args:
        model: from `build_model`, trained.
        data: labeled images; the model must not have been trained on those of `split`.
        split: one of `data.examples`.
        tta, augmentation: test-time augmentation, see `outputs.resolve_views`.
        precisions: precisions for which thresholds are chosen, each in (0, 1].
        batch_size: images per batch.

    Raises:
        InputError: if the labels do not match the model's heads, the split does not exist, or a
            precision is out of range.
    """
    from keras_transfer.models.builders import by_head, check_targets, heads_of

    for precision in precisions:
        check_precision(precision)
    views, heads = resolve_views(tta, augmentation, data.modality), heads_of(model)
    data = check_targets(heads, data)
    labels, outputs = collect(model, data, split, batch_size=batch_size, views=views)
    labels, outputs = by_head(heads, labels), by_head(heads, outputs)
    fitted = {
        name: calibrate_head(head.task, labels[name], outputs[name], precisions)
        for name, head in heads.items()
        if head.task in PROBABILITIES
    }
    return Calibration(split, len(data.examples[split]), tta, fitted)


def check_precision(precision: float, tasks: Collection[str] = ("single_label",)) -> None:
    """Raise InputError if the precision is out of range or none of the tasks is single-label."""
    if not 0 < precision <= 1:
        raise InputError(
            f"Invalid precision {precision:g}: it must be above 0 and at most 1, such as 0.99."
        )
    if "single_label" not in tasks:
        raise InputError(
            "A precision requires a head with one class per example; this model has only "
            f"{', '.join(tasks)}."
        )


def calibrate_head(
    task: str, labels: np.ndarray, logits: np.ndarray, precisions: Sequence[float] = PRECISIONS
) -> dict:
    """Return the entry of `Calibration.heads` for one head.

    Args:
        task: `"single_label"` or `"multi_label"`.
        labels: int [N], or 0/1 [N, L].
        logits: float32 [N, C], finite.
        precisions: each in (0, 1].
    """
    probabilities = PROBABILITIES[task]
    temperature = fit_temperature(task, logits, labels)
    after = probabilities(logits, temperature)
    fitted: dict[str, Any] = {
        "temperature": temperature,
        "log_loss_before": probabilities(logits).log_loss(labels),
        "log_loss_after": after.log_loss(labels),
    }
    confidence, truth = after.confidence_and_truth(labels)
    if isinstance(after, Softmax):
        fitted["thresholds"] = [
            {"precision": p, "threshold": threshold_for_precision(confidence, truth, p)}
            for p in sorted(set(precisions))
        ]
    else:
        fitted["label_thresholds"] = best_f1_thresholds(truth, confidence).tolist()
    return fitted


def fit_temperature(task: str, logits: np.ndarray, labels: np.ndarray) -> float:
    """Find the temperature with the lowest log loss on images that were not trained on.

    Temperature scaling changes the confidence but not the predictions (Guo et al. 2017,
    arXiv:1706.04599). The search is over log T, 0.05 ≤ T ≤ 20.

    Args:
        task: `"single_label"` (softmax) or `"multi_label"` (sigmoid).
        logits: float [N, C].
        labels: int [N], or 0/1 [N, C].

    Returns:
        T, or 1.0 if the loss has no minimum in that range or every prediction is correct: more
        confidence is then always better, so the right amount is unknown.
    """
    from scipy.optimize import minimize_scalar

    right = (logits > 0) == (labels > 0) if task == "multi_label" else logits.argmax(1) == labels
    if right.all():
        return 1.0
    log_range = np.log(_TEMPERATURES)
    result = minimize_scalar(
        lambda log_t: PROBABILITIES[task](logits, np.exp(log_t)).log_loss(labels),
        bounds=log_range,
        method="bounded",
        options={"xatol": 1e-4},
    )
    if np.abs(result.x - log_range).min() < 1e-2:
        return 1.0
    return float(np.exp(result.x))


# -- measuring calibration ------------------------------------------------------------------------


def calibration_report(probabilities, labels: np.ndarray, temperature: float | None) -> dict:
    """Measure calibration without and with a temperature.

    Args:
        probabilities: `Softmax` or `Sigmoid` with that temperature.
        labels: int [N], or 0/1 [N, L].
        temperature: None if none was fitted.

    Returns:
        `temperature`, `before` and `after`, each with `log_loss`, `brier` and the result of
        `reliability`; `after` is None without a temperature.
    """

    def measure(probabilities):
        return {
            "log_loss": probabilities.log_loss(labels),
            "brier": probabilities.brier(labels),
            **reliability(*probabilities.confidence_and_truth(labels)),
        }

    final = measure(probabilities)
    if temperature is None:
        return {"temperature": None, "before": final, "after": None}
    before = measure(type(probabilities)(probabilities.logits))
    return {"temperature": temperature, "before": before, "after": final}


def reliability(confidence: np.ndarray, correct: np.ndarray, *, seed: int = 0) -> dict:
    """Compare the confidence of predictions with how often they are correct.

    Args:
        confidence: probabilities in [0, 1], float [N], or [N, L] for L labels per image.
        correct: whether each predicted event occurred, bool or 0/1, the same shape.
        seed: of the resampling.

    Returns:
        Plain data: `ece`, the expected calibration error Σ_b n_b/n · |correct_b − confidence_b|
        over 15 bins of equal width (Naeini et al. 2015; Guo et al. 2017), and `ece_adaptive`, over
        bins with equal numbers of images as far as ties allow (Nguyen and O'Connor 2015). Both have
        bootstrap intervals and `by_chance`: the error that a perfectly calibrated model stays below
        in 95 of 100 such samples (consistency resampling, Bröcker and Smith 2007), because the
        error of a sample is never 0. Up to that value the interval begins at 0. `bins`, for a plot,
        lists at most 15 bins of about equally many predictions, at least 20 if there are: `low`,
        `high`, `count`, `confidence` (mean) and `right` (share of correct predictions, with its
        Wilson interval).
    """
    confidence, correct = np.asarray(confidence, "float64"), np.asarray(correct, "float64")
    images, per_image = len(confidence), confidence[0].size
    even = np.linspace(0, 1, BINS + 1)
    binned = [_gaps(confidence, correct, edges) for edges in (even, _adaptive_edges(confidence))]

    def errors(counts):
        return [np.abs(counts @ gaps).sum() / (counts.sum() * per_image) for gaps, _ in binned]

    ece, adaptive = bootstrap(errors, images, seed=seed)
    for error, (_, bins) in zip((ece, adaptive), binned):
        error["by_chance"] = _error_by_chance(confidence, bins, seed)
        if error["low"] is not None and error["value"] <= error["by_chance"]:
            error["low"] = 0.0
    order = np.argsort(confidence.reshape(-1), kind="stable")
    confidence, correct = confidence.reshape(-1)[order], correct.reshape(-1)[order]
    rows = [
        {
            "low": number(confidence[start]),
            "high": number(confidence[end - 1]),
            "count": end - start,
            "confidence": number(confidence[start:end].mean()),
            "right": share(int(correct[start:end].sum()), end - start),
        }
        for start, end in pairwise(_plotted_bins(confidence))
    ]
    return {"ece": ece, "ece_adaptive": adaptive, "bins": rows}


def _plotted_bins(confidence) -> list[int]:
    """Return where bins of sorted confidences begin, and their number; equal ones share a bin."""
    count = len(confidence)
    wanted = max(1, min(BINS, count // _LEAST_IN_BIN))
    starts = [0]
    for start in range(1, count):
        far = start - starts[-1] >= count / wanted and count - start >= _LEAST_IN_BIN
        if far and confidence[start] > confidence[start - 1]:
            starts.append(start)
    return [*starts, count]


def _adaptive_edges(confidence):
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, BINS + 1)))
    return edges if len(edges) > 1 else np.repeat(edges, 2)


def _gaps(confidence, correct, edges):
    """Return (Σ of confidence − correct for each image and bin [N, B], bin of each confidence)."""
    bins = np.clip(np.searchsorted(edges, confidence) - 1, 0, len(edges) - 2)
    gaps = np.zeros((len(confidence), len(edges) - 1))
    rows = np.arange(len(confidence)).reshape(-1, *(1,) * (confidence.ndim - 1))
    np.add.at(gaps, (np.broadcast_to(rows, bins.shape), bins), confidence - correct)
    return gaps, bins


def _error_by_chance(confidence, bins, seed):
    """Return the 95 % quantile of the error if every prediction were correct with its probability.

    The sum over a bin then has the variance Σ p (1 − p) and is approximated as normal.
    """
    spread = np.sqrt(np.bincount(bins.reshape(-1), (confidence * (1 - confidence)).reshape(-1)))
    drawn = np.random.default_rng(seed).standard_normal((RESAMPLES, len(spread))) * spread
    return number(np.quantile(np.abs(drawn).sum(axis=1), 0.95) / confidence.size)
