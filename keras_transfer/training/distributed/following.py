"""One writer: the chief has the run directory, the other workers keep in memory what they need of it."""

import json
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.runs import Run
from keras_transfer.training.distributed.workers import Workers


class Follower(Run):
    """A run that another process writes: nothing of it is on this machine's disk."""

    def __init__(self, path):
        super().__init__(path)
        self._best, self._state, self._start, self._metrics = {}, None, None, None

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

    def save_state(self, state, arrays, best):
        if best is not None:
            self._best = {state["best"]["epoch"]: best}

    def load_state(self):
        return self._state

    def load_best(self, epoch):
        return self._best[epoch]

    def save_start(self, arrays):
        self._start = arrays

    def load_start(self):
        return self._start

    def finish(self, model, metrics):
        self._metrics = metrics


def begun_config(workers: Workers | None, out) -> dict | None:
    """The settings of the run that is to be resumed; None where nothing was begun."""

    def read():
        return Run.open(out, finished=False).config if Run.begun(out) else None

    return workers.on_chief(read) if workers else read()


def create(workers: Workers | None, out, *args) -> Run:
    """`Run.create` on the chief (or of a process alone).

    Raises:
        InputError: on all workers, where the chief cannot.
    """
    if workers is None:
        return Run.create(out, *args)
    workers.on_chief(lambda: Run.create(out, *args) and None)
    return Run(out) if workers.chief else Follower(out)


def resume(workers: Workers | None, out, *args) -> Run:
    """`Run.resume` on the chief; the others get from it what they need to go on.

    Raises:
        InputError: on all workers, where the chief cannot.
    """
    if workers is None:
        return Run.resume(out, *args)
    workers.on_chief(lambda: Run.resume(out, *args) and None)
    run = Run(Path(out))
    loaded = run.load_state() if workers.chief else None
    state = json.loads(workers.broadcast(json.dumps(loaded and loaded[0]).encode()))
    start = run.load_start() if workers.chief else None
    start = workers.arrays_from_chief(start or {})
    arrays, best = {}, {}
    if state is not None:
        arrays = workers.arrays_from_chief(loaded and loaded[1])
        if state["best"]:
            epoch = state["best"]["epoch"]
            best = {epoch: workers.arrays_from_chief(run.load_best(epoch) if loaded else None)}
    if workers.chief:
        return run
    follower = Follower(out)
    follower._state = None if state is None else (state, arrays)
    follower._best, follower._start = best, start or None
    return follower
