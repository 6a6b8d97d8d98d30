"""BatchNorm folded into convolutions: the same function, the same training step."""

import keras
import numpy as np
import pytest

from keras_transfer.models.acceleration import FoldedConv, folded, training_model
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.sources.applications import BACKBONES
from keras_transfer.models.sources.backbones import build_backbone
from keras_transfer.models.stages import freeze

pytestmark = pytest.mark.compat

# How many of its BatchNorms follow a convolution directly.
FAMILIES = {
    "mobilenet_0.25": (27, 27),
    "mobilenet_v2_0.35": (52, 52),
    "resnet50_v2": (32, 49),
    "densenet121": (59, 121),
    "efficientnet_v2_b0": (59, 59),
    "xception": (6, 40),
    "vgg16": (0, 0),
}


def shaken(model, seed=1):
    """BatchNorms as after training: with none of their starting values."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for weight in layer.weights:
                positive = weight.name in ("gamma", "moving_variance")
                low, high = (0.5, 1.5) if positive else (-0.2, 0.2)
                weight.assign(rng.uniform(low, high, weight.shape))
    return model


def images(n=2, size=96):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), "uint8")


# densenet121 is resnet50_v2's case, BatchNorm before the convolution, in many more layers.
@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.large] * (x == "densenet121")) for x in FAMILIES]
)
def test_folded_gives_the_same_numbers(name):
    size = max(64, BACKBONES[name].min_size)
    backbone = shaken(build_backbone(name, image_size=size, weights=None))
    model, x = folded(backbone), images(size=size)
    expected = np.asarray(backbone(x, training=False))
    np.testing.assert_allclose(
        np.asarray(model(x, training=False)), expected, atol=1e-5 * np.abs(expected).max()
    )
    norms = sum(isinstance(x, keras.layers.BatchNormalization) for x in backbone.layers)
    assert (sum(isinstance(x, FoldedConv) for x in model.layers), norms) == FAMILIES[name]
    assert {id(w) for w in model.weights} == {id(w) for w in backbone.weights}


@pytest.mark.parametrize("freezing", ["none", "stage:9"])
def test_a_training_step_of_the_folded_model_is_one_of_the_plain_model(freezing):
    """One step of plain SGD from the same weights, with a frozen part and without."""
    steps = []
    for fast in (False, True):
        keras.utils.set_random_seed(0)
        head = Classification("ab", dropout=0.0)
        model = build_model("mobilenet_0.25", head, image_size=64, weights=None)
        shaken(model.layers[1])
        frozen = freeze(model, freezing)
        trained = training_model(model, frozen.stages) if fast else model
        before = [w.numpy() for w in model.weights]
        trained.compile(keras.optimizers.SGD(0.1), head.loss(), jit_compile=False)
        loss = trained.train_on_batch(images(8, 64), np.arange(8) % 2)
        steps.append((loss, [w.numpy() - b for w, b in zip(model.weights, before)]))
    (plain_loss, plain), (fast_loss, fast) = steps
    assert fast_loss == pytest.approx(plain_loss, rel=1e-5)
    scale = max(np.abs(step).max() for step in plain)
    for weight, expected, step in zip(model.weights, plain, fast):
        np.testing.assert_allclose(step, expected, atol=2e-4 * scale, err_msg=weight.path)
    assert scale > 1e-3


@pytest.mark.parametrize("shared", ["convolution", "norm"])
def test_layers_that_are_called_twice_are_not_folded(shared):
    conv, norm = keras.layers.Conv2D(4, 3, padding="same"), keras.layers.BatchNormalization()
    inputs = keras.Input((32, 32, 3))
    x = norm(conv(keras.layers.Conv2D(4, 1)(inputs)))
    x = keras.layers.ReLU()(x)
    x = norm(keras.layers.Add()([x, x])) if shared == "norm" else conv(x)
    model = shaken(keras.Model(inputs, keras.layers.ReLU()(x)))
    np.testing.assert_allclose(folded(model)(images(size=32)), model(images(size=32)), rtol=1e-4)


def test_a_frozen_part_sleeps_under_fit():
    """Dropout and StochasticDepth of frozen stages, which `training=True` would wake."""
    model = build_model(
        "efficientnet_v2_b0", Classification("ab", dropout=0.0), image_size=64, weights=None
    )
    frozen = freeze(model, "all")
    trained = training_model(model, frozen.stages)
    x = images(4, 64)
    first, second = (np.asarray(trained(x, training=True)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, np.asarray(model(x, training=False)), rtol=1e-4, atol=1e-5)


def test_in_bfloat16_kernels_are_rounded_once():
    keras.config.set_dtype_policy("mixed_bfloat16")
    backbone = shaken(build_backbone("mobilenet_v2_0.35", image_size=96, weights=None))
    keras.config.set_dtype_policy("float32")
    exact = build_backbone("mobilenet_v2_0.35", image_size=96, weights=None)
    exact.set_weights(backbone.get_weights())
    expected = np.asarray(exact(images()))
    errors = [
        np.linalg.norm(np.asarray(model(images()), "float32") - expected)
        for model in (backbone, folded(backbone))
    ]
    assert errors[1] / np.linalg.norm(expected) < 0.05
    assert errors[1] < 1.5 * errors[0]
