"""The folder of a search: its settings, and Optuna's study in a journal (no Keras)."""

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.runs import changed_settings
from keras_transfer.utils.files import write_text

SETTINGS = "tune.yaml"
JOURNAL = "study.jsonl"
_STARTUP = 6  # trials drawn at random before the model of the space says where


def require_optuna() -> None:
    """Raises InputError where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise InputError(
            "Searching needs Optuna, which is not installed: pip install 'keras_transfer[tune]'."
        )


def check_budget(trials: int | None, minutes: float | None) -> None:
    """Raises InputError for a budget in which no trial can be made."""
    if trials is not None and trials < 1:
        raise InputError(f"trials must be 1 or more, not {trials}.")
    if minutes is not None and not minutes > 0:
        raise InputError(f"minutes must be above 0, not {minutes:g}.")


def check_folder(path) -> None:
    """Raises InputError where no search can be begun or gone on with in `path`."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: give --out a directory.")
    if path.is_dir() and any(path.iterdir()) and not (path / SETTINGS).is_file():
        raise InputError(
            f"{path} is not empty, and no search was begun there: choose another --out."
        )


@contextlib.contextmanager
def open_study(path, settings: dict, *, warmup: int) -> Iterator:
    """Begins a search in a folder, or goes on with the one there: gives an `optuna.Study`.

    Trials that a killed process left unfinished count as failed (without a `reason`), and their
    values are tried again first. Validation results are maximised, trials that fall behind the
    median of the others at the same epoch are pruned.

    Args:
        settings: all that the trials have in common; plain data.
        warmup: epochs before which no trial is pruned.

    Raises:
        InputError: the search there was begun with other settings, or another process is at it.
    """
    import optuna
    import yaml
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    check_folder(path)
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    if (path / SETTINGS).is_file():
        before = yaml.safe_load((path / SETTINGS).read_text(encoding="utf-8"))
        changed = list(changed_settings(before, yaml.safe_load(text)))
        if changed:
            raise InputError(
                f"Cannot go on with the search in {path}, it was begun otherwise: "
                f"{'; '.join(changed)}. Undo that, or choose another --out."
            )
    else:
        write_text(path / SETTINGS, text)
    with (path / JOURNAL).open("a+b") as journal:
        _lock(journal, path)
        _cut(journal)
        # One process at a time: Optuna's own lock, a file, would outlive a kill by half a minute.
        backend = JournalFileBackend(str(path / JOURNAL), lock_obj=_Locked())  # type: ignore[arg-type]  # the same methods
        study = optuna.create_study(
            storage=JournalStorage(backend),
            study_name="tune",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=warmup),
        )
        for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            if not trial.user_attrs.get("reason"):
                study.enqueue_trial(trial.params)
        yield study


def ask(study, space: dict, seed: int):
    """The next trial: an `optuna.Trial` with a value for each parameter of the space.

    Which one follows from the seed and the trials that came to an end, so a search that was
    interrupted goes on like one that was not.

    Args:
        space: see `search_space`.
    """
    import numpy as np
    import optuna

    mixed = np.random.SeedSequence([seed, len(ended(study))]).generate_state(1)[0]
    study.sampler = optuna.samplers.TPESampler(seed=int(mixed), n_startup_trials=_STARTUP)
    return study.ask({name: _distribution(part) for name, part in space.items()})


def ended(study) -> list:
    """The trials that came to an end of their own: not those whose process was killed."""
    return [
        t
        for t in study.trials
        if t.state.is_finished() and (t.state.name != "FAIL" or t.user_attrs.get("reason"))
    ]


def _distribution(part):
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if not hasattr(part, "low"):
        return CategoricalDistribution(part.values)
    kind = IntDistribution if part.whole else FloatDistribution
    return kind(part.low, part.high, log=part.log)


def _lock(file, path):
    try:
        import fcntl
    except ImportError:  # not POSIX
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError(f"Another process searches in {path}: wait for it, or stop it.") from None


def _cut(journal):
    """Removes a last line that a killed process did not write to its end."""
    journal.seek(0)
    content = journal.read()
    journal.truncate(content.rfind(b"\n") + 1)


class _Locked:
    """The lock that Optuna asks for; this process has it for all of the search."""

    def acquire(self):
        return True

    def release(self):
        """Nothing: it is let go with the file."""
