"""The adapter: what a step adds up, what moves, what is refused, and that a killed run goes on."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer.adaptation import METHOD_NAMES, METHODS, Adapter, adapt, apply_adabn, losses
from keras_transfer.adaptation.adapter import Adapter as SameAdapter
from keras_transfer.adaptation.easy import _stream, _stronger
from keras_transfer.adaptation.methods import DANN, MCC, MMD, SHOT, AdaBN, DeepCORAL, FixMatch
from keras_transfer.adaptation.streams import Stream, together, two_views
from keras_transfer.builders import backbone_of, build_model
from keras_transfer.data import from_arrays
from keras_transfer.errors import InputError
from keras_transfer.freezing import freeze
from keras_transfer.heads import Classification, MultiLabel
from keras_transfer.schedules import Phase
from keras_transfer.stages import Backbone, batch_norms

SIZE = 4
SMALL = DANN(hidden=(16,), batch_norm=False)


def domain(n, seed, target):
    """Pictures of two classes: a weak sign in red, and in the source a plain one in green."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    sign = 2.0 * labels - 1
    red = sign + 0.5 * rng.normal(size=n)
    green = (-1.0 if target else sign) + 0.2 * rng.normal(size=n)
    x = np.stack([red, green, rng.normal(size=n)], axis=-1)[:, None, None]
    x = x + 0.3 * rng.normal(size=(n, SIZE, SIZE, 3))
    return np.clip(127 + 30 * x, 0, 255).astype("uint8"), labels.astype("int32")


def small_model(norm=True, names="ab", dropout=0.0, **head):
    """Two hidden stages on the mean colour."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 3), name="pictures")
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
    """(labelled source, unlabelled target), shuffled by a seed."""
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


def test_it_is_fitted_like_any_keras_model_and_leaves_a_plain_one(tmp_path):
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
    # 6 steps an epoch, as many as the longer stream has batches; p is 0 in the first one.
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


def test_a_step_adds_up_the_losses_of_all_methods():
    """Against the formulas on the same network's outputs."""
    model = small_model(norm=False)
    (x, y), (z, _) = domain(12, 0, False), domain(10, 1, True)
    made = adapter(model, [MCC(weight=0.5), MMD(gamma=10.0), DeepCORAL()])
    made.steps.assign(10.0)
    made.step.assign(4.0)
    outputs = made({"source": x, "target": z}, training=True)
    loss = made.compute_loss({"source": x, "target": z}, y, outputs)
    f, g = (made.encoder(pictures) for pictures in (x, z))
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


def accuracy(model, pictures, labels):
    return float((np.asarray(model(pictures)).argmax(axis=1) == labels).mean())


def accuracy_adapted_by(methods):
    source, target = streams(256, 256, 32)
    model = small_model(norm=False)
    adapter(model, methods).fit(source, target=target, epochs=20, verbose=0)
    return accuracy(model, *domain(500, 9, target=True))


@pytest.fixture(scope="module")
def accuracy_unadapted():
    return accuracy_adapted_by([])


# Of those that compare distributions the kernel one; both formulas are in test_adaptation_losses.py.
@pytest.mark.parametrize(
    "methods",
    [
        pytest.param([DANN(hidden=(16,))], id="dann", marks=pytest.mark.large),
        pytest.param(["coral"], id="coral", marks=pytest.mark.large),
        pytest.param(["mmd"], id="mmd"),
        pytest.param(["mcc", SMALL], id="mcc,dann"),
    ],
)
def test_aligned_features_beat_those_of_the_source_alone(accuracy_unadapted, methods):
    assert accuracy_unadapted < 0.75
    assert accuracy_adapted_by(methods) > accuracy_unadapted + 0.1


@pytest.mark.parametrize(
    "batch_norm", ["joint", "per_domain", pytest.param("frozen", marks=pytest.mark.large)]
)
def test_other_views_learn_what_the_plain_ones_are_sure_of(batch_norm):
    """Green says nothing in the other views: what remains to answer by is red."""
    source, target = streams(256, 256, 32)

    def grey(pictures):
        return pictures, pictures * np.array([1, 0, 1], "uint8") + np.array([0, 127, 0], "uint8")

    model = small_model(norm=batch_norm != "frozen")
    if batch_norm == "per_domain":
        methods = [FixMatch(threshold=0.6), SMALL]
    else:
        methods = [FixMatch(threshold=0.6)]
    made = adapter(model, methods, batch_norm=batch_norm)
    history = made.fit(source, target=target.map(grey), epochs=3, verbose=0).history
    assert {"sure", "align_loss", "class_loss"} <= set(history)
    assert 0 < history["sure"][-1] <= 1
    # As a step sees it, by hand: what the target's logits name with certainty, of the views.
    x, _ = next(iter(source))
    y, views = next(iter(target.map(grey)))
    outputs = made({"source": x, "target": y, "view": views}, training=False)
    assert [len(outputs[f"{part}_logits"]) for part in ("source", "target", "view")] == [32, 32, 32]
    np.testing.assert_allclose(outputs["view_logits"], model(views), rtol=1e-3, atol=1e-4)


def test_views_that_are_not_there():
    source, target = streams(32, 32)
    with pytest.raises(InputError, match="FixMatch needs another view of each target picture"):
        adapter(small_model(), "fixmatch").fit(source, target=target, verbose=0)
    with pytest.raises(InputError, match="labels in place of pictures"):
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
    assert stream.length == 2 and len(list(stream.once(99))) == 2

    anywhere = Stream(lambda number: (np.full(1, i) for i in range(number, 99)), "target", 3)
    assert int(next(iter(anywhere.endless(7)))[0]) == 7 and len(list(anywhere.once(99))) == 3

    once = Stream(iter([np.zeros(1), np.ones(1)]), "target")
    assert not once.first().any()
    endless = once.endless(0)
    assert [int(next(endless)[0]) for _ in range(2)] == [0, 1]  # the first look took nothing
    with pytest.raises(InputError, match="ended after 1 passes"):
        next(endless)


def test_streams_of_numpy_train_too():
    (x, y), (z, _) = domain(24, 0, False), domain(16, 1, True)
    source = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 24, 8)]
    target = [z[:8], (z[8:],)]
    history = adapter(small_model(), "coral").fit(source, target=target, epochs=2, verbose=0)
    assert len(history.history["loss"]) == 2 and np.isfinite(history.history["loss"]).all()


# -- BatchNorm ------------------------------------------------------------------------------------


def first_norm_input(model, pictures):
    """What reaches the first BatchNorm."""
    stage = backbone_of(model).stages[0]
    dense = next(x for x in stage.layers if isinstance(x, keras.layers.Dense))
    return np.asarray(dense((pictures.mean((1, 2)) - 127) / 30))


@pytest.mark.parametrize("batch_norm", ["joint", "per_domain", "frozen"])
def test_whose_statistics_the_model_keeps(batch_norm):
    (x, y), (z, _) = domain(64, 0, False), domain(64, 1, True)
    model = small_model()
    made = Adapter(model, "mmd", batch_norm=batch_norm)
    made.compile(keras.optimizers.SGD(0.0))
    start = [w.numpy() for norm in norms(model) for w in norm.weights]
    made.fit([(x, y)] * 60, target=[z] * 60, epochs=1, verbose=0)
    source, target = (first_norm_input(model, pictures) for pictures in (x, z))
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
        # Scales are shared, and each domain is normalised by itself.
        found = made({"source": x, "target": z}, training=True)["source_features"]
        alone = made({"source": x, "target": z[:9]}, training=True)["source_features"]
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)
        assert sum("gamma" in w.path for w in made.trainable_variables) == 2
    else:
        assert not others


def test_per_domain_is_joint_where_the_domains_are_the_same():
    """The two networks of the two domains are one but for the statistics."""
    x, _ = domain(32, 0, False)
    model = small_model()
    for norm in norms(model):  # values that are not those at birth
        norm.gamma.assign(np.linspace(0.5, 2, norm.gamma.shape[0]))
        norm.beta.assign(np.linspace(-1, 1, norm.beta.shape[0]))
    domains = {"source": x, "target": x}
    apart = Adapter(model, "mmd", batch_norm="per_domain")(domains, training=True)
    joint = Adapter(model, "mmd")(domains, training=True)
    for name, value in joint.items():
        np.testing.assert_allclose(apart[name], value, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(apart["source_logits"], apart["target_logits"], rtol=1e-4, atol=1e-5)


def test_adabn_is_the_statistics_of_all_pictures():
    z, _ = domain(50, 1, True)
    model = small_model()
    weights = [w.numpy() for w in model.trainable_weights]
    whole = model(z, training=True)  # one batch of all: its statistics are those of all
    assert apply_adabn(model, [z]) == 50
    np.testing.assert_allclose(model(z, training=False), whole, rtol=1e-3, atol=1e-4)
    for a, b in zip(weights, model.trainable_weights):
        np.testing.assert_array_equal(a, b.numpy())
    # In batches of unequal size: exact for the first layer, whatever the batches.
    apply_adabn(model, [z[:30], (z[30:45],), z[45:]])
    seen, norm = first_norm_input(model, z), norms(model)[0]
    np.testing.assert_allclose(norm.moving_mean, seen.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, seen.var(0), rtol=1e-4, atol=1e-5)


def test_adabn_comes_where_it_stands():
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
    with pytest.raises(InputError, match=r"first .* or last"):
        Adapter(first, ["coral", "adabn", "mcc"])


# -- what trains ----------------------------------------------------------------------------------


def test_frozen_stages_stay_and_the_bottleneck_is_what_is_aligned():
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
    # Those of the discriminator too: two layers.
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
    pictures, labels = domain(256, 0, False)
    shifted = np.clip(pictures + np.array([60, 40, -20]), 0, 255).astype("uint8")
    source = tf.data.Dataset.from_tensor_slices((pictures, labels)).batch(32)
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


def test_pseudo_labels_stand_still_within_an_epoch():
    """They are what the model said when it began, whatever it has become since."""
    pictures, _ = domain(64, 0, True)
    target = tf.data.Dataset.from_tensor_slices(pictures).batch(32)
    model = small_model(bottleneck=6)
    made = adapter(model, "shot")
    made.pseudo_labels.renew(Stream(target, "target"), 9)
    features = made.encoder.predict(pictures, verbose=0)
    answers = keras.ops.softmax(model.predict(pictures, verbose=0))
    centroids = losses.centroids(features, answers)
    labels = np.asarray(losses.nearest_centroid(features, centroids))
    np.testing.assert_array_equal(made.pseudo_labels(pictures), labels)
    model.set_weights([-weight for weight in model.get_weights()])
    np.testing.assert_array_equal(made.pseudo_labels(pictures), labels)
    made.pseudo_labels.renew(Stream(target, "target"), 9)
    assert (np.asarray(made.pseudo_labels(pictures)) != labels).any()
    trained = {id(weight) for weight in made.trainable_variables}
    assert not trained & {id(weight) for weight in made.pseudo_labels.copy.weights}


# -- resume ---------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands in for the death of the process."""


def killed_after(epoch):
    def die(done, logs):
        if done == epoch:
            raise Killed

    return keras.callbacks.LambdaCallback(on_epoch_begin=die)


def test_a_killed_run_ends_where_an_undisturbed_one_ends(tmp_path):
    def run(state, **options):
        model = small_model(dropout=0.3)
        source, target = streams(96, 64)  # 6 and 4 batches: the position counts
        made = adapter(model, [SMALL, MCC()], batch_norm="per_domain")
        history = made.fit(source, target, epochs=3, state=state, verbose=0, **options)
        return model, made, history

    whole, adapted, history = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "cut", callbacks=[killed_after(2)])
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
    assert {p.name for p in (tmp_path / "cut").iterdir()} == {"adapter.npz"}


# -- wrong use ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": "dan"}, "Unknown method 'dan': give one of dann"),
        ({"methods": ["mcc", "mcc"]}, "twice"),
        ({"methods": ["shot", "mcc"]}, "never sees the source"),
        ({"methods": [3]}, "is no method"),
        ({"batch_norm": "both"}, "must be one of"),
        ({"methods": "adabn", "norm": False}, "needs BatchNorm, and toy_single_label has none"),
        ({"batch_norm": "per_domain", "norm": False}, "'per_domain' needs BatchNorm"),
        ({"freeze": "all"}, "everything before the classifier is frozen"),
        ({"methods": "shot", "freeze": "all"}, "everything before the classifier is frozen"),
    ],
)
def test_wrong_settings(change, words):
    model = small_model(norm=change.get("norm", True))
    freeze(model, change.get("freeze", "none"))
    with pytest.raises(InputError, match=words):
        Adapter(model, change.get("methods", "coral"), batch_norm=change.get("batch_norm", "joint"))


def test_other_heads_are_refused():
    model = build_model(backbone_of(small_model()), MultiLabel(("a", "b")), image_size=SIZE)
    with pytest.raises(InputError, match="one class a picture, not multi_label"):
        Adapter(model, "dann")


@pytest.fixture(scope="module")
def ready():
    return adapter(small_model(), "coral")


x, y = domain(8, 0, False)
good = {"source": [(x, y)], "target": [x]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": [(x, y)]}, "gives more than pictures: leave its labels out"),
        ({"target": [{"pictures": x}]}, "gives more than pictures"),
        ({"target": [y]}, "gives labels in place of pictures"),
        ({"target": []}, "There is no picture in the target"),
        ({"target": None}, "fit needs the target"),
        ({"target": [x[:, :2]]}, "The target's pictures are 2×4×3, the model takes 4×4×3"),
        ({"target": x}, "The target is an array: give batches"),
        ({"target": 3}, "must be batches"),
        ({"source": None}, "fit needs the source"),
        ({"source": [x]}, r"must give \(pictures, labels\)"),
        ({"source": []}, "There is no picture in the source"),
        ({"source": [(x[..., :1], y)]}, "The source's pictures are 4×4×1"),
        ({"source": [(x, y + 1)]}, "from 1 to 2, but the model has 2 classes: 0 to 1"),
        ({"source": [(x, np.eye(2)[y].astype(int))]}, r"must be integers \[N\]"),
        ({"source": [(x, 0 * y)]}, "The source has no picture of b"),
    ],
)
def test_wrong_streams(ready, change, words):
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
    pictures, labels = domain(n, 1 if target else 0, target)
    labels = 1 - labels if poisoned else labels
    return from_arrays((pictures, labels), class_names=("a", "b"), val_split=0.25, progress=False)


def test_adapt_does_all_and_target_labels_reach_nothing(tmp_path):
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
    # Of one picture both views, the plain one as it is.
    examples = data.examples["train"]
    settings = {"image_size": SIZE, "batch_size": 8}
    plain = _stream("target", examples, 3, {**settings, "augmentation": "none"})
    strong = _stream("target", examples, 3, {**settings, "augmentation": _stronger("none")})
    batches = [*two_views(plain, strong).once(9)]
    assert len(batches) == plain.length
    originals = np.concatenate([pictures for pictures, _ in batches])
    views = np.concatenate([other for _, other in batches])
    np.testing.assert_array_equal(originals, np.concatenate([*plain.once(9)]))
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
    assert (tmp_path / "s" / "source" / "adapter.npz").is_file()
    assert (tmp_path / "s" / "adapt" / "adapter.npz").is_file()


def test_adapt_says_what_is_missing():
    data = image_data()
    with pytest.raises(InputError, match="classes"):
        adapt(small_model(names="abc"), data, data)
    labels = data.examples["train"].labels
    data.examples["train"] = data.examples["train"].take(np.flatnonzero(labels == 0))
    with pytest.raises(InputError, match="The source has no picture of b"):
        adapt(small_model(), data, image_data())
    nothing = image_data().examples["train"].take(np.arange(0))
    with pytest.raises(InputError, match="There is no picture in the target"):
        adapt(small_model(), image_data(), nothing)
