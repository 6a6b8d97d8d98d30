"""Schedules as data: there and back, every number within reach, and what is refused."""

import json
import math

import pytest
from conftest import raises

from keras_transfer.cli.options import read_config_file
from keras_transfer.errors import InputError
from keras_transfer.modalities.image.augment import Augmentation
from keras_transfer.schedules.phases import PHASE_FIELDS, Phase, Schedule, differences
from keras_transfer.schedules.rates import stage_rates
from keras_transfer.schedules.recipes import RECIPES, lp_ft, resolve_schedule

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
    "roll_back": True,
    "train": "lora",
    "lora_rank": 3,
    "lora_alpha": 4.0,
    "lora_layers": "attention+conv",
}


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_goes_to_yaml_and_back(name, tmp_path):
    schedule = resolve_schedule(name, examples=500)
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
    head, rest = resolve_schedule("lp_ft", {"head_epochs": 3, "head.solver": "logistic"}).phases
    assert (head.solver, head.epochs, rest.solver) == ("logistic", 1, "gradient")
    with pytest.raises(InputError, match="'all': solver 'logistic' needs freeze 'all'"):
        resolve_schedule("lp_ft", {"all.solver": "logistic"})
    closed = resolve_schedule("feature_extraction")
    assert [phase.solver for phase in closed.phases] == ["logistic"]
    for by_steps in ({"epochs": 3}, {"learning_rate": 1e-2}, {"linear_head": False}):
        (phase,) = resolve_schedule("feature_extraction", by_steps).phases
        assert phase.solver == "gradient" and phase.epochs > 1


@pytest.mark.parametrize(
    "name", ["lp_ft", "freeze_k", "gradual_unfreeze", "discriminative", "progressive_resize"]
)
def test_recipes_start_from_the_closed_form(name):
    """What follows gets all epochs; in steps, the head gets its share of them."""
    head, *rest = resolve_schedule(name, {"epochs": 9, "head.augment": "none"}).phases
    assert (head.name, head.solver, head.epochs) == ("head", "logistic", 1)
    assert sum(phase.epochs for phase in rest) == 9
    for in_steps in (
        {"linear_head": False},
        {"head_epochs": 2},
        {"head_learning_rate": 1e-2},
        {"head.epochs": 2},
        {"head.ema": 0.9},
        {"head.solver": "gradient"},
    ):
        head, *rest = resolve_schedule(name, {"epochs": 9, **in_steps}).phases
        assert head.solver == "gradient"
        if "head.epochs" not in in_steps:
            assert head.epochs + sum(phase.epochs for phase in rest) == 9
    everywhere = resolve_schedule(name, {"*.epochs": 3}).phases
    assert {(phase.solver, phase.epochs) for phase in everywhere} == {("gradient", 3)}


def test_an_augmentation_becomes_plain_data():
    phase = Phase("p", epochs=1, augment=Augmentation(flip=False))
    assert phase.augment["flip"] is False and phase.augment["min_area"] == Augmentation().min_area
    schedule = Schedule("s", (phase,))
    assert Schedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


def test_each_argument_of_each_recipe_can_be_overridden():
    others = {"k": "stage:1", "batch_size": 64, "accumulate": 4, "image_size": 256, "stages": 2}
    others |= {"batch_norm": "train", "steps": 11, "smaller_by": 32, "head_epochs": 4, "epochs": 9}
    others |= {"stage_epochs": 2, "examples": 20_000, "learning_rate": 0.123, "lowest_rate": 0.3}
    others |= {"head_learning_rate": 0.2, "head_rate": 3.0, "momentum": 0.8}
    others |= {"solver": "gradient", "linear_head": False, "attention_stages": 12}
    others |= {"rank": 4, "alpha": 32.0, "layers": "conv", "norms": True}
    import inspect

    for name, recipe in RECIPES.items():
        names = inspect.signature(recipe).parameters
        for argument in names:
            # In closed form there is nothing that examples could change.
            known = {"solver": "gradient"} if argument == "examples" and "solver" in names else {}
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
    for text in ("{: 1", "# für", "name: 2024-13-01"):
        file.write_text(text, "latin-1")
        with pytest.raises(InputError, match=r"mine\.yaml is not valid YAML"):
            resolve_schedule(file)
        with pytest.raises(InputError, match=r"mine\.yaml is not valid YAML"):
            read_config_file(file)
    file.write_text("name: mine\nphases: [{name: 1, epochs: 2}]\n")
    with pytest.raises(InputError, match=r"mine\.yaml: Phase '1': name must be a text"):
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
        ({"drops": (0.9, 0.3)}, "increasing shares"),
        ({"rates": {"stage1": 2}}, "use 'head', 'backbone'"),
        ({"rates": {"head": 0}}, "set freeze"),
        ({"rates": {1: 2}}, "use 'head', 'backbone'"),
        ({"rates": {"head": "x"}}, "and a number above 0"),
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
        ({"epochs": 1, "head_epochs": 1}, "at least 2 epochs with 1 for the head, not 1"),
        ({"epochs": 0}, "at least 1 epoch, not 0"),
        ({"epochs": "many"}, "Cannot make lp_ft"),
    ):
        with pytest.raises(InputError, match=words):
            resolve_schedule("lp_ft", settings)
    with pytest.raises(InputError, match="is a schedule, not a recipe"):
        resolve_schedule(Schedule("s", (phase,)), {"epochs": 3})
    with pytest.raises(InputError, match="Unknown strategy 'fine'"):
        resolve_schedule("fine")
    with pytest.raises(InputError, match="needs at least"):
        resolve_schedule("gradual_unfreeze", {"epochs": 3})
    for settings in ({"steps": 0}, {"accumulate": 0}):
        with pytest.raises(InputError, match="steps and accumulate must be 1 or more"):
            resolve_schedule("bit", settings)
    with pytest.raises(InputError, match="discriminative: learning_rate must be above 0"):
        resolve_schedule("discriminative", {"learning_rate": 0})
    with pytest.raises(InputError, match="images of 64x96 px cannot be 64 px smaller"):
        resolve_schedule("progressive_resize", image_size="64x96")
    with pytest.raises(InputError, match="must be divisible"):
        resolve_schedule("bit", {"batch_size": 100, "accumulate": 3})


def test_few_examples_are_seen_more_often():
    phases = [resolve_schedule("lp_ft", examples=n).phases for n in (100, 1000, 10_000)]
    assert [each[1].epochs for each in phases] == [40, 13, 6]
    # More steps at lower rates, so that the weights do not leave the pretrained ones further behind.
    steps = 6 * math.ceil(10_000 / 32)
    rates = [5e-4, 5e-4 * math.sqrt(250 / steps)]
    assert [each[1].learning_rate for each in (phases[0], phases[2])] == pytest.approx(rates)
    assert phases[2][1].ema == pytest.approx(1 - 5 / steps)


def test_the_head_sees_enough_examples_first():
    in_steps = {"linear_head": False}
    plans = [resolve_schedule("lp_ft", in_steps, examples=n) for n in (50, 245, 1650, 10**5)]
    assert [plan.phases[0].epochs for plan in plans] == [30, 6, 1, 1]


def test_bit_follows_its_rule():
    """The numbers of arXiv:1912.11370, section 3.3."""
    for examples, updates, warmup in (
        (1000, 500, 100),
        (50_000, 10_000, 500),
        (10**6, 20_000, 500),
    ):
        (phase,) = resolve_schedule("bit", examples=examples).phases
        assert phase.steps / phase.accumulate == updates
        assert phase.warmup * updates == pytest.approx(warmup)
        assert phase.batch_size * phase.accumulate == 512
        assert (phase.learning_rate, phase.optimizer) == (0.003, "sgd")
        assert (phase.drops, phase.drop_factor, phase.weight_decay) == ((0.3, 0.6, 0.9), 0.1, 0.0)
        assert phase.optimizer_options == {"momentum": 0.9}


def test_a_recipe_of_0_1_works_and_warns(monkeypatch):
    def mine(pictures=1000, epochs=3):
        return Schedule("mine", (Phase("all", epochs=epochs, learning_rate=1 / pictures),))

    monkeypatch.setitem(RECIPES, "mine", mine)
    with pytest.warns(DeprecationWarning, match="rename its argument pictures to examples"):
        schedule = resolve_schedule("mine", {"epochs": 2}, examples=500, image_size=96)
    assert (schedule.phases[0].epochs, schedule.phases[0].learning_rate) == (2, 1 / 500)
    with pytest.warns(DeprecationWarning, match="Recipe 'mine'"):
        schedule = resolve_schedule("mine", {"pictures": 250}, examples=500)
    assert schedule.phases[0].learning_rate == 1 / 250
    with pytest.warns(DeprecationWarning, match="Recipe 'mine'"):
        assert resolve_schedule("mine").phases[0].learning_rate == 1 / 1000


# -- exactly --------------------------------------------------------------------------------------


def test_what_a_file_need_not_say(tmp_path):
    """The defaults, as the documents have them."""
    file = tmp_path / "least.yaml"
    file.write_text("name: least\nphases: [{name: p, epochs: 1}]")
    schedule = Schedule.from_yaml(file)
    assert schedule.to_dict() == {
        "name": "least",
        "phases": [
            {
                "name": "p",
                "freeze": "none",
                "epochs": 1,
                "learning_rate": 0.001,
                "steps": None,
                "shape": "cosine",
                "warmup": 0.1,
                "drops": [0.3, 0.6, 0.9],
                "drop_factor": 0.1,
                "patience": 2,
                "rates": {},
                "lowest_rate": 1.0,
                "optimizer": "adamw",
                "optimizer_options": {},
                "weight_decay": 1e-4,
                "l2_sp": 0.0,
                "clip_norm": None,
                "accumulate": 1,
                "ema": 0.0,
                "batch_size": None,
                "image_size": None,
                "augment": None,
                "mix": None,
                "mix_alpha": None,
                "batch_norm": "frozen",
                "dropout": None,
                "label_smoothing": None,
                "class_weights": None,
                "early_stopping": None,
                "solver": "gradient",
                "views": None,
                "roll_back": False,
            }
        ],
        "pretrained": True,
        "zero_head": False,
    }
    text = schedule.to_yaml()
    assert text.startswith("name: least\nphases:\n- name: p\n  freeze: none\n  epochs: 1\n")


COUNTS = ("epochs", "patience", "accumulate", "batch_size", "image_size", "early_stopping", "views")
SHARES = ("warmup", "ema", "dropout", "label_smoothing")  # 0 is one, 1 is none
ABOVE_0 = ("learning_rate", "clip_norm", "mix_alpha")
FROM_0 = ("weight_decay", "l2_sp")
OPTIONAL = ("clip_norm", "batch_size", "image_size", "mix", "mix_alpha", "dropout")
OPTIONAL += ("label_smoothing", "class_weights", "early_stopping", "views")
TAKEN = [
    *((name, value) for name in COUNTS for value in (1, 2)),
    *((name, value) for name in SHARES for value in (0, 0.999)),
    *((name, value) for name in ABOVE_0 for value in (1e-9, 1, 7)),
    *((name, value) for name in FROM_0 for value in (0, 1e-9, 7)),
    *((name, None) for name in OPTIONAL),
    *(("freeze", value) for value in ("stage:1", 3, 0.5)),
    *(("shape", s) for s in ("cosine", "one_cycle", "step", "constant", "annealed", "plateau")),
    *(("drops", value) for value in ((), (1e-9, 0.999), [0.5, 0.5])),
    *(("drop_factor", value) for value in (1e-9, 0.999)),
    *(("rates", {key: 1e-9}) for key in ("head", "backbone", "stage:1", "stage:12")),
    *(("lowest_rate", value) for value in (1e-9, 1)),
    *(("batch_norm", value) for value in ("frozen", "train")),
    *(("mix", value) for value in ("mixup", "cutmix")),
    *(("class_weights", value) for value in ("balanced", {"a": 1e-9, "b": 3})),
]
REFUSED = [
    *((name, value) for name in (*COUNTS, "steps") for value in (0, -1, 1.0, True, "1")),
    *((name, value) for name in SHARES for value in (-1e-9, 1, "some", False)),
    *((name, value) for name in ABOVE_0 for value in (0, -1, "some", True)),
    *((name, value) for name in FROM_0 for value in (-1e-9, "some", False)),
    *(
        (name, None)
        for name in set(PHASE_FIELDS) - {*OPTIONAL, "name", "epochs", "steps", "augment"}
    ),
    *(("freeze", value) for value in (["a"], True)),
    *(("drops", value) for value in ((0, 0.5), (0.5, 1), (0.6, 0.5), 0.5)),
    *(("drop_factor", value) for value in (0, 1, 1.5)),
    *(("rates", value) for value in ([], "head")),
    *(("lowest_rate", value) for value in (0, 1 + 1e-9, 2)),
    *(("optimizer_options", value) for value in ([], "momentum")),
    *((name, 3) for name in ("shape", "optimizer", "batch_norm", "mix", "solver", "class_weights")),
    *((name, "none such") for name in ("shape", "batch_norm", "mix", "solver", "class_weights")),
    *(("class_weights", value) for value in ({"a": 1, "b": 0}, {"a": -1})),
]


@pytest.mark.parametrize("name", sorted({name for name, _ in [*TAKEN, *REFUSED]}))
def test_each_field_takes_its_range_and_no_more(name):
    for value in (value for field, value in TAKEN if field == name):
        phase = Phase("p", **{"epochs": 1, name: value})
        assert getattr(phase, name) == (tuple(value) if name == "drops" else value)
    for value in (value for field, value in REFUSED if field == name):
        with pytest.raises(InputError, match=rf"^Phase 'p': {name} must be .*, not ") as error:
            Phase("p", **{"epochs": 1, name: value})
        assert str(error.value).endswith(f"not {value!r}.")


def test_what_there_is_to_choose_from_is_listed():
    for name, choices in (
        ("shape", "cosine, one_cycle, step, constant, annealed, plateau"),
        ("mix", "none, mixup, cutmix"),
        ("solver", "gradient, logistic"),
    ):
        with pytest.raises(InputError, match=rf"{name} must be one of {choices}, not 'x'\.$"):
            Phase("p", epochs=1, **{name: "x"})


def test_rates_name_what_there_can_be():
    for key in ("heads", "stage:", "stage:one", "stages:1", "stage1", "1", "abcdef1"):
        with pytest.raises(InputError, match=r"^Phase 'p': rates has .*use 'head', 'backbone' or"):
            Phase("p", epochs=1, rates={"head": 1.0, key: 1.0})


@pytest.mark.parametrize("name", [*SHARES, *ABOVE_0, *FROM_0, "drop_factor", "lowest_rate"])
def test_numbers_that_yaml_reads_as_text(name):
    assert getattr(Phase("p", epochs=1, **{name: "5e-1"}), name) == 0.5


def test_an_augmentation_that_is_none_is_refused_with_the_phase():
    with pytest.raises(InputError, match=r"^Phase 'p': .*none such"):
        Phase("p", epochs=1, augment="none such")


def test_fields_that_exclude_each_other():
    closed = Phase("p", "all", 1, solver="logistic")
    assert closed.solver == "logistic"
    for fields in ({"freeze": "none"}, {"epochs": 2}, {"epochs": None, "steps": 1}):
        with pytest.raises(
            InputError, match="'p': solver 'logistic' needs freeze 'all' and epochs 1"
        ):
            Phase("p", **{"freeze": "all", "epochs": 1, "solver": "logistic", **fields})
    assert Phase("p", "all", 2).solver == "gradient"
    assert Phase("p", epochs=1, shape="plateau", accumulate=1).accumulate == 1
    assert Phase("p", epochs=1, shape="constant", accumulate=2).accumulate == 2


def test_a_phase_is_as_long_as_was_said_last():
    schedule = Schedule("s", [Phase("a.b", epochs=3), Phase("c", "all", steps=5)])
    assert isinstance(schedule.phases, tuple)

    def lengths(settings):
        return [(phase.epochs, phase.steps) for phase in schedule.override(settings).phases]

    assert lengths({"a.b.steps": 7}) == [(None, 7), (None, 5)]  # a name may have a dot
    assert lengths({"c.epochs": 7}) == [(3, None), (7, None)]
    assert lengths({"*.epochs": 7}) == [(7, None), (7, None)]
    assert lengths({"*.ema": 0.5}) == lengths({}) == [(3, None), (None, 5)]
    assert lengths({"c.steps": 8, "a.b.epochs": 9}) == [(9, None), (None, 8)]
    assert lengths({"c.solver": "logistic"}) == [(3, None), (1, None)]
    assert lengths({"a.b.steps": None}) == [(3, None), (None, 5)]
    with pytest.raises(InputError, match=r"^Phase 'a.b': set either epochs or steps"):
        schedule.override({"a.b.epochs": None})
    with pytest.raises(
        InputError, match=r"^Cannot set d\.ema: schedule 's' has the phases a\.b, c\."
    ):
        schedule.override({"d.ema": 0.5})
    with pytest.raises(InputError, match=r"^Cannot set ema: schedule 's'"):
        schedule.override({"ema": 0.5})
    with pytest.raises(
        InputError, match=r"^Cannot set c\.x: a phase has the fields freeze, epochs, "
    ):
        schedule.override({"c.x": 0.5})
    assert schedule.phases[0].epochs == 3  # it was not changed itself


def test_a_schedule_is_called_what_it_was_in_each_refusal(tmp_path):
    phase = Phase("p", epochs=1)
    with pytest.raises(InputError, match=r"^Schedule 's' has no phases"):
        Schedule("s", ())
    with pytest.raises(
        InputError, match=r"^Schedule 's': names of phases must differ: \['p', 'p'\]"
    ):
        Schedule("s", (phase, phase))
    for data, reason in (
        ({"name": "s"}, "'phases'"),
        (
            {"phases": [{"name": "p", "epochs": 1}]},
            "missing 1 required positional argument: 'name'",
        ),
        (
            {"name": "s", "phases": [{"epochs": 1}]},
            "missing 1 required positional argument: 'name'",
        ),
        ({"name": "s", "phases": [], "x": 1}, "got an unexpected keyword argument 'x'"),
        (
            {"name": "s", "phases": [{"name": "p", "x": 1}]},
            "got an unexpected keyword argument 'x'",
        ),
        ([], "list indices must be integers or slices, not str"),
    ):
        with pytest.raises(InputError, match=f"^Invalid schedule: {reason}.$"):
            Schedule.from_dict(data)
    for text, reason in (("[", "is not valid YAML: "), ("name: s", ": Invalid schedule: 'phases'")):
        (tmp_path / "s.yaml").write_text(text)
        with pytest.raises(InputError, match=rf"s\.yaml ?{reason}"):
            Schedule.from_yaml(tmp_path / "s.yaml")
    with pytest.raises(InputError, match=rf"^No schedule file {tmp_path}\.$"):
        Schedule.from_yaml(tmp_path)


def test_names_in_any_script_can_be_read_in_the_file(tmp_path):
    schedule = Schedule("Größe", (Phase("頭", epochs=1),), pretrained=False, zero_head=True)
    assert "name: Größe" in schedule.to_yaml() and "name: 頭" in schedule.to_yaml()
    (tmp_path / "s.yaml").write_text(schedule.to_yaml(), encoding="utf-8")
    assert Schedule.from_yaml(str(tmp_path / "s.yaml")) == schedule


def test_a_table_says_what_is_not_usual():
    schedule = Schedule(
        "s",
        (
            Phase("head", "all", 3, 0.01, shape="constant"),
            Phase("rest", 0.5, steps=1000, learning_rate=0.00012345, ema=0.9, warmup=0.2),
        ),
    )
    assert schedule.table().splitlines() == [
        "phase  frozen  length      rate      shape     more",
        "head   all     3 epochs    0.01      constant",
        "rest   0.5     1000 steps  0.000123  cosine    warmup=0.2, ema=0.9",
    ]
    assert differences(schedule.phases[1], without=("ema", "views")) == ["warmup=0.2"]
    assert differences(schedule.phases[0]) == []


def test_what_is_kept_has_two_names():
    from conftest import tiny_backbone

    from keras_transfer.models.builders import build_model
    from keras_transfer.models.heads import Classification
    from keras_transfer.training.trainer import Trainer

    model = build_model(tiny_backbone(), Classification("ab"), image_size=32)
    for keep in ("best", "last"):
        Trainer(model, "lp_ft", keep=keep)
    with pytest.raises(InputError, match=r"keep must be one of best, last, not 'first'"):
        Trainer(model, "lp_ft", keep="first")


def test_attention_asks_for_gentler_steps():
    """A fifth of the rate, which falls by 0.7 from stage to stage, and BERT's decay of weights."""
    for name in ("fine_tune", "lp_ft", "freeze_k", "gradual_unfreeze", "progressive_resize"):
        plain, gentle = (
            resolve_schedule(name, examples=1000, attention_stages=n).phases[-1] for n in (0, 12)
        )
        assert gentle.learning_rate == pytest.approx(plain.learning_rate / 5)
        assert (plain.lowest_rate, plain.weight_decay) == (1.0, 1e-4)
        assert (gentle.lowest_rate, gentle.weight_decay) == (pytest.approx(0.7**12), 1e-2)
        given = resolve_schedule(name, {"learning_rate": 0.1}, attention_stages=12)
        assert given.phases[-1].learning_rate == 0.1
    *decayed, _ = stage_rates(gentle, 12)
    assert decayed[0][0] / decayed[0][1] == pytest.approx(0.7)
    _, lp_ft = resolve_schedule("lp_ft", examples=1000, attention_stages=12).phases
    for name, train in (("lora", "lora"), ("bit_fit", "bias")):
        partial = resolve_schedule(name, examples=1000, attention_stages=12).phases[-1]
        assert partial.learning_rate == pytest.approx(10 * lp_ft.learning_rate)
        assert partial.learning_rate * partial.rates["head"] == pytest.approx(lp_ft.learning_rate)
        assert (partial.train, partial.lowest_rate) == (train, 1.0)


def test_partial_training_and_its_numbers():
    phase = Phase("p", epochs=1)
    assert (phase.lora_rank, phase.lora_alpha, phase.lora_layers) == (8, 16.0, "dense+conv")
    with raises("Phase 'p': train must be one of all, bias, norm, bias+norm, lora, not 'x'."):
        Phase("p", epochs=1, train="x")
    with raises("Phase 'p': train 'lora' cannot have l2_sp"):
        Phase("p", epochs=1, train="lora", l2_sp=0.1)
    assert Phase("p", epochs=1, train="bias", l2_sp=0.1).l2_sp == 0.1
    for train in ("bias", "norm", "bias+norm", "lora"):
        with raises(f"Phase 'p': train '{train}' needs batch_norm 'frozen'"):
            Phase("p", epochs=1, train=train, batch_norm="train")
    for name, value in (("lora_rank", 0), ("lora_alpha", 0.0), ("lora_layers", "(")):
        with raises(f"Phase 'p': {name} must be"):
            Phase("p", epochs=1, **{name: value})


def test_fields_of_partial_training_are_written_where_they_matter():
    """What was written before they existed stays the same."""
    new = {"train", "lora_rank", "lora_alpha", "lora_layers"}

    def written(**fields):
        return new & set(Schedule("s", (Phase("p", epochs=1, **fields),)).to_dict()["phases"][0])

    assert written() == set() and written(train="lora") == new
    assert written(train="bias") == {"train"} and written(lora_rank=3) == {"lora_rank"}
