"""When a phase goes back to the best weights: the rule, and the state of the optimizer after it."""

import math

SLOWER = 1 / 3  # factor of the learning rate after going back
LOW_EPOCHS = 2  # validated epochs in a row
_ERRORS = 2  # standard errors: chance alone exceeds this in one of 44 comparisons


def fell(now: dict, best: dict, ranked_by: str | None, examples: int) -> bool:
    """Return whether a validation is far below the best one: by more than two standard errors.

    The error is that of a difference between two independent samples. Both validations see the same
    examples, so the true error is smaller, and the rule errs on the side of training on.

    - A metric that averages values between 0 and 1, such as the accuracy p, has at most the variance
      p·(1−p)/N.
    - For the loss, the rule takes that of squares of normal errors: 2·loss²/N.

    A dip at the peak of the learning rate is ordinary, and most runs recover from it, so a phase goes
    back only after `LOW_EPOCHS` such validations in a row: then it has lost what it started from.

    Args:
        now, best: metric → value.
        ranked_by: the metric whose highest value is best; None compares the losses.
        examples: number of validation examples N, ≥ 1; of those in groups, such as one speaker's, the
            number of groups, because a network that hears one speaker less well may hear others better.
    """
    if ranked_by is None:
        drop = now["loss"] - best["loss"]
        error = math.hypot(now["loss"], best["loss"]) * math.sqrt(2 / examples)
    else:
        values = best[ranked_by], now[ranked_by]
        drop = values[0] - values[1]
        error = math.sqrt(sum(max(0.0, p * (1 - p)) for p in values) / examples)
    return drop > _ERRORS * error


def restart_of(rollbacks: list[dict], first: int, epochs: int) -> tuple[float, float]:
    """Return (speed of the schedule, factor of the rate) in a phase after its rollbacks.

    The rest of the phase is trained like a phase of its own, with a warm-up, a decay and a fresh
    optimizer: moments of the gradients on the way down do not fit the weights it goes back to, and
    without them the first steps need the warm-up again.

    Args:
        rollbacks: entries of the phase in `metrics.json`.
        first: number of finished epochs before the phase.
        epochs: planned epochs of the phase.
    """
    if not rollbacks:
        return 1.0, 1.0
    return epochs / (epochs - (rollbacks[-1]["epoch"] - first)), SLOWER ** len(rollbacks)
