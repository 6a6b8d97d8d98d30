"""What the trainer and the command say of distribution, in one process."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import tiny_backbone

from keras_transfer.adaptation.adapter import Adapter
from keras_transfer.cli.train import check_decided
from keras_transfer.data.order import Share
from keras_transfer.errors import InputError, WorkerLost
from keras_transfer.experiments.compare import Experiment
from keras_transfer.experiments.tune import tune
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.runs import Run
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.distributed import single_process, tensorflow_workers
from keras_transfer.training.distributed.environment import start_workers
from keras_transfer.training.distributed.single_process import SINGLE, require_single_process
from keras_transfer.training.distributed.tensorflow_workers import StrategyWorkers
from keras_transfer.training.distributed.workers import (
    Follower,
    MemoryCheckpoint,
    Workers,
    packed,
    unpacked,
)
from keras_transfer.training.trainer import Trainer

HEAD = Schedule("head", (Phase("head", "all", 2, 1e-2),))


class Pair(Workers):
    """Two workers that never meet: what the chief said is played to the other."""

    kind, processes, replicas, local = "multi_worker", 2, 2, 1
    said: list

    def __init__(self, index, said):
        self.index, self.said = index, said

    def broadcast(self, payload):
        if self.chief:
            self.said.append(payload)
            return payload
        return self.said.pop(0)

    def gather(self, payload):
        return [b"same", payload]

    @property
    def share(self):
        return Share(2, self.index, 1)


def model(names="ab"):
    return build_model(tiny_backbone(), Classification(names), image_size=32)


def test_workers_must_be_started_first():
    with pytest.raises(InputError, match="start_workers"):
        Trainer(model(), HEAD, distribute="mirrored")
    with pytest.raises(InputError, match="must be one of"):
        Trainer(model(), HEAD, distribute="all")
    with pytest.raises(InputError, match="scaling must be one of"):
        Trainer(model(), HEAD, scaling="linear")
    assert Trainer(model(), HEAD).workers is SINGLE
    assert start_workers("none") is SINGLE


def test_the_plan_scales_and_the_settings_do_not(data):
    trainer = Trainer(model("abc"), HEAD, batch_size=4, distribute=Pair(0, []))
    (planned,) = trainer.plan(data).phases
    assert planned.batch_size == 8
    assert planned.phase.learning_rate == pytest.approx(1e-2 * 2**0.5)
    settings = trainer.settings(trainer._schedule(36), {})
    assert settings["devices"] == 2
    assert settings["batch_size"] == 4
    assert settings["schedule"]["phases"][0]["learning_rate"] == 1e-2
    alone = Trainer(model("abc"), HEAD, batch_size=4)
    assert "devices" not in alone.settings(alone._schedule(36), {})
    kept = Trainer(model("abc"), HEAD, batch_size=4, distribute=Pair(0, []), scaling="none")
    assert kept.plan(data).phases[0].batch_size == 4


def test_a_run_of_two_goes_on_in_one_with_its_batches(data, tmp_path):
    """`devices` of the run counts, not those that are there."""
    begun = Trainer(model(data.class_names), HEAD, batch_size=4, distribute=Pair(0, []))
    settings = begun.settings(begun._schedule(len(data.examples["train"])), {})
    Run.create(tmp_path / "run", settings, [], data.fingerprint())
    trainer = Trainer(model(data.class_names), HEAD, batch_size=4, cache="off")
    with pytest.raises(InputError) as other:  # another cache: a real difference is still said
        trainer.fit(data, tmp_path / "run", resume=True)
    assert "cache" in str(other.value) and "devices" not in str(other.value)
    assert trainer.plan(data).phases[0].batch_size == 8


def test_what_does_not_work_is_said():
    class Strategy(Pair, StrategyWorkers):
        strategy = None  # that of a model without any

    half = model()
    half.dtype_policy = keras.DTypePolicy("mixed_float16")
    with pytest.raises(InputError, match="mixed_float16"):
        Strategy(0, []).check(half, HEAD)
    twice = Schedule("s", (Phase("p", "all", 1, accumulate=2),))
    with pytest.raises(InputError, match="accumulate does not work"):
        Strategy(0, []).check(model(), twice)
    Strategy.strategy = object()
    with pytest.raises(InputError, match="build it inside"):
        Strategy(0, []).check(model(), HEAD)
    undecided = SimpleNamespace(
        backbone="auto", strategy="lp_ft", precision="float32", augment="light", taps="last"
    )
    with pytest.raises(InputError, match="by name"):
        check_decided(Pair(0, []), undecided)
    check_decided(SINGLE, undecided)


def test_what_is_not_distributed_says_so(data, tmp_path, monkeypatch):
    require_single_process("A search")
    with pytest.raises(InputError, match="data_service and distribute"):
        Trainer(model(), HEAD, data_service="grpc://a:1", distribute=Pair(0, []))
    monkeypatch.setattr(single_process, "_active", Pair(0, []))
    adapter = Adapter(model(data.class_names), "mcc")
    adapter.compile(keras.optimizers.Adam(1e-3))
    with pytest.raises(InputError, match="An adaptation cannot be distributed"):
        adapter.fit(None, None)
    with pytest.raises(InputError, match="A search cannot be distributed"):
        tune(model(data.class_names), data, tmp_path / "tuned")
    with pytest.raises(InputError, match="A comparison cannot be distributed"):
        # A file of weights is read later, so this works on a machine without ImageNet weights.
        weights = str(tmp_path / "mine.weights.h5")
        Experiment(data, tmp_path / "compared", backbone="mobilenet_0.25", weights=weights).run()


def test_statistics_are_synchronized_and_saved_as_they_were():
    own = model()
    norms = [x for x in own.layers[1].layers if isinstance(x, keras.layers.BatchNormalization)]
    with StrategyWorkers().synchronized(own):
        assert norms and all(norm.synchronized for norm in norms)
    assert not any(norm.synchronized for norm in norms)


def test_the_follower_gets_what_the_chief_has(tmp_path):
    said = []
    chief, other = Pair(0, said), Pair(1, said)
    run, first = chief.create_run(tmp_path / "run", {"a": 1}, [], {})
    follower, two = other.create_run(tmp_path / "run", {"a": 1}, [], {})
    assert type(run) is Run and type(follower) is Follower and type(two) is MemoryCheckpoint
    arrays = {"model/0": np.arange(3.0)}
    state = {"epoch": 1, "best": {"epoch": 1}, "named": ["best-1"]}
    first.save_arrays("start", {"start/0": np.ones(2)})
    first.save(state, arrays, {"best-1": {"model/0": np.arange(3.0) + 1}})
    run.release()
    _, one = chief.resume_run(tmp_path / "run", {"a": 1}, {})
    run, two = other.resume_run(tmp_path / "run", {"a": 1}, {})
    assert said == []
    assert one.load()[0] == two.load()[0] == state
    np.testing.assert_array_equal(two.load()[1]["model/0"], arrays["model/0"])
    np.testing.assert_array_equal(two.load_arrays("best-1")["model/0"], [1, 2, 3])
    np.testing.assert_array_equal(two.load_arrays("start")["start/0"], [1, 1])
    # It writes nothing, and knows how it ended.
    before = sorted(tmp_path.rglob("*"))
    run.write_history([{"epoch": 1}])
    two.save({"epoch": 2, "named": ["best-2"]}, arrays, {"best-2": {"model/0": np.zeros(3)}})
    run.finish(None, {"val": {"loss": 0.5}})
    assert sorted(tmp_path.rglob("*")) == before
    assert run.finished and run.metrics["val"]["loss"] == 0.5
    np.testing.assert_array_equal(two.load_arrays("best-2")["model/0"], np.zeros(3))


def test_what_the_chief_cannot_do_is_said_by_all(tmp_path):
    (tmp_path / "run").write_text("a file")
    said = []
    for index in (0, 1):
        with pytest.raises(InputError, match="is a file"):
            Pair(index, said).create_run(tmp_path / "run", {}, [], {})


def test_workers_that_differ_are_named():
    with pytest.raises(InputError, match="Worker 1 and worker 0 have different images"):
        Pair(1, []).agree("images", lambda: b"mine")


def test_arrays_travel_without_pickle():
    arrays = {"a": np.arange(6, dtype="float16").reshape(2, 3), "b": np.zeros((0, 2))}
    for name, value in unpacked(packed(arrays)).items():
        np.testing.assert_array_equal(value, arrays[name])
    with pytest.raises(ValueError):
        unpacked(packed({"c": np.array([None], object)}))


class UnavailableError(Exception):
    """Named like TensorFlow's."""


def test_a_loss_is_said_where_there_are_others():
    said = r"Worker 1 of 2: another worker was lost .*--resume"
    with pytest.raises(WorkerLost, match=said), Pair(1, []).translated():
        raise UnavailableError("Connection reset")
    with pytest.raises(UnavailableError), SINGLE.translated():
        raise UnavailableError("Connection reset")
    with pytest.raises(ZeroDivisionError), Pair(1, []).translated():
        raise ZeroDivisionError


def test_which_versions_of_keras_are_mended():
    needed = tensorflow_workers.needs_repair
    assert needed("3.15.1") and needed("3.9.0")
    assert not needed("3.16.0") and not needed("4.0.0")
