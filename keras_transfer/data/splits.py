"""Divide examples into training, validation and test parts, and draw stratified samples.

One rule applies to all kinds of labels. Examples that belong together (copies of one image, images of
one person) form a group. Groups are ranked by a hash of the seed and of their name, so the rank of an
example does not depend on the others. A part takes, in that order, each group that brings its class
counts nearer to their quotas. If every group is one image, this is an exactly stratified sample; if an
image is added, removed or renamed, almost all others stay where they were.
"""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from numbers import Real

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.utils.console import counted
from keras_transfer.utils.files import encode_text

_MAX_BINS, _MIN_PER_BIN = 10, 10
_MIN_PER_CLASS = 5  # groups that each class gets before large classes get more


def split(
    labels: np.ndarray,
    shares: Mapping[str, float],
    keys: Sequence[bytes | str],
    *,
    groups: Sequence[Hashable] | None = None,
    fixed: Sequence[str | None] | None = None,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Draw parts in which the classes have the same shares; the rest is the part "train".

    If every group is one image, a part has `round(n * share)` examples, by largest remainder over the
    classes, and at least one of each. With larger groups a class misses its quota by about half a group.

    Args:
        labels: integers [n]; or 0/1 of shape [n, L], any number of labels per image; or float [n] or
            [n, C], which are divided at quantiles.
        shares: name of a part → its share of all examples, each in (0, 1), together below 1. They
            are drawn in this order: the first does not depend on the others.
        keys: the digest of each example's content; examples with equal keys are copies and stay
            together.
        groups: a name for each example; examples with one name stay together. By default the keys.
        fixed: the part of each example that is assigned already, None for the others. Their groups
            follow them; the rule fills the rest of the quotas.
        seed: any integer; the same seed gives the same parts.
        class_names: name of each label, for error messages only.

    Returns:
        Part → sorted indices into `labels`; disjoint and together complete.

    Raises:
        InputError: if a share is out of range; or, if nothing is fixed, if a class cannot be in every
            part.
    """
    for name, share in shares.items():
        require_fraction(share, name)
    if sum(shares.values()) >= 1:
        raise InputError(
            f"the shares {', '.join(f'{k} {v}' for k, v in shares.items())} leave nothing to train on"
        )
    pool = _Pool(labels, keys, groups, seed, class_names)
    whole = pool.counts_of(None)
    if fixed is None:
        pool.require(len(shares) + 1)
    else:
        pool.fix(fixed, ["train", *shares])
    for i, (name, share) in enumerate(shares.items()):
        pool.draw(name, whole, share, keep=len(shares) - i, strict=fixed is None)
    parts = pool.parts()
    if fixed is not None:  # copies that a list puts into two parts stay there
        parts = np.array([given or part for given, part in zip(fixed, parts)], object)
    names = dict.fromkeys(["train", *shares, *parts])
    return {name: np.flatnonzero(parts == name) for name in names}


def folds(
    labels: np.ndarray,
    count: int,
    keys: Sequence[bytes | str],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> list[np.ndarray]:
    """Return the validation parts of `count`-fold cross-validation, by the rule of `split`.

    The first fold is `1/count` of all examples, the next one `1/(count - 1)` of the rest, and so on.
    The other arguments are those of `split`.

    Args:
        count: number of folds, at least 2.

    Returns:
        Sorted indices into `labels` for each fold; disjoint and together complete.

    Raises:
        InputError: if a class has too few groups to be in every fold.
    """
    pool = _Pool(labels, keys, groups, seed, class_names)
    pool.require(count)
    for i in range(count - 1):
        pool.draw(i, pool.counts_of(None), 1 / (count - i), keep=count - 1 - i)
    parts = pool.parts(rest=count - 1)
    return [np.flatnonzero(parts == i) for i in range(count)]


def stratified_sample(
    labels: np.ndarray, size: int, *, groups: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """Draw a sample in which the classes have the same shares as in all rows.

    Each class first gets five groups (or all of its groups), as far as `size` allows; the rest is
    proportional. The result is a pure function of the arguments.

    Args:
        labels: class of each row, int [n].
        size: maximum number of rows in the sample.
        groups: int [n]; rows of one group, which have the same class, are sampled together, unless
            that leaves none. By default every row is a group.
        seed: any integer.

    Returns:
        Sorted positions, int [≤ size]; all of them if there are no more than `size`.
    """
    if len(labels) <= size:
        return np.arange(len(labels))
    groups = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    _, first, counts = np.unique(groups, return_index=True, return_counts=True)
    classes = labels[first]
    order = np.random.default_rng(seed).permutation(len(classes))
    priority = np.empty(len(classes))  # the lowest are sampled
    for label in np.unique(classes):
        members = order[classes[order] == label]
        rank = np.arange(len(members))
        priority[members] = np.where(
            rank < _MIN_PER_CLASS, rank - _MIN_PER_CLASS, (rank + 0.5) / len(members)
        )
    ranked = order[np.argsort(priority[order], kind="stable")]
    sampled = ranked[np.cumsum(counts[ranked]) <= size]
    if not len(sampled):  # the first group is larger
        return stratified_sample(labels, size, seed=seed)
    return np.flatnonzero(np.isin(groups, sampled))


def require_fraction(fraction: float, part: str = "val") -> None:
    """Raise InputError unless 0 < fraction < 1."""
    if not isinstance(fraction, Real) or not 0 < fraction < 1:
        name = {"val": "validation"}.get(part, part)
        raise InputError(
            f"the {name} share must be between 0 and 1 (both excluded), not {fraction!r}; "
            f"0.2 is usual (--{part}-split 0.2)"
        )


class _Pool:
    """Groups of examples by rank, the class counts of each, and their parts.

    A class is a column of counts; so is a quantile bin of a number, but a part may lack a bin.
    """

    def __init__(self, labels, keys, groups, seed, class_names):
        rows, columns, self.classes = _columns(np.asarray(labels))
        self.class_names = class_names
        names = keys if groups is None else groups
        number = _numbers(names)
        if groups is not None:
            number = joined(number, _numbers(keys))
        hashes = {}
        for group, name in zip(number, names):
            rank = _hash(seed, name)
            # Groups that a copy joins have the lowest of their hashes.
            hashes[group] = min(rank, hashes.get(group, rank))
        position = {group: i for i, group in enumerate(sorted(hashes, key=hashes.get))}
        self.group = np.array([position[group] for group in number])
        # The columns of each group and its counts in them.
        width = len(self.classes)
        cells, counts = np.unique(self.group[rows] * width + columns, return_counts=True)
        starts = np.searchsorted(cells, np.arange(len(position) + 1) * width).tolist()
        pairs = list(zip((cells % width).tolist(), counts.tolist()))
        self.held = [pairs[a:b] for a, b in pairwise(starts)]
        self.part = [None] * len(position)
        self.required = np.array([name is not None for name in self.classes])

    def counts_of(self, part) -> np.ndarray:
        """Return the examples of each column in a part; None stands for those not drawn yet."""
        counts = np.zeros(len(self.classes), int)
        for held, where in zip(self.held, self.part):
            if where == part:
                for column, n in held:
                    counts[column] += n
        return counts

    def require(self, parts: int) -> None:
        """Raise InputError if a class has too few groups for so many parts."""
        if len(self.held) < parts:
            raise InputError(
                f"too few examples to split: {counted(len(self.held), 'group')} for {parts} parts; add some"
            )
        groups = self._groups_left()
        counts = self.counts_of(None)
        for column in np.flatnonzero(self.required & (counts > 0) & (groups < parts)):
            n, g = int(counts[column]), int(groups[column])
            have = f"{n} readable example{'s' * (n != 1)}"
            if g < n:
                have += f", which belong together in {g} group{'s' * (g != 1)}"
            if parts > 2:
                have += f", for {parts} parts"
            raise InputError(
                f"too few examples to split: class {self._name(column)} has {have}; "
                "add some or pass a validation folder with --val"
            )

    def fix(self, fixed, order) -> None:
        """Assign groups to the parts of their examples; with several parts, to the first in `order`."""
        for group, part in zip(self.group, fixed):
            if part is not None:
                sides = {part, self.part[group]} - {None}
                self.part[group] = next((p for p in order if p in sides), part)

    def draw(self, name, whole, share, keep: int, strict: bool = True) -> None:
        """Draw the part `name`, a share of the counts `whole`.

        Each of `keep` later parts needs a group of every class, and so does this one if `strict`.
        """
        have = self.counts_of(name)
        left = self.counts_of(None) + have + self.counts_of("train")
        most = np.maximum(left - keep * self.required, 0)
        quotas = _quotas(whole, share, np.minimum(self.required, most), most)
        weights = 1 / np.maximum(quotas, 1)  # as in chi-square, so that rare classes count as much
        room = np.where(self.required, self._groups_left() - keep, len(self.held)).tolist()
        have, quotas, weights = have.tolist(), quotas.tolist(), weights.tolist()

        def gain(held):
            # Not `sum`, which rounds otherwise since Python 3.12: earlier splits would change.
            total = 0.0
            for c, n in held:
                total += weights[c] * n * (2 * (quotas[c] - have[c]) - n)
            return total

        def fits(group):
            return self.part[group] is None and all(room[c] > 0 for c, _ in self.held[group])

        def take(group):
            self.part[group] = name
            for c, n in self.held[group]:
                have[c] += n
                room[c] -= 1

        for group, held in enumerate(self.held):
            if fits(group) and gain(held) > 0:
                take(group)
        missing = [c for c in np.flatnonzero(self.required & (left > 0)) if not have[c]]
        for column in sorted(missing, key=room.__getitem__):
            if have[column]:  # added with another class
                continue
            able = [g for g, held in enumerate(self.held) if column in dict(held) and fits(g)]
            if able:
                take(max(able, key=lambda g: gain(self.held[g])))
            elif strict:
                raise InputError(
                    f"no split found that has class {self._name(column)} in every part and keeps groups "
                    "together; use another seed, smaller groups or fewer parts, or pass a validation "
                    "folder with --val"
                )

    def parts(self, rest="train") -> np.ndarray:
        """Return the part of each example [n]; `rest` for those not drawn."""
        by_group = np.array([rest if part is None else part for part in self.part], object)
        return by_group[self.group]

    def _groups_left(self):
        """Return how many groups of each column are in no part but training."""
        groups = np.zeros(len(self.classes), int)
        for held, part in zip(self.held, self.part):
            if part in (None, "train"):
                for column, _ in held:
                    groups[column] += 1
        return groups

    def _name(self, column):
        label = self.classes[column]
        return label if self.class_names is None else self.class_names[label]


def _columns(labels):
    """Return (examples, their columns, the class of each column, None if it is not a class)."""
    rows = np.arange(len(labels))
    if labels.ndim == 2 and np.isin(labels, (0, 1)).all():
        having, columns = np.nonzero(labels)
        width = labels.shape[1]
        # A column for all examples, because the size of the part counts too.
        columns = np.concatenate([columns, np.full(len(labels), width)])
        return np.concatenate([having, rows]), columns, [*range(width), None]
    if labels.dtype.kind == "f":
        targets = labels.reshape(len(labels), -1)
        bins = [_quantile_bins(target) for target in targets.T]
        columns = np.concatenate([bin + i * _MAX_BINS for i, bin in enumerate(bins)])
        return np.tile(rows, len(bins)), columns, [None] * (len(bins) * _MAX_BINS)
    classes, columns = np.unique(labels, return_inverse=True)
    return rows, columns, classes.tolist()


def _quantile_bins(values):
    count = min(_MAX_BINS, max(1, len(values) // _MIN_PER_BIN))
    edges = np.quantile(values, np.arange(1, count) / count)
    return np.searchsorted(edges, values, side="right")


def _numbers(names):
    """Return a number for each distinct name."""
    known = {}
    return [known.setdefault(name, len(known)) for name in names]


def joined(groups, keys):
    """Return numbers of groups; groups that share a key get the same number."""
    root = list(range(max(groups, default=-1) + 1))

    def find(group):
        while root[group] != group:
            root[group] = group = root[root[group]]
        return group

    first = {}
    for group, key in zip(groups, keys):
        root[find(group)] = find(first.setdefault(key, group))
    return [find(group) for group in groups]


def _hash(seed, name):
    name = name if isinstance(name, bytes) else encode_text(str(name))
    return hashlib.blake2b(f"{seed}:".encode() + name, digest_size=8).digest()


def _quotas(counts, share, least, most):
    """Return integers near `counts * share` that add up to the rounded total (largest remainder)."""
    wanted = counts * share
    sizes = np.clip(np.floor(wanted).astype(int), least, most)
    target = np.clip(round(counts.sum() * share), least.sum(), most.sum())
    # Move one example at a time, to or from the class furthest from its quota.
    while sizes.sum() < target:
        sizes[np.argmax(np.where(sizes < most, wanted - sizes, -np.inf))] += 1
    while sizes.sum() > target:
        sizes[np.argmin(np.where(sizes > least, wanted - sizes, np.inf))] -= 1
    return sizes
