"""All metrics of a regression head, as plain data."""

from collections.abc import Mapping, Sequence

import numpy as np

from keras_transfer.evaluation.slices import measure_slices
from keras_transfer.utils.statistics import bootstrap, number


def measure_values(
    names: Sequence[str],
    labels: np.ndarray,
    values: np.ndarray,
    paths: Sequence[str],
    *,
    slices: Mapping[str, Sequence[str]] | None = None,
    most: int = 50,
) -> tuple[dict, dict]:
    """Measure predicted numbers.

    Args:
        names: the D targets.
        labels, values: true and predicted numbers, float [N, D], N ≥ 1, in the targets' units.
        paths, slices, most: as in `multiclass.measure_classes`; the mistakes are the largest
            errors.

    Returns:
        The document (see docs/evaluation.md), and columns with one row per image.
    """
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
    rows = {}
    for i, name in enumerate(names):
        rows[name] = [f"{x:.9g}" for x in labels[:, i]]
        rows[f"{name}_predicted"] = [f"{x:.9g}" for x in values[:, i]]
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
