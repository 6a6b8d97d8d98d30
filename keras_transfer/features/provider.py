"""What the phases of one run train on: the activations of each phase that has a cache."""

import keras

from keras_transfer.features.extraction import Activations, Source, extract
from keras_transfer.features.prefix import Prefix, prefix_of
from keras_transfer.features.store import Store
from keras_transfer.modalities.image.augment import View
from keras_transfer.models.builders import backbone_at


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
        memory: a `data.memory.ImageMemory` for what must be decoded again.
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
