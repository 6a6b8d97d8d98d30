"""Real ImageNet weights on real images."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from test_export import served_without_keras
from typer.testing import CliRunner

from keras_transfer.cli.main import app
from keras_transfer.data import Examples, ImageData, from_directory, list_images
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.sources.backbones import build_backbone
from keras_transfer.models.stages import freeze


@pytest.fixture(scope="module")
def photographs(real_data):
    """Return uint8 [16, 224, 224, 3], ants and bees as in evaluation."""
    paths = list_images([real_data / "hymenoptera" / "val"])[::10]
    data = ImageData(("x", "y"), {"all": Examples(paths, np.zeros(len(paths), "int32"))}, [], "")
    (batch,) = data.batches("all", image_size=224, batch_size=len(paths))
    return np.asarray(batch[0])


@pytest.mark.parametrize("name, alpha", [("mobilenet_0.25", 0.25), ("mobilenet_v2_0.35", 0.35)])
def test_features_are_those_of_plain_keras_applications(name, alpha, real_weights, photographs):
    family = "MobileNetV2" if "v2" in name else "MobileNet"
    plain = getattr(keras.applications, family)(
        alpha=alpha, include_top=False, pooling="avg", weights="imagenet", input_shape=(224, 224, 3)
    )
    expected = plain(photographs.astype("float32") / 127.5 - 1.0, training=False)
    ours = build_backbone(name)(photographs, training=False)
    assert np.abs(np.asarray(ours) - expected).max() < 2e-5
    assert np.asarray(ours).std(axis=0).max() > 0.1  # the images differ


def test_a_backbone_with_the_imagenet_head_recognizes_insects(real_weights, photographs):
    """ImageNet's classifier on top of our prefix and suffix still recognizes its classes."""
    whole = keras.applications.MobileNet(alpha=0.25, weights="imagenet")
    backbone = build_backbone("mobilenet_0.25", pooling=None)
    prefix, suffix = backbone.split(7)
    maps = suffix(prefix(photographs))
    x = keras.Input(backbone.output_shape[1:])
    y = x
    for layer in whole.layers[whole.layers.index(whole.get_layer("conv_pw_13_relu")) + 1 :]:
        y = layer(y)
    scores = np.asarray(keras.Model(x, y)(maps))
    expected = np.asarray(whole(photographs.astype("float32") / 127.5 - 1.0))
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    insects = scores[:, 300:327].sum(axis=1)  # beetles, flies, bees, ants … in ImageNet's order
    assert np.median(insects) > 0.5


def test_a_frozen_real_backbone_does_not_change_in_fit(real_weights, photographs):
    """keras issue 20285: with plain Keras, BatchNorm statistics drift here."""
    model = build_model("mobilenet_v2_0.35", Classification(["ants", "bees"]))
    freeze(model, "stage:12")
    backbone = model.layers[1]
    frozen = [w for stage in backbone.stages[:12] for x in stage.layers for w in x.weights]
    statistics = [
        w
        for x in backbone.layers
        if isinstance(x, keras.layers.BatchNormalization)
        for w in x.non_trainable_weights
    ]
    before = [w.numpy() for w in frozen + statistics]
    model.compile("sgd", model.layers[-1].head.loss(), jit_compile=False)
    model.fit(photographs, np.arange(len(photographs)) % 2, batch_size=8, verbose=0)
    for weight, value in zip(frozen + statistics, before):
        np.testing.assert_array_equal(weight.numpy(), value)


def test_a_folder_of_many_kinds_of_file(real_data, tmp_path):
    """Upper-case extensions, .jpeg and a GIF: every file of the real folders is read."""
    data = from_directory(real_data / "hymenoptera")
    assert {split: len(e) for split, e in data.examples.items()} == {"train": 245, "val": 153}
    assert data.skipped == []
    signs = from_directory(real_data / "sign_digits")
    assert {split: len(e) for split, e in signs.examples.items()} == {"train": 1650, "val": 412}


def command(*args):
    """Run a command in this process, which has imported TensorFlow, and return its output."""
    result = CliRunner().invoke(app, [*map(str, args)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.fixture(scope="module")
def run(real_data, real_weights, tmp_path_factory):
    """A short real run: a new head on ants and bees, and its export."""
    out = tmp_path_factory.mktemp("real") / "run"
    command(
        "train", real_data / "hymenoptera", "--out", out, "--backbone", "mobilenet_v2_0.35",
        "--strategy", "feature_extraction", "--epochs", 4, "--image-size", 128,
    )  # fmt: skip
    command("export", out)
    return out


def test_real_transfer_learns_ants_from_bees(run):
    metrics = json.loads((run / "metrics.json").read_text())
    # 83 of the 153 images show bees, so the constant answer has an accuracy of 0.54.
    assert metrics["val"]["accuracy"] > 0.8
    assert metrics["images"] == {"train": 245, "val": 153}


def test_evaluate_agrees_with_training(run, real_data):
    result = json.loads(command("evaluate", run, real_data / "hymenoptera", "--json"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert result["accuracy"] == pytest.approx(metrics["val"]["accuracy"], abs=1e-6)
    assert result["loss"] == pytest.approx(metrics["val"]["loss"], rel=1e-3)


def test_the_export_answers_like_predict(run, real_data, tmp_path):
    """saved_model_cli and a process without Keras, on real JPEG files."""
    images = list_images([real_data / "hymenoptera" / "val"])[::20]
    rows = list(csv.DictReader(command("predict", run, *images).splitlines()))
    labels, scores = served_without_keras(run / "export" / "1", *images)
    assert labels == [row["label"] for row in rows]
    assert len(set(labels)) == 2
    for score, row in zip(scores, rows):
        # Files are resampled by Pillow there and by TensorFlow here: 0.2 levels apart on average.
        assert max(score) == pytest.approx(float(row["score"]), abs=1e-2)

    tool = shutil.which("saved_model_cli", path=str(Path(sys.executable).parent))
    contents = tmp_path / "contents.npy"
    np.save(contents, np.array([Path(images[0]).read_bytes()]))
    shown = subprocess.run(
        [tool, "run", "--dir", run / "export" / "1", "--tag_set", "serve", "--signature_def",
         "serve_bytes", "--inputs", f"bytes={contents}"],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert f"Result for output key label:\n[b'{rows[0]['label']}']" in shown.stdout, shown.stderr
