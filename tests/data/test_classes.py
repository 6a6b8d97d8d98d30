"""The order of classes, and runs that recorded another one."""

import json

import numpy as np
import pytest
import yaml
from conftest import write_image
from typer.testing import CliRunner

from keras_transfer.cli.main import app
from keras_transfer.data import from_arrays, from_directory, from_table
from keras_transfer.data.classes import in_recorded_order, require_each_class, sorted_names
from keras_transfer.data.examples import Target
from keras_transfer.data.files import Skipped
from keras_transfer.errors import InputError
from keras_transfer.evaluation import evaluate
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification


def test_names_are_sorted_by_value_only_if_all_are_integers():
    assert sorted_names(["10", "9", "-1", "10"]) == ("-1", "9", "10")
    assert sorted_names(["10", "9", "a"]) == ("10", "9", "a")
    assert sorted_names(["01", "1", "0"]) == ("0", "01", "1")
    assert sorted_names(["1.5", "10", "9"]) == ("1.5", "10", "9")
    assert sorted_names(["²", "10"]) == ("10", "²")


@pytest.fixture
def digits(tmp_path):
    """digits/{2,10,9}/*.png and a table of them."""
    rows = ["path,label"]
    for place, label in enumerate(("2", "10", "9")):
        for i in range(6):
            path = tmp_path / "digits" / label / f"{i}.png"
            write_image(path, (80 * place, 200 - 80 * place, 90), size=(32, 32), seed=i)
            rows.append(f"digits/{label}/{i}.png,{label}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    return tmp_path


def test_every_source_sorts_integers_by_value(digits):
    options = dict(val_split=0.34, progress=False)
    folder = from_directory(digits / "digits", **options)
    table = from_table(digits / "t.csv", **options)
    names = [name for part in folder.examples.values() for name in part.names]
    labels = [name.split("/")[-2] for name in names]
    images = [np.zeros((4, 4, 3), "uint8") + i for i in range(len(names))]
    arrays = from_arrays((images, labels), **options)
    numbers = from_arrays((images, list(map(int, labels))), **options)
    for data in (folder, table, arrays, numbers):
        assert data.class_names == ("2", "9", "10")
    for split, part in folder.examples.items():
        assert part.names == table.examples[split].names
        assert part.labels.tolist() == table.examples[split].labels.tolist()


def test_data_takes_the_order_that_was_recorded(digits):
    data = from_directory(digits / "digits", val_split=0.34, progress=False)
    old = Target("single_label", ("10", "2", "9"))
    same = in_recorded_order(data, old, sort=True)
    assert same.class_names == old.names and same.targets == old and same.source == data.source
    for part in same.examples.values():
        assert [old.names[label] for label in part.labels] == [n.split("/")[-2] for n in part.names]
        assert part.labels.tolist() == sorted(part.labels)
    assert in_recorded_order(data, Target("single_label", ("a", "b", "c"))) is data
    assert in_recorded_order(data, data.targets) is data
    model = build_model("mobilenet_0.25", Classification(old.names), image_size=32, weights=None)
    assert evaluate(model, data)["confusion"] == evaluate(model, same)["confusion"]


def test_several_labels_and_heads_take_the_recorded_order():
    from keras_transfer.data import Examples, ImageData

    labels = {"tags": np.array([[1, 0, 1], [0, 1, 0]], "float32"), "x": np.ones((2, 1), "float32")}
    targets = {"tags": Target("multi_label", ("2", "9", "10")), "x": Target("regression", ("x",))}
    data = ImageData((), {"train": Examples(["a", "b"], labels)}, [], "", targets)
    old = {**targets, "tags": Target("multi_label", ("10", "2", "9"))}
    same = in_recorded_order(data, old)
    assert same.targets == old
    assert same.examples["train"].labels["tags"].tolist() == [[1, 1, 0], [0, 0, 1]]
    assert same.examples["train"].labels["x"] is labels["x"]


def test_a_run_with_integers_in_the_order_of_text_is_reported_and_resumed(digits, monkeypatch):
    """As version 0.1 wrote it: the classes 10, 2, 9 in its configuration and its model."""
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(digits / "cache"))
    from keras_transfer.data import classes, label_columns

    run, table, runner = digits / "run", digits / "t.csv", CliRunner()
    options = "--backbone mobilenet_0.25 --weights none --image-size 32 --val-split 0.34"
    options += " --strategy feature_extraction"
    command = ["train", str(table), "--out", str(run), *options.split()]
    for module in (classes, label_columns):
        monkeypatch.setattr(module, "sorted_names", lambda names: tuple(sorted(set(names))))
    trained = runner.invoke(app, command)
    assert trained.exit_code == 0, trained.output
    monkeypatch.undo()
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(digits / "cache"))
    assert yaml.safe_load((run / "config.yaml").read_text())["head"]["names"] == ["10", "2", "9"]
    said = json.loads((run / "metrics.json").read_text())["val"]
    measured = runner.invoke(app, ["evaluate", str(run), str(table), "--split", "val", "--json"])
    assert json.loads(measured.stdout)["accuracy"] == pytest.approx(said["accuracy"])
    reported = runner.invoke(app, ["report", str(run)])
    assert reported.exit_code == 0, (reported.output, reported.exception)
    written = json.loads((run / "evaluation.json").read_text())
    (head,) = written["heads"].values()
    assert head["accuracy"]["value"] == pytest.approx(said["accuracy"])
    resumed = runner.invoke(app, [*command, "--resume"])
    assert "changed" not in str(resumed.exception), resumed.exception


def test_a_class_without_an_image_is_named_with_a_reason():
    target = Target("single_label", ("a", "b", "c"))
    require_each_class(np.array([0, 1, 2]), target, "t.csv")
    with pytest.raises(
        InputError, match=r"^classes b, c have no readable example in t\.csv; add some"
    ):
        require_each_class(np.array([0, 0]), target, "t.csv")
    skipped = [Skipped("d/a/1.png", "empty file"), Skipped("d/c/1.png", "truncated")]
    with pytest.raises(
        InputError, match=r"^class c has no readable example in d \(d/c/1\.png: trunc"
    ):
        require_each_class(np.array([0, 1]), target, "d", skipped)
    tags = Target("multi_label", ("x", "y"))
    with pytest.raises(InputError, match=r"^class y has no readable example"):
        require_each_class({"t": np.array([[1, 0]])}, {"t": tags}, "t.csv")
    require_each_class(np.zeros((3, 1)), Target("regression", ("n",)), "t.csv")
