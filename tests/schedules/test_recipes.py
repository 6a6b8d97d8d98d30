"""Every recipe on real images: what moves, what does not, and how fast, phase by phase."""

from dataclasses import replace

import keras
import numpy as np
import pytest

from keras_transfer.cli.demo import small_backbone
from keras_transfer.data import from_directory
from keras_transfer.data.examples import ImageData
from keras_transfer.models.acceleration import training_model
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.stages import backbone_of, freeze, stage_of_weights
from keras_transfer.schedules.phases import Schedule
from keras_transfer.schedules.plans import make_plan
from keras_transfer.schedules.recipes import RECIPES, resolve_schedule
from keras_transfer.training.run_loop import TrainingRun
from keras_transfer.training.trainer import Trainer

SIZE = 64
BATCH = 8
# As short as the recipe gets.
SHORT = {
    "feature_extraction": {"epochs": 1},
    "fine_tune": {"epochs": 1},
    "lp_ft": {"epochs": 1},
    "freeze_k": {"epochs": 1},
    "gradual_unfreeze": {"epochs": 3, "stages": 2},
    "discriminative": {"epochs": 1},
    "bit": {"steps": 2, "batch_size": 16, "accumulate": 2},
    "progressive_resize": {"epochs": 2, "smaller_by": 32},
    "lora": {"epochs": 1},
    "bit_fit": {"epochs": 1},
    "from_scratch": {"epochs": 1},
}


@pytest.fixture(scope="module")
def subset(real_data):
    """16 + 8 photographs of ants and bees."""
    data = from_directory(real_data / "hymenoptera", progress=False)
    chosen = {
        split: part.take(np.r_[0:n, len(part) - n : len(part)])
        for (split, part), n in zip(data.examples.items(), (8, 4))
    }
    return ImageData(data.class_names, chosen, [], data.root)


# Which weights a recipe moves is not a question of the network: most are shown on a small one of four
# stages, and by default one on a pretrained one, which the others take with `-m large`.
REAL = "mobilenet_0.25"
SMALL = "small"


def new_model(network, dropout=0.2):
    keras.utils.set_random_seed(0)
    head = Classification(("ants", "bees"), dropout=dropout)
    return build_model(small_backbone() if network == SMALL else network, head, image_size=SIZE)


def cases(small, real):
    """(recipe, network): those that are not named are `large`."""
    return [
        pytest.param(name, network, marks=[pytest.mark.large] * (name not in default))
        for network, default in ((SMALL, small), (REAL, real))
        for name in RECIPES
    ]


def short(name) -> Schedule:
    return resolve_schedule(name, SHORT[name], examples=16, image_size=SIZE)


def test_all_recipes_are_here():
    assert set(SHORT) == set(RECIPES)


# The one step that "bit" is shortened to is rounded away in the first layer of random weights.
MOVES = [case for case in cases(small=RECIPES, real=["bit"]) if case.values != ("bit", SMALL)]


@pytest.mark.parametrize(("name", "network"), MOVES)
def test_exactly_what_the_table_says_moves(
    name, network, subset, real_weights, tmp_path, monkeypatch
):
    model = new_model(network)
    trainer = Trainer(model, short(name), batch_size=BATCH)
    plan = trainer.plan(subset)
    seen = []

    def watched(run_phase):
        def run(self, planned, *args):
            before = [w.numpy() for w in model.weights]
            run_phase(self, planned, *args)
            after = [w.numpy() for w in model.weights]
            moved = {i for i, pair in enumerate(zip(before, after)) if not np.array_equal(*pair)}
            seen.append((planned, moved))

        return run

    for name in ("solve_phase", "fit_phase"):  # in closed form, in steps
        monkeypatch.setattr(TrainingRun, name, watched(getattr(TrainingRun, name)))
    trainer.fit(subset, tmp_path / "run")

    assert [planned for planned, _ in seen] == list(plan.phases)
    stage_of = stage_of_weights(model)
    norms = {
        id(w): layer
        for layer in backbone_of(model).layers
        if isinstance(layer, keras.layers.BatchNormalization)
        for w in layer.weights
    }
    for planned, moved in seen:
        expected = set()
        for i, weight in enumerate(model.weights):
            stage = stage_of.get(id(weight))
            trains = stage is None or planned.rates[stage] > 0
            kind = planned.phase.train
            if stage is not None and kind != "all":
                name = weight.path.rpartition("/")[2]
                trains = trains and name in {"bias": ("bias", "beta"), "lora": ("kernel",)}[kind]
                trains = trains and "depthwise" not in weight.path
            elif id(weight) in norms:
                trains = trains and planned.phase.batch_norm == "train"
            if trains:
                expected.add(i)
        names = {model.weights[i].path for i in moved ^ expected}
        assert moved == expected, f"{planned.phase.name}: {names}"
        assert len(moved) == 2 or planned.frozen < len(planned.rates)


# What a rate can be: one for all above a cut, one a stage, at another size, with BatchNorm in training.
TELLING = ("freeze_k", "discriminative", "progressive_resize", "from_scratch")


@pytest.mark.parametrize(("name", "network"), cases(small=TELLING, real=["discriminative"]))
def test_each_stage_moves_at_the_rate_of_the_table(name, network, subset, real_weights, tmp_path):
    """Under plain SGD Δw = −rate·gradient: the gradient is taken again from the same weights."""
    last = replace(short(name), phases=short(name).phases[-1:])
    last = resolve_schedule(last, {"*.steps": 3, "*.augment": "none", "*.dropout": 0.0})
    sgd = {"optimizer": "sgd", "optimizer_options": {}, "weight_decay": 0.0, "accumulate": 1}
    sgd["clip_norm"] = None  # a shortened gradient is not the gradient
    # Rates at which a rounding of the weights is small against their step.
    sgd |= {"batch_size": BATCH, "learning_rate": 0.05}
    last = resolve_schedule(last, {f"*.{k}": v for k, v in sgd.items()})
    model = new_model(network, dropout=0.0)
    (planned,) = make_plan(model, last, 16, BATCH).phases
    weights = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            weights.append([w.numpy() for w in model.weights])

        def on_train_batch_end(self, batch, logs=None):
            weights.append([w.numpy() for w in model.weights])

    fit = keras.Model.fit
    keras.Model.fit = lambda self, *a, callbacks, **k: fit(
        self, *a, callbacks=[*callbacks, Watch()], **k
    )
    try:
        Trainer(model, last, batch_size=BATCH).fit(subset, tmp_path / "run")
    finally:
        keras.Model.fit = fit
    assert len(weights) == 6

    duplicate = training_model(model, 0, image_size=planned.image_size, fold=False)
    freeze(duplicate, planned.phase.freeze, batch_norm=planned.phase.batch_norm)
    duplicate.compile(keras.optimizers.SGD(1.0), model.layers[-1].head.loss(), jit_compile=False)
    stream = iter(
        subset.batches(
            "train", image_size=planned.image_size, batch_size=BATCH, training=True, augment="none"
        )
    )
    stage_of = stage_of_weights(model)
    for step in range(3):
        before, after = weights[2 * step], weights[2 * step + 1]
        model.set_weights(before)
        duplicate.train_on_batch(*next(stream))
        for stage in {*stage_of.values(), None}:
            dot = square = 0.0
            for i, weight in enumerate(model.weights):
                if stage_of.get(id(weight)) != stage or "moving" in weight.path:
                    continue
                gradient = (before[i] - weight.numpy()).astype("float64")
                dot += float((gradient * (before[i] - after[i])).sum())
                square += float((gradient**2).sum())
            multiplier = planned.head_rate if stage is None else planned.rates[stage]
            expected = planned.learning_rate([step])[0] * multiplier
            if multiplier == 0:
                assert square == dot == 0
            else:
                assert dot / square == pytest.approx(expected, rel=2e-2), (stage, step)


def test_the_scale_of_a_modality_is_for_default_rates_of_pretrained_layers():
    plain, scaled = (resolve_schedule("lp_ft", examples=800, rate_scale=s) for s in (1.0, 2.5))
    assert scaled.phases[1].learning_rate == 2.5 * plain.phases[1].learning_rate
    assert scaled.phases[0] == plain.phases[0]
    for recipe, given in (("lp_ft", {"learning_rate": 1e-3}), ("from_scratch", {}), ("bit", {})):
        a, b = (resolve_schedule(recipe, given, examples=800, rate_scale=s) for s in (1.0, 2.5))
        assert a == b
