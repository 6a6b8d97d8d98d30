"""Names that are not UTF-8 or contain control characters: whatever is written can be read back."""

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from conftest import raises, tiny_backbone, write_image
from killed import killed_after

from keras_transfer.data import from_directory, list_images, read_split_file
from keras_transfer.data.splits import split
from keras_transfer.errors import InputError
from keras_transfer.runs import Run
from keras_transfer.utils.console import printable
from keras_transfer.utils.documents import dump_yaml, read_rows
from keras_transfer.utils.files import (
    csv_text,
    decode_text,
    encode_text,
    plain_path,
    read_text,
    write_text,
)

NASTY = {
    "latin-1": b"caf\xe9",
    "no text at all": b"_\xff\xfe_",
    "newline": b"a\nb",
    "carriage return": b"a\rb",
    "both": b"a\r\nb",
    "tab": b"a\tb",
    "quote": b'a"b',
    "comma": b"a,b",
    "formula": b"=1+1",
    "option": b"-x",
    "next line": "a\x85b".encode(),
    "line separator": "a\u2028b".encode(),
    "paragraph separator": "a\u2029b".encode(),
    "byte order mark": "\ufeffa".encode(),
    "escape": b"a\x1b[31mb",
    "long": b"n" * 200,
    "spaces": b"  a ",
    "backslash": b"a\\nb",
    "markup": b"<script>alert(1)",
    "table": b"a|b",
    "mathematics": b"$x$",
    "broken mathematics": b"$\\frac$",
    "template": b"{{x}}%s",
    "null": b"null",
    "wide": "日本".encode(),
}
NAMES = {key: os.fsdecode(name) for key, name in NASTY.items()}
ROOT = os.fsdecode(b"d\xe9\n")
each = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)


# -- each writer ------------------------------------------------------------------------------------


@each
def test_text_keeps_its_bytes(tmp_path, name):
    write_text(tmp_path / "a.txt", name)
    assert (tmp_path / "a.txt").read_bytes() == encode_text(name) == os.fsencode(name)
    assert decode_text(encode_text(name)) == name
    assert read_text(tmp_path / "a.txt") == name.removeprefix("\ufeff")


@each
def test_csv_reads_back(tmp_path, name):
    write_text(tmp_path / "a.csv", csv_text((name, "b"), [(name, name), ("x", name)]))
    expected = [{name: name, "b": name}, {name: "x", "b": name}]
    if not name.startswith("\ufeff"):  # at the start of a file it is the mark of an encoding
        assert read_rows(tmp_path / "a.csv") == expected
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert list(csv.DictReader(file)) == expected


def test_csv_quotes_no_more_than_it_must():
    assert csv_text(("a", "b"), [("x y", 1), ("z\r", None)]) == 'a,b\nx y,1\n"z\r",\n'


@each
def test_yaml_reads_back_in_strict_utf_8(tmp_path, name):
    document = {"names": [name, f"{name} {name} " * 30], name: {"a": name}}
    write_text(tmp_path / "a.yaml", dump_yaml(document))
    assert yaml.safe_load((tmp_path / "a.yaml").read_text(encoding="utf-8")) == document


def test_yaml_is_written_as_before():
    document = {"b": "ä: 1", "a": [1, None, "x y"], "long": "w " * 60}
    assert dump_yaml(document) == yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


@each
def test_lists_of_splits_read_back(tmp_path, name):
    rows = [(f"a/{name}", "train"), (f"b/{name}", "val")]
    write_text(tmp_path / "split.csv", csv_text(("path", "split"), rows))
    assert read_split_file(tmp_path / "split.csv") == dict(rows)


def test_groups_are_drawn_by_the_bytes_of_their_names():
    groups = np.repeat(list(NAMES.values()), 3)
    parts = split(np.zeros(len(groups), int), {"val": 0.3}, list(groups), groups=list(groups))
    found = [set(groups[rows]) for rows in parts.values()]
    assert len(found) == 2 and not set.intersection(*found)


@each
def test_printed_names_are_one_line_of_printable_text(name):
    text = printable(name)
    assert text.isprintable() and text.encode() and len(text.splitlines()) == 1


def test_half_a_surrogate_pair_is_no_name(tmp_path):
    with raises("'\\ud800' is not valid text"):
        write_text(tmp_path / "a.csv", csv_text(("a",), [("x\ud800",)]))
    assert not list(tmp_path.iterdir())


# -- a run ------------------------------------------------------------------------------------------


def trainer(data):
    import keras

    from keras_transfer.models.builders import build_model
    from keras_transfer.models.heads import Classification
    from keras_transfer.schedules.phases import Phase, Schedule
    from keras_transfer.training.trainer import Trainer

    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification(data.class_names), image_size=32)
    schedule = Schedule("s", (Phase("head", "all", 2, 1e-2),))
    return Trainer(model, schedule, batch_size=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """ROOT/{train,val}/<class>/<file>, in which classes and files have the names of NAMES."""
    root, names = tmp_path_factory.mktemp("names") / ROOT / "images", list(NAMES.values())
    for c, label in enumerate(names):
        for i, part in enumerate(("train", "train", "val")):
            file = root / part / label / f"{names[(c + i) % len(names)]}.png"
            write_image(file, (9 * c, 250 - 9 * c, 90), size=(32, 32), seed=i)
            if c == 0 and part == "train":
                file.with_name(f"broken {names[i]}.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return root


@pytest.fixture(scope="module")
def run(folder):
    """A run that was interrupted after its first epoch, and resumed."""
    data, out = from_directory(folder, progress=False), folder.parent / "run"
    options = {"config": {"data": str(folder), "note": NAMES}, "tensorboard": True}
    with killed_after(epoch=1):
        trainer(data).fit(data, out, **options)
    begun = Run.open(out, finished=False)
    assert not begun.finished
    begun.release()
    again = from_directory(folder, progress=False, split_file=begun.split_path)
    trainer(again).fit(again, out, resume=True, **options)
    return Run.open(out)


def test_classes_and_files_have_their_names(folder):
    data = from_directory(folder, progress=False)
    assert data.class_names == tuple(sorted(NAMES.values()))
    for part, examples in data.examples.items():
        assert sorted(examples.names) == sorted(
            str(path) for path in folder.glob(f"{part}/*/*") if "broken" not in path.name
        )
    assert sorted(map(os.fsdecode, list_images([folder]))) == sorted(map(str, folder.glob("*/*/*")))
    text = data.describe()
    assert text.encode() and all(line.isprintable() for line in text.split("\n"))
    assert len(text.split("\n")) == 4


def test_records_keep_classes_and_names(folder, tmp_path):
    from keras_transfer.data import from_records, write_records

    data = from_directory(folder, progress=False)
    write_records(data, tmp_path / ROOT)
    found = from_records(tmp_path / ROOT, progress=False)
    assert found.class_names == data.class_names
    for part, examples in data.examples.items():
        read = found.examples[part]
        assert sorted(map(os.path.basename, read.names)) == sorted(
            map(os.path.basename, examples.names)
        )


def test_a_run_reads_back_what_it_wrote(folder, run):
    data = from_directory(folder, progress=False)
    assert run.config["note"] == NAMES and run.config["data"] == str(folder)
    rows = read_rows(run.split_path)
    assert [(r["path"], r["label"], r["split"]) for r in rows] == data.split_table()
    assert run.split == read_split_file(run.split_path)
    assert run.skipped == [(item.path, item.reason) for item in data.skipped]
    assert len(run.skipped) == 2
    assert len(run.history) == 2
    assert list(run.tensorboard_path.glob("*/events*"))
    run.require_own_images(data)


def test_the_model_knows_its_classes(folder, run):
    from keras_transfer.evaluation import evaluate
    from keras_transfer.models.builders import heads_of

    data, model = from_directory(folder, progress=False), run.model
    (head,) = heads_of(model).values()
    assert tuple(head.names) == data.class_names
    result = json.loads(json.dumps(evaluate(model, data, "val")))
    assert set(result["per_class"]) == set(NAMES.values())


def test_predictions_read_back(folder, run):
    from keras_transfer.evaluation import predict, predictions_csv, predictions_json

    predictions, skipped = predict(run.model, [folder])
    out = run.path / "predictions.csv"
    write_text(out, predictions_csv(predictions))
    expected = [(p.path, p.label) for p in predictions]
    assert [(row["path"], row["label"]) for row in read_rows(out)] == expected
    document = json.loads(json.dumps(predictions_json(predictions, skipped)))
    assert [(p["path"], p["label"]) for p in document["predictions"]] == expected
    assert len(document["skipped"]) == 2
    assert {path for path, _ in expected} == {
        str(p) for p in folder.glob("*/*/*") if "broken" not in p.name
    }


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_stdout_has_the_bytes_of_a_file(folder, run, encoding):
    command = [sys.executable, "-m", "keras_transfer.cli", "predict", run.path, folder / "val"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    found = subprocess.run(command, capture_output=True, env=environment, check=True)
    rows = list(csv.DictReader(io.StringIO(decode_text(found.stdout), newline="")))
    assert sorted(row["path"] for row in rows) == sorted(map(str, folder.glob("val/*/*")))


def test_evaluations_read_back(folder, run):
    from keras_transfer.evaluation import assess
    from keras_transfer.evaluation.slices import slice_values

    data = from_directory(folder, progress=False)
    slices = {"folder": slice_values(data, "val", "folder")}
    found = assess(run.model, data, "val", slices=slices)
    found.save(run.path / "evaluation")
    document = json.loads((run.path / "evaluation" / "evaluation.json").read_text("utf-8"))
    assert document == json.loads(json.dumps(found.to_dict()))
    (head,) = document["heads"].values()
    assert set(head["per_class"]) == set(NAMES.values())
    rows = read_rows(run.path / "evaluation" / "predictions.csv")
    assert [row["label"] for row in rows] == found.predictions["label"]
    assert {row["label"] for row in rows} == set(NAMES.values())
    assert found.table().encode() and all(line.isprintable() for line in found.table().split("\n"))


def test_the_report_is_valid_text_without_foreign_markup(run):
    from keras_transfer.reporting import write_report

    page = write_report(run).read_bytes().decode()  # strict UTF-8
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert r"caf\xe9" in page
    assert not {c for c in page if not c.isprintable()} - {"\n"}


def test_pages_show_names_that_are_no_text():
    from keras_transfer.reporting.page import line_figure, skipped_files

    skipped = skipped_files([(name, f"{name}: damaged") for name in NAMES.values()])
    assert skipped["text"].isprintable()
    drawn = line_figure("accuracy", {name: [(1, 0.5), (2, 0.6)] for name in NAMES.values()})
    assert all(c.isprintable() or c == "\n" for c in drawn["svg"])


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_printed_path_is_the_path(run, encoding):
    out = run.path / "page \udce9.html"
    command = [sys.executable, "-m", "keras_transfer.cli", "report", run.path, "--out", out]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    found = subprocess.run(
        [*command, "--examples", "0"], capture_output=True, env=environment, check=True
    )
    assert os.fsdecode(found.stdout) == f"{out}\n" and out.is_file()


def test_a_sheet_shows_any_name(folder):
    from keras_transfer.reporting.sheet import show_batch

    data = from_directory(folder, progress=False)
    figure = show_batch(data, len(NAMES), image_size=32, variants=1, mix="mixup")
    figure.savefig(io.BytesIO(), format="png", dpi=30)


def test_exports_answer_with_the_names(folder, run):
    import tensorflow as tf

    from keras_transfer.export import export_run

    exported = export_run(run)
    assert exported.path == run.path / "export" / "1" and exported.path.is_dir()
    lines = read_text(exported.path / "assets" / "labels.txt").split("\n")[:-1]
    names = sorted(NAMES.values())
    assert [unescaped(line) for line in lines] == names
    assert all(len(line.splitlines()) == 1 for line in lines)
    assert (exported.path / "README.md").read_bytes().decode()
    with plain_path(exported.path) as path:
        serve = tf.saved_model.load(str(path)).signatures["serve_bytes"]
        images = [path.read_bytes() for path in sorted(folder.glob("val/*/*"))]
        answer = serve(bytes=tf.constant(images))
    assert [decode_text(name) for name in answer["class_names"].numpy()[0]] == names
    assert {decode_text(name) for name in answer["label"].numpy()} <= set(names)


def unescaped(line):
    return line.encode("latin-1", "backslashreplace").decode("unicode_escape")


def test_another_data_set_is_named_in_one_printable_line(folder, run, tmp_path):
    write_image(tmp_path / "a\x1b\udce9" / "1.png", (9, 9, 9))
    command = [sys.executable, "-m", "keras_transfer.cli", "evaluate", run.path, tmp_path]
    found = subprocess.run(command, capture_output=True)
    assert found.returncode == InputError.exit_code
    (line,) = found.stderr.decode().splitlines()
    assert line.isprintable() and r"a\x1b\xe9" in line
