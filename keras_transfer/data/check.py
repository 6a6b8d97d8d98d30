"""Check a dataset before training: faulty files, duplicates, leakage, sizes, formats."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from keras_transfer.data.classes import sorted_names
from keras_transfer.data.examples import (
    Duplicates,
    ImageData,
    Target,
    find_duplicates,
    label_summary,
)
from keras_transfer.data.files import Files, Skipped, check_files
from keras_transfer.data.flaws import unprinted_flaws
from keras_transfer.data.folders import read_splits
from keras_transfer.data.sources import check_tree, label, open_data
from keras_transfer.data.splits import require_fraction
from keras_transfer.errors import InputError
from keras_transfer.utils.console import Table, printable

_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # bins of the histogram, in pixels
_MAX_SHOWN = 10  # entries of each list in the text


@dataclass(frozen=True)
class Report:
    """Result of `keras-transfer check`.

    Attributes:
        root: the folder.
        problem: why `train` would reject the dataset; None if it would not.
        images: split → number of usable images.
        labels: split → one line about the labels.
        counts: split → class (or label) → number of images; empty for numbers and several heads.
        faulty: files that are left out.
        empty: usable files in which the model sees (almost) nothing: one color, few of 16 bits.
        duplicates: images with the same content.
        sizes: shorter side in pixels, such as `"64-127"`, → number of files.
        widths, heights: minimum, median and maximum, after the orientation is applied.
        formats, modes, orientations: value → number of files.
    """

    root: str
    problem: str | None
    images: dict[str, int]
    labels: dict[str, str]
    counts: dict[str, dict[str, int]]
    faulty: list[Skipped]
    empty: list[Skipped]
    duplicates: Duplicates
    sizes: dict[str, int]
    widths: tuple[int, ...]
    heights: tuple[int, ...]
    formats: dict[str, int]
    modes: dict[str, int]
    orientations: dict[int, int]

    def to_dict(self) -> dict:
        """Return plain data for JSON."""

        def plain(groups):
            return [
                [{"split": m.split, "label": m.label, "path": m.name} for m in group]
                for group in groups
            ]

        spread = ("least", "median", "greatest")
        return {
            "root": self.root,
            "problem": self.problem,
            "images": self.images,
            "labels": self.labels,
            "counts": self.counts,
            "faulty": [asdict(skipped) for skipped in self.faulty],
            "empty": [asdict(skipped) for skipped in self.empty],
            "duplicates": plain(self.duplicates.groups),
            "leaks": plain(self.duplicates.leaks),
            "conflicts": plain(self.duplicates.conflicts),
            "shorter_side": self.sizes,
            "width": dict(zip(spread, self.widths)),
            "height": dict(zip(spread, self.heights)),
            "formats": self.formats,
            "modes": self.modes,
            "exif_orientations": {str(key): count for key, count in self.orientations.items()},
        }

    def text(self) -> str:
        """Return a readable report; long lists are shortened."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        usable = sum(self.images.values())
        yield f"{printable(self.root)}: {usable} usable images, {len(self.faulty)} faulty files"
        if self.problem:
            yield f"train would stop: {printable(self.problem)}"
        yield ""
        if self.counts:
            names = next(iter(self.counts.values()))
            rows = ([name, *(counts[name] for counts in self.counts.values())] for name in names)
            yield Table(["class", *self.counts], rows, "l" + "r" * len(self.counts)).text()
        else:
            for split, count in self.images.items():
                yield f"{split}: {count} images ({printable(self.labels[split])})"
        found = self.duplicates
        for title, rows in (
            (
                "faulty files, left out",
                [f"{printable(s.path)}: {printable(s.reason)}" for s in self.faulty],
            ),
            (
                "images that are empty to the model",
                [f"{printable(s.path)}: {printable(s.reason)}" for s in self.empty],
            ),
            ("LEAKAGE: images that two splits share", _pairs(found.leaks)),
            ("CONFLICTS: images with another label than their duplicate", _pairs(found.conflicts)),
            ("groups of equal files", [" = ".join(map(str, group)) for group in found.groups]),
        ):
            yield from _listed(title, rows)
        if self.widths:
            yield ""
            least, median, greatest = zip(self.widths, self.heights)
            yield (
                f"width x height: minimum {least[0]} x {least[1]}, median {median[0]} x {median[1]}, "
                f"maximum {greatest[0]} x {greatest[1]}"
            )
            for title, counted in (
                ("shorter side", self.sizes),
                ("format", self.formats),
                ("mode", self.modes),
                ("EXIF orientation", self.orientations),
            ):
                yield f"{title}: " + ", ".join(
                    f"{name}: {count}" for name, count in counted.items()
                )


def check_data(
    source: str | os.PathLike,
    *,
    val: str | os.PathLike | None = None,
    val_split: float | None = None,
    seed: int = 0,
    progress: bool = True,
    **options,
) -> Report:
    """Check labeled images, with the splits of `open_data`.

    If a folder cannot be used (for example because a class has no readable image), its content is
    reported together with the reason.

    Args:
        source, val, val_split, seed, options: see `open_data`.
        progress: show a bar on stderr, in a terminal or a notebook.

    Raises:
        InputError: if nothing in it can be used, or `val` or `val_split` is invalid.
    """
    if val_split is not None:
        require_fraction(val_split)
    if val is not None:
        read_splits(val)
    try:
        with unprinted_flaws():
            data = open_data(
                source, val=val, val_split=val_split, seed=seed, progress=progress, **options
            )
        return report_on(data)
    except InputError as problem:
        folder = Path(source).expanduser()
        with unprinted_flaws():
            data = _as_it_is(folder, progress) if folder.is_dir() else None
        if data is None or not any(len(part) for part in data.examples.values()):
            raise
        return report_on(data, problem=str(problem))


def report_on(data: ImageData, *, problem: str | None = None) -> Report:
    """Report on a dataset from any source; sizes and formats are reported for files only."""
    paths = [
        name
        for part in data.examples.values()
        if isinstance(part.images, Files)
        for name in part.names
    ]
    no_classes = isinstance(data.targets, dict) or data.task == "regression"
    checked = check_files(paths, progress=False)
    turned = checked.orientation >= 5
    widths = np.where(turned, checked.height, checked.width)
    heights = np.where(turned, checked.width, checked.height)
    return Report(
        root=data.root,
        problem=problem,
        images={split: len(part) for split, part in data.examples.items()},
        labels={s: label_summary(part.labels, data.targets) for s, part in data.examples.items()},
        counts={} if no_classes else data.counts,
        faulty=data.skipped,
        empty=[Skipped(paths[row], flaw) for row, flaw in sorted(checked.flaws.items())],
        duplicates=find_duplicates(data),
        sizes=_histogram(np.minimum(widths, heights)),
        widths=_spread(widths),
        heights=_spread(heights),
        formats={name.decode(): count for name, count in _counted(checked.format)},
        modes={name.decode(): count for name, count in _counted(checked.mode)},
        orientations=dict(_counted(checked.orientation)),
    )


def _as_it_is(root, progress) -> ImageData | None:
    """Return the splits and classes of a folder, whether it is suitable for training or not."""
    try:
        tree = read_splits(root)
    except InputError:
        return None
    names = sorted_names({name for classes in tree.values() for name in classes})
    target = Target("single_label", tuple(names))
    rows, checked = check_tree(tree, progress)
    examples = {split: label(checked, classes, target) for split, classes in rows.items()}
    return ImageData(target.names, examples, checked.skipped, str(root))


def _counted(values) -> list[tuple]:
    """Return (value, count), the most frequent first."""
    distinct, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(distinct[i].item(), int(counts[i])) for i in order]


def _histogram(sides) -> dict[str, int]:
    edges = [0, *_SIZES]
    names = [f"{low}-{high - 1}" for low, high in zip(edges, _SIZES)] + [f"{_SIZES[-1]}-"]
    counts = np.bincount(np.searchsorted(_SIZES, sides, "right"), minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts) if count}


def _spread(values) -> tuple[int, ...]:
    if not len(values):
        return ()
    return int(values.min()), int(np.median(values)), int(values.max())


def _pairs(pairs) -> list[str]:
    return [f"{duplicate} is {first}" for first, duplicate in pairs]


def _listed(title, rows) -> Iterator[str]:
    if rows:
        yield ""
        yield f"{title}: {len(rows)}"
        yield from (f"  {row}" for row in rows[:_MAX_SHOWN])
        if len(rows) > _MAX_SHOWN:
            yield f"  and {len(rows) - _MAX_SHOWN} more (--json lists all)"
