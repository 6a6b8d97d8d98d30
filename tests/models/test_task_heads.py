"""Heads of several labels and numbers: saved, trained, solved in closed form, and their labels in tables."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import tiny_backbone
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression, Ridge

from keras_transfer import export
from keras_transfer.data import from_directory, read_targets
from keras_transfer.data.examples import Target, label_summary, label_texts
from keras_transfer.data.split_rule import strata
from keras_transfer.errors import InputError
from keras_transfer.evaluation import evaluate
from keras_transfer.features.closed_form import label_regressions, ridge_regression
from keras_transfer.modalities.image.prepare import resize_and_crop
from keras_transfer.models.builders import (
    build_model,
    by_head,
    compile_arguments,
    head_for,
    head_of,
    heads_of,
)
from keras_transfer.models.heads import (
    R2,
    Classification,
    LabelF1,
    LabelRanking,
    MultiLabel,
    Regression,
)
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.rate_finder import find_rate
from keras_transfer.training.trainer import Trainer

pytestmark = pytest.mark.compat

# -- heads ------------------------------------------------------------------------------------------


def heads_model(head, size=32):
    return build_model(tiny_backbone(), head, image_size=size)


@pytest.mark.parametrize(
    "head",
    [
        MultiLabel(["wings", "legs"], hidden=(8,)),
        Regression(["age"], mean=(40.0,), scale=(12.0,)),
        {"kind": Classification("abc", weight=2.0), "age": Regression(["age"], hidden=(4,))},
    ],
)
def test_saved_models_open_in_safe_mode_and_compiled(head, tmp_path, rng):
    model = heads_model(head)
    model.compile("adam", **compile_arguments(heads_of(model)), jit_compile=False)
    x = rng.integers(0, 255, (3, 32, 32, 3)).astype("uint8")
    if isinstance(head, dict):
        labels = {"kind": np.array([0, 2, 1]), "age": np.array([[30.0], [50], [41]])}
    else:
        labels = np.eye(3)[:, : len(head.names)]
    expected = model.evaluate(x, labels, verbose=0, return_dict=True)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    assert heads_of(loaded) == (head if isinstance(head, dict) else {"output": head})
    for name, values in by_head(heads_of(model), model(x)).items():
        np.testing.assert_array_equal(by_head(heads_of(model), loaded(x))[name], values)
    assert loaded.evaluate(x, labels, verbose=0, return_dict=True) == pytest.approx(expected)


def test_numbers_are_served_in_their_units(tmp_path, rng):
    """Labels alone are served in tests/export/test_export.py, all together above."""
    model = heads_model(Regression(["year", "share"], mean=(2000.0, 0.5), scale=(10.0, 0.1)))
    folder = export.saved_model(model, tmp_path / "1")
    images = rng.integers(0, 256, (2, 32, 32, 3), dtype="uint8")
    answer = tf.saved_model.load(str(folder)).signatures["serve_uint8"](images=images)
    assert set(answer) == {"scores", "class_names", "error"}
    assert answer["class_names"].numpy().tolist() == [[b"year", b"share"]] * 2
    expected = np.asarray(model(resize_and_crop(images, 32)))
    np.testing.assert_allclose(answer["scores"], expected, rtol=1e-5)
    assert (abs(expected - [2000, 0.5]) < [200, 2]).all()


def test_the_weights_of_heads_are_those_of_their_losses(rng):
    heads = {"a": Classification("xyz", weight=3.0), "b": Regression(["y"], weight=0.5)}
    model = heads_model(heads)
    model.compile("sgd", **compile_arguments(heads), jit_compile=False)
    x = rng.integers(0, 255, (4, 32, 32, 3)).astype("uint8")
    labels = {"a": np.array([0, 1, 2, 0]), "b": np.array([[1.0], [2], [3], [5]])}
    measured = model.evaluate(x, labels, verbose=0, return_dict=True)
    outputs = model(x)
    parts = {n: float(h.loss()(labels[n], outputs[n])) for n, h in heads.items()}
    assert measured["loss"] == pytest.approx(3 * parts["a"] + 0.5 * parts["b"], rel=1e-5)


def test_only_the_heads_train_where_the_backbone_is_frozen(colours, tmp_path):
    data = two_headed(colours)
    model = heads_model(head_for(data))
    before = {w.path: w.numpy() for w in model.weights}
    schedule = Schedule("s", (Phase("p", "all", 1, 1e-2, rates={"head": 3.0}),))
    Trainer(model, schedule, batch_size=8, cache="off").fit(data, tmp_path / "run")
    moved = {w.path for w in model.weights if (w.numpy() != before[w.path]).any()}
    assert moved == {w.path for n in ("colour", "red") for w in model.get_layer(n).weights}


def two_headed(colours):
    """Of the coloured squares: the colour, and the mean of the red channel in a strange unit."""
    data = from_directory(colours)
    for part in data.examples.values():
        red = [part.images.decoded(i)[..., 0].mean() for i in range(len(part))]
        year = 2000 + np.array(red, "float32")[:, None] / 255
        part.labels = {"colour": part.labels, "red": year}
    data.targets = {"colour": data.targets, "red": Target("regression", ["redness"])}
    return data


def test_two_heads_are_resumed_to_the_bit(colours, tmp_path):
    data, fit = two_headed(colours), keras.Model.fit
    schedule = Schedule("s", (Phase("head", "all", 2, 1e-2), Phase("all", "none", 1, 1e-3)))

    def run(name, **options):
        keras.utils.set_random_seed(0)
        trainer = Trainer(heads_model(head_for(data)), schedule, batch_size=8, cache="off")
        return trainer.fit(data, tmp_path / name, **options).model.get_weights()

    def stop(self, *args, initial_epoch=0, **kwargs):
        if initial_epoch == 2:
            raise KeyboardInterrupt
        return fit(self, *args, initial_epoch=initial_epoch, **kwargs)

    whole = run("whole")
    keras.Model.fit = stop
    try:
        with pytest.raises(KeyboardInterrupt):
            run("stopped")
    finally:
        keras.Model.fit = fit
    for a, b in zip(whole, run("stopped", resume=True)):
        np.testing.assert_array_equal(a, b)


def test_numbers_of_any_size_learn_at_the_rates_of_classes(colours, tmp_path):
    """Of years, 2000 to 2001: without standardising, the bias alone would take thousands of steps."""
    data = two_headed(colours)
    for part in data.examples.values():
        part.labels = part.labels["red"]
    data.targets = data.targets["red"]
    model = heads_model(Regression(["redness"], dropout=0))
    Trainer(model, "from_scratch", epochs=12, learning_rate=3e-3, batch_size=8).fit(
        data, tmp_path / "run"
    )
    result = evaluate(model, data)
    assert result["r2"] > 0.6 and result["mae"] < 0.15
    head = head_of(model)
    assert head.mean == pytest.approx(data.examples["train"].labels.mean(0))
    assert head.scale == pytest.approx(data.examples["train"].labels.std(0), rel=1e-4)
    assert head_of(keras.saving.load_model(tmp_path / "run" / "model.keras")) == head


def test_the_rate_finder_gives_heads_back(colours):
    data = two_headed(colours)
    model = heads_model(head_for(data))
    before = heads_of(model)
    test = find_rate(model, data, steps=12, batch_size=8, progress=False)
    assert np.isfinite(test.losses).all() and test.losses[0] < 10  # of standardised numbers
    assert heads_of(model) == before and before["red"].scale == ()


def test_names_and_labels_that_do_not_fit(colours, tmp_path):
    ab = Classification("ab")
    for heads, words in (
        ({"one": ab}, "two or more"),
        ({"a b": ab, "c": ab}, "Invalid head name"),
        ({"loss": ab, "c": ab}, "Invalid head name"),
    ):
        with pytest.raises(InputError, match=words):
            heads_model(heads)
    with pytest.raises(InputError, match="weight of a head"):
        Classification("ab", weight=0)
    with pytest.raises(InputError, match="mean and scale"):
        Regression(["x", "y"], mean=(1.0,), scale=(2.0,))
    data = two_headed(colours)
    for head, words in (
        (Classification(data.class_names), "the data has labels for colour, red"),
        ({"colour": Classification("abc"), "blue": Regression(["x"])}, "heads are blue, colour"),
        ({"colour": MultiLabel("abc"), "red": Regression(["x"])}, "is multi_label, but the data"),
        (
            {"colour": Classification(data.class_names), "red": Regression(["x"])},
            r"classes \('x',\) are not the data's",
        ),
    ):
        with pytest.raises(InputError, match=words):
            Trainer(heads_model(head), "lp_ft").fit(data, tmp_path / "run")
        with pytest.raises(InputError, match=words):
            evaluate(heads_model(head), data)
    assert not (tmp_path / "run").exists()
    two = heads_model({"a": ab, "b": ab})
    with pytest.raises(InputError, match="several heads: a, b"):
        head_of(two)
    weighed = Schedule("s", (Phase("p", "none", 1, class_weights="balanced"),))
    with pytest.raises(InputError, match="class_weights cannot be used for"):
        Trainer(two, weighed)
    smoothed = Schedule("s", (Phase("p", "none", 1, label_smoothing=0.1),))
    with pytest.raises(InputError, match="label_smoothing does not apply"):
        Trainer(heads_model(Regression(["x"])), smoothed)


# -- metrics and solvers against scikit-learn ---------------------------------------------------------


def test_metrics_of_labels_are_scikit_learns(rng):
    labels = (rng.random((300, 5)) < [0.5, 0.1, 0.02, 0.0, 1.0]).astype("float32")
    # Confident: most probabilities are 0 or 1 in Keras's 200 bins.
    logits = (rng.normal(0, 4, (300, 5)) + 5 * labels - 2).astype("float32")
    ranked = slice(0, 3)
    wanted = {
        "PR": sk.average_precision_score(labels[:, ranked], logits[:, ranked]),
        "ROC": sk.roc_auc_score(labels[:, ranked], logits[:, ranked]),
    }
    for curve, value in wanted.items():
        metric = LabelRanking(5, curve)
        for part in np.array_split(np.arange(300), 7):
            metric.update_state(labels[part], logits[part])
        assert float(metric.result()) == pytest.approx(value, abs=5e-3)
        copy = LabelRanking.from_config(metric.get_config())
        copy.update_state(labels, logits)
        assert float(copy.result()) == pytest.approx(float(metric.result()), abs=1e-6)
    f1 = LabelF1()
    f1.update_state(labels, logits)
    expected = sk.f1_score(labels, logits > 0, average="macro", zero_division=0)
    assert float(f1.result()) == pytest.approx(expected, abs=1e-5)
    nothing = LabelRanking(1)
    nothing.update_state(np.zeros((3, 1)), np.ones((3, 1)))
    assert float(nothing.result()) == 0.0


def test_r2_of_targets_far_from_zero(rng):
    true = (2000 + rng.normal(0, [1, 5], (200, 2))).astype("float32")
    got = (true + rng.normal(0, 0.5, (200, 2))).astype("float32")
    metric = R2(true.mean(0).tolist(), true.std(0).tolist())
    for part in np.array_split(np.arange(200), 3):
        metric.update_state(true[part], got[part])
    assert float(metric.result()) == pytest.approx(sk.r2_score(true, got), abs=1e-4)


def test_average_precision_by_hand():
    """Ranked + - + -: precision 1 at the first, 2/3 at the second hit."""
    metric = LabelRanking(2, "PR")
    logits = np.array([[4.0, 1], [3, 2], [2, 3], [1, 4]], "float32")
    metric.update_state(np.array([[1.0, 1], [0, 0], [1, 0], [0, 0]]), logits)
    assert float(metric.result()) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 4) / 2, abs=1e-6)


def test_closed_heads_are_scikit_learns(rng):
    features = (20 + 3 * rng.normal(0, 1, (120, 15))).astype("float32")
    truth = features @ rng.normal(0, 1, (15, 2))
    labels = np.column_stack([truth > truth.mean(0), np.zeros(120), np.ones(120)]).astype("float32")
    groups = np.arange(120)
    found = label_regressions(features, labels, groups)
    logits = features @ found.kernel + found.bias
    assert ((logits[:, :2] > 0) == labels[:, :2]).mean() > 0.95
    assert (logits[:, 2] < -4).all() and (logits[:, 3] > 4).all()
    scaled = (features - features.mean(0)) / np.sqrt(features.std(0) * features.std())
    for i in range(2):
        one = label_regressions(features, labels[:, [i]], groups)
        plain = LogisticRegression(C=one.strength, max_iter=1000).fit(scaled, labels[:, i])
        np.testing.assert_allclose(
            features @ one.kernel[:, 0] + one.bias[0], plain.decision_function(scaled), atol=0.05
        )

    noisy = truth / truth.std(0) + rng.normal(0, 0.3, (120, 2))
    ridge = ridge_regression(features, noisy[:, :1], groups)
    plain = Ridge(1 / ridge.strength).fit(scaled, noisy[:, 0])
    values = features @ ridge.kernel[:, 0] + ridge.bias[0]
    np.testing.assert_allclose(values, plain.predict(scaled), atol=1e-3)
    assert ridge.cross_validation == pytest.approx(0.11, abs=0.05)
    # Of numbers that mean nothing, the mean is said; also where each image is there twice.
    nonsense = rng.normal(0, 1, (120, 1))
    twice = ridge_regression(
        np.concatenate([features] * 2), np.concatenate([nonsense] * 2), np.tile(groups, 2)
    )
    assert np.std(features @ twice.kernel) < 0.3


def test_rankings_of_labels_are_measured_without_tracing_functions(rng, caplog):
    """Each batch outside a graph would trace Keras's vectorized map again, and TensorFlow warn."""
    logger = tf.get_logger()
    logger.addHandler(caplog.handler)
    metric = LabelRanking(3)
    for _ in range(8):
        metric.update_state(rng.integers(0, 2, (6, 3)), rng.normal(size=(6, 3)).astype("float32"))
    logger.removeHandler(caplog.handler)
    assert 0 <= float(metric.result()) <= 1
    assert "retracing" not in caplog.text


def test_rankings_of_labels_count_the_weights_of_examples(rng):
    labels, logits = rng.integers(0, 2, (20, 2)), rng.normal(size=(20, 2)).astype("float32")
    weights = rng.integers(1, 4, 20)
    weighted, repeated = LabelRanking(2, "PR"), LabelRanking(2, "PR")
    weighted.update_state(labels, logits, weights)
    rows = np.repeat(np.arange(20), weights)
    repeated.update_state(labels[rows], logits[rows])
    assert float(weighted.result()) == pytest.approx(float(repeated.result()))


# -- labels of tables ---------------------------------------------------------------------------------


TABLE = {
    "kind": ["ant", "bee", "ant"],
    "size": [1, 2.5, "3"],
    "wings": ["0", "true", False],
    "hairy": [0, 1, 1.0],
    "tags": ["red|round", " | ", "round"],
    "number": [3.0, 4.0, 3.0],
}


def test_columns_become_arrays():
    labels, target = read_targets(TABLE, label_column="kind")
    assert target == Target("single_label", ("ant", "bee")) and labels.tolist() == [0, 1, 0]
    assert labels.dtype == np.int32
    labels, target = read_targets(TABLE, label_column="number")
    assert target.names == ("3", "4")  # not 3.0
    labels, target = read_targets(TABLE, label_columns=["wings", "hairy"])
    assert target == Target("multi_label", ("wings", "hairy"))
    assert labels.tolist() == [[0, 0], [1, 1], [0, 1]] and labels.dtype == np.float32
    labels, target = read_targets(TABLE, label_columns="tags")
    assert target.names == ("red", "round") and labels.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert label_texts(labels, target) == ["red|round", "", "round"]
    labels, target = read_targets(TABLE, targets="size")
    assert labels.tolist() == [[1], [2.5], [3]] and labels.dtype == np.float32
    assert label_summary(labels, target) == "size 1 to 3, mean 2.167"
    heads = {"a": {"label_column": "kind"}, "b": {"targets": ["size", "number"]}}
    labels, targets = read_targets(TABLE, heads=heads)
    assert targets["b"].names == ("size", "number") and labels["b"].shape == (3, 2)
    assert label_texts(labels, targets)[1] == "a: bee; b: size=2.5, number=4"


def test_a_pandas_frame_is_a_table():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"age": [1.0, None, 3.0], "tag": ["a", "b", None]})
    with pytest.raises(InputError, match="row 2: age is empty"):
        read_targets(frame, targets=["age"])
    with pytest.raises(InputError, match="row 3: tag is empty"):
        read_targets(frame.convert_dtypes(), label_columns="tag")


def test_later_splits_must_fit_the_first():
    known = Target("single_label", ("ant", "bee", "wasp"))
    labels, target = read_targets({"kind": ["wasp"]}, label_column="kind", known=known)
    assert labels.tolist() == [2] and target == known
    tags = Target("multi_label", ("red", "round"))
    with pytest.raises(InputError, match=r"t\.csv, row 7: tags has 'blue', which is not among"):
        read_targets(
            {"tags": ["blue|red"]}, label_columns="tags", known=tags, table="t.csv", rows=[7]
        )
    with pytest.raises(InputError, match="expected are multi_label labels red, round"):
        read_targets({"red": [1]}, label_columns=["red"], known=tags)


@pytest.mark.parametrize(
    "columns, options, words",
    [
        ({"n": [1, None]}, {"targets": "n"}, "row 2: n is empty; fill it in"),
        ({"n": [1, float("nan")]}, {"targets": "n"}, "row 2: n is empty"),
        ({"n": [1, "1,5"]}, {"targets": "n"}, "row 2: n is '1,5', which is not a number"),
        ({"n": [1, "inf"]}, {"targets": "n"}, "row 2: n is 'inf', which is not a number"),
        ({"n": [2, 2]}, {"targets": "n"}, "n is the same in every row"),
        ({"k": ["a", " "]}, {"label_column": "k"}, "row 2: k is empty"),
        ({"k": ["a", 1.5]}, {"label_column": "k"}, "row 2: k is 1.5, which is not a class name"),
        ({"k": ["a", "a"]}, {"label_column": "k"}, "k has only one class"),
        ({"a": [0, 1], "b": [0, 2]}, {"label_columns": ["a", "b"]}, "b is 2, but must be 0 or 1"),
        ({"a": [0, 1], "b": [1, 1]}, {"label_columns": ["a", "b"]}, "b is the same in every row"),
        ({"t": ["x|y", "x"]}, {"label_columns": "t"}, "x is the same in every row"),
        ({"t": ["|", "|"]}, {"label_columns": "t"}, "has no label"),
        ({"t": [1]}, {"targets": ["t", "u"]}, "no column 'u'; it has t"),
        ({}, {}, "Pass exactly one of label_column, label_columns, targets and heads, not none"),
        ({}, {"targets": "a", "label_column": "b"}, "not label_column and targets"),
        ({}, {"heads": {"a": {}}}, "needs at least two heads, not 1"),
        ({}, {"heads": {"a": {"label": "x"}, "b": {}}}, "Head 'a': pass label_column"),
    ],
)
def test_columns_that_cannot_be_learned(columns, options, words):
    with pytest.raises(InputError, match=words):
        read_targets(columns, **options)


def test_strata_are_the_labels_of_the_first_head_with_classes(rng):
    numbers, classes = rng.normal(0, 1, (6, 1)), np.arange(6) % 2
    heads = {"n": Target("regression", ("n",)), "c": Target("single_label", ("x", "y"))}
    labels, names = strata({"n": numbers, "c": classes}, heads)
    assert labels is classes and names == ("x", "y")
    labels, names = strata(numbers, heads["n"])
    assert labels is numbers and names is None
