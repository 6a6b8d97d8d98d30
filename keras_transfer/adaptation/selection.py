"""Which epoch (or which method) to keep where the target has no labels.

Every score here is computed from what a model says of unlabelled target images. None of them is
the accuracy, and a model that is wrong with confidence fools them all: hence the veto, and `last`
beside `selected` (validators move published results more than methods do, arXiv:2111.15672).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from keras_transfer.errors import InputError

_TEMPERATURE = 0.05  # of SND's softmax over neighbours
_ROWS = 1024  # similarities computed at a time
_MOST_NEIGHBOURS = 5000  # target images that SND looks at, evenly spaced


def information_maximisation(probabilities: np.ndarray) -> float:
    """Entropy + diversity: H(mean p) − mean H(p), the information the answers have on the images.

    What SHOT maximises (Liang et al., arXiv:2002.08546): each answer sure, all together diverse.

    Args:
        probabilities: float [N, C], rows that sum to 1.

    Returns:
        Nats, from 0 (all answers alike) to ln C (sure answers, all classes equally often).
    """
    p = _checked(probabilities)
    return float(_entropy(p.mean(axis=0)) - _entropy(p).mean())


def batch_nuclear_norm(probabilities: np.ndarray) -> float:
    """BNM: the sum of the singular values of [N, C] answers, divided by N (arXiv:2003.12237).

    High where answers are sure and diverse, as in `information_maximisation`, but of rare classes
    less is expected. At most √(C / N): compare it for the same number of images only.
    """
    p = _checked(probabilities)
    return float(np.linalg.norm(p, "nuc") / len(p))


def soft_neighbourhood_density(features: np.ndarray, temperature: float = _TEMPERATURE) -> float:
    """SND: the mean entropy of the softmax over each image's similarities to all others.

    Saito et al., arXiv:2108.10860. High where images lie in dense groups, so that many neighbours
    are equally near; also where all lie in one point, so it does not see collapse.

    Args:
        features: float [N, D], N ≥ 2; of probabilities [N, C] as in the paper, or any features. Of
            more than 5000 rows every k-th is looked at.
        temperature: by which cosine similarities are divided, > 0.

    Returns:
        Nats, from 0 to ln(N − 1).

    Raises:
        InputError: fewer than two rows.
    """
    x = np.asarray(features, "float64")
    if x.ndim != 2 or len(x) < 2:
        raise InputError(f"SND needs features [N, D] of two images or more, not {x.shape}.")
    x = x[:: -(-len(x) // _MOST_NEIGHBOURS)]
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    total = 0.0
    for start in range(0, len(x), _ROWS):
        similar = x[start : start + _ROWS] @ x.T / temperature
        rows = np.arange(len(similar))
        similar[rows, start + rows] = -np.inf  # no image is its own neighbour
        weights = np.exp(similar - similar.max(axis=1, keepdims=True))
        total += _entropy(weights / weights.sum(axis=1, keepdims=True)).sum()
    return float(total / len(x))


def effective_classes(shares: np.ndarray) -> float:
    """exp of the entropy of shares (or counts) [C]: how many equally frequent classes they amount to."""
    shares = np.asarray(shares, "float64")
    return float(np.exp(_entropy(shares / shares.sum())))


CRITERIA: dict[str, Callable[[np.ndarray], float]] = {
    "information": information_maximisation,
    "nuclear_norm": batch_nuclear_norm,
    "density": soft_neighbourhood_density,
}
DEFAULT_CRITERIA = ("information", "nuclear_norm")


def mean_ranks(scores: Sequence[Sequence[float]]) -> np.ndarray:
    """Mean rank of each candidate over criteria, as rank aggregation by Borda has it; less is better.

    Args:
        scores: [K, E], of K criteria for E candidates; more is better.

    Returns:
        float [E], from 1; equal scores share their mean rank.
    """
    from scipy.stats import rankdata

    return rankdata(-np.asarray(scores, "float64"), axis=1).mean(axis=0)


@dataclass(frozen=True)
class EpochScores:
    """What is known of an epoch without labels of the target.

    Attributes:
        epoch: its number.
        source_accuracy: on validation images of the source, 0–1; None without a source.
        information, nuclear_norm, density: of the answers for target images, see the functions.
        classes: that the answers amount to, see `effective_classes`.
        images: of the target that answered.
    """

    epoch: int
    source_accuracy: float | None
    information: float
    nuclear_norm: float
    density: float
    classes: float
    images: int


class Selector:
    """Keeps the scores of a run's epochs and says which of them to take.

    Three answers, never mixed: `last`, the default of a careful user; `selected`, the best mean rank
    over the criteria among epochs without a veto; and `oracle`, the highest accuracy on labels of
    the target, which is there for reports only: those numbers are kept apart from the scores, and
    neither `selected` nor `candidates` reads them.

    An epoch is vetoed where the model has unlearned the source (its validation accuracy is more than
    `tolerance` under the reference) or its answers collapse (they amount to less than half as many
    classes as the source's labels do, or to a single one).

    Args:
        source_shares: share, or number, of source images in each class [C].
        source_accuracy: of the model that was trained on the source alone, the reference of the
            veto; without it the best epoch of this run is.
        tolerance: 0–1.
        criteria: names of `CRITERIA` to rank by.

    Raises:
        InputError: an unknown criterion, or none.
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
                f"Cannot select by {', '.join(unknown) or 'nothing'}: give one or more of "
                f"{', '.join(CRITERIA)}."
            )
        self.source_shares = [float(share) for share in source_shares]
        self.source_accuracy, self.tolerance = source_accuracy, tolerance
        self.criteria = tuple(criteria)
        self.scores: list[EpochScores] = []
        self._oracle: dict[int, float] = {}

    def add(
        self, epoch: int, source_accuracy: float | None, target_probabilities: np.ndarray
    ) -> EpochScores:
        """Scores an epoch.

        Args:
            epoch: its number, higher than those before.
            source_accuracy: on validation images of the source, 0–1; None for a method that works
                without the source and may leave it behind (SHOT, AdaBN): then it vetoes nothing.
            target_probabilities: float [N, C], the answers for unlabelled target images; the same
                images each time.

        Raises:
            InputError: not probabilities of these classes, or an epoch that is there already.
        """
        p = _checked(target_probabilities)
        if p.shape[1] != len(self.source_shares):
            raise InputError(
                f"The probabilities are of {p.shape[1]} classes, the source has "
                f"{len(self.source_shares)}."
            )
        if self.scores and epoch <= self.scores[-1].epoch:
            raise InputError(f"Epoch {epoch} comes after epoch {self.scores[-1].epoch}.")
        found = {name: score(p) for name, score in CRITERIA.items()}
        classes = effective_classes(np.bincount(p.argmax(axis=1), minlength=p.shape[1]))
        source = None if source_accuracy is None else float(source_accuracy)
        scores = EpochScores(epoch, source, classes=classes, images=len(p), **found)
        self.scores.append(scores)
        return scores

    def report(self, epoch: int, target_accuracy: float) -> None:
        """Notes an accuracy on labels of the target, 0–1, for `oracle`; nothing else depends on it."""
        self._oracle[epoch] = float(target_accuracy)

    def back_to(self, epoch: int) -> None:
        """Forgets all that is known of later epochs: a run that was killed goes on there."""
        self.scores = [scores for scores in self.scores if scores.epoch <= epoch]
        self._oracle = {e: value for e, value in self._oracle.items() if e <= epoch}

    def veto(self, scores: EpochScores) -> str | None:
        """Why an epoch must not be taken, in words; None where it may."""
        source, reference = scores.source_accuracy, self.source_accuracy
        if reference is None:
            reference = max((_or_0(s.source_accuracy) for s in self.scores), default=0.0)
        if source is not None and source < reference - self.tolerance - 1e-9:
            return f"source validation {100 * source:.1f} %, it can be {100 * reference:.1f} %"
        expected = min(effective_classes(np.asarray(self.source_shares)), scores.images)
        if scores.classes < expected / 2 or scores.classes < 1 + 1e-9:
            return f"answers amount to {scores.classes:.1f} of {expected:.1f} classes"
        return None

    @property
    def last(self) -> int:
        """Number of the last epoch.

        Raises:
            InputError: there is none yet.
        """
        if not self.scores:
            raise InputError("No epoch has been scored yet: call add after each.")
        return self.scores[-1].epoch

    @property
    def selected(self) -> int | None:
        """Number of the epoch with the best mean rank, of equal ones the latest; None: all are vetoed."""
        allowed = [s for s in self.scores if self.veto(s) is None]
        if not allowed:
            return None
        ranks = mean_ranks([[getattr(s, name) for s in allowed] for name in self.criteria])
        return min(zip(ranks, allowed), key=lambda pair: (pair[0], -pair[1].epoch))[1].epoch

    @property
    def candidates(self) -> list[int]:
        """Epochs that `selected` may still name after further ones: only their weights need be kept.

        Ranks shift with every epoch, so the best so far is not enough. Enough are those that no other
        epoch beats on each criterion and on the source: that one would rank before them, and be
        vetoed only where they are.
        """
        return [s.epoch for s in self.scores if not any(self._rules_out(t, s) for t in self.scores)]

    def _rules_out(self, better, scores):
        names = (*self.criteria, "source_accuracy", "classes")
        if any(_or_0(getattr(better, name)) < _or_0(getattr(scores, name)) for name in names):
            return False
        above = any(getattr(better, name) > getattr(scores, name) for name in self.criteria)
        return above or better.epoch > scores.epoch

    @property
    def oracle(self) -> int | None:
        """Number of the epoch with the highest reported accuracy, the latest; None without reports."""
        return max(self._oracle, key=lambda e: (self._oracle[e], e), default=None)

    def target_accuracy(self, epoch: int | None) -> float | None:
        """What was reported of an epoch, 0–1; None where nothing was."""
        return None if epoch is None else self._oracle.get(epoch)

    def to_dict(self) -> dict:
        """All of it as plain data, for JSON, and for `from_dict` when a run is resumed."""
        return {
            "source_shares": self.source_shares,
            "source_accuracy": self.source_accuracy,
            "tolerance": self.tolerance,
            "criteria": list(self.criteria),
            "last": self.scores[-1].epoch if self.scores else None,
            "selected": self.selected,
            "oracle": self.oracle,
            "epochs": [{**asdict(s), "veto": self.veto(s)} for s in self.scores],
            "target_accuracy": [[epoch, value] for epoch, value in sorted(self._oracle.items())],
        }

    @classmethod
    def from_dict(cls, plain: dict) -> "Selector":
        """The selector that gave this `to_dict`."""
        selector = cls(
            plain["source_shares"],
            source_accuracy=plain["source_accuracy"],
            tolerance=plain["tolerance"],
            criteria=plain["criteria"],
        )
        for row in plain["epochs"]:
            fields = {key: value for key, value in row.items() if key != "veto"}
            selector.scores.append(EpochScores(**fields))
        selector._oracle = dict(plain["target_accuracy"])
        return selector

    def table(self) -> str:
        """Markdown, a row an epoch; what was reported of the target stands last."""
        lines = [
            "| epoch | source | information | nuclear norm | density | classes | veto | target |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for s in self.scores:
            marks = [
                name for name in ("last", "selected", "oracle") if getattr(self, name) == s.epoch
            ]
            target = self.target_accuracy(s.epoch)
            cells = (
                " ".join([str(s.epoch), *marks]),
                "–" if s.source_accuracy is None else f"{100 * s.source_accuracy:.1f}",
                f"{s.information:.3f}",
                f"{s.nuclear_norm:.4f}",
                f"{s.density:.3f}",
                f"{s.classes:.1f}",
                self.veto(s) or "",
                "" if target is None else f"{100 * target:.1f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def _checked(probabilities):
    p = np.asarray(probabilities, "float64")
    if p.ndim != 2 or not len(p) or p.shape[1] < 2:
        raise InputError(f"Probabilities must have shape [N, C], C ≥ 2, not {list(p.shape)}.")
    # Not a number is not near 1 either.
    if not (p.min() >= -1e-6 and np.abs(p.sum(axis=1) - 1).max() < 1e-2):
        raise InputError(
            "These are no probabilities: each row must be ≥ 0 and sum to 1 (softmax of the logits)."
        )
    return p


def _or_0(value):
    return 0.0 if value is None else value


def _entropy(p):
    """Of shares along the last axis, in nats."""
    from scipy.special import xlogy

    return -xlogy(p, p).sum(axis=-1)
