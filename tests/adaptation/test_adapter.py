"""The adapter: losses of a step, streams, BatchNorm statistics."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer.adaptation import METHOD_NAMES, METHODS, Adapter, apply_adabn, losses
from keras_transfer.adaptation.adapter import Adapter as SameAdapter
from keras_transfer.adaptation.methods import DANN, MCC, MMD, AdaBN, DeepCORAL, FixMatch
from keras_transfer.adaptation.streams import Stream, together
from keras_transfer.errors import InputError
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.stages import Backbone, backbone_of, batch_norms

SIZE = 4
SMALL = DANN(hidden=(16,), batch_norm=False)


def domain(n, seed, target):
    """Images of two classes: a weak cue in red, and a strong one in green in the source only."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    sign = 2.0 * labels - 1
    red = sign + 0.5 * rng.normal(size=n)
    green = (-1.0 if target else sign) + 0.2 * rng.normal(size=n)
    x = np.stack([red, green, rng.normal(size=n)], axis=-1)[:, None, None]
    x = x + 0.3 * rng.normal(size=(n, SIZE, SIZE, 3))
    return np.clip(127 + 30 * x, 0, 255).astype("uint8"), labels.astype("int32")


def small_model(norm=True, names="ab", dropout=0.0, **head):
    """Two hidden stages on the mean color."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 3), name="images")
    x = keras.layers.Rescaling(1 / 30, offset=-127 / 30)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    for width in (16, 8):
        x = keras.layers.Dense(width)(x)
        if norm:
            x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.ReLU()(x)
    head = Classification(names, dropout=dropout, **head)
    return build_model(Backbone(inputs, x, name="toy"), head, image_size=SIZE)


def streams(n=96, m=64, batch=16):
    """Return (labelled source, unlabelled target), shuffled with a seed."""
    x, y = domain(n, 0, target=False)
    z, _ = domain(m, 1, target=True)
    source = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(n, seed=1).batch(batch)
    return source, tf.data.Dataset.from_tensor_slices(z).shuffle(m, seed=2).batch(batch)


def adapter(model, methods, **options):
    made = Adapter(model, methods, **options)
    made.compile(keras.optimizers.Adam(3e-3))
    return made


def norms(model):
    return batch_norms(backbone_of(model))


def test_names():
    assert tuple(METHODS) == METHOD_NAMES
    assert all(METHODS[name]().name == name for name in METHODS)
    assert Adapter is SameAdapter


# -- a training -----------------------------------------------------------------------------------


def test_it_is_fitted_like_any_keras_model_and_returns_a_plain_one(tmp_path):
    source, target = streams()
    model = small_model()
    before = model.get_weights()
    made = adapter(model, SMALL)
    history = made.fit(source, target=target, epochs=2, validation_data=source, verbose=0).history
    assert set(history) == {
        "loss", "class_loss", "align_loss", "lambda", "domain_accuracy", "target_entropy",
        "accuracy", "val_loss", "val_accuracy",
    }  # fmt: skip
    np.testing.assert_allclose(
        history["loss"], np.add(history["class_loss"], history["align_loss"]), rtol=1e-4
    )
    # 6 steps per epoch, the batches of the longer stream; p is 0 in the first one.
    progress = np.arange(12).reshape(2, 6) / 12
    expected = (2 / (1 + np.exp(-10 * progress)) - 1).mean(axis=1)
    np.testing.assert_allclose(history["lambda"], expected, rtol=1e-4)
    assert history["class_loss"][1] < history["class_loss"][0]
    assert all(0 <= value <= 1 for value in history["domain_accuracy"])
    assert all(0 <= value <= np.log(2) for value in history["target_entropy"])

    assert type(model) is type(keras.Model(model.inputs, model.outputs))
    assert any((a != b).any() for a, b in zip(before, model.get_weights()))
    x = domain(8, 5, target=True)[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-5)
    np.testing.assert_allclose(made.predict(x, verbose=0), model(x), rtol=1e-5)
    assert not any("domains" in weight.path for weight in model.weights)


def test_a_step_adds_the_losses_of_all_methods():
    """Compared with the formulas on the outputs of the same network."""
    model = small_model(norm=False)
    (x, y), (z, _) = domain(12, 0, False), domain(10, 1, True)
    made = adapter(model, [MCC(weight=0.5), MMD(gamma=10.0), DeepCORAL()])
    made.steps.assign(10.0)
    made.step.assign(4.0)
    outputs = made({"source": x, "target": z}, training=True)
    loss = made.compute_loss({"source": x, "target": z}, y, outputs)
    f, g = (made.encoder(images) for images in (x, z))
    logits = made.classifier(g)
    strength = 2 / (1 + np.exp(-10 * 0.4)) - 1
    expected = {
        "mcc": 0.5 * losses.mcc(logits),
        "mmd": strength * losses.mmd(f, g),
        "coral": 10.0 * losses.coral(f, g),
    }
    plain = keras.losses.sparse_categorical_crossentropy(y, made.classifier(f), from_logits=True)
    assert float(loss) == pytest.approx(
        float(np.mean(plain)) + sum(map(float, expected.values())), rel=1e-4
    )
    logs = {name: float(tracker.result()) for name, tracker in made.trackers.items()}
    for name, value in expected.items():
        assert logs[f"align_loss_{name}"] == pytest.approx(float(value), rel=1e-3, abs=1e-6)
    assert logs["align_loss"] == pytest.approx(sum(map(float, expected.values())), rel=1e-4)
    assert logs["class_loss"] == pytest.approx(float(np.mean(plain)), rel=1e-4)
    assert logs["lambda"] == logs["lambda_mcc"] == pytest.approx(0.5)
    assert logs["lambda_mmd"] == pytest.approx(strength, rel=1e-5)
    assert logs["target_entropy"] == pytest.approx(float(np.mean(losses.entropy(logits))), rel=1e-4)
    assert int(made.step) == 5


def accuracy(model, images, labels):
    return float((np.asarray(model(images)).argmax(axis=1) == labels).mean())


def accuracy_adapted_by(methods):
    source, target = streams(256, 256, 32)
    model = small_model(norm=False)
    adapter(model, methods).fit(source, target=target, epochs=20, verbose=0)
    return accuracy(model, *domain(500, 9, target=True))


@pytest.fixture(scope="module")
def accuracy_unadapted():
    return accuracy_adapted_by([])


# By default one method that compares distributions; test_adaptation_losses.py tests both formulas.
@pytest.mark.parametrize(
    "methods",
    [
        pytest.param([DANN(hidden=(16,))], id="dann", marks=pytest.mark.large),
        pytest.param(["coral"], id="coral", marks=pytest.mark.large),
        pytest.param(["mmd"], id="mmd"),
        pytest.param(["mcc", SMALL], id="mcc,dann"),
    ],
)
def test_aligned_features_beat_source_only_features(accuracy_unadapted, methods):
    assert accuracy_unadapted < 0.75
    assert accuracy_adapted_by(methods) > accuracy_unadapted + 0.1


@pytest.mark.parametrize(
    "batch_norm", ["joint", "per_domain", pytest.param("frozen", marks=pytest.mark.large)]
)
def test_other_views_learn_the_confident_predictions_of_the_plain_ones(batch_norm):
    """Green is constant in the other views, so only red remains informative."""
    source, target = streams(256, 256, 32)

    def grey(images):
        return images, images * np.array([1, 0, 1], "uint8") + np.array([0, 127, 0], "uint8")

    model = small_model(norm=batch_norm != "frozen")
    if batch_norm == "per_domain":
        methods = [FixMatch(threshold=0.6), SMALL]
    else:
        methods = [FixMatch(threshold=0.6)]
    made = adapter(model, methods, batch_norm=batch_norm)
    history = made.fit(source, target=target.map(grey), epochs=3, verbose=0).history
    assert {"sure", "align_loss", "class_loss"} <= set(history)
    assert 0 < history["sure"][-1] <= 1
    # The inputs of a step, by hand.
    x, _ = next(iter(source))
    y, views = next(iter(target.map(grey)))
    outputs = made({"source": x, "target": y, "view": views}, training=False)
    assert [len(outputs[f"{part}_logits"]) for part in ("source", "target", "view")] == [32, 32, 32]
    np.testing.assert_allclose(outputs["view_logits"], model(views), rtol=1e-3, atol=1e-4)


def test_missing_views():
    source, target = streams(32, 32)
    with pytest.raises(InputError, match="FixMatch needs another view of each target image"):
        adapter(small_model(), "fixmatch").fit(source, target=target, verbose=0)
    with pytest.raises(InputError, match="labels in place of images"):
        labelled = target.map(lambda x: (x, tf.zeros(tf.shape(x)[0], tf.int32)))
        adapter(small_model(), "fixmatch").fit(source, target=labelled, verbose=0)


# -- streams --------------------------------------------------------------------------------------


def numbered(count, kind):
    batches = [np.full((2, 1), i) for i in range(count)]
    return tf.data.Dataset.from_tensor_slices(np.stack(batches)) if kind == "tf" else batches


@pytest.mark.parametrize("kinds", [("tf", "tf"), ("list", "list"), ("tf", "list")])
@pytest.mark.parametrize("start", [0, 4])
def test_the_shorter_stream_is_cycled_from_any_position(kinds, start):
    parts = {"source": numbered(5, kinds[0]), "target": numbered(3, kinds[1])}
    given = {name: Stream(part, name) for name, part in parts.items()}
    assert [stream.length for stream in given.values()] == [5, 3]
    joined = iter(together(given, start, lambda a, b: (a, b)))
    found = [[int(np.asarray(part)[0, 0]) for part in next(joined)] for _ in range(8)]
    assert found == [[i % 5, i % 3] for i in range(start, start + 8)]


def test_other_iterables():
    class Batches(keras.utils.PyDataset):
        passes = 0

        def __len__(self):
            return 2

        def __getitem__(self, index):
            if index >= 2:
                raise IndexError
            return np.full((1,), index)

        def on_epoch_end(self):
            self.passes += 1

    data = Batches()
    stream = Stream(data, "target")
    endless = stream.endless(1)
    assert [int(next(endless)[0]) for _ in range(4)] == [1, 0, 1, 0] and data.passes == 2
    assert stream.length == 2 and len(list(stream.one_pass(99))) == 2

    anywhere = Stream(lambda number: (np.full(1, i) for i in range(number, 99)), "target", 3)
    assert int(next(iter(anywhere.endless(7)))[0]) == 7 and len(list(anywhere.one_pass(99))) == 3

    once = Stream(iter([np.zeros(1), np.ones(1)]), "target")
    assert not once.first().any()
    endless = once.endless(0)
    assert [int(next(endless)[0]) for _ in range(2)] == [0, 1]  # `first` consumed nothing
    with pytest.raises(InputError, match="ended after 1 passes"):
        next(endless)


def test_streams_of_numpy_train_too():
    (x, y), (z, _) = domain(24, 0, False), domain(16, 1, True)
    source = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 24, 8)]
    target = [z[:8], (z[8:],)]
    history = adapter(small_model(), "coral").fit(source, target=target, epochs=2, verbose=0)
    assert len(history.history["loss"]) == 2 and np.isfinite(history.history["loss"]).all()


# -- BatchNorm ------------------------------------------------------------------------------------


def first_norm_input(model, images):
    """Return the input of the first BatchNorm."""
    stage = backbone_of(model).stages[0]
    dense = next(x for x in stage.layers if isinstance(x, keras.layers.Dense))
    return np.asarray(dense((images.mean((1, 2)) - 127) / 30))


@pytest.mark.parametrize("batch_norm", ["joint", "per_domain", "frozen"])
def test_statistics_in_the_model(batch_norm):
    (x, y), (z, _) = domain(64, 0, False), domain(64, 1, True)
    model = small_model()
    made = Adapter(model, "mmd", batch_norm=batch_norm)
    made.compile(keras.optimizers.SGD(0.0))
    start = [w.numpy() for norm in norms(model) for w in norm.weights]
    made.fit([(x, y)] * 60, target=[z] * 60, epochs=1, verbose=0)
    source, target = (first_norm_input(model, images) for images in (x, z))
    both = np.concatenate([source, target])
    norm = norms(model)[0]
    mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    if batch_norm == "frozen":
        assert not any(norm.trainable for norm in norms(model))
        for a, b in zip(start, [w.numpy() for norm in norms(model) for w in norm.weights]):
            np.testing.assert_array_equal(a, b)
        return
    kept = both if batch_norm == "joint" else target
    np.testing.assert_allclose(mean, kept.mean(0), atol=0.02)
    np.testing.assert_allclose(variance, kept.var(0), rtol=0.05, atol=0.02)
    others = [w for w in made.variables if "_other" in w.path and "mean" in w.path]
    if batch_norm == "per_domain":
        np.testing.assert_allclose(others[0].numpy(), source.mean(0), atol=0.02)
        # Scales are shared, and each domain is normalized by itself.
        found = made({"source": x, "target": z}, training=True)["source_features"]
        alone = made({"source": x, "target": z[:9]}, training=True)["source_features"]
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)
        assert sum("gamma" in w.path for w in made.trainable_variables) == 2
    else:
        assert not others


def test_per_domain_equals_joint_for_equal_domains():
    """The networks of the two domains differ only in their statistics."""
    x, _ = domain(32, 0, False)
    model = small_model()
    for norm in norms(model):  # other than the initial values
        norm.gamma.assign(np.linspace(0.5, 2, norm.gamma.shape[0]))
        norm.beta.assign(np.linspace(-1, 1, norm.beta.shape[0]))
    domains = {"source": x, "target": x}
    apart = Adapter(model, "mmd", batch_norm="per_domain")(domains, training=True)
    joint = Adapter(model, "mmd")(domains, training=True)
    for name, value in joint.items():
        np.testing.assert_allclose(apart[name], value, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(apart["source_logits"], apart["target_logits"], rtol=1e-4, atol=1e-5)


def test_adabn_uses_the_statistics_of_all_images():
    z, _ = domain(50, 1, True)
    model = small_model()
    weights = [w.numpy() for w in model.trainable_weights]
    whole = model(z, training=True)  # all images are one batch
    assert apply_adabn(model, [z]) == 50
    np.testing.assert_allclose(model(z, training=False), whole, rtol=1e-3, atol=1e-4)
    for a, b in zip(weights, model.trainable_weights):
        np.testing.assert_array_equal(a, b.numpy())
    # In batches of unequal size: exact for the first layer, whatever the batches.
    apply_adabn(model, [z[:30], (z[30:45],), z[45:]])
    seen, norm = first_norm_input(model, z), norms(model)[0]
    np.testing.assert_allclose(norm.moving_mean, seen.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, seen.var(0), rtol=1e-4, atol=1e-5)


def test_adabn_acts_at_its_place_in_the_list():
    alone = small_model(bottleneck=4)
    target = [domain(64, 1, target=True)[0]]
    adapter(alone, "adabn").fit(streams()[0], target=target, epochs=1, verbose=0)
    plain = small_model(bottleneck=4)
    source, _ = streams()
    adapter(plain, []).fit(source, epochs=1, verbose=0)
    for a, b in zip(alone.trainable_weights, plain.trainable_weights):
        np.testing.assert_array_equal(a.numpy(), b.numpy())  # trained on the source alone
    apply_adabn(plain, target)
    for a, b in zip(alone.weights, plain.weights):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-3, atol=1e-4)

    first = small_model()
    made = adapter(first, [AdaBN(), "coral"], batch_norm="frozen")
    expected = small_model()
    apply_adabn(expected, target)
    made.fit(source, target=target, epochs=1, verbose=0)
    for a, b in zip(norms(first), norms(expected)):
        np.testing.assert_allclose(a.moving_mean, b.moving_mean, rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match=r"the first method .* or the last"):
        Adapter(first, ["coral", "adabn", "mcc"])
