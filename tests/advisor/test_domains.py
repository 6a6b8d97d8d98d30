"""Distances of two datasets and their verdicts, with and without labels."""

import json
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
from PIL import Image

import keras_transfer as kt
from keras_transfer.advisor.distances import Estimate
from keras_transfer.advisor.domains import DomainDistance, domain_distance
from keras_transfer.cli.demo import small_backbone
from keras_transfer.data import Examples, from_arrays
from keras_transfer.data.arrays import Arrays
from keras_transfer.errors import InputError
from keras_transfer.features import extraction
from keras_transfer.features.store import Store
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification

COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store for all tests, so that features of the same images are computed once."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return build_model(small_backbone(), Classification(("a", "b", "c")), image_size=32)


def images(seed, count=60, darker=0):
    """Return (images, labels): one noisy color per class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    made = COLOURS[labels][:, None, None] + rng.normal(0, 25, (count, 32, 32, 3)) - darker
    # Each image has a brightness of its own, so that images vary more than their noise.
    made += rng.normal(0, 20, (count, 1, 1, 1))
    return np.clip(made, 0, 255).astype("uint8"), labels


def dataset(*args, **kwargs):
    return from_arrays(images(*args, **kwargs), val_split=0.2, progress=False)


def test_a_darker_target_differs(model, store):
    found = domain_distance(dataset(0), dataset(1, darker=60), backbone=model, store=store)
    assert found.images == (48, 48)
    assert found.proxy_a.value > 1
    assert found.mmd.p_value == 0.001
    assert found.frechet > 3 * found.frechet_by_chance
    assert found.source_accuracy > 0.9 and found.chance == pytest.approx(1 / 3)
    assert found.worth_trying and found.verdict.startswith("Adaptation is worth trying")


def test_other_images_of_one_kind_do_not_differ(model, store):
    found = domain_distance(dataset(0), dataset(1), backbone=model, store=store)
    assert abs(found.proxy_a.value) < 0.6
    assert found.mmd.p_value > 0.02
    assert found.frechet < 2 * found.frechet_by_chance
    assert not found.worth_trying and "looks much like the source" in found.verdict


def test_a_dataset_has_no_distance_to_itself(model, store):
    data = dataset(0)
    found = domain_distance(data, data, backbone=model, store=store)
    assert found.proxy_a.value == pytest.approx(0)
    assert found.mmd.value <= 0 and found.mmd.p_value > 0.9
    assert found.frechet == pytest.approx(0, abs=1e-6)


def test_labels_of_the_target_are_not_used(model, tmp_path):
    pixels, labels = images(1, darker=60)
    found = [
        domain_distance(dataset(0), target, backbone=model, store=Store(tmp_path / str(i)))
        for i, target in enumerate(
            (
                Examples(Arrays(pixels), labels),
                Examples(Arrays(pixels), labels[::-1]),
                Examples(Arrays(pixels), np.random.default_rng(0).normal(size=(60, 2))),
            )
        )
    ]
    assert found[0].to_dict() == found[1].to_dict() == found[2].to_dict()


def test_shuffled_labels_of_the_source_are_not_separable(model, store):
    pixels, labels = images(0)
    shuffled = np.random.default_rng(0).permutation(labels)
    source = from_arrays((pixels, shuffled), val_split=0.2, progress=False)
    found = domain_distance(source, dataset(1, darker=60), backbone=model, store=store)
    assert found.differ and found.separable is False and not found.worth_trying
    assert "source's classes can hardly be told apart" in found.verdict


def test_a_source_without_classes_gives_no_verdict(model, store):
    source = Examples(Arrays(images(0)[0]), np.zeros((60, 2), "float32"))
    found = domain_distance(source, dataset(1, darker=60), backbone=model, store=store)
    assert found.differ and found.separable is None and not found.worth_trying
    assert "cannot be determined without at least two classes" in found.verdict


def test_the_result_is_cached(model, store, monkeypatch):
    first = domain_distance(dataset(0), dataset(1), backbone=model, store=store)
    monkeypatch.setattr(extraction, "extract", None)
    assert domain_distance(dataset(0), dataset(1), backbone=model, store=store) == first
    with pytest.raises(TypeError):  # another seed is computed anew
        domain_distance(dataset(0), dataset(1), backbone=model, store=store, seed=1)


def test_larger_domains_are_sampled(model, store):
    found = domain_distance(dataset(0), dataset(1, 90), backbone=model, most=20, store=store)
    assert max(found.images) <= 21
    assert found.chance == pytest.approx(1 / 3, abs=0.05)  # each class in its share


def test_plain_data_and_table(model, store):
    found = domain_distance(dataset(0), dataset(1), backbone=model, store=store)
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["mmd"]["p_value"] == found.mmd.p_value and plain["worth_trying"] is False
    assert f"| proxy-A | {found.proxy_a.value:.4f} ± " in found.table()


@pytest.fixture
def far():
    return DomainDistance(
        *("a", "b", "net", 32, (100, 100)),
        proxy_a=Estimate(1.5, 0.1),
        mmd=Estimate(0.2, 0.01, 0.001),
        frechet=1.0,
        frechet_by_chance=0.1,
        source_accuracy=0.9,
        source_error=0.02,
        chance=0.5,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"proxy_a": Estimate(0.99, 0.01)},  # too little to matter
        {"proxy_a": Estimate(1.5, 0.8)},  # not sure
        {"mmd": Estimate(0.2, 0.01, 0.02)},
        {"source_accuracy": 0.74},
        {"source_accuracy": 0.8, "source_error": 0.16},
        {"source_accuracy": None},
    ],
)
def test_each_doubt_changes_the_verdict(far, change):
    assert far.worth_trying
    assert not replace(far, **change).worth_trying


def test_too_few_images_are_reported_before_keras_is_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_transfer.features.extraction", None)
    few = Examples(Arrays(np.zeros((9, 8, 8, 3), "uint8")), np.zeros(9, "int32"))
    for source, target, role in ((few, dataset(0), "source"), (dataset(0), few, "target")):
        with pytest.raises(InputError, match=rf"The {role} .* has 1 distinct"):
            domain_distance(source, target, backbone="mobilenet_0.25")
    with pytest.raises(InputError, match="no_such"):
        domain_distance(dataset(0), dataset(1), backbone="no_such")


def cast(path):
    """Return a hand in the light of a bulb: less green, little blue."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return (pixels * [1.0, 0.75, 0.4]).astype("uint8")


def test_real_hands_under_a_color_cast(real_data, real_weights, store):
    files = {d: sorted((real_data / "sign_digits" / str(d)).iterdir())[:100] for d in (0, 1, 2)}
    labels = np.repeat([0, 1, 2], 30)

    def domain(start, step, read=lambda path: np.asarray(Image.open(path).convert("RGB"))):
        chosen = [read(path) for d in files for path in files[d][start::step][:30]]
        return Examples(Arrays(chosen), labels)

    options = {"backbone": "mobilenet_0.25", "image_size": 96, "store": store}
    same = kt.advisor.domain_distance(domain(0, 3), domain(1, 3), **options)
    other = kt.advisor.domain_distance(domain(0, 3), domain(1, 3, cast), **options)
    assert other.worth_trying and not same.worth_trying
    assert other.proxy_a.value > 1.5 > 0.7 > abs(same.proxy_a.value)
    assert other.mmd.value > 10 * abs(same.mmd.value)
    assert other.frechet > 2 * same.frechet
