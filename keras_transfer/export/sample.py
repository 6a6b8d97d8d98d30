"""Images to compare an exported model with the Keras model on, and to measure ranges for int8."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from keras_transfer.data.examples import ImageData


@dataclass(frozen=True, eq=False)
class Sample:
    """Images as the model takes them.

    Attributes:
        of: what they are: a split's name, or "noise".
        images: uint8 [N, S, S, 3], after the resize and crop of evaluation.
        labels: as the heads take them, by the head's name; None where they are not known.
        files: the image files, where they are files.
    """

    of: str
    images: np.ndarray
    labels: Mapping[str, np.ndarray] | None = None
    files: tuple[str, ...] | None = None


def drawn(data: ImageData, of: str, size: int, count: int, heads) -> Sample:
    """`count` images, evenly spread over them, for they are sorted by class; all of fewer.

    Args:
        data: with a single split.
        of: what to call them.
        heads: names of the model's heads.
    """
    ((split, whole),) = data.examples.items()
    rows = np.unique(np.linspace(0, len(whole) - 1, min(count, len(whole))).round().astype(int))
    examples = whole.take(rows)
    part = replace(data, examples={split: examples})
    batches = part.batches(split, image_size=size, batch_size=32)
    images = np.concatenate([np.asarray(images) for images, _ in batches])
    labels = examples.labels
    labels = labels if isinstance(labels, dict) else dict.fromkeys(heads, labels)
    files = tuple(examples.names)
    return Sample(of, images, labels, files if all(Path(f).is_file() for f in files) else None)


def noise(size: int, count: int = 32, seed: int = 0) -> Sample:
    """What is asked for where there is no image: smooth noise, of all colours."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 8, 8, 3)).repeat(-(-size // 8), 1).repeat(-(-size // 8), 2)
    fine = coarse[:, :size, :size] + rng.normal(0, 20, (count, size, size, 3))
    return Sample("noise", np.clip(fine, 0, 255).astype("uint8"))
