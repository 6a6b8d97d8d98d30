"""What needs no common step: features and predictions, each worker its share, then put together."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_transfer.data.examples import Examples
from keras_transfer.data.sharding import own
from keras_transfer.data.targets import map_labels
from keras_transfer.evaluation.measures import outputs_of
from keras_transfer.features.extraction import Activations, extract
from keras_transfer.features.store import DIGEST
from keras_transfer.modalities.image.augment import View
from keras_transfer.training.distributed.workers import Workers, packed, unpacked

_ROUND_BYTES = 8 << 20  # of features that a worker sends at a time


def extract_together(
    workers: Workers,
    prefix,
    examples: Examples,
    views: Sequence[View] = (View(),),
    *,
    dtype: str = "float32",
    on_disk: bool = True,
    **options,
) -> Activations:
    """`features.extraction.extract`, each worker a share; at the end each has all of them.

    Workers that share a cache folder find each other's rows there; to others they are sent, and kept
    in their cache too. Arguments are those of `extract`.
    """
    # What is computed from an earlier cut needs that cut's features first, and so the other workers,
    # who may have theirs already: from images nobody has to wait.
    options.pop("source", None)
    mine = own(len(examples), workers.processes, workers.index)
    with workers.alone():
        found = extract(
            prefix,
            examples.take(mine),
            views,
            dtype=dtype,
            on_disk=on_disk,
            told=workers.watch.beat,
            **options,
        )
    workers.barrier()
    for table in found.tables:
        if on_disk:
            table.refresh()
    missing = [len(table.missing(examples.digests)) for table in found.tables]
    if any(np.frombuffer(other, "int64").any() for other in workers.gather(_numbers(missing))):
        _exchange(workers, prefix, examples, found, dtype, on_disk)
    places = np.stack([table.locate(examples.digests) for table in found.tables])
    return Activations(found.tables, places, found.engine)


def _numbers(values):
    return np.asarray(values, "int64").tobytes()


def _exchange(workers, prefix, examples, found, dtype, on_disk):
    """Sends each worker's rows to the others, round by round."""
    shape, kind = prefix.shape, np.dtype(dtype)
    row = prefix.size * kind.itemsize
    largest = -(-len(examples) // workers.processes)
    each = max(1, _ROUND_BYTES // row)
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


def outputs_together(workers: Workers, model, data, split: str, batch_size: int):
    """(labels, outputs) of `measures.outputs_of` on a split, each worker predicting a share.

    Args:
        model: of `build_model`, the workers' common one.
    """
    from keras_transfer.data import batches as pipeline

    examples = data.examples[split]
    mine = own(len(examples), workers.processes, workers.index)
    given: dict[str, np.ndarray] = {}
    if len(mine):
        own_model = workers.own_model(model)
        with workers.alone():
            # A model remembers the strategy that it was made under, and predicts with it.
            inputs = keras.Input(own_model.input_shape[1:], dtype=own_model.inputs[0].dtype)
            model = keras.Model(inputs, own_model(inputs))
            batches = pipeline.batches(
                examples.take(mine), image_size=model.input_shape[1], batch_size=batch_size
            )
            _, outputs = outputs_of(model, batches, -(-len(mine) // batch_size))
        given = outputs if isinstance(outputs, dict) else {"": outputs}
    whole: dict[str, np.ndarray] = {}
    for index, sent in enumerate(workers.gather(packed(given))):
        for name, values in unpacked(sent).items():
            full = whole.setdefault(
                name, np.zeros((len(examples), *values.shape[1:]), values.dtype)
            )
            full[own(len(examples), workers.processes, index)] = values
    labels = map_labels(np.asarray, examples.labels)
    return labels, whole[""] if whole.keys() == {""} else whole
