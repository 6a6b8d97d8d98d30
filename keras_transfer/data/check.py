"""Check a dataset before training: faulty files, duplicates, leakage, sizes, formats."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from keras_transfer.data.arrays import Contents
from keras_transfer.data.classes import sorted_names
from keras_transfer.data.duplicates import Duplicates, find_duplicates
from keras_transfer.data.examples import ImageData, Target, label_summary
from keras_transfer.data.files import Skipped, check_readers
from keras_transfer.data.flaws import unprinted_flaws
from keras_transfer.data.folders import read_splits
from keras_transfer.data.readers import Files
from keras_transfer.data.sources import check_tree, label, open_data
from keras_transfer.data.splits import require_fraction
from keras_transfer.errors import InputError
from keras_transfer.modalities import Framing, Modality
from keras_transfer.utils.console import Table, counted, list_lines, printable, say


@dataclass(frozen=True)
class Report:
    """Result of `keras-transfer check`.

    Attributes:
        root: the folder or table.
        problem: why `train` would reject the dataset; None if it would not.
        images: split → number of usable images.
        labels: split → one line about the labels.
        counts: split → class (or label) → number of images; empty for numbers and several heads.
        faulty: files that are left out.
        empty: usable files in which the model sees (almost) nothing: one color, few of 16 bits.
        misfits: usable files that the model cannot read, such as images with another number of channels.
        notes: how the model reads the files, if that is unusual.
        unserved: usable files that a model on TF Serving cannot read; `ask` converts them.
        duplicates: images with the same content.
        statistics: about the files, as plain data, see `Modality.statistics`; empty without files.
        modality: of the examples.
    """

    root: str
    problem: str | None
    images: dict[str, int]
    labels: dict[str, str]
    counts: dict[str, dict[str, int]]
    faulty: list[Skipped]
    empty: list[Skipped]
    misfits: list[Skipped]
    notes: list[str]
    unserved: list[str]
    duplicates: Duplicates
    statistics: dict[str, dict]
    modality: Modality

    def to_dict(self) -> dict:
        """Return plain data for JSON."""

        def plain(groups):
            return [
                [
                    {"split": m.split, "label": m.label, "path": m.name}
                    | ({"text": m.excerpt} if m.excerpt else {})
                    for m in group
                ]
                for group in groups
            ]

        return {
            "root": self.root,
            "problem": self.problem,
            "images": self.images,
            "labels": self.labels,
            "counts": self.counts,
            "faulty": [asdict(skipped) for skipped in self.faulty],
            "empty": [asdict(skipped) for skipped in self.empty],
            "misfits": [asdict(skipped) for skipped in self.misfits],
            "notes": self.notes,
            "unserved": self.unserved,
            "duplicates": plain(self.duplicates.groups),
            "leaks": plain(self.duplicates.leaks),
            "conflicts": plain(self.duplicates.conflicts),
            **self.statistics,
        }

    def text(self) -> str:
        """Return a readable report; long lists are shortened."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        usable, one, many = sum(self.images.values()), self.modality.one, self.modality.many
        found = f"{counted(usable, f'usable {one}')}, {counted(len(self.faulty), 'faulty file')}"
        yield f"{printable(self.root)}: {found}"
        if self.problem:
            yield f"train would stop: {printable(self.problem)}"
        yield ""
        if self.counts:
            names = next(iter(self.counts.values()))
            rows = ([name, *(counts[name] for counts in self.counts.values())] for name in names)
            yield Table(["class", *self.counts], rows, "l" + "r" * len(self.counts)).text()
        else:
            for split, count in self.images.items():
                yield f"{split}: {counted(count, one)} ({printable(self.labels[split])})"
        found = self.duplicates

        def reasons(skipped):
            return [f"{printable(each.path)}: {printable(each.reason)}" for each in skipped]

        for title, rows in (
            ("faulty files, left out", reasons(self.faulty)),
            (f"{many} that are empty to the model", reasons(self.empty)),
            (f"{many} that the model cannot read", reasons(self.misfits)),
            (
                f"{many} that a model on TF Serving cannot read (`keras-transfer ask` converts them)",
                [printable(path) for path in self.unserved],
            ),
            (f"LEAKAGE: {many} that two splits share", _pairs(found.leaks)),
            (f"CONFLICTS: {many} with another label than their duplicate", _pairs(found.conflicts)),
            (
                f"groups of {self.modality.equal}",
                [" = ".join(map(str, group)) for group in found.groups],
            ),
        ):
            yield from list_lines(title, rows, "--json lists all")
        yield from self.modality.describe_statistics(self.statistics)
        yield from self.notes


def check_data(
    source: str | os.PathLike,
    *,
    val: str | os.PathLike | None = None,
    val_split: float | None = None,
    seed: int = 0,
    framing: Framing | None = None,
    progress: bool = True,
    **options,
) -> Report:
    """Check labeled images, with the splits of `open_data`.

    If a folder cannot be used (for example because a class has no readable image), its content is
    reported together with the reason.

    Args:
        source, val, val_split, seed, options: see `open_data`.
        framing: of the model that will read them, as far as it is known.
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
        return report_on(data, framing=framing)
    except InputError as problem:
        folder = Path(source).expanduser()
        with unprinted_flaws():
            data = _as_it_is(folder, progress) if folder.is_dir() else None
        if data is None or not any(len(part) for part in data.examples.values()):
            raise
        return report_on(data, problem=str(problem), framing=framing)


def report_on(
    data: ImageData, *, problem: str | None = None, framing: Framing | None = None
) -> Report:
    """Report on a dataset from any source; sizes and formats are reported for files only."""
    readers = [part.images for part in data.examples.values()]
    known = [reader for reader in readers if isinstance(reader, (Files, Contents))]
    framing = _framing_for(data.modality, framing)
    no_classes = isinstance(data.targets, dict) or data.task == "regression"
    checked = check_readers(known, data.modality)
    paths = checked.names
    return Report(
        root=data.title,
        problem=problem,
        images={split: len(part) for split, part in data.examples.items()},
        labels={s: label_summary(part.labels, data.targets) for s, part in data.examples.items()},
        counts={} if no_classes else data.counts,
        faulty=data.skipped,
        empty=[Skipped(paths[row], flaw) for row, flaw in sorted(checked.flaws.items())],
        unserved=[
            path for path, served in zip(paths, checked.columns.get("served", ())) if not served
        ],
        misfits=checked.misfits(framing),
        notes=list(data.modality.reading_notes(checked.columns, framing)),
        duplicates=find_duplicates(data),
        statistics=data.modality.statistics(checked.columns),
        modality=data.modality,
    )


def report_reading(data: ImageData, framing: Framing) -> None:
    """Print how a model with a framing reads the files of some data, if that is unusual.

    Raises:
        InputError: it cannot read some of them.
    """
    files = [part.images for part in data.examples.values() if isinstance(part.images, Files)]
    if not files or framing.modality != data.modality.name:
        return
    checked = check_readers(files, data.modality)
    if misfits := checked.misfits(framing):
        first = misfits[0]
        raise InputError(
            f"The model cannot read {len(misfits)} of {len(checked.names)} {data.modality.many} "
            f"({first.path}: {first.reason}). `keras-transfer check` lists them: remove them, or choose "
            "other --channels."
        )
    for note in data.modality.reading_notes(checked.columns, framing):
        say(note)


def _framing_for(modality, framing):
    """Return a framing if it is for a modality; otherwise the open one of that."""
    if framing is not None and framing.modality == modality.name:
        return framing
    return modality.open_framing(None)


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


def _pairs(pairs) -> list[str]:
    return [f"{duplicate} is {first}" for first, duplicate in pairs]
