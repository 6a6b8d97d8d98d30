"""Temperature scaling at the end of a training: what it changes, and what it leaves alone."""

import keras
import numpy as np
import pytest
from conftest import tiny_backbone, write_colours
from sklearn.metrics import log_loss

from keras_transfer.data import from_directory
from keras_transfer.evaluation.measures import predict_split
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification, MultiLabel, Regression
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.temperature import scale_logits
from keras_transfer.training.trainer import Trainer


def linear(head):
    """A model that consists of a last layer, with logits far from calibrated."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, head.connect(inputs, "output"))
    model.get_layer("output").set_weights(
        [9 * np.eye(4, len(head.names)), np.zeros(len(head.names))]
    )
    return model


@pytest.mark.parametrize("kind", [Classification, MultiLabel])
def test_the_saved_weights_give_the_scaled_logits(kind, rng):
    head = kind(("a", "b", "c", "d"))
    model = linear(head)
    labels = rng.integers(0, 4, 400)
    x = (np.eye(4)[labels] + 0.7 * rng.normal(size=(400, 4))).astype("float32")
    targets = labels if kind is Classification else np.eye(4, dtype="float32")[labels]
    before, outputs = model.predict(x, verbose=0), model.predict(x, verbose=0)
    found = scale_logits(model, {"output": head}, targets, outputs)
    assert found["output"] > 2
    np.testing.assert_allclose(outputs, before / found["output"], rtol=1e-5)
    np.testing.assert_allclose(model.predict(x, verbose=0), outputs, rtol=1e-4, atol=1e-5)
    again = scale_logits(model, {"output": head}, targets, outputs.copy())
    assert again == {}  # they are calibrated now


def test_what_has_no_certain_gain_stays_to_the_bit(rng):
    numbers = Regression(("age",)).fitted(rng.normal(size=(50, 1)))
    for head, labels in (
        (numbers, rng.normal(size=(50, 1))),
        (Classification("abc"), np.array([1])),
    ):
        model = linear(head)
        x = rng.normal(size=(len(labels), 4)).astype("float32")
        before = model.get_weights()
        outputs = model.predict(x, verbose=0)
        assert scale_logits(model, {"output": head}, labels, outputs) == {}
        for one, other in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


def fitted(data, out, **settings):
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification(("blue", "green", "red")), image_size=32)
    phase = Phase("all", "none", 6, 1e-2, shape="constant", warmup=0.0)
    trainer = Trainer(model, Schedule("s", [phase]), batch_size=8, augment="none", **settings)
    return trainer.fit(data, out)


def test_a_run_is_saved_calibrated_and_its_predictions_are_the_same(tmp_path):
    rng = np.random.default_rng(0)
    data = from_directory(write_colours(tmp_path / "colours"), val_split=0.5, progress=False)
    labels = data.examples["val"].labels
    labels[:] = np.where(rng.random(len(labels)) < 0.3, rng.integers(0, 3, len(labels)), labels)
    plain = fitted(data, tmp_path / "plain", keep="last", calibrate=False)
    scaled = fitted(data, tmp_path / "scaled", keep="last")
    assert "temperature" not in plain.metrics and scaled.metrics["temperature"]["output"] > 1
    losses = []
    for run in (plain, scaled):
        _, logits = predict_split(run.model, data, "val", 8)
        shares = keras.ops.convert_to_numpy(keras.ops.softmax(logits.astype("float64")))
        losses.append(log_loss(labels, shares))
        assert run.metrics["val"]["loss"] == pytest.approx(losses[-1], rel=1e-3)
        assert run.metrics["val"]["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert losses[1] < losses[0]
    assert plain.metrics["val"]["accuracy"] == pytest.approx(scaled.metrics["val"]["accuracy"])
