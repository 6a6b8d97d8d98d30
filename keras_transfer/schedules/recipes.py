"""Named schedules. Each is a function of plain numbers, every one of which can be given."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.schedules.phases import Phase, Schedule

DEFAULT = "lp_ft"
AUTO = "auto"  # the advisor's choice, see `auto`


def default_epochs(images: int) -> int:
    """Epochs where nobody gave a number: 400 / √images, from 6 to 60.

    Ten times the images get three times the steps: small data is seen often enough to learn from
    (50 images: 57 epochs of 2 steps), and large data does not take all day.
    """
    return min(60, max(6, round(400 / math.sqrt(max(1, images)))))


def default_head_epochs(images: int, epochs: int) -> int:
    """Epochs of the head before the rest: about 1500 images seen, at most two thirds of all."""
    return max(1, min(round(1500 / max(1, images)), 2 * epochs // 3))


def default_rate(images: int) -> float:
    """Highest rate for pretrained layers where nobody gave a number: 3e-4 up to 500 images, then
    in proportion, up to 1e-3.

    A compromise for those who know nothing of the images: on few that look like ImageNet's, less
    destroys less; on few that do not, 1e-3 is better by points (`scripts/regret.py`), which is what
    the advisor looks at.
    """
    return 3e-4 * min(10 / 3, max(1.0, images / 500))


def feature_extraction(
    images: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    solver: str | None = None,
    linear_head: bool = True,
) -> Schedule:
    """The backbone stays as it is; only the new head learns.

    In closed form (`solver="logistic"`) where the head is linear and neither epochs nor a rate is
    given, else step by step. `linear_head` is the model's, and the trainer gives it.
    """
    if solver is None:
        closed = linear_head and epochs is None and learning_rate is None
    else:
        closed = solver == "logistic"
    if closed:
        return Schedule("feature_extraction", (Phase("head", "all", 1, solver="logistic"),))
    epochs = default_epochs(images) if epochs is None else epochs
    rate = 3e-3 if learning_rate is None else learning_rate
    more = {} if solver is None else {"solver": solver}
    return Schedule("feature_extraction", (_head(epochs, rate, **more),))


def fine_tune(
    images: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    head_rate: float = 10.0,
) -> Schedule:
    """Everything at once from the first step, the new head `head_rate` times as fast."""
    epochs = default_epochs(images) if epochs is None else epochs
    rate = default_rate(images) if learning_rate is None else learning_rate
    return Schedule("fine_tune", (_all(epochs, rate, rates={"head": head_rate}),))


def lp_ft(
    images: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    head_epochs: int | None = None,
    head_learning_rate: float = 3e-3,
    batch_norm: str = "frozen",
) -> Schedule:
    """The head on frozen features first, then every layer (LP-FT, arXiv:2202.10054).

    Training everything behind a random head would wreck the features. `epochs` counts both phases;
    `default_head_epochs` of them are the head's unless `head_epochs` says otherwise.
    """
    rate = default_rate(images) if learning_rate is None else learning_rate
    head, rest = _head_and_rest("lp_ft", images, epochs, head_epochs)
    phases = (_head(head, head_learning_rate), _all(rest, rate, batch_norm=batch_norm))
    return Schedule("lp_ft", phases)


def freeze_k(
    images: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    k: str | int | float = 0.5,
    head_epochs: int | None = None,
    head_learning_rate: float = 3e-3,
) -> Schedule:
    """The first `k` are kept, the rest is trained after the head (arXiv:1411.1792).

    `k` is what `freezing.frozen_stages` takes: a share or a number of layers, a layer, a stage.
    """
    rate = default_rate(images) if learning_rate is None else learning_rate
    head, rest = _head_and_rest("freeze_k", images, epochs, head_epochs)
    return Schedule("freeze_k", (_head(head, head_learning_rate), _all(rest, rate, "top", k)))


def gradual_unfreeze(
    images: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    stages: int = 3,
    stage_epochs: int = 1,
    head_epochs: int | None = None,
    head_learning_rate: float = 3e-3,
) -> Schedule:
    """The head, then one stage more at a time from the top, then all (ULMFiT, arXiv:1801.06146).

    `stages` are unfrozen one by one, `stage_epochs` each; what is below follows together, since
    each phase costs a compilation.
    """
    rate = default_rate(images) if learning_rate is None else learning_rate
    epochs = default_epochs(images) if epochs is None else epochs
    single = stages * stage_epochs
    head = default_head_epochs(images, epochs - single) if head_epochs is None else head_epochs
    rest = epochs - head - single
    if stages < 1 or stage_epochs < 1 or rest < 1 or head < 1:
        raise InputError(
            f"gradual_unfreeze with {stages} stages of {stage_epochs} epochs and a head of {head} "
            f"needs at least {head + single + 1} epochs, not {epochs}."
        )
    steps = [
        _all(stage_epochs, rate, f"top{n}", f"top:{n}", shape="constant")
        for n in range(1, stages + 1)
    ]
    phases = (_head(head, head_learning_rate), *steps, _all(rest, rate))
    return Schedule("gradual_unfreeze", phases)


def discriminative(
    images: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    lowest_rate: float = 0.05,
    head_epochs: int | None = None,
    head_learning_rate: float = 3e-3,
) -> Schedule:
    """The head, then all at rates that fall towards the image (layer-wise decay, ULMFiT).

    The first stage learns at `lowest_rate` times the rate of the head.
    """
    rate = 2 * default_rate(images) if learning_rate is None else learning_rate
    head, rest = _head_and_rest("discriminative", images, epochs, head_epochs)
    phases = (_head(head, head_learning_rate), _all(rest, rate, lowest_rate=lowest_rate))
    return Schedule("discriminative", phases)


def bit(
    images: int = 1000,
    steps: int | None = None,
    learning_rate: float = 3e-3,
    batch_size: int = 512,
    accumulate: int = 16,
    momentum: float = 0.9,
) -> Schedule:
    """The BiT-HyperRule (arXiv:1912.11370): everything at once from a head of zeros, plain SGD.

    500 updates below 20,000 images, 10,000 below 500,000, else 20,000; warm-up of 100 (then 500)
    updates; the rate falls tenfold at 30, 60 and 90 %; no weight decay. The batch of 512 is made
    of `accumulate` smaller ones. Of the rule's image sizes (448 → 384) and its MixUp nothing is
    here: the size is the model's.
    """
    updates, warmup = _bit_length(images)
    updates = updates if steps is None else steps
    if batch_size % accumulate:
        raise InputError(f"bit: batch_size {batch_size} must divide by accumulate {accumulate}.")
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


def _bit_length(images):
    if images < 20_000:
        return 500, 100
    return (10_000, 500) if images < 500_000 else (20_000, 500)


def progressive_resize(
    images: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    image_size: int = 224,
    smaller_by: int = 64,
    head_epochs: int | None = None,
    head_learning_rate: float = 3e-3,
) -> Schedule:
    """Small images first, the model's own size last (arXiv:2104.00298).

    The head and half of the rest learn on images that are `smaller_by` pixels smaller: about half
    the time at 224 px. `image_size` is the model's, and the trainer gives it.
    """
    rate = default_rate(images) if learning_rate is None else learning_rate
    head, rest = _head_and_rest("progressive_resize", images, epochs, head_epochs, least_rest=2)
    small = image_size - smaller_by
    phases = (
        _head(head, head_learning_rate, image_size=small),
        _all(rest // 2, rate, "small", image_size=small, shape="constant"),
        _all(rest - rest // 2, rate, "full", warmup=0.0),
    )
    return Schedule("progressive_resize", phases)


def from_scratch(
    images: int = 1000, epochs: int | None = None, learning_rate: float = 1e-3
) -> Schedule:
    """Random weights, everything trains, BatchNorm included: what transfer is measured against."""
    epochs = 2 * default_epochs(images) if epochs is None else epochs
    phase = Phase("all", "none", epochs, learning_rate, batch_norm="train", weight_decay=1e-2)
    return Schedule("from_scratch", (phase,), pretrained=False)


def _head(epochs, rate, **more):
    return Phase("head", "all", epochs, rate, **more)


def _all(epochs, rate, name="all", freeze="none", **more):
    # Without a limit single batches threw runs far back at these rates.
    return Phase(name, freeze, epochs, rate, **{"warmup": 0.2, "clip_norm": 1.0, **more})


def _head_and_rest(recipe, images, epochs, head_epochs, least_rest=1):
    epochs = default_epochs(images) if epochs is None else epochs
    if head_epochs is None:
        head = max(1, min(default_head_epochs(images, epochs), epochs - least_rest))
    else:
        head = head_epochs
    if head < 1 or epochs - head < least_rest:
        raise InputError(
            f"{recipe} needs at least {max(1, head) + least_rest} epochs with {max(1, head)} for "
            f"the head: not {epochs}."
        )
    return head, epochs - head


# Open: `RECIPES["name"] = function` adds one for this process. Its arguments are plain numbers with
# defaults; those called `images`, `image_size` and `linear_head` are filled in (`resolve_schedule`).
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
    schedule: "str | Path | Schedule", overrides: dict | None = None, **known
) -> Schedule:
    """A recipe by name, a YAML file or a schedule, with some of its numbers replaced.

    Args:
        schedule: a name of `RECIPES`, the path of a `.yaml` file, or a `Schedule`.
        overrides: `"PHASE.FIELD"` (or `"*.FIELD"`) → value for any field of `Phase`; a key without
            a dot is an argument of the recipe, e.g. `{"k": "stage:3", "all.ema": 0.99}`.
        known: what is known of data and model: `images` (the number of training images, from
            which default numbers follow), `image_size` and `linear_head`; left out where a recipe
            has no use.

    Raises:
        InputError: no such recipe, file, argument, phase or field, or a value out of its range.
    """
    overrides = dict(overrides or {})
    arguments = {key: overrides.pop(key) for key in list(overrides) if "." not in key}
    if not isinstance(schedule, Schedule) and Path(schedule).suffix in (".yaml", ".yml"):
        schedule = Schedule.from_yaml(schedule)
    if isinstance(schedule, Schedule):
        if arguments:
            raise InputError(
                f"Cannot set {', '.join(arguments)}: '{schedule.name}' is no recipe; give PHASE.FIELD."
            )
        return schedule.override(overrides)
    if schedule not in RECIPES:
        raise InputError(
            f"Unknown strategy '{schedule}': give one of {', '.join(RECIPES)}, or a .yaml file."
        )
    recipe = RECIPES[schedule]
    names = tuple(inspect.signature(recipe).parameters)
    unknown = [key for key in arguments if key not in names]
    if unknown:
        raise InputError(
            f"Cannot set {', '.join(unknown)}: {schedule} has the arguments {', '.join(names)}; the "
            "fields of a phase are set as PHASE.FIELD."
        )
    known = {k: v for k, v in known.items() if v is not None and k in names}
    arguments = {**known, **arguments}
    try:
        return recipe(**arguments).override(overrides)
    except TypeError as error:
        raise InputError(f"Cannot make {schedule} with {arguments}: {error}.") from None
