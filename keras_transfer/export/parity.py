"""Whether an exported model answers as the Keras model does, and what it loses where it does not."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.models.heads import Head

LEAST_AGREEMENT = 0.99  # of a float export
MOST_LOST = 0.02  # of an int8 export
ROUNDING, HALF_ROUNDING = 1e-3, 2e-2  # of scores that were computed in float32, and in 16 bits
_SAME_VALUE = 0.01  # of a target's spread


class ParityError(RuntimeError):
    """The exported model does not answer like the Keras model; nothing was exported."""


@dataclass(frozen=True)
class Parity:
    """How an exported model's answers compare with the Keras model's on the same images.

    Attributes:
        images: how many were asked for.
        of: what they were: a split of the data, or "noise".
        refused: how many of them the exported model cannot read (see docs/data-check.md).
        labelled: whether `quality` is measured on labels; otherwise the Keras model's answers stand
            for them.
        agreement: name of each head → share of equal decisions, in [0, 1]: the same class, the same
            side of 0.5 of each label, numbers apart by at most 1 % of their standard deviation.
        difference: the largest difference of two scores.
        quality: name of each head → (the Keras model's, the exported one's): accuracy; of labels the
            share of right ones; of numbers 1 − mean absolute error over standard deviation.
        answers: name of each head → how many different decisions the Keras model made: where it always
            gives the same one, so does an export that sees nothing.
    """

    images: int
    of: str
    refused: int
    labelled: bool
    agreement: dict[str, float]
    difference: float
    quality: dict[str, tuple[float, float]]
    answers: dict[str, int]

    @property
    def lost(self) -> float:
        """The most that a head loses, in shares: 0.02 are two points of accuracy."""
        return max(before - after for before, after in self.quality.values())

    def text(self) -> str:
        """One line."""
        answers = f"same answer for {100 * min(self.agreement.values()):.2f} %"
        if self.labelled:
            accuracy = ", ".join(f"{a:.4f} → {b:.4f}" for a, b in self.quality.values())
            answers += f", accuracy {accuracy}"
        if min(self.answers.values()) == 1:
            answers += " (the Keras model gives all of them one answer, which says little)"
        refused = f", {self.refused} of them cannot be read" if self.refused else ""
        return (
            f"{answers}, scores apart by at most {self.difference:.2g} "
            f"({self.images} images of {self.of}{refused})"
        )


def compare(
    heads: Mapping[str, Head],
    expected: Mapping[str, np.ndarray],
    got: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray] | None,
    *,
    of: str,
    answered: np.ndarray | None = None,
) -> Parity:
    """Compares scores [N, C] of each head with those of the Keras model, and both with labels.

    Args:
        labels: as the heads take them; None where they are not known.
        of: what the images are.
        answered: bool [N]: the images that count; by default all.
    """
    count = len(next(iter(expected.values())))
    rows = np.ones(count, bool) if answered is None else answered
    if not rows.any():
        raise ParityError(f"The exported model could read none of {count} images of {of}.")
    agreement, quality, answers, difference = {}, {}, {}, 0.0
    for name, head in heads.items():
        before, after = (np.asarray(x[name], "float64")[rows] for x in (expected, got))
        if not np.isfinite(after).all():
            raise ParityError(f"The exported model gives no finite numbers for images of {of}.")
        difference = max(difference, float(np.abs(before - after).max(initial=0)))
        decisions = _DECISIONS[head.task](before)
        answers[name] = len(np.unique(decisions, axis=0))
        truth = decisions if labels is None else np.asarray(labels[name])[rows]
        if head.task == "regression":
            spread = truth.std(axis=0)
            spread = np.where(spread > 0, spread, 1.0)
            agreement[name] = float((np.abs(before - after) <= _SAME_VALUE * spread).mean())
            right = [float(1 - (np.abs(x - truth) / spread).mean()) for x in (before, after)]
        else:
            other = _DECISIONS[head.task](after)
            agreement[name] = float((decisions == other).mean())
            right = [float((x == truth).mean()) for x in (decisions, other)]
        quality[name] = (right[0], right[1])
    refused, labelled = int((~rows).sum()), labels is not None
    return Parity(count, of, refused, labelled, agreement, difference, quality, answers)


_DECISIONS = {
    "single_label": lambda scores: scores.argmax(axis=1),
    "multi_label": lambda scores: (scores > 0.5).astype(int),
    "regression": lambda scores: scores,
}


def require_parity(parity: Parity, what: str, rounding: float = ROUNDING) -> None:
    """Raises ParityError where a float export has less than 99 % of the same answers.

    Args:
        rounding: scores that are no further apart than this are the same, even where two classes are so
            close that another one is in front.
    """
    if parity.difference <= rounding or min(parity.agreement.values()) >= LEAST_AGREEMENT:
        return
    raise ParityError(
        f"The exported {what} does not answer like the Keras model: {parity.text()}; at least "
        f"{100 * LEAST_AGREEMENT:g} % are wanted. Nothing was exported. Please report this."
    )


def require_quality(parity: Parity, what: str, most_lost: float = MOST_LOST) -> None:
    """Raises InputError where an int8 export loses more than `most_lost`."""
    if not parity.lost <= most_lost:
        raise InputError(
            f"The {what} in int8 loses {100 * parity.lost:.1f} points, more than "
            f"{100 * most_lost:g}: {parity.text()}. Nothing was exported. Export it without int8, "
            "or allow the loss with --max-loss."
        )
