"""A training by a named recipe within some minutes: as many epochs as are expected to fit."""

import inspect
from collections.abc import Mapping

import keras

from keras_transfer.advisor.budget import Clock, Pace, lengths_up_to
from keras_transfer.advisor.closed_forms import seconds_per_example
from keras_transfer.data.examples import ImageData
from keras_transfer.features.prefix import prefix_of
from keras_transfer.models.stages import backbone_of
from keras_transfer.schedules.recipes import RECIPES, resolve_schedule
from keras_transfer.utils.console import counted, say


def with_limit(
    overrides: Mapping, schedule, model: keras.Model, data: ImageData, clock: Clock, batch_size: int
) -> dict:
    """Return further overrides with which a training is expected to end in time; say how long it takes.

    They are empty if it fits as it is, or if its number of epochs is given or cannot be set: such a
    training, like all, ends when the minutes are over. Otherwise they are the most epochs of
    `lengths_up_to` that fit, or one.

    Args:
        overrides: of the schedule.
        schedule: name of a recipe, a path or a `Schedule`.
        model: from `build_model`, whose forward pass is timed.
    """
    train, val = (len(data.examples.get(split, ())) for split in ("train", "val"))
    steps = -(-train // batch_size)
    recipe = RECIPES.get(schedule) if isinstance(schedule, str) else None
    free = recipe is not None and "epochs" in inspect.signature(recipe).parameters

    def length(more):
        """Return (phases with gradient steps, their epochs)."""
        phases = resolve_schedule(schedule, {**overrides, **more}, examples=train).phases
        trained = [phase for phase in phases if phase.solver == "gradient"]
        return len(trained), sum(phase.epochs or phase.steps / steps for phase in trained)

    phases, epochs = length({})
    if not phases:
        return {}
    backbone = backbone_of(model)
    prefix = prefix_of(backbone, len(backbone.stages)).framed_for(data.examples["train"])
    pace = Pace(
        seconds_per_example(prefix, data.examples["train"]), len(prefix.model.layers), train, val
    )

    def minutes(epochs):  # each phase compiles its steps
        return pace.minutes(epochs) + (phases - 1) * pace.minutes(0)

    chosen = {}
    if free and "epochs" not in overrides and minutes(epochs) > clock.left:
        shorter = lengths_up_to(round(epochs))
        chosen = {"epochs": next((n for n in shorter if minutes(n) <= clock.left), 1)}
    fewer = f", as {epochs:g} do not fit" if chosen else ""
    taken = chosen.get("epochs", epochs)
    say(
        f"{counted(f'{taken:g}', 'epoch')}{fewer}: about {clock.spent + minutes(taken):.1f} min in all"
    )
    return chosen
