"""Names, weights and the user's own source models."""

import keras
import numpy as np
import pytest

from keras_transfer.errors import InputError
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.sources import applications as backbones
from keras_transfer.models.sources.applications import (
    BACKBONES,
    check_source_model,
    check_weights,
    find_spec,
    weights_path,
)
from keras_transfer.models.sources.backbones import build_backbone, check_backbone
from keras_transfer.models.sources.own import backbone_from_model, load_model
from keras_transfer.models.stages import backbone_of, freeze

L = keras.layers


def test_unknown_name_suggests_near_ones():
    with pytest.raises(InputError, match=r"did you mean .*mobilenet_v2"):
        find_spec("MobileNet-V2_0.36")
    with pytest.raises(InputError, match="neither in the table nor a file"):
        find_spec("qqqq")


def test_image_size_below_the_familys_least():
    check_backbone("xception", 71, weights=None)
    with pytest.raises(InputError, match="70 is too small for xception: use 71"):
        check_backbone("xception", 70, weights=None)
    with pytest.raises(InputError, match="too small"):
        build_model("vgg16", Classification("ab"), image_size=31, weights=None)


def test_weights_that_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))

    def unreachable(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(backbones.urllib.request, "urlopen", unreachable)
    spec = find_spec("resnet50")
    with pytest.raises(InputError) as error:
        check_weights(spec)
    for words in ("resnet50", str(weights_path(spec)), "no route", "KERAS_HOME", "Copy"):
        assert words in str(error.value)


def test_download_that_fails_says_the_same(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    from keras.src.utils import file_utils

    def get_file(*args, **kwargs):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(file_utils, "get_file", get_file)
    with pytest.raises(InputError, match=r"vgg16.*URL fetch failure.*Copy"):
        build_backbone("vgg16")


@pytest.mark.parametrize("name", ["mobilenet_0.25", "efficientnet_b0", "convnext_tiny"])
def test_the_download_path_loads_what_it_downloaded(name, monkeypatch, tmp_path):
    """ImageNet weights through Keras's own code path, the network replaced by a file."""
    spec = find_spec(name)
    # ConvNeXt's and EfficientNet's files come from a model of the same function.
    donor = getattr(keras.applications, spec.function)(
        include_top=False, weights=None, pooling="avg", **spec.arguments
    )
    file = tmp_path / spec.weights_file.replace(".h5", ".weights.h5")
    donor.save_weights(file)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "empty"))
    from keras.src.utils import file_utils

    monkeypatch.setattr(file_utils, "get_file", lambda *args, **kwargs: str(file))
    downloaded = build_backbone(name, weights="imagenet")
    from_file = build_backbone(name, weights=str(file))
    # The same weights and the same graph, whichever way they came.
    assert [type(x) for x in downloaded.layers] == [type(x) for x in from_file.layers]
    assert len(downloaded.weights) == len(from_file.weights) > 0
    for a, b in zip(downloaded.weights, from_file.weights):
        np.testing.assert_array_equal(a, b)


def test_wrong_weights_file(tmp_path):
    with pytest.raises(InputError, match="No weights file"):
        build_backbone("mobilenet_0.25", weights=str(tmp_path / "none.h5"))
    other = build_backbone("mobilenet_v2_0.35", weights=None)
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(InputError, match=r"has no weights for mobilenet_0\.25"):
        build_backbone("mobilenet_0.25", weights=str(tmp_path / "other.weights.h5"))


@pytest.mark.parametrize(
    "pooling, shape", [("avg", (2, 256)), ("max", (2, 256)), (None, (2, 2, 2, 256))]
)
def test_pooling(pooling, shape, rng):
    backbone = build_backbone("mobilenet_0.25", image_size=64, weights=None, pooling=pooling)
    assert backbone(rng.uniform(0, 255, (2, 64, 64, 3)).astype("float32")).shape == shape
    with pytest.raises(InputError, match="pooling"):
        build_backbone("mobilenet_0.25", weights=None, pooling="median")


def foreign_model(head):
    """A user's own network, with a nested part and its own rescaling."""
    block = keras.Sequential(
        [L.Conv2D(8, 3, padding="same", activation="relu"), L.MaxPooling2D()], name="block"
    )
    inputs = keras.Input((32, 32, 3))
    x = L.Rescaling(1 / 255)(inputs)
    x = L.Conv2D(4, 3, padding="same", activation="relu", name="first")(x)
    x = block(x)
    x = L.Conv2D(12, 3, padding="same", activation="relu", name="last")(x)
    for layer in head:
        x = layer(x)
    return keras.Model(inputs, x, name="mine")


HEADS = {
    "pooled": lambda: [L.GlobalAveragePooling2D(), L.Dropout(0.1), L.Dense(5, "softmax")],
    "flattened": lambda: [L.Flatten(), L.Dense(16, "relu"), L.Dense(5)],
    "convolutional": lambda: [
        L.GlobalAveragePooling2D(keepdims=True),
        L.Conv2D(5, 1),
        L.Reshape((5,)),
        L.Activation("softmax"),
    ],
}


@pytest.mark.parametrize("head", HEADS)
def test_backbone_from_a_foreign_model(head, rng, tmp_path):
    source = foreign_model(HEADS[head]())
    source.save(tmp_path / "mine.keras")
    x = rng.integers(0, 255, (2, 32, 32, 3)).astype("uint8")
    expected = np.asarray(keras.Model(source.inputs, source.get_layer("last").output)(x))

    backbone = backbone_from_model(str(tmp_path / "mine.keras"))
    np.testing.assert_allclose(backbone(x), expected.mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    names = [stage.name for stage in backbone.stages]
    assert len(names) == 3 and (names[0], names[2]) == ("first", "last")
    prefix, suffix = backbone.split(2)
    np.testing.assert_allclose(suffix(prefix(x)), backbone(x), rtol=1e-5)
    # Any size: what fixed it was the head.
    larger = backbone_from_model(str(tmp_path / "mine.keras"), image_size=48)
    assert larger(rng.uniform(0, 255, (1, 48, 48, 3)).astype("float32")).shape == (1, 12)


def test_source_model_of_this_package_keeps_its_backbone(tmp_path, rng):
    source = build_model("mobilenet_0.25", Classification("abcd"), image_size=48, weights=None)
    freeze(source, "all")
    source.save(tmp_path / "source.keras")
    target = build_model(str(tmp_path / "source.keras"), Classification("xy"))
    assert target.input_shape == (None, 48, 48, 3)
    assert len(backbone_of(target).stages) == 14
    assert backbone_of(target).frozen_stages == 0  # what the source's schedule froze is forgotten
    x = rng.uniform(0, 255, (2, 48, 48, 3)).astype("float32")
    np.testing.assert_allclose(backbone_of(target)(x), backbone_of(source)(x), rtol=1e-5)
    scratch = build_model(str(tmp_path / "source.keras"), Classification("xy"), weights=None)
    kernels = [backbone_of(m).get_layer("conv1").kernel.numpy() for m in (source, scratch)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_source_models_that_cannot_be_used(tmp_path):
    table = keras.Sequential([keras.Input((8,)), L.Dense(2)])
    with pytest.raises(InputError, match="RGB"):
        backbone_from_model(table)
    flat = keras.Sequential([keras.Input((8, 8, 3)), L.Flatten(), L.Dense(2)])
    with pytest.raises(InputError, match="no layer that outputs a feature map"):
        backbone_from_model(flat)

    inputs = keras.Input((3, 32, 32))
    first = L.Conv2D(8, 3, data_format="channels_first", name="first")(inputs)
    swapped = keras.Model(inputs, L.Dense(2)(L.Flatten()(first)))
    with pytest.raises(InputError, match=r"The layer first .* is channels_first"):
        backbone_from_model(swapped)
    inputs = keras.Input((32, 32, 3))
    tokens = L.Reshape((16, 8))(L.Conv2D(8, 8, strides=8, name="patches")(inputs))
    tokens = L.MultiHeadAttention(2, 4)(tokens, tokens)
    transformer = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling1D()(tokens)))
    with pytest.raises(InputError, match=r"is a transformer .* follow patches"):
        backbone_from_model(transformer)
    for other in (None, 5):
        with pytest.raises(InputError, match=f"a name, a path or a model .*, not {other}"):
            build_model(other, Classification("ab"))

    with pytest.raises(InputError, match="does not exist"):
        check_source_model(tmp_path / "none.keras")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is not a run"):
        check_source_model(tmp_path / "empty")
    (tmp_path / "text.keras").write_text("no model")
    with pytest.raises(InputError, match="not a Keras 3 model file"):
        check_source_model(tmp_path / "text.keras")


def test_nested_models_whose_layers_have_one_name(rng, tmp_path):
    """The unrolled model needs different names, and our own layers have names too."""

    def block():
        return keras.Sequential([L.Conv2D(4, 3, name="images"), L.ReLU(name="pooling")])

    layers = [block(), block(), L.GlobalAveragePooling2D(), L.Dense(2)]
    source = keras.Sequential([keras.Input((16, 16, 3)), *layers])
    x = rng.uniform(0, 255, (2, 16, 16, 3)).astype("float32")
    expected = layers[1](layers[0](x)).numpy().mean(axis=(1, 2))
    model = build_model(source, Classification("ab"))
    np.testing.assert_allclose(backbone_of(model)(x), expected, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(backbone_of(loaded)(x), expected, rtol=1e-5)


def test_from_scratch_the_images_are_normalized_as_before(rng):
    normalization = L.Normalization(name="normalization")
    normalization.adapt(rng.uniform(0, 255, (9, 16, 16, 3)))
    layers = [normalization, L.Conv2D(4, 3), L.GlobalAveragePooling2D(), L.Dense(2)]
    source = keras.Sequential([keras.Input((16, 16, 3)), *layers])
    scratch = backbone_from_model(source, weights=None)
    mean = scratch.get_layer("normalization").get_weights()[0]
    np.testing.assert_array_equal(mean, normalization.get_weights()[0])


@pytest.mark.parametrize(
    "backbone", ["mine.keras", "bert_tiny_en_uncased", "hf://timm/convnext_tiny"]
)
def test_what_brings_its_weights_takes_no_file_of_them(backbone):
    with pytest.raises(InputError, match=f"'{backbone}' brings its weights: .* file other.h5"):
        check_backbone(backbone, weights="other.h5")


def test_a_source_model_takes_no_weights_file():
    source = foreign_model(HEADS["pooled"]())
    with pytest.raises(InputError, match="it takes no weights file"):
        build_model(source, Classification("ab"), weights="other.h5")


def test_a_model_with_code_in_it_is_not_loaded(tmp_path):
    """Safe mode: a lambda in a model file is code of somebody else's."""
    model = keras.Sequential([keras.Input((4,)), L.Lambda(lambda x: x + 1)])
    for name in ("code.keras", "code.h5"):
        model.save(tmp_path / name)
        with pytest.raises(InputError, match=f"Cannot load .*{name}"):
            load_model(tmp_path / name)


def test_a_source_model_in_an_h5_file(rng, tmp_path):
    source = foreign_model(HEADS["pooled"]())
    file = tmp_path / "mine.h5"
    source.save(file)
    check_backbone(str(file))
    model = build_model(str(file), Classification("ab"))
    x = rng.integers(0, 255, (2, 32, 32, 3)).astype("uint8")
    expected = keras.Model(source.inputs, source.layers[-3].output)(x)
    np.testing.assert_allclose(backbone_of(model)(x), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="does not exist"):
        check_backbone("mine.h5")
    source.save_weights(tmp_path / "some.weights.h5")
    with pytest.raises(InputError, match=r"Cannot load .*weights\.h5"):
        backbone_from_model(str(tmp_path / "some.weights.h5"))
    file.write_text("no model")
    with pytest.raises(InputError, match="not a Keras 3 model file"):
        check_backbone(str(file))


def test_names_are_snake_case_and_carry_the_width():
    assert {"resnet50", "efficientnet_v2_b0", "vgg16", "inception_v3", "mobilenet_v2"} <= set(
        BACKBONES
    )
    assert {"mobilenet_0.25", "mobilenet_v2_0.35"} <= set(BACKBONES)
    for name, spec in BACKBONES.items():
        assert name == name.lower() == spec.name
        assert spec.min_size <= spec.size
