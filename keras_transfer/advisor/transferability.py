"""Estimate how well a backbone's features suit a labeled dataset, before training.

Three scores: the accuracy of a cross-validated linear probe, the leave-one-out accuracy of nearest
neighbors, and LogME. LogME and the neighbors are prepared once for the features and then evaluated for
many labelings, because the permutation test repeats them on shuffled labels.
"""

import os

import numpy as np

from keras_transfer.advisor.inputs import pooled_features, sized_backbone
from keras_transfer.advisor.scores import Score, Scores, sample_digest
from keras_transfer.data.examples import ImageData
from keras_transfer.data.splits import stratified_sample
from keras_transfer.errors import InputError
from keras_transfer.features.probe import cross_validated_probe
from keras_transfer.models.sources.applications import is_source_model

MAX_EXAMPLES = 2000
_VERSION = 2  # of the scores in the store; increase it when the numbers change
_SHUFFLES = 99
_ROUNDING = 1e-9
_CHUNK = 4_000_000  # values in one matrix of one-hot labels
# Ratios λ = α/β of LogME, as multiples of the mean squared singular value.
_RATIOS = np.logspace(-8, 8, 161)
_TEMPERATURE = 0.07
_NEIGHBORS = 5


def score_backbone(
    backbone,
    data: ImageData,
    *,
    name: str | None = None,
    image_size: int | str | None = None,
    most: int = MAX_EXAMPLES,
    engine: str = "auto",
    store=None,
    seed: int = 0,
) -> Scores:
    """Score how well a backbone's features suit the training images.

    Only the split `train` is read, or a stratified sample of it. The features are those after global
    average pooling; they are read from the store or computed and stored. Identical files stay together
    in all folds. The scores are stored too, so the same question is answered without computation.

    Args:
        backbone: a backbone name, the path of a source model or a run, a model of `build_model`, a
            `Backbone`, or a `features.prefix.Prefix` to score the features after some stages.
        data: one class per example.
        name: shown in tables; by default the backbone's name, or the path of a source model.
        image_size: by default that of the pretraining or of the model.
        most: maximum number of images in the sample.
        engine, store: see `features.extraction.extract`.
        seed: of the sample, the shuffles and the folds.

    Raises:
        InputError: `data` has another task, no training images or a single class; or the errors of
            `build_backbone` and `extract`.
    """
    data.require_classes("scoring backbones", "train")
    train = data.examples["train"]
    sample = train.take(stratified_sample(np.asarray(train.labels), most, seed=seed))
    # Deferred, so that invalid input is reported before Keras is imported.
    from keras_transfer.features.prefix import Prefix, prefix_of
    from keras_transfer.features.store import Store, concluded, digest_of

    if isinstance(backbone, Prefix):
        prefix, default_name = backbone, backbone.name
    else:
        network = sized_backbone(backbone, image_size, data)
        prefix, default_name = prefix_of(network, len(network.stages)), network.name
        if isinstance(backbone, (str, os.PathLike)) and is_source_model(os.fspath(backbone)):
            # Its backbone may have the same name as one of keras.applications.
            default_name = os.fspath(backbone)
    name = name or default_name
    store = store or Store()

    def compute():
        features = pooled_features(prefix, sample, engine, store)
        return score_features(
            features, sample.labels, groups=sample.together, name=name, seed=seed
        ).to_cache()

    stored = concluded(
        prefix,
        store,
        f"transferability {_VERSION}",
        compute,
        of=f"scores of {len(sample)} images",
        engine=engine,
        view="scores",
        sample=digest_of(sample.digests, np.asarray(sample.labels)),
        seed=seed,
    )
    prior = {"parameters": prefix.model.count_params(), "multiplications": round(prefix.cost)}
    return Scores.from_cache(stored, name, prior)


def score_features(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    name: str = "features",
    prior: dict | None = None,
    seed: int = 0,
) -> Scores:
    """Score how well features suit labels, and test whether there is any signal.

    The test shuffles the labels 99 times. Its statistic is the larger of LogME (linear) and nearest
    neighbors (local), each in standard deviations over its shuffles. There is a signal if the true
    labels beat all but one in a hundred labelings. The mean over the shuffles is the score that
    chance would give.

    Args:
        features: [N, D] of any float type.
        labels: int [N] with at least two classes.
        groups: int [N]; rows of one example (copies, views) share a group. By default each row is an
            example.
        name: of the backbone.
        prior: facts about the backbone that do not depend on the data, for example
            `{"parameters": 410208}`.
        seed: of the shuffles and the folds. Only scores with the same seed can be compared.

    Raises:
        InputError: shapes do not match, values are not finite, or there is a single class.
    """
    from threadpoolctl import threadpool_limits

    rows = np.asarray(features).astype("float64")
    labels, groups = _checked(rows, labels, groups)
    rows = _unit_scale(rows)
    labelings = np.stack([labels, *_shuffled(labels, groups, seed)])  # the true labels come first
    # One thread for BLAS: with more, it waits for cores that are busy longer than it computes.
    with threadpool_limits(1, "blas"):
        scores, values = {"probe": _probe_score(rows, labels, groups, seed)}, {}
        for key in ("knn", "logme"):
            # One at a time, because the matrices of both may not fit in memory.
            measure = Neighbors(rows, groups) if key == "knn" else LogME(rows)
            values[key] = measure.values(labelings)
            scores[key] = Score.of(
                values[key][0],
                measure.influence(labels),
                groups,
                chance=float(values[key][1:].mean()),
                share=key == "knn",
            )
    return Scores(
        name=name,
        scores=scores,
        images=len(np.unique(groups)),
        classes=int(labels.max()) + 1,
        width=rows.shape[1],
        statistics=np.max([_standardized(v) for v in values.values()], axis=0).tolist(),
        prior=prior or {},
        sample=sample_digest(labels, groups, seed),
    )


class LogME:
    """Log maximum evidence of Bayesian linear regressions on one-hot labels (You et al. 2021).

    For each class t = 1[y = c], the evidence of t ~ N(F w, 1/β), w ~ N(0, 1/α) is maximized over α
    and β. The score is the mean over classes of its logarithm, divided by N.

    The paper iterates α and β to a fixed point, which is slow if labels carry no signal (α goes to
    infinity). Here β has a closed form for a given λ = α/β, all λ of a grid are evaluated with one
    matrix product, and a parabola through the best three finds the same maximum.

    Args:
        features: float64 [N, D], any N and D.
    """

    def __init__(self, features):
        u, singular, _ = np.linalg.svd(features, full_matrices=False)
        limit = max(features.shape) * np.finfo("float64").eps * np.linalg.norm(features)
        self.u, self.sigma = u[:, singular > limit], singular[singular > limit] ** 2
        self.scale = float(self.sigma.mean()) if len(self.sigma) else 1.0
        self.full = len(self.sigma) == len(features)  # the features can express any labels

    def values(self, labelings):
        """Return the score of each labeling, int [S, N] → float64 [S]."""
        return _by_chunk(self._values, labelings)

    def influence(self, labels):
        """Return the influence of each example on the score [N], up to a constant.

        By the envelope theorem, leaving an example out changes the evidence by its predictive density
        given all others, N(t; t - residual / free, 1 / (β free)).
        """
        targets = np.eye(labels.max() + 1)[labels]
        alpha, beta = self.hyperparameters(labels)
        ratio = alpha / beta
        x = self.u.T @ targets
        shrunk = ratio / (self.sigma[:, None] + ratio)  # 1 - shrunk is what the features explain
        # Residuals t - ŷ, and free = 1 - h of the hat matrix, without differences of nearly equal
        # numbers.
        outside, spare = targets - self.u @ x, 1 - np.square(self.u).sum(axis=1, keepdims=True)
        if self.full:
            outside, spare = 0.0, 0.0
        residuals = outside + self.u @ (x * shrunk)
        free = np.maximum(spare, 0) + np.square(self.u) @ shrunk
        log_density = np.log(beta * free) - beta * residuals**2 / free
        return 0.5 * log_density.mean(axis=1)

    def hyperparameters(self, labels):
        """Return (α, β) of each class [C] that maximize its evidence."""
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
        """Return Uᵀt [C, k] and the squared norm of what lies outside the span of the features [C]."""
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
        """Return ‖t - ŷ‖² + λ‖w‖² [C] for ratios [C]; divided by N it is 1/β at the maximum."""
        return rest + (np.square(x) * (ratio[:, None] / (self.sigma + ratio[:, None]))).sum(axis=1)

    def _complexity(self, ratio):
        """Return ½ ln |I + FFᵀ/λ| / N; directions without a singular value contribute nothing."""
        return np.array([np.log1p(self.sigma / r).sum() for r in ratio]) / (2 * len(self.u))

    def _evidence(self, misfit, complexity):
        fit = 0.5 * np.log(len(self.u) / np.maximum(misfit, 1e-300))
        return fit - complexity - 0.5 * (1 + np.log(2 * np.pi))


class Neighbors:
    """Leave-one-out accuracy of the five nearest neighbors by cosine similarity.

    Each neighbor votes with weight exp(cosine / 0.07) (Wu et al. 2018).

    Args:
        features: float64 [N, D].
        groups: int [N]; rows of one group are not neighbors of each other.
    """

    def __init__(self, features, groups):
        from scipy.sparse import csr_matrix
        from sklearn.neighbors import NearestNeighbors

        count = len(features)
        searched = min(count, _NEIGHBORS + np.bincount(groups).max())
        search = NearestNeighbors(n_neighbors=searched, metric="cosine", algorithm="brute")
        distance, index = search.fit(features).kneighbors(features)
        other = groups[index] != groups[:, None]
        nearest = other & (np.cumsum(other, axis=1) <= _NEIGHBORS)
        # Relative to the nearest, so that exp cannot overflow; the vote stays the same.
        similarity = np.where(nearest, -distance, -np.inf)
        weight = np.exp((similarity - similarity.max(axis=1, keepdims=True)) / _TEMPERATURE)
        rows = np.repeat(np.arange(count), nearest.sum(axis=1))
        self.votes = csr_matrix((weight[nearest], (rows, index[nearest])), (count, count))

    def values(self, labelings):
        """Return the accuracy of each labeling, int [S, N] → float64 [S]."""
        return _by_chunk(self._values, labelings)

    def influence(self, labels):
        """Return 1 for each example whose label the vote predicts, otherwise 0 [N]."""
        onehot = np.eye(labels.max() + 1)[labels]
        return ((self.votes @ onehot).argmax(axis=1) == labels).astype("float64")

    def _values(self, onehot, counts):
        votes = (self.votes @ onehot.reshape(len(onehot), -1)).reshape(onehot.shape)
        return (votes.argmax(axis=2) == onehot.argmax(axis=2)).mean(axis=0)


def _by_chunk(function, labelings):
    """Call `function(one-hot [N, s, C], counts [s, C])` for as many labelings at once as fit in memory."""
    classes = labelings.max() + 1
    step = max(1, _CHUNK // (labelings.shape[1] * classes))
    results = []
    for start in range(0, len(labelings), step):
        onehot = np.eye(classes)[labelings[start : start + step].T]
        results.append(function(onehot, onehot.sum(axis=0)))
    return np.concatenate(results)


def _probe_score(rows, labels, groups, seed):
    probe = cross_validated_probe(rows, labels, groups=groups, seed=seed)
    if probe is None:
        return Score(None, note="no class has two images")
    chance = float(np.bincount(labels).max() / len(labels))
    return Score.of(probe.accuracy, probe.correct, groups, chance=chance, share=True)


def _shuffled(labels, groups, seed):
    """Yield labelings in which the examples (not the rows) have swapped their labels."""
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    rng = np.random.default_rng(seed)
    for _ in range(_SHUFFLES):
        yield labels[first][rng.permutation(len(first))][group]


def _standardized(values):
    """Return values in standard deviations; zeros if they differ by rounding only."""
    spread = values.std()
    if spread <= _ROUNDING * max(1.0, np.abs(values).max()):
        return np.zeros(len(values))
    return (values - values.mean()) / spread


def _unit_scale(rows):
    """Divide by the root mean square, for numerical accuracy; the scores do not depend on scale."""
    rows = rows / max(np.abs(rows).max(), 1e-300)
    return rows / max(np.sqrt(np.square(rows).mean()), 1e-300)


def _checked(rows, labels, groups):
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(f"Features must be [N, D] with N and D at least 1, not {rows.shape}.")
    labels = np.asarray(labels)
    groups = np.arange(len(rows)) if groups is None else np.asarray(groups)
    if labels.shape != (len(rows),) or groups.shape != (len(rows),):
        raise InputError(
            f"{len(rows)} rows of features need one label and one group each. The shapes are "
            f"{labels.shape} and {groups.shape}."
        )
    if labels.dtype.kind not in "iu":
        raise InputError(f"Labels must be integers (one class per example), not {labels.dtype}.")
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows).all(axis=1)).sum())
        raise InputError(f"{bad} rows of features are not finite. Compute them in float32.")
    names, labels = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise InputError("All examples are in one class. A score needs at least two classes.")
    # An example that appears in two classes counts as two, because examples swap whole labels.
    pairs = np.stack([np.unique(groups, return_inverse=True)[1], labels], axis=1)
    return labels, np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
