"""Which images train, validate and test: a rule for what nobody has decided, and explicit lists."""

import csv
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from keras_transfer.data.files import SPLIT_OF_FOLDER
from keras_transfer.data.splits import folds, require_fraction, split
from keras_transfer.data.targets import strata
from keras_transfer.errors import InputError
from keras_transfer.utils.console import say

_MOST_LISTED = 10


@dataclass(frozen=True)
class SplitRule:
    """How images are divided where their folders do not say it.

    Attributes:
        val_split: share of the images for validation, in (0, 1), unless there are folds.
        test_split: share for testing, in [0, 1).
        groups: images of one group are never parted (a person, a patient, a film): a regular
            expression with one group in brackets, found in the path relative to the root, or a
            function of that path. By default only copies of a file are kept together.
        folds: validate on one of so many folds, at least 2.
        fold: which one, from 1 to `folds`.
        split_file: CSV with the columns `path` (relative to the root) and `split` (train, val or
            test): an explicit list, for example the `split.csv` of a run. What it does not name is
            drawn by the rest of the rule.
        seed: any whole number.

    Raises:
        InputError: values that do not go together.
    """

    val_split: float = 0.2
    test_split: float = 0.0
    groups: str | Callable[[str], str] | None = None
    folds: int | None = None
    fold: int | None = None
    split_file: str | os.PathLike | None = None
    seed: int = 0

    def __post_init__(self):
        if (self.folds is None) != (self.fold is None):
            raise InputError("give --folds (how many) and --fold (which one) together")
        if self.folds is not None:
            if self.folds < 2:
                raise InputError(f"--folds {self.folds}: cross-validation needs 2 or more")
            if not 1 <= self.fold <= self.folds:
                raise InputError(f"--fold {self.fold}: choose one from 1 to {self.folds}")
            if self.split_file is not None:
                raise InputError("--folds and --split exclude each other: leave one out")
        if isinstance(self.groups, str):
            try:
                count = re.compile(self.groups).groups
            except re.error as error:
                raise InputError(
                    f"--group {self.groups}: not a regular expression: {error}"
                ) from None
            if count != 1:
                raise InputError(
                    f"--group {self.groups}: put the part of the path that names the group in one "
                    r"pair of brackets, for example '(person\d+)'"
                )

    def check(self, given) -> bool:
        """True where something is to be divided; raises InputError where that cannot be."""
        return bool(self.shares(given) or self.folds or self.listed)

    def shares(self, given) -> dict[str, float]:
        """What is drawn: part → its share of the images (of one fold, the share of all folds).

        Args:
            given: the splits that the folders give ("train", "val", "test").

        Raises:
            InputError: something is asked for that the folders give already, or a share is out of
                range.
        """
        shares = {}
        if self.test_split:
            if "test" in given:
                raise InputError(
                    f"a test share of {self.test_split} and a folder of test images exclude each "
                    "other: leave out --test-split"
                )
            require_fraction(self.test_split, "test")
            shares["test"] = self.test_split
        if "val" not in given:
            if self.folds is None:
                require_fraction(self.val_split)
                shares["val"] = self.val_split
        elif self.folds is not None:
            raise InputError(
                "--folds needs all images in one folder, and there are validation images: leave "
                "one of the two out"
            )
        elif self.groups is not None and not shares and self.split_file is None:
            raise InputError(
                "--group says how to split, and the validation images are given already: leave "
                "one of the two out"
            )
        return shares

    @cached_property
    def listed(self) -> dict[str, str]:
        """Path as it stands in the file → its split; empty without a file.

        Raises:
            InputError: no such file, or not the columns and values of a list.
        """
        return {} if self.split_file is None else read_split_file(self.split_file)

    def assign(
        self,
        examples,
        names: Sequence[str],
        given: np.ndarray,
        target,
        skipped: Sequence[str] = (),
    ) -> np.ndarray:
        """The split of each example.

        Args:
            examples: a `data.Examples`, all of them.
            names: their paths relative to the root, with forward slashes.
            given: the split that the folder of each gives; "train" is what is divided.
            target: what their labels are, see `data.targets`.
            skipped: names that are left out, which a list may name.

        Returns:
            `"train"`, `"val"` or `"test"` [n].

        Raises:
            InputError: a class that cannot be in every part, names without a group, or a list that
                names none of the images.
        """
        splits = np.array(given, object)
        listed = self._listed(names, skipped)
        pool = np.flatnonzero(splits == "train")
        places = pool.tolist()
        fixed = [listed.get(names[i]) for i in places]
        open_places = fixed.count(None)
        if open_places:
            shares = self.shares(set(given))
            labels, class_names = strata(examples.take(pool).labels, target)
            keys = [examples.digests[i] for i in places]
            groups = self._groups([names[i] for i in places])
            rule = {"groups": groups, "seed": self.seed, "class_names": class_names}
            if self.folds is None:
                parts = split(labels, shares, keys, fixed=fixed if listed else None, **rule)
            else:
                parts = self._folded(labels, shares, keys, **rule)
            for name, chosen in parts.items():
                splits[pool[chosen]] = name
        if listed:
            for i, name in enumerate(names):
                splits[i] = listed.get(name, splits[i])
            if open_places:
                say(f"{self.split_file} does not name {open_places} images: split by the rule")
            self._check(splits, examples.labels, target)
        return splits

    def _folded(self, labels, shares, keys, groups, seed, class_names):
        parts = {"train": np.arange(len(labels)), "test": np.arange(0)}
        if shares:
            parts |= split(labels, shares, keys, groups=groups, seed=seed, class_names=class_names)
        rest = parts["train"]
        found = folds(
            labels[rest],
            self.folds,
            [keys[i] for i in rest],
            groups=groups and [groups[i] for i in rest],
            seed=seed,
            class_names=class_names,
        )
        val = rest[found[self.fold - 1]]
        return {"train": np.setdiff1d(rest, val), "val": val, "test": parts["test"]}

    def _groups(self, names):
        """The group of each path; None where there are none."""
        if self.groups is None:
            return None
        if callable(self.groups):
            return [str(self.groups(name)) for name in names]
        pattern = re.compile(self.groups)
        found = [match and match[1] for match in map(pattern.search, names)]
        if None in found:
            raise InputError(
                f"--group {self.groups} finds no group in {found.count(None)} of {len(names)} paths, "
                f"for example {names[found.index(None)]}: give a pattern that fits all"
            )
        return found

    def _listed(self, names, skipped):
        """The list, by the names of the images that are there; says which are gone."""
        listed = {os.path.normpath(path).replace(os.sep, "/"): s for path, s in self.listed.items()}
        there = set(names)
        gone = sorted(listed.keys() - there - set(skipped))
        if listed and not there & listed.keys():
            raise InputError(
                f"{self.split_file} names none of the images: its paths must be relative to the "
                f"folder of the images, like {names[0]}, not {gone[0]}"
            )
        if gone:
            more = ", …" if len(gone) > _MOST_LISTED else ""
            say(
                f"{self.split_file} names {len(gone)} images that are gone: "
                f"{', '.join(gone[:_MOST_LISTED])}{more}"
            )
        return {name: s for name, s in listed.items() if name in there}

    def _check(self, splits, labels, target):
        for part in ("train", "val"):
            if part not in splits:
                raise InputError(f"{self.split_file} leaves no image in {part}: name some")
        labels, class_names = strata(labels, target)
        if labels.ndim == 1:
            missing = set(labels.tolist()) - set(labels[splits == "train"].tolist())
            if missing:
                raise InputError(
                    f"{self.split_file} leaves no image of class {class_names[min(missing)]} in "
                    "train: name some"
                )


def read_split_file(path: str | os.PathLike) -> dict[str, str]:
    """Read a CSV file with the columns `path` and `split`: path → "train", "val" or "test".

    Other columns are not looked at; `valid` and `validation` mean "val".

    Raises:
        InputError: no such file, a missing column, another split, or a path with two of them.
    """
    path = Path(path).expanduser()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = {"path", "split"} - set(reader.fieldnames or ())
            if missing:
                raise InputError(
                    f"{path} has no column {' and no column '.join(sorted(missing))}; a list of "
                    "splits has the columns path and split"
                )
            rows = [(reader.line_num, row["path"], row["split"]) for row in reader]
    except OSError as error:
        raise InputError(f"cannot read the list of splits {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV file in UTF-8: {error}") from None
    found: dict[str, str] = {}
    for line, name, given in rows:
        known = SPLIT_OF_FOLDER.get((given or "").strip().lower())
        if known is None:
            raise InputError(f"{path}, line {line}: {given!r} is no split; use train, val or test")
        if found.setdefault(name, known) != known:
            raise InputError(f"{path}, line {line}: {name} is in {found[name]} and in {known}")
    if not found:
        raise InputError(f"{path} names no image")
    return found
