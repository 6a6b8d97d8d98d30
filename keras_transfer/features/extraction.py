"""Activations of examples at a cut: read from the store or computed, and streams of their batches.

Models also train without TensorFlow, so it is imported inside the functions that make streams.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from keras_transfer.data.examples import Examples, count_examples, map_labels, rough_classes
from keras_transfer.errors import InputError
from keras_transfer.features.prefix import Prefix, choose_engine, engine_version, usable_engines
from keras_transfer.features.store import DTYPES, Store, Table, Writer
from keras_transfer.modalities.views import View
from keras_transfer.utils.console import counted, progress_bar, say
from keras_transfer.utils.python_calls import python_calls

if TYPE_CHECKING:
    from keras_transfer.data.order import Share

_BATCH = 32
_BUFFER_BYTES = 64 << 20  # that wait to be written, over all views


@dataclass(frozen=True)
class Activations:
    """The output of a prefix for some examples, one table per view.

    Attributes:
        tables: table of each view.
        places: (shard, row) of each example in each table, int64 [V, N, 2].
        engine: name of the engine that computed them.
    """

    tables: tuple[Table, ...]
    places: np.ndarray
    engine: str

    @property
    def views(self) -> int:
        return len(self.tables)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.tables[0].shards[0].shape[1:]

    def gather(self, rows: np.ndarray, views: np.ndarray | int = 0) -> np.ndarray:
        """Return activations [N, …] of the examples `rows` [N] in the `views` [N] (or one view)."""
        views = np.broadcast_to(views, np.shape(rows))
        first = self.tables[0].shards[0]
        out = np.empty((len(rows), *first.shape[1:]), first.dtype)
        for view in np.unique(views):
            here = views == view
            out[here] = self.tables[view].gather(self.places[view][rows[here]])
        return out


@dataclass(frozen=True)
class Source:
    """Activations at an earlier cut, from which those of a prefix are computed instead of images.

    Attributes:
        rest: the stages between the two cuts.
        activations: of the same examples, not rounded.
        views: views of the activations.
    """

    rest: Prefix
    activations: Activations
    views: tuple[View, ...]

    def batches(self, rows, views):
        """Yield batches of input for `rest`, [V, B, …]."""
        numbers = [self.views.index(view) for view in views]
        for start in range(0, len(rows), _BATCH):
            batch = np.asarray(rows[start : start + _BATCH])
            inputs = np.stack([self.activations.gather(batch, number) for number in numbers])
            yield inputs.astype(self.rest.takes)


def extract(
    prefix: Prefix,
    examples: Examples,
    views: Sequence[View] = (View(),),
    *,
    dtype: str = "float32",
    engine: str = "auto",
    store: Store | None = None,
    on_disk: bool = True,
    memory=None,
    source: Callable[[], Source] | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> Activations:
    """Return the activations of every example in every view, computing only what the store lacks.

    Args:
        prefix: see `prefix_of`.
        examples: N examples.
        views: V views of each example.
        dtype: a name of `store.DTYPES` that is a float, in which they are stored.
        engine: `"auto"`, `"openvino"`, or a name of `prefix.ENGINES`, see `choose_engine` there.
        store: by default the store in the cache folder.
        on_disk: False holds newly computed activations in memory only.
        memory: a `data.memory.ImageMemory` for images that another prefix will need.
        source: returns activations from which missing ones are computed; by default, they are
            computed from images.
        on_batch: called after each batch.

    Raises:
        InputError: values out of the dtype's range, or a file that can no longer be read.
    """
    if dtype not in DTYPES:
        raise InputError(f"Unknown dtype '{dtype}'. Choose one of {', '.join(DTYPES)}.")
    store, prefix = store or Store(), prefix.framed_for(examples)

    def tables_of(name):
        tables = tuple(_table(store, prefix, name, view, dtype) for view in views)
        for table in tables:
            table.refresh()
            for damage in table.damaged:
                say(f"cache: removed a damaged shard, whose rows are computed again ({damage})")
        return tables

    def in_order(rows):
        if not rows or source:
            return rows
        return examples.by_length(rows, prefix.framing)

    def missing_in(tables):
        """Return (examples without all views, the positions of views without all examples)."""
        lacking = [table.missing(examples.digests) for table in tables]
        rows = sorted({i for missing in lacking for i in missing})
        return in_order(rows), [n for n, missing in enumerate(lacking) if missing]

    tables = {name: tables_of(name) for name in usable_engines(engine, prefix)}
    name = min(tables, key=lambda n: len(missing_in(tables[n])[0]), default="")
    everything = list(range(len(examples))), list(range(len(views)))
    missing, which = missing_in(tables[name]) if name else everything
    if missing:
        if source:
            earlier = source()
            choice = choose_engine(earlier.activations.engine, earlier.rest)
        else:
            expected = missing, which
            # The first batches are read while the engine is made.
            batches = _images(prefix, examples, missing, [views[n] for n in which], memory)
            work, typical = _work(examples, missing, prefix.framing)
            sample = _sampler(prefix, examples, typical)
            choice = choose_engine(engine, prefix, sample, work * len(which))
        if choice.name != name:
            name = choice.name
            tables[name] = tables.get(name) or tables_of(name)
            missing, which = missing_in(tables[name])
        lacking = [views[n] for n in which]
        if source:
            batches = earlier.batches(missing, lacking)
        elif (missing, which) != expected:
            batches = _images(prefix, examples, missing, lacking, memory)
        digests, chosen = [examples.digests[i] for i in missing], [tables[name][n] for n in which]
        _compute(choice.run, batches, digests, chosen, dtype, on_disk, on_batch)
        if on_disk:
            store.trim(keep=[table.key for table in tables[name]])
        how = "from those of an earlier cut" if source else choice.reason
        computed = counted(len(missing), examples.modality.one)
        say(f"features of {computed} computed; engine {name}: {how}")
    places = np.stack([table.locate(examples.digests) for table in tables[name]])
    return Activations(tables[name], places, name)


def _table(store, prefix, engine, view, dtype):
    identity = {
        **prefix.identity,
        "engine": engine_version(engine),
        "view": view.identity(),
        "dtype": dtype,
    }
    about = {
        "backbone": prefix.name,
        "image_size": prefix.image_size,
        "shape": list(prefix.shape),
        "dtype": dtype,
        "engine": engine,
        "view": view.kind if view.kind != "augmented" else f"augmented {view.number + 1}",
    }
    return store.table(identity, about)


def _work(examples, rows, framing):
    """Return (images or tokens to compute, rows on which engines are compared)."""
    lengths = examples.lengths(framing)
    if lengths is None:
        return len(rows), rows
    # Texts come in the order of their lengths, and the longest would pad all others of a sample.
    return int(lengths[rows].sum()), rows[len(rows) // 4 : -(-3 * len(rows) // 4)]


def _sampler(prefix, examples, missing):
    from keras_transfer.data import batches as pipeline

    def sample(count):
        # Spread over the classes, which follow one another.
        spread = np.unique(np.linspace(0, len(missing) - 1, count).astype(int))
        chosen = [missing[i] for i in spread]
        (batch,) = pipeline.views(examples, chosen, [View()], prefix.framing, len(chosen))
        return batch[0].numpy(), rough_classes(examples.labels)[chosen]

    return sample


def _images(prefix, examples, missing, views, memory):
    """Return an iterator of batches of images, [V, B, …]."""
    from keras_transfer.data import batches as pipeline

    stream = pipeline.views(examples, missing, views, prefix.framing, _BATCH, memory)
    return map(lambda batch: batch.numpy(), iter(stream))


def _compute(run: Callable, batches, digests, tables, dtype, on_disk, on_batch):
    share = max(1 << 20, _BUFFER_BYTES // len(tables))
    writers = [Writer(table, on_disk, share) for table in tables]
    progress = progress_bar(label="computing features", total=len(digests), unit="examples")
    done = 0
    try:
        for batch in batches:
            count = batch.shape[1]
            for writer, inputs in zip(writers, batch):
                writer.add(digests[done : done + count], _cast(run(inputs), dtype))
            done += count
            progress.update(count)
            on_batch()
    finally:  # saves the computed rows, even if the run is interrupted
        for writer in writers:
            writer.flush()
        progress.close()
    full = next((writer.full for writer in writers if writer.full), None)
    if full:
        say(f"cache: not writable ({full}); the remaining features stay in memory")


def _cast(rows, dtype):
    short = rows.astype(dtype)
    if dtype != "float32" and not np.isfinite(short.astype("float32")).all():
        raise InputError(
            f"Activations up to {np.abs(rows.astype('float32')).max():.3g} exceed the range of "
            f"{dtype}: use bfloat16 or float32 (feature_dtype), or --cache off."
        )
    return short


# -- streams of batches ---------------------------------------------------------------------------


def evaluation_batches(
    activations: Activations,
    labels: np.ndarray,
    *,
    batch_size: int,
    dtype: str = "float32",
    share: "Share | None" = None,
):
    """Return a tf.data stream of every example once, in order: (`dtype` [B, …], labels [B]).

    The first view is used. With `share`, it is an endless stream of one process's part, with
    weights, like `data.batches.batches`.
    """
    import tensorflow as tf

    load, count = _loader(activations, labels, dtype), count_examples(labels)
    if share:
        from keras_transfer.data.order import slices

        stream = slices(share.part(count, batch_size, evaluating=True)).map(
            lambda rows, weights: (*load(rows, tf.zeros_like(rows)), weights)
        )
        return stream.repeat().prefetch(tf.data.AUTOTUNE)
    rows = tf.data.Dataset.range(count, output_type=tf.int32).batch(batch_size)
    return rows.map(lambda rows: load(rows, tf.zeros_like(rows))).prefetch(tf.data.AUTOTUNE)


def training_batches(
    activations: Activations,
    labels: np.ndarray,
    *,
    batch_size: int,
    dtype: str = "float32",
    seed: int = 0,
    start_epoch: int = 0,
    class_weights: np.ndarray | None = None,
    equal_classes: bool = False,
    lengths: np.ndarray | None = None,
    share: "Share | None" = None,
):
    """Return an endless tf.data stream of epochs, like `data.batches.batches` with the same options.

    Each example occurs once per epoch (unless classes are drawn equally), in a view that depends on
    (seed, epoch, example). The order is that of the examples themselves, of which `Examples.lengths`
    returns `lengths`.
    """
    import tensorflow as tf

    from keras_transfer.data.batches import weighted
    from keras_transfer.data.order import ALONE, epoch_order, slices

    load, count = _loader(activations, labels, dtype), count_examples(labels)
    classes = labels if equal_classes else None
    seed = tf.constant(seed, tf.int64)
    part = (share or ALONE).part(count, batch_size)

    def epoch_batches(epoch):
        order, view_seed = epoch_order(count, seed, epoch, classes, lengths, batch_size)
        views = tf.random.stateless_uniform([count], view_seed, 0, activations.views, tf.int32)
        return slices(part).map(
            lambda places, weights: (tf.gather(order, places), tf.gather(views, places), weights)
        )

    def loaded(rows, views, weights):
        batch = load(rows, views)
        return (*batch, weights) if share else batch

    stream = (
        tf.data.Dataset.range(start_epoch, tf.int64.max)
        .flat_map(epoch_batches)
        .map(loaded, tf.data.AUTOTUNE, deterministic=True)
    )
    stream = weighted(stream, class_weights).prefetch(tf.data.AUTOTUNE)
    return stream.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def _loader(activations, labels, dtype):
    import tensorflow as tf

    shard = activations.tables[0].shards[0]
    targets = map_labels(tf.constant, labels)

    def gather(rows, views):
        with python_calls:
            return activations.gather(rows, views)

    def load(rows, views):
        values = tf.numpy_function(gather, [rows, views], tf.as_dtype(shard.dtype))
        values = tf.cast(tf.ensure_shape(values, [None, *shard.shape[1:]]), dtype)
        return values, map_labels(lambda array: tf.gather(array, rows), targets)

    return load
