"""Models that were trained before, runs that are finished, and images that vanish in between."""

import subprocess
import sys
from pathlib import Path

import keras
import pytest
from conftest import raises, tiny_backbone
from test_distribution_trainer import Pair

from keras_transfer import evaluation
from keras_transfer.cli.train import with_precision
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.training.config import TrainConfig
from keras_transfer.training.distributed.single_process import SINGLE
from keras_transfer.training.trainer import Trainer


def built(data):
    keras.utils.set_random_seed(0)
    return build_model(tiny_backbone(), Classification(data.class_names), image_size=32)


def trainer(model):
    return Trainer(model, "from_scratch", epochs=1, batch_size=8)


def test_a_second_training_of_a_model_says_and_records_where_it_starts(data, tmp_path, capsys):
    model = built(data)
    first = trainer(model).fit(data, tmp_path / "one")
    assert "started_from" not in first.config
    second = trainer(model).fit(data, tmp_path / "two")
    assert second.config["started_from"] == str(tmp_path / "one")
    assert f"starts from the weights of {tmp_path / 'one'}" in capsys.readouterr().err
    # Weights that were set in between do not come from a run.
    model.set_weights(built(data).get_weights())
    assert "started_from" not in trainer(model).fit(data, tmp_path / "three").config


def test_a_model_interrupted_in_its_first_epoch_says_where_it_starts(data, tmp_path, capsys):
    class CtrlC(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    model = built(data)
    with pytest.raises(KeyboardInterrupt, match="0 finished epochs"):
        trainer(model).fit(data, tmp_path / "run", callbacks=[CtrlC()])
    trainer(model).fit(data, tmp_path / "run", resume=True)
    said = capsys.readouterr().err
    assert f"starts from the weights of {tmp_path / 'run'}" in said


def test_a_finished_run_says_how_to_train_further(data, tmp_path):
    run = trainer(built(data)).fit(data, tmp_path / "a run")
    with raises(f"--backbone '{run.path}' with another --out"):
        trainer(built(data)).fit(data, run.path, resume=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "keras_transfer.cli", "train", data.root),
            *("--out", run.path, "--resume", "--epochs", "9"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert f"--backbone '{run.path}'" in done.stderr


def test_an_image_that_vanishes_during_training_is_one_line(data, tmp_path):
    gone = data.examples["train"].names[3]

    class Remove(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            Path(gone).unlink(missing_ok=True)

    many = Trainer(built(data), "from_scratch", epochs=3, batch_size=8, cache="off")
    with raises(f"{gone} can no longer be read"):
        many.fit(data, tmp_path / "run", callbacks=[Remove()])


@pytest.mark.parametrize("views", [{}, {"tta": "mirror"}])
def test_an_image_that_vanished_before_an_evaluation_is_one_line(data, views):
    model, gone = built(data), data.examples["val"].names[2]
    Path(gone).unlink()
    with raises(f"{gone} can no longer be read") as caught:
        evaluation.assess(model, data, "val", **views)
    assert caught.value.__suppress_context__
    with raises(f"{gone} can no longer be read"):
        evaluation.evaluate(model, data, "val")


def test_an_image_that_vanishes_during_a_prediction_is_one_line(data, monkeypatch):
    from keras_transfer.evaluation import prediction

    model, names, check = built(data), data.examples["val"].names, prediction.examples_to_predict

    def checked(*args, **options):
        found = check(*args, **options)
        Path(names[0]).unlink()
        return found

    monkeypatch.setattr(prediction, "examples_to_predict", checked)
    with raises(f"{names[0]} can no longer be read"):
        evaluation.predict(model, names)


def test_a_relative_path_from_python_is_recorded_as_absolute(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, (given, recorded) in enumerate(
        {"colours": str(tmp_path / "colours"), "tfds:colours": "tfds:colours"}.items()
    ):
        run = trainer(built(data)).fit(data, tmp_path / str(i), config={"data": given})
        assert run.config["data"] == recorded


@pytest.mark.parametrize("accelerator", [False, True])
def test_workers_without_accelerators_compute_in_float32(monkeypatch, accelerator):
    from keras_transfer.models import acceleration

    monkeypatch.setattr(acceleration, "has_gpu", lambda: accelerator)
    config = TrainConfig(precision="auto")
    assert with_precision(Pair(0, []), config).precision == ("auto" if accelerator else "float32")
    assert with_precision(SINGLE, config).precision == "auto"
