"""Several labels, numbers and several heads: from labels to served answers, on real images."""

import csv
import io
import json
import os
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn import metrics as sk

from keras_transfer import export, predict, show_batch
from keras_transfer.data import Examples, ImageData, from_directory, labeled_images, read_targets
from keras_transfer.data.splits import split
from keras_transfer.errors import InputError
from keras_transfer.evaluation import collect, evaluate, predictions_csv, predictions_json
from keras_transfer.models.builders import build_model, head_for
from keras_transfer.models.heads import MultiLabel
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.trainer import Trainer

SIZE = 96
# The fingers that the signs 0 to 9 stretch out, read off the images.
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
    """A table of 24 images of each sign digit: paths, digits, and what can be said of them."""
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
    # On disk: the features of these images are the same for every task.
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
    # The loss is that of standardised targets: what 1 - R² is on the training images' scale.
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


# -- several folders as several labels -----------------------------------------------------------------


@pytest.fixture
def tagged(real_data, tmp_path):
    """ants/, insects/ and outdoors/: real images that lie in one, two or all three of them."""
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
            image = Image.open(path).convert("RGB")
            image = image.resize((image.width // 2, image.height // 2))
            image.save(folder / "outdoors" / path.name, quality=60)
    shutil.copy(bees[0], folder / "outdoors" / "9.jpg")
    shutil.copy(ants[3], folder / "ants" / "twice.jpg")
    # Files that are merely numbered alike.
    for path, name in ((ants[5], "ants"), (bees[5], "insects")):
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(folder / name / "1.jpg")
    return folder


def test_texts_in_several_folders_have_several_labels(tmp_path):
    for label, texts in (("news", ("one", "two", "three")), ("sport", ("one", "other", "four"))):
        (tmp_path / label).mkdir()
        for i, text in enumerate(texts):
            (tmp_path / label / f"{i}.txt").write_text(text)
    data = from_directory(tmp_path, task="multi_label", val_split=0.4, progress=False)
    rows = [row.tolist() for part in data.examples.values() for row in part.labels]
    assert sorted(rows) == [[0, 1], [0, 1], [1, 0], [1, 0], [1, 1]]


def test_a_folder_with_an_accent_in_two_characters_has_the_same_images(tmp_path, rng):
    for i in range(4):
        image = Image.fromarray(rng.integers(0, 255, (8, 8, 3), "uint8")).resize((64, 64))
        for label, side in (("e\u0301t\u00e9", 64), ("b", 32)):
            (tmp_path / label).mkdir(exist_ok=True)
            image.resize((side, side)).save(tmp_path / label / f"{i}.png")
    data = from_directory(tmp_path, task="multi_label", val_split=0.5, progress=False)
    assert sum(map(len, data.examples.values())) == 4
    assert all((part.labels == 1).all() for part in data.examples.values())


def test_a_image_in_several_folders_has_several_labels(tagged):
    data = from_directory(tagged, task="multi_label", val_split=0.25)
    assert data.task == "multi_label" and data.names == ("ants", "insects", "outdoors")
    label_of = {}
    for part in data.examples.values():
        for path, row in zip(part.names, part.labels):
            label_of[os.path.relpath(path, tagged)] = row.tolist()
    # 12 ants and 12 bees, and one turned of each; copies under other names are no other images.
    assert len(label_of) == 26
    rows = list(label_of.values())
    assert rows.count([1, 1, 0]) == 12 and rows.count([1, 0, 0]) == 1
    assert rows.count([0, 1, 1]) == 7 and rows.count([0, 1, 0]) == 6
    assert label_of["ants/1.jpg"] == [1, 0, 0] and label_of["insects/1.jpg"] == [0, 1, 0]
    assert data.describe().splitlines()[0].endswith("3 labels")
    assert sum(counts["outdoors"] for counts in data.counts.values()) == 7
    assert len(data.fingerprint()) == 26 and any("ants|insects" in k for k in data.fingerprint())
    whole = labeled_images(tagged, data.names, task="multi_label")
    assert whole.examples["all"].labels.sum() == sum(map(sum, rows))
    with pytest.raises(InputError, match="pass a table"):
        from_directory(tagged, task="regression")
    figure = show_batch(data, 3, mix="mixup", image_size=32, variants=1)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "ants|insects" in texts


def test_a_label_with_one_class_is_left_out_and_said(tagged, real_weights, tmp_path):
    model = build_model("mobilenet_0.25", MultiLabel(["ants", "insects", "wings"]), image_size=64)
    (tagged / "outdoors").rename(tmp_path / "gone")
    data = labeled_images(tagged, ("ants", "insects", "wings"), task="multi_label")
    result = evaluate(model, data, "all")
    assert result["one_class"] == ["wings"]
    assert result["per_label"]["wings"]["auc"] is None
    kept = [result["per_label"][name]["auc"] for name in ("ants", "insects")]
    assert result["auc"] == pytest.approx(np.mean(kept))
    json.dumps(result, allow_nan=False)


def test_the_command_trains_and_measures_labels(tagged, real_weights, tmp_path):
    from typer.testing import CliRunner

    from keras_transfer.cli.main import app

    run, runner = str(tmp_path / "run"), CliRunner()
    options = "--task multi_label --backbone mobilenet_0.25 --image-size 64 --precision float32"
    options += " --strategy feature_extraction"
    done = runner.invoke(app, ["train", str(tagged), "--out", run, *options.split()])
    assert done.exit_code == 0, done.output
    assert ", map 0." in done.stdout and " examples), best epoch 1" in done.stdout
    measured = runner.invoke(app, ["evaluate", run, str(tagged), "--json"])
    result = json.loads(measured.stdout)
    assert result["task"] == "multi_label" and result["map"] > 0.9 and result["skipped"] == 0
    assert set(result["per_label"]) == {"ants", "insects", "outdoors"}
