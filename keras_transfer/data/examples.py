"""Labeled images: what they are labeled with, the splits, and images that occur twice.

Labels of n images are an int32 array [n] (one class each), a float32 array [n, L] of 0 and 1 (any number
of labels each), a float32 array [n, D] (numbers), or a dict of such arrays, one per head.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_transfer.data.files import Skipped
from keras_transfer.data.readers import as_reader, concatenated
from keras_transfer.data.splits import joined
from keras_transfer.errors import InputError
from keras_transfer.modalities import Modality
from keras_transfer.modalities.views import View
from keras_transfer.utils.console import counted, listed, printable

TASKS = ("single_label", "multi_label", "regression")
BALANCES = ("none", "weights", "sampling")
SEPARATOR = "|"  # of several labels in one cell


# -- labels ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """What one head predicts.

    Attributes:
        task: one of `TASKS`.
        names: of the classes, of the labels, or of the numbers, in the order of the array.
    """

    task: str
    names: tuple[str, ...]

    def __post_init__(self):
        if self.task not in TASKS:
            raise InputError(f"task must be one of {', '.join(TASKS)}, not {self.task!r}.")
        object.__setattr__(self, "names", tuple(map(str, self.names)))


def targets_of(config: dict) -> Target | dict[str, Target]:
    """Return what a run predicts, from its `config.yaml`."""
    if "heads" in config:
        return {name: Target(**head) for name, head in config["heads"].items()}
    return Target(**config["head"])


def map_labels(function: Callable, labels):
    """Apply `function` to each head's array."""
    if isinstance(labels, dict):
        return {name: function(array) for name, array in labels.items()}
    return function(labels)


def count_examples(labels) -> int:
    """Return the number of examples that have these labels."""
    return len(next(iter(labels.values())) if isinstance(labels, dict) else labels)


def join_labels(parts: Sequence):
    """Concatenate the labels of several parts."""
    if isinstance(parts[0], dict):
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)


def rough_classes(labels) -> np.ndarray:
    """Return one class per example, int [n], by which features can be compared.

    It is the first of several labels or heads, and for numbers the side of the median.
    """
    if isinstance(labels, dict):
        labels = next(iter(labels.values()))
    if labels.ndim == 1:
        return labels
    if np.isin(labels, (0, 1)).all():
        return labels.argmax(axis=1)
    return (labels[:, 0] > np.median(labels[:, 0])).astype(int)


def label_texts(labels, targets) -> list[str]:
    """Return each example's labels as text, e.g. `ant`, `red|round`, `age=31`."""
    if isinstance(targets, dict):
        parts = [[f"{n}: {text}" for text in label_texts(labels[n], t)] for n, t in targets.items()]
        return ["; ".join(texts) for texts in zip(*parts)]
    if targets.task == "single_label":
        return [targets.names[label] for label in labels]
    if targets.task == "multi_label":
        return [SEPARATOR.join(targets.names[i] for i in np.flatnonzero(row)) for row in labels]
    return [", ".join(f"{n}={x:.9g}" for n, x in zip(targets.names, row)) for row in labels]


def label_counts(labels, target: Target) -> dict[str, int]:
    """Return the number of examples of each class or with each label; empty for numbers."""
    if target.task == "regression":
        return {}
    if target.task == "multi_label":
        counts = labels.sum(axis=0).astype(int)
    else:
        counts = np.bincount(labels, minlength=len(target.names))
    return dict(zip(target.names, counts.tolist()))


def label_summary(labels, targets) -> str:
    """Return one line about the labels: `ants 12, bees 30`, or `age 3 to 80, mean 31.5`."""
    if isinstance(targets, dict):
        return "; ".join(f"{n}: {label_summary(labels[n], t)}" for n, t in targets.items())
    if targets.task == "regression":
        texts = [
            f"{name} {values.min():.4g} to {values.max():.4g}, mean {values.mean():.4g}"
            for name, values in zip(targets.names, labels.T)
        ]
    else:
        texts = [f"{name} {n}" for name, n in label_counts(labels, targets).items()]
    return listed(texts)


# -- examples -------------------------------------------------------------------------------------


@dataclass(eq=False)
class Examples:
    """Images and their labels.

    Attributes:
        images: a reader, see `data.files`; a list of paths becomes `Files`.
        labels: int32 [n], positions in `ImageData.class_names`; see `data.examples` for other tasks
            and several heads.
        groups: number of the group (a person, a patient, a film) of each image, int [n], if a split
            rule has groups.
    """

    images: Any
    labels: np.ndarray | dict[str, np.ndarray]
    groups: np.ndarray | None = None

    def __post_init__(self):
        self.images = as_reader(self.images)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def modality(self) -> Modality:
        """What the examples are: images, …"""
        return self.images.modality

    @property
    def names(self) -> list[str]:
        """Name of each image: its path if it is a file."""
        return self.images.names

    @property
    def digests(self) -> list[bytes]:
        """A digest of each image's content, computed once."""
        return self.images.digests

    @property
    def digest(self) -> str:
        """A digest of the contents of all, in any order."""
        return hashlib.sha256(b"".join(sorted(self.digests))).hexdigest()

    @property
    def alike(self) -> list[bytes]:
        """Like `digests`, but near-duplicates share theirs, where the contents show them."""
        return self.images.alike

    @property
    def together(self) -> np.ndarray:
        """A number for each image, int [N]; copies, and images of one group, have the same."""
        copies = np.unique(self.alike, return_inverse=True)[1]
        return copies if self.groups is None else np.array(joined(copies, self.groups), int)

    def lengths(self, framing) -> np.ndarray | None:
        """Return the lengths of the model inputs, int [N]; None if all examples cost the same."""
        return self.modality.preparation(self.images, [View()], framing).lengths

    def by_length(self, rows: Sequence[int], framing) -> list[int]:
        """Return positions in an order in which batches need little padding.

        It is the given order if all examples cost the same.
        """
        lengths = self.lengths(framing)
        if lengths is None:
            return list(rows)
        return [rows[i] for i in np.argsort(lengths[rows], kind="stable")]

    def take(self, indices: np.ndarray) -> "Examples":
        """Return the examples at `indices`, in that order."""
        labels = map_labels(lambda array: array[indices], self.labels)
        groups = None if self.groups is None else self.groups[indices]
        return Examples(self.images.take(indices), labels, groups)


def join_examples(parts: Collection[Examples]) -> Examples:
    """Return the examples of all parts, one after the other; with groups if all have them."""
    images = concatenated([part.images for part in parts])
    groups = [part.groups for part in parts if part.groups is not None]
    kept = np.concatenate(groups) if len(groups) == len(parts) else None
    return Examples(images, join_labels([part.labels for part in parts]), kept)


def example_key(path: str, label: str, split: str) -> str:
    """Return the key of an example in `ImageData.fingerprint`; the arguments are a row of the split table."""
    return f"{split}: {label}: {path.replace('/', os.sep)}"


def digest_of_fingerprints(fingerprints: Mapping[str, str]) -> str:
    """Return one digest of `ImageData.fingerprint`."""
    return hashlib.sha256(json.dumps(fingerprints, sort_keys=True).encode()).hexdigest()


@dataclass(eq=False, repr=False)
class ImageData:
    """A dataset of labeled images: checked, split and ready to be read.

    Attributes:
        class_names: names of the classes, labels or numbers, in the order of the labels; empty with
            several heads.
        examples: the examples of each split that exists ("train", "val", "test").
        skipped: files that are left out, with the reason.
        root: the folder the images came from.
        targets: what the labels are, a `Target`, or a dict of them with several heads. By default one
            class per image.
        source: how `open_data` finds the same images, for a run's `config.yaml`; empty if they do not
            lie in a folder, or are a part of one.
        opened: what a command has to be given to open them, if that is not `root`: a table.
        val_drawn: whether a share of the training examples was drawn for validation.
    """

    class_names: tuple[str, ...]
    examples: dict[str, Examples]
    skipped: list[Skipped]
    root: str
    targets: Target | dict[str, Target] = None  # type: ignore[assignment]  # see __post_init__
    source: dict[str, str] = field(default_factory=dict, init=False)  # `replace` does not copy it
    opened: str = ""
    val_drawn: bool = False

    def __post_init__(self):
        if self.targets is None:
            self.targets = Target("single_label", self.class_names)

    @property
    def title(self) -> str:
        """What a person or a command calls the dataset."""
        return self.opened or self.root

    @property
    def modality(self) -> Modality:
        """What the examples are: images, …"""
        return next(iter(self.examples.values())).modality

    @property
    def task(self) -> str | dict[str, str]:
        """`single_label`, `multi_label` or `regression`; a dict with several heads."""
        return map_labels(lambda target: target.task, self.targets)

    @property
    def names(self) -> tuple[str, ...] | dict[str, tuple[str, ...]]:
        """Names of the classes, labels or numbers; a dict with several heads."""
        return map_labels(lambda target: target.names, self.targets)

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
        """Number of images: split → class (or label) → count; InputError with several heads."""
        if isinstance(self.targets, dict):
            heads = ", ".join(self.targets)
            raise InputError(f"The dataset has several heads, not classes: {heads}.")
        return {
            split: label_counts(examples.labels, self.targets)
            for split, examples in self.examples.items()
        }

    def batches(self, split: str, *, image_size, batch_size: int, augment="light", **options):
        """Return a tf.data.Dataset of batches, see `keras_transfer.data.batches.batches`.

        Raises:
            InputError: if the split or the augmentation does not exist.
        """
        from keras_transfer.data import batches as pipeline

        options |= {"augmentation": augment, "classes": len(self.class_names)}
        examples = self.require(split)
        return pipeline.batches(examples, image_size=image_size, batch_size=batch_size, **options)

    def require_classes(self, purpose: str, *splits: str) -> None:
        """Raise InputError unless there is one class per example, and the splits exist.

        Args:
            purpose: what needs them, for the message: "advice".
        """
        if (task := self.task) != "single_label":
            task = "several heads" if isinstance(task, dict) else task
            raise InputError(
                f"{self.title} is labeled for {task}, but {purpose} needs one class per example: pass "
                "class folders or one column of classes."
            )
        for split in splits:
            self.require(split)

    def steps(self, split: str, batch_size: int) -> int:
        """Return the number of batches in one epoch, including the smaller last one."""
        return -(-len(self.require(split)) // batch_size)

    def fingerprint(self) -> dict[str, str]:
        """Return `split: class: path` → digest of the file's content.

        Equal fingerprints mean the same images with the same labels in the same splits.
        """
        digests = [digest for examples in self.examples.values() for digest in examples.digests]
        return {example_key(*row): digest.hex() for row, digest in zip(self.split_table(), digests)}

    def split_table(self) -> list[tuple[str, str, str]]:
        """Return (path relative to the root, label as text, split) per image, for a `split_file`."""
        rows = []
        for split, examples in self.examples.items():
            labels = label_texts(examples.labels, self.targets)
            paths = relative_paths(examples.names, self.root)
            rows += [(path, label, split) for path, label in zip(paths, labels)]
        return rows

    def describe(self) -> str:
        """Return a few lines of text: classes, images in each split, skipped files."""
        kinds = {"single_label": "classes", "multi_label": "labels", "regression": "targets"}
        if isinstance(self.targets, dict):
            kind = f"{len(self.targets)} heads"
        else:
            kind = f"{len(self.targets.names)} {kinds[self.targets.task]}"
        lines = [f"{printable(self.title)}: {kind}"]
        for split, examples in self.examples.items():
            summary = label_summary(examples.labels, self.targets)
            lines.append(
                f"{split}: {counted(len(examples), self.modality.one)} ({printable(summary)})"
            )
        if self.skipped:
            lines.append(f"skipped: {counted(len(self.skipped), 'file')}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        sizes = "".join(f", {split}={len(part)}" for split, part in self.examples.items())
        return (
            f"ImageData({self.root!r}, classes={len(self.class_names)}{sizes}, "
            f"skipped={len(self.skipped)})"
        )

    def require(self, split: str) -> Examples:
        """Return the examples of a split; InputError if it does not exist."""
        if split not in self.examples:
            raise InputError(
                f"{self.title} has no {split} {self.modality.many}; it has {', '.join(self.examples)}."
            )
        return self.examples[split]

    def _images(self, split: str):
        from keras_transfer.data import batches as pipeline

        return pipeline.images(self.examples[split]) if split in self.examples else None


def relative_paths(names, root) -> list[str]:
    """Return paths relative to `root`, with forward slashes."""
    return [os.path.relpath(name, root).replace(os.sep, "/") for name in names]


# -- classes of unequal size ----------------------------------------------------------------------


def check_balance(balance: str, tasks: Sequence[str]) -> None:
    """Raise InputError if a way to balance does not suit a model's tasks."""
    if balance == "none":
        return
    if "regression" in tasks:
        raise InputError("balance cannot be used for regression, which has no classes: use 'none'.")
    if len(tasks) > 1:
        raise InputError("balance cannot be used for several heads: use 'none'.")
    if balance == "sampling" and tasks[0] != "single_label":
        raise InputError(
            "balance 'sampling' needs one class per example: use 'weights' for several labels."
        )


def check_class_weights(weights: str | dict | None, heads: Mapping) -> None:
    """Raise InputError if `weights` do not fit the classes of a model's only head."""
    if weights is None:
        return
    if len(heads) > 1:
        raise InputError("class_weights cannot be used for several heads.")
    (head,) = heads.values()
    if head.task == "regression":
        raise InputError("class_weights cannot be used for regression, which has no classes.")
    if isinstance(weights, dict) and set(weights) != set(head.names):
        raise InputError(
            f"class_weights has {sorted(weights)}, but the classes are {list(head.names)}."
        )


def class_weights(weights: str | dict, names: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """Return the weight of each class in the loss.

    `"balanced"` is the inverse frequency: N / (C · n_c) for a class with n_c of N images, so that the
    mean weight of an image is 1. With any number of labels per image, each label is balanced
    separately: N / (2 · n) for the n images that have it and N / (2 · (N − n)) for the others.

    Args:
        weights: `"balanced"`, or a weight for each name (for several labels per image: the weight of
            images that have the label; the others have weight 1).
        names: the classes.
        labels: labels of the training images, int [N] or 0/1 [N, C].

    Returns:
        float32 [C]; for labels [N, C] float32 [C, 2], of images without and with the label.
    """
    several = labels.ndim == 2
    if weights != "balanced":
        values = np.array([weights[name] for name in names], "float32")  # type: ignore[index]
        return np.stack([np.ones_like(values), values], axis=1) if several else values
    if several:
        positive = labels.sum(axis=0)
        counts = np.stack([len(labels) - positive, positive], axis=1)
        return (len(labels) / (2 * np.maximum(1, counts))).astype("float32")
    counts = np.bincount(labels, minlength=len(names))
    return (len(labels) / (len(names) * np.maximum(1, counts))).astype("float32")
