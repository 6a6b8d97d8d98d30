"""The run directory, whose files others read.

Each file is written whole or not at all, so that readers and killed runs find no half files. Runs of
version 0.1 are translated when they are read.
"""

import json
import os
import shlex
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from keras_transfer.data.examples import Examples, example_key, relative_paths
from keras_transfer.errors import InputError
from keras_transfer.utils.console import counted, listed, say, verb
from keras_transfer.utils.documents import (
    UNRECORDED,
    changed_settings,
    damaged,
    dump_yaml,
    read_json,
    read_rows,
)
from keras_transfer.utils.files import (
    check_output_folder,
    csv_text,
    explain_writing,
    locked,
    write_file,
    write_text,
)

CONFIG = "config.yaml"
METRICS = "metrics.json"
HISTORY = "history.csv"
SKIPPED = "skipped.csv"
SPLIT = "split.csv"
MODEL = "model.keras"
VALIDATED = "validated.keras"  # before the refit, which has also seen the validation examples
REFITS = "refits"  # in config.yaml: whether such a refit follows the training
REPORT = "report.html"
FEATURE_MAPS = "feature_maps.npz"  # of an adaptation, for its report
EXPORT = "export"
EVALUATION = "evaluation.json"  # measured by the report
COMPARISON, RACE = "comparison.html", "race.json"  # the latter: contenders of `auto`
TENSORBOARD = "tensorboard"
CALIBRATION = "calibration.json"  # fitted after training, on request
STATE = "state"  # needed to resume; removed when the run is finished
FINGERPRINTS = "examples.json"
STARTED_FROM = "started_from"  # setting: the earlier training of a model that was trained again
# Settings that name folders and files; a moved dataset is the same dataset.
PLACES = ("data", "val", "source", "target", "use_list")

_FINGERPRINTS_0_1 = "pictures.json"


def check_out(path) -> None:
    """Raise InputError if a new run cannot be written to `path`."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: give --out a directory that does not exist yet.")
    if path.is_dir() and any(path.iterdir()):
        unfinished = (path / CONFIG).is_file() and not (path / MODEL).is_file()
        resumable = " or continue the run with --resume" if unfinished else ""
        raise InputError(f"{path} exists and is not empty: choose another --out{resumable}.")
    check_output_folder(Path(os.path.realpath(path)).parent)


def place_of(out) -> Path:
    """Return the folder of the contenders of a race for a run, beside it."""
    place = Path(os.path.realpath(out))
    return place.with_name(f".{place.name}.race")


def finished_error(path) -> InputError:
    """Return the error for resuming a finished run, which says how to train further."""
    model = shlex.quote(str(path))
    return InputError(
        f"{path} is finished: there is nothing to resume, and its schedule has ended. To train further, "
        f"start a new run from its backbone: --backbone {model} with another --out."
    )


class Run:
    """A run directory: settings, data, history, metrics and model of one training.

    Attributes:
        path: the directory.
        model_path, report_path: files of the model and of the report.
        validated_path: the model before a refit; missing without one.
        feature_maps_path: feature maps of an adaptation, for its report.
        split_path: table of the splits, for `split_file`.
        state_path: folder of the checkpoint, which is deleted when the run is finished.
        tensorboard_path: folder of event files for TensorBoard, if they were requested.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.model_path = self.path / MODEL
        self.validated_path = self.path / VALIDATED
        self.report_path = self.path / REPORT
        self.feature_maps_path = self.path / FEATURE_MAPS
        self.split_path = self.path / SPLIT
        self.state_path = self.path / STATE
        self.tensorboard_path = self.path / TENSORBOARD
        self._lock = ExitStack()

    @classmethod
    def create(
        cls, path, config: dict, skipped: Iterable, fingerprints: dict, split: Iterable = ()
    ) -> "Run":
        """Create the directory with its first files; it appears with all of them or not at all.

        Args:
            config: everything needed to repeat the training.
            skipped: files that are left out, with `path` and `reason`.
            fingerprints: name → fingerprint of every example, to detect changes.
            split: (path, class, split) of every example.

        Returns:
            The run, which no other process can resume until `release`.

        Raises:
            InputError: if the path is taken or cannot be written to.
        """
        check_out(path)
        place = Path(os.path.realpath(path))  # a link to an empty directory stays; "." has no name
        run = cls(place.with_name(f".{os.getpid()}.{place.name}"))
        try:
            with explain_writing(path):
                run.state_path.mkdir(parents=True)
                if place.is_dir():
                    shutil.copymode(place, run.path)
                run._write_first(config, skipped, fingerprints, split)
                run.take()
                run.path.replace(place)
        finally:
            shutil.rmtree(run.path, ignore_errors=True)
        found = cls(path)
        found._lock = run._lock
        return found

    def take(self) -> None:
        """Keep other processes from resuming the run until `release`.

        Raises:
            InputError: if another process has taken it.
        """
        message = f"Another process is training in {self.path}: wait for it, or stop it."
        self._lock.enter_context(locked(self.path, message))

    def release(self) -> None:
        """Allow other processes to resume the run. The end of the process releases it too."""
        self._lock.close()

    def _write_first(self, config, skipped, fingerprints, split):
        write_text(self.path / CONFIG, dump_yaml(config))
        rows = ((item.path, item.reason) for item in skipped)
        write_text(self.path / SKIPPED, csv_text(("path", "reason"), rows))
        digests = ((*row, fingerprints.get(example_key(*row), "")) for row in split)
        write_text(self.split_path, csv_text(("path", "label", "split", "digest"), digests))
        write_text(self.state_path / FINGERPRINTS, json.dumps(fingerprints))

    @classmethod
    def started(cls, path) -> bool:
        """Return False if there is nothing to resume: no directory, or an empty one."""
        path = Path(path)
        return path.exists() and (not path.is_dir() or any(path.iterdir()))

    @classmethod
    def resume(cls, path, config: dict, fingerprints: dict) -> "Run":
        """Open an interrupted run with the same settings and examples, wherever they are now.

        No other process can resume it until `release`.

        Raises:
            InputError: if it is not a run or is finished, if settings or examples changed, or if
                another process is training in it.
        """
        run = cls.open(path, finished=False)
        if run.finished:
            shutil.rmtree(run.state_path, ignore_errors=True)
            raise finished_error(path)
        import yaml

        run.take()
        now = yaml.safe_load(dump_yaml(config))
        before = {key: value for key, value in UNRECORDED.items() if key in now} | run.config
        now.pop(STARTED_FROM, None)  # of the model that began the run
        now |= {key: before[key] for key in (STARTED_FROM,) if key in before}
        # Whether a second training follows may be decided anew until it is over.
        places = {key: now[key] for key in (*PLACES, "refit", REFITS) if key in now}
        moved = {**before, **places}
        changed = [*changed_settings(moved, now), *run._changed_examples(fingerprints)]
        if changed:
            raise InputError(
                f"Cannot resume {path}, because it began with different settings or data: "
                f"{'; '.join(changed)}. Undo the change, or start a new run with another --out."
            )
        for file in [*run.path.glob(".[0-9]*.*"), *run.state_path.glob(".[0-9]*.*")]:
            # Half-written by a killed process; others' hidden files stay.
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        if moved != before:  # readers of the run look for the data there
            write_text(run.path / CONFIG, dump_yaml(moved))
        return run

    def _changed_examples(self, now):
        file = self.state_path / FINGERPRINTS
        if not file.is_file():
            file = file.with_name(_FINGERPRINTS_0_1)
        before = json.loads(file.read_text(encoding="utf-8"))
        for change, names in (
            ("new", now.keys() - before.keys()),
            ("gone", before.keys() - now.keys()),
            ("changed", {n for n in now.keys() & before.keys() if now[n] != before[n]}),
        ):
            if names:
                yield f"{counted(len(names), 'example')} {verb(len(names))} {change} ({listed(sorted(names), 3)})"

    @classmethod
    def open(cls, path, finished: bool = True) -> "Run":
        """Open a run; raise InputError if `path` is not a run, or not a finished one."""
        run = cls(path)
        if not run.path.is_dir():
            raise InputError(f"No run {path}: the directory does not exist.")
        if not (run.path / CONFIG).is_file():
            raise InputError(
                f"{path} is not a run: {CONFIG} is missing. Give the --out of a training."
            )
        if finished and not run.model_path.is_file():
            raise InputError(f"{path} is not finished: continue it with --resume.")
        return run

    def require_own_images(self, data) -> None:
        """Raise InputError unless images are those of the run, by name and content.

        A relative path in `config.yaml` may lead to other images today. Runs of 0.1 pass, because
        they recorded no digests.

        Args:
            data: an `ImageData`, opened from the place that the run recorded.
        """
        if not self.split_path.is_file():
            return
        recorded = {row["path"]: row.get("digest") for row in read_rows(self.split_path)}
        if not any(recorded.values()):
            return
        known = different = 0
        for examples in data.examples.values():
            for path, digest in zip(relative_paths(examples.names, data.root), examples.digests):
                known += path in recorded
                different += recorded.get(path, digest.hex()) != digest.hex()
        if different or not known:
            what = f"{different} of {known} differ" if known else "none has a recorded name"
            raise InputError(
                f"{data.root} does not contain the images of {self.path} ({what}): pass the folder "
                "that does."
            )

    @property
    def finished(self) -> bool:
        return self.model_path.is_file()

    @property
    def config(self) -> dict:
        import yaml

        try:
            found = yaml.safe_load((self.path / CONFIG).read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise damaged(self.path / CONFIG)
        return found

    @property
    def metrics(self) -> dict:
        return read_json(self.path / METRICS)

    @property
    def calibration(self) -> dict | None:
        """The last `write_calibration`, for `evaluation.Calibration.from_dict`; None if missing."""
        return read_json(self.path / CALIBRATION, optional=True)

    def write_calibration(self, calibration: dict) -> None:
        """Save temperatures and thresholds with the model, replacing earlier ones."""
        write_text(self.path / CALIBRATION, json.dumps(calibration, indent=2) + "\n")

    @property
    def evaluation(self) -> dict | None:
        """The last document of `write_evaluation`; None if missing."""
        return read_json(self.path / EVALUATION, optional=True)

    def write_evaluation(self, document: dict) -> None:
        """Save the document of an `Evaluation`, replacing an earlier one."""
        write_text(self.path / EVALUATION, json.dumps(document, allow_nan=False) + "\n")

    @property
    def history(self) -> list[dict]:
        """One dict per epoch: `epoch`, `phase`, and every number of that epoch."""
        rows = read_rows(self.path / HISTORY)
        return [
            {k: v if k == "phase" else float(v) for k, v in row.items() if v != ""} for row in rows
        ]

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(path, reason) of each file that was left out."""
        return [(row["path"], row["reason"]) for row in read_rows(self.path / SKIPPED)]

    @property
    def split(self) -> dict[str, str]:
        """Path → split of each example; empty in old runs."""
        if not self.split_path.is_file():
            return {}
        return {row["path"]: row["split"] for row in read_rows(self.split_path)}

    @property
    def model(self):
        """The best model, a plain `keras.Model`, loaded anew at each access."""
        return self.model_for("all")

    def model_for(self, split: str, examples: Examples | None = None):
        """Return the model with which a split is measured: for `"val"` the one before a refit.

        Args:
            examples: those of the split; if the run was validated on them, it is `"val"` by another name.
                If the model was trained on some of them, a line says so.
        """
        from keras_transfer.models.sources.own import load_model

        refitted = self.validated_path.is_file()
        before = refitted and split == "val"
        if examples is not None and self.split_path.is_file():
            given = [digest.hex() for digest in examples.digests]
            rows = [(row["split"], row.get("digest")) for row in read_rows(self.split_path)]
            train, val = ({d for part, d in rows if part == name} for name in ("train", "val"))
            before = before or (refitted and set(given) <= val)
            trained = train | val if refitted and not before else train
            if count := sum(digest in trained for digest in given):
                say(
                    f"{count} of {counted(len(given), 'example')} of {split} were trained on, so the "
                    "result is too good; --split val (or test) measures others"
                )
        return load_model(self.validated_path if before else self.model_path)

    def write_history(self, rows: list[dict]) -> None:
        """Write one row per epoch; missing values stay empty."""
        columns = list(dict.fromkeys(column for row in rows for column in row))
        text = csv_text(columns, ([row.get(column, "") for column in columns] for row in rows))
        write_text(self.path / HISTORY, text)

    def write_metrics(self, metrics: dict) -> None:
        """Save the metrics, replacing earlier ones."""
        write_text(self.path / METRICS, json.dumps(metrics, indent=2) + "\n")

    def keep_validated(self, model, metrics: dict) -> None:
        """Write the metrics and the model of a training that a refit follows."""
        self.write_metrics(metrics)
        write_file(self.validated_path, model.save)

    def finish(self, model, metrics: dict) -> None:
        """Write the metrics, then the model, whose presence marks the run as finished."""
        self.write_metrics(metrics)
        if "refit" not in metrics:  # one was begun and left out
            self.validated_path.unlink(missing_ok=True)
        write_file(self.model_path, model.save)
        shutil.rmtree(self.state_path, ignore_errors=True)

    def next_export(self, format: str = "saved_model", int8: bool = False) -> Path:
        """Return the next version: `export/1`, `export/2`, …; TF Serving serves the highest.

        Other formats are versioned in `export/FORMAT/` or `export/FORMAT_int8/`, because TF Serving
        would try to load everything in a folder whose name is a number.
        """
        folder = self.path / EXPORT
        if format != "saved_model":
            folder /= f"{format}_int8" if int8 else format
        numbers = [int(p.name) for p in folder.glob("*") if p.name.isdecimal()]
        return folder / str(max(numbers, default=0) + 1)
