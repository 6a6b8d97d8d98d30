"""Which taps a head should read, by the closed form's loss in cross-validation."""

import keras
import numpy as np
import pytest
from conftest import write_image

from keras_transfer.advisor.taps import choose_taps
from keras_transfer.cli.main import app
from keras_transfer.data import from_arrays, from_directory
from keras_transfer.models.builders import build_model, head_for
from keras_transfer.models.sources.own import load_model
from keras_transfer.models.stages import backbone_of
from keras_transfer.runs import Run


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    """A source model whose last stage forgets colors: its first stage alone tells the classes apart."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, 2, "same", activation="relu", name="sees")(x)
    x = keras.layers.Conv2D(6, 3, 2, "same", name="forgets", kernel_initializer="zeros")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    path = tmp_path_factory.mktemp("models") / "blind.keras"
    keras.Model(inputs, x, name="blind").save(path)
    return str(path)


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colors")
    for name, level in (("dark", 60), ("bright", 190)):
        for i in range(12):
            write_image(folder / name / f"{i}.png", [level] * 3, seed=i)
    return from_directory(folder)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path / "cache"))


def test_an_earlier_stage_that_sees_more_is_read(blind, colors):
    choice = choose_taps(colors, blind)
    assert choice.taps == "all" and choice.losses["all"] < 0.3 < choice.losses["last"]
    assert str(choice).startswith("taps all: cross-validated loss last ")


def test_a_second_backbone_that_sees_is_enough(blind, colors, tmp_path):
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(5, 3, 4, "same", activation="relu", name="mean")(x)
    other = str(tmp_path / "other.keras")
    keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x), name="other").save(other)
    model = build_model([blind, other], head_for(colors), taps="all")
    assert len(backbone_of(model).stages) == 3
    assert choose_taps(colors, other).losses["last"] < 0.3


def test_numbers_labels_and_small_classes(blind, rng):
    images = rng.integers(0, 256, (20, 32, 32, 3)).astype("uint8")
    images[:10] //= 3
    labels = np.repeat([0, 1], 10)
    levels = (images, labels[:, None] * 2.5)
    numbers = from_arrays(levels, class_names=("level",), task="regression", val_split=0.2)
    assert choose_taps(numbers, blind).taps == "all"
    few = from_arrays((images[[0, 1, 10, 11]], labels[[0, 1, 10, 11]]), val_split=0.5)
    nothing = choose_taps(few, blind)
    assert nothing.taps == "last" and not nothing.losses
    assert "nothing to compare" in str(nothing)


def test_train_chooses_and_records(blind, colors, tmp_path):
    from typer.testing import CliRunner

    out = tmp_path / "run"
    command = ["train", colors.root, "--out", str(out), "--backbone", blind, "--strategy"]
    result = CliRunner().invoke(app, [*command, "feature_extraction"])
    assert result.exit_code == 0, result.output
    config = Run.open(out).config
    assert config["taps"] == "all"
    assert backbone_of(load_model(out / "model.keras")).cuts.tapped
    result = CliRunner().invoke(app, [*command, "lp_ft", "--taps", "some"])
    assert result.exit_code == 2 and "'some' is not one of" in result.stderr
