"""Estimate training times on this machine from one timed batch, and choose what fits a time limit."""

import time
from dataclasses import dataclass, replace

import keras
import numpy as np

from keras_transfer.advisor.rules import CHEAPER, Choice, Facts
from keras_transfer.features.prefix import stage_costs
from keras_transfer.models.acceleration import jit_compile, training_model
from keras_transfer.models.builders import build_model, compile_arguments, heads_of
from keras_transfer.models.heads import Classification
from keras_transfer.models.stages import freeze
from keras_transfer.schedules.plans import FORWARD, Plan, make_plan
from keras_transfer.schedules.recipes import resolve_schedule
from keras_transfer.schedules.sizes import attention_stages
from keras_transfer.utils.files import remembered

_TIMED_STEPS = 3
_VIEWS = 3  # views of each image on whose activations a head trains, see `features.caching`
_MIN_EPOCHS = 3  # a shortened training has at least these epochs
_MIN_SHARE = 0.5  # and this share of the epochs that were chosen


@dataclass(frozen=True)
class Speed:
    """Speed of training a whole backbone on this machine.

    Attributes:
        step: seconds per image of a step that trains every stage.
        start: seconds until the first step of a phase.
    """

    step: float
    start: float

    def seconds(self, plan: Plan, shares: np.ndarray, images: int) -> float:
        """Return the approximate duration of a plan.

        Frozen stages are computed once for a few views of each image; the other stages are computed
        in every epoch. Reading and validation are not included.

        Args:
            shares: share of each stage in the multiplications of the backbone [B], see
                `stage_shares`.
            images: number of training images.
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
    """Time steps that train every stage of a `Backbone`; its weights stay unchanged.

    The result is cached per machine, backbone, image size, batch size and number format.
    """
    key = (
        backbone.name,
        backbone.count_params(),
        backbone.input_shape[1],
        batch_size,
        keras.backend.backend(),
        keras.__version__,
        keras.config.dtype_policy().name,
    )
    measured = remembered("speeds", " ".join(map(str, key)), lambda: _timed(backbone, batch_size))
    return Speed(**measured)


def stage_shares(backbone) -> np.ndarray:
    """Return the share of each stage in the multiplications of the backbone [B], with sum 1."""
    costs = np.array(stage_costs(backbone))
    return costs / max(costs.sum(), 1.0)


def _timed(backbone, batch_size):
    model = build_model(backbone, Classification("ab"))
    layers = [backbone, *backbone.layers]
    flags = [layer.trainable for layer in layers]
    freeze(model, "none")
    images = np.zeros((batch_size, *model.input_shape[1:]), "uint8")
    labels = np.arange(batch_size) % 2
    times = [time.perf_counter()]
    try:
        step = training_model(model, 0)
        # A learning rate of zero leaves the weights unchanged.
        losses = compile_arguments(heads_of(model))
        step.compile(keras.optimizers.SGD(0.0), **losses, jit_compile=jit_compile())
        for _ in range(1 + _TIMED_STEPS):
            step.train_on_batch(images, labels)
            times.append(time.perf_counter())
    finally:
        for layer, flag in zip(layers, flags):
            layer.trainable = flag
    start, *steps = np.diff(times).tolist()
    return {"step": min(steps) / batch_size, "start": start}


@dataclass(frozen=True)
class Budget:
    """A time limit for the training, and the means to estimate what fits.

    Attributes:
        networks: name → `Backbone`.
        images: number of training images.
        batch_size: of the training.
        seconds: the limit.
    """

    networks: dict
    images: int
    batch_size: int
    seconds: float

    def timed(self, choice: Choice) -> Choice:
        """Return the choice with its estimated time."""
        network = self.networks[choice.backbone]
        speed = speed_of(network, self.batch_size)
        seconds = speed.seconds(self._plan(choice), stage_shares(network), self.images)
        return replace(choice, seconds=round(seconds, 1))

    def fits(self, choice: Choice) -> bool:
        """Return whether a timed choice is within the limit."""
        return choice.seconds is not None and choice.seconds <= self.seconds

    def fit(self, choice: Choice, facts: Facts) -> tuple[Choice, list[str]]:
        """Return the choice, or the closest one within the limit, and notes about the difference.

        The replacements are, in this order: fewer epochs, more frozen stages, the head alone, and the
        same with the next backbone. If nothing fits, the cheapest replacement is returned.
        """
        wanted = self.timed(choice)
        if self.fits(wanted):
            return wanted, []
        note = f"{wanted} would take {wanted.time}, longer than the limit of {self.seconds / 60:g} min."
        tried = []
        for backbone in facts.ranked:
            why = f"This is the closest to {wanted} that fits the time limit."
            same = replace(choice, backbone=backbone, why=why)
            for option in (same, *(_replacement(same, *cheaper) for cheaper in CHEAPER)):
                timed = self._shortened(option)
                if self.fits(timed):
                    return timed, [note]
                tried.append(timed)
        cheapest = min(tried, key=lambda option: option.seconds)
        why = "No strategy fits the time limit; this is the cheapest."
        return replace(cheapest, why=why), [note]

    def costs(self, choice: Choice) -> tuple[Choice, ...]:
        """Return every strategy with the chosen backbone and its estimated time."""
        strategies: tuple[tuple[str, dict], ...] = (*CHEAPER, ("lp_ft", {}), ("from_scratch", {}))
        return tuple(self.timed(Choice(choice.backbone, *strategy)) for strategy in strategies)

    def _plan(self, choice):
        network = self.networks[choice.backbone]
        schedule = resolve_schedule(
            choice.strategy,
            choice.overrides,
            examples=self.images,
            image_size=network.input_shape[1],
            linear_head=True,
            attention_stages=attention_stages(network),
        )
        return make_plan(network, schedule, self.images, self.batch_size)

    def _shortened(self, choice):
        """Return the choice with its time, and with fewer epochs if that makes it fit."""
        timed = self.timed(choice)
        if self.fits(timed) or choice.strategy == "feature_extraction":
            return timed
        phases = self._plan(choice).phases
        epochs = sum(p.epochs for p in phases if p.phase.solver == "gradient")
        least = self._of_length(choice, _MIN_EPOCHS)  # contains what every length takes
        slope = (timed.seconds - least.seconds) / max(1, epochs - _MIN_EPOCHS)
        fitting = _MIN_EPOCHS + int((self.seconds - least.seconds) / slope) if slope > 0 else epochs
        if fitting < max(_MIN_EPOCHS, _MIN_SHARE * epochs):
            return timed
        return self._of_length(choice, fitting)

    def _of_length(self, choice, epochs):
        return self.timed(replace(choice, overrides={**choice.overrides, "epochs": epochs}))


def _replacement(choice, strategy, overrides):
    """Return another strategy, with the learning rate of the choice if it trains stages."""
    rate = {k: v for k, v in choice.overrides.items() if k == "learning_rate"}
    overrides = {**overrides, **rate} if overrides else {}
    return replace(choice, strategy=strategy, overrides=overrides)
