"""The adapter in use: stages and rates, resuming, invalid input, and `adapt` in one call."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_adapter import SIZE, SMALL, accuracy, adapter, domain, small_model, streams

from keras_transfer.adaptation import Adapter, adapt, losses
from keras_transfer.adaptation.api import _stream
from keras_transfer.adaptation.methods import MCC, SHOT, FixMatch
from keras_transfer.adaptation.streams import Stream, two_views
from keras_transfer.data import from_arrays
from keras_transfer.errors import InputError
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import MultiLabel
from keras_transfer.models.stages import backbone_of, freeze
from keras_transfer.schedules.phases import Phase

# -- trained weights ------------------------------------------------------------------------------


def test_frozen_stages_stay_and_the_bottleneck_is_aligned():
    source, target = streams(32, 32)
    model = small_model(bottleneck=6)
    freeze(model, "stage:1")
    before = [w.numpy() for layer in backbone_of(model).stages[0].layers for w in layer.weights]
    made = adapter(model, SMALL)
    assert made.encoder.output_shape == (None, 6)
    later = [layer.name for layer in made.classifier.layers]
    assert "bottleneck" not in later and "output" in later
    start = model.get_layer("bottleneck_dense").kernel.numpy()
    made.fit(source, target=target, epochs=1, verbose=0)
    after = [w.numpy() for layer in backbone_of(model).stages[0].layers for w in layer.weights]
    for a, b in zip(before, after):
        np.testing.assert_array_equal(a, b)
    assert (start != model.get_layer("bottleneck_dense").kernel.numpy()).any()
    x = domain(6, 3, True)[0]
    np.testing.assert_allclose(
        made.classifier(made.encoder(x)), model.predict(x, verbose=0), rtol=1e-4, atol=1e-5
    )
    hidden = small_model(hidden=(5, 4))
    assert Adapter(hidden, "mmd").encoder.output_shape == (None, 8)
    assert Adapter(hidden, "mmd", feature_layer="hidden_0").encoder.output_shape == (None, 5)
    assert Adapter(hidden, "shot").encoder.output_shape == (None, 4)
    with pytest.raises(InputError, match="no layer 'hidden_7'"):
        Adapter(hidden, "mmd", feature_layer="hidden_7")


def test_rates_of_stages():
    model = small_model()
    made = Adapter(model, SMALL)
    phase = Phase("p", epochs=1, learning_rate=0.1, rates={"backbone": 0.1}, weight_decay=0.01)
    rules = made.make_optimizer(phase, 10).rules.rules
    rates = {w.path: rule.rate for w, rule in zip(made.trainable_variables, rules)}
    in_backbone = {w.path for w in backbone_of(model).trainable_variables}
    assert {path: 0.1 if path in in_backbone else 1.0 for path in rates} == rates
    # Including the two layers of the discriminator.
    assert len(rates) == len(model.trainable_variables) + 4


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    source, target = streams(32, 32)
    model = small_model(bottleneck=4)
    for batch_norm in ("joint", "per_domain"):
        made = adapter(model, ["cdan_e", "mmd"], batch_norm=batch_norm)
        assert isinstance(made.optimizer, keras.optimizers.LossScaleOptimizer)
        assert made.encoder.compute_dtype == "float16"
        outputs = made(
            {"source": domain(4, 0, False)[0], "target": domain(4, 0, True)[0]}, training=True
        )
        assert {str(value.dtype.name) for value in outputs.values()} == {"float32"}
    history = made.fit(source, target=target, epochs=1, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_shot_moves_the_features_and_leaves_the_classifier():
    images, labels = domain(256, 0, False)
    shifted = np.clip(images + np.array([60, 40, -20]), 0, 255).astype("uint8")
    source = tf.data.Dataset.from_tensor_slices((images, labels)).batch(32)
    target = tf.data.Dataset.from_tensor_slices(shifted).shuffle(256, seed=1).batch(32)
    model = small_model()
    adapter(model, []).fit(source, epochs=10, verbose=0)
    before, kernel = accuracy(model, shifted, labels), model.get_layer("output").kernel.numpy()
    assert before < 0.8
    made = adapter(model, SHOT())
    history = made.fit(target=target, epochs=3, verbose=0).history
    assert set(history) == {"loss", "align_loss", "lambda", "target_entropy"}
    assert accuracy(model, shifted, labels) > 0.95
    np.testing.assert_array_equal(kernel, model.get_layer("output").kernel.numpy())
    assert made.pseudo_labels.centroids.numpy().any(axis=1).all()


def test_pseudo_labels_do_not_change_within_an_epoch():
    """They come from the weights at the start of the epoch."""
    images, _ = domain(64, 0, True)
    target = tf.data.Dataset.from_tensor_slices(images).batch(32)
    model = small_model(bottleneck=6)
    made = adapter(model, "shot")
    made.pseudo_labels.renew(Stream(target, "target"), 9)
    features = made.encoder.predict(images, verbose=0)
    answers = keras.ops.softmax(model.predict(images, verbose=0))
    centroids = losses.centroids(features, answers)
    labels = np.asarray(losses.nearest_centroid(features, centroids))
    np.testing.assert_array_equal(made.pseudo_labels(images), labels)
    model.set_weights([-weight for weight in model.get_weights()])
    np.testing.assert_array_equal(made.pseudo_labels(images), labels)
    made.pseudo_labels.renew(Stream(target, "target"), 9)
    assert (np.asarray(made.pseudo_labels(images)) != labels).any()
    trained = {id(weight) for weight in made.trainable_variables}
    assert not trained & {id(weight) for weight in made.pseudo_labels.copy.weights}


# -- resume ---------------------------------------------------------------------------------------


class Killed(Exception):
    """Simulates the death of the process."""


def killed_after(epoch):
    def die(done, logs):
        if done == epoch:
            raise Killed

    return keras.callbacks.LambdaCallback(on_epoch_begin=die)


def as_saved_by_0_1(folder):
    """Put a state into the one file that version 0.1 wrote."""
    texts = [(folder / file).read_text() for file in ("state.json", "settings.json")]
    state, settings = map(json.loads, texts)
    arrays = dict(np.load(folder / f"epoch-{state['epoch']}.npz"))
    for file in folder.iterdir():
        file.unlink()
    about = json.dumps({**state, "settings": settings})
    np.savez(folder / "adapter.npz", about=np.array(about), **arrays)


@pytest.mark.parametrize("convert", [lambda folder: None, as_saved_by_0_1], ids=["now", "0.1"])
def test_a_killed_run_ends_with_the_same_weights(tmp_path, convert):
    def run(state, **options):
        model = small_model(dropout=0.3)
        source, target = streams(96, 64)  # 6 and 4 batches: the position counts
        made = adapter(model, [SMALL, MCC()], batch_norm="per_domain")
        history = made.fit(source, target, epochs=3, state=state, verbose=0, **options)
        return model, made, history

    whole, adapted, history = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "cut", callbacks=[killed_after(2)])
    convert(tmp_path / "cut")
    resumed, again, rest = run(tmp_path / "cut")
    for a, b in zip(adapted.weights, again.weights):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    for a, b in zip(whole.weights, resumed.weights):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert rest.epoch == [0, 1, 2]
    assert rest.history == history.history
    finished, _, same = run(tmp_path / "cut", callbacks=[killed_after(0)])  # nothing is left to do
    assert same.history == rest.history
    np.testing.assert_array_equal(finished.get_weights()[0], whole.get_weights()[0])
    with pytest.raises(InputError, match=r"batch_norm: 'per_domain' is now 'joint'"):
        adapter(small_model(dropout=0.3), [SMALL, MCC()]).fit(
            *streams(96, 64), epochs=3, state=tmp_path / "cut", verbose=0
        )
    files = {"settings.json", "state.json", "epoch-3.npz"}
    assert {p.name for p in (tmp_path / "cut").iterdir()} == files


# -- invalid input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": "dan"}, "Unknown method 'dan'. Choose from dann"),
        ({"methods": ["mcc", "mcc"]}, "twice"),
        ({"methods": ["shot", "mcc"]}, "never sees the source"),
        ({"methods": [3]}, "is not a method"),
        ({"batch_norm": "both"}, "must be one of"),
        (
            {"methods": "adabn", "norm": False},
            "needs BatchNorm, which toy_single_label does not have",
        ),
        ({"batch_norm": "per_domain", "norm": False}, "'per_domain' needs BatchNorm"),
        ({"freeze": "all"}, "everything before the classifier is frozen"),
        ({"methods": "shot", "freeze": "all"}, "everything before the classifier is frozen"),
    ],
)
def test_invalid_settings(change, words):
    model = small_model(norm=change.get("norm", True))
    freeze(model, change.get("freeze", "none"))
    with pytest.raises(InputError, match=words):
        Adapter(model, change.get("methods", "coral"), batch_norm=change.get("batch_norm", "joint"))


def test_other_heads_are_refused():
    model = build_model(backbone_of(small_model()), MultiLabel(("a", "b")), image_size=SIZE)
    with pytest.raises(InputError, match="one class per example, not multi_label"):
        Adapter(model, "dann")


@pytest.fixture(scope="module")
def ready():
    return adapter(small_model(), "coral")


x, y = domain(8, 0, False)
good = {"source": [(x, y)], "target": [x]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": [(x, y)]}, "must contain images only: remove its labels"),
        ({"target": [{"images": x}]}, "must contain images only"),
        ({"target": [y]}, "gives labels in place of images"),
        ({"target": []}, "The target contains no images"),
        ({"target": None}, "fit needs the target"),
        ({"target": [x[:, :2]]}, "The target images are 2×4×3, but the model takes 4×4×3"),
        ({"target": x}, "The target is an array: give batches"),
        ({"target": 3}, "must be batches"),
        ({"source": None}, "fit needs the source"),
        ({"source": [x]}, r"must give \(images, labels\)"),
        ({"source": []}, "The source contains no images"),
        ({"source": [(x[..., :1], y)]}, "The source images are 4×4×1"),
        ({"source": [(x, y + 1)]}, "from 1 to 2, but the model has 2 classes: 0 to 1"),
        ({"source": [(x, np.eye(2)[y].astype(int))]}, r"must be integers \[N\]"),
        ({"source": [(x, 0 * y)]}, "The source has no image of b"),
    ],
)
def test_invalid_streams(ready, change, words):
    with pytest.raises(InputError, match=words):
        ready.fit(**{**good, **change}, epochs=1, verbose=0)


def test_shot_takes_no_source_and_no_loss():
    with pytest.raises(InputError, match=r"SHOT needs BatchNorm.*bottleneck=256"):
        Adapter(small_model(norm=False), "shot")
    Adapter(small_model(norm=False, bottleneck=4), "shot")
    made = Adapter(small_model(), "shot")
    with pytest.raises(InputError, match="sees no labels"):
        made.compile("sgd", loss="mse")
    made.compile("sgd")
    with pytest.raises(InputError, match="never sees the source: train the model on it first"):
        made.fit(good["source"], target=good["target"])


# -- one call -------------------------------------------------------------------------------------


def image_data(target=False, poisoned=False, n=32):
    images, labels = domain(n, 1 if target else 0, target)
    labels = 1 - labels if poisoned else labels
    return from_arrays((images, labels), class_names=("a", "b"), val_split=0.25, progress=False)


def test_adapt_is_independent_of_target_labels(tmp_path):
    phase = Phase("p", "none", 2, 1e-2, batch_size=8, augment="none", warmup=0.0)

    def run(poisoned, **options):
        model = small_model()
        target = image_data(target=True, poisoned=poisoned)
        history = adapt(model, image_data(), target, SMALL, phase=phase, verbose=0, **options)
        return model, history.history

    model, history = run(False, state=tmp_path / "a")
    other, same = run(True)
    assert history == same and {"val_accuracy", "domain_accuracy"} <= set(history)
    for a, b in zip(model.weights, other.weights):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert model.optimizer is not None and all(layer.trainable for layer in model.layers)
    model.evaluate(image_data(target=True).batches("val", image_size=SIZE, batch_size=8), verbose=0)


def test_adapt_makes_the_other_views():
    seen = []

    class Watching(FixMatch):
        def loss(self, batch, strength, network=None, training=True):
            seen.append(batch.view_logits.shape)
            return super().loss(batch, strength, network, training)

    phase = Phase("p", "none", 1, 1e-2, batch_size=8, augment="none", warmup=0.0)
    data = image_data(target=True)
    history = adapt(small_model(), image_data(), data, Watching(), phase=phase, verbose=0)
    assert "sure" in history.history and seen
    # Both views show the same image; the plain one is unchanged.
    examples = data.examples["train"]
    settings = {"image_size": SIZE, "batch_size": 8}
    stronger = examples.modality.stronger_augmentation("none")
    plain = _stream("target", examples, 3, {**settings, "augmentation": "none"})
    strong = _stream("target", examples, 3, {**settings, "augmentation": stronger})
    batches = [*two_views(plain, strong).one_pass(9)]
    assert len(batches) == plain.length
    originals = np.concatenate([images for images, _ in batches])
    views = np.concatenate([other for _, other in batches])
    np.testing.assert_array_equal(originals, np.concatenate([*plain.one_pass(9)]))
    assert (originals != views).any(axis=(1, 2, 3)).mean() > 0.5
    far = np.abs(originals[None].astype(int) - views[:, None]).mean(axis=(2, 3, 4))
    assert (far.argmin(axis=1) == np.arange(len(views))).mean() > 0.2  # by chance one in 24


def test_adapt_makes_the_model_of_the_source_that_shot_starts_from(tmp_path):
    phase = Phase("p", "none", 1, 1e-2, batch_size=8, augment="none")
    target = image_data(target=True).examples["train"]
    model = small_model()
    history = adapt(
        model, image_data(), target, "shot", phase=phase, state=tmp_path / "s", verbose=0
    )
    assert "class_loss" not in history.history and "target_entropy" in history.history
    assert (tmp_path / "s" / "source" / "epoch-1.npz").is_file()
    assert (tmp_path / "s" / "adapt" / "epoch-1.npz").is_file()


def test_adapt_reports_missing_images():
    data = image_data()
    with pytest.raises(InputError, match="classes"):
        adapt(small_model(names="abc"), data, data)
    labels = data.examples["train"].labels
    data.examples["train"] = data.examples["train"].take(np.flatnonzero(labels == 0))
    with pytest.raises(InputError, match="The source has no image of b"):
        adapt(small_model(), data, image_data())
    nothing = image_data().examples["train"].take(np.arange(0))
    with pytest.raises(InputError, match="The target contains no images"):
        adapt(small_model(), image_data(), nothing)
