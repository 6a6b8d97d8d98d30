"""The folder of a search: its settings, its Optuna study, and the results (no Keras)."""

import contextlib
import errno
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.experiments.search_space import Space, format_values
from keras_transfer.runs import Run
from keras_transfer.utils.checkpoint import Checkpoint
from keras_transfer.utils.console import Table
from keras_transfer.utils.extras import require
from keras_transfer.utils.files import (
    check_output_folder,
    csv_text,
    explain_writing,
    locked,
    write_file,
    write_text,
)
from keras_transfer.utils.names import check_minutes

SETTINGS = "tune.yaml"
JOURNAL = "study.jsonl"
BEST = "best.yaml"
CSV = "trials.csv"
_NAME = "tune"  # of the study
_RANDOM = 6  # first trials, drawn at random
_TABLE_ROWS = 8
_MIN_FOR_IMPORTANCES = 6  # complete trials


def require_optuna() -> None:
    """Raise InputError if Optuna is not installed."""
    require("optuna", "Searching")


def check_budget(trials: int | None, minutes: float | None) -> None:
    """Raise InputError for a budget that allows no trial."""
    if trials is not None and trials < 1:
        raise InputError(f"trials must be 1 or more, not {trials}.")
    check_minutes(minutes)


def check_folder(path) -> None:
    """Raise InputError if no search can be started or resumed in `path`."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: give --out a directory.")
    if path.is_dir() and any(path.iterdir()) and not (path / SETTINGS).is_file():
        raise InputError(f"{path} is not empty and contains no search: choose another --out.")
    check_output_folder(path)


# -- the study ------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_study(path, settings: dict, fingerprint: str, *, warmup: int) -> Iterator:
    """Start a search in a folder, or resume it; yield an `optuna.Study`.

    Trials that a killed process left unfinished count as failed (without a `reason`), and their
    values are tried again first. The study maximizes validation results, and prunes trials that
    fall behind the median of the others at the same epoch.

    Args:
        path: the folder.
        settings: everything that the trials share, as plain data.
        fingerprint: digest of the images.
        warmup: number of epochs before a trial can be pruned.

    Raises:
        InputError: the folder contains something else, the search in it has other settings or images,
            or another process is running it.
    """
    import optuna

    path = Path(path)
    Checkpoint.open(path, settings, what="search", file=SETTINGS, fingerprint=fingerprint)
    journal_file = path / JOURNAL
    with explain_writing(journal_file, only=(errno.EACCES, errno.EROFS)):
        journal_file.touch()
    busy = f"Another process is searching in {path}: wait for it, or stop it."
    with _quiet_optuna(), locked(journal_file, busy), journal_file.open("a+b") as journal:
        _drop_partial_line(journal)
        study = optuna.create_study(
            storage=_storage(path),
            study_name=_NAME,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=warmup),
        )
        for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            if not trial.user_attrs.get("reason"):
                study.enqueue_trial(trial.params)
        yield study


@contextlib.contextmanager
def _quiet_optuna():
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def _storage(path):
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    # Optuna's lock is a file that outlives a killed process by half a minute. `locked` replaces it.
    return JournalStorage(JournalFileBackend(str(path / JOURNAL), lock_obj=_NoLock()))


class _NoLock:
    """A lock for Optuna that does nothing."""

    def acquire(self):
        return True

    def release(self):
        pass


def _drop_partial_line(journal):
    """Remove the last line if a killed process wrote only part of it."""
    journal.seek(0)
    content = journal.read()
    journal.truncate(content.rfind(b"\n") + 1)


def next_trial(study, space: Space, seed: int):
    """Return the next `optuna.Trial`, with a value for each parameter of the space.

    The values depend only on the seed and on the finished trials, so an interrupted search
    continues exactly like an uninterrupted one.
    """
    import optuna

    mixed = np.random.SeedSequence([seed, len(finished(study))]).generate_state(1)[0]
    study.sampler = optuna.samplers.TPESampler(seed=int(mixed), n_startup_trials=_RANDOM)
    return study.ask({name: _distribution(part) for name, part in space.items()})


def finished(study) -> list:
    """Return the trials that ended by themselves, without those whose process was killed."""
    return [
        t
        for t in study.trials
        if t.state.is_finished() and (t.state.name != "FAIL" or t.user_attrs.get("reason"))
    ]


def _distribution(part):
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not hasattr(part, "low"):
        return CategoricalDistribution(part.values)
    kind = IntDistribution if part.whole else FloatDistribution
    return kind(part.low, part.high, log=part.log)


def importances_of(study) -> dict[str, float]:
    """Return each parameter's share of the variance between complete trials (fANOVA, Hutter et al.
    2014); {} if there are too few trials."""
    import optuna

    complete = [t for t in study.trials if t.state.name == "COMPLETE"]
    if len(complete) < _MIN_FOR_IMPORTANCES or len({t.value for t in complete}) < 2:
        return {}
    shares = optuna.importance.get_param_importances(study, evaluator=_evaluator())
    return {name: float(share) for name, share in shares.items()}


def _evaluator():
    import optuna

    return optuna.importance.FanovaImportanceEvaluator(seed=0)


# -- the results ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One training of a search.

    Attributes:
        number: from 0.
        state: `"complete"`, `"pruned"` or `"failed"`.
        values: parameter → value.
        value: the maximized validation result; of the last epoch if pruned, None if failed.
        loss: validation loss, or None.
        epochs: number of epochs.
        seconds: duration.
        reason: of a failure.
    """

    number: int
    state: str
    values: dict
    value: float | None
    loss: float | None
    epochs: int
    seconds: float
    reason: str = ""


def trials_of(study) -> tuple[Trial, ...]:
    """Return the finished trials of an `optuna.Study`."""
    states = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    return tuple(
        Trial(
            t.number,
            states[t.state.name],
            dict(t.params),
            t.value,
            t.user_attrs["val"].get("loss"),
            t.user_attrs["epochs"],
            t.user_attrs["seconds"],
            t.user_attrs["reason"],
        )
        for t in finished(study)
    )


def _rank(trial: Trial) -> tuple[float, float]:
    """Return the key by which complete trials are compared; higher is better."""
    assert trial.value is not None and trial.loss is not None, "the trial was completed"
    return trial.value, -trial.loss


@dataclass(frozen=True, eq=False)
class Tuned:
    """Result of a search.

    Attributes:
        folder: of the search.
        metric: that ranks the trials: the lowest `"loss"`, the highest of any other.
        images: number of validation images.
        space: parameter → `Range` or `Choice`.
        default: parameter → value in the schedule that was searched around.
        trials: in order.
        test: metrics of the best trial on the test images, if there are any.
        importances: see `importances_of`.
    """

    folder: Path
    metric: str
    images: int
    space: Space
    default: dict
    trials: tuple[Trial, ...]
    test: dict | None = None
    importances: dict[str, float] = field(default_factory=dict)

    @cached_property
    def best(self) -> Trial | None:
        """The complete trial with the highest value; the lowest loss breaks ties."""
        complete = [t for t in self.trials if t.state == "complete"]
        return max(complete, key=_rank, default=None)

    def _require_best(self) -> Trial:
        if self.best is None:
            raise InputError(
                f"No trial in {self.folder} was completed, so the best trial is unknown."
            )
        return self.best

    @cached_property
    def first(self) -> Trial | None:
        """The trial of the default values, if it was completed."""
        same = (t for t in self.trials if t.values == self.default and t.state == "complete")
        return next(same, None)

    @property
    def run(self) -> Run:
        """The run of the best trial."""
        return Run(self.folder / f"trial-{self._require_best().number}")

    @property
    def config(self) -> Path:
        """The best configuration, for `train --config`."""
        return self.folder / BEST

    def result(self, trial: Trial) -> str:
        """Return the validation result of a trial as text, e.g. `accuracy 0.9500`."""
        return "–" if trial.value is None else f"{self.metric} {self._metric(trial.value):.4f}"

    def _metric(self, value):
        return -value if self.metric == "loss" else value

    @property
    def verdict(self) -> str:
        """Conclusion of the search, in a few sentences."""
        best = self._require_best()
        text = (
            f"Best: trial {best.number} of {len(self.trials)}, val {self.result(best)} "
            f"({format_values(best.values)})."
        )
        if self.first is None:
            text += " The default failed."
        elif best is self.first:
            text += " This is the default: no better configuration was found."
        else:
            text += f" The default reaches {self.result(self.first)}."
            text += self._chance(_rank(best)[0] - _rank(self.first)[0])
        text += " The validation result of the best of many trials is optimistic"
        if self.test:
            return (
                f"{text}; on the test examples its {self.metric} is {self.test[self.metric]:.4f}."
            )
        return f"{text}: hold out test examples (--test-split) to measure it."

    def _chance(self, gain):
        if self.metric != "accuracy":
            return ""
        accuracy = self.first.value
        error = np.sqrt(accuracy * (1 - accuracy) / self.images)
        if gain > 2 * error:
            return ""
        return (
            f" The gain of {100 * gain:.1f} points is within two standard errors of an accuracy on "
            f"{self.images} examples ({100 * error:.1f} points each): it may be chance."
        )

    def to_dict(self) -> dict:
        """Return plain data, for JSON."""
        return {
            "metric": self.metric,
            "best": self._plain(self.best),
            "default": self.first and self._plain(self.first),
            "test": self.test,
            "importances": self.importances,
            "config": str(self.config),
            "run": str(self.run.path),
            "verdict": self.verdict,
            "trials": [self._plain(trial) for trial in self.trials],
        }

    def _plain(self, trial):
        value = None if trial.value is None else self._metric(trial.value)
        return {**vars(trial), "value": value}

    def table(self) -> str:
        """Return the best trials and the default as a text table."""
        order = {"complete": 0, "pruned": 1, "failed": 2}
        trials = sorted(self.trials, key=lambda t: (order[t.state], -(t.value or 0.0), t.number))
        shown = trials[:_TABLE_ROWS]
        if self.first and self.first not in shown:
            shown.append(self.first)
        rows = [
            [
                trial.number,
                trial.state,
                None if trial.value is None else f"{self._metric(trial.value):.4f}",
                trial.epochs,
                f"{trial.seconds:.1f}",
                format_values(trial.values) + "  (default)" * (trial is self.first),
            ]
            for trial in shown
        ]
        columns = ("trial", "state", self.metric, "epochs", "seconds", "values")
        text = Table(columns, rows, "rlrrrl").text()
        if len(trials) > len(shown):
            text += f"\n… {len(trials) - len(shown)} more in {self.folder / CSV}"
        return text

    def write(self, folder: Path) -> None:
        """Write all trials to `trials.csv`."""
        measures = ["loss"] if self.metric == "loss" else [self.metric, "loss"]
        header = ("trial", "state", *measures, "epochs", "seconds", *self.space, "reason")
        rows = []
        for t in self.trials:
            value = "" if t.value is None else self._metric(t.value)
            results = [value] if self.metric == "loss" else [value, t.loss]
            values = [t.values.get(name, "") for name in self.space]
            seconds = round(t.seconds, 1)
            rows.append([t.number, t.state, *results, t.epochs, seconds, *values, t.reason])
        write_text(folder / CSV, csv_text(header, rows))

    def draw(self, path) -> None:
        """Draw Optuna's plots of the study into one PNG file: the optimization history, a slice per
        parameter, and the importances if there are enough trials."""
        import matplotlib.pyplot as plt
        import optuna
        from optuna.visualization import matplotlib as plots
        from PIL import Image

        study = optuna.load_study(study_name=_NAME, storage=_storage(self.folder))
        name = "negative val loss" if self.metric == "loss" else f"val {self.metric}"
        draws = [
            lambda: plots.plot_optimization_history(study, target_name=name),
            lambda: plots.plot_slice(study, target_name=name),
        ]
        if self.importances:
            draws.append(lambda: plots.plot_param_importances(study, evaluator=_evaluator()))
        images = []
        # Optuna sets a style, opens its figures with pyplot, and warns that its plots may change.
        with plt.rc_context(), plt.ioff(), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            for draw in draws:
                draw()
                figure = plt.gcf()
                buffer = io.BytesIO()
                figure.savefig(buffer, dpi=110, bbox_inches="tight")
                plt.close(figure)
                images.append(Image.open(buffer).convert("RGB"))
        width, height = max(i.width for i in images), sum(i.height for i in images)
        page, top = Image.new("RGB", (width, height), "white"), 0
        for image in images:
            page.paste(image, (0, top))
            top += image.height
        write_file(Path(path), lambda temporary: page.save(temporary))
