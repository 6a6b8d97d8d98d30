"""Formulas of domain adaptation: pure functions of tensors, on any Keras backend.

Features are float32 [N, D], logits float32 [N, C]; the two domains may have different N. Each loss is
a float32 scalar, differentiable in all arguments unless noted otherwise.
"""

import math

from keras import ops

from keras_transfer.utils.names import lazy_names

MMD_SCALES = (-3, -2, -1, 0, 1)
_TINY = 1e-8
_MOST_COVARIANCE = 2048  # features; CORAL computes D × D matrices up to this number


# -- adversarial ----------------------------------------------------------------------------------


def gradient_reversal(x, strength):
    """Return x; backward, multiply the gradient by -strength (DANN, arXiv:1505.07818).

    Args:
        x: tensor of any shape.
        strength: λ in the paper: a number or scalar tensor, ≥ 0.
    """
    return ops.stop_gradient((1.0 + strength) * x) - strength * x


def domain_confusion(source, target, source_weights=None, target_weights=None):
    """Return the binary cross-entropy of a domain discriminator: source is 1, target is 0.

    Both domains have equal weight.

    Args:
        source, target: logits of the discriminator, [N, 1] or [N].
        source_weights, target_weights: weight of each example within its domain [N], > 0; only
            ratios matter. None weights all examples equally.
    """
    halves = (
        _weighted_mean(ops.softplus(-ops.reshape(source, (-1,))), source_weights),
        _weighted_mean(ops.softplus(ops.reshape(target, (-1,))), target_weights),
    )
    return 0.5 * (halves[0] + halves[1])


def domain_accuracy(source, target):
    """Return the share of examples whose domain the logits predict, 0–1; equal domain weights."""
    source, target = ops.cast(source > 0, "float32"), ops.cast(target <= 0, "float32")
    return 0.5 * (ops.mean(source) + ops.mean(target))


def _weighted_mean(values, weights):
    if weights is None:
        return ops.mean(values)
    return ops.sum(values * weights) / ops.sum(weights)


def outer_product(features, probabilities):
    """Return vec(f ⊗ g) of each example [N, D·C], the input of CDAN's discriminator
    (arXiv:1705.10667)."""
    product = ops.expand_dims(features, 2) * ops.expand_dims(probabilities, 1)
    return ops.reshape(product, (-1, features.shape[1] * probabilities.shape[1]))


def randomized_product(mapped_features, mapped_probabilities):
    """Return (R_f f) ⊙ (R_g g) / √d [N, d]; inner products estimate those of `outer_product`."""
    return mapped_features * mapped_probabilities / math.sqrt(mapped_features.shape[1])


# -- moments --------------------------------------------------------------------------------------


def coral(source, target):
    """Return ‖C_s − C_t‖²_F / 4D² of the covariances of two sets of features (arXiv:1607.01719)."""
    width = source.shape[1]
    source, target = _centered(source), _centered(target)
    if width <= _MOST_COVARIANCE:
        covariances = [ops.matmul(ops.transpose(x), x) for x in (source, target)]
        squared = ops.sum(ops.square(covariances[0] - covariances[1]))
    else:
        # ‖AᵀA − BᵀB‖² = ‖AAᵀ‖² + ‖BBᵀ‖² − 2‖ABᵀ‖² avoids D × D matrices.
        squared = _squared_products(source, source) + _squared_products(target, target)
        squared = ops.relu(squared - 2.0 * _squared_products(source, target))
    return squared / (4.0 * width**2)


def _centered(x):
    """Subtract the mean, and scale so that xᵀx is the covariance."""
    x = x - ops.mean(x, axis=0, keepdims=True)
    return x / ops.sqrt(ops.maximum(_count(x) - 1.0, 1.0))


def _squared_products(x, y):
    return ops.sum(ops.square(ops.matmul(x, ops.transpose(y))))


def mmd(source, target, scales=MMD_SCALES):
    """Return the squared maximum mean discrepancy for a sum of Gaussian kernels (DAN, arXiv:1502.02791).

    This is the unbiased quadratic estimator: for equal domains its mean is 0, so it is negative half
    of the time. The kernels are exp(−‖x − y‖² / 2σ²), where σ² is 2^k times the mean of all squared
    distances, a constant for the gradient.

    Args:
        source, target: features; the pairs within a domain of one example count as 0.
        scales: the exponents k.
    """
    distances = squared_distances(ops.concatenate([source, target], axis=0))
    mean = ops.stop_gradient(ops.mean(distances)) + _TINY
    kernel = sum(ops.exp(-distances / (2.0**k * 2.0 * mean)) for k in scales)
    n = ops.shape(source)[0]
    within = _mean_of_pairs(kernel[:n, :n]) + _mean_of_pairs(kernel[n:, n:])
    return within - 2.0 * ops.mean(kernel[:n, n:])


def squared_distances(x):
    """Return ‖x_i − x_j‖² ≥ 0 of all pairs [N, N]."""
    x = x - ops.mean(x, axis=0, keepdims=True)  # reduces cancellation
    norms = ops.sum(ops.square(x), axis=1)
    return ops.relu(norms[:, None] + norms[None, :] - 2.0 * ops.matmul(x, ops.transpose(x)))


def _mean_of_pairs(kernel):
    n = _count(kernel)
    return (ops.sum(kernel) - ops.trace(kernel)) / ops.maximum(n * (n - 1.0), 1.0)


# -- predictions ----------------------------------------------------------------------------------


def entropy(logits):
    """Return the entropy of each example's softmax [N] in nats, from 0 to ln C."""
    return -ops.sum(ops.softmax(logits) * ops.log_softmax(logits), axis=-1)


def certainty_weights(logits):
    """Return 1 + e^(−H) of each example [N], in (1, 2], without gradient, for CDAN+E and MCC."""
    return ops.stop_gradient(1.0 + ops.exp(-entropy(logits)))


def mcc(logits, temperature=2.5):
    """Return the minimum class confusion of target predictions (arXiv:1912.03699), in [0, 1).

    It is the share outside the diagonal of M = Pᵀ W P with normalized rows, where
    P = softmax(logits / T) and W are the `certainty_weights` of P, scaled to the sum N.
    """
    logits = logits / temperature
    probabilities = ops.softmax(logits)
    weights = certainty_weights(logits)
    weights = weights * _count(logits) / ops.sum(weights)
    confusion = ops.matmul(ops.transpose(probabilities), probabilities * weights[:, None])
    confusion = confusion / (ops.sum(confusion, axis=1, keepdims=True) + _TINY)
    return (ops.sum(confusion) - ops.trace(confusion)) / logits.shape[-1]


def information_maximization(logits):
    """Return the mean entropy of the predictions minus the entropy of their mean, in [−ln C, 0].

    It is lowest if each prediction is certain and all classes are predicted equally often (SHOT,
    arXiv:2002.08546).
    """
    mean = ops.mean(ops.softmax(logits), axis=0)
    return ops.mean(entropy(logits)) + ops.sum(mean * ops.log(mean + _TINY))


# -- pseudo-labels --------------------------------------------------------------------------------


def pseudo_labels(logits, view_logits, threshold):
    """Return (cross-entropy of other views against confident predictions, share of confident
    predictions), both scalars (FixMatch, arXiv:2001.07685).

    The mean is over all examples, so a few confident ones have little weight. No gradient passes
    through `logits`.

    Args:
        logits: of the unchanged images [N, C].
        view_logits: of the other views [N, C].
        threshold: lowest probability of a confident prediction, 0–1.
    """
    probabilities = ops.stop_gradient(ops.softmax(logits))
    confident = ops.cast(ops.max(probabilities, axis=-1) >= threshold, "float32")
    predicted = ops.one_hot(ops.argmax(probabilities, axis=-1), logits.shape[-1])
    loss = -ops.sum(predicted * ops.log_softmax(view_logits), axis=-1)
    return ops.mean(confident * loss), ops.mean(confident)


def centroids(features, probabilities, rounds=1):
    """Return directions of the classes among unlabelled features [C, D + 1] (SHOT, arXiv:2002.08546).

    They start as the means of the features, weighted by the predicted probabilities, and are then
    replaced `rounds` times by the means of the features nearest to each. A class without nearest
    features becomes zeros and stays empty.

    Args:
        features: [N, D].
        probabilities: predicted, [N, C].
        rounds: ≥ 0.
    """
    x = _directions(features)
    means = _means(x, probabilities)
    for _ in range(rounds):
        nearest = nearest_centroid(features, means)
        means = _means(x, ops.one_hot(nearest, probabilities.shape[1], dtype=x.dtype))
    return means


def nearest_centroid(features, centroids):
    """Return the class whose centroid has the highest cosine with each example: int [N]."""
    lengths = ops.sqrt(ops.sum(ops.square(centroids), axis=1))
    cosines = ops.matmul(_directions(features), ops.transpose(centroids))
    cosines = cosines / ops.maximum(lengths, _TINY)
    return ops.argmax(ops.where(lengths > 0, cosines, -2.0), axis=1)


def _directions(features):
    """Append a 1 to the features, and scale them to length 1."""
    x = ops.concatenate([features, ops.ones_like(features[:, :1])], axis=1)
    return x / ops.sqrt(ops.sum(ops.square(x), axis=1, keepdims=True))


def _means(x, shares):
    return ops.matmul(ops.transpose(shares), x) / (ops.sum(shares, axis=0)[:, None] + _TINY)


def _count(x):
    return ops.cast(ops.shape(x)[0], "float32")


_RENAMED = {
    old: f"{__name__}.{old.replace('is', 'iz')}"
    for old in ("information_maximisation", "randomised_product")
}
__getattr__, __dir__ = lazy_names(__name__, {}, _RENAMED)
