"""How good outputs are, example by example, for every task: the table that evidence and race share."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from scipy.special import log_softmax

from keras_transfer.data.examples import map_labels


def _log_loss(outputs, labels):
    return -log_softmax(outputs, axis=1)[np.arange(len(labels)), labels]


def _label_loss(outputs, labels):
    return np.nanmean(np.logaddexp(0, outputs) - labels * outputs, axis=1)


def _squared_error(outputs, targets):
    return np.nanmean(np.square(outputs - targets), axis=1)


def _right(outputs, labels):
    return (outputs.argmax(axis=1) == labels).astype("float64")


def _labels_right(outputs, labels):
    right = (outputs > 0) == (labels > 0)
    return np.nanmean(np.where(np.isnan(outputs), np.nan, right), axis=1)


def _explained(outputs, targets):
    return 1 - _squared_error(outputs, targets)


_SIGNAL_ERRORS = 2.0  # standard errors by which groups must beat a constant answer
_PERMUTATIONS, _BY_CHANCE = 199, 0.025  # of labels; share of data sets without a signal that pass
_FEW_GROUPS = 10  # fewer than these tell little about how groups vary


@dataclass(frozen=True)
class Measure:
    """How the outputs of a head are judged.

    Attributes:
        loss: (outputs [N, C], targets) → loss of each example [N]; what decides.
        score: the same → a number whose mean people know; higher is better.
        name: of the score.
    """

    loss: Callable[[np.ndarray, np.ndarray], np.ndarray]
    score: Callable[[np.ndarray, np.ndarray], np.ndarray]
    name: str


# Targets of numbers, and outputs, are in standard deviations of the training targets.
MEASURES = {
    "single_label": Measure(_log_loss, _right, "accuracy"),
    "multi_label": Measure(_label_loss, _labels_right, "share of labels right"),
    "regression": Measure(_squared_error, _explained, "R²"),
}


@dataclass(frozen=True, eq=False)
class Judged:
    """Losses and scores of some outputs, the mean over the heads.

    Attributes:
        losses, scores: of each example, float64 [N]; NaN where they were not measured.
    """

    losses: np.ndarray
    scores: np.ndarray

    @property
    def loss(self) -> float:
        """Mean loss of the measured examples."""
        return float(np.nanmean(self.losses))

    @property
    def score(self) -> float:
        """Their mean score, at most 1."""
        return float(np.nanmean(self.scores))


def judge(heads: dict, labels, outputs) -> Judged:
    """Judge outputs of linear layers: logits, or standardized numbers.

    Args:
        heads: name → fitted head, see `heads_of`.
        labels: of the examples, in the units of the data.
        outputs: float [N, C], or a dict of them; rows of NaN are not measured.
    """
    from keras_transfer.models.builders import by_head  # imports Keras

    losses: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    labels, outputs = by_head(heads, labels), by_head(heads, outputs)
    for name, head in heads.items():
        measure, found = MEASURES[head.task], np.asarray(outputs[name], "float64")
        targets = np.asarray(head.from_units(labels[name]))
        known = np.isfinite(found).any(axis=1)
        for values, function in ((losses, measure.loss), (scores, measure.score)):
            each = np.full(len(found), np.nan)
            each[known] = function(found[known], targets[known])
            values.append(each)
    return Judged(np.mean(losses, axis=0), np.mean(scores, axis=0))


def score_name(heads: dict) -> str:
    """Return what the score of these heads is called."""
    names = dict.fromkeys(MEASURES[head.task].name for head in heads.values())
    return names.popitem()[0] if len(names) == 1 else "mean score"


def plain_difference(gap: tuple[float, float] | None) -> dict:
    """Return a difference as plain data for JSON, which has no infinity."""
    mean, error = gap or (None, None)
    return {"behind": mean, "error": None if error is None or np.isinf(error) else error}


def difference_text(plain: dict) -> str:
    """Return such plain data as text, "" where there was nothing to compare with."""
    if plain["behind"] is None:
        return ""
    error = "?" if plain["error"] is None else f"{plain['error']:.3f}"
    return f"{plain['behind']:+.3f} ± {error}"


def difference(losses: np.ndarray, others: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Return (mean of losses − others, its standard error), example by example.

    Args:
        losses, others: float [N]; pairs with NaN are left out.
        groups: int [N]; examples of one group count as one, but a few groups that agree by chance make the
            error no smaller than that of the examples. The error of a single group is infinite.
    """
    gaps = losses - others
    known = np.isfinite(gaps)
    gaps, groups = gaps[known], np.unique(groups[known], return_inverse=True)[1]
    count = len(np.unique(groups))
    if count < 2:
        return float(gaps.mean()) if count else 0.0, np.inf
    mean = gaps.mean()
    sums = np.bincount(groups, gaps - mean)
    spread = np.square(sums).sum() * count / (count - 1)
    if count < _FEW_GROUPS:
        spread = max(spread, np.square(gaps - mean).sum())
    return float(mean), float(np.sqrt(spread) / len(gaps))


def constant_losses(heads: dict, labels) -> np.ndarray:
    """Return the losses [N] of an answer that is the same for every example."""
    from keras_transfer.models.builders import by_head  # imports Keras

    outputs = {}
    for name, values in by_head(heads, labels).items():
        head = heads[name]
        targets = np.asarray(head.from_units(values), "float64")
        if head.task == "single_label":
            row = np.log(np.bincount(values) / len(values))
        elif head.task == "multi_label":
            share = (targets.sum(axis=0) + 0.5) / (len(targets) + 1)
            row = np.log(share / (1 - share))
        else:
            row = targets.mean(axis=0)
        outputs[name] = np.tile(row, (len(targets), 1))
    return judge(heads, labels, outputs).losses


def is_signal(heads: dict, labels, outputs: dict, groups: np.ndarray, seed: int) -> bool:
    """Return whether held-out outputs fit the labels better than by chance, in 39 of 40 cases.

    The labels are permuted: a log loss hardly below that of a constant answer, as where one class is
    rare, may be far below that of wrong labels. Of groups, whose examples are alike, the loss must be
    below that of a constant answer by two standard errors.

    Args:
        labels, outputs: see `judge`.
        groups: int [N].
    """
    losses, count = judge(heads, labels, outputs).losses, len(groups)
    if len(np.unique(groups)) < count:
        gap, error = difference(losses, constant_losses(heads, labels), groups)
        return bool(gap < -_SIGNAL_ERRORS * error)
    rng, loss, by_chance = np.random.default_rng(seed), np.nanmean(losses), 0
    for _ in range(_PERMUTATIONS):
        permuted = map_labels(itemgetter(rng.permutation(count)), labels)
        by_chance += int(judge(heads, permuted, outputs).loss <= loss)
    return (by_chance + 1) / (_PERMUTATIONS + 1) <= _BY_CHANCE
