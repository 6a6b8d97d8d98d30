"""What there is to know of a data set before it is trained on: faults, duplicates, leakage, sizes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_transfer.data.examples import Examples, ImageData
from keras_transfer.data.files import Skipped, read_splits
from keras_transfer.data.index import check_files
from keras_transfer.data.readers import Files
from keras_transfer.data.sources import open_data
from keras_transfer.data.splits import require_fraction
from keras_transfer.data.targets import map_labels, shown, summary
from keras_transfer.errors import InputError
from keras_transfer.utils.tables import printable

_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # borders of the histogram, pixels
_SHOWN = 10  # of each list, in text


class Member(NamedTuple):
    """An image of a group with the same content."""

    split: str
    label: str
    name: str

    def __str__(self) -> str:
        return f"{printable(self.name)} ({self.split}, {self.label})"


Pair = tuple[Member, Member]


@dataclass(frozen=True)
class Duplicates:
    """Images whose files are equal, byte for byte.

    Attributes:
        groups: the members of each, those of train first, then val, then test.
    """

    groups: list[list[Member]]

    @property
    def leaks(self) -> list[Pair]:
        """Each image that a split before its own has too: (that one, it)."""
        return [
            (g[0], duplicate)
            for g in self.groups
            for duplicate in g[1:]
            if duplicate.split != g[0].split
        ]

    @property
    def conflicts(self) -> list[Pair]:
        """Each image with another label than the first of its group: (that one, it)."""
        return [
            (g[0], duplicate)
            for g in self.groups
            for duplicate in g[1:]
            if duplicate.label != g[0].label
        ]

    @property
    def warning(self) -> str | None:
        """One line where the images of two splits are the same or labels contradict each other."""
        said = []
        if self.leaks:
            first, duplicate = self.leaks[0]
            said.append(
                f"{len(self.leaks)} images are in two splits, so that measured values are too "
                f"good (first: {duplicate} is {first})"
            )
        if self.conflicts:
            first, duplicate = self.conflicts[0]
            said.append(
                f"{len(self.conflicts)} images have another label than their duplicate "
                f"(first: {duplicate} and {first})"
            )
        if not said:
            return None
        return f"warning: {'; '.join(said)}; `keras-transfer check` lists them"


def find_duplicates(data: ImageData) -> Duplicates:
    """Images with the same content, within and across splits; no file is read that was checked."""
    parts = [(split, part) for split, part in data.examples.items() if len(part)]
    digests = [d for _, part in parts for d in part.digests]
    rows = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
    order = np.lexsort(rows.T)
    differs = (rows[order[1:]] != rows[order[:-1]]).any(axis=1)
    group = np.zeros(len(rows), np.int64)
    group[order[1:]] = np.cumsum(differs)
    several = np.flatnonzero(np.bincount(group)[group] > 1)
    starts = np.cumsum([0, *(len(part) for _, part in parts)])
    groups: dict[int, list[Member]] = {}
    for row in several:
        number = int(np.searchsorted(starts, row, "right")) - 1
        split, part = parts[number]
        at = row - starts[number]
        (label,) = shown(map_labels(lambda array: array[[at]], part.labels), data.targets)  # noqa: B023
        groups.setdefault(int(group[row]), []).append(Member(split, label, part.names[at]))
    return Duplicates(list(groups.values()))


@dataclass(frozen=True)
class Report:
    """What `keras-transfer check` says.

    Attributes:
        root: the folder.
        problem: why `train` would refuse it; None where it would not.
        images: split → number of usable ones.
        labels: split → what they are labelled with, in a line.
        counts: split → class (or label) → number of them; of numbers and several heads there are none.
        faulty: files that are left out.
        duplicates: images with the same content.
        sizes: shorter side in pixels, as `"64-127"`, → number of files.
        widths, heights: least, median and greatest, after the orientation is applied.
        formats, modes, orientations: what there is → number of files.
    """

    root: str
    problem: str | None
    images: dict[str, int]
    labels: dict[str, str]
    counts: dict[str, dict[str, int]]
    faulty: list[Skipped]
    duplicates: Duplicates
    sizes: dict[str, int]
    widths: tuple[int, ...]
    heights: tuple[int, ...]
    formats: dict[str, int]
    modes: dict[str, int]
    orientations: dict[int, int]

    def to_dict(self) -> dict:
        """Plain data for JSON."""
        return {
            "root": self.root,
            "problem": self.problem,
            "images": self.images,
            "labels": self.labels,
            "counts": self.counts,
            "faulty": [{"path": s.path, "reason": s.reason} for s in self.faulty],
            "duplicates": [
                [_plain(member) for member in group] for group in self.duplicates.groups
            ],
            "leaks": [[_plain(member) for member in pair] for pair in self.duplicates.leaks],
            "conflicts": [
                [_plain(member) for member in pair] for pair in self.duplicates.conflicts
            ],
            "shorter_side": self.sizes,
            "width": dict(zip(("least", "median", "greatest"), self.widths)),
            "height": dict(zip(("least", "median", "greatest"), self.heights)),
            "formats": self.formats,
            "modes": self.modes,
            "exif_orientations": {str(key): count for key, count in self.orientations.items()},
        }

    def text(self) -> str:
        """The same for people; of long lists the beginning."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        usable = sum(self.images.values())
        yield f"{printable(self.root)}: {usable} usable images, {len(self.faulty)} faulty files"
        if self.problem:
            yield f"train would stop: {printable(self.problem)}"
        yield ""
        if self.counts:
            yield f"{'class':<24}" + "".join(f"{split:>10}" for split in self.counts)
            for name in next(iter(self.counts.values())):
                row = "".join(f"{counts[name]:>10}" for counts in self.counts.values())
                yield f"{printable(name)[:23]:<24}{row}"
        else:
            for split, count in self.images.items():
                yield f"{split}: {count} images ({printable(self.labels[split])})"
        yield from _listed(
            "faulty files, left out",
            [f"{printable(s.path)}: {printable(s.reason)}" for s in self.faulty],
        )
        yield from _listed(
            "LEAKAGE: images that two splits share",
            [f"{duplicate} is {first}" for first, duplicate in self.duplicates.leaks],
        )
        yield from _listed(
            "CONFLICTS: images with another label than their duplicate",
            [f"{duplicate} is {first}" for first, duplicate in self.duplicates.conflicts],
        )
        yield from _listed(
            "groups of equal files",
            [" = ".join(map(str, group)) for group in self.duplicates.groups],
        )
        if self.widths:
            yield ""
            least, median, greatest = zip(self.widths, self.heights)
            yield (
                f"width x height: least {least[0]} x {least[1]}, median {median[0]} x {median[1]}, "
                f"greatest {greatest[0]} x {greatest[1]}"
            )
            for title, found in (
                ("shorter side", self.sizes),
                ("format", self.formats),
                ("mode", self.modes),
                ("EXIF orientation", self.orientations),
            ):
                yield f"{title}: " + ", ".join(f"{name}: {count}" for name, count in found.items())


def check_data(
    source: str | os.PathLike,
    *,
    val: str | os.PathLike | None = None,
    val_split: float = 0.2,
    seed: int = 0,
    progress: bool = True,
    **options,
) -> Report:
    """What there is to know of labelled images, with the splits that `open_data` makes.

    Where it refuses a folder (a class has no readable image, say), what is in the folder is
    reported all the same, and the reason.

    Args:
        source, val, val_split, seed, options: see `open_data`.
        progress: show a bar on stderr, in a terminal or a notebook.

    Raises:
        InputError: nothing in it can be used, or `val` or `val_split` is wrong.
    """
    require_fraction(val_split)
    if val is not None:
        read_splits(val)
    try:
        data = open_data(
            source, val=val, val_split=val_split, seed=seed, progress=progress, **options
        )
        return report_on(data)
    except InputError as problem:
        folder = Path(source).expanduser()
        data = _as_it_is(folder, progress) if folder.is_dir() else None
        if data is None or not any(len(part) for part in data.examples.values()):
            raise
        return report_on(data, problem=str(problem))


def report_on(data: ImageData, *, problem: str | None = None) -> Report:
    """The report on a data set of any source; sizes and formats are known of files only."""
    paths = [
        name
        for part in data.examples.values()
        if isinstance(part.images, Files)
        for name in part.names
    ]
    has_none = isinstance(data.targets, dict) or data.task == "regression"
    checked = check_files(paths, progress=False)
    turned = checked.orientation >= 5
    widths = np.where(turned, checked.height, checked.width)
    heights = np.where(turned, checked.width, checked.height)
    return Report(
        root=data.root,
        problem=problem,
        images={split: len(part) for split, part in data.examples.items()},
        labels={s: summary(part.labels, data.targets) for s, part in data.examples.items()},
        counts={} if has_none else data.counts,
        faulty=data.skipped,
        duplicates=find_duplicates(data),
        sizes=_histogram(np.minimum(widths, heights)),
        widths=_spread(widths),
        heights=_spread(heights),
        formats={name.decode(): count for name, count in _counted(checked.format)},
        modes={name.decode(): count for name, count in _counted(checked.mode)},
        orientations=dict(_counted(checked.orientation)),
    )


def _as_it_is(root, progress) -> ImageData | None:
    """The folder's own splits and all classes that occur, whether one can train on them or not."""
    try:
        tree = read_splits(root)
    except InputError:
        return None
    names = sorted({name for classes in tree.values() for name in classes})
    examples, skipped = {}, []
    for split, classes in tree.items():
        paths = [path for files in classes.values() for path in files]
        labels = np.repeat(
            np.array([names.index(name) for name in classes], np.int32),
            [len(files) for files in classes.values()],
        )
        checked = check_files(paths, progress=progress)
        rows = checked.usable()
        examples[split] = Examples(checked.files(rows), labels[rows])
        skipped += checked.skipped
    return ImageData(tuple(names), examples, skipped, str(root))


def _counted(values) -> list[tuple]:
    """(value, how often), the most frequent first."""
    found, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(found[i].item(), int(counts[i])) for i in order]


def _histogram(sides) -> dict[str, int]:
    borders = [0, *_SIZES]
    names = [f"{low}-{high - 1}" for low, high in zip(borders, _SIZES)] + [f"{_SIZES[-1]}-"]
    counts = np.bincount(np.searchsorted(_SIZES, sides, "right"), minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts) if count}


def _spread(values) -> tuple[int, ...]:
    if not len(values):
        return ()
    return int(values.min()), int(np.median(values)), int(values.max())


def _plain(member: Member) -> dict:
    return {"split": member.split, "label": member.label, "path": member.name}


def _listed(title, rows) -> Iterator[str]:
    if rows:
        yield ""
        yield f"{title}: {len(rows)}"
        yield from (f"  {row}" for row in rows[:_SHOWN])
        if len(rows) > _SHOWN:
            yield f"  and {len(rows) - _SHOWN} more (--json lists all)"
