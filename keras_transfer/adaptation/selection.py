"""Scores of epochs (or methods) without target labels, and the choice among them.

All scores are computed from the predictions of a model for unlabelled target images. None of them is
the accuracy, and a model that is confidently wrong fools them all. Therefore epochs can be vetoed, and
`last` is reported next to `selected` (the choice of a validator moves published results more than the
choice of a method, arXiv:2111.15672).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.utils.console import Table
from keras_transfer.utils.names import lazy_names

_TEMPERATURE = 0.05  # of the softmax over neighbors in SND
_ROWS = 1024  # similarities are computed in blocks of this many rows
_MOST_NEIGHBORS = 5000  # target images used by SND, evenly spaced


def information_maximization(probabilities: np.ndarray) -> float:
    """Return entropy + diversity, H(mean p) − mean H(p): the mutual information of images and predictions.

    SHOT maximizes it (Liang et al., arXiv:2002.08546): each prediction certain, all together diverse.

    Args:
        probabilities: float [N, C], rows that sum to 1.

    Returns:
        Nats, from 0 (identical predictions) to ln C (certain predictions, equally frequent classes).
    """
    p = _checked(probabilities)
    return float(_entropy(p.mean(axis=0)) - _entropy(p).mean())


def batch_nuclear_norm(probabilities: np.ndarray) -> float:
    """Return the sum of the singular values of the predictions [N, C], divided by N (BNM,
    arXiv:2003.12237).

    Like `information_maximization` it is high for certain and diverse predictions, but it expects
    less of rare classes. It is at most √(C / N), so compare it for equal numbers of images only.
    """
    p = _checked(probabilities)
    return float(np.linalg.norm(p, "nuc") / len(p))


def soft_neighborhood_density(features: np.ndarray, temperature: float = _TEMPERATURE) -> float:
    """Return the mean entropy of the softmax over each image's similarities to all others (SND).

    Saito et al., arXiv:2108.10860. It is high if images form dense groups, so that many neighbors
    are equally near. It is also high if all images coincide, so it does not detect collapse.

    Args:
        features: float [N, D], N ≥ 2: probabilities [N, C] as in the paper, or any features. Of more
            than 5000 rows, evenly spaced ones are used.
        temperature: divides the cosine similarities, > 0.

    Returns:
        Nats, from 0 to ln(N − 1).

    Raises:
        InputError: fewer than two rows.
    """
    x = np.asarray(features, "float64")
    if x.ndim != 2 or len(x) < 2:
        raise InputError(f"SND needs features [N, D] of at least two images, not {x.shape}.")
    x = x[:: -(-len(x) // _MOST_NEIGHBORS)]
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    total = 0.0
    for start in range(0, len(x), _ROWS):
        similar = x[start : start + _ROWS] @ x.T / temperature
        rows = np.arange(len(similar))
        similar[rows, start + rows] = -np.inf  # an image is not its own neighbour
        weights = np.exp(similar - similar.max(axis=1, keepdims=True))
        total += _entropy(weights / weights.sum(axis=1, keepdims=True)).sum()
    return float(total / len(x))


def effective_classes(shares: np.ndarray) -> float:
    """Return exp of the entropy of shares (or counts) [C]: the equivalent number of equally frequent
    classes."""
    shares = np.asarray(shares, "float64")
    return float(np.exp(_entropy(shares / shares.sum())))


CRITERIA: dict[str, Callable[[np.ndarray], float]] = {
    "information": information_maximization,
    "nuclear_norm": batch_nuclear_norm,
    "density": soft_neighborhood_density,
}
DEFAULT_CRITERIA = ("information", "nuclear_norm")


def mean_ranks(scores: Sequence[Sequence[float]]) -> np.ndarray:
    """Return the mean rank of each candidate over criteria (Borda count); lower is better.

    Args:
        scores: [K, E], K criteria for E candidates; higher is better.

    Returns:
        float [E], from 1; equal scores share their mean rank.
    """
    from scipy.stats import rankdata

    return rankdata(-np.asarray(scores, "float64"), axis=1).mean(axis=0)


@dataclass(frozen=True)
class EpochScores:
    """Scores of an epoch without target labels.

    Attributes:
        epoch: its number.
        source_accuracy: on validation images of the source, 0–1; None without a source.
        information, nuclear_norm, density: of the target predictions, see the functions.
        classes: number of predicted classes, see `effective_classes`.
        images: number of scored target images.
    """

    epoch: int
    source_accuracy: float | None
    information: float
    nuclear_norm: float
    density: float
    classes: float
    images: int


class Selector:
    """Record the scores of the epochs of a run, and choose one of them.

    There are three separate choices: `last`, the cautious default; `selected`, the best mean rank over
    the criteria among epochs without a veto; and `oracle`, the highest accuracy on target labels, for
    reports only. The accuracies for the oracle are stored apart from the scores, and neither
    `selected` nor `candidates` depends on them.

    An epoch is vetoed if the model has forgotten the source (its validation accuracy is more than
    `tolerance` below the reference) or if its predictions collapse (to less than half as many
    classes as the source has, or to a single one).

    Args:
        source_shares: share or number of source images in each class [C].
        source_accuracy: of a model trained on the source alone, the reference of the veto; by default
            that of the best epoch of this run.
        tolerance: 0–1.
        criteria: names from `CRITERIA` to rank by.

    Raises:
        InputError: an unknown criterion, or an empty list.
    """

    def __init__(
        self,
        source_shares: Sequence[float],
        *,
        source_accuracy: float | None = None,
        tolerance: float = 0.05,
        criteria: Sequence[str] = DEFAULT_CRITERIA,
    ):
        unknown = [name for name in criteria if name not in CRITERIA]
        if unknown or not criteria:
            raise InputError(
                f"Cannot select by {', '.join(unknown) or 'nothing'}: choose from "
                f"{', '.join(CRITERIA)}."
            )
        self.source_shares = [float(share) for share in source_shares]
        self.source_accuracy, self.tolerance = source_accuracy, tolerance
        self.criteria = tuple(criteria)
        self.scores: list[EpochScores] = []
        self._target_accuracy: dict[int, float] = {}

    def add(
        self, epoch: int, source_accuracy: float | None, target_probabilities: np.ndarray
    ) -> EpochScores:
        """Score an epoch.

        Args:
            epoch: its number, higher than the previous one.
            source_accuracy: on validation images of the source, 0–1; None for a method that abandons
                the source (SHOT, AdaBN), which then causes no veto.
            target_probabilities: float [N, C], predictions for the same unlabelled target images
                each time.

        Raises:
            InputError: invalid probabilities, or an epoch that was added before.
        """
        p = _checked(target_probabilities)
        if p.shape[1] != len(self.source_shares):
            raise InputError(
                f"The probabilities have {p.shape[1]} classes, the source has "
                f"{len(self.source_shares)}."
            )
        if self.scores and epoch <= self.scores[-1].epoch:
            raise InputError(f"Epoch {epoch} does not come after epoch {self.scores[-1].epoch}.")
        values = {name: score(p) for name, score in CRITERIA.items()}
        classes = effective_classes(np.bincount(p.argmax(axis=1), minlength=p.shape[1]))
        source = None if source_accuracy is None else float(source_accuracy)
        scores = EpochScores(epoch, source, classes=classes, images=len(p), **values)
        self.scores.append(scores)
        return scores

    def report(self, epoch: int, target_accuracy: float) -> None:
        """Record an accuracy on target labels, 0–1, for `oracle` only."""
        self._target_accuracy[epoch] = float(target_accuracy)

    def back_to(self, epoch: int) -> None:
        """Forget later epochs, because a killed run continues after this one."""
        self.scores = [scores for scores in self.scores if scores.epoch <= epoch]
        reports = self._target_accuracy.items()
        self._target_accuracy = {e: value for e, value in reports if e <= epoch}

    def veto(self, scores: EpochScores) -> str | None:
        """Return why an epoch must not be chosen, or None if it may."""
        source, reference = scores.source_accuracy, self.source_accuracy
        if reference is None:
            reference = max((s.source_accuracy or 0.0 for s in self.scores), default=0.0)
        if source is not None and source < reference - self.tolerance - 1e-9:
            return f"source validation {100 * source:.1f} %, reference {100 * reference:.1f} %"
        expected = min(effective_classes(np.asarray(self.source_shares)), scores.images)
        if scores.classes < expected / 2 or scores.classes < 1 + 1e-9:
            return f"predictions cover {scores.classes:.1f} of {expected:.1f} classes"
        return None

    @property
    def last(self) -> int:
        """Number of the last epoch.

        Raises:
            InputError: no epoch has been added.
        """
        if not self.scores:
            raise InputError("No epoch has been scored: call add after each epoch.")
        return self.scores[-1].epoch

    @property
    def selected(self) -> int | None:
        """Number of the epoch with the best mean rank, the latest of equal ones; None if all are
        vetoed."""
        allowed = [s for s in self.scores if self.veto(s) is None]
        if not allowed:
            return None
        ranks = mean_ranks([[getattr(s, name) for s in allowed] for name in self.criteria])
        return min(zip(ranks, allowed), key=lambda pair: (pair[0], -pair[1].epoch))[1].epoch

    @property
    def candidates(self) -> list[int]:
        """Epochs that `selected` may still name later: only their weights have to be stored.

        Ranks change with every epoch, so the best epoch so far is not enough. An epoch is ruled out
        if another one is at least as good by each criterion and on the source: it ranks before
        this one, and is vetoed only if this one is, too.
        """
        return [s.epoch for s in self.scores if not any(self._rules_out(t, s) for t in self.scores)]

    def _rules_out(self, better, scores):
        names = (*self.criteria, "source_accuracy", "classes")
        if any((getattr(better, n) or 0.0) < (getattr(scores, n) or 0.0) for n in names):
            return False
        above = any(getattr(better, name) > getattr(scores, name) for name in self.criteria)
        return above or better.epoch > scores.epoch

    @property
    def oracle(self) -> int | None:
        """Number of the epoch with the highest reported accuracy, the latest of equal ones; None
        without reports."""
        reports = self._target_accuracy
        return max(reports, key=lambda e: (reports[e], e), default=None)

    def target_accuracy(self, epoch: int | None) -> float | None:
        """Return the reported accuracy of an epoch, 0–1, or None."""
        return None if epoch is None else self._target_accuracy.get(epoch)

    def to_dict(self) -> dict:
        """Return plain data, for JSON and `from_dict`."""
        return {
            "source_shares": self.source_shares,
            "source_accuracy": self.source_accuracy,
            "tolerance": self.tolerance,
            "criteria": list(self.criteria),
            "last": self.scores[-1].epoch if self.scores else None,
            "selected": self.selected,
            "oracle": self.oracle,
            "epochs": [{**asdict(s), "veto": self.veto(s)} for s in self.scores],
            "target_accuracy": [list(pair) for pair in sorted(self._target_accuracy.items())],
        }

    @classmethod
    def from_dict(cls, plain: dict) -> "Selector":
        """Restore a selector from its `to_dict`."""
        names = ("source_accuracy", "tolerance", "criteria")
        selector = cls(plain["source_shares"], **{name: plain[name] for name in names})
        for row in plain["epochs"]:
            fields = {key: value for key, value in row.items() if key != "veto"}
            if "pictures" in fields:  # the name in version 0.1
                fields["images"] = fields.pop("pictures")
            selector.scores.append(EpochScores(**fields))
        selector._target_accuracy = dict(plain["target_accuracy"])
        return selector

    def table(self) -> str:
        """Return `epoch_table` as Markdown."""
        return self.epoch_table().markdown()

    def epoch_table(self) -> Table:
        """Return a table with a row per epoch; the last column is the reported target accuracy."""
        rows = []
        for s in self.scores:
            marks = [n for n in ("last", "selected", "oracle") if getattr(self, n) == s.epoch]
            target = self.target_accuracy(s.epoch)
            rows.append(
                [
                    " ".join([str(s.epoch), *marks]),
                    None if s.source_accuracy is None else f"{100 * s.source_accuracy:.1f}",
                    f"{s.information:.3f}",
                    f"{s.nuclear_norm:.4f}",
                    f"{s.density:.3f}",
                    f"{s.classes:.1f}",
                    self.veto(s) or "",
                    "" if target is None else f"{100 * target:.1f}",
                ]
            )
        scores = ("information", "nuclear norm", "density", "classes")
        header = ("epoch", "source", *scores, "veto", "target")
        return Table(header, rows, "l" * len(header))


def _checked(probabilities):
    p = np.asarray(probabilities, "float64")
    if p.ndim != 2 or not len(p) or p.shape[1] < 2:
        raise InputError(f"Probabilities must have shape [N, C], C ≥ 2, not {list(p.shape)}.")
    # Negated, so that NaN fails as well.
    if not (p.min() >= -1e-6 and np.abs(p.sum(axis=1) - 1).max() < 1e-2):
        raise InputError(
            "Invalid probabilities: each row must be ≥ 0 and sum to 1 (softmax of the logits)."
        )
    return p


def _entropy(p):
    """Return the entropy along the last axis, in nats."""
    from scipy.special import xlogy

    return -xlogy(p, p).sum(axis=-1)


_RENAMED = {
    "information_maximisation": f"{__name__}.information_maximization",
    "soft_neighbourhood_density": f"{__name__}.soft_neighborhood_density",
}
__getattr__, __dir__ = lazy_names(__name__, {}, _RENAMED)
