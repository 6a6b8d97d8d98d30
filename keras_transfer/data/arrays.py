"""NumPy arrays, encoded images in memory and `tf.data.Dataset`s as sources."""

import io
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from PIL import Image

from keras_transfer.data.array_labels import encode_labels
from keras_transfer.data.examples import Examples, ImageData, Target
from keras_transfer.data.files import Encoded, Skipped, each
from keras_transfer.data.split_rule import SplitRule, divide
from keras_transfer.errors import InputError
from keras_transfer.modalities.image.decode import digest, examine
from keras_transfer.modalities.image.opened import open_pixels
from keras_transfer.utils.console import progress_bar, say
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

    def read(self, index: int, use: Callable):
        return use(open_pixels(self.arrays[index]))

    def pixels(self, index: int) -> np.ndarray:
        return self.arrays[index]

    def shorter_side(self, index: int) -> int:
        return min(self.arrays[index].shape[:2])

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
            [N, H, W] (gray), values 0–255, or a sequence of such images of any sizes; other dtypes are
            rounded. Labels are names or integers [N] (also as floats, bool, [N, 1] or one-hot
            [N, C]); for multi_label 0 and 1 [N, L], for regression numbers [N] or [N, D].
        class_names: names of the classes 0, 1, …; by default the sorted labels themselves, so that
            labels 1 to 3 are three classes. For other tasks the names of the columns.
        task: `"single_label"`, `"multi_label"` or `"regression"`.
        progress: show a bar on stderr, in a terminal or a notebook.
        rule: fields of `SplitRule` (`val_split=0.2`, …), which draw the missing splits.

    Raises:
        InputError: if shapes, values or labels are invalid, or a class has no usable image.
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
    names, labels = encode_labels({s: part[1] for s, part in parts.items()}, class_names, task)
    target = Target(task, names)
    examples, skipped = {}, []
    for split, (arrays, _) in parts.items():
        titles = [f"{split} {i}" for i in range(len(arrays))]
        cast = _Cast(split)
        images = Arrays([cast(image, title) for image, title in zip(arrays, titles)], titles)
        cast.report()
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
    """Return a dataset of finite `tf.data.Dataset`s of (image [H, W, 3], label), or batches of them.

    They are read into memory once, so that everything is as reproducible as with files. Write
    TFRecords or files for data larger than half of the free memory.

    Args:
        train, val, test: the dataset of each split, such as those of
            `keras.utils.image_dataset_from_directory` with any `label_mode`.
        class_names: by default the dataset's `class_names`, which Keras sets; see `from_arrays`.
        options: see `from_arrays`.

    Raises:
        InputError: if a dataset is infinite or too large, or see `from_arrays`.
    """
    if class_names is None and options.get("task", "single_label") == "single_label":
        class_names = getattr(train, "class_names", None)
    parts = {"train": train, "val": val, "test": test}
    read = {split: _read_dataset(part, split) for split, part in parts.items() if part is not None}
    return from_arrays(**read, class_names=class_names, **options)


class _Cast:
    """Convert the images of a split to uint8 RGB, one by one, and report how at the end."""

    def __init__(self, split: str):
        self.split = split
        self._types: set[str] = set()  # of images with values between whole numbers
        self._highest = 0.0  # value of images of floats
        self._floats = False
        self._scaled = True  # whether no whole number is above 1

    def __call__(self, image, name: str) -> np.ndarray:
        image = np.asarray(image)
        if image.dtype != np.uint8 and image.size:
            image = self._as_uint8(image, name)
        self._scaled &= bool(image.size) and image.max() <= 1
        if image.ndim == 2:
            image = image[..., None]
        if image.ndim == 3 and image.shape[-1] == 1:
            image = np.repeat(image, 3, axis=-1)
        return image

    def _as_uint8(self, image, name):
        kind = str(image.dtype)
        try:
            values = image.astype(np.float32)
        except (TypeError, ValueError):
            raise InputError(f"{name} is {kind}, not an image: pass RGB values 0–255.") from None
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 255):  # or NaN
            raise InputError(
                f"{name} has values from {low:g} to {high:g} of {kind}: pass whole numbers 0–255, "
                "preferably uint8, without normalization."
            )
        whole = np.rint(values)
        if image.dtype.kind not in "biu":
            self._floats, self._highest = True, max(self._highest, float(high))
            if not np.array_equal(whole, values):
                self._types.add(kind)
        return whole.astype(np.uint8)

    def report(self) -> None:
        """Print what was rounded; raise InputError if the images are 0–1."""
        if self._floats and self._highest <= 1:
            raise InputError(
                f"{self.split} has values from 0 to {self._highest:g}: images must be RGB 0–255, so "
                "multiply by 255 (the model normalizes its inputs)."
            )
        if self._scaled:
            say(
                f"warning: {self.split} has no value above 1, and images must be RGB 0–255: if they "
                "were scaled, multiply by 255 before they become integers"
            )
        if self._types:
            kinds = " and ".join(sorted(self._types))
            say(f"{self.split}: images of {kinds} are rounded to whole numbers 0–255")


def _read_dataset(dataset, split):
    """Return (uint8 images, labels) of a dataset, batched or not."""
    spec = getattr(dataset, "element_spec", None)
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise InputError(
            f"{split} must yield (image, label), not {spec or type(dataset).__name__}."
        )
    count = int(dataset.cardinality())
    if count == -1:
        raise InputError(f"{split} is infinite: remove .repeat().")
    if spec[0].shape.rank == 4:
        dataset = dataset.unbatch()
    elif spec[0].shape.rank not in (None, 2, 3):
        raise InputError(
            f"{split} must yield images [H, W, 3] or batches of them, not {list(spec[0].shape)}."
        )
    limit, size = free_memory() // 2, 0
    images, labels, cast = [], [], _Cast(split)
    rows = progress_bar(dataset.as_numpy_iterator(), f"reading {split}", unit="images")
    for image, label in rows:
        images.append(cast(image, f"{split} {len(images)}"))
        labels.append(label)
        size += images[-1].nbytes
        if size > limit:
            raise InputError(
                f"{split} is larger than half of the free memory ({len(images)} images take "
                f"{size >> 20} MiB): write its images to files or TFRecords."
            )
    cast.report()
    return images, labels


def _numbered(count):
    return [f"image {i}" for i in range(count)]
