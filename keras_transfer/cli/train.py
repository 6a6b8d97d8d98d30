"""The command `train`, and what one looks at before, `schedule` and `find-rate`."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from keras_transfer.cli.common import (
    build_for,
    check_choice,
    is_open,
    kept_of,
    load_keras,
    opened,
    pinned,
    settled,
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
    DistributeOption,
    EngineOption,
    Epochs,
    Fold,
    Folds,
    Freeze,
    Group,
    ImageSize,
    Keep,
    LearningRate,
    MinutesOption,
    MixAlpha,
    MixOption,
    NoFlip,
    PolicyOption,
    PrecisionOption,
    RunOut,
    ScalingOption,
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
    settings_of,
)
from keras_transfer.errors import InputError
from keras_transfer.utils.console import say


def train(
    data: Data,
    out: RunOut,
    task: TaskOption = None,
    column: ColumnOption = None,
    backbone: BackboneOption = None,
    strategy: StrategyOption = None,
    set: SetOption = None,
    val: ValOption = None,
    val_split: ValSplit = None,
    test_split: TestSplit = None,
    group: Group = None,
    folds: Folds = None,
    fold: Fold = None,
    split: SplitFile = None,
    balance: BalanceOption = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    precision: PrecisionOption = None,
    augment: AugmentOption = None,
    no_flip: NoFlip = False,
    mix: MixOption = None,
    mix_alpha: MixAlpha = None,
    weights: WeightsOption = None,
    seed: Seed = None,
    keep: Annotated[
        Keep | None,
        typer.Option(help="The epoch that is kept: best on validation, or last. [best]"),
    ] = None,
    cache: CacheOption = None,
    engine: EngineOption = None,
    minutes: MinutesOption = None,
    policy: PolicyOption = None,
    data_service: Annotated[
        str | None,
        typer.Option(help="Address of a tf.data service that reads the images, grpc://HOST:PORT."),
    ] = None,
    distribute: DistributeOption = None,
    scaling: ScalingOption = None,
    config: Config = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write RUN/tensorboard, epoch by epoch.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run (or begin it).")
    ] = False,
):
    """Train a model on a folder of labelled images."""
    from keras_transfer.advisor.rules import check_overrides
    from keras_transfer.advisor.shortlist import SHORTLIST
    from keras_transfer.cli import distribute as cli_distributing
    from keras_transfer.data import require_source
    from keras_transfer.features import check_engine
    from keras_transfer.schedules.recipes import AUTO, resolve_schedule

    settings = settings_of(locals())
    check_engine(settings["engine"])
    workers = cli_distributing.joined(distribute or "none", out)
    begun = cli_distributing.begun(workers, out) if resume else None
    if begun:
        for name in ("precision", "backbone", "strategy", "augment"):  # chosen as the run began
            if settings[name] == AUTO or (name == "backbone" and is_open(settings[name])):
                settings[name] = begun.config[name]
    else:
        cli_distributing.check_new(workers, out)
    cli_distributing.check_decided(workers, settings)
    overrides = overrides_of(set, epochs=epochs, learning_rate=learning_rate)
    schedule = settings["strategy"]
    if isinstance(settings.get("schedule"), dict) and not (strategy or epochs or learning_rate):
        schedule = schedule_of(config, settings["schedule"])
    if schedule == AUTO and settings["weights"] is None:
        schedule = settings["strategy"] = "from_scratch"
    if schedule == AUTO:
        check_overrides(overrides)
    elif not resolve_schedule(schedule, overrides).pretrained:
        settings["weights"] = None
    if settings["backbone"] == AUTO and settings["weights"] is None:
        settings["backbone"] = SHORTLIST[0]  # nothing to advise on
    require_source(data)
    check_choice(settings)
    # A resumed run goes on with the split that it began with.
    begun_split = {"folds": None, "fold": None, "split_file": begun.split_path} if begun else {}
    images = opened(data, settings, **begun_split)
    say(images.describe())

    load_keras()
    from keras_transfer.training.trainer import Trainer

    used = ("batch_size", "mix", "mix_alpha", "seed", "balance", "cache", "engine", "feature_dtype")
    options = {name: settings[name] for name in (*used, "augment")}
    advice = begun.config.get("advice") if begun else None
    if advice:
        overrides = {**advice["choice"]["overrides"], **overrides}
    if is_open(settings["backbone"]) or schedule == AUTO:
        schedule, overrides, advice = settled(images, settings, schedule, overrides, options)
    phases = resolve_schedule(schedule, overrides).phases
    trains = any(phase.freeze != "all" for phase in phases)
    with workers.scope() if workers else contextlib.nullcontext():
        model = build_for(images, settings, trains)
    trainer = Trainer(
        model,
        schedule,
        overrides=overrides,
        keep=settings["keep"],
        data_service=data_service,
        distribute=workers,
        scaling=scaling or "auto",
        **options,
    )
    kept = kept_of(data, settings)
    if advice is not None:
        kept["advice"] = advice
    try:
        with stop_said():
            run = trainer.fit(
                images,
                out,
                config=kept,
                resume=begun is not None,
                tensorboard=tensorboard,
            )
    except KeyboardInterrupt:
        if workers:
            cli_distributing.end(130)
        raise
    if workers and not workers.chief:
        return
    metrics = run.metrics
    print(
        f"val {_shown_val(metrics)}, {settings['keep']} epoch {metrics['best_epoch']}, "
        f"{metrics['wall_seconds']:.0f} s of training, {metrics['skipped']} files skipped"
    )
    print(f"{out}: model.keras, metrics.json, history.csv, config.yaml, split.csv, skipped.csv")
    print(f"next: keras-transfer report {out}", file=sys.stderr)


def _shown_val(metrics):
    """The kept epoch's metrics as they suit the task."""
    from keras_transfer.utils.statistics import wilson_interval

    val, last, n = metrics["val"], metrics["phases"][-1]["val"], metrics["images"]["val"]
    if "accuracy" not in val:
        shown = ", ".join(f"{name} {val[name]:.4f}" for name in last)
        return f"{shown} ({n} images)"
    low, high = wilson_interval(round(val["accuracy"] * n), n)
    return (
        f"accuracy {val['accuracy']:.4f} (95 % interval {low:.3f}–{high:.3f}, {n} images), "
        f"loss {val['loss']:.4f}, last epoch {last['accuracy']:.4f}"
    )


def schedule(
    strategy: Annotated[
        str | None, typer.Argument(metavar="[STRATEGY]", help="A recipe or a .yaml file.")
    ] = None,
    images: Annotated[int, typer.Option(help="Number of training images.")] = 1000,
    backbone: Annotated[
        str | None, typer.Option(help="Work it out for this backbone, stage by stage.")
    ] = None,
    image_size: ImageSize = None,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 32,
    set: SetOption = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    out: Annotated[
        Path | None, typer.Option(help="A .yaml file to edit and train with, or a .png image.")
    ] = None,
):
    """Show a strategy: its phases as a table, as YAML, or as an image of each stage's rate."""
    from keras_transfer.models.sources.applications import BACKBONES, check_backbone
    from keras_transfer.schedules.recipes import RECIPES, resolve_schedule
    from keras_transfer.utils.files import write_text

    if strategy is None:
        for name, recipe in RECIPES.items():
            first, *_ = (recipe.__doc__ or "").split("\n")
            print(f"{name:<20}{first}")
        return
    kind = out.suffix if out else None
    if kind not in (None, ".yaml", ".yml", ".png"):
        raise InputError(f"Cannot write {out}: give a .yaml or a .png file.")
    if kind == ".png" and backbone is None:
        raise InputError("An image needs --backbone, whose stages are drawn.")
    overrides = overrides_of(set, epochs=epochs, learning_rate=learning_rate)
    size = image_size or (BACKBONES[backbone].size if backbone in BACKBONES else 224)
    chosen = resolve_schedule(strategy, overrides, images=images, image_size=size)
    if backbone is None:
        print(chosen.table())
    else:
        check_backbone(backbone, image_size, None)
        load_keras()
        from keras_transfer.models.builders import build_model
        from keras_transfer.models.heads import Classification
        from keras_transfer.schedules.plans import make_plan

        model = build_model(
            backbone, Classification(("a", "b")), image_size=image_size, weights=None
        )
        plan = make_plan(model, chosen, images, batch_size)
        print(plan.table())
        if kind == ".png":
            plan.draw(out)
    if out is not None:
        if kind != ".png":
            write_text(out, chosen.to_yaml())
        print(f"wrote {out}", file=sys.stderr)


def find_rate(
    data: Data,
    out: Annotated[Path, typer.Option(help="The image of the test.")] = Path("rates.png"),
    backbone: BackboneOption = None,
    freeze: Freeze = "none",
    lowest: Annotated[float, typer.Option(help="First rate.")] = 1e-6,
    highest: Annotated[float, typer.Option(help="Last rate.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Batches.")] = 100,
    image_size: ImageSize = None,
    batch_size: BatchSize = None,
    precision: PrecisionOption = None,
    augment: AugmentOption = None,
    no_flip: NoFlip = False,
    weights: WeightsOption = None,
    seed: Seed = None,
    config: Config = None,
):
    """Suggest a learning rate: a range test on the real images, with its curve."""
    from keras_transfer.schedules.phases import Phase

    settings = settings_of(locals())
    check_png(out)
    check_choice(settings)
    phase = Phase("range test", freeze, steps=steps)
    images = opened(data, settings)
    load_keras()
    pinned(images, settings)
    from keras_transfer.training import rate_finder

    test = rate_finder.find_rate(
        build_for(images, settings),
        images,
        phase=phase,
        lowest=lowest,
        highest=highest,
        steps=steps,
        batch_size=settings["batch_size"],
        augment=settings["augment"],
        seed=settings["seed"],
    )
    test.draw(out)
    print(f"suggested learning rate {test.suggestion:.2g} ({len(test.rates)} steps, {out})")
