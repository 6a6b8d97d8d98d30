"""Which phases of a run train on cached activations, and those activations."""

from dataclasses import asdict, dataclass

from keras_transfer.errors import InputError
from keras_transfer.features.extraction import Activations, Source, extract
from keras_transfer.features.prefix import Prefix, prefix_of, stage_costs
from keras_transfer.features.store import Store
from keras_transfer.modalities.views import Mix, View, views_of
from keras_transfer.models.builders import backbone_at
from keras_transfer.schedules.plans import PlannedPhase
from keras_transfer.utils.console import format_bytes
from keras_transfer.utils.extras import is_installed
from keras_transfer.utils.files import free_memory

_MAX_VIEWS = 4
_MIN_GAIN = 1.2
# Time of an inference graph over that of the forward part of a training step: 0.4 to 0.5, measured
# by `scripts/benchmark.py`.
_ENGINE = 0.5


@dataclass(frozen=True)
class Caching:
    """How a phase gets its activations.

    Attributes:
        where: `"disk"` or `"memory"`.
        views: number of views of each training example.
        mirror: the two views are the image and its mirror image (for heads in closed form).
        dtype: dtype in which they are stored.
        bytes: estimated size.
        gain: estimated time of the phase without the cache over that with it.
    """

    where: str
    views: int
    mirror: bool
    dtype: str
    bytes: int
    gain: float

    def to_dict(self) -> dict:
        return asdict(self)

    def training_views(self, augmentation) -> tuple[View, ...]:
        if self.mirror:
            return (View(), View("mirror"))[: self.views]
        return views_of(augmentation, self.views)

    def __str__(self):
        views = f"{self.views} views" if self.views > 1 else "one view"
        where = "on disk" if self.where == "disk" else "in memory"
        return (
            f"trains on activations, {views} each, {format_bytes(self.bytes)} of {self.dtype} "
            f"{where} (estimated gain {self.gain:.1f})"
        )


def plan_caching(
    requested: str,
    planned: PlannedPhase,
    model,
    examples: dict[str, int],
    augmentation,
    mix: Mix = Mix(),
    *,
    store: Store,
    dtype: str = "auto",
) -> tuple[Caching | None, str]:
    """Decide how a phase gets its activations; return (None, reason) if it trains on images.

    Args:
        requested: a name of `features.CACHES`.
        planned: the phase.
        model: from `build_model`.
        examples: number of examples in `"train"` and, if there are any, `"val"`.
        augmentation, mix: those of the phase.
        dtype: `"auto"` is the precision of the prefix if that fits, otherwise float16.

    Raises:
        InputError: memory or disk was requested and has too little space.
    """
    closed = planned.phase.solver == "logistic"
    if planned.frozen == 0:
        return None, "nothing is frozen"
    if requested == "off" and not closed:
        return None, "as requested"
    if mix and not closed:
        return None, f"{mix.kind} mixes images with each other"
    if closed and not is_installed("tensorflow"):
        raise InputError(
            f"Phase '{planned.phase.name}': features are computed with TensorFlow, which is not "
            "installed. Install it, or train the head in steps (--set solver=gradient)."
        )
    prefix = prefix_of(model, planned.frozen, planned.image_size)
    if None in prefix.shape:
        return None, "the activations at this cut have no fixed size"
    native = prefix.model.outputs[0].dtype if dtype == "auto" else dtype
    dtypes = [native] if dtype != "auto" or native != "float32" else ["float32", "float16"]
    if closed:
        most = 2 if augmentation.flip else 1
    elif len(views_of(augmentation, 2)) == 1:
        most = 1
    else:
        most = planned.phase.views or min(_MAX_VIEWS, max(1, planned.epochs // 2))

    where = "memory" if requested in ("memory", "off") else "disk"
    space = free_memory() // 2 if where == "memory" else store.free()
    fewest = most if closed or planned.phase.views else 1
    for stored in dtypes:
        for views in range(most, fewest - 1, -1):
            rows = examples["train"] * views + examples.get("val", 0)
            size = rows * prefix.size * (2 if stored != "float32" else 4)
            if size <= space:
                gain = _gain(model, planned, examples, views)
                if requested == "auto" and not closed and gain < _MIN_GAIN:
                    return None, f"the cache would gain too little (estimated {gain:.1f} times)"
                return Caching(where, views, closed, stored, size, gain), ""
    message = (
        f"{format_bytes(size)} of activations do not fit into {format_bytes(space)} free {where}"
    )
    if requested == "auto" and not closed:
        return None, message
    raise InputError(
        f"Phase '{planned.phase.name}': {message}. Make space (`keras-transfer cache`), allow more "
        "(KERAS_TRANSFER_CACHE_GB), set fewer views, or "
        + ("train in steps (--set solver=gradient)." if closed else "use --cache off.")
    )


def _gain(model, planned, examples, views):
    costs = stage_costs(backbone_at(model, planned.image_size))
    prefix, suffix = sum(costs[: planned.frozen]), sum(costs[planned.frozen :])
    train, val = examples["train"], examples.get("val", 0)
    above = planned.epochs * suffix * (3 * train + val)  # backward costs two passes forward
    without = planned.epochs * prefix * (train + val) + above
    return without / (_ENGINE * prefix * (views * train + val) + above)


class Supply:
    """Activations of a run's phases, each computed from the deepest that will be needed anyway.

    Later phases of a run mostly have fewer frozen stages than earlier ones. If such a later phase
    stores the same views on disk, its activations are computed first, from images, and those of the
    earlier phase from them: no image is read twice, no stage computed twice.

    Args:
        model: from `build_model`.
        data: a `keras_transfer.data.ImageData`.
        phases: the `PlannedPhase`s.
        caching: `Caching` of each phase, or None if it trains on images.
        views: views of the training examples, for each phase.
        engine: see `extract`.
        engines: phase name → engine that computed its activations. Entries are obeyed; engines
            chosen here are added.
        memory: a `data.memory.ImageMemory` for images that must be decoded again.
        extract: function that computes them, with the signature of `extraction.extract`.
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
        """Return split → activations of the phase `index`; empty if it trains on images."""
        if self.caching[index] is None:
            return {}
        splits = [split for split in ("train", "val") if split in self.data.examples]
        return {split: self._activations(index, split) for split in splits}

    def _activations(self, index, split):
        planned, caching = self.phases[index], self.caching[index]
        name = planned.phase.name
        below = self._below(index)
        activations = self.extract(
            self._prefix(index),
            self.data.examples[split],
            self.views[index] if split == "train" else (View(),),
            dtype=caching.dtype,
            # Once chosen, it is used for the other split too, and if the run is resumed.
            engine=self.engines.get(name, self.engine),
            store=Store(),
            on_disk=caching.where == "disk",
            memory=self.memory,
            source=None if below is None else lambda: self._source(below, index, split),
        )
        self.engines[name] = activations.engine
        return activations

    def _below(self, index):
        """Return the later phase from whose activations this one's follow, or None."""
        planned = self.phases[index]

        def precedes(later):
            phase, caching = self.phases[later], self.caching[later]
            return (
                caching is not None
                and caching.where == self.caching[index].where == "disk"
                and caching.dtype == self._prefix(later).model.outputs[0].dtype  # not rounded
                and phase.image_size == planned.image_size
                and 0 < phase.frozen < planned.frozen
                and not self._changes(index, later, phase.frozen)
                and set(self.views[index]) <= set(self.views[later])
            )

        later = [i for i in range(index + 1, len(self.phases)) if precedes(i)]
        return max(later, key=lambda i: self.phases[i].frozen, default=None)

    def _source(self, below, index, split):
        views = self.views[below] if split == "train" else (View(),)
        return Source(self._between(below, index), self._activations(below, split), views)

    def _between(self, below, index):
        planned = self.phases[index]
        first, last = self.phases[below].frozen, planned.frozen

        def make():
            backbone = backbone_at(self.model, planned.image_size)
            name = f"{backbone.name}, stages {first + 1} to {last}"
            return Prefix(backbone.between(first, last), name, takes="float32")

        changes = self._changes(0, index, last)
        return self._once((first, last, planned.image_size, changes), make)

    def _changes(self, first, index, frozen):
        """Return how many phases from `first` to before `index` train one of the `frozen` stages."""
        return sum(planned.frozen < frozen for planned in self.phases[first:index])

    def _prefix(self, index):
        planned = self.phases[index]
        key = (planned.frozen, planned.image_size)
        # A prefix knows the digest of its weights, and its engines may contain them.
        changes = self._changes(0, index, planned.frozen)
        return self._once((*key, changes), lambda: prefix_of(self.model, *key))

    def _once(self, key, make):
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
