"""Folder layouts, tables and option values at random: a clear error or exactly the data announced.

`FUZZ_CASES=2000 pytest tests/data/test_fuzz.py` tries more. The command `train` runs up to `Trainer.fit`.
"""

import csv
import io
import os
import re
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from keras_transfer.cli.main import app
from keras_transfer.data.folders import split_of
from keras_transfer.errors import InputError
from keras_transfer.training import trainer as training

CASES = int(os.environ.get("FUZZ_CASES", 100))
FUZZ = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
SYSTEM = ("@eaDir", "__MACOSX", ".ipynb_checkpoints", "#recycle")
CLASSES = (
    "ant",
    "bee",
    "2",
    "10",
    "caf\u00e9",
    "cafe\u0301",
    "train station",
    "test tube",
    "a,b",
    "Ä'\"",
)
SPLITS = ("train", "Training", "seg_train", "val", "VALID", "dev", "test", "test_set", "extra")
OPTIONS = {
    "--val-split": ("0.2", "0.5", "0", "1", "-1", "nan", "x"),
    "--test-split": ("0", "0.3", "0.99", "2"),
    "--seed": ("0", "7", "-1", "1e9"),
    "--folds": ("2", "3", "1", "99"),
    "--fold": ("1", "2", "0"),
    "--batch-size": ("8", "0", "-3", "4.5"),
    "--epochs": ("1", "0"),
    "--image-size": ("32", "1", "0"),
}


ACCEPTED: list = []
REFUSED: list = []


def mostly(common, rare):
    """Draw from `rare` once in four times (`one_of` draws from equal strategies only once)."""
    return st.integers(0, 3).flatmap(lambda number: rare if number == 2 else common)


@pytest.fixture(scope="module", autouse=True)
def a_twentieth_of_the_cases_trains():
    """Random cases that all ended in errors would prove little."""
    yield
    assert len(ACCEPTED) > (len(ACCEPTED) + len(REFUSED)) / 20
    assert len(set(REFUSED)) > 5


class Trains(Exception):
    """The command has come to training, with these images."""


class NoTrainer:
    def __init__(self, *_, **__):
        pass

    def fit(self, images, out, **_):
        raise Trains(images)


def png(number):
    pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), "uint8")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PNGS = [png(number) for number in range(200)]

kinds = st.sampled_from(["image"] * 6 + ["broken", "text", "empty"])
files = st.one_of(st.lists(kinds, min_size=3, max_size=6), st.lists(kinds, max_size=2))
names = st.sampled_from([*CLASSES, *CLASSES, *SYSTEM, "train", "sub"])
class_folders = st.dictionaries(names, files, min_size=1, max_size=4)
same_classes = st.dictionaries(st.sampled_from(CLASSES[:3]), st.just(["image"] * 3), min_size=2)
layouts = st.one_of(
    class_folders.map(lambda classes: {"": classes}),
    st.dictionaries(st.sampled_from(SPLITS), same_classes, min_size=1, max_size=3),
    st.dictionaries(st.sampled_from([*SPLITS, "wrapper"]), class_folders, max_size=4),
)
drawn_options = st.dictionaries(st.sampled_from(sorted(OPTIONS)), st.integers(0, 6), max_size=2)
option_lists = mostly(st.just({}), drawn_options).map(
    lambda drawn: [
        t for name, i in drawn.items() for t in (name, OPTIONS[name][i % len(OPTIONS[name])])
    ]
)


@pytest.fixture(scope="module", autouse=True)
def no_training():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "Trainer", NoTrainer)
        patch.setattr("keras_transfer.cli.train.build", lambda *_: None)
        patch.setattr("keras_transfer.cli.train.load_keras", lambda: None)
        yield


def trained(data, *options):
    """Return (the images that training gets or None, what the command printed)."""
    out = Path(data).parent / "out"
    fixed = ["--backbone", "mobilenet_0.25", "--strategy", "from_scratch", "--out", str(out)]
    result = CliRunner().invoke(app, ["train", str(data), *fixed, *options])
    assert not out.exists(), "something is half-written"
    error = result.exception
    if isinstance(error, Trains):
        ACCEPTED.append(data)
        return error.args[0], result.stderr
    if isinstance(error, InputError):
        assert str(error).strip() and "\n" not in str(error)
    else:
        assert isinstance(error, SystemExit) and result.exit_code == 2, result.exc_info
    REFUSED.append(str(error))
    return None, result.stderr


def check_announced(images, said):
    """What describe() prints is what the labels say."""
    for split, part in images.examples.items():
        counts = np.bincount(part.labels, minlength=len(images.class_names))
        assert f"{split}: {len(part)} images" in said
        for name, count in zip(images.class_names, counts):
            if len(images.class_names) <= 8:
                assert re.search(rf"{re.escape(name)} {count}\b", said), (name, count, said)
    assert all(np.bincount(images.examples["train"].labels, minlength=len(images.class_names)))


def composed(name):
    return unicodedata.normalize("NFC", name)


def write_layout(root, layout):
    """Write the files; return the readable images that are not in folders of the system."""
    visible, number = [], 0
    for top, classes in layout.items():
        for name, kinds in classes.items():
            folder = root / top / name
            folder.mkdir(parents=True, exist_ok=True)
            for kind in kinds:
                number += 1
                file = folder / f"{number}.{'txt' if kind == 'text' else 'png'}"
                content = {"image": PNGS[number], "broken": PNGS[number][:40], "text": b"no"}
                file.write_bytes(content.get(kind, b""))
                if kind == "image" and name not in SYSTEM:
                    visible.append(file)
    return visible


@FUZZ
@given(layouts, option_lists)
def test_folders(layout, options):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        root.mkdir()
        visible = write_layout(root, layout)
        images, said = trained(root, *options)
        if images is None:
            return
        check_announced(images, said)
        # One folder that states a split may be a class, such as train_station; two are splits.
        tops = {Path(file).relative_to(root).parts[0] for file in visible}
        several = len({split_of(top) for top in tops} - {None}) > 1
        used = {}
        for split, part in images.examples.items():
            for name, label in zip(part.names, part.labels):
                top, *inner, _ = Path(name).relative_to(root).parts
                chosen = images.class_names[label]
                as_splits = bool(inner) and split_of(top) and chosen == composed(inner[0])
                assert as_splits or (chosen == composed(top) and not (several and inner))
                if as_splits and split_of(top) != "train":
                    assert split == split_of(top)
                assert used.setdefault(name, split) == split
        ignored = sum(int(n) for n in re.findall(r"^ignored: .*?(\d+) images", said, re.M))
        assert len(used) + ignored >= len(visible), "an image was left out silently"


good_cells = st.sampled_from(["ant", "bee", "cow", "1"])
bad_cells = st.sampled_from(["", "nan", "a|b", "['a']", "a, b", " ant "])
whole_tables = st.lists(good_cells, min_size=10, max_size=10).map(lambda all: list(enumerate(all)))
more_rows = st.lists(
    st.tuples(st.integers(0, 10), mostly(good_cells, bad_cells)), min_size=1, max_size=4
)
rows = mostly(whole_tables, st.tuples(whole_tables, more_rows).map(lambda both: both[0] + both[1]))
headers = mostly(
    st.just(("path", "label")),
    st.sampled_from([("file", "label"), ("path", "class"), ("path", "path"), ("", "")]),
)
shapes = st.fixed_dictionaries(
    {
        "delimiter": mostly(st.just(","), st.sampled_from([";", "\t"])),
        "end": st.sampled_from(["\n", "\r\n"]),
        "encoding": st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
        "before": mostly(st.just(""), st.sampled_from(["sep=;\n", "\n"])),
        "after": mostly(st.just(""), st.sampled_from([",,\n", "\n\n", ";;\n"])),
        "form": mostly(
            st.just("images/{}.png"), st.sampled_from(["images\\{}.png", "images/{}", "{}.png"])
        ),
    }
)


@FUZZ
@given(headers, rows, shapes, option_lists)
def test_tables(header, rows, shape, options):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "images").mkdir()
        for number in range(10):  # 10 is missing
            (Path(folder) / "images" / f"{number}.png").write_bytes(PNGS[number])
        text = io.StringIO()
        writer = csv.writer(text, delimiter=shape["delimiter"], lineterminator=shape["end"])
        writer.writerow(header)
        writer.writerows((shape["form"].format(number), label) for number, label in rows)
        table = Path(folder) / "table.csv"
        whole = shape["before"] + text.getvalue() + shape["after"]
        table.write_bytes(whole.encode(shape["encoding"]))
        images, said = trained(table, *options)
        if images is None:
            return
        check_announced(images, said)
        labels = {number: {label for n, label in rows if n == number} for number, _ in rows}
        for part in images.examples.values():
            for name, label in zip(part.names, part.labels):
                assert images.class_names[label] in labels[int(Path(name).stem)]
