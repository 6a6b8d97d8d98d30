"""Similarity to the pretraining images, against NumPy and on real images."""

import keras
import numpy as np
import pytest

from keras_transfer.advisor.similarity import activation_shift
from keras_transfer.cli.demo import small_backbone
from keras_transfer.data import Examples, ImageData, from_directory
from keras_transfer.data.arrays import Arrays
from keras_transfer.errors import InputError
from keras_transfer.models.builders import backbone_at, build_model
from keras_transfer.models.framing import framing_of
from keras_transfer.models.heads import Classification
from keras_transfer.models.sources.backbones import build_backbone
from keras_transfer.models.sources.own import backbone_from_model
from keras_transfer.models.stages import Backbone, is_untrained

SIZE = 32


def examples_of(images):
    return Examples(Arrays(images), np.zeros(len(images), "int32"))


@pytest.fixture(autouse=True)
def own_cache(cache):
    """Use a separate cache."""


@pytest.fixture
def images(rng):
    """Images of many brightnesses, uint8 [40, 32, 32, 3]."""
    light = rng.integers(0, 200, (40, 1, 1, 3))
    return (light + rng.integers(0, 56, (40, SIZE, SIZE, 3))).astype("uint8")


@pytest.fixture
def backbone(rng):
    """A small residual network with random statistics."""
    keras.utils.set_random_seed(0)
    sized = backbone_at(build_model(small_backbone(), Classification("ab"), image_size=SIZE))
    found = Backbone.from_config(sized.get_config())  # a graph of its own, that a layer is in once
    for norm in norms_of(found):
        norm.moving_mean.assign(rng.normal(0, 1, norm.moving_mean.shape))
        norm.moving_variance.assign(rng.uniform(0.1, 2, norm.moving_variance.shape))
    return found


def norms_of(backbone):
    return [x for x in backbone.layers if isinstance(x, keras.layers.BatchNormalization)]


def inputs_of_norms(backbone, images):
    """Return the input of each BatchNorm, float64 [N·H·W, C], for images cropped as in evaluation."""
    data = ImageData(("x",), {"all": examples_of(images)}, [], "")
    framing = framing_of(backbone, data=data)
    ((images, _),) = data.batches("all", image_size=framing, batch_size=len(images))
    norms = norms_of(backbone)
    model = keras.Model(backbone.inputs[0], [norm.input for norm in norms])
    values = [np.asarray(v, "float64") for v in model(images, training=False)]
    return [v.reshape(-1, v.shape[-1]) for v in values]


def test_the_shift_is_the_divergence_computed_by_hand(backbone, images):
    assert len(norms_of(backbone)) > 2
    shifts = []
    for norm, values in zip(norms_of(backbone), inputs_of_norms(backbone, images)):
        here = values.var(axis=0) + norm.epsilon
        learned = np.asarray(norm.moving_variance, "float64") + norm.epsilon
        gap = values.mean(axis=0) - np.asarray(norm.moving_mean, "float64")
        divergence = np.log(np.sqrt(learned / here)) + (here + gap**2) / (2 * learned) - 0.5
        shifts.append(np.median(divergence))
    before = backbone.get_weights()
    found = activation_shift(backbone, examples_of(images))
    assert found == pytest.approx(np.mean(shifts), rel=1e-4)
    for a, b in zip(before, backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_pretraining_images_have_no_shift(backbone, images):
    """Statistics are set layer by layer, because each layer changes the input of the next."""
    for i, norm in enumerate(norms_of(backbone)):
        values = inputs_of_norms(backbone, images)[i]
        norm.moving_mean.assign(values.mean(axis=0))
        norm.moving_variance.assign(values.var(axis=0))
    assert activation_shift(backbone, examples_of(images)) == pytest.approx(0, abs=1e-5)
    darker = activation_shift(backbone, examples_of(images // 2))
    darkest = activation_shift(backbone, examples_of(images // 8))
    assert 0.01 < darker < darkest


def test_many_images_are_sampled(backbone, images):
    examples = examples_of(images)
    rows = np.random.default_rng(3).permutation(len(images))[:10]
    some = activation_shift(backbone, examples, most=10, seed=3)
    assert some == pytest.approx(activation_shift(backbone, examples.take(np.sort(rows))))
    assert some != pytest.approx(activation_shift(backbone, examples, most=10, seed=4))


def test_the_shift_is_unknown_without_batch_norm(images):
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    plain = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    backbone = backbone_at(
        build_model(backbone_from_model(plain), Classification("ab"), image_size=SIZE)
    )
    assert activation_shift(backbone, examples_of(images)) is None
    assert not is_untrained(backbone)


def test_a_backbone_without_a_size_is_refused_for_the_shift(images):
    with pytest.raises(InputError, match="takes any image size"):
        activation_shift(small_backbone(), examples_of(images))


def test_random_weights_are_detected(backbone):
    assert is_untrained(small_backbone()) and not is_untrained(backbone)
    fresh = build_model(small_backbone(), Classification("ab"), image_size=SIZE)
    assert is_untrained(backbone_at(fresh))
    fresh.compile("sgd", fresh.layers[-1].head.loss(), jit_compile=False)
    fresh.fit(np.full((8, SIZE, SIZE, 3), 99, "uint8"), np.arange(8) % 2, verbose=0)
    assert not is_untrained(backbone_at(fresh))


@pytest.mark.parametrize(
    "name", [pytest.param("mobilenet_0.25", marks=pytest.mark.large), "mobilenet_v2_0.35"]
)
def test_insects_resemble_imagenet_and_hands_do_not(name, real_weights, real_data):
    backbone = build_backbone(name, image_size=96)
    assert not is_untrained(backbone)
    shifts = []
    for folder in ("hymenoptera", "sign_digits"):
        data = from_directory(real_data / folder, progress=False)
        shifts.append(activation_shift(backbone, data.examples["train"], most=128))
    assert shifts[0] < 0.05 < 0.09 < shifts[1] < 0.3
