"""Runs of version 0.1: a finished one opens, evaluates and exports; an interrupted one resumes."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import tiny_backbone

import keras_transfer as kt
from keras_transfer.data import from_directory
from keras_transfer.errors import InputError
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.runs import Run
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.trainer import Trainer

SAVED = Path(__file__).parent.parent / "saved_by_0_1"
PHASES = (Phase("head", "all", 2, 1e-2), Phase("all", "none", 3, 3e-3, ema=0.9))


@pytest.fixture
def data():
    return from_directory(SAVED / "images", progress=False)


@pytest.fixture
def finished(tmp_path):
    return Run.open(shutil.copytree(SAVED / "finished", tmp_path / "finished"))


@pytest.fixture
def interrupted(tmp_path):
    return shutil.copytree(SAVED / "interrupted", tmp_path / "interrupted")


def trainer(data, **settings):
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification(data.class_names), image_size=32)
    settings = {"batch_size": 8, "cache": "off", **settings}
    return Trainer(model, Schedule("s", PHASES), **settings)


def test_a_finished_run_opens_and_evaluates(finished, data):
    assert finished.metrics["val"]["images"] == 5 and "pictures" not in finished.metrics["val"]
    assert [row["epoch"] for row in finished.history] == [1, 2, 3, 4, 5]
    assert sorted(finished.split.values()).count("val") == 5
    found = kt.evaluate(finished.model, data)
    assert found["images"] == 5
    assert found["accuracy"] == finished.metrics["val"]["accuracy"]
    assert found["loss"] == pytest.approx(finished.metrics["val"]["loss"], abs=1e-6)


def test_counts_of_images_are_renamed_wherever_they_stand(finished):
    heads = {"head": {"pictures": 5, "per_class": {"pictures": {"f1": 1.0}}}}
    document = {"pictures": 7, "heads": heads, "calibrated_on": {"split": "val", "pictures": 5}}
    (finished.path / "evaluation.json").write_text(json.dumps(document))
    (finished.path / "calibration.json").write_text(json.dumps({"split": "val", "pictures": 5}))
    assert finished.evaluation == {
        "images": 7,
        "heads": {"head": {"images": 5, "per_class": {"pictures": {"f1": 1.0}}}},
        "calibrated_on": {"split": "val", "images": 5},
    }
    assert finished.calibration == {"split": "val", "images": 5}


def test_a_finished_run_exports(finished, tmp_path):
    kt.export.saved_model(finished.model, tmp_path / "1")
    image = np.full((1, 32, 32, 3), 128.0, "float32")
    serve = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]
    expected = keras.ops.softmax(finished.model.predict(image, verbose=0))
    np.testing.assert_allclose(serve(tf.constant(image))["scores"], expected, atol=1e-5)


def test_an_interrupted_run_resumes_and_ends_with_the_same_weights(interrupted, finished, data):
    resumed = trainer(data).fit(data, interrupted, resume=True)
    for a, b in zip(finished.model.get_weights(), resumed.model.get_weights(), strict=True):
        # 0.1 rounded pixels in another way, and each step of Adam is a fixed one, however small the gradient.
        np.testing.assert_allclose(a, b, atol=8e-3)
    before, after = finished.metrics["val"], resumed.metrics["val"]
    assert after.pop("loss") == pytest.approx(before.pop("loss"), abs=2e-3)
    assert after == before
    assert resumed.metrics["best_epoch"] == finished.metrics["best_epoch"]
    assert not (interrupted / "state").exists()


def test_an_interrupted_run_with_other_settings_or_images_is_refused(interrupted, data):
    with pytest.raises(InputError, match="batch_size: 8 is now 4"):
        trainer(data, batch_size=4).fit(data, interrupted, resume=True)
    file = interrupted / "state" / "pictures.json"
    file.write_text(file.read_text().replace(next(iter(json.loads(file.read_text()))), "other"))
    with pytest.raises(InputError, match=r"1 example is new \(.*1 example is gone"):
        trainer(data).fit(data, interrupted, resume=True)
