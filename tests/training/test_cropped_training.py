"""A run, its evaluation, predictions, cached features and export see the same part of each image."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from conftest import raises, tiny_backbone, variants, write_image

import keras_transfer as kt
from keras_transfer.cli.main import app
from keras_transfer.data import from_directory
from keras_transfer.evaluation.outputs import collect
from keras_transfer.modalities.image.prepare import resize_and_crop
from keras_transfer.models.builders import build_model
from keras_transfer.models.framing import framing_of
from keras_transfer.models.heads import Classification
from keras_transfer.models.stages import backbone_of
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.trainer import Trainer

PHASES = Schedule("s", (Phase("head", "all", 2, 1e-2), Phase("all", "none", 1, 1e-3)))


def framed_images(folder, size):
    """Two classes that only a frame tells apart, which a crop cuts off."""
    for i in range(12):
        for name, frame in (("dark", 0), ("light", 255)):
            path = folder / name / f"{i}.png"
            write_image(path, (128, 128, 128), size=(size, size), seed=i)
            from PIL import Image

            pixels = np.array(Image.open(path))
            edge = max(1, size // 20)
            for side in np.s_[:edge, :], np.s_[-edge:, :], np.s_[:, :edge], np.s_[:, -edge:]:
                pixels[side] = frame
            Image.fromarray(pixels).save(path)
    return folder


def model_of(data, crop=None):
    keras.utils.set_random_seed(0)
    return build_model(tiny_backbone(), Classification(data.class_names), image_size=32, crop=crop)


def as_prepared(image, crop):
    return variants(image, 32, "none", [(0, 0)], crop)[0]


def as_served(image, crop):
    return resize_and_crop(image, 32, crop)


def logits_of(model, paths, crop, resized=as_prepared):
    images = [resized(np.array(keras.utils.load_img(path)), crop) for path in paths]
    return np.asarray(model(np.stack(images), training=False))


@pytest.mark.parametrize(
    ("size", "crop", "cache"),
    [
        (24, 1.0, "memory"),
        (60, 0.875, "off"),
        pytest.param(24, 1.0, "off", marks=pytest.mark.large),
        pytest.param(60, 0.875, "memory", marks=pytest.mark.large),
    ],
)
def test_all_see_the_same(tmp_path, cache_folder, size, crop, cache):
    data = from_directory(framed_images(tmp_path / "images", size), progress=False)
    trainer = Trainer(model_of(data), PHASES, batch_size=8, cache=cache, augment="none")
    run = trainer.fit(data, tmp_path / "run")
    assert run.config["crop"] == crop == backbone_of(run.model).framing.crop
    paths, model = data.examples["val"].names, run.model
    expected = logits_of(model, paths, crop)
    assert np.ptp(expected) > 1e-3
    assert not np.allclose(expected, logits_of(model, paths, 0.6), atol=1e-4)
    # evaluation
    labels, outputs = collect(model, data, "val")
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    # the trainer's validation, from cached features or from images
    loss = keras.losses.sparse_categorical_crossentropy(labels, expected, from_logits=True)
    assert run.metrics["val"]["loss"] == pytest.approx(float(np.mean(loss)), abs=1e-5)
    # predictions
    predictions, _ = kt.predict(model, paths)
    scores = np.asarray(keras.ops.softmax(expected))
    assert [p.score for p in predictions] == pytest.approx(scores.max(1).tolist(), abs=1e-5)
    # the exported graph
    folder = kt.export.saved_model(model, tmp_path / "1")
    serve = tf.saved_model.load(str(folder)).signatures
    encoded = tf.stack([tf.io.read_file(path) for path in paths])
    answer = serve["serve_bytes"](bytes=encoded)["scores"]
    scores = keras.ops.softmax(logits_of(model, paths, crop, as_served))
    np.testing.assert_allclose(answer, scores, atol=1e-5)
    pixels = np.stack([np.array(keras.utils.load_img(path)) for path in paths])
    served = serve["serve_uint8"](images=tf.constant(pixels))["scores"]
    np.testing.assert_allclose(served, answer, atol=1e-5)


@pytest.fixture
def cache_folder(cache):
    return cache


class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise KeyboardInterrupt


def test_a_resumed_run_keeps_its_crop(tmp_path):
    data = from_directory(framed_images(tmp_path / "images", 60), progress=False)

    def fit(crop=None, **options):
        trainer = Trainer(model_of(data, crop), PHASES, batch_size=8)
        return trainer.fit(data, tmp_path / "run", **options)

    with pytest.raises(KeyboardInterrupt):
        fit(0.6, callbacks=[Stop()])
    with raises("crop: 0.6 is now 0.5"):
        fit(0.5, resume=True)
    run = fit(resume=True)  # the model leaves it open, and the data would choose 0.875
    assert run.config["crop"] == backbone_of(run.model).framing.crop == 0.6


def test_a_run_that_recorded_no_crop_resumes_with_that_of_0_1(tmp_path):
    data = from_directory(framed_images(tmp_path / "images", 24), progress=False)
    with pytest.raises(KeyboardInterrupt):
        Trainer(model_of(data, 0.875), PHASES).fit(data, tmp_path / "run", callbacks=[Stop()])
    file = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    assert config.pop("crop") == 0.875
    file.write_text(yaml.safe_dump(config))
    run = Trainer(model_of(data), PHASES).fit(data, tmp_path / "run", resume=True)
    assert backbone_of(run.model).framing.crop == 0.875  # although these images are small


def test_a_trained_model_keeps_its_crop_with_other_data(tmp_path):
    small = from_directory(framed_images(tmp_path / "small", 24), progress=False)
    large = from_directory(framed_images(tmp_path / "large", 60), progress=False)
    model = model_of(small)
    Trainer(model, PHASES).fit(small, tmp_path / "a")
    assert Trainer(model, PHASES).fit(large, tmp_path / "b").config["crop"] == 1.0
    assert framing_of(model).crop == 1.0


def train(*words):
    from typer.testing import CliRunner

    return CliRunner().invoke(app, ["train", *map(str, words)])


def test_the_command_takes_it(tmp_path):
    folder = framed_images(tmp_path / "images", 24)
    options = ["--backbone", "mobilenet_0.25", "--weights", "none", "--image-size", "32"]
    options += ["--set", "epochs=1", "--cache", "off"]
    for crop, expected in (("0.9", 0.9), ("auto", 1.0)):
        out = tmp_path / crop
        result = train(folder, "--out", out, "--crop", crop, *options)
        assert result.exit_code == 0, (result.output, result.exception)
        assert yaml.safe_load((out / "config.yaml").read_text())["crop"] == expected
    assert "crop 1.0: the originals' median shorter side, 24 px" in result.stderr


def test_the_command_refuses_an_invalid_one_before_it_reads_the_data(tmp_path):
    result = train("nowhere", "--out", tmp_path / "run", "--crop", "2")
    assert "crop must be a number above 0 and at most 1" in str(result.exception)
