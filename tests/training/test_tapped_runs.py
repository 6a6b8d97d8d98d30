"""Training, resuming and exporting a model whose head reads every stage of two backbones."""

import keras
import numpy as np
import pytest
from conftest import write_colours
from killed import killed_after

from keras_transfer.data import from_directory
from keras_transfer.export import FORMATS
from keras_transfer.export.exporter import export_run
from keras_transfer.models.builders import build_model, head_for
from keras_transfer.models.sources.own import load_model
from keras_transfer.runs import Run
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.trainer import Trainer

START = Phase("head", "all", 1, solver="logistic")


def network(name, widths, seed):
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((32, 32, 3))
    for i, width in enumerate(widths):
        x = keras.layers.Conv2D(width, 3, 2, "same", name=f"conv_{i}")(x)
        x = keras.layers.BatchNormalization(name=f"norm_{i}")(x)
        x = keras.layers.ReLU(name=f"relu_{i}")(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D(name="pool")(x), name=name)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return from_directory(write_colours(tmp_path_factory.mktemp("data") / "colours"))


def model_of(data):
    parts = [network("small", (4, 6, 8), 0), network("other", (5, 7), 1)]
    keras.utils.set_random_seed(0)
    return build_model(parts, head_for(data), taps="all")


def fit(data, out, phases, **options):
    model = model_of(data)
    resume = options.pop("resume", False)
    run = Trainer(model, Schedule("s", phases), batch_size=8, **options).fit(
        data, out, resume=resume
    )
    return model, run


@pytest.mark.parametrize("freezing", ["stage:2", "stage:4", "all"])
def test_with_and_without_cache_the_weights_agree(data, tmp_path, freezing, monkeypatch):
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path / "cache"))
    phase = Phase("p", freezing, 2, 1e-3, augment="none", dropout=0.0, optimizer="sgd")
    start = [w.numpy() for w in model_of(data).weights]
    plain, cached = (
        [w.numpy() for w in fit(data, tmp_path / cache, (phase,), cache=cache)[0].weights]
        for cache in ("off", "disk")
    )
    moved = max(np.abs(a - b).max() for a, b in zip(start, plain))
    assert moved > 1e-5
    for a, b in zip(plain, cached):
        np.testing.assert_allclose(a, b, atol=1e-3 * moved + 1e-6)


def test_resuming_is_exact(data, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path / "cache"))
    phases = (START, Phase("top", "stage:3", 2, 1e-3), Phase("all", "none", 2, 1e-3))
    whole, run = fit(data, tmp_path / "whole", phases)
    for epoch in (1, 3, 4):
        out = tmp_path / f"stopped-{epoch}"
        with killed_after(epoch):
            fit(data, out, phases)
        resumed, _ = fit(data, out, phases, resume=True)
        for a, b in zip(whole.weights, resumed.weights):
            np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert run.metrics["phases"][1]["frozen_stages"] == 3


def test_every_format_agrees(data, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path / "cache"))
    _, run = fit(data, tmp_path / "run", (START,))
    assert np.isfinite(run.metrics["val"]["loss"])
    loaded = load_model(run.path / "model.keras")
    images = next(iter(data.batches("val", image_size=32, batch_size=8)))[0].numpy()
    expected = keras.ops.convert_to_numpy(loaded(images))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(run.model(images)), expected, atol=1e-6)
    for kind in sorted(set(FORMATS) - {"page", "tfjs"}):  # an ONNX file; tests/export
        # Each export compares its scores with the model's on images, and fails where they differ.
        result = export_run(Run.open(run.path), kind, data=data)
        assert result.path.is_dir()
