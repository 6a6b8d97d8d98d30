"""What a diagnosis found: problems of examples, as text, plain data, and a list to edit."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from keras_transfer.data.corrections import FIELDS
from keras_transfer.diagnosis.label_errors import LabelErrors
from keras_transfer.utils.console import counted, list_lines, listed, printable, verb
from keras_transfer.utils.files import csv_text, write_text

# Kind of problem → heading.
TITLES = {
    "label": "labels that are probably wrong",
    "leakage": "LEAKAGE: near-duplicates of examples in another split",
    "near-duplicate": "near-duplicates in one split",
    "outlier": "outliers",
}


@dataclass(frozen=True)
class Problem:
    """A problem of one example.

    Attributes:
        path: relative to the root of the data, as in a run's `split.csv`.
        problem: a key of `TITLES`.
        label: as given, in words.
        split: of the example.
        score: how certain the problem is: see `LabelErrors.scores` and `Outliers.scores`; of
            near-duplicates, the likeness of the linked pair of their group that differs most, see `near_pairs`.
        suggested: the probable label; "" if there is no suggestion.
        related: paths of other examples that the problem is about.
        reason: what else is to be said, such as `dark`.
    """

    path: str
    problem: str
    label: str
    split: str
    score: float
    suggested: str = ""
    related: tuple[str, ...] = ()
    reason: str = ""

    def __str__(self):
        text = f"{printable(self.path)} ({self.split}, {printable(self.label)})"
        if self.suggested:
            text += f": probably {printable(self.suggested)}"
        if self.related:
            text += f": like {listed([printable(path) for path in self.related], 2)}"
        if self.reason:
            text += f", {self.reason}"
        return f"{text}, score {self.score:.2f}"


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Result of `diagnose`.

    Attributes:
        root: the data.
        backbone: whose features were compared.
        examples: number of examples.
        many: what they are: "images", …
        problems: by kind, the most certain first.
        labels: name of each head → its label errors; the name is "" without several heads.
        notes: what could not be examined.
        title: what a person calls the data, such as their table; by default `root`.
    """

    root: str
    backbone: str
    examples: int
    many: str
    problems: tuple[Problem, ...]
    labels: dict[str, LabelErrors]
    notes: tuple[str, ...] = ()
    title: str = ""

    def text(self) -> str:
        """Return a readable report; long lists are shortened."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{printable(self.title or self.root)}: features of {self.examples} {self.many} by {self.backbone}"
        for name, found in self.labels.items():
            head = f"{printable(name)}: " if name else ""
            wrong = found.wrong
            if not found.judged:
                continue
            share = f"{100 * wrong['value']:.1f} %"
            if wrong["low"] is not None:
                share += f" ({100 * wrong['low']:.1f} to {100 * wrong['high']:.1f})"
            yield (
                f"{head}{counted(len(found.rows), 'label')} {verb(len(found.rows))} suspect; at most about {share} of "
                f"{found.judged} labels are wrong"
            )
            yield from (
                f"  {printable(given)}, probably {printable(true)}: about {count:.0f}"
                for given, true, count in found.pairs
            )
        for kind, title in TITLES.items():
            found = [problem for problem in self.problems if problem.problem == kind]
            yield from list_lines(title, found, "--write-list and --json list all")
        yield from (f"note: {note}" for note in self.notes)

    def to_dict(self) -> dict:
        """Return plain data for JSON."""
        return {
            "root": self.root,
            "backbone": self.backbone,
            "examples": self.examples,
            "labels": {
                name: {
                    "judged": found.judged,
                    "suspects": len(found.rows),
                    "wrong": found.wrong,
                    "pairs": [list(pair) for pair in found.pairs],
                }
                for name, found in self.labels.items()
            },
            "problems": [asdict(problem) for problem in self.problems],
            "notes": list(self.notes),
        }

    def write_list(self, path: str | os.PathLike) -> None:
        """Write the problems as a CSV file whose column `action` is to be filled in.

        `data.corrections` says what the columns mean.
        """
        rows = [
            (
                p.path,
                p.problem,
                p.label,
                p.suggested,
                f"{p.score:.4f}",
                "|".join(p.related),
                "",
                p.reason,
            )
            for p in self.problems
        ]
        write_text(path, csv_text(FIELDS, rows))
