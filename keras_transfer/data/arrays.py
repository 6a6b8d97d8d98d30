"""NumPy arrays, encoded images in memory and `tf.data.Dataset`s as sources."""

import io
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from PIL import Image

from keras_transfer.data.examples import Examples, ImageData, Target
from keras_transfer.data.files import Encoded, Skipped, each
from keras_transfer.data.split_rule import SplitRule, divide
from keras_transfer.errors import InputError
from keras_transfer.modalities.image.decode import digest, examine
from keras_transfer.utils.console import progress_bar
from keras_transfer.utils.files import free_memory


class Contents(Encoded):
    """Encoded images in memory, the bytes of each image's file; for `names` see `Arrays`."""

    def __init__(self, encoded: Sequence[bytes], names: Sequence[str] | None = None):
        self.encoded = list(encoded)
        self.names = _numbered(len(self.encoded)) if names is None else list(names)

    def contents(self, index: int) -> bytes:
        return self.encoded[index]

    def take(self, indices) -> "Contents":
        return Contents([self.encoded[i] for i in indices], [self.names[i] for i in indices])


class Arrays:
    """Decoded images in memory.

    Args:
        arrays: uint8 [N, H, W, 3], or a sequence of uint8 [H, W, 3] of any sizes.
        names: for messages and predictions; by default `image 0`, `image 1`, ….
    """

    def __init__(self, arrays: Sequence[np.ndarray], names: Sequence[str] | None = None):
        self.arrays = arrays
        self.names = _numbered(len(arrays)) if names is None else list(names)

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, index: int) -> np.ndarray:
        return self.arrays[index]

    @cached_property
    def digests(self) -> list[bytes]:
        return [digest(repr(a.shape).encode(), np.ascontiguousarray(a).data) for a in self.arrays]

    def take(self, indices) -> "Arrays":
        return Arrays([self.arrays[i] for i in indices], [self.names[i] for i in indices])


def find_usable(images, progress: bool) -> tuple[np.ndarray, list[Skipped]]:
    """Return the positions of images in memory or shards that can be used, and the others."""

    def fault(index):
        if isinstance(images, Arrays):
            return _array_fault(images.arrays[index])
        try:
            return examine(images.contents(index)).fault
        except (OSError, ValueError) as error:
            return str(error)

    faults = each(fault, range(len(images)), "checking images", progress)
    usable = [i for i, fault in enumerate(faults) if fault is None]
    skipped = [Skipped(name, fault) for name, fault in zip(images.names, faults) if fault]
    return np.array(usable, int), skipped


def encoded_bytes(images, index: int) -> bytes:
    """Return an image as the bytes of a file; an array becomes a PNG."""
    if isinstance(images, Encoded):
        return images.contents(index)
    buffer = io.BytesIO()
    Image.fromarray(images.pixels(index)).save(buffer, "PNG")
    return buffer.getvalue()


def _array_fault(array):
    if getattr(array, "dtype", None) != np.uint8:
        return f"not uint8 but {getattr(array, 'dtype', type(array).__name__)}"
    if array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        return f"not of shape [height, width, 3] but {list(array.shape)}"
    return None


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
    """Return a dataset of images and labels in memory.

    Args:
        train, val, test: (images, labels) of each split. Images are uint8 [N, H, W, 3] or
            [N, H, W] (gray), values 0–255, or a sequence of such images of any sizes; whole numbers
            0–255 in another dtype are accepted too. Labels are integers [N] or names; for
            multi_label 0 and 1 [N, L], for regression numbers [N] or [N, D].
        class_names: names of the classes 0, 1, … (by default the numbers, or the sorted names); for
            other tasks the names of the columns.
        task: `"single_label"`, `"multi_label"` or `"regression"`.
        progress: show a bar on stderr, in a terminal or a notebook.
        rule: fields of `SplitRule` (`val_split=0.2`, …), which draw the missing splits.

    Raises:
        InputError: if shapes, values or labels are invalid.
    """
    parts = {"train": train, "val": val, "test": test}
    parts = {split: part for split, part in parts.items() if part is not None}
    for split, part in parts.items():
        if not isinstance(part, tuple | list):
            raise InputError(
                f"{split} must be a tuple (images, labels), not {type(part).__name__}: "
                "from_arrays((images, labels), val=(images, labels))."
            )
        if len(part) != 2 or len(part[0]) != len(part[1]):
            lengths = " and ".join(str(len(x)) for x in part)
            raise InputError(f"{split} must be (images, labels) of equal length, not {lengths}.")
    columns = {split: part[1] for split, part in parts.items()}
    if task == "single_label":
        names, labels = _encode_labels(columns, class_names)
    else:
        names, labels = _target_columns(columns, class_names, task)
    target = Target(task, names)
    examples, skipped = {}, []
    for split, (arrays, _) in parts.items():
        titles = [f"{split} {i}" for i in range(len(arrays))]
        images = Arrays([_as_rgb(x, n) for x, n in zip(arrays, titles)], titles)
        good, faulty = find_usable(images, progress)
        skipped += faulty
        if not len(good):
            why = f": {skipped[0].path} is {skipped[0].reason}" if skipped else ""
            raise InputError(f"{split} has no usable image{why}.")
        examples[split] = Examples(images.take(good), labels[split][good])
    return divide(target, examples, skipped, "arrays", SplitRule(**rule))


def from_dataset(
    train, val=None, test=None, *, class_names: Sequence[str] | None = None, **options
) -> ImageData:
    """Return a dataset of `tf.data.Dataset`s: finite, unbatched, (image [H, W, 3], integer label).

    They are read into memory once, so that everything is as reproducible as with files. Write
    TFRecords or files for data larger than half of the free memory.

    Args:
        train, val, test: the dataset of each split.
        class_names, options: see `from_arrays`.

    Raises:
        InputError: if a dataset is infinite, batched or too large, or see `from_arrays`.
    """
    parts = {"train": train, "val": val, "test": test}
    read = {split: _read_dataset(part, split) for split, part in parts.items() if part is not None}
    return from_arrays(**read, class_names=class_names, **options)


def _encode_labels(labels, class_names):
    """Return (class names, int32 labels of each split) for labels that are integers or names."""
    values = {split: np.asarray(part) for split, part in labels.items()}
    train = values["train"]
    numbers = np.issubdtype(train.dtype, np.integer) or train.dtype == bool
    if not numbers and not all(isinstance(x, (str, np.str_)) for x in train.tolist()):
        raise InputError(f"Labels must be integers or names, not {train.dtype} ({train[:1]}).")
    if numbers:
        count = max(int(train.max(initial=-1)) + 1, 0)
        names = tuple(map(str, range(count) if class_names is None else class_names))
        index = {i: i for i in range(len(names))}
    else:
        names = tuple(sorted(set(train.tolist())) if class_names is None else class_names)
        index = {name: i for i, name in enumerate(names)}
    if len(names) < 2:
        raise InputError(f"only one class ({', '.join(names)}); classification needs at least two")
    encoded = {}
    for split, part in values.items():
        unknown = sorted(set(part.tolist()) - set(index), key=str)
        if unknown:
            examples = ", ".join(map(str, unknown[:5]))
            raise InputError(
                f"{split} has labels that are not among the {len(names)} classes: {examples}"
            )
        encoded[split] = np.array([index[label] for label in part.tolist()], np.int32)
    return names, encoded


def _target_columns(labels, names, task):
    """Return (names, float32 [N, C] of each split) for multi_label and regression."""
    columns = {}
    for split, values in labels.items():
        values = np.asarray(values, np.float32)
        columns[split] = values = values[:, None] if values.ndim == 1 else values
        if values.ndim != 2 or not np.isfinite(values).all():
            raise InputError(f"{split}: {task} labels must be finite numbers of shape [N, C].")
        if task == "multi_label" and not np.isin(values, (0, 1)).all():
            raise InputError(f"{split}: multi_label labels must be 0 or 1.")
    width = columns["train"].shape[1]
    names = tuple(map(str, range(width) if names is None else names))
    if {values.shape[1] for values in columns.values()} != {len(names)}:
        widths = ", ".join(f"{split} {values.shape[1]}" for split, values in columns.items())
        raise InputError(
            f"The labels have different numbers of columns: {widths}; there are {len(names)} names."
        )
    return names, columns


def _as_rgb(image, name):
    image = np.asarray(image)
    if image.dtype != np.uint8 and image.size:
        low, high = image.min(), image.max()
        values = f"{name} has values from {low:g} to {high:g}"
        if low >= 0 and high <= 1 and np.issubdtype(image.dtype, np.floating):
            raise InputError(
                f"{values}: images must be RGB 0–255, so multiply by 255 (the model normalizes its "
                "inputs)."
            )
        with np.errstate(invalid="ignore"):  # NaN
            whole = image.astype(np.uint8)
        if not np.array_equal(whole, image):
            raise InputError(
                f"{values} of {image.dtype}: pass whole numbers 0–255, preferably uint8."
            )
        image = whole
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim == 3 and image.shape[-1] == 1:
        image = np.repeat(image, 3, axis=-1)
    return image


def _read_dataset(dataset, split):
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise InputError(f"{split} must yield (image, label), not {spec}.")
    if spec[0].shape.rank not in (None, 3) or spec[1].shape.rank not in (None, 0):
        raise InputError(
            f"{split} must yield one image [H, W, 3] and one label at a time: call .unbatch() "
            "on batches."
        )
    count = int(dataset.cardinality())
    if count == -1:
        raise InputError(f"{split} is infinite: remove .repeat().")
    limit, size = free_memory() // 2, 0
    images, labels = [], []
    rows = progress_bar(dataset.as_numpy_iterator(), f"reading {split}", unit="images")
    for image, label in rows:
        images.append(image)
        labels.append(label)
        size += image.nbytes
        if size > limit:
            raise InputError(
                f"{split} is larger than half of the free memory ({len(images)} images take "
                f"{size >> 20} MiB): write its images to files or TFRecords."
            )
    return images, labels


def _numbered(count):
    return [f"image {i}" for i in range(count)]
