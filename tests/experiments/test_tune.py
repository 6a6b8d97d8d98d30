"""The search: its space, resuming, and a best configuration that `train` reproduces."""

import csv
import json
import math
import sys
from types import SimpleNamespace
from typing import ClassVar

import keras
import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from keras_transfer.cli.demo import small_backbone
from keras_transfer.cli.main import app
from keras_transfer.data import ImageData, from_arrays, from_directory
from keras_transfer.errors import Diverged, InputError, Interrupted
from keras_transfer.experiments import tune as tuning
from keras_transfer.experiments.search_space import Choice, Range, Search, read_space, space_of
from keras_transfer.experiments.study import Tuned
from keras_transfer.experiments.tune import tune
from keras_transfer.models.builders import build_model, head_for
from keras_transfer.models.heads import Classification
from keras_transfer.runs import Run
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.schedules.recipes import RECIPES, lp_ft
from keras_transfer.training.trainer import Trainer

pytest.importorskip("optuna", reason="Optuna is not installed")


@pytest.fixture
def data(colours):
    return from_directory(colours, test_split=0.2, progress=False)


def model_of(data, **head):
    keras.utils.set_random_seed(0)
    return build_model(small_backbone(), head_for(data, **head), image_size=32)


# -- the space ------------------------------------------------------------------------------------


def search_of(schedule=None, **more):
    given = dict(frozen=0, stages=7, augment="light", dropout=0.2, closed_form=True) | more
    return Search(schedule or lp_ft(1000, epochs=8), **given)


def test_the_space_contains_the_schedule():
    search = search_of()
    rate = lp_ft(1000, epochs=8).phases[-1].learning_rate
    assert search.default == {
        "learning_rate": rate,
        "lowest_rate": 1.0,
        "k": 0,
        "dropout": 0.2,
        "augment": "light",
    }
    assert search.space["learning_rate"] == Range(rate / 10, rate * 10, log=True)
    assert search.space["k"] == Range(0, 7, whole=True)
    schedule, augment = search.training(search.default)
    assert augment == "light"
    # The default is the recipe, with the dropout of the head written out.
    plain = lp_ft(1000, epochs=8).override({"*.dropout": 0.2})
    assert schedule.phases == plain.phases
    other = search_of(RECIPES["discriminative"](1000), frozen=3).default
    assert (other["lowest_rate"], other["k"]) == (0.05, 3)


def test_a_point_defines_a_training():
    search = search_of(space={"*.weight_decay": {"low": 1e-5, "high": 0.1}, "all.ema": [0.0, 0.9]})
    assert search.space["*.weight_decay"].log
    assert (search.default["*.weight_decay"], search.default["all.ema"]) == (1e-4, 0.0)
    point = search.default | {
        "learning_rate": 3e-4,
        "lowest_rate": 0.1,
        "k": 4,
        "dropout": 0.4,
        "augment": "heavy",
        "*.weight_decay": 0.01,
        "all.ema": 0.9,
    }
    schedule, augment = search.training(point)
    head, rest = schedule.phases
    assert augment == "heavy" and (head.freeze, rest.freeze) == ("all", "stage:4")
    assert (rest.learning_rate, rest.lowest_rate) == (3e-4, 0.1)
    assert head.solver == "logistic" and head.ema == 0.0 and rest.ema == 0.9
    assert {p.dropout for p in (head, rest)} == {0.4}
    assert {p.weight_decay for p in (head, rest)} == {0.01}


def test_with_all_stages_frozen_only_the_head_is_trained():
    point = search_of().default | {"k": 7}
    (head,) = search_of().training(point)[0].phases
    assert (head.solver, head.freeze, head.epochs) == ("logistic", "all", 1)
    in_steps = lp_ft(1000, epochs=8, linear_head=False)
    phases = search_of(in_steps, closed_form=False).training(point)[0].phases
    assert [phase.freeze for phase in phases] == ["all", "all"]
    assert {phase.solver for phase in phases} == {"gradient"}


def test_augmentations_flip_only_if_the_given_one_does():
    assert search_of(augment="none").default["augment"] == "none"
    search = search_of(augment={"preset": "light", "flip": False})
    assert search.default["augment"] == "light without flip"
    assert search.space["augment"].values[0] == "none" and len(search.augmentations) == 4
    heavy = search.training(search.default | {"augment": "heavy without flip"})[1]
    assert heavy == {"preset": "heavy", "flip": False}
    own = search_of(augment={"rotate": 5.0})
    assert own.default["augment"] == "given" and len(own.augmentations) == 5
    assert own.training(own.default)[1]["rotate"] == 5.0
    assert search_of(augment="randaugment").default["augment"] == "randaugment"


def test_the_default_is_moved_into_a_narrower_space():
    search = search_of(
        space={
            "learning_rate": {"low": 0.01, "high": 0.1},
            "k": {"low": 2, "high": 5},
            "augment": ["heavy", "none"],
            "dropout": 0.3,
        }
    )
    assert search.default["learning_rate"] == 0.01 and search.default["k"] == 2
    assert search.default["augment"] == "heavy" and search.space["dropout"] == Choice((0.3,))
    assert "dropout" not in search_of(dropout=None).space


def test_parsing_of_spaces(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("learning_rate: {low: 1e-5, high: 1e-3}\nk: 3\naugment: [none, light]\n")
    space = read_space(space_of(file, ["k=0..6", "dropout=0.1,0.2", "*.weight_decay=1e-5..1e-1"]))
    assert space == {
        "learning_rate": Range(1e-5, 1e-3, log=True),
        "k": Range(0, 6, whole=True),
        "augment": Choice(("none", "light")),
        "dropout": Choice((0.1, 0.2)),
        "*.weight_decay": Range(1e-5, 0.1, log=True),
    }


@pytest.mark.parametrize(
    "space, message",
    [
        ({"rate": 1.0}, "Cannot search rate"),
        ({"all.speed": 1.0}, "Cannot search all.speed"),
        ({"learning_rate": {"low": 1, "high": 0.1}}, "low ≤ high"),
        ({"learning_rate": {"low": 0.0, "high": 0.1}}, "above 0"),
        ({"learning_rate": "fast"}, "above 0"),
        ({"k": 1.5}, "whole numbers"),
        ({"k": {"low": 0, "high": 8}}, "8 stages cannot be frozen, the backbone has 7"),
        ({"dropout": 1.0}, "below 1"),
        ({"dropout": []}, "values must be different"),
        ({"augment": ["light", "wild"]}, "Unknown augment wild: choose from none, light"),
        ({"rest.ema": 0.9}, "Cannot set rest.ema"),
        ({"all.ema": {"low": 0.5, "high": 1.5}}, "ema must be at least 0 and below 1"),
    ],
)
def test_invalid_spaces_are_refused(space, message):
    with pytest.raises(InputError, match=message):
        search_of(space=space)


@pytest.mark.parametrize("name", ["from_scratch", "gradual_unfreeze", "feature_extraction"])
def test_unsuitable_schedules_are_refused(name):
    with pytest.raises(InputError, match=f"Cannot search around '{name}'"):
        search_of(RECIPES[name](1000))
    own = Schedule("own", (Phase("first", "stage:2", 1), Phase("all", "none", 1)))
    with pytest.raises(InputError, match="one phase follows phases of the head alone"):
        search_of(own)


# -- the search, with trainings that take no time ---------------------------------------------------


class Killed(BaseException):
    """Simulates a power cut: no code handles it."""


class Quick(Trainer):
    """A trainer whose made-up accuracy is best at a rate of 0.01 and three frozen stages."""

    events: ClassVar = {}  # number of the training → what happens in it
    made: ClassVar = []

    def fit(self, data, out, *, config, callbacks):
        phase = self._schedule(len(data.examples["train"])).phases[-1]
        event = self.events.get(len(self.made))
        self.made.append(self.model.get_weights())
        run = Run.create(out, {**config, "schedule": {"rate": phase.learning_rate}}, [], {})
        stages = int(str(phase.freeze).removeprefix("stage:")) if ":" in str(phase.freeze) else 0
        rate = phase.learning_rate if phase.solver == "gradient" else 1.0
        accuracy = 0.9 - 0.1 * abs(math.log10(rate / 0.01)) - 0.02 * abs(stages - 3)
        self.model.layers[-1].kernel.assign_add(np.ones(self.model.layers[-1].kernel.shape))
        for epoch in range(6):
            if event and epoch == 1:
                raise event
            for callback in callbacks:
                logs = {"loss": 1.0, "val_loss": 1 - accuracy, "val_accuracy": accuracy}
                callback.on_epoch_end(epoch, logs)
        val = {"loss": 1 - accuracy, "accuracy": accuracy}
        metrics = {"val": val, "phases": [{"epochs": 6}]}
        (run.path / "metrics.json").write_text(json.dumps(metrics))
        run.model_path.touch()
        return run


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(tuning, "Trainer", Quick)
    monkeypatch.setattr(Quick, "events", {})
    monkeypatch.setattr(Quick, "made", [])
    monkeypatch.setattr("keras_transfer.evaluation.evaluate", lambda *_: {"accuracy": 0.5})
    monkeypatch.setattr(Run, "model", None)
    monkeypatch.setattr(Quick, "draw", staticmethod(Tuned.draw), raising=False)
    monkeypatch.setattr(Tuned, "draw", lambda *_: None)  # slower than the search
    return Quick


def searched(data, out, trials=12, **more):
    options = dict(trials=trials, strategy="fine_tune", overrides={"epochs": 6}) | more
    return tune(model_of(data), data, out, **options)


def values_of(tuned):
    return [(t.state, t.values, t.value) for t in tuned.trials]


def test_a_search_finds_better_values(data, tmp_path, quick):
    model = model_of(data)
    before = model.get_weights()
    options = dict(strategy="fine_tune", overrides={"epochs": 6})
    tuned = tune(model, data, tmp_path / "a", trials=16, **options)
    first, best = tuned.trials[0], tuned.best
    assert first.values == tuned.default and tuned.first is first and first.state == "complete"
    assert best.value > first.value + 0.02 and best.value == max(t.value for t in tuned.trials)
    assert len(tuned.trials) == 16 and len({t.state for t in tuned.trials}) == 2
    # Each trial started from the same weights, which are restored.
    for weights in (*quick.made, model.get_weights()):
        np.testing.assert_array_equal(weights[-2], before[-2])
    # Pruned trials were worse than the median, and had trained for a third of their epochs.
    for pruned in (t for t in tuned.trials if t.state == "pruned"):
        complete = [t.value for t in tuned.trials[: pruned.number] if t.state == "complete"]
        assert pruned.value < np.median(complete) and 2 < pruned.epochs < 6
    # Only the run of the best trial is left.
    assert [f.name for f in (tmp_path / "a").glob("trial-*")] == [f"trial-{best.number}"]
    assert tuned.run.path.is_dir()
    written = yaml.safe_load(tuned.config.read_text())
    assert written["schedule"]["rate"] == best.values["learning_rate"]
    rows = list(csv.DictReader((tmp_path / "a" / "trials.csv").open()))
    assert [float(row["accuracy"]) for row in rows] == [t.value for t in tuned.trials]
    assert rows[best.number]["k"] == str(best.values["k"])
    assert set(tuned.importances) == set(tuned.space)
    # Parameters that the made-up accuracy depends on are more important.
    assert tuned.importances["dropout"] < tuned.importances["learning_rate"]
    quick.draw(tuned, tmp_path / "tune.png")
    with Image.open(tmp_path / "tune.png") as image:
        assert image.format == "PNG" and min(image.size) > 400
        pixels = np.asarray(image.convert("RGB")).astype(int)
    # Three plots below each other: points in two of them and bars, in the blue of Optuna.
    for part in np.array_split(pixels, 3):
        assert ((part[..., 2] - part[..., 0]) > 60).sum() > 50
    assert json.loads(json.dumps(tuned.to_dict()))["best"]["number"] == best.number
    assert f"Best: trial {best.number} of 16" in tuned.verdict and "optimistic" in tuned.verdict
    assert "on the test examples its accuracy is 0.5000" in tuned.verdict
    assert "(default)" in tuned.table() and "7 more in" in tuned.table()


def test_a_killed_search_continues_exactly(data, tmp_path, quick):
    whole = searched(data, tmp_path / "whole")
    quick.made.clear()
    quick.events = {5: Killed(), 8: Interrupted("stopped")}
    with pytest.raises(Killed):
        searched(data, tmp_path / "a")
    assert len(list((tmp_path / "a").glob("trial-*"))) == 2  # the best and the current one
    journal = tmp_path / "a" / "study.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 4, "wor')  # a partial line
    with pytest.raises(Interrupted, match=r"trial 7.*repeat the same command"):
        searched(data, tmp_path / "a")
    tuned = searched(data, tmp_path / "a")
    assert values_of(tuned) == values_of(whole)
    assert [t.number for t in tuned.trials] != [t.number for t in whole.trials]
    assert len(list((tmp_path / "a").glob("trial-*"))) == 1
    # More trials continue from there; fewer are done already.
    quick.made.clear()
    more = searched(data, tmp_path / "a", trials=14)
    assert len(more.trials) == 14 and len(quick.made) == 2
    assert values_of(more)[:12] == values_of(whole)
    assert len(searched(data, tmp_path / "a", trials=3).trials) == 14 and len(quick.made) == 2
    with pytest.raises(InputError, match=r"seed: 0 is now 1"):
        searched(data, tmp_path / "a", seed=1)
    with pytest.raises(InputError, match=r"space\.k"):
        searched(data, tmp_path / "a", space={"k": 2})
    fewer = from_directory(data.root, val_split=0.3, progress=False)
    with pytest.raises(InputError, match="the images changed"):
        searched(fewer, tmp_path / "a")


def test_one_process_at_a_time(data, tmp_path, quick):
    found = []

    class Both(Quick):
        def fit(self, *arguments, **options):
            with pytest.raises(InputError, match="Another process is searching in"):
                searched(data, tmp_path / "a")
            found.append(True)
            return super().fit(*arguments, **options)

    tuning.Trainer = Both
    searched(data, tmp_path / "a", trials=1)
    assert found == [True]


def test_a_failed_trial_is_recorded(data, tmp_path, quick):
    quick.events = {1: Diverged("The loss became nan\nin phase 'all'"), 2: InputError("no memory")}
    tuned = searched(data, tmp_path / "a", trials=5)
    assert [t.state for t in tuned.trials][:4] == ["complete", "failed", "failed", "complete"]
    rows = list(csv.DictReader((tmp_path / "a" / "trials.csv").open()))
    assert rows[1]["reason"] == "The loss became nan in phase 'all'" and rows[1]["accuracy"] == ""
    assert tuned.table().splitlines()[-1].split()[1] == "failed"
    quick.made.clear()
    quick.events = dict.fromkeys(range(9), Diverged("The loss became nan"))
    with pytest.raises(
        InputError, match="None of 3 trials was completed; the last failed: The loss became nan"
    ):
        searched(data, tmp_path / "b")
    quick.made.clear()
    with pytest.raises(InputError, match="None of 1 trials"):
        searched(data, tmp_path / "d", trials=1)
    # An error in the code is not a failed trial.
    quick.made.clear()
    quick.events = {1: RuntimeError("a fault")}
    with pytest.raises(RuntimeError, match="a fault"):
        searched(data, tmp_path / "c")


def test_epochs_without_a_validation_are_not_reported():
    """Where a validation takes longer than an epoch, the trainer leaves some out."""
    reported = []
    trial = SimpleNamespace(
        report=lambda value, epoch: reported.append((epoch, value)), should_prune=lambda: False
    )
    reports = tuning._Reports(trial, "accuracy")
    reports.on_epoch_end(0, {"loss": 1.0, "val_loss": 0.9, "val_accuracy": 0.5})
    reports.on_epoch_end(1, {"loss": 0.8})
    assert reported == [(0, 0.5)] and reports.epochs == 2
    assert reports.val == {"loss": 0.9, "accuracy": 0.5}


def test_minutes_end_a_search_in_time(data, tmp_path, quick, monkeypatch):
    now = iter(range(0, 10_000, 20))
    monkeypatch.setattr(tuning, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    tuned = searched(data, tmp_path / "a", trials=None, minutes=1.7)
    assert [t.seconds for t in tuned.trials] == [20.0] * 5
    assert len(searched(data, tmp_path / "b", trials=2, minutes=1.7).trials) == 2
    assert len(searched(data, tmp_path / "c", trials=None, minutes=0.01).trials) == 1


def test_regression_is_ranked_by_loss(rng, tmp_path, quick):
    images = rng.integers(0, 256, (20, 32, 32, 3), "uint8")
    data = from_arrays((images, rng.normal(size=20)), task="regression", progress=False)
    tuned = searched(data, tmp_path / "a", trials=6)
    assert tuned.metric == "loss" and all(t.value == -t.loss for t in tuned.trials)
    assert tuned.to_dict()["best"]["value"] == min(t.loss for t in tuned.trials)
    rows = list(csv.DictReader((tmp_path / "a" / "trials.csv").open()))
    assert float(rows[0]["loss"]) == tuned.trials[0].loss


def test_a_gain_within_the_error_is_reported(data, tmp_path, quick):
    tuned = searched(data, tmp_path / "a", trials=16)
    assert "may be chance" in tuned.verdict  # a few points on six images
    (t,) = searched(data, tmp_path / "b", trials=1).trials
    assert t.number == 0
    assert "no better configuration was found" in searched(data, tmp_path / "b", trials=1).verdict


# -- invalid input --------------------------------------------------------------------------------


def test_invalid_searches_are_refused(data, tmp_path, quick):
    for options, message in (
        ({"trials": 0}, "trials must be 1 or more"),
        ({"minutes": -1}, "minutes must be above 0"),
        ({"strategy": "from_scratch"}, "Cannot search around 'from_scratch'"),
        ({"space": {"k": 99}}, "99 stages"),
    ):
        with pytest.raises(InputError, match=message):
            tune(model_of(data), data, tmp_path / "a", **options)
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(InputError, match="is a file"):
        searched(data, tmp_path / "file")
    with pytest.raises(InputError, match="contains no search"):
        searched(data, tmp_path / "full")
    train = ImageData(data.class_names, {"train": data.examples["train"]}, [], data.root)
    with pytest.raises(InputError, match="no val images"):
        searched(train, tmp_path / "a")
    plain = build_model(
        small_backbone(), Classification(data.class_names, dropout=0), image_size=32
    )
    with pytest.raises(InputError, match="built with dropout 0"):
        tune(plain, data, tmp_path / "a", space={"dropout": 0.5})
    assert not (tmp_path / "a").exists()


def test_without_optuna(colours, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = CliRunner().invoke(app, ["tune", str(colours), "--out", str(tmp_path / "a")])
    assert isinstance(found.exception, InputError)
    assert 'pip install "keras_transfer[tune]"' in str(found.exception)


# -- real trainings -------------------------------------------------------------------------------


def test_train_reproduces_the_best_trial(colours, tmp_path, cache, real_weights):
    """By the command, from images to `train --config best.yaml`, bit for bit."""
    out = tmp_path / "search"
    options = ["--backbone", "mobilenet_0.25", "--batch-size", "4", "--image-size", "32"]
    options += ["--epochs", "2", "--no-flip", "--test-split", "0.2", "--engine", "keras"]
    options += ["--search", "k=6..13", "--search", "augment=none,light without flip"]
    command = ["tune", str(colours), "--out", str(out), *options, "--json"]
    found = CliRunner().invoke(app, [*command, "--trials", "2"], catch_exceptions=False)
    result = json.loads(found.stdout)
    assert [t["state"] for t in result["trials"]] == ["complete"] * 2
    assert 6 <= result["best"]["values"]["k"] <= 13 and result["test"]["images"] == 7
    assert len({t["loss"] for t in result["trials"]}) == 2
    assert {f.name for f in out.iterdir()} == {
        "best.yaml",
        "study.jsonl",
        "trials.csv",
        "tune.png",
        "tune.yaml",
        f"trial-{result['best']['number']}",
    }
    config = yaml.safe_load((out / "best.yaml").read_text())
    assert config["backbone"] == "mobilenet_0.25" and config["test_split"] == 0.2
    keras.backend.clear_session()
    again = ["train", str(colours), "--config", str(out / "best.yaml"), "--out"]
    CliRunner().invoke(app, [*again, str(tmp_path / "run")], catch_exceptions=False)
    run, best = Run(tmp_path / "run"), Run(result["run"])
    assert run.metrics["val"] == best.metrics["val"]
    assert run.config["schedule"] == best.config["schedule"] == config["schedule"]
    assert run.config["augment"] == config["augment"]
    assert run.split_path.read_text() == best.split_path.read_text()
    # The same command has nothing left to do.
    done = CliRunner().invoke(app, [*command, "--trials", "2"], catch_exceptions=False)
    assert json.loads(done.stdout)["trials"] == result["trials"]
