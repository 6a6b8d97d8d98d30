"""The command `export`: convert a run's model for TF Serving or for another runtime."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from keras_transfer.cli.options import Format, Json, RunPath, load_keras
from keras_transfer.errors import InputError
from keras_transfer.export import check_format


def export(
    run: RunPath,
    format: Annotated[Format, typer.Option(help="saved_model is for TF Serving.")] = Format(
        "saved_model"
    ),
    int8: Annotated[
        bool,
        typer.Option("--int8", help="8-bit weights and activations (not for saved_model)."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Version directory. (default: RUN/export/N or RUN/export/FORMAT/N, the next N)"
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The run's labeled images, if they were moved.")
    ] = None,
    max_loss: Annotated[
        float, typer.Option(help="Largest loss of accuracy for int8: 0.02 is two points.")
    ] = 0.02,
    as_json: Json = False,
):
    """Export the model with a model card, and compare it with the Keras model on the run's images."""
    from keras_transfer.runs import Run
    from keras_transfer.utils.files import check_new_folder

    run = Run.open(run)
    check_format(format, int8)
    out = out or run.next_export(format, int8)
    check_new_folder(out)
    if not 0 <= max_loss <= 1:
        raise InputError(f"Invalid --max-loss {max_loss:g}. Pass a share from 0 to 1, e.g. 0.02.")
    if data is not None and not data.exists():
        raise InputError(f"--data {data} not found. Check the path.")
    load_keras()
    from keras_transfer.export import export_run

    result = export_run(run, str(format), int8=int8, out=out, data=data, most_lost=max_loss)
    if as_json:
        parity = result.parity and {**vars(result.parity), "lost": result.parity.lost}
        document = {**vars(result), "path": str(result.path), "parity": parity}
        print(json.dumps(document, indent=2))
        return
    form = f"{format}{' int8' if int8 else ''}"
    print(f"{result.path}: {form}, {result.bytes / 1e6:.1f} MB, with README.md")
    if result.parity is not None:
        print(f"compared with the Keras model: {result.parity.text()}")
    if format == "saved_model":
        from keras_transfer.export.serving import SIGNATURES

        text = f"signatures: {', '.join(SIGNATURES)}; docs/export.md explains how to serve it"
        print(text, file=sys.stderr)
