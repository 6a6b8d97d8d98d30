"""The commands that plan a training: `schedule` and `find-rate`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from keras_transfer.cli.models import build, without_auto
from keras_transfer.cli.options import (
    Data,
    Freeze,
    check_backbones,
    check_png,
    load_keras,
    open_images,
    overrides_of,
    takes,
)
from keras_transfer.errors import InputError
from keras_transfer.utils.files import check_output, write_text


def schedule(
    strategy: Annotated[
        str | None, typer.Argument(metavar="[STRATEGY]", help="A recipe or a .yaml file.")
    ] = None,
    examples: Annotated[
        int, typer.Option("--examples", "--images", "--pictures", min=1, help="Training examples.")
    ] = 1000,
    backbone: Annotated[
        str | None, typer.Option(help="Show the learning rates of each stage of this backbone.")
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(help="Height and width in pixels, such as 224 or 96x192.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Examples per step.")] = 32,
    set: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Any number of the strategy: `head_epochs=2`."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of all phases.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    timed: Annotated[
        bool, typer.Option("--time", help="Time a step of each phase; needs --backbone.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="A .yaml file to edit and train with, or a .png plot.")
    ] = None,
):
    """Show a strategy: its phases as a table, as YAML, or as a plot of each stage's learning rate."""
    from keras_transfer.models.sources.backbones import check_backbone, default_size
    from keras_transfer.schedules.recipes import RECIPES, resolve_schedule
    from keras_transfer.training.config import TrainConfig

    if strategy is None:
        for name, recipe in RECIPES.items():
            first, *_ = (recipe.__doc__ or "").split("\n")
            print(f"{name:<20}{first}")
        return
    given = TrainConfig(
        batch_size=batch_size, image_size=image_size, epochs=epochs, learning_rate=learning_rate
    )
    kind = out.suffix if out else None
    if kind not in (None, ".yaml", ".yml", ".png"):
        raise InputError(f"Cannot write {out}: choose a .yaml or a .png file.")
    if out is not None:
        check_output(out)
    if timed and backbone is None:
        raise InputError("--time needs --backbone: it times the steps of a backbone.")
    if kind == ".png" and backbone is None:
        raise InputError("A plot needs --backbone: it shows the stages of a backbone.")
    overrides = {**overrides_of(set), **given.recipe_arguments}
    facts: dict[str, Any] = {
        "examples": examples,
        "image_size": given.image_size or (default_size(backbone) or 224),
    }
    chosen = resolve_schedule(strategy, overrides, **facts)
    if backbone is None:
        print(chosen.table())
    else:
        check_backbone(backbone, given.image_size, None)
        load_keras()
        from keras_transfer.models.builders import build_model
        from keras_transfer.models.heads import Classification
        from keras_transfer.schedules.plans import make_plan
        from keras_transfer.schedules.sizes import attention_stages

        model = build_model(
            backbone, Classification(("a", "b")), image_size=given.image_size, weights=None
        )
        facts["attention_stages"] = attention_stages(model)
        chosen = resolve_schedule(strategy, overrides, **facts)
        plan = make_plan(model, chosen, examples, batch_size)
        seconds = None
        if timed:
            from keras_transfer.training.step_time import step_seconds

            seconds = step_seconds(model, plan)
        print(plan.table(seconds))
        if kind == ".png":
            plan.draw(out)
    if out is not None:
        if kind != ".png":
            write_text(out, chosen.to_yaml())
        print(f"wrote {out}", file=sys.stderr)


@takes("backbone", "image_size", "crop", "batch_size", "precision", "augment", "weights", "seed")
def find_rate(
    data: Data,
    settings,
    out: Annotated[Path, typer.Option(help="File for the plot of the test.")] = Path("rates.png"),
    freeze: Freeze = "none",
    lowest: Annotated[float, typer.Option(help="First learning rate.")] = 1e-6,
    highest: Annotated[float, typer.Option(help="Last learning rate.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Number of batches.")] = 100,
):
    """Suggest a learning rate: a range test on the data, with its curve."""
    from keras_transfer.schedules.phases import Phase

    config = settings.config
    check_png(out)
    check_backbones(config)
    phase = Phase("range test", freeze, steps=steps)
    images = open_images(data, config)
    load_keras()
    config = without_auto(images, config)
    from keras_transfer.training import rate_finder

    test = rate_finder.find_rate(
        build(images, config),
        images,
        phase=phase,
        lowest=lowest,
        highest=highest,
        steps=steps,
        batch_size=config.batch_size,
        augment=config.augment,
        seed=config.seed,
    )
    test.draw(out)
    print(f"suggested learning rate {test.suggestion:.2g} ({len(test.rates)} steps, {out})")
