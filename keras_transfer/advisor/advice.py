"""The recommendation of `advise` with its evidence, as text, as plain data and as a plot."""

from dataclasses import dataclass
from typing import Any

from keras_transfer.advisor.rules import DEFAULT_POLICY, DIFFERENT, SIMILAR, Choice, Facts
from keras_transfer.errors import InputError

_LIKENESS = {"similar": "similar", "between": "somewhat different", "different": "different"}


@dataclass(frozen=True, eq=False)
class Advice:
    """What to train, and why.

    Attributes:
        choice: what to train.
        contender: an alternative that is worth a race (see `auto.race`), or None.
        facts: the input of the rules.
        policy: name of the rules.
        ranking: the backbones by their features; None if no class has two images.
        costs: every strategy with the chosen backbone and its estimated time on this machine.
        minutes: time limit of the choice.
        image_size: of the chosen backbone.
        probes: accuracy after each stage of the chosen backbone; None if it was not measured.
        symmetry: result for mirror images; None if it could not be measured.
        distance: distance of the target domain; None without a target.
        notes: anything else that the user should know.
    """

    choice: Choice
    contender: Choice | None
    facts: Facts
    policy: str
    ranking: Any  # scores.Ranking
    costs: tuple[Choice, ...]
    minutes: float
    image_size: int
    probes: Any = None  # stage_probes.StageProbes
    symmetry: Any = None  # similarity.Symmetry
    distance: Any = None  # domains.DomainDistance
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict:
        """Return plain data for JSON."""
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
                "smallest_class": facts.smallest_class,
                "largest_class": facts.largest_class,
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
        """Return the part that a run records in its `config.yaml`."""
        whole = self.to_dict()
        return {key: whole[key] for key in ("policy", "choice", "data", "notes")}

    def text(self) -> str:
        """Return the advice as text: the recommendation, the reasons and the measurements."""
        lines = [*self._recommendation(), "", *self._observations()]
        if self.ranking:
            title = "How well the features of each backbone suit the labels (higher is better):"
            lines += ["", title, self.ranking.table()]
            if self.facts.signal and self.facts.tied > 1:
                lines.append("Of the backbones that are tied in the linear probe, use the largest.")
        return "\n".join(lines)

    def __str__(self):
        return self.text()

    def draw(self, path) -> None:
        """Draw the accuracy after each stage into a PNG file.

        Raises:
            InputError: the stages were not probed.
        """
        if self.probes is None:
            raise InputError(
                "The stages were not probed. Call advise with probes=True to plot them."
            )
        self.probes.draw(path)

    def _recommendation(self):
        choice = self.choice
        time = f" It takes about {choice.time} on this machine." if choice.time else ""
        augment = _augment_text(choice.augment)
        policy = "" if self.policy == DEFAULT_POLICY else f" ({self.policy} policy)"
        yield f"Advice{policy}: train {choice.backbone} with {choice.recipe} and {augment}.{time}"
        yield choice.why
        if self.contender:
            other = self.contender
            backbone = f"{other.backbone} with " if other.backbone != choice.backbone else ""
            yield f"Alternative: {backbone}{other.recipe} (about {other.time}). {other.why}"
        shown = {choice.kind}
        if self.contender and self.contender.backbone == choice.backbone:
            shown.add(self.contender.kind)
        others = [f"{cost.recipe} {cost.time}" for cost in self.costs if cost.kind not in shown]
        if others:
            yield f"Time of other strategies: {', '.join(others)}."
        yield from (f"Note: {note}" for note in self.notes)

    def _observations(self):
        facts = self.facts
        counts = f"{facts.smallest_class}"
        if facts.smallest_class != facts.largest_class:
            counts += f" to {facts.largest_class}"
        yield (
            f"There are {facts.images} training images in {facts.classes} classes, {counts} per "
            f"class: a {facts.size} dataset."
        )
        yield self._likeness()
        if self.symmetry:
            yield self._symmetry()
        if self.probes:
            yield self.probes.verdict
        if self.distance:
            command = " Run `keras-transfer adapt`." if self.distance.worth_trying else ""
            yield f"Target domain: {self.distance.verdict}{command}"

    def _likeness(self):
        if self.facts.shift is None:
            return (
                "The similarity to the pretraining images is unknown, because the backbone has no "
                "BatchNorm statistics of them."
            )
        return (
            f"The activation shift from the pretraining images is {self.facts.shift:.3f}: "
            f"{_LIKENESS[self.facts.likeness]} (similar below {SIMILAR:g}, different above "
            f"{DIFFERENT:g})."
        )

    def _symmetry(self):
        drop = f"{100 * self.symmetry.drop:.1f} ± {100 * self.symmetry.error:.1f} points"
        if self.symmetry.told_apart:
            text = (
                "Mirror images are recognized less well than the originals, so flips are left out"
            )
        else:
            text = "Mirror images are recognized as well as the originals, so flips are safe"
        return f"{text} (a probe loses {drop} on them)."


def _augment_text(augment):
    if isinstance(augment, dict):
        return f"{augment['preset']} augmentation" + ("" if augment["flip"] else " without flips")
    return "no augmentation" if augment == "none" else f"{augment} augmentation"
