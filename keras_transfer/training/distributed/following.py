"""One writer: the chief has the run directory, the other workers keep in memory what they need of it."""

import json
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.runs import Run
from keras_transfer.training.checkpoint import Checkpoint
from keras_transfer.training.distributed.workers import Workers


class Follower(Run):
    """A run that another process writes: nothing of it is on this machine's disk."""

    _metrics = None

    @property
    def finished(self):
        return self._metrics is not None

    @property
    def metrics(self):
        if self._metrics is None:
            raise InputError(f"{self.path} is not finished: go on with --resume.")
        return self._metrics

    def write_history(self, rows):
        """The chief does."""

    def finish(self, model, metrics):
        self._metrics = metrics


class MemoryCheckpoint(Checkpoint):
    """A checkpoint in memory, for a process that writes nothing."""

    def __init__(self, state=None, arrays=None, named=None):
        self._last = None if state is None else (state, arrays)
        self._named = dict(named or {})

    def save(self, state, arrays, best=None):
        if best is not None:
            self._named[f"best-{state['best']['epoch']}"] = best

    def load(self):
        return self._last

    def save_arrays(self, name, arrays):
        self._named[name] = arrays

    def load_arrays(self, name):
        return self._named.get(name)


def begun_config(workers: Workers | None, out) -> dict | None:
    """The settings of the run that is to be resumed; None where nothing was begun."""

    def read():
        return Run.open(out, finished=False).config if Run.begun(out) else None

    return workers.on_chief(read) if workers else read()


def create(workers: Workers | None, out, *args) -> tuple[Run, Checkpoint]:
    """`Run.create` on the chief (or of a process alone), and where its state goes.

    Raises:
        InputError: on all workers, where the chief cannot.
    """
    if workers is None:
        run = Run.create(out, *args)
        return run, Checkpoint(run.state_path)
    workers.on_chief(lambda: Run.create(out, *args) and None)
    if not workers.chief:
        return Follower(out), MemoryCheckpoint()
    return Run(out), Checkpoint(Run(out).state_path)


def resume(workers: Workers | None, out, *args) -> tuple[Run, Checkpoint]:
    """`Run.resume` on the chief; the others get from it what they need to go on.

    Raises:
        InputError: on all workers, where the chief cannot.
    """
    if workers is None:
        run = Run.resume(out, *args)
        return run, Checkpoint(run.state_path)
    workers.on_chief(lambda: Run.resume(out, *args) and None)
    run = Run(Path(out))
    checkpoint = Checkpoint(run.state_path)
    loaded = checkpoint.load() if workers.chief else None
    state = json.loads(workers.broadcast(json.dumps(loaded and loaded[0]).encode()))
    names = ["start"]
    if state and state["best"]:
        names.append(f"best-{state['best']['epoch']}")
    arrays = workers.arrays_from_chief(loaded and loaded[1])
    named = {}
    for name in names:
        mine = checkpoint.load_arrays(name) if workers.chief else None
        if sent := workers.arrays_from_chief(mine):
            named[name] = sent
    if workers.chief:
        return run, checkpoint
    return Follower(out), MemoryCheckpoint(state, arrays, named)
