"""The command `adapt`: a model for another domain."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from keras_transfer.adaptation import METHOD_NAMES
from keras_transfer.cli.common import load_keras, stop_said
from keras_transfer.cli.options import (
    AugmentOption,
    BatchNorm,
    BatchSize,
    ColumnOption,
    Data,
    Epochs,
    Freeze,
    ImageSize,
    Json,
    KeepEpoch,
    LearningRate,
    NoFlip,
    PrecisionOption,
    RunOut,
    Seed,
    ValOption,
    ValSplit,
    WeightsOption,
    settings_of,
)


def adapt(
    source: Data,
    target: Annotated[
        Path,
        typer.Argument(metavar="TARGET", help="A folder of images, at any depth, unlabelled."),
    ],
    method: Annotated[str, typer.Option(metavar="NAME[,NAME]", help=f"{', '.join(METHOD_NAMES)}.")],
    out: RunOut,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="A name of `keras-transfer backbones`, a .keras file, a RUN, or auto: one whose "
            "weights are here. [auto]"
        ),
    ] = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = None,
    augment: AugmentOption = None,
    no_flip: NoFlip = False,
    precision: PrecisionOption = None,
    freeze: Freeze = "none",
    batch_norm: Annotated[
        BatchNorm, typer.Option(help="Whose batches it is computed from; frozen: none.")
    ] = BatchNorm("joint"),
    bottleneck: Annotated[
        int, typer.Option(help="Width of the layer whose output is aligned; 0: the backbone's.")
    ] = 256,
    keep: Annotated[
        KeepEpoch, typer.Option(help="The epoch that is kept: last, or selected without labels.")
    ] = KeepEpoch("last"),
    target_labels: Annotated[
        bool,
        typer.Option(
            "--target-labels", help="TARGET/<class>/: report the accuracy; nothing else uses it."
        ),
    ] = False,
    weights: WeightsOption = None,
    seed: Seed = None,
    val: ValOption = None,
    val_split: ValSplit = None,
    column: ColumnOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
    as_json: Json = False,
):
    """Adapt a model: labelled images of SOURCE, unlabelled ones of TARGET, a model for TARGET."""
    from keras_transfer.adaptation.outcome import outcome
    from keras_transfer.adaptation.running import Adaptation
    from keras_transfer.reporting import write_report
    from keras_transfer.schedules.recipes import AUTO

    settings = settings_of(locals(), but="keep")
    if settings["augment"] == AUTO:
        settings["augment"] = "light"
    given = (
        *("backbone", "image_size", "batch_size", "augment", "precision", "weights", "seed"),
        *("val", "val_split", "columns"),
    )
    adaptation = Adaptation(
        source,
        target,
        out,
        method=method,
        epochs=epochs,
        learning_rate=learning_rate,
        freeze=freeze,
        batch_norm=str(batch_norm),
        bottleneck=bottleneck,
        keep=str(keep),
        target_labels=target_labels,
        resume=resume,
        **{name: settings[name] for name in given},
    )
    print(adaptation.describe(), file=sys.stderr)
    load_keras()
    with stop_said():
        run = adaptation.run()
    write_report(run)
    if as_json:
        print(json.dumps(run.metrics, indent=2))
        return
    print(outcome(run))
    print(f"{out}: report.html, model.keras, metrics.json, history.csv, config.yaml, skipped.csv")
