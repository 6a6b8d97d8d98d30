"""The run directory. The only module that knows the names of its files.

Every file is written under a temporary name and renamed, so a reader (and a run that was killed)
finds each file whole or not at all.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from keras_transfer.errors import InputError

CONFIG = "config.yaml"
METRICS = "metrics.json"
HISTORY = "history.csv"
SKIPPED = "skipped.csv"
MODEL = "model.keras"
EXPORT = "export"
STATE = "state"  # what --resume needs; removed when the run is finished


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary file beside `path` and renames it."""
    # The last suffix stays: Keras chooses the format by it.
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def csv_text(header: Iterable[str], rows: Iterable[Iterable]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def check_out(path) -> None:
    """Raises InputError where a new run cannot be written to `path`."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: give --out a directory that does not exist yet.")
    if path.is_dir() and any(path.iterdir()):
        unfinished = (path / CONFIG).is_file() and not (path / MODEL).is_file()
        resumable = " or go on with --resume" if unfinished else ""
        raise InputError(f"{path} exists and is not empty: choose another --out{resumable}.")


class Run:
    """A run directory: what was trained on what, how it went, and the model."""

    def __init__(self, path):
        self.path = Path(path)

    @classmethod
    def create(cls, path) -> "Run":
        """Makes the directory. Raises InputError where something is there already."""
        check_out(path)
        Path(path).mkdir(parents=True, exist_ok=True)
        return cls(path)

    @classmethod
    def open(cls, path, finished: bool = True) -> "Run":
        """Raises InputError where `path` is no run, or none that has come to its end."""
        run = cls(path)
        if not run.path.is_dir():
            raise InputError(f"No run {path}: there is no such directory.")
        if not (run.path / CONFIG).is_file():
            raise InputError(f"{path} is no run: it has no {CONFIG}. Give the --out of a training.")
        if finished and not (run.path / MODEL).is_file():
            raise InputError(f"{path} is not finished: go on with `keras-transfer train --resume`.")
        return run

    @property
    def finished(self) -> bool:
        return (self.path / MODEL).is_file()

    @property
    def config(self) -> dict:
        import yaml

        return yaml.safe_load((self.path / CONFIG).read_text(encoding="utf-8"))

    @property
    def metrics(self) -> dict:
        return json.loads((self.path / METRICS).read_text(encoding="utf-8"))

    @property
    def model(self):
        """The best model, loaded anew at each access (a plain `keras.Model`)."""
        from keras_transfer.backbones import load_model

        return load_model(self.path / MODEL)

    @property
    def model_path(self) -> Path:
        return self.path / MODEL

    def write_config(self, config: dict) -> None:
        import yaml

        write_text(self.path / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def write_history(self, rows: list[dict]) -> None:
        """A row an epoch; columns are those of the first row."""
        columns = list(rows[0])
        text = csv_text(columns, ([row.get(column, "") for column in columns] for row in rows))
        write_text(self.path / HISTORY, text)

    def write_skipped(self, skipped: Iterable) -> None:
        rows = ((item.path, item.reason) for item in skipped)
        write_text(self.path / SKIPPED, csv_text(("path", "reason"), rows))

    def finish(self, model, metrics: dict) -> None:
        """Writes metrics and model (last: its presence says that the run is finished)."""
        write_text(self.path / METRICS, json.dumps(metrics, indent=2) + "\n")
        write_file(self.path / MODEL, model.save)
        shutil.rmtree(self.path / STATE, ignore_errors=True)

    def save_state(self, model, state: dict, best: bool) -> None:
        """Keeps all that `load_state` needs after epoch `state["epoch"]`.

        The weights (optimizer included) go to new files; the state that names them is written
        last, so a kill at any moment leaves the old state or the new one.
        """
        folder = self.path / STATE
        folder.mkdir(exist_ok=True)
        state = {**state, "weights": f"epoch-{state['epoch']}.weights.h5"}
        if best:
            state["best_weights"] = f"best-{state['epoch']}.weights.h5"
        write_file(folder / state["weights"], model.save_weights)
        if best:
            epoch = folder / state["weights"]
            write_file(folder / state["best_weights"], lambda copy: shutil.copyfile(epoch, copy))
        write_text(folder / "state.json", json.dumps(state))
        for file in folder.glob("*.weights.h5"):
            if file.name not in (state["weights"], state["best_weights"]):
                file.unlink()

    def load_state(self) -> dict | None:
        """The last state, or None where the run was killed before its first epoch ended."""
        file = self.path / STATE / "state.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def state_file(self, name: str) -> Path:
        return self.path / STATE / name

    def next_export(self) -> Path:
        """`export/1`, then `export/2`, … : TF Serving serves the highest number."""
        folder = self.path / EXPORT
        numbers = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
        return folder / str(max(numbers, default=0) + 1)
