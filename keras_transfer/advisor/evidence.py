"""Evidence before any training: candidates for what a model sees, by the loss of their closed form."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from keras_transfer.advisor.judging import Judged, difference_text, plain_difference
from keras_transfer.modalities import Framing, framing_from
from keras_transfer.utils.console import Table


@dataclass(frozen=True)
class Candidate:
    """What a model sees of an example.

    Attributes:
        backbone: name, or several joined by `+`.
        taps: see `build_model`.
        framing: how it becomes an input.
    """

    backbone: str
    taps: str
    framing: Framing

    def __str__(self):
        return f"{self.backbone}, taps {self.taps}, {self.framing.description}"

    def to_dict(self) -> dict:
        """Return plain data for JSON."""
        return {"backbone": self.backbone, "taps": self.taps, **self.framing.settings()}


@dataclass(frozen=True, eq=False)
class Row:
    """A candidate and its closed form in cross-validation.

    Attributes:
        judged: its losses and its score.
        cost: multiplications for one example, forward.
        layers: number of layers of its backbone.
        behind: its loss minus that of the chosen candidate, over the same examples.
        error: standard error of `behind`.
    """

    candidate: Candidate
    judged: Judged
    cost: float
    layers: int = 0
    behind: float = 0.0
    error: float = 0.0

    def to_dict(self) -> dict:
        """Return plain data for JSON."""
        numbers = {"loss": self.judged.loss, "score": self.judged.score, "cost": self.cost}
        gap = plain_difference((self.behind, self.error))
        return {**self.candidate.to_dict(), **numbers, **gap}


@dataclass(frozen=True, eq=False)
class Evidence:
    """Candidates, compared by the cross-validated loss of their closed form.

    Attributes:
        rows: the chosen candidate, then the others, best first; empty if there are too few examples
            for folds.
        default: what to use without a comparison.
        score: name of the score.
        examples: how many were compared on.
        signal: whether the chosen one is better than a constant answer, by two standard errors.
        mirror: whether mirror images may be trained on: False if they make the closed form worse by
            more than one standard error.
        mirror_gain: (reduction of the loss by mirror images, its standard error), if measured.
        forward: seconds of the forward pass of the best candidate for one example; 0 if not measured.
        layers: number of its layers.
        framings: size → the framing that the data choose for it, if they do.
        seconds: that the comparison took.
        notes: what was skipped.
    """

    rows: tuple[Row, ...]
    default: Candidate
    score: str
    examples: int
    signal: bool = True
    mirror: bool = True
    mirror_gain: tuple[float, float] | None = None
    forward: float = 0.0
    layers: int = 0
    framings: Mapping[Any, Framing] = field(default_factory=dict)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Candidate:
        """The chosen candidate: the first, unless another is better by more than one standard error."""
        return self.rows[0].candidate if self.rows else self.default

    @property
    def expected(self) -> float | None:
        """Score of the chosen candidate in cross-validation."""
        return self.rows[0].judged.score if self.rows else None

    @property
    def error_left(self) -> float:
        """What the best candidate's score lacks to 1; a half if nothing was compared."""
        return 0.5 if self.expected is None else 1 - self.expected

    @property
    def equal(self) -> list[Row]:
        """The candidates within one standard error of the chosen one, which is the first of them."""
        return [row for row in self.rows if abs(row.behind) <= row.error]

    def tuned(self, candidate: Candidate) -> Candidate:
        """Return a candidate as it is fine-tuned: with the default framing of its size.

        Random crops enlarge the objects in training, so a fine-tuned network needs the crop in evaluation
        (Touvron et al., arXiv:1906.06423), even if a closed form on whole images is better.
        """
        size = candidate.framing.size
        return replace(candidate, framing=self.framings.get(size) or self.default.framing.at(size))

    def __str__(self):
        if not self.rows:
            return f"Evidence: {self.default}; there are too few examples to compare candidates."
        best, others = self.rows[0], self.rows[1:]
        text = (
            f"Evidence: {best.candidate}: {self.score} {best.judged.score:.3f}, loss "
            f"{best.judged.loss:.3f} in cross-validation"
        )
        if not others:
            return f"{text}."
        near, count = len(self.equal) - 1, len(others)
        subject = f"{near} of {count} others" if near else f"the {count} others"
        subject = subject if count > 1 else "the other"
        verb = "is" if count == 1 or near == 1 else "are"
        where = "within one" if near else "worse by more than one"
        certain = f"{subject} {verb} {where} standard error"
        return f"{text}; {certain}."

    def table(self) -> str:
        """Return one line per candidate, the chosen one first."""
        return candidates_table(self.to_dict())

    def to_dict(self) -> dict:
        """Return plain data for JSON."""
        return {
            "examples": self.examples,
            "score": self.score,
            "signal": self.signal,
            "mirror": self.mirror,
            "mirror_gain": self.mirror_gain,
            "seconds": round(self.seconds, 1),
            "notes": list(self.notes),
            "candidates": [row.to_dict() for row in self.rows],
        }


def candidates_table(evidence: dict) -> str:
    """Return one line per candidate of what `Evidence.to_dict` returned."""
    rows, score = evidence["candidates"], evidence["score"]
    header = ("backbone", "taps", "input", "loss", "− chosen", score, "cost")
    least = min((row["cost"] for row in rows), default=1.0) or 1.0
    lines = [
        (
            row["backbone"],
            row["taps"],
            framing_from(row).at(row["image_size"]).description,
            f"{row['loss']:.3f}",
            difference_text(row) if row["behind"] else "",
            f"{row['score']:.3f}",
            f"{row['cost'] / least:.1f}",
        )
        for row in rows
    ]
    return Table(header, lines, "lllrrrr").text()
