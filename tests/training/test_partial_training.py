"""Phases in which few weights move: resuming, going back, averages, and what the run contains."""

import shutil

import keras
import numpy as np
import pytest
from conftest import raises, tiny_backbone, tiny_transformer, write_colours
from killed import copied_after_each_epoch

import keras_transfer as kt
from keras_transfer.data import from_directory
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.low_rank import factors_of
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.schedules.plans import make_plan
from keras_transfer.training.rate_finder import find_rate
from keras_transfer.training.trainer import Trainer

HEAD = Phase("head", "all", 1, solver="logistic")
LORA = dict(train="lora", lora_rank=2, learning_rate=0.03, shape="constant", warmup=0.0)
BIAS = Phase("bias", "none", 1, 1e-3, train="bias")


def new_model(backbone=tiny_backbone):
    keras.utils.set_random_seed(0)
    return build_model(backbone(), Classification(("blue", "green", "red")), image_size=32)


def trainer(*phases, model=None, **settings):
    return Trainer(model or new_model(), Schedule("s", phases), **{"batch_size": 8, **settings})


# Epochs 2 to 5 are of the updates; with "low", some of them are so bad that it goes back.
CASES = {
    "averaged": ([HEAD, Phase("lora", "stage:1", 4, **LORA, ema=0.5), BIAS], {}),
    "low": ([HEAD, Phase("lora", "none", 5, **LORA | {"learning_rate": 1.0}, roll_back=True)], {}),
    "soup": ([HEAD, Phase("lora", "stage:1", 4, **LORA)], {"soup": True}),
}


@pytest.fixture(scope="module", params=CASES)
def whole(request, tmp_path_factory):
    """(name, data, run, what each epoch left on disk)."""
    folder = tmp_path_factory.mktemp(request.param)
    data = from_directory(write_colours(folder / "colours"), progress=False)
    phases, settings = CASES[request.param]
    with copied_after_each_epoch(folder):
        run = trainer(*phases, **settings).fit(data, folder / "whole")
    return request.param, data, run, folder


def test_a_kill_at_any_moment_changes_nothing(whole, tmp_path):
    """Before the phase of the updates, within it, and after it."""
    name, data, run, folder = whole
    phases, settings = CASES[name]
    rollbacks = run.metrics["phases"][1].get("rollbacks", [])
    assert bool(rollbacks) == (name == "low")
    moments = [rollbacks[0]["epoch"]] if rollbacks else [1, 3, 5] if name == "averaged" else [4]
    for epoch in moments:
        shutil.copytree(folder / f"after-{epoch}", tmp_path / str(epoch))
        resumed = trainer(*phases, **settings).fit(data, tmp_path / str(epoch), resume=True)
        for a, b in zip(run.model.get_weights(), resumed.model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        histories = [
            [{k: v for k, v in row.items() if k != "seconds"} for row in each.history]
            for each in (run, resumed)
        ]
        assert histories[0] == histories[1]


def test_the_run_contains_a_plain_model(whole):
    """Of the best epoch, with the accuracy and loss that were measured in it."""
    _, data, run, folder = whole
    fresh = new_model()
    assert [w.shape for w in run.model.weights] == [w.shape for w in fresh.weights]
    assert factors_of(run.model) == []
    found = kt.evaluate(run.model, data)
    assert found["loss"] == pytest.approx(run.metrics["val"]["loss"], rel=1e-4, abs=1e-6)
    best = np.load(folder / "after-3" / "state" / "epoch-3.npz")
    assert {key.partition("/")[0] for key in best.files} == {"model", "update", "optimizer"}
    count = len(fresh.variables)
    assert sum(key.startswith("model/") for key in best.files) == count
    ends = [n for n in range(1, 6) if (folder / f"after-{n}" / "state" / f"best-{n}.npz").exists()]
    for epoch in ends:
        saved = np.load(folder / f"after-{epoch}" / "state" / f"best-{epoch}.npz")
        assert len(saved.files) == count


def test_the_optimizer_holds_what_moves_alone(colours, tmp_path, monkeypatch):
    seen = {}
    fit = keras.Model.fit

    def watched(self, *args, **kwargs):
        seen[len(seen)] = (len(self.trainable_variables), len(self.optimizer.variables))
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(keras.Model, "fit", watched)
    norm = Phase("norm", "none", 1, 1e-3, train="norm")
    lora = Phase("lora", "none", 1, **LORA)
    run = trainer(norm, lora, BIAS).fit(from_directory(colours, progress=False), tmp_path / "run")
    # Two of the head; scale and offset of three norms; two factors of three convolutions; offsets.
    # Besides two moments of each, an optimizer has its rate, if that is no schedule, and a count.
    assert seen == {i: (n, 2 * n + 1) for i, n in enumerate((2 + 6, 2 + 6, 2 + 3))}
    counts = [phase["trainable_parameters"] for phase in run.metrics["phases"]]
    head, channels = 16 * 3 + 3, 8 + 16 + 16
    factors = 2 * ((27 + 8) + (72 + 16) + (144 + 16))
    assert counts == [head + 2 * channels, head + factors, head + channels]


def test_an_interruption_leaves_a_plain_model(colours, tmp_path, monkeypatch):
    model = new_model()
    order = [w.path for w in model.weights]

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            assert len(factors_of(model)) == 6
            raise KeyboardInterrupt

    data = from_directory(colours, progress=False)
    phase = Phase("lora", "none", 2, **LORA)
    with pytest.raises(KeyboardInterrupt):
        trainer(phase, model=model).fit(data, tmp_path / "run", callbacks=[Stop()])
    assert [w.path for w in model.weights] == order and factors_of(model) == []
    run = trainer(phase, model=model).fit(data, tmp_path / "run", resume=True)
    again = trainer(phase).fit(data, tmp_path / "again")
    for a, b in zip(run.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_updates_that_the_model_came_with_are_merged_first(colours, tmp_path):
    model = new_model()
    conv = model.layers[1].layers[2]
    conv.enable_lora(2)
    conv.lora_kernel_b.assign(np.full(conv.lora_kernel_b.shape, 0.1))
    plain = conv.kernel.numpy()
    phases = (Phase("head", "all", 1, 1e-3), Phase("lora", "stage:1", 1, **LORA))
    run = trainer(*phases, model=model).fit(from_directory(colours), tmp_path / "run")
    np.testing.assert_allclose(run.model.layers[1].layers[2].kernel, plain, rtol=1e-6)


def test_mixed_precision(colours, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = new_model(tiny_transformer)
    before = {w.path: w.numpy() for w in model.weights}
    data = from_directory(colours, progress=False)
    lora = Phase("lora", "none", 2, **LORA | {"learning_rate": 1e-2})
    run = trainer(lora, model=model).fit(data, tmp_path / "run")
    moved = {w.path for w in model.weights if not np.array_equal(w.numpy(), before[w.path])}
    assert all(path.endswith("kernel") or path == "output/bias" for path in moved)
    assert len(moved) == 13 + 2 and all(w.dtype == "float32" for w in model.weights)
    assert run.metrics["val"]["loss"] == pytest.approx(kt.evaluate(model, data)["loss"], rel=0.05)


@pytest.mark.parametrize("recipe", ["lora", "bit_fit"])
def test_recipes_learn_on_a_transformer(colours, tmp_path, recipe):
    data = from_directory(colours, progress=False)
    model = new_model(tiny_transformer)
    run = Trainer(model, recipe, batch_size=8, epochs=6).fit(data, tmp_path / "run")
    head, partial = run.metrics["phases"]
    assert partial["val"]["loss"] < head["val"]["loss"]
    assert partial["trainable_parameters"] > head["trainable_parameters"]
    assert (
        run.config["schedule"]["phases"][1]["train"] == {"lora": "lora", "bit_fit": "bias"}[recipe]
    )


def test_find_rate_leaves_the_model_as_it_was(colours):
    model = new_model()
    kt.freeze(model, "stage:1", train="bias")
    weights, moving = model.get_weights(), [w.path for w in model.trainable_weights]
    phase = Phase("p", "none", steps=10, train="lora", lora_rank=2)
    data = from_directory(colours, progress=False)
    test = find_rate(model, data, phase=phase, steps=10, batch_size=8, progress=False)
    assert np.isfinite(test.suggestion)
    assert [w.path for w in model.trainable_weights] == moving
    for a, b in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_pattern_that_fits_no_layer_is_an_error():
    schedule = Schedule("s", (Phase("p", epochs=1, train="lora", lora_layers="attention"),))
    with raises("Phase 'p': lora_layers 'attention' fits no layer of the trained stages"):
        make_plan(new_model(), schedule, 24)
