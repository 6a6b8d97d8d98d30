"""The commands that train: `train`, alone or with other processes, and `adapt`."""

import json
import shlex
import shutil
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from keras_transfer.adaptation import METHOD_NAMES
from keras_transfer.advisor.budget import Clock
from keras_transfer.cli.callbacks import check_callbacks, make_callbacks
from keras_transfer.cli.models import build, built_on_evidence
from keras_transfer.cli.options import (
    BatchNorm,
    Data,
    Freeze,
    Json,
    KeepEpoch,
    Resume,
    RunOut,
    advisor_chooses,
    check_backbones,
    interruption_reported,
    load_keras,
    open_images,
    saved_config,
    takes,
)
from keras_transfer.errors import InputError
from keras_transfer.models import TAPS
from keras_transfer.runs import RACE, UNRECORDED, place_of
from keras_transfer.schedules.recipes import AUTO, DEFAULT
from keras_transfer.training.config import REFIT
from keras_transfer.training.distributed.single_process import SINGLE, SingleProcess
from keras_transfer.utils.console import counted, log_to, say
from keras_transfer.utils.documents import read_json
from keras_transfer.utils.extras import is_installed
from keras_transfer.utils.files import check_output_folder, read_text, write_text

_DATA = (
    *(
        "task",
        "columns",
        "val",
        "val_split",
        "test_split",
        "group",
        "keep_together",
        "folds",
        "fold",
        "split",
    ),
    "use_list",
)
_MODEL = (
    *("backbone", "taps", "weights", "image_size", "crop", "channels", "depth", "tokens"),
    "precision",
)
_TRAINING = ("strategy", "overrides", "epochs", "learning_rate", "batch_size", "augment", "mix")
_MORE = (
    "mix_alpha",
    "balance",
    "seed",
    "keep",
    "soup",
    "refit",
    "calibrate",
    "minutes",
    "worth",
    "policy",
    "cache",
    "engine",
)
_DEVICES = ("data_service", "distribute", "scaling")
_ADAPTATION = (
    *("backbone", "image_size", "crop", "batch_size", "augment", "precision", "weights", "seed"),
    *("val", "val_split", "columns", "epochs", "learning_rate", "minutes"),
)


@takes(*_DATA, *_MODEL, *_TRAINING, *_MORE, *_DEVICES, resumes=True)
def train(
    data: Data,
    out: RunOut,
    settings,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Short for --log tensorboard.")
    ] = False,
    log: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Log each epoch: tensorboard (RUN/tensorboard), or mlflow (MLFLOW_TRACKING_URI). "
            "Repeatable.",
        ),
    ] = None,
    callback: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:CLASS", help="A Keras callback, made without arguments. Repeatable."
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="With the strategy auto: also print all candidates and contenders."
        ),
    ] = False,
    resume: Resume = False,
    as_json: Json = False,
):
    """Train a model on labelled images."""
    from keras_transfer.advisor.rules import named
    from keras_transfer.cli.kinds import require_reader, say_ineffective, unflipped
    from keras_transfer.data import require_source
    from keras_transfer.data.check import report_reading
    from keras_transfer.data.classes import in_recorded_order
    from keras_transfer.data.examples import targets_of
    from keras_transfer.modalities import open_framing
    from keras_transfer.models.sources.backbones import check_kind
    from keras_transfer.runs import check_out
    from keras_transfer.schedules.recipes import resolve_schedule
    from keras_transfer.training.logs import check_logs, log_finished

    clock = Clock(settings.config.minutes)
    config = settings.config
    logs = check_logs([*(["tensorboard"] if tensorboard else []), *(log or ())])
    callback = callback or []
    check_callbacks(callback)
    overrides = {**config.overrides, **config.recipe_arguments}
    config = replace(config, overrides=overrides, epochs=None, learning_rate=None)
    if config.distribute != "none" and config.minutes is not None:
        raise InputError("--minutes limits a training in one process: leave out --distribute.")
    if (
        config.refit == REFIT
        and config.minutes is not None
        and (settings.schedule or config.strategy) != AUTO
    ):
        raise InputError("--refit always takes as long again: leave out --minutes.")
    workers = _start_workers(config.distribute, out)
    racing = resume and place_of(out).is_dir()
    begun = _begun(workers, out) if resume and not racing else None
    if begun:  # what was chosen when the run began
        names = [name for name in _open_choices(config) if name in begun["config"]]
        config = replace(config, **{name: begun["config"][name] for name in names})
        config = replace(config, depth=begun["config"].get("depth", UNRECORDED["depth"]))
    elif not racing:
        workers.on_chief(lambda: check_out(out))
        shutil.rmtree(place_of(out), ignore_errors=True)  # of a race that nobody continued
    config = with_precision(workers, config)
    if workers.distributed and config.taps == AUTO:
        config = replace(config, taps="last")  # trials run on one machine
    check_decided(workers, config)
    schedule = settings.schedule or config.strategy
    if schedule == AUTO and not is_installed("tensorflow"):
        say(f"strategy {DEFAULT}: the advisor computes features with TensorFlow")
        schedule = DEFAULT
        config = replace(config, strategy=schedule, taps=TAPS[0])
    if schedule == AUTO and config.weights is None:
        schedule = "from_scratch"
        config = replace(config, strategy=schedule)
    if schedule == AUTO:
        from keras_transfer.advisor.rules import check_overrides

        check_overrides(overrides)
    elif not resolve_schedule(schedule, overrides).pretrained:
        config = replace(config, weights=None)
    if config.backbone == AUTO and config.weights is None:
        from keras_transfer.advisor.rules import SHORTLIST

        config = replace(config, backbone=SHORTLIST[0])  # there are no features to advise on
    if schedule == AUTO and callback:
        raise InputError(
            "--callback needs a --strategy by name: the advisor trains several models, of which one "
            "is saved."
        )
    require_source(data)
    check_backbones(config)
    # A resumed run continues with the split that it began with.
    begun_split = {"folds": None, "fold": None, "split_file": begun["split"]} if begun else {}
    images = open_images(data, config, **begun_split)
    if begun and begun["config"].keys() & {"head", "heads"}:
        images = in_recorded_order(images, targets_of(begun["config"]), sort=True)
    say(images.describe())
    report_reading(images, open_framing(**config.reading))
    config = unflipped(images.modality, config, settings)
    if not advisor_chooses(config.backbone):
        check_kind(config.backbone, images.modality)
    else:
        require_reader(images.modality, named(config.backbone), "--backbone")

    load_keras()
    from keras_transfer.training.trainer import Trainer

    advice = begun["config"].get("advice") if begun else None
    if advice:
        config = replace(config, overrides={**advice["choice"]["overrides"], **overrides})
    if schedule == AUTO:
        run = _raced(images, out, config, partial(saved_config, data), clock)
        log_finished(logs, run)
        _print_result(run, out, config.keep, explain, as_json)
        return
    phases = resolve_schedule(schedule, config.overrides).phases
    say_ineffective(config, all(phase.solver == "logistic" for phase in phases), explain)
    with workers.scope():
        trains_backbone = any(phase.freeze != "all" for phase in phases)
        config, model = built_on_evidence(images, config, trains_backbone)
    callbacks = make_callbacks(callback)
    fewer = begun["config"].get("limited", {}) if begun else {}
    config = replace(config, overrides={**fewer, **config.overrides})
    if clock.minutes is not None:
        from keras_transfer.advisor.limits import with_limit

        if not begun:
            fewer = with_limit(config.overrides, schedule, model, images, clock, config.batch_size)
            config = replace(config, overrides={**config.overrides, **fewer})
        callbacks.append(clock.callback())
    trainer = Trainer(model, schedule, config, distribute=workers)
    recorded = saved_config(data, config)
    if advice is not None:
        recorded["advice"] = advice
    if fewer:
        recorded["limited"] = fewer
    try:
        with interruption_reported():
            run = trainer.fit(
                images,
                out,
                config=recorded,
                resume=begun is not None,
                callbacks=callbacks,
                logs=logs,
            )
    except KeyboardInterrupt:
        workers.leave(130)
        raise
    if workers.chief:
        _print_result(run, out, config.keep, explain, as_json)


def _raced(images, out: Path, config, record, clock):
    """Let the advisor choose and train the best model that the time allows."""
    from keras_transfer.advisor.auto import train_best
    from keras_transfer.advisor.rules import named

    backbones = named(config.backbone)
    with interruption_reported():
        return train_best(
            images,
            out,
            config,
            backbones=backbones,
            build=partial(build, images),
            record=record,
            clock=clock,
        )


def _print_result(run, out, keep, explain, as_json):
    metrics = run.metrics
    race = read_json(run.path / RACE, optional=True)
    if as_json:
        print(json.dumps({"run": str(out), "metrics": metrics, "race": race}, indent=2))
        return
    if explain and race:
        from keras_transfer.advisor.evidence import candidates_table
        from keras_transfer.advisor.race import contenders_table

        print(f"{candidates_table(race['evidence'])}\n\n{contenders_table(race)}\n")
    again = metrics.get("refit")
    seconds = metrics["wall_seconds"] + (again["wall_seconds"] if again else 0)
    print(
        f"val {_val_text(metrics)}, {keep} epoch {metrics['best_epoch']}, "
        f"{seconds:.0f} s of training, {counted(metrics['skipped'], 'file')} skipped"
    )
    models = "model.keras"
    if again:
        print(
            f"trained again on all {counted(again['examples'], 'example')}; validated.keras is the model before"
        )
        models += ", validated.keras"
    print(f"{out}: {models}, metrics.json, history.csv, config.yaml, split.csv, skipped.csv")
    print(f"next: {shlex.join(['keras-transfer', 'report', str(out)])}", file=sys.stderr)


def _start_workers(distribute: str, out: Path) -> SingleProcess:
    """Join the workers of `--distribute`, or return the single process.

    Processes other than the chief write their messages into a file beside the run from here on.
    """
    if distribute == "none":
        return SINGLE
    from keras_transfer.training.distributed.environment import plan, start_workers

    plan(distribute)
    load_keras()
    workers = start_workers(distribute)
    if not workers.chief:
        out.parent.mkdir(parents=True, exist_ok=True)
        log_to(out.with_name(f"{out.name}.worker-{workers.index}.log"))
    return workers


def _begun(workers: SingleProcess, out: Path) -> dict | None:
    """Return `config` and the path `split` of the run to resume, as the chief has them.

    None if nothing was begun.
    """
    from keras_transfer.runs import Run, finished_error

    def read():
        if not Run.started(out):
            return None
        run = Run.open(out, finished=False)
        if run.finished:
            raise finished_error(out)
        check_output_folder(run.path)
        return [run.config, read_text(run.split_path)]

    found = workers.on_chief(read)
    if found is None:
        return None
    config, text = found
    if workers.chief:
        return {"config": config, "split": Run(out).split_path}
    split = Path(tempfile.mkdtemp(prefix="keras-transfer-")) / "split.csv"
    write_text(split, text)
    return {"config": config, "split": split}


def with_precision(workers: SingleProcess, config):
    """Settle `auto` for workers without accelerators: float32, as there is nothing to measure."""
    if not workers.distributed or config.precision != AUTO:
        return config
    from keras_transfer.models.acceleration import has_gpu

    return config if has_gpu() else replace(config, precision="float32")


def check_decided(workers: SingleProcess, config) -> None:
    """Raise InputError for settings that trials decide, because several workers run none."""
    for name in _open_choices(config) if workers.distributed else ():
        if name in ("backbone", "strategy"):
            raise InputError(
                f"--distribute needs a --{name} by name: `keras-transfer advise DATA`, on one "
                "machine, recommends one."
            )
        if name == "precision":
            raise InputError(
                "--distribute needs a --precision by name, as 'auto' measures each machine: "
                "mixed_bfloat16 on GPUs from compute capability 8.0 and on TPUs, else float32."
            )


def _open_choices(config):
    """Return the names of the settings that were left to the advisor or to the machine."""
    names = [n for n in ("strategy", "precision", "augment", "taps") if getattr(config, n) == AUTO]
    return [*(["backbone"] if advisor_chooses(config.backbone) else []), *names]


def _val_text(metrics):
    """Return the validation metrics of the saved epoch, in words that suit the task."""
    from keras_transfer.utils.statistics import wilson_interval

    val, last, n = metrics["val"], metrics["phases"][-1]["val"], metrics["images"]["val"]
    if "accuracy" not in val:
        values = ", ".join(f"{name} {val[name]:.4f}" for name in last)
        return f"{values} ({counted(n, 'example')})"
    low, high = wilson_interval(round(val["accuracy"] * n), n)
    return (
        f"accuracy {val['accuracy']:.4f} (95 % interval {low:.3f}–{high:.3f}, {counted(n, 'example')}), "
        f"loss {val['loss']:.4f}, last epoch {last['accuracy']:.4f}"
    )


@takes(*_ADAPTATION)
def adapt(
    source: Data,
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="A folder of unlabelled images at any depth.")
    ],
    method: Annotated[str, typer.Option(metavar="NAME[,NAME]", help=f"{', '.join(METHOD_NAMES)}.")],
    out: RunOut,
    settings,
    freeze: Freeze = "none",
    batch_norm: Annotated[
        BatchNorm, typer.Option(help="Batches that BatchNorm statistics come from; frozen: none.")
    ] = BatchNorm("joint"),
    bottleneck: Annotated[
        int, typer.Option(help="Width of the aligned layer; 0 aligns the output of the backbone.")
    ] = 256,
    keep: Annotated[
        KeepEpoch,
        typer.Option(help="The epoch whose weights are saved: last, or selected without labels."),
    ] = KeepEpoch("last"),
    target_labels: Annotated[
        bool,
        typer.Option(
            "--target-labels",
            help="TARGET has class folders: report the accuracy, and use them for nothing else.",
        ),
    ] = False,
    resume: Resume = False,
    as_json: Json = False,
):
    """Adapt a model to unlabelled images of TARGET, with labelled images of SOURCE."""
    from keras_transfer.adaptation.run import Adaptation, result_line

    config = settings.config
    if config.augment == AUTO:
        config = replace(config, augment="light")
    adaptation = Adaptation(
        source,
        target,
        out,
        method=method,
        freeze=freeze,
        batch_norm=str(batch_norm),
        bottleneck=bottleneck,
        keep=str(keep),
        target_labels=target_labels,
        resume=resume,
        **{name: getattr(config, name) for name in _ADAPTATION},
    )
    print(adaptation.describe(), file=sys.stderr)
    load_keras()
    from keras_transfer.reporting import write_report

    with interruption_reported():
        run = adaptation.run()
    write_report(run)
    if as_json:
        print(json.dumps(run.metrics, indent=2))
        return
    print(result_line(run))
    print(f"{out}: report.html, model.keras, metrics.json, history.csv, config.yaml, skipped.csv")
