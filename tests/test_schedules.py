"""Schedules as data: there and back, every number within reach, and what is refused."""

import json

import pytest

from keras_transfer.data.augmentation import Augmentation
from keras_transfer.errors import InputError
from keras_transfer.recipes import RECIPES, lp_ft, resolve_schedule
from keras_transfer.schedules import PHASE_FIELDS, Phase, Schedule

OTHER = {
    "freeze": "stage:2",
    "epochs": 3,
    "steps": 7,
    "learning_rate": 0.5,
    "shape": "step",
    "warmup": 0.33,
    "drops": [0.5],
    "drop_factor": 0.5,
    "patience": 5,
    "rates": {"head": 2.0, "stage:1": 0.1},
    "lowest_rate": 0.2,
    "optimizer": "sgd",
    "optimizer_options": {"momentum": 0.9},
    "weight_decay": 0.3,
    "l2_sp": 0.2,
    "clip_norm": 1.5,
    "accumulate": 2,
    "ema": 0.9,
    "batch_size": 5,
    "image_size": 64,
    "augment": "none",
    "mix": "cutmix",
    "mix_alpha": 0.5,
    "batch_norm": "train",
    "dropout": 0.4,
    "label_smoothing": 0.2,
    "class_weights": "balanced",
    "early_stopping": 3,
    "views": 3,
}


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_goes_to_yaml_and_back(name, tmp_path):
    schedule = resolve_schedule(name, pictures=500)
    file = tmp_path / "schedule.yaml"
    file.write_text(schedule.to_yaml())
    assert Schedule.from_yaml(file) == schedule
    assert resolve_schedule(file) == schedule
    assert Schedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule
    assert all(phase.name in schedule.table() for phase in schedule.phases)


@pytest.mark.parametrize("field", [f for f in PHASE_FIELDS if f not in ("name", "solver")])
def test_each_field_can_be_overridden(field, tmp_path):
    value = OTHER[field]
    schedule = resolve_schedule("lp_ft", {f"all.{field}": value})
    head, rest = schedule.phases
    expected = tuple(value) if field == "drops" else value
    assert getattr(rest, field) == expected
    assert head == lp_ft().phases[0]
    everywhere = resolve_schedule("lp_ft", {f"*.{field}": value})
    assert all(getattr(phase, field) == expected for phase in everywhere.phases)
    assert Schedule.from_dict(schedule.to_dict()) == schedule


def test_the_head_can_be_solved_in_closed_form():
    head, rest = resolve_schedule("lp_ft", {"head.solver": "logistic", "epochs": 9}).phases
    assert (head.solver, head.epochs, rest.solver) == ("logistic", 1, "gradient")
    with pytest.raises(InputError, match="'all': solver 'logistic' needs freeze 'all'"):
        resolve_schedule("lp_ft", {"all.solver": "logistic"})
    closed = resolve_schedule("feature_extraction")
    assert [phase.solver for phase in closed.phases] == ["logistic"]
    for by_steps in ({"epochs": 3}, {"learning_rate": 1e-2}, {"linear_head": False}):
        (phase,) = resolve_schedule("feature_extraction", by_steps).phases
        assert phase.solver == "gradient" and phase.epochs > 1


def test_an_augmentation_becomes_plain_data():
    phase = Phase("p", epochs=1, augment=Augmentation(flip=False))
    assert phase.augment["flip"] is False and phase.augment["min_area"] == Augmentation().min_area
    schedule = Schedule("s", (phase,))
    assert Schedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


def test_each_argument_of_each_recipe_can_be_overridden():
    others = {"k": "stage:1", "batch_size": 64, "accumulate": 4, "image_size": 256, "stages": 2}
    others |= {"batch_norm": "train", "steps": 11, "smaller_by": 32, "head_epochs": 4, "epochs": 9}
    others |= {"stage_epochs": 2, "pictures": 20_000, "learning_rate": 0.123, "lowest_rate": 0.3}
    others |= {"head_learning_rate": 0.2, "head_rate": 3.0, "momentum": 0.8}
    others |= {"solver": "gradient", "linear_head": False}
    import inspect

    for name, recipe in RECIPES.items():
        names = inspect.signature(recipe).parameters
        for argument in names:
            # In closed form there is nothing that pictures could change.
            known = {"solver": "gradient"} if argument == "pictures" and "solver" in names else {}
            changed = resolve_schedule(name, {argument: others[argument], **known})
            assert changed != resolve_schedule(name, known), (name, argument)


def test_a_file_written_by_hand(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nphases:\n- {name: head, freeze: all, epochs: 2, learning_rate: 1e-2}\n"
        "- {name: rest, epochs: 1, learning_rate: 1e-4, rates: {head: 10}}\n"
    )
    schedule = resolve_schedule(file, {"rest.epochs": 4})
    assert schedule.phases[0].learning_rate == 0.01  # YAML reads 1e-2 as text
    assert schedule.phases[1].epochs == 4 and schedule.phases[1].freeze == "none"
    file.write_text("name: mine\nphases: [{name: head, epoch: 2}]\n")
    with pytest.raises(InputError, match=r"mine\.yaml: .*epoch"):
        resolve_schedule(file)
    file.write_text("{: 1")
    with pytest.raises(InputError, match="no YAML"):
        resolve_schedule(file)
    with pytest.raises(InputError, match="No schedule file"):
        resolve_schedule(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"epochs": 0}, "epochs must be a whole number"),
        ({"epochs": 1.5}, "epochs must be a whole number"),
        ({"epochs": True}, "epochs must be a whole number"),
        ({"epochs": None}, "either epochs or steps"),
        ({"steps": 3}, "either epochs or steps"),
        ({"shape": "square"}, "one of cosine"),
        ({"warmup": 1.0}, "warmup"),
        ({"drops": (0.9, 0.3)}, "rising shares"),
        ({"rates": {"stage1": 2}}, "give 'head', 'backbone'"),
        ({"rates": {"head": 0}}, "frozen by freeze"),
        ({"lowest_rate": 0}, "lowest_rate"),
        ({"ema": 1.0}, "ema"),
        ({"clip_norm": 0}, "clip_norm"),
        ({"batch_norm": "sometimes"}, "batch_norm"),
        ({"class_weights": {"a": 0}}, "class_weights"),
        ({"class_weights": 3}, "class_weights"),
        ({"shape": "plateau", "accumulate": 2}, "cannot accumulate"),
    ],
)
def test_a_phase_says_what_is_wrong_with_it(fields, words):
    with pytest.raises(InputError, match=words):
        Phase("p", **{"epochs": 1, **fields})


def test_a_schedule_says_what_is_wrong_with_it():
    phase = Phase("p", epochs=1)
    with pytest.raises(InputError, match="names of phases must differ"):
        Schedule("s", (phase, phase))
    with pytest.raises(InputError, match="no phases"):
        Schedule("s", ())
    for settings, words in (
        ({"al.ema": 0.9}, "has the phases head, all"),
        ({"all.emma": 0.9}, "a phase has the fields"),
        ({"all.name": "x"}, "a phase has the fields"),
        ({"k": 3}, "lp_ft has the arguments"),
        ({"epochs": 1}, "at least 2 epochs"),
        ({"epochs": "many"}, "Cannot make lp_ft"),
    ):
        with pytest.raises(InputError, match=words):
            resolve_schedule("lp_ft", settings)
    with pytest.raises(InputError, match="is no recipe"):
        resolve_schedule(Schedule("s", (phase,)), {"epochs": 3})
    with pytest.raises(InputError, match="Unknown strategy 'fine'"):
        resolve_schedule("fine")
    with pytest.raises(InputError, match="needs at least"):
        resolve_schedule("gradual_unfreeze", {"epochs": 3})
    with pytest.raises(InputError, match="must divide"):
        resolve_schedule("bit", {"batch_size": 100, "accumulate": 3})


def test_few_pictures_are_seen_more_often():
    phases = [resolve_schedule("lp_ft", pictures=n).phases for n in (100, 1000, 10_000)]
    assert [sum(p.epochs for p in each) for each in phases] == [40, 13, 6]
    assert [each[1].learning_rate for each in (phases[0], phases[2])] == pytest.approx([3e-4, 1e-3])


def test_the_head_sees_enough_pictures_first():
    heads = [resolve_schedule("lp_ft", pictures=n).phases[0].epochs for n in (50, 245, 1650, 10**5)]
    assert heads == [30, 6, 1, 1]


def test_bit_follows_its_rule():
    """The numbers of arXiv:1912.11370, section 3.3."""
    for pictures, updates, warmup in (
        (1000, 500, 100),
        (50_000, 10_000, 500),
        (10**6, 20_000, 500),
    ):
        (phase,) = resolve_schedule("bit", pictures=pictures).phases
        assert phase.steps / phase.accumulate == updates
        assert phase.warmup * updates == pytest.approx(warmup)
        assert phase.batch_size * phase.accumulate == 512
        assert (phase.learning_rate, phase.optimizer) == (0.003, "sgd")
        assert (phase.drops, phase.drop_factor, phase.weight_decay) == ((0.3, 0.6, 0.9), 0.1, 0.0)
        assert phase.optimizer_options == {"momentum": 0.9}
