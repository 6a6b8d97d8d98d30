"""The recommendation of `advise` with its evidence, as text, as plain data and as a plot."""

from dataclasses import dataclass
from typing import Any

from keras_transfer.advisor.evidence import Evidence
from keras_transfer.advisor.rules import Choice, Facts
from keras_transfer.errors import InputError
from keras_transfer.utils.console import Table


@dataclass(frozen=True, eq=False)
class Advice:
    """What to train, and why.

    Attributes:
        choice: what to train.
        evidence: candidates, compared by their closed form.
        textbook: what the textbooks' rules would train, as a baseline.
        facts: the input of these rules.
        costs: strategy → estimated minutes on this machine, with the chosen backbone.
        minutes: time limit of the choice, or None.
        probes: accuracy after each stage of the chosen backbone; None if it was not measured.
        distance: distance of the target domain; None without a target.
        notes: anything else that the user should know.
    """

    choice: Choice
    evidence: Evidence
    textbook: Choice
    facts: Facts
    costs: dict[str, float]
    minutes: float | None
    probes: Any = None  # stage_probes.StageProbes
    distance: Any = None  # domains.DomainDistance
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict:
        """Return plain data for JSON."""
        facts = self.facts
        return {
            "choice": self.choice.to_dict(),
            "minutes": self.minutes,
            "evidence": self.evidence.to_dict(),
            "textbook": {
                **self.textbook.to_dict(),
                "size": facts.size,
                "shift": facts.shift,
                "likeness": facts.likeness,
            },
            "costs": self.costs,
            "stages": self.probes and self.probes.to_dict(),
            "target": self.distance and self.distance.to_dict(),
            "notes": list(self.notes),
        }

    def text(self, explain: bool = False) -> str:
        """Return the advice as text: one sentence each for comparison, finding and certainty.

        Args:
            explain: add the candidates, the times and the textbooks' choice.
        """
        choice = self.choice
        time = f" It takes about {choice.minutes:.1f} min." if choice.minutes else ""
        lines = [f"Advice: train {choice}.{time} {choice.why}", str(self.evidence)]
        if self.probes:
            lines.append(self.probes.verdict)
        if self.distance:
            command = " Run `keras-transfer adapt`." if self.distance.worth_trying else ""
            lines.append(f"Target domain: {self.distance.verdict}{command}")
        lines += [f"Note: {note}" for note in self.notes]
        if explain:
            rows = [(name, f"{minutes:.1f}") for name, minutes in self.costs.items()]
            lines += ["", self.evidence.table()]
            lines += ["", Table(("strategy", "minutes"), rows, "lr").text()]
            lines += ["", f"Textbook: {self.textbook.recipe}. {self.textbook.why}"]
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
