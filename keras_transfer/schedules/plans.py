"""What a schedule means for one model and one data set: the trainer runs it, people look at it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_transfer.errors import InputError
from keras_transfer.models.builders import check_other_size
from keras_transfer.models.stages import backbone_of, frozen_stages, stage_of_weights
from keras_transfer.schedules.phases import Phase, Schedule, differences
from keras_transfer.utils.files import write_file


@keras.saving.register_keras_serializable("keras_transfer")
class RateShape(keras.optimizers.schedules.LearningRateSchedule):
    """Rise, then fall: the learning rate over the steps of a phase.

    Args:
        learning_rate: the highest rate, > 0.
        steps: steps of the whole phase, ≥ 1.
        shape: `"cosine"` to 0 (SGDR, arXiv:1608.03983), `"one_cycle"` (up from 1/25, down to 1/10⁴
            of the rate, both in cosines; arXiv:1708.07120, without its momentum cycle), `"step"`,
            `"constant"`, or `"annealed"`: (1 + 10·share)^−0.75 (arXiv:1505.07818).
        warmup: share of the steps in which the rate rises, linearly but for `"one_cycle"`.
        drops: of `"step"`: shares of all steps after which the rate is multiplied by `drop_factor`.
    """

    def __init__(
        self,
        learning_rate: float,
        steps: int,
        shape: str = "cosine",
        warmup: float = 0.1,
        drops: Sequence[float] = (0.3, 0.6, 0.9),
        drop_factor: float = 0.1,
    ):
        if shape not in _AFTER:
            raise InputError(f"Unknown shape '{shape}': give one of {', '.join(_AFTER)}.")
        self.learning_rate = float(learning_rate)
        self.steps = int(steps)
        self.shape = shape
        self.warmup = float(warmup)
        self.drops = tuple(drops)
        self.drop_factor = float(drop_factor)

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rising = int(self.warmup * self.steps)
        fallen = ops.clip((step - rising) / max(1, self.steps - rising), 0.0, 1.0)
        factor = _AFTER[self.shape](self, fallen, step / self.steps)
        if rising:
            # The first step has a rate too.
            risen = ops.clip((step + 1.0) / (rising + 1.0), 0.0, 1.0)
            if self.shape == "one_cycle":
                risen = 0.04 + 0.96 * _half_cosine(1.0 - risen)
            factor = ops.where(step < rising, risen, factor)
        return self.learning_rate * factor

    def get_config(self):
        return {
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "shape": self.shape,
            "warmup": self.warmup,
            "drops": list(self.drops),
            "drop_factor": self.drop_factor,
        }


def _half_cosine(share):
    return 0.5 * (1.0 + ops.cos(math.pi * share))


def _steps_down(shape, fallen, share):
    passed = sum(ops.cast(share >= drop, "float32") for drop in shape.drops)
    return ops.power(shape.drop_factor, passed)


# After the rise: (shape, share of the fall, share of all steps) → factor of the highest rate.
_AFTER = {
    "cosine": lambda shape, fallen, share: _half_cosine(fallen),
    "one_cycle": lambda shape, fallen, share: 1e-4 + (1 - 1e-4) * _half_cosine(fallen),
    "step": _steps_down,
    "constant": lambda shape, fallen, share: ops.ones_like(fallen),
    "annealed": lambda shape, fallen, share: ops.power(1.0 + 10.0 * share, -0.75),
}


@dataclass(frozen=True)
class WeightRule:
    """How one weight is updated: the rate's multiplier, the decay, and where to it decays.

    Attributes:
        rate: multiplier of the learning rate, > 0.
        decay: share of the distance to the anchor that a rate of 1 removes in a step, ≥ 0.
        anchored: towards the weight's starting value rather than zero (L2-SP).
    """

    rate: float = 1.0
    decay: float = 0.0
    anchored: bool = False


class _PerWeight:
    """What `per_weight` adds to an optimizer class."""

    def __init__(self, *args, rules, **kwargs):
        super().__init__(*args, **kwargs)
        self.rules = _Rules(
            [rule if isinstance(rule, WeightRule) else WeightRule(**rule) for rule in rules]
        )

    def build(self, variables):
        if len(variables) != len(self.rules.rules):
            raise InputError(
                f"This optimizer was made for {len(self.rules.rules)} trainable weights, not "
                f"{len(variables)}: make a new one after each change of what trains."
            )
        super().build(variables)
        for index, (rule, variable) in enumerate(zip(self.rules.rules, variables)):
            if rule.anchored:
                anchor = self.add_variable_from_reference(variable, name="anchor")
                anchor.assign(ops.copy(variable))  # on JAX they would share a buffer
                self.rules.anchors[index] = anchor

    _summed = False  # this step's gradients are sums over all devices already

    def _clip_gradients(self, gradients):
        # Under tf.distribute Keras clips what each device has before it is summed: the whole may
        # then be as many times as long as there are devices.
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
        """In `update_step`, where the rate of the weight is known."""

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
        # The torch backend updates all weights of a class in one call, which knows no stages.
        for gradient, variable in zip(grads, variables):
            self.update_step(gradient, variable, learning_rate)

    def get_config(self):
        return {**super().get_config(), "rules": [vars(rule) for rule in self.rules.rules]}


class _Rules:
    """Rules and anchors, out of sight of Keras's tracking, which would count the anchors twice."""

    def __init__(self, rules):
        self.rules = rules
        self.anchors = {}


def _with_rules(cls):
    """The optimizer class that follows rules, made once for each class of Keras or of the user."""
    if cls not in _classes:
        made = type(f"PerWeight{cls.__name__}", (_PerWeight, cls), {"__module__": __name__})
        _classes[cls] = keras.saving.register_keras_serializable("keras_transfer")(made)
    return _classes[cls]


_classes: dict = {}
_WRAPPERS = (keras.optimizers.LossScaleOptimizer, keras.optimizers.MultiOptimizer)
OPTIMIZERS = {
    name.lower(): value
    for name, value in vars(keras.optimizers).items()
    if isinstance(value, type)
    and issubclass(value, keras.optimizers.Optimizer)
    and value not in (*_WRAPPERS, keras.optimizers.Optimizer)
}
for _cls in OPTIMIZERS.values():  # all at once, so that a saved model finds its class again
    _with_rules(_cls)


def per_weight(optimizer: keras.optimizers.Optimizer, rules: Sequence[WeightRule]):
    """The same optimizer with a rule for each trainable weight.

    Args:
        optimizer: any of `keras.optimizers` but wrappers, or the user's own; not built yet. Its
            clipping, averages, accumulation and schedule are kept.
        rules: in the order of `model.trainable_variables`.

    Returns:
        A `keras.optimizers.Optimizer` to compile with. It is saved and loaded with the model.

    Raises:
        InputError: a wrapper (wrap the result instead), or an optimizer that is built.
    """
    if isinstance(optimizer, _WRAPPERS):
        raise InputError(f"Give the optimizer inside of {type(optimizer).__name__}, and wrap that.")
    if optimizer.built:
        raise InputError("This optimizer has been used already: give a new one.")
    return _with_rules(type(optimizer)).from_config(
        {**optimizer.get_config(), "rules": [vars(rule) for rule in rules]}
    )


def anchor_at(optimizer: keras.optimizers.Optimizer, start: dict[int, object]) -> None:
    """Sets the anchors of a built optimizer: id(weight) → value [shape of the weight].

    Without it weights are anchored where they were when the optimizer was built.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    for index, anchor in inner.rules.anchors.items():
        value = start.get(id(inner._trainable_variables[index]))
        if value is not None:
            anchor.assign(value)


def stage_rates(phase: Phase, stages: int) -> tuple[list[float], float]:
    """(multiplier of each stage from the image upwards, multiplier of the head) of a phase.

    Frozen stages are not looked at: theirs have no effect.
    """
    unknown = [k for k in phase.rates if k.startswith("stage:") and not 0 < int(k[6:]) <= stages]
    if unknown:
        raise InputError(
            f"Phase '{phase.name}': rates has {unknown[0]}, but the backbone has {stages} stages."
        )
    named = [
        phase.rates.get(f"stage:{i + 1}", phase.rates.get("backbone", 1.0)) for i in range(stages)
    ]
    decayed = [m * phase.lowest_rate ** ((stages - i) / stages) for i, m in enumerate(named)]
    return decayed, phase.rates.get("head", 1.0)


def weight_rules(
    model: keras.Model, phase: Phase, variables: Sequence | None = None
) -> list[WeightRule]:
    """The rule of each of `variables` (`model.trainable_variables`) in a phase; freeze it first.

    Vectors (biases, offsets and scales of normalisations) are spared by the decay.
    """
    stage_of = stage_of_weights(model)
    stages, head = stage_rates(phase, len(backbone_of(model).stages))
    rules = []
    for variable in model.trainable_variables if variables is None else variables:
        stage = stage_of.get(id(variable))
        rate = head if stage is None else stages[stage]
        if stage is not None and phase.l2_sp:
            rules.append(WeightRule(rate, phase.l2_sp, anchored=True))
        else:
            rules.append(WeightRule(rate, phase.weight_decay if len(variable.shape) > 1 else 0.0))
    return rules


def rate_of(phase: Phase, steps: int) -> "float | RateShape":
    """The learning rate of a phase of so many batches, before multipliers."""
    if phase.shape == "plateau":
        return float(phase.learning_rate)  # which a callback of Keras lowers
    return RateShape(
        phase.learning_rate, steps, phase.shape, phase.warmup, phase.drops, phase.drop_factor
    )


def make_optimizer(
    model: keras.Model, phase: Phase, steps: int, variables: Sequence | None = None
) -> keras.optimizers.Optimizer:
    """The optimizer of a phase for what trains in the model now.

    Args:
        model: from `build_model`, frozen as the phase says.
        steps: batches of the whole phase.
        variables: what the optimizer will be given, where that is not `model.trainable_variables`
            in its order (a `training_model` has the same ones in another).

    Raises:
        InputError: no such optimizer, or one without such options.
    """
    if phase.optimizer.lower() not in OPTIMIZERS:
        raise InputError(
            f"Phase '{phase.name}': no optimizer '{phase.optimizer}' in Keras: give one of "
            f"{', '.join(OPTIMIZERS)}."
        )
    options = dict(phase.optimizer_options)
    if phase.clip_norm:
        options["global_clipnorm"] = float(phase.clip_norm)
    if phase.accumulate > 1:
        options["gradient_accumulation_steps"] = phase.accumulate
    if phase.ema:
        # Keras averages after each batch, also where the weights move at each n-th only.
        options |= {"use_ema": True, "ema_momentum": phase.ema ** (1 / phase.accumulate)}
    try:
        # Decay is in the rules; AdamW has one of its own by default.
        plain = OPTIMIZERS[phase.optimizer.lower()](
            learning_rate=rate_of(phase, steps), **{"weight_decay": 0.0, **options}
        )
    except (TypeError, ValueError) as error:
        raise InputError(
            f"Phase '{phase.name}': optimizer '{phase.optimizer}' does not take "
            f"{phase.optimizer_options}: {error}"
        ) from None
    optimizer = per_weight(plain, weight_rules(model, phase, variables))
    if model.dtype_policy.name == "mixed_float16":
        # Transfer is done after some hundred steps: Keras's scale would not rise within them.
        return keras.optimizers.LossScaleOptimizer(optimizer, dynamic_growth_steps=100)
    return optimizer


FORWARD = 1 / 3  # of a training step: one of its three passes, the others go back


@dataclass(frozen=True)
class PlannedPhase:
    """A phase with its numbers worked out.

    Attributes:
        phase: what the schedule says.
        epochs: epochs, the last of which may be cut short (where the phase is given in steps).
        steps: batches of the whole phase.
        steps_per_epoch: batches of one pass over the training images.
        batch_size, image_size: of the phase, or the trainer's and the model's.
        frozen: number of leading stages that are frozen.
        rates: multiplier of each stage, from the image upwards; 0 where it is frozen.
        head_rate: multiplier of the head.
    """

    phase: Phase
    epochs: int
    steps: int
    steps_per_epoch: int
    batch_size: int
    image_size: int
    frozen: int
    rates: tuple[float, ...]
    head_rate: float

    def learning_rate(self, steps) -> np.ndarray:
        """The rate [N] at steps [N] of the phase, before multipliers."""
        rate, steps = rate_of(self.phase, self.steps), np.asarray(steps, "float32")
        if isinstance(rate, float):
            return np.full(steps.shape, rate, "float32")
        return keras.ops.convert_to_numpy(rate(steps))


@dataclass(frozen=True)
class Plan:
    """The phases of a schedule, one after the other, for one model and one data set.

    Attributes:
        schedule: that this is the plan of.
        phases: with their numbers worked out.
        stage_names: of the backbone, from the image upwards.
    """

    schedule: Schedule
    phases: tuple[PlannedPhase, ...]
    stage_names: tuple[str, ...]

    @property
    def epochs(self) -> int:
        return sum(planned.epochs for planned in self.phases)

    def table(self) -> str:
        """A line a phase: what is frozen, how long, at which rates, and what else differs."""
        lines = [
            f"{'phase':<12}{'frozen':<12}{'epochs':>6}{'steps':>8}{'px':>6}{'batch':>7}  "
            f"{'shape':<10}{'rate: head':>11}{'last stage':>11}{'first':>10}  more"
        ]
        for p in self.phases:
            # From the image upwards; of the rates only those of stages that train.
            trained = [f"{p.phase.learning_rate * rate:.3g}" for rate in p.rates if rate] or ["-"]
            closed = p.phase.solver == "logistic"
            head = "-" if closed else f"{p.phase.learning_rate * p.head_rate:.3g}"
            shape = "closed" if closed else p.phase.shape
            frozen = f"{p.frozen} of {len(p.rates)}"
            lines.append(
                f"{p.phase.name:<12}{frozen:<12}{p.epochs:>6}{p.steps:>8}{p.image_size:>6}"
                f"{p.batch_size:>7}  {shape:<10}{head:>11}"
                f"{trained[-1]:>11}{trained[0]:>10}  {_more(p.phase)}"
            )
        return "\n".join(lines)

    def draw(self, path) -> None:
        """Draws the rate of each stage over the epochs into a PNG file; grey is frozen."""
        from matplotlib.figure import Figure  # no pyplot: it would look for a screen

        figure = Figure(figsize=(8, self.height), layout="constrained")
        self.draw_on(figure.add_subplot())
        write_file(Path(path), lambda temporary: figure.savefig(temporary, dpi=120))

    @property
    def height(self) -> float:
        """Of the drawing, in inches, where it is 8 wide."""
        return 2.2 + 0.16 * min(len(self.stage_names) + 1, 60)

    def draw_on(self, axes) -> None:
        """Draws the same into matplotlib's `axes`, with a bar of colours beside them."""
        from matplotlib import colormaps
        from matplotlib.colors import LogNorm

        rows = len(self.stage_names) + 1
        epochs, rates, marks = [0.0], [], [0.0]
        for p in self.phases:
            steps = np.unique(np.linspace(0, p.steps - 1, min(p.steps, 200)).astype(int))
            closed = p.phase.solver == "logistic"  # no rate at all
            multipliers = np.array([*p.rates, 0.0 if closed else p.head_rate])
            rates.append(multipliers[:, None] * p.learning_rate(steps))
            ends = np.append(steps[1:], p.steps) / p.steps_per_epoch
            epochs.extend(marks[-1] + ends)
            marks.append(marks[-1] + p.steps / p.steps_per_epoch)
        rates = np.concatenate(rates, axis=1)
        highest = rates.max() or 1.0
        shown = np.ma.masked_equal(rates, 0)
        colours = colormaps["viridis"].with_extremes(bad="#b9b9b9")
        norm = LogNorm(highest * 1e-3, highest)
        mesh = axes.pcolormesh(
            np.array(epochs), np.arange(rows + 1), shown, norm=norm, cmap=colours, rasterized=True
        )
        for mark, p in zip(marks, self.phases):
            axes.axvline(mark, color="white", linewidth=1.5)
            closed = " (closed form)" if p.phase.solver == "logistic" else ""
            name = f" {p.phase.name}{closed}"
            axes.text(mark, rows, name, va="bottom", fontsize=9, parse_math=False)
        every = math.ceil(rows / 20)
        ticks = [*range(0, rows - 1, every), rows - 1]
        axes.set_yticks([t + 0.5 for t in ticks])
        axes.set_yticklabels(
            ["head" if t == rows - 1 else f"stage {t + 1}" for t in ticks], fontsize=7
        )
        axes.set(xlabel="epoch")
        title = f"{self.schedule.name}: learning rate by stage (grey: frozen)"
        axes.set_title(title, pad=18, parse_math=False)
        axes.figure.colorbar(mesh, ax=axes, label="learning rate")


def _more(phase):
    return ", ".join(
        differences(phase, without=("rates", "lowest_rate", "batch_size", "image_size"))
    )


def make_plan(model: keras.Model, schedule: Schedule, images: int, batch_size: int = 32) -> Plan:
    """Works out a schedule for a model of `build_model` and a number of training images.

    Raises:
        InputError: a layer or stage that the backbone does not have, or an image size that it
            cannot take.
    """
    backbone = backbone_of(model)
    stages = len(backbone.stages)
    size = model.input_shape[1]
    phases = []
    for phase in schedule.phases:
        frozen = frozen_stages(backbone, phase.freeze)
        rates, head_rate = stage_rates(phase, stages)
        batch = phase.batch_size or batch_size
        per_epoch = math.ceil(images / batch)
        steps = phase.steps or (phase.epochs or 0) * per_epoch  # one of them is given
        image_size = phase.image_size or size
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
            )
        )
    return Plan(schedule, tuple(phases), tuple(stage.name for stage in backbone.stages))
