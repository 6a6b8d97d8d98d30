"""What is advised, with its evidence: as text, as plain data, as an image."""

from dataclasses import dataclass
from typing import Any

from keras_transfer.advisor.rules import DIFFERENT, SIMILAR, Choice, Facts
from keras_transfer.errors import InputError


@dataclass(frozen=True, eq=False)
class Advice:
    """What to train, and why.

    Attributes:
        choice: what to train.
        contender: what is worth a race against it (see `auto.race`); None where nothing is.
        facts: what the rules looked at.
        policy: the rules.
        ranking: the backbones by their features; None where those could not be compared.
        costs: what each strategy would take on this machine with the chosen backbone.
        minutes: that the choice had to keep to.
        image_size: of the chosen backbone's images.
        probes: accuracy after each stage of the chosen backbone; None where it was not asked for.
        symmetry: what mirror images showed; None where that could not be told.
        distance: how far the target's images are from these; None where no target was given.
        notes: what else should be known.
    """

    choice: Choice
    contender: Choice | None
    facts: Facts
    policy: str
    ranking: Any  # transferability.table.Scores
    costs: tuple[Choice, ...]
    minutes: float
    image_size: int
    probes: Any = None  # stage_probes.StageProbes
    symmetry: Any = None  # symmetry.Symmetry
    distance: Any = None  # domains.DomainDistance
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict:
        """Plain data, for JSON."""
        facts = self.facts
        return {
            "choice": self.choice.to_dict(),
            "contender": self.contender and self.contender.to_dict(),
            "policy": self.policy,
            "minutes": self.minutes,
            "image_size": self.image_size,
            "data": {
                "images": facts.images,
                "classes": facts.classes,
                "smallest_class": facts.least,
                "largest_class": facts.most,
                "size": facts.size,
                "shift": facts.shift,
                "likeness": facts.likeness,
                "mirror": self.symmetry and vars(self.symmetry),
                "signal": facts.signal,
            },
            "ranking": self.ranking and self.ranking.to_dict(),
            "costs": [cost.to_dict() for cost in self.costs],
            "stages": self.probes and self.probes.to_dict(),
            "target": self.distance and self.distance.to_dict(),
            "notes": list(self.notes),
        }

    def brief(self) -> dict:
        """What a run remembers of it."""
        whole = self.to_dict()
        return {key: whole[key] for key in ("policy", "choice", "data", "notes")}

    def text(self) -> str:
        """The same for people."""
        parts = [self._data(), self._likeness()]
        if self.symmetry:
            parts.append(self._symmetry())
        if self.ranking:
            parts.append(self.ranking.table())
        if self.probes:
            parts.append(self.probes.verdict)
        if self.distance:
            parts.append(self._target())
        parts += [f"note: {note}" for note in self.notes]
        parts.append(self._choice())
        return "\n".join(parts)

    def __str__(self):
        return self.text()

    def draw(self, path) -> None:
        """Draws the accuracy after each stage into a PNG file.

        Raises:
            InputError: the stages were not probed.
        """
        if self.probes is None:
            raise InputError("The stages were not probed: advise with probes=True to draw them.")
        self.probes.draw(path)

    def _data(self):
        facts = self.facts
        each = f"{facts.least}" if facts.least == facts.most else f"{facts.least} to {facts.most}"
        return (
            f"{facts.images} training images of {facts.classes} classes, {each} a class: "
            f"{facts.size}"
        )

    def _likeness(self):
        facts = self.facts
        if facts.shift is None:
            return "likeness to the pretraining images: unknown (no BatchNorm remembers them)"
        shown = {
            "similar": "similar to the pretraining images",
            "different": "different from the pretraining images",
            "between": "neither similar to the pretraining images nor clearly different",
        }[facts.likeness]
        return (
            f"shift of activations {facts.shift:.3f}: {shown} (similar below {SIMILAR:g}, "
            f"different above {DIFFERENT:g})"
        )

    def _symmetry(self):
        what = "are told apart: no flips" if self.symmetry.told_apart else "show the same: flips"
        lost = f"{100 * self.symmetry.drop:.1f} ± {100 * self.symmetry.error:.1f} points"
        return f"mirror images {what} (a probe loses {lost} on them)"

    def _target(self):
        lines = [f"target: {self.distance.verdict}"]
        if self.distance.worth_trying:
            lines.append("  `keras-transfer adapt` does it")
        return "\n".join(lines)

    def _choice(self):
        lines = [f"advice ({self.policy}): {self.choice.with_time}", f"  because {self.choice.why}"]
        lines.append(f"  augmentation: {_shown(self.choice.augment)}")
        if self.contender:
            lines.append(f"  contender: {self.contender.with_time}")
        others = [cost for cost in self.costs if cost.kind != self.choice.kind]
        if others:
            lines.append("  others: " + "; ".join(cost.with_time for cost in others))
        return "\n".join(lines)


def _shown(augment):
    if isinstance(augment, str):
        return augment
    return augment["preset"] + ("" if augment["flip"] else ", without flips")
