"""Assign examples to training, validation and test: by a rule, or by an explicit list."""

import csv
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from keras_transfer.data.classes import require_each_class
from keras_transfer.data.examples import (
    TASKS,
    Examples,
    ImageData,
    Target,
    join_examples,
    join_labels,
    relative_paths,
)
from keras_transfer.data.files import Skipped
from keras_transfer.data.group_names import suggest_groups
from keras_transfer.data.splits import folds, require_fraction, split
from keras_transfer.errors import InputError
from keras_transfer.utils.console import counted, listed, say, verb
from keras_transfer.utils.files import csv_rows

DEFAULT_VAL_SPLIT = 0.2
# Names of folders, and of splits in tables and lists.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class SplitRule:
    """How images are assigned to splits if their folders do not do it.

    Attributes:
        val_split: share of the images for validation, in (0, 1); None means 0.2. Not used with folds.
        test_split: share for testing, in [0, 1).
        groups: images of one group (a person, a patient, a film) stay in one split: a regular
            expression with one group in parentheses, searched in the path relative to the root, or
            a function of that path. By default only copies of a file stay together.
        folds: number of folds, one of which is for validation; at least 2.
        fold: number of that fold, from 1 to `folds`.
        split_file: CSV with the columns `path` (relative to the root) and `split` (train, val or
            test): an explicit list, for example the `split.csv` of a run. The rest of the rule
            assigns images that it does not name.
        seed: any integer.

    Raises:
        InputError: if the values contradict each other.
    """

    val_split: float | None = None
    test_split: float = 0.0
    groups: str | Callable[[str], str] | None = None
    folds: int | None = None
    fold: int | None = None
    split_file: str | os.PathLike | None = None
    seed: int = 0

    def __post_init__(self):
        if (self.folds is None) != (self.fold is None):
            raise InputError("pass --folds (how many) and --fold (which one) together")
        if self.folds is not None:
            for name, number in (("folds", self.folds), ("fold", self.fold)):
                if not isinstance(number, Integral):
                    raise InputError(f"--{name} {number!r}: pass a whole number")
            if self.folds < 2:
                raise InputError(f"--folds {self.folds}: cross-validation needs 2 or more")
            if not 1 <= self.fold <= self.folds:
                raise InputError(f"--fold {self.fold}: choose one from 1 to {self.folds}")
            if self.split_file is not None:
                raise InputError("--folds and --split cannot be combined: omit one of them")
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
                    r"pair of parentheses, for example '(person\d+)'"
                )

    def check(self, given) -> bool:
        """Return whether anything is to be assigned; raise InputError if that is impossible."""
        return bool(self.shares(given) or self.folds or self.listed)

    def shares(self, given) -> dict[str, float]:
        """Return the shares of the splits to draw, without folds; `given` are those that exist.

        Raises:
            InputError: if a split to draw exists already, or a share is out of range.
        """
        shares = {}
        if self.test_split:
            if "test" in given:
                raise InputError(
                    f"a test share of {self.test_split} cannot be combined with a folder of test "
                    "images: omit --test-split"
                )
            shares["test"] = self.test_split
        if "val" not in given:
            if self.folds is None:
                shares["val"] = DEFAULT_VAL_SPLIT if self.val_split is None else self.val_split
        elif self.folds is not None:
            raise InputError(
                "--folds needs all images in one folder, but there are validation images: omit "
                "one of the two"
            )
        elif self.groups is not None and not shares and self.split_file is None:
            what = "--group" if isinstance(self.groups, str) else "--keep-together"
            raise InputError(
                f"{what} determines the split, but the validation examples are given already: omit "
                "one of the two"
            )
        for name, share in shares.items():
            require_fraction(share, name)
        return shares

    @cached_property
    def listed(self) -> dict[str, str]:
        """The list, as in the file: path → split; empty without a file."""
        return {} if self.split_file is None else read_split_file(self.split_file)

    def assign(
        self, examples, names: Sequence[str], given: np.ndarray, target, skipped: Sequence[str] = ()
    ) -> np.ndarray:
        """Return the split of each example, `"train"`, `"val"` or `"test"` [n].

        Args:
            examples: an `Examples` with all of them.
            names: their paths relative to the root, with forward slashes.
            given: the split of each according to its folder; those of "train" are divided.
            target: what their labels are: a `Target`, or a dict of them.
            skipped: names of files that are left out, which a list may contain.

        Raises:
            InputError: if a class cannot be in every split, a name has no group, or a list contains
                none of the images.
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
            keys = [examples.alike[i] for i in places]
            groups = self.groups_of([names[i] for i in places])
            rule: dict[str, Any] = {"groups": groups, "seed": self.seed, "class_names": class_names}
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
                say(
                    f"{self.split_file} does not name {counted(open_places, 'image')}: the rule assigns {verb(open_places, 'it', 'them')}"
                )
            self._check(splits, examples.labels, target)
        return splits

    def _folded(self, labels, shares, keys, groups, **rule):
        """Return the parts like `split`, with one fold for validation."""
        parts = {"train": np.arange(len(labels))}
        if shares:
            parts = split(labels, shares, keys, groups=groups, **rule)
        rest = parts["train"]
        groups = groups and [groups[i] for i in rest]
        keys = [keys[i] for i in rest]
        val = rest[folds(labels[rest], self.folds, keys, groups=groups, **rule)[self.fold - 1]]
        return {**parts, "train": np.setdiff1d(rest, val), "val": val}

    def groups_of(self, names: Sequence[str]) -> list[str] | None:
        """Return the group of each path; None if the rule has no groups."""
        if self.groups is None:
            return None
        if callable(self.groups):
            return [str(self.groups(name)) for name in names]
        pattern = re.compile(self.groups)
        matches = map(pattern.search, names)
        found: list[str | None] = [match[1] if match else None for match in matches]
        if None in found:
            raise InputError(
                f"--group {self.groups} finds no group in {found.count(None)} of {len(names)} paths, "
                f"for example {names[found.index(None)]}: pass a pattern that matches all paths"
            )
        return [str(group) for group in found]

    def _listed(self, names, skipped):
        """Return the list, restricted to images that exist; print which ones are missing."""
        wanted = {os.path.normpath(path).replace(os.sep, "/"): s for path, s in self.listed.items()}
        existing = set(names)
        missing = sorted(wanted.keys() - existing - set(skipped))
        if wanted and not existing & wanted.keys():
            raise InputError(
                f"{self.split_file} names none of the examples: its paths must be relative to the "
                f"folder of the examples, like {names[0]}, not {missing[0]}"
            )
        if missing:
            say(
                f"{self.split_file} names {counted(len(missing), 'image')} that no longer {verb(len(missing), 'exists', 'exist')}: {listed(missing)}"
            )
        return {name: s for name, s in wanted.items() if name in existing}

    def _check(self, splits, labels, target):
        for part in ("train", "val"):
            if part not in splits:
                raise InputError(f"{self.split_file} leaves no example in {part}: list some")
        labels, class_names = strata(labels, target)
        if labels.ndim == 1:
            missing = set(labels.tolist()) - set(labels[splits == "train"].tolist())
            if missing:
                raise InputError(
                    f"{self.split_file} leaves no example of class {class_names[min(missing)]} in "
                    "train: list some"
                )


def strata(labels, target) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Return (labels by which a split is stratified, the names of their classes or None).

    With several heads these are the labels of the first head with classes, else of the first head.
    """
    if isinstance(target, dict):
        first = min(target, key=lambda name: TASKS.index(target[name].task))
        labels, target = labels[first], target[first]
    return labels, None if target.task == "regression" else target.names


def divide(
    target: Target | dict[str, Target],
    examples: dict[str, Examples],
    skipped: list[Skipped],
    root,
    rule: SplitRule,
) -> ImageData:
    """Return the dataset of a source, after the rule has drawn the missing splits.

    Raises:
        InputError: if a class has no image to train on, or the rule cannot be applied to these images.
    """
    if "train" in examples:  # with a list, every image may become one to train on
        parts = list(examples.values()) if rule.listed else [examples["train"]]
        require_each_class(join_labels([part.labels for part in parts]), target, root, skipped)
    if rule.val_split is not None and ("val" in examples or rule.folds):
        why = "--folds draws them" if rule.folds else "they are given already"
        say(f"--val-split has no effect on the validation examples: {why}")
    val_drawn = "val" not in examples and not (rule.folds or rule.listed)
    if rule.check(examples):
        whole = join_examples(examples.values())
        given = np.repeat(list(examples), [len(part) for part in examples.values()])
        left_out = relative_paths((item.path for item in skipped), root)
        paths = relative_paths(whole.names, root)
        splits = rule.assign(whole, paths, given, target, left_out)
        _report_groups(rule, paths, given, whole, target)
        if groups := rule.groups_of(paths):
            whole.groups = np.unique(groups, return_inverse=True)[1]
        examples = {name: whole.take(np.flatnonzero(splits == name)) for name in set(splits)}
    in_order: dict[str, Examples] = {
        name: examples[name] for name in ("train", "val", "test") if name in examples
    }
    names = () if isinstance(target, dict) else target.names
    data = ImageData(names, in_order, skipped, str(root), target, val_drawn=val_drawn)
    if names and data.task != "regression":
        for name, counts in data.counts.items():
            if missing := [label for label, count in counts.items() if not count]:
                say(f"{name} has no example of {listed(missing)}")
    return data


def _report_groups(rule, paths, given, whole, target):
    """Print that names suggest groups, if images are drawn without regard to them."""
    if rule.groups is not None or rule.listed:
        return
    rows = np.flatnonzero(given == "train")
    labels, names = strata(whole.take(rows).labels, target)
    classes = labels if labels.ndim == 1 and names else np.zeros(len(rows), int)
    if found := suggest_groups([paths[i] for i in rows], classes):
        say(
            f"the names suggest {len(found.names)} groups: {listed(found.names, 3)}. If these are people, "
            f"speakers, recordings or the like, pass --group '{found.pattern}', so that each is in one "
            "split; otherwise the accuracy will be too high"
        )


def read_split_file(path: str | os.PathLike) -> dict[str, str]:
    """Read a CSV file with the columns `path` and `split`: path → "train", "val" or "test".

    Other columns are ignored; `valid` and `validation` mean "val".

    Raises:
        InputError: if the file or a column is missing, a split is invalid, or a path has two splits.
    """
    path = Path(path).expanduser()
    try:
        reader = csv_rows(path)
        missing = {"path", "split"} - set(reader.fieldnames or ())
        if missing:
            raise InputError(
                f"{path} has no column {' and no column '.join(sorted(missing))}; a list of "
                "splits has the columns path and split"
            )
        rows = [(reader.line_num, row["path"], row["split"]) for row in reader]
    except OSError as error:
        raise InputError(f"cannot read the list of splits {path}: {error.strerror}") from None
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file: {error}") from None
    listed: dict[str, str] = {}
    for line, name, given in rows:
        known = SPLIT_NAMES.get((given or "").strip().lower())
        if known is None:
            raise InputError(
                f"{path}, line {line}: {given!r} is not a split; use train, val or test"
            )
        if not name:
            raise InputError(f"{path}, line {line} has no path: fill it in or remove the line")
        if listed.setdefault(name, known) != known:
            raise InputError(f"{path}, line {line}: {name} is in {listed[name]} and in {known}")
    if not listed:
        raise InputError(f"{path} names no example")
    return listed
