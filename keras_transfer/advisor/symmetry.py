"""Whether a mirror image still shows the same class: what decides about flips in augmentation."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from keras_transfer.data.examples import Examples
from keras_transfer.features.closed_form import cross_validated_probe
from keras_transfer.features.extraction import extract
from keras_transfer.features.prefix import Prefix, averaged
from keras_transfer.features.store import Store, concluded, digest_of
from keras_transfer.modalities.image.augment import View

_IMAGES = 300
_ERRORS = 2.0
_VERSION = 2  # of the formula: raise it when it changes


@dataclass(frozen=True)
class Symmetry:
    """How a linear probe does on mirror images of images that it was not fitted on.

    Attributes:
        drop: accuracy on the images less that on their mirror images, −1 to 1.
        error: its standard error over the images.
        images: that it was measured on.
    """

    drop: float
    error: float
    images: int

    @property
    def told_apart(self) -> bool:
        """True where mirror images are recognised worse, by more than two standard errors."""
        return self.drop > _ERRORS * self.error


def mirror_symmetry(
    prefix: Prefix,
    examples: Examples,
    *,
    most: int = _IMAGES,
    engine: str = "auto",
    store: Store | None = None,
    seed: int = 0,
) -> Symmetry | None:
    """Fits a linear probe on images as they are and tries it on others, as they are and mirrored.

    Where the classes do not change in a mirror (insects), both do alike; where they do (digits,
    text, signs), the mirror images are taken for other classes.

    Args:
        prefix: of a pretrained backbone.
        examples: one class per image; of more than `most` a random sample.
        engine, store: see `features.extraction.extract`.
        seed: of the sample and the folds.

    Returns:
        None where no class has two images.
    """
    rows = np.random.default_rng(seed).permutation(len(examples))[:most]
    sample = examples.take(np.sort(rows))
    store = store or Store()
    found = concluded(
        prefix,
        store,
        f"symmetry {_VERSION}",
        partial(_measured, prefix, sample, engine, store, seed),
        of=f"{len(sample)} images and their mirror images",
        engine=engine,
        view="mirror",
        sample=digest_of(sample.digests, np.asarray(sample.labels)),
        seed=seed,
    )
    return Symmetry(**found) if found else None


def _measured(prefix, sample, engine, store, seed):
    if np.bincount(sample.labels).max() < 2:
        return {}
    found = extract(prefix, sample, (View(), View("mirror")), engine=engine, store=store)
    every = np.arange(len(sample))
    plain, mirrored = (averaged(found.gather(every, view)) for view in range(2))
    probe = cross_validated_probe(
        plain, sample.labels, groups=sample.copies, seed=seed, others=[mirrored]
    )
    if probe is None:
        return {}
    lost = probe.correct.astype(int) - (probe.other_predictions[0] == sample.labels)
    error = lost.std(ddof=1) / np.sqrt(len(lost))
    return {"drop": float(lost.mean()), "error": float(error), "images": len(sample)}
