"""JAX's distributed runtime under `keras.distribution.DataParallel`.

All devices run one program: a batch is one array whose rows are spread over them, and `fit` treats it
as on one device. So dropout, BatchNorm, clipping, averages and accumulation mean the same.
"""

import contextlib

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils

from keras_transfer.errors import InputError
from keras_transfer.training.distributed import faults
from keras_transfer.training.distributed.environment import Cluster
from keras_transfer.training.distributed.workers import Workers

_REGISTER_SECONDS = 300


class JaxWorkers(Workers):
    """All devices of all processes."""

    kind = "jax"

    def __init__(self, cluster: Cluster | None):
        if cluster is not None:
            _join(cluster)
        self.processes, self.index = jax.process_count(), jax.process_index()
        if self.processes > 1:
            faults.leave_on_abort(self)
        self.replicas, self.local = jax.device_count(), jax.local_device_count()
        self.distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
        keras.distribution.set_distribution(self.distribution)

    @property
    def share(self):
        from keras_transfer.data.order import Share  # needs TensorFlow

        return Share(self.replicas, self.index * self.local, self.local, joined=True)

    @property
    def seed_offset(self):
        return 0  # all share one random state, and masks differ along the batch

    def scope(self):
        return self.distribution.scope()

    @contextlib.contextmanager
    def alone(self):
        keras.distribution.set_distribution(None)
        try:
            yield
        finally:
            keras.distribution.set_distribution(self.distribution)

    def own_model(self, model):
        values = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
        with self.alone():
            own = keras.models.clone_model(model)
            for weight, value in zip(own.weights, values):
                weight.assign(value)
        return own

    def stream(self, dataset):
        return dataset

    def prepare(self, network, dataset):
        """Nothing is needed."""

    def check(self, model, schedule):
        mesh = {device.id for device in model.weights[0].value.sharding.device_set}
        if len(mesh) != self.replicas:
            raise InputError(
                "The model was not built for these workers: call start_workers before building it."
            )

    def synchronized(self, model):
        return contextlib.nullcontext()  # a layer sees the whole batch

    def gather(self, payload):
        if self.processes == 1:
            return [payload]
        lengths = multihost_utils.process_allgather(np.array([len(payload)], "int32"))
        row = np.zeros(max(1, lengths.max()), "uint8")
        row[: len(payload)] = np.frombuffer(payload, "uint8")
        rows = np.asarray(multihost_utils.process_allgather(row))
        self.watch.beat()
        return [rows[i, : int(n)].tobytes() for i, n in enumerate(lengths.ravel())]

    def broadcast(self, payload):
        if self.processes == 1:
            return payload
        length = np.array([len(payload) if self.chief else 0], "int32")
        length = int(multihost_utils.broadcast_one_to_all(length)[0])
        row = np.zeros(max(1, length), "uint8")
        if self.chief:
            row[:length] = np.frombuffer(payload, "uint8")
        row = np.asarray(multihost_utils.broadcast_one_to_all(row))
        self.watch.beat()
        return row[:length].astype("uint8").tobytes()


def _join(cluster):
    # It would handle SIGTERM itself, which `errors.Signals` does.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=cluster.address,
            num_processes=cluster.processes,
            process_id=cluster.index,
            initialization_timeout=_REGISTER_SECONDS,
            heartbeat_timeout_seconds=faults.HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=faults.HEARTBEAT_SECONDS,
        )
    except RuntimeError as error:
        raise InputError(
            f"The {cluster.processes} workers did not all join. Start all of them before anything is "
            f"computed, and check that {cluster.address} is reachable. ({error})"
        ) from error
