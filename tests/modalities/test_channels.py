"""Images of other than three channels, and of 16 bits: the same values in training and in served graphs."""

import io
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import raises
from PIL import Image
from typer.testing import CliRunner

import keras_transfer as kt
from keras_transfer.cli.main import app
from keras_transfer.data import check_data
from keras_transfer.experiments.compare import compare
from keras_transfer.modalities.image import decode
from keras_transfer.modalities.image.bands import RGB, Reading, to_8_bits, to_npy
from keras_transfer.modalities.image.framing import Framing
from keras_transfer.modalities.image.modality import MODALITY
from keras_transfer.modalities.image.opened import open_contents
from keras_transfer.modalities.image.prepare import finisher
from keras_transfer.modalities.image.resample import resample
from keras_transfer.modalities.image.serving import open_in_graph
from keras_transfer.models.channels import with_channels
from keras_transfer.models.sources.backbones import build_backbone

FULL = Reading(3, "full")


def file_of(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def deep(low=500, high=3000, shape=(40, 50), dtype=np.uint16):
    values = np.random.default_rng(0).integers(low, high, shape)
    values.flat[:2] = low, high
    return values.astype(dtype)


def tiff(values, **options):
    tifffile = pytest.importorskip("tifffile", reason="the extra bands is not installed")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


@cache
def graph(reading):
    """Return what decodes in graph ops, as a served model does."""

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def call(contents):
        return open_in_graph(contents, reading)[-1](tf.constant(0))

    return call


def served(contents, reading):
    return graph(reading)(MODALITY.for_server(contents)).numpy()


# -- depth ------------------------------------------------------------------------------------------


def test_faults_of_numpy_files_are_said_once():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}]), allow_pickle=True)
    assert decode.examine(buffer.getvalue()).fault.startswith("its values are object: save whole")
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 4, 3), "uint8"))
    assert decode.examine(buffer.getvalue()[:-1]).fault == "truncated: the file ends too early"


def test_sixteen_bits_are_scaled_by_the_range_that_they_use():
    values = deep()
    pixels = decode.decode(file_of(Image.fromarray(values)), RGB)
    expected = (values.astype(float) - 500) / 2500 * 255
    np.testing.assert_allclose(pixels, np.repeat(expected[..., None], 3, -1), atol=0.51)
    full = decode.decode(file_of(Image.fromarray(values)), FULL)
    np.testing.assert_array_equal(full[..., 0], values >> 8)


@pytest.mark.parametrize("reading", [RGB, FULL, Reading(1, "auto"), Reading(1, "full")])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "int32", "PPM", "constant"])
def test_sixteen_bits_are_the_same_when_served(kind, reading):
    contents = {
        "PNG": lambda: file_of(Image.fromarray(deep())),
        "TIFF": lambda: file_of(Image.fromarray(deep()), "TIFF"),
        "int32": lambda: file_of(Image.fromarray(deep(-7, 99_000, dtype=np.int32)), "TIFF"),
        "PPM": lambda: file_of(Image.fromarray(deep()), "PPM"),
        "constant": lambda: file_of(Image.fromarray(deep(900, 901) * 0 + np.uint16(900))),
    }[kind]()
    pixels = open_contents(contents).pixels(1, reading)
    assert pixels.shape == (40, 50, reading.channels)
    np.testing.assert_array_equal(served(contents, reading), pixels)


def test_models_without_a_depth_were_trained_on_the_whole_range():
    assert MODALITY.framing({"crop": 0.9}).reading == FULL
    framing = Framing(crop=0.9)
    assert framing.reading == RGB and MODALITY.framing(framing.to_dict()) == framing
    assert Framing(crop=0.9, channels=4, depth="full").to_dict() == {
        "crop": 0.9,
        "depth": "full",
        "channels": 4,
    }


def test_check_counts_images_of_sixteen_bits(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            image = Image.fromarray(deep(high=1000 + number))
            image.save(tmp_path / name / f"{number}.png")
    report = check_data(tmp_path, val_split=0.34, progress=False)
    (note,) = report.notes
    assert note.startswith("6 greyscale images of more than 8 bits, of which 10 to 10 are used")
    assert not report.empty and not report.misfits
    (note,) = check_data(
        tmp_path, val_split=0.34, progress=False, framing=Framing(depth="full")
    ).notes
    assert "that of 16 bits" in note


# -- channels ---------------------------------------------------------------------------------------


def values(channels, dtype=np.uint8):
    high = {1: 255, 2: 9000}[np.dtype(dtype).itemsize]
    return np.random.default_rng(1).integers(0, high, (40, 50, channels)).astype(dtype)


@pytest.mark.parametrize("depth", ["auto", "full"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_arrays_are_the_same_when_served(channels, dtype, depth):
    array, reading = values(channels, dtype), Reading(channels, depth)
    contents = to_npy(array)
    pixels = open_contents(contents).pixels(1, reading)
    np.testing.assert_array_equal(pixels, to_8_bits(array, depth))
    np.testing.assert_array_equal(served(contents, reading), pixels)
    buffer = io.BytesIO()
    np.save(buffer, np.asfortranarray(array.astype(">u2")))  # as others write them
    unusual = buffer.getvalue()
    if dtype == np.uint16:
        np.testing.assert_array_equal(decode.decode(unusual, reading), pixels)
        np.testing.assert_array_equal(served(unusual, reading), pixels)
    assert open_contents(contents).pixels().shape == (40, 50, 3)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("channels", [2, 4, 5])
def test_bands_of_tiff_files(channels, planar):
    array = values(channels, np.uint16)
    stored = array if planar == "contig" else np.moveaxis(array, -1, 0)
    contents = tiff(stored, photometric="minisblack", planarconfig=planar)
    facts = decode.examine(contents)
    assert (facts.channels, facts.format, facts.fault) == (channels, "TIFF", None)
    reading = Reading(channels)
    pixels = decode.decode(contents, reading)
    np.testing.assert_array_equal(pixels, to_8_bits(array, "auto"))
    np.testing.assert_array_equal(served(contents, reading), pixels)


@pytest.mark.parametrize(("mode", "channels"), [("LA", 2), ("RGBA", 4), ("RGB", 1), ("L", 1)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_channels_of_ordinary_files(mode, channels, kind):
    array = values(len(mode))
    image = Image.fromarray(array[..., 0] if mode == "L" else array, mode)
    pixels = open_contents(file_of(image, kind)).pixels(1, Reading(channels))
    expected = np.asarray(image.convert("L"))[..., None] if channels == 1 else array
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(served(file_of(image, kind), Reading(channels)), pixels)


def test_a_file_of_other_channels_is_an_error():
    with pytest.raises(ValueError, match="3 channels, but the model reads 4"):
        open_contents(file_of(Image.fromarray(values(3)))).pixels(1, Reading(4))
    with pytest.raises(ValueError, match="5 channels, but the model reads 3"):
        open_contents(to_npy(values(5))).pixels(1, RGB)
    for contents in (file_of(Image.fromarray(values(3))), to_npy(values(3))):
        with pytest.raises(tf.errors.InvalidArgumentError, match="4 channels"):
            served(contents, Reading(4))
    for contents in (to_npy(values(4))[:-3], b"\x93NUMPY\x01\x00\x76\x00{'descr': broken"):
        assert decode.examine(contents).fault
        with pytest.raises(tf.errors.InvalidArgumentError):
            served(contents, Reading(4))


def test_values_that_are_not_whole_numbers_are_faults():
    buffer = io.BytesIO()
    np.save(buffer, values(4) / 255)
    assert decode.examine(buffer.getvalue()).fault == (
        "its values are float64: save whole numbers, of 8 bits (0–255) or of 16"
    )
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((3, 4, 5, 6), np.uint8))
    assert "[height, width, channels]" in decode.examine(buffer.getvalue()).fault


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_files_of_floats_are_faults(value):
    floats = np.full((8, 9), value, np.float32)
    expected = "its values are float32: save whole numbers, of 8 bits (0–255) or of 16"
    for kind in ("TIFF", "PPM"):  # PPM writes a PFM
        contents = file_of(Image.fromarray(floats), kind)
        assert decode.examine(contents).fault == expected
        with pytest.raises(ValueError, match="float32"):
            decode.decode(contents)
    colors = tiff(np.stack([floats] * 3, -1).astype(np.float64), photometric="rgb")
    assert decode.examine(colors).fault == expected.replace("32", "64")


def test_channels_are_resampled_like_those_of_rgb():
    array, box = values(6), (3.0, 4.0, 30.0, 30.0)
    made = np.empty((16, 16, 6), np.uint8)
    resample(array, box, made, flip=True)
    for first in (0, 3):
        three = np.empty((16, 16, 3), np.uint8)
        resample(np.ascontiguousarray(array[..., first : first + 3]), box, three, flip=True)
        np.testing.assert_array_equal(made[..., first : first + 3], three)


# -- the first convolution --------------------------------------------------------------------------


def features(backbone, images):
    return np.asarray(backbone(images, training=False))


@pytest.mark.parametrize("name", ["mobilenet_0.25", "resnet50", "densenet121"])
def test_repeated_channels_give_the_features_of_rgb(name):
    """One scalar normalization, BGR with its means, and a mean and deviation of each color."""
    keras.utils.set_random_seed(0)
    backbone = build_backbone(name, image_size=32, weights=None)
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    expected = features(backbone, images)
    assert expected.std() > 0
    twice = with_channels(backbone, 6)
    scale = np.abs(expected).max()
    doubled = features(twice, np.concatenate([images, images], axis=-1))
    np.testing.assert_allclose(doubled, expected, atol=1e-4 * scale)
    assert len(twice.stages) == len(backbone.stages)
    four = with_channels(backbone, 4)
    assert four.input_shape == (None, 32, 32, 4)
    assert with_channels(backbone, 3) is backbone


def test_one_channel_gives_the_features_of_grey_rgb():
    keras.utils.set_random_seed(0)
    backbone = build_backbone("mobilenet_0.25", image_size=64, weights=None)
    grey = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 1)).astype("float32")
    expected = features(backbone, grey.repeat(3, -1))
    np.testing.assert_allclose(
        features(with_channels(backbone, 1), grey), expected, atol=1e-4 * np.abs(expected).max()
    )


def test_what_cannot_be_inflated_is_refused():
    inputs = keras.Input((8, 8, 3))
    dense = keras.layers.Dense(4, name="first")(keras.layers.Flatten()(inputs))
    own = kt.models.Backbone(inputs, dense, name="own")
    with raises("does not begin with a convolution, but with the layer first (Dense)"):
        with_channels(own, 4)
    with raises("channels must be a whole number of 1 or more, not 0"):
        Framing(channels=0)
    with raises("depth must be auto or full, not 'deep'"):
        Framing(depth="deep")
    with raises("saturation vary colors, which images of 4 channels do not have"):
        finisher(kt.data.AUGMENTATIONS["medium"], 32, 4)
    finisher(kt.data.AUGMENTATIONS["light"], 32, 4)


# -- models -----------------------------------------------------------------------------------------


def write_four_channels(folder, photographs, kind):
    """Write photographs with a fourth band that alone tells the class."""
    rng = np.random.default_rng(0)
    for number, file in enumerate(photographs):
        label = ("dim", "bright")[number % 2]
        photograph = np.asarray(Image.open(file).convert("RGB").resize((96, 72)))
        band = rng.normal(40 if label == "dim" else 215, 20, photograph.shape[:2])
        array = np.dstack([photograph, np.clip(band, 0, 255).astype(np.uint8)])
        (folder / label).mkdir(parents=True, exist_ok=True)
        place = folder / label / f"{number:03d}.{kind}"
        if kind == "npy":
            np.save(place, array)
        elif kind == "tif":
            place.write_bytes(tiff(array.astype(np.uint16) * 16, photometric="minisblack"))
        else:
            Image.fromarray(array).save(place)
    return folder


@pytest.fixture(scope="module")
def photographs(real_data):
    found = sorted((real_data / "hymenoptera" / "train").rglob("*.jpg"))
    return found[:: len(found) // 80][:80]


def command(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, (result.output, result.exception)


@pytest.mark.parametrize("kind", ["npy", "png"])
def test_a_model_learns_from_the_fourth_channel(kind, photographs, tmp_path, capsys):
    """The first three tell nothing: labels alternate. With ImageNet's weights where they are at hand."""
    data, run = write_four_channels(tmp_path / "data", photographs, kind), tmp_path / "run"
    home = Path(os.environ.get("KERAS_HOME", "")) / "models" / "mobilenet_2_5_224_tf_no_top.h5"
    weights = "imagenet" if home.is_file() else "none"
    given = ("--backbone", "mobilenet_0.25", "--image-size", 64, "--weights", weights, "--seed", 1)
    split = ("--val-split", 0.4, "--taps", "last", "--strategy", "feature_extraction")
    command("train", data, "--out", run, *given, *split, "--channels", 4)
    found = kt.Run.open(run)
    assert found.metrics["val"]["accuracy"] >= 0.9
    assert found.model.input_shape == (None, 64, 64, 4)
    if kind == "npy":
        command("export", run)
        check_export(found, data, run)
    else:  # without the fourth channel
        out = tmp_path / "rgb"
        command("train", data, "--out", out, *given, *split)
        assert kt.Run.open(out).metrics["val"]["accuracy"] < 0.75
    capsys.readouterr()


def check_export(run, data, folder):
    predicted, skipped = kt.evaluation.predict(run.model, [data])
    assert not skipped and len(predicted) == 80
    loaded = tf.saved_model.load(str(folder / "export" / "1"))
    files = [one.path for one in predicted]
    contents = [MODALITY.for_server(Path(file).read_bytes()) for file in files]
    answers = loaded.signatures["serve_bytes"](bytes=tf.constant(contents))
    assert [one.decode() for one in answers["label"].numpy()] == [one.label for one in predicted]
    np.testing.assert_allclose(answers["score"], [one.score for one in predicted], atol=0.06)
    pixels = loaded.signatures["serve_uint8"](images=tf.constant(np.load(files[0])[None]))
    assert pixels["label"].numpy()[0].decode() == predicted[0].label
    wrong = loaded.signatures["serve_bytes"](bytes=tf.constant([to_npy(values(5))]))
    assert "cannot be read" in wrong["error"].numpy()[0].decode()


def test_a_wrong_number_of_channels_is_one_line(photographs, tmp_path):
    data = write_four_channels(tmp_path / "data", photographs[:12], "npy")
    np.save(data / "dim" / "five.npy", values(5))
    files = ("--val-split", 0.4)
    result = run_command("check", data, "--channels", 4, "--json", *files)
    report = json.loads(result.stdout)
    assert [Path(one["path"]).name for one in report["misfits"]] == ["five.npy"]
    assert report["misfits"][0]["reason"] == "5 channels, but the model reads 4"
    for channels, count in ((4, 1), (3, 13)):
        failed = run_command(
            *("train", data, "--out", tmp_path / "run", "--channels", channels, *files),
            *("--backbone", "mobilenet_0.25", "--weights", "none"),
        )
        assert failed.returncode == 2 and len(failed.stderr.strip().splitlines()[-1:]) == 1
        assert f"The model cannot read {count} of 13 images" in failed.stderr
        assert "Traceback" not in failed.stderr and not (tmp_path / "run").exists()


def run_command(*arguments):
    line = [sys.executable, "-m", "keras_transfer.cli", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_arrays_of_four_channels(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (24, 32, 32, 4)).astype(np.uint8)
    labels = np.arange(24) % 2
    images[labels == 1, ..., 3] //= 8
    data = kt.data.from_arrays((images[:16], labels[:16]), (images[16:], labels[16:]))
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 3, activation="relu")(keras.layers.Rescaling(1 / 255)(inputs))
    own = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    model = kt.build_model(own, kt.Classification(data.class_names), channels=4)
    run = kt.Trainer(model, "feature_extraction", cache="off").fit(data, tmp_path / "run")
    assert run.metrics["val"]["accuracy"] == 1
    path = kt.export.saved_model(run.model, tmp_path / "1", images=list(images[:2]))
    asked = tf.saved_model.load(str(path)).signatures["serving_default"]
    assert asked(images=tf.constant(images[:2], tf.float32))["scores"].shape == (2, 2)
    again = kt.load_model(run.path / "model.keras")
    assert again.input_shape[-1] == 4
    own.save(tmp_path / "own.keras")
    options = dict(backbone=tmp_path / "own.keras", strategy="feature_extraction", seeds=[0])
    compare(data, tmp_path / "compared", channels=4, sizes=[8], epochs=1, **options)
    places = [place for place in tmp_path.glob("compared/runs/*/*/*") if place.is_dir()]
    arms = [kt.Run.open(place, finished=False) for place in places]
    assert [arm.config["channels"] for arm in arms] == [4, 4]
    wrong = kt.data.from_arrays((images[:16, ..., :3], labels[:16]))
    with raises("train 0: 3 channels, but the model reads 4"):
        kt.Trainer(model, "feature_extraction", cache="off").fit(wrong, tmp_path / "wrong")
