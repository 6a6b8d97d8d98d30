"""The trainer: what moves, what is kept, what is written, and that a seed fixes it all."""

import csv
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import RUN_FILES, tiny_backbone

from keras_transfer.advisor.budget import Clock
from keras_transfer.data import from_directory
from keras_transfer.errors import InputError
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.stages import backbone_of
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.trainer import Trainer

NAMES = ("blue", "green", "red")


def new_model(seed=0, names=NAMES):
    keras.utils.set_random_seed(seed)
    return build_model(tiny_backbone(), Classification(names), image_size=32)


def values(model):
    return {w.path: w.numpy() for w in model.weights}


def test_a_run_learns_and_writes_its_files(colours, tmp_path):
    data = from_directory(colours)
    schedule = Schedule("two", (Phase("head", "all", 2, 1e-2), Phase("all", "none", 2, 1e-3)))
    trainer = Trainer(new_model(), schedule, batch_size=8)
    run = trainer.fit(data, tmp_path / "run")

    files = {p.name for p in run.path.iterdir()}
    assert files == RUN_FILES
    with (run.path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["epoch"] for r in rows] == ["1", "2", "3", "4"]
    assert [r["phase"] for r in rows] == ["head", "head", "all", "all"]
    columns = {"learning_rate", "accuracy", "loss", "val_accuracy", "val_loss", "seconds"}
    assert columns <= set(rows[0])

    metrics = run.metrics
    best = max(rows, key=lambda r: (float(r["val_accuracy"]), -float(r["val_loss"])))
    assert metrics["best_epoch"] == int(best["epoch"])
    assert metrics["val"]["loss"] == pytest.approx(float(best["val_loss"]))
    assert metrics["images"] == {"train": 29, "val": 7}
    assert [p["name"] for p in metrics["phases"]] == ["head", "all"]
    assert metrics["phases"][0]["frozen_stages"] == 3
    assert metrics["phases"][1]["frozen_stages"] == 0
    assert metrics["phases"][0]["trainable_parameters"] == 3 * 16 + 3

    # The model on disk is the best one: it gives the recorded loss.
    loaded = run.model
    head = loaded.layers[-1].head
    batches = data.batches("val", image_size=32, batch_size=8)
    loss = np.mean([float(head.loss()(y, loaded(x))) for x, y in batches])
    assert loss == pytest.approx(metrics["val"]["loss"], rel=1e-4)

    # And plain Keras: compiled with an optimizer of its own, ready for `fit`.
    model = keras.saving.load_model(run.model_path)
    assert type(model.optimizer) is keras.optimizers.AdamW
    model.fit(batches, verbose=0)


def test_each_phase_moves_exactly_what_it_names(kind, tmp_path):
    write, backbone, options = kind
    data = from_directory(write(tmp_path / "data"))
    keras.utils.set_random_seed(0)
    model = build_model(backbone(), Classification(data.class_names), **options)
    start = values(model)
    head_only = Schedule("h", (Phase("head", "all", 1, 1e-2),))
    Trainer(model, head_only, batch_size=8).fit(data, tmp_path / "h")
    moved = {path for path, value in values(model).items() if (value != start[path]).any()}
    assert moved == {w.path for w in model.get_layer("output").weights}

    start = values(model)
    Trainer(model, Schedule("f", (Phase("top", "stage:2", 1, 1e-2),)), batch_size=8).fit(
        data, tmp_path / "f"
    )
    moved = {path for path, value in values(model).items() if (value != start[path]).any()}
    kernels = {
        w.path
        for stage in backbone_of(model).stages[2:]
        for layer in stage.layers
        if not isinstance(layer, keras.layers.BatchNormalization)
        for w in layer.weights
    }
    assert moved == kernels | {w.path for w in model.get_layer("output").weights}


def test_seeds_make_two_runs_equal(colours, tmp_path):
    data = from_directory(colours)

    def train(name, seed):
        model = new_model()
        Trainer(model, "fine_tune", epochs=1, batch_size=8, seed=seed).fit(data, tmp_path / name)
        return model.get_weights()

    a, b, c = train("a", 1), train("b", 1), train("c", 2)
    for first, second in zip(a, b):
        np.testing.assert_array_equal(first, second)
    assert any((first != other).any() for first, other in zip(a, c))


def test_wrong_classes_write_nothing(colours, tmp_path):
    with pytest.raises(InputError, match="classes"):
        Trainer(new_model(names=("a", "b", "c"))).fit(from_directory(colours), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_out_that_is_not_empty_is_left_alone(colours, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("dear")
    with pytest.raises(InputError, match="not empty"):
        Trainer(new_model()).fit(from_directory(colours), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_the_last_epoch_is_kept_where_that_is_asked_for(colours, tmp_path):
    """And its weights are in the file: the average, where there is one."""
    data = from_directory(colours)
    phases = (Phase("head", "all", 2, 1e-2), Phase("all", "none", 2, 0.05, ema=0.5))
    run = Trainer(new_model(), Schedule("s", phases), batch_size=8, keep="last").fit(
        data, tmp_path / "run"
    )
    assert run.metrics["best_epoch"] == 4
    model = run.model
    batches = data.batches("val", image_size=32, batch_size=8)
    loss = np.mean([float(model.layers[-1].head.loss()(y, model(x))) for x, y in batches])
    assert loss == pytest.approx(run.metrics["val"]["loss"], rel=1e-4)


def test_a_phase_in_steps_ends_within_an_epoch(colours, tmp_path):
    phases = (
        Phase("few", "all", steps=6, learning_rate=1e-2),
        Phase("one", "all", 1, 1e-2, warmup=0),
    )
    model = new_model()
    counted = []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: counted.append(batch)
    )
    fit = keras.Model.fit
    keras.Model.fit = lambda self, *a, callbacks, **k: fit(
        self, *a, callbacks=[*callbacks, count], **k
    )
    try:
        run = Trainer(model, Schedule("s", phases), batch_size=8, cache="off").fit(
            from_directory(colours), tmp_path / "run"
        )
    finally:
        keras.Model.fit = fit
    assert counted == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3]
    assert [p["epochs"] for p in run.metrics["phases"]] == [2, 1]


def test_early_stopping_ends_the_phase_and_the_next_one_begins(colours, tmp_path):
    phases = (
        Phase("stuck", "all", 9, 1e-30, early_stopping=2),
        Phase("plateau", "all", 5, 1e-20, shape="plateau", patience=1, drop_factor=0.5),
    )
    run = Trainer(new_model(), Schedule("s", phases), batch_size=8).fit(
        from_directory(colours), tmp_path / "run"
    )
    assert [p["epochs"] for p in run.metrics["phases"]] == [3, 5]
    with (run.path / "history.csv").open() as file:
        rows = csv.DictReader(file)
        rates = [float(row["learning_rate"]) for row in rows if row["phase"] == "plateau"]
    # The plateau lowers the rate.
    assert rates[0] == pytest.approx(1e-20) and rates[-1] < 0.3e-20


def first_loss(data, out, **fields):
    """The training loss of an epoch in which nothing is learned to speak of."""
    phase = Phase("p", "all", 1, 1e-9, augment="none", **{"dropout": 0.0, **fields})
    run = Trainer(new_model(), Schedule("s", (phase,)), batch_size=8).fit(data, out)
    with (run.path / "history.csv").open() as file:
        return float(next(csv.DictReader(file))["loss"])


def test_after_the_limit_of_time_no_further_phase_begins(colours, tmp_path):
    phases = (Phase("head", "all", 2, 1e-2), Phase("top", "top:1", 2), Phase("all", "none", 2))
    limit = Clock(1e-9).callback()
    trainer = Trainer(new_model(), Schedule("three", phases), batch_size=8)
    run = trainer.fit(from_directory(colours), tmp_path / "run", callbacks=[limit])
    assert [row["phase"] for row in run.history] == ["head"]
    assert run.finished and run.metrics["best_epoch"] == 1


def test_classes_are_weighed(colours, tmp_path):
    data = from_directory(colours)

    def loss(name, weights):
        return first_loss(data, tmp_path / name, class_weights=weights)

    plain = loss("plain", None)
    # Twice the part of one class; what is left of the whole is the third one's.
    parts = [loss(name, {n: 2.0 if n == name else 1e-9 for n in NAMES}) / 2 for name in NAMES[:2]]
    parts.append(plain - sum(parts))
    assert min(parts) > 0.1 * plain
    counts = np.bincount(data.examples["train"].labels)
    balanced = sum(part * 29 / (3 * n) for part, n in zip(parts, counts))
    assert loss("balanced", "balanced") == pytest.approx(balanced, rel=1e-5)
    wrong = Phase("p", "none", 1, class_weights={"blue": 1.0})
    with pytest.raises(InputError, match="class_weights has"):
        Trainer(new_model(), Schedule("s", (wrong,)))


def test_dropout_and_smoothing_of_a_phase(colours, tmp_path):
    data = from_directory(colours)

    def loss(**fields):
        return first_loss(data, tmp_path / str(len(list(tmp_path.iterdir()))), **fields)

    plain = loss(dropout=0.0)
    assert loss(dropout=0.9) != plain
    assert loss(dropout=0.0, label_smoothing=0.5) != plain
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification(NAMES, dropout=0), image_size=32)
    with pytest.raises(InputError, match="built with dropout"):
        Trainer(model, Schedule("s", (Phase("p", "all", 1, dropout=0.5),))).fit(
            data, tmp_path / "none"
        )


def test_accumulated_batches_are_one_large_batch(colours, tmp_path):
    """Under plain SGD, with a batch that divides the images: the same weights."""
    data = from_directory(colours, val_split=0.17)
    data.examples["train"] = data.examples["train"].take(np.arange(24))

    def weights(name, **fields):
        phase = Phase(
            "p", "none", 2, 0.01, optimizer="sgd", shape="constant", warmup=0, dropout=0.0,
            augment="none", **fields,
        )  # fmt: skip
        model = new_model()
        Trainer(model, Schedule("s", (phase,)), keep="last").fit(data, tmp_path / name)
        return model.get_weights()

    for a, b in zip(weights("large", batch_size=24), weights("small", batch_size=8, accumulate=3)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_steps_in_one_call_change_nothing(colours, tmp_path):
    """Three do not divide the four steps of an epoch: two are taken."""
    data = from_directory(colours)
    results = []
    for n in (1, 3):
        model = new_model()
        Trainer(model, "fine_tune", epochs=1, batch_size=8, steps_per_execution=n).fit(
            data, tmp_path / str(n)
        )
        results.append(model.get_weights())
    for a, b in zip(*results):
        np.testing.assert_array_equal(a, b)


def test_an_auto_schedule_is_the_default_recipe_without_a_chooser(colours):
    data = from_directory(colours)
    keras.utils.set_random_seed(0)
    model = new_model()
    assert Trainer(model).plan(data).schedule.name == "from_scratch"  # random weights
    for weight in model.weights:
        if weight.path.endswith("moving_mean"):
            weight.assign(weight + 0.1)
    trainer = Trainer(model, learning_rate=5e-4)
    assert trainer.plan(data).schedule.name == "lp_ft" and trainer.advice is None
    with pytest.raises(InputError, match="Cannot set k"):
        Trainer(model, overrides={"k": 0.5})


def test_a_chooser_decides_an_auto_schedule_once(colours):
    calls = []

    def choose(trainer, data):
        calls.append(data)
        return SimpleNamespace(strategy="fine_tune", overrides={"epochs": 9}, augment="none"), "why"

    data = from_directory(colours)
    trainer = Trainer(new_model(), choose=choose, learning_rate=5e-4)
    (phase,) = trainer.plan(data).schedule.phases
    assert (phase.epochs, phase.learning_rate, trainer.augment) == (9, 5e-4, "none")
    trainer.plan(data)
    assert calls == [data] and trainer.advice == "why"
