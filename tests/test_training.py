"""The trainer: what moves, what is kept, what is written, and that a seed fixes it all."""

import csv
import json

import keras
import numpy as np
import pytest

from keras_transfer.builders import backbone_of, build_model
from keras_transfer.data import from_directory
from keras_transfer.demo import small_backbone
from keras_transfer.errors import InputError
from keras_transfer.heads import Classification
from keras_transfer.recipes import lp_ft, resolve_schedule
from keras_transfer.runs import Run
from keras_transfer.schedules import Phase, Schedule
from keras_transfer.training import Trainer

NAMES = ("blue", "green", "red")


def new_model(seed=0, names=NAMES):
    keras.utils.set_random_seed(seed)
    return build_model(small_backbone(), Classification(names), image_size=32)


def values(model):
    return {w.path: w.numpy() for w in model.weights}


def test_a_run_learns_and_writes_its_files(colours, tmp_path):
    data = from_directory(colours)
    schedule = Schedule("two", (Phase("head", "all", 2, 1e-2), Phase("all", "none", 2, 1e-3)))
    trainer = Trainer(new_model(), schedule, batch_size=8)
    run = trainer.fit(data, tmp_path / "run")

    files = {p.name for p in run.path.iterdir()}
    assert files == {"config.yaml", "metrics.json", "history.csv", "skipped.csv", "model.keras"}
    with (run.path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["epoch"] for r in rows] == ["1", "2", "3", "4"]
    assert [r["phase"] for r in rows] == ["head", "head", "all", "all"]
    columns = {"learning_rate", "accuracy", "loss", "val_accuracy", "val_loss", "seconds"}
    assert columns <= set(rows[0])

    metrics = run.metrics
    best = max(rows, key=lambda r: (float(r["val_accuracy"]), -float(r["val_loss"])))
    assert metrics["best_epoch"] == int(best["epoch"])
    assert metrics["val"]["loss"] == pytest.approx(float(best["val_loss"]))
    assert metrics["images"] == {"train": 29, "val": 7}
    assert [p["name"] for p in metrics["phases"]] == ["head", "all"]
    assert metrics["phases"][0]["frozen_stages"] == 4
    assert metrics["phases"][1]["frozen_stages"] == 0
    assert metrics["phases"][0]["trainable_parameters"] == 3 * 128 + 3

    # The model on disk is the best one: it gives the recorded loss.
    loaded = run.model
    head = loaded.layers[-1].head
    batches = data.batches("val", image_size=32, batch_size=8)
    loss = np.mean([float(head.loss()(y, loaded(x))) for x, y in batches])
    assert loss == pytest.approx(metrics["val"]["loss"], rel=1e-4)


def test_each_phase_moves_exactly_what_it_names(colours, tmp_path):
    data = from_directory(colours)
    model = new_model()
    start = values(model)
    head_only = Schedule("h", (Phase("head", "all", 1, 1e-2),))
    Trainer(model, head_only, batch_size=8).fit(data, tmp_path / "h")
    moved = {path for path, value in values(model).items() if (value != start[path]).any()}
    assert moved == {w.path for w in model.get_layer("output").weights}

    start = values(model)
    Trainer(model, Schedule("f", (Phase("top", "stage:2", 1, 1e-2),)), batch_size=8).fit(
        data, tmp_path / "f"
    )
    moved = {path for path, value in values(model).items() if (value != start[path]).any()}
    kernels = {
        w.path
        for stage in backbone_of(model).stages[2:]
        for layer in stage.layers
        if not isinstance(layer, keras.layers.BatchNormalization)
        for w in layer.weights
    }
    assert moved == kernels | {w.path for w in model.get_layer("output").weights}


def test_seeds_make_two_runs_equal(colours, tmp_path):
    data = from_directory(colours)

    def train(name, seed):
        model = new_model()
        Trainer(model, "lp_ft", epochs=2, batch_size=8, seed=seed).fit(data, tmp_path / name)
        return model.get_weights()

    a, b, c = train("a", 1), train("b", 1), train("c", 2)
    for first, second in zip(a, b):
        np.testing.assert_array_equal(first, second)
    assert any((first != other).any() for first, other in zip(a, c))


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_resume_ends_where_the_undisturbed_run_ends(colours, tmp_path, monkeypatch, stop_after):
    """Stopped in the first phase, between the phases, and in the second one."""
    data = from_directory(colours)
    schedule = Schedule("s", (Phase("head", "all", 2, 1e-2), Phase("all", "none", 2, 1e-3)))

    def trainer():
        # No dropout: its random state is not kept between processes yet.
        keras.utils.set_random_seed(0)
        head = Classification(NAMES, dropout=0.0)
        model = build_model(small_backbone(), head, image_size=32)
        return Trainer(model, schedule, batch_size=8)

    whole = trainer().fit(data, tmp_path / "whole")
    save_state = Run.save_state

    def save_and_stop(self, model, state, best):
        save_state(self, model, state, best)
        if state["epoch"] == stop_after:
            raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Run, "save_state", save_and_stop)
        trainer().fit(data, tmp_path / "cut")
    assert not (tmp_path / "cut" / "model.keras").exists()
    with pytest.raises(InputError, match="--resume"):
        trainer().fit(data, tmp_path / "cut")
    resumed = trainer().fit(data, tmp_path / "cut", resume=True)

    for a, b in zip(whole.model.weights, resumed.model.weights):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert resumed.metrics["best_epoch"] == whole.metrics["best_epoch"]
    assert len((resumed.path / "history.csv").read_text().splitlines()) == 5
    with pytest.raises(InputError, match="finished"):
        trainer().fit(data, tmp_path / "cut", resume=True)


def test_resume_with_other_settings_says_what_changed(colours, tmp_path, monkeypatch):
    data = from_directory(colours)
    monkeypatch.setattr(Run, "save_state", lambda *args, **kwargs: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        Trainer(new_model(), "lp_ft", epochs=2, batch_size=8).fit(data, tmp_path / "cut")
    with pytest.raises(InputError, match=r"batch_size: 8 is now 4"):
        Trainer(new_model(), "lp_ft", epochs=2, batch_size=4).fit(
            data, tmp_path / "cut", resume=True
        )


def test_wrong_classes_write_nothing(colours, tmp_path):
    with pytest.raises(InputError, match="classes"):
        Trainer(new_model(names=("a", "b", "c"))).fit(from_directory(colours), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_out_that_is_not_empty_is_left_alone(colours, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("dear")
    with pytest.raises(InputError, match="not empty"):
        Trainer(new_model()).fit(from_directory(colours), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_mixed_precision_trains(colours, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = new_model()
    run = Trainer(model, "feature_extraction", epochs=2, batch_size=8).fit(
        from_directory(colours), tmp_path / "run"
    )
    assert np.isfinite(run.metrics["val"]["loss"])
    assert run.config["precision"] == "mixed_bfloat16"
    assert run.model.layers[1].compute_dtype == "bfloat16"


def test_schedules_go_to_plain_data_and_back():
    schedule = lp_ft(epochs=7)
    assert Schedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule
    assert [p.epochs for p in schedule.phases] == [2, 5]
    with pytest.raises(InputError, match="no schedule"):
        Schedule.from_dict({"name": "x", "phases": [{"nome": "head"}]})
    with pytest.raises(InputError, match="Unknown strategy 'fine'"):
        resolve_schedule("fine")
    with pytest.raises(InputError, match="at least 2 epochs"):
        resolve_schedule("lp_ft", epochs=1)
    with pytest.raises(InputError, match="learning_rate"):
        Phase("p", "all", 1, 0.0)


def test_few_pictures_are_seen_more_often():
    epochs = [resolve_schedule("lp_ft", pictures=n).epochs for n in (100, 1000, 10_000)]
    assert epochs == [18, 14, 6]
    rates = [resolve_schedule("lp_ft", pictures=n).phases[1].learning_rate for n in (100, 9999)]
    assert rates == [1e-4, 1e-3]
