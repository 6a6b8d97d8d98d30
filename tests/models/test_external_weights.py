"""Weights and models from elsewhere: timm's ConvNeXt, files of Keras 2, SavedModels."""

import json
import shutil
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from conftest import raises
from keras.src.applications.convnext import ConvNeXt

import keras_transfer as kt
from keras_transfer.data import from_arrays
from keras_transfer.models.sources.applications import BACKBONES, BackboneSpec
from keras_transfer.models.sources.backbones import build_backbone, check_backbone, default_size
from keras_transfer.models.sources.keras_2 import readable
from keras_transfer.models.sources.own import backbone_from_model

SAVED = Path(__file__).parent.parent / "saved_by_keras_2"
NAME, DEPTHS, WIDTHS = "convnext_small_one", (1, 1, 2, 1), (4, 8, 12, 16)

safetensors = pytest.importorskip("safetensors.numpy")


def convnext(**options):
    return ConvNeXt(depths=DEPTHS, projection_dims=WIDTHS, name="convnext", **options)


@pytest.fixture(autouse=True)
def row(monkeypatch, tmp_path):
    """A ConvNeXt that is small, in the table, and no models of Hugging Face on this machine."""
    spec = BackboneSpec(NAME, convnext, "convnext", "torch", 64, 32, 0, 0, "")
    monkeypatch.setitem(BACKBONES, NAME, spec)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def tensors_of(model) -> dict:
    """The weights of a model as timm names and stores them."""

    def module(name, layer, axes=None):
        first, second = (keras.ops.convert_to_numpy(w) for w in layer.weights)
        found[f"{name}.weight"] = np.ascontiguousarray(first.transpose(axes) if axes else first)
        found[f"{name}.bias"] = second

    found: dict = {}
    conv, linear = (3, 2, 0, 1), (1, 0)
    names = {layer.name: layer for layer in model.layers}
    module("stem.0", names["convnext_stem"].layers[0], conv)
    module("stem.1", names["convnext_stem"].layers[1])
    for i, depth in enumerate(DEPTHS):
        if i:
            norm, convolution = names[f"convnext_downsampling_block_{i - 1}"].layers
            module(f"stages.{i}.downsample.0", norm)
            module(f"stages.{i}.downsample.1", convolution, conv)
        for j in range(depth):
            ours, theirs = f"convnext_stage_{i}_block_{j}_", f"stages.{i}.blocks.{j}."
            module(f"{theirs}conv_dw", names[f"{ours}depthwise_conv"], conv)
            module(f"{theirs}norm", names[f"{ours}layernorm"])
            module(f"{theirs}mlp.fc1", names[f"{ours}pointwise_conv_1"], linear)
            module(f"{theirs}mlp.fc2", names[f"{ours}pointwise_conv_2"], linear)
            found[f"{theirs}gamma"] = names[f"{ours}layer_scale"].weights[0].numpy()
    module("head.norm", model.layers[-1])
    return found


@pytest.fixture
def original():
    model = convnext(weights=None, include_top=False, pooling="avg", input_shape=(64, 64, 3))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(weight + 0.1 * rng.normal(size=weight.shape))
    return model


def test_each_tensor_finds_its_weight(original, tmp_path):
    tensors = {**tensors_of(original), "head.fc.weight": np.zeros((5, 16), "float32")}
    file = tmp_path / "model.safetensors"
    safetensors.save_file(tensors, file)
    check_backbone(NAME, 64, str(file))
    backbone = build_backbone(NAME, image_size=64, weights=str(file))
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3)).astype("float32")
    np.testing.assert_allclose(backbone(images), original(images), atol=1e-4)
    # Dense layers may be convolutions of 1×1, and numbers may be shorter.
    name = "stages.0.blocks.0.mlp.fc1.weight"
    tensors[name] = tensors[name][:, :, None, None].astype("float16")
    safetensors.save_file(tensors, file)
    again = build_backbone(NAME, image_size=64, weights=str(file))
    np.testing.assert_allclose(again(images), original(images), atol=5e-3)


def test_a_repository_of_timm_is_a_backbone(original, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "convnext_tiny", BACKBONES[NAME])
    name = "hf://timm/convnext_tiny.dinov3_lvd1689m"
    folder = tmp_path / "hub" / "models--timm--convnext_tiny.dinov3_lvd1689m" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    safetensors.save_file(tensors_of(original), folder / "model.safetensors")
    check_backbone(name, 64)
    assert default_size(name) == 64
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3)).astype("float32")
    for backbone in (build_backbone(name), build_backbone("convnext_tiny", weights=name)):
        assert len(backbone.stages) == len(build_backbone(NAME, weights=None).stages) > 3
        np.testing.assert_allclose(backbone(images), original(images), atol=1e-4)
    noise = list(np.random.default_rng(0).uniform(-1, 1, (10, 800)).astype("float32"))
    clips = from_arrays((noise, [0, 1] * 5), rate=8000, class_names=("a", "b"))
    assert build_backbone(name, data=clips).input_shape[1] == 96
    fresh = build_backbone(name, weights=None)
    assert np.abs(fresh(images).numpy() - original(images).numpy()).max() > 0.1


def test_what_cannot_be_loaded(original, tmp_path, monkeypatch):
    tensors, file = tensors_of(original), tmp_path / "model.safetensors"

    def saved(**changed):
        content = {k: v for k, v in {**tensors, **changed}.items() if v is not None}
        safetensors.save_file(content, file)

    with raises(f"Weights {file} are for ConvNeXt backbones"):
        check_backbone("resnet50", None, str(file))
    with raises(f"No weights file {file}: pass a path"):
        check_backbone(NAME, None, str(file))
    for change, words in (
        (
            {"stem.0.bias": None},
            "is not timm's weights of convnext_small_one: it lacks stem.0.bias.",
        ),
        ({"x.grn": np.zeros(2)}, "is not timm's weights of convnext_small_one: it has x.grn too."),
        (
            {"head.norm.bias": np.zeros(3)},
            r"head.norm.bias has the shape (3,), which does not fit (16,)",
        ),
    ):
        saved(**change)
        before = original.get_weights()
        with raises(words):
            build_backbone(NAME, image_size=64, weights=str(file))
        for a, b in zip(before, original.get_weights()):
            np.testing.assert_array_equal(a, b)
    file.write_bytes(b"not a file of tensors")
    with raises(f"Cannot read {file}: "):
        build_backbone(NAME, image_size=64, weights=str(file))

    def offline(*args):
        raise ConnectionError("no network")

    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "hf_hub_download", offline)
    with raises("models--timm--convnext_tiny.fb_in22k has no model.safetensors), and the download"):
        check_backbone("hf://timm/convnext_tiny.fb_in22k")


@pytest.mark.parametrize("name", [NAME, pytest.param("convnext_tiny", marks=pytest.mark.large)])
def test_logits_are_those_of_timm(name, tmp_path):
    """With random weights, in timm itself and in our backbone with timm's classifier behind it."""
    torch = pytest.importorskip("torch", reason="torch and timm are needed for this test only")
    timm = pytest.importorskip("timm", reason="torch and timm are needed for this test only")
    torch.manual_seed(0)
    sizes = {"depths": DEPTHS, "dims": WIDTHS} if name == NAME else {}
    theirs = timm.create_model("convnext_tiny", num_classes=5, **sizes).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    safetensors.save_file(state, tmp_path / "model.safetensors")
    ours = build_backbone(name, image_size=96, weights=str(tmp_path / "model.safetensors"))
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3))
    pixels = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        expected = theirs(torch.tensor(pixels.transpose(0, 3, 1, 2).astype("float32"))).numpy()
    logits = ours(images).numpy() @ state["head.fc.weight"].T + state["head.fc.bias"]
    print(f"{name}: largest difference of logits {np.abs(logits - expected).max():.1e}")
    np.testing.assert_allclose(logits, expected, atol=1e-4)


# -- Keras 2 --------------------------------------------------------------------------------------


def old(node, name):
    """A configuration as older versions of Keras 2 wrote it: no modules, no input layers."""
    if isinstance(node, list):
        return [old(part, name) for part in node]
    if not isinstance(node, dict):
        return node
    node = {k: old(v, name) for k, v in node.items() if k not in ("module", "registered_name")}
    if node.get("class_name") == "Functional":
        node["class_name"] = name
    if node.get("class_name") == "Sequential":
        layers = [x for x in node["config"]["layers"] if x["class_name"] != "InputLayer"]
        node["config"] = {**node["config"], "layers": layers}
    return node


@pytest.mark.parametrize("name", [None, "Functional", "Model"], ids=["2.21", "2.4", "2.2"])
def test_a_model_of_teachable_machine_is_a_source_model(tmp_path, name):
    """Its layout, saved by tf_keras 2.21: two sequential models, the first around a functional one."""
    file = shutil.copy(SAVED / "keras_model.h5", tmp_path)
    if name:
        with h5py.File(file, "r+") as opened:
            config = json.loads(opened.attrs["model_config"])
            opened.attrs["model_config"] = json.dumps(old(config, name))
    saved = np.load(SAVED / "outputs.npz")
    images = saved["images"]
    scaled = images.astype("float32") / 127.5 - 1
    np.testing.assert_allclose(kt.load_model(file)(scaled), saved["outputs"], atol=1e-6)
    backbone = backbone_from_model(file)  # whose form tells the preprocessing
    np.testing.assert_allclose(backbone(images), saved["features"], atol=1e-5)
    assert len(backbone.stages) == 2
    model = kt.build_model(backbone, kt.Classification("ab"))
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(kt.load_model(tmp_path / "model.keras")(images), model(images))


def test_pixels_that_no_layer_scales_are_mentioned(capsys):
    def source(scale=lambda x: x, after=lambda x: x):
        inputs = keras.Input((32, 32, 3))
        x = after(keras.layers.Conv2D(4, 3)(scale(inputs)))
        return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))

    for scale in (lambda x: x / 127.5 - 1, keras.layers.Rescaling(1 / 255), lambda x: x - 99.0):
        backbone_from_model(source(scale))
        assert "scales the pixels" not in capsys.readouterr().err
    for model in (source(), source(after=lambda x: x / 2)):
        backbone_from_model(model)
        backbone_from_model(model)
        assert capsys.readouterr().err.count("no layer scales the pixels") == 1


def test_files_of_keras_3_are_read_as_they_are(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(keras.layers.DepthwiseConv2D(3)(inputs))
    keras.Model(inputs, x).save(tmp_path / "three.h5")
    for file in (tmp_path / "three.h5", tmp_path / "nothing.keras"):
        with readable(file) as found:
            assert found == file
    with readable(SAVED / "keras_model.h5") as found:
        assert found != SAVED / "keras_model.h5" and found.is_file()
    assert not found.exists()


def test_a_saved_model_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with raises(f"{tmp_path} is a TensorFlow SavedModel (the format of TF Hub, too)"):
        check_backbone(str(tmp_path))
    with raises("save the Keras model that it was made from with model.save('name.keras')"):
        kt.build_model(str(tmp_path), kt.Classification("ab"))
