"""All scores of features on labels, with the verdict whether there is a signal at all."""

import numpy as np

from keras_transfer.advisor.transferability.formulas import LEEP, NCE, HScore, LogME, Neighbours
from keras_transfer.advisor.transferability.probe import probe
from keras_transfer.advisor.transferability.table import Score, Scores, sample_of
from keras_transfer.errors import InputError
from keras_transfer.utils.console import progress_bar

_SHUFFLES = 99
_ROUNDING = 1e-9
_ONE_EACH = "no class has two images"


def score_features(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    probabilities: np.ndarray | None = None,
    name: str = "features",
    prior: dict | None = None,
    shuffles: int = _SHUFFLES,
    seed: int = 0,
) -> Scores:
    """How well features suit labels, in up to six ways (see `formulas` and `probe`).

    The verdict is a permutation test: the labels are shuffled `shuffles` times, and there is a
    signal where the larger of two statistics, LogME (linear) and nearest neighbours (local), each in
    standard deviations over its shuffles, is above the same of at least 99 in 100 shuffles. The
    mean over the shuffles is what chance gives, shown beside each score.

    Args:
        features: any float [N, D].
        labels: int [N], at least two different ones.
        groups: int [N], rows of one image (copies, views); by default each row is its own.
        probabilities: float [N, Z] of a source model's own classes on the same rows, each row
            sums to 1: adds LEEP and NCE.
        name: of the backbone.
        prior: what is known of it without the data, e.g. `{"parameters": 410208}`.
        shuffles: at least 99.
        seed: of shuffles and folds. Scores are compared that have the same.

    Raises:
        InputError: shapes that do not fit, values that are not finite, or a single class.
    """
    from threadpoolctl import threadpool_limits

    rows = np.asarray(features).astype("float64")
    labels, groups = _checked(rows, labels, groups, shuffles)
    rows = _unit_scale(rows)
    theta = None if probabilities is None else _checked_probabilities(probabilities, len(labels))
    # The labels themselves come first, the shuffles after.
    labelings = np.stack([labels, *_shuffled(labels, groups, shuffles, seed)])
    # BLAS on one core: where others use the cores too, it waits for them longer than it computes.
    with threadpool_limits(1, "blas"):
        found, values = {"probe": _probe(rows, labels, groups, seed)}, {}
        measures = _measures(rows, groups, theta)
        for key, make in progress_bar(measures.items(), name, unit="scores"):
            measure = make()
            values[key] = measure.values(labelings)
            found[key] = Score.of(
                values[key][0],
                measure.parts(labels),
                groups,
                chance=float(values[key][1:].mean()),
                share=key == "knn",
            )
    return Scores(
        name=name,
        scores=found,
        images=len(np.unique(groups)),
        classes=int(labels.max()) + 1,
        width=rows.shape[1],
        statistics=np.max([_standardised(values[key]) for key in ("knn", "logme")], axis=0),
        prior=prior or {},
        sample=sample_of(labels, groups, shuffles, seed),
    )


def _measures(rows, groups, theta):
    """Name → what makes the score: its matrices are in memory only while it is computed."""
    measures = {
        "knn": lambda: Neighbours(rows, groups),
        "logme": lambda: LogME(rows),
        "h_score": lambda: HScore(rows),
    }
    if theta is not None:
        measures |= {"leep": lambda: LEEP(theta), "nce": lambda: NCE(theta)}
    return measures


def _probe(rows, labels, groups, seed):
    right = probe(rows.astype("float32"), labels, groups, seed=seed)
    if right is None:
        return Score(None, note=_ONE_EACH)
    chance = float(np.bincount(labels).max() / len(labels))
    return Score.of(float(right.mean()), right, groups, chance=chance, share=True)


def _shuffled(labels, groups, shuffles, seed):
    """Labelings in which the images (not the rows) swapped their labels."""
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    rng = np.random.default_rng(seed)
    for _ in range(shuffles):
        yield labels[first][rng.permutation(len(first))][group]


def _standardised(values):
    """In standard deviations over all; zeros where they differ by rounding only."""
    spread = values.std()
    if spread <= _ROUNDING * max(1.0, np.abs(values).max()):
        return np.zeros(len(values))
    return (values - values.mean()) / spread


def _unit_scale(rows):
    """Divided by their root mean square: the scores do not depend on it, the arithmetic does."""
    rows = rows / max(np.abs(rows).max(), 1e-300)
    return rows / max(np.sqrt(np.square(rows).mean()), 1e-300)


def _checked(rows, labels, groups, shuffles):
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(f"Features must be [N, D] with N and D at least 1, not {rows.shape}.")
    labels = np.asarray(labels)
    groups = np.arange(len(rows)) if groups is None else np.asarray(groups)
    if labels.shape != (len(rows),) or groups.shape != (len(rows),):
        raise InputError(
            f"{len(rows)} rows of features need as many labels and groups, one each, not "
            f"{labels.shape} and {groups.shape}."
        )
    if labels.dtype.kind not in "iu":
        raise InputError(f"Labels must be whole numbers (one class per image), not {labels.dtype}.")
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows).all(axis=1)).sum())
        raise InputError(f"Features of {bad} images are not finite: compute them in float32.")
    names, labels = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise InputError("All images are of one class: a score needs two classes or more.")
    if shuffles < _SHUFFLES:
        raise InputError(f"shuffles is {shuffles}: fewer than {_SHUFFLES} cannot tell a signal.")
    # An image that lies in two classes counts as two: images swap whole labels.
    pairs = np.stack([np.unique(groups, return_inverse=True)[1], labels], axis=1)
    return labels, np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)


def _checked_probabilities(probabilities, count):
    theta = np.asarray(probabilities).astype("float64")
    if theta.ndim != 2 or len(theta) != count:
        raise InputError(
            f"Probabilities must be [{count}, Z] like the features, not {theta.shape}."
        )
    # Half precision is off by 0.01 over a thousand classes.
    if (
        not (np.isfinite(theta).all() and (theta >= 0).all())
        or (np.abs(theta.sum(axis=1) - 1) > 0.02).any()
    ):
        raise InputError("Probabilities must be 0 or more and sum to 1 in each row: give softmax.")
    return theta / theta.sum(axis=1, keepdims=True)
