"""`auto`: the race, the run that it leaves at any time, the trainer, and the command."""

import json
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import yaml
from conftest import tiny_backbone, write_image

from keras_transfer.advisor import auto, budget, limits, plans, without_race
from keras_transfer.advisor.auto import train_best
from keras_transfer.advisor.budget import Clock
from keras_transfer.advisor.evidence import Evidence
from keras_transfer.advisor.race import ALWAYS, UNLESS_WORSE, Race
from keras_transfer.advisor.rules import STRATEGIES, Choice
from keras_transfer.advisor.without_race import auto_trainer
from keras_transfer.data import Examples, from_directory
from keras_transfer.data.arrays import Arrays
from keras_transfer.errors import Diverged, InputError, Interrupted
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.runs import RACE, Run, place_of
from keras_transfer.schedules import defaults
from keras_transfer.training.checkpoint import Progress
from keras_transfer.training.config import TrainConfig
from keras_transfer.training.trainer import Trainer
from keras_transfer.utils.checkpoint import Checkpoint


@pytest.fixture
def data(colours):
    return from_directory(colours, progress=False)


@pytest.fixture(autouse=True)
def quick(cache, monkeypatch):
    """A training is short, and worth its time, although the colors are told apart without it."""
    monkeypatch.setattr(Evidence, "expected", 0.7)
    monkeypatch.setattr(budget, "_SECONDS_PER_LAYER", 1e-9)
    for module in (auto, plans):
        monkeypatch.setattr(module, "lengths_up_to", lambda epochs: [2])


def trained_model(names=("blue", "green", "red")):
    """Return a small model with BatchNorm statistics as if it had been trained."""
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification(names), image_size=32)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith("moving_mean"):
            weight.assign(rng.normal(0, 0.1, weight.shape))
    return model


@pytest.fixture
def source(tmp_path):
    """The path of such a model."""
    path = tmp_path / "source.keras"
    trained_model().save(path)
    return str(path)


def config(source, **settings):
    return TrainConfig(backbone=source, batch_size=8, engine="keras", **settings)


# -- the race -------------------------------------------------------------------------------------


def raced(tmp_path, sharpness, groups=None, backbone="b"):
    """Race contenders whose logits are the labels times a sharpness plus noise."""
    labels = np.arange(60) % 3
    noise = np.random.default_rng(0).normal(size=(60, 3))
    examples = Examples(
        Arrays(np.arange(60 * 12).reshape(60, 2, 2, 3).astype("uint8")), labels, groups
    )
    trained = []

    def train(choice, folder):
        trained.append(choice)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"strategy: {choice.strategy}\n")
        (folder / "model.keras").write_text(choice.strategy)
        return {"output": sharpness[int(choice.strategy)] * np.eye(3)[labels] + noise}

    heads = {"output": Classification("abc")}
    race = Race(tmp_path / "run", train, heads, examples, Clock())
    for number in range(len(sharpness)):
        race.enter(Choice(backbone, str(number)))
    return race, trained


def test_the_best_contender_is_at_out_and_a_worse_one_never_replaces_it(tmp_path):
    race, trained = raced(tmp_path, (1.0, 0.5, 3.0, 2.0))
    assert race.best is race.entries[2] and len(trained) == 4
    assert (tmp_path / "run" / "model.keras").read_text() == "2"
    race.publish({"evidence": {}})
    found = json.loads((tmp_path / "run" / RACE).read_text())
    assert [row["strategy"] for row in found["contenders"]] == list("0123")
    assert min(found["contenders"], key=lambda row: row["loss"])["strategy"] == "2"
    # An interrupted race goes on without training again what was finished.
    again, trained = raced(tmp_path, (1.0, 0.5, 3.0, 2.0, 4.0))
    assert [choice.strategy for choice in trained] == ["4"]
    assert again.best is again.entries[4]
    for entry, before in zip(again.entries, race.entries, strict=False):
        assert entry.minutes == pytest.approx(before.minutes)
    # Nor if another choice would be made now, as with another limit of the minutes.
    other, trained = raced(tmp_path, (1.0, 0.5, 3.0), backbone="other")
    assert [entry.choice for entry in other.entries] == [entry.choice for entry in race.entries[:3]]
    assert trained == []
    again.close()
    assert not place_of(tmp_path / "run").exists() and (tmp_path / "run").is_dir()


def test_a_tie_goes_to_the_first_or_to_what_is_favored(tmp_path):
    race, _ = raced(tmp_path, (1.0,))
    entry = race.best
    noise = np.random.default_rng(1).normal(size=60)
    noise -= noise.mean()  # the standard error of the difference is about 0.13

    def shifted(by):
        return replace(entry, judged=replace(entry.judged, losses=entry.judged.losses + noise + by))

    for by, clearly, unless_worse in ((-0.3, True, True), (-0.05, False, True)):
        assert race.better(shifted(by), entry) is clearly
        assert race.better(shifted(by), entry, UNLESS_WORSE) is unless_worse
    assert race.better(shifted(0.05), entry, UNLESS_WORSE)
    assert not race.better(shifted(0.3), entry, UNLESS_WORSE)
    assert race.better(shifted(0.3), entry, ALWAYS)


def test_of_a_single_group_the_examples_decide(tmp_path):
    race, _ = raced(tmp_path, (1.0, 0.0, 6.0), groups=np.zeros(60, int))
    assert race.best is race.entries[2]
    gap, error = race.entries[1].behind
    assert gap > error > 0  # much worse, so it wins no tie either
    assert not race.better(race.entries[1], race.entries[0], UNLESS_WORSE)


def test_a_lower_loss_must_not_cost_accuracy(tmp_path):
    race, _ = raced(tmp_path, (1.0,))
    entry = race.best
    worse = replace(
        entry,
        judged=replace(
            entry.judged,
            losses=entry.judged.losses - 0.1,
            scores=entry.judged.scores - (np.arange(60) < 12),
        ),
    )
    assert not race.better(worse, entry)
    same = replace(entry, judged=replace(entry.judged, losses=entry.judged.losses - 0.1))
    assert race.better(same, entry) and not race.better(entry, same)


# -- the best model -------------------------------------------------------------------------------


def test_the_first_model_is_a_closed_form_and_the_last_one_the_best(data, source, tmp_path, capsys):
    seen, publish = [], Race.publish

    def watch(self, document):
        publish(self, document)
        run = Run.open(self.out)
        seen.append((run.config["strategy"], run.metrics["val"]["accuracy"]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Race, "publish", watch)
        run = train_best(data, tmp_path / "run", config(source), backbones=[source])
    assert seen[0][0] == "feature_extraction"
    found = json.loads((run.path / RACE).read_text())
    strategies = [row["strategy"] for row in found["contenders"]]
    assert strategies[0] == "feature_extraction" and "lp_ft" in strategies
    assert found["evidence"]["candidates"] and found["evidence"]["score"] == "accuracy"
    losses = [row["loss"] for row in found["contenders"]]
    kept = run.config["advice"]["choice"]
    best = found["contenders"][int(np.argmin(losses))]
    assert kept["strategy"] == best["strategy"] == run.config["strategy"]
    assert run.finished and not place_of(run.path).exists()
    said = capsys.readouterr().err
    assert "Evidence: " in said and "expected to add" in said
    run.model.predict(np.zeros((1, 32, 32, 3)), verbose=0)


def test_an_interruption_leaves_a_model_and_is_continued(data, source, tmp_path, monkeypatch):
    save = Checkpoint.save

    def interrupt(self, state, *args):
        save(self, state, *args)
        if state["epoch"] == 2:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="best model so far"):
        patch.setattr(Checkpoint, "save", interrupt)
        train_best(data, out, config(source), backbones=[source])
    run = Run.open(out)
    assert run.config["strategy"] == "feature_extraction" and run.model is not None
    assert place_of(out).is_dir()
    found = json.loads((place_of(out) / "1.json").read_text())
    assert found["choice"]["overrides"] == {"epochs": 2} and found["minutes"] > 0
    # Its outputs for other validation examples would be compared with those of this split.
    with monkeypatch.context() as patch, pytest.raises(InputError, match="seed: 0 is now 1"):
        patch.setattr(Trainer, "fit", None)
        train_best(data, out, config(source, seed=1), backbones=[source])
    monkeypatch.setattr(auto, "lengths_up_to", lambda epochs: [3])  # the machine is faster now
    fitted, fit = [], Trainer.fit

    def watch(self, *args, **options):
        fitted.append((self.config.strategy, options["resume"]))
        return fit(self, *args, **options)

    monkeypatch.setattr(Trainer, "fit", watch)
    train_best(data, out, config(source), backbones=[source])
    assert fitted[0] == ("lp_ft", True)  # the closed form was finished
    assert not place_of(out).exists()


def test_a_contender_that_diverges_ends_the_race_with_the_best_so_far(
    data, source, tmp_path, monkeypatch, capsys
):
    train = auto._Auto.train

    def diverge(self, choice, folder):
        if choice.strategy == "lp_ft":
            raise Diverged("The loss became nan")
        return train(self, choice, folder)

    monkeypatch.setattr(auto._Auto, "train", diverge)
    run = train_best(data, tmp_path / "run", config(source), backbones=[source])
    assert run.config["strategy"] == "feature_extraction"
    assert "lp_ft epochs=2 is left out" in capsys.readouterr().err
    assert not place_of(run.path).exists()


def test_without_time_or_signal_the_closed_form_remains(data, source, tmp_path, capsys):
    clock = Clock(1e-4)
    run = train_best(data, tmp_path / "a", config(source), backbones=[source], clock=clock)
    assert run.config["strategy"] == "feature_extraction"
    assert "No further training" in capsys.readouterr().err
    train = data.examples["train"]
    labels = np.random.default_rng(3).permutation(train.labels)
    examples = {**data.examples, "train": Examples(train.images, labels)}
    shuffled = replace(data, examples=examples)
    run = train_best(shuffled, tmp_path / "b", config(source), backbones=[source])
    assert len(json.loads((run.path / RACE).read_text())["contenders"]) <= 2
    assert "no signal" in capsys.readouterr().err


def test_the_textbook_and_the_users_numbers(data, source, tmp_path):
    settings = config(source, policy="classical", overrides={"*.weight_decay": 0.0})
    run = train_best(data, tmp_path / "a", settings, backbones=[source])
    assert run.config["strategy"] in STRATEGIES
    chosen = config(source, epochs=3, learning_rate=5e-4)
    run = train_best(data, tmp_path / "b", chosen, backbones=[source])
    found = json.loads((run.path / RACE).read_text())["contenders"]
    tuned = [row for row in found if row["strategy"] != "feature_extraction"]
    assert tuned and all(row["overrides"]["epochs"] == 3 for row in tuned)
    with pytest.raises(InputError, match="may choose feature_extraction: Cannot set k"):
        train_best(data, tmp_path / "c", config(source, overrides={"k": 0.5}), backbones=[source])
    alone = replace(data, examples={"train": data.examples["train"]})
    with pytest.raises(InputError, match="no validation examples"):
        train_best(alone, tmp_path / "c", config(source), backbones=[source])


# -- the refit ------------------------------------------------------------------------------------


def test_the_best_model_is_trained_again_on_all_examples(data, source, tmp_path, monkeypatch):
    monkeypatch.setattr(auto, "refit_points", lambda *_: 100.0)
    monkeypatch.setattr(Race, "better", lambda self, entry, *_: len(self.entries) == 2)
    out, save, settings = tmp_path / "run", Checkpoint.save, config(source)

    def interrupt(self, *args):
        save(self, *args)
        if self.folder.parent.suffix == ".refit":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="best model so far"):
        patch.setattr(Checkpoint, "save", interrupt)
        train_best(data, out, settings, backbones=[source])
    assert "refit" not in Run.open(out).metrics and Run.open(out).model is not None
    run = train_best(data, out, settings, backbones=[source])
    assert run.metrics["refit"]["examples"] == sum(map(len, data.examples.values()))
    assert run.config["strategy"] == "lp_ft"
    whole = train_best(data, tmp_path / "whole", settings, backbones=[source])
    for split in ("val", "test"):
        weights = (each.model_for(split).get_weights() for each in (run, whole))
        for a, b in zip(*weights, strict=True):
            np.testing.assert_array_equal(a, b)
    changed = run.model_for("test").get_weights()[-1] != run.model_for("val").get_weights()[-1]
    assert changed.any() and not place_of(out).exists()


def test_validation_examples_that_were_given_are_never_trained_on(
    data, source, tmp_path, monkeypatch
):
    """A closed form is always refitted otherwise, in seconds."""
    monkeypatch.setattr(auto, "refit_points", lambda *_: 0.0)
    monkeypatch.setattr(Evidence, "expected", 1.0)  # so that nothing is worth fine-tuning
    assert data.val_drawn
    given = replace(data, val_drawn=False)
    for number, (images, wanted, done) in enumerate(
        [
            (given, "auto", False),
            (data, "never", False),
            (given, "always", True),
            (data, "auto", True),
        ]
    ):
        run = train_best(
            images, tmp_path / str(number), config(source, refit=wanted), backbones=[source]
        )
        assert ("refit" in run.metrics) is done


def test_a_fine_tuning_is_refitted_where_that_is_worth_it(
    data, source, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(Race, "better", lambda self, entry, *_: len(self.entries) == 2)
    monkeypatch.setattr(auto, "refit_points", lambda *_: 0.0)
    run = train_best(data, tmp_path / "worthless", config(source), backbones=[source])
    assert "refit" not in run.metrics and "are not worth it" in capsys.readouterr().err
    monkeypatch.setattr(defaults, "MOST_REFITTED", len(data.examples["train"]) * 2)
    for worth, done in ((None, True), (0.5, False)):  # by default, as after a named strategy
        folder = tmp_path / f"worth-{worth}"
        run = train_best(data, folder, config(source, worth=worth), backbones=[source])
        assert ("refit" in run.metrics) is done


@pytest.mark.parametrize(
    ("best", "left"), [(0.5, 4.0), (5.0, 2.5)], ids=["of its own", "of the best"]
)
def test_minutes_are_left_for_a_refit(best, left, monkeypatch):
    """Of ten: a contender may take four if its refit takes six, or less if that of the best takes more."""
    monkeypatch.setattr(Clock, "left", 10.0)
    monkeypatch.setattr(auto, "share_of_refit", lambda *_: 1.0)
    one = object.__new__(auto._Auto)
    one.data = SimpleNamespace(examples={"train": range(20), "val": range(10)})
    one.clock, one.may_refit = Clock(10), True
    tuned, closed = (Choice("b", name) for name in ("lp_ft", "feature_extraction"))
    one.race = SimpleNamespace(best=SimpleNamespace(minutes=best, choice=tuned, folder="run"))
    assert one._left == pytest.approx(left)
    one.race.best.choice = closed  # a third of it, because the features are known
    assert one._left == pytest.approx(4.0)
    monkeypatch.setattr(auto, "share_of_refit", lambda *_: 0.5)  # it was best halfway
    one.race.best.choice = tuned
    assert one._refit_minutes(one.race.best) == pytest.approx(best * 1.5 / 2)
    one.may_refit = False
    assert one._left == 10


def test_more_is_expected_of_a_refit_where_errors_and_examples_are_many():
    assert budget.refit_points(0.0, 80, 20) == 0.0
    assert 0 < budget.refit_points(0.1, 80, 20) < budget.refit_points(0.2, 80, 20)
    assert budget.refit_points(0.2, 90, 10) < budget.refit_points(0.2, 80, 20) < 20


# -- the trainer ----------------------------------------------------------------------------------


def test_a_killed_run_resumes_with_its_schedule(data, tmp_path, monkeypatch):
    def trainer():
        return auto_trainer(trained_model(), epochs=3, batch_size=8, cache="memory", engine="keras")

    whole = trainer().fit(data, tmp_path / "whole")
    schedule = whole.config["schedule"]
    assert schedule["name"] in STRATEGIES
    rest = [phase for phase in schedule["phases"] if phase["solver"] == "gradient"]
    assert sum(phase["epochs"] for phase in rest) == 3
    assert yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())["schedule"] == schedule

    class Stop(Exception):
        pass

    save = Checkpoint.save

    def save_and_stop(self, state, *args):
        save(self, state, *args)
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Checkpoint, "save", save_and_stop)
        trainer().fit(data, tmp_path / "cut")
    monkeypatch.setattr(without_race, "decide", None)
    resumed = trainer().fit(data, tmp_path / "cut", resume=True)
    assert resumed.config["schedule"] == schedule
    for a, b in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_trainer_leaves_the_model_as_it_is(data):
    model = trained_model()
    before = model.get_weights()
    trainer = auto_trainer(model, batch_size=8, engine="keras")
    plan = trainer.plan(data)
    assert plan.schedule.name in ("lp_ft", "feature_extraction") and trainer.advice.rows
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_random_weights_are_trained_from_scratch(data, capsys):
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification(data.class_names), image_size=32)
    assert auto_trainer(model).plan(data).schedule.name == "from_scratch"
    assert "weights are random" in capsys.readouterr().err


# -- the command ----------------------------------------------------------------------------------


def test_the_command_needs_only_a_folder(real_weights, tmp_path, monkeypatch):
    """Real weights on tiny images; the recorded choice is used without new advice."""
    from typer.testing import CliRunner

    from keras_transfer.cli.main import app

    for name, colour in {"red": (200, 60, 60), "grey": (120, 120, 120)}.items():
        for i in range(15):
            write_image(tmp_path / "data" / name / f"{i}.png", colour, noise=50, seed=i)
    monkeypatch.setattr(auto, "candidates", lambda *_: ["mobilenet_0.25"])
    out, options = tmp_path / "run", ["--image-size", "32", "--minutes", "0.01", "--explain"]
    train = ["train", str(tmp_path / "data"), "--out"]
    result = CliRunner().invoke(app, [*train, str(out), *options])
    assert result.exit_code == 0, result.output
    assert "Evidence: mobilenet_0.25" in result.stderr
    assert "− chosen" in result.stdout and "contender" in result.stdout
    config = yaml.safe_load((out / "config.yaml").read_text())
    chosen = config["advice"]["choice"]
    assert config["backbone"] == chosen["backbone"] == "mobilenet_0.25"
    assert config["strategy"] == chosen["strategy"] == config["schedule"]["name"]

    monkeypatch.setattr(auto, "train_best", None)
    seen = []
    monkeypatch.setattr(Trainer, "fit", lambda self, *_, **__: seen.append(self) or Run.open(out))
    again = CliRunner().invoke(
        app, [*train, str(tmp_path / "b"), "--config", str(out / "config.yaml"), "--json"]
    )
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["race"]["contenders"][0]["behind"] is None
    (trainer,) = seen
    assert trainer.augment == config["augment"]
    assert trainer._schedule(24).to_dict() == config["schedule"]


def test_a_named_strategy_is_shortened_to_fit_its_minutes(colours, source, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from keras_transfer.cli.main import app

    monkeypatch.setattr(limits, "lengths_up_to", budget.lengths_up_to)
    monkeypatch.setattr(budget, "_SECONDS_PER_LAYER", 0.1)  # 12 layers and no epoch at all
    out = tmp_path / "run"
    options = ["--backbone", source, "--strategy", "lp_ft", "--batch-size", "8", "--no-flip"]
    limit = [*options, "--minutes", "0.001", "--out", str(out)]

    def interrupt(self, *_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_epoch_end", interrupt)
        assert CliRunner().invoke(app, ["train", str(colours), *limit]).exit_code != 0
    result = CliRunner().invoke(app, ["train", str(colours), *limit, "--resume"])
    assert result.exit_code == 0, result.output  # with the epochs that it began with
    run = Run.open(out)
    assert run.config["limited"] == {"epochs": 1} and len(run.history) == 2


def test_clips_are_raced_like_images(source, tmp_path):
    """Low and high tones: what a modality lacks (crops, mirror images) is not compared."""
    soundfile = pytest.importorskip("soundfile")
    rng, rate = np.random.default_rng(0), 8000
    for name, hertz in (("low", 250), ("high", 2000)):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for i in range(12):
            wave = np.sin(2 * np.pi * hertz * np.arange(rate // 4) / rate)
            wave = 0.3 * wave + rng.normal(0, 0.02, len(wave))
            soundfile.write(tmp_path / "clips" / name / f"{i}.wav", wave, rate)
    clips = from_directory(tmp_path / "clips", progress=False)
    run = train_best(clips, tmp_path / "run", config(source), backbones=[source])
    found = json.loads((run.path / RACE).read_text())
    assert [row["strategy"] for row in found["contenders"]][:2] == ["feature_extraction", "lp_ft"]
    assert {row["rate"] for row in found["evidence"]["candidates"]} == {rate}
    assert {row["modality"] for row in found["contenders"][1:]} == {"audio"}
    assert found["evidence"]["mirror_gain"] is None
    assert run.config["modality"] == "audio" and run.config["rate"] == rate
