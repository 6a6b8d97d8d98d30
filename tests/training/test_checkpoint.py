"""The folder of unfinished work: what is written, what is refused, what a kill leaves."""

import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_transfer.errors import InputError
from keras_transfer.runs import Run
from keras_transfer.training.weights import assign, collect
from keras_transfer.utils import checkpoint as module
from keras_transfer.utils.checkpoint import Checkpoint

SETTINGS = {"rate": 0.1, "phases": [{"name": "head"}]}


def open_work(folder, settings=SETTINGS, **options):
    return Checkpoint.open(folder, settings, what="comparison", **options)


def names(folder):
    return {file.name for file in folder.iterdir()}


def test_the_last_state_and_the_named_arrays_come_back(tmp_path):
    checkpoint = open_work(tmp_path / "new" / "work")
    assert checkpoint.load() is None and checkpoint.load_arrays("start") is None
    checkpoint.save_arrays("start", {"a": np.zeros(2)})
    first = {"best-1": {"a": np.arange(2)}, "soup-1": {"a": np.ones(2)}}
    checkpoint.save({"epoch": 1, "named": list(first)}, {"a": np.ones(2)}, first)
    checkpoint.save({"epoch": 2, "named": ["best-1"]}, {"a": np.full(2, 2.0)})
    state, arrays = open_work(tmp_path / "new" / "work").load()
    assert state == {"epoch": 2, "named": ["best-1"]}
    np.testing.assert_array_equal(arrays["a"], [2, 2])
    np.testing.assert_array_equal(checkpoint.load_arrays("best-1")["a"], [0, 1])
    np.testing.assert_array_equal(checkpoint.load_arrays("start")["a"], [0, 0])
    files = {"settings.json", "state.json", "start.npz", "best-1.npz", "epoch-2.npz"}
    assert names(checkpoint.folder) == files


def test_a_state_without_named_arrays(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save({"epoch": 1}, {})
    checkpoint.save({"epoch": 2, "named": []}, {})
    assert checkpoint.load() == ({"epoch": 2, "named": []}, {})
    assert names(tmp_path) == {"state.json", "epoch-2.npz"}


def test_a_kill_before_the_state_is_written_leaves_the_old_one(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save({"epoch": 1}, {"a": np.ones(1)})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        checkpoint.save({"epoch": 2}, {"a": np.zeros(1)})
    state, arrays = checkpoint.load()
    assert state == {"epoch": 1} and arrays["a"] == 1


@pytest.mark.parametrize("file", ["work.json", "work.yaml"])
def test_other_settings_and_other_data_are_refused(tmp_path, file):
    options = {"file": file, "fingerprint": "abc"}
    open_work(tmp_path, **options)
    open_work(tmp_path, **options)
    with pytest.raises(InputError) as error:
        open_work(tmp_path, {**SETTINGS, "phases": [{"name": "all"}]}, file=file, fingerprint="x")
    message = (
        f"Cannot resume the comparison in {tmp_path}, because it began with different settings: the "
        "images changed; phases[0].name: 'head' is now 'all'. "
    )
    assert str(error.value).startswith(message)


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        open_work(tmp_path / "file")
    with pytest.raises(InputError, match=re.escape("is not empty and contains no comparison")):
        open_work(tmp_path)
    open_work(tmp_path, empty=False)
    assert json.loads((tmp_path / "settings.json").read_text()) == SETTINGS


def test_variables_come_back_and_another_model_is_refused():
    def dense(units):
        return keras.Sequential([keras.Input((3,)), keras.layers.Dense(units)])

    before, after = dense(2), dense(2)
    arrays = {**collect(before.variables, "model"), **collect([], "optimizer")}
    assign(after.variables, arrays, "model")
    for a, b in zip(before.get_weights(), after.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="shapes of the model's weights differ"):
        assign(dense(4).variables, arrays, "model")


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    Run.create(tmp_path / "run", {"a": 1}, [], {}).release()
    code = (
        "import sys, time\nfrom keras_transfer.runs import Run\n"
        "run = Run.resume(sys.argv[1], {'a': 1}, {})\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "run"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "ready\n"
        half_written = tmp_path / "run" / ".9.history.csv"
        half_written.touch()
        with pytest.raises(InputError, match=r"Another process is training in .*run: wait for it"):
            Run.resume(tmp_path / "run", {"a": 1}, {})
        assert half_written.is_file()
    finally:
        other.kill()
        other.wait()
    Run.resume(tmp_path / "run", {"a": 1}, {}).release()
    Run.resume(tmp_path / "run", {"a": 1}, {}).release()
