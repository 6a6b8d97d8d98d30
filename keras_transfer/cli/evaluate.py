"""The command `evaluate`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from keras_transfer.cli.options import Column, Json, RunPath, columns_of, load_keras
from keras_transfer.errors import InputError


def evaluate(
    run: RunPath,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="DATA/<class>/*.jpg, or a table.")],
    split: Annotated[
        str | None,
        typer.Option(
            help="Which of DATA/{train,val,test}, or which split of the run. "
            "(default: test, else val, else all)"
        ),
    ] = None,
    column: Column = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A directory for evaluation.json, predictions.csv and plots."),
    ] = None,
    slice: Annotated[
        list[str] | None,
        typer.Option(
            metavar="folder|size|COLUMN",
            help="Also measure each folder, size, or value of a table column. Repeatable.",
        ),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(
            help="Precision to reach, e.g. 0.99, by abstaining below a confidence threshold."
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Fit temperature and thresholds on the validation split of DATA; save them in RUN.",
        ),
    ] = False,
    tta: Annotated[
        str | None,
        typer.Option(
            metavar="mirror|N",
            help="Test-time augmentation: average over each image and its mirror image, or over "
            "N augmented views.",
        ),
    ] = None,
    as_json: Json = False,
):
    """Measure a run on labelled images. With any of these options, measure it in full."""
    from keras_transfer.data import open_labeled
    from keras_transfer.data.examples import targets_of
    from keras_transfer.evaluation.calibration import PRECISIONS, Calibration, check_precision
    from keras_transfer.evaluation.outputs import resolve_views
    from keras_transfer.evaluation.slices import check_columns, slice_values
    from keras_transfer.runs import Run

    run = Run.open(run)
    config = run.config
    augmentation = config.get("augment", "light")
    columns = columns_of(column) or config.get("columns")
    path_column = (columns or {}).get("path_column", "path")
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: choose a directory for --out.")
    known = targets_of(config)
    if precision is not None:
        targets = known.values() if isinstance(known, dict) else [known]
        check_precision(precision, [target.task for target in targets])
    resolve_views(tta, augmentation)
    for by in slice or ():
        if by not in ("folder", "size"):
            check_columns(data, by, path_column)

    def opened(split):
        return open_labeled(data, known, split=split, split_file=run.split_path, columns=columns)

    images = opened(split)
    validation = opened("val") if calibrate else None
    kept = run.calibration
    load_keras()
    from keras_transfer import evaluation

    (split,) = images.examples
    in_short = not (out or slice or precision or calibrate or tta)
    model = run.model
    if in_short:
        result = evaluation.evaluate(model, images, split)
        result["skipped"] = len(images.skipped)
        print(json.dumps(result, indent=2) if as_json else evaluation.summary_text(result, split))
        return
    options = {"tta": tta, "augmentation": augmentation}
    if calibrate:
        wanted = {*PRECISIONS, *([precision] if precision else [])}
        fitted = evaluation.calibrate(model, validation, **options, precisions=sorted(wanted))
        run.write_calibration(fitted.to_dict())
        print(f"{run.path}: calibrated on {fitted.images} images of val", file=sys.stderr)
    else:
        fitted = Calibration.from_dict(kept) if kept else None
        if fitted and str(fitted.tta) != str(tta):
            print(
                f"the run's calibration does not apply: it was fitted with --tta {fitted.tta or '(none)'}",
                file=sys.stderr,
            )
            fitted = None
    slices = {
        by: slice_values(images, split, by, table=data, path_column=path_column)
        for by in slice or ()
    }
    found = evaluation.assess(
        model, images, split, calibration=fitted, precision=precision, slices=slices, **options
    )
    if out is not None:
        files = found.save(out)
        print(f"{out}: {', '.join(file.name for file in files)}", file=sys.stderr)
    if as_json:
        document = {**found.brief, "skipped": len(images.skipped), "evaluation": found.to_dict()}
        print(json.dumps(document, indent=2))
        return
    print(found.table())
