"""What the scores are, and which differences between backbones are more than chance."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from keras_transfer.errors import InputError

SCORES = {
    "probe": "linear probe",
    "knn": "5-NN",
    "logme": "LogME",
    "h_score": "H-score",
    "leep": "LEEP",
    "nce": "NCE",
}
_LEVEL = 0.01
_ERRORS = 2.0


@dataclass(frozen=True, eq=False)
class Score:
    """One number; more is better.

    Attributes:
        value: None where it cannot be had.
        error: its standard error over the images.
        chance: what labels without meaning would give.
        note: why there is no value.
        residuals: influence of each image on the value [G], of mean zero.
    """

    value: float | None
    error: float | None = None
    chance: float | None = None
    note: str = ""
    residuals: np.ndarray | None = field(default=None, repr=False)
    share: bool = False

    @classmethod
    def of(cls, value, parts, groups, *, chance, share=False) -> "Score":
        """A score whose influence of each row is `parts` [N].

        Args:
            groups: int [N], rows of one image, which count as one.
            share: the value is a share of images: its error is not zero where all are right.
        """
        parts = np.asarray(parts, "float64")
        per_image = np.bincount(groups, parts - parts.mean()) * (groups.max() + 1) / len(parts)
        return cls(float(value), _error(per_image, share), chance, "", per_image, share)

    def minus(self, other: "Score") -> tuple[float, float]:
        """(difference, its standard error) of two scores on the same images.

        The images are the same, so that what makes them hard for both cancels: the error is
        mostly smaller than those of the two scores.
        """
        assert self.value is not None and other.value is not None
        assert self.residuals is not None and other.residuals is not None
        difference = self.residuals - other.residuals
        return self.value - other.value, _error(difference, self.share)

    def to_dict(self) -> dict:
        if self.value is None:
            return {"value": None, "note": self.note}
        return {"value": self.value, "error": self.error, "chance": self.chance}

    def __str__(self):
        return "–" if self.value is None else f"{self.value:.3f} ± {self.error:.3f}"


def _value(score) -> float:
    assert score.value is not None, "those without one were left out"
    return score.value


def _error(residuals, share):
    # Of shares as if two images more had one disagreement (Agresti and Min 2005): without it three
    # right of three would be certain.
    return float(np.sqrt(np.square(residuals).sum() + share) / (len(residuals) + 2 * share))


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of one backbone on one sample of images.

    Attributes:
        name: of the backbone.
        scores: key of `SCORES` → `Score`.
        images, classes, width: of the sample; number of features.
        statistics: of the labels and of each shuffle of them, see `score_features` [1 + shuffles].
        prior: what is known of the backbone without the data; no part of any score.
        sample: which images, labels and shuffles; only scores of the same can be compared.
    """

    name: str
    scores: dict[str, Score]
    images: int
    classes: int
    width: int
    statistics: np.ndarray = field(repr=False)
    prior: dict
    sample: str

    @property
    def p_value(self) -> float:
        """Share of the labelings (the true one among them) that do as well as the true one."""
        return _p_value(self.statistics)

    @property
    def signal(self) -> bool:
        """True where the features say something about the labels, at a level of 1 %."""
        return self.p_value <= _LEVEL

    def __getitem__(self, key: str) -> Score:
        return self.scores[key]

    def to_dict(self) -> dict:
        """Plain data, for JSON."""
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

    def table(self) -> str:
        """The same for people."""
        lines = [
            f"{self.name}: {self.images} images, {self.classes} classes, "
            f"{self.width} features{_prior_text(self.prior)}",
            f"{'':14}{'score':>8}{'± error':>10}{'chance':>10}",
        ]
        for key, score in self.scores.items():
            if score.value is None:
                lines.append(f"{SCORES[key]:14}{'–':>8}  ({score.note})")
            else:
                numbers = f"{score.value:8.3f}{score.error:10.3f}{score.chance:10.3f}"
                lines.append(f"{SCORES[key]:14}{numbers}")
        return "\n".join([*lines, _verdict(self.signal, self.p_value)])


@dataclass(frozen=True, eq=False)
class Ranking:
    """Backbones on the same images, the best first.

    Attributes:
        by: the score that the order is of.
        rows: the scores; in the order given where there is no signal.
        p_value: of the best signal, with as many chances for the shuffles as there are backbones.
        behind: for each row, key of the score → (how far it is behind the best of that score, the
            standard error of that difference).
        errors: how many standard errors are a difference.
    """

    by: str
    rows: tuple[Scores, ...]
    p_value: float
    behind: tuple[dict[str, tuple[float, float]], ...]
    errors: float

    @property
    def signal(self) -> bool:
        """False where shuffled labels do as well: then the order means nothing, and there is none."""
        return self.p_value <= _LEVEL

    @property
    def best(self) -> tuple[str, ...]:
        """Names of those that are not told from the first; none without a signal."""
        if not self.signal:
            return ()
        return tuple(row.name for i, row in enumerate(self.rows) if self.is_tie(i, self.by))

    def is_tie(self, row: int, key: str) -> bool:
        """True where the row is within the error of the best in that score."""
        if key not in self.behind[row]:
            return False
        difference, error = self.behind[row][key]
        return difference <= self.errors * error

    def to_dict(self) -> dict:
        """Plain data, for JSON."""
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
        """The same for people; `=` marks what is within the error of the best in its column."""
        keys = [key for key in SCORES if any(key in row.scores for row in self.rows)]
        width = max(len(row.name) for row in self.rows) + 2
        lines = [f"{'':{width}}" + "".join(f"{SCORES[key]:>18}" for key in keys) + "  parameters"]
        for i, row in enumerate(self.rows):
            cells = []
            for key in keys:
                score = row.scores.get(key, Score(None))
                tie = self.signal and self.is_tie(i, key)
                cells.append(f"{score!s:>16}{' =' if tie else '  '}")
            size = f"{row.prior['parameters']:,}" if "parameters" in row.prior else "–"
            lines.append(f"{row.name:{width}}" + "".join(cells) + f"{size:>12}")
        if self.signal:
            lines.append(f"=: within {self.errors:g} standard errors of the best in the column")
        return "\n".join([*lines, _verdict(self.signal, self.p_value)])


def rank_scores(scores: Sequence[Scores], *, by: str = "probe", errors: float = _ERRORS) -> Ranking:
    """The backbones by one score, with what is within the error; no order where there is no signal.

    Differences are compared with their own standard error, of the images paired. The signal is
    tested over all backbones together: the best of them on the true labels against the best of
    them on each shuffle.

    Args:
        scores: of the same sample with the same seed, e.g. from `score_backbone`.
        by: a key of `SCORES`.
        errors: how many standard errors make a difference; 2 are 95 %.

    Raises:
        InputError: none given, scores of different samples, or a backbone without the score `by`.
    """
    if not scores:
        raise InputError("There is nothing to rank: give the scores of one backbone or more.")
    if by not in SCORES:
        raise InputError(f"Unknown score {by!r}: give one of {', '.join(SCORES)}.")
    other = next((s for s in scores if s.sample != scores[0].sample), None)
    if other:
        raise InputError(
            f"{other.name} and {scores[0].name} were scored on different images, labels or seeds: "
            "score them on the same."
        )
    p_value = _p_value(np.max([s.statistics for s in scores], axis=0))
    rows = list(scores)
    if p_value <= _LEVEL:
        without = [s.name for s in scores if by not in s.scores or s[by].value is None]
        if without:
            raise InputError(f"{', '.join(without)} has no {by}: rank by another score.")
        rows.sort(key=lambda s: -_value(s[by]))
    best = {}
    for key in SCORES:
        having = [s[key] for s in rows if key in s.scores and s[key].value is not None]
        if having:
            best[key] = max(having, key=_value)
    behind = tuple(
        {
            key: best[key].minus(score)
            for key, score in row.scores.items()
            if score.value is not None
        }
        for row in rows
    )
    return Ranking(by, tuple(rows), p_value, behind, errors)


def sample_of(labels: np.ndarray, groups: np.ndarray, shuffles: int, seed: int) -> str:
    """A digest of what scores must share to be compared."""
    digest = hashlib.blake2b(f"{shuffles} {seed}".encode(), digest_size=8)
    for array in (labels, groups):
        digest.update(np.ascontiguousarray(array, "int64").tobytes())
    return digest.hexdigest()


def _p_value(statistics):
    # As good but for rounding is as good.
    return float((statistics >= statistics[0] - 1e-9).mean())


def _prior_text(prior):
    return "".join(f"; {value:,} {key}" for key, value in prior.items())


def _verdict(signal, p_value):
    shown = f"(p = {p_value:.2g} by shuffling the labels)"
    if signal:
        return f"signal: the features tell the classes apart {shown}"
    return f"no signal: the scores rank nothing, shuffled labels do as well {shown}"
