"""Recipes that start from the closed-form head, and what happens where they cannot."""

import keras
import numpy as np
import pytest
from conftest import tiny_backbone
from killed import killed_after

from keras_transfer.data import from_directory
from keras_transfer.errors import Diverged, InputError
from keras_transfer.features.store import Store
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.runs import Run
from keras_transfer.training.trainer import Trainer

NAMES = ("blue", "green", "red")


def trainer(recipe="lp_ft", head=None, **settings):
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), head or Classification(NAMES), image_size=32)
    return Trainer(model, recipe, **{"batch_size": 8, "epochs": 2, **settings})


def solvers(run):
    return [(p["solver"], p["epochs"]) for p in run.config["schedule"]["phases"]]


CLOSED, STEPS = [("logistic", 1), ("gradient", 2)], [("gradient", 1), ("gradient", 1)]


def test_the_start_is_an_epoch_and_the_given_epochs_follow(colours, tmp_path):
    run = trainer().fit(from_directory(colours), tmp_path / "run")
    assert solvers(run) == CLOSED
    assert [row["phase"] for row in run.history] == ["head", "all", "all"]


def test_a_head_with_hidden_layers_is_trained_in_steps(colours):
    head = Classification(NAMES, hidden=8)
    plan = trainer(head=head).plan(from_directory(colours))
    assert [(p.solver, p.epochs) for p in plan.schedule.phases] == STEPS


def test_a_start_that_makes_the_end_worse_is_what_is_saved(colours, tmp_path):
    """The best epoch of all phases is saved, so that of the head if the rest only does harm."""
    data = from_directory(colours)
    overrides = {"all.shape": "constant", "all.clip_norm": None, "all.optimizer": "sgd"}
    harm = trainer(learning_rate=1e3, epochs=2, overrides=overrides)
    try:
        run = harm.fit(data, tmp_path / "run")
    except Diverged:
        run = Run.open(tmp_path / "run")
    alone = trainer("feature_extraction", epochs=None, refit="never")
    alone = alone.fit(data, tmp_path / "alone")
    assert run.metrics["best_epoch"] == 1
    assert run.metrics["val"]["loss"] == pytest.approx(alone.metrics["val"]["loss"], rel=1e-5)
    for a, b in zip(run.model.get_weights(), alone.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture
def full(monkeypatch):
    monkeypatch.setattr(Store, "free", lambda self: 0)


def test_features_that_do_not_fit_are_not_an_error(colours, tmp_path, full, monkeypatch, capsys):
    data = from_directory(colours)
    run = trainer().fit(data, tmp_path / "run")
    assert solvers(run) == STEPS
    said = [line for line in capsys.readouterr().err.splitlines() if "in steps instead" in line]
    assert len(said) == 1 and said[0].startswith("Phase 'head': ") and "do not fit" in said[0]
    with pytest.raises(InputError, match="do not fit"):
        trainer("feature_extraction", epochs=None).fit(data, tmp_path / "alone")
    with pytest.raises(InputError, match="do not fit"):
        trainer(overrides={"head.solver": "logistic"}).fit(data, tmp_path / "named")
    assert not (tmp_path / "alone").exists() and not (tmp_path / "named").exists()


def cut(data, out):
    with killed_after(epoch=1):
        trainer().fit(data, out)


def test_a_resumed_run_decides_as_it_did_when_it_began(colours, tmp_path, monkeypatch):
    """Whatever space there is now: in steps there (as in 0.1), in closed form here."""
    data = from_directory(colours)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "free", lambda self: 0)
        cut(data, tmp_path / "steps")
    cut(data, tmp_path / "closed")
    assert solvers(trainer().fit(data, tmp_path / "steps", resume=True)) == STEPS
    monkeypatch.setattr(Store, "free", lambda self: 0)
    assert solvers(trainer().fit(data, tmp_path / "closed", resume=True)) == CLOSED
