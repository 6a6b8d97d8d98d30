"""Find out whether the names of files tell a person, a speaker or a recording that they belong to."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_LEAST_GROUPS = 3
_LEAST_FILES = 2.5  # of a group, on average
_ENOUGH = 0.95  # of the files, and of the classes
_SEPARATORS = "_- "
_POSITIONS = 3  # parts of a name that are looked at


class Suggestion(NamedTuple):
    """Groups that names suggest.

    Attributes:
        pattern: for `SplitRule.groups`.
        names: the groups, sorted.
    """

    pattern: str
    names: list[str]


def suggest_groups(names: Sequence[str], labels: np.ndarray) -> Suggestion | None:
    """Return the groups that names suggest, or None.

    A part of the name, or the folder inside the class folder, suggests groups if it has few values
    for so many files, but several in almost every class. The last part is not one: it numbers the
    files.

    Args:
        names: paths relative to the root, with forward slashes.
        labels: class of each, int [N].
    """
    for pattern in _patterns():
        found = [match and match[1] for match in map(re.compile(pattern).search, names)]
        known = np.flatnonzero([group is not None for group in found])
        if len(known) < max(1, _ENOUGH * len(names)):
            continue
        groups = np.array([found[i] for i in known])
        values = np.unique(groups)
        pairs = np.unique(np.stack([labels[known].astype(str), groups], axis=1), axis=0)
        several = np.unique(pairs[:, 0], return_counts=True)[1] > 1
        files = len(known) / (len(values) if pattern in _FIRST else len(pairs))
        if (
            len(values) >= _LEAST_GROUPS
            and several.mean() >= _ENOUGH
            and files >= (_LEAST_FILES if pattern in _FIRST else 2)
        ):
            return Suggestion(pattern, values.tolist())
    return None


_FOLDER = r"[^/]+/([^/]+)/[^/]+$"
_NUMBERED = r"(?:^|/)([^\W\d_]+)\d+\.[^/.]+$"
_FIRST = (_FOLDER, _NUMBERED, *(f"(?:^|/)([^/{s}]+){s}[^/]*$" for s in _SEPARATORS))


def _patterns():
    yield from _FIRST
    for separator in _SEPARATORS:
        part = f"[^/{separator}]+"
        for before in range(1, _POSITIONS):
            yield f"(?:^|/)(?:{part}{separator}){{{before}}}({part}){separator}[^/]*$"
