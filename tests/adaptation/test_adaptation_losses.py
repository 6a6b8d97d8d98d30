"""Every formula of domain adaptation against values by hand or an independent NumPy computation.

The same checks run on TensorFlow and, in a process of their own, on JAX.
"""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_transfer.adaptation import losses
from keras_transfer.adaptation.methods import CDAN, CDANE, DANN, MCC, MMD, SHOT, Batch, DeepCORAL


def number(x):
    return float(ops.convert_to_numpy(x))


def gradient(function, x):
    """Return the gradient of a scalar function of one tensor, on any backend."""
    x = ops.convert_to_tensor(np.asarray(x, "float32"))
    if keras.backend.backend() == "jax":
        import jax

        return np.asarray(jax.grad(function)(x))
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        value = function(x)
    found = tape.gradient(value, x)
    return np.zeros(x.shape) if found is None else found.numpy()


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def np_entropy(p):
    return -(p * np.log(p)).sum(1)


@pytest.fixture
def domains(rng):
    """Features of two domains of unequal size, float32 [7, 3] and [5, 3]."""
    return rng.normal(size=(7, 3)).astype("float32"), 2 + rng.normal(size=(5, 3)).astype("float32")


@pytest.fixture
def logits(rng):
    return 2 * rng.normal(size=(6, 4)).astype("float32")


@pytest.mark.large  # by default test_backends.py trains an adapter there
def test_on_jax():
    """Run this whole file again."""
    pytest.importorskip("jax", reason="JAX is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", "not on_jax"]
    # Small tensors: compilation takes most of the time.
    env = {**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stdout
    assert "passed" in result.stdout and "skipped" not in result.stdout


def test_it_runs_on_the_requested_backend():
    assert keras.backend.backend() == os.environ.get("KERAS_BACKEND", "tensorflow")


# -- adversarial ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_gradient_reversal(rng, strength):
    x = rng.normal(size=(4, 2)).astype("float32")
    np.testing.assert_allclose(losses.gradient_reversal(x, strength), x, rtol=1e-6)
    found = gradient(lambda t: ops.sum(losses.gradient_reversal(t, strength) ** 2), x)
    np.testing.assert_allclose(found, -strength * 2 * x, rtol=1e-5)


def test_domain_confusion_by_hand():
    assert number(losses.domain_confusion(np.zeros((3, 1)), np.zeros((5, 1)))) == pytest.approx(
        np.log(2)
    )
    source, target = np.array([0.5, -1.0], "float32"), np.array([2.0], "float32")
    # Source is 1, target is 0; both domains have equal weight, whatever their size.
    of_source = -np.log(1 / (1 + np.exp(-source)))
    of_target = -np.log(1 - 1 / (1 + np.exp(-target)))
    expected = 0.5 * of_source.mean() + 0.5 * of_target.mean()
    assert number(losses.domain_confusion(source, target)) == pytest.approx(expected, rel=1e-5)
    weights = np.array([1.0, 3.0], "float32"), np.array([2.0], "float32")
    expected = 0.5 * (of_source * [0.25, 0.75]).sum() + 0.5 * of_target.mean()
    found = losses.domain_confusion(source[:, None], target[:, None], *weights)
    assert number(found) == pytest.approx(expected, rel=1e-5)


def test_domain_accuracy_by_hand():
    source, target = np.array([[3.0], [-1.0]]), np.array([[-2.0], [-1.0], [-4.0], [0.1]])
    assert number(losses.domain_accuracy(source, target)) == pytest.approx((0.5 + 0.75) / 2)


def test_outer_product(rng):
    f, g = rng.normal(size=(5, 3)).astype("float32"), rng.random((5, 2)).astype("float32")
    expected = np.stack([np.outer(a, b).ravel() for a, b in zip(f, g)])
    np.testing.assert_allclose(losses.outer_product(f, g), expected, rtol=1e-6)


def test_randomized_product_estimates_the_product(rng):
    """⟨T(f, g), T(f', g')⟩ → ⟨f, f'⟩·⟨g, g'⟩ with the width."""
    f, g = rng.normal(size=(2, 3)).astype("float32"), rng.random((2, 2)).astype("float32")
    width = 200_000
    maps = rng.normal(size=(3, width)), rng.normal(size=(2, width))
    x = ops.convert_to_numpy(losses.randomized_product(f @ maps[0], g @ maps[1]))
    np.testing.assert_allclose(x @ x.T, (f @ f.T) * (g @ g.T), atol=0.15)


# -- moments --------------------------------------------------------------------------------------


def test_coral(domains):
    source, target = domains
    difference = np.cov(source.T) - np.cov(target.T)
    expected = (difference**2).sum() / (4 * 3**2)
    assert number(losses.coral(source, target)) == pytest.approx(expected, rel=1e-5)
    assert number(losses.coral(source, source + 5.0)) == pytest.approx(0, abs=1e-9)
    assert np.isfinite(number(losses.coral(source, target[:1])))  # a domain's last batch


def test_coral_of_wide_features(domains, monkeypatch):
    """The result is the same without D × D matrices."""
    expected = number(losses.coral(*domains))
    monkeypatch.setattr(losses, "_MOST_COVARIANCE", 2)
    assert number(losses.coral(*domains)) == pytest.approx(expected, rel=1e-4)
    assert number(losses.coral(domains[0], domains[0])) == pytest.approx(0, abs=1e-6)


def by_loops(x, y, scales=(-3, -2, -1, 0, 1), mean=None):
    """The unbiased estimator, computed kernel by kernel and pair by pair."""
    z = np.concatenate([x, y]).astype("float64")
    if mean is None:
        mean = np.mean([((a - b) ** 2).sum() for a in z for b in z])

    def kernel(a, b):
        return sum(np.exp(-((a - b) ** 2).sum() / (2 * 2.0**k * mean)) for k in scales)

    def within(z):
        pairs = [kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
        return np.mean(pairs)

    return within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_mmd(domains):
    source, target = domains
    assert number(losses.mmd(source, target)) == pytest.approx(by_loops(source, target), rel=1e-4)
    assert number(losses.mmd(source, target, (0,))) == pytest.approx(
        by_loops(source, target, (0,)), rel=1e-4
    )
    assert np.isfinite(number(losses.mmd(source, target[:1])))


def test_mmd_has_no_bias(rng):
    """For equal distributions its mean is 0, so it is sometimes negative."""
    found = [number(losses.mmd(*rng.normal(size=(2, 6, 2)).astype("float32"))) for _ in range(100)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 10
    assert min(found) < 0


def test_mmd_holds_the_bandwidth_fixed(domains):
    source, target = (x.astype("float64") for x in domains)
    z = np.concatenate([source, target])
    mean = np.mean([((a - b) ** 2).sum() for a in z for b in z])
    numeric = np.zeros_like(source)
    for i in np.ndindex(source.shape):
        step = np.zeros_like(source)
        step[i] = 1e-5
        difference = by_loops(source + step, target, mean=mean) - by_loops(
            source - step, target, mean=mean
        )
        numeric[i] = difference / 2e-5
    found = gradient(lambda t: losses.mmd(t, domains[1]), domains[0])
    np.testing.assert_allclose(found, numeric, rtol=1e-3, atol=1e-5)


# -- predictions ----------------------------------------------------------------------------------


def test_entropy_and_weights(logits):
    expected = np_entropy(softmax(logits))
    np.testing.assert_allclose(losses.entropy(logits), expected, rtol=1e-5)
    np.testing.assert_allclose(losses.entropy(np.zeros((2, 4))), np.log(4), rtol=1e-6)
    np.testing.assert_allclose(losses.certainty_weights(logits), 1 + np.exp(-expected), rtol=1e-5)
    far = np.array([[500.0, -500.0]], "float32")  # a probability of 0
    np.testing.assert_allclose(losses.entropy(far), 0, atol=1e-6)
    assert not gradient(lambda t: ops.sum(losses.certainty_weights(t)), logits).any()


def test_mcc(logits):
    p = softmax(logits / 2.5)
    weights = 1 + np.exp(-np_entropy(p))
    weights = len(p) * weights / weights.sum()
    confusion = np.zeros((4, 4))
    for j in range(4):
        for k in range(4):
            confusion[j, k] = sum(w * q[j] * q[k] for w, q in zip(weights, p))
    for j in range(4):
        confusion[j] /= confusion[j].sum()
    expected = (confusion.sum() - np.trace(confusion)) / 4
    assert number(losses.mcc(logits)) == pytest.approx(expected, rel=1e-5)


def test_mcc_by_hand():
    # Uniform predictions: each row is uniform, (C - 1) / C lies outside the diagonal.
    assert number(losses.mcc(np.zeros((5, 4), "float32"))) == pytest.approx(0.75)
    certain = 1000.0 * np.eye(4, dtype="float32")
    assert number(losses.mcc(certain)) == pytest.approx(0, abs=1e-6)
    assert number(losses.mcc(certain[:2])) == pytest.approx(
        0, abs=1e-6
    )  # two classes are never predicted


def test_information_maximization(logits):
    p = softmax(logits)
    mean = p.mean(0)
    expected = np_entropy(p).mean() + (mean * np.log(mean)).sum()
    assert number(losses.information_maximization(logits)) == pytest.approx(expected, rel=1e-5)
    diverse, collapsed = 1000 * np.eye(4), 1000 * np.eye(4)[[0, 0]]
    found = losses.information_maximization(diverse.astype("float32"))
    assert number(found) == pytest.approx(-np.log(4))
    found = losses.information_maximization(collapsed.astype("float32"))
    assert number(found) == pytest.approx(0, abs=1e-6)


# -- pseudo-labels --------------------------------------------------------------------------------


def test_centroids_are_those_of_the_authors_code(rng):
    """`obtain_label` in the code of the SHOT authors, with the cosine distance of SciPy."""
    from scipy.spatial.distance import cdist

    features = rng.normal(size=(30, 5)).astype("float32") + 3 * np.eye(5)[np.arange(30) % 3]
    features = features.astype("float32")
    probabilities = softmax(features[:, :3]).astype("float32")
    x = np.concatenate([features, np.ones((30, 1))], axis=1)
    x = (x.T / np.linalg.norm(x, axis=1)).T
    means = probabilities.T @ x / (1e-8 + probabilities.sum(axis=0)[:, None])
    labels = cdist(x, means, "cosine").argmin(axis=1)
    for rounds in (0, 1):
        if rounds:
            shares = np.eye(3)[labels]
            means = shares.T @ x / (1e-8 + shares.sum(axis=0)[:, None])
            labels = cdist(x, means, "cosine").argmin(axis=1)
        found = losses.centroids(features, probabilities, rounds)
        np.testing.assert_allclose(found, means, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(losses.nearest_centroid(features, found), labels)


def test_a_class_without_members_attracts_nothing():
    features = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], "float32")
    certain = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], "float32")
    found = losses.centroids(features, certain)
    assert not ops.convert_to_numpy(found)[2].any()
    np.testing.assert_array_equal(losses.nearest_centroid(-features, found) == 2, False)
    np.testing.assert_array_equal(losses.nearest_centroid(features, found), [0, 0, 1])


def test_confident_images_teach_their_other_views():
    logits = np.log([[0.95, 0.05], [0.6, 0.4], [0.08, 0.92]]).astype("float32")
    views = np.log([[0.5, 0.5], [0.1, 0.9], [0.75, 0.25]]).astype("float32")
    found, sure = losses.pseudo_labels(logits, views, 0.9)
    assert number(found) == pytest.approx(-(np.log(0.5) + np.log(0.25)) / 3, rel=1e-5)
    assert number(sure) == pytest.approx(2 / 3)
    still = gradient(lambda t: losses.pseudo_labels(t, views, 0.9)[0], logits)
    assert not still.any()  # the plain view is the teacher
    moved = gradient(lambda t: losses.pseudo_labels(logits, t, 0.9)[0], views)
    expected = np.array([[0.5 - 1, 0.5], [0, 0], [0.75, 0.25 - 1]]) / 3
    np.testing.assert_allclose(moved, expected, atol=1e-6)


# -- methods --------------------------------------------------------------------------------------


def batch_of(rng, d=3, c=2, n=4, m=6):
    shapes = ((n, d), (n, c), (m, d), (m, c))
    return Batch(*(rng.normal(size=shape).astype("float32") for shape in shapes))


def test_strength_over_the_training():
    progress = np.array([0.0, 0.5, 1.0], "float32")
    expected = 2 / (1 + np.exp(-10 * progress)) - 1
    np.testing.assert_allclose(DANN().strength(progress), expected, rtol=1e-5)
    np.testing.assert_allclose(CDAN(weight=0.5).strength(progress), 0.5 * expected, rtol=1e-5)
    np.testing.assert_allclose(MMD(weight=3.0).strength(progress), 3.0)


@pytest.mark.parametrize("method", [DANN(hidden=(4,)), CDAN(hidden=(4,)), CDANE(hidden=(4,))])
def test_the_discriminator_and_the_features_have_opposite_gradients(rng, method):
    """Features receive the gradient of the plain loss times −λ; predictions receive none."""
    batch = batch_of(rng)
    network = method.network(3, 2, seed=1)

    def loss(strength, **changed):
        return method.loss(batch._replace(**changed), strength, network, training=False)[0]

    # Strength -1 turns the reversal into the identity.
    for field in ("source_features", "target_features"):
        plain = gradient(lambda t: loss(-1.0, **{field: t}), getattr(batch, field))  # noqa: B023
        found = gradient(lambda t: loss(0.3, **{field: t}), getattr(batch, field))  # noqa: B023
        assert np.abs(plain).max() > 1e-4
        np.testing.assert_allclose(found, -0.3 * plain, rtol=1e-4, atol=1e-7)
    for field in ("source_logits", "target_logits"):
        assert not gradient(lambda t: loss(0.3, **{field: t}), getattr(batch, field)).any()  # noqa: B023
    assert number(loss(0.0)) == pytest.approx(number(loss(1.0)))  # λ is in the gradient only


def test_cdan_sees_features_and_predictions(rng):
    method, batch = CDAN(hidden=()), batch_of(rng)
    network = method.network(3, 2, seed=1)
    kernel, bias = (ops.convert_to_numpy(w) for w in network.get_weights())

    def logits(f, g):
        return np.stack([np.outer(a, b).ravel() for a, b in zip(f, softmax(g))]) @ kernel + bias

    source = np.logaddexp(0, -logits(batch.source_features, batch.source_logits))[:, 0]
    target = np.logaddexp(0, logits(batch.target_features, batch.target_logits))[:, 0]
    found, logs = method.loss(batch, 1.0, network)
    assert number(found) == pytest.approx((source.mean() + target.mean()) / 2, rel=1e-4)
    assert 0 <= number(logs["domain_accuracy"]) <= 1

    weights = [1 + np.exp(-np_entropy(softmax(g))) for g in (batch[1], batch[3])]
    expected = 0.5 * sum(np.average(x, weights=w) for x, w in zip((source, target), weights))
    found, _ = CDANE(hidden=()).loss(batch, 1.0, network)
    assert number(found) == pytest.approx(expected, rel=1e-4)


def test_a_wide_product_is_randomized(rng):
    method = CDAN(hidden=(), random_width=8)
    narrow, wide = method.network(1024, 4, 0), method.network(1025, 4, 0)
    assert [w.shape for w in narrow.trainable_variables] == [(4096, 1), (1,)]
    assert [w.shape for w in wide.trainable_variables] == [(8, 1), (1,)]
    fixed = [w for w in wide.non_trainable_variables if len(w.shape) == 2]
    assert [w.shape for w in fixed] == [(1025, 8), (4, 8)]
    # Two different normal matrices with standard deviation 1, reproducible by the seed.
    values = [ops.convert_to_numpy(w) for w in fixed]
    assert values[0].std() == pytest.approx(1, abs=0.05)
    assert not np.allclose(values[0][:4], values[1])
    again = method.network(1025, 4, 0).get_weights()
    np.testing.assert_array_equal(again[0], wide.get_weights()[0])
    f, g = rng.normal(size=(3, 1025)).astype("float32"), rng.random((3, 4)).astype("float32")
    kernel, bias = wide.trainable_variables
    expected = (f @ values[0]) * (g @ values[1]) / np.sqrt(8) @ ops.convert_to_numpy(kernel)
    np.testing.assert_allclose(wide([f, g]), expected + ops.convert_to_numpy(bias), rtol=1e-3)


def test_plain_losses_are_multiplied_by_lambda(rng):
    batch = batch_of(rng)
    for method, plain in (
        (DeepCORAL(), losses.coral(batch[0], batch[2])),
        (MMD(), losses.mmd(batch[0], batch[2])),
        (MCC(), losses.mcc(batch[3])),
    ):
        found, _ = method.loss(batch, 0.25)
        assert number(found) == pytest.approx(0.25 * number(plain), rel=1e-5)


def test_shot_agrees_with_its_pseudo_labels(rng):
    batch = batch_of(rng)
    labels = np.array([0, 1, 1, 0, 1, 1], "int32")
    agreement = -np.log(softmax(batch[3])[np.arange(6), labels]).mean()
    expected = number(losses.information_maximization(batch[3])) + 0.3 * agreement
    alone = batch._replace(source_features=None, source_logits=None, pseudo_labels=labels)
    found, _ = SHOT().loss(alone, 1.0)
    assert number(found) == pytest.approx(expected, rel=1e-4)
