"""Activations of images at a cut: found in the store, or computed and kept there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from keras_transfer.data.examples import Examples, rough_classes
from keras_transfer.errors import InputError
from keras_transfer.features.prefix import (
    Prefix,
    choose_engine,
    engine_version,
    prefix_of,
    usable_engines,
)
from keras_transfer.features.store import DTYPES, Store, Table, Writer
from keras_transfer.modalities.image.augment import View
from keras_transfer.models.builders import backbone_at
from keras_transfer.utils.console import progress_bar, say

_BATCH = 32


@dataclass(frozen=True)
class Activations:
    """What a prefix gives for some images, one table a view.

    Attributes:
        tables: of each view.
        places: (shard, row) of each image in each table, int64 [V, N, 2].
        engine: that computed them.
    """

    tables: tuple[Table, ...]
    places: np.ndarray
    engine: str

    @property
    def views(self) -> int:
        return len(self.tables)

    def gather(self, rows: np.ndarray, views: np.ndarray | int = 0) -> np.ndarray:
        """Activations [N, …] of the images `rows` [N] in the `views` [N] (or one view)."""
        views = np.broadcast_to(views, np.shape(rows))
        first = self.tables[0].shards[0]
        out = np.empty((len(rows), *first.shape[1:]), first.dtype)
        for view in np.unique(views):
            here = views == view
            out[here] = self.tables[view].gather(self.places[view][rows[here]])
        return out


@dataclass(frozen=True)
class Source:
    """Activations at an earlier cut, to compute those of a prefix from in place of images.

    Attributes:
        rest: the stages between the two cuts.
        activations: of the same examples, not rounded.
        views: that they are of.
    """

    rest: Prefix
    activations: Activations
    views: tuple[View, ...]


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
    told: Callable[[], None] = lambda: None,
) -> Activations:
    """The activations of every example in every view; what the store has is not computed again.

    Args:
        prefix: see `prefix_of`.
        dtype: a name of `store.DTYPES` that is a float, to keep them in.
        engine: `"auto"`, `"openvino"`, or a name of `prefix.ENGINES`, see `choose_engine` there.
        store: where they are looked for and kept; by default the user's.
        on_disk: False keeps what is computed now in memory only.
        memory: a `data.epochs.ImageMemory` for images that another prefix will look at.
        source: gives what to compute from where something is missing, by default the images.
        told: called after each batch.

    Raises:
        InputError: values that the dtype cannot hold, or a file that cannot be read any more.
    """
    if dtype not in DTYPES:
        raise InputError(f"Unknown dtype '{dtype}': give one of {', '.join(DTYPES)}.")
    store = store or Store()

    def tables_of(name):
        tables = tuple(_table(store, prefix, name, view, dtype) for view in views)
        for table in tables:
            table.refresh()
            for damage in table.damaged:
                say(f"cache: a damaged shard was removed and is computed again ({damage})")
        return tables

    def missing_in(tables):
        return sorted({i for table in tables for i in table.missing(examples.digests)})

    found = {name: tables_of(name) for name in usable_engines(engine, prefix)}
    name = min(found, key=lambda n: len(missing_in(found[n])), default="")
    missing = missing_in(found[name]) if name else list(range(len(examples)))
    if missing:
        if source:
            given = source()
            choice = choose_engine(given.activations.engine, given.rest)
        else:
            expected = missing
            # The first batches are read while the engine is made.
            batches = _images(prefix, examples, missing, views, memory)
            choice = choose_engine(
                engine, prefix, _sampler(prefix, examples, missing), len(missing) * len(views)
            )
        if choice.name != name:
            name = choice.name
            found[name] = found.get(name) or tables_of(name)
            missing = missing_in(found[name])
        if source:
            batches = _derived(given, missing, views)
        elif missing != expected:
            batches = _images(prefix, examples, missing, views, memory)
        digests = [examples.digests[i] for i in missing]
        _compute(choice.run, batches, digests, found[name], dtype, on_disk, told)
        if on_disk:
            store.trim(keep=[table.key for table in found[name]])
        how = "from those of an earlier cut" if source else choice.reason
        say(f"features of {len(missing)} images computed; engine {name}: {how}")
    places = np.stack([table.locate(examples.digests) for table in found[name]])
    return Activations(found[name], places, name)


def _table(store, prefix, engine, view, dtype):
    identity = {
        **prefix.identity,
        "engine": engine_version(engine),
        "view": view.identity(),
        "dtype": dtype,
    }
    shown = view.kind if view.kind != "augmented" else f"augmented {view.number + 1}"
    about = {
        "backbone": prefix.name,
        "image_size": prefix.image_size,
        "shape": list(prefix.shape),
        "dtype": dtype,
        "engine": engine,
        "view": shown,
    }
    return store.table(identity, about)


def _sampler(prefix, examples, missing):
    from keras_transfer.data import batches as pipeline

    def sample(count):
        # Spread over the classes, which lie one after the other.
        spread = np.unique(np.linspace(0, len(missing) - 1, count).astype(int))
        chosen = [missing[i] for i in spread]
        (batch,) = pipeline.views(examples, chosen, [View()], prefix.image_size, len(chosen))
        return batch[0].numpy(), rough_classes(examples.labels)[chosen]

    return sample


def _images(prefix, examples, missing, views, memory):
    """Batches of input, [V, B, …]."""
    from keras_transfer.data import batches as pipeline

    stream = pipeline.views(examples, missing, views, prefix.image_size, _BATCH, memory)
    return map(lambda batch: batch.numpy(), iter(stream))


def _derived(source, missing, views):
    """The same, of an earlier cut's activations."""
    kept = [source.views.index(view) for view in views]
    for start in range(0, len(missing), _BATCH):
        rows = np.asarray(missing[start : start + _BATCH])
        yield np.stack([source.activations.gather(rows, v) for v in kept]).astype(source.rest.takes)


def _compute(run: Callable, batches, digests, tables, dtype, on_disk, told):
    # What waits in memory is bounded, over all views.
    share = max(1 << 20, (64 << 20) // len(tables))
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
            told()
    finally:  # what is computed is kept, also where the run is interrupted
        for writer in writers:
            writer.flush()
        progress.close()
    full = next((writer.full for writer in writers if writer.full), None)
    if full:
        say(f"cache: it cannot be written to ({full}); the rest is kept in memory")


def _cast(rows, dtype):
    short = rows.astype(dtype)
    if dtype != "float32" and not np.isfinite(short.astype("float32")).all():
        raise InputError(
            f"Activations up to {np.abs(rows.astype('float32')).max():.3g} do not fit into {dtype}: "
            "use bfloat16 or float32 (feature_dtype), or --cache off."
        )
    return short


class Supply:
    """Activations of the phases of a run, each computed from the deepest one that is to come anyway.

    A run's later phases have fewer frozen stages than its earlier ones. Where a later phase keeps
    the same views on the disk, its activations are computed first, from images, and the earlier
    phase's from them: no image is read twice, no stage computed twice.

    Args:
        model: of `build_model`.
        data: a `keras_transfer.data.ImageData`.
        phases: the `PlannedPhase`s.
        caching: of each phase a `Caching`, or None where it trains on images.
        views: of each phase those of its training images.
        engine: see `extract`.
        engines: phase name → engine that computed its activations; what is in there is kept to,
            what is chosen here is added.
        memory: a `data.epochs.ImageMemory` for what must be decoded again.
        extract: what computes them, called like `extraction.extract`.
    """

    def __init__(
        self, model, data, phases, caching, views, *, engine, engines, memory, extract=extract
    ):
        self.model, self.data = model, data
        self.phases, self.caching, self.views = phases, caching, views
        self.engine, self.engines, self.memory = engine, engines, memory
        self.extract = extract
        self._made = {}  # prefixes, each with its engines

    def of(self, index: int) -> dict[str, Activations]:
        """Split → activations of the phase `index`; empty where it trains on images."""
        if self.caching[index] is None:
            return {}
        splits = [split for split in ("train", "val") if split in self.data.examples]
        return {split: self._activations(index, split) for split in splits}

    def _activations(self, index, split):
        planned, caching = self.phases[index], self.caching[index]
        name = planned.phase.name
        below = self._below(index)
        found = self.extract(
            self._prefix(index),
            self.data.examples[split],
            self.views[index] if split == "train" else (View(),),
            dtype=caching.dtype,
            # Once chosen it is that of the other split too, and of the run when it is resumed.
            engine=self.engines.get(name, self.engine),
            store=Store(),
            on_disk=caching.where == "disk",
            memory=self.memory,
            source=None if below is None else lambda: self._source(below, index, split),
        )
        self.engines[name] = found.engine
        return found

    def _below(self, index):
        """The later phase whose activations this one's follow from, None where there is none."""
        planned = self.phases[index]

        def gives(later):
            phase, caching = self.phases[later], self.caching[later]
            return (
                caching is not None
                and caching.where == self.caching[index].where == "disk"
                and caching.dtype
                == self._prefix(later).model.outputs[0].dtype  # nothing is rounded
                and phase.image_size == planned.image_size
                and 0 < phase.frozen < planned.frozen
                and set(self.views[index]) <= set(self.views[later])
            )

        later = [i for i in range(index + 1, len(self.phases)) if gives(i)]
        return max(later, key=lambda i: self.phases[i].frozen, default=None)

    def _source(self, below, index, split):
        views = self.views[below] if split == "train" else (View(),)
        return Source(self._between(below, index), self._activations(below, split), views)

    def _between(self, below, index):
        planned = self.phases[index]
        first, last = self.phases[below].frozen, planned.frozen

        def make():
            backbone = backbone_at(self.model, planned.image_size)
            cut, end = (backbone.stages[n - 1].output for n in (first, last))
            name = f"{backbone.name}, stages {first + 1} to {last}"
            return Prefix(keras.Model(cut, end), name, takes="float32")

        return self._once((first, last, planned.image_size), make)

    def _prefix(self, index):
        planned = self.phases[index]
        key = (planned.frozen, planned.image_size)
        return self._once(key, lambda: prefix_of(self.model, *key))

    def _once(self, key, make):
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
