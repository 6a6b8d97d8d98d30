"""The commands that use a finished run: `evaluate`, `predict`, `select`, `report`, `export` and `ask`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from keras_transfer.cli.columns import columns_of, merged
from keras_transfer.cli.options import Column, Format, Images, Json, Runner, RunPath, load_keras
from keras_transfer.cli.streams import print_document
from keras_transfer.errors import InputError
from keras_transfer.export import check_format, check_version
from keras_transfer.utils.console import counted, verb
from keras_transfer.utils.extras import require
from keras_transfer.utils.files import (
    check_new_folder,
    check_output,
    check_output_folder,
    write_text,
)


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
    from keras_transfer.runs import CALIBRATION, Run

    run = Run.open(run)
    config = run.config
    augmentation = config.get("augment", "light")
    columns = merged(config.get("columns"), columns_of(column))
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: choose a directory for --out.")
    if out is not None:
        check_output_folder(out)
    if calibrate:
        check_output(run.path / CALIBRATION)
    known = targets_of(config)
    if precision is not None:
        targets = known.values() if isinstance(known, dict) else [known]
        check_precision(precision, [target.task for target in targets])
    resolve_views(tta, augmentation)
    for by in slice or ():
        if by not in ("folder", "size"):
            check_columns(data, by, columns)

    def opened(split):
        return open_labeled(data, known, split=split, split_file=run.split_path, columns=columns)

    images = opened(split)
    validation = opened("val") if calibrate else None
    kept = run.calibration
    load_keras()
    from keras_transfer import evaluation

    (split,) = images.examples
    in_short = not (out or slice or precision or calibrate or tta)
    model = run.model_for(split, images.examples[split])
    if in_short:
        result = evaluation.evaluate(model, images, split)
        result["skipped"] = len(images.skipped)
        print(json.dumps(result, indent=2) if as_json else evaluation.summary_text(result, split))
        return
    options = {"tta": tta, "augmentation": augmentation}
    if calibrate:
        wanted = {*PRECISIONS, *([precision] if precision else [])}
        fitted = evaluation.calibrate(
            run.model_for("val"), validation, **options, precisions=sorted(wanted)
        )
        run.write_calibration(fitted.to_dict())
        print(
            f"{run.path}: calibrated on {counted(fitted.images, 'example')} of val", file=sys.stderr
        )
    else:
        fitted = Calibration.from_dict(kept) if kept else None
        if fitted and str(fitted.tta) != str(tta):
            print(
                f"the run's calibration does not apply: it was fitted with --tta {fitted.tta or '(none)'}",
                file=sys.stderr,
            )
            fitted = None
    slices = {
        by: slice_values(images, split, by, table=data, columns=columns) for by in slice or ()
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


def predict(
    run: RunPath,
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH|TEXT...", help="Files and folders; or texts."),
    ] = None,
    lines: Annotated[Path | None, typer.Option(help="A file with one text per line.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write a CSV file instead of printing it; a folder with --runner beam."),
    ] = None,
    runner: Annotated[
        Runner, typer.Option(help="beam: for very many files, with restarts and other machines.")
    ] = Runner("local"),
    shard_size: Annotated[
        int, typer.Option(min=1, help="With --runner beam: files per Parquet file.")
    ] = 500,
    beam_option: Annotated[
        list[str] | None,
        typer.Option(help="With --runner beam: an option of the pipeline. Repeatable."),
    ] = None,
    as_json: Json = False,
):
    """Predict examples, as CSV or JSON: the path or text, then label and score, or what the task gives."""
    from keras_transfer.data.evaluation_data import check_to_predict
    from keras_transfer.modalities import find_modality, framing_from
    from keras_transfer.runs import Run
    from keras_transfer.utils.console import printable

    run = Run.open(run)
    if runner == "beam":
        require("apache_beam", "--runner beam")
        if out is None or lines is not None:
            raise InputError(
                "--runner beam writes a folder and reads files: pass --out FOLDER, no --lines."
            )
        check_output_folder(out)
    elif beam_option:
        raise InputError("--beam-option needs --runner beam.")
    elif out is not None:
        check_output(out)
    modality = find_modality(framing_from(run.config).modality)
    check_to_predict(paths or (), modality, lines)  # before TensorFlow is imported
    load_keras()
    if runner == "beam":
        from keras_transfer.export.beam import predict_files

        counts = predict_files(
            run, paths or (), str(out), shard_size=shard_size, arguments=beam_option or ()
        )
        if as_json:
            print(json.dumps(vars(counts)))
        else:
            skipped = f", {counts.skipped} skipped" if counts.skipped else ""
            print(
                f"{out}: {counted(counts.predicted, 'file')} predicted{skipped}, in {counted(counts.shards, 'shard')}"
            )
        return
    from keras_transfer import evaluation

    predictions, skipped = evaluation.predict(run.model, paths or (), lines=lines)
    for item in skipped:
        print(f"skipped {printable(item.path)}: {item.reason}", file=sys.stderr)
    table = evaluation.predictions_csv(predictions)
    if out is not None:
        write_text(out, table)
    if as_json:
        print(json.dumps(evaluation.predictions_json(predictions, skipped), indent=2))
    elif out is None:
        print_document(table)


def select(
    run: Annotated[Path, typer.Option(metavar="RUN", help="The --out directory of a training.")],
    count: Annotated[int, typer.Option(help="Number of examples to choose.")],
    pool: Annotated[
        list[str] | None,
        typer.Argument(metavar="POOL...", help="Unlabelled files and folders; or texts."),
    ] = None,
    lines: Annotated[Path | None, typer.Option(help="A file with one text per line.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="Write the table instead of printing it."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice.")] = 0,
    as_json: Json = False,
):
    """Choose unlabelled examples to label next: the run is unsure of them, and they differ."""
    from keras_transfer.data.evaluation_data import check_to_predict
    from keras_transfer.diagnosis.selection import check_count, selection_csv
    from keras_transfer.diagnosis.selection import select as select_from
    from keras_transfer.modalities import find_modality, framing_from
    from keras_transfer.runs import Run
    from keras_transfer.utils.console import printable

    run = Run.open(run)
    check_count(count)
    if out is not None:
        check_output(out)
    modality = find_modality(framing_from(run.config).modality)
    check_to_predict(pool or (), modality, lines)  # before TensorFlow is imported
    load_keras()
    chosen, skipped = select_from(run, pool or (), count=count, lines=lines, seed=seed)
    for item in skipped:
        print(f"skipped {printable(item.path)}: {item.reason}", file=sys.stderr)
    table = selection_csv(chosen)
    if out is not None:
        write_text(out, table)
        print(f"wrote {out}: fill in the column label", file=sys.stderr)
    if as_json:
        print(json.dumps([vars(one) for one in chosen], indent=2))
    elif out is None:
        print_document(table)


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
    check_output(out or (COMPARISON if len(opened) > 1 else opened[0].report_path))
    if len(opened) > 1:
        from keras_transfer.reporting import compare_runs

        if data or split or column:
            raise InputError("--data, --split and --column apply to the report of one run.")
        print(compare_runs(opened, out or COMPARISON))
        return
    (run,) = opened
    from keras_transfer.reporting.run_report import check_run

    check_run(run, data, split)
    found, own = None, run.config.get("data")
    # On the run's own data, measure only what it was not trained on, unless --split names it.
    is_own = data is None or bool(own and data.absolute() == Path(own).absolute())
    if column and is_own:
        raise InputError(
            "--column needs --data of other examples: the run recorded its own columns."
        )
    if data is not None and not is_own:
        found = open_labeled(
            data,
            targets_of(run.config),
            split=split,
            split_file=run.split_path,
            columns=merged(run.config.get("columns"), columns_of(column)),
        )
        (split,) = found.examples
    load_keras()
    from keras_transfer.reporting import write_report
    from keras_transfer.training.logs import add_to_log

    page = write_report(run, found, split=split, images=images, out=out)
    add_to_log(run, page)
    print(page)
    print("open it in a browser; it needs no network", file=sys.stderr)


def export(
    run: RunPath,
    format: Annotated[Format, typer.Option(help="saved_model is for TF Serving.")] = Format(
        "saved_model"
    ),
    int8: Annotated[
        bool, typer.Option("--int8", help="8 bits (images; not saved_model, tfjs, hub).")
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
        float,
        typer.Option(
            help="Largest loss of quality (for classes, accuracy) for int8: 0.02 is two points."
        ),
    ] = 0.02,
    as_json: Json = False,
):
    """Export the model with a model card, and compare it with the Keras model on the run's images."""
    from keras_transfer.runs import Run

    run = Run.open(run)
    check_format(format, int8)
    out = out or run.next_export(format, int8)
    check_version(format, out)
    check_new_folder(out)
    check_output_folder(out.parent)
    if not 0 <= max_loss <= 1:
        raise InputError(f"Invalid --max-loss {max_loss:g}. Pass a share from 0 to 1, e.g. 0.02.")
    if data is not None and not data.exists():
        raise InputError(f"--data {data} not found. Check the path.")
    load_keras()
    from keras_transfer.export import export_run
    from keras_transfer.training.logs import add_to_log

    result = export_run(run, str(format), int8=int8, out=out, data=data, most_lost=max_loss)
    add_to_log(run, result.path)
    if as_json:
        parity = result.parity and {**vars(result.parity), "lost": result.parity.lost}
        document = {**vars(result), "path": str(result.path), "parity": parity}
        print(json.dumps(document, indent=2))
        return
    form = f"{format}{' int8' if int8 else ''}"
    print(f"{result.path}: {form}, {result.bytes / 1e6:.1f} MB, with README.md")
    if result.parity is not None:
        print(f"compared with the Keras model: {result.parity.text()}")
    if format == "page":
        print(f"open it: python -m http.server --directory {result.path}", file=sys.stderr)
    if format == "saved_model":
        from keras_transfer.export.serving import signatures_of

        text = f"signatures: {', '.join(signatures_of(run.model))}; docs/export.md explains how to serve it"
        print(text, file=sys.stderr)


def ask(
    server: Annotated[
        str, typer.Argument(metavar="SERVER", help="http://HOST:8501 or grpc://HOST:8500.")
    ],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model on the server.")],
    paths: Images,
    version: Annotated[
        int | None, typer.Option(help="Version of the model. (default: the newest)")
    ] = None,
    features: Annotated[
        bool, typer.Option("--features", help="Print the backbone's features, not the scores.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images per request.")] = 16,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 30.0,
    retries: Annotated[int, typer.Option(help="Retries if the server is busy.")] = 3,
):
    """Send images to TF Serving and print one JSON document per line and image."""
    from keras_transfer.data.evaluation_data import list_images
    from keras_transfer.export.client import Client, ServingError
    from keras_transfer.modalities.image.decode import scaled_files

    files = list_images(paths)
    if scaled_files(files):
        print(
            "warning: no pixel is above 1. The model expects RGB values 0–255: multiply by 255.",
            file=sys.stderr,
        )
    client = Client(server, model, version, batch_size, timeout, retries)
    errors = 0
    try:
        for answer in client.features(files) if features else client.predict(files):
            errors += answer["error"] is not None
            print(json.dumps(answer))
    except ServingError as error:  # not an internal error
        raise InputError(str(error)) from None
    if errors:
        print(
            f"{errors} of {counted(len(files), 'image')} {verb(errors, 'was', 'were')} not answered",
            file=sys.stderr,
        )
