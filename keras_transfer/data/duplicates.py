"""Examples that occur twice, in one split or in several."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from keras_transfer.data.examples import ImageData, label_texts, map_labels
from keras_transfer.utils.console import counted, printable, verb


class Member(NamedTuple):
    """An example in a group of equal ones; `excerpt` is what it says, if it is a text."""

    split: str
    label: str
    name: str
    excerpt: str = ""

    def __str__(self) -> str:
        said = f" “{printable(self.excerpt)}”" if self.excerpt else ""
        return f"{printable(self.name)}{said} ({self.split}, {self.label})"


@dataclass(frozen=True)
class Duplicates:
    """Examples whose files are equal, byte for byte, or nearly, see `Modality.alike`.

    Attributes:
        groups: the members of each group: those of train first, then val, then test.
    """

    groups: list[list[Member]]

    @property
    def leaks(self) -> list[tuple[Member, Member]]:
        """(first of its group, image) for each image in another split than the first."""
        return [(g[0], m) for g in self.groups for m in g[1:] if m.split != g[0].split]

    @property
    def conflicts(self) -> list[tuple[Member, Member]]:
        """(first of its group, image) for each image with another label than the first."""
        return [(g[0], m) for g in self.groups for m in g[1:] if m.label != g[0].label]

    @property
    def warning(self) -> str | None:
        """One line if two splits share images or labels contradict each other, else None."""
        problems = (
            (self.leaks, ("is", "are"), "in two splits, so measured values are too good", "is"),
            (self.conflicts, ("has", "have"), "another label than a duplicate", "and"),
        )
        warnings = [
            f"{counted(len(pairs), 'example')} {verb(len(pairs), *verbs)} {problem} (first: {pairs[0][1]} {link} {pairs[0][0]})"
            for pairs, verbs, problem, link in problems
            if pairs
        ]
        if not warnings:
            return None
        return f"warning: {'; '.join(warnings)}; `keras-transfer check` lists them"


def find_duplicates(data: ImageData) -> Duplicates:
    """Return examples with the same content (texts: the same words), within and across splits."""
    counts = Counter(digest for part in data.examples.values() for digest in part.alike)
    groups = defaultdict(list)
    for split, part in data.examples.items():
        rows = [i for i, digest in enumerate(part.alike) if counts[digest] > 1]
        labels = map_labels(lambda array: array[rows], part.labels)  # noqa: B023
        for i, label in zip(rows, label_texts(labels, data.targets)):
            said = data.modality.excerpt(part.images, i)
            groups[part.alike[i]].append(Member(split, label, part.names[i], said))
    return Duplicates(list(groups.values()))
