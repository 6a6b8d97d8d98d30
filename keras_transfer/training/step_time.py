"""How long a step of each phase of a plan takes on this machine."""

import time

import keras
import numpy as np

from keras_transfer.models.acceleration import jit_compile, training_model
from keras_transfer.models.builders import compile_arguments, heads_of
from keras_transfer.models.low_rank import merge
from keras_transfer.schedules.plans import Plan, PlannedPhase, make_optimizer, set_trainable

_STEPS = 3


def step_seconds(model: keras.Model, plan: Plan) -> list[float | None]:
    """Time steps of each phase on random images; None for a closed form. The weights change.

    Frozen stages are computed in each step, as where their activations are not cached. The shortest
    of three steps counts, after one that compiles.

    Args:
        model: from `build_model`, with a head of one class per example.
        plan: for this model.
    """
    return [
        None if planned.phase.solver == "logistic" else _timed(model, planned)
        for planned in plan.phases
    ]


def _timed(model, planned: PlannedPhase):
    phase = planned.phase
    set_trainable(model, phase, (0, 0))
    network = training_model(
        model, planned.frozen, image_size=planned.image_size, fold=phase.batch_norm == "frozen"
    )
    optimizer = make_optimizer(model, phase, planned.steps, network.trainable_variables)
    losses = compile_arguments(heads_of(model))
    network.compile(optimizer=optimizer, **losses, jit_compile=jit_compile())
    shape = (planned.batch_size, *network.input_shape[1:])
    images = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    labels = np.zeros(planned.batch_size, "int32")
    times = [time.perf_counter()]
    for _ in range(1 + _STEPS):
        network.train_on_batch(images, labels)
        times.append(time.perf_counter())
    merge(model)
    return float(np.diff(times)[1:].min())
