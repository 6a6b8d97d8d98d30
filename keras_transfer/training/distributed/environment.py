"""Which workers exist and which of them this process is, and how to start them.

The environment is read before Keras is imported.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from keras_transfer.errors import InputError
from keras_transfer.training.distributed import faults
from keras_transfer.training.distributed.single_process import (
    CHOICES,
    SINGLE,
    SingleProcess,
    activate,
    active,
)

_TF = "TF_CONFIG"
# Keras's and JAX's names for: addresses (all or the first), number of processes, index.
_JAX = (
    ("KERAS_DISTRIBUTION_JOB_ADDRESSES", "JAX_COORDINATOR_ADDRESS"),
    ("KERAS_DISTRIBUTION_NUM_PROCESSES", "JAX_NUM_PROCESSES"),
    ("KERAS_DISTRIBUTION_PROCESS_ID", "JAX_PROCESS_ID"),
)
_EXAMPLE = '{"cluster": {"worker": ["host-a:12345", "host-b:12345"]}, "task": {"type": "worker", "index": 0}}'


@dataclass(frozen=True)
class Cluster:
    """The processes of one training.

    Attributes:
        address: `"host:port"` of the first process, the chief.
        processes: number of processes, ≥ 1.
        index: number of this process; 0 is the chief.
    """

    address: str
    processes: int
    index: int


@dataclass(frozen=True)
class Plan:
    """How to distribute, as far as it is known without Keras.

    Attributes:
        kind: one of `CHOICES`; `"auto"` if the devices of this machine decide.
        cluster: the processes, if there are several.
    """

    kind: str
    cluster: Cluster | None = None


def plan(choice: str, environ: Mapping[str, str] = os.environ) -> Plan:
    """Return what a choice means in this environment.

    `"auto"`: `TF_CONFIG` with two workers or more means `multi_worker`, JAX's variables on the JAX
    backend mean `jax`; otherwise this machine's devices decide.

    Args:
        choice: one of `CHOICES`.
        environ: contains `KERAS_BACKEND` and the addresses of the workers: `TF_CONFIG`, or
            `KERAS_DISTRIBUTION_JOB_ADDRESSES`, `…_NUM_PROCESSES` and `…_PROCESS_ID` (JAX's own
            `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` do as well).

    Raises:
        InputError: if the choice is unknown or not available on the backend, or if variables are
            missing or contradict each other.
    """
    if choice not in CHOICES:
        raise InputError(f"distribute must be one of {', '.join(CHOICES)}, not {choice!r}.")
    backend = environ.get("KERAS_BACKEND") or "tensorflow"
    needed = {"mirrored": "tensorflow", "multi_worker": "tensorflow", "jax": "jax"}.get(choice)
    if needed and backend != needed:
        other = "jax" if backend == "jax" else "mirrored or multi_worker"
        raise InputError(
            f"distribute '{choice}' is for the backend {needed}, and KERAS_BACKEND is {backend}: "
            f"set KERAS_BACKEND={needed}, or distribute with {other}."
        )
    if choice in ("none", "mirrored"):
        return Plan(choice)
    if choice == "multi_worker":
        return Plan(choice, tensorflow_cluster(environ))
    if choice == "jax":
        return Plan(choice, jax_cluster(environ))
    if backend == "jax":
        return Plan("auto" if jax_cluster(environ) is None else "jax", jax_cluster(environ))
    if environ.get(_TF):
        cluster = tensorflow_cluster(environ)
        if cluster.processes > 1:
            return Plan("multi_worker", cluster)
    return Plan("auto")


def tensorflow_cluster(environ: Mapping[str, str]) -> Cluster:
    """Return the cluster in `TF_CONFIG`.

    Raises:
        InputError: if it is missing, not JSON, or incomplete.
    """
    text = environ.get(_TF)
    if not text:
        raise InputError(
            f"distribute 'multi_worker' needs {_TF} in the environment of each process, such as "
            f"{_EXAMPLE} (scripts/launch_local.sh sets it on one machine)."
        )
    try:
        config = json.loads(text)
    except ValueError as error:
        raise InputError(f"{_TF} is not valid JSON ({error}). Write it like {_EXAMPLE}.") from None
    cluster = config.get("cluster") if isinstance(config, dict) else None
    task = config.get("task") if isinstance(config, dict) else None
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise InputError(f"{_TF} needs 'cluster' and 'task'. Write it like {_EXAMPLE}.")
    if other := sorted(set(cluster) - {"chief", "worker"}):
        raise InputError(
            f"{_TF} has {', '.join(other)}: only workers (and a chief among them) train here."
        )
    chiefs, others = ([*cluster.get(kind, [])] for kind in ("chief", "worker"))
    addresses = [*chiefs, *others]
    if len(chiefs) > 1 or not addresses:
        raise InputError(f"{_TF} needs workers, and at most one chief, not {len(chiefs)}.")
    for address in addresses:
        _check_address(address, _TF)
    if len(set(addresses)) < len(addresses):
        raise InputError(f"{_TF} names an address twice: {', '.join(addresses)}.")
    kind, index = task.get("type"), task.get("index")
    if kind not in cluster or isinstance(index, bool) or not isinstance(index, int):
        raise InputError(f"{_TF}: task {task} is not in the cluster ({', '.join(cluster)}).")
    if not 0 <= index < len(cluster[kind]):
        raise InputError(
            f"{_TF}: {kind} {index} does not exist: there are {len(cluster[kind])}, counted from 0."
        )
    return Cluster(addresses[0], len(addresses), index + (len(chiefs) if kind == "worker" else 0))


def jax_cluster(environ: Mapping[str, str]) -> Cluster | None:
    """Return the cluster in Keras's or JAX's variables; None if no variable is set.

    Raises:
        InputError: if only some are set, or they contradict each other.
    """
    found = [next((n for n in names if environ.get(n)), None) for names in _JAX]
    if not any(found):
        return None
    given = [name for name in found if name]
    if missing := [names[0] for names, name in zip(_JAX, found) if name is None]:
        raise InputError(
            f"{', '.join(given)} is set, but not {', '.join(missing)}: JAX needs all three."
        )
    addresses = environ[given[0]].split(",")
    for address in addresses:
        _check_address(address, given[0])
    processes, index = (_number(environ[name], name) for name in given[1:])
    if len(addresses) > 1 and len(addresses) != processes:
        raise InputError(
            f"{given[0]} has {len(addresses)} addresses, but {given[1]} is {processes}."
        )
    if processes < 1 or not index < processes:
        raise InputError(
            f"{given[2]} is {index}, but {given[1]} is {processes}: it counts from 0 to "
            f"{processes - 1}."
        )
    return Cluster(addresses[0], processes, index)


def _number(text, name):
    if not text.strip().isdecimal():
        raise InputError(f"{name} is {text!r}: give a whole number.")
    return int(text)


def _check_address(address, name):
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"{name} has the address {address!r}: give HOST:PORT.")


def start_workers(choice: str = "auto", *, devices=None) -> SingleProcess:
    """Join the other workers. Call it first of all, before any model or tensor is created.

    Args:
        choice: one of `CHOICES`. `"auto"` means what the environment says (see `plan`), else this
            machine's accelerators if it has several.
        devices: for `"mirrored"`, names of this machine's devices; by default all accelerators.

    Returns:
        The workers, for `with workers.scope():` and `Trainer(distribute=workers)`; a
        `SingleProcess` if there is nothing to distribute over.

    Raises:
        InputError: see `plan`; or if something was computed before, or the workers do not come
            together.
    """
    wanted = plan(choice, os.environ)
    if wanted.kind == "none":
        return SINGLE
    import keras

    started = active()
    if started.distributed:
        if wanted.kind in ("auto", started.kind):
            return started
        raise InputError(f"The workers were started as '{started.kind}' already.")
    kind, backend = wanted.kind, keras.backend.backend()
    if backend not in ("tensorflow", "jax"):
        raise InputError(f"The backend {backend} cannot be distributed: use tensorflow or jax.")
    if kind == "auto":
        if backend == "tensorflow" and len(keras.distribution.list_devices()) < 2:
            return SINGLE
        kind = "jax" if backend == "jax" else "mirrored"
    if (kind == "jax") != (backend == "jax"):
        raise InputError(
            f"distribute '{kind}' is not for the backend {backend}: set KERAS_BACKEND in the "
            "environment, or the configuration file of Keras."
        )
    if kind == "jax":
        from keras_transfer.training.distributed.jax_workers import JaxWorkers

        workers = JaxWorkers(wanted.cluster)
        if choice == "auto" and workers.replicas == 1:
            keras.distribution.set_distribution(None)
            return SINGLE
    else:
        from keras_transfer.training.distributed.tensorflow_workers import Mirrored, MultiWorker

        workers = Mirrored(devices) if wanted.cluster is None else MultiWorker(wanted.cluster)
    workers.watch = faults.Watch()
    activate(workers)
    return workers
