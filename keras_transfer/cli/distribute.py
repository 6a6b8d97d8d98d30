"""What the command line does otherwise where several processes train together."""

import contextlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.schedules.recipes import AUTO
from keras_transfer.utils.console import log_to


@dataclass(frozen=True)
class Begun:
    """What a resumed training reads of its run.

    Attributes:
        config: its settings.
        split_path: a list for `split_file`.
    """

    config: dict
    split_path: Path


def joined(distribute: str, out: Path):
    """The workers of `--distribute`; None where this process trains alone.

    What the others than the chief say goes into a file beside the run from here on.

    Raises:
        InputError: the environment does not say where the others are, or they do not come.
    """
    from keras_transfer.training.distributed.environment import plan

    if plan(distribute).kind == "none":
        return None
    from keras_transfer.cli.common import load_keras

    load_keras()
    from keras_transfer.training.distributed.workers import start_workers

    workers = start_workers(distribute)
    if workers is not None and not workers.chief:
        out.parent.mkdir(parents=True, exist_ok=True)
        log_to(out.with_name(f"{out.name}.worker-{workers.index}.log"))
    return workers


def begun(workers, out: Path) -> Begun | None:
    """The run to go on with, as its chief has it; None where nothing was begun.

    Raises:
        InputError: it is no run.
    """
    from keras_transfer.runs import Run
    from keras_transfer.utils.files import write_text

    if workers is None:
        if not Run.begun(out):
            return None
        run = Run.open(out, finished=False)
        return Begun(run.config, run.split_path)

    def read():
        if not Run.begun(out):
            return None
        run = Run.open(out, finished=False)
        return [run.config, run.split_path.read_text("utf-8", "surrogateescape")]

    found = workers.on_chief(read)
    if found is None:
        return None
    config, split = found
    folder = Path(tempfile.mkdtemp(prefix="keras-transfer-"))
    write_text(folder / "split.csv", split)
    return Begun(config, folder / "split.csv")


def check_new(workers, out: Path) -> None:
    """`check_out`, asked of the chief, whose machine the run will be on."""
    from keras_transfer.runs import check_out

    if workers is None:
        check_out(out)
    else:
        workers.on_chief(lambda: check_out(out))


def check_decided(workers, config) -> None:
    """Raises InputError for what is found out by trials, which several workers do not do."""
    if workers is None:
        return
    for name in ("backbone", "strategy"):
        if getattr(config, name) == AUTO or (name == "backbone" and "," in config.backbone):
            raise InputError(
                f"--distribute needs a --{name} by name: `keras-transfer advise DATA`, on one "
                "machine, says which."
            )
    if config.precision == AUTO:
        raise InputError(
            "--distribute needs a --precision by name, as 'auto' measures each machine: "
            "mixed_bfloat16 on GPUs from compute capability 8.0 and on TPUs, else float32."
        )


def _workers():
    """Those that were started; None where there are none. Keras is not imported to say so."""
    module = sys.modules.get("keras_transfer.training.distributed.workers")
    return module.chosen("auto") if module else None


@contextlib.contextmanager
def translated_losses():
    """Turns an engine's error into `WorkerLost` where another worker is gone."""
    try:
        yield
    except Exception as error:
        from keras_transfer.training.distributed.faults import translated

        with translated(_workers()):
            raise error


def end(code: int):
    """Ends the command: at once where others could be waited for, who are gone."""
    workers = _workers()
    if workers is not None and workers.processes > 1:
        from keras_transfer.training.distributed.faults import leave

        leave(code)
    sys.exit(code)
