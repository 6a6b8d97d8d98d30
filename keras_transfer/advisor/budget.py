"""How long it may take, what a further training is expected to bring, and when it is not worth its time."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from keras_transfer.schedules.recipes import DEFAULT, default_epochs

HALF = 0.5  # of the layers, frozen by `freeze_k`
WORTH = 0.5  # points per minute below which training ends, without a limit of the minutes
WORTH_WITH_LIMIT = 0.05  # the same with a limit: the minutes are granted, but not for nothing
# Minutes that a first fine-tuning may take without being expected to be worth them, if no limit and no worth
# are given: as much as a coffee, to find out what is uncertain.
TRIED = 3.0
# Expected share of the remaining error that the first fine-tuning removes, if it is long enough, and
# the steps after which it has removed 63 % of that. A further one is expected to remove half of what
# the one before it has removed, or an eighth of the previous expectation if that is more.
PRIOR, STEPS, NEXT, LESS = 0.15, 100, 0.5, 1 / 8
# Error falls with the number of examples to the power of −LEARNING: on the tuning half of the accuracy
# bench, closed forms lost 11 % of theirs with a quarter more examples.
LEARNING = 0.5
# Time of a training step over that of the engine's forward pass: forward and backward are three
# passes, each twice as long as the engine's (`scripts/benchmark.py`).
_STEP, _CHECK = 6.0, 2.0
_SECONDS_PER_LAYER = 0.08  # until the first step
_RESERVE = 0.05  # share of the limit for validating and saving


class Clock:
    """The minutes that everything may take together.

    Args:
        minutes: the limit, or None.
        started: `time.perf_counter()` at the start.
    """

    def __init__(self, minutes: float | None = None, started: float | None = None):
        self.minutes = minutes
        self.started = time.perf_counter() if started is None else started

    @property
    def spent(self) -> float:
        """Minutes since the start."""
        return (time.perf_counter() - self.started) / 60

    @property
    def left(self) -> float:
        """Minutes until the limit; infinite without one."""
        return math.inf if self.minutes is None else self.minutes - self.spent

    def has(self, share: float) -> bool:
        """Return whether less than a share of the limit is spent."""
        return self.minutes is None or self.spent < share * self.minutes

    def callback(self):
        """Return a Keras callback that ends a training, as after its last epoch, just before the limit."""
        import keras

        clock = self

        class Limit(keras.callbacks.Callback):
            cut = False  # whether it has ended a training

            @property
            def time_is_over(self):  # a trainer then begins no further phase
                return clock.left <= _RESERVE * (clock.minutes or 0.0)

            def on_train_batch_end(self, batch, logs=None):
                if self.time_is_over:
                    self.cut = self.model.stop_training = True

        return Limit()


@dataclass(frozen=True)
class TimeLeft:
    """Whether there is time for more, while candidates are compared.

    Attributes:
        more: called before each further pass over the examples; False ends the comparison.
        fits: whether a network can be trained in time, from the seconds of its forward pass for one
            example and its number of layers. Until one can, smaller sizes are tried. None: all can.
    """

    more: Callable[[], bool] = lambda: True
    fits: Callable[[float, int], bool] | None = None


@dataclass(frozen=True)
class Pace:
    """How fast a network trains on this machine, estimated from its forward pass.

    Attributes:
        forward: seconds of the engine's forward pass for one example.
        layers: number of layers, on which the time to the first step depends.
        train, val: numbers of examples.
        factor: measured over estimated time of earlier trainings.
    """

    forward: float
    layers: int
    train: int
    val: int
    factor: float = 1.0

    @classmethod
    def of(cls, data, evidence, row=None) -> "Pace":
        """Return the pace of a candidate of some `Evidence` on an `ImageData`.

        Args:
            row: of the evidence; by default the best one, whose forward pass was timed. That of others
                is expected to take as much longer as it has more multiplications.
        """
        train, val = (len(data.examples.get(split, ())) for split in ("train", "val"))
        if row is None or row is evidence.rows[0]:
            return cls(evidence.forward, evidence.layers, train, val)
        return cls(evidence.forward * row.cost / evidence.rows[0].cost, row.layers, train, val)

    def minutes(self, epochs: float, share: float = 1.0) -> float:
        """Return the time of a training.

        Args:
            share: of the network that is trained.
        """
        epoch = self.forward * (self.train * _STEP * share + self.val * _CHECK)
        start = self.layers * _SECONDS_PER_LAYER * (0.3 + 0.7 * share)
        return self.factor * (start + epochs * epoch) / 60


def expected_share(gains: Sequence[float]) -> float:
    """Return the share of the remaining error that a further, long training is expected to remove.

    Args:
        gains: shares of the error that each training so far has removed; negative if it was worse.
    """
    prior = PRIOR * LESS ** len(gains)
    return max(prior, NEXT * gains[-1]) if gains else prior


def refit_points(error: float, train: int, val: int) -> float:
    """Return the points that training on the validation examples too is expected to add.

    Args:
        error: 1 − score of the model that was trained on the training examples alone.
        train, val: their numbers.
    """
    return 100 * max(0.0, error) * (1 - (train / (train + val)) ** LEARNING)


def lengths_up_to(epochs: int) -> list[int]:
    """Return numbers of epochs that may be trained, the longest first, each 2/3 of the one before."""
    found = [epochs]
    while found[-1] > 1:
        found.append(max(1, found[-1] * 2 // 3))
    return found


def longest(
    pace: Pace,
    error: float,
    gains: Sequence[float],
    worth: float,
    left: float,
    *,
    steps_per_epoch: int,
    lengths: Sequence[int],
    share: float = 1.0,
    behind: float = 0.0,
) -> tuple[int, float, float] | None:
    """Return (epochs, expected points, minutes) of the first length that fits and is worth its time, or None.

    Args:
        error: 1 − score of the closed form or model that is trained further.
        worth: points that a minute must bring.
        left: minutes that it may take.
        lengths: epochs to choose from, the preferred ones first.
        share: see `Pace.minutes`.
        behind: what its score lacks to that of the best model so far, in which the points are counted.
    """
    for epochs in lengths:
        minutes = pace.minutes(epochs, share)
        reached = 1 - math.exp(-epochs * steps_per_epoch / STEPS)
        points = 100 * (error * expected_share(gains) * reached - behind)
        if minutes <= left and points > worth * minutes:
            return epochs, points, minutes
    return None


def estimates(data, evidence) -> dict[str, float]:
    """Return strategy → estimated minutes on this machine, with the best candidate."""
    pace, epochs = Pace.of(data, evidence), default_epochs(len(data.examples["train"]))
    return {
        "feature_extraction": round(pace.minutes(0.5, 0.0), 2),
        "freeze_k": round(pace.minutes(epochs, 1 - HALF), 2),
        DEFAULT: round(pace.minutes(epochs), 2),
        "from_scratch": round(pace.minutes(2 * epochs), 2),
    }
