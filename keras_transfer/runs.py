"""The run directory. The only module that knows the names of its files.

A reader (and a run that was killed) finds each file whole or not at all, see `whole_files`.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.utils.files import csv_text, write_file, write_text

CONFIG = "config.yaml"
METRICS = "metrics.json"
HISTORY = "history.csv"
SKIPPED = "skipped.csv"
SPLIT = "split.csv"
MODEL = "model.keras"
REPORT = "report.html"
FEATURE_MAPS = "feature_maps.npz"  # of an adaptation, for its report
EXPORT = "export"
EVALUATION = "evaluation.json"  # what the report measured
COMPARISON = "comparison.html"
TENSORBOARD = "tensorboard"
CALIBRATION = "calibration.json"  # fitted after the training, where that was asked for
STATE = "state"  # what --resume needs; removed when the run is finished
IMAGES = "pictures.json"  # the name that 0.1 gave it
PLACES = ("data", "val")  # in the settings: where the images lie, which decides nothing


def _csv_rows(path):
    # Names of files need not be UTF-8: their bytes are kept as they are.
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    return list(csv.DictReader(io.StringIO(text, newline="")))


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
    def create(
        cls, path, config: dict, skipped: Iterable, images: dict, split: Iterable = ()
    ) -> "Run":
        """Makes the directory with its first files; it appears with all of them or not at all.

        Args:
            config: everything needed to run it again.
            skipped: files that are left out.
            images: name → fingerprint of every image, to see whether they changed.
            split: (path, class, split) of every image.

        Raises:
            InputError: something is there already.
        """
        check_out(path)
        path = Path(path) if Path(path).name else Path(path).resolve()  # "." has no name
        path.parent.mkdir(parents=True, exist_ok=True)
        run = cls(path.with_name(f".{os.getpid()}.{path.name}"))
        try:
            (run.path / STATE).mkdir(parents=True)
            run._write_first(config, skipped, images, split)
            run.path.replace(path)
        finally:
            shutil.rmtree(run.path, ignore_errors=True)
        return cls(path)

    def _write_first(self, config, skipped, images, split):
        import yaml

        write_text(self.path / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        rows = ((item.path, item.reason) for item in skipped)
        write_text(self.path / SKIPPED, csv_text(("path", "reason"), rows))
        write_text(self.path / SPLIT, csv_text(("path", "label", "split"), split))
        write_text(self.path / STATE / IMAGES, json.dumps(images))

    @classmethod
    def begun(cls, path) -> bool:
        """False where there is nothing to resume yet: no directory, or an empty one."""
        path = Path(path)
        return path.exists() and (not path.is_dir() or any(path.iterdir()))

    @classmethod
    def resume(cls, path, config: dict, images: dict) -> "Run":
        """Opens an interrupted run of the same settings on the same images, wherever they lie now.

        Raises:
            InputError: it is no run, or finished, or something changed; the message says what.
        """
        run = cls.open(path, finished=False)
        if run.finished:
            shutil.rmtree(run.path / STATE, ignore_errors=True)
            raise InputError(f"{path} is finished: there is nothing to resume.")
        import yaml

        before, now = run.config, yaml.safe_load(yaml.safe_dump(config))
        places = {key: now[key] for key in PLACES if key in now}
        moved = {**before, **places}
        changed = [*changed_settings(moved, now), *run._changed_images(images)]
        if changed:
            raise InputError(
                f"Cannot resume {path}, it was begun otherwise: {'; '.join(changed)}. Undo that, or "
                "start a new run with another --out."
            )
        for file in [*run.path.glob(".*"), *(run.path / STATE).glob(".*")]:
            file.unlink()  # what a killed process was writing
        if moved != before:  # who opens the run later looks for them there
            write_text(
                run.path / CONFIG, yaml.safe_dump(moved, sort_keys=False, allow_unicode=True)
            )
        return run

    def _changed_images(self, now):
        before = json.loads((self.path / STATE / IMAGES).read_text(encoding="utf-8"))
        for what, names in (
            ("new", now.keys() - before.keys()),
            ("gone", before.keys() - now.keys()),
            ("changed", {n for n in now.keys() & before.keys() if now[n] != before[n]}),
        ):
            if names:
                yield f"{len(names)} images are {what} ({', '.join(sorted(names)[:3])}{', …' * (len(names) > 3)})"

    @classmethod
    def open(cls, path, finished: bool = True) -> "Run":
        """Raises InputError where `path` is no run, or none that has come to its end."""
        run = cls(path)
        if not run.path.is_dir():
            raise InputError(f"No run {path}: there is no such directory.")
        if not (run.path / CONFIG).is_file():
            raise InputError(f"{path} is no run: it has no {CONFIG}. Give the --out of a training.")
        if finished and not (run.path / MODEL).is_file():
            raise InputError(f"{path} is not finished: go on with --resume.")
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
    def calibration(self) -> dict | None:
        """What `write_calibration` was given: `evaluation.Calibration.from_dict` reads it; or None."""
        file = self.path / CALIBRATION
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def write_calibration(self, calibration: dict) -> None:
        """Keeps temperatures and thresholds beside the model, in place of earlier ones."""
        write_text(self.path / CALIBRATION, json.dumps(calibration, indent=2) + "\n")

    @property
    def evaluation(self) -> dict | None:
        """What `write_evaluation` was given; None where nothing was."""
        file = self.path / EVALUATION
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def write_evaluation(self, document: dict) -> None:
        """Keeps the document of an `Evaluation` beside the model, in place of an earlier one."""
        write_text(self.path / EVALUATION, json.dumps(document, allow_nan=False) + "\n")

    @property
    def history(self) -> list[dict]:
        """A dict an epoch: `epoch`, `phase`, and what has a number there."""
        rows = _csv_rows(self.path / HISTORY)
        return [
            {k: v if k == "phase" else float(v) for k, v in row.items() if v != ""} for row in rows
        ]

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(path, reason) of each file that was left out."""
        return [(row["path"], row["reason"]) for row in _csv_rows(self.path / SKIPPED)]

    @property
    def split(self) -> dict[str, str]:
        """Path → part of each image that was trained or measured on; empty in old runs."""
        file = self.path / SPLIT
        return {row["path"]: row["split"] for row in _csv_rows(file)} if file.is_file() else {}

    @property
    def model(self):
        """The best model, loaded anew at each access (a plain `keras.Model`)."""
        from keras_transfer.models.sources.own import load_model

        return load_model(self.path / MODEL)

    @property
    def split_path(self) -> Path:
        """The list of what trained and what validated, for `split_file`."""
        return self.path / SPLIT

    @property
    def model_path(self) -> Path:
        return self.path / MODEL

    @property
    def report_path(self) -> Path:
        return self.path / REPORT

    @property
    def feature_maps_path(self) -> Path:
        return self.path / FEATURE_MAPS

    @property
    def tensorboard_path(self) -> Path:
        """The folder of TensorBoard's event files, where they were asked for."""
        return self.path / TENSORBOARD

    @property
    def state_path(self) -> Path:
        """A folder for what resuming needs; gone when the run is finished."""
        return self.path / STATE

    def write_history(self, rows: list[dict]) -> None:
        """A row an epoch; what a row does not have is left empty."""
        columns = list(dict.fromkeys(column for row in rows for column in row))
        text = csv_text(columns, ([row.get(column, "") for column in columns] for row in rows))
        write_text(self.path / HISTORY, text)

    def finish(self, model, metrics: dict) -> None:
        """Writes metrics and model (last: its presence says that the run is finished)."""
        write_text(self.path / METRICS, json.dumps(metrics, indent=2) + "\n")
        write_file(self.path / MODEL, model.save)
        shutil.rmtree(self.path / STATE, ignore_errors=True)

    def next_export(self, format: str = "saved_model", int8: bool = False) -> Path:
        """`export/1`, then `export/2`, … : TF Serving serves the highest number.

        Other formats have versions of their own, in `export/FORMAT/` or `export/FORMAT_int8/`: TF
        Serving would try to load whatever lies in a folder with a number for a name.
        """
        folder = self.path / EXPORT
        if format != "saved_model":
            folder /= f"{format}_int8" if int8 else format
        numbers = [int(p.name) for p in folder.glob("*") if p.name.isdecimal()]
        return folder / str(max(numbers, default=0) + 1)


def read_split(path: Path) -> list[dict]:
    """The rows of `Run.split_path`: path, label, split."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def changed_settings(before, now, name=""):
    """`name: old is now new` for each leaf in which nested plain data differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys(), key=str):
            inner = f"{name}.{key}" if name else str(key)
            yield from changed_settings(before.get(key), now.get(key), inner)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, pair in enumerate(zip(before, now)):
            yield from changed_settings(*pair, f"{name}[{i}]")
    elif before != now:
        yield f"{name}: {before!r} is now {now!r}"
