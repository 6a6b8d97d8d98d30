"""Processes that train together: they end where one process ends, and where one dies, all end."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import RUN_FILES, write_picture

from keras_transfer.distribution.faults import HEARTBEAT_SECONDS, LOST
from keras_transfer.runs import Run

HERE = Path(__file__).parent
LAUNCH = HERE.parent / "scripts" / "launch_local.sh"
BACKENDS = {"multi_worker": "tensorflow", "jax": "jax"}
RECIPES = ("feature_extraction", "lp_ft", "gradual_unfreeze")
SECONDS = 600  # a launch, on a machine with much else to do


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """18 pictures of two classes: 14 train, in two batches of 6 and one of 2; 4 validate."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in {"red": (200, 40, 40), "green": (40, 200, 40)}.items():
        for i in range(9):
            write_picture(folder / name / f"{i}.png", colour, seed=i)
    return folder


def environment(kind):
    path = os.pathsep.join([str(HERE), *sys.path])
    return {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": path,
        "KERAS_BACKEND": BACKENDS.get(kind, "tensorflow"),
        "PYTHONUNBUFFERED": "1",
    }


def command(pictures, out, kind, *arguments):
    out.mkdir(exist_ok=True)
    script = [sys.executable, HERE / "distributed_run.py", pictures, out, kind, *arguments]
    return [str(part) for part in script]


def trained(pictures, out, kind, processes, *arguments, backend=None):
    """Runs to the end; the output."""
    env = environment(kind)
    if backend:
        env["KERAS_BACKEND"] = backend
    launch = [] if processes == 1 else [str(LAUNCH), str(processes)]
    found = subprocess.run(
        [*launch, *command(pictures, out, kind, *arguments)],
        env=env,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-6000:]
    return found.stdout + found.stderr


def weights(out, name):
    with np.load(out / f"{name}.npz") as arrays:
        return [arrays[str(i)] for i in range(len(arrays.files))]


def assert_equal(one, other, name, tolerance=1e-5):
    for first, second in zip(weights(one, name), weights(other, name), strict=True):
        np.testing.assert_allclose(first, second, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(Run(one / name).history, Run(other / name).history, strict=True):
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-4)
        assert ours["val_accuracy"] == theirs["val_accuracy"]


def compared(pictures, tmp_path, kind, schedules, processes=2):
    one, other = tmp_path / "one", tmp_path / "other"
    # Each side computes its own features.
    trained(pictures, one, "none", 1, *schedules, backend=BACKENDS.get(kind))
    said = trained(pictures, other, kind, processes, *schedules)
    for name in schedules:
        assert_equal(one, other, name)
    return other, said


LARGE_JAX = ["multi_worker", pytest.param("jax", marks=pytest.mark.large)]


@pytest.mark.parametrize("kind", LARGE_JAX)
def test_two_workers_are_one_process(pictures, tmp_path, kind, cache):
    """With rates by stage, clipping, L2-SP and momentum; and one of them writes the run."""
    out, _ = compared(pictures, tmp_path, kind, ["rates"])
    assert {path.name for path in (out / "rates").iterdir()} == RUN_FILES
    assert {path.name for path in out.iterdir()} == {"rates", "rates.npz"}


@pytest.mark.large
@pytest.mark.parametrize("kind", ["multi_worker", "jax"])
def test_recipes_of_two_workers_are_those_of_one(pictures, tmp_path, kind, cache):
    compared(pictures, tmp_path, kind, RECIPES)


@pytest.mark.large
@pytest.mark.parametrize("kind", ["multi_worker", "jax"])
def test_statistics_and_averages(pictures, tmp_path, kind, cache):
    """BatchNorm that trains sees the whole batch; averages of weights are those of one process."""
    compared(pictures, tmp_path, kind, ["statistics", "averaged"])


@pytest.mark.large
@pytest.mark.parametrize("kind", ["multi_worker", "jax"])
def test_a_number_that_divides_nothing(pictures, tmp_path, kind, cache):
    """Four workers, batches of 6 and of 2: each is filled up."""
    compared(pictures, tmp_path, kind, ["rates"], processes=4)


@pytest.mark.large
def test_two_devices_of_one_process(pictures, tmp_path, cache):
    one, other = tmp_path / "one", tmp_path / "other"
    trained(pictures, one, "none", 1, "rates")
    trained(pictures, other, "mirrored", 1, "rates")
    assert_equal(one, other, "rates")


class Launched:
    """A launch whose output is read line by line."""

    def __init__(self, pictures, out, kind, *arguments):
        line = [str(LAUNCH), "2", *command(pictures, out, kind, *arguments)]
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(line, env=environment(kind), start_new_session=True, **pipe)
        self.said = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self.workers().values():
            os.kill(worker, signal.SIGKILL)
        self.process.wait(timeout=60)

    def until(self, words):
        """Reads up to a line with these words."""
        for line in self.process.stdout:
            self.said.append(line)
            if words in line:
                return line
        raise AssertionError(f"{words!r} was never said:\n" + "".join(self.said)[-6000:])

    def workers(self):
        """Process ids by their number."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                line = (folder / "cmdline").read_bytes()
                given = (folder / "environ").read_bytes().decode(errors="replace")
                session = int((folder / "stat").read_text().rpartition(")")[2].split()[3])
            except OSError:
                continue
            if session != self.process.pid or b"distributed_run" not in line or b"bash" in line:
                continue
            place = re.search(r'"index":(\d)|PROCESS_ID=(\d)', given)
            if place:
                found[int(place[1] or place[2])] = int(folder.name)
        return found


@pytest.mark.parametrize(
    "kind, dies",
    [
        ("multi_worker", 1),
        pytest.param("multi_worker", 0, marks=pytest.mark.large),
        pytest.param("jax", 0, marks=pytest.mark.large),
        pytest.param("jax", 1, marks=pytest.mark.large),
    ],
)
def test_a_worker_that_dies_ends_the_other(pictures, tmp_path, kind, dies, cache):
    """Within a minute, and one process goes on to where one process would have ended."""
    out = tmp_path / "out"
    with Launched(pictures, out, kind, "long", "--slow", "0.2") as launched:
        launched.until("[0] epoch 3 is kept")
        os.kill(launched.workers()[dies], signal.SIGKILL)
        killed = time.monotonic()
        rest = launched.process.communicate(timeout=SECONDS)[0]
        took = time.monotonic() - killed
    said = "".join(launched.said) + rest
    assert launched.process.returncode in (137, LOST), said[-3000:]
    assert took < 2 * HEARTBEAT_SECONDS, said[-3000:]
    if kind == "multi_worker":
        assert f"[{1 - dies}] error: Worker" in said and "--resume" in said
    assert not (out / "long" / "model.keras").exists()
    resumed = trained(pictures, out, "none", 1, "long", "--resume", backend=BACKENDS[kind])
    assert "resuming after epoch" in resumed
    trained(pictures, tmp_path / "one", "none", 1, "long", backend=BACKENDS[kind])
    assert_equal(tmp_path / "one", out, "long", tolerance=1e-3)


@pytest.mark.large
def test_a_worker_that_hangs_ends_the_other(pictures, tmp_path, cache):
    out = tmp_path / "out"
    with Launched(pictures, out, "multi_worker", "long", "--slow", "0.2") as launched:
        launched.until("[0] epoch 3 is kept")
        stuck = launched.workers()[1]
        os.kill(stuck, signal.SIGSTOP)
        stopped = time.monotonic()
        launched.until("a worker ended")
        assert time.monotonic() - stopped < 2 * HEARTBEAT_SECONDS
        os.kill(stuck, signal.SIGKILL)


def test_what_differs_between_workers_is_said(pictures, tmp_path):
    """Before anything is started: one worker's environment is no JSON."""
    env = {**environment("multi_worker"), "TF_CONFIG": "{"}
    line = [sys.executable, "-m", "keras_transfer.cli", "train", str(pictures), "--out", "run"]
    found = subprocess.run(
        [*line, "--distribute", "multi_worker"],
        env=env,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert found.returncode == 2
    assert found.stderr.startswith("error: TF_CONFIG is no JSON")
    assert not (tmp_path / "run").exists()


def test_the_launcher_ends_with_the_first_failure():
    script = 'case "$TF_CONFIG" in *index\\":1*) exit 7;; esac; trap "exit 0" TERM; sleep 40 & wait'
    started = time.monotonic()
    found = subprocess.run(
        [LAUNCH, "3", "sh", "-c", script],
        env={**environment("none"), "LAUNCH_GRACE": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 7
    assert "a worker ended with status 7" in found.stderr
    assert time.monotonic() - started < 30


def test_the_launcher_numbers_what_is_said():
    found = subprocess.run(
        [LAUNCH, "2", "sh", "-c", 'echo "$KERAS_DISTRIBUTION_PROCESS_ID"'],
        env=environment("jax"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(found.stdout.splitlines()) == ["[0] 0", "[1] 1"]
