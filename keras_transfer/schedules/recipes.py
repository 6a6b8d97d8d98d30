"""Named schedules: recipes are functions of plain numbers, each of which can be set."""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.schedules.defaults import (
    HEAD_RATE,
    PARTIAL,
    closed_head,
    default_epochs,
    default_rate,
    head_and_rest,
    head_phase,
    of_attention,
    partial_phase,
    steps_of,
    whole,
)
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.utils.image_sizes import changed, sides

DEFAULT = "lp_ft"
AUTO = "auto"  # the advisor chooses
# Fields of the head's phase that also a closed form has. An override of another one, as of the
# fields that a closed form fixes in every phase, asks for gradient steps.
_CLOSED_FIELDS = ("augment", "batch_size", "class_weights", "image_size", "views")
_FIXED_FIELDS = ("epochs", "steps", "freeze")


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
        return Schedule("feature_extraction", (closed_head(),))
    epochs = default_epochs(examples) if epochs is None else epochs
    rate = HEAD_RATE if learning_rate is None else learning_rate
    more = {} if solver is None else {"solver": solver}
    return Schedule("feature_extraction", (head_phase(epochs, rate, **more),))


def fine_tune(
    examples: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    head_rate: float = 10.0,
    attention_stages: int = 0,
) -> Schedule:
    """Train everything from the first step, the new head at `head_rate` times the rate."""
    epochs = default_epochs(examples) if epochs is None else epochs
    if learning_rate is None:
        steps = steps_of(examples, epochs)
        learning_rate = 0.3 * default_rate(steps, attention_stages)  # behind a random head
    more = {"rates": {"head": head_rate}, "roll_back": False, "ema": 0.0}
    more |= of_attention(attention_stages)
    phase = whole(examples, epochs, learning_rate, **more)
    return Schedule("fine_tune", (phase,))


def lp_ft(
    examples: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    head_epochs: int | None = None,
    head_learning_rate: float | None = None,
    batch_norm: str = "frozen",
    linear_head: bool = True,
    attention_stages: int = 0,
) -> Schedule:
    """Train the head on frozen features, then every layer (LP-FT, arXiv:2202.10054).

    Training everything behind a random head would distort the features. A linear head is fitted in
    closed form, in seconds, and `epochs` is the length of what follows. If `head_epochs` or
    `head_learning_rate` is given, or the head is not linear, the head is trained in gradient steps:
    `epochs` is then the length of all phases together, of which the head gets `head_epochs`
    (default: `default_head_epochs`). The same holds for every recipe that starts with the head.
    """
    given = head_epochs, head_learning_rate, linear_head
    head, rest = head_and_rest("lp_ft", examples, epochs, given)
    more = {"batch_norm": batch_norm, **of_attention(attention_stages)}
    phase = whole(examples, rest, learning_rate, attention_stages, **more)
    return Schedule("lp_ft", (head, phase))


def freeze_k(
    examples: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    k: str | int | float = 0.5,
    head_epochs: int | None = None,
    head_learning_rate: float | None = None,
    linear_head: bool = True,
    attention_stages: int = 0,
) -> Schedule:
    """Freeze the first `k`; train the head, then head and remaining stages (arXiv:1411.1792).

    `k` is a share or a number of layers, a layer or a stage, see `models.stages.frozen_stages`.
    """
    given = head_epochs, head_learning_rate, linear_head
    head, rest = head_and_rest("freeze_k", examples, epochs, given)
    more = {"name": "top", "freeze": k, **of_attention(attention_stages)}
    phase = whole(examples, rest, learning_rate, attention_stages, **more)
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
    attention_stages: int = 0,
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
    head, rest = head_and_rest("gradual_unfreeze", examples, epochs, given, between=single)
    rate = learning_rate or default_rate(steps_of(examples, single + rest), attention_stages)
    more = of_attention(attention_stages)
    steps = [
        whole(
            *(examples, stage_epochs, rate),
            **{"name": f"top{n}", "freeze": f"top:{n}", "shape": "constant", **more},
        )
        for n in range(1, stages + 1)
    ]
    return Schedule("gradual_unfreeze", (head, *steps, whole(examples, rest, rate, **more)))


def discriminative(
    examples: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    lowest_rate: float = 0.05,
    head_epochs: int | None = None,
    head_learning_rate: float | None = None,
    linear_head: bool = True,
    attention_stages: int = 0,
) -> Schedule:
    """Train the head, then all at rates that decrease towards the input (layer-wise decay, ULMFiT).

    The first stage's rate is `lowest_rate` times that of the head.
    """
    given = head_epochs, head_learning_rate, linear_head
    head, rest = head_and_rest("discriminative", examples, epochs, given)
    rate = learning_rate or 2 * default_rate(steps_of(examples, rest), attention_stages)
    more = {**of_attention(attention_stages), "lowest_rate": lowest_rate}
    phase = whole(examples, rest, rate, **more)
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
    if updates < 1 or accumulate < 1:
        raise InputError(
            f"bit: steps and accumulate must be 1 or more, not {updates} and {accumulate}."
        )
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
    image_size: int | str = 224,
    smaller_by: int = 64,
    head_epochs: int | None = None,
    head_learning_rate: float | None = None,
    linear_head: bool = True,
    attention_stages: int = 0,
) -> Schedule:
    """Train on small images first, on the model's own size last (arXiv:2104.00298).

    The head and half of the rest train on images that are `smaller_by` pixels smaller, which takes
    about half the time at 224 px. The trainer passes the model's `image_size`.
    """
    if min(sides(image_size)) <= smaller_by:
        raise InputError(
            f"progressive_resize: images of {image_size} px cannot be {smaller_by} px smaller: lower "
            "smaller_by, or use larger images."
        )
    small = changed(image_size, -smaller_by)
    given = head_epochs, head_learning_rate, linear_head
    head, rest = head_and_rest("progressive_resize", examples, epochs, given, least=2)
    rate = learning_rate or default_rate(steps_of(examples, rest), attention_stages)
    more = of_attention(attention_stages)
    first = {"name": "small", "image_size": small, "shape": "constant", **more}
    phases = (
        replace(head, image_size=small),
        whole(examples, rest // 2, rate, **first),
        whole(examples, rest - rest // 2, rate, **{"name": "full", "warmup": 0.0, **more}),
    )
    return Schedule("progressive_resize", phases)


def lora(
    examples: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    rank: int = 8,
    alpha: float = 16.0,
    layers: str = "dense+conv",
    head_epochs: int | None = None,
    head_learning_rate: float | None = None,
    linear_head: bool = True,
    attention_stages: int = 0,
) -> Schedule:
    """Train the head, then low-rank updates of the weight matrices (LoRA, arXiv:2106.09685).

    The rate is ten times that of full fine-tuning, but for the head. `rank`, `alpha` and `layers` are
    the fields `lora_…` of `Phase`.
    """
    given = head_epochs, head_learning_rate, linear_head
    head, rest = head_and_rest("lora", examples, epochs, given)
    more = {"train": "lora", "lora_rank": rank, "lora_alpha": alpha, "lora_layers": layers}
    rate = learning_rate or PARTIAL * default_rate(steps_of(examples, rest), attention_stages)
    return Schedule("lora", (head, partial_phase(examples, rest, rate, name="lora", **more)))


def bit_fit(
    examples: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    norms: bool = False,
    head_epochs: int | None = None,
    head_learning_rate: float | None = None,
    linear_head: bool = True,
    attention_stages: int = 0,
) -> Schedule:
    """Train the head, then the biases of all layers (BitFit, arXiv:2106.10199).

    The rate is ten times that of full fine-tuning, but for the head. With `norms`, the scales of
    normalizations train too; their offsets are biases.
    """
    given = head_epochs, head_learning_rate, linear_head
    head, rest = head_and_rest("bit_fit", examples, epochs, given)
    rate = learning_rate or PARTIAL * default_rate(steps_of(examples, rest), attention_stages)
    train = "bias+norm" if norms else "bias"
    return Schedule(
        "bit_fit", (head, partial_phase(examples, rest, rate, name="bias", train=train))
    )


def from_scratch(
    examples: int = 1000, epochs: int | None = None, learning_rate: float = 1e-3
) -> Schedule:
    """Train everything from random weights, BatchNorm included: the baseline for transfer."""
    epochs = 2 * default_epochs(examples) if epochs is None else epochs
    phase = Phase("all", "none", epochs, learning_rate, batch_norm="train", weight_decay=1e-2)
    return Schedule("from_scratch", (phase,), pretrained=False)


# The table is open: `RECIPES["name"] = function` adds one for this process. Its arguments are plain
# numbers with defaults; `resolve_schedule` fills in `examples` and the properties of the model.
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
        lora,
        bit_fit,
        from_scratch,
    )
}


def resolve_schedule(
    schedule: "str | Path | Schedule",
    overrides: dict | None = None,
    *,
    examples: int | None = None,
    image_size: int | str | None = None,
    linear_head: bool | None = None,
    attention_stages: int | None = None,
    rate_scale: float = 1.0,
) -> Schedule:
    """Return a recipe by name, a YAML file or a schedule, with some of its numbers replaced.

    Args:
        schedule: a name of `RECIPES`, the path of a `.yaml` file, or a `Schedule`.
        overrides: `"PHASE.FIELD"` (or `"*.FIELD"`) → value for any field of `Phase`; a key without
            a dot is an argument of the recipe, e.g. `{"k": "stage:3", "all.ema": 0.99}`.
        examples: number of training examples, from which default numbers follow.
        image_size, linear_head: properties of the model.
        attention_stages: number of the backbone's stages if it has attention layers, else 0, see
            `sizes.attention_stages`. These four are passed to recipes that have such arguments.
        rate_scale: factor of the default learning rates, see `Modality.rate_scale`.

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
                f"set a field of a phase, such as {schedule.phases[-1].name}.epochs."
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
    if arguments.get("learning_rate") == 0:  # recipes would take it for the default
        raise InputError(f"{schedule}: learning_rate must be above 0, not 0.")
    if "pictures" in names:  # the name of `examples` in 0.1
        text = f"Recipe '{schedule}': rename its argument pictures to examples; it goes in 0.3."
        warnings.warn(text, DeprecationWarning, stacklevel=2)
    if _asks_for_steps(overrides):
        linear_head = False
    facts = {"examples": examples, "image_size": image_size, "linear_head": linear_head}
    facts |= {"pictures": examples, "attention_stages": attention_stages}
    known = {k: v for k, v in facts.items() if v is not None and k in names}
    arguments = {**known, **arguments}
    try:
        made = recipe(**arguments)
    except TypeError as error:
        raise InputError(f"Cannot make {schedule} with {arguments}: {error}.") from None
    if arguments.get("learning_rate") is None and "attention_stages" in names:
        made = _scaled(made, rate_scale)  # its default depends on the network
    return made.override(overrides)


def _scaled(schedule, scale):
    """Return a schedule with the rates of pretrained layers multiplied."""
    phases = tuple(
        phase
        if phase.freeze == "all"
        else replace(phase, learning_rate=scale * phase.learning_rate)
        for phase in schedule.phases
    )
    return replace(schedule, phases=phases)


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
