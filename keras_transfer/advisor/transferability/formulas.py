"""Transferability scores from the literature, each prepared once and asked for many labelings.

A score is an object with two methods. `values(labelings)` takes int [S, N] (S labelings of the same N
images, classes 0 … C-1) and gives float64 [S]: the true labels and shuffled ones go the same way.
`parts(labels)` takes int [N] and gives float64 [N], up to a constant the influence of each image on
the score: its standard error is their standard deviation over √N (the infinitesimal jackknife), and
that of a difference of two scores on the same images is that of the differences.
"""

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import xlogy

_CHUNK = 4_000_000  # numbers in a matrix of one-hot labels
# Ratios λ = α/β of LogME, as multiples of the mean squared singular value.
_RATIOS = np.logspace(-8, 8, 161)
_TEMPERATURE = 0.07


class LogME:
    """Log maximum evidence of Bayesian linear regressions on one-hot labels (You et al. 2021).

    For each class t = 1[y = c] the evidence of t ~ N(F w, 1/β), w ~ N(0, 1/α) is maximised over
    α and β; the score is the mean over the classes of its logarithm, divided by N.

    The paper iterates α and β to a fixed point, which is slow where labels carry no signal (α goes
    to infinity). Here β, for a given λ = α/β, is in closed form, and all λ of a grid are tried with
    one matrix product; a parabola through the best three ends at the same maximum.

    Args:
        features: float64 [N, D], any N and D.
    """

    def __init__(self, features):
        self.u, singular = _svd(features, np.linalg.norm(features))
        self.sigma = singular**2
        self.scale = float(self.sigma.mean()) if len(singular) else 1.0
        self.full = len(singular) == len(features)  # the features can express any labels

    def values(self, labelings):
        return _by_chunk(self._values, labelings)

    def parts(self, labels):
        targets = np.eye(labels.max() + 1)[labels]
        alpha, beta = self.hyperparameters(labels)
        ratio = alpha / beta
        x = self.u.T @ targets
        shrunk = ratio / (self.sigma[:, None] + ratio)  # 1 - shrunk is what the features explain
        # Residuals t - ŷ and 1 - h of the hat matrix, without the difference of nearly equal numbers.
        outside, spare = targets - self.u @ x, 1 - np.square(self.u).sum(axis=1, keepdims=True)
        if self.full:
            outside, spare = 0.0, 0.0
        residuals = outside + self.u @ (x * shrunk)
        free = np.maximum(spare, 0) + np.square(self.u) @ shrunk
        # By the envelope theorem leaving an image out changes the evidence by its predictive
        # density given all others: N(t; t - residual / free, 1 / (β free)).
        log_density = np.log(beta * free) - beta * residuals**2 / free
        return 0.5 * log_density.mean(axis=1)

    def hyperparameters(self, labels):
        """(α, β) of each class [C] that maximise its evidence."""
        counts = np.bincount(labels).astype("float64")
        x, rest = self._projected(np.eye(len(counts))[labels], counts)
        ratio = self._best_ratio(x, rest)
        beta = len(labels) / self._misfit(x, rest, ratio)
        return ratio * beta, beta

    def _values(self, onehot, counts):
        x, rest = self._projected(onehot.reshape(len(onehot), -1), counts.ravel())
        ratio = self._best_ratio(x, rest)
        evidence = self._evidence(self._misfit(x, rest, ratio), self._complexity(ratio))
        return evidence.reshape(counts.shape).mean(axis=1)

    def _projected(self, targets, counts):
        """Uᵀt [C, k], and the squared norm of what lies outside of the features' span [C]."""
        x = (self.u.T @ targets).T
        if self.full:
            return x, np.zeros(len(x))
        return x, np.maximum(counts - np.square(x).sum(axis=1), 0)

    def _best_ratio(self, x, rest):
        ratios = _RATIOS * self.scale
        misfit = rest[:, None] + np.square(x) @ (ratios / (self.sigma[:, None] + ratios))
        evidence = self._evidence(misfit, self._complexity(ratios))
        best = np.clip(evidence.argmax(axis=1), 1, len(ratios) - 2)
        rows = np.arange(len(x))
        left, middle, right = (evidence[rows, best + step] for step in (-1, 0, 1))
        curvature = np.minimum(left + right - 2 * middle, -1e-300)
        shift = np.clip((left - right) / (2 * curvature), -1, 1)
        return ratios[best] * (_RATIOS[1] / _RATIOS[0]) ** shift

    def _misfit(self, x, rest, ratio):
        """‖t - ŷ‖² + λ‖w‖², whose N-th part is 1/β at the maximum; [C] for ratios [C]."""
        return rest + (np.square(x) * (ratio[:, None] / (self.sigma + ratio[:, None]))).sum(axis=1)

    def _complexity(self, ratio):
        """½ ln |I + FFᵀ/λ| / N: directions without a singular value count nothing."""
        return np.array([np.log1p(self.sigma / r).sum() for r in ratio]) / (2 * len(self.u))

    def _evidence(self, misfit, complexity):
        count = len(self.u)
        fit = 0.5 * np.log(count / np.maximum(misfit, 1e-300))
        return fit - complexity - 0.5 * (1 + np.log(2 * np.pi))


class HScore:
    """Variance between the classes in units of the features' covariance (Bao et al. 2019).

    With the covariance shrunk by Ledoit and Wolf's rule, tr(Σ_a⁻¹ (1 - a) Σ_between), without which
    it means nothing for N < D (Ibrahim et al. 2021). That is tr((T + ρ)⁻¹ N Σ_between) of the scatter
    T = N Σ and a ridge ρ = a tr(T) / (D (1 - a)).

    Args:
        features: float64 [N, D].
    """

    def __init__(self, features):
        count, self.width = features.shape
        u, singular = _svd(features - features.mean(axis=0), np.linalg.norm(features))
        self.z = u * singular  # the centred features, rotated
        self.scatter = singular**2
        self.norm = np.square(self.z).sum(axis=1)
        moments = self.norm.sum(), np.square(self.scatter).sum(), np.square(self.norm).sum()
        self.ridge = _ledoit_wolf_ridge(count, self.width, *moments)
        self.white = self.z / np.sqrt(self.scatter + self.ridge)

    def values(self, labelings):
        return _by_chunk(self._values, labelings)

    def parts(self, labels):
        """Of leaving out each image in turn. The inverse without one row is that of the whole and
        a product (Sherman and Morrison); the change of the ridge counts to first order, and much."""
        counts, count = np.bincount(labels), len(labels)
        onehot = np.eye(len(counts))[labels]
        sums = onehot.T @ self.white
        along, leverage = self.white @ sums.T, np.square(self.white).sum(axis=1, keepdims=True)
        # An image leaves its class, and moves the mean that all are centred on.
        left = counts - onehot
        shift = left / (count - 1) - onehot
        spread = np.square(sums).sum(axis=1) + 2 * shift * along + shift**2 * leverage
        room = (count - 1) / count - leverage
        freed = (along + shift * leverage) ** 2 / np.where(room > 1e-9, room, np.inf)
        without = ((spread + freed) / np.maximum(left, 1)).sum(axis=1, where=left > 0)
        slope = -(np.square(sums) / (self.scatter + self.ridge) / counts[:, None]).sum()
        # Linear in 1 / (ridge + typical): a ridge without bounds moves the score by little.
        ridges, typical = self._ridges(), self.norm.sum() / self.width
        moved = (
            (ridges - self.ridge) * (self.ridge + typical) / np.maximum(ridges + typical, 1e-300)
        )
        return -(count - 1) * (without + slope * moved)

    def _ridges(self):
        """The ridge without each image [N]."""
        count, norm = len(self.z), self.norm
        moved = norm + (2 * self.z @ self.z.T + norm[:, None] / (count - 1)) / (count - 1)
        np.fill_diagonal(moved, 0)
        kept = count / (count - 1)
        square = np.square(self.scatter).sum() - 2 * kept * np.square(self.z) @ self.scatter
        return _ledoit_wolf_ridge(
            count - 1,
            self.width,
            self.norm.sum() - kept * norm,
            square + (kept * norm) ** 2,
            np.square(moved).sum(axis=1),
        )

    def _values(self, onehot, counts):
        sums = onehot.reshape(len(onehot), -1).T @ self.white
        return (np.square(sums).sum(axis=1).reshape(counts.shape) / counts).sum(axis=1)


def _ledoit_wolf_ridge(count, width, trace, square, fourth):
    """ρ, from tr T, tr T² and the sum of the centred rows' fourth powers, numbers or arrays."""
    tiny = 1e-300
    distance = square / (count**2 * width) - (trace / (count * width)) ** 2
    noise = (fourth / count - square / count**2) / (count * width)
    # At most the distance: there all that is left is a sphere. A little less, so that ρ is finite.
    amount = np.clip(noise / np.maximum(distance, tiny), 0, 1 - 1e-9)
    return np.maximum(amount * trace / (width * (1 - amount)), tiny)


class Neighbours:
    """Leave-one-out accuracy of the nearest neighbours by cosine.

    Each of the `k` nearest votes with weight exp(cosine / 0.07) (Wu et al. 2018).

    Args:
        features: float64 [N, D].
        groups: int [N], rows of one image, which are no neighbours of each other.
        k: number of neighbours.
    """

    def __init__(self, features, groups, k: int = 5):
        from sklearn.neighbors import NearestNeighbors

        count = len(features)
        asked = min(count, k + np.bincount(groups).max())
        search = NearestNeighbors(n_neighbors=asked, metric="cosine", algorithm="brute")
        distance, found = search.fit(features).kneighbors(features)
        other = groups[found] != groups[:, None]
        nearest = other & (np.cumsum(other, axis=1) <= k)
        # Relative to the nearest, so that exp cannot run over; the vote is the same.
        closeness = np.where(nearest, -distance, -np.inf)
        weight = np.exp((closeness - closeness.max(axis=1, keepdims=True)) / _TEMPERATURE)
        rows = np.repeat(np.arange(count), nearest.sum(axis=1))
        self.votes = csr_matrix((weight[nearest], (rows, found[nearest])), (count, count))

    def values(self, labelings):
        return _by_chunk(self._values, labelings)

    def parts(self, labels):
        onehot = np.eye(labels.max() + 1)[labels]
        return ((self.votes @ onehot).argmax(axis=1) == labels).astype("float64")

    def _values(self, onehot, counts):
        votes = (self.votes @ onehot.reshape(len(onehot), -1)).reshape(onehot.shape)
        return (votes.argmax(axis=2) == onehot.argmax(axis=2)).mean(axis=0)


class LEEP:
    """Log expected empirical prediction (Nguyen et al. 2020): mean ln Σ_z P(y|z) θ(x)_z.

    Args:
        probabilities: float64 [N, Z], of the source model's own classes.
    """

    def __init__(self, probabilities):
        self.theta = probabilities
        self.mass = np.maximum(probabilities.sum(axis=0), 1e-300)

    def values(self, labelings):
        return np.array([np.log(self._expected(y)[0]).mean() for y in labelings])

    def parts(self, labels):
        expected, conditional = self._expected(labels)
        # P(y|z) follows from the images too; it does not maximise the score, so that its change
        # counts as well.
        pull = np.eye(len(conditional))[labels].T @ (self.theta / expected[:, None])
        pull -= (conditional * pull).sum(axis=0)
        return np.log(expected) + (self.theta * (pull / self.mass)[labels]).sum(axis=1)

    def _expected(self, labels):
        conditional = np.eye(labels.max() + 1)[labels].T @ self.theta / self.mass  # [C, Z]
        return (self.theta * conditional[labels]).sum(axis=1), conditional


class NCE:
    """Negative conditional entropy -H(Y|Z), Z the likeliest source class (Tran et al. 2019).

    Args:
        probabilities: float64 [N, Z].
    """

    def __init__(self, probabilities):
        _, self.source = np.unique(probabilities.argmax(axis=1), return_inverse=True)

    def values(self, labelings):
        return np.array([np.log(np.divide(*self._counts(y))).mean() for y in labelings])

    def parts(self, labels):
        both, own = self._counts(labels)
        # What the sum loses with one image less in the cell and in the row.
        return _loss(both) - _loss(own)

    def _counts(self, labels):
        """Images of the same source class and label, and of the same source class [N]."""
        joint = np.zeros((self.source.max() + 1, labels.max() + 1))
        np.add.at(joint, (self.source, labels), 1)
        return joint[self.source, labels], joint.sum(axis=1)[self.source]


def _loss(n):
    return xlogy(n, n) - xlogy(n - 1, n - 1)


def _svd(matrix, size):
    """(left singular vectors [N, k], singular values [k]), without what is rounding only.

    Args:
        size: norm of the numbers that the matrix was computed from.
    """
    u, singular, _ = np.linalg.svd(matrix, full_matrices=False)
    kept = singular > max(matrix.shape) * np.finfo("float64").eps * size
    return u[:, kept], singular[kept]


def _by_chunk(function, labelings):
    """`function(one-hot [N, s, C], counts [s, C])` of as many labelings at once as memory is wise."""
    classes = labelings.max() + 1
    step = max(1, _CHUNK // (labelings.shape[1] * classes))
    found = []
    for start in range(0, len(labelings), step):
        onehot = np.eye(classes)[labelings[start : start + step].T]
        found.append(function(onehot, onehot.sum(axis=0)))
    return np.concatenate(found)
