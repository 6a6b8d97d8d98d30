"""What a schedule becomes on several devices: a larger batch, and rates that go with it.

Each device keeps the batch size that was asked for, so that a step takes as long as on one; a step
then sees k times as many images, and an epoch has a k-th of the steps. The rate follows the
linear rule for SGD (arXiv:1706.02677), the square root rule for optimizers that divide by the
gradient's size (arXiv:2205.10287). Epochs, warm-up (a share of the steps) and multipliers stay.
"""

import dataclasses
import math

from keras_transfer.schedules.phases import Phase, Schedule

SCALINGS = ("auto", "none")
_LINEAR = ("sgd",)


def scaled(schedule: Schedule, devices: int, batch_size: int) -> Schedule:
    """The schedule for so many times the batch.

    Args:
        devices: k; 1 changes nothing.
        batch_size: of one device, where the phase says nothing.
    """
    if devices == 1:
        return schedule
    phases = tuple(_scaled(phase, devices, batch_size) for phase in schedule.phases)
    return dataclasses.replace(schedule, phases=phases)


def rate_factor(optimizer: str, devices: int) -> float:
    """By what the rate grows."""
    return float(devices) if optimizer.lower() in _LINEAR else math.sqrt(devices)


def _scaled(phase: Phase, devices, batch_size):
    if phase.solver == "logistic":
        return phase  # no steps, no rate
    changes = {
        "batch_size": (phase.batch_size or batch_size) * devices,
        "learning_rate": phase.learning_rate * rate_factor(phase.optimizer, devices),
    }
    if phase.steps:
        changes["steps"] = -(-phase.steps // devices)
    if phase.ema:
        changes["ema"] = phase.ema**devices  # the average spans as many images as before
    return dataclasses.replace(phase, **changes)
