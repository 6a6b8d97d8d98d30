"""Distances between two sets of features, in NumPy: proxy-A distance, MMD and Fréchet distance."""

from dataclasses import dataclass

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.features.probe import cross_validated_probe

_FOLDS = 5
_BANDWIDTHS = 2.0 ** np.arange(-3, 2)  # of DAN's five kernels, times the mean squared distance
PERMUTATIONS = 999


@dataclass(frozen=True)
class Estimate:
    """An estimated distance with its uncertainty.

    Attributes:
        value: about 0, possibly below, for two samples of one distribution.
        error: standard error over the examples.
        p_value: share of random divisions of the pooled examples that are as far apart, 0–1; None
            without a permutation test.
    """

    value: float
    error: float
    p_value: float | None = None


def proxy_a_distance(
    a: np.ndarray, b: np.ndarray, groups: np.ndarray | None = None, *, seed: int = 0
) -> Estimate:
    """Return 2 (1 − 2 err), where err is the error of a linear classifier that separates a from b.

    It is 0 if the classifier cannot tell the domains apart and 2 if it always can (Ben-David et al.
    2007, NIPS). The error is cross-validated, and both domains have the same weight, whatever their
    sizes.

    Args:
        a, b: float [N, D] and [M, D], N, M ≥ 2.
        groups: int [N + M]; rows of one example stay in one fold, so that an example in both domains
            does not count as a difference.
        seed: of the folds.

    Raises:
        InputError: a domain has fewer than two examples, or the shapes do not match.
    """
    x, domain = _pooled(a, b)
    folds = min(_FOLDS, len(a), len(b))
    probe = cross_validated_probe(x, domain, groups=groups, folds=folds, seed=seed, balanced=True)
    assert probe is not None, "each domain has two examples"
    errors = [~probe.correct[domain == d] for d in (0, 1)]
    mean = np.mean([e.mean() for e in errors])
    # One more error and one more correct prediction per domain: otherwise the standard error of a few
    # correct predictions would be zero.
    shares = [(e.sum() + 1) / (len(e) + 2) for e in errors]
    variance = np.mean([s * (1 - s) / len(e) for s, e in zip(shares, errors)]) / 2
    return Estimate(float(2 - 4 * mean), float(4 * np.sqrt(variance)))


def mmd(
    a: np.ndarray, b: np.ndarray, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> Estimate:
    """Return the unbiased squared maximum mean discrepancy with a permutation test.

    See Gretton et al. 2012. The kernel is the mean of five Gaussians exp(−‖x − y‖² / 2σ²), with σ² =
    2^k · the mean squared distance of two examples and k = −3 … 1, as in DAN (arXiv:1502.02791, which
    uses the sum). The value is below 2. The error is the first-order term of the U-statistic's
    variance.

    Args:
        a, b: float [N, D] and [M, D], N, M ≥ 2.
        permutations: number of random divisions of the pooled examples. The p-value is (1 + number of
            divisions at least as far apart) / (1 + permutations). 0 skips the test.
        seed: of the divisions.

    Raises:
        InputError: a domain has fewer than two examples, or the shapes do not match.
    """
    x, domain = _pooled(a, b)
    kernel = _kernel(x)
    n, m = len(a), len(b)
    value = float(_mmd_of_divisions(kernel, (domain == 0)[None].astype("float64"))[0])
    # Contribution of an example: how much closer it is to its own domain than to the other one.
    same_a, cross = kernel[:n, :n].sum(axis=1) / (n - 1), kernel[:n, n:]
    same_b = kernel[n:, n:].sum(axis=1) / (m - 1)
    contributions = same_a - cross.mean(axis=1), same_b - cross.mean(axis=0)
    error = float(2 * np.sqrt(sum(part.var(ddof=1) / len(part) for part in contributions)))
    if not permutations:
        return Estimate(value, error)
    rng = np.random.default_rng(seed)
    members = rng.permuted(np.tile(domain == 0, (permutations, 1)), axis=1).astype("float64")
    # The tolerance counts divisions that differ by rounding only as equal.
    reached = (_mmd_of_divisions(kernel, members) >= value - 1e-12).sum()
    return Estimate(value, error, float((1 + reached) / (1 + permutations)))


def _kernel(x):
    """Return the mean of the Gaussians [N, N] with a diagonal of 0."""
    from scipy.spatial.distance import pdist, squareform

    distances = pdist(x, "sqeuclidean")
    mean = max(float(distances.mean()), 1e-300)
    values = sum(np.exp(-distances / (2 * factor * mean)) for factor in _BANDWIDTHS)
    return squareform(values / len(_BANDWIDTHS))


def _mmd_of_divisions(kernel, members):
    """Return MMD² [K] of divisions; `members` [K, N] is 1 for the rows of the first part."""
    n = members.sum(axis=1)
    m = members.shape[1] - n
    rows = kernel.sum(axis=1)
    inside = np.einsum("kn,kn->k", members @ kernel, members)
    touching = members @ rows
    outside = rows.sum() - 2 * touching + inside
    cross = touching - inside
    return inside / (n * (n - 1)) + outside / (m * (m - 1)) - 2 * cross / (n * m)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the squared Fréchet distance of normal distributions fitted to the features.

    It is ‖μ_a − μ_b‖² + tr(C_a + C_b − 2 (C_a C_b)^½) (Dowson and Landau 1982; FID in
    arXiv:1706.08500). The covariances are shrunk (Ledoit and Wolf 2004), so it works with fewer
    examples than features. It is biased: two samples of one distribution have a positive distance,
    which grows as the samples shrink; compare with `frechet_by_chance`.

    Args:
        a, b: float [N, D] and [M, D], N, M ≥ 2.

    Returns:
        A number ≥ 0 in squared units of the features.

    Raises:
        InputError: a domain has fewer than two examples, or the shapes do not match.
    """
    from sklearn.covariance import ledoit_wolf

    x, domain = _pooled(a, b)
    parts = [x[domain == d] for d in (0, 1)]
    means = [part.mean(axis=0) for part in parts]
    first, second = (ledoit_wolf(part)[0] for part in parts)
    # tr (C_a C_b)^½ = tr (C_a^½ C_b C_a^½)^½, in which all matrices are symmetric.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ second @ root)
    overlap = np.sqrt(np.maximum(inner, 0)).sum()
    shift = np.sum((means[0] - means[1]) ** 2)
    return max(0.0, float(shift + np.trace(first) + np.trace(second) - 2 * overlap))


def frechet_by_chance(a: np.ndarray, b: np.ndarray, *, divisions: int = 5, seed: int = 0) -> float:
    """Return the mean Fréchet distance of random divisions of the pooled examples into the same sizes.

    This is about what `frechet_distance` gives if the domains do not differ.
    """
    x, _ = _pooled(a, b)
    rng = np.random.default_rng(seed)
    shuffled = (rng.permutation(x) for _ in range(divisions))
    return float(np.mean([frechet_distance(s[: len(a)], s[len(a) :]) for s in shuffled]))


def _pooled(a, b):
    """Return (both sets as float64 [N + M, D], 0 or 1 for the domain of each row)."""
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise InputError(
            "A distance needs features [N, D] and [M, D] of at least two examples each. The shapes "
            f"are {list(a.shape)} and {list(b.shape)}."
        )
    return np.concatenate([a, b]), np.repeat([0, 1], [len(a), len(b)])
