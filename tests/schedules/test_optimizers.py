"""Rates per weight on the optimizers of Keras, and what else they must still do."""

import keras
import numpy as np
import pytest
from conftest import tiny_backbone
from packaging.version import Version

from keras_transfer.errors import InputError
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.stages import freeze
from keras_transfer.schedules.phases import Phase
from keras_transfer.schedules.plans import (
    OPTIMIZERS,
    WeightRule,
    anchor_at,
    make_optimizer,
    per_weight,
    stage_rates,
    weight_rules,
)
from keras_transfer.schedules.rates import RateShape
from keras_transfer.training.checkpoint import SwapAverages

pytestmark = pytest.mark.compat

SHAPES = ((6, 4), (4,))
GRADIENTS = np.random.default_rng(0).normal(size=(5, 28)).astype("float32")


def variables(seed=1):
    values = np.random.default_rng(seed).normal(size=28).astype("float32")
    return [keras.Variable(values[:24].reshape(6, 4)), keras.Variable(values[24:])]


def steps(optimizer, weights, count=5):
    """Applies the same gradients as any other call."""
    for gradient in GRADIENTS[:count]:
        parts = gradient[:24].reshape(6, 4), gradient[24:]
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in parts], weights)
    return [w.numpy() for w in weights]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_multiplier_is_a_rate_of_its_own(name):
    """Each of Keras's optimizers: rate r with multipliers (1, m) equals r for one, r·m for the other."""
    if name == "muon" and Version(keras.__version__) < Version("3.13"):
        pytest.skip("Muon of Keras 3.12 fails on TensorFlow: it asks a tf.Variable for its path")
    cls = OPTIMIZERS[name]
    plain, slow = (steps(cls(learning_rate=r), variables()) for r in (0.02, 0.02 * 0.25))
    optimizer = per_weight(cls(learning_rate=0.02), [WeightRule(), WeightRule(rate=0.25)])
    together = steps(optimizer, variables())
    np.testing.assert_allclose(together[0], plain[0], rtol=2e-6, atol=1e-7)
    if name not in ("adafactor",):  # its step is min(rate, 1/√step): not proportional to the rate
        np.testing.assert_allclose(together[1], slow[1], rtol=2e-6, atol=1e-7)
    assert not np.array_equal(together[1], plain[1])


def test_the_norm_is_that_of_all_gradients_together():
    """Where MultiOptimizer clips each group for itself."""
    clipped = keras.optimizers.SGD(1.0, global_clipnorm=1.0)
    whole = steps(clipped, variables(), 1)
    optimizer = per_weight(keras.optimizers.SGD(1.0, global_clipnorm=1.0), [WeightRule()] * 2)
    for a, b in zip(steps(optimizer, variables(), 1), whole):
        np.testing.assert_array_equal(a, b)
    moved = [a - v.numpy() for a, v in zip(whole, variables())]
    assert np.sqrt(sum((m**2).sum() for m in moved)) == pytest.approx(1.0, rel=1e-5)


def test_decay_is_decoupled_and_for_matrices_only():
    model = small_model()
    freeze(model, "none", batch_norm="train")
    rules = weight_rules(model, Phase("p", epochs=1, weight_decay=0.1))
    for rule, weight in zip(rules, model.trainable_variables):
        assert rule.decay == (0.1 if len(weight.shape) > 1 else 0.0)
    weights = variables()
    start = weights[0].numpy()
    optimizer = per_weight(keras.optimizers.Adam(0.1), [WeightRule(2.0, 0.5), WeightRule()])
    zero = [keras.ops.zeros(s) for s in SHAPES]
    optimizer.apply(zero, weights)
    np.testing.assert_allclose(weights[0].numpy(), start * (1 - 0.1 * 2.0 * 0.5), rtol=1e-6)


def test_adamw_decays_as_it_does_in_keras():
    plain = keras.optimizers.AdamW(0.01, weight_decay=0.1)
    ours = per_weight(keras.optimizers.AdamW(0.01, weight_decay=0.0), [WeightRule(1.0, 0.1)] * 2)
    for a, b in zip(steps(plain, variables()), steps(ours, variables())):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_l2_sp_pulls_to_the_start():
    """α(w − w₀) is the gradient of α/2·‖w − w₀‖² (arXiv:1802.01483): equal to it under plain SGD."""
    alpha, rate = 0.5, 0.1
    weights = variables()
    anchors = [w.numpy() + 1.0 for w in weights]
    optimizer = per_weight(keras.optimizers.SGD(rate), [WeightRule(1.0, alpha, anchored=True)] * 2)
    optimizer.build(weights)
    anchor_at(optimizer, {id(w): a for w, a in zip(weights, anchors)})
    expected = [w.numpy() for w in variables()]
    for gradient in GRADIENTS:
        parts = gradient[:24].reshape(6, 4), gradient[24:]
        expected = [w - rate * (g + alpha * (w - a)) for w, g, a in zip(expected, parts, anchors)]
    for a, b in zip(steps(optimizer, weights), expected):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_annealed_rate_by_hand():
    """(1 + 10·p)^−0.75 at progress p of all steps, whatever the warm-up (arXiv:1505.07818)."""
    shape = RateShape(0.01, 100, "annealed", warmup=0.0)
    expected = {0: 0.01, 10: 0.01 * 0.594604, 50: 0.01 * 0.260847, 100: 0.01 * 0.165560}
    for step, rate in expected.items():  # 2^−0.75, 6^−0.75, 11^−0.75
        assert float(shape(step)) == pytest.approx(rate, rel=1e-5)
    warmed = RateShape(0.01, 100, "annealed", warmup=0.1)
    assert float(warmed(0)) == pytest.approx(0.01 / 11, rel=1e-5)
    assert float(warmed(10)) == pytest.approx(0.01 * 0.594604, rel=1e-5)


def test_l2_sp_is_for_the_backbone_and_decay_for_the_head():
    model = small_model()
    freeze(model, "none")
    rules = weight_rules(model, Phase("p", epochs=1, l2_sp=0.3, weight_decay=0.1))
    head = {id(w) for w in model.get_layer("output").weights}
    for rule, weight in zip(rules, model.trainable_variables):
        if id(weight) in head:
            assert not rule.anchored and rule.decay == (0.1 if len(weight.shape) > 1 else 0.0)
        else:
            assert rule.anchored and rule.decay == 0.3


def small_model():
    return build_model(tiny_backbone(), Classification("abc"), image_size=32)


def test_rates_of_stages():
    stages, head = stage_rates(Phase("p", epochs=1, lowest_rate=0.01), 4)
    assert head == 1.0 and stages[0] == pytest.approx(0.01)
    np.testing.assert_allclose(np.diff(np.log(stages)), np.log(100) / 4)
    rates = {"head": 10, "backbone": 0.5, "stage:2": 3}
    assert stage_rates(Phase("p", epochs=1, rates=rates), 3) == ([0.5, 3.0, 0.5], 10)
    with pytest.raises(InputError, match="stage:9, but the backbone has 3"):
        stage_rates(Phase("p", epochs=1, rates={"stage:9": 2}), 3)


def test_shapes_of_the_rate():
    def values(**fields):
        return keras.ops.convert_to_numpy(RateShape(2.0, 100, **fields)(np.arange(100)))

    cosine = values(warmup=0.2)
    assert cosine.argmax() == 20 and cosine.max() == pytest.approx(2.0)
    np.testing.assert_allclose(np.diff(cosine[:20]), 2 / 21, rtol=1e-4)  # a straight rise
    expected = 1 + np.cos(np.pi * np.arange(80) / 80)
    np.testing.assert_allclose(cosine[20:], expected, rtol=1e-4)
    keras_cosine = keras.optimizers.schedules.CosineDecay(2.0, 100)
    np.testing.assert_allclose(values(warmup=0), [keras_cosine(i) for i in range(100)], rtol=1e-4)
    step = values(shape="step", warmup=0.1)
    levels = [(10, 30, 2), (30, 60, 0.2), (60, 90, 0.02), (90, 100, 0.002)]
    for low, high, level in levels:
        np.testing.assert_allclose(step[low:high], level, rtol=1e-5)
    assert (values(shape="constant", warmup=0) == 2.0).all()
    cycle = values(shape="one_cycle", warmup=0.3)
    assert cycle[0] < 0.1 and cycle.argmax() in (29, 30) and cycle[-1] < 0.01
    with pytest.raises(InputError, match="Unknown shape"):
        RateShape(1.0, 10, "square")
    again = keras.optimizers.schedules.deserialize(
        keras.optimizers.schedules.serialize(RateShape(2.0, 100, "step"))
    )
    np.testing.assert_array_equal(again(np.arange(100)), values(shape="step"))


# Two with one state a weight, of which one is enough, and one with two.
@pytest.mark.parametrize(
    "name, rate",
    [("sgd", 0.1), ("adamw", 0.01), pytest.param("lion", 0.003, marks=pytest.mark.large)],
)
def test_everything_at_once_is_saved_and_restored(name, rate, tmp_path, rng):
    """Multipliers, decay, anchors, clipping, average, accumulation and schedule in one optimizer."""
    phase = Phase(
        "p",
        epochs=1,
        learning_rate=rate,
        optimizer=name,
        lowest_rate=0.1,
        l2_sp=0.2,
        clip_norm=0.5,
        ema=0.9,
        accumulate=2,
        batch_norm="train",
        freeze="stage:1",
    )
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification("abc"), image_size=32)
    freeze(model, phase.freeze, batch_norm=phase.batch_norm)
    optimizer = make_optimizer(model, phase, 20)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    images = rng.integers(0, 256, (4, 32, 32, 3)).astype("uint8")
    labels = np.array([0, 1, 2, 0])
    for _ in range(5):
        model.train_on_batch(images, labels)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is type(optimizer)
    for a, b in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    for layer, other in zip(model.layers, loaded.layers):
        if isinstance(layer, keras.layers.Dropout):  # its random state is not in the file
            other.seed_generator.state.assign(layer.seed_generator.state)
    for _ in range(3):
        model.train_on_batch(images, labels)
        loaded.train_on_batch(images, labels)
    for a, b in zip(model.weights, loaded.weights):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-7)


def test_loss_scaling_wraps_it():
    """The wrapper's rate can be read and set, which it cannot around a MultiOptimizer."""
    inner = per_weight(keras.optimizers.SGD(0.5), [WeightRule(), WeightRule(rate=0.1)])
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)
    assert float(optimizer.learning_rate) == 0.5
    optimizer.learning_rate = 0.25
    weights = variables()
    before = [w.numpy() for w in weights]
    gradient = GRADIENTS[0][:24].reshape(6, 4), GRADIENTS[0][24:]
    optimizer.apply([keras.ops.convert_to_tensor(8 * g) for g in gradient], weights)
    for rate, w, b, g in zip((0.25, 0.025), weights, before, gradient):
        np.testing.assert_allclose(w.numpy(), b - rate * g, rtol=1e-5, atol=1e-6)
    optimizer.apply([keras.ops.full(s, np.inf) for s in SHAPES], weights)
    assert float(optimizer.dynamic_scale) == 4.0


def test_averages_are_swapped_without_rounding(rng):
    """Keras swaps by additions on TensorFlow, which rounds."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), "mse")
    swap = SwapAverages()
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(model.get_weights()[0])

        def on_epoch_end(self, epoch, logs=None):
            seen.append(model.get_weights()[0])

    x, y = rng.normal(size=(12, 3)) * 1e3, rng.normal(size=(12, 2))
    model.fit(
        x, y * 1e-3, batch_size=12, epochs=2, verbose=0, callbacks=[swap, Look()], shuffle=False
    )
    first, average_1, second, average_2 = seen
    np.testing.assert_array_equal(first, average_1)  # of one step
    np.testing.assert_allclose(average_2, 0.5 * first + 0.5 * second, rtol=1e-6)
    np.testing.assert_array_equal(model.get_weights()[0], average_2)


def test_stopping_early_leaves_the_average_in_the_model(rng):
    """Keras leaves the plain weights then."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), "mse")
    kept = []

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            model.stop_training = epoch == 1

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kept.append(model.get_weights()[0])

    x, y = rng.normal(size=(12, 3)), rng.normal(size=(12, 2))
    model.fit(x, y, epochs=5, batch_size=4, verbose=0, callbacks=[Stop(), SwapAverages(), Look()])
    assert len(kept) == 2
    np.testing.assert_array_equal(model.get_weights()[0], kept[-1])


def test_what_cannot_be_made_says_why():
    model = small_model()
    freeze(model, "all")
    with pytest.raises(InputError, match=r"unknown optimizer 'adamx'\. Choose one of adadelta,"):
        make_optimizer(model, Phase("p", epochs=1, optimizer="adamx"), 1)
    with pytest.raises(InputError, match="does not take"):
        make_optimizer(model, Phase("p", epochs=1, optimizer_options={"momentum": 0.9}), 1)
    optimizer = make_optimizer(model, Phase("p", epochs=1), 1)
    freeze(model, "none")
    with pytest.raises(InputError, match="for 2 trainable weights, not"):
        optimizer.build(model.trainable_variables)
    with pytest.raises(InputError, match="inside LossScaleOptimizer"):
        per_weight(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), [])
