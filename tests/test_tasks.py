"""Several labels, numbers and several heads: from labels to served answers, on real pictures."""

import csv
import io
import json
import os
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import tiny_backbone
from PIL import Image
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression, Ridge

from keras_transfer import export, predict, show_batch
from keras_transfer.builders import build_model
from keras_transfer.data import Examples, ImageData, from_directory, labelled_pictures, read_targets
from keras_transfer.data.splits import split
from keras_transfer.data.targets import Target, shown, strata, summary
from keras_transfer.data.transforms import resize_and_crop
from keras_transfer.errors import InputError
from keras_transfer.evaluation import collect, evaluate, predictions_csv, predictions_json
from keras_transfer.heads import (
    Classification,
    MultiLabel,
    Regression,
    by_head,
    compile_arguments,
    head_for,
    head_of,
    heads_of,
)
from keras_transfer.metrics import R2, LabelF1, LabelRanking
from keras_transfer.rate_finder import find_rate
from keras_transfer.schedules import Phase, Schedule
from keras_transfer.solvers import label_regressions, ridge_regression
from keras_transfer.training import Trainer

SIZE = 96
# The fingers that the signs 0 to 9 stretch out, read off the pictures.
LABELS = {
    "index": (1, 2, 3, 4, 5, 6, 7, 8),
    "little": (4, 5, 7, 8, 9),
    "thumb": (3, 5),
    "ring": (4, 5, 6, 8, 9),
}


def share_of_skin(path):
    """Of the pixels: those that are redder than blue by far, on a grey ground."""
    pixels = np.asarray(Image.open(path).convert("RGB"), "float32")
    return float((pixels[..., 0] - pixels[..., 2] > 25).mean())


@pytest.fixture(scope="module")
def hands(real_data, real_weights):
    """A table of 24 pictures of each sign digit: paths, digits, and what can be said of them."""
    folder = real_data / "sign_digits"
    found = [sorted((folder / str(digit)).iterdir())[::8][:24] for digit in range(10)]
    paths, digits = [str(p) for part in found for p in part], np.repeat(np.arange(10), 24)
    return {
        "path": paths,
        "number": digits,
        "digit": [f"sign {digit}" for digit in digits],
        "hand": [100 * share_of_skin(path) for path in paths],  # per cent
        "stretched": [(0, 1, 2, 3, 4, 5, 3, 3, 3, 3)[d] for d in digits],
        **{name: [int(d in those) for d in digits] for name, those in LABELS.items()},
    }


def data_of(hands, **options):
    paths, digits = hands["path"], hands["number"]
    labels, target = read_targets(hands, **options)
    whole = Examples(paths, labels)
    train, val = split(digits, {"val": 0.25}, list(map(str, range(len(digits))))).values()
    return ImageData(
        () if isinstance(target, dict) else target.names,
        {"train": whole.take(train), "val": whole.take(val)},
        [],
        os.path.commonpath(paths),
        target,
    )


def trained(data, out, strategy="feature_extraction", **options):
    keras.utils.set_random_seed(0)
    model = build_model("mobilenet_0.25", head_for(data), image_size=SIZE)
    # On disk: the features of these pictures are the same for every task.
    return Trainer(model, strategy, augment="none", cache="disk", **options).fit(data, out)


def answers_of(model, paths, tmp_path):
    """Outputs of serve_bytes, after the parity check of `saved_model`."""
    folder = export.saved_model(model, tmp_path / "export" / "1")
    serve = tf.saved_model.load(str(folder)).signatures["serve_bytes"]
    return {k: v.numpy() for k, v in serve(bytes=[tf.io.read_file(p) for p in paths]).items()}


# -- the whole way ----------------------------------------------------------------------------------


def test_labels_from_source_to_predictions(hands, tmp_path):
    data = data_of(hands, label_columns=list(LABELS))
    run = trained(data, tmp_path / "run")
    assert run.config["schedule"]["phases"][0]["solver"] == "logistic"
    model = run.model
    result = evaluate(model, data)
    assert result["task"] == "multi_label" and result["one_class"] == []
    assert result["auc"] > 0.93 and result["map"] > 0.9 and result["f1_macro"] > 0.8

    # Against scikit-learn, on the outputs.
    labels, outputs = collect(model, data, "val")
    scores = 1 / (1 + np.exp(-outputs.astype("float64")))
    assert result["map"] == pytest.approx(sk.average_precision_score(labels, scores))
    assert result["auc"] == pytest.approx(sk.roc_auc_score(labels, scores))
    predicted = (scores > 0.5).astype(int)
    assert result["f1_macro"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert result["f1_micro"] == pytest.approx(sk.f1_score(labels, predicted, average="micro"))
    assert result["loss"] == pytest.approx(sk.log_loss(labels.ravel(), scores.ravel()), rel=1e-4)
    thumb = result["per_label"]["thumb"]
    assert thumb["precision"] == pytest.approx(sk.precision_score(labels[:, 2], predicted[:, 2]))
    assert thumb["recall"] == pytest.approx(sk.recall_score(labels[:, 2], predicted[:, 2]))
    assert thumb["support"] == labels[:, 2].sum() == 12
    # What training said is the same, up to the bins of its metrics.
    for name, mine in (("map", "map"), ("auc", "auc"), ("f1", "f1_macro"), ("loss", "loss")):
        assert run.metrics["val"][name] == pytest.approx(result[mine], abs=4e-3)

    # Prediction, in all its forms, is what was measured.
    paths = data.examples["val"].names
    predictions, _ = predict(model, paths)
    np.testing.assert_allclose(
        [[p.scores[name] for name in LABELS] for p in predictions], scores, atol=1e-5
    )
    assert [set(p.labels) for p in predictions] == [
        {name for name, yes in zip(LABELS, row) if yes} for row in predicted
    ]
    rows = list(csv.DictReader(io.StringIO(predictions_csv(predictions))))
    assert list(rows[0]) == ["path", "labels", *LABELS]
    assert set(rows[3]["labels"].split("|")) - {""} == set(predictions[3].labels)
    document = json.loads(json.dumps(predictions_json(predictions, [])))
    assert document["predictions"][3]["scores"]["thumb"] == predictions[3].scores["thumb"]


def test_numbers_from_source_to_predictions(hands, tmp_path):
    data = data_of(hands, targets=["hand", "stretched"])
    run = trained(data, tmp_path / "run")
    model = run.model
    result = evaluate(model, data)
    assert result["per_target"]["hand"]["r2"] > 0.5
    assert result["per_target"]["stretched"]["r2"] > 0.6

    labels, outputs = collect(model, data, "val")
    np.testing.assert_allclose(outputs.mean(0), labels.mean(0), rtol=0.15)  # in their units
    for i, row in enumerate(result["per_target"].values()):
        true, got = labels[:, i], outputs[:, i]
        assert row["r2"] == pytest.approx(sk.r2_score(true, got), rel=1e-4)
        assert row["mae"] == pytest.approx(sk.mean_absolute_error(true, got), rel=1e-5)
        assert row["rmse"] == pytest.approx(sk.root_mean_squared_error(true, got), rel=1e-5)
    assert result["r2"] == pytest.approx(np.mean([r["r2"] for r in result["per_target"].values()]))
    for name in ("r2", "mae", "loss"):
        assert run.metrics["val"][name] == pytest.approx(result[name], rel=1e-3)
    # The loss is that of standardised targets: what 1 - R² is on the training pictures' scale.
    scale = data.examples["train"].labels.std(axis=0)
    assert result["loss"] == pytest.approx((((outputs - labels) / scale) ** 2).mean(), rel=1e-4)

    predictions, _ = predict(model, data.examples["val"].names)
    values = [[p.values[name] for name in ("hand", "stretched")] for p in predictions]
    np.testing.assert_allclose(values, outputs, rtol=1e-4, atol=1e-4)
    rows = list(csv.DictReader(io.StringIO(predictions_csv(predictions))))
    assert list(rows[0]) == ["path", "hand", "stretched"]
    assert float(rows[0]["hand"]) == pytest.approx(values[0][0], rel=1e-5)


HEADS = {
    "sign": {"label_column": "digit"},
    "fingers": {"label_columns": ["index", "little", "thumb"]},
    "light": {"targets": ["hand"]},
}


def test_three_heads_from_source_to_served(hands, tmp_path):
    data = data_of(hands, heads=HEADS)
    run = trained(data, tmp_path / "run")
    assert run.config["heads"]["light"] == {"task": "regression", "names": ["hand"]}
    model = run.model
    result = evaluate(model, data)
    assert result["heads"]["sign"]["accuracy"] > 0.6
    assert result["heads"]["fingers"]["map"] > 0.9
    assert result["heads"]["light"]["r2"] > 0.5
    assert result["loss"] == pytest.approx(sum(h["loss"] for h in result["heads"].values()))
    val = run.metrics["val"]
    assert val["sign_accuracy"] == pytest.approx(result["heads"]["sign"]["accuracy"])
    assert val["light_r2"] == pytest.approx(result["heads"]["light"]["r2"], rel=1e-3)
    assert val["loss"] == pytest.approx(result["loss"], rel=1e-3)

    # Each head is the one that it would be alone.
    alone = data_of(hands, **HEADS["light"])
    single = trained(alone, tmp_path / "single")
    _, expected = collect(single.model, alone, "val")
    _, outputs = collect(model, data, "val")
    np.testing.assert_allclose(outputs["light"], expected, rtol=1e-4)

    paths = data.examples["val"].names
    predictions, _ = predict(model, paths[:4])
    assert [p.heads["light"].values["hand"] for p in predictions] == pytest.approx(
        outputs["light"][:4, 0].tolist(), rel=1e-4
    )
    rows = list(csv.DictReader(io.StringIO(predictions_csv(predictions))))
    header = ["fingers_labels", *(f"fingers_{n}" for n in ("index", "little", "thumb"))]
    header += ["light_hand", "sign_label", "sign_score"]
    assert list(rows[0])[:8] == ["path", *header]
    assert rows[0]["sign_label"] == f"sign {outputs['sign'][0].argmax()}"
    assert set(predictions_json(predictions, [])["predictions"][0]["heads"]) == set(HEADS)

    answer = answers_of(model, paths[:3], tmp_path)
    assert {f"{kind}_{name}" for kind in ("scores", "class_names") for name in HEADS} | {
        "label_sign",
        "score_sign",
        "error",
    } == set(answer)
    np.testing.assert_allclose(answer["scores_light"], outputs["light"][:3], rtol=2e-2)
    assert answer["label_sign"].tolist() == [
        f"sign {i}".encode() for i in outputs["sign"][:3].argmax(1)
    ]


def test_three_heads_train_in_steps_on_activations(hands, tmp_path):
    data = data_of(hands, heads=HEADS)
    phase = Phase("head", "all", 12, 2e-2, label_smoothing=0.05)
    run = trained(data, tmp_path / "run", Schedule("s", (phase,)))
    history = list(csv.DictReader((run.path / "history.csv").open()))
    for name in ("loss", "sign_loss", "fingers_loss", "light_loss"):
        assert float(history[-1][name]) < 0.7 * float(history[0][name])
    best = min(history, key=lambda row: float(row["val_loss"]))
    assert run.metrics["best_epoch"] == int(best["epoch"])
    result = evaluate(run.model, data)
    assert result["heads"]["fingers"]["map"] > 0.8 and result["heads"]["sign"]["accuracy"] > 0.5


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
    """Labels alone are served in tests/test_export.py, all together above."""
    model = heads_model(Regression(["year", "share"], mean=(2000.0, 0.5), scale=(10.0, 0.1)))
    folder = export.saved_model(model, tmp_path / "1")
    pictures = rng.integers(0, 256, (2, 32, 32, 3), dtype="uint8")
    answer = tf.saved_model.load(str(folder)).signatures["serve_uint8"](pictures=pictures)
    assert set(answer) == {"scores", "class_names", "error"}
    assert answer["class_names"].numpy().tolist() == [[b"year", b"share"]] * 2
    expected = np.asarray(model(resize_and_crop(pictures, 32)))
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
        red = [part.pictures.pixels(i)[..., 0].mean() for i in range(len(part))]
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
        ({"a b": ab, "c": ab}, "is no name for a head"),
        ({"loss": ab, "c": ab}, "is no name for a head"),
    ):
        with pytest.raises(InputError, match=words):
            heads_model(heads)
    with pytest.raises(InputError, match="weight of a head"):
        Classification("ab", weight=0)
    with pytest.raises(InputError, match="mean and scale"):
        Regression(["x", "y"], mean=(1.0,), scale=(2.0,))
    data = two_headed(colours)
    for head, words in (
        (Classification(data.class_names), "the data labels for colour, red"),
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
    with pytest.raises(InputError, match="class_weights mean nothing for"):
        Trainer(two, weighed)
    smoothed = Schedule("s", (Phase("p", "none", 1, label_smoothing=0.1),))
    with pytest.raises(InputError, match="label_smoothing means nothing"):
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
    scaled = (features - features.mean(0)) / features.std()
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
    assert ridge.cross_validation == pytest.approx(0.09, abs=0.05)
    # Of numbers that mean nothing, the mean is said; also where each picture is there twice.
    nonsense = rng.normal(0, 1, (120, 1))
    twice = ridge_regression(
        np.concatenate([features] * 2), np.concatenate([nonsense] * 2), np.tile(groups, 2)
    )
    assert np.std(features @ twice.kernel) < 0.3


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
    assert shown(labels, target) == ["red|round", "", "round"]
    labels, target = read_targets(TABLE, targets="size")
    assert labels.tolist() == [[1], [2.5], [3]] and labels.dtype == np.float32
    assert summary(labels, target) == "size 1 to 3, mean 2.167"
    heads = {"a": {"label_column": "kind"}, "b": {"targets": ["size", "number"]}}
    labels, targets = read_targets(TABLE, heads=heads)
    assert targets["b"].names == ("size", "number") and labels["b"].shape == (3, 2)
    assert shown(labels, targets)[1] == "a: bee; b: size=2.5, number=4"


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
    with pytest.raises(InputError, match=r"t\.csv, row 7: tags has 'blue', which is none of"):
        read_targets(
            {"tags": ["blue|red"]}, label_columns="tags", known=tags, table="t.csv", rows=[7]
        )
    with pytest.raises(InputError, match="known are multi_label labels red, round"):
        read_targets({"red": [1]}, label_columns=["red"], known=tags)


@pytest.mark.parametrize(
    "columns, options, words",
    [
        ({"n": [1, None]}, {"targets": "n"}, "row 2: n is empty; fill it in"),
        ({"n": [1, float("nan")]}, {"targets": "n"}, "row 2: n is empty"),
        ({"n": [1, "1,5"]}, {"targets": "n"}, "row 2: n is '1,5', which is no number"),
        ({"n": [1, "inf"]}, {"targets": "n"}, "row 2: n is 'inf', which is no number"),
        ({"n": [2, 2]}, {"targets": "n"}, "n is the same in every row"),
        ({"k": ["a", " "]}, {"label_column": "k"}, "row 2: k is empty"),
        ({"k": ["a", 1.5]}, {"label_column": "k"}, "row 2: k is 1.5, which is no name"),
        ({"k": ["a", "a"]}, {"label_column": "k"}, "one class only"),
        ({"a": [0, 1], "b": [0, 2]}, {"label_columns": ["a", "b"]}, "b is 2, but must be 0 or 1"),
        ({"a": [0, 1], "b": [1, 1]}, {"label_columns": ["a", "b"]}, "b is the same in every row"),
        ({"t": ["x|y", "x"]}, {"label_columns": "t"}, "x is the same in every row"),
        ({"t": ["|", "|"]}, {"label_columns": "t"}, "has no label"),
        ({"t": [1]}, {"targets": ["t", "u"]}, "no column 'u'; it has t"),
        ({}, {}, "Give one of label_column, label_columns, targets and heads, not none"),
        ({}, {"targets": "a", "label_column": "b"}, "not label_column and targets"),
        ({}, {"heads": {"a": {}}}, "needs two heads or more"),
        ({}, {"heads": {"a": {"label": "x"}, "b": {}}}, "Head 'a': give label_column"),
    ],
)
def test_columns_that_cannot_be_learnt(columns, options, words):
    with pytest.raises(InputError, match=words):
        read_targets(columns, **options)


def test_strata_are_the_labels_of_the_first_head_with_classes(rng):
    numbers, classes = rng.normal(0, 1, (6, 1)), np.arange(6) % 2
    heads = {"n": Target("regression", ("n",)), "c": Target("single_label", ("x", "y"))}
    labels, names = strata({"n": numbers, "c": classes}, heads)
    assert labels is classes and names == ("x", "y")
    labels, names = strata(numbers, heads["n"])
    assert labels is numbers and names is None


# -- several folders as several labels -----------------------------------------------------------------


@pytest.fixture
def tagged(real_data, tmp_path):
    """ants/, insects/ and outdoors/: real pictures that lie in one, two or all three of them."""
    folder = tmp_path / "tagged"
    for name in ("ants", "insects", "outdoors"):
        (folder / name).mkdir(parents=True)
    ants = sorted((real_data / "hymenoptera" / "val" / "ants").iterdir())[:12]
    bees = sorted((real_data / "hymenoptera" / "val" / "bees").iterdir())[:12]
    for i, path in enumerate(ants):
        shutil.copy(path, folder / "ants" / path.name)
        shutil.copy(path, folder / "insects" / f"other name {i}.jpg")  # the same content
    for i, path in enumerate(bees):
        shutil.copy(path, folder / "insects" / path.name)
        if i % 2:  # the same name, saved anew at half the size
            picture = Image.open(path).convert("RGB")
            picture = picture.resize((picture.width // 2, picture.height // 2))
            picture.save(folder / "outdoors" / path.name, quality=60)
    shutil.copy(bees[0], folder / "outdoors" / "9.jpg")
    shutil.copy(ants[3], folder / "ants" / "twice.jpg")
    # Files that are merely numbered alike.
    for path, name in ((ants[5], "ants"), (bees[5], "insects")):
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(folder / name / "1.jpg")
    return folder


def test_a_picture_in_several_folders_has_several_labels(tagged):
    data = from_directory(tagged, task="multi_label", val_split=0.25)
    assert data.task == "multi_label" and data.names == ("ants", "insects", "outdoors")
    label_of = {}
    for part in data.examples.values():
        for path, row in zip(part.names, part.labels):
            label_of[os.path.relpath(path, tagged)] = row.tolist()
    # 12 ants and 12 bees, and one turned of each; copies under other names are no other pictures.
    assert len(label_of) == 26
    rows = list(label_of.values())
    assert rows.count([1, 1, 0]) == 12 and rows.count([1, 0, 0]) == 1
    assert rows.count([0, 1, 1]) == 7 and rows.count([0, 1, 0]) == 6
    assert label_of["ants/1.jpg"] == [1, 0, 0] and label_of["insects/1.jpg"] == [0, 1, 0]
    assert data.describe().splitlines()[0].endswith("3 labels")
    assert sum(counts["outdoors"] for counts in data.counts.values()) == 7
    assert len(data.fingerprint()) == 26 and any("ants|insects" in k for k in data.fingerprint())
    whole = labelled_pictures(tagged, data.names, task="multi_label")
    assert whole.examples["all"].labels.sum() == sum(map(sum, rows))
    with pytest.raises(InputError, match="give a table"):
        from_directory(tagged, task="regression")
    figure = show_batch(data, 3, mix="mixup", image_size=32, variants=1)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "ants|insects" in texts


def test_a_label_with_one_class_is_left_out_and_said(tagged, real_weights, tmp_path):
    model = build_model("mobilenet_0.25", MultiLabel(["ants", "insects", "wings"]), image_size=64)
    (tagged / "outdoors").rename(tmp_path / "gone")
    data = labelled_pictures(tagged, ("ants", "insects", "wings"), task="multi_label")
    result = evaluate(model, data, "all")
    assert result["one_class"] == ["wings"]
    assert result["per_label"]["wings"]["auc"] is None
    kept = [result["per_label"][name]["auc"] for name in ("ants", "insects")]
    assert result["auc"] == pytest.approx(np.mean(kept))
    json.dumps(result, allow_nan=False)


def test_the_command_trains_and_measures_labels(tagged, real_weights, tmp_path):
    from typer.testing import CliRunner

    from keras_transfer.cli import app

    run, runner = str(tmp_path / "run"), CliRunner()
    options = "--task multi_label --backbone mobilenet_0.25 --image-size 64 --precision float32"
    options += " --strategy feature_extraction"
    done = runner.invoke(app, ["train", str(tagged), "--out", run, *options.split()])
    assert done.exit_code == 0, done.output
    assert ", map 0." in done.stdout and " pictures), best epoch 1" in done.stdout
    measured = runner.invoke(app, ["evaluate", run, str(tagged), "--json"])
    result = json.loads(measured.stdout)
    assert result["task"] == "multi_label" and result["map"] > 0.9 and result["skipped"] == 0
    assert set(result["per_label"]) == {"ants", "insects", "outdoors"}
