"""How far apart two sets of features are: proxy-A distance, MMD and Fréchet distance, in NumPy."""

from dataclasses import dataclass

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.features.closed_form import cross_validated_probe

_FOLDS = 5
_BANDWIDTHS = 2.0 ** np.arange(-3, 2)  # of DAN's five kernels, times the mean squared distance
PERMUTATIONS = 999


@dataclass(frozen=True)
class Estimate:
    """A distance with what is known of its chance.

    Attributes:
        value: estimated; about 0 for two samples of one distribution, and may be below.
        error: standard error over images.
        p_value: share of random divisions of the pooled images that are as far apart, 0–1; None
            where none were made.
    """

    value: float
    error: float
    p_value: float | None = None


def proxy_a_distance(
    a: np.ndarray, b: np.ndarray, groups: np.ndarray | None = None, *, seed: int = 0
) -> Estimate:
    """2 (1 − 2 err), err the cross-validated error of a linear classifier that tells a from b.

    Ben-David et al. 2007 (NIPS); 0 where it cannot tell, 2 where it always can. The classifier is a
    logistic regression (`cross_validated_probe`); both domains have the same weight, whatever their sizes.

    Args:
        a, b: float [N, D] and [M, D], N, M ≥ 2.
        groups: int [N + M], rows of one image: they stay on one side of each fold, so that an
            image in both domains does not count as a difference.
        seed: of the folds.

    Raises:
        InputError: fewer than two images of a domain, or other columns.
    """
    x, domain = _pooled(a, b)
    folds = min(_FOLDS, len(a), len(b))
    probe = cross_validated_probe(x, domain, groups=groups, folds=folds, seed=seed, balanced=True)
    assert probe is not None, "each domain has two images"
    wrong = ~probe.correct
    errors = [wrong[domain == d] for d in (0, 1)]
    mean = np.mean([e.mean() for e in errors])
    # One image more of each kind, so that no error in a few images is no certainty.
    shares = [(e.sum() + 1) / (len(e) + 2) for e in errors]
    variance = np.mean([s * (1 - s) / len(e) for s, e in zip(shares, errors)]) / 2
    return Estimate(float(2 - 4 * mean), float(4 * np.sqrt(variance)))


def mmd(
    a: np.ndarray, b: np.ndarray, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> Estimate:
    """Squared maximum mean discrepancy, unbiased, with a permutation test (Gretton et al. 2012).

    The kernel is the mean of five Gaussians exp(−‖x − y‖² / 2σ²), σ² = 2^k · the mean squared
    distance of two images, k = −3 … 1, as in DAN (arXiv:1502.02791; that sums them). The value lies
    below 2. The error is the first-order term of the U-statistic's variance.

    Args:
        a, b: float [N, D] and [M, D], N, M ≥ 2.
        permutations: random divisions of the pooled images; the p-value is (1 + those at least as
            far apart) / (1 + permutations). 0 makes none.
        seed: of the divisions.

    Raises:
        InputError: fewer than two images of a domain, or other columns.
    """
    x, domain = _pooled(a, b)
    kernel = _kernel(x)
    n, m = len(a), len(b)
    value = float(_mmd_of(kernel, (domain == 0)[None].astype("float64"))[0])
    # An image's part: how much more it is like its own domain than like the other.
    same_a, cross = kernel[:n, :n].sum(axis=1) / (n - 1), kernel[:n, n:]
    same_b = kernel[n:, n:].sum(axis=1) / (m - 1)
    parts = same_a - cross.mean(axis=1), same_b - cross.mean(axis=0)
    error = float(2 * np.sqrt(sum(part.var(ddof=1) / len(part) for part in parts)))
    if not permutations:
        return Estimate(value, error)
    rng = np.random.default_rng(seed)
    members = rng.permuted(np.tile(domain == 0, (permutations, 1)), axis=1).astype("float64")
    # Rounding must not tell a division from its equal.
    reached = (_mmd_of(kernel, members) >= value - 1e-12).sum()
    return Estimate(value, error, float((1 + reached) / (1 + permutations)))


def _kernel(x):
    """The mean of the Gaussians [N, N], its diagonal 0."""
    from scipy.spatial.distance import pdist, squareform

    distances = pdist(x, "sqeuclidean")
    mean = max(float(distances.mean()), 1e-300)
    values = sum(np.exp(-distances / (2 * factor * mean)) for factor in _BANDWIDTHS)
    return squareform(values / len(_BANDWIDTHS))


def _mmd_of(kernel, members):
    """Of divisions: members [K, N] are 1 for what is in the first part."""
    n = members.sum(axis=1)
    m = members.shape[1] - n
    rows = kernel.sum(axis=1)
    inside = np.einsum("kn,kn->k", members @ kernel, members)
    touching = members @ rows
    outside = rows.sum() - 2 * touching + inside
    cross = touching - inside
    return inside / (n * (n - 1)) + outside / (m * (m - 1)) - 2 * cross / (n * m)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet distance of the normal distributions with the features' means and covariances.

    ‖μ_a − μ_b‖² + tr(C_a + C_b − 2 (C_a C_b)^½) (Dowson and Landau 1982; FID in arXiv:1706.08500).
    Covariances are shrunk (Ledoit and Wolf 2004), so that fewer images than features will do. It
    is biased: two samples of one distribution are apart, the more the fewer they are; see
    `frechet_by_chance`.

    Args:
        a, b: float [N, D] and [M, D], N, M ≥ 2.

    Returns:
        ≥ 0, in the features' units squared.

    Raises:
        InputError: fewer than two images of a domain, or other columns.
    """
    from sklearn.covariance import ledoit_wolf

    x, domain = _pooled(a, b)
    parts = [x[domain == d] for d in (0, 1)]
    means = [part.mean(axis=0) for part in parts]
    first, second = (ledoit_wolf(part)[0] for part in parts)
    # tr (C_a C_b)^½ = tr (C_a^½ C_b C_a^½)^½, whose matrices are symmetric.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ second @ root)
    overlap = np.sqrt(np.maximum(inner, 0)).sum()
    found = np.sum((means[0] - means[1]) ** 2) + np.trace(first) + np.trace(second) - 2 * overlap
    return max(0.0, float(found))


def frechet_by_chance(a: np.ndarray, b: np.ndarray, *, divisions: int = 5, seed: int = 0) -> float:
    """The mean Fréchet distance of random divisions of the pooled images into parts of these sizes.

    What `frechet_distance` gives about where there is no difference.
    """
    x, _ = _pooled(a, b)
    rng = np.random.default_rng(seed)
    shuffled = (rng.permutation(x) for _ in range(divisions))
    return float(np.mean([frechet_distance(s[: len(a)], s[len(a) :]) for s in shuffled]))


def _pooled(a, b):
    """(both as float64 [N + M, D], 0 or 1 for the domain of each row)."""
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise InputError(
            "A distance needs features [N, D] and [M, D] of two images or more each, not "
            f"{list(a.shape)} and {list(b.shape)}."
        )
    return np.concatenate([a, b]), np.repeat([0, 1], [len(a), len(b)])
