"""What training costs on this machine: one timed batch, and what follows from it."""

import time
from dataclasses import dataclass

import keras
import numpy as np

from keras_transfer.features.prefix import stage_costs
from keras_transfer.models.acceleration import jit_compile, training_model
from keras_transfer.models.builders import build_model, compile_arguments, heads_of
from keras_transfer.models.heads import Classification
from keras_transfer.models.stages import freeze
from keras_transfer.schedules.plans import FORWARD, Plan
from keras_transfer.utils import machine

_TIMED = 3
_VIEWS = 3  # of the images on whose activations a head trains, see `features.caching`


@dataclass(frozen=True)
class Speed:
    """Of training a whole backbone on this machine.

    Attributes:
        step: seconds an image, in a step that trains every stage.
        start: seconds until the first step of a phase.
    """

    step: float
    start: float

    def seconds(self, plan: Plan, shares: np.ndarray, images: int) -> float:
        """About how long a plan takes.

        Frozen stages are computed once, for a few views of each image; what is not frozen is
        paid for in each epoch. Reading and validating are not in it.

        Args:
            shares: of each stage in the multiplications of the backbone [B], see `stage_costs`.
            images: that are trained on.
        """
        total, computed = 0.0, 0
        for planned in plan.phases:
            frozen = float(shares[: planned.frozen].sum())
            if planned.frozen > computed:
                views = 1 if planned.phase.solver == "logistic" else _VIEWS
                total += views * images * self.step * FORWARD * frozen
                computed = planned.frozen
            seen = planned.steps * planned.batch_size
            scale = (planned.image_size / plan.phases[-1].image_size) ** 2
            total += seen * self.step * (1 - frozen) * scale
            total += self.start * (1 - frozen)
        return total


def speed_of(backbone: keras.Model, batch_size: int = 32) -> Speed:
    """Times steps that train every stage of a `Backbone`; the weights stay as they are.

    The answer is kept for this machine, backbone, size and number format.
    """
    pieces = (
        backbone.name,
        backbone.count_params(),
        backbone.input_shape[1],
        batch_size,
        keras.backend.backend(),
        keras.__version__,
        keras.config.dtype_policy().name,
    )
    found = machine.remembered(
        "speeds", " ".join(map(str, pieces)), lambda: _timed(backbone, batch_size)
    )
    return Speed(**found)


def stage_shares(backbone) -> np.ndarray:
    """Of each stage in the multiplications of the backbone, summing to 1 [B]."""
    costs = np.array(stage_costs(backbone))
    return costs / max(costs.sum(), 1.0)


def _timed(backbone, batch_size):
    model = build_model(backbone, Classification("ab"))
    layers = [backbone, *backbone.layers]
    flags = [layer.trainable for layer in layers]
    freeze(model, "none")
    try:
        return _seconds(model, batch_size)
    finally:
        for layer, flag in zip(layers, flags):
            layer.trainable = flag


def _seconds(model, batch_size):
    started = time.perf_counter()
    step = training_model(model, 0)
    # A rate of zero: what is timed is not changed.
    step.compile(
        keras.optimizers.SGD(0.0), **compile_arguments(heads_of(model)), jit_compile=jit_compile()
    )
    images = np.zeros((batch_size, *model.input_shape[1:]), "uint8")
    labels = np.arange(batch_size) % 2
    step.train_on_batch(images, labels)
    start, times = time.perf_counter() - started, []
    for _ in range(_TIMED):
        started = time.perf_counter()
        step.train_on_batch(images, labels)
        times.append(time.perf_counter() - started)
    return {"step": min(times) / batch_size, "start": start}
