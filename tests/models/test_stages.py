"""Stages, splitting and the frozen part's inference mode, on graphs small enough to reason about."""

import keras
import numpy as np
import pytest

from keras_transfer.models.graph import find_stages, rebuild
from keras_transfer.models.stages import Backbone, freeze

L = keras.layers


def residual_net():
    """stem conv → residual block with dropout → inverted bottleneck → conv."""
    inputs = keras.Input((16, 16, 3))
    x = L.Conv2D(4, 3, padding="same", name="stem")(inputs)
    x = L.BatchNormalization(name="stem_bn")(x)
    y = L.Conv2D(4, 3, padding="same", name="block_conv")(x)
    y = L.Dropout(0.5, name="block_drop")(y)
    x = L.Add(name="block_add")([x, y])
    x = L.Conv2D(16, 1, name="expand")(x)
    x = L.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = L.Conv2D(6, 1, name="project")(x)
    x = L.Conv2D(8, 1, name="top")(x)
    x = L.Dropout(0.5, name="top_drop")(x)
    return Backbone(inputs, L.GlobalAveragePooling2D(name="pool")(x), name="tiny")


def test_stages_end_where_the_graph_is_one_tensor_wide():
    names = [[layer.name for layer in s.layers][-1] for s in residual_net().stages]
    # The wide tensors inside of the inverted bottleneck are no cut; pooling belongs to the top.
    assert names == ["stem_bn", "block_add", "project", "pool"]


def test_skip_connection_over_everything_leaves_one_stage():
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(3, 1)(inputs)
    x = L.Conv2D(3, 1)(x)
    assert len(find_stages(keras.Model(inputs, L.Add()([inputs, x])))) == 1


def test_a_layer_that_is_called_twice_is_in_one_stage(rng):
    relu, again = L.ReLU(name="relu"), L.Conv2D(4, 3, padding="same", name="again")
    inputs = keras.Input((8, 8, 3))
    x = inputs
    for layer in (L.Conv2D(4, 1), again, L.Conv2D(4, 1), again, L.Conv2D(5, 1), L.Conv2D(6, 1)):
        x = relu(layer(x))
    inner = keras.Model(inputs, L.GlobalAveragePooling2D()(x))
    inputs = keras.Input((8, 8, 3))
    tiny = Backbone(inputs, rebuild(inner, inputs), name="tiny")
    assert len(tiny.stages) == 4
    x = rng.uniform(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(tiny(x), inner(x))
    for count in (1, 2, 3):
        assert freeze(tiny, f"stage:{count}").stages == tiny.frozen_stages == count
        prefix, suffix = tiny.split(count)
        np.testing.assert_allclose(suffix(prefix(x)), inner(x), rtol=1e-5)


def test_two_inputs_are_refused():
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    with pytest.raises(ValueError, match="one input"):
        find_stages(keras.Model([a, b], L.Add()([a, b])))


def test_split_shares_weights(rng):
    net = residual_net()
    x = rng.normal(size=(2, 16, 16, 3)).astype("float32")
    prefix, suffix = net.split(2)
    net.get_layer("stem").kernel.assign(np.ones((3, 3, 3, 4)))
    np.testing.assert_allclose(suffix(prefix(x)), net(x), rtol=1e-5)


@pytest.mark.parametrize("k", [0, 4, 9])
def test_split_outside_is_refused(k):
    with pytest.raises(ValueError, match="splits after 1 to 3"):
        residual_net().split(k)


def test_frozen_dropout_sleeps_and_trained_dropout_wakes(rng):
    net = residual_net()
    x = rng.normal(size=(2, 16, 16, 3)).astype("float32")
    awake = np.asarray(net(x, training=True))  # this moves the BatchNorm statistics too
    plain = np.asarray(net(x))
    assert np.abs(awake - plain).max() > 1e-3  # nothing is frozen yet
    for stage in net.stages[:3]:
        for layer in stage.layers:
            layer.trainable = False
    assert net.frozen_stages == 3
    tops = {np.asarray(net(x, training=True)).tobytes() for _ in range(3)}
    assert len(tops) == 3  # the last stage's dropout draws anew each time
    net.trainable = False  # plain Keras's way to freeze all
    np.testing.assert_array_equal(net(x, training=True), plain)


def test_frozen_under_fit(rng):
    """Keras's `fit` calls with training=True: the frozen part must not notice."""
    net = residual_net()
    for stage in net.stages[:3]:
        for layer in stage.layers:
            layer.trainable = False
    model = keras.Sequential([net, L.Dense(2)])
    model.compile("sgd", "mse", jit_compile=False)
    before = [np.array(w) for stage in net.stages[:3] for x in stage.layers for w in x.weights]
    top = np.array(net.get_layer("top").kernel)
    x = rng.normal(3, 2, size=(8, 16, 16, 3)).astype("float32")
    model.fit(x, rng.normal(size=(8, 2)), epochs=2, verbose=0)
    after = [np.array(w) for stage in net.stages[:3] for x in stage.layers for w in x.weights]
    for a, b in zip(before, after):
        np.testing.assert_array_equal(a, b)
    assert np.abs(np.array(net.get_layer("top").kernel) - top).max() > 0


def test_what_is_frozen_survives_saving(tmp_path):
    net = residual_net()
    for stage in net.stages[:2]:
        for layer in stage.layers:
            layer.trainable = False
    net.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    assert isinstance(loaded, Backbone) and loaded.frozen_stages == 2
