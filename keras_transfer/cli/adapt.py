"""The command `adapt`: adapt a model to another domain."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from keras_transfer.adaptation import METHOD_NAMES
from keras_transfer.cli.options import (
    BatchNorm,
    Data,
    Freeze,
    Json,
    KeepEpoch,
    Resume,
    RunOut,
    interruption_reported,
    load_keras,
    takes,
)

_SETTINGS = (
    *("backbone", "image_size", "batch_size", "augment", "precision", "weights", "seed"),
    *("val", "val_split", "columns", "epochs", "learning_rate"),
)


@takes(*_SETTINGS)
def adapt(
    source: Data,
    target: Annotated[
        Path,
        typer.Argument(metavar="TARGET", help="A folder of unlabelled images at any depth."),
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
    from keras_transfer.schedules.recipes import AUTO

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
        **{name: getattr(config, name) for name in _SETTINGS},
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
