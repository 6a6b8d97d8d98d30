"""The command `export`: a run in a format that runs elsewhere."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from keras_transfer.cli.common import load_keras
from keras_transfer.cli.options import Format, Json, RunPath
from keras_transfer.errors import InputError
from keras_transfer.export import check_format


def export(
    run: RunPath,
    format: Annotated[Format, typer.Option(help="saved_model is for TF Serving.")] = Format(
        "saved_model"
    ),
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Weights and activations in 8 bits (not of saved_model)."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Version directory. (default: RUN/export/N or RUN/export/FORMAT/N, the next N)"
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The run's labelled images, where they were moved.")
    ] = None,
    max_loss: Annotated[
        float, typer.Option(help="The most accuracy that int8 may lose: 0.02 are two points.")
    ] = 0.02,
    as_json: Json = False,
):
    """Export the model, checked against the Keras model on the run's images, with a model card."""
    from keras_transfer.export.folder import check_free
    from keras_transfer.runs import Run

    run = Run.open(run)
    check_format(format, int8)
    out = out or run.next_export(format, int8)
    check_free(out)
    if not 0 <= max_loss <= 1:
        raise InputError(f"--max-loss {max_loss:g}: give a share from 0 to 1, e.g. 0.02.")
    if data is not None and not data.exists():
        raise InputError(f"no such folder or file: {data}; check --data")
    load_keras()
    from keras_transfer.export import export_run

    found = export_run(run, str(format), int8=int8, out=out, data=data, most_lost=max_loss)
    if as_json:
        parity = found.parity and {**vars(found.parity), "lost": found.parity.lost}
        document = {**vars(found), "path": str(found.path), "parity": parity}
        print(json.dumps(document, indent=2))
        return
    form = f"{format}{' int8' if int8 else ''}"
    print(f"{found.path}: {form}, {found.bytes / 1e6:.1f} MB, with README.md")
    if found.parity is not None:
        print(f"compared with the Keras model: {found.parity.text()}")
    if format == "saved_model":
        from keras_transfer.export.serving import SIGNATURES

        print(f"serve it: docs/export.md; signatures {', '.join(SIGNATURES)}", file=sys.stderr)
