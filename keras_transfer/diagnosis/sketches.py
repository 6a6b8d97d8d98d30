"""The sketches of all examples of a dataset, computed once and cached."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from keras_transfer.data.examples import Examples
from keras_transfer.data.readers import in_threads
from keras_transfer.features.store import Store, Writer
from keras_transfer.utils.console import progress_bar


@dataclass(frozen=True, eq=False)
class Sketches:
    """See `modalities.sketch.Sketch`.

    Attributes:
        bits: uint8 [N, V, B / 8], eight in a byte.
        traits: float32 [N, T].
    """

    bits: np.ndarray
    traits: np.ndarray


def sketches_of(examples: Examples) -> Sketches:
    """Return the sketches of examples; those that are cached are read.

    Raises:
        InputError: a package is not installed, or a file can no longer be read.
    """
    modality, store = examples.modality, Store()
    shape = list(_packed(modality, examples.images, 0)[1])
    about = {"backbone": f"sketches of {modality.many}", "dtype": "uint8", "shape": shape}
    identity = {"what": "sketches", "modality": modality.name, "version": modality.sketched}
    table = store.table({**identity, "shape": shape}, about)
    table.refresh()
    if missing := table.missing(examples.digests):
        writer = Writer(table)
        made = in_threads(partial(_packed, modality, examples.images), missing)
        bar = progress_bar(made, "looking", total=len(missing), unit=modality.many)
        try:
            for row, (flat, _) in zip(missing, bar):
                writer.add([examples.digests[row]], flat[None])
        finally:  # saves finished sketches, even if it is interrupted
            writer.flush()
        store.trim(keep=[table.key])
    rows = table.gather(table.locate(examples.digests))
    views, length, traits = shape
    end = views * length
    return Sketches(
        rows[:, :end].reshape(len(rows), views, length),
        np.ascontiguousarray(rows[:, end:]).view("float32").reshape(len(rows), traits),
    )


def _packed(modality, reader, row):
    """Return (a sketch as bytes, (views, bytes of each, traits))."""
    bits, traits = reader.read(row, modality.sketch)
    packed = np.packbits(bits, axis=1)
    flat = np.concatenate([packed.ravel(), traits.astype("float32").view("uint8")])
    return flat, (*packed.shape, len(traits))
