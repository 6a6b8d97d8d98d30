"""The frozen part computed once: the right numbers, found again, and the same training."""

import importlib.util
import shutil

import keras
import numpy as np
import pytest
from conftest import tiny_backbone, tiny_bert, variants, write_image

from keras_transfer.data import Augmentation, View, from_arrays, from_directory
from keras_transfer.errors import InputError
from keras_transfer.features import extraction
from keras_transfer.features import prefix as engines
from keras_transfer.features.extraction import extract
from keras_transfer.features.prefix import ENGINES, choose_engine, compare, prefix_of, stage_costs
from keras_transfer.features.store import Store
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.stages import Backbone

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
        image = next(iter(data.train.skip(row)))[0].numpy()
        seed = int.from_bytes(examples.digests[row][:8], "little") >> 1
        (plain,) = variants(image, SIZE, "none", [(0, 0)])
        made = [plain, plain[:, ::-1], *variants(image, SIZE, LIGHT, [(seed, 0), (seed, 1)])]
        expected = np.asarray(model.layers[1](np.stack(made), training=False))
        got = found.gather(np.full(4, row), np.arange(4))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        assert len({x.tobytes() for x in got}) == 4


def test_a_second_time_nothing_is_computed(data, store, monkeypatch):
    """Neither for another head, nor for some of the images, in another order."""
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


def test_a_changed_image_is_computed_again(colours, store):
    data = from_directory(colours, progress=False)
    prefix = prefix_of(model_of(data), 8)
    before = extract(prefix, data.examples["train"], store=store)
    changed = data.examples["train"].names[5]
    write_image(type(colours)(changed), (200, 40, 40), seed=99)
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
    assert "removed a damaged shard, whose rows are computed again" in capsys.readouterr().err


def test_values_that_float16_cannot_hold(data, store):
    model = model_of(data)
    for weight in model.layers[1].stages[0].layers[-2].weights[:1]:  # a BatchNorm's scale
        weight.assign(weight * 0 + 1e6)
    inputs = model.layers[1].inputs[0]
    x = keras.layers.Rescaling(1e6)(model.layers[1].stages[2].output)
    prefix = extraction.Prefix(keras.Model(inputs, x), "loud")
    with pytest.raises(InputError, match=r"exceed the range of float16: use bfloat16 or float32"):
        extract(prefix, data.examples["train"], dtype="float16", store=store)
    loud = extract(prefix, data.examples["train"], dtype="bfloat16", store=store)
    exact = extract(prefix, data.examples["train"], dtype="float32", store=store)
    rows = np.arange(5)
    np.testing.assert_allclose(loud.gather(rows).astype("float32"), exact.gather(rows), rtol=8e-3)


def test_costs_are_the_published_ones():
    """Multiply-adds in the papers: ResNet-50 3.8–4.1, MobileNetV2 0.30, VGG16 15.5 (10⁹, 224 px)."""
    from keras_transfer.models.sources.backbones import build_backbone

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
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setattr(engines, "_has_bfloat16", lambda: True)
    monkeypatch.setattr(engines, "engine_version", lambda name: name)
    made = []

    def engine(name, error, gain):
        def make(prefix):
            made.append(name)

            def run(images):
                return np.asarray(prefix.model(images)) * (1.0 + error)

            run.seconds = 1.0 / gain
            return run

        return make

    names = ("keras", "openvino_bf16", "openvino_f32")
    for name, error, gain in zip(names, (0.0, *errors), (1.0, *gains)):
        monkeypatch.setitem(ENGINES, name, engine(name, error, gain))
    monkeypatch.setattr(engines, "_seconds", lambda run, images: run.seconds)
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
    engines._made_last.clear()  # as in another process
    prefix = prefix_of(tiny_model_of(data), 2)
    # What was found is remembered: an engine that is trusted is made at once, and no other.
    again = choose(data, "auto", prefix, left)
    assert again.name == expected and made == [expected]


def test_the_work_on_texts_is_counted_in_tokens(monkeypatch, tmp_path):
    asked = []

    def choice(requested, prefix, sample, remaining):
        asked.append(remaining)
        return choose_engine("keras", prefix)

    monkeypatch.setattr(extraction, "choose_engine", choice)
    texts = ["red walls of red", "blue"], [0, 1]
    data = from_arrays(texts, val=texts)
    prefix = prefix_of(build_model(tiny_bert(), Classification("ab")), 3)
    extract(prefix, data.examples["train"], store=Store(tmp_path))
    assert asked == [6 + 3]  # with the marks for start and end


def test_openvino_asked_for_need_not_gain(data, monkeypatch, tmp_path):
    fakes(monkeypatch, tmp_path, (0.02, 0.0), (5.0, 0.9))
    prefix = prefix_of(tiny_model_of(data), 2)
    assert engines.usable_engines("openvino", prefix) == []
    assert choose(data, "openvino", prefix).name == "openvino_f32"
    assert engines.usable_engines("openvino", prefix) == ["openvino_f32"]
    assert choose(data, "keras", prefix).reason == "as requested"


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
