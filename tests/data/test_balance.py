"""Classes of unequal size: weights in the stream, equal draws, and what is measured of each class."""

import csv
from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import tiny_backbone, write_image
from sklearn.metrics import balanced_accuracy_score, classification_report

from keras_transfer.data import Examples, ImageData, from_directory
from keras_transfer.data.arrays import Arrays
from keras_transfer.data.batches import batches, sample_weights
from keras_transfer.data.examples import class_weights
from keras_transfer.data.order import epoch_order
from keras_transfer.errors import InputError
from keras_transfer.evaluation import evaluate
from keras_transfer.evaluation.measures import compute_metrics
from keras_transfer.features.extraction import training_batches
from keras_transfer.modalities.image.modality import Images
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification, LabelCrossentropy, MultiLabel, Regression
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.checkpoint import Progress
from keras_transfer.training.run_loop import TrainingRun
from keras_transfer.training.trainer import Trainer

NAMES = ("blue", "green", "red")
LABELS = np.repeat([0, 1, 2], [2, 5, 16]).astype("int32")


@pytest.fixture
def unequal(tmp_path):
    """DATA/{blue,green,red} with 6, 12 and 24 images."""
    for name, colour, count in zip(NAMES, np.eye(3)[::-1] * 160 + 40, (6, 12, 24)):
        for i in range(count):
            write_image(tmp_path / "data" / name / f"{i}.png", colour, noise=90, seed=i)
    return from_directory(tmp_path / "data", progress=False)


def new_trainer(schedule, head=None, **options):
    keras.utils.set_random_seed(0)
    head = head or Classification(NAMES, dropout=0)
    model = build_model(tiny_backbone(), head, image_size=32)
    return Trainer(model, schedule, **{"batch_size": 8, "cache": "memory", **options})


def history(run, column):
    with (run.path / "history.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file)]


# --- Weights ----------------------------------------------------------------------------------


def test_balanced_weights_by_hand():
    weights = class_weights("balanced", NAMES, LABELS)
    np.testing.assert_allclose(weights, [23 / 6, 23 / 15, 23 / 48], rtol=1e-6)
    assert weights[LABELS].mean() == pytest.approx(1)
    several = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [1, 0, 0]])
    # Each label by itself: 4 / (2 · n); the second one is nowhere, and no more than doubled.
    expected = [[4 / 4, 4 / 4], [4 / 8, 4 / 2], [4 / 2, 4 / 6]]
    np.testing.assert_allclose(class_weights("balanced", NAMES, several), expected, rtol=1e-6)
    given = {"red": 3.0, "blue": 0.5, "green": 1.0}
    assert class_weights(given, NAMES, LABELS).tolist() == [0.5, 1, 3]
    assert class_weights(given, NAMES, several).tolist() == [[1, 0.5], [1, 1], [1, 3]]


def test_sample_weights_of_every_kind_of_label():
    weights = tf.constant([2.0, 0.5, 1.0])
    assert sample_weights(tf.constant([2, 0, 1]), weights).numpy().tolist() == [1, 2, 0.5]
    mixed = tf.constant([[0.25, 0.75, 0], [0, 0, 1.0]])  # of MixUp: shares, not their argmax
    np.testing.assert_allclose(sample_weights(mixed, weights), [0.875, 1.0])
    several = tf.constant([[1, 0], [0, 1]])
    of_labels = tf.constant([[0.5, 2.0], [3.0, 4.0]])
    assert sample_weights(several, of_labels).numpy().tolist() == [[2, 3], [0.5, 4]]


def small_fit(stream, **options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(3)])  # fmt: skip
    model.compile("adam", Classification(NAMES).loss(), jit_compile=False)
    model.fit(stream, epochs=2, steps_per_epoch=3, verbose=0, **options)
    return model.get_weights()


def test_weights_are_those_of_keras(rng):
    """In the stream, and as `class_weight` of `fit`: the same training."""
    examples = Examples(Arrays(rng.integers(0, 255, (23, 8, 8, 3)).astype("uint8")), LABELS)
    options = {"image_size": 8, "batch_size": 8, "training": True}
    weights = class_weights("balanced", NAMES, LABELS)
    ours = small_fit(batches(examples, class_weights=weights, **options))
    keras_way = dict(enumerate(weights.tolist()))
    theirs = small_fit(batches(examples, **options), class_weight=keras_way)
    plain = small_fit(batches(examples, **options))
    for a, b, c in zip(ours, theirs, plain):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
        assert np.abs(a - c).max() > 1e-3


def test_label_loss_with_weights_agrees_with_tensorflow(rng):
    logits = rng.normal(size=(6, 4)).astype("float32")
    labels = (rng.random((6, 4)) < 0.4).astype("float32")
    loss = LabelCrossentropy()
    plain = keras.losses.BinaryCrossentropy(from_logits=True)
    assert float(loss(labels, logits)) == pytest.approx(float(plain(labels, logits)), rel=1e-6)
    smooth = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.2)
    assert float(LabelCrossentropy(0.2)(labels, logits)) == pytest.approx(
        float(smooth(labels, logits)), rel=1e-6
    )
    present = np.array([3.0, 1.0, 0.5, 2.0], "float32")
    weights = sample_weights(
        tf.constant(labels), tf.constant(np.stack([np.ones(4), present], axis=1), tf.float32)
    )
    expected = tf.nn.weighted_cross_entropy_with_logits(labels, logits, pos_weight=present)
    assert float(loss(labels, logits, weights)) == pytest.approx(float(tf.reduce_mean(expected)))


def test_several_labels_are_weighed_in_training(rng, tmp_path):
    """A phase's loss is the formula's, on images and labels of a stream."""
    labels = (rng.random((16, 3)) < [0.1, 0.5, 0.8]).astype("int32")
    images = Arrays(rng.integers(0, 255, (16, 32, 32, 3)).astype("uint8"))
    weights = class_weights("balanced", NAMES, labels)
    stream = batches(
        Examples(images, labels), image_size=32, batch_size=16, training=True,
        augmentation="none", class_weights=weights,
    )  # fmt: skip
    model = build_model(tiny_backbone(), MultiLabel(NAMES, dropout=0), image_size=32)
    model.trainable = False  # BatchNorm stands still
    model.compile("sgd", MultiLabel(NAMES).loss(), jit_compile=False)
    loss = model.fit(stream, steps_per_epoch=1, verbose=0).history["loss"][0]
    x, y, _ = next(iter(stream))
    logits, y = model.predict_on_batch(x), y.numpy()
    terms = np.logaddexp(0, logits) - y * logits
    expected = (np.where(y == 1, weights[:, 1], weights[:, 0]) * terms).mean()
    assert loss == pytest.approx(expected, rel=1e-4)


def test_a_trainer_weighs_and_a_phase_wins(unequal, tmp_path):
    def losses(name, phase_weights=None, **options):
        phase = Phase("p", "all", 1, 1e-3, augment="none", class_weights=phase_weights)
        run = new_trainer(Schedule("s", (phase,)), **options).fit(unequal, tmp_path / name)
        return history(run, "loss")

    plain = losses("plain")
    weighed = losses("weighed", balance="weights")
    assert weighed == losses("phase", "balanced") != plain
    ones = dict.fromkeys(NAMES, 1.0)
    np.testing.assert_allclose(losses("ones", ones, balance="weights"), plain, rtol=1e-6)
    np.testing.assert_allclose(losses("order", ones, balance="sampling"), plain, rtol=1e-6)
    # On images instead of activations the weights are the same.
    on_images = losses("images", balance="weights", cache="off")
    np.testing.assert_allclose(on_images, weighed, rtol=1e-4)


def test_the_closed_form_is_balanced_by_weights(unequal, tmp_path):
    def head(name, **options):
        phase = Phase("p", "all", 1, solver="logistic", **options.pop("phase", {}))
        trainer = new_trainer(Schedule("s", (phase,)), **options)
        trainer.fit(unequal, tmp_path / name)
        return trainer.model.layers[-1].kernel.numpy()

    by_phase = head("phase", phase={"class_weights": "balanced"})
    np.testing.assert_array_equal(head("weights", balance="weights"), by_phase)
    np.testing.assert_array_equal(head("sampling", balance="sampling"), by_phase)
    assert np.abs(head("plain") - by_phase).max() > 1e-4


def test_balance_that_means_nothing():
    schedule = Schedule("s", (Phase("p", "all", 1),))
    with pytest.raises(InputError, match="balance must be one of none, weights, sampling"):
        new_trainer(schedule, balance="equal")
    with pytest.raises(InputError, match="cannot be used for regression"):
        new_trainer(schedule, Regression(["weight"]), balance="weights")
    weighed = Schedule("s", (Phase("p", "all", 1, class_weights="balanced"),))
    with pytest.raises(InputError, match="cannot be used for regression"):
        new_trainer(weighed, Regression(["weight"]))
    with pytest.raises(InputError, match="one class per example"):
        new_trainer(schedule, MultiLabel("ab"), balance="sampling")
    new_trainer(schedule, MultiLabel("ab"), balance="weights")


# --- Equal draws ------------------------------------------------------------------------------


def drawn(epoch, seed=0, labels=LABELS):
    order, _ = epoch_order(len(labels), tf.constant(seed, tf.int64), tf.constant(epoch, tf.int64), labels)  # fmt: skip
    return order.numpy()


def test_each_class_is_drawn_equally_often():
    got_more = set()
    for epoch in range(20):
        order = drawn(epoch)
        assert len(order) == 23
        counts = np.bincount(LABELS[order], minlength=3)
        assert sorted(counts) == [7, 8, 8]
        got_more |= set(np.flatnonzero(counts == 8))
        for label, count in enumerate(counts):  # each image k or k + 1 times
            times = Counter(order[LABELS[order] == label].tolist())
            members = np.flatnonzero(label == LABELS)
            each = [times[i] for i in members]
            assert set(each) <= {count // len(members), -(-count // len(members))}
    assert got_more == {0, 1, 2}  # the odd draws are shared out


def test_draws_follow_from_seed_and_epoch():
    assert np.array_equal(drawn(3), drawn(3))
    assert not np.array_equal(drawn(3), drawn(4)) and not np.array_equal(drawn(3), drawn(3, 1))
    seen = {i for epoch in range(20) for i in drawn(epoch)}
    assert seen == set(range(23))  # no image of the large class is left out for ever
    blocks = LABELS[drawn(0)]
    assert (blocks[1:] != blocks[:-1]).sum() > 5  # shuffled, not class by class
    # Labels that do not occur are no classes.
    gaps = np.array([1, 1, 7, 7, 7, 7])
    assert sorted(np.bincount(gaps[drawn(0, labels=gaps)])[[1, 7]]) == [3, 3]


class _Rows:
    """Activations whose rows say which image they are of."""

    views = 1

    def __init__(self, count):
        self.rows = np.arange(count, dtype="float32")[:, None]
        self.tables = [type("Table", (), {"shards": [self.rows]})]

    def gather(self, rows, views=0):
        return self.rows[rows]


def test_both_streams_draw_alike():
    pixels = np.arange(23, dtype="uint8")[:, None, None, None] * np.ones((1, 8, 8, 3), "uint8")
    balance = {"equal_classes": True, "class_weights": np.array([1.0, 2.0, 4.0], "float32")}
    options = {"batch_size": 8, "seed": 3, "start_epoch": 2, **balance}
    images = batches(
        Examples(Arrays(pixels), LABELS),
        image_size=8,
        training=True,
        augmentation="none",
        **options,
    ).take(6)
    activations = training_batches(_Rows(23), LABELS, **options).take(6)
    seen = []
    for (x, y, w), (a, b, v) in zip(images, activations):
        rows = x.numpy()[:, 0, 0, 0]
        assert rows.tolist() == a.numpy()[:, 0].astype(int).tolist()
        assert y.numpy().tolist() == b.numpy().tolist() == LABELS[rows].tolist()
        np.testing.assert_array_equal(w, 2.0 ** y.numpy())
        np.testing.assert_array_equal(w, v)
        seen.append(rows)
    assert [len(rows) for rows in seen] == [8, 8, 7] * 2
    assert np.concatenate(seen[:3]).tolist() == drawn(2, 3).tolist()
    assert np.concatenate(seen[3:]).tolist() == drawn(3, 3).tolist()


def test_what_comes_twice_comes_in_two_variants(rng):
    pixels = rng.integers(0, 255, (10, 32, 32, 3)).astype("uint8")
    labels = np.array([0] + [1] * 9, "int32")
    stream = batches(
        Examples(Arrays(pixels), labels), image_size=16, batch_size=10, training=True,
        augmentation="medium", equal_classes=True,
    )  # fmt: skip
    x, y = next(iter(stream))
    rare = x.numpy()[y.numpy() == 0]
    assert len(rare) == 5 and len(np.unique(rare.reshape(5, -1), axis=0)) == 5


def test_sampling_in_training(unequal, tmp_path, monkeypatch):
    """The command's way, on images: every epoch has its classes equally often."""
    seen = []
    plain = ImageData.batches

    def watched(self, split, **options):
        stream = plain(self, split, **options)
        return stream.map(note) if options.get("training") else stream

    def note(x, y):
        tf.py_function(lambda y: seen.append(y.numpy()), [y], [])
        return x, y

    monkeypatch.setattr(ImageData, "batches", watched)
    schedule = Schedule("s", (Phase("p", "none", 2, 1e-3),))
    run = new_trainer(schedule, balance="sampling").fit(unequal, tmp_path / "run")
    assert run.config["balance"] == "sampling"
    steps = -(-len(unequal.examples["train"]) // 8)
    for epoch in range(2):
        labels = np.concatenate(seen[epoch * steps : (epoch + 1) * steps])
        counts = np.bincount(labels)
        assert counts.sum() == len(unequal.examples["train"]) and counts.max() - counts.min() <= 1


# --- What is measured of each class -----------------------------------------------------------


def test_measures_are_those_of_scikit_learn(rng):
    labels, outputs = rng.integers(0, 3, 50), rng.normal(size=(50, 3))
    found = compute_metrics({"output": Classification(NAMES)}, labels, outputs)
    predicted = outputs.argmax(axis=1)
    report = classification_report(labels, predicted, target_names=NAMES, output_dict=True)
    for name in NAMES:
        expected = {key.replace("f1-score", "f1"): value for key, value in report[name].items()}
        assert found["per_class"][name] == pytest.approx(expected)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    several = (rng.random((50, 3)) < 0.3).astype(int)
    found = compute_metrics({"output": MultiLabel(NAMES)}, several, outputs)
    report = classification_report(several, outputs > 0, target_names=NAMES, output_dict=True, zero_division=0)  # fmt: skip
    assert found["per_label"]["red"]["recall"] == pytest.approx(report["red"]["recall"])
    each = [balanced_accuracy_score(y, p) for y, p in zip(several.T, outputs.T > 0)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(each))
    only = compute_metrics(
        {"o": MultiLabel(["one"])}, np.array([[1], [0]]), np.array([[2.0], [1.0]])
    )
    assert only["per_label"]["one"]["precision"] == 0.5 and only["balanced_accuracy"] == 0.5


CLOSED = Phase("closed", "all", 1, solver="logistic")
HEAD = Phase("head", "all", 2, 1e-2)
ALL = Phase("all", "none", 2, 1e-3)
TOP = Phase("top", "stage:2", 2, 1e-3)
# Activations of the last phase are of a network that was trained on after the first epoch.
TRAINED_ON = (Phase("all", "none", 2, 1e-3), HEAD)


@pytest.mark.parametrize(
    ("phases", "cache", "again"),
    [
        ((CLOSED,), "memory", False),
        ((HEAD, TOP), "memory", False),
        ((HEAD, ALL), "auto", False),
        ((HEAD, ALL), "off", True),
        (TRAINED_ON, "memory", True),
    ],
    ids=["closed form", "activations", "images in memory", "images", "trained on"],
)
def test_a_run_says_each_class(unequal, tmp_path, monkeypatch, phases, cache, again):
    """Of the kept epoch; and images are decoded again only where nothing else is left."""
    finish, decode, decoded = TrainingRun._finish, Images.open, []

    def watched(*args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(
                Images, "open", lambda self, file: decoded.append(1) or decode(self, file)
            )
            finish(*args, **kwargs)

    monkeypatch.setattr(TrainingRun, "_finish", watched)
    if phases is TRAINED_ON:  # the first epoch is kept
        monkeypatch.setattr(Progress, "_rank", lambda self, validation: [-self.epoch])
    run = new_trainer(Schedule("s", phases), cache=cache).fit(unequal, tmp_path / "run")
    val = run.metrics["val"]
    rows = val["per_class"].values()
    assert [row["support"] for row in rows] == list(unequal.counts["val"].values())
    n = sum(row["support"] for row in rows)
    correct = sum(row["recall"] * row["support"] for row in rows)
    assert correct / n == pytest.approx(val["accuracy"])
    found = evaluate(run.model, unequal)
    assert found["balanced_accuracy"] == pytest.approx(val["balanced_accuracy"])
    assert found["per_class"] == val["per_class"]
    assert bool(decoded) == again
    assert run.metrics["best_epoch"] == 1 or phases is not TRAINED_ON
