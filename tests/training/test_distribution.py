"""Who computes what, where the others are, and what the schedule becomes: no framework, no process."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from keras_transfer.data.order import ALONE, Share
from keras_transfer.errors import InputError, WorkerLost
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.distributed.environment import Cluster, plan
from keras_transfer.training.distributed.faults import is_loss, stall_seconds
from keras_transfer.training.distributed.single_process import CHOICES, rate_factor, scaled
from keras_transfer.training.distributed.workers import own


def shares(processes, local=1, joined=False):
    replicas = processes * local
    return [Share(replicas, i * local, local, joined) for i in range(processes)]


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("local", [1, 2])
@pytest.mark.parametrize("count", [1, 3, 7, 12, 16, 37])
@pytest.mark.parametrize("batch_size", [1, 5, 8])
def test_each_example_counts_once_an_epoch(processes, local, count, batch_size):
    parts = [s.part(count, batch_size) for s in shares(processes, local)]
    seen = np.concatenate([part.places[part.weights > 0] for part in parts])
    assert sorted(seen) == list(range(count))
    # All have the same batches, so that none waits for one that another does not have.
    for part in parts[1:]:
        np.testing.assert_array_equal(part.sizes, parts[0].sizes)
    assert all(len(part.places) == part.sizes.sum() for part in parts)
    assert len(parts[0].sizes) == local * math.ceil(count / batch_size)


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("joined", [True, False])
def test_the_mean_of_the_pieces_is_the_mean_of_the_batch(processes, joined, rng):
    """What the engines do: each device's mean over its piece, and the mean of those."""
    count, batch_size, local = 23, 6, 2
    losses = rng.random(count)
    parts = [s.part(count, batch_size) for s in shares(processes, local, joined)]
    pieces = 1 if joined else local
    for step in range(math.ceil(count / batch_size)):
        means = []
        for part in parts:
            ends = np.cumsum(part.sizes)
            for number in range(step * pieces, (step + 1) * pieces):
                piece = slice(ends[number] - part.sizes[number], ends[number])
                means.append(np.mean(part.weights[piece] * losses[part.places[piece]]))
        expected = losses[step * batch_size : (step + 1) * batch_size].mean()
        assert np.mean(means) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [1, 7, 12, 23])
def test_the_weighted_mean_of_an_evaluation_is_the_mean(count, rng):
    values = rng.random(count)
    parts = [s.part(count, 6, evaluating=True) for s in shares(4)]
    total = sum((part.weights * values[part.places]).sum() for part in parts)
    # Keras divides a loss by the number of rows, filled up or not, and a metric by the weights.
    assert total / sum(len(p.places) for p in parts) == pytest.approx(values.mean(), rel=1e-6)
    assert total / sum(p.weights.sum() for p in parts) == pytest.approx(values.mean(), rel=1e-6)


def test_a_batch_is_the_same_whatever_the_number_of_workers():
    for processes in (2, 3, 4):
        for step in range(4):
            rows = set()
            for share in shares(processes):
                part = share.part(22, 6)
                ends = np.cumsum(part.sizes)
                rows |= set(part.places[ends[step] - part.sizes[step] : ends[step]])
            assert rows == set(range(6 * step, min(22, 6 * step + 6)))


def test_one_process_has_everything_in_order():
    part = ALONE.part(7, 3)
    assert list(part.places) == list(range(7))
    assert list(part.sizes) == [3, 3, 1]
    assert set(part.weights) == {1.0}


def test_by_hand():
    """5 examples in batches of 3 on 2 devices: 0 1 | 2 (0), then 3 | 4."""
    first, second = (share.part(5, 3) for share in shares(2))
    assert list(first.places) == [0, 1, 3]
    assert list(second.places) == [2, 0, 4]
    np.testing.assert_allclose(first.weights, [4 / 3, 4 / 3, 1])
    np.testing.assert_allclose(second.weights, [4 / 3, 0, 1])


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_own_shares_divide_the_examples(processes):
    found = np.concatenate([own(11, processes, i) for i in range(processes)])
    assert sorted(found) == list(range(11))


# -- the environment --------------------------------------------------------------------------------


def tf_config(**changes):
    config = {
        "cluster": {"worker": ["a:1", "b:2"]},
        "task": {"type": "worker", "index": 1},
        **changes,
    }
    return {"TF_CONFIG": json.dumps(config)}


JAX = {
    "KERAS_BACKEND": "jax",
    "KERAS_DISTRIBUTION_JOB_ADDRESSES": "a:1,b:1,c:1",
    "KERAS_DISTRIBUTION_NUM_PROCESSES": "3",
    "KERAS_DISTRIBUTION_PROCESS_ID": "2",
}


def test_what_the_environment_says():
    assert plan("multi_worker", tf_config()).cluster == Cluster("a:1", 2, 1)
    with_chief = tf_config(cluster={"chief": ["c:3"], "worker": ["a:1", "b:2"]})
    assert plan("multi_worker", with_chief).cluster == Cluster("c:3", 3, 2)
    assert plan("jax", JAX).cluster == Cluster("a:1", 3, 2)
    own_names = {
        "KERAS_BACKEND": "jax",
        "JAX_COORDINATOR_ADDRESS": "a:1",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "0",
    }
    assert plan("jax", own_names).cluster == Cluster("a:1", 2, 0)


def test_auto_is_what_the_environment_says():
    assert plan("auto", tf_config()).kind == "multi_worker"
    assert plan("auto", JAX).kind == "jax"
    assert plan("auto", {}).kind == "auto"
    assert plan("auto", tf_config(cluster={"worker": ["a:1"]}, task={"type": "worker", "index": 0}))
    assert plan("none", tf_config()).kind == "none"


@pytest.mark.parametrize(
    "choice, environ, said",
    [
        ("both", {}, "distribute must be one of auto"),
        ("multi_worker", {}, "needs TF_CONFIG"),
        ("multi_worker", {"TF_CONFIG": "{"}, "is not valid JSON"),
        ("multi_worker", {"TF_CONFIG": "[]"}, "needs 'cluster' and 'task'"),
        ("multi_worker", tf_config(cluster={"worker": []}), "needs workers"),
        ("multi_worker", tf_config(cluster={"worker": ["a"]}), "give HOST:PORT"),
        ("multi_worker", tf_config(cluster={"worker": ["a:1", "a:1"]}), "twice"),
        ("multi_worker", tf_config(cluster={"ps": ["a:1"], "worker": ["b:1"]}), "has ps"),
        ("multi_worker", tf_config(task={"type": "worker", "index": 2}), "worker 2 does not exist"),
        ("multi_worker", tf_config(task={"type": "boss", "index": 0}), "is not in the cluster"),
        ("multi_worker", tf_config() | {"KERAS_BACKEND": "jax"}, "set KERAS_BACKEND=tensorflow"),
        ("jax", {}, "set KERAS_BACKEND=jax"),
        (
            "jax",
            JAX | {"KERAS_DISTRIBUTION_PROCESS_ID": ""},
            "but not KERAS_DISTRIBUTION_PROCESS_ID",
        ),
        ("jax", JAX | {"KERAS_DISTRIBUTION_PROCESS_ID": "3"}, "counts from 0 to 2"),
        ("jax", JAX | {"KERAS_DISTRIBUTION_NUM_PROCESSES": "two"}, "give a whole number"),
        ("jax", JAX | {"KERAS_DISTRIBUTION_NUM_PROCESSES": "2"}, "has 3 addresses"),
        ("jax", JAX | {"KERAS_DISTRIBUTION_JOB_ADDRESSES": "a:0,b:1,c:1"}, "give HOST:PORT"),
    ],
)
def test_what_is_wrong_is_said(choice, environ, said):
    with pytest.raises(InputError, match=said):
        plan(choice, environ)


def test_no_framework_is_loaded_to_say_it():
    code = (
        "import sys\n"
        "from keras_transfer.training.distributed.environment import plan\n"
        "from keras_transfer.training.distributed import single_process, faults\n"
        "print(sorted({'keras', 'tensorflow', 'jax'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert len(CHOICES) == 5


# -- the schedule -------------------------------------------------------------------------------------


def test_rates_follow_the_batch():
    assert rate_factor("sgd", 4) == 4
    assert rate_factor("adamw", 4) == 2
    adam = Phase("a", "none", 3, 1e-3, ema=0.5)
    sgd = Phase("b", "none", steps=10, learning_rate=0.1, optimizer="sgd", batch_size=8)
    closed = Phase("c", "all", 1, solver="logistic")
    first, second, third = scaled(Schedule("s", (adam, sgd, closed)), 4, 32).phases
    assert (first.batch_size, first.learning_rate, first.epochs) == (128, 2e-3, 3)
    assert first.ema == 0.5**4
    assert (second.batch_size, second.learning_rate, second.steps) == (32, 0.4, 3)
    assert third == closed
    assert scaled(Schedule("s", (adam,)), 1, 32).phases == (adam,)


# -- faults -------------------------------------------------------------------------------------------


class UnavailableError(Exception):
    """Named like TensorFlow's."""


class JaxRuntimeError(Exception):
    """Named like JAX's."""


def test_what_means_that_a_worker_is_lost():
    assert is_loss(UnavailableError("failed to connect"))
    assert is_loss(JaxRuntimeError("Gloo all-reduce failed: Connection closed by peer"))
    assert not is_loss(JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"))
    assert is_loss(ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"))
    assert not is_loss(ValueError("a collective mistake"))
    assert not is_loss(ValueError("INTERNAL: no such shape"))


def test_a_process_that_is_stuck_ends_itself():
    code = (
        "import time\n"
        "from keras_transfer.training.distributed.faults import Watch\n"
        "watch = Watch()\n"
        "time.sleep(1)\n"
        "print('not watched', flush=True)\n"
        "with watch.watching():\n"
        "    time.sleep(60)"
    )
    env = {"KERAS_TRANSFER_STALL_SECONDS": "0.4", "PYTHONPATH": ":".join(sys.path)}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=50
    )
    assert found.returncode == WorkerLost.exit_code
    assert found.stdout.strip() == "not watched"
    assert "no step finished" in found.stderr
    assert "--resume" in found.stderr


def test_stall_seconds(monkeypatch):
    monkeypatch.setenv("KERAS_TRANSFER_STALL_SECONDS", "soon")
    with pytest.raises(InputError, match="above 0"):
        stall_seconds()
