"""The frozen part computed once: the right numbers, found again, and the same training."""

import importlib.util
import json
import shutil

import keras
import numpy as np
import pytest
import yaml
from conftest import tiny_backbone, write_picture

from keras_transfer.builders import build_model
from keras_transfer.data import Augmentation, View, from_directory
from keras_transfer.data.transforms import augment, resize_and_crop
from keras_transfer.errors import InputError
from keras_transfer.features import engines, extraction
from keras_transfer.features.caching import plan_caching
from keras_transfer.features.engines import ENGINES, choose_engine, compare
from keras_transfer.features.extraction import extract
from keras_transfer.features.prefix import prefix_of, stage_costs
from keras_transfer.features.store import Store
from keras_transfer.heads import Classification, MultiLabel
from keras_transfer.schedules import Phase, Schedule
from keras_transfer.stages import Backbone
from keras_transfer.training import Trainer

NAME, SIZE = "mobilenet_0.25", 64
LIGHT = Augmentation()


def model_of(data, weights=None, name=NAME, seed=0, **head):
    keras.utils.set_random_seed(seed)
    return build_model(
        name, Classification(data.class_names, **head), image_size=SIZE, weights=weights
    )


def tiny_model_of(data):
    """Of three stages: where the network is not the point; it compiles at once."""
    keras.utils.set_random_seed(0)
    return build_model(tiny_backbone(), Classification(data.class_names), image_size=32)


def no_computing(monkeypatch):
    def refuse(*_):
        raise AssertionError("the features were there already")

    monkeypatch.setattr(extraction, "choose_engine", refuse)


# -- extraction -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [3, 8, 14])
def test_they_are_the_activations_at_the_cut(data, store, stages):
    model = model_of(data)
    backbone = model.layers[1]
    found = extract(prefix_of(model, stages), data.examples["train"], store=store)
    rows = np.array([7, 0, 28])
    (batch,) = data.batches("train", image_size=SIZE, batch_size=100)
    whole = stages == len(backbone.stages)
    part = backbone if whole else backbone.split(stages)[0]
    expected = np.asarray(part(np.asarray(batch[0])[rows], training=False))
    np.testing.assert_allclose(found.gather(rows), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0


def test_views_are_what_they_say_and_always_the_same(data, store):
    model = model_of(data)
    prefix = prefix_of(model, 14)
    views = (View(), View("mirror"), *(View("augmented", n, LIGHT) for n in range(2)))
    examples = data.examples["train"]
    found = extract(prefix, examples, views, store=store)
    for row in (3, 20):
        picture = next(iter(data.train.skip(row)))[0]
        plain = resize_and_crop(picture, SIZE).numpy()
        seed = int.from_bytes(examples.digests[row][:8], "little") >> 1
        made = [plain, plain[:, ::-1], *(augment(picture, SIZE, LIGHT, (seed, n)) for n in (0, 1))]
        expected = np.asarray(model.layers[1](np.stack(made), training=False))
        got = found.gather(np.full(4, row), np.arange(4))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        assert len({x.tobytes() for x in got}) == 4


def test_a_second_time_nothing_is_computed(data, store, monkeypatch):
    """Neither for another head, nor for some of the pictures, in another order."""
    first = extract(prefix_of(model_of(data), 8), data.examples["train"], store=store)
    no_computing(monkeypatch)
    keras.backend.clear_session()
    other = model_of(data, hidden=(4,))
    part = data.examples["train"].take(np.array([9, 2, 4]))
    again = extract(prefix_of(other, 8), part, store=store)
    np.testing.assert_array_equal(again.gather(np.arange(3)), first.gather(np.array([9, 2, 4])))


@pytest.mark.parametrize("change", ["weight", "cut", "size", "view", "dtype"])
def test_other_numbers_are_never_found(data, store, monkeypatch, change):
    model = model_of(data)
    examples = data.examples["train"]
    extract(prefix_of(model, 8), examples, store=store)
    no_computing(monkeypatch)
    if change == "weight":
        kernel = model.layers[1].stages[2].layers[-3].weights[0]
        values = kernel.numpy()
        values.flat[0] = np.nextafter(values.flat[0], np.float32(9))
        kernel.assign(values)
    prefix = prefix_of(model, 7 if change == "cut" else 8, 96 if change == "size" else SIZE)
    views = (View("mirror"),) if change == "view" else (View(),)
    dtype = "float16" if change == "dtype" else "float32"
    with pytest.raises(AssertionError, match="there already"):
        extract(prefix, examples, views, dtype=dtype, store=store)


def test_weights_behind_the_cut_do_not_matter(data, store, monkeypatch):
    model = model_of(data)
    extract(prefix_of(model, 8), data.examples["train"], store=store)
    for weight in model.layers[1].stages[9].layers[0].weights:
        weight.assign(weight + 1)
    no_computing(monkeypatch)
    extract(prefix_of(model, 8), data.examples["train"], store=store)


def test_a_changed_picture_is_computed_again(colours, store):
    data = from_directory(colours, progress=False)
    prefix = prefix_of(model_of(data), 8)
    before = extract(prefix, data.examples["train"], store=store)
    changed = data.examples["train"].names[5]
    write_picture(type(colours)(changed), (200, 40, 40), seed=99)
    again = from_directory(colours, progress=False).examples["train"]
    after = extract(prefix, again, store=store)
    rows = np.arange(len(again))
    same = (before.gather(rows) == after.gather(rows)).reshape(len(rows), -1).all(1)
    assert list(np.flatnonzero(~same)) == [5]
    (shards,) = [len(table.shards) for table in after.tables]
    assert shards == 2 and after.tables[0].shards[1].shape[0] == 1


def test_a_damaged_entry_is_rebuilt(data, store, capsys):
    model = model_of(data)
    first = extract(prefix_of(model, 8), data.examples["train"], store=store)
    rows = np.arange(len(data.examples["train"]))
    expected = first.gather(rows)
    (file,) = store.root.glob("*/*.shard")
    contents = bytearray(file.read_bytes())
    contents[-100] ^= 1
    shutil.copy(file, file.with_suffix(".kept"))  # the mapped file stays as it is
    file.unlink()
    file.write_bytes(contents)
    again = extract(prefix_of(model, 8), data.examples["train"], store=store)
    np.testing.assert_array_equal(again.gather(rows), expected)
    assert "a damaged shard was removed and is computed again" in capsys.readouterr().err


def test_values_that_float16_cannot_hold(data, store):
    model = model_of(data)
    for weight in model.layers[1].stages[0].layers[-2].weights[:1]:  # a BatchNorm's scale
        weight.assign(weight * 0 + 1e6)
    inputs = model.layers[1].inputs[0]
    x = keras.layers.Rescaling(1e6)(model.layers[1].stages[2].output)
    prefix = extraction.Prefix(keras.Model(inputs, x), "loud")
    with pytest.raises(InputError, match=r"do not fit into float16: use bfloat16 or float32"):
        extract(prefix, data.examples["train"], dtype="float16", store=store)
    loud = extract(prefix, data.examples["train"], dtype="bfloat16", store=store)
    exact = extract(prefix, data.examples["train"], dtype="float32", store=store)
    rows = np.arange(5)
    np.testing.assert_allclose(loud.gather(rows).astype("float32"), exact.gather(rows), rtol=8e-3)


def test_costs_are_the_published_ones():
    """Multiply-adds in the papers: ResNet-50 3.8–4.1, MobileNetV2 0.30, VGG16 15.5 (10⁹, 224 px)."""
    from keras_transfer.backbone_building import build_backbone

    for name, low, high in (
        ("resnet50", 3.8, 4.1),
        ("mobilenet_v2", 0.29, 0.31),
        ("vgg16", 15.3, 15.5),
    ):
        assert low < sum(stage_costs(build_backbone(name, weights=None))) / 1e9 < high
        keras.backend.clear_session()


# -- engines --------------------------------------------------------------------------------------


def test_engines_agree_with_keras(real_weights, real_data):
    names = ["keras"] + ["openvino_f32"] * bool(importlib.util.find_spec("openvino"))
    data = from_directory(real_data / "hymenoptera", progress=False)
    model = model_of(data, "imagenet", "mobilenet_v2_0.35")
    (batch, _), *_ = data.batches("val", image_size=SIZE, batch_size=64).take(1)
    backbone: Backbone = model.layers[1]
    for stages in (6, len(backbone.stages)):
        prefix = prefix_of(model, stages)
        expected = np.asarray(prefix.model(batch, training=False))
        for engine in names:
            run = ENGINES[engine](prefix)
            for part in (batch, batch[:7]):  # any size of batch
                got = run(part.numpy())
                whole = expected[: len(got)]
                assert np.linalg.norm(got - whole) < 1e-4 * np.linalg.norm(whole), engine


def test_asking_for_openvino_takes_a_format_that_is_right(real_weights, real_data, store, capsys):
    """This network's activations lose several percent in bfloat16."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    data = from_directory(real_data / "hymenoptera", progress=False)
    model = model_of(data, "imagenet", "mobilenet_v2_0.35")
    prefix = prefix_of(model, 18)
    found = extract(prefix, data.examples["val"], engine="openvino", store=store)
    exact = extract(prefix, data.examples["val"], engine="keras", store=store)
    rows = np.arange(153)
    error = np.linalg.norm(found.gather(rows) - exact.gather(rows))
    assert error / np.linalg.norm(exact.gather(rows)) <= 1e-2
    assert found.engine.startswith("openvino") and "relative error" in capsys.readouterr().err


def fakes(monkeypatch, tmp_path, errors, gains):
    """Two engines beside Keras, with errors and gains of their own, on a clock of their own."""
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path))
    monkeypatch.setattr(engines, "has_openvino", lambda: True)
    monkeypatch.setattr(engines, "_has_bfloat16", lambda: True)
    monkeypatch.setattr(engines, "engine_version", lambda name: name)
    made = []

    def engine(name, error, gain):
        def make(prefix):
            made.append(name)

            def run(pictures):
                return np.asarray(prefix.model(pictures)) * (1.0 + error)

            run.seconds = 1.0 / gain
            return run

        return make

    names = ("keras", "openvino_bf16", "openvino_f32")
    for name, error, gain in zip(names, (0.0, *errors), (1.0, *gains)):
        monkeypatch.setitem(ENGINES, name, engine(name, error, gain))
    monkeypatch.setattr(engines, "_seconds", lambda run, pictures: run.seconds)
    return made


def choose(data, asked, prefix, left=10**9):
    (batch, labels), *_ = data.batches("train", image_size=32, batch_size=32).take(1)
    return choose_engine(asked, prefix, lambda count: (batch.numpy(), labels.numpy()), left)


@pytest.mark.parametrize(
    "errors, gains, left, expected, reason",
    [
        (
            (0.001, 0.0),
            (5.0, 2.0),
            10**9,
            "openvino_bf16",
            "5.0 times as fast, relative error 0.0010",
        ),
        ((0.02, 0.0), (5.0, 2.0), 10**9, "openvino_f32", "relative error 0.0200"),
        ((0.02, 0.0), (5.0, 1.1), 10**9, "keras", "1.1 times as fast"),
        ((0.001, 0.0), (5.0, 2.0), 100, "keras", "too little work to compare"),
        ((float("nan"), 0.0), (5.0, 1.0), 10**9, "keras", "openvino_bf16 failed (not finite)"),
    ],
)
def test_auto_takes_what_is_faster_and_right(
    data, monkeypatch, tmp_path, errors, gains, left, expected, reason
):
    made = fakes(monkeypatch, tmp_path, errors, gains)
    prefix = prefix_of(tiny_model_of(data), 2)
    first = choose(data, "auto", prefix, left)
    assert first.name == expected and reason in first.reason
    others = [] if expected == "keras" else [expected]
    usable = engines.usable_engines("auto", prefix)
    assert set(others) <= set(usable) if others else usable == ["keras"]
    made.clear()
    prefix = prefix_of(tiny_model_of(data), 2)
    # What was found is remembered: an engine that is trusted is made at once, and no other.
    again = choose(data, "auto", prefix, left)
    assert again.name == expected and made == [expected]


def test_openvino_asked_for_need_not_gain(data, monkeypatch, tmp_path):
    fakes(monkeypatch, tmp_path, (0.02, 0.0), (5.0, 0.9))
    prefix = prefix_of(tiny_model_of(data), 2)
    assert engines.usable_engines("openvino", prefix) == []
    assert choose(data, "openvino", prefix).name == "openvino_f32"
    assert engines.usable_engines("openvino", prefix) == ["openvino_f32"]
    assert choose(data, "keras", prefix).reason == "as asked for"


def test_an_engine_that_fails_is_not_taken(data, monkeypatch, tmp_path):
    fakes(monkeypatch, tmp_path, (0.0, 0.0), (5.0, 1.0))

    def broken(prefix):
        raise RuntimeError("unsupported operation")

    monkeypatch.setitem(ENGINES, "openvino_bf16", broken)
    chosen = choose(data, "auto", prefix_of(tiny_model_of(data), 2))
    assert chosen.name == "keras" and "failed (unsupported operation)" in chosen.reason
    # It may have been for this once: the next process tries again.
    assert "openvino_bf16" not in engines.usable_engines("auto", prefix_of(tiny_model_of(data), 2))
    assert not any("failed" in path.read_text() for path in tmp_path.rglob("engines-*.json"))


def test_a_stop_within_a_converter_stops_the_program(data, monkeypatch, tmp_path):
    """OpenVINO makes of a KeyboardInterrupt an error of its own."""
    fakes(monkeypatch, tmp_path, (0.0, 0.0), (5.0, 1.0))

    def stopped(prefix):
        raise RuntimeError("Converting input model\nKeyboardInterrupt: <EMPTY MESSAGE>")

    monkeypatch.setitem(ENGINES, "openvino_bf16", stopped)
    with pytest.raises(KeyboardInterrupt):
        choose(data, "auto", prefix_of(tiny_model_of(data), 2))


def test_a_probe_sees_what_the_error_does_not():
    """Two classes that differ in one small direction, which the other engine loses."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    exact = rng.normal(0, 1e-3, (200, 8)).astype("float32")
    exact[:, 0] += 100  # large, and the same for all
    exact[:, 1] += 0.05 * labels
    blunt = exact.copy()
    blunt[:, 1] = 0.025
    runs = [lambda _, x=x: x for x in (exact, blunt)]
    found = compare(*runs, np.zeros(200), labels)
    assert found["error"] < 1e-3 and found["probe"] > 0.3
    assert compare(runs[0], runs[0], np.zeros(200), labels)["probe"] == 0


# -- what pays ------------------------------------------------------------------------------------


def planned_caching(model, data, phase, asked="auto", pictures=None, augment="light", **options):
    trainer = Trainer(model, Schedule("s", (phase,)), cache=asked)
    (planned,) = trainer.plan(data).phases
    pictures = pictures or {"train": 29, "val": 7}
    return plan_caching(asked, planned, model, pictures, augment, **options)


def test_what_pays_is_cached(data, tmp_path):
    model, store = model_of(data), Store(tmp_path, limit=1 << 40)
    head = Phase("head", "all", epochs=6)
    found, _ = planned_caching(model, data, head, store=store)
    assert (found.where, found.views, found.dtype) == ("disk", 3, "float32")
    assert found.bytes == (29 * 3 + 7) * 256 * 4
    plain, _ = planned_caching(model, data, head, augment="none", store=store)
    assert plain.views == 1 and plain.gain > found.gain > 1.2
    two, _ = planned_caching(model, data, Phase("h", "all", 6, views=2), store=store)
    assert two.views == 2
    memory, _ = planned_caching(model, data, head, asked="memory", store=store)
    assert memory.where == "memory"

    low, why = planned_caching(model, data, Phase("p", "stage:2", 2), store=store)
    assert low is None and "gain too little" in why
    none, why = planned_caching(model, data, Phase("p", "none", 2), store=store)
    assert none is None and why == "nothing is frozen"
    off, _ = planned_caching(model, data, head, asked="off", store=store)
    assert off is None


def test_what_does_not_fit_gets_shorter_numbers_fewer_views_or_is_left(data, tmp_path):
    model = model_of(data)
    head = Phase("head", "all", epochs=6)
    many = {"train": 1000, "val": 0}
    row = 256 * 4
    for room, expected in ((3000, (3, "float32")), (2000, (2, "float32")), (600, (1, "float16"))):
        found, _ = planned_caching(
            model, data, head, pictures=many, store=Store(tmp_path, room * row)
        )
        assert (found.views, found.dtype) == expected
    small = Store(tmp_path, 100 * row)
    none, why = planned_caching(model, data, head, pictures=many, store=small)
    assert none is None and "do not fit into 100 KiB free disk" in why
    with pytest.raises(InputError, match=r"Phase 'head': .* do not fit.*Make room"):
        planned_caching(model, data, head, asked="disk", pictures=many, store=small)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cache": "yes"}, "cache must be one of auto, off"),
        ({"engine": "onnx"}, "Unknown engine 'onnx'"),
        ({"feature_dtype": "int8"}, "feature_dtype must be auto, float32"),
    ],
)
def test_names_that_mean_nothing(data, options, message):
    with pytest.raises(InputError, match=message):
        Trainer(tiny_model_of(data), **options)


# -- training -------------------------------------------------------------------------------------


def trained(data, out, schedule, model=None, **options):
    model = model or tiny_model_of(data)
    run = Trainer(model, schedule, batch_size=8, **options).fit(data, out)
    return model, run


@pytest.mark.parametrize("freezing", ["stage:1", "stage:2", "all"])
def test_without_augmentation_the_trained_weights_agree(data, tmp_path, freezing, monkeypatch):
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path / "cache"))
    schedule = Schedule(
        "s", (Phase("p", freezing, 3, 1e-3, augment="none", dropout=0.0, optimizer="sgd"),)
    )
    start = [w.numpy() for w in tiny_model_of(data).weights]
    weights, histories = [], []
    for cache in ("off", "disk", "memory"):
        model, run = trained(data, tmp_path / cache, schedule, cache=cache)
        weights.append([w.numpy() for w in model.weights])
        histories.append((run.path / "history.csv").read_text())
        assert (run.config["caching"][0] or {}).get("where") == (None if cache == "off" else cache)
    moved = max(np.abs(a - b).max() for a, b in zip(start, weights[0]))
    for with_cache in weights[1:]:
        for a, b in zip(weights[0], with_cache):
            np.testing.assert_allclose(a, b, atol=1e-3 * moved + 1e-6)
    assert moved > 1e-4


def test_augmented_views_stay_alive_and_only_train(data, tmp_path, monkeypatch):
    """Each epoch draws anew; validation sees the plain view."""
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path / "cache"))
    schedule = Schedule("s", (Phase("p", "all", 4, 1e-3, views=3, dropout=0.0),))
    model, run = trained(data, tmp_path / "run", schedule, cache="disk", keep="last")
    kinds = sorted(info.about["view"] for info in Store().list())
    assert kinds == ["augmented 1", "augmented 2", "augmented 3", "plain"]
    from keras_transfer.evaluation import evaluate

    measured = evaluate(run.model, data)
    assert measured["loss"] == pytest.approx(run.metrics["val"]["loss"], rel=1e-3)

    from keras_transfer.features.batches import training_batches

    prefix = prefix_of(model, 3)
    examples = data.examples["train"]
    views = tuple(View("augmented", n, LIGHT) for n in range(3))
    found = extract(prefix, examples, views)
    stream = training_batches(found, examples.labels, batch_size=8, seed=0)
    epochs = [
        np.concatenate([np.asarray(x) for x, _ in stream.skip(4 * e).take(4)]) for e in (0, 1)
    ]
    rows = {found.gather(np.array([r]), v).tobytes(): (r, v) for r in range(29) for v in range(3)}
    drawn = [dict(rows[x.tobytes()] for x in epoch) for epoch in epochs]
    assert all(len(epoch) == 29 for epoch in drawn)  # each picture once
    assert drawn[0] != drawn[1] and {v for epoch in drawn for v in epoch.values()} == {0, 1, 2}
    (late,) = training_batches(found, examples.labels, batch_size=8, seed=0, start_epoch=1).take(1)
    np.testing.assert_array_equal(np.asarray(late[0]), epochs[1][:8])


def test_an_interrupted_run_keeps_its_decisions(data, tmp_path, monkeypatch):
    """Also where the disk has room no more; and ends with the same weights."""
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path / "cache"))
    schedule = Schedule(
        "s", (Phase("head", "all", 2, 1e-2), Phase("top", "stage:1", 2, 1e-3, ema=0.9))
    )

    def fit(out, **options):
        trainer = Trainer(tiny_model_of(data), schedule, batch_size=8, cache="disk")
        return trainer.fit(data, out, **options)

    whole = fit(tmp_path / "whole")

    class Stop(Exception):
        pass

    from keras_transfer.progress import Progress
    from keras_transfer.runs import Run

    save = Run.save_state

    def stop(self, state, *args):
        save(self, state, *args)
        if state["epoch"] == 3:
            raise Stop

    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(Run, "save_state", stop)
        # After each epoch, however short.
        patched.setattr(Progress, "save_seconds", property(lambda _: 0.0, lambda *_: None), False)
        fit(tmp_path / "cut")
    Store().trim(limit=0)  # and what was computed is gone
    monkeypatch.setenv("KERAS_TRANSFER_CACHE_GB", "0")
    resumed = fit(tmp_path / "cut", resume=True)
    for a, b in zip(whole.model.get_weights(), resumed.model.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_feature_extraction_is_closed_and_a_plain_model(data, tmp_path, monkeypatch, real_weights):
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path / "cache"))
    _, run = trained(data, tmp_path / "run", "feature_extraction", model_of(data, "imagenet"))
    assert run.metrics["val"]["accuracy"] == 1.0
    assert [p["epochs"] for p in run.metrics["phases"]] == [1]
    assert {info.about["view"] for info in Store().list()} == {"plain", "mirror"}
    from keras_transfer.evaluation import evaluate

    measured = evaluate(keras.saving.load_model(run.path / "model.keras", compile=False), data)
    assert measured["loss"] == pytest.approx(run.metrics["val"]["loss"], rel=1e-3, abs=1e-6)
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert config["schedule"]["phases"][0]["solver"] == "logistic"
    assert json.loads((run.path / "metrics.json").read_text())["best_epoch"] == 1


def test_the_best_of_epochs_too_short_to_be_written_one_by_one(data, tmp_path):
    schedule = Schedule("s", (Phase("p", "all", 12, 3.0, shape="constant", augment="none"),))
    _, run = trained(data, tmp_path / "run", schedule, cache="memory")
    from keras_transfer.evaluation import evaluate

    assert 1 < run.metrics["best_epoch"] < 12
    measured = evaluate(run.model, data)
    assert measured["loss"] == pytest.approx(run.metrics["val"]["loss"], rel=1e-3)


def test_closed_then_everything(data, tmp_path):
    overrides = {"head.solver": "logistic", "all.epochs": 1}
    _, run = trained(data, tmp_path / "run", "lp_ft", overrides=overrides, cache="memory")
    assert [p["epochs"] for p in run.metrics["phases"]] == [1, 1]


def test_heads_without_a_closed_form(data):
    closed = Schedule("s", (Phase("head", "all", 1, solver="logistic"),))
    for head, pooling, reason in (
        (Classification(data.class_names, hidden=(8,)), "avg", "hidden ones"),
        (MultiLabel(data.class_names), None, "pooled features"),
    ):
        model = build_model(NAME, head, image_size=SIZE, weights=None, pooling=pooling)
        with pytest.raises(InputError, match=f"'head': solver 'logistic' .*{reason}"):
            Trainer(model, closed)
        (phase,) = Trainer(model, "feature_extraction").plan(data).schedule.phases
        assert phase.solver == "gradient"


def test_what_trains_is_no_part_of_a_fingerprint(data):
    from keras_transfer.freezing import freeze

    model = model_of(data)
    before = prefix_of(model, 8).fingerprint
    freeze(model, "stage:4")
    assert prefix_of(model, 8).fingerprint == before
    assert prefix_of(model, 7).fingerprint != before


def test_a_deeper_cut_follows_from_a_later_phase_s(data, tmp_path, monkeypatch):
    """Each picture is decoded once for all cuts, and the numbers are those of the whole prefix."""
    from keras_transfer.data import pictures

    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path / "cache"))
    schedule = Schedule(
        "s",
        (
            Phase("head", "all", 1, 1e-2, augment="none"),
            Phase("top", "stage:2", 1, 1e-4, augment="none"),
            Phase("more", "stage:1", 1, 1e-4, augment="none"),
        ),
    )
    read, contents = [], pictures.Files.contents
    monkeypatch.setattr(
        pictures.Files, "contents", lambda self, i: read.append(i) or contents(self, i)
    )
    _, run = trained(data, tmp_path / "run", schedule, cache="disk")
    assert len(read) == 29 + 7
    assert [row["frozen_stages"] for row in run.metrics["phases"]] == [3, 2, 1]
    assert len(Store().list()) == 3  # views of training and validation pictures are one table

    read.clear()
    # Seeded alike, and nothing below the cuts was trained in the first phase.
    fresh = tiny_model_of(data)
    rows = np.arange(29)
    for stages in (3, 2, 1):
        prefix = prefix_of(fresh, stages)
        found = extract(prefix, data.examples["train"])
        assert not read, stages
        again = extract(prefix, data.examples["train"], store=Store(tmp_path / "other"))
        assert read
        np.testing.assert_allclose(found.gather(rows), again.gather(rows), rtol=1e-4, atol=1e-5)
        read.clear()
