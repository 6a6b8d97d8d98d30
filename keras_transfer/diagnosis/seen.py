"""What a backbone sees in all examples of a dataset: features, computed once and cached."""

from dataclasses import dataclass, replace

import numpy as np

from keras_transfer.data.examples import Examples, ImageData, join_labels
from keras_transfer.data.readers import concatenated
from keras_transfer.models.sources.applications import BACKBONES, weights_path
from keras_transfer.models.sources.backbones import build_backbone

# Two small networks see more together than either does alone, and both are fast.
_PREFERRED = ("mobilenet_0.25", "mobilenet_v2_0.35")
_DOWNLOADED = "mobilenet_v2"


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
            part = self.features[:, columns] - self.features[:, columns].mean(axis=0)
            parts.append(part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12))
        return np.concatenate(parts, axis=1) / np.sqrt(len(parts))


def default_backbone() -> str:
    """Return the backbones for a diagnosis: both small MobileNets, as far as their weights are here."""
    present = [name for name, spec in BACKBONES.items() if weights_path(spec).is_file()]
    small = [name for name in _PREFERRED if name in present]
    return "+".join(small) or (present or [_DOWNLOADED])[0]


def see(data: ImageData, backbone: str, image_size: int | None, engine: str) -> Seen:
    """Compute the features of every example; those that are cached are read."""
    from keras_transfer.features.extraction import extract
    from keras_transfer.features.prefix import averaged, prefix_of
    from keras_transfer.models.framing import framing_of

    parts = list(data.examples.values())
    groups = None
    if all(part.groups is not None for part in parts):
        groups = np.concatenate([part.groups for part in parts])
    examples = Examples(
        concatenated([part.images for part in parts]),
        join_labels([part.labels for part in parts]),
        groups,
    )
    network = build_backbone(backbone, image_size=image_size)
    prefix = prefix_of(network, len(network.stages))
    prefix = replace(prefix, framing=framing_of(network, data=examples))
    found = extract(prefix, examples, engine=engine)
    features = averaged(found.gather(np.arange(len(examples)))).astype("float32")
    cuts = network.cuts
    blocks = cuts.columns_of_branches() if cuts.tapped else [np.arange(features.shape[1])]
    splits = np.repeat(list(data.examples), [len(part) for part in parts])
    return Seen(examples, splits, features, tuple(blocks), backbone)
