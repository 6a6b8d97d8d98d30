"""The command `report`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from keras_transfer.cli.options import Column, columns_of, load_keras
from keras_transfer.errors import InputError


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="The --out directory of a training; several to compare."
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="Labelled images to measure on. (default: what the run was trained on)"),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, val, test or all. (default: test, else val)")
    ] = None,
    column: Column = None,
    images: Annotated[
        int,
        typer.Option(
            "--examples",
            "--images",
            "--pictures",
            min=0,
            help="Number of errors shown with their image; 0 shows no images.",
        ),
    ] = 48,
    out: Annotated[
        Path | None,
        typer.Option(help="The file. (default: RUN/report.html; comparison.html of several)"),
    ] = None,
):
    """Write a page about a run: data, curves, errors with Grad-CAM. Pass several runs to compare."""
    from keras_transfer.data import open_labeled
    from keras_transfer.data.examples import targets_of
    from keras_transfer.runs import COMPARISON, Run

    if out is not None and out.is_dir():
        raise InputError(f"{out} is a directory: choose a .html file for --out.")
    opened = [Run.open(run) for run in runs]
    if len(opened) > 1:
        from keras_transfer.reporting import compare_runs

        if data or split:
            raise InputError("--data and --split apply to the report of one run.")
        print(compare_runs(opened, out or COMPARISON))
        return
    (run,) = opened
    from keras_transfer.reporting.run_report import check_run

    check_run(run, data, split)
    found, own = None, run.config.get("data")
    # On the run's own data, measure only what it was not trained on, unless --split names it.
    if data is not None and not (own and data.absolute() == Path(own).absolute()):
        found = open_labeled(
            data,
            targets_of(run.config),
            split=split,
            split_file=run.split_path,
            columns=columns_of(column) or run.config.get("columns"),
        )
        (split,) = found.examples
    load_keras()
    from keras_transfer.reporting import write_report

    print(write_report(run, found, split=split, images=images, out=out))
    print("open it in a browser; it needs no network", file=sys.stderr)
