"""The formulas of domain adaptation: pure functions of tensors, on any Keras backend.

Features are float32 [N, D], logits float32 [N, C]; the two domains may have different N. Each loss is
a float32 scalar, and gradients reach all arguments unless said otherwise.
"""

import math

from keras import ops

MMD_SCALES = (-3, -2, -1, 0, 1)
_TINY = 1e-8
_MOST_COVARIANCE = 2048  # features up to which CORAL makes the D × D matrices


# -- adversarial ----------------------------------------------------------------------------------


def gradient_reversal(x, strength):
    """x forward; backward the gradient times -strength (DANN, arXiv:1505.07818).

    Args:
        x: any shape.
        strength: a number or scalar tensor, ≥ 0: the λ of the paper.
    """
    return ops.stop_gradient((1.0 + strength) * x) - strength * x


def domain_confusion(source, target, source_weights=None, target_weights=None):
    """Binary cross entropy of a domain discriminator: source is 1, target 0, both count half.

    Args:
        source, target: the discriminator's logits [N, 1] or [N].
        source_weights, target_weights: what each example counts within its domain [N], > 0; only
            their ratios matter. None counts all alike.
    """
    halves = (
        _weighted_mean(ops.softplus(-ops.reshape(source, (-1,))), source_weights),
        _weighted_mean(ops.softplus(ops.reshape(target, (-1,))), target_weights),
    )
    return 0.5 * (halves[0] + halves[1])


def domain_accuracy(source, target):
    """Share of examples whose domain the discriminator's logits name, in [0, 1]; both count half."""
    source, target = ops.cast(source > 0, "float32"), ops.cast(target <= 0, "float32")
    return 0.5 * (ops.mean(source) + ops.mean(target))


def _weighted_mean(values, weights):
    if weights is None:
        return ops.mean(values)
    return ops.sum(values * weights) / ops.sum(weights)


def outer_product(features, probabilities):
    """vec(f ⊗ g) of each example [N, D·C]: what CDAN's discriminator sees (arXiv:1705.10667)."""
    product = ops.expand_dims(features, 2) * ops.expand_dims(probabilities, 1)
    return ops.reshape(product, (-1, features.shape[1] * probabilities.shape[1]))


def randomised_product(mapped_features, mapped_probabilities):
    """(R_f f) ⊙ (R_g g) / √d [N, d]: whose inner products estimate those of `outer_product`."""
    return mapped_features * mapped_probabilities / math.sqrt(mapped_features.shape[1])


# -- moments --------------------------------------------------------------------------------------


def coral(source, target):
    """‖C_s − C_t‖²_F / 4D² of the covariances of two sets of features (arXiv:1607.01719)."""
    width = source.shape[1]
    source, target = _centred(source), _centred(target)
    if width <= _MOST_COVARIANCE:
        covariances = [ops.matmul(ops.transpose(x), x) for x in (source, target)]
        squared = ops.sum(ops.square(covariances[0] - covariances[1]))
    else:
        # ‖AᵀA − BᵀB‖² = ‖AAᵀ‖² + ‖BBᵀ‖² − 2‖ABᵀ‖²: no matrix of D × D.
        squared = _squared_products(source, source) + _squared_products(target, target)
        squared = ops.relu(squared - 2.0 * _squared_products(source, target))
    return squared / (4.0 * width**2)


def _centred(x):
    """x less its mean, and such that xᵀx is the covariance."""
    x = x - ops.mean(x, axis=0, keepdims=True)
    return x / ops.sqrt(ops.maximum(_count(x) - 1.0, 1.0))


def _squared_products(x, y):
    return ops.sum(ops.square(ops.matmul(x, ops.transpose(y))))


def mmd(source, target, scales=MMD_SCALES):
    """Squared maximum mean discrepancy, a sum over Gaussian kernels (DAN, arXiv:1502.02791).

    The unbiased quadratic estimator: its mean is 0 where both domains are the same, so it is
    negative half of the time there. The kernels are exp(−‖x − y‖² / 2σ²), σ² = 2^k times the mean
    of all squared distances, which is held fixed in the gradient.

    Args:
        source, target: features; a domain of one example has no pairs of its own, which count 0.
        scales: the k.
    """
    distances = squared_distances(ops.concatenate([source, target], axis=0))
    mean = ops.stop_gradient(ops.mean(distances)) + _TINY
    kernel = sum(ops.exp(-distances / (2.0**k * 2.0 * mean)) for k in scales)
    n = ops.shape(source)[0]
    within = _mean_of_pairs(kernel[:n, :n]) + _mean_of_pairs(kernel[n:, n:])
    return within - 2.0 * ops.mean(kernel[:n, n:])


def squared_distances(x):
    """‖x_i − x_j‖² ≥ 0 of all pairs [N, N]."""
    x = x - ops.mean(x, axis=0, keepdims=True)  # small numbers cancel less
    norms = ops.sum(ops.square(x), axis=1)
    return ops.relu(norms[:, None] + norms[None, :] - 2.0 * ops.matmul(x, ops.transpose(x)))


def _mean_of_pairs(kernel):
    n = _count(kernel)
    return (ops.sum(kernel) - ops.trace(kernel)) / ops.maximum(n * (n - 1.0), 1.0)


# -- predictions ----------------------------------------------------------------------------------


def entropy(logits):
    """Entropy in nats of each example's softmax [N], from 0 to ln C."""
    return -ops.sum(ops.softmax(logits) * ops.log_softmax(logits), axis=-1)


def certainty_weights(logits):
    """1 + e^(−H) of each example [N], in (1, 2]; no gradient. The E of CDAN+E, and in MCC."""
    return ops.stop_gradient(1.0 + ops.exp(-entropy(logits)))


def mcc(logits, temperature=2.5):
    """Minimum class confusion of predictions on the target (arXiv:1912.03699), in [0, 1).

    P = softmax(logits / T); M = Pᵀ W P, rows normalised; the share outside of the diagonal. W is
    `certainty_weights` of P, scaled to the sum N.
    """
    logits = logits / temperature
    probabilities = ops.softmax(logits)
    weights = certainty_weights(logits)
    weights = weights * _count(logits) / ops.sum(weights)
    confusion = ops.matmul(ops.transpose(probabilities), probabilities * weights[:, None])
    confusion = confusion / (ops.sum(confusion, axis=1, keepdims=True) + _TINY)
    return (ops.sum(confusion) - ops.trace(confusion)) / logits.shape[-1]


def information_maximisation(logits):
    """Mean entropy of the predictions less the entropy of their mean, in [−ln C, 0].

    Least where each is certain and all classes are named equally often (SHOT, arXiv:2002.08546).
    """
    mean = ops.mean(ops.softmax(logits), axis=0)
    return ops.mean(entropy(logits)) + ops.sum(mean * ops.log(mean + _TINY))


# -- pseudo-labels --------------------------------------------------------------------------------


def pseudo_labels(logits, view_logits, threshold):
    """(cross entropy of other views against the classes that are named with certainty, the share of
    these among all), both scalars (FixMatch, arXiv:2001.07685).

    The mean is over all examples, so that few certain ones count little. No gradient through
    `logits`.

    Args:
        logits: of the images as they are [N, C].
        view_logits: of their other views [N, C].
        threshold: least probability, 0 to 1.
    """
    probabilities = ops.stop_gradient(ops.softmax(logits))
    sure = ops.cast(ops.max(probabilities, axis=-1) >= threshold, "float32")
    named = ops.one_hot(ops.argmax(probabilities, axis=-1), logits.shape[-1])
    each = -ops.sum(named * ops.log_softmax(view_logits), axis=-1)
    return ops.mean(sure * each), ops.mean(sure)


def centroids(features, probabilities, rounds=1):
    """Directions of the classes among unlabelled features [C, D + 1] (SHOT, arXiv:2002.08546).

    First the means of the features weighted by the predicted probabilities; then, `rounds` times,
    the means of those that are nearest to each. A class that no example is nearest to becomes
    zeros, and nothing is near it from then on.

    Args:
        features: [N, D]
        probabilities: [N, C]
    """
    x = _directions(features)
    found = _means(x, probabilities)
    for _ in range(rounds):
        nearest = nearest_centroid(features, found)
        found = _means(x, ops.one_hot(nearest, probabilities.shape[1], dtype=x.dtype))
    return found


def nearest_centroid(features, centroids):
    """The class whose centroid has the highest cosine with each example: int [N]; no gradient."""
    lengths = ops.sqrt(ops.sum(ops.square(centroids), axis=1))
    cosines = ops.matmul(_directions(features), ops.transpose(centroids))
    cosines = cosines / ops.maximum(lengths, _TINY)
    return ops.argmax(ops.where(lengths > 0, cosines, -2.0), axis=1)


def _directions(features):
    """Features with a 1 appended, of length 1."""
    x = ops.concatenate([features, ops.ones_like(features[:, :1])], axis=1)
    return x / ops.sqrt(ops.sum(ops.square(x), axis=1, keepdims=True))


def _means(x, shares):
    return ops.matmul(ops.transpose(shares), x) / (ops.sum(shares, axis=0)[:, None] + _TINY)


def _count(x):
    return ops.cast(ops.shape(x)[0], "float32")
