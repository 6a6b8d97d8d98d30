"""The page of a run: complete, self-contained, small enough, fit for keyboard and screen reader."""

import base64
import hashlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import tiny_backbone, write_colours, write_image
from PIL import Image
from report_opening import noise_shots, random_answers
from typer.testing import CliRunner

from keras_transfer.cli.main import app
from keras_transfer.data import from_arrays, from_directory
from keras_transfer.errors import InputError
from keras_transfer.evaluation.tasks import measure_labels, measure_values
from keras_transfer.models.builders import build_model, head_for
from keras_transfer.reporting import compare_runs, write_report
from keras_transfer.reporting.gallery import Budget, Item, Shot, gallery
from keras_transfer.reporting.run_report import render_report
from keras_transfer.runs import Run
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.trainer import Trainer

SCHEDULE = Schedule("two", (Phase("head", "all", 2, 1e-2), Phase("all", "stage:1", 2, 1e-3)))
VOID = {"meta", "img", "input", "br", "use", "path", "rect", "image", "link"}
EVIL = '<script>alert("1")</script>$x_&'


class Page(HTMLParser):
    """A document as what matters of it: elements with their attributes, headings, text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.text, self.elements, self.open, self.headings, self.words = text, [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.open and self.open[-1] == tag, (self.open[-3:], tag)
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)
        if self.open and re.fullmatch(r"h[1-6]", self.open[-1]):
            self.headings.append((int(self.open[-1][1]), data))

    @property
    def said(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def checked(text) -> Page:
    """The page, seen to be what every page must be."""
    page = Page(text)
    assert not page.open, "elements are left open"
    # Nothing is fetched: no address but fragments and data, in attributes and in style sheets.
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data")
    ]
    assert all(a.startswith(("#", "data:image/")) for a in addresses)
    assert not re.search(r"url\((?!#)|@import", text)
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'; img-src data:;")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a[1:] for a in addresses if a.startswith("#")}
    assert targets | set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    # For screen readers and keyboards.
    assert all("alt" in image for image in page.all("img"))
    assert all(s.get("role") == "img" and s.get("aria-label") for s in page.all("svg"))
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    regions = [d for d in page.all("div") if d.get("tabindex") == "0"]
    assert regions and all(d["role"] == "region" and d["aria-label"] for d in regions)
    assert page.all("html")[0]["lang"] == "en"
    assert any(m.get("name") == "viewport" for m in page.all("meta"))
    assert "prefers-color-scheme: dark" in text
    return page


def trained(folder, images):
    keras.utils.set_random_seed(0)
    data = from_directory(images, seed=1, progress=False)
    model = build_model(tiny_backbone(), head_for(data), image_size=32)
    config = {"data": str(images), "backbone": "tiny", "weights": "none", "val_split": 0.2}
    trainer = Trainer(model, SCHEDULE, seed=1, batch_size=8, cache="off")
    return trainer.fit(data, folder, config=config, tensorboard=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on three colours, one of which has another's images among its own; a bad file."""
    folder = tmp_path_factory.mktemp("report")
    images = write_colours(folder / "colours")
    for i in range(6):
        write_image(images / "red" / f"blue {i}.png", (40, 40, 200), seed=i)
    (images / "red" / "bad <i>.png").write_bytes(b"nothing")
    return trained(folder / "run", images)


@pytest.fixture
def run(finished, tmp_path):
    """A copy, for a test to write into."""
    shutil.copytree(finished.path, tmp_path / "run")
    return Run(tmp_path / "run")


def test_what_can_be_done_with_a_run_of_python(run, monkeypatch):
    """Its folder is known, so it can be measured; what built its model is not, so no command trains it."""

    def page():
        return Page(render_report(run, model, None, {})).said

    model = run.model
    own = {name: value for name, value in run.config.items() if name != "backbone"}
    monkeypatch.setattr(Run, "config", own)
    text = page()
    assert f"keras-transfer evaluate {run.path} {own['data']}" in text
    assert "trained from Python" in text and "keras-transfer train" not in text
    monkeypatch.setattr(Run, "config", {n: v for n, v in own.items() if n != "data"})
    assert "keras-transfer" not in page()


def test_a_part_of_a_folder_is_not_the_folder(tmp_path):
    data = from_directory(write_colours(tmp_path / "colours"), progress=False)
    assert data.source == {"data": str(tmp_path / "colours"), "task": "single_label"}
    part = {split: examples.take([0]) for split, examples in data.examples.items()}
    assert not replace(data, examples=part).source


def test_the_page_of_a_run(run):
    path = write_report(run)
    assert path == run.report_path
    text = path.read_text()
    page = checked(text)
    for words in (
        "tiny on colours",
        "Data and model",
        "Initial weights none",
        "3 classes (blue, green, red)",
        "Learning rate of each stage",
        "Accuracy",
        "Loss",
        "Training curves",
        "Confusion matrix",
        "Reliability",
        "before scaling",
        "Calibration",
        "Most confident errors",
        "but the label is red",
        "Least confident predictions",
        "1 file could not be used: ",
        "Reproduce this run",
        "bad <i>.png",
        f"keras-transfer train {run.config['data']} --out {run.path}-again",
    ):
        assert words in page.said, words
    # The evaluation is kept, and is what the page shows.
    document = run.evaluation
    head = document["heads"]["output"]
    assert document["split"] == "val" and document["images"] == run.metrics["images"]["val"]
    assert head["accuracy"]["value"] == pytest.approx(run.metrics["val"]["accuracy"])
    assert len(head["mistakes"]) > 0
    # Mistakes stand in order, with what speaks for the answer and for the true class.
    photos = [i["alt"] for i in page.all("img") if "class" not in i]
    wrong = [alt for alt in photos if "but the label is" in alt]
    assert len(wrong) >= len(head["mistakes"])
    assert all("Evidence for the prediction mostly at the" in alt for alt in wrong)
    kinds = [i["class"] for i in page.all("img") if "class" in i]
    assert kinds.count("heat truth") == len(wrong) and set(kinds) == {
        "heat prediction",
        "heat truth",
    }
    # The table of classes begins with the weakest, and says so.
    sorted_by = [th for th in page.all("th") if "aria-sort" in th]
    assert [th["aria-sort"] for th in sorted_by].count("ascending") == 1
    # Browsers run the script only where its hash is right.
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


@pytest.mark.parametrize("classes", (100, 1000))
def test_many_classes_and_a_thousand_mistakes(run, classes):
    document = random_answers(classes, 1600, 1000, EVIL)
    text = render_report(run, run.model, document, noise_shots(document))
    assert len(text.encode()) < 5_000_000
    page = checked(text)
    photos = [i for i in page.all("img") if "class" not in i]
    assert len(photos) > 200 and len(document["heads"]["output"]["mistakes"]) == 1000
    # What has no image is said in words: nothing is lost.
    assert all(f"/{i}.jpg" in text for i in (int(e["path"].split("/")[-1][:-4]) for e in document["heads"]["output"]["mistakes"]))  # fmt: skip
    # Names that are HTML stay names.
    assert "alert(" not in text.replace("&lt;script&gt;alert(", "")
    # Green where predictions are correct, orange where any is wrong.
    (whole,) = [i for i in page.all("img") if i.get("class") == "whole"]
    pixels, block = decoded(whole), -(-classes // 400)
    assert pixels.shape[0] == -(-classes // block)
    counts = np.array(document["heads"]["output"]["confusion"])
    wrong = (counts - np.diag(np.diag(counts)) > 0).sum()
    orange = (pixels[..., :3] == (217, 95, 2)).all(axis=-1) & (pixels[..., 3] > 0)
    green = (pixels[..., :3] == (27, 158, 119)).all(axis=-1) & (pixels[..., 3] > 0)
    assert orange.sum() == wrong if block == 1 else 0 < orange.sum() <= wrong
    assert green.sum() == (np.diag(counts) > 0).sum() if block == 1 else green.any()
    rows = [th for th in page.all("th") if th["scope"] == "row"]
    assert len(rows) >= classes


def decoded(image):
    data = base64.b64decode(image["src"].partition("base64,")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


def test_thumbnails_are_the_images_and_the_heat():
    """The photo is what the model saw; the heat lies where it was, the more the more opaque."""
    image = np.zeros((64, 64, 3), "uint8")
    image[:32] = (200, 100, 50)
    heat = np.zeros((7, 7))
    heat[6, 0] = 1
    item = Item("a/b.jpg", "cat (0.90), but the label is dog (0.05)", {"prediction": 0, "truth": 1})
    shots = {"a/b.jpg": Shot(image, {"prediction": heat, "truth": np.zeros((7, 7))})}
    budget = Budget(100_000)
    found = gallery([item], shots, budget)
    assert 90_000 < budget.left < 100_000
    (thumbnail,) = found["thumbnails"]
    assert found["rest"] is None and found["kinds"] == ["prediction", "truth"]
    text = "Evidence for the prediction mostly at the bottom left"
    assert thumbnail["alt"] == f"{item.text}. {text}" and thumbnail["name"] == "b.jpg"

    pixels = decoded({"src": thumbnail["photo"]})
    assert np.abs(pixels[10, 10, :3].astype(int) - (200, 100, 50)).max() < 8
    assert pixels[-10, 10, :3].max() < 8
    heats = dict(thumbnail["heats"])
    opacity = decoded({"src": heats["prediction"]})[..., 3]
    assert opacity[6, 0] == 185 and opacity.sum() == 185
    assert not decoded({"src": heats["truth"]})[..., 3].any()
    # Without room the words stay.
    budget = Budget(10)
    found = gallery([item], shots, budget)
    assert budget.left == 0 and not found["thumbnails"]
    assert found["rest"].cells == [["a/b.jpg", item.text]]


def test_labels_and_numbers(run, rng):
    labels = (rng.random((40, 3)) > 0.5).astype("float32")
    logits = (labels * 2 - 1 + rng.normal(size=(40, 3))).astype("float32")
    paths = [f"{i}.jpg" for i in range(40)]
    head, _ = measure_labels(
        ["a", "b", EVIL], labels, logits, paths, calibration={"temperature": 1.2}
    )
    numbers, _ = measure_values(["age"], labels[:, :1] * 9, logits[:, :1], paths)
    document = {
        **random_answers(6, 30, 3, EVIL),
        "heads": {
            "tags": head,
            "size": numbers,
            "kind": random_answers(6, 30, 3, EVIL)["heads"]["output"],
        },
    }
    page = checked(render_report(run, run.model, document, {}))
    for words in (
        "Metrics by label · tags",
        "Largest errors · size",
        "age: ",
        "best threshold",
        "· kind",
    ):
        assert words in page.said
    assert "kind: accuracy, test" in page.said and "tags: mean average precision" in page.said


def test_the_contenders_of_the_advisor_are_drawn(run):
    assert "The contenders of the advisor" not in write_report(run).read_text()
    rows = [
        {"strategy": name, "overrides": more, "score": score, "at": at}
        for name, more, score, at in (
            ("feature_extraction", {}, 0.7, 0.3),
            ("lp_ft", {"epochs": 6}, 0.8, 1.1),
        )
    ]
    race = {"contenders": rows, "evidence": {"score": "accuracy"}}
    (run.path / "race.json").write_text(json.dumps(race))
    page = write_report(run).read_text()
    assert "The contenders of the advisor" in page and "minutes since the start" in page


def test_without_the_images(run, capsys):
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("/colours", "/gone"))
    page = checked(write_report(run).read_text())
    assert "Its images cannot be opened: no such folder" in page.said
    assert "Most confident errors" not in page.said and "accuracy, validation" in page.said
    assert run.evaluation is None and "The report has no images" in capsys.readouterr().err
    with pytest.raises(InputError, match="no such folder"):
        write_report(run, split="val")


def test_other_images_and_a_head_in_closed_form(tmp_path, rng):
    """Trained from arrays, in closed form: no rate, no path, no history of gradients."""
    labels = np.arange(24) % 2
    images = rng.integers(0, 100, (24, 32, 32, 3)) + 100 * labels[:, None, None, None]
    data = from_arrays((images.astype("uint8"), labels), class_names=("a", "b"), progress=False)
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), head_for(data), image_size=32)
    schedule = Schedule("closed", (Phase("head", "all", 1, solver="logistic"),))
    run = Trainer(model, schedule, cache="memory").fit(data, tmp_path / "run")
    page = checked(write_report(run).read_text())
    assert "pass its images" in page.said and "closed form" in page.said
    assert "Learning rate of each stage" not in page.said
    path = write_report(run, data, split="train", out=tmp_path / "train.html")
    assert "examples of train" in checked(path.read_text()).said
    assert run.evaluation is None  # of other images than its own nothing is kept
    with pytest.raises(InputError, match="has no test images"):
        write_report(run, data, split="test")


def test_runs_beside_each_other(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "$other_")
    other = Run(tmp_path / "$other_")
    config = other.path / "config.yaml"
    config.write_text(config.read_text().replace("seed: 1\n", "seed: 2\n"))
    page = checked(compare_runs([run, other], tmp_path / "c.html").read_text())
    assert "After `keras-transfer report RUN`" in page.said
    for one in (run, other):
        write_report(one, images=0)
    page = checked(compare_runs([run.path, other.path], tmp_path / "c.html").read_text())
    assert "2 runs compared" in page.said and "run, $other_: all on colours" in page.said
    value = other.evaluation["heads"]["output"]["accuracy"]
    assert f"{value['value']:.4f} [{value['low']:.3f}, {value['high']:.3f}]" in page.said
    assert "Accuracy, validation" in page.said and "different images" not in page.said
    settings = page.said.partition("Settings that differ")[2]
    assert "seed 1 2" in settings and "batch_size" not in settings
    # Another part of the images to validate on is said.
    split = other.split_path
    split.write_text(split.read_text().replace(",val,", ",train,", 1))
    assert (
        "different images"
        in checked(compare_runs([run, other], tmp_path / "c.html").read_text()).said
    )
    for wrong, words in (([run], "1 runs"), ([run, run], "given twice")):
        with pytest.raises(InputError, match=words):
            compare_runs(wrong, tmp_path / "c.html")


def test_the_command(run, tmp_path):
    def cli(*args):
        return CliRunner().invoke(app, ["report", *map(str, args)], catch_exceptions=True)

    out = tmp_path / "page.html"
    shown = cli(run.path, "--out", out, "--images", 2, "--split", "train")
    assert shown.exit_code == 0 and str(out) in shown.stdout
    page = checked(out.read_text())
    assert "examples of train" in page.said and not run.report_path.exists()
    for data, part in ((run.config["data"], "val"), (write_colours(tmp_path / "new"), "all")):
        shown = cli(run.path, "--out", out, "--data", data, "--images", 0)
        assert shown.exit_code == 0 and f"examples of {part}" in checked(out.read_text()).said
    shutil.copytree(run.path, tmp_path / "second")
    assert cli(run.path, tmp_path / "second", "--out", out).exit_code == 0
    assert "differ by chance alone" in checked(out.read_text()).said
    # The command that the page tells trains the same.
    (again,) = re.findall(r"keras-transfer (train .*)", write_report(run).read_text())
    command = shlex.split(again)
    assert command[:2] == ["train", run.config["data"]]
    assert command[-2:] == ["--config", str(run.path / "config.yaml")]


def test_bad_input_is_answered_before_keras(run, tmp_path):
    (tmp_path / "adapted").mkdir()
    (tmp_path / "adapted" / "config.yaml").write_text("method: dann\nschedule: {}\n")
    (tmp_path / "adapted" / "model.keras").write_bytes(b"")
    code = """
import sys
from keras_transfer.cli.main import main
sys.argv = ["keras-transfer", "report", *sys.argv[1:]]
try:
    main()
finally:
    print("keras" in sys.modules, "tensorflow" in sys.modules)
"""
    for args, words in (
        ([tmp_path / "none"], "the directory does not exist"),
        ([tmp_path / "adapted"], "has no feature_maps.npz"),
        ([tmp_path / "adapted", "--split", "val"], "is an adaptation run"),
        ([run.path, "--out", tmp_path], "is a directory"),
        ([run.path, run.path], "given twice"),
        ([run.path, run.path, "--split", "val"], "report of one run"),
        ([run.path, "--data", tmp_path / "none"], "no such folder"),
        ([run.path, "--column", "label=x"], "--column needs --data"),
        ([run.path, "--column", "label=x", "--data", run.config["data"]], "--column needs --data"),
    ):
        command = [sys.executable, "-c", code, *map(str, args)]
        shown = subprocess.run(command, capture_output=True, text=True)
        assert shown.returncode == 2 and words in shown.stderr, shown.stderr
        assert "Traceback" not in shown.stderr and shown.stdout.split() == ["False", "False"]


def test_epochs_for_tensorboard(finished):
    import tensorflow as tf
    from tensorflow.core.util import event_pb2

    found = {}
    for file in finished.tensorboard_path.glob("*/events*"):
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
            event = event_pb2.Event.FromString(record)
            for value in event.summary.value:
                assert value.metadata.plugin_data.plugin_name == "scalars"
                at = (file.parent.name, value.tag, event.step)
                found[at] = float(tf.make_ndarray(value.tensor))
    rows = finished.history
    assert len(rows) == 4
    for row in rows:
        epoch = int(row["epoch"])
        for part, tag, key in (
            ("train", "loss", "loss"),
            ("train", "learning_rate", "learning_rate"),
            ("validation", "accuracy", "val_accuracy"),
        ):
            assert found[part, tag, epoch] == pytest.approx(row[key], rel=1e-5)


def test_images_of_the_same_names_elsewhere_are_not_those_of_the_run(run, tmp_path, capsys):
    """A relative path leads to another folder in another working directory."""
    own, other = Path(run.config["data"]), tmp_path / "other"
    shutil.copytree(own, tmp_path / "moved")
    run.require_own_images(from_directory(tmp_path / "moved", progress=False))
    for seed, file in enumerate(sorted(own.rglob("[0-9]*.png"))):
        write_image(other / file.relative_to(own), (9, 9, 9), seed=seed)
    with pytest.raises(InputError, match=r"does not contain the images of .* differ"):
        run.require_own_images(from_directory(other, progress=False))
    with pytest.raises(InputError, match="none has a recorded name"):
        run.require_own_images(from_directory(write_others(tmp_path), progress=False))
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace(str(own), str(other)))
    write_report(Run(run.path))
    assert "differ" in capsys.readouterr().err


def write_others(folder):
    for seed in range(12):
        name = "red" if seed % 2 else "blue"
        write_image(folder / "others" / name / f"other {seed}.png", (9, 9, 9), seed=seed)
    return folder / "others"
