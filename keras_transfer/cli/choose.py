"""The commands that choose: `advise`, `compare` and `tune`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from keras_transfer.cli.common import (
    build_for,
    check_choice,
    kept_of,
    load_keras,
    opened,
    pinned,
    stop_said,
)
from keras_transfer.cli.options import (
    AugmentOption,
    BackboneOption,
    BalanceOption,
    BatchSize,
    CacheOption,
    ColumnOption,
    Config,
    Data,
    EngineOption,
    Epochs,
    Group,
    ImageSize,
    Json,
    LearningRate,
    MinutesOption,
    NoFlip,
    PolicyOption,
    PrecisionOption,
    Seed,
    SetOption,
    SplitFile,
    StrategyOption,
    TaskOption,
    TestSplit,
    ValOption,
    ValSplit,
    WeightsOption,
    check_png,
    overrides_of,
    schedule_of,
    seeds_of,
    settings_of,
    sizes_of,
)


def advise(
    data: Data,
    target: Annotated[
        Path | None,
        typer.Option(help="Unlabelled images that the model is for: is adaptation worth trying?"),
    ] = None,
    backbones: Annotated[
        str | None,
        typer.Option(
            help="Names and RUNs to choose from, with commas; auto: those whose weights are here. [auto]"
        ),
    ] = None,
    val: ValOption = None,
    val_split: ValSplit = None,
    group: Group = None,
    split: SplitFile = None,
    column: ColumnOption = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = None,
    minutes: MinutesOption = None,
    policy: PolicyOption = None,
    seed: Seed = None,
    image: Annotated[
        Path | None, typer.Option(help="A .png file: accuracy after each stage of the backbone.")
    ] = None,
    as_json: Json = False,
):
    """Say which backbone and which strategy suit the data, what that costs here, and why."""
    from keras_transfer.advisor.api import check_advice
    from keras_transfer.advisor.shortlist import named
    from keras_transfer.data import require_source, unlabelled_images
    from keras_transfer.schedules.recipes import AUTO

    check_png(image)
    settings = settings_of(locals())
    asked = {key: settings[key] for key in ("image_size", "minutes", "policy")}
    names = named(backbones or AUTO)
    require_source(data)
    check_advice(names, **asked)
    images = opened(data, settings)
    where = target and unlabelled_images(target)[0]
    load_keras()
    from keras_transfer.advisor.api import advise as advise_on

    advice = advise_on(
        images,
        target=where,
        backbones=names,
        batch_size=settings["batch_size"],
        seed=settings["seed"],
        **asked,
    )
    if image is not None:
        advice.draw(image)
        print(f"wrote {image}", file=sys.stderr)
    print(json.dumps(advice.to_dict(), indent=2) if as_json else advice.text())


def compare(
    data: Data,
    out: Annotated[Path, typer.Option(help="Directory of the comparison; one begun goes on.")],
    column: ColumnOption = None,
    backbone: BackboneOption = None,
    strategy: StrategyOption = None,
    set: SetOption = None,
    set_scratch: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="The same for training from scratch."),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(metavar="5,20,all", help="Training images a class. [doubling from 5 to all]"),
    ] = None,
    show: Annotated[
        int | None, typer.Option(help="The size whose curves are drawn. [the middle one]")
    ] = None,
    seeds: Annotated[str, typer.Option(help="How many, or which: 10,11,12.")] = "3",
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of transfer. [what from_scratch asks for]")
    ] = None,
    learning_rate: LearningRate = None,
    scratch_budget: Annotated[
        float, typer.Option(help="Epochs from scratch for each epoch of transfer.")
    ] = 1.0,
    val: ValOption = None,
    val_split: ValSplit = None,
    group: Group = None,
    split: SplitFile = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = None,
    precision: PrecisionOption = None,
    augment: AugmentOption = None,
    no_flip: NoFlip = False,
    weights: WeightsOption = None,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Leave the model of each run on the disk.")
    ] = False,
    as_json: Json = False,
):
    """Compare transfer with training from scratch: start, slope, end, images saved."""
    from keras_transfer.data import require_source
    from keras_transfer.experiments.compare import Experiment
    from keras_transfer.experiments.comparison import IMAGE, JSON, TABLE

    settings = settings_of(locals())
    chosen = {"sizes": sizes_of(sizes), "seeds": seeds_of(seeds)}
    require_source(data)
    check_choice(settings)
    images = opened(data, settings)
    print(images.describe(), file=sys.stderr)
    advised = pinned(images, settings)
    same = ("backbone", "strategy", "image_size", "batch_size", "augment", "weights", "precision")
    experiment = Experiment(
        images,
        out,
        overrides={**advised, **overrides_of(set, learning_rate=learning_rate)},
        scratch_overrides=overrides_of(set_scratch),
        epochs=epochs,
        scratch_budget=scratch_budget,
        keep_models=keep_models,
        show=show,
        **{key: settings[key] for key in same},
        **chosen,
    )
    load_keras()
    with stop_said():
        found = experiment.run()
    print(json.dumps(found.to_dict(), indent=2) if as_json else found)
    print(f"wrote {TABLE}, {JSON} and {IMAGE} in {out}", file=sys.stderr)


def tune(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the search; the same goes on with it.")],
    trials: Annotated[
        int | None, typer.Option(help="Trainings in all. [20, without --minutes]")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Begin none that would end later, over all calls.")
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LOW..HIGH",
            help="Search elsewhere: `learning_rate=1e-5..1e-3`, `augment=none,light`, `k=3`, "
            "`*.weight_decay=1e-5..1e-1`.",
        ),
    ] = None,
    space: Annotated[
        Path | None, typer.Option(help="A .yaml file of such ranges; --search wins over it.")
    ] = None,
    task: TaskOption = None,
    column: ColumnOption = None,
    backbone: BackboneOption = None,
    strategy: StrategyOption = None,
    set: SetOption = None,
    val: ValOption = None,
    val_split: ValSplit = None,
    test_split: TestSplit = None,
    group: Group = None,
    split: SplitFile = None,
    balance: BalanceOption = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = None,
    epochs: Epochs = None,
    precision: PrecisionOption = None,
    augment: AugmentOption = None,
    no_flip: NoFlip = False,
    weights: WeightsOption = None,
    seed: Seed = None,
    cache: CacheOption = None,
    engine: EngineOption = None,
    config: Config = None,
    as_json: Json = False,
):
    """Search rate, decay per stage, frozen stages, dropout and augmentation; needs Optuna."""
    from keras_transfer.data import require_source
    from keras_transfer.experiments.search_space import (
        check_base,
        check_fields,
        read_space,
        space_of,
    )
    from keras_transfer.experiments.study import check_budget, check_folder, require_optuna
    from keras_transfer.features import check_engine
    from keras_transfer.schedules.recipes import AUTO, DEFAULT, resolve_schedule

    require_optuna()
    check_budget(trials, minutes)
    check_folder(out)
    settings = settings_of(locals(), but="minutes")
    check_engine(settings["engine"])
    overrides = overrides_of(set, epochs=epochs)
    given = space_of(space, search)
    around = DEFAULT if settings["strategy"] == AUTO else settings["strategy"]
    if isinstance(settings.get("schedule"), dict) and not (strategy or epochs):
        around = schedule_of(config, settings["schedule"])
    base = resolve_schedule(around, overrides)
    check_base(base)
    check_fields(read_space(given), base)
    require_source(data)
    check_choice(settings)
    images = opened(data, settings)
    print(images.describe(), file=sys.stderr)
    load_keras()
    overrides = {**pinned(images, settings), **overrides}
    from keras_transfer.experiments.tune import tune as search_in

    used = ("batch_size", "mix", "mix_alpha", "keep", "balance", "cache", "engine", "feature_dtype")
    with stop_said():
        tuned = search_in(
            build_for(images, settings),
            images,
            out,
            trials=trials,
            minutes=minutes,
            strategy=around,
            overrides=overrides,
            space=given,
            augment=settings["augment"],
            seed=settings["seed"],
            config=kept_of(data, settings),
            **{name: settings[name] for name in used},
        )
    if as_json:
        print(json.dumps(tuned.to_dict(), indent=2))
        return
    print(f"{tuned.table()}\n\n{tuned.verdict}")
    print(f"{out}: best.yaml (for train --config), trials.csv, tune.png, {tuned.run.path.name}/")
