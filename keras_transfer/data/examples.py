"""Labelled images, split: what every source makes, and what all else takes (no TensorFlow until asked for)."""

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_transfer.data import targets
from keras_transfer.data.files import Skipped
from keras_transfer.data.readers import as_images
from keras_transfer.data.targets import Target
from keras_transfer.errors import InputError


@dataclass(eq=False)
class Examples:
    """Images and their labels.

    Attributes:
        images: where they lie, see `data.images`; a list of paths becomes `Files`. Files are
            those that could be decoded when they were checked, sorted within a class.
        labels: int32 [n], positions in `ImageData.class_names`; for other tasks and several heads
            see `data.targets`.
    """

    images: Any
    labels: np.ndarray | dict[str, np.ndarray]

    def __post_init__(self):
        self.images = as_images(self.images)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> list[str]:
        """What to call each image: its path, where it is a file."""
        return self.images.names

    @property
    def digests(self) -> list[bytes]:
        """A digest of each image's content, read once."""
        return self.images.digests

    @property
    def copies(self) -> np.ndarray:
        """Number of each image's content, int [N]: identical files have the same."""
        return np.unique(self.digests, return_inverse=True)[1]

    def take(self, indices: np.ndarray) -> "Examples":
        """Return the examples at `indices`, in that order."""
        labels = targets.map_labels(lambda array: array[indices], self.labels)
        return Examples(self.images.take(indices), labels)


@dataclass(eq=False, repr=False)
class ImageData:
    """Labelled images on disk, split, checked and ready to be read.

    Attributes:
        class_names: in the order of the labels: of classes, of labels, or of numbers; of several
            heads there are none.
        examples: for each split that exists ("train", "val", "test"), its examples.
        skipped: files that are left out, with the reason.
        root: the folder the images came from.
        targets: what the labels are, a `data.targets.Target`; of several heads a dict of them. By
            default one class per image.
        source: how `open_data` comes to the same images, as a run's `config.yaml` says it; empty
            where they do not lie in a folder, or are a part of what does.
    """

    class_names: tuple[str, ...]
    examples: dict[str, Examples]
    skipped: list[Skipped]
    root: str
    targets: Target | dict[str, Target] = None  # type: ignore[assignment]  # see __post_init__
    source: dict[str, str] = field(default_factory=dict, init=False)  # not what `replace` makes

    def __post_init__(self):
        if self.targets is None:
            self.targets = Target("single_label", self.class_names)

    @property
    def task(self) -> str | dict[str, str]:
        """`single_label`, `multi_label` or `regression`; of several heads a dict."""
        return targets.map_labels(lambda target: target.task, self.targets)

    @property
    def names(self) -> tuple[str, ...] | dict[str, tuple[str, ...]]:
        """Of the classes, labels or numbers; of several heads a dict."""
        return targets.map_labels(lambda target: target.names, self.targets)

    @property
    def train(self):
        """tf.data.Dataset of (uint8 [H, W, 3], int32 label) in path order; None if missing."""
        return self._images("train")

    @property
    def val(self):
        """Like `train`, for the validation images."""
        return self._images("val")

    @property
    def test(self):
        """Like `train`, for the test images."""
        return self._images("test")

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of images: split -> class (or label) -> count.

        Raises:
            InputError: several heads.
        """
        if isinstance(self.targets, dict):
            raise InputError(f"The data have no classes but heads: {', '.join(self.targets)}.")
        return {
            split: targets.counts_of(examples.labels, self.targets)
            for split, examples in self.examples.items()
        }

    def batches(self, split: str, *, image_size: int, batch_size: int, augment="light", **options):
        """Return a tf.data.Dataset of batches, see `keras_transfer.data.batches.batches`.

        Raises:
            InputError: no such split or augmentation.
        """
        from keras_transfer.data import batches as pipeline

        return pipeline.batches(
            self._split(split),
            image_size=image_size,
            batch_size=batch_size,
            augmentation=augment,
            classes=len(self.class_names),
            **options,
        )

    def require_classes(self, what: str, *splits: str) -> None:
        """Refuses data that are not one class per image, or have no images in one of the splits.

        Args:
            what: takes only such data, for the message: "advice".

        Raises:
            InputError: they are not, or have none.
        """
        if self.task != "single_label":
            task = "several heads" if isinstance(self.task, dict) else self.task
            raise InputError(
                f"{self.root} is labelled for {task}, and {what} is for one class per image: give class "
                "folders or one column of classes."
            )
        for split in splits:
            self._split(split)

    def steps(self, split: str, batch_size: int) -> int:
        """Return the number of batches in one epoch, the smaller last one included."""
        return -(-len(self._split(split)) // batch_size)

    def fingerprint(self) -> dict[str, str]:
        """`split: class: path` → digest of the file's content.

        Two equal fingerprints mean the same images with the same labels in the same splits.
        """
        return {
            f"{split}: {label}: {os.path.relpath(path, self.root)}": digest.hex()
            for split, examples in self.examples.items()
            for path, label, digest in zip(
                examples.names, targets.shown(examples.labels, self.targets), examples.digests
            )
        }

    def split_table(self) -> list[tuple[str, str, str]]:
        """(path relative to the root, label in words, split) of each image: a list for `split_file`."""
        return [
            (name, label, split)
            for split, examples in self.examples.items()
            for name, label in zip(
                relative(examples.names, self.root), targets.shown(examples.labels, self.targets)
            )
        ]

    def describe(self) -> str:
        """Return a few lines for people: classes, images in each split, skipped files."""
        what = {"single_label": "classes", "multi_label": "labels", "regression": "targets"}
        if isinstance(self.targets, dict):
            kind = f"{len(self.targets)} heads"
        else:
            kind = f"{len(self.targets.names)} {what[self.targets.task]}"
        lines = [f"{self.root}: {kind}"]
        for split, examples in self.examples.items():
            summary = targets.summary(examples.labels, self.targets)
            lines.append(f"{split}: {len(examples)} images ({summary})")
        if self.skipped:
            lines.append(f"skipped: {len(self.skipped)} files")
        return "\n".join(lines)

    def __repr__(self) -> str:
        sizes = "".join(f", {split}={len(part)}" for split, part in self.examples.items())
        return (
            f"ImageData({self.root!r}, classes={len(self.class_names)}{sizes}, "
            f"skipped={len(self.skipped)})"
        )

    def _split(self, split: str) -> Examples:
        if split not in self.examples:
            raise InputError(
                f"{self.root} has no {split} images; it has {', '.join(self.examples)}"
            )
        return self.examples[split]

    def _images(self, split: str):
        if split not in self.examples:
            return None
        from keras_transfer.data import batches as pipeline

        return pipeline.images(self.examples[split])


def relative(names, root) -> list[str]:
    return [os.path.relpath(name, root).replace(os.sep, "/") for name in names]
