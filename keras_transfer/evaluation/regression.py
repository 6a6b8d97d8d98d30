"""Everything that is measured of a head that gives numbers, as plain data."""

from collections.abc import Mapping, Sequence

import numpy as np

from keras_transfer.evaluation.slices import sliced
from keras_transfer.utils.statistics import bootstrap, number


def measure_values(
    names: Sequence[str],
    labels: np.ndarray,
    values: np.ndarray,
    paths: Sequence[str],
    *,
    slices: Mapping[str, Sequence[str]] | None = None,
    most: int = 50,
    seed: int = 0,
) -> tuple[dict, dict]:
    """Measures numbers.

    Args:
        labels, values: float [N, D], N ≥ 1, in the targets' units.
        paths, slices, most, seed: as in `classes.measure_classes`.

    Returns:
        The document (see docs/evaluation.md), and columns of a row per image.
    """
    labels, values = labels.astype("float64"), values.astype("float64")
    errors = values - labels
    table = _per_target(names, labels, errors, seed)
    # Each target's errors on its own scale: years and grams are not compared.
    scale = np.maximum(labels.std(axis=0), np.abs(errors).mean(axis=0))
    relative = np.abs(errors) / np.where(scale > 0, scale, 1)

    def of_slice(at):
        return {f"mae_{name}": number(np.abs(errors[at, i]).mean()) for i, name in enumerate(names)}

    document = {
        "task": "regression",
        "names": list(names),
        "images": len(labels),
        "per_target": table,
        "mistakes": [
            {
                "path": paths[i],
                "name": names[j],
                "label": number(labels[i, j]),
                "value": number(values[i, j]),
                "error": number(errors[i, j]),
            }
            for i, j in zip(*np.unravel_index(_largest(relative, most), relative.shape))
        ],
        "slices": {by: sliced(parts, of_slice) for by, parts in (slices or {}).items()},
    }
    rows = {}
    for i, name in enumerate(names):
        rows[name] = [f"{x:.9g}" for x in labels[:, i]]
        rows[f"{name}_predicted"] = [f"{x:.9g}" for x in values[:, i]]
    return document, rows


def _per_target(names, labels, errors, seed):
    """`mae`, `rmse`, `r2` and `bias` of each target, with bootstrap intervals."""
    # About the mean: squares of numbers far from zero would leave nothing but rounding.
    centred = labels - labels.mean(axis=0)
    columns = np.hstack([np.abs(errors), np.square(errors), errors, centred, np.square(centred)])
    flat = np.ptp(labels, axis=0) == 0

    def statistic(counts):
        absolute, squared, bias, mean, square = np.split(counts @ columns / counts.sum(), 5)
        spread = np.where(flat, 0, square - mean**2)
        with np.errstate(divide="ignore", invalid="ignore"):
            r2 = np.where(spread > 1e-12 * square, 1 - squared / spread, np.nan)
        return np.concatenate([absolute, np.sqrt(squared), r2, bias])

    d = len(names)
    highest = np.repeat([np.inf, np.inf, 1.0, np.inf], d)
    lowest = np.repeat([0.0, 0.0, -np.inf, -np.inf], d)
    found = bootstrap(statistic, len(labels), highest=highest, lowest=lowest, seed=seed)
    kinds = ("mae", "rmse", "r2", "bias")
    return {
        name: {kind: found[k * d + i] for k, kind in enumerate(kinds)}
        for i, name in enumerate(names)
    }


def _largest(relative, most):
    return np.argsort(-relative.ravel(), kind="stable")[:most]
