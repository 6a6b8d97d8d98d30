"""The refit: a second training on validation examples too, and the model that was validated without them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import tiny_backbone, write_colours

from keras_transfer.cli.main import app
from keras_transfer.data import Examples, from_directory
from keras_transfer.errors import Diverged, InputError, Interrupted, OutOfSpace
from keras_transfer.evaluation import typicality
from keras_transfer.evaluation.api import evaluate
from keras_transfer.export.exporter import typicality_of
from keras_transfer.features import closed_form
from keras_transfer.features.cross_validation import cross_validated
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.sources.applications import check_source_model
from keras_transfer.reporting import write_report
from keras_transfer.runs import Run
from keras_transfer.schedules import defaults
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training import refit as module
from keras_transfer.training.config import TrainConfig
from keras_transfer.training.trainer import Trainer
from keras_transfer.utils.checkpoint import Checkpoint

HEAD = Phase("head", "all", 1, solver="logistic")
ALL = Phase("all", "none", 3, 3e-3, ema=0.5)


def trainer(*phases, **settings):
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification(("blue", "green", "red")), image_size=32)
    return Trainer(model, Schedule("s", phases), **{"batch_size": 8, "refit": "always", **settings})


def assert_equal(model, other):
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_colours(tmp_path_factory.mktemp("colours") / "colours")
    return from_directory(folder, progress=False, val_split=0.25)


@pytest.fixture(scope="module", params=[(HEAD,), (HEAD, ALL)], ids=["closed form", "fine-tuned"])
def whole(request, data, tmp_path_factory):
    """(phases, run, folders as a death after each epoch would have left the run)."""
    folder, left = tmp_path_factory.mktemp("whole"), []
    save = Checkpoint.save

    def save_and_copy(self, *args):
        save(self, *args)
        left.append(shutil.copytree(folder / "run", folder / f"left-{len(left)}"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_copy)
        run = trainer(*request.param).fit(data, folder / "run")
    return request.param, run, left


@pytest.fixture
def plain(whole, data, tmp_path):
    """The same training without a refit."""
    return trainer(*whole[0], refit="never").fit(data, tmp_path / "plain")


def test_the_validated_model_is_that_of_a_run_without_a_refit(whole, plain, data):
    _, run, _ = whole
    assert_equal(run.model_for("val"), plain.model)
    assert run.metrics["val"] == plain.metrics["val"]
    assert evaluate(run.model_for("val"), data)["loss"] == pytest.approx(
        run.metrics["val"]["loss"], rel=1e-4
    )


def test_the_model_is_that_of_a_training_on_all_examples(whole, data, tmp_path):
    settings = {"keep": "last", "calibrate": False}
    run = trainer(*whole[0], **settings).fit(data, tmp_path / "run")
    assert run.metrics["refit"]["examples"] == sum(map(len, data.examples.values())) == 36
    other = trainer(*whole[0], **settings).fit(all_of(data), tmp_path / "all")
    assert_equal(run.model, other.model)
    assert not np.array_equal(run.model.get_weights()[-1], run.model_for("val").get_weights()[-1])


def test_closed_forms_are_as_strong_as_was_chosen_before(data, tmp_path, monkeypatch):
    calls = []

    def counted(*args):
        calls.append(args)
        return cross_validated(*args)

    monkeypatch.setattr(closed_form, "cross_validated", counted)
    monkeypatch.setattr(closed_form, "_solved", {})
    run = trainer(HEAD).fit(data, tmp_path / "run")
    (head,) = run.metrics["phases"]
    assert len(calls) == 1 and run.metrics["refit"]
    assert [len(values) for values in head["closed_form"]["output"].values()] == [1, 1]
    head["closed_form"]["output"]["strengths"] = [1e-4]
    run.write_metrics({**run.metrics, "phases": [head]})
    again = trainer(HEAD)
    again.refit(data, run, tmp_path / "again")
    kernels = [model.get_layer("output").kernel.numpy() for model in (run.model, again.model)]
    assert np.abs(kernels[1]).max() < 0.1 * np.abs(kernels[0]).max()


@pytest.mark.parametrize(
    ("groups", "best", "accuracies", "length"),
    [
        (None, 3, (0.5, 0.7, 0.82, 0.8, 0.79), 3),
        (2, 3, (0.5, 0.7, 0.82, 0.8, 0.79), 5),  # two speakers do not tell which epoch is best
        (50, 3, (0.5, 0.7, 0.9, 0.8, 0.5), 3),
        (2, 1, (0.9, 0.7, 0.5, 0.8, 0.89), 1),  # the closed form
    ],
)
def test_it_is_as_long_as_the_best_phase_where_few_groups_decide(groups, best, accuracies, length):
    history = [{"epoch": i, "val_accuracy": each} for i, each in enumerate(accuracies, 1)]
    metrics = {"best_epoch": best, "phases": [{"epochs": 1}, {"epochs": 4}]}
    run = SimpleNamespace(metrics=metrics, history=history)
    examples = SimpleNamespace(groups=None if groups is None else np.arange(100) % groups)
    assert module._length(run, "accuracy", examples) == length
    expected = 1.0 if groups and best > 1 else best / 5
    assert module.share_of_refit(run, examples) == expected


def test_it_ends_where_the_best_epoch_was_at_the_rates_of_the_whole_plan(data):
    plan = trainer(HEAD, ALL).plan(data)
    head, all = module._cut(plan, [1, 3], 3).phases
    assert head == plan.phases[0] and (all.epochs, all.steps) == (2, plan.phases[1].steps)
    stopped = replace(plan.phases[1], phase=replace(ALL, early_stopping=2), epochs=2)
    (_, shorter) = module._cut(replace(plan, phases=(head, stopped)), [1, 3], 4).phases
    assert shorter.epochs == 2 and shorter.phase.early_stopping is None
    assert module._cut(plan, [1, 3], 1).phases == plan.phases[:1]


def all_of(data):
    """Return the data with training and validation examples in one split, in this order."""
    images = [Path(name) for split in ("train", "val") for name in data.examples[split].names]
    labels = np.concatenate([data.examples[split].labels for split in ("train", "val")])
    return replace(data, examples={"train": Examples(images, labels)})


def test_a_model_that_has_seen_the_examples_says_so(whole, data, capsys):
    _, run, _ = whole
    evaluate(run.model_for("val"), data)
    evaluate(run.model, data, "train")
    assert "too good" not in capsys.readouterr().err
    evaluate(run.model, data)
    said = capsys.readouterr().err
    assert "val: the refit of this model has trained on these images" in said
    assert_equal(run.model_for("all", data.examples["val"]), run.model_for("val"))
    assert_equal(run.model_for("all", data.examples["train"]), run.model)


def test_a_second_training_of_the_model_is_warned(data, tmp_path, capsys):
    again = trainer(HEAD)
    again.fit(data, tmp_path / "first")
    assert "too easy" not in capsys.readouterr().err
    again.fit(data, tmp_path / "second")
    assert "a refit of this model has trained on the validation examples" in capsys.readouterr().err


def test_another_training_starts_from_the_model_that_has_not_seen_them(whole):
    _, run, _ = whole
    assert check_source_model(str(run.path)) == run.validated_path
    with pytest.raises(InputError, match=f"--backbone {run.path} with another --out"):
        Run.resume(run.path, {}, {})


def test_typicality_is_that_of_examples_that_were_not_seen(whole, data, monkeypatch):
    phases, run, _ = whole
    monkeypatch.setattr(typicality, "_LEAST", 5)
    found = typicality_of(run, run.model, data)
    again = typicality_of(run, run.model_for("val"), data)
    assert (found.threshold, found.auroc) == (again.threshold, again.auroc)
    same = np.array_equal(found.prototypes, again.prototypes)
    assert same is (len(phases) == 1)  # a closed form changes no features


def test_a_kill_at_any_moment_changes_nothing(whole, data, tmp_path):
    phases, run, left = whole
    assert len(left) == len(run.history) + run.metrics["refit"]["epochs"]
    for state in left:
        shutil.copytree(state, tmp_path / state.name)
        resumed = trainer(*phases).fit(data, tmp_path / state.name, resume=True)
        assert_equal(run.model, resumed.model)
        assert_equal(run.model_for("val"), resumed.model_for("val"))
        trains = [[w.trainable for w in each.model.weights] for each in (run, resumed)]
        assert trains[0] == trains[1]
        assert resumed.metrics["val"] == run.metrics["val"]


def test_what_is_not_repeated_keeps_the_validated_model(data, tmp_path, capsys, monkeypatch):
    losses = iter([0.5, 0.5, 0.4, 0.5])  # new, validated; twice
    monkeypatch.setattr(module, "compute_metrics", lambda *_: {"loss": next(losses)})
    run = trainer(HEAD).fit(data, tmp_path / "run")
    assert "refit: left out, because it is no better" in capsys.readouterr().err
    assert "refit" not in run.metrics and not run.validated_path.exists()
    assert evaluate(run.model, data)["loss"] == pytest.approx(run.metrics["val"]["loss"], rel=1e-4)
    better = trainer(HEAD).fit(data, tmp_path / "better")
    assert better.metrics["refit"] and better.validated_path.is_file()


@pytest.mark.parametrize(
    "metrics, reason",
    [
        ({"phases": [{"rollbacks": [1]}]}, "go back to earlier weights"),
        ({"phases": [{}], "soup": {"used": True}}, "an average that validation has chosen"),
        ({"phases": [{}], "best_epoch": 1}, "validation decides its learning rate"),
    ],
)
def test_a_training_that_validation_has_steered_is_not_repeated(
    data, tmp_path, capsys, metrics, reason
):
    schedule = Schedule("s", (Phase("p", "none", 1, 1e-3, shape="plateau"),)).to_dict()
    run = SimpleNamespace(metrics=metrics, config={"schedule": schedule})
    assert module.refit(None, data, run, tmp_path) is None
    assert reason in capsys.readouterr().err


def test_a_failure_keeps_the_validated_model_and_the_run_is_finished(
    data, tmp_path, capsys, monkeypatch
):
    plan_caching = Trainer.plan_phase_caching

    def no_space(self, plan, images):
        if "val" not in images.examples:
            raise InputError("2 MiB of activations do not fit")
        return plan_caching(self, plan, images)

    monkeypatch.setattr(Trainer, "plan_phase_caching", no_space)
    run = trainer(HEAD).fit(data, tmp_path / "run")
    assert "refit: left out, because 2 MiB of activations" in capsys.readouterr().err
    assert run.finished and not run.validated_path.exists() and not run.state_path.exists()


def test_the_time_that_is_over_keeps_the_validated_model(data, tmp_path, capsys):
    begun = trainer(HEAD)
    begun.fit(data, tmp_path / "run")
    over = keras.callbacks.Callback()
    over.time_is_over = True  # just now, when all epochs had been trained
    assert begun.refit(data, Run.open(tmp_path / "run"), tmp_path / "whole", [over])
    over.cut = True
    found = begun.refit(data, Run.open(tmp_path / "run"), tmp_path / "again", [over])
    assert found is None and "the time is over" in capsys.readouterr().err


def test_without_validation_examples_there_is_nothing_to_repeat(data, tmp_path):
    run = trainer(HEAD).fit(all_of(data), tmp_path / "run")
    assert run.finished and not run.validated_path.exists()


def test_by_default_closed_forms_are_fitted_again_where_validation_examples_were_drawn(
    data, tmp_path
):
    given = replace(data, val_drawn=False)
    for number, (phases, images, wanted, done) in enumerate(
        [
            ((HEAD,), data, "auto", True),
            ((HEAD,), given, "auto", False),
            ((HEAD,), given, "always", True),
            ((HEAD,), data, "never", False),
            ((HEAD, replace(ALL, epochs=1)), data, "auto", False),
        ]
    ):
        run = trainer(*phases, refit=wanted).fit(images, tmp_path / str(number))
        assert ("refit" in run.metrics) is run.validated_path.exists() is done


def test_by_default_few_examples_are_trained_again_without_a_limit_of_time(
    data, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(defaults, "MOST_REFITTED", 36)
    plan = trainer(HEAD, ALL).plan(data)

    def follows(data, previous=None, plan=plan, distributed=False, **settings):
        workers = SimpleNamespace(distributed=distributed)
        asked = SimpleNamespace(config=TrainConfig(**settings), workers=workers)
        return module.refit_follows(asked, data, plan, previous)

    given = replace(data, val_drawn=False)
    assert follows(data)
    assert "refit: after validation, trains once more on all 36 images" in capsys.readouterr().err
    assert not follows(data, refit="never")
    assert not follows(data, minutes=1)
    assert not follows(data, distributed=True)
    assert not follows(given)
    assert follows(given, refit="always")
    steered = replace(ALL, shape="plateau")
    assert not follows(data, plan=trainer(HEAD, steered).plan(data))
    # What was decided when the run began.
    assert follows(given, {"refits": True})
    assert not follows(data, {"refits": False}) and not follows(data, {})  # as before 0.2
    assert not follows(given, {"refits": True}, minutes=1)
    assert not follows(given, {"refits": True}, refit="never")
    with pytest.raises(InputError, match="resume it so"):
        follows(given, {"refits": True}, distributed=True)
    capsys.readouterr()
    monkeypatch.setattr(defaults, "MOST_REFITTED", 35)
    assert not follows(data) and not capsys.readouterr().err


def test_a_limit_of_time_that_comes_later_keeps_the_validated_model(data, tmp_path, monkeypatch):
    monkeypatch.setattr(defaults, "MOST_REFITTED", 36)
    phases = (HEAD, replace(ALL, epochs=1))

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "refit", killed)
        trainer(*phases, refit="auto").fit(data, tmp_path / "run")
    validated = Run.open(tmp_path / "run", finished=False).model_for("val")
    later = trainer(*phases, config=TrainConfig(minutes=1), refit="auto")
    run = later.fit(data, tmp_path / "run", resume=True)
    assert run.finished and not run.validated_path.exists() and "refit" not in run.metrics
    assert_equal(run.model, validated)


@pytest.mark.parametrize("failure", [Diverged("inf"), OutOfSpace("full"), Interrupted("stopped")])
def test_failures_of_the_second_training(data, tmp_path, capsys, monkeypatch, failure):
    begun = trainer(HEAD)

    def fails(*_, **__):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(module, "_refit", fails)
        if isinstance(failure, Diverged):
            run = begun.fit(data, tmp_path / "run")
            assert "left out, because its loss became NaN" in capsys.readouterr().err
            assert run.finished and not run.validated_path.exists()
            return
        said = (
            "full" if isinstance(failure, OutOfSpace) else "run/validated.keras is the model of the"
        )
        with pytest.raises(type(failure), match=said):
            begun.fit(data, tmp_path / "run")
    # In the same process, too: nothing keeps the run locked.
    run = trainer(HEAD).fit(data, tmp_path / "run", resume=True)
    assert run.metrics["refit"] and run.validated_path.is_file()


def test_several_processes_train_once(monkeypatch):
    workers = SimpleNamespace(distributed=True, replicas=2)
    monkeypatch.setattr("keras_transfer.training.trainer.resolve_workers", lambda _: workers)
    with pytest.raises(InputError, match="refit 'always' is for one process"):
        trainer(HEAD)


def test_commands_measure_validation_with_the_validated_model(tmp_path, capsys):
    colours, out = write_colours(tmp_path / "colours"), tmp_path / "run"
    tiny_backbone().save(tmp_path / "tiny.keras")
    words = f"train {colours} --out {out} --backbone {tmp_path}/tiny.keras --image-size 32"
    words += " --strategy feature_extraction --taps last --refit always --set head.solver=logistic"
    app(words.split(), standalone_mode=False)
    run = Run.open(out)
    assert run.metrics["refit"]["examples"] == 36
    # The two models are told apart by making that which has seen everything useless.
    model = run.model
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    model.save(run.model_path)
    for split, good in (("val", True), ("train", False)):
        capsys.readouterr()
        app(f"evaluate {out} {colours} --split {split} --json".split(), standalone_mode=False)
        assert (json.loads(capsys.readouterr().out)["accuracy"] == 1.0) is good
    write_report(run)
    assert run.evaluation["heads"]["output"]["accuracy"]["value"] == 1.0
