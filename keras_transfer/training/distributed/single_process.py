"""One process that trains alone, with the interface that several workers share.

The trainer and the command line talk to this interface only. `Workers` implements it for several
devices; without them this is the only module of `distributed` that is imported.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

from keras_transfer.errors import InputError
from keras_transfer.runs import Run
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.utils.checkpoint import Checkpoint

CHOICES = ("auto", "none", "mirrored", "multi_worker", "jax")
SCALINGS = ("auto", "none")
_LINEAR = ("sgd",)  # optimizers whose learning rate grows linearly with the batch


class SingleProcess:
    """This process alone, on its default device.

    With several workers every process calls the same methods in the same order.

    Attributes:
        kind: `"none"`, `"mirrored"`, `"multi_worker"` or `"jax"`.
        distributed: whether several devices or processes may train together.
        processes, index: number of processes, and the number of this one; 0 is the chief, which
            writes all files.
        replicas, local: number of devices in total, and of this process.
        share: the `data.order.Share` of this process in each batch; None if it computes all.
        seed_offset: added to the seed of dropout if each process draws its own masks.
        strategy: the strategy of `tf.distribute`, if there is one.
    """

    kind = "none"
    distributed = False
    processes = 1
    index = 0
    replicas = 1
    local = 1
    share: Any = None
    seed_offset = 0
    strategy: Any = None

    @property
    def chief(self) -> bool:
        return self.index == 0

    # -- communication

    def on_chief(self, compute: Callable[[], Any]) -> Any:
        """Return what `compute` returns on the chief: plain data. Its InputError is raised by all."""
        return compute()

    def arrays_from_chief(self, compute: Callable[[], dict]) -> dict:
        """Return the arrays, name → array, that `compute` returns on the chief."""
        return compute()

    def agree(self, what: str, value: Callable[[], bytes]) -> None:
        """Raise InputError in every process if `value` differs between them."""

    def barrier(self) -> None:
        """Wait until all processes have arrived here."""

    # -- contexts

    def scope(self):
        """Return a context in which models and optimizers are created for all devices."""
        return contextlib.nullcontext()

    def alone(self):
        """Return a context in which this process computes without the others."""
        return contextlib.nullcontext()

    def translated(self):
        """Return a context that turns an engine's error about a lost process into `WorkerLost`."""
        return contextlib.nullcontext()

    def guarded(self):
        """Return a context that raises `WorkerLost` if another process dies or stalls."""
        return contextlib.nullcontext()

    # -- training

    def check(self, model, schedule: Schedule) -> None:
        """Raise InputError for a model or schedule that these devices cannot train."""

    def own_model(self, model):
        """Return the model with its current weights, for use in `alone`."""
        return model

    def loss_arguments(self, arguments: dict) -> dict:
        """Adapt what `models.heads.compile_arguments` returned."""
        return arguments

    def steps_per_execution(self, steps: int) -> int:
        """Return how many steps one call of Keras may contain."""
        return steps

    def fit(self, network, model, stream, validation, validation_steps: int | None, **options):
        """Call Keras's `fit`.

        Args:
            network: the compiled model that trains.
            model: the model of `build_model` that shares its weights.
            stream: tf.data stream of training batches, of this process's share.
            validation: stream of validation batches, or None.
            validation_steps: number of validation batches.
            options: of `fit`.
        """
        return network.fit(stream, validation_data=validation, **options)

    def engine(self, name: str) -> str:
        """Return the engine for features; several workers must all use the same one."""
        return name

    def features(self, make: Callable, model) -> Callable[[int], dict]:
        """Return a function that computes the features of a phase, given its number.

        Args:
            make: called with a model and options, returns a `features.caching.Supply`.
            model: the model of `build_model`.
        """
        return make(model).of

    def outputs(self, model, data, split: str, batch_size: int, cached: Callable | None):
        """Return (labels, outputs) of a split, see `evaluation.measures.predict_batches`.

        Args:
            cached: computes the same faster, from cached features or decoded examples.
        """
        if cached is not None:
            return cached()
        from keras_transfer.evaluation.measures import predict_split

        return predict_split(model, data, split, batch_size)

    # -- files

    def create_run(self, out, *args) -> tuple[Run, Checkpoint]:
        """Create a run with `Run.create`; return it and its checkpoint."""
        return self._with_checkpoint(Run.create(out, *args))

    def resume_run(self, out, *args) -> tuple[Run, Checkpoint]:
        """Open an interrupted run with `Run.resume`; return it and its checkpoint."""
        return self._with_checkpoint(Run.resume(out, *args))

    def _with_checkpoint(self, run):
        return run, Checkpoint(run.state_path)

    def leave(self, code: int) -> None:
        """End a process whose orderly end would wait for lost workers; else do nothing."""


SINGLE = SingleProcess()
_active = SINGLE


def activate(workers: SingleProcess) -> None:
    """Make workers the ones that `"auto"` refers to from now on."""
    global _active
    _active = workers


def active() -> SingleProcess:
    """Return the workers that were started, or the single process."""
    return _active


def resolve_workers(distribute: "str | SingleProcess | None") -> SingleProcess:
    """Return the workers for the option `distribute`: the workers themselves or a name.

    Raises:
        InputError: if the name is unknown, or such workers were not started.
    """
    if isinstance(distribute, SingleProcess):
        return distribute
    if distribute in (None, "none"):
        return SINGLE
    if distribute not in CHOICES:
        raise InputError(f"distribute must be one of {', '.join(CHOICES)}, not {distribute!r}.")
    if distribute not in ("auto", _active.kind):
        raise InputError(
            f"distribute '{distribute}' needs workers that are started before the model is built: "
            f"workers = keras_transfer.training.start_workers('{distribute}'), then build the model "
            "in `with workers.scope():`."
        )
    return _active


def require_single_process(what: str) -> None:
    """Raise InputError if workers were started, for work that cannot be distributed."""
    if _active.distributed:
        raise InputError(
            f"{what} cannot be distributed: run it in one process, without start_workers. Only "
            "Trainer.fit and `keras-transfer train` train on several devices."
        )


def scaled(schedule: Schedule, devices: int, batch_size: int) -> Schedule:
    """Return the schedule for several devices, each of which keeps its batch size.

    A step takes as long as on one device and sees `devices` times as many examples; an epoch has
    that many times fewer steps. The learning rate follows the linear rule for SGD
    (arXiv:1706.02677) and the square root rule for optimizers that divide by the gradient's size
    (arXiv:2205.10287). Epochs, warmup (a share of the steps) and multipliers stay.

    Args:
        devices: factor of the batch size, ≥ 1.
        batch_size: batch size of one device for phases that do not set their own.
    """
    if devices == 1:
        return schedule
    phases = tuple(_scaled(phase, devices, batch_size) for phase in schedule.phases)
    return dataclasses.replace(schedule, phases=phases)


def rate_factor(optimizer: str, devices: int) -> float:
    """Return the factor of the learning rate for `devices` times the batch size."""
    return float(devices) if optimizer.lower() in _LINEAR else math.sqrt(devices)


def _scaled(phase: Phase, devices, batch_size):
    if phase.solver == "logistic":
        return phase  # it has neither steps nor a learning rate
    changes = {
        "batch_size": (phase.batch_size or batch_size) * devices,
        "learning_rate": phase.learning_rate * rate_factor(phase.optimizer, devices),
    }
    if phase.steps:
        changes["steps"] = -(-phase.steps // devices)
    if phase.ema:
        changes["ema"] = phase.ema**devices  # the average spans as many examples as before
    return dataclasses.replace(phase, **changes)
