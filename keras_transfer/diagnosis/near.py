"""Near-duplicates: examples whose features and sketches are almost equal.

Candidates are the nearest neighbors of each example, so that neither memory nor the number of pairs grows
with the square of the number of examples.
"""

from collections.abc import Callable

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

from keras_transfer.data.examples import ImageData, relative_paths
from keras_transfer.data.splits import joined
from keras_transfer.diagnosis.seen import (
    Distinct,
    Neighbors,
    Seen,
    check_channels,
    chosen_backbone,
    compare,
    nearest_count,
    see,
)
from keras_transfer.schedules.recipes import AUTO
from keras_transfer.utils.console import counted, say, verb
from keras_transfer.utils.extras import require

_PART = 1 << 12  # pairs that are compared at a time
_DOUBT = 10  # examples, as if there were that many more of which half had each bit


def near_names(data: ImageData, backbone: str = AUTO) -> Callable[[str], str]:
    """Return a function from an example's path, relative to the root, to the name of its group.

    Near-duplicates share a group, and so do examples that share one already.

    Args:
        backbone: see `diagnosis.api.diagnose`.

    Raises:
        InputError: the backbone is invalid, images do not have three channels, or a package is not
            installed.
    """
    if data.modality.sketched_by is not None:
        require(data.modality.sketched_by, "Looking for near-duplicates")
    backbone = chosen_backbone(backbone, data.modality)
    check_channels(data, backbone)
    seen = see(data, backbone, None, AUTO)
    found = near_groups(seen, compare(seen))
    together = np.arange(len(seen))
    for rows, _ in found:
        together[rows] = rows[0]
    if seen.examples.groups is not None:
        together = np.array(joined(together.tolist(), seen.examples.groups.tolist()))
    say(
        f"{counted(len(found), 'group')} of near-duplicates {verb(len(found), 'stays', 'stay')} together, in all {sum(len(r) for r, _ in found)} {data.modality.many}"
    )
    names = relative_paths(seen.examples.names, data.root)
    return dict(zip(names, map(str, together))).__getitem__


def near_pairs(
    directions: np.ndarray, neighbors: Neighbors, bits: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of near-duplicates, int [P, 2] with the smaller row first, and their likeness.

    The likeness is the cosine of their features plus that of their bits in the best view, 0 to 2, or 0 to 1
    without bits.

    Args:
        directions: unit vectors, float32 [N, D].
        neighbors: candidates.
        bits: packed, uint8 [N, V, B / 8], see `diagnosis.sketches`.
        least: likeness of near-duplicates.
    """
    views = bit_directions(bits)
    pairs = np.concatenate([_as_pairs(neighbors.rows), _alike_bits(views)])
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    likeness = _likeness(directions, views, pairs)
    near = likeness >= least
    return pairs[near], likeness[near]


def near_groups(seen: Seen, distinct: Distinct) -> list[tuple[np.ndarray, float]]:
    """Return (rows, likeness of the least alike pair) of each group of near-duplicates.

    The rows, in order, include copies; a group of copies alone is not a group of near-duplicates.
    """
    bits = distinct.bits
    pairs, likeness = near_pairs(
        distinct.directions, distinct.neighbors, bits, seen.examples.modality.near
    )
    group = groups_of(len(distinct.rows), pairs)
    least = np.full(group.max(initial=-1) + 1, np.inf)
    np.minimum.at(least, group[pairs[:, 0]], likeness)
    large = np.bincount(group) > 1
    of_all = group[distinct.of]
    order = np.argsort(of_all, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(of_all[order])) + 1)
    return [(rows, float(least[of_all[rows[0]]])) for rows in parts if large[of_all[rows[0]]]]


def groups_of(count: int, pairs: np.ndarray) -> np.ndarray:
    """Return a number for each of `count` examples, which linked ones share: int [count]."""
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(links, directed=False)[1]


def _as_pairs(rows):
    first = np.repeat(np.arange(len(rows)), rows.shape[1])
    return np.stack([first, rows.ravel()], axis=1)


def bit_directions(bits: np.ndarray) -> np.ndarray:
    """Return packed bits, uint8 [N, V, B / 8], as unit vectors of which unlike examples' are orthogonal.

    What most examples have in common, such as a plain background, says nothing: each bit is taken relative
    to its mean.

    Returns:
        float32 [V, N, B].
    """
    flat = np.unpackbits(bits, axis=2).astype("float32")
    usual = (flat[:, 0].sum(axis=0) + _DOUBT / 2) / (len(flat) + _DOUBT)
    flat -= usual
    flat /= np.maximum(np.linalg.norm(flat, axis=2, keepdims=True), 1e-12)
    return np.moveaxis(flat, 1, 0)


def _alike_bits(views):
    """Return pairs of which a view of the one is near the other."""
    count = nearest_count(views.shape[1])
    if not count or not views.shape[2]:
        return np.zeros((0, 2), int)
    search = NearestNeighbors(n_neighbors=count + 1, algorithm="brute").fit(views[0])
    found = [_as_pairs(search.kneighbors(view, return_distance=False)) for view in views]
    pairs = np.concatenate(found)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def _likeness(directions, views, pairs):
    """Return the sum of the cosines of pairs: of their features, and of their bits in the best view."""
    likeness = np.empty(len(pairs))
    for start in range(0, len(pairs), _PART):
        a, b = pairs[start : start + _PART].T
        features = np.einsum("nd,nd->n", directions[a], directions[b])
        bits = np.einsum("vnd,nd->vn", views[:, a], views[0, b]).max(axis=0)
        likeness[start : start + _PART] = np.maximum(features, 0) + bits
    return likeness
