"""Statistics of checked files, as plain data and as lines of text."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np


def counted(values: np.ndarray) -> dict:
    """Return value → number of times that it occurs, the most frequent first; bytes become text."""
    distinct, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    names = [name.decode() if isinstance(name, bytes) else name for name in distinct.tolist()]
    return {names[i]: int(counts[i]) for i in order}


def histogram(values: np.ndarray, edges: Sequence[int]) -> dict[str, int]:
    """Return bin, such as `"64-127"`, → number of values; empty bins are left out."""
    names = [f"{low}-{high - 1}" for low, high in zip([0, *edges], edges)] + [f"{edges[-1]}-"]
    counts = np.bincount(np.searchsorted(edges, values, "right"), minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts) if count}


def binned(values: np.ndarray, edges: Sequence[int], unit: str) -> list[str]:
    """Return the bin of each value, such as `"64–127 px"`, which sorts naturally."""
    names = [f"0–{edges[0] - 1} {unit}", *(f"{a}–{b - 1} {unit}" for a, b in pairwise(edges))]
    names.append(f"{edges[-1]} {unit} or more")
    return [names[i] for i in np.searchsorted(edges, values, side="right")]


def spread(values: np.ndarray, number: Callable = int) -> dict:
    """Return the least, median and greatest value; {} if there are none."""
    if not len(values):
        return {}
    found = values.min(), np.median(values), values.max()
    return dict(zip(("least", "median", "greatest"), map(number, found)))


def described(statistics: dict[str, dict], titles: dict[str, str]) -> Iterator[str]:
    """Yield a line for each of the counted values in `titles`: its title, and each value."""
    for name, title in titles.items():
        counts = ", ".join(f"{value}: {count}" for value, count in statistics[name].items())
        if counts:
            yield f"{title}: {counts}"
