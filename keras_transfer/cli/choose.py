"""The commands that choose: `advise`, `compare` and `tune`."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from keras_transfer.cli.models import build, without_auto
from keras_transfer.cli.options import (
    Data,
    Json,
    check_backbones,
    check_png,
    interruption_reported,
    load_keras,
    open_images,
    overrides_of,
    saved_config,
    seeds_of,
    sizes_of,
    takes,
    trainer_options,
)

_DATA = ("task", "columns", "val", "val_split", "group", "split")


@takes(
    *_DATA, *("image_size", "crop", "channels", "depth", "batch_size", "minutes", "policy", "seed")
)
def advise(
    data: Data,
    settings,
    target: Annotated[
        Path | None,
        typer.Option(help="Unlabelled images of another domain: is adaptation worth trying?"),
    ] = None,
    backbones: Annotated[
        str | None,
        typer.Option(
            help="Names and RUNs to choose from, separated by commas; auto: those whose weights are "
            "on this machine. (default: auto)"
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            "--picture",
            help="A .png file for a plot: accuracy after each stage of the backbone.",
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Also print all candidates, times, and the textbooks' choice."
        ),
    ] = False,
    as_json: Json = False,
):
    """Recommend a backbone and a strategy for the data, with the reasons and the cost on this machine."""
    from keras_transfer.advisor.api import check_advice
    from keras_transfer.advisor.rules import named
    from keras_transfer.cli.kinds import require_reader
    from keras_transfer.data import require_source, unlabeled_images
    from keras_transfer.modalities import open_framing
    from keras_transfer.schedules.recipes import AUTO

    check_png(plot)
    config = settings.config
    limits = {name: getattr(config, name) for name in ("minutes", "policy")}
    limits["image_size"] = open_framing(config.image_size, config.open_crop, **config.reading)
    names = named(backbones or AUTO)
    require_source(data)
    check_advice(names, **limits)
    images = open_images(data, config)
    require_reader(images.modality, names, "--backbones")
    target_images = target and unlabeled_images(target)[0]
    load_keras()
    from keras_transfer.advisor.api import advise as advise_on

    advice = advise_on(
        images,
        target=target_images,
        backbones=names,
        batch_size=config.batch_size,
        seed=config.seed,
        **limits,
    )
    if plot is not None:
        advice.draw(plot)
        print(f"wrote {plot}", file=sys.stderr)
    print(json.dumps(advice.to_dict(), indent=2) if as_json else advice.text(explain))


@takes(
    *_DATA,
    *("backbone", "weights", "image_size", "crop", "channels", "depth", "precision"),
    *("strategy", "overrides", "learning_rate", "batch_size", "augment"),
)
def compare(
    data: Data,
    out: Annotated[
        Path, typer.Option(help="Directory of the comparison; resumes one begun there.")
    ],
    settings,
    set_scratch: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Like --set, for training from scratch."),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="5,20,all", help="Training images per class. (default: doubling from 5 to all)"
        ),
    ] = None,
    show: Annotated[
        int | None,
        typer.Option(help="The size whose curves are plotted. (default: the middle one)"),
    ] = None,
    seeds: Annotated[str, typer.Option(help="How many, or which: 10,11,12.")] = "3",
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of transfer. (default: those of from_scratch)")
    ] = None,
    scratch_budget: Annotated[
        float, typer.Option(help="Epochs from scratch for each epoch of transfer.")
    ] = 1.0,
    minutes: Annotated[
        float | None, typer.Option(help="Start no run that would end later; repeat to go on.")
    ] = None,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Keep the model of each run on disk.")
    ] = False,
    as_json: Json = False,
):
    """Compare transfer with training from scratch: start, slope, end, images saved."""
    from keras_transfer.cli.kinds import unflipped
    from keras_transfer.data import require_source
    from keras_transfer.experiments.compare import Experiment
    from keras_transfer.experiments.comparison import IMAGE, JSON, TABLE

    config = settings.config
    chosen = {"sizes": sizes_of(sizes), "seeds": seeds_of(seeds)}
    require_source(data)
    check_backbones(config)
    images = open_images(data, config)
    print(images.describe(), file=sys.stderr)
    config = without_auto(images, unflipped(images.modality, config, settings))
    rate = {} if config.learning_rate is None else {"learning_rate": config.learning_rate}
    same = ("backbone", "strategy", "image_size", "batch_size", "augment", "weights", "precision")
    experiment = Experiment(
        images,
        out,
        crop=config.open_crop,
        **config.reading,
        overrides={**config.overrides, **rate},
        scratch_overrides=overrides_of(set_scratch),
        epochs=epochs,
        scratch_budget=scratch_budget,
        keep_models=keep_models,
        minutes=minutes,
        show=show,
        **{name: getattr(config, name) for name in same},
        **chosen,
    )
    load_keras()
    with interruption_reported():
        found = experiment.run()
    print(json.dumps(found.to_dict(), indent=2) if as_json else found)
    print(f"wrote {TABLE}, {JSON} and {IMAGE} in {out}", file=sys.stderr)


@takes(
    *(*_DATA, "test_split", "backbone", "weights", "image_size", "crop", "channels", "depth"),
    *("precision",),
    *("strategy", "overrides", "epochs", "batch_size", "augment", "balance", "seed"),
    *("cache", "engine"),
)
def tune(
    data: Data,
    out: Annotated[Path, typer.Option(help="Directory of the search; resumes one begun there.")],
    settings,
    trials: Annotated[
        int | None, typer.Option(help="Number of trainings. (default: 20, without --minutes)")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Start no training that would end later, over all calls.")
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LOW..HIGH",
            help="A range to search: `learning_rate=1e-5..1e-3`, `augment=none,light`, `k=3`, "
            "`*.weight_decay=1e-5..1e-1`.",
        ),
    ] = None,
    space: Annotated[
        Path | None, typer.Option(help="A .yaml file of such ranges; --search overrides it.")
    ] = None,
    as_json: Json = False,
):
    """Search rate, decay per stage, frozen stages, dropout and augmentation; needs Optuna."""
    from keras_transfer.cli.kinds import unflipped
    from keras_transfer.data import require_source
    from keras_transfer.experiments.search_space import (
        check_base,
        check_fields,
        read_space,
        space_of,
    )
    from keras_transfer.experiments.study import check_budget, check_folder, require_optuna
    from keras_transfer.schedules.recipes import AUTO, DEFAULT, resolve_schedule

    require_optuna()
    check_budget(trials, minutes)
    check_folder(out)
    config = settings.config
    if config.epochs is not None:
        config = replace(config, overrides={**config.overrides, "epochs": config.epochs})
    ranges = space_of(space, search)
    around = DEFAULT if config.strategy == AUTO else config.strategy
    base = resolve_schedule(settings.schedule or around, config.overrides)
    check_base(base)
    check_fields(read_space(ranges), base)
    require_source(data)
    check_backbones(config)
    images = open_images(data, config)
    print(images.describe(), file=sys.stderr)
    load_keras()
    config = without_auto(images, unflipped(images.modality, config, settings))
    from keras_transfer.experiments.tune import tune as search_in

    with interruption_reported():
        tuned = search_in(
            build(images, config),
            images,
            out,
            trials=trials,
            minutes=minutes,
            strategy=settings.schedule or around,
            overrides=config.overrides,
            space=ranges,
            config=saved_config(data, config),
            keep=config.keep,
            **trainer_options(config),
        )
    if as_json:
        print(json.dumps(tuned.to_dict(), indent=2))
        return
    print(f"{tuned.table()}\n\n{tuned.verdict}")
    print(f"{out}: best.yaml (for train --config), trials.csv, tune.png, {tuned.run.path.name}/")
