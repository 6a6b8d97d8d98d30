"""What the keys of the caches are made of: never the same for other numbers, always for the same."""

import copy
import json
import re
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import tiny_backbone, tiny_bert

from keras_transfer.data import Augmentation, View
from keras_transfer.data.readers import digest_files
from keras_transfer.errors import InputError
from keras_transfer.features import prefix as engines
from keras_transfer.features.caching import Supply
from keras_transfer.features.extraction import _table
from keras_transfer.features.prefix import Prefix, prefix_of
from keras_transfer.features.store import Store, cached_result, concluded, digest_of
from keras_transfer.modalities.reading import digest
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.schedules.phases import Phase


@pytest.fixture
def model():
    return build_model(tiny_backbone(), Classification("ab"), image_size=32)


class Noted(Store):
    """A store that notes the tables it is asked for."""

    asked = None

    def table(self, identity, about):
        self.asked = identity, about
        return super().table(identity, about)


@pytest.fixture
def noted(tmp_path):
    return Noted(tmp_path / "store", limit=1 << 20)


# -- keys on disk: those of an earlier release are found, or all of its features are computed again --


def test_keys_are_those_of_earlier_releases(tmp_path, noted):
    table = noted.table({"b": [1, None], "a": "ü"}, {"shown": 1})
    assert table.folder == noted.root / "72381ebaa57336f976468bf07ea75dae"
    assert table.about == {"shown": 1}
    assert noted.table({"a": "ü", "b": [1, None]}, {}).key == table.key  # in any order
    assert (
        digest_of([b"0" * 16, b"1" * 16], np.arange(3, dtype="int64"))
        == "e8d7d30c256dac3524ec49da1ed8a3f7"
    )
    assert digest(b"content").hex() == "c681ff421fbd7af6dc373a7ced20fbeb"
    assert digest(b"con", b"tent") == digest(b"content") != digest(b"contents")
    (tmp_path / "a.png").write_bytes(b"content")
    assert digest_files([str(tmp_path / "a.png")], progress=False) == [digest(b"content")]
    with pytest.raises(InputError, match=r"gone\.png can no longer be read: No such file"):
        digest_files([str(tmp_path / "gone.png")], progress=False)


def test_a_digest_of_lists_tells_where_each_ends():
    one, two, three = (bytes([i] * 16) for i in range(3))
    numbers = np.arange(6)
    found = [
        digest_of(),
        digest_of([]),
        digest_of([], []),
        digest_of([one, two, three]),
        digest_of([one], [two, three]),
        digest_of([one, two], [three]),
        digest_of(numbers),
        digest_of(numbers.reshape(2, 3)),
        digest_of(numbers.reshape(3, 2)),
        digest_of(numbers.reshape(2, 3).T),
        digest_of(numbers.astype("float64")),
        digest_of(numbers[:3], numbers[3:]),
    ]
    assert len(set(found)) == len(found)
    # How an array lies in memory is no part of what it says.
    assert digest_of(np.asfortranarray(numbers.reshape(2, 3))) == digest_of(numbers.reshape(2, 3))


# -- features -------------------------------------------------------------------------------------


def test_what_features_are_found_by(model, noted, monkeypatch):
    prefix = prefix_of(model, 2)
    base = {
        "format": 3,
        "keras": keras.__version__,
        "prefix": prefix.fingerprint,
        "image_size": 32,
        "crop": None,
        "depth": "auto",
    }
    assert prefix.identity == base
    _table(noted, prefix, "keras", View(), "float16")
    identity, about = noted.asked
    view = {"kind": "plain", "number": 0, "augmentation": None}
    backend = f"keras {keras.backend.backend()}"
    assert identity == {**base, "engine": backend, "view": view, "dtype": "float16"}
    assert about == {
        "backbone": "tiny, 2 of 3 stages",
        "image_size": 32,
        "shape": [7, 7, 16],
        "dtype": "float16",
        "engine": "keras",
        "view": "plain",
    }
    _table(noted, prefix, "keras", View("mirror"), "float32")
    assert noted.asked[0]["view"] == {**view, "kind": "mirror"}
    assert noted.asked[1]["view"] == "mirror"
    monkeypatch.setattr(engines.importlib.metadata, "version", {"openvino": "2025.9"}.__getitem__)
    table = _table(noted, prefix, "openvino_bf16", View("augmented", 1, Augmentation()), "float32")
    identity, about = noted.asked
    assert identity["engine"] == "openvino_bf16 2025.9" and about["engine"] == "openvino_bf16"
    assert identity["view"]["number"] == 1 and identity["view"]["augmentation"]["flip"] is True
    assert about["view"] == "augmented 2"  # for people, who count from one
    assert table.about == about


def test_what_is_remembered_of_an_engine_is_of_its_release(model, monkeypatch):
    asked = []
    monkeypatch.setattr(engines, "_others", lambda: ["openvino_f32"])
    monkeypatch.setattr(engines, "remembered", lambda *key: asked.append(key))
    monkeypatch.setattr(engines.importlib.metadata, "version", lambda name: f"{name} 7")
    prefix = prefix_of(model, 1)
    assert engines.usable_engines("auto", prefix) == ["keras"]
    expected = f"openvino_f32 openvino 7 {keras.__version__} {prefix.fingerprint}"
    assert asked == [("engines", expected)]


def test_a_prefix_is_cut_where_it_says(model):
    backbone = model.get_layer("tiny")
    for stages, shape in ((1, (15, 15, 8)), (2, (7, 7, 16)), (3, (16,))):
        prefix = prefix_of(model, stages)
        assert prefix.name == f"tiny, {stages} of 3 stages"
        assert (prefix.shape, prefix.image_size, prefix.takes) == (shape, 32, "uint8")
    assert prefix.model is backbone
    part = Prefix(backbone.between(1, 2), "a part", takes="float32").identity
    assert "crop" not in part and part["image_size"] == 15  # from a cut, framing is no part of it
    texts = prefix_of(build_model(tiny_bert(), Classification("ab")), 1)
    assert (texts.name, texts.takes) == ("tiny_bert, 1 of 3 stages", "int32")
    larger = prefix_of(model, 2, 64)
    assert (larger.image_size, larger.shape) == (64, (15, 15, 16))
    assert larger.fingerprint != prefix_of(model, 2).fingerprint


def test_phases_of_one_cut_share_a_prefix_and_its_engine(model):
    def phase(frozen, size):
        return SimpleNamespace(phase=Phase("p", epochs=1), frozen=frozen, image_size=size)

    def note(prefix, *_, **__):
        given.append(prefix)
        return SimpleNamespace(engine="keras")

    given: list[Prefix] = []
    phases = [phase(2, 32), phase(2, 32), phase(1, 32), phase(2, 64), phase(2, 32)]
    caching = [SimpleNamespace(dtype="float32", where="memory")] * 5
    data = SimpleNamespace(examples={"train": None})
    supply = Supply(
        model, data, phases, caching, [(View(),)] * 5,
        engine="keras", engines={}, memory=None, extract=note,
    )  # fmt: skip
    for i in range(5):
        supply.of(i)
    assert [(p.name, p.image_size) for p in given] == [
        ("tiny, 2 of 3 stages", 32),
        ("tiny, 2 of 3 stages", 32),
        ("tiny, 1 of 3 stages", 32),
        ("tiny, 2 of 3 stages", 64),
        ("tiny, 2 of 3 stages", 32),
    ]
    assert given[0] is given[1] is not given[4]  # the third phase trains the second stage


# -- conclusions ----------------------------------------------------------------------------------


def test_what_conclusions_are_found_by(model, noted):
    prefix = prefix_of(model, 3)
    answer = {"a": [0.1 + 0.2, None]}
    assert concluded(prefix, noted, "sums 1", lambda: answer, of="9 images", seed=4) == answer
    identity, about = noted.asked
    assert identity == {"what": "sums 1", **prefix.identity, "engine": "keras", "seed": 4}
    assert about == {
        "backbone": "tiny, 3 of 3 stages: 9 images",
        "image_size": 32,
        "engine": "keras",
        "view": "plain",
        "dtype": "uint8",
        "shape": [],
    }
    other = {"b": 1}
    options = dict(of="9 images", seed=4)
    assert concluded(prefix, noted, "sums 1", lambda: other, **options) == answer
    for change in ({"seed": 5}, {"engine": "openvino"}):
        assert concluded(prefix, noted, "sums 1", lambda: other, **{**options, **change}) == other
    assert noted.asked[0]["engine"] == noted.asked[1]["engine"] == "openvino"
    assert concluded(prefix, noted, "sums 2", lambda: other, **options) == other
    concluded(prefix, noted, "sums 1", lambda: other, **options, view="scores")
    assert noted.asked[1]["view"] == "scores" and "view" not in noted.asked[0]


def test_the_newest_conclusion_stays_where_there_is_no_room(tmp_path):
    store = Store(tmp_path / "store", limit=0)
    cached_result(store, "first", {}, {}, dict)
    assert cached_result(store, "second", {}, {"of": "it"}, lambda: {"a": 1}) == {"a": 1}
    (table,) = store.list()
    assert table.about == {"of": "it", "dtype": "uint8", "shape": []}
    assert cached_result(store, "second", {}, {}, dict) == {"a": 1}


# -- fingerprints ---------------------------------------------------------------------------------


def tensor(name, node=0, index=0):
    config = {"shape": [None, 4], "keras_history": [name, node, index]}
    return {"class_name": "__keras_tensor__", "config": config}


def layer(name, *inputs, kind="Dense", **config):
    return {
        "name": name,
        "class_name": kind,
        "config": {"name": name, "trainable": True, **config},
        "inbound_nodes": [{"args": list(inputs), "kwargs": {}}] if inputs else [],
    }


def graph(name, layers, inputs, outputs):
    return {
        "name": name,
        "trainable": True,
        "layers": layers,
        "input_layers": inputs,
        "output_layers": outputs,
    }


def network(a="a", b="b", inner="inner"):
    """Configuration of two layers and a network of two layers, as Keras writes it."""
    pair = graph(
        inner, [layer(b, kind="InputLayer"), layer(a, tensor(b), units=2)], [[b, 0, 0]], [[a, 0, 0]]
    )
    policy = {"class_name": "DTypePolicy", "config": {"name": "float32"}}
    return graph(
        "whole",
        [
            layer(a, kind="InputLayer"),
            layer(b, tensor(a), units=3, dtype=policy, activation="relu"),
            {**layer(inner, tensor(b), kind="Functional"), "config": pair},
            layer("sum", tensor(inner), tensor(b), kind="Add"),
        ],
        [[a, 0, 0]],
        [["sum", 0, 0]],
    )


def fingerprint(config, *weights):
    model = SimpleNamespace(get_config=lambda: config, weights=[np.array(w) for w in weights])
    return Prefix(model, "p").fingerprint


def changed(change):
    config = copy.deepcopy(network())
    change(config)
    return config


def test_names_and_what_trains_are_no_part_of_a_fingerprint():
    plain = fingerprint(network())
    assert re.fullmatch(r"[0-9a-f]{32}", plain)
    assert fingerprint(network("dense_7", "dense_8", "functional_9")) == plain
    # A layer may be called like a setting, or a kind of layer.
    assert fingerprint(network("activation", "units", "layers")) == plain
    assert fingerprint(network("trainable", "name", "output_layers")) == plain
    for change in (
        lambda c: c.update(name="other", trainable=False),
        lambda c: c["layers"][1]["config"].update(trainable=False),
        lambda c: c["layers"][2]["config"].update(framing={"crop": 1.0}),  # `identity` has its own
        lambda c: c.update(layers=tuple(c["layers"]), output_layers=(("sum", 0, 0),)),
        lambda c: c.update(layers=c.pop("layers")),  # another order of keys
    ):
        assert fingerprint(changed(change)) == plain


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["layers"][1]["config"].update(units=4),
        lambda c: c["layers"][1]["config"].update(activation="tanh"),
        lambda c: c["layers"][1]["config"].update(bias=None),
        lambda c: c["layers"][1]["config"]["dtype"]["config"].update(name="bfloat16"),
        lambda c: c["layers"][1]["config"]["dtype"].update(class_name="QuantizedDTypePolicy"),
        lambda c: c["layers"][1].update(class_name="EinsumDense"),
        lambda c: c["layers"][1].update(inbound_nodes=[]),
        lambda c: c["layers"][3]["inbound_nodes"][0].update(args=[tensor("inner"), tensor("a")]),
        lambda c: c["layers"][3]["inbound_nodes"][0].update(args=[tensor("b"), tensor("inner")]),
        lambda c: c["layers"][3]["inbound_nodes"][0].update(args=[tensor("inner"), tensor("b", 1)]),
        lambda c: c["layers"][3]["inbound_nodes"][0].update(
            args=[tensor("inner"), tensor("b", 0, 1)]
        ),
        lambda c: c["layers"][2]["config"].update(output_layers=[["b", 0, 0]]),
        lambda c: c["layers"][2]["config"]["layers"][1]["config"].update(units=9),
        lambda c: c["layers"].reverse(),
        lambda c: c.update(input_layers=[["b", 0, 0]]),
        lambda c: c.update(input_layers=[["a", 1, 0]]),
        lambda c: c.update(output_layers=[["inner", 0, 0]]),
        lambda c: c.update(output_layers=[["sum", 0, 1]]),
        lambda c: c.update(output_layers=[["sum", 0, 0], ["b", 0, 0]]),
        lambda c: c.update(output_layers={"x": ["sum", 0, 0]}),
    ],
)
def test_all_else_is(change):
    assert fingerprint(changed(change)) != fingerprint(network())


def test_outputs_may_have_names_of_their_own():
    def named(x, y, a="a"):
        config = network(a)
        config["output_layers"] = {x: ["sum", 0, 0], y: [[a, 0, 0]]}
        return fingerprint(config)

    assert named("x", "y") == named("x", "y", a="other")
    assert named("x", "y") != named("x", "z") and named("x", "y") != named("y", "x")
    flat = {**network(), "output_layers": ["sum", 0, 0]}  # of one output, as Keras 3 writes it
    renamed = {**network("c", "d"), "output_layers": ["sum", 0, 0]}
    assert fingerprint(flat) == fingerprint(renamed) != fingerprint(network())
    assert fingerprint({**network(), "input_layers": []}) != fingerprint(network())


def test_a_stack_of_layers_is_no_graph():
    """`Sequential` has layers without a name outside of their settings, and no outputs."""

    def stacked(name, units):
        one = {"class_name": "Dense", "config": {"name": name, "units": units}}
        config = network()
        config["layers"][1]["config"] = {"name": "stack", "layers": [one]}
        return fingerprint(config)

    assert stacked("a", 1) == stacked("other", 1) != stacked("a", 2)


def test_every_weight_is_part_of_a_fingerprint():
    config = network()
    found = {
        fingerprint(config),
        fingerprint(config, [1.0, 2.0]),
        fingerprint(config, [2.0, 1.0]),
        fingerprint(config, [1.0, 2.0], [3.0]),
        fingerprint(config, [3.0], [1.0, 2.0]),
        fingerprint(config, np.float32([1.0, 2.0])),
    }
    assert len(found) == 6


def test_settings_that_json_does_not_have_are_part_of_it_too():
    config = {"class_name": "Mine", "config": {"path": Path("a"), "1": None}}
    other = {"class_name": "Mine", "config": {"path": Path("b"), "1": None}}
    assert fingerprint(config) == fingerprint(json.loads(json.dumps(config, default=str)))
    assert fingerprint(config) != fingerprint(other)
