"""The numbers of each epoch in other programs: TensorBoard and MLflow.

`LOGS` is the table of these programs. A log is called with each row of the history as its epoch ends;
`finish` ends it. A resumed run adds to what is there.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from keras_transfer.errors import InputError
from keras_transfer.runs import Run
from keras_transfer.utils.console import first_line, say
from keras_transfer.utils.documents import read_json
from keras_transfer.utils.extras import require
from keras_transfer.utils.files import write_text

_MLFLOW_RUN = "mlflow.json"  # in a run's directory: which run of MLflow it is
_EXPERIMENT = "keras_transfer"
_LONGEST = 500  # characters of a setting's value


class TensorBoardLog:
    """Writes the numbers of each epoch as event files for TensorBoard, which need not be installed.

    Training and validation have two folders, `train` and `validation`, so that TensorBoard draws a
    metric of both into one plot. Learning rate and seconds are in the first.

    Args:
        run: its folder `tensorboard` is created if it does not exist.
    """

    def __init__(self, run: Run):
        import tensorflow as tf

        self._writers = {
            part: tf.summary.create_file_writer(os.fsencode(run.tensorboard_path / part))
            for part in ("train", "validation")
        }

    @staticmethod
    def check() -> None:
        """Nothing is missing."""

    def __call__(self, row: dict) -> None:
        """Write a row of the history."""
        for key, value in _numbers(row).items():
            part = "validation" if key.startswith("val_") else "train"
            with self._writers[part].as_default(step=int(row["epoch"])):
                _scalar(key.removeprefix("val_"), value)
        for writer in self._writers.values():
            writer.flush()

    def finish(self) -> None:
        """Nothing is left to write."""


class MlflowLog:
    """Logs settings, the numbers of each epoch and files to MLflow.

    The environment variables `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` say where; by default in
    the database `mlflow.db` of the current folder, experiment `keras_transfer`. If the server fails later,
    the training goes on without the log.

    Args:
        run: `mlflow.json` in its directory names the run of MLflow.

    Raises:
        InputError: MLflow is not installed, or cannot be reached.
    """

    def __init__(self, run: Run):
        self.check()
        self._run, self._failed = run, False
        known = read_json(run.path / _MLFLOW_RUN, optional=True)
        try:
            if known is None:
                known = self._begin()
            self._client, self._id = _client(known["tracking_uri"]), known["run_id"]
            self._client.set_terminated(self._id, "RUNNING")
        except Exception as error:  # of MLflow, its database or the network
            raise InputError(
                f"MLflow at {_address()} cannot be used: {first_line(error)}. Check "
                "MLFLOW_TRACKING_URI, or train without --log mlflow."
            ) from error

    @staticmethod
    def check() -> None:
        """Raise InputError if MLflow is not installed."""
        require("mlflow", "--log mlflow")

    def _begin(self):
        from mlflow.entities import Param

        client = _client(_address())
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        experiment = client.get_experiment_by_name(name)
        identity = experiment.experiment_id if experiment else client.create_experiment(name)
        made = client.create_run(identity, run_name=self._run.path.name)
        settings = [Param(key, value) for key, value in _flat(self._run.config)]
        for start in range(0, len(settings), 100):  # MLflow's limit for one call
            client.log_batch(made.info.run_id, params=settings[start : start + 100])
        known = {"tracking_uri": _address(), "run_id": made.info.run_id}
        write_text(self._run.path / _MLFLOW_RUN, json.dumps(known))
        return known

    def __call__(self, row: dict) -> None:
        """Log a row of the history."""
        from mlflow.entities import Metric

        now, epoch = int(time.time() * 1000), int(row["epoch"])
        numbers = [Metric(key, float(v), now, epoch) for key, v in _numbers(row).items()]
        self._try(self._client.log_batch, self._id, metrics=numbers)

    def finish(self) -> None:
        """Log the files of the finished run, and end the run of MLflow."""
        files = [path for path in sorted(self._run.path.iterdir()) if path.is_file()]
        self.add([path for path in files if path.name != _MLFLOW_RUN])

    def add(self, paths: Iterable[Path]) -> None:
        """Log files, and folders with everything in them, as the last of the run."""
        for path in paths:
            if path.is_dir():
                name = (
                    path.relative_to(self._run.path)
                    if path.is_relative_to(self._run.path)
                    else path.name
                )
                self._try(self._client.log_artifacts, self._id, str(path), str(name))
            else:
                self._try(self._client.log_artifact, self._id, str(path))
        self._try(self._client.set_terminated, self._id, "FINISHED")

    def _try(self, action, *arguments, **more):
        if self._failed:
            return
        try:
            action(*arguments, **more)
        except Exception as error:  # of MLflow, its database or the network
            self._failed = True
            say(f"MLflow: nothing more is logged ({first_line(error)})")


LOGS: dict[str, Any] = {"tensorboard": TensorBoardLog, "mlflow": MlflowLog}


def check_logs(names: Iterable[str]) -> list[str]:
    """Return each name once; raise InputError for an unknown log, or one whose package is missing."""
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in LOGS:
            raise InputError(f"Unknown log '{name}'. Choose from {', '.join(LOGS)}.")
        LOGS[name].check()
    return names


def log_finished(names: Iterable[str], run: Run) -> None:
    """Log a finished run: for runs whose epochs were not logged while they were trained."""
    for name in names:
        log = LOGS[name](run)
        for row in run.history:
            log(row)
        log.finish()


def add_to_log(run: Run, path: Path) -> None:
    """Add a report or an export to the run of MLflow, if the training was logged there."""
    if (run.path / _MLFLOW_RUN).is_file():
        MlflowLog(run).add([path])


def _numbers(row: dict) -> dict:
    return {key: v for key, v in row.items() if key not in ("epoch", "phase") and v != ""}


def _flat(settings: Mapping, prefix: str = ""):
    """Yield (name, text) of nested settings: `schedule.phases.0.epochs`."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, (list, tuple)) and any(isinstance(one, Mapping) for one in value):
            value = {str(number): one for number, one in enumerate(value)}
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, str(value)[:_LONGEST]


def _address() -> str:
    import mlflow

    return mlflow.get_tracking_uri()


def _client(address: str):
    from mlflow.tracking import MlflowClient

    return MlflowClient(address)


def _scalar(name, value):
    """Write the same as `tf.summary.scalar`, which needs the package tensorboard."""
    import tensorflow as tf

    metadata = tf.compat.v1.SummaryMetadata(
        plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
    )
    tf.summary.write(name, tf.constant(value, tf.float32), metadata=metadata)
