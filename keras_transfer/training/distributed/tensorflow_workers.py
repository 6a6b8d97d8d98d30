"""`tf.distribute`: several devices of one machine, or of several machines."""

import contextlib
import struct

import keras
import numpy as np
import tensorflow as tf
from keras import tree
from tensorflow.python.eager import context  # no public name for the coordination service

from keras_transfer.data.order import Share
from keras_transfer.errors import InputError
from keras_transfer.models.stages import norms_of
from keras_transfer.training.distributed.environment import Cluster
from keras_transfer.training.distributed.faults import HEARTBEAT_SECONDS
from keras_transfer.training.distributed.workers import Workers
from keras_transfer.utils.console import quiet_tensorflow

_REGISTER_SECONDS = 300  # until all workers must have joined
_FIXED = (3, 16)  # version of Keras that needs no `repair_fit`
_HEADER = "<ii"  # worker, bytes


class StrategyWorkers(Workers):
    """Workers of a strategy of `tf.distribute`."""

    strategy: tf.distribute.Strategy

    @property
    def share(self):
        return Share(self.replicas, self.index * self.local, self.local)

    @property
    def seed_offset(self):
        return self.index

    def scope(self):
        return self.strategy.scope()

    def alone(self):
        return contextlib.nullcontext()  # outside the scope

    def own_model(self, model):
        return model  # outside a strategy this process's copy of the weights is read

    def stream(self, dataset):
        return self.strategy.distribute_datasets_from_function(lambda _: dataset)

    def prepare(self, network, dataset):
        repair_fit(network, dataset.element_spec, several=self.processes > 1)

    def check(self, model, schedule):
        if getattr(model, "_distribute_strategy", None) is not self.strategy:
            raise InputError(
                "The model was not built for these workers: build it inside `with workers.scope():`."
            )
        if model.dtype_policy.name == "mixed_float16":
            raise InputError(
                f"distribute '{self.kind}' does not work with mixed_float16, because Keras scales the "
                "loss in a branch, which tf.distribute forbids: use mixed_bfloat16, float32 or JAX."
            )
        for phase in schedule.phases:
            if phase.accumulate > 1:
                raise InputError(
                    f"Phase '{phase.name}': accumulate does not work with distribute '{self.kind}', "
                    "because Keras updates in a branch, which tf.distribute forbids: use JAX, or "
                    "no accumulation, since more devices enlarge the batch anyway."
                )

    @contextlib.contextmanager
    def synchronized(self, model):
        # Otherwise the moving averages of the workers would drift apart.
        norms = norms_of(model)
        before = [norm.synchronized for norm in norms]
        try:
            for norm in norms:
                norm.synchronized = True
            yield
        finally:  # the flag would be saved with the model, and not every backend can load it
            for norm, value in zip(norms, before):
                norm.synchronized = value


class Mirrored(StrategyWorkers):
    """The devices of this machine."""

    kind = "mirrored"

    def __init__(self, devices=None):
        self.strategy = tf.distribute.MirroredStrategy(devices)
        self.replicas = self.local = self.strategy.num_replicas_in_sync

    def gather(self, payload):
        return [payload]

    def broadcast(self, payload):
        return payload


class MultiWorker(StrategyWorkers):
    """The processes that `TF_CONFIG` names."""

    kind = "multi_worker"

    def __init__(self, cluster: Cluster):
        self.processes, self.index = cluster.processes, cluster.index
        if cluster.processes > 1:
            _quick_heartbeats()
        try:
            self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except RuntimeError as error:
            raise InputError(
                f"The workers must be started before anything is computed ({error}): call "
                "start_workers before everything else."
            ) from error
        except (tf.errors.DeadlineExceededError, tf.errors.UnavailableError) as error:
            raise InputError(
                f"Not all of the {cluster.processes} workers joined within {_REGISTER_SECONDS} s. Start all of "
                f"them, and check that {cluster.address} is reachable. ({error.message[:200]})"
            ) from error
        self.replicas = self.strategy.num_replicas_in_sync
        self.local = self.replicas // self.processes

    def gather(self, payload):
        if self.processes == 1:
            return [payload]
        message = struct.pack(_HEADER, self.index, len(payload)) + payload
        message += b"\0" * (-len(message) % 4)
        # All devices can gather float32; the bits are moved, nothing is computed.
        values = np.frombuffer(message, "float32")
        first = self.index * self.local

        def given(replica):
            mine = replica.replica_id_in_sync_group == first
            return tf.constant(values if mine else values[:0])

        spread = self.strategy.experimental_distribute_values_from_function(given)
        with quiet_tensorflow():  # it warns that it traces a function for each call
            stream = self.strategy.gather(spread, axis=0).numpy().tobytes()
        payloads, place = {}, 0
        while place < len(stream):
            worker, length = struct.unpack_from(_HEADER, stream, place)
            place += struct.calcsize(_HEADER)
            payloads[worker] = stream[place : place + length]
            place += length + -length % 4
        self.watch.beat()
        return [payloads[worker] for worker in range(self.processes)]

    def broadcast(self, payload):
        return self.gather(payload if self.chief else b"")[0]


def _quick_heartbeats():
    """Configure what MultiWorkerMirroredStrategy configures itself, with our timeouts.

    TensorFlow's documentation does not state after which time it gives up an unreachable worker.
    """
    from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
    from tensorflow.python.distribute import multi_worker_util
    from tensorflow.python.distribute.cluster_resolver import TFConfigClusterResolver

    cluster = TFConfigClusterResolver().cluster_spec()
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=multi_worker_util.coordination_leader(cluster),
        cluster_register_timeout_in_ms=_REGISTER_SECONDS * 1000,
        heartbeat_timeout_in_ms=HEARTBEAT_SECONDS * 1000,
        shutdown_barrier_timeout_in_ms=HEARTBEAT_SECONDS * 1000,
        coordinated_jobs=[
            coordination_config_pb2.CoordinatedJob(name=job, num_tasks=cluster.num_tasks(job))
            for job in ("chief", "worker")
            if job in cluster.jobs
        ],
    )


def needs_repair(version: str = keras.__version__) -> bool:
    """Return True for the versions of Keras with these errors."""
    return tuple(int(part) for part in version.split(".")[:2]) < _FIXED


def repair_fit(model: keras.Model, specification, *, several: bool = True) -> None:
    """Work around two errors of Keras's `fit` under MultiWorkerMirroredStrategy (keras issue 20585).

    Keras 3.0 to 3.15 fails if several processes train together:

    1. `TensorFlowTrainer._maybe_symbolic_build` learns the shapes from a mean over all workers'
       batches, including whole numbers and batches of unequal length. Here it receives the
       stream's specification, and no batch is read.
    2. `reduce_per_replica` takes the mean of each metric over its axis 0, which a scalar does not
       have. Here a step returns metrics of shape [1].

    Args:
        model: a compiled model, in the strategy's scope.
        specification: `element_spec` of the stream that it will train on.
        several: whether there are several processes; Keras combines the metrics of one process.
    """
    if not needs_repair():
        return
    model._symbolic_build(data_batch=specification)
    model._maybe_symbolic_build = lambda *_, **__: None
    for name in ("train_step", "test_step") if several else ():
        setattr(model, name, _with_axis(getattr(model, name)))


def _with_axis(step):
    def stepped(data):
        return tree.map_structure(lambda value: tf.reshape(value, [1]), step(data))

    return stepped
