"""Epochs, settings and files in MLflow; callbacks named on the command line."""

import json
import sys

import keras
import pytest
from conftest import raises, tiny_backbone

from keras_transfer.models.builders import build_model, head_for
from keras_transfer.runs import Run
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.logs import add_to_log, check_logs, log_finished
from keras_transfer.training.trainer import Trainer

SCHEDULE = Schedule("s", (Phase("head", "all", 2, 1e-2), Phase("all", "none", 2, 1e-3)))


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """A client of a local store of the test's own."""
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return MlflowClient(address)


def trainer(data):
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), head_for(data), image_size=32)
    return Trainer(model, SCHEDULE, seed=1, batch_size=8, cache="off")


def logged(client, run):
    identity = json.loads((run.path / "mlflow.json").read_text())["run_id"]
    return client.get_run(identity), identity


class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_a_resumed_run_is_one_run_of_mlflow(data, mlflow, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(BaseException, match="interrupted"):
        trainer(data).fit(data, out, logs=["mlflow"], callbacks=[Stop()])
    begun, identity = logged(mlflow, Run(out))
    assert begun.info.status == "RUNNING" and len(mlflow.get_metric_history(identity, "loss")) == 3
    run = trainer(data).fit(data, out, logs=["mlflow"], resume=True)
    found, same = logged(mlflow, run)
    assert same == identity and found.info.status == "FINISHED" and found.info.run_name == "run"
    for name in ("loss", "val_accuracy", "learning_rate"):
        values = {m.step: m.value for m in mlflow.get_metric_history(identity, name)}
        expected = {row["epoch"]: row[name] for row in run.history}
        assert values == pytest.approx(expected, rel=1e-6)
    assert found.data.params["schedule.phases.1.epochs"] == "2"
    assert found.data.params["batch_size"] == "8"
    files = {file.path for file in mlflow.list_artifacts(identity)}
    assert {"model.keras", "config.yaml", "metrics.json", "history.csv", "split.csv"} <= files
    (run.path / "export" / "1").mkdir(parents=True)
    (run.path / "export" / "1" / "README.md").write_text("a card")
    add_to_log(run, run.path / "export" / "1")
    assert [f.path for f in mlflow.list_artifacts(identity, "export/1")] == ["export/1/README.md"]


def test_a_finished_run_can_be_logged_later(data, mlflow, tmp_path):
    run = trainer(data).fit(data, tmp_path / "later")
    add_to_log(run, run.model_path)
    assert not (run.path / "mlflow.json").exists()  # it was not asked for
    log_finished(["mlflow", "tensorboard"], run)
    _, identity = logged(mlflow, run)
    assert len(mlflow.get_metric_history(identity, "loss")) == 4
    assert len(list(run.tensorboard_path.glob("*/events*"))) == 2


def test_a_store_that_fails_stops_the_log_and_not_the_training(
    data, mlflow, tmp_path, monkeypatch, capsys
):
    from mlflow.tracking import MlflowClient

    calls = []

    def failing(self, *arguments, **more):
        calls.append(1)
        raise ConnectionError("gone\nfor good")

    fitted = trainer(data)
    begin = MlflowClient.set_terminated

    def then_failing(self, *arguments, **more):
        begin(self, *arguments, **more)
        monkeypatch.setattr(MlflowClient, "log_batch", failing)

    monkeypatch.setattr(MlflowClient, "set_terminated", then_failing)
    run = fitted.fit(data, tmp_path / "run", logs=["mlflow"])
    assert run.finished and len(calls) == 1
    assert "MLflow: nothing more is logged (gone)" in capsys.readouterr().err


def test_what_cannot_be_logged(data, tmp_path, monkeypatch, mlflow):
    with raises("Unknown log 'wandb'. Choose from tensorboard, mlflow."):
        check_logs(["wandb"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://here")
    with raises("MLflow at nonsense://here cannot be used"):
        trainer(data).fit(data, tmp_path / "run", logs=["mlflow"])
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setattr("keras_transfer.utils.extras.is_installed", lambda module: False)
    with raises('pip install "keras_transfer[mlflow]"'):
        check_logs(["mlflow"])


# -- callbacks ------------------------------------------------------------------------------------


def test_callbacks_by_name(tmp_path, monkeypatch):
    from keras_transfer.cli.callbacks import check_callbacks, make_callbacks

    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_mine.py").write_text(
        "import keras\n"
        "class Note(keras.callbacks.Callback):\n    pass\n"
        "class Other:\n    pass\n"
        "def broken():\n    raise RuntimeError('no disk')\n"
    )
    check_callbacks(["of_mine:Note", "keras.callbacks:TerminateOnNaN"])
    made = make_callbacks(["of_mine:Note", "keras.callbacks:TerminateOnNaN"])
    assert [type(one).__name__ for one in made] == ["Note", "TerminateOnNaN"]
    assert str(tmp_path) not in sys.path
    for name, part in {
        "Note": "Pass module:Class",
        "of_mine:": "Pass module:Class",
        "of_yours:Note": "there is no module 'of_yours'",
        "of_yours.deep:Note": "there is no module 'of_yours.deep'",
    }.items():
        with raises(part):
            check_callbacks([name])
    for name, part in {
        "of_mine:Not": "Did you mean Note?",
        "of_mine:Other": "makes a Other, not a keras.callbacks.Callback",
        "of_mine:broken": "fails: RuntimeError: no disk",
    }.items():
        with raises(part):
            make_callbacks([name])
