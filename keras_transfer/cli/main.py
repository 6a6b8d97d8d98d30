"""The commands of `keras-transfer`, and those that are short.

A command checks everything it can before it imports Keras, so that invalid input is answered at once.
"""

import contextlib
import json
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from keras_transfer.cli.choose import advise, compare, tune
from keras_transfer.cli.columns import command_with
from keras_transfer.cli.finished import ask, evaluate, export, predict, report, select
from keras_transfer.cli.options import Data, Json, check_png, load_keras, takes
from keras_transfer.cli.plan import find_rate, schedule
from keras_transfer.cli.streams import (
    accept_any_name,
    flush_streams,
    report_error,
    report_os_error,
    require_streams,
)
from keras_transfer.cli.train import adapt, train
from keras_transfer.data.flaws import unprinted_flaws
from keras_transfer.errors import ColumnError, InputError, WorkerLost, input_error_in
from keras_transfer.training.distributed.single_process import active
from keras_transfer.utils.console import Table, print_table
from keras_transfer.utils.files import check_output

app = typer.Typer(
    name="keras-transfer",
    help="Transfer learning: from a folder of labelled images to a served model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def backbones(
    source: Annotated[
        str, typer.Option(help="applications (of Keras), or hub (presets of KerasHub).")
    ] = "applications",
    kind: Annotated[str, typer.Option(help="Of the hub: image or text.")] = "image",
    as_json: Json = False,
):
    """List the backbones: parameters, image size, stages, preprocessing, weights on this machine."""
    sources = {"applications": _applications, "hub": _presets}
    if source not in sources:
        raise InputError(f"Unknown source '{source}'. Choose one of {', '.join(sources)}.")
    rows, table = sources[source](kind)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        print_table(table)


def _presets(kind):
    from keras_transfer.models.sources.presets import KINDS, PRESETS

    if kind not in KINDS:
        raise InputError(f"Unknown kind '{kind}'. Choose one of {', '.join(KINDS)}.")
    rows = [
        {
            "name": preset.name,
            "parameters": preset.parameters,
            "input": f"{preset.size} {'px' if kind == 'image' else 'tokens'}",
            "weights_present": preset.folder is not None,
        }
        for preset in PRESETS.values()
        if preset.kind == kind
    ]
    cells = [
        (
            *(row["name"], f"{row['parameters']:,}", row["input"]),
            "present" if row["weights_present"] else "download",
        )
        for row in rows
    ]
    return rows, Table(("name", "parameters", "input", "weights"), cells, "lrrl")


def _applications(kind):
    from keras_transfer.models.sources.applications import BACKBONES, weights_path

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
    header = ("name", "parameters", "size", "least", "stages", "preprocessing", "weights")
    cells = [
        (
            *(row["name"], f"{row['parameters']:,}", row["image_size"], row["least_image_size"]),
            *(row["stages"], row["preprocessing"]),
            "present" if row["weights_present"] else "download",
        )
        for row in rows
    ]
    return rows, Table(header, cells, "lrrrrll")


_CHECKED = ("task", "columns", "val", "val_split", "seed", "use_list")


@takes(*_CHECKED, "backbone", "image_size", "channels", "depth", "group")
def check(
    data: Data,
    settings,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also compare features: labels that are probably wrong.")
    ] = False,
    write_list: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="With --deep: write the problems as a table whose column action you fill in.",
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="With --deep: write a page that shows the problems with their examples.",
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(help="A .png file: images as the model sees them, before and after."),
    ] = None,
    as_json: Json = False,
):
    """Check images: faulty files, duplicates, leakage between splits, sizes."""
    from keras_transfer.data import check_data, open_data
    from keras_transfer.modalities import open_framing

    check_png(sheet)
    config = settings.config
    options = {name: getattr(config, name) for name in _CHECKED} | {"groups": config.group}
    reading = open_framing(**config.reading)
    for option, file in {"--write-list": write_list, "--page": page}.items():
        if file is not None:
            if not deep:
                raise InputError(f"{option} needs --deep.")
            check_output(file)
    if deep:
        from keras_transfer.diagnosis.api import check_diagnosis

        check_diagnosis(config.backbone, config.image_size)
    report = check_data(data, framing=reading, **options)
    document = report.to_dict()
    if deep:
        check_diagnosis(config.backbone, config.image_size, report.modality)
    if sheet is not None:
        from keras_transfer.reporting.sheet import check_sheet

        check_sheet(report.modality)
    if not as_json:
        print(report.text())
    if deep:
        if report.problem:
            raise InputError(report.problem)
        from keras_transfer.diagnosis.api import diagnose, is_examined

        with unprinted_flaws():
            images = open_data(data, **options)
        if not is_examined(images, config.backbone, config.image_size):
            load_keras()
        found = diagnose(
            images, backbone=config.backbone, image_size=config.image_size, seed=config.seed
        )
        document["diagnosis"] = found.to_dict()
        if not as_json:
            print(f"\n{found.text()}")
        if write_list is not None:
            found.write_list(write_list)
            print(f"wrote {write_list}: fill in the column action", file=sys.stderr)
        if page is not None:
            from keras_transfer.reporting import write_problems

            write_problems(found, images, page)
            print(f"wrote {page}: open it in a browser; it needs no network", file=sys.stderr)
    if as_json:
        print(json.dumps(document, indent=2))
    if sheet is not None:
        load_keras()
        from keras_transfer.reporting.sheet import write_sheet

        seen = open_framing(config.image_size or 224, **config.reading)
        # The others vary colors.
        presets = ("light", "medium", "heavy") if config.channels in (None, 3) else ("light",)
        write_sheet(open_data(data, **options), sheet, image_size=seen, augment=presets)
        print(f"wrote {sheet}", file=sys.stderr)


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove everything.")] = False,
    limit: Annotated[
        float | None,
        typer.Option(
            help="Remove the least recently used activations, down to this many gigabytes."
        ),
    ] = None,
    as_json: Json = False,
):
    """List the activations cached on this machine, with their sizes; remove them."""
    import time

    from keras_transfer.features.store import Store
    from keras_transfer.utils.console import format_bytes
    from keras_transfer.utils.files import bytes_of

    if limit is not None and bytes_of(limit) < 0:
        raise InputError(f"--limit {limit:g}: it must be a number of gigabytes, 0 or more.")
    store = Store()
    removed = 0
    if clear or limit is not None:
        removed = store.trim(limit=0 if clear or limit is None else bytes_of(limit))
    tables = store.list()
    if as_json:
        rows = [{"key": t.key, "bytes": t.bytes, "used": t.used, **t.about} for t in tables]
        total = sum(t.bytes for t in tables)
        print(
            json.dumps(
                {
                    "folder": str(store.root),
                    "limit": store.limit,
                    "bytes": total,
                    "removed": removed,
                    "tables": rows,
                },
                indent=2,
            )
        )
        return
    if removed:
        print(f"removed {format_bytes(removed)}", file=sys.stderr)
    cells = []
    for table in tables:
        about = {"image_size": "?", "view": "?", "engine": "?", "backbone": "unknown"} | table.about
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(table.used))
        names = ("image_size", "view", "engine", "backbone")
        cells.append((format_bytes(table.bytes), used, *(about[name] for name in names)))
    print_table(Table(("size", "last used", "px", "view", "engine", "of"), cells, "rlrlll"))
    total = format_bytes(sum(t.bytes for t in tables))
    print(f"{total} of at most {format_bytes(store.limit)} in {store.root}")


def doctor(as_json: Json = False):
    """Examine this machine: versions that do not fit, GPUs that TensorFlow does not see, free space."""
    from keras_transfer.cli.doctor import as_dict, as_text, diagnose_machine, is_healthy
    from keras_transfer.models.sources.applications import BACKBONES, weights_path
    from keras_transfer.utils.machine import read_machine

    present = [spec.name for spec in BACKBONES.values() if weights_path(spec).is_file()]
    with contextlib.suppress(Exception):  # `read_machine` reports a broken installation
        load_keras()
    machine = read_machine(present)
    findings = diagnose_machine(machine)
    print(json.dumps(as_dict(machine, findings), indent=2) if as_json else as_text(findings))
    raise typer.Exit(0 if is_healthy(findings) else 1)


def demo(
    out: Annotated[
        Path, typer.Option(help="Directory for the examples, runs and the export.")
    ] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Two runs with the same seed are equal.")] = 0,
    audio: Annotated[bool, typer.Option("--audio", help="Use generated sounds.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Use generated texts.")] = False,
):
    """Run an offline demonstration: a source model, transfer against training from scratch, an export."""
    from keras_transfer.modalities import find_modality
    from keras_transfer.runs import check_out
    from keras_transfer.utils.extras import require

    if audio and text:
        raise InputError("Pass --audio or --text, not both.")
    modality = "audio" if audio else "text" if text else "image"
    find_modality(modality).require()
    if text:
        require("tensorflow_text", "Reading texts")
    check_out(out)
    load_keras()
    from keras_transfer.cli.demo import run_demo

    run_demo(out, seed=seed, modality=modality)


# In the order in which users need them.
COMMANDS = (
    *(check, advise, train, evaluate, predict, select, report, export, ask),
    *(compare, adapt, tune, find_rate, schedule, backbones, cache, doctor, demo),
)
for command in COMMANDS:
    app.command(name=command.__name__.replace("_", "-"))(command)


def main():
    """Run the command line.

    Invalid input, and output that cannot be written, end in one line on stderr and exit code 2, a
    lost worker in one line and exit code 75, an internal error in a traceback and exit code 1. Typer
    turns Ctrl-C into 130. A broken pipe ends the process without a message.
    """
    require_streams()
    accept_any_name()
    code = flush_streams(_run())
    active().leave(code)  # at once if an orderly end would wait for workers that are gone
    sys.exit(code)


def _run() -> int:
    """Run the command, report its errors and return the exit code."""
    try:
        try:
            app()
        except Exception as error:
            with active().translated():  # an engine's error, if another worker is gone
                raise error
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # Typer reports it as exit code 1
            report_os_error(stop.__context__)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except (InputError, WorkerLost) as error:
        text = str(error)
        if isinstance(error, ColumnError) and error.options:
            text = f"{error.problem}: name it, as in `{command_with(sys.argv[1:], error)}`."
        report_error(text)
        return error.exit_code
    except Exception as error:
        if found := input_error_in(error):  # raised inside a graph of TensorFlow
            report_error(str(found))
            return found.exit_code
        code = report_os_error(error) if isinstance(error, OSError) else None
        if code is not None:
            return code
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
