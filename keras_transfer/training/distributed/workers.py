"""Several devices or processes that train together: what both engines have in common.

`tensorflow_workers` and `jax_workers` implement the primitives: `scope`, `alone`, `gather`,
`broadcast` and the streams. Everything else is made of those.
"""

import contextlib
import hashlib
import io
import json
from functools import partial
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_transfer.data.examples import Examples, map_labels
from keras_transfer.errors import InputError
from keras_transfer.evaluation.measures import predict_batches
from keras_transfer.features.extraction import Activations, extract
from keras_transfer.features.store import DIGEST
from keras_transfer.modalities.views import View
from keras_transfer.models.framing import framing_of
from keras_transfer.runs import Run
from keras_transfer.training.distributed import faults
from keras_transfer.training.distributed.single_process import SingleProcess
from keras_transfer.utils.checkpoint import Checkpoint

if TYPE_CHECKING:
    from keras_transfer.data.order import Share

_MESSAGE_BYTES = 8 << 20  # of features that a worker sends at a time


class Workers(SingleProcess):
    """One process among those that train together, and its devices.

    Attributes:
        watch: ends the process if no step finishes for too long, see `faults.Watch`.
    """

    distributed = True
    watch: "faults.Watch"

    # -- primitives of an engine

    @property
    def share(self) -> "Share":
        raise NotImplementedError

    def scope(self):
        raise NotImplementedError

    def alone(self):
        raise NotImplementedError

    def own_model(self, model: keras.Model) -> keras.Model:
        raise NotImplementedError

    def stream(self, dataset):
        """Return what `fit` takes for a tf.data stream of this process's share."""
        raise NotImplementedError

    def prepare(self, network: keras.Model, dataset) -> None:
        """Make a compiled model ready for `fit` on such streams."""
        raise NotImplementedError

    def synchronized(self, model: keras.Model):
        """Return a context in which BatchNorm layers see the whole batch."""
        raise NotImplementedError

    def gather(self, payload: bytes) -> list[bytes]:
        """Return what each process gave, in the order of the processes."""
        raise NotImplementedError

    def broadcast(self, payload: bytes) -> bytes:
        """Return what the chief gave; the payload of other processes is ignored."""
        raise NotImplementedError

    # -- communication

    def barrier(self):
        self.gather(b"")

    def on_chief(self, compute):
        answer = None
        if self.chief:
            try:
                answer = {"value": compute()}
            except InputError as error:
                answer = {"error": str(error)}
        answer = json.loads(self.broadcast(json.dumps(answer).encode()))
        if "error" in answer:
            raise InputError(answer["error"])
        return answer["value"]

    def agree(self, what, value):
        digest = hashlib.blake2b(value(), digest_size=16).digest()
        given = self.gather(digest)
        others = [str(i) for i, other in enumerate(given) if other != given[0]]
        if others:
            raise InputError(
                f"Worker {', '.join(others)} and worker 0 have different {what}: give all workers "
                "the same data, options and weights."
            )

    def arrays_from_chief(self, compute):
        return unpacked(self.broadcast(packed(compute()) if self.chief else b""))

    # -- contexts

    def translated(self):
        return faults.translated(self)

    @contextlib.contextmanager
    def guarded(self):
        watched = self.watch.watching() if self.processes > 1 else contextlib.nullcontext()
        with self.translated(), watched:
            yield

    # -- training

    def loss_arguments(self, arguments):
        """Leave examples that fill up a batch out of the metrics."""
        arguments = dict(arguments)
        arguments["weighted_metrics"] = arguments.pop("metrics")
        return arguments

    def steps_per_execution(self, steps):
        return 1  # Keras cannot loop over iterators of strategies

    def fit(self, network, model, stream, validation, validation_steps, *, callbacks, **options):
        self.prepare(network, stream)
        if validation is not None:
            # Unlike the stream of a single process, that of a share does not end.
            options["validation_steps"] = validation_steps
            validation = self.stream(validation)
        callbacks = [_Beats(self.watch), *callbacks]
        with self.synchronized(model):
            return network.fit(
                self.stream(stream), validation_data=validation, callbacks=callbacks, **options
            )

    def engine(self, name):
        # Which engine is fastest is measured, and may differ between machines.
        return "keras" if name == "auto" else name

    def features(self, make, model):
        extract_share = partial(extract_together, self)
        # A new model each time, with the current weights.
        return lambda phase: make(self.own_model(model), extract=extract_share).of(phase)

    def outputs(self, model, data, split, batch_size, cached):
        """Let each worker predict a share of the split, and put the outputs together."""
        from keras_transfer.data import batches as pipeline

        examples = data.examples[split]
        mine = own(len(examples), self.processes, self.index)
        given: dict[str, np.ndarray] = {}
        if len(mine):
            own_model = self.own_model(model)
            with self.alone():
                # A model remembers the strategy that it was made under, and predicts with it.
                inputs = keras.Input(own_model.input_shape[1:], dtype=own_model.inputs[0].dtype)
                model = keras.Model(inputs, own_model(inputs))
                batches = pipeline.batches(
                    examples.take(mine), image_size=framing_of(own_model), batch_size=batch_size
                )
                _, outputs = predict_batches(model, batches, -(-len(mine) // batch_size))
            given = outputs if isinstance(outputs, dict) else {"": outputs}
        whole: dict[str, np.ndarray] = {}
        for index, sent in enumerate(self.gather(packed(given))):
            for name, values in unpacked(sent).items():
                full = whole.setdefault(
                    name, np.zeros((len(examples), *values.shape[1:]), values.dtype)
                )
                full[own(len(examples), self.processes, index)] = values
        labels = map_labels(np.asarray, examples.labels)
        return labels, whole[""] if whole.keys() == {""} else whole

    # -- files

    def create_run(self, out, *args):
        run = self._opened_by_chief(Run.create, out, *args)
        if self.chief:
            return self._with_checkpoint(run)
        return Follower(out), MemoryCheckpoint()

    def _opened_by_chief(self, open_run, out, *args):
        """Return the run as the chief opened it, with its lock; elsewhere a run without one."""
        opened: list[Run] = []
        self.on_chief(lambda: opened.append(open_run(out, *args)))
        return opened[0] if opened else Run(out)

    def resume_run(self, out, *args):
        opened = self._opened_by_chief(Run.resume, out, *args)
        run, checkpoint = self._with_checkpoint(opened)
        loaded = checkpoint.load() if self.chief else None
        state = json.loads(self.broadcast(json.dumps(loaded and loaded[0]).encode()))
        arrays = self.arrays_from_chief(lambda: loaded[1] if loaded else {})
        names = ["start"]
        if state and state["best"]:
            names.append(f"best-{state['best']['epoch']}")
        sent = {
            name: self.arrays_from_chief(partial(_load_or_empty, checkpoint, name))
            for name in names
        }
        if self.chief:
            return run, checkpoint
        named = {name: arrays for name, arrays in sent.items() if arrays}
        return Follower(out), MemoryCheckpoint(state, arrays, named)

    def leave(self, code):
        if self.processes > 1:
            faults.leave(code)


class Follower(Run):
    """A run that the chief writes: nothing of it is on this machine's disk."""

    _metrics = None

    @property
    def finished(self):
        return self._metrics is not None

    @property
    def metrics(self):
        if self._metrics is None:
            raise InputError(f"{self.path} is not finished: continue it with --resume.")
        return self._metrics

    def write_history(self, rows):
        """Leave it to the chief."""

    def finish(self, model, metrics):
        self._metrics = metrics


class MemoryCheckpoint(Checkpoint):
    """A checkpoint in memory, for a process that writes nothing."""

    def __init__(self, state=None, arrays=None, named=None):
        self._last = None if state is None else (state, arrays)
        self._named = dict(named or {})

    def save(self, state, arrays, named=None):
        self._named |= named or {}

    def load(self):
        return self._last

    def save_arrays(self, name, arrays):
        self._named[name] = arrays

    def load_arrays(self, name):
        return self._named.get(name)


class _Beats(keras.callbacks.Callback):
    """Tells the watch that steps are being finished."""

    def __init__(self, watch):
        super().__init__()
        self.beat = watch.beat

    def on_train_batch_end(self, batch, logs=None):
        self.beat()

    def on_test_batch_end(self, batch, logs=None):
        self.beat()


def extract_together(
    workers: Workers,
    prefix,
    examples: Examples,
    views=(View(),),
    *,
    dtype: str = "float32",
    on_disk: bool = True,
    **options,
) -> Activations:
    """Compute features with `features.extraction.extract`, each worker a share; return all of them.

    Workers with a common cache folder find each other's rows there. To others they are sent, and
    saved in their caches too. The arguments are those of `extract`.
    """
    # A source would need the features of an earlier cut, and so the other workers, who may have
    # theirs already. From examples nobody has to wait.
    options.pop("source", None)
    mine = own(len(examples), workers.processes, workers.index)
    with workers.alone():
        found = extract(
            prefix,
            examples.take(mine),
            views,
            dtype=dtype,
            on_disk=on_disk,
            on_batch=workers.watch.beat,
            **options,
        )
    workers.barrier()
    for table in found.tables:
        if on_disk:
            table.refresh()
    missing = [len(table.missing(examples.digests)) for table in found.tables]
    payload = np.asarray(missing, "int64").tobytes()
    if any(np.frombuffer(other, "int64").any() for other in workers.gather(payload)):
        _exchange(workers, prefix, examples, found, dtype, on_disk)
    places = np.stack([table.locate(examples.digests) for table in found.tables])
    return Activations(found.tables, places, found.engine)


def _exchange(workers, prefix, examples, found, dtype, on_disk):
    """Send each worker's rows to the others, message by message."""
    shape, kind = prefix.shape, np.dtype(dtype)
    row = prefix.size * kind.itemsize
    largest = -(-len(examples) // workers.processes)
    each = max(1, _MESSAGE_BYTES // row)
    mine = own(len(examples), workers.processes, workers.index)
    for table in found.tables:
        for start in range(0, largest, each):
            digests = [examples.digests[i] for i in mine[start : start + each]]
            rows = table.gather(table.locate(digests)) if digests else np.zeros((0, *shape), kind)
            payload = b"".join(digests) + np.ascontiguousarray(rows).tobytes()
            for sent in workers.gather(payload):
                count = len(sent) // (DIGEST + row)
                names = [sent[i * DIGEST : (i + 1) * DIGEST] for i in range(count)]
                values = np.frombuffer(sent[count * DIGEST :], kind).reshape(count, *shape)
                if new := table.missing(names):
                    table.add([names[i] for i in new], values[new], on_disk)


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    """Return name → array as bytes, without pickle."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # names, not options
    return buffer.getvalue()


def unpacked(payload: bytes) -> dict[str, np.ndarray]:
    """Return the arrays that `packed` was given."""
    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        return dict(arrays)


def _load_or_empty(checkpoint, name):
    return checkpoint.load_arrays(name) or {}


def own(count: int, processes: int, index: int) -> np.ndarray:
    """Return the positions that a process computes without batches, int64 [≤ ⌈count / processes⌉]."""
    return np.arange(index, count, processes)
