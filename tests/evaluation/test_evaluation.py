"""Evaluation and prediction in one pass, against scikit-learn's and hand-made numbers."""

import csv
import io

import numpy as np
import pytest
from conftest import write_image

from keras_transfer.cli.demo import small_backbone
from keras_transfer.data import Examples, ImageData, from_directory, labeled_images
from keras_transfer.errors import InputError
from keras_transfer.evaluation import collect, evaluate, predict, predictions_csv, predictions_json
from keras_transfer.evaluation.api import summarize, summary_text
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification, MultiLabel, Regression
from keras_transfer.training.trainer import Trainer
from keras_transfer.utils.statistics import wilson_interval

pytestmark = pytest.mark.compat

NAMES = ("blue", "green", "red")


def model_for(names=NAMES):
    return build_model(small_backbone(), Classification(names), image_size=32)


def test_labels_and_outputs_belong_together(colours, tmp_path):
    """A model that has learned the colours is right on each of them, in any batch size."""
    data = from_directory(colours)
    model = model_for()
    Trainer(model, "from_scratch", epochs=6, learning_rate=3e-3, batch_size=8).fit(
        data, tmp_path / "run"
    )
    whole = labeled_images(colours, NAMES)
    result = evaluate(model, whole, "all", batch_size=5)
    assert result["images"] == 36 and result["accuracy"] > 0.9
    confusion = np.array(result["confusion"])
    assert confusion.sum() == 36 and (confusion.sum(axis=1) == 12).all()
    assert np.trace(confusion) / 36 == pytest.approx(result["accuracy"])
    assert result["per_class"]["red"]["support"] == 12

    # Prediction agrees with evaluation, image by image.
    _labels, outputs = collect(model, whole, "all")
    predictions, skipped = predict(model, [colours])
    assert not skipped
    expected = [NAMES[i] for i in outputs.argmax(axis=1)]
    assert [p.label for p in predictions] == expected
    assert [p.path for p in predictions] == whole.examples["all"].names


def test_metrics_by_hand(tmp_path):
    """Three images and outputs that are set by hand."""
    paths = []
    for i, name in enumerate("abb"):
        write_image(tmp_path / f"{name}{i}.png", (i, i, i))
        paths.append(str(tmp_path / f"{name}{i}.png"))
    data = ImageData(("a", "b"), {"val": Examples(paths, np.array([0, 1, 1], "int32"))}, [], "")
    model = model_for(("a", "b"))
    model.get_layer("output").kernel.assign(np.zeros((128, 2)))
    model.get_layer("output").bias.assign([0.0, np.log(3.0)])  # always b, at 0.75
    result = evaluate(model, data)
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["confusion"] == [[0, 1], [0, 2]]
    assert result["loss"] == pytest.approx(-(np.log(0.25) + 2 * np.log(0.75)) / 3, rel=1e-5)
    assert result["per_class"]["a"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}
    assert result["per_class"]["b"]["precision"] == pytest.approx(2 / 3)
    predictions, _ = predict(model, paths)
    assert [p.label for p in predictions] == ["b"] * 3
    assert predictions[0].top[0] == ("b", pytest.approx(0.75))


def test_wilson_interval():
    # Newcombe 1998, table I: 81 of 263.
    low, high = wilson_interval(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(10, 10)[1] == 1.0


def test_bad_files_are_listed_and_the_others_answered(colours):
    (colours / "red" / "bad.jpg").write_bytes(b"")
    predictions, skipped = predict(model_for(), [colours / "red"])
    assert len(predictions) == 12
    assert [s.reason for s in skipped] == ["empty file"]
    document = predictions_json(predictions, skipped)
    assert document["skipped"][0]["path"].endswith("bad.jpg")
    rows = list(csv.DictReader(io.StringIO(predictions_csv(predictions))))
    assert len(rows) == 12 and list(rows[0]) == ["path", "label", "score", "top1", "top2", "top3"]


def test_inputs_that_cannot_be_measured(colours, tmp_path):
    data = from_directory(colours)
    with pytest.raises(InputError, match="classes"):
        evaluate(model_for(("x", "y")), data)
    with pytest.raises(InputError, match="no test images"):
        evaluate(model_for(), data, "test")
    with pytest.raises(InputError, match="does not know: green, red"):
        labeled_images(colours, ("blue", "yellow"))
    with pytest.raises(InputError, match="is regression, but the data is single_label"):
        evaluate(build_model(small_backbone(), Regression("x"), image_size=32), data)
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(InputError, match="No readable image"):
        predict(model_for(), [tmp_path / "bad.png"])


def test_the_summary_text_of_every_task(rng):
    heads = {
        "kind": Classification(["a", "b", "c"]),
        "tags": MultiLabel(["red", "blue"]),
        "age": Regression(["years"]),
    }
    labels = {
        "kind": np.array([0, 1, 2, 1]),
        "tags": np.array([[1, 1], [0, 1], [1, 1], [0, 1]]),
        "age": np.array([[1.0], [2.0], [4.0], [3.0]], "float32"),
    }
    heads["age"] = heads["age"].fitted(labels["age"])
    outputs = {
        name: rng.normal(size=(4, size)).astype("float32")
        for name, size in (("kind", 3), ("tags", 2), ("age", 1))
    }
    lines = summary_text({**summarize(heads, labels, outputs), "skipped": 2}, "val").splitlines()
    assert lines[0].startswith("4 examples of val, loss ") and lines[0].endswith(
        ", 2 files skipped"
    )
    assert lines[1].startswith("kind: accuracy ") and "95 % interval" in lines[1]
    assert [line.split()[0] for line in lines[2:6]] == ["class", "a", "b", "c"]
    assert lines[6].startswith("tags: map ")
    assert "without blue (the same in all examples)" in lines[6]
    assert lines[9].startswith("blue ") and " – " in lines[9]  # undefined
    assert lines[10].startswith("age: mae ") and lines[12].startswith("years ")
