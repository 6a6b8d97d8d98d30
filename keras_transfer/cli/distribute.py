"""The command line with several processes that train together."""

import contextlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.schedules.recipes import AUTO
from keras_transfer.training.distributed.single_process import SINGLE, SingleProcess, active
from keras_transfer.utils.console import log_to


@dataclass(frozen=True)
class Begun:
    """The settings of a run that is resumed.

    Attributes:
        config: the content of its `config.yaml`.
        split_path: its table of splits, for `split_file`.
    """

    config: dict
    split_path: Path


def start(distribute: str, out: Path) -> SingleProcess:
    """Join the workers of `--distribute`, or return the single process.

    Processes other than the chief write their messages into a file beside the run from here on.

    Raises:
        InputError: if the environment does not name the other workers, or they do not come.
    """
    if distribute == "none":
        return SINGLE
    from keras_transfer.training.distributed.environment import plan, start_workers

    plan(distribute)
    from keras_transfer.cli.common import load_keras

    load_keras()
    workers = start_workers(distribute)
    if not workers.chief:
        out.parent.mkdir(parents=True, exist_ok=True)
        log_to(out.with_name(f"{out.name}.worker-{workers.index}.log"))
    return workers


def begun(workers: SingleProcess, out: Path) -> Begun | None:
    """Return the settings of the run to resume, as the chief has it; None if nothing was begun.

    Raises:
        InputError: if `out` is not a run.
    """
    from keras_transfer.runs import Run
    from keras_transfer.utils.files import write_text

    def read():
        if not Run.started(out):
            return None
        run = Run.open(out, finished=False)
        return [run.config, run.split_path.read_text("utf-8", "surrogateescape")]

    found = workers.on_chief(read)
    if found is None:
        return None
    config, split = found
    if workers.chief:
        return Begun(config, Run(out).split_path)
    folder = Path(tempfile.mkdtemp(prefix="keras-transfer-"))
    write_text(folder / "split.csv", split)
    return Begun(config, folder / "split.csv")


def check_new(workers: SingleProcess, out: Path) -> None:
    """Check `--out` on the chief, whose machine the run will be on."""
    from keras_transfer.runs import check_out

    workers.on_chief(lambda: check_out(out))


def check_decided(workers: SingleProcess, config) -> None:
    """Raise InputError for settings that trials decide, because several workers run none."""
    if not workers.distributed:
        return
    for name in ("backbone", "strategy"):
        if getattr(config, name) == AUTO or (name == "backbone" and "," in config.backbone):
            raise InputError(
                f"--distribute needs a --{name} by name: `keras-transfer advise DATA`, on one "
                "machine, recommends one."
            )
    if config.precision == AUTO:
        raise InputError(
            "--distribute needs a --precision by name, as 'auto' measures each machine: "
            "mixed_bfloat16 on GPUs from compute capability 8.0 and on TPUs, else float32."
        )


@contextlib.contextmanager
def translated_losses():
    """Turn an engine's error into `WorkerLost` if another worker is gone."""
    try:
        yield
    except Exception as error:
        with active().translated():
            raise error


def end(code: int):
    """End the command: at once if an orderly end would wait for workers that are gone."""
    active().leave(code)
    sys.exit(code)
