"""Default numbers of the recipes, and the phases that several of them share."""

import math

from keras_transfer.errors import InputError
from keras_transfer.schedules.phases import Phase

_BATCH = 32  # examples per step, as recipes do not know the batch size
HEAD_RATE = 3e-3  # of a head that is trained in steps
PARTIAL = 10.0  # times the rate of full fine-tuning, where few weights train
# Examples up to which fine-tunings are trained again on those of validation too. The share of the error that
# this removes does not depend on their number; the time does.
MOST_REFITTED = 5000
LAYER_DECAY = 0.7  # of a transformer's rate, from one stage to the one below it


def default_epochs(examples: int) -> int:
    """Return the default number of epochs: 400 / √examples, between 6 and 60.

    Ten times the examples get three times the steps: small data is seen often enough to learn from
    (50 examples: 57 epochs of 2 steps), and large data does not take all day.
    """
    return min(60, max(6, round(400 / math.sqrt(max(1, examples)))))


def default_head_epochs(examples: int, epochs: int) -> int:
    """Return the epochs of the head before the rest: about 1500 examples, at most 2/3 of `epochs`."""
    return max(1, min(round(1500 / max(1, examples)), 2 * epochs // 3))


def default_rate(steps: int, attention_stages: int = 0) -> float:
    """Return the default learning rate of pretrained layers for a training of that many steps.

    It is 5e-4 up to 250 steps, then falls with the square root of their number, to 1e-4. Adam moves
    each weight by about the rate in each step, much of it at random, so that the distance from the
    pretrained weights grows with the rate times the square root of the steps; too far, and the
    pretraining is forgotten (`scripts/first_steps.py`). Data unlike ImageNet's, such as scripts, may
    gain from a higher rate; on small photographs it ends below the closed form.

    A backbone with attention layers gets a fifth of it: 1e-4 to 2e-5, the rates with which BERT was
    fine-tuned (arXiv:1810.04805).
    """
    rate = max(1e-4, 5e-4 * min(1.0, math.sqrt(250 / max(1, steps))))
    return rate / 5 if attention_stages else rate


def default_average(steps: int) -> float:
    """Return the momentum of the weights' moving average: about the last fifth of the steps.

    Averaged weights are without most of the noise of single steps, so that accuracy drops less in the
    first epochs than that of the plain ones (`scripts/first_steps.py`).
    """
    return 1 - 1 / max(10, steps / 5)


def steps_of(examples, epochs):
    return epochs * math.ceil(max(1, examples) / _BATCH)


def head_phase(epochs, rate, **more):
    return Phase("head", "all", epochs, rate, **more)


def closed_head():
    return Phase("head", "all", 1, solver="logistic")


def whole(examples, epochs, rate, attention_stages=0, **more):
    steps = steps_of(examples, epochs)
    # The statistics of BatchNorm are not averaged, so they would not fit the averaged weights.
    average = 0.0 if more.get("batch_norm") == "train" else default_average(steps)
    # Without clipping, single batches threw runs far back at these rates.
    more = {"warmup": 0.2, "clip_norm": 1.0, "roll_back": True, "ema": average, **more}
    rate = default_rate(steps, attention_stages) if rate is None else rate
    return Phase(**{"name": "all", "epochs": epochs, "learning_rate": rate, **more})


def of_attention(stages):
    """Return the fields of a phase that trains all weights of a backbone with attention layers.

    The rate falls by 0.7 from each stage to the one below it, as for BEiT (arXiv:2106.08254, 0.65 to
    0.75), and weights decay as in BERT's fine-tuning (arXiv:1810.04805).
    """
    return {"lowest_rate": LAYER_DECAY**stages, "weight_decay": 1e-2} if stages else {}


def partial_phase(examples, epochs, rate, **more):
    """Return a phase that trains few weights, with a head that learns as in full fine-tuning."""
    return whole(examples, epochs, rate, **{"rates": {"head": 1 / PARTIAL}, **more})


def head_and_rest(recipe, examples, epochs, given, between=0, least=1):
    """Return the phase of the head, and the epochs of the last phases.

    Args:
        given: the arguments head_epochs, head_learning_rate and linear_head of the recipe.
        between: epochs of the phases in between.
        least: least number of epochs of the last phases.
    """
    head_epochs, head_rate, linear_head = given
    epochs = default_epochs(examples) if epochs is None else epochs
    closed = linear_head and head_epochs is None and head_rate is None
    if closed:
        head_epochs = 0  # it makes one pass, without a gradient step
    elif head_epochs is None:
        most = epochs - between
        head_epochs = max(1, min(default_head_epochs(examples, most), most - least))
    shortest = (0 if closed else max(1, head_epochs)) + between + least
    if head_epochs < (0 if closed else 1) or epochs < shortest:
        of_head = "" if closed else f" with {max(1, head_epochs)} for the head"
        raise InputError(
            f"{recipe} needs at least {shortest} epoch{'s' * (shortest > 1)}{of_head}, not {epochs}."
        )
    rest = epochs - head_epochs - between
    if closed:
        return closed_head(), rest
    return head_phase(head_epochs, HEAD_RATE if head_rate is None else head_rate), rest
