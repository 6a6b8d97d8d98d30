"""The report on a data set: faults, duplicates, leakage, sizes; as an object, a command, a warning."""

import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from conftest import write_image
from PIL import Image

from keras_transfer.data import check_data, find_duplicates, from_directory
from keras_transfer.errors import InputError
from keras_transfer.utils.console import printable

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def leaking(tmp_path, rng):
    """DATA/{train,val}/{cat,dog} of 80 + 20 images, 5 of which are copied: (DATA, the pairs)."""
    data = tmp_path / "data"
    for split, count in (("train", 40), ("val", 10)):
        for label in ("cat", "dog"):
            for i in range(count):
                seed = int(rng.integers(1 << 30))
                write_image(data / split / label / f"{i:02}.png", (90, 90, 90), seed=seed)
    pairs = []
    for number in range(5):
        label = ("cat", "dog")[number % 2]
        source = data / "train" / label / f"{3 * number:02}.png"
        copy = data / "val" / label / f"copy of {number}.png"
        copy.write_bytes(source.read_bytes())
        pairs.append((str(source), str(copy)))
    return data, pairs


def test_leakage_is_reported_with_the_very_pairs(leaking):
    data, pairs = leaking
    report = check_data(data)
    assert [(a.name, b.name) for a, b in report.duplicates.leaks] == sorted(
        pairs, key=lambda p: p[1]
    )
    assert all((a.split, b.split) == ("train", "val") for a, b in report.duplicates.leaks)
    assert report.duplicates.conflicts == [] and report.problem is None
    assert report.counts == {"train": {"cat": 40, "dog": 40}, "val": {"cat": 13, "dog": 12}}
    text = report.text()
    assert "LEAKAGE: images that two splits share: 5" in text and pairs[0][1] in text
    assert "CONFLICTS" not in text
    plain = json.loads(json.dumps(report.to_dict()))
    assert [(a["path"], b["path"]) for a, b in plain["leaks"]] == sorted(pairs, key=lambda p: p[1])
    assert "5 examples are in two splits" in report.duplicates.warning


def test_duplicates_within_a_split_and_with_other_labels(leaking):
    data, _ = leaking
    for file in data.glob("val/*/copy*"):
        file.unlink()
    contents = (data / "train" / "cat" / "00.png").read_bytes()
    (data / "train" / "cat" / "again.png").write_bytes(contents)
    assert (
        find_duplicates(from_directory(data)).warning is None
    )  # a copy in the same class and split
    (data / "train" / "dog" / "a cat.png").write_bytes(contents)
    duplicates = check_data(data).duplicates
    assert [[m.label for m in group] for group in duplicates.groups] == [["cat", "cat", "dog"]]
    ((first, other),) = duplicates.conflicts
    assert (first.label, other.label) == ("cat", "dog") and duplicates.leaks == []
    assert "1 example has another label" in duplicates.warning


def test_a_split_that_is_drawn_leaks_nothing(tmp_path):
    """Without folders of their own, the splits are those that training with this seed has, and those
    part no copies."""
    for label in ("cat", "dog"):
        for i in range(20):
            write_image(tmp_path / "d" / label / f"{i:02}.png", (90, 90, 90), seed=i // 2)
    data = from_directory(tmp_path / "d", seed=3)
    report = check_data(tmp_path / "d", seed=3)
    assert report.counts == data.counts and report.duplicates == find_duplicates(data)
    assert len(report.duplicates.groups) == 10 and not report.duplicates.leaks
    assert report.duplicates.conflicts  # the two classes have the same images


def test_report_of_sizes_and_orientations(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a", "b"):
        folder = tmp_path / "d" / name
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (600, 400), (i, 50, len(name))).save(folder / f"{i}.png")
        Image.new("RGB", (300, 200)).save(folder / "turned.jpg", exif=exif)
        Image.new("L", (20, 30)).save(folder / "small.gif")
    (folder / "bad.png").write_bytes(b"")
    report = check_data(tmp_path / "d")
    found = report.statistics
    assert found["shorter_side"] == {"0-31": 2, "128-255": 2, "256-511": 6}
    assert found["exif_orientations"] == {"1": 8, "6": 2}
    assert found["formats"] == {"PNG": 6, "GIF": 2, "JPEG": 2}
    assert found["width"] == {"least": 20, "median": 600, "greatest": 600}
    assert found["height"] == {"least": 30, "median": 400, "greatest": 400}
    assert [s.reason for s in report.faulty] == ["empty file"]
    assert "EXIF orientation: 1: 8, 6: 2" in report.text()


def test_a_folder_that_training_refuses_is_reported(tmp_path):
    write_image(tmp_path / "d" / "cat" / "0.png", (1, 2, 3))
    write_image(tmp_path / "d" / "cat" / "1.png", (1, 2, 3))
    (tmp_path / "d" / "dog").mkdir()
    (tmp_path / "d" / "dog" / "0.png").write_bytes(b"")
    report = check_data(tmp_path / "d")
    assert report.counts == {"all": {"cat": 2, "dog": 0}}
    assert "class dog has no readable example" in report.problem
    assert "train would stop: class dog" in report.text()
    assert len(report.duplicates.groups) == 1
    for wrong, words in (
        ({"val_split": 2}, "validation share"),
        ({"val": tmp_path / "none"}, "no such"),
    ):
        with pytest.raises(InputError, match=words):
            check_data(tmp_path / "d", **wrong)
    for file in (tmp_path / "d" / "cat").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(InputError, match="no readable image"):
        check_data(tmp_path / "d")


def test_check_as_a_command(leaking):
    data, pairs = leaking
    (data / "train" / "cat" / "new\nline \udcff.png").write_bytes(b"x")

    def run(*args):
        command = [sys.executable, "-m", "keras_transfer.cli", "check", *map(str, args)]
        env = {**os.environ, "PYTHONIOENCODING": "ascii"}
        return subprocess.run(command, capture_output=True, text=True, env=env)

    shown = run(data)
    assert shown.returncode == 0 and not shown.stderr
    assert pairs[0][1] in shown.stdout and r"new\nline \xff.png: not an image" in shown.stdout
    plain = json.loads(run(data, "--json").stdout)
    assert len(plain["leaks"]) == 5 and len(plain["faulty"]) == 1
    assert os.fsencode(plain["faulty"][0]["path"]).endswith(b"new\nline \xff.png")
    for file in data.glob("*/*/*"):
        file.write_bytes(b"x")
    nothing = run(data, "--json")
    assert nothing.returncode == 2 and nothing.stdout == "" and "error: " in nothing.stderr


def test_training_warns(leaking, tmp_path, capsys):
    import keras

    from keras_transfer.cli.demo import small_backbone
    from keras_transfer.models.builders import build_model
    from keras_transfer.models.heads import Classification
    from keras_transfer.training.trainer import Trainer

    data, _ = leaking
    keras.utils.set_random_seed(0)
    model = build_model(small_backbone(), Classification(["cat", "dog"]), image_size=32)
    images = from_directory(data)
    Trainer(model, "feature_extraction", cache="memory").fit(images, tmp_path / "run")
    lines = [ln for ln in capsys.readouterr().err.splitlines() if ln.startswith("warning")]
    assert len(lines) == 1 and "5 examples are in two splits" in lines[0]


def test_names_are_printed_on_one_line():
    assert printable("new\nline\t\x1b[0m \udcff füße") == r"new\nline\t\x1b[0m \xff füße"


def test_images_that_are_empty_to_the_model_are_counted(tmp_path, capsys):
    rng, data = np.random.default_rng(0), tmp_path / "images"
    for i in range(6):
        write_image(data / "fine" / f"{i}.png", (90, 90, 90), seed=i)
        twelve = rng.integers(0, 1 << 11, (20, 20), dtype=np.uint16)  # of a microscope
        (data / "deep").mkdir(exist_ok=True)
        Image.fromarray(twelve).save(data / "deep" / f"{i}.png")
        drawing = np.zeros((20, 20, 4), np.uint8)
        drawing[..., 3] = rng.integers(0, 256, (20, 20))
        (data / "drawing").mkdir(exist_ok=True)
        Image.fromarray(drawing).save(data / "drawing" / f"{i}.png")
    Image.new("RGB", (20, 20), (200, 10 + 9, 30)).save(data / "fine" / "plain.png")
    full = rng.integers(0, 1 << 16, (20, 20), dtype=np.uint16)
    Image.fromarray(full).save(data / "deep" / "full.png")
    write_image(data / "fine" / "scan.tif", (90, 90, 90), seed=9)
    report = check_data(data, progress=False)
    assert report.unserved == [str(data / "fine" / "scan.tif")]
    assert "that a model on TF Serving cannot read" in report.text()
    reasons = Counter(item.reason.partition(":")[0] for item in report.empty)
    assert reasons == {"one color": 7}  # 16 bits are scaled by the range that they use
    assert "7 greyscale images of more than 8 bits, of which 11 to 16 are used" in report.text()
    assert "images that are empty to the model: 7" in report.text()
    assert len(report.to_dict()["empty"]) == 7 and not report.faulty
    assert "empty to the model" not in capsys.readouterr().err  # the report says it
    from_directory(data, progress=False)  # known from the index, and said again
    said = capsys.readouterr().err
    assert "6 images are empty to the model" in said and "transparency" in said
    assert "1 image is empty to the model" in said
