"""The average of the best epochs: its choice, its weights, and a kill at any moment."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import tiny_backbone, write_colours
from killed import copied_after_each_epoch

from keras_transfer.data import from_directory
from keras_transfer.evaluation.api import evaluate
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.soup import MOST, average_of, greedy, obstacle, strongest
from keras_transfer.training.trainer import Trainer

HEAD = Phase("head", "all", 1, solver="logistic")
ALL = Phase("all", "none", 4, 3e-3, shape="constant", warmup=0.0)


def trainer(*phases, **settings):
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification(("blue", "green", "red")), image_size=32)
    return Trainer(model, Schedule("s", phases), **{"batch_size": 8, "soup": True, **settings})


def candidate(epoch, accuracy):
    return {"epoch": epoch, "rank": [1.0, accuracy], "val": {"accuracy": accuracy}}


def test_epochs_are_added_while_the_score_does_not_fall():
    scores = {(4, 2): 0.8, (4, 2, 1): 0.7, (4, 2, 3): 0.9}  # by the epochs of the average
    weights = {1: 1.0, 2: 10.0, 3: 100.0, 4: 1000.0}
    means = {np.float32(np.mean([weights[e] for e in key])): s for key, s in scores.items()}
    found, average = greedy(
        strongest([candidate(1, 0.5), candidate(2, 0.7), candidate(3, 0.4), candidate(4, 0.8)]),
        lambda epoch: {"w": np.float32([weights[epoch]])},
        lambda arrays: {"accuracy": means[arrays["w"][0]]},
        lambda val: [1.0, val["accuracy"]],
    )
    assert found == {"epochs": [4, 2, 3], "rank": [1.0, 0.9], "val": {"accuracy": 0.9}}
    assert average["w"] == np.float32(370)


def test_the_best_five_are_candidates_and_the_earlier_of_equals_comes_first():
    found = strongest([candidate(epoch, epoch // 2) for epoch in range(1, 9)])
    assert [c["epoch"] for c in found] == [8, 6, 7, 4, 5] and len(found) == MOST


def test_equal_arrays_and_whole_numbers_stay_as_they_are():
    frozen = np.random.default_rng(0).normal(size=1000).astype("float32")
    parts = [{"frozen": frozen, "state": np.array([i], "uint32")} for i in range(3)]
    average = average_of(parts)
    np.testing.assert_array_equal(average["frozen"], frozen)
    assert average["frozen"].dtype == "float32" and average["state"] == 0


@pytest.fixture(scope="module", params=[0.0, 0.5], ids=["plain", "ema"])
def whole(request, tmp_path_factory):
    """(phase, data, run, what each epoch left on disk)."""
    folder = tmp_path_factory.mktemp("whole")
    data = from_directory(write_colours(folder / "colours"), progress=False)
    phase = replace(ALL, learning_rate=0.03, ema=request.param)
    with copied_after_each_epoch(folder):
        run = trainer(HEAD, phase).fit(data, folder / "whole")
    return phase, data, run, folder


def test_the_saved_weights_are_the_average_and_the_metrics_are_theirs(whole):
    _, data, run, folder = whole
    soup = run.metrics["soup"]
    assert soup["used"] and len(soup["epochs"]) > 1 and min(soup["epochs"]) > 1
    rows = {row["epoch"]: row for row in run.history}
    best = run.metrics["best_epoch"]
    assert soup["single"]["accuracy"] == rows[best]["val_accuracy"]
    assert soup["val"]["accuracy"] >= soup["single"]["accuracy"]
    last = int(max(rows))  # averaged before it is saved
    files = {e: folder / f"after-{last - 1}/state/soup-{e}.npz" for e in soup["epochs"]}
    files[last] = folder / f"after-{last}/state/epoch-{last}.npz"
    found = [np.load(files[e]) for e in soup["epochs"]]
    names = [f"model/{i}" for i in range(sum(n.startswith("model/") for n in found[0].files))]
    names = [n for n in names if found[0][n].dtype == "float32"]  # not random states
    for name, weight in zip(names, run.model.get_weights(), strict=True):
        mean = np.mean([each[name] for each in found], axis=0, dtype="float64")
        np.testing.assert_array_equal(weight, mean.astype("float32"))
    assert not list((folder / f"after-{last}/state").glob("soup-*.npz"))
    measured = evaluate(run.model, data)
    assert measured["accuracy"] == pytest.approx(run.metrics["val"]["accuracy"])
    assert measured["loss"] == pytest.approx(run.metrics["val"]["loss"], rel=1e-3, abs=1e-5)
    assert run.metrics["val"]["loss"] == soup["val"]["loss"]


def test_a_kill_at_any_moment_changes_nothing(whole, tmp_path):
    phase, data, run, folder = whole
    for epoch in (1, 3, 4, 5):
        shutil.copytree(folder / f"after-{epoch}", tmp_path / str(epoch))
        resumed = trainer(HEAD, phase).fit(data, tmp_path / str(epoch), resume=True)
        for a, b in zip(run.model.get_weights(), resumed.model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        assert resumed.metrics["soup"] == run.metrics["soup"]
        assert resumed.metrics["val"] == run.metrics["val"]


@pytest.mark.parametrize(
    "phase, settings, words",
    [
        (HEAD, {}, "closed form"),
        (ALL, {"keep": "last"}, "last epoch"),
        (Phase("all", "none", 1, 1e-3, batch_norm="train"), {}, "BatchNorm trains in phase 'all'"),
    ],
)
def test_a_run_without_an_average_says_why(colours, tmp_path, capsys, phase, settings, words):
    run = trainer(phase, **settings).fit(from_directory(colours), tmp_path / "run")
    assert "soup" not in run.metrics
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("soup:")]
    assert words in line


def test_an_average_needs_validation_and_one_process():
    alone = trainer(ALL)
    planned = SimpleNamespace(phase=ALL, frozen=0)
    assert obstacle(alone, planned, True) is None
    assert "no validation" in obstacle(alone, planned, False)
    alone.workers = SimpleNamespace(distributed=True)
    assert "several workers" in obstacle(alone, planned, True)


def test_it_is_off_by_default(colours, tmp_path):
    run = trainer(ALL, soup=False).fit(from_directory(colours), tmp_path / "run")
    assert "soup" not in run.metrics
