"""`tf.distribute`: several devices of one machine, or of several machines."""

import contextlib
import struct

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context  # no public name for the coordination service

from keras_transfer.data.sharding import Share
from keras_transfer.errors import InputError
from keras_transfer.training.distributed import fit_repairs
from keras_transfer.training.distributed.environment import Cluster
from keras_transfer.training.distributed.faults import HEARTBEAT_SECONDS
from keras_transfer.training.distributed.workers import Workers
from keras_transfer.utils.console import quiet_tensorflow

_REGISTER_SECONDS = 300  # for all workers to come
_HEADER = "<ii"  # worker, bytes


class _Strategy(Workers):
    """What both have in common."""

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
        return contextlib.nullcontext()  # outside of the scope

    def own_model(self, model):
        return model  # outside of a strategy this process's copy of the weights is read

    def stream(self, dataset):
        return self.strategy.distribute_datasets_from_function(lambda _: dataset)

    def prepare(self, model, dataset):
        fit_repairs.repair(model, dataset.element_spec, several=self.processes > 1)


class Mirrored(_Strategy):
    """The devices of this machine."""

    kind = "mirrored"

    def __init__(self, devices=None):
        self.strategy = tf.distribute.MirroredStrategy(devices)
        self.replicas = self.local = self.strategy.num_replicas_in_sync

    def gather(self, payload):
        return [payload]

    def broadcast(self, payload):
        return payload


class MultiWorker(_Strategy):
    """Several processes, which `TF_CONFIG` names."""

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
                "start_workers first of all."
            ) from error
        except (tf.errors.DeadlineExceededError, tf.errors.UnavailableError) as error:
            raise InputError(
                f"The {cluster.processes} workers did not come together within {_REGISTER_SECONDS} "
                f"s: are all started, and is {cluster.address} reachable? ({error.message[:200]})"
            ) from error
        self.replicas = self.strategy.num_replicas_in_sync
        self.local = self.replicas // self.processes

    def gather(self, payload):
        if self.processes == 1:
            return [payload]
        message = struct.pack(_HEADER, self.index, len(payload)) + payload
        message += b"\0" * (-len(message) % 4)
        # Collectives know float32 on every device; the bits are moved, nothing is computed.
        values = np.frombuffer(message, "float32")
        first = self.index * self.local

        def given(replica):
            mine = replica.replica_id_in_sync_group == first
            return tf.constant(values if mine else values[:0])

        spread = self.strategy.experimental_distribute_values_from_function(given)
        with quiet_tensorflow():  # it traces a function for each call, and says so
            stream = self.strategy.gather(spread, axis=0).numpy().tobytes()
        found, place = {}, 0
        while place < len(stream):
            worker, length = struct.unpack_from(_HEADER, stream, place)
            place += struct.calcsize(_HEADER)
            found[worker] = stream[place : place + length]
            place += length + -length % 4
        self.watch.beat()
        return [found[worker] for worker in range(self.processes)]

    def broadcast(self, payload):
        return self.gather(payload if self.chief else b"")[0]


def _quick_heartbeats():
    """What MultiWorkerMirroredStrategy sets up itself, with times of ours.

    Without it a worker that cannot be reached is given up after TensorFlow's own time, which its
    documentation does not state.
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
