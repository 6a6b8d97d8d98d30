"""A schedule applied to one model and dataset: planned phases, and their optimizers.

The optimizers are those of Keras, with a rate, a decay and an anchor for each weight: only the last
step, the update of one weight, knows about stages. Keras's `MultiOptimizer` (3.15) would clip each
group by itself, has no `learning_rate`, and is not restored from a saved model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import keras
import numpy as np
from keras import ops

from keras_transfer.errors import InputError
from keras_transfer.models.builders import check_other_size
from keras_transfer.models.low_rank import add_low_rank
from keras_transfer.models.stages import (
    Frozen,
    backbone_of,
    freeze,
    frozen_stages,
    stage_of_weights,
)
from keras_transfer.models.trained import undecayed
from keras_transfer.schedules.phases import Phase, Schedule, differences
from keras_transfer.schedules.rates import can_restart, rate_of, stage_rates
from keras_transfer.schedules.sizes import head_share, memory_of, moving_parameters, updated_by
from keras_transfer.utils.console import Table, format_bytes
from keras_transfer.utils.image_sizes import size_of
from keras_transfer.utils.keras_versions import OPTIMIZER_WRAPPERS

FORWARD = 1 / 3  # of a training step: one of its three passes; the others are backward


@dataclass(frozen=True)
class WeightRule:
    """How one weight is updated: multiplier of the rate, decay, and the value to which it decays.

    Attributes:
        rate: multiplier of the learning rate, > 0.
        decay: share of the distance to the anchor that a rate of 1 removes in a step, ≥ 0.
        anchored: decay towards the weight's starting value instead of zero (L2-SP).
    """

    rate: float = 1.0
    decay: float = 0.0
    anchored: bool = False


class _PerWeight:
    """Mix-in that makes an optimizer class follow a `WeightRule` per weight."""

    def __init__(self, *args, rules, restarts=False, **kwargs):
        super().__init__(*args, **kwargs)
        rules = [rule if isinstance(rule, WeightRule) else WeightRule(**rule) for rule in rules]
        # Hidden from Keras's tracking, which would count the variables twice.
        self.rules = SimpleNamespace(rules=rules, anchors={}, restarts=restarts, restart=None)

    def build(self, variables):
        if len(variables) != len(self.rules.rules):
            raise InputError(
                f"This optimizer was made for {len(self.rules.rules)} trainable weights, not "
                f"{len(variables)}: make a new one after freezing or unfreezing."
            )
        super().build(variables)
        for index, (rule, variable) in enumerate(zip(self.rules.rules, variables)):
            if rule.anchored:
                anchor = self.add_variable_from_reference(variable, name="anchor")
                anchor.assign(ops.copy(variable))  # on JAX they would share a buffer
                self.rules.anchors[index] = anchor
        if self.rules.restarts:
            self.rules.restart = self.add_variable(
                (2,), initializer="ones", aggregation="only_first_replica", name="restart"
            )

    def _get_current_learning_rate(self):
        restart = self.rules.restart
        if restart is None:
            return super()._get_current_learning_rate()
        # Variables, because the rate must change without another compilation.
        speed, factor = ops.unstack(ops.convert_to_tensor(restart), 2)
        steps = ops.cast(self._iterations, speed.dtype)
        return ops.multiply(self._learning_rate(ops.multiply(steps, speed)), factor)

    _summed = False  # whether this step's gradients are already sums over all devices

    def _clip_gradients(self, gradients):
        # Under tf.distribute, Keras clips each device's gradients before they are summed: the sum
        # may then be as many times as long as there are devices.
        reduce = getattr(super(), "_all_reduce_sum_gradients", None)
        if reduce and (self.clipnorm or self.global_clipnorm or self.clipvalue):
            gradients = [total for total, _ in reduce([(part, None) for part in gradients])]
            self._summed = True
        return super()._clip_gradients(gradients)

    def _all_reduce_sum_gradients(self, grads_and_vars):
        if self._summed:
            self._summed = False
            return grads_and_vars
        return super()._all_reduce_sum_gradients(grads_and_vars)

    def _apply_weight_decay(self, variables):
        """Do nothing: `update_step` decays, where the weight's rate is known."""

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        rule = self.rules.rules[index]
        rate = learning_rate if rule.rate == 1.0 else learning_rate * rule.rate
        decay = rule.decay
        if self.weight_decay and self._use_weight_decay(variable):  # the optimizer's own
            decay += self.weight_decay
        if decay:
            share = ops.cast(rate * decay, variable.dtype)
            anchor = self.rules.anchors.get(index)
            distance = variable if anchor is None else ops.subtract(variable, anchor)
            self.assign_sub(variable, ops.multiply(distance, share))
        super().update_step(gradient, variable, rate)

    def _parallel_update_step(self, grads, variables, learning_rate):
        # The torch backend updates all weights of a class in one call, which ignores the rules.
        for gradient, variable in zip(grads, variables):
            self.update_step(gradient, variable, learning_rate)

    def get_config(self):
        restarts = {"restarts": True} if self.rules.restarts else {}
        rules = [vars(rule) for rule in self.rules.rules]
        return {**super().get_config(), "rules": rules, **restarts}


def _with_rules(cls):
    """Return the optimizer class that follows rules, made once per class."""
    if cls not in _classes:
        made = type(f"PerWeight{cls.__name__}", (_PerWeight, cls), {"__module__": __name__})
        _classes[cls] = keras.saving.register_keras_serializable("keras_transfer")(made)
    return _classes[cls]


_classes: dict = {}
OPTIMIZERS = {
    name.lower(): value
    for name, value in vars(keras.optimizers).items()
    if isinstance(value, type)
    and issubclass(value, keras.optimizers.Optimizer)
    and value not in (*OPTIMIZER_WRAPPERS, keras.optimizers.Optimizer)
}
for _cls in OPTIMIZERS.values():  # now, so that a saved model finds its class
    _with_rules(_cls)


def per_weight(
    optimizer: keras.optimizers.Optimizer, rules: Sequence[WeightRule], restarts: bool = False
):
    """Return the same optimizer with a rule for each trainable weight.

    Args:
        optimizer: any of `keras.optimizers` except wrappers, or your own; not built yet. Its
            clipping, averages, accumulation and schedule are retained.
        rules: in the order of `model.trainable_variables`.
        restarts: the rate follows a schedule that `set_restart` can start again.

    Returns:
        A `keras.optimizers.Optimizer` to compile with. It is saved and loaded with the model.

    Raises:
        InputError: a wrapper (wrap the result instead), or an optimizer that is built.
    """
    if isinstance(optimizer, OPTIMIZER_WRAPPERS):
        raise InputError(
            f"Pass the optimizer inside {type(optimizer).__name__}, and wrap the result."
        )
    if optimizer.built:
        raise InputError("This optimizer has already been used: pass a new one.")
    return _with_rules(type(optimizer)).from_config(
        {
            **optimizer.get_config(),
            "rules": [vars(rule) for rule in rules],
            **({"restarts": True} if restarts else {}),
        }
    )


def set_restart(optimizer: keras.optimizers.Optimizer, speed: float, factor: float) -> None:
    """Let a built optimizer run through its schedule `speed` times as fast, at `factor` of the rate."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    inner.rules.restart.assign(np.array([speed, factor], "float32"))


def anchor_at(optimizer: keras.optimizers.Optimizer, start: dict[int, object]) -> None:
    """Set the anchors of a built optimizer: id(weight) → value [shape of the weight].

    By default, weights are anchored at their values when the optimizer was built.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    for index, anchor in inner.rules.anchors.items():
        value = start.get(id(inner._trainable_variables[index]))
        if value is not None:
            anchor.assign(value)


def rates_of(model: keras.Model, phase: Phase) -> tuple[list[float], float]:
    """Return the multipliers of the rate for each stage, and for the head."""
    stages, head = stage_rates(phase, len(backbone_of(model).stages))
    return stages, head * head_share(model)


def weight_rules(
    model: keras.Model, phase: Phase, variables: Sequence | None = None
) -> list[WeightRule]:
    """Return the rule of each of `variables` (`model.trainable_variables`) in a phase.

    Freeze the model first. Biases, and offsets and scales of normalizations, do not decay.
    """
    stage_of = stage_of_weights(model)
    plain = undecayed([model])
    stages, head = rates_of(model, phase)
    rules = []
    for variable in model.trainable_variables if variables is None else variables:
        stage = stage_of.get(id(variable))
        rate = head if stage is None else stages[stage]
        if stage is not None and phase.l2_sp:
            rules.append(WeightRule(rate, phase.l2_sp, anchored=True))
        else:
            rules.append(WeightRule(rate, 0.0 if id(variable) in plain else phase.weight_decay))
    return rules


def set_trainable(model: keras.Model, phase: Phase, seed) -> Frozen:
    """Freeze a model as a phase says, and add the phase's low-rank updates.

    `models.low_rank.merge` adds these to the weights at the end of the phase.

    Args:
        seed: whole numbers from which the updates' first factors are drawn.
    """
    frozen = frozen_stages(backbone_of(model), phase.freeze)
    layers = updated_by(model, phase, frozen)
    add_low_rank(layers, phase.lora_rank, phase.lora_alpha, seed)
    return freeze(model, phase.freeze, batch_norm=phase.batch_norm, train=phase.train)


def make_optimizer(
    model: keras.Model, phase: Phase, steps: int, variables: Sequence | None = None
) -> keras.optimizers.Optimizer:
    """Return the optimizer of a phase for the model's trainable weights.

    Args:
        model: from `build_model`, frozen as the phase says.
        steps: batches of the whole phase.
        variables: the weights that the optimizer will be given, if they are not
            `model.trainable_variables` in that order (a `training_model` has another order).

    Raises:
        InputError: unknown optimizer, or invalid options.
    """
    if phase.optimizer.lower() not in OPTIMIZERS:
        raise InputError(
            f"Phase '{phase.name}': unknown optimizer '{phase.optimizer}'. Choose one of "
            f"{', '.join(OPTIMIZERS)}."
        )
    options = dict(phase.optimizer_options)
    if phase.clip_norm:
        options["global_clipnorm"] = float(phase.clip_norm)
    if phase.accumulate > 1:
        options["gradient_accumulation_steps"] = phase.accumulate
    if phase.ema:
        # Keras averages after each batch, even if the weights change at every n-th only.
        options |= {"use_ema": True, "ema_momentum": phase.ema ** (1 / phase.accumulate)}
    try:
        # The rules decay; AdamW has a decay of its own by default.
        plain = OPTIMIZERS[phase.optimizer.lower()](
            learning_rate=rate_of(phase, steps), **{"weight_decay": 0.0, **options}
        )
    except (TypeError, ValueError) as error:
        raise InputError(
            f"Phase '{phase.name}': optimizer '{phase.optimizer}' does not take "
            f"{phase.optimizer_options}: {error}"
        ) from None
    rules = weight_rules(model, phase, variables)
    optimizer = per_weight(plain, rules, restarts=can_restart(phase))
    if model.dtype_policy.name == "mixed_float16":
        # Transfer takes some hundred steps, within which Keras's default scale would not rise.
        return keras.optimizers.LossScaleOptimizer(optimizer, dynamic_growth_steps=100)
    return optimizer


@dataclass(frozen=True)
class PlannedPhase:
    """A phase with its numbers worked out.

    Attributes:
        phase: the phase of the schedule.
        epochs: number of epochs; the last may be cut short (if the phase is given in steps).
        steps: batches of the whole phase.
        steps_per_epoch: batches of one pass over the training examples.
        batch_size, image_size: those of the phase, or else the trainer's and the model's.
        frozen: number of leading stages that are frozen.
        rates: multiplier of each stage, from the input upwards; 0 if it is frozen.
        head_rate: multiplier of the head.
        parameters: number of parameters that move, those of the head included.
        memory: estimate of the bytes that training needs, see `sizes.memory_of`.
    """

    phase: Phase
    epochs: int
    steps: int
    steps_per_epoch: int
    batch_size: int
    image_size: int | str
    frozen: int
    rates: tuple[float, ...]
    head_rate: float
    parameters: int
    memory: int

    def learning_rate(self, steps) -> np.ndarray:
        """Return the rate [N] at steps [N] of the phase, before multipliers."""
        rate, steps = rate_of(self.phase, self.steps), np.asarray(steps, "float32")
        if isinstance(rate, float):
            return np.full(steps.shape, rate, "float32")
        return ops.convert_to_numpy(rate(steps))

    def validated_epochs(self, first: int, every: int | None, steps: int) -> list[int]:
        """Return the numbers of the epochs that end with a validation; the last one always does.

        Args:
            first: number of the phase's first epoch, counted from 1 over all phases.
            every: epochs between two validations; None: as many as take as long as one.
            steps: batches of a validation.
        """
        if every is None:
            every = math.ceil(steps * FORWARD / self.steps_per_epoch)
        last = first + self.epochs - 1
        return sorted({*range(first, last + 1, max(1, every)), last})


@dataclass(frozen=True)
class Plan:
    """The phases of a schedule, one after the other, for one model and dataset.

    Attributes:
        schedule: the schedule.
        phases: its phases with their numbers worked out.
        stage_names: names of the backbone's stages, from the input upwards.
    """

    schedule: Schedule
    phases: tuple[PlannedPhase, ...]
    stage_names: tuple[str, ...]

    @property
    def epochs(self) -> int:
        return sum(planned.epochs for planned in self.phases)

    def table(self, seconds: Sequence[float | None] | None = None) -> str:
        """Return `phase_table` as text."""
        return self.phase_table(seconds).text()

    def phase_table(self, seconds: Sequence[float | None] | None = None) -> Table:
        """Return a row per phase: what is frozen, how long, what trains at which rates, and the rest.

        Args:
            seconds: duration of a step of each phase, where it is known.
        """
        rows = []
        for p, step in zip(self.phases, seconds or [None] * len(self.phases)):
            closed = p.phase.solver == "logistic"
            trained = [f"{p.phase.learning_rate * rate:.3g}" for rate in p.rates if rate] or ["-"]
            rows.append(
                (
                    p.phase.name,
                    f"{p.frozen} of {len(p.rates)}",
                    *(p.epochs, p.steps, p.image_size or "-", p.batch_size),
                    *(f"{p.parameters:,}", "-" if closed else format_bytes(p.memory)),
                    *([] if seconds is None else ["-" if step is None else f"{step:.3g} s"]),
                    "closed form" if closed else p.phase.shape,
                    "-" if closed else f"{p.phase.learning_rate * p.head_rate:.3g}",
                    *(trained[-1], trained[0]),
                    ", ".join(differences(p.phase, without=_COLUMNS)),
                )
            )
        header = ("phase", "frozen", "epochs", "steps", "px", "batch", "trains", "memory")
        header += () if seconds is None else ("a step",)
        aligned = "ll" + "r" * (len(header) - 2) + "lrrrl"
        header += ("shape", "rate: head", "last stage", "first", "more")
        return Table(header, rows, aligned)

    def draw(self, path) -> None:
        """Plot the rate of each stage over the epochs into a PNG file; gray means frozen."""
        from keras_transfer.schedules import drawing  # imports matplotlib

        drawing.save_plot(self, path)

    def draw_on(self, axes) -> None:
        """Draw the same plot on matplotlib's `axes`."""
        from keras_transfer.schedules import drawing

        drawing.draw_rates(self, axes)


_COLUMNS = ("rates", "lowest_rate", "batch_size", "image_size")


def make_plan(model: keras.Model, schedule: Schedule, examples: int, batch_size: int = 32) -> Plan:
    """Work out a schedule for a model from `build_model` and a number of training examples.

    Raises:
        InputError: a layer or stage that the backbone does not have, or an image size that it
            cannot take.
    """
    backbone = backbone_of(model)
    phases = []
    for phase in schedule.phases:
        frozen = frozen_stages(backbone, phase.freeze)
        rates, head_rate = rates_of(model, phase)
        batch = phase.batch_size or batch_size
        per_epoch = math.ceil(examples / batch)
        steps = phase.steps or (phase.epochs or 0) * per_epoch  # one of the two is given
        image_size = phase.image_size or size_of(model.input_shape)
        try:
            check_other_size(model, image_size)
        except InputError as error:
            raise InputError(f"Phase '{phase.name}': {error}") from None
        phases.append(
            PlannedPhase(
                phase=phase,
                epochs=phase.epochs or math.ceil(steps / per_epoch),
                steps=steps,
                steps_per_epoch=per_epoch,
                batch_size=batch,
                image_size=image_size,
                frozen=frozen,
                rates=tuple(0.0 if i < frozen else rate for i, rate in enumerate(rates)),
                head_rate=head_rate,
                parameters=moving_parameters(model, phase, frozen),
                memory=memory_of(model, phase, frozen, batch, image_size),
            )
        )
    return Plan(schedule, tuple(phases), tuple(stage.name for stage in backbone.stages))
