"""Augmented batches: the same for any threads and after a resume, mixed, trained on, and looked at."""

import json

import keras
import numpy as np
import pytest
import yaml
from conftest import raises, tiny_backbone, write_image
from killed import killed_after
from test_augmentation import compose, layers

from keras_transfer.data import (
    AUGMENTATIONS,
    Examples,
    ImageData,
    Mix,
    View,
    from_directory,
    plain_augmentation,
    resolve_augmentation,
    views_of,
)
from keras_transfer.errors import InputError
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification, MultiLabel, Regression
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.trainer import Trainer

NAMES = ("blue", "green", "red")


# --- The stream -------------------------------------------------------------------------------


@pytest.fixture
def numbered(tmp_path):
    """Eleven noisy images whose label is their index."""
    for i in range(11):
        write_image(tmp_path / f"{i:02}.png", (20 * i, 100, 100), size=(50, 40), seed=i)
    return Examples(sorted(map(str, tmp_path.glob("*.png"))), np.arange(11, dtype=np.int32))


def stream(examples, batches, *, threads=None, **options):
    import tensorflow as tf

    from keras_transfer.data import batches as pipeline

    dataset = pipeline.batches(
        examples, image_size=16, batch_size=4, training=True, classes=11, **options
    )
    if threads:
        wanted = tf.data.Options()
        wanted.threading.private_threadpool_size = threads
        dataset = dataset.with_options(wanted)
    return list(dataset.take(batches).as_numpy_iterator())


def same(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a, b) for x, y in zip(one, other) for a, b in zip(x, y)
    )


KINDS = {
    **{name: (lambda name=name: name, Mix()) for name in AUGMENTATIONS},
    "rotate": (lambda: {"preset": "heavy", "rotate": 20.0}, Mix()),
    "albumentations": (compose, Mix()),
    "layers": (layers, Mix()),
    "mixup": (lambda: "light", Mix("mixup", 1.0)),
    "cutmix": (compose, Mix("cutmix")),
}


# "rotate" is "heavy" and more, and that has all that the lighter ones have.
CONTAINED = ("none", "flip", "light", "medium", "heavy")


@pytest.mark.parametrize(
    "kind", [pytest.param(x, marks=[pytest.mark.large] * (x in CONTAINED)) for x in KINDS]
)
def test_threads_and_a_later_start_change_nothing(numbered, kind):
    make, mix = KINDS[kind]
    options = {"augmentation": make(), "mix": mix, "seed": 5}
    one = stream(numbered, 15, threads=1, **options)
    # A run that was killed in its fourth epoch goes on from there, in many threads.
    assert same(one[9:], stream(numbered, 6, threads=8, start_epoch=3, **options))
    if kind not in ("none", "flip"):  # a flip has two outcomes
        # Another epoch, and another seed, is another draw: of the same images.
        for other in (one[3:6], stream(numbered, 3, **{**options, "seed": 6})):
            assert not {p.tobytes() for b in one[:3] for p in b[0]} & {
                p.tobytes() for b in other for p in b[0]
            }


def test_fixed_views_follow_from_the_images_content(numbered):
    from keras_transfer.data import batches as pipeline

    def seen(chosen, batch_size, view):
        made = pipeline.views(numbered, chosen, [View(), view], 16, batch_size)
        return np.concatenate([batch[1] for batch in made.as_numpy_iterator()])

    for make in (compose, layers):
        zero, one = views_of(make(), 2)
        assert json.loads(json.dumps(zero.identity())) == views_of(make(), 1)[0].identity()
        whole = seen(range(11), 4, zero)
        assert np.array_equal(seen([7, 2], 1, views_of(make(), 1)[0]), whole[[7, 2]])
        assert not np.array_equal(seen([7], 1, one), whole[[7]])


def test_a_transform_that_fails_names_the_image_and_itself(numbered, tmp_path):
    import albumentations as A
    import tensorflow as tf

    too_large = A.Compose([A.RandomCrop(45, 45, p=1)])  # the images are 50x40
    with pytest.raises(tf.errors.OpError, match=r"failed on .*0\d.png \(50x40\).*RandomCrop"):
        stream(numbered, 1, augmentation=too_large)
    with pytest.raises(tf.errors.OpError, match=r"returned float32 .* for .*0\d.png.*Normalize"):
        stream(numbered, 1, augmentation=A.Compose([A.Normalize()]))
    names = tuple("abcdefghijk")
    data = ImageData(names, {"train": numbered}, [], str(tmp_path))
    model = build_model(tiny_backbone(), Classification(names), image_size=32)
    trainer = Trainer(model, Schedule("s", (Phase("p", "none", 1),)), augment=too_large)
    with pytest.raises(InputError, match=r"failed on .*0\d.png") as caught:
        trainer.fit(data, tmp_path / "run")
    assert "\n" not in str(caught.value)


# --- Mixing -----------------------------------------------------------------------------------


def mixed(mix, images, labels, seed=(3, 4)):
    import tensorflow as tf

    from keras_transfer.modalities.image.prepare import mixer

    out = mixer(mix)(tf.constant(images), tf.constant(labels), tf.constant(seed, tf.int64))
    return [part.numpy() for part in out]


def test_mixup_by_hand(rng):
    images = rng.integers(0, 256, (8, 12, 12, 3)).astype(np.uint8)
    made, shares = mixed(Mix("mixup", 1.0), images, np.eye(8, dtype="float32"))
    assert made.dtype == np.uint8 and shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(made, np.tensordot(shares, images, 1), atol=0.51)
    assert ((shares > 0.02).sum(1) == 2).sum() >= 4
    other, _ = mixed(Mix("mixup", 1.0), images, np.eye(8, dtype="float32"), seed=(3, 5))
    assert not np.array_equal(made, other)


def test_cutmix_by_hand(rng):
    colours = np.arange(8, dtype=np.uint8) * 30
    images = np.broadcast_to(colours[:, None, None, None], (8, 64, 64, 3)).copy()
    made, shares = mixed(Mix("cutmix"), images, np.eye(8, dtype="float32"))
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    assert ((shares > 0.02).sum(1) == 2).sum() >= 4
    for own, image, share in zip(colours, made, shares):
        area = np.array([(image[..., 0] == colour).mean() for colour in colours])
        # The box need not end on whole pixels: half a pixel along each edge.
        assert np.abs(area - share).max() <= 2 / 64
        inside = image[..., 0] != own
        rows, columns = inside.any(1).sum(), inside.any(0).sum()
        assert inside.sum() == rows * columns  # one box


def test_strengths_of_mixing():
    assert Mix("mixup").alpha == 0.2 and Mix("cutmix").alpha == 1.0 and not Mix()
    for kind, alpha, words in (
        ("mixcut", None, "mix must be one of none, mixup, cutmix"),
        ("mixup", 0.0, "mix_alpha for mixup must be above 0"),
        ("cutmix", 2.0, "mix_alpha for cutmix must be above 0 and at most 1"),
    ):
        with raises(words):
            Mix(kind, alpha)


def test_mixed_labels_in_the_loss_and_the_metrics_by_hand():
    logits = np.array([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]], "float32")
    shares = np.array([[0.3, 0.7, 0.0], [0.6, 0.0, 0.4]], "float32")
    weights = np.array([1.0, 3.0], "float32")
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    for smoothing in (0.0, 0.3):
        loss = Classification("abc", label_smoothing=smoothing).loss()
        each = -(((1 - smoothing) * shares + smoothing / 3) * log_p).sum(1)
        assert float(loss(shares, logits)) == pytest.approx(each.mean(), rel=1e-5)
        weighted = (each * weights).sum() / 2
        assert float(loss(shares, logits, weights)) == pytest.approx(weighted, rel=1e-5)
        # Whole classes, as validation has them, give the same either way.
        whole = float(loss(np.eye(3, dtype="float32")[[1, 2]], logits))
        assert whole == pytest.approx(float(loss(np.array([1, 2]), logits)), rel=1e-5)
    accuracy, top5 = Classification("abcdefg").metrics()
    wide = np.pad(logits, ((0, 0), (0, 4)), constant_values=1.5)
    for targets in (np.pad(shares, ((0, 0), (0, 4))), np.array([1, 0])):
        accuracy.reset_state(), top5.reset_state()
        accuracy.update_state(targets, wide), top5.update_state(targets, wide)
        assert float(accuracy.result()) == 0.5 and float(top5.result()) == 0.5


def test_a_mixed_batch_has_the_shares_of_its_images_and_their_weights(numbered):
    weights = np.arange(1, 12, dtype="float32")
    for (plain, labels), (images, shares, weight) in zip(
        stream(numbered, 3, augmentation="none"),
        stream(numbered, 3, augmentation="none", mix=Mix("mixup", 1.0), class_weights=weights),
    ):
        assert shares.shape == (len(labels), 11) and shares.dtype == np.float32
        np.testing.assert_allclose(
            images, np.tensordot(shares[:, labels], plain.astype(float), 1), atol=0.51
        )
        np.testing.assert_allclose(weight, shares @ weights, rtol=1e-5)


def test_labels_of_many_kinds_at_once_are_mixed_as_they_are(numbered):
    hot = (np.arange(33).reshape(11, 3) % 2).astype("float32")
    for (_, plain), (_, shares) in zip(
        stream(Examples(numbered.images, hot), 3, augmentation="none"),
        stream(Examples(numbered.images, hot), 3, augmentation="none", mix=Mix("mixup", 1.0)),
    ):
        assert shares.shape == plain.shape
        assert (shares >= -1e-6).all() and (shares <= 1 + 1e-6).all()


# --- The trainer ------------------------------------------------------------------------------


def trainer(augment, freeze="none", epochs=2, head=Classification(NAMES), **settings):
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), head, image_size=32)
    phase = Phase("p", freeze, epochs, 1e-3)
    return Trainer(model, Schedule("s", (phase,)), batch_size=8, augment=augment, **settings)


def test_a_killed_run_goes_on_to_the_same_weights(colours, tmp_path):
    from keras_transfer.runs import Run

    def made(*more, **settings):
        return trainer(compose(*more), mix="cutmix", **settings)

    data = from_directory(colours)
    whole = made().fit(data, tmp_path / "whole")
    with killed_after(epoch=1):
        made().fit(data, tmp_path / "cut")
    stored = Run.open(tmp_path / "cut", finished=False).config
    assert stored["augment"] == plain_augmentation(compose()) and stored["mix"] == "cutmix"
    import albumentations as A

    for changed in (lambda: made(A.Blur()), lambda: made(mix_alpha=0.5)):
        with raises("began with different settings"):
            changed().fit(data, tmp_path / "cut", resume=True)
    # What the file says makes the same transform.
    resumed = trainer(stored["augment"], mix="cutmix").fit(data, tmp_path / "cut", resume=True)
    for a, b in zip(whole.model.weights, resumed.model.weights):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_the_loss_of_a_mixed_epoch_by_hand(colours, tmp_path):
    """Nothing moves, so the epoch's loss is that of its batches: class weights and smoothing too."""
    import csv

    data = from_directory(colours)
    keras.utils.set_random_seed(0)
    head = Classification(NAMES, dropout=0.0, label_smoothing=0.1)
    model = build_model(tiny_backbone(), head, image_size=32)
    weights = {"blue": 1.0, "green": 2.0, "red": 4.0}
    phase = Phase("p", "none", 1, 1e-12, weight_decay=0.0, class_weights=weights)
    run = Trainer(
        model, Schedule("s", (phase,)), batch_size=8, augment="light", mix="mixup", mix_alpha=1.0
    ).fit(data, tmp_path / "run")
    batches = data.batches(
        "train", image_size=32, batch_size=8, training=True, mix=Mix("mixup", 1.0)
    )
    losses, right, totals = [], [], []
    for images, shares in batches.take(4).as_numpy_iterator():
        logits = model.predict_on_batch(images)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        each = -((0.9 * shares + 0.1 / 3) * log_p).sum(1) * (shares @ [1.0, 2.0, 4.0])
        losses += list(each)
        right += list(logits.argmax(1) == shares.argmax(1))
        totals.append(len(shares))
    (row,) = csv.DictReader((run.path / "history.csv").open())
    assert sum(totals) == 29
    assert float(row["loss"]) == pytest.approx(np.mean(losses), rel=1e-3)
    assert float(row["accuracy"]) == pytest.approx(np.mean(right), abs=1e-6)


def test_what_cannot_be_mixed_is_refused_and_what_is_mixed_is_not_cached(colours):
    with raises("Phase 'p': mix needs a single head of classes or labels"):
        trainer("light", head=Regression("ab"), mix="mixup")
    trainer("light", head=MultiLabel("ab"), mix="mixup")
    with raises("mix must be one of"):
        trainer("light", mix="blend")
    data = from_directory(colours)
    ((caching, reason),) = trainer("light", "all", mix="mixup").plan_caching(data)
    assert caching is None and reason == "mixup mixes images with each other"
    ((caching, _),) = trainer("light", "all", epochs=8).plan_caching(data)
    assert caching.views > 1


def test_activations_of_transforms_and_layers_are_views_of_them(colours):
    data = from_directory(colours)
    for augment in (compose(), layers()):
        ((caching, _),) = trainer(augment, "all", epochs=8).plan_caching(data)
        views = caching.training_views(resolve_augmentation(augment))
        assert len(set(views)) == caching.views > 1


@pytest.mark.parametrize(
    ("augment", "views"),
    [
        ("medium", 2),
        ({"preset": "medium", "flip": False}, 1),
        ("none", 1),
        (lambda: compose(), 2),
        (lambda: keras.layers.RandomRotation(0.1), 1),
    ],
)
def test_the_closed_head_sees_mirror_images_where_the_augmentation_mirrors(colours, augment, views):
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification(NAMES), image_size=32)
    given = augment() if callable(augment) else augment
    ((caching, _),) = Trainer(model, "feature_extraction", augment=given).plan_caching(
        from_directory(colours)
    )
    assert caching.mirror and caching.views == views


def test_a_phase_keeps_what_it_was_given_as_plain_data():
    phase = Phase("p", epochs=1, augment=compose(), mix="cutmix", mix_alpha="5e-1")
    assert phase.augment == plain_augmentation(compose()) and phase.mix_alpha == 0.5
    schedule = Schedule("s", (phase, Phase("q", epochs=1, augment=layers())))
    again = Schedule.from_dict(yaml.safe_load(schedule.to_yaml()))
    assert again == schedule
    with raises("Phase 'p': unknown augmentation 'lite'"):
        Phase("p", epochs=1, augment="lite")
    with raises("Phase 'p': mix must be one of none, mixup, cutmix"):
        Phase("p", epochs=1, mix="blend")


def test_options_of_the_command(tmp_path):
    from keras_transfer.cli.options import read_settings

    assert read_settings().config.augment == "auto"
    plain = read_settings(augment="medium", no_flip=True).config.augment
    assert plain == {**AUGMENTATIONS["medium"].to_dict(), "flip": False}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"augment": plain, "mix": "mixup"}))
    read = read_settings(config=tmp_path / "config.yaml").config
    assert read.augment == plain and read.mix == "mixup"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(plain_augmentation(compose())))
    with raises("--no-flip: the given augmentation mirrors"):
        read_settings(augment=str(tmp_path / "mine.yaml"), no_flip=True)
