"""NumPy arrays and `tf.data.Dataset`s of the user's as sources."""

import warnings
from collections.abc import Sequence

import numpy as np

from keras_transfer.data.examples import Examples, ImageData
from keras_transfer.data.files import Skipped
from keras_transfer.data.folders import assembled
from keras_transfer.data.readers import Arrays, find_faults
from keras_transfer.data.split_rule import SplitRule
from keras_transfer.data.targets import Target
from keras_transfer.errors import InputError
from keras_transfer.utils.console import progress_bar
from keras_transfer.utils.files import free_memory


def from_arrays(
    train: tuple,
    val: tuple | None = None,
    test: tuple | None = None,
    *,
    class_names: Sequence[str] | None = None,
    task: str = "single_label",
    progress: bool = True,
    **rule,
) -> ImageData:
    """Images and labels that are in memory.

    Args:
        train, val, test: (images, labels) of each split. Images are uint8 [N, H, W, 3] or
            [N, H, W] (grey), values 0–255, or a sequence of such images of their own sizes; whole
            numbers 0–255 in another number format are taken too. Labels are integers [N] or names; of
            other tasks 0 and 1 [N, L], or numbers [N] or [N, D].
        class_names: of the integers 0, 1, … (by default the numbers, or the names, sorted); of other
            tasks the names of the columns.
        task: `"single_label"`, `"multi_label"` or `"regression"`.
        progress: show a bar on stderr, in a terminal or a notebook.
        rule: how what is not divided yet is divided: fields of `SplitRule` (`val_split=0.2`, …).

    Raises:
        InputError: other shapes or values, or labels that the classes do not have.
    """
    given = {"train": train, "val": val, "test": test}
    parts = {split: part for split, part in given.items() if part is not None}
    for split, part in parts.items():
        if not isinstance(part, tuple | list):
            raise InputError(
                f"{split} must be a tuple (images, labels), not {type(part).__name__}: "
                "from_arrays((images, labels), val=(images, labels))."
            )
        if len(part) != 2 or len(part[0]) != len(part[1]):
            lengths = " and ".join(str(len(x)) for x in part)
            raise InputError(f"{split} must be (images, labels) of one length, not {lengths}.")
    columns = {split: part[1] for split, part in parts.items()}
    if task == "single_label":
        names, labels = encode_labels(columns, class_names)
    else:
        names, labels = _columns(columns, class_names, task)
    target = Target(task, names)
    examples, skipped = {}, []
    for split, (arrays, _) in parts.items():
        shown = [f"{split} {i}" for i in range(len(arrays))]
        images = Arrays([_as_rgb(x, n) for x, n in zip(arrays, shown)], shown)
        faults = find_faults(images, progress=progress)
        good = [i for i, fault in enumerate(faults) if fault is None]
        skipped += [Skipped(shown[i], fault) for i, fault in enumerate(faults) if fault]
        if not good:
            why = f": {skipped[0].path} is {skipped[0].reason}" if skipped else ""
            raise InputError(f"No usable image in {split}{why}.")
        examples[split] = Examples(images.take(good), labels[split][good])
    return assembled(target, examples, skipped, "arrays", SplitRule(**rule))


def from_dataset(
    train, val=None, test=None, *, class_names: Sequence[str] | None = None, **options
) -> ImageData:
    """`tf.data.Dataset`s of the user's: finite, unbatched, (image [H, W, 3], integer label).

    They are read once and kept in memory, so that order, splits and augmentation are as
    reproducible as those of files; of what is larger than half of the free memory write TFRecords
    or files.

    Args:
        train, val, test: of each split.
        class_names, options: see `from_arrays`.

    Raises:
        InputError: a data set that is infinite, batched or too large, or see `from_arrays`.
    """
    parts = {"train": train, "val": val, "test": test}
    read = {split: _read(part, split) for split, part in parts.items() if part is not None}
    return from_arrays(**read, class_names=class_names, **options)


def encode_labels(
    labels: dict[str, Sequence], class_names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """(class names, int32 labels of each split) from integers or names.

    Integers are positions in `class_names`; names become the sorted set of those in `train`.

    Raises:
        InputError: a label that train (or `class_names`) does not have, or fewer than two classes.
    """
    values = {split: np.asarray(part) for split, part in labels.items()}
    train = values["train"]
    numbers = np.issubdtype(train.dtype, np.integer) or train.dtype == bool
    if not numbers and not all(isinstance(x, (str, np.str_)) for x in train.tolist()):
        raise InputError(f"Labels must be integers or names, not {train.dtype} ({train[:1]}).")
    if numbers:
        count = max(int(train.max(initial=-1)) + 1, 0)
        names = tuple(map(str, range(count) if class_names is None else class_names))
        known = dict(enumerate(names))
        index = {i: i for i in known}
    else:
        names = tuple(sorted(set(train.tolist())) if class_names is None else class_names)
        index = {name: i for i, name in enumerate(names)}
    if len(names) < 2:
        raise InputError(f"only one class ({', '.join(names)}); classification needs at least two")
    encoded = {}
    for split, part in values.items():
        unknown = sorted(set(part.tolist()) - set(index), key=str)
        if unknown:
            shown = ", ".join(map(str, unknown[:5]))
            raise InputError(
                f"{split} has labels that are none of the {len(names)} classes: {shown}"
            )
        encoded[split] = np.array([index[label] for label in part.tolist()], np.int32)
    return names, encoded


def _columns(labels, names, task):
    """(names, float32 [N, C] of each split) of labels that are 0 and 1, or numbers."""
    found = {}
    for split, values in labels.items():
        values = np.asarray(values, np.float32)
        found[split] = values = values[:, None] if values.ndim == 1 else values
        if values.ndim != 2 or not np.isfinite(values).all():
            raise InputError(f"{split}: {task} labels must be finite numbers of shape [N, C].")
        if task == "multi_label" and not np.isin(values, (0, 1)).all():
            raise InputError(f"{split}: multi_label labels must be 0 or 1.")
    width = found["train"].shape[1]
    names = tuple(map(str, range(width) if names is None else names))
    if {values.shape[1] for values in found.values()} != {len(names)}:
        widths = ", ".join(f"{split} {values.shape[1]}" for split, values in found.items())
        raise InputError(f"Labels have different numbers of columns: {widths}; names {len(names)}.")
    return names, found


def _as_rgb(image, name):
    image = np.asarray(image)
    if image.dtype != np.uint8 and image.size:
        low, high = image.min(), image.max()
        if low >= 0 and high <= 1 and np.issubdtype(image.dtype, np.floating):
            raise InputError(
                f"{name} has values from {low:g} to {high:g}: images are RGB 0–255 here, so "
                "multiply by 255 (the model normalises inside)."
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NaN
            whole = image.astype(np.uint8)
        if not np.array_equal(whole, image):
            raise InputError(
                f"{name} has values from {low:g} to {high:g} of {image.dtype}: give whole numbers "
                "0–255, at best uint8."
            )
        image = whole
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim == 3 and image.shape[-1] == 1:
        image = np.repeat(image, 3, axis=-1)
    return image


def _read(dataset, split):
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise InputError(f"{split} must give (image, label), not {spec}.")
    if spec[0].shape.rank not in (None, 3) or spec[1].shape.rank not in (None, 0):
        raise InputError(
            f"{split} must give one image [H, W, 3] and one label at a time: take the batches "
            "apart with .unbatch()."
        )
    count = int(dataset.cardinality())
    if count == -1:
        raise InputError(f"{split} is infinite: leave .repeat() out.")
    room, size = free_memory() // 2, 0
    images, labels = [], []
    rows = progress_bar(dataset.as_numpy_iterator(), f"reading {split}", unit="images")
    for image, label in rows:
        images.append(image)
        labels.append(label)
        size += image.nbytes
        if size > room:
            raise InputError(
                f"{split} is larger than half of the free memory ({len(images)} images take "
                f"{size >> 20} MiB): write its images to files or TFRecords."
            )
    return images, labels
