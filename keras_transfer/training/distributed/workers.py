"""The processes and devices of one training, behind one interface, whatever engine joins them."""

import hashlib
import io
import json
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_transfer.data.sharding import Share
from keras_transfer.errors import InputError
from keras_transfer.training.distributed import environment, faults

_active = None


class Workers:
    """One process among those that train together, and its devices.

    Every process calls the same methods in the same order: those that talk wait for the others.

    Attributes:
        kind: `"mirrored"`, `"multi_worker"` or `"jax"`.
        processes, index: how many processes, and which one this is; 0 is the chief, who writes.
        replicas, local: how many devices in all, and how many of them are this process's.
        watch: ends the process where nothing moves for too long, see `faults.Watch`.
        strategy: of `tf.distribute`; JAX has none.
    """

    kind: str
    processes: int = 1
    index: int = 0
    replicas: int
    local: int
    watch: "faults.Watch"
    strategy: Any = None

    @property
    def chief(self) -> bool:
        return self.index == 0

    @property
    def share(self) -> Share:
        """Which examples of a batch are computed here."""
        raise NotImplementedError

    @property
    def seed_offset(self) -> int:
        """Added to the seed of dropout, where each process draws masks of its own."""
        raise NotImplementedError

    def scope(self):
        """A context: models and optimizers that are made in it are the workers' common ones."""
        raise NotImplementedError

    def alone(self):
        """A context: what is made and computed in it is this process's own."""
        raise NotImplementedError

    def own_model(self, model: keras.Model) -> keras.Model:
        """A model of `build_model` with the weights of now, for use in `alone`."""
        raise NotImplementedError

    def stream(self, dataset):
        """What `fit` takes for a tf.data stream of this process's part (`pipeline.batches`)."""
        raise NotImplementedError

    def prepare(self, model: keras.Model, dataset) -> None:
        """Makes a compiled model ready for `fit` on such streams."""
        raise NotImplementedError

    def gather(self, payload: bytes) -> list[bytes]:
        """What each process gave, in their order."""
        raise NotImplementedError

    def broadcast(self, payload: bytes | None) -> bytes:
        """What the chief gave; the others' payload is not looked at."""
        raise NotImplementedError

    # -- made of those ----------------------------------------------------------------------------

    def barrier(self) -> None:
        """Returns when all processes have come here."""
        self.gather(b"")

    def on_chief(self, compute: Callable[[], object]):
        """What `compute` gives on the chief, plain data; its InputError is raised everywhere."""
        answer = None
        if self.chief:
            try:
                answer = {"value": compute()}
            except InputError as error:
                answer = {"error": str(error)}
        text = self.broadcast(None if answer is None else json.dumps(answer).encode())
        answer = json.loads(text)
        if "error" in answer:
            raise InputError(answer["error"])
        return answer["value"]

    def agree(self, what: str, value: bytes) -> None:
        """Raises InputError everywhere where the processes did not give the same."""
        digest = hashlib.blake2b(value, digest_size=16).digest()
        given = self.gather(digest)
        others = [str(i) for i, other in enumerate(given) if other != given[0]]
        if others:
            raise InputError(
                f"Worker {', '.join(others)} has other {what} than worker 0: give all workers the "
                "same data, options and weights."
            )

    def arrays_from_chief(self, arrays: dict | None) -> dict[str, np.ndarray]:
        """Name → array, as the chief has them."""
        return unpacked(self.broadcast(packed(arrays or {}) if self.chief else None))


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    """Name → array as bytes, without pickle."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # names, not options
    return buffer.getvalue()


def unpacked(payload: bytes) -> dict[str, np.ndarray]:
    """What `packed` was given."""
    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        return dict(arrays)


def start_workers(choice: str = "auto", *, devices=None) -> Workers | None:
    """Joins the other workers. Call it first of all, before any model or tensor is made.

    Args:
        choice: of `environment.CHOICES`. `"auto"` is what the environment says (see
            `environment.plan`), else this machine's accelerators, where it has several.
        devices: of `"mirrored"`: names of this machine's devices; by default all accelerators.

    Returns:
        None where there is nothing to distribute over.

    Raises:
        InputError: see `environment.plan`; or something was computed before, or the workers do not
            come together.
    """
    global _active
    plan = environment.plan(choice, os.environ)
    if plan.kind == "none":
        return None
    if _active is not None:
        if plan.kind in ("auto", _active.kind):
            return _active
        raise InputError(f"The workers were started as '{_active.kind}' already.")
    kind, backend = plan.kind, keras.backend.backend()
    if backend not in ("tensorflow", "jax"):
        raise InputError(f"Nothing is distributed on the backend {backend}.")
    if kind == "auto":
        if backend == "tensorflow" and len(keras.distribution.list_devices()) < 2:
            return None
        kind = "jax" if backend == "jax" else "mirrored"
    if (kind == "jax") != (backend == "jax"):
        raise InputError(
            f"distribute '{kind}' is not for the backend {backend}: set KERAS_BACKEND in the "
            "environment, or the configuration file of Keras."
        )
    if kind == "jax":
        from keras_transfer.training.distributed.jax_workers import JaxWorkers

        workers = JaxWorkers(plan.cluster)
        if choice == "auto" and workers.replicas == 1:
            keras.distribution.set_distribution(None)
            return None
    else:
        from keras_transfer.training.distributed.tensorflow_workers import Mirrored, MultiWorker

        workers = Mirrored(devices) if plan.cluster is None else MultiWorker(plan.cluster)
    workers.watch = faults.Watch()
    _active = workers
    return workers


def chosen(distribute: "str | Workers | None") -> Workers | None:
    """The workers that a trainer is told to use: those themselves, or the name of those started.

    Raises:
        InputError: no such name, or such workers were not started.
    """
    if distribute is None or isinstance(distribute, Workers):
        return distribute
    if distribute not in environment.CHOICES:
        raise InputError(
            f"distribute must be one of {', '.join(environment.CHOICES)}, not {distribute!r}."
        )
    if distribute == "none":
        return None
    if distribute != "auto" and (_active is None or _active.kind != distribute):
        raise InputError(
            f"distribute '{distribute}': start the workers before the model is built: workers = "
            f"keras_transfer.start_workers('{distribute}'), and build it in `with workers.scope():`."
        )
    return _active


def require_alone(what: str) -> None:
    """Raises InputError where workers were started, for what does not know of any."""
    if _active is not None:
        raise InputError(
            f"{what} is not distributed: run it in one process, without start_workers. Of what trains, "
            "only Trainer.fit and `keras-transfer train` are."
        )
