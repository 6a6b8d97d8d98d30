"""The race: trainings of different kinds and lengths, judged on validation examples.

Each contender is a run in a folder of its own, so an interrupted race continues where it was.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import keras
import numpy as np

from keras_transfer.advisor.budget import Clock
from keras_transfer.advisor.judging import (
    Judged,
    difference,
    difference_text,
    judge,
    plain_difference,
)
from keras_transfer.advisor.rules import Choice
from keras_transfer.data.examples import Examples, digest_of_fingerprints
from keras_transfer.errors import OutOfSpace
from keras_transfer.runs import CONFIG, PLACES, RACE, REFITS, Run, place_of
from keras_transfer.training.config import REFIT
from keras_transfer.utils.checkpoint import Checkpoint
from keras_transfer.utils.console import Table, say
from keras_transfer.utils.documents import dump_yaml, read_json
from keras_transfer.utils.files import read_arrays, write_arrays, write_file, write_text

# By how many standard errors of the difference a contender must be better than the best one so far.
CLEARLY = 1.0
UNLESS_WORSE = -1.0  # it wins a tie
ALWAYS = -math.inf
_ERRORS = 1.0  # standard errors of accuracy that a lower loss may cost

# Trains a choice into a folder, or continues there; returns the raw outputs of each head for the
# validation examples, float [N, C].
Train = Callable[[Choice, Path], dict[str, np.ndarray]]
# Trains the model of a run again, on all examples, into a folder; returns the model and what metrics.json
# says of it, or None if the first one should stay.
TrainAgain = Callable[[Run, Path], tuple[keras.Model, dict] | None]


@dataclass(frozen=True, eq=False)
class Entry:
    """A contender that was trained.

    Attributes:
        choice: what was trained.
        judged: its losses on the validation examples.
        scores: score of each of them.
        folder: its run.
        minutes: of its training.
        at: minutes since the start when it was finished.
        behind: (its loss minus that of the best one before it, the standard error), over the same
            examples; None for the first.
    """

    choice: Choice
    judged: Judged
    folder: Path
    minutes: float
    at: float
    behind: tuple[float, float] | None = None

    def to_dict(self) -> dict:
        """Return plain data for JSON."""
        return {
            **self.choice.to_dict(),
            "loss": self.judged.loss,
            "score": self.judged.score,
            "minutes": round(self.minutes, 2),
            "at": round(self.at, 2),
            **plain_difference(self.behind),
        }


@dataclass
class Race:
    """Trainings, each judged when it is finished; the best one so far is at `out`.

    Args:
        out: directory of the best run.
        train: see `Train`.
        heads: name → fitted head.
        examples: those of validation.
        clock: limits each training.
    """

    out: Path
    train: Train
    heads: dict
    examples: Examples
    clock: Clock
    entries: list[Entry] = field(default_factory=list)
    best: Entry | None = None

    @property
    def folder(self) -> Path:
        """Where the contenders are until the race is over."""
        return place_of(self.out)

    @property
    def _together(self):
        """Groups of the examples; of one alone, such as one speaker, the error is that of its examples."""
        groups = self.examples.together
        return groups if len(np.unique(groups)) > 1 else np.arange(len(groups))

    def enter(self, choice: Choice, margin: float = CLEARLY) -> Entry:
        """Train and judge a choice; where it is better than all before, its run replaces that at `out`.

        Args:
            margin: standard errors by which it must be better; below 0, by which it may be worse.
        """
        folder = self.folder / str(len(self.entries))
        choice, outputs, minutes = self._outputs(choice, folder)
        units = {name: head.from_units(outputs[name]) for name, head in self.heads.items()}
        judged = judge(self.heads, self.examples.labels, units)
        behind = None
        if self.best is not None:
            behind = difference(judged.losses, self.best.judged.losses, self._together)
        entry = Entry(choice, judged, folder, minutes, self.clock.spent, behind)
        self.entries.append(entry)
        if self.best is None or self.better(entry, self.best, margin):
            self.best = entry
            self.publish({})
        return entry

    def open(self, settings: dict, fingerprints: dict) -> None:
        """Begin the race, or continue the one that was interrupted.

        Args:
            settings: of all contenders, as `config.yaml` records them.
            fingerprints: of the examples.

        Raises:
            InputError: if it began with other settings or examples.
        """
        if not any((self.folder / name).exists() for name in ("0", "0.npz")):
            shutil.rmtree(self.folder, ignore_errors=True)  # nothing was trained
        # Whether the best is trained again may be decided anew until it is.
        fixed = settings.keys() - {*PLACES, "refit"}
        settings = {name: value for name, value in settings.items() if name in fixed}
        digest = digest_of_fingerprints(fingerprints)
        # It may be without settings, which races did not save before.
        Checkpoint.open(self.folder, settings, what="race", fingerprint=digest, empty=False)

    @property
    def begun(self) -> dict | None:
        """The next contender, if a race that was interrupted began it: `choice`, and `minutes` so far."""
        return read_json(self.folder / f"{len(self.entries)}.json", optional=True)

    def _outputs(self, choice, folder):
        """Return (a contender, its outputs, minutes of its training), also of an interrupted race.

        What an interrupted race has finished counts, even if another limit of the minutes would lead to
        another choice now.
        """
        plain = json.loads(json.dumps(choice.to_dict()))
        saved, begun = folder.with_suffix(".npz"), self.begun
        before = begun["minutes"] if begun else 0.0
        if saved.is_file():
            known = Choice.from_dict(begun["choice"]) if begun else choice
            return known, read_arrays(saved), before
        if begun and begun["choice"] != plain:
            shutil.rmtree(folder, ignore_errors=True)
            before = 0.0
        if folder.is_dir() and Run(folder).finished:
            shutil.rmtree(folder)  # its outputs were not saved
        started = time.perf_counter()

        def note():
            spent = before + (time.perf_counter() - started) / 60
            document = {"choice": plain, "minutes": spent}
            write_text(folder.with_suffix(".json"), json.dumps(document))
            return spent

        self.folder.mkdir(parents=True, exist_ok=True)
        note()
        try:
            outputs = self.train(choice, folder)
        finally:
            minutes = note()
        write_arrays(saved, outputs)
        return choice, outputs, minutes

    def better(self, entry: Entry, other: Entry, margin: float = CLEARLY) -> bool:
        """Return whether an entry's loss is lower by a margin, and its score not significantly lower."""
        if margin == ALWAYS:
            return True
        gap, error = difference(entry.judged.losses, other.judged.losses, self._together)
        lost, lost_error = difference(other.judged.scores, entry.judged.scores, self._together)
        return gap < -margin * error and lost <= _ERRORS * lost_error

    def refit(self, train: TrainAgain) -> None:
        """Train the best entry again; its run gets that model, and keeps the one that was validated."""
        assert self.best is not None, "nothing has been trained"
        run = Run(self.best.folder)
        try:
            found = train(run, self.best.folder.with_suffix(".refit"))
        except OutOfSpace as error:  # the race is over, and its best model is there
            say(f"refit: left out. {error}")
            return
        if found is None:
            return
        model, how = found
        if not run.validated_path.is_file():  # it is, if the process ended before the race did
            write_file(run.validated_path, partial(shutil.copyfile, run.model_path))
        write_text(run.path / CONFIG, dump_yaml({**run.config, "refit": REFIT, REFITS: True}))
        run.finish(model, {**run.metrics, "refit": how})

    def publish(self, document: dict) -> None:
        """Put the best run at `out`, whole, with what is known about the race."""
        assert self.best is not None, "nothing has been trained"
        document = {**document, "contenders": [entry.to_dict() for entry in self.entries]}
        new = self.folder / "new"
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(self.best.folder, new, copy_function=_linked)
        write_text(new / RACE, json.dumps(document, indent=2) + "\n")
        old = self.folder / "old"
        shutil.rmtree(old, ignore_errors=True)
        if self.out.exists():
            self.out.replace(old)
        new.replace(self.out)
        shutil.rmtree(old, ignore_errors=True)

    def close(self) -> None:
        """Remove the contenders."""
        shutil.rmtree(self.folder, ignore_errors=True)


def contenders_table(race: dict) -> str:
    """Return one line per contender of a `race.json`; `− best` compares with the best one before it."""
    rows = race["contenders"]
    score = race.get("evidence", {}).get("score", "score")
    lines = [
        (
            " ".join([row["strategy"], *(f"{k}={v:.3g}" for k, v in row["overrides"].items())]),
            f"{row['loss']:.3f}",
            difference_text(row),
            f"{row['score']:.3f}",
            f"{row['minutes']:.1f}",
        )
        for row in rows
    ]
    return Table(("contender", "loss", "− best", score, "minutes"), lines, "lrrrr").text()


def _linked(source, target):
    try:
        os.link(source, target)  # files of runs are replaced, never changed
    except OSError:
        shutil.copy2(source, target)
