"""Scores and probes that are found again, and never where something else was asked for."""

import keras
import numpy as np
import pytest

from keras_transfer.advisor import stage_probes
from keras_transfer.advisor.scores import rank_scores
from keras_transfer.advisor.stage_probes import probe_stages
from keras_transfer.advisor.transferability import score_backbone
from keras_transfer.cli.demo import small_backbone
from keras_transfer.data.examples import Examples, ImageData
from keras_transfer.errors import InputError
from keras_transfer.features.prefix import prefix_of
from keras_transfer.features.store import Store, cached_result, digest_of
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.sources.backbones import build_backbone


@pytest.fixture
def model(data):
    keras.utils.set_random_seed(0)
    return build_model(small_backbone(), Classification(data.class_names), image_size=32)


class Asked(Exception):
    """Something was computed."""


@pytest.fixture
def refuse(monkeypatch):
    """From its call on, whatever looks at images or features raises `Asked`."""

    def ask(*_, **__):
        raise Asked

    def start():
        monkeypatch.setattr(stage_probes, "_probe_all", ask)
        monkeypatch.setattr("keras_transfer.advisor.untrained.random_copy", ask)
        monkeypatch.setattr("keras_transfer.features.extraction.extract", ask)

    return start


def with_labels(data, labels):
    train = Examples(data.examples["train"].images, labels)
    return ImageData(data.class_names, {"train": train}, [], data.root)


def test_the_same_scores_are_not_computed_again(model, data, store, refuse):
    first = score_backbone(model, data, store=store)
    shuffled = np.roll(data.examples["train"].labels, 5)
    other = score_backbone(model, with_labels(data, shuffled), store=store, name="other")
    assert first["probe"].value > other["probe"].value
    refuse()
    again = score_backbone(model, data, store=store, name="again")
    assert again.to_dict() == {**first.to_dict(), "backbone": "again"}
    assert (again.name, again.prior) == ("again", first.prior)
    np.testing.assert_array_equal(again.statistics, first.statistics)
    for key, score in first.scores.items():
        np.testing.assert_array_equal(again[key].residuals, score.residuals)
        assert again[key].share == score.share
    # Two that were read are ranked like two that were computed.
    assert rank_scores([again, first]).behind[0]["logme"] == (0.0, 0.0)
    found = score_backbone(model, with_labels(data, shuffled), store=store, name="other")
    assert found.to_dict() == other.to_dict()


def test_other_scores_are(model, data, store, refuse):
    score_backbone(model, data, store=store)
    refuse()
    score_backbone(model, data, store=store)
    fewer = data.examples["train"].take(np.arange(1, len(data.examples["train"])))
    fewer = ImageData(data.class_names, {"train": fewer}, [], data.root)
    for changed, images, options in (
        (model, data, {"seed": 1}),
        (model, data, {"most": 20}),
        (model, fewer, {}),
        (prefix_of(model, 2), data, {}),
    ):
        with pytest.raises(Asked):
            score_backbone(changed, images, store=store, **options)
    weight = model.layers[1].weights[0]
    weight.assign(weight + 1e-3)
    with pytest.raises(Asked):
        score_backbone(model, data, store=store)


def test_the_same_probes_are_not_computed_again(model, data, store, refuse):
    first = probe_stages(model, data, store=store)
    shuffled = with_labels(data, np.roll(data.examples["train"].labels, 5))
    other = probe_stages(model, shuffled, store=store)
    refuse()
    again = probe_stages(model, data, store=store)
    assert again.to_dict() == first.to_dict() != other.to_dict()
    assert again.correct.dtype == first.correct.dtype == bool
    np.testing.assert_array_equal(again.random_correct, first.random_correct)
    assert probe_stages(model, shuffled, store=store).to_dict() == other.to_dict()
    for options in ({"seed": 1}, {"most": 15}, {"image_size": 64}):
        with pytest.raises(Asked):
            probe_stages(model, data, store=store, **options)


def test_a_backbone_without_a_size_is_refused(data):
    with pytest.raises(InputError, match="takes any image size"):
        score_backbone(small_backbone(), data)


def test_what_is_damaged_is_computed_again(model, data, store, refuse):
    first = score_backbone(model, data, store=store)
    shards = {file.stat().st_size: file for file in store.root.rglob("*.shard")}
    damaged = [table for table in store.list() if table.about["view"] == "scores"]
    assert len(damaged) == 1 and "scores of" in damaged[0].about["backbone"]
    for file in shards.values():
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert score_backbone(model, data, store=store).to_dict() == first.to_dict()
    refuse()  # and kept again
    assert score_backbone(model, data, store=store).to_dict() == first.to_dict()


def test_nowhere_to_keep_it(tmp_path):
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "store")
    assert cached_result(store, "sum", {}, {}, lambda: {"a": [0.1 + 0.2, None]}) == {
        "a": [0.1 + 0.2, None]
    }


def test_digests_tell_order_and_kind():
    one, two = bytes(16), bytes([1] * 16)
    numbers = np.array([1, 2])
    found = {
        digest_of([one, two], numbers),
        digest_of([two, one], numbers),
        digest_of([one], numbers),
        digest_of([one, two], numbers[::-1]),
        digest_of([one, two], numbers.astype("int32")),
        digest_of([one, two]),
    }
    assert len(found) == 6 and digest_of([one, two], numbers.copy()) in found


FAMILIES = ["mobilenet_v3_small", "convnext_tiny", "densenet121"]


@pytest.mark.parametrize("name", FAMILIES)
def test_two_builds_are_one_network(name):
    """Keras counts the names of layers and operations on, and calls some like settings."""
    first, second = (build_backbone(name, image_size=32, weights=None) for _ in "ab")
    other = prefix_of(second, 1).fingerprint
    second.set_weights(first.get_weights())
    for stages in (1, len(first.stages)):
        assert prefix_of(first, stages).fingerprint == prefix_of(second, stages).fingerprint
    assert prefix_of(first, 1).fingerprint != other != prefix_of(first, 2).fingerprint


def test_other_graphs_of_the_same_weights_are_other_networks():
    """What is wired, computed or rounded otherwise has another fingerprint."""

    def network(activation="relu", order=(0, 1), dtype="float32"):
        inputs = keras.Input((8, 8, 3))
        layers = [keras.layers.Conv2D(3, 3, padding="same", dtype=dtype) for _ in "ab"]
        for layer in layers:
            layer.build((None, 8, 8, 3))
            layer.set_weights([np.ones((3, 3, 3, 3)), np.zeros(3)])
        x = inputs
        for i in order:
            x = layers[i](x)
            x = keras.layers.Activation(activation, dtype=dtype)(x)
        return keras.Model(inputs, keras.ops.add(x, x))

    from keras_transfer.features.prefix import Prefix

    plain = Prefix(network(), "a").fingerprint
    assert Prefix(network(), "b").fingerprint == plain
    for change in ({"activation": "tanh"}, {"order": (0, 0, 1)}, {"dtype": "mixed_bfloat16"}):
        assert Prefix(network(**change), "a").fingerprint != plain
