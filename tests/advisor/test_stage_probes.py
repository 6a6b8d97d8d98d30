"""Probes after every stage: activations, random copy, accuracies and conclusions."""

import json
import random
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from keras_transfer.advisor import untrained
from keras_transfer.advisor.stage_probes import StageProbes, probe_stages
from keras_transfer.advisor.untrained import random_copy
from keras_transfer.cli.demo import small_backbone
from keras_transfer.data import from_arrays, from_directory
from keras_transfer.data.arrays import Arrays
from keras_transfer.data.examples import Examples, ImageData, Target
from keras_transfer.errors import InputError
from keras_transfer.features import extraction
from keras_transfer.features.extraction import extract
from keras_transfer.features.prefix import ENGINES, pooled_stages, prefix_of, stage_columns
from keras_transfer.features.probe import cross_validated_probe
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.stages import Backbone, backbone_of

NAME, SIZE = "mobilenet_0.25", 64


def model_of(data, weights=None, size=SIZE, name=NAME):
    keras.utils.set_random_seed(0)
    return build_model(name, Classification(data.class_names), image_size=size, weights=weights)


# -- activations ----------------------------------------------------------------------------------


def test_pooled_stages_are_the_averaged_outputs(data, store):
    model = model_of(data)
    backbone, examples = backbone_of(model), data.examples["train"]
    prefix = pooled_stages(backbone)
    rows = np.array([4, 0, 27])
    found = extract(prefix, examples, store=store).gather(rows)
    columns = stage_columns(backbone)
    assert len(columns) == len(backbone.stages) == 14
    assert columns[-1].stop == found.shape[1] == prefix.size
    for stages in (1, 6, 13, 14):
        expected = extract(prefix_of(model, stages), examples, store=store).gather(rows)
        if expected.ndim == 4:
            expected = expected.mean(axis=(1, 2))
        got = found[:, columns[stages - 1]]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
        assert expected.std() > 0
    # The last is what the head sees.
    (batch,) = data.batches("train", image_size=SIZE, batch_size=100)
    features = np.asarray(backbone(np.asarray(batch[0])[rows], training=False))
    np.testing.assert_allclose(found[:, columns[-1]], features, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("engine", ["keras", "openvino_f32"])
def test_engines_run_pooled_stages(engine, rng):
    if engine != "keras":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    backbone = Backbone(*feature_map(small_backbone()))
    prefix = pooled_stages(backbone)
    images = rng.integers(0, 256, (5, 32, 32, 3), "uint8")
    expected = np.asarray(prefix.model(images, training=False))
    np.testing.assert_allclose(ENGINES[engine](prefix)(images), expected, rtol=1e-3, atol=1e-5)
    # Without pooling of its own the last stage is averaged like the others.
    last = np.asarray(backbone(images, training=False)).mean(axis=(1, 2))
    np.testing.assert_allclose(expected[:, stage_columns(backbone)[-1]], last, rtol=1e-4)


def feature_map(backbone):
    """Return (inputs, outputs) of a backbone without its pooling, for 32 px."""
    inputs = keras.Input((32, 32, 3))
    part = keras.Model(backbone.inputs[0], backbone.layers[-1].input)
    return inputs, keras.layers.Activation("relu")(part(inputs))


def test_another_build_has_the_same_fingerprint(data):
    """Layers created in between and trainable flags do not matter."""
    first = pooled_stages(backbone_of(model_of(data))).fingerprint
    backbone = backbone_of(model_of(data))
    for layer in backbone.layers[:20]:
        layer.trainable = False
    assert pooled_stages(backbone).fingerprint == first
    assert prefix_of(backbone, 14).fingerprint != first


# -- the random copy -----------------------------------------------------------------------------------


def test_the_copy_is_random_and_reproducible(data, store, monkeypatch):
    backbone = backbone_of(model_of(data))
    before = [w.copy() for w in backbone.get_weights()]
    random.seed(7)
    examples = data.examples["train"]
    copy = random_copy(backbone, examples, store=store)
    drawn = random.random()
    random.seed(7)
    assert drawn == random.random()  # the state was put back
    for old, new in zip(before, backbone.get_weights()):
        np.testing.assert_array_equal(old, new)
    assert copy.layers[2].weights[0].shape == backbone.layers[2].weights[0].shape

    def refuse(*_):
        raise AssertionError("the statistics were there already")

    monkeypatch.setattr(untrained, "_calibrate", refuse)
    again = random_copy(backbone, examples, store=store)
    for a, b in zip(copy.get_weights(), again.get_weights()):
        np.testing.assert_array_equal(a, b)
    for change in ({"seed": 1}, {"examples": examples.take(np.arange(20))}):
        with pytest.raises(AssertionError, match="there already"):
            random_copy(backbone, **{"examples": examples, **change}, store=store)
    kernels = [w for w in zip(before, copy.get_weights()) if w[0].ndim > 1]
    assert all(np.abs(own - other).max() > 0 for own, other in kernels)


def test_batch_norms_of_the_copy_fit_the_images(data, store):
    """After calibration every BatchNorm gives mean 0 and variance 1, as far as batches agree."""
    backbone = backbone_of(model_of(data))
    examples = data.examples["train"]
    copy = random_copy(backbone, examples, store=store)
    norms = [x for x in copy.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert len(norms) == 27 and all(norm.momentum == 0.99 for norm in norms)
    (batch,) = data.batches("train", image_size=SIZE, batch_size=100)
    for norm in (norms[0], norms[9]):
        given = keras.Model(copy.inputs[0], norm.input)
        order = sorted(range(len(examples)), key=examples.digests.__getitem__)
        images = np.asarray(batch[0])[order]
        parts = [np.asarray(given(images[i : i + 16])) for i in range(0, len(images), 16)]
        if norm is norms[0]:  # nothing before it was calibrated: exactly the mean of the batches
            means = np.mean([part.mean((0, 1, 2)) for part in parts], axis=0)
            variances = np.mean([part.var((0, 1, 2)) for part in parts], axis=0)
            np.testing.assert_allclose(norm.moving_mean, means, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(norm.moving_variance, variances, rtol=1e-3, atol=1e-6)
        whole = keras.Model(copy.inputs[0], norm.output)(batch[0])
        assert abs(float(np.mean(whole))) < 0.1
        assert 0.7 < float(np.asarray(whole).std()) < 1.3


def test_without_batch_norm_nothing_is_measured(data, store):
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    backbone = Backbone(inputs, keras.layers.GlobalAveragePooling2D()(x), name="plain")
    copy = random_copy(backbone, data.examples["train"], store=store)
    assert not store.root.exists()
    assert np.abs(copy.get_weights()[0] - backbone.get_weights()[0]).max() > 0
    # One stage only is a curve of one point.
    probes = probe_stages(backbone, data, store=store)
    assert [stage.number for stage in probes.stages] == [1]


# -- probes ---------------------------------------------------------------------------------------


def made(rows, others, chance=0.5, images=200):
    """Return probes with these accuracies after each stage; the first images are correct."""
    correct, other = (
        np.arange(images) < np.round(np.array(x)[:, None] * images) for x in (rows, others)
    )
    names = tuple(f"block_{i}" for i in range(len(rows)))
    return StageProbes("net", 96, names, correct, other, chance, 5)


def test_conclusions_by_hand():
    probes = made([0.6, 0.8, 0.9, 0.895, 0.9], [0.7, 0.6, 0.6, 0.6, 0.55])
    assert probes.signal and probes.best_stage == 3 and probes.stages_worth_keeping == 3
    assert probes.similarity == pytest.approx((0.9 - 0.7) / 0.3)
    third = probes.stages[2]
    assert (third.number, third.name, third.accuracy) == (3, "block_2", pytest.approx(0.9))
    assert third.error == pytest.approx(np.sqrt(0.9 * 0.1 / 199))
    assert third.gain == pytest.approx(0.3)
    assert third.gain_error == pytest.approx(np.sqrt(0.3 * 0.7 / 199))
    assert "After stage 1, random weights do better" in probes.verdict
    assert "falls" not in probes.verdict


def test_a_stage_within_one_standard_error_is_enough():
    # Behind by 1 image of 200: 0.005 ± 0.005; by 4: 0.02 ± 0.0099.
    assert made([0.88, 0.895, 0.9], [0.6] * 3).stages_worth_keeping == 2
    assert made([0.88, 0.88, 0.9], [0.6] * 3).stages_worth_keeping == 3


def test_the_verdict_reports_a_falling_curve():
    probes = made([0.6, 0.9, 0.7], [0.6, 0.6, 0.6])
    assert probes.stages_worth_keeping == 2
    assert "falls by 20.0 points" in probes.verdict


def test_pretrained_features_that_add_nothing():
    probes = made([0.6, 0.7, 0.8], [0.6, 0.7, 0.85])
    assert probes.signal and probes.stages_worth_keeping == 0
    assert probes.similarity == pytest.approx(-1 / 3)
    assert "no stage is worth keeping" in probes.verdict
    perfect = made([1.0, 1.0], [1.0, 1.0])
    assert perfect.similarity == 0 and perfect.stages_worth_keeping == 0


def test_chance_accuracy_is_not_a_signal():
    # 121 of 200 by chance alone: P = 0.002, and there are six probes.
    probes = made([0.5, 0.605, 0.52], [0.5, 0.5, 0.45])
    assert not probes.signal
    assert (probes.best_stage, probes.similarity, probes.stages_worth_keeping) == (None,) * 3
    assert probes.verdict.startswith("No signal") and "best 60.5 %" in probes.verdict
    assert made([0.5, 0.65, 0.52], [0.5, 0.5, 0.45]).signal
    # Nine of ten images are of one class: naming it always is no signal.
    assert not made([0.9, 0.91], [0.9, 0.9], chance=0.9).signal


def test_random_labels_rarely_show_a_signal(rng):
    """Many stages, many draws: the level is 0.1 %."""
    features = [rng.normal(size=(90, d)) for d in (12, 40)]
    passed = 0
    for _ in range(5):
        labels = rng.permutation(np.repeat([0, 1, 2], 30))
        found = np.stack([cross_validated_probe(x, labels).correct for x in features])
        passed += StageProbes("net", 96, ("a", "b"), found, found, 1 / 3, 5).signal
    assert passed == 0


def test_copies_count_once_and_samples_are_stratified(colours, store):
    for i in range(6):
        shutil.copy(colours / "red" / "0.png", colours / "red" / f"copy {i}.png")
    for i in range(8):
        (colours / "blue" / f"{i}.png").unlink()
    data = from_directory(colours, progress=False)
    different = len(set(data.examples["train"].digests))
    head = Classification(data.class_names)
    model = build_model(small_backbone(), head, image_size=32)
    probes = probe_stages(model, data, store=store)
    assert probes.images == different < len(data.examples["train"])
    fewer = probe_stages(model, data, store=store, most=15)
    assert 12 <= fewer.images <= 18


# -- real images --------------------------------------------------------------------------------


def test_real_weights_do_better_than_random_ones(real_weights, real_data, store, monkeypatch):
    data = from_directory(real_data / "sign_digits", progress=False)
    model = model_of(data, "imagenet", 96)
    probes = probe_stages(model, data, most=200, store=store)
    assert probes.signal and probes.images == 200
    assert all(s.gain > 2 * s.gain_error for s in probes.stages[5:])
    assert probes.similarity > 0.3
    assert 3 <= probes.stages_worth_keeping <= probes.best_stage <= 14

    # The same again computes nothing, and comes to the same numbers.
    def refuse(*_):
        raise AssertionError("the features were there already")

    keras.backend.clear_session()
    with monkeypatch.context() as patch:
        patch.setattr(extraction, "choose_engine", refuse)
        patch.setattr(untrained, "_calibrate", refuse)
        again = probe_stages(model_of(data, "imagenet", 96), data, most=200, store=store)
    assert again.to_dict() == probes.to_dict()

    # Labels dealt out anew belong to no image.
    part = data.examples["train"]
    labels = np.random.default_rng(0).permutation(part.labels)
    mixed = ImageData(data.class_names, {"train": Examples(part.images, labels)}, [], data.root)
    nothing = probe_stages(model, mixed, most=200, store=store)
    assert not nothing.signal and nothing.similarity is None
    assert "No signal" in nothing.verdict


# -- tables and plots --------------------------------------------------------------------------------


def test_the_plot_has_both_curves(tmp_path):
    probes = made([0.6, 0.8, 0.9, 0.9], [0.5, 0.6, 0.6, 0.55])
    probes.draw(tmp_path / "curve.png")
    assert [file.name for file in tmp_path.iterdir()] == ["curve.png"]
    with Image.open(tmp_path / "curve.png") as image:
        assert image.format == "PNG" and min(image.size) > 400
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert (pixels[:3] == 255).all() and (pixels > 250).all(-1).mean() > 0.6
    for colour in ((0x0B, 0x6E, 0x4F), (0xB5, 0x65, 0x1D), (0x2C, 0x3E, 0x8F)):
        assert (np.abs(pixels - colour).max(-1) < 12).sum() > 100
    made([0.5, 0.5], [0.5, 0.5]).draw(tmp_path / "nothing.png", "shuffled")
    assert (tmp_path / "nothing.png").stat().st_size > 5000


def test_plain_data_and_table():
    probes = made([0.6, 0.8], [0.5, 0.6])
    found = json.loads(json.dumps(probes.to_dict()))
    assert found["stages"][1]["accuracy"] == pytest.approx(0.8)
    assert found["stages_worth_keeping"] == 2 and found["verdict"] == probes.verdict
    lines = probes.table().splitlines()
    assert len(lines) == 4 and "| 2 | `block_1` | 80.0 ± 2.8 | 60.0 ± 3.5 | 20.0 ± 2.8 |" in lines
    assert probes.verdict in str(probes)


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_other_tasks_are_probed_by_their_first_label_and_the_side_of_the_median(rng, task):
    level = (rng.permutation(20) >= 10) * 0.8
    images = (rng.integers(0, 40, (20, 32, 32, 3)) + 200 * level[:, None, None, None]).astype(
        "uint8"
    )
    dark = (level < 0.5).astype("float32")
    labels = np.stack([dark, 1 - dark], axis=1) if task == "multi_label" else level[:, None]
    target = Target(task, ("dark", "bright") if task == "multi_label" else ("level",))
    data = ImageData(target.names, {"train": Examples(Arrays(images), labels)}, [], "data", target)
    model = build_model(small_backbone(), Classification("ab"), image_size=32)
    probes = probe_stages(model, data, engine="keras")
    assert probes.images == 20
    assert probes.correct.mean(axis=1).max() >= 0.8


# -- invalid input ----------------------------------------------------------------------------------


def test_too_few_images_are_refused(rng):
    images = rng.integers(0, 256, (12, 32, 32, 3), "uint8")
    images[:10] = images[0]
    train = (images, np.array([0] * 10 + [1] * 2))
    data = from_arrays(train, (images[10:], [0, 1]), progress=False)
    with pytest.raises(InputError, match="1 of 2 classes have two different training images"):
        probe_stages(small_backbone(), data)


def test_a_backbone_without_a_size_is_refused(data):
    with pytest.raises(InputError, match="takes any image size"):
        probe_stages(small_backbone(), data)
