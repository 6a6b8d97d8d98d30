"""A phase that does damage goes back to the best weights, and a killed run does so too."""

import shutil

import keras
import numpy as np
import pytest
from conftest import tiny_backbone, write_colours
from killed import copied_after_each_epoch

from keras_transfer.data import from_directory
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.schedules.recipes import RECIPES, resolve_schedule
from keras_transfer.training.rollback import fell, restart_of
from keras_transfer.training.trainer import Trainer

HEAD = Phase("head", "all", 1, solver="logistic")
WILD = dict(learning_rate=0.3, shape="constant", warmup=0.0, roll_back=True)


def trainer(phase, **settings):
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification(("blue", "green", "red")), image_size=32)
    return Trainer(model, Schedule("s", (HEAD, phase)), **{"batch_size": 8, **settings})


def test_far_is_two_standard_errors():
    best = {"accuracy": 0.76, "loss": 1.0}
    error = np.sqrt((0.76 * 0.24 + 0.72 * 0.28) / 1000)
    assert not fell({"accuracy": 0.76 - 1.9 * error}, best, "accuracy", 1000)
    assert fell({"accuracy": 0.76 - 2.1 * error}, best, "accuracy", 1000)
    assert not fell({"accuracy": 0.98}, {"accuracy": 1.0}, "accuracy", 50)
    assert not fell({"loss": 1.9}, best, None, 10) and fell({"loss": 1.9}, best, None, 100)
    assert not fell({"loss": 0.1}, best, None, 1)


def test_the_rest_is_a_phase_of_its_own():
    assert restart_of([], 1, 6) == (1.0, 1.0)
    speed, factor = restart_of([{"epoch": 3}, {"epoch": 5}], 1, 6)
    assert (speed, factor) == (3.0, pytest.approx(1 / 9))


def test_recipes_go_back_where_they_have_a_start():
    for name in RECIPES:
        phases = resolve_schedule(name).phases
        starts = phases[0].solver == "logistic"
        assert [p.roll_back for p in phases[1:]] == [starts] * (len(phases) - 1)
        assert not phases[0].roll_back


@pytest.fixture(scope="module", params=[0.0, 0.5], ids=["plain", "averaged"])
def whole(request, tmp_path_factory):
    """(phase, data, run, what each epoch left on disk)."""
    folder = tmp_path_factory.mktemp("whole")
    data = from_directory(write_colours(folder / "colours"), progress=False)
    phase = Phase("all", "none", 6, ema=request.param, **WILD)
    with copied_after_each_epoch(folder):
        run = trainer(phase).fit(data, folder / "whole")
    return phase, data, run, folder


def test_it_goes_back_to_the_best_weights_at_a_third_of_the_rate(whole):
    phase, _, run, _ = whole
    (first, *_) = entries = run.metrics["phases"][1]["rollbacks"]
    best = first["to"]
    assert first["rate"] == pytest.approx(phase.learning_rate / 3)
    rows = {row["epoch"]: row for row in run.history}
    assert [e for e in rows if "rolled_back_to" in rows[e]] == [e["epoch"] for e in entries]
    assert rows[first["epoch"]]["rolled_back_to"] == best
    for low in (first["epoch"], first["epoch"] - 1):
        assert fell(
            {"accuracy": rows[low]["val_accuracy"]},
            {"accuracy": rows[best]["val_accuracy"]},
            "accuracy",
            run.metrics["images"]["val"],
        )
    assert rows[first["epoch"] + 1]["learning_rate"] == pytest.approx(first["rate"])
    assert run.metrics["val"]["accuracy"] >= rows[1]["val_accuracy"]
    assert len(rows) == 7


def test_a_kill_at_any_moment_changes_nothing(whole, tmp_path):
    phase, data, run, folder = whole
    first = run.metrics["phases"][1]["rollbacks"][0]["epoch"]
    for epoch in (first - 1, first, first + 1):
        shutil.copytree(folder / f"after-{epoch}", tmp_path / str(epoch))
        resumed = trainer(phase).fit(data, tmp_path / str(epoch), resume=True)
        for a, b in zip(run.model.get_weights(), resumed.model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        assert resumed.metrics["phases"][1]["rollbacks"] == run.metrics["phases"][1]["rollbacks"]
        drop = ("seconds",)
        histories = [
            [{k: v for k, v in row.items() if k not in drop} for row in each.history]
            for each in (run, resumed)
        ]
        assert histories[0] == histories[1]


@pytest.mark.parametrize("change", [{"roll_back": False}, {"keep": "last"}])
def test_it_can_be_turned_off(colours, tmp_path, change):
    keep = {"keep": change["keep"]} if "keep" in change else {}
    phase = Phase("all", "none", 4, **(WILD | {k: v for k, v in change.items() if k != "keep"}))
    run = trainer(phase, **keep).fit(from_directory(colours), tmp_path / "run")
    assert "rollbacks" not in run.metrics["phases"][1]
