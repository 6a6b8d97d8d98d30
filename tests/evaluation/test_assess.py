"""The long evaluation of models: one pass, views, calibration, several heads, the command."""

import csv
import json

import keras
import numpy as np
import pytest
from conftest import tiny_backbone, write_colours
from scipy.special import softmax
from test_cli import check_one_line, here, run
from test_evaluation import NAMES
from test_evaluation_numbers import evaluation_of

from keras_transfer.data import Examples, ImageData, from_directory, labeled_images
from keras_transfer.data.examples import Target
from keras_transfer.errors import InputError
from keras_transfer.evaluation import Calibration, assess, calibrate, collect, evaluate, predict
from keras_transfer.evaluation.outputs import resolve_views
from keras_transfer.evaluation.slices import slice_values
from keras_transfer.modalities.image.augment import View
from keras_transfer.models.builders import build_model, head_for
from keras_transfer.models.heads import Classification, MultiLabel, Regression
from keras_transfer.runs import Run
from keras_transfer.training.trainer import Trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run, its images): three colours, learned a little; with folders of their own below red/."""
    folder = tmp_path_factory.mktemp("assess")
    data = write_colours(folder / "data")
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification(NAMES), image_size=32)
    trainer = Trainer(model, "from_scratch", epochs=3, learning_rate=1e-2, batch_size=8)
    images = from_directory(data, val_split=0.5, progress=False)
    out = trainer.fit(images, folder / "run", config={"data": str(data)})
    return out, data


@pytest.fixture
def whole(trained):
    return labeled_images(trained[1], NAMES, progress=False)


def shuffled(data, split, seed=3):
    order = np.random.default_rng(seed).permutation(len(data.examples[split]))
    return ImageData(data.class_names, {split: data.examples[split].take(order)}, [], data.root)


def head_of(evaluation):
    (head,) = evaluation.to_dict()["heads"].values()
    return head


def test_one_pass_agrees_with_the_short_answer_and_with_prediction(trained, whole):
    model = trained[0].model
    found = assess(model, whole, "all", batch_size=5)
    json.dumps(found.to_dict(), allow_nan=False)
    short = evaluate(model, whole, "all")
    assert found.brief["loss"] == pytest.approx(short["loss"], rel=1e-4)
    assert {**found.brief, "loss": 0} == {**short, "loss": 0}
    head = head_of(found)
    assert head["accuracy"]["value"] == short["accuracy"] > 0.5
    assert [head["accuracy"]["low"], head["accuracy"]["high"]] == short["accuracy_interval"]
    assert head["confusion"] == short["confusion"]
    assert head["calibration"]["before"]["log_loss"] == pytest.approx(short["loss"], rel=1e-4)
    for name, row in short["per_class"].items():
        assert {key: head["per_class"][name][key] for key in row} == pytest.approx(row)
    predictions, _ = predict(model, whole.examples["all"].names)
    assert found.predictions["path"] == [p.path for p in predictions]
    assert found.predictions["predicted"] == [p.label for p in predictions]
    assert [float(s) for s in found.predictions["score"]] == pytest.approx(
        [p.score for p in predictions], abs=1e-5
    )


@pytest.mark.parametrize("tta", [None, "mirror", 3])
def test_labels_stay_with_their_images(trained, whole, tta):
    """In any order of the images each has the same label and the same answer."""
    model = trained[0].model
    rows = []
    for data in (whole, shuffled(whole, "all")):
        found = assess(model, data, "all", tta=tta, batch_size=7)
        table = found.predictions
        rows.append(
            {p: (c, float(s)) for p, c, s in zip(table["path"], table["label"], table["score"])}
        )
    assert rows[0].keys() == rows[1].keys() and len(rows[0]) == 36
    for path, (label, score) in rows[0].items():
        assert f"/{label}/" in path
        assert rows[1][path] == (label, pytest.approx(score, abs=2e-6))


def test_the_mirror_view_is_the_mean_with_the_mirror_image(trained, whole):
    model = trained[0].model
    pixels = np.concatenate(
        [np.asarray(x) for x, _ in whole.batches("all", image_size=32, batch_size=8)]
    )
    both = [model.predict(x, verbose=0) for x in (pixels, pixels[:, :, ::-1])]
    labels, outputs = collect(model, whole, "all", batch_size=8, views=resolve_views("mirror"))
    np.testing.assert_array_equal(labels, whole.examples["all"].labels)
    expected = np.mean([softmax(x, axis=1) for x in both], axis=0)
    np.testing.assert_allclose(softmax(outputs, axis=1), expected, atol=1e-5)
    assert np.abs(expected - softmax(both[0], axis=1)).max() > 1e-4
    # More views are others, and the same whenever they are asked for.
    more = [collect(model, whole, "all", views=resolve_views(3, "heavy"))[1] for _ in range(2)]
    np.testing.assert_array_equal(*more)
    assert np.abs(more[0] - outputs).max() > 1e-3


def test_calibration_is_fitted_kept_and_tried(trained, whole, tmp_path):
    model, labels = trained[0].model, whole.examples["all"].labels
    labels[::6] = (labels[::6] + 1) % 3  # mistakes, without which no temperature can be told
    found = calibrate(model, whole, "all", precisions=(0.8, 0.9))
    (fitted,) = found.heads.values()
    assert abs(fitted["temperature"] - 1) > 0.02
    labels, outputs = collect(model, whole, "all")
    scores = softmax(outputs.astype("float64") / fitted["temperature"], axis=1)
    truth = scores[np.arange(36), labels]
    assert fitted["log_loss_after"] == pytest.approx(-np.log(truth).mean())
    assert fitted["log_loss_after"] < fitted["log_loss_before"]

    kept = Run(tmp_path)
    assert kept.calibration is None
    kept.write_calibration(found.to_dict())
    again = Calibration.from_dict(kept.calibration)
    assert again == found
    measured = assess(model, whole, "all", calibration=again, precision=0.8)
    assert measured.to_dict()["calibrated_on"] == {"split": "all", "images": 36}
    head = head_of(measured)
    assert head["calibration"]["temperature"] == fitted["temperature"]
    assert head["calibration"]["after"]["log_loss"] == pytest.approx(fitted["log_loss_after"])
    rows = head["abstention"]["thresholds"]
    assert [row["wanted"] for row in rows] == [0.8, 0.9]
    assert not any(row["chosen_here"] for row in rows)
    assert rows[0]["precision"]["value"] >= 0.8  # on the same images
    assert "calibrated on 36 examples of all (the same split" in measured.table()
    with pytest.raises(InputError, match="is for tta none, not mirror"):
        assess(model, whole, "all", calibration=again, tta="mirror")
    other = Calibration("val", 3, None, {"kind": fitted})
    with pytest.raises(InputError, match="belongs to another model, with a head kind"):
        assess(model, whole, "all", calibration=other)


def test_several_heads_each_by_itself(colours, tmp_path):
    data = from_directory(colours, progress=False)
    whole = data.examples["val"]
    labels = {
        "colour": whole.labels,
        "tags": np.eye(3, dtype="float32")[whole.labels][:, :2],
        "size": whole.labels[:, None].astype("float32"),
    }
    targets = {
        "colour": Target("single_label", data.class_names),
        "tags": Target("multi_label", ("b", "g")),
        "size": Target("regression", ("number",)),
    }
    several = ImageData((), {"val": Examples(whole.images, labels)}, [], str(colours), targets)
    model = build_model(tiny_backbone(), head_for(several), image_size=32)
    calibration = calibrate(model, several, "val", tta="mirror")
    assert set(calibration.heads) == {"colour", "tags"}
    assert len(calibration.heads["tags"]["label_thresholds"]) == 2
    slices = {"folder": slice_values(several, "val", "folder")}
    found = assess(
        model, several, calibration=calibration, tta="mirror", precision=0.5, slices=slices
    )
    heads = found.to_dict()["heads"]
    assert {name: head["task"] for name, head in heads.items()} == {
        "colour": "single_label",
        "tags": "multi_label",
        "size": "regression",
    }
    for head in heads.values():
        assert [row["value"] for row in head["slices"]["folder"]] == sorted(data.class_names)
    assert not heads["tags"]["thresholds_chosen_here"]
    assert heads["size"]["per_target"]["number"]["mae"]["value"] == pytest.approx(
        found.brief["heads"]["size"]["mae"], rel=1e-5
    )
    columns = set(found.predictions)
    assert {"path", "slice_folder", "colour_label", "tags_b", "size_number_predicted"} <= columns
    found.save(tmp_path / "out")
    with (tmp_path / "out" / "predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(whole)
    wrong = Calibration("val", 9, None, {"tags": {"label_thresholds": [0.5]}})
    with pytest.raises(InputError, match="a head tags with 1 label:"):
        assess(model, several, calibration=wrong)


def test_what_cannot_be_assessed(whole, colours):
    model = build_model(tiny_backbone(), Classification(NAMES), image_size=32)
    with pytest.raises(InputError, match="has no test images"):
        assess(model, whole, "test")
    with pytest.raises(InputError, match="has no test images"):
        assess(model, whole, "test", tta="mirror")
    with pytest.raises(InputError, match="Invalid precision"):
        assess(model, whole, "all", precision=99)
    with pytest.raises(InputError, match="Invalid precision"):
        calibrate(model, whole, "all", precisions=(99,))
    labels = build_model(tiny_backbone(), MultiLabel(NAMES), image_size=32)
    with pytest.raises(InputError, match="is multi_label, but the data"):
        assess(labels, whole, "all")
    numbers = build_model(tiny_backbone(), Regression(["x"]), image_size=32)
    with pytest.raises(InputError, match="one class per example"):
        assess(numbers, whole, "all", precision=0.9)
    bias = model.get_layer("output").bias
    bias.assign([np.nan, 0, 0])
    for ask in (assess, calibrate, evaluate):
        with pytest.raises(InputError, match="not finite for 36 of 36 examples"):
            ask(model, whole, "all")
    with pytest.raises(InputError, match="not finite"):
        predict(model, [colours])
    assert (View(),) == resolve_views(None)


# -- the command ------------------------------------------------------------------------------------


def test_the_command_in_short_and_in_full(trained, tmp_path):
    path, data = trained[0].path, trained[1]
    in_short = here("evaluate", path, data, "--json")
    short = json.loads(in_short.stdout)
    assert "evaluation" not in short and here("evaluate", path, data).stdout.startswith("accuracy")

    out = tmp_path / "out"
    options = ["--split", "val", "--precision", "0.8", "--slice", "folder", "--slice", "size"]
    full = here("evaluate", path, data, *options, "--out", out, "--json")
    assert full.exit_code == 0, full.output
    result = json.loads(full.stdout)
    document = result.pop("evaluation")
    assert document == json.loads((out / "evaluation.json").read_text())
    val = json.loads(here("evaluate", path, data, "--split", "val", "--json").stdout)
    assert result == val and document["images"] == val["images"] == 18
    head = document["heads"]["output"]
    assert {row["value"] for row in head["slices"]["folder"]} == set(NAMES)
    assert [row["value"] for row in head["slices"]["size"]] == ["0–63 px"]
    (row,) = head["abstention"]["thresholds"]
    assert row["wanted"] == 0.8 and row["chosen_here"]
    assert head["calibration"]["temperature"] is None
    images = {"confusion", "reliability", "risk_coverage", "curves"}
    assert {file.name for file in out.iterdir()} == {
        "evaluation.json",
        "predictions.csv",
        *(f"{name}.png" for name in images),
    }
    # Drawn and shown from the file alone, as it was.
    shown = here("evaluate", path, data, *options).stdout
    assert shown.strip() == evaluation_of({"output": head}).table().replace("of test", "of val")


def test_the_command_slices_by_a_column(trained, tmp_path):
    path, data = trained[0].path, trained[1]
    rows = [
        (f"{name}/{i}.png", name, ("old", "new")[i % 3 > 0]) for name in NAMES for i in range(12)
    ]
    table = data / "table.csv"
    table.write_text("\n".join(",".join(row) for row in [("path", "label", "camera"), *rows]))
    done = here("evaluate", path, table, "--slice", "camera", "--json")
    assert done.exit_code == 0, done.output
    slices = json.loads(done.stdout)["evaluation"]["heads"]["output"]["slices"]["camera"]
    assert [(row["value"], row["images"]) for row in slices] == [("new", 24), ("old", 12)]
    out = tmp_path / "out"
    assert here("evaluate", path, table, "--slice", "camera", "--out", out).exit_code == 0
    with (out / "predictions.csv").open() as file:
        for row in csv.DictReader(file):
            number = int(row["path"].rpartition("/")[2].partition(".")[0])
            assert row["slice_camera"] == ("old", "new")[number % 3 > 0]


def test_the_command_keeps_a_calibration(trained):
    path, data = trained[0].path, trained[1]
    first = here("evaluate", path, data, "--calibrate", "--precision", "0.7", "--json")
    assert first.exit_code == 0, first.output
    assert "calibrated on 18 examples of val" in first.stderr
    kept = json.loads((path / "calibration.json").read_text())
    wanted = [row["precision"] for row in kept["heads"]["output"]["thresholds"]]
    assert wanted == [0.7, 0.9, 0.95, 0.99] and kept["split"] == "val"
    document = json.loads(first.stdout)["evaluation"]
    assert document["images"] == 36
    temperature = kept["heads"]["output"]["temperature"]
    assert document["heads"]["output"]["calibration"]["temperature"] == temperature
    # The next evaluation has it, one with other views leaves it out and says so.
    later = json.loads(here("evaluate", path, data, "--slice", "folder", "--json").stdout)
    assert later["evaluation"]["calibrated_on"] == {"split": "val", "images": 18}
    other = here("evaluate", path, data, "--tta", "mirror", "--json")
    assert "calibration does not apply" in other.stderr
    assert json.loads(other.stdout)["evaluation"]["calibrated_on"] is None


def test_what_is_wrong_is_said_at_once(tmp_path):
    """Before Keras is loaded."""
    data = write_colours(tmp_path / "data")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(
        "augment: none\nhead: {task: single_label, names: [blue, green, red]}\n"
    )
    (folder / "model.keras").write_text("is not read")
    (folder / "split.csv").write_text("path,label,split\nred/0.png,red,train\n")
    file = tmp_path / "file"
    file.write_text("dear")
    for options, words in (
        (["--precision", "2"], "must be above 0"),
        (["--tta", "none"], "choose mirror or a number"),
        (["--tta", "3"], "all views are the same"),
        (["--slice", "camera"], "is not a table"),
        (["--out", file], "is a file"),
        (["--calibrate"], "names no val example"),
    ):
        assert words in str(here("evaluate", folder, data, *options).exception)
    table = tmp_path / "table.csv"
    table.write_text("path,label\ndata/red/0.png,red\n")
    # The last to be found out, so that nothing before it loads Keras.
    missing = run("evaluate", folder, data, "--calibrate", "--slice", "size", "--tta", "mirror")
    check_one_line(missing, "names no val example")
    missing = here("evaluate", folder, table, "--slice", "camera")
    assert "no column 'camera'" in str(missing.exception)
