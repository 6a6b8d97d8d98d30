"""All examples of a dataset, examined: features and sketches, computed once and cached."""

from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
from sklearn.neighbors import NearestNeighbors

from keras_transfer.data.examples import Examples, ImageData, join_examples
from keras_transfer.data.files import check_readers
from keras_transfer.data.readers import Files, file_stamp
from keras_transfer.diagnosis.sketches import sketches_of
from keras_transfer.errors import InputError
from keras_transfer.features.store import (
    ROW_FORMAT,
    Store,
    Table,
    Writer,
    digest_of,
    recall,
    remember,
)
from keras_transfer.modalities import Modality
from keras_transfer.models.sources.applications import BACKBONES, weights_path
from keras_transfer.models.sources.backbones import build_backbone, check_kind, require_encoder_name
from keras_transfer.schedules.recipes import AUTO
from keras_transfer.utils.extras import is_installed

# Two small networks see more together than either does alone, and both are fast.
_PREFERRED = ("mobilenet_0.25", "mobilenet_v2_0.35")
_DOWNLOADED = "mobilenet_v2"
_NEIGHBORS = 10
_KIND = "features of a diagnosis 1"
_COLUMNS = f"{_KIND}, columns"


@dataclass(frozen=True, eq=False)
class Seen:
    """All examples of a dataset, and their features.

    Attributes:
        examples: those of all splits, one after the other.
        splits: name of each example's split, [N].
        features: after the last stage, float32 [N, D].
        blocks: the columns of each backbone.
        backbone: its name.
    """

    examples: Examples
    splits: np.ndarray
    features: np.ndarray
    blocks: tuple[np.ndarray, ...]
    backbone: str

    def __len__(self) -> int:
        return len(self.examples)

    def directions(self) -> np.ndarray:
        """Return the features of each backbone, centered and of equal length: unit norm, float32 [N, D]."""
        parts = []
        for columns in self.blocks:
            parts.append(unit(self.features[:, columns] - self.features[:, columns].mean(axis=0)))
        return np.concatenate(parts, axis=1) / np.sqrt(len(parts))


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The nearest neighbors of each example by its features, without itself.

    Attributes:
        rows: int [N, K], the nearest first.
        distances: between unit vectors, 0 to 2, float32 [N, K].
    """

    rows: np.ndarray
    distances: np.ndarray

    @property
    def last(self) -> np.ndarray:
        """The distance to the last neighbor, [N]; 0 without neighbors."""
        return self.distances[:, -1] if self.rows.shape[1] else np.zeros(len(self.rows))


@dataclass(frozen=True, eq=False)
class Distinct:
    """The examples of a dataset without copies.

    Attributes:
        rows: position of the first of each set of copies, int [M].
        of: position in `rows` of each example's first copy, int [N].
        directions: see `Seen.directions`, float32 [M, D].
        units: features of unit norm, not centered, by which outliers are told best, float32 [M, D].
        neighbors: by `units`.
        bits, traits: see `diagnosis.sketches.Sketches`; without columns if nothing was sketched.
    """

    rows: np.ndarray
    of: np.ndarray
    directions: np.ndarray
    units: np.ndarray
    neighbors: Neighbors
    bits: np.ndarray
    traits: np.ndarray


def compare(seen: Seen) -> Distinct:
    """Compare examples with each other; without sketches where the package for these is missing."""
    alike = seen.examples.alike
    _, rows, of = np.unique(alike, return_index=True, return_inverse=True)
    units = unit(seen.features[rows])
    bits = np.zeros((len(rows), 1, 0), "uint8")
    traits = np.zeros((len(rows), 0), "float32")
    if can_sketch(seen.examples.modality):
        sketches = sketches_of(seen.examples.take(rows))
        bits, traits = sketches.bits, sketches.traits
    directions = seen.directions()[rows]
    return Distinct(rows, of, directions, units, nearest(units), bits, traits)


def unit(features: np.ndarray) -> np.ndarray:
    """Return vectors of unit norm, [N, D]."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def can_sketch(modality) -> bool:
    """Return whether sketches of such examples can be made here."""
    return modality.sketched_by is None or is_installed(modality.sketched_by)


def nearest(directions: np.ndarray) -> Neighbors:
    """Return the ten nearest neighbors of unit vectors, float32 [N, D], or as many as there are."""
    count = nearest_count(len(directions))
    if not count:
        return Neighbors(np.zeros((len(directions), 0), int), np.zeros((len(directions), 0)))
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(directions)
    distances, rows = search.kneighbors()
    return Neighbors(rows, distances)


def nearest_count(examples: int) -> int:
    """Return how many neighbors are looked at."""
    return max(0, min(_NEIGHBORS, examples - 1))


def chosen_backbone(backbone: str, modality: Modality | None = None) -> str:
    """Return the backbone for a diagnosis; for `"auto"`, `default_backbone`.

    Args:
        modality: of the examples; None if it is not known yet.

    Raises:
        InputError: as far as its name tells it, the backbone does not read such examples.
    """
    if backbone != AUTO:
        if modality is not None:
            check_kind(backbone, modality)
        return backbone
    if modality is not None:
        require_encoder_name(modality, "--backbone")
    return default_backbone()


def default_backbone() -> str:
    """Return the backbones for a diagnosis: both small MobileNets, as far as their weights are here."""
    present = [name for name, spec in BACKBONES.items() if weights_path(spec).is_file()]
    small = [name for name in _PREFERRED if name in present]
    return "+".join(small) or (present or [_DOWNLOADED])[0]


def see(data: ImageData, backbone: str, image_size: int | str | None, engine: str) -> Seen:
    """Compute the features of every example; those that are cached are read.

    Cached features of the same examples are read without building the network or importing Keras.
    """
    examples = join_examples(data.examples.values())
    splits = np.repeat(list(data.examples), [len(part) for part in data.examples.values()])
    stored = _Stored.of(examples, backbone, image_size, engine)
    found = stored.read() if stored else None
    if found is None:
        found = _features(examples, backbone, image_size, engine)
        if stored:
            stored.write(*found)
    features, blocks = found
    return Seen(examples, splits, features, tuple(blocks), backbone)


def is_seen(data: ImageData, backbone: str, image_size: int | str | None, engine: str) -> bool:
    """Return whether `see` has been called for the same examples, so that it needs no network."""
    stored = _Stored.of(join_examples(data.examples.values()), backbone, image_size, engine)
    return stored is not None and stored.place() is not None


def check_channels(data: ImageData, backbone: str) -> None:
    """Raise InputError for files of other than three channels, which pretrained networks cannot read."""
    files = [part.images for part in data.examples.values() if isinstance(part.images, Files)]
    if not files or not _is_known(backbone):  # your own model may read other channels
        return
    checked = check_readers(files, data.modality)
    if misfits := checked.misfits(data.modality.open_framing(None)):
        raise InputError(
            f"Features are those of RGB images, which {len(misfits)} of {len(checked.names)} are not "
            f"({misfits[0].path}: {misfits[0].reason}): `keras-transfer check` examines them without --deep."
        )


def _is_known(backbone):
    return all(name in BACKBONES for name in backbone.split("+"))


def _features(examples, backbone, image_size, engine):
    """Return (features of all examples, the columns of each backbone)."""
    from keras_transfer.features.extraction import extract
    from keras_transfer.features.prefix import averaged, prefix_of
    from keras_transfer.models.framing import framing_of

    network = build_backbone(backbone, image_size=image_size, data=examples)
    prefix = prefix_of(network, len(network.stages))
    prefix = replace(prefix, framing=framing_of(network, data=examples))
    found = extract(prefix, examples, engine=engine)
    features = averaged(found.gather(np.arange(len(examples)))).astype("float32")
    cuts = network.cuts
    blocks = cuts.columns_of_branches() if cuts.tapped else [np.arange(features.shape[1])]
    return features, blocks


@dataclass(frozen=True, eq=False)
class _Stored:
    """Where the features of all examples of a dataset are stored together.

    Attributes:
        examples: in this order.
        identity: what the features depend on, as plain data.
        about: for people.
    """

    examples: Examples
    identity: dict
    about: dict

    @classmethod
    def of(cls, examples, backbone, image_size, engine) -> "_Stored | None":
        """Return the place for some features; None where only the network tells what they depend on."""
        if not _is_known(backbone):
            return None
        identity = {
            "format": ROW_FORMAT,
            "backbone": backbone,
            "weights": [
                file_stamp(str(weights_path(BACKBONES[name]))) for name in backbone.split("+")
            ],
            "keras": version("keras"),
            "image_size": str(image_size),
            "engine": engine,
            "examples": digest_of(examples.digests),
            "rules": examples.modality.rules,
        }
        many = f"{len(examples)} {examples.modality.many}"
        return cls(examples, identity, {"backbone": f"{backbone}: all of {many}"})

    def _table(self, store):
        about = {**self.about, "dtype": "float32", "shape": []}
        table = store.table({"what": _KIND, **self.identity}, about)
        table.refresh()
        return table

    def place(self) -> tuple[Table, dict] | None:
        """Return where `write` stored features, and their columns; None if something is missing."""
        store = Store()
        table, columns = self._table(store), recall(store, _COLUMNS, self.identity)
        if columns is None or table.missing(self.examples.digests):
            return None
        return table, columns

    def read(self) -> tuple[np.ndarray, list[np.ndarray]] | None:
        """Return what `write` stored, or None."""
        found = self.place()
        if found is None:
            return None
        table, columns = found
        blocks = [np.array(block) for block in columns["blocks"]]
        return table.gather(table.locate(self.examples.digests)), blocks

    def write(self, features: np.ndarray, blocks: list[np.ndarray]) -> None:
        store = Store()
        writer = Writer(self._table(store))
        writer.add(self.examples.digests, features)
        writer.flush()
        columns = {"blocks": [np.asarray(block).tolist() for block in blocks]}
        remember(store, _COLUMNS, self.identity, self.about, columns)
