"""The command line. Thin: it reads options, calls the library and prints.

Every check that needs neither Keras nor TensorFlow comes first, so that bad input is answered at
once.
"""

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from keras_transfer.errors import InputError

app = typer.Typer(
    name="keras-transfer",
    help="Transfer learning: from a folder of labelled pictures to a served model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Precision(StrEnum):
    auto = "auto"
    float32 = "float32"
    mixed_bfloat16 = "mixed_bfloat16"
    mixed_float16 = "mixed_float16"


class Augment(StrEnum):
    none = "none"
    light = "light"
    medium = "medium"
    heavy = "heavy"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The --out directory of a training.")]


@app.command()
def backbones(as_json: Json = False):
    """List the backbones: parameters, image size, stages, preprocessing, weights on this machine."""
    from keras_transfer.backbones import BACKBONES, weights_path

    rows = [
        {
            "name": spec.name,
            "parameters": spec.parameters,
            "image_size": spec.size,
            "least_image_size": spec.min_size,
            "stages": spec.stages,
            "preprocessing": spec.preprocessing,
            "weights_present": weights_path(spec).is_file(),
        }
        for spec in BACKBONES.values()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print(
        f"{'name':<34}{'parameters':>12}{'size':>6}{'least':>6}{'stages':>8}  {'preprocessing':<14}weights"
    )
    for row in rows:
        print(
            f"{row['name']:<34}{row['parameters']:>12,}{row['image_size']:>6}"
            f"{row['least_image_size']:>6}{row['stages']:>8}  {row['preprocessing']:<14}"
            f"{'present' if row['weights_present'] else 'download'}"
        )


@app.command()
def train(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="DATA/<class>/*.jpg")],
    out: Annotated[Path, typer.Option(help="Directory of the run; must not exist yet.")],
    backbone: Annotated[
        str | None,
        typer.Option(help="A name of `keras-transfer backbones`, a .keras file or a RUN."),
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="feature_extraction, fine_tune or from_scratch.")
    ] = None,
    val: Annotated[
        Path | None, typer.Option(help="Folder of validation pictures, VAL/<class>/.")
    ] = None,
    val_split: Annotated[
        float | None, typer.Option(help="Share taken for validation. [0.2]")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Height and width. [the backbone's]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures a step. [32]")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of all phases. [the strategy's]")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Highest rate. [the strategy's]")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="[auto]", show_choices=True)] = None,
    augment: Annotated[Augment, typer.Option(help="[light]")] = None,
    weights: Annotated[str | None, typer.Option(help="imagenet, none, or a weights file.")] = None,
    seed: Annotated[int | None, typer.Option(help="Two runs with one seed are equal. [0]")] = None,
    config: Annotated[
        Path | None, typer.Option(help="A config.yaml; options given here win over it.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
):
    """Train a model on a folder of labelled pictures."""
    from keras_transfer.backbones import check_backbone
    from keras_transfer.data import from_directory
    from keras_transfer.runs import Run, check_out
    from keras_transfer.schedules import Schedule, resolve_schedule

    given = {
        "backbone": backbone,
        "strategy": strategy,
        "val": val and str(val),
        "val_split": val_split,
        "image_size": image_size,
        "batch_size": batch_size,
        "precision": precision and precision.value,
        "augment": augment and augment.value,
        "weights": weights,
        "seed": seed,
    }
    settings = _settings(config, given)
    if resume:
        Run.open(out, finished=False)
    else:
        check_out(out)
    if isinstance(settings.get("schedule"), dict) and not (strategy or epochs or learning_rate):
        schedule = Schedule.from_dict(settings["schedule"])
    else:
        schedule = settings["strategy"]
    numbers = {"epochs": epochs, "learning_rate": learning_rate}
    if settings["weights"] == "none" or not resolve_schedule(schedule, **numbers).pretrained:
        settings["weights"] = None
    name = settings["backbone"]
    check_backbone(name, settings["image_size"], settings["weights"])
    pictures = from_directory(
        data, val=settings["val"], val_split=settings["val_split"], seed=settings["seed"]
    )
    print(pictures.describe(), file=sys.stderr)

    _load_keras()
    import keras

    from keras_transfer.builders import build_model
    from keras_transfer.evaluation import wilson_interval
    from keras_transfer.heads import Classification
    from keras_transfer.training import Trainer, set_precision

    settings["precision"] = set_precision(settings["precision"])
    keras.utils.set_random_seed(settings["seed"])
    model = build_model(
        name,
        Classification(pictures.class_names),
        image_size=settings["image_size"],
        weights=settings["weights"],
    )
    trainer = Trainer(
        model,
        schedule,
        **numbers,
        batch_size=settings["batch_size"],
        augment=settings["augment"],
        seed=settings["seed"],
    )
    kept = {key: settings[key] for key in ("backbone", "strategy", "weights", "val", "val_split")}
    kept["weights"] = kept["weights"] or "none"
    run = trainer.fit(pictures, out, config={"data": str(data), **kept}, resume=resume)
    metrics = run.metrics
    n = metrics["images"]["val"]
    accuracy = metrics["val"]["accuracy"]
    low, high = wilson_interval(round(accuracy * n), n)
    print(
        f"val accuracy {accuracy:.4f} (95 % interval {low:.3f}–{high:.3f}, {n} pictures), "
        f"loss {metrics['val']['loss']:.4f}, best epoch {metrics['best_epoch']}, last epoch "
        f"{metrics['phases'][-1]['val']['accuracy']:.4f}, "
        f"{metrics['wall_seconds']:.0f} s of training, {metrics['skipped']} files skipped"
    )
    print(f"{out}: model.keras, metrics.json, history.csv, config.yaml, skipped.csv")


_DEFAULTS = {
    "backbone": "mobilenet_v2",
    "strategy": "fine_tune",
    "weights": "imagenet",
    "val": None,
    "val_split": 0.2,
    "image_size": None,
    "batch_size": 32,
    "precision": "auto",
    "augment": "light",
    "seed": 0,
}


def _settings(config, given):
    """Defaults, overridden by the config file, overridden by the options that were given."""
    from keras_transfer.data import Augmentation

    settings = dict(_DEFAULTS)
    if config is not None:
        import yaml

        if not config.is_file():
            raise InputError(f"No config file {config}: give the config.yaml of a run.")
        try:
            read = yaml.safe_load(config.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            where = str(error).replace("\n", " ")
            raise InputError(f"{config} is no YAML: {where}") from None
        if not isinstance(read, dict):
            raise InputError(f"{config} is no config: it must hold names and values.")
        settings.update({k: v for k, v in read.items() if k in _DEFAULTS or k == "schedule"})
    settings.update({key: value for key, value in given.items() if value is not None})
    if isinstance(settings["augment"], dict):  # one of the user's own, from a run's config
        settings["augment"] = Augmentation(**settings["augment"])
    return settings


@app.command()
def evaluate(
    run: RunPath,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="DATA/<class>/*.jpg")],
    split: Annotated[
        str | None, typer.Option(help="Which of DATA/{train,val,test}. [test, else val, else all]")
    ] = None,
    as_json: Json = False,
):
    """Measure a run on labelled pictures."""
    from keras_transfer.data import labelled_pictures
    from keras_transfer.runs import Run

    run = Run.open(run)
    pictures = labelled_pictures(data, run.config["head"]["names"], split=split)
    _load_keras()
    from keras_transfer import evaluation

    (split,) = pictures.examples
    result = evaluation.evaluate(run.model, pictures, split)
    result["skipped"] = len(pictures.skipped)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    low, high = result["accuracy_interval"]
    print(
        f"accuracy {result['accuracy']:.4f} (95 % interval {low:.3f}–{high:.3f}, "
        f"{result['pictures']} pictures of {split}), loss {result['loss']:.4f}, "
        f"{result['skipped']} files skipped"
    )
    print(f"{'class':<24}{'precision':>10}{'recall':>10}{'f1':>10}{'support':>10}")
    for name, row in result["per_class"].items():
        print(
            f"{name[:23]:<24}{row['precision']:>10.3f}{row['recall']:>10.3f}"
            f"{row['f1']:>10.3f}{row['support']:>10}"
        )


@app.command()
def predict(
    run: RunPath,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Pictures and folders.")],
    out: Annotated[
        Path | None, typer.Option(help="Write a CSV file instead of printing it.")
    ] = None,
    as_json: Json = False,
):
    """Predict pictures: path, label, score and the five best labels, as CSV or JSON."""
    from keras_transfer.data import list_pictures
    from keras_transfer.runs import Run, write_text

    run = Run.open(run)
    list_pictures(paths)  # a wrong path is said before TensorFlow is loaded
    _load_keras()
    from keras_transfer import evaluation

    predictions, skipped = evaluation.predict(run.model, paths)
    for item in skipped:
        print(f"skipped {item.path}: {item.reason}", file=sys.stderr)
    table = evaluation.predictions_csv(predictions)
    if out is not None:
        write_text(out, table)
    if as_json:
        print(json.dumps(evaluation.predictions_json(predictions, skipped), indent=2))
    elif out is None:
        print(table, end="")


class Format(StrEnum):
    saved_model = "saved_model"


@app.command()
def export(
    run: RunPath,
    format: Annotated[Format, typer.Option(help="What to write.")] = Format.saved_model,
    out: Annotated[
        Path | None, typer.Option(help="Version directory. [RUN/export/N, the next N]")
    ] = None,
):
    """Export a SavedModel for TF Serving, checked against the Keras model."""
    from keras_transfer.runs import Run

    run = Run.open(run)
    out = out or run.next_export()
    if out.exists():
        raise InputError(f"{out} exists: choose another version directory for the export.")
    _load_keras()
    from keras_transfer.export import saved_model

    saved_model(run.model, out)
    print(f"{out}: SavedModel with serving_default, serve_uint8 and serve_bytes")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where pictures, runs and the export go.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(help="Fixes everything random.")] = 0,
):
    """The offline demonstration: a source model, transfer against from-scratch, a served answer."""
    from keras_transfer.runs import check_out

    check_out(out)
    _load_keras()
    from keras_transfer.demo import run_demo

    run_demo(out, seed=seed)


def _load_keras():
    """Imports Keras and its backend without their start-up notes on stderr.

    TensorFlow's libraries write them before any log level is read. Errors are Python exceptions
    and are not lost.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import keras  # noqa: F401
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def main():
    """Entry point: bad input is one line on stderr and exit code 2."""
    try:
        app()
    except InputError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
