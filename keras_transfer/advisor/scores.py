"""Transferability scores with their errors, and rankings that separate differences from chance."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.utils.console import Table

SCORES = {"probe": "linear probe", "knn": "5-NN", "logme": "LogME"}
_SIGNIFICANCE = 0.01  # of the permutation test
_STANDARD_ERRORS = 2.0  # two scores are tied within this many


@dataclass(frozen=True, eq=False)
class Score:
    """One transferability score; higher is better.

    Attributes:
        value: the score, or None if it cannot be computed.
        error: standard error over the examples.
        chance: the score expected for labels that are unrelated to the examples.
        note: the reason for a missing value.
        residuals: influence of each of the G examples on the value, with mean zero.
        share: True for accuracies, whose error is positive even if every example is correct.
    """

    value: float | None
    error: float | None = None
    chance: float | None = None
    note: str = ""
    residuals: list[float] | None = field(default=None, repr=False)
    share: bool = False

    @classmethod
    def of(cls, value, influence, groups, *, chance, share=False) -> "Score":
        """Return a score with a standard error computed from the influence of each row.

        Args:
            influence: float [N].
            groups: int [N], 0 ≤ group < G; the rows of a group count as one example.
        """
        influence = np.asarray(influence, "float64")
        centered = np.bincount(groups, influence - influence.mean())
        residuals = centered * len(centered) / len(influence)
        return cls(float(value), _error(residuals, share), chance, "", residuals.tolist(), share)

    def minus(self, other: "Score") -> tuple[float, float]:
        """Return (difference, its standard error) of two scores on the same examples.

        The error is that of the paired difference. It is usually smaller than the errors of the
        two scores, because an example that is difficult for both cancels out.
        """
        assert self.value is not None and other.value is not None
        assert self.residuals is not None and other.residuals is not None
        difference = np.subtract(self.residuals, other.residuals)
        return self.value - other.value, _error(difference, self.share)

    def to_dict(self) -> dict:
        if self.value is None:
            return {"value": None, "note": self.note}
        return {"value": self.value, "error": self.error, "chance": self.chance}

    def __str__(self):
        return "–" if self.value is None else f"{self.value:.3f} ± {self.error:.3f}"


def _error(residuals, share):
    # For accuracies, add two examples with one disagreement (Agresti and Min 2005); otherwise three
    # correct examples out of three would have an error of zero.
    return float(np.sqrt(np.square(residuals).sum() + share) / (len(residuals) + 2 * share))


@dataclass(frozen=True, eq=False)
class Scores:
    """All scores of one backbone on one sample of examples.

    Attributes:
        name: of the backbone.
        scores: key of `SCORES` → `Score`.
        images, classes, width: number of examples, classes and features.
        statistics: test statistic of the labels, then of each shuffle of them.
        prior: facts about the backbone that do not depend on the data; not part of any score.
        sample: identifies examples, labels and shuffles. Only scores of equal samples are compared.
    """

    name: str
    scores: dict[str, Score]
    images: int
    classes: int
    width: int
    statistics: list[float] = field(repr=False)
    prior: dict
    sample: str

    @property
    def p_value(self) -> float:
        """Share of the labelings, including the true one, that score at least as well as the true one."""
        return _p_value(self.statistics)

    @property
    def signal(self) -> bool:
        """True if the features predict the labels better than chance, at the 1 % level."""
        return self.p_value <= _SIGNIFICANCE

    def __getitem__(self, key: str) -> Score:
        return self.scores[key]

    def to_dict(self) -> dict:
        """Return plain data for JSON."""
        return {
            "backbone": self.name,
            "signal": self.signal,
            "p_value": self.p_value,
            "images": self.images,
            "classes": self.classes,
            "features": self.width,
            "prior": self.prior,
            "scores": {key: score.to_dict() for key, score in self.scores.items()},
        }

    def to_cache(self) -> dict:
        """Return plain data from which `from_cache` restores everything but name and prior."""
        plain = {key: value for key, value in vars(self).items() if key not in ("name", "prior")}
        return {**plain, "scores": {key: vars(score) for key, score in self.scores.items()}}

    @classmethod
    def from_cache(cls, plain: dict, name: str, prior: dict) -> "Scores":
        """Restore what `to_cache` returned."""
        scores = {key: Score(**score) for key, score in plain["scores"].items()}
        return cls(**{**plain, "scores": scores}, name=name, prior=prior)


@dataclass(frozen=True, eq=False)
class Ranking:
    """Backbones scored on the same examples, best first.

    Attributes:
        by: key of the score that determines the order.
        rows: the scores; in the order passed without a signal.
        p_value: of the best backbone, corrected for the number of backbones.
        behind: for each row, key → (difference from the best backbone in that score, its standard
            error).
    """

    by: str
    rows: tuple[Scores, ...]
    p_value: float
    behind: tuple[dict[str, tuple[float, float]], ...]

    @property
    def signal(self) -> bool:
        """False if shuffled labels score as well as the true ones; the order is then meaningless."""
        return self.p_value <= _SIGNIFICANCE

    @property
    def best(self) -> tuple[str, ...]:
        """Names of the backbones that are tied with the first; empty without a signal."""
        if not self.signal:
            return ()
        return tuple(row.name for i, row in enumerate(self.rows) if self.is_tie(i, self.by))

    def is_tie(self, row: int, key: str) -> bool:
        """Return True if the row is within the error of the best backbone in that score."""
        if key not in self.behind[row]:
            return False
        difference, error = self.behind[row][key]
        return difference <= _STANDARD_ERRORS * error

    def to_dict(self) -> dict:
        """Return plain data for JSON."""
        return {
            "signal": self.signal,
            "p_value": self.p_value,
            "by": self.by,
            "best": list(self.best),
            "backbones": [
                {
                    **row.to_dict(),
                    "behind": {
                        key: {"value": value, "error": error, "tie": self.is_tie(i, key)}
                        for key, (value, error) in self.behind[i].items()
                    },
                }
                for i, row in enumerate(self.rows)
            ],
        }

    def table(self) -> str:
        """Return the ranking as text; `=` marks ties with the best of a column."""
        rows = []
        for i, row in enumerate(self.rows):
            ties = [" =" if self.signal and self.is_tie(i, key) else "" for key in SCORES]
            scores = [f"{row[key]}{tie}" for key, tie in zip(SCORES, ties)]
            size = row.prior.get("parameters")
            rows.append([row.name, *scores, size and f"{size:,}"])
        lines = [Table(["backbone", *SCORES.values(), "parameters"], rows, "llllr").text()]
        if self.signal:
            lines.append(
                f"=: within {_STANDARD_ERRORS:g} standard errors of the best in the column"
            )
        return "\n".join([*lines, _verdict(self.signal, self.p_value)])


def rank_scores(scores: Sequence[Scores], *, by: str = "probe") -> Ranking:
    """Rank backbones by one score and mark those that are tied with the best.

    Each difference is compared with its own standard error, from the examples in pairs. The signal
    is tested over all backbones together: the best of them on the true labels against the best of
    them on each shuffle. Without a signal, the order is that of `scores`.

    Args:
        scores: from `score_backbone` or `score_features`, with the same sample and seed.
        by: a key of `SCORES`.

    Raises:
        InputError: `scores` is empty, the samples differ, or a backbone lacks the score `by`.
    """
    if not scores:
        raise InputError("Nothing to rank. Pass the scores of at least one backbone.")
    if by not in SCORES:
        raise InputError(f"Unknown score {by!r}. Choose one of {', '.join(SCORES)}.")
    other = next((s for s in scores if s.sample != scores[0].sample), None)
    if other:
        raise InputError(
            f"{other.name} and {scores[0].name} were scored on different images, labels or seeds. "
            "Score both on the same ones."
        )
    p_value = _p_value(np.max([s.statistics for s in scores], axis=0))
    rows = list(scores)
    if p_value <= _SIGNIFICANCE:
        missing = [s.name for s in scores if s[by].value is None]
        if missing:
            raise InputError(f"No {by} score for {', '.join(missing)}. Rank by another score.")
        rows.sort(key=lambda s: -_value(s[by]))
    best = {}
    for key in SCORES:
        available = [s[key] for s in rows if s[key].value is not None]
        if available:
            best[key] = max(available, key=_value)
    behind = tuple(
        {
            key: best[key].minus(score)
            for key, score in row.scores.items()
            if score.value is not None
        }
        for row in rows
    )
    return Ranking(by, tuple(rows), p_value, behind)


def _value(score) -> float:
    assert score.value is not None, "backbones without this score were excluded"
    return score.value


def sample_digest(labels: np.ndarray, groups: np.ndarray, seed: int) -> str:
    """Return a digest of what two scores must share to be comparable."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=8)
    for array in (labels, groups):
        digest.update(np.ascontiguousarray(array, "int64").tobytes())
    return digest.hexdigest()


def _p_value(statistics):
    # The tolerance counts labelings that differ by rounding only as equal.
    return float(np.mean(np.asarray(statistics) >= statistics[0] - 1e-9))


def _verdict(signal, p_value):
    test = f"(p = {p_value:.2g}, permutation test)"
    if signal:
        return f"Signal: the features tell the classes apart {test}."
    return f"No signal: shuffled labels score as well, so the order means nothing {test}."
