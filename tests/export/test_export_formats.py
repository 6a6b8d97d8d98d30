"""LiteRT, ONNX, OpenVINO and TensorFlow.js: correct, small in int8, and rejected if not; exports of runs; parity."""

import json
import re
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import require_format, tiny_backbone, write_colours, write_image
from packaging.version import Version
from PIL import Image
from typer.testing import CliRunner

from keras_transfer import export
from keras_transfer.cli.demo import small_backbone
from keras_transfer.cli.main import app
from keras_transfer.data import from_directory
from keras_transfer.errors import InputError
from keras_transfer.export import converters, npm
from keras_transfer.export import exporter as exporting
from keras_transfer.export.card import _LICENSES, _UNCONFIRMED, write_card
from keras_transfer.export.parity import (
    Parity,
    ParityError,
    Sample,
    compare,
    require_parity,
    require_quality,
)
from keras_transfer.modalities.image.prepare import resize_and_crop
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification, MultiLabel, Regression
from keras_transfer.models.sources.applications import BACKBONES
from keras_transfer.models.stages import Backbone
from keras_transfer.training.trainer import Trainer

FORMATS = ("litert", "onnx", "openvino", "tfjs")
FILES = {
    "litert": {"model.tflite"},
    "onnx": {"model.onnx"},
    "openvino": {"model.xml", "model.bin"},
    "tfjs": {"model.json", "group1-shard1of1.bin"},
}


@pytest.fixture(params=FORMATS)
def format(request):
    require_format(request.param, int8=request.param != "tfjs")
    return request.param


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a run that classifies red, green and blue; its backbone has random weights."""
    folder = tmp_path_factory.mktemp("formats")
    data = from_directory(write_colours(folder / "colours"), progress=False)
    keras.utils.set_random_seed(0)
    model = build_model(small_backbone(), Classification(data.class_names), image_size=32)
    trainer = Trainer(model, "feature_extraction", augment="none", cache="memory")
    return trainer.fit(data, folder / "run", config={"data": str(folder / "colours")})


@pytest.fixture(scope="module")
def converted(run, tmp_path_factory):
    """Return the run exported as LiteRT."""
    return export.export_run(run, "litert", out=tmp_path_factory.mktemp("litert") / "1")


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (5, 32, 32, 3), dtype="uint8")


# -- one model in each format -------------------------------------------------------------------------


def test_scores_are_named_after_the_heads(format, images, tmp_path):
    keras.utils.set_random_seed(1)
    # The names are not in alphabetical order, and the numbers of outputs are equal.
    heads = {"b": MultiLabel(["x", "y"]), "a": Classification(["p", "q"]), "c": Regression(["u"])}
    model = build_model(tiny_backbone(), heads, image_size=32)
    temperatures = {"a": 0.5, "b": 2.0}
    exported = export.convert(model, tmp_path / "1", format, temperatures=temperatures)
    assert exported.parity.of == "noise" and min(exported.parity.agreement.values()) >= 0.99

    outputs = {k: np.asarray(v, "float64") for k, v in model(images).items()}
    e = np.exp(outputs["a"] / 0.5)
    expected = {
        "scores_a": e / e.sum(axis=1, keepdims=True),
        "scores_b": 1 / (1 + np.exp(-outputs["b"] / 2)),
        "scores_c": outputs["c"],
    }
    got = export.open_export(tmp_path / "1")(images)
    assert set(got) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, atol=1e-4)
    names = {f"labels_{name}.txt" for name in "abc"}
    assert {p.name for p in (tmp_path / "1").iterdir()} == FILES[format] | names
    assert (tmp_path / "1" / "labels_b.txt").read_text() == "x\ny\n"
    assert exported.bytes == sum(p.stat().st_size for p in (tmp_path / "1").iterdir())


def test_a_model_of_half_precision_is_exported_in_float32(images, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = build_model(tiny_backbone(), Classification("ab"), image_size=32)
    export.convert(model, tmp_path / "1", "litert")
    got = export.open_export(tmp_path / "1")(images)["scores"]
    exact = build_in_float32(model)
    logits = np.asarray(exact(images), "float64")
    np.testing.assert_allclose(got, np.exp(logits) / np.exp(logits).sum(1)[:, None], atol=1e-5)
    assert model.get_layer("tiny").compute_dtype == "bfloat16"  # unchanged


def build_in_float32(model):
    keras.config.set_dtype_policy("float32")
    exact = build_model(tiny_backbone(), Classification("ab"), image_size=32)
    exact.set_weights(model.get_weights())
    return exact


def test_int8_of_a_run_is_small_and_as_good(format, run, converted, tmp_path):
    if format == "tfjs":
        with pytest.raises(InputError, match=r"TensorFlow\.js has no int8 form"):
            export.export_run(run, format, int8=True)
        return
    whole = converted
    if format != "litert":
        whole = export.export_run(run, format, out=tmp_path / "float")
    small = export.export_run(run, format, int8=True, out=tmp_path / "int8")
    assert whole.parity.labelled and whole.parity.of == "seen val"
    assert min(whole.parity.agreement.values()) == 1 and whole.parity.difference < 1e-4
    assert whole.parity.quality["output"] == (1.0, 1.0)
    assert small.bytes < 0.45 * whole.bytes
    assert small.parity.difference > 1e-4 and small.parity.lost <= 0.02
    text = (tmp_path / "int8" / "README.md").read_text()
    assert f"{format}, int8, {small.bytes / 1e6:.1f} MB" in text and small.parity.text() in text


def test_int8_that_loses_too_much_is_refused(run, tmp_path, monkeypatch):
    """Ranges measured on black images do not fit others."""
    write, written = exporting.write_converted, tmp_path / "written"

    def write_once(answers, folder, *options):
        if not written.exists():
            written.mkdir()
            write(answers, written, *options)
        shutil.copytree(written, folder, dirs_exist_ok=True)

    monkeypatch.setattr(exporting, "write_converted", write_once)
    data = from_directory(run.config["data"], progress=False)
    batch, labels = next(iter(data.batches("val", image_size=32, batch_size=32)))
    sample = Sample("val", *[np.asarray(batch)] * 2, labels={"output": np.asarray(labels)})
    black = np.zeros((8, 32, 32, 3), "uint8")
    options = dict(int8=True, examples=black, sample=sample)
    with pytest.raises(InputError, match=r"int8 loses \d+\.\d points, more than 2: .*--max-loss"):
        export.convert(run.model, tmp_path / "1", "litert", **options)
    assert list(tmp_path.iterdir()) == [written]
    kept = export.convert(run.model, tmp_path / "1", "litert", **options, most_lost=1.0)
    assert kept.parity.lost > 0.02


def test_int8_folds_batch_norm_into_depthwise_convolutions(tmp_path):
    """Before BatchNorm, channels differ by a factor of 10,000, so a single range does not fit them."""
    pytest.importorskip("onnxruntime")
    keras.utils.set_random_seed(2)
    layers, scales = keras.layers, np.logspace(-2, 2, 16)
    inputs = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = layers.Conv2D(16, 3, strides=2, activation="relu6")(x)
    x = layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization(name="norm")(x))
    backbone = Backbone(inputs, layers.GlobalAveragePooling2D()(x), name="uneven")
    kernel = backbone.get_layer("depthwise").kernel
    kernel.assign(kernel.numpy() * scales[:, None])
    backbone.get_layer("norm").moving_variance.assign(0.01 * scales**2)
    model = build_model(backbone, Classification("abcd"), image_size=32)
    rng = np.random.default_rng(1)
    colours = rng.integers(0, 256, (200, 1, 1, 3)) + rng.integers(-20, 20, (200, 32, 32, 3))
    examples = np.clip(colours, 0, 255).astype("uint8")
    options = dict(int8=True, examples=examples[:100], sample=Sample("test", *[examples[100:]] * 2))
    found = export.convert(model, tmp_path / "1", "onnx", **options, most_lost=1.0)
    assert found.parity.agreement["output"] >= 0.9


def test_onnx_supports_the_operations_of_convnext(images, tmp_path):
    """Grouped convolutions, which Keras compiles with XLA, and the exact GELU, which needs Erfc."""
    pytest.importorskip("tf2onnx")
    keras.utils.set_random_seed(4)
    layers = keras.layers
    inputs = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = layers.Activation("gelu")(layers.Conv2D(8, 4, strides=4)(x))
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Conv2D(8, 3, groups=8)(x))
    backbone = Backbone(inputs, layers.GlobalAveragePooling2D()(x), name="grouped")
    model = build_model(backbone, Classification("abc"), image_size=32)
    export.convert(model, tmp_path / "1", "onnx")
    logits = np.asarray(model(images), "float64")
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    got = export.open_export(tmp_path / "1")(images)["scores"]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert not tf.config.functions_run_eagerly()


def test_onnx_keeps_the_zeros_around_a_max_pooling(tmp_path):
    """The zeros are the largest values among negative numbers (ResNet-V2)."""
    pytest.importorskip("tf2onnx")
    keras.utils.set_random_seed(4)
    layers = keras.layers
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 1, bias_initializer=keras.initializers.Constant(-3.0))(
        layers.Rescaling(1 / 255)(inputs)
    )
    x = layers.Conv2D(8, 3)(layers.MaxPooling2D(9, strides=8)(layers.ZeroPadding2D(4)(x)))
    backbone = Backbone(inputs, layers.GlobalAveragePooling2D()(x), name="padded")
    model = build_model(backbone, Classification("ab"), image_size=32)
    found = export.convert(model, tmp_path / "1", "onnx")
    assert found.parity.difference < 1e-5
    # Another ONNX Runtime may read the file.
    graph = pytest.importorskip("onnx").load(tmp_path / "1" / "model.onnx").graph
    (pooling,) = (node for node in graph.node if node.op_type == "MaxPool")
    (pad,) = (node for node in graph.node if node.output[0] == pooling.input[0])
    assert pad.op_type == "Pad" and pad.input[2] == "nearly_zero"


@pytest.mark.parametrize("kept", [False, True])
def test_onnx_runtime_takes_zeros_around_a_max_pooling(kept):
    """ONNX Runtime before 1.32 ignores them (its issue 24737) without `_protect_zeros`."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    make, shape = onnx.helper, [1, 1, 4, 4]
    graph = make.make_graph(
        [
            make.make_node("Pad", ["x", "pads"], ["padded"]),
            make.make_node("MaxPool", ["padded"], ["y"], kernel_shape=[3, 3], strides=[3, 3]),
        ],
        "pooling",
        [make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 1, 2, 2])],
        [make.make_tensor("pads", onnx.TensorProto.INT64, [8], [0, 0, 1, 1, 0, 0, 1, 1])],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 15)], ir_version=8)
    if kept:
        converters._protect_zeros(model.graph)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": np.full(shape, -1, "float32")})
    forgets = not kept and Version(onnxruntime.__version__) < Version("1.32")
    np.testing.assert_allclose(found, np.full([1, 1, 2, 2], -1.0 if forgets else 0.0), atol=1e-30)


@pytest.mark.parametrize("format", ("litert", "onnx", "openvino"), indirect=True)
def test_exports_of_0_1_with_another_input_name_still_run(
    format, run, images, monkeypatch, tmp_path
):
    """The input was called `pictures`; `open_export` reads the name from the file."""

    def old_signature(scorer, batch):
        return [tf.TensorSpec([batch, *scorer.input_shape[1:]], tf.uint8, "pictures")]

    monkeypatch.setattr(converters, "_signature", old_signature)
    export.convert(run.model, tmp_path / "1", format)
    logits = np.asarray(run.model(images), "float64")
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    got = export.open_export(tmp_path / "1")(images)["scores"]
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_unsupported_operations_are_reported(run, tmp_path, monkeypatch):
    def refuse(answers, folder, examples):
        raise RuntimeError("no kernel for Foo\nin the graph")

    litert = converters.CONVERTED["litert"]
    monkeypatch.setitem(converters.CONVERTED, "litert", litert._replace(write=refuse))
    with pytest.raises(
        InputError, match=r"as litert: no kernel for Foo\. Nothing .* openvino, tfjs\)"
    ):
        export.convert(run.model, tmp_path / "1", "litert")
    examples = np.zeros((2, 32, 32, 3), "uint8")
    with pytest.raises(InputError, match=r"litert in int8: .* Export it without int8, or in"):
        export.convert(run.model, tmp_path / "1", "litert", int8=True, examples=examples)
    assert list(tmp_path.iterdir()) == []


def test_invalid_exports_are_reported_at_once(run, tmp_path, monkeypatch):
    with pytest.raises(
        InputError, match=r"Unknown format 'caffe'\. Choose one of saved_model, litert"
    ):
        export.export_run(run, "caffe")
    with pytest.raises(InputError, match="SavedModel has no int8"):
        export.export_run(run, int8=True)
    with pytest.raises(InputError, match="pass `examples`"):
        export.convert(run.model, tmp_path / "1", "litert", int8=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r'onnx needs tf2onnx, .*: pip install "keras_transfer\[onnx\]"'
    ):
        export.check_format("onnx")
    with pytest.raises(InputError, match=r"needs openvino, .*\[openvino\]"):
        export.check_format("openvino", int8=True)
    with pytest.raises(
        InputError, match=r'tensorflowjs, .*: pip install --no-deps "tensorflowjs>='
    ):
        export.check_format("tfjs")
    export.check_format("litert", int8=True)
    assert list(tmp_path.iterdir()) == []


def test_tfjs_without_node_or_npm(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match=r"needs node, .* Install Node\.js"):
        export.check_format("tfjs")
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path))
    with pytest.raises(
        InputError, match=r"The comparison .* @tensorflow/tfjs 4.* npm was not found"
    ):
        npm.Package("@tensorflow/tfjs", "4.22.0", ()).require("The comparison")


@pytest.mark.parametrize("format", ["tfjs"], indirect=True)
def test_tfjs_names_the_operation_that_it_lacks(format, tmp_path):
    inputs = keras.Input((2, 2))
    scores = keras.ops.linalg.eigh(inputs)[0]
    model = keras.Model(inputs, {"scores": scores})
    with pytest.raises(InputError, match=r"as tfjs: Unsupported Ops .* SelfAdjointEigV2"):
        converters.write_converted(model, tmp_path, format, None)


# -- a run --------------------------------------------------------------------------------------------


def test_a_run_is_exported_with_calibration_and_card(run, converted):
    found = {"split": "val", "images": 9, "tta": None, "heads": {"output": {"temperature": 3.0}}}
    try:
        run.write_calibration(found)
        first = export.export_run(run, "litert")
        assert first.path == run.path / "export" / "litert" / "1"
        run.write_calibration({**found, "tta": "mirror"})
        assert exporting.temperatures_of(run) == {}
        assert run.next_export("litert", False) == run.path / "export" / "litert" / "2"
    finally:
        (run.path / "calibration.json").unlink()
    images = np.full((1, 32, 32, 3), (200, 120, 40), "uint8")
    logits = np.asarray(run.model(images), "float64")
    for path, temperature in ((first.path, 3.0), (converted.path, 1.0)):
        e = np.exp((logits - logits.max()) / temperature)
        got = export.open_export(path)(images)["scores"]
        np.testing.assert_allclose(got, e / e.sum(), atol=1e-4)
    card = (first.path / "README.md").read_text()
    assert card.startswith("# small_resnet for colours\n")
    for said in (
        "one class per example, of `blue`, `green`, `red`",
        "29 train, 7 val images",
        "Training images per class: blue 9, green 10, red 10.",
        "95 % interval of the accuracy",
        "temperature: output 3.0000",
        f"give the {first.parity.text()}.",
        "initial weights are not known to keras_transfer",
    ):
        assert said in card, said
    assert str(run.path.parent) not in card
    assert "not calibrated" in (converted.path / "README.md").read_text()


def test_the_card_states_the_license_and_the_quality(run, converted, tmp_path, monkeypatch):
    config = {**run.config, "backbone": "mobilenet_v2_0.35", "weights": "imagenet"}
    mae = {"value": 0.25, "low": 0.2, "high": 0.3}
    head = {"task": "regression", "per_target": {"u": {"mae": mae}}, "slices": {}}
    document = {"split": "test", "images": 7, "skipped": 0, "tta": None, "calibrated_on": None}
    document["heads"] = {"output": head}
    monkeypatch.setattr(type(run), "config", config)
    monkeypatch.setattr(type(run), "evaluation", document)
    write_card(tmp_path, run, run.model, converted, {})
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("# mobilenet_v2_0.35 for colours")
    assert "released under the Apache License 2.0 (tensorflow/models)" in card
    assert "7 examples of test." in card and "| u: mae | 0.2500 |" in card

    monkeypatch.setattr(type(run), "config", {**config, "backbone": "convnext_tiny"})
    write_card(tmp_path, run, run.model, converted, {})
    card = (tmp_path / "README.md").read_text()
    assert "ported from facebookresearch/ConvNeXt, a repository under the MIT License" in card
    assert "not confirmed that this license covers the weights" in card

    joined = "mobilenet_0.25+mobilenet_v2_0.35"  # both under the same license
    monkeypatch.setattr(type(run), "config", {**config, "backbone": joined})
    write_card(tmp_path, run, run.model, converted, {})
    card = (tmp_path / "README.md").read_text()
    assert card.count("released under the Apache License 2.0 (tensorflow/models)") == 1


def test_every_backbone_has_a_license():
    assert {spec.module for spec in BACKBONES.values()} == _LICENSES.keys() | _UNCONFIRMED.keys()
    assert not _LICENSES.keys() & _UNCONFIRMED.keys()


def test_the_code_in_the_card_prepares_images_as_in_training(converted, tmp_path, rng):
    card = (converted.path / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    pixels = rng.integers(0, 256, (12, 17, 3), dtype="uint8").repeat(9, 0).repeat(9, 1)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    path = tmp_path / "p.png"
    Image.fromarray(pixels).save(path, exif=exif)
    scope = {"path": path}
    exec(code, scope)
    expected = np.asarray(resize_and_crop(np.rot90(pixels, -1).copy(), 32)).astype(int)
    got = np.asarray(scope["image"]).astype(int)
    assert got.shape == (32, 32, 3) and abs(got - expected).max() <= 1


def test_a_saved_model_of_a_run_is_compared_on_its_files(tmp_path):
    """Files that TensorFlow would misread are excluded from the comparison and counted."""
    colours = tmp_path / "colours"
    write_colours(colours)
    for image in (colours / "red").glob("*.png"):  # palettes, which serving rejects
        Image.open(image).quantize(16).save(image.with_suffix(".bmp"))
        image.unlink()
    data = from_directory(colours, progress=False)
    model = build_model(tiny_backbone(), Classification(data.class_names), image_size=32)
    again = Trainer(model, "feature_extraction", augment="none", cache="memory").fit(
        data, tmp_path / "run", config={"data": str(colours)}
    )
    found = export.export_run(again)
    assert found.path == again.path / "export" / "1" and found.format == "saved_model"
    names = data.examples["val"].names
    broken = sum(name.endswith(".bmp") for name in names)
    assert 0 < broken < len(names)
    assert (found.parity.images, found.parity.refused) == (len(names), broken)
    assert min(found.parity.agreement.values()) == 1 and found.parity.difference < 1e-3
    assert f"{broken} of them unreadable" in (found.path / "README.md").read_text()


def test_moved_training_images_of_a_run_with_validation_images_elsewhere(
    run, tmp_path, monkeypatch
):
    moved = tmp_path / "moved"
    shutil.copytree(run.config["data"], moved)
    config = {**run.config, "data": str(tmp_path / "gone"), "val": run.config["data"]}
    monkeypatch.setattr(type(run), "config", config)
    count, model = len(list(moved.rglob("*.png"))), run.model
    assert len(exporting._sample_of(run, moved, "val", model, count).inputs) == count
    monkeypatch.setattr(type(run), "config", {**config, "val": str(tmp_path / "gone too")})
    assert exporting._sample_of(run, moved, "val", model, count) is None
    (tmp_path / "splits").mkdir()
    for split in ("train", "val"):
        shutil.copytree(moved, tmp_path / "splits" / split)
    shutil.rmtree(next((tmp_path / "splits" / "val").iterdir()))
    fewer = len(list((tmp_path / "splits" / "val").rglob("*.png")))
    found = exporting._sample_of(run, tmp_path / "splits", "val", model, count)
    assert len(found.inputs) == fewer < count


def test_missing_images(run, tmp_path, monkeypatch, capsys):
    data = from_directory(run.config["data"], progress=False)
    monkeypatch.setattr(type(run), "config", {**run.config, "data": str(tmp_path / "gone")})
    given = export.export_run(run, "litert", out=tmp_path / "0", data=data)
    assert (given.parity.of, given.parity.images) == ("seen val", len(data.examples["val"]))
    assert given.parity.labelled
    found = export.export_run(run, "litert", out=tmp_path / "1")
    assert found.parity.of == "noise" and not found.parity.labelled
    assert "compared on noise" in capsys.readouterr().err
    with pytest.raises(InputError, match="Pass their location with --data"):
        export.export_run(run, "litert", int8=True, out=tmp_path / "2")
    other = tmp_path / "other"
    for name in ("cat", "dog"):
        write_image(other / name / "1.png", (1, 2, 3))
    with pytest.raises(InputError):
        export.export_run(run, "litert", out=tmp_path / "2", data=other)
    assert not (tmp_path / "2").exists()


def test_the_command(run, tmp_path):
    def command(*words):
        return CliRunner().invoke(app, ["export", *map(str, words)])

    done = command(run.path, "--format", "litert", "--out", tmp_path / "1", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["path"] == str(tmp_path / "1") and document["int8"] is False
    assert document["parity"]["lost"] == 0 and document["parity"]["of"] == "seen val"
    for words, said in (
        (("--int8",), "SavedModel has no int8"),
        (("--format", "litert", "--out", tmp_path / "1"), "exists. Choose another"),
        (("--max-loss", "2"), "Invalid --max-loss 2. Pass a share"),
        (("--data", tmp_path / "none"), "not found. Check the path"),
    ):
        wrong = command(run.path, *words)
        assert isinstance(wrong.exception, InputError) and said in str(wrong.exception)


# -- parity -------------------------------------------------------------------------------------------

HEADS = {"a": Classification("xy"), "b": MultiLabel("uv"), "c": Regression(["n"])}
EXPECTED = {
    "a": np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.8, 0.2]]),
    "b": np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.8, 0.2]]),
    "c": np.array([[0.0], [10.0], [0.0], [10.0]]),  # standard deviation 5
}


def sample_of(labels):
    return Sample("val", *[np.zeros((4, 32, 32, 3), "uint8")] * 2, labels=labels)


def test_parity_by_hand():
    got = {name: values.copy() for name, values in EXPECTED.items()}
    got["a"][0] = [0.45, 0.55]  # another class
    got["b"][1] = [0.6, 0.6]  # one label of two
    got["c"][2] = 0.1  # 2 % of the spread
    got["c"][3] = 10.04  # 0.8 %
    labels = {
        "a": np.array([0, 1, 0, 0]),
        "b": np.array([[1, 0], [1, 1], [0, 1], [1, 0]]),
        "c": np.array([[0.0], [10], [0], [10]]),
    }
    found = compare(HEADS, EXPECTED, got, sample_of(labels))
    assert found.agreement == {"a": 0.75, "b": 7 / 8, "c": 0.75}
    assert found.quality["a"] == (0.75, 0.5) and found.quality["b"] == (7 / 8, 1.0)
    assert found.quality["c"] == pytest.approx((1.0, 1 - (0.1 + 0.04) / 4 / 5))
    assert found.lost == 0.25 and found.difference == pytest.approx(0.45)
    assert found.text().startswith(
        "same answer for 75.00 %, accuracy 0.7500 → 0.5000 (a), share of"
    )
    alone = compare({"c": HEADS["c"]}, EXPECTED, got, sample_of(labels))
    assert ", 1 − MAE / standard deviation 1.0000 → 0.9930, " in alone.text()
    assert "accuracy" not in alone.text()
    assert found.answers == {"a": 2, "b": 2, "c": 2} and "same answer)" not in found.text()
    constant = {**EXPECTED, "a": np.tile([0.9, 0.1], (4, 1))}
    found = compare(HEADS, constant, got, sample_of(labels)).text()
    assert "all images the same answer" in found and found.endswith("(4 val images)")
    texts = replace(sample_of(labels), many="texts")
    found = compare(HEADS, constant, got, texts).text()
    assert "all texts the same answer" in found and found.endswith("(4 val texts)")

    # Without labels, the Keras model's decisions take their place; unreadable rows are excluded.
    valid = np.array([False, True, True, True])
    found = compare(HEADS, EXPECTED, got, sample_of(None), valid=valid)
    assert found.quality["a"] == (1.0, 1.0) and found.refused == 1 and not found.labelled
    assert found.quality["b"] == pytest.approx((1.0, 5 / 6))


def test_limits_of_parity_and_quality():
    def parity(agreement, difference, lost=0.0):
        quality = {"a": (0.9, 0.9 - lost), "b": (0.5, 0.7)}
        return Parity(
            300, "val", 0, True, {"a": 1.0, "b": agreement}, difference, quality, {"a": 2}
        )

    require_parity(parity(0.99, 0.3), "onnx")
    require_parity(parity(0.9, 1e-4), "onnx")  # ties
    with pytest.raises(ParityError, match="onnx differs from the Keras model"):
        require_parity(parity(0.98, 0.3), "onnx")
    require_quality(parity(0.5, 0.3, lost=0.019), "onnx")
    with pytest.raises(InputError, match=r"loses 3\.0 points, more than 2"):
        require_quality(parity(0.99, 0.3, lost=0.03), "onnx")
    require_quality(parity(0.99, 0.3, lost=0.03), "onnx", max_loss=0.05)

    nan = {**EXPECTED, "c": np.full((4, 1), np.nan)}
    with pytest.raises(ParityError, match="not finite"):
        compare(HEADS, EXPECTED, nan, sample_of(None))
    with pytest.raises(ParityError, match="none of 4"):
        compare(HEADS, EXPECTED, EXPECTED, sample_of(None), valid=np.zeros(4, bool))
