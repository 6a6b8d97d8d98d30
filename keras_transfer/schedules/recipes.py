"""Named schedules: recipes are functions of plain numbers, each of which can be set."""

import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.utils.names import require_image_size

DEFAULT = "lp_ft"
AUTO = "auto"  # the advisor chooses
_BATCH = 32  # examples per step, as recipes do not know the batch size
_HEAD_RATE = 3e-3  # of a head that is trained in steps
# Fields of the head's phase that also a closed form has. An override of another one, as of the
# fields that a closed form fixes in every phase, asks for gradient steps.
_CLOSED_FIELDS = ("augment", "batch_size", "class_weights", "image_size", "views")
_FIXED_FIELDS = ("epochs", "steps", "freeze")


def default_epochs(examples: int) -> int:
    """Return the default number of epochs: 400 / √examples, between 6 and 60.

    Ten times the examples get three times the steps: small data is seen often enough to learn from
    (50 examples: 57 epochs of 2 steps), and large data does not take all day.
    """
    return min(60, max(6, round(400 / math.sqrt(max(1, examples)))))


def default_head_epochs(examples: int, epochs: int) -> int:
    """Return the epochs of the head before the rest: about 1500 examples, at most 2/3 of `epochs`."""
    return max(1, min(round(1500 / max(1, examples)), 2 * epochs // 3))


def default_rate(steps: int) -> float:
    """Return the default learning rate of pretrained layers for a training of that many steps.

    It is 5e-4 up to 250 steps, then falls with the square root of their number, to 1e-4. Adam moves
    each weight by about the rate in each step, much of it at random, so that the distance from the
    pretrained weights grows with the rate times the square root of the steps; too far, and the
    pretraining is forgotten (`scripts/first_steps.py`). Data unlike ImageNet's, such as scripts, may
    gain from a higher rate; on small photographs it ends below the closed form.
    """
    return max(1e-4, 5e-4 * min(1.0, math.sqrt(250 / max(1, steps))))


def default_average(steps: int) -> float:
    """Return the momentum of the weights' moving average: about the last fifth of the steps.

    Averaged weights are without most of the noise of single steps, so that accuracy drops less in the
    first epochs than that of the plain ones (`scripts/first_steps.py`).
    """
    return 1 - 1 / max(10, steps / 5)


def _steps(examples, epochs):
    return epochs * math.ceil(max(1, examples) / _BATCH)


def feature_extraction(
    examples: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    solver: str | None = None,
    linear_head: bool = True,
) -> Schedule:
    """Train only the new head; the backbone stays as it is.

    The head is fitted in closed form (`solver="logistic"`) if it is linear and neither epochs nor a
    rate is given, otherwise by gradient steps. The trainer passes `linear_head` of the model.
    """
    if solver is None:
        closed = linear_head and epochs is None and learning_rate is None
    else:
        closed = solver == "logistic"
    if closed:
        return Schedule("feature_extraction", (_closed_head(),))
    epochs = default_epochs(examples) if epochs is None else epochs
    rate = _HEAD_RATE if learning_rate is None else learning_rate
    more = {} if solver is None else {"solver": solver}
    return Schedule("feature_extraction", (_head(epochs, rate, **more),))


def fine_tune(
    examples: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    head_rate: float = 10.0,
) -> Schedule:
    """Train everything from the first step, the new head at `head_rate` times the rate."""
    epochs = default_epochs(examples) if epochs is None else epochs
    if learning_rate is None:
        learning_rate = 0.3 * default_rate(_steps(examples, epochs))  # behind a random head
    more = {"rates": {"head": head_rate}, "roll_back": False, "ema": 0.0}
    phase = _all(examples, epochs, learning_rate, **more)
    return Schedule("fine_tune", (phase,))


def lp_ft(
    examples: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    head_epochs: int | None = None,
    head_learning_rate: float | None = None,
    batch_norm: str = "frozen",
    linear_head: bool = True,
) -> Schedule:
    """Train the head on frozen features, then every layer (LP-FT, arXiv:2202.10054).

    Training everything behind a random head would distort the features. A linear head is fitted in
    closed form, in seconds, and `epochs` is the length of what follows. If `head_epochs` or
    `head_learning_rate` is given, or the head is not linear, the head is trained in gradient steps:
    `epochs` is then the length of all phases together, of which the head gets `head_epochs`
    (default: `default_head_epochs`). The same holds for every recipe that starts with the head.
    """
    given = head_epochs, head_learning_rate, linear_head
    head, rest = _head_and_rest("lp_ft", examples, epochs, given)
    phase = _all(examples, rest, learning_rate, batch_norm=batch_norm)
    return Schedule("lp_ft", (head, phase))


def freeze_k(
    examples: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    k: str | int | float = 0.5,
    head_epochs: int | None = None,
    head_learning_rate: float | None = None,
    linear_head: bool = True,
) -> Schedule:
    """Freeze the first `k`; train the head, then head and remaining stages (arXiv:1411.1792).

    `k` is a share or a number of layers, a layer or a stage, see `models.stages.frozen_stages`.
    """
    given = head_epochs, head_learning_rate, linear_head
    head, rest = _head_and_rest("freeze_k", examples, epochs, given)
    phase = _all(examples, rest, learning_rate, "top", k)
    return Schedule("freeze_k", (head, phase))


def gradual_unfreeze(
    examples: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    stages: int = 3,
    stage_epochs: int = 1,
    head_epochs: int | None = None,
    head_learning_rate: float | None = None,
    linear_head: bool = True,
) -> Schedule:
    """Train the head, then one more stage at a time from the top, then all (arXiv:1801.06146).

    `stages` of them are unfrozen one by one, for `stage_epochs` each; the stages below follow
    together, because each phase costs a compilation.
    """
    if stages < 1 or stage_epochs < 1:
        raise InputError(
            f"gradual_unfreeze needs at least one stage of one epoch, not {stages} of {stage_epochs}."
        )
    single = stages * stage_epochs
    given = head_epochs, head_learning_rate, linear_head
    head, rest = _head_and_rest("gradual_unfreeze", examples, epochs, given, between=single)
    rate = learning_rate or default_rate(_steps(examples, single + rest))
    steps = [
        _all(examples, stage_epochs, rate, f"top{n}", f"top:{n}", shape="constant")
        for n in range(1, stages + 1)
    ]
    return Schedule("gradual_unfreeze", (head, *steps, _all(examples, rest, rate)))


def discriminative(
    examples: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    lowest_rate: float = 0.05,
    head_epochs: int | None = None,
    head_learning_rate: float | None = None,
    linear_head: bool = True,
) -> Schedule:
    """Train the head, then all at rates that decrease towards the input (layer-wise decay, ULMFiT).

    The first stage's rate is `lowest_rate` times that of the head.
    """
    given = head_epochs, head_learning_rate, linear_head
    head, rest = _head_and_rest("discriminative", examples, epochs, given)
    rate = learning_rate or 2 * default_rate(_steps(examples, rest))
    phase = _all(examples, rest, rate, lowest_rate=lowest_rate)
    return Schedule("discriminative", (head, phase))


def bit(
    examples: int = 1000,
    steps: int | None = None,
    learning_rate: float = 3e-3,
    batch_size: int = 512,
    accumulate: int = 16,
    momentum: float = 0.9,
) -> Schedule:
    """Train everything from a head of zeros with plain SGD: the BiT-HyperRule (arXiv:1912.11370).

    500 updates below 20,000 examples, 10,000 below 500,000, otherwise 20,000; warm-up of 100 (then
    500) updates; the rate falls tenfold at 30, 60 and 90 %; no weight decay. A batch of 512 is
    accumulated from `accumulate` smaller ones. The rule's image sizes (448 → 384) and MixUp are not
    included: the size is the model's.
    """
    updates, warmup = _bit_length(examples)
    updates = updates if steps is None else steps
    if batch_size % accumulate:
        raise InputError(
            f"bit: batch_size {batch_size} must be divisible by accumulate {accumulate}."
        )
    phase = Phase(
        "all",
        "none",
        steps=updates * accumulate,
        learning_rate=learning_rate,
        shape="step",
        warmup=min(0.25, warmup / updates),
        optimizer="sgd",
        optimizer_options={"momentum": momentum},
        weight_decay=0.0,
        batch_size=batch_size // accumulate,
        accumulate=accumulate,
        dropout=0.0,
    )
    return Schedule("bit", (phase,), zero_head=True)


def _bit_length(examples):
    if examples < 20_000:
        return 500, 100
    return (10_000, 500) if examples < 500_000 else (20_000, 500)


def progressive_resize(
    examples: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    image_size: int = 224,
    smaller_by: int = 64,
    head_epochs: int | None = None,
    head_learning_rate: float | None = None,
    linear_head: bool = True,
) -> Schedule:
    """Train on small images first, on the model's own size last (arXiv:2104.00298).

    The head and half of the rest train on images that are `smaller_by` pixels smaller, which takes
    about half the time at 224 px. The trainer passes the model's `image_size`.
    """
    require_image_size(image_size)
    small = image_size - smaller_by
    given = head_epochs, head_learning_rate, linear_head
    head, rest = _head_and_rest("progressive_resize", examples, epochs, given, least=2)
    rate = learning_rate or default_rate(_steps(examples, rest))
    phases = (
        replace(head, image_size=small),
        _all(examples, rest // 2, rate, "small", image_size=small, shape="constant"),
        _all(examples, rest - rest // 2, rate, "full", warmup=0.0),
    )
    return Schedule("progressive_resize", phases)


def from_scratch(
    examples: int = 1000, epochs: int | None = None, learning_rate: float = 1e-3
) -> Schedule:
    """Train everything from random weights, BatchNorm included: the baseline for transfer."""
    epochs = 2 * default_epochs(examples) if epochs is None else epochs
    phase = Phase("all", "none", epochs, learning_rate, batch_norm="train", weight_decay=1e-2)
    return Schedule("from_scratch", (phase,), pretrained=False)


def _head(epochs, rate, **more):
    return Phase("head", "all", epochs, rate, **more)


def _closed_head():
    return Phase("head", "all", 1, solver="logistic")


def _all(examples, epochs, rate, name="all", freeze="none", **more):
    steps = _steps(examples, epochs)
    # The statistics of BatchNorm are not averaged, so they would not fit the averaged weights.
    average = 0.0 if more.get("batch_norm") == "train" else default_average(steps)
    # Without clipping, single batches threw runs far back at these rates.
    more = {"warmup": 0.2, "clip_norm": 1.0, "roll_back": True, "ema": average, **more}
    return Phase(name, freeze, epochs, default_rate(steps) if rate is None else rate, **more)


def _head_and_rest(recipe, examples, epochs, given, between=0, least=1):
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
        return _closed_head(), rest
    return _head(head_epochs, _HEAD_RATE if head_rate is None else head_rate), rest


# The table is open: `RECIPES["name"] = function` adds one for this process. Its arguments are plain
# numbers with defaults; `resolve_schedule` fills in `examples`, `image_size` and `linear_head`.
RECIPES: dict[str, Callable[..., Schedule]] = {
    recipe.__name__: recipe
    for recipe in (
        feature_extraction,
        fine_tune,
        freeze_k,
        gradual_unfreeze,
        lp_ft,
        discriminative,
        bit,
        progressive_resize,
        from_scratch,
    )
}


def resolve_schedule(
    schedule: "str | Path | Schedule",
    overrides: dict | None = None,
    *,
    examples: int | None = None,
    image_size: int | None = None,
    linear_head: bool | None = None,
) -> Schedule:
    """Return a recipe by name, a YAML file or a schedule, with some of its numbers replaced.

    Args:
        schedule: a name of `RECIPES`, the path of a `.yaml` file, or a `Schedule`.
        overrides: `"PHASE.FIELD"` (or `"*.FIELD"`) → value for any field of `Phase`; a key without
            a dot is an argument of the recipe, e.g. `{"k": "stage:3", "all.ema": 0.99}`.
        examples: number of training examples, from which default numbers follow.
        image_size, linear_head: properties of the model. These three are passed to recipes that have
            such arguments.

    Raises:
        InputError: unknown recipe, file, argument, phase or field, or a value out of its range.
    """
    overrides = dict(overrides or {})
    arguments = {key: overrides.pop(key) for key in list(overrides) if "." not in key}
    if not isinstance(schedule, Schedule) and Path(schedule).suffix in (".yaml", ".yml"):
        schedule = Schedule.from_yaml(schedule)
    if isinstance(schedule, Schedule):
        if arguments:
            raise InputError(
                f"Cannot set {', '.join(arguments)}: '{schedule.name}' is a schedule, not a recipe; "
                "set PHASE.FIELD."
            )
        return schedule.override(overrides)
    if schedule not in RECIPES:
        raise InputError(
            f"Unknown strategy '{schedule}'. Choose one of {', '.join(RECIPES)}, or a .yaml file."
        )
    recipe = RECIPES[schedule]
    names = tuple(inspect.signature(recipe).parameters)
    unknown = [key for key in arguments if key not in names]
    if unknown:
        raise InputError(
            f"Cannot set {', '.join(unknown)}: {schedule} has the arguments {', '.join(names)}; set "
            "fields of a phase as PHASE.FIELD."
        )
    if "pictures" in names:  # the name of `examples` in 0.1
        text = f"Recipe '{schedule}': rename its argument pictures to examples; it goes in 0.3."
        warnings.warn(text, DeprecationWarning, stacklevel=2)
    if _asks_for_steps(overrides):
        linear_head = False
    facts = {"examples": examples, "image_size": image_size, "linear_head": linear_head}
    facts["pictures"] = examples
    known = {k: v for k, v in facts.items() if v is not None and k in names}
    arguments = {**known, **arguments}
    try:
        return recipe(**arguments).override(overrides)
    except TypeError as error:
        raise InputError(f"Cannot make {schedule} with {arguments}: {error}.") from None


def _asks_for_steps(overrides):
    """Return whether overrides set something of the head that a closed form does not have."""
    for key, value in overrides.items():
        where, _, field = key.rpartition(".")
        if field == "solver" and where in ("head", "*"):
            return value != "logistic"
        if where == "head" and field not in _CLOSED_FIELDS:
            return True
        if where == "*" and field in _FIXED_FIELDS:
            return True
    return False
