"""Grad-CAM: planted patterns, the formula by hand, split and nested models, tasks, what is refused."""

import keras
import numpy as np
import pytest
from conftest import tiny_backbone

from keras_transfer.errors import InputError
from keras_transfer.evaluation.gradcam import grad_cam
from keras_transfer.models.builders import build_model, head_of
from keras_transfer.models.heads import Classification, MultiLabel, Regression
from keras_transfer.models.sources.backbones import build_backbone
from keras_transfer.models.stages import Backbone

RED, GREEN = (230, 30, 30), (30, 230, 30)


def patches(count, seed, both=False):
    """(images uint8 [N, 32, 32, 3] of grey noise, labels, corners [N, 2, 2] of a patch a colour):
    a red patch (label 0) or a green one (1), or both."""
    rng = np.random.default_rng(seed)
    images = rng.integers(90, 150, (count, 32, 32, 3)).astype("uint8")
    labels, corners = rng.integers(0, 2, count), np.zeros((count, 2, 2), int)
    for i, image in enumerate(images):
        for colour in (0, 1) if both else (labels[i],):
            # Of two patches one lies in the left half, the other in the right one.
            left, right = (16 * colour, 16 * colour + 9) if both else (0, 25)
            y, x = rng.integers(0, 25), rng.integers(left, right)
            corners[i, colour] = y, x
            image[y : y + 8, x : x + 8] = (RED, GREEN)[colour]
    return images, labels.astype("int32"), corners


def centres(heat):
    """Centre of mass of each heat, in pixels of a 32-pixel image."""
    step = 32 / heat.shape[1]
    places = (np.arange(heat.shape[1]) + 0.5) * step
    mass = heat.sum(axis=(1, 2))
    return np.stack(
        [(heat.sum(axis=2) @ places) / mass, (heat.sum(axis=1) @ places) / mass], axis=1
    )


def test_the_heat_is_where_the_patch_is():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3), name="images")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(x)
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    # What follows the map need not be the head.
    backbone = Backbone(inputs, keras.layers.LayerNormalization()(x), name="tiny")
    model = build_model(backbone, Classification(("red", "green")), image_size=32)
    images, labels, _ = patches(256, 0)
    model.compile(keras.optimizers.Adam(1e-2), loss=head_of(model).loss())
    model.fit(images, labels, epochs=12, batch_size=32, verbose=0)

    images, labels, corners = patches(64, 1)
    right = model.predict(images, verbose=0).argmax(axis=1) == labels
    assert right.mean() > 0.95
    heat = grad_cam(model, images)
    assert heat.shape == (64, 16, 16) and heat.dtype == np.float32
    assert heat.min() >= 0 and np.allclose(heat.max(axis=(1, 2)), 1)
    middle = corners[np.arange(64), labels] + 4
    on_patch = (np.abs(centres(heat) - middle) <= 4).all(axis=1)[right]
    assert on_patch.mean() > 0.8

    # With both in an image the answer is in the question.
    images, _, corners = patches(32, 2, both=True)
    for colour in (0, 1):
        found = centres(grad_cam(model, images, colour))
        own, other = (
            np.linalg.norm(found - (corners[:, c] + 4), axis=1) for c in (colour, 1 - colour)
        )
        assert np.median(own) < 4 and (own < other).mean() > 0.9


def by_hand(prefix, rest, images, column):
    """The paper's formula, with gradients from finite differences of the mean over all places:
    α_k is the derivative of the logit by a value that is added to the whole of channel k, divided
    by the number of places."""
    maps = keras.ops.convert_to_numpy(prefix(images)).astype("float64")
    alphas = np.zeros((len(maps), maps.shape[-1]))
    for k in range(maps.shape[-1]):
        ends = []
        for step in (1e-3, -1e-3):
            moved = maps.astype("float32")
            moved[..., k] += step
            ends.append(keras.ops.convert_to_numpy(rest(moved))[:, column])
        alphas[:, k] = (ends[0] - ends[1]) / 2e-3
    heat = np.maximum(np.einsum("nhwk,nk->nhw", maps, alphas), 0)
    return heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-30)


def rest_of(model, suffix):
    return lambda maps: model.get_layer("output")(suffix(maps))


@pytest.mark.parametrize("k", (1, 2))
def test_it_is_the_formula_on_a_split_model(k, rng):
    keras.utils.set_random_seed(0)
    backbone = tiny_backbone()
    model = build_model(backbone, Classification("abc", dropout=0.5), image_size=32)
    images = rng.integers(0, 256, (3, 32, 32, 3)).astype("float32")
    prefix, suffix = backbone.split(k)
    wanted = by_hand(prefix, rest_of(model, suffix), images, 1)
    assert np.allclose(grad_cam(model, images, 1, stage=k - 1), wanted, atol=0.03)
    backbone.trainable = False  # a frozen backbone explains itself as well
    assert np.allclose(grad_cam(model, images, 1, stage=k - 1), wanted, atol=0.03)


@pytest.mark.parametrize("name", ("mobilenet_v2_0.35", "vgg16"))
def test_the_map_is_the_last_one_before_the_pooling(name):
    """MobileNet's head convolution, VGG's own pooling."""
    backbone = build_backbone(name, image_size=64, weights=None)
    model = build_model(backbone, MultiLabel("ab"), image_size=64)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("uint8")
    heat = grad_cam(model, images, [1, 0])
    assert heat.shape == (2, 2, 2) and np.isfinite(heat).all()
    assert np.array_equal(grad_cam(model, images, [1, 0], stage=len(backbone.stages) - 1), heat)
    # One at a time is the same.
    single = [grad_cam(model, images[i : i + 1], 1 - i)[0] for i in (0, 1)]
    assert np.allclose(single, heat, atol=1e-3)


def test_a_map_of_one_place_says_nothing():
    """At 32 pixels MobileNet's last map is one place: the one before it is taken."""
    model = build_model("mobilenet_0.25", Classification("ab"), image_size=32, weights=None)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    assert grad_cam(model, images).shape == (2, 2, 2)


def test_tasks_and_several_heads(rng):
    keras.utils.set_random_seed(0)
    heads = {"kind": MultiLabel("ab"), "size": Regression("xy"), "sort": Classification("abc")}
    model = build_model(tiny_backbone(), heads, image_size=32)
    images = rng.integers(0, 256, (5, 32, 32, 3)).astype("uint8")
    outputs = model.predict(images, verbose=0)
    chosen = {name: outputs[name].argmax(axis=1) for name in ("kind", "sort")}
    chosen["size"] = 0
    for name in heads:
        assert np.array_equal(
            grad_cam(model, images, head=name, batch_size=2),
            grad_cam(model, images, chosen[name], head=name, batch_size=2),
        )
    with pytest.raises(InputError, match="Choose a head: kind, size, sort"):
        grad_cam(model, images)


def test_a_head_that_flattens_the_map(rng):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 5, strides=5, activation="relu")(inputs)
    backbone = Backbone(inputs, x, name="unpooled")
    model = build_model(backbone, Classification("ab", hidden=(8,)), image_size=32)
    images = rng.integers(0, 256, (2, 32, 32, 3)).astype("float32") / 255
    heat = grad_cam(model, images, 0)
    assert heat.shape == (2, 6, 6)


def test_half_precision(rng):
    keras.utils.set_random_seed(0)
    images = rng.integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = build_model(tiny_backbone(), Classification("ab"), image_size=32)
    heat = grad_cam(model, images, 0)
    assert heat.dtype == np.float32 and np.isfinite(heat).all()


def test_what_is_refused(rng):
    model = build_model(tiny_backbone(), Classification("ab"), image_size=32)
    images = rng.integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    for wrong, words in (
        ({"images": images[0]}, "shape"),
        ({"images": images[:0]}, "N ≥ 1"),
        ({"images": images[:, :16]}, "32, 32, 3"),
        ({"classes": 2}, "0 to 1"),
        ({"classes": [0, -1]}, "0 to 1"),
        ({"stage": 3}, "3 stages: stage must be -3 to 2"),
        ({"head": "colour"}, "no head 'colour'.*output"),
    ):
        with pytest.raises(InputError, match=words):
            grad_cam(model, **{"images": images, **wrong})
    plain = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()])
    with pytest.raises(InputError, match="no keras_transfer head"):
        grad_cam(plain, images)


def test_classes_of_another_number(rng):
    model = build_model(tiny_backbone(), Classification("ab"), image_size=32)
    images = rng.integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    with pytest.raises(InputError, match="one for each of the 2 images"):
        grad_cam(model, images, [0, 1, 0])
