"""`auto`: the advisor's choice and the race, in the trainer and on the command line."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
import yaml
from conftest import tiny_backbone, write_image

from keras_transfer.advisor import api as advisor
from keras_transfer.advisor import auto
from keras_transfer.advisor import costs as timing
from keras_transfer.advisor.api import advise
from keras_transfer.advisor.auto import RACE_FROM, auto_trainer, decide, race
from keras_transfer.advisor.rules import STRATEGIES, Choice
from keras_transfer.data import Examples, ImageData, from_directory
from keras_transfer.data.arrays import Arrays
from keras_transfer.data.examples import Target
from keras_transfer.errors import InputError
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification, MultiLabel
from keras_transfer.runs import Checkpoint, Run
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.config import TrainConfig
from keras_transfer.training.trainer import Trainer


@pytest.fixture(autouse=True)
def same_speed(monkeypatch, cache):
    """A machine whose speed does not vary."""
    monkeypatch.setattr(timing, "_timed", lambda *_: {"step": 0.001, "start": 1.0})


@pytest.fixture
def data(colours):
    return from_directory(colours, progress=False)


def trained_model(names=("blue", "green", "red")):
    """Return a small model with BatchNorm statistics as if it had been trained."""
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification(names), image_size=32)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith("moving_mean"):
            weight.assign(rng.normal(0, 0.1, weight.shape))
    return model


def made_up(count=600, copies=60, classes=3):
    """Return images of unequal classes with some copies, and a validation split that must not be read."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(classes), [count // 6, count // 3, count // 2]))
    images = rng.integers(0, 256, (count, 4, 4, 3)).astype("uint8")
    order = np.r_[0:count, 0:copies]
    train = Examples(Arrays(images), labels.astype("int32")).take(order)
    return ImageData(tuple("abc"), {"train": train, "val": Poison()}, [], "data")


class Poison:
    """A split that fails the test when it is read."""

    def __getattr__(self, name):
        raise AssertionError(f"val was read ({name})")

    def __len__(self):
        raise AssertionError("val was counted")


CHOICES = (Choice("a", "lp_ft", {"learning_rate": 1e-3}), Choice("b", "feature_extraction"))


# -- the race -------------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracies, winner", [((0.7, 0.6), 0), ((0.6, 0.7), 1), ((0.5, 0.5), 0)])
def test_the_better_choice_wins_and_the_first_of_equals(accuracies, winner, capsys):
    seen = []

    def train(choice, data, more):
        seen.append((choice, data, more))
        return accuracies[len(seen) - 1]

    assert race(made_up(), CHOICES, train) is CHOICES[winner]
    assert [choice for choice, *_ in seen] == list(CHOICES)
    assert [more for *_, more in seen] == [{"epochs": 3}, {}]  # a fifth of 16; a closed form
    assert seen[0][1] is seen[1][1]
    said = capsys.readouterr().err
    assert "Race of 3 epochs" in said and f"lp_ft learning_rate=0.001 {accuracies[0]:.3f}" in said


def test_a_stratified_fifth_is_held_out_and_copies_stay_together():
    divisions = []
    for seed in (0, 0, 1):
        race(made_up(), CHOICES[:1], lambda *args: divisions.append(args[1]) or 0.5, seed=seed)
    train, val = (divisions[0].examples[split] for split in ("train", "val"))
    assert len(train) + len(val) == 660
    assert not set(train.digests) & set(val.digests)
    shares = np.bincount(val.labels) / (np.bincount(val.labels) + np.bincount(train.labels))
    np.testing.assert_allclose(shares, 0.2, atol=0.05)
    same, other = (set(division.examples["val"].digests) for division in divisions[1:])
    assert set(val.digests) == same != other


def small_task(count=RACE_FROM, noise=40):
    """Return 32×32 images of two shades that determine the labels; `val` must not be read."""
    rng = np.random.default_rng(0)
    labels = np.arange(count, dtype="int32") % 2
    images = rng.integers(0, noise, (count, 32, 32, 3)) + 60 * labels[:, None, None, None]
    train = Examples(Arrays(images.astype("uint8")), labels)
    return ImageData(("a", "b"), {"train": train, "val": Poison()}, [], "data")


def test_the_contender_of_the_advice_is_raced_and_val_is_never_seen(capsys):
    data, calls = small_task(), []

    def train(choice, division, more):
        calls.append(choice)
        return float(choice.strategy == "freeze_k")

    model = trained_model("ab")
    choice, advice = decide(data, train, backbones=[model], engine="keras")
    assert [c.strategy for c in calls] == ["lp_ft", "freeze_k"]
    assert choice is calls[1] is advice.choice and advice.contender is calls[0]
    assert "Advice: train" in capsys.readouterr().err
    # Of few images a fifth tells nothing apart; the policy of the textbook has one choice.
    for options, fewer in [({}, RACE_FROM - 2), ({"policy": "classical"}, RACE_FROM)]:
        calls.clear()
        part = {"train": data.examples["train"].take(np.arange(fewer)), "val": Poison()}
        decide(
            ImageData(("a", "b"), part, [], "data"),
            train,
            backbones=[model],
            engine="keras",
            **options,
        )
        assert not calls


# -- given strategies and unmeasurable data --------------------------------------------------------


def never(*_):
    raise AssertionError("nothing is to be raced")


def test_a_given_strategy_ignores_the_overrides_of_the_advice(data, monkeypatch):
    model = trained_model()
    choice, advice = decide(data, never, backbones=[model], strategy="fine_tune", engine="keras")
    assert (choice.backbone, choice.strategy, choice.overrides) == (model.name, "fine_tune", {})
    assert advice.choice.strategy != "fine_tune" and choice.augment == advice.choice.augment

    # A resumed run reads what the command records of it.
    from keras_transfer.cli import options

    given = Schedule("mine", (Phase("all", epochs=1),))
    bold = replace(advice.choice, overrides={"learning_rate": 1e-3})
    monkeypatch.setattr(
        options,
        "_decide",
        lambda *_: (replace(bold, strategy=given, overrides={}), replace(advice, choice=bold)),
    )
    config = TrainConfig(backbone="auto", strategy="mine.yaml")
    config, schedule, recorded = options.advised(data, config, given)
    assert schedule is given and config.overrides == {} and config.strategy == "mine.yaml"
    assert recorded["choice"]["overrides"] == {} and recorded["choice"]["strategy"] == "mine"
    json.dumps(recorded)


def test_invalid_options_do_not_fall_back_to_the_default(data):
    for options, words in [
        ({"policy": "magic"}, "Unknown policy"),
        ({"minutes": -1}, "not -1"),
        ({"backbones": ["resnet5"]}, "did you mean"),
    ]:
        with pytest.raises(InputError, match=words):
            decide(data, never, **options)


def test_the_default_is_used_with_a_message_if_nothing_can_be_measured(capsys):
    rng = np.random.default_rng(0)
    images = Arrays(rng.integers(0, 256, (4, 32, 32, 3)).astype("uint8"))
    one_each = ImageData(tuple("abcd"), {"train": Examples(images, np.arange(4))}, [], "data")
    labels = Target("multi_label", ("a", "b"))
    several = ImageData(
        ("a", "b"), {"train": Examples(images, np.eye(4, 2, dtype="float32"))}, [], "data", labels
    )
    for poor, words in [(one_each, "two different training images"), (several, "multi_label")]:
        choice, advice = decide(poor, never, backbones=[trained_model()])
        assert advice is None and choice.strategy == "lp_ft" and words in choice.why
        said = capsys.readouterr().err
        assert said.startswith("No advice: ") and words in said and " lp_ft" in said
        given, _ = decide(poor, never, backbones=[trained_model()], strategy="fine_tune")
        assert given.strategy == "fine_tune"
        capsys.readouterr()


def test_the_trainer_uses_the_default_for_multi_label_data(tmp_path):
    rng = np.random.default_rng(0)
    images = Arrays(rng.integers(0, 256, (12, 32, 32, 3)).astype("uint8"))
    labels = Examples(images, rng.integers(0, 2, (12, 2)).astype("float32"))
    data = ImageData(("a", "b"), {"train": labels}, [], "data", Target("multi_label", ("a", "b")))
    model = trained_model()
    several = build_model(model.layers[1], MultiLabel(("a", "b")), image_size=32)
    assert auto_trainer(several).plan(data).schedule.name == "lp_ft"


# -- the trainer ----------------------------------------------------------------------------------


def test_the_trainer_races_and_starts_from_the_given_weights(monkeypatch, capsys):
    monkeypatch.setattr(auto, "RACE_FROM", 64)
    monkeypatch.setattr(auto, "_EPOCHS", 0.0)  # two epochs
    model = trained_model("ab")
    before = model.get_weights()
    trainer = auto_trainer(model, cache="memory", engine="keras")
    monkeypatch.setattr(trainer, "_must_train_head", lambda data: False)  # it counts val
    plan = trainer.plan(small_task(64))
    assert "Race of 2 epochs" in capsys.readouterr().err
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert plan.schedule.name in ("lp_ft", "freeze_k") and trainer.advice is not None
    # It is settled: other data changes nothing.
    assert trainer.plan(small_task(80)).schedule.name == plan.schedule.name
    assert "Race" not in capsys.readouterr().err


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
    monkeypatch.setattr(auto, "decide", never)
    resumed = trainer().fit(data, tmp_path / "cut", resume=True)
    assert resumed.config["schedule"] == schedule
    for a, b in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_random_weights_are_trained_from_scratch(data, monkeypatch, capsys):
    monkeypatch.setattr(auto, "decide", never)
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification(data.class_names), image_size=32)
    assert auto_trainer(model).plan(data).schedule.name == "from_scratch"
    assert "weights are random" in capsys.readouterr().err


def test_overrides_of_the_user_win_over_the_advice(data, monkeypatch):
    overrides = {"epochs": 9, "learning_rate": 1e-3}
    choice = Choice("any", "lp_ft", overrides)
    monkeypatch.setattr(auto, "decide", lambda *_, **__: (choice, None))
    trainer = auto_trainer(
        trained_model(), learning_rate=5e-4, overrides={"*.weight_decay": 0.0}, batch_size=8
    )
    head, rest = trainer.plan(data).schedule.phases
    assert (head.solver, rest.epochs, rest.learning_rate) == ("logistic", 9, 5e-4)
    assert head.weight_decay == rest.weight_decay == 0
    with pytest.raises(InputError, match="may choose feature_extraction: Cannot set k"):
        auto_trainer(trained_model(), overrides={"k": 0.5})


# -- the command ----------------------------------------------------------------------------------


def test_the_command_needs_only_a_folder(real_weights, tmp_path, monkeypatch):
    """Real weights on tiny images; the recorded choice is used without new advice."""
    from typer.testing import CliRunner

    from keras_transfer.cli.main import app

    for name, colour in {"red": (200, 60, 60), "grey": (120, 120, 120)}.items():
        for i in range(15):
            write_image(tmp_path / "data" / name / f"{i}.png", colour, noise=50, seed=i)
    # Several backbones are compared in test_advisor.
    monkeypatch.setattr(advisor, "candidates", lambda *_: ["mobilenet_0.25"])
    out, options = tmp_path / "run", ["--image-size", "32", "--epochs", "2"]
    train = ["train", str(tmp_path / "data"), "--out"]
    result = CliRunner().invoke(app, [*train, str(out), *options])
    assert result.exit_code == 0, result.output
    assert "Advice: train mobilenet" in result.stderr
    config = yaml.safe_load((out / "config.yaml").read_text())
    chosen = config["advice"]["choice"]
    assert config["backbone"] == chosen["backbone"] == "mobilenet_0.25"
    assert config["strategy"] == chosen["strategy"] == config["schedule"]["name"]
    assert config["advice"]["data"]["images"] == 24

    monkeypatch.setattr(auto, "decide", never)
    seen = []
    monkeypatch.setattr(Trainer, "fit", lambda self, *_, **__: seen.append(self) or Run.open(out))
    again = CliRunner().invoke(
        app, [*train, str(tmp_path / "b"), "--config", str(out / "config.yaml")]
    )
    assert again.exit_code == 0, again.output
    (trainer,) = seen
    assert trainer.augment == config["augment"]
    assert trainer._schedule(24).to_dict() == config["schedule"]


def test_advice_does_not_change_the_model(data):
    model = trained_model()
    model.layers[1].layers[3].trainable = False
    before = model.get_weights()
    flags = [layer.trainable for layer in model.layers[1].layers]
    advise(data, backbones=[model], engine="keras", probes=False)
    assert flags == [layer.trainable for layer in model.layers[1].layers]
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
