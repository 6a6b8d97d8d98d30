"""The learning rate of a phase over its steps, and its multiplier for each stage."""

import math
from collections.abc import Sequence

import keras
from keras import ops

from keras_transfer.errors import InputError
from keras_transfer.schedules.phases import Phase


@keras.saving.register_keras_serializable("keras_transfer")
class RateShape(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate over the steps of a phase: it rises, then falls.

    Args:
        learning_rate: the highest rate, > 0.
        steps: steps of the whole phase, ≥ 1.
        shape: `"cosine"` to 0 (SGDR, arXiv:1608.03983), `"one_cycle"` (up from 1/25, down to 1/10⁴
            of the rate, both in cosines; arXiv:1708.07120, without its momentum cycle), `"step"`,
            `"constant"`, or `"annealed"`: (1 + 10·share)^−0.75 (arXiv:1505.07818).
        warmup: share of the steps in which the rate rises, linearly except for `"one_cycle"`.
        drops: for `"step"`: shares of all steps after which the rate is multiplied by `drop_factor`.
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
        if shape not in _FALL:
            raise InputError(f"Unknown shape '{shape}'. Choose one of {', '.join(_FALL)}.")
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
        factor = _FALL[self.shape](self, fallen, step / self.steps)
        if rising:
            # The rate of the first step is not 0.
            risen = ops.clip((step + 1.0) / (rising + 1.0), 0.0, 1.0)
            if self.shape == "one_cycle":
                risen = 0.04 + 0.96 * _half_cosine(1.0 - risen)
            factor = ops.where(step < rising, risen, factor)
        return self.learning_rate * factor

    def get_config(self):
        names = ("learning_rate", "steps", "shape", "warmup", "drop_factor")
        return {**{name: getattr(self, name) for name in names}, "drops": list(self.drops)}


def _half_cosine(share):
    return 0.5 * (1.0 + ops.cos(math.pi * share))


def _steps_down(shape, fallen, share):
    passed = sum(ops.cast(share >= drop, "float32") for drop in shape.drops)
    return ops.power(shape.drop_factor, passed)


# After the rise: (shape, share of the fall, share of all steps) → factor of the highest rate.
_FALL = {
    "cosine": lambda shape, fallen, share: _half_cosine(fallen),
    "one_cycle": lambda shape, fallen, share: 1e-4 + (1 - 1e-4) * _half_cosine(fallen),
    "step": _steps_down,
    "constant": lambda shape, fallen, share: ops.ones_like(fallen),
    "annealed": lambda shape, fallen, share: ops.power(1.0 + 10.0 * share, -0.75),
}


def rate_of(phase: Phase, steps: int) -> "float | RateShape":
    """Return the learning rate of a phase with this many batches, before multipliers."""
    if phase.shape == "plateau":
        return float(phase.learning_rate)  # a Keras callback lowers it
    return RateShape(
        phase.learning_rate, steps, phase.shape, phase.warmup, phase.drops, phase.drop_factor
    )


def can_restart(phase: Phase) -> bool:
    """Return whether a phase may go back; a plateau lowers its rate itself."""
    return phase.roll_back and phase.shape != "plateau"


def stage_rates(phase: Phase, stages: int) -> tuple[list[float], float]:
    """Return (multiplier of each stage from the input upwards, multiplier of the head).

    Those of frozen stages have no effect.
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
