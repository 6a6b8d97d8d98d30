"""Predictions by Apache Beam: those of `predict`, each file once, also after a stop."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf
from conftest import raises, tiny_backbone, write_colours, write_image

import keras_transfer as kt
from keras_transfer.data import from_directory
from keras_transfer.export import beam
from keras_transfer.export.beam import predict_files
from keras_transfer.models.builders import build_model, head_for
from keras_transfer.training.trainer import Trainer

pytest.importorskip("apache_beam", reason="the extra beam is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="the extra parquet is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beam")
    data = from_directory(write_colours(folder / "d"), progress=False)
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), head_for(data), image_size=32)
    return Trainer(model, "feature_extraction", cache="off").fit(data, folder / "run")


@pytest.fixture(scope="module")
def folder(run):
    folder = run.path.parent / "d"
    (folder / "red" / "broken.png").write_bytes(b"\x89PNG but not really")
    return folder


def rows(out, kind="predictions"):
    return [
        row
        for file in sorted(out.glob(f"{kind}-*"))
        for row in parquet.read_table(file).to_pylist()
    ]


def check(out, run, folder):
    expected, skipped = kt.evaluation.predict(run.model, [folder])
    found = {row["path"]: row for row in rows(out)}
    assert len(found) == len(rows(out)) == len(expected) == 36
    for one in expected:
        row = found[one.path]
        assert row["label"] == one.label
        assert row["score"] == pytest.approx(one.score, abs=0.02)
    (bad,) = rows(out, "skipped")
    assert bad["path"] == str(folder / "red" / "broken.png") and "cannot be read" in bad["reason"]
    assert len(skipped) == 1
    assert not [file for file in out.iterdir() if file.name.startswith(".")]


def test_the_answers_are_those_of_predict(run, folder, tmp_path):
    counts = predict_files(run, [folder], tmp_path / "out", shard_size=10)
    assert vars(counts) == {"predicted": 36, "skipped": 1, "shards": 4}
    check(tmp_path / "out", run, folder)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.parquet")}
    assert predict_files(run, [folder], tmp_path / "out", shard_size=10) == counts
    assert before == {f: f.stat().st_mtime_ns for f in (tmp_path / "out").glob("*.parquet")}


def test_a_killed_pipeline_is_finished_by_the_same_command(run, folder, tmp_path):
    out = tmp_path / "out"
    options = ("--runner", "beam", "--shard-size", "2", "--json", "--out", out)
    workers = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
    command = [sys.executable, "-m", "keras_transfer.cli", "predict", run.path, folder, *options]
    command += [part for one in workers for part in ("--beam-option", one)]
    command = [str(part) for part in command]
    begun = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    limit = time.monotonic() + 240
    while len(list(out.glob("predictions-*"))) < 3 and begun.poll() is None:
        assert time.monotonic() < limit, "nothing was predicted"
        time.sleep(0.05)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()
    done = subprocess.run(command[:-4], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {"predicted": 36, "skipped": 1, "shards": 19}
    check(out, run, folder)


def test_what_is_refused(run, folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with raises("is not empty"):
        predict_files(run, [folder], tmp_path / "full")
    predict_files(run, [folder / "red"], tmp_path / "out")
    with raises("other files"):
        predict_files(run, [folder / "blue"], tmp_path / "out")
    with raises("shard size 0"):
        predict_files(run, [folder], tmp_path / "other", shard_size=0)


def test_a_run_that_was_trained_or_calibrated_again_is_another_one(tmp_path):
    run = SimpleNamespace(path=tmp_path / "run", model_path=tmp_path / "model.keras")
    run.model_path.write_bytes(b"weights")
    beam._claim(tmp_path / "out", run, {}, [])
    beam._claim(tmp_path / "out", run, {}, [])
    with raises("this one before it was trained or calibrated again"):
        beam._claim(tmp_path / "out", run, {"output": 1.2}, [])
    run.model_path.write_bytes(b"other weights")
    with raises("this one before it was trained or calibrated again"):
        beam._claim(tmp_path / "out", run, {}, [])
    plan = tmp_path / "out" / beam.PLAN
    older = {k: v for k, v in json.loads(plan.read_text()).items() if k != "model"}
    plan.write_text(json.dumps(older))
    beam._claim(tmp_path / "out", run, {}, [])


def test_any_names_of_files_and_labels(tmp_path, monkeypatch):
    """A label called like the column of paths, and names that are not UTF-8, which Parquet cannot have."""
    names = tf.constant([[b"path", b"path_", b"red"]] * 2)
    scores = tf.constant([[0.1, 0.2, 0.3]] * 2)
    answers = {"scores": scores, "class_names": names, "error": tf.constant(["", "cannot be read"])}
    monkeypatch.setattr(beam, "_loaded", lambda folder: lambda contents: answers)
    files = [os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/a\xff.png", b"/b\n.png")]
    for file in files:
        write_image(Path(file), (200, 30, 30))
    beam._write_shard(beam._Shard("0", (*files, files[0] + "c")), tmp_path, "image")
    (row,) = rows(tmp_path)
    assert row["path"] == f"{tmp_path}/a\\xff.png"
    assert {k: round(v, 3) for k, v in row.items() if k != "path"} == {
        "path_": 0.1,
        "path__": 0.2,
        "red": 0.3,
    }
    skipped = {row["path"]: row["reason"] for row in rows(tmp_path, "skipped")}
    assert skipped[files[1]] == "cannot be read" and f"{tmp_path}/a\\xff.pngc" in skipped
