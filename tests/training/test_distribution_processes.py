"""Processes that train together: they end where one process ends, and where one dies, all end."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import distributed_run
import numpy as np
import pytest
from conftest import RUN_FILES, write_image

from keras_transfer.errors import WorkerLost
from keras_transfer.runs import Run
from keras_transfer.training.distributed.faults import HEARTBEAT_SECONDS

HERE = Path(__file__).parent.parent
TORTURE = HERE.parent / "scripts" / "torture_workers.py"
LAUNCH = HERE.parent / "scripts" / "launch_local.sh"
BACKENDS = {"multi_worker": "tensorflow", "jax": "jax"}
# What the table in docs/distributed.md says of all three.
SAME = (
    *("feature_extraction", "lp_ft", "gradual_unfreeze", "rates"),
    *("statistics", "averaged", "watched", "weighted"),
)
LOSSES = os.environ.get("KERAS_TRANSFER_LOSSES", "10")  # of workers, at random moments
SECONDS = 600  # a launch, on a machine with much else to do


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """18 images of two classes: 14 train, in two batches of 6 and one of 2; 4 validate."""
    folder = tmp_path_factory.mktemp("images")
    for name, colour in {"red": (200, 40, 40), "green": (40, 200, 40)}.items():
        for i in range(9):
            write_image(folder / name / f"{i}.png", colour, seed=i)
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


def command(images, out, kind, *arguments):
    out.mkdir(exist_ok=True)
    script = [sys.executable, HERE / "distributed_run.py", images, out, kind, *arguments]
    return [str(part) for part in script]


def trained(images, out, kind, processes, *arguments, backend=None):
    """Runs to the end; the output."""
    if kind == "none" and backend in (None, "tensorflow"):
        return trained_here(images, out, *arguments)
    env = environment(kind)
    if backend:
        env["KERAS_BACKEND"] = backend
    launch = [] if processes == 1 else [str(LAUNCH), str(processes)]
    found = subprocess.run(
        [*launch, *command(images, out, kind, *arguments)],
        env=env,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-6000:]
    return found.stdout + found.stderr


def trained_here(images, out, *arguments):
    """By this process, which has TensorFlow already."""
    out.mkdir(exist_ok=True)
    with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
        distributed_run.main([str(images), str(out), "none", *arguments])
    return said.getvalue()


def weights(out, name):
    with np.load(out / f"{name}.npz") as arrays:
        return [arrays[str(i)] for i in range(len(arrays.files))]


def assert_equal(one, other, name, tolerance=1e-5):
    for first, second in zip(weights(one, name), weights(other, name), strict=True):
        np.testing.assert_allclose(first, second, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(Run(one / name).history, Run(other / name).history, strict=True):
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-4)
        assert ours["val_accuracy"] == theirs["val_accuracy"]


def compared(images, tmp_path, kind, schedules, processes=2):
    one, other = tmp_path / "one", tmp_path / "other"
    # Each side computes its own features.
    trained(images, one, "none", 1, *schedules, backend=BACKENDS.get(kind))
    said = trained(images, other, kind, processes, *schedules)
    for name in schedules:
        assert_equal(one, other, name)
    return other, said


def test_two_workers_are_one_process(images, tmp_path, cache):
    """With rates by stage, clipping, L2-SP and momentum; and one of them writes the run."""
    out, _ = compared(images, tmp_path, "multi_worker", ["rates"])
    assert {path.name for path in (out / "rates").iterdir()} == RUN_FILES
    assert_each_once(out, 2)


def assert_each_once(out, processes):
    """All workers together see each image once in an epoch, whatever its number of images."""
    files = [out / f"ids-{index}.json" for index in range(processes)]
    seen = [json.loads(file.read_text()) for file in files]
    for count, *parts in zip((10, 13, 17), *seen, strict=True):
        assert sorted(i for part in parts for i in part) == list(range(count))


@pytest.mark.large
@pytest.mark.parametrize("kind, processes", [("multi_worker", 2), ("jax", 2), ("mirrored", 1)])
def test_all_that_is_the_same(images, tmp_path, kind, processes, cache):
    """Recipes, rates by stage, BatchNorm that trains, averages, plateau, early stopping, weights."""
    out, _ = compared(images, tmp_path, kind, SAME, processes=processes)
    assert_each_once(out, processes)
    phases = Run(out / "watched").metrics["phases"]
    assert phases[1]["epochs"] < 6  # it was stopped
    rates = [row["learning_rate"] for row in Run(out / "watched").history]
    assert len(set(rates[:4])) > 1  # it was lowered


@pytest.mark.large
@pytest.mark.parametrize(
    "kind, processes, precision, schedules",
    [
        ("multi_worker", 2, "mixed_bfloat16", ["rates", "mixed"]),
        ("mirrored", 1, "mixed_bfloat16", ["rates", "mixed"]),
        ("jax", 2, "mixed_bfloat16", ["rates", "mixed", "accumulated"]),
        ("jax", 2, "mixed_float16", ["rates"]),
    ],
)
def test_half_the_bits(images, tmp_path, kind, processes, precision, schedules, cache):
    """As near to one process as such numbers are; what is mixed is drawn within each worker's piece."""
    one, other = tmp_path / "one", tmp_path / "other"
    how = ("--precision", precision)
    trained(images, one, "none", 1, *schedules, *how, backend=BACKENDS.get(kind))
    trained(images, other, kind, processes, *schedules, *how)
    for name in set(schedules) - {"mixed"}:
        for first, second in zip(weights(one, name), weights(other, name), strict=True):
            np.testing.assert_allclose(first, second, atol=0.02)
    assert Run(other / "rates").config["precision"] == precision
    for name in schedules:
        assert all(np.isfinite(row["loss"]) for row in Run(other / name).history)


@pytest.mark.large
@pytest.mark.parametrize("kind", ["multi_worker", "jax"])
@pytest.mark.parametrize("processes", [3, 4])
def test_a_number_that_divides_nothing(images, tmp_path, kind, processes, cache):
    """Batches of 6 and of 2 on three or four workers: each is filled up."""
    out, _ = compared(images, tmp_path, kind, ["rates"], processes=processes)
    assert_each_once(out, processes)


@pytest.mark.large
@pytest.mark.parametrize("kind", ["multi_worker", "jax"])
@pytest.mark.parametrize("workers", [["2"], ["2", "3", "1"]])
def test_workers_that_are_lost_at_random_moments(kind, workers):
    """`scripts/torture_workers.py`; in a process of its own, as it forks."""
    line = [
        sys.executable,
        TORTURE,
        "--losses",
        LOSSES,
        "--distribute",
        kind,
        "--workers",
        *workers,
    ]
    found = subprocess.run(line, env=environment(kind), capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr[-3000:]
    assert f"{LOSSES} losses" in found.stdout


class Launched:
    """A launch whose output is read line by line."""

    def __init__(self, images, out, kind, *arguments):
        line = [str(LAUNCH), "2", *command(images, out, kind, *arguments)]
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


def test_a_worker_that_dies_ends_the_other(images, tmp_path, cache):
    """Within a minute, and one process goes on to where one process would have ended."""
    out = tmp_path / "out"
    with Launched(images, out, "multi_worker", "long", "--slow", "0.2") as launched:
        launched.until("[0] epoch 3 is kept")
        os.kill(launched.workers()[1], signal.SIGKILL)
        killed = time.monotonic()
        rest = launched.process.communicate(timeout=SECONDS)[0]
        took = time.monotonic() - killed
    said = "".join(launched.said) + rest
    assert launched.process.returncode in (137, WorkerLost.exit_code), said[-3000:]
    assert took < 2 * HEARTBEAT_SECONDS, said[-3000:]
    assert "[0] error: Worker" in said and "--resume" in said
    assert not (out / "long" / "model.keras").exists()
    resumed = trained(images, out, "none", 1, "long", "--resume")
    assert "resuming after epoch" in resumed
    trained(images, tmp_path / "one", "none", 1, "long")
    assert_equal(tmp_path / "one", out, "long", tolerance=1e-3)


def test_what_differs_between_workers_is_said(images, tmp_path):
    """Before anything is started: one worker's environment is not JSON."""
    env = {**environment("multi_worker"), "TF_CONFIG": "{"}
    line = [sys.executable, "-m", "keras_transfer.cli", "train", str(images), "--out", "run"]
    found = subprocess.run(
        [*line, "--distribute", "multi_worker"],
        env=env,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert found.returncode == 2
    assert found.stderr.startswith("error: TF_CONFIG is not valid JSON")
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
