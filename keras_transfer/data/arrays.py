"""NumPy arrays, encoded examples in memory and `tf.data.Dataset`s as sources."""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from keras_transfer.data.array_labels import encode_labels
from keras_transfer.data.examples import Examples, ImageData, Target
from keras_transfer.data.files import Skipped
from keras_transfer.data.readers import Encoded, each
from keras_transfer.data.split_rule import SplitRule, divide
from keras_transfer.errors import InputError
from keras_transfer.modalities import Modality, find_modality, modality_in_memory
from keras_transfer.utils.console import progress_bar
from keras_transfer.utils.files import free_memory
from keras_transfer.utils.names import make_options


class Contents(Encoded):
    """Encoded examples in memory, the bytes of each one's file; see `Arrays`."""

    def __init__(
        self,
        encoded: Sequence[bytes],
        names: Sequence[str] | None = None,
        modality: Modality | None = None,
    ):
        self.encoded, self.modality = list(encoded), modality or find_modality("image")
        self.names = _numbered(self) if names is None else list(names)

    def __len__(self) -> int:
        return len(self.encoded)

    def contents(self, index: int) -> bytes:
        return self.encoded[index]

    def take(self, indices) -> "Contents":
        names = [self.names[i] for i in indices]
        return Contents([self.encoded[i] for i in indices], names, self.modality)


class Arrays:
    """Decoded examples in memory.

    Args:
        arrays: examples as `Modality.whole` returns them: uint8 [N, H, W, 3], a sequence of uint8
            [H, W, 3] of any sizes, of (float32 [n], sample rate), or of strings.
        names: for messages and predictions; by default `image 0`, `image 1`, ….
        modality: that of images by default.
    """

    def __init__(
        self, arrays: Sequence, names: Sequence[str] | None = None, modality: Modality | None = None
    ):
        self.arrays, self.modality = arrays, modality or find_modality("image")
        self.names = _numbered(self) if names is None else list(names)

    def __len__(self) -> int:
        return len(self.arrays)

    def read(self, index: int, use: Callable):
        return use(self.modality.open_decoded(self.arrays[index]))

    def decoded(self, index: int):
        return self.arrays[index]

    def media(self, index: int) -> tuple[str, bytes] | None:
        return self.modality.media(self.modality.encode(self.arrays[index]))

    def shorter_side(self, index: int) -> int:
        return min(self.arrays[index].shape[:2])

    @cached_property
    def digests(self) -> list[bytes]:
        return [self.modality.digest(example) for example in self.arrays]

    @cached_property
    def alike(self) -> list[bytes]:
        return self.digests

    def take(self, indices) -> "Arrays":
        names = [self.names[i] for i in indices]
        return Arrays([self.arrays[i] for i in indices], names, self.modality)


def find_usable(images, progress: bool) -> tuple[np.ndarray, list[Skipped]]:
    """Return the positions of examples in memory or shards that can be used, and the others."""

    def fault(index):
        if isinstance(images, Arrays):
            return images.modality.check_decoded(images.arrays[index])
        try:
            return images.modality.examine(images.contents(index)).fault
        except (OSError, ValueError) as error:
            return str(error)

    faults = each(fault, range(len(images)), f"checking {images.modality.many}", progress)
    usable = [i for i, fault in enumerate(faults) if fault is None]
    skipped = [Skipped(name, fault) for name, fault in zip(images.names, faults) if fault]
    return np.array(usable, int), skipped


def from_arrays(
    train: tuple,
    val: tuple | None = None,
    test: tuple | None = None,
    *,
    class_names: Sequence[str] | None = None,
    task: str = "single_label",
    rate: int | None = None,
    progress: bool = True,
    **rule,
) -> ImageData:
    """Return a dataset of images, clips or texts, and their labels, in memory.

    Args:
        train, val, test: (images, labels) of each split. Images are uint8 [N, H, W, 3] or
            [N, H, W] (gray), values 0–255, or a sequence of such images of any sizes; other dtypes are
            rounded. Texts are strings [N]. Labels are names or integers [N] (also as floats, bool,
            [N, 1] or one-hot [N, C]); for multi_label 0 and 1 [N, L], for regression numbers [N] or [N, D].
        class_names: names of the classes 0, 1, …; by default the sorted labels themselves, so that
            labels 1 to 3 are three classes. For other tasks the names of the columns.
        task: `"single_label"`, `"multi_label"` or `"regression"`.
        rate: samples per second, of audio clips: a sequence of [n] or [n, channels], floats from -1 to
            1 or whole numbers.
        progress: show a bar on stderr, in a terminal or a notebook.
        rule: fields of `SplitRule` (`val_split=0.2`, …), which draw the missing splits.

    Raises:
        InputError: if shapes, values or labels are invalid, or a class has no usable example.
    """
    parts = {"train": train, "val": val, "test": test}
    parts = {split: part for split, part in parts.items() if part is not None}
    for split, part in parts.items():
        if not isinstance(part, tuple | list):
            raise InputError(
                f"{split} must be a tuple (images, labels), not {type(part).__name__}: "
                "from_arrays((images, labels), val=(images, labels))."
            )
        counts = [_count(values) for values in part]
        if len(part) != 2 or None in counts or counts[0] != counts[1]:
            lengths = " and ".join(
                repr(values)[:40] if count is None else str(count)
                for values, count in zip(part, counts)
            )
            raise InputError(f"{split} must be (images, labels) of equal length, not {lengths}.")
    names, labels = encode_labels({s: part[1] for s, part in parts.items()}, class_names, task)
    target = Target(task, names)
    facts = {} if rate is None else {"rate": rate}
    modality = modality_in_memory(parts["train"][0], facts)
    examples, skipped = {}, []
    for split, (arrays, _) in parts.items():
        titles = [f"{split} {i}" for i in range(len(arrays))]
        cast = modality.caster(split, **facts)
        made = [cast(array, title) for array, title in zip(arrays, titles)]
        images = Arrays(made, titles, modality)
        cast.report()
        good, faulty = find_usable(images, progress)
        skipped += faulty
        if not len(good):
            why = f": {skipped[0].path} is {skipped[0].reason}" if skipped else ""
            raise InputError(f"{split} has no usable {modality.one}{why}.")
        examples[split] = Examples(images.take(good), labels[split][good])
    return divide(target, examples, skipped, "arrays", make_options(SplitRule, rule, "from_arrays"))


def from_dataset(
    train, val=None, test=None, *, class_names: Sequence[str] | None = None, **options
) -> ImageData:
    """Return a dataset of finite `tf.data.Dataset`s of (image [H, W, 3] or string, label), or batches.

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
    texts = spec[0].dtype.name == "string"
    modality = find_modality("text" if texts else "image")
    batched, single = ((1,), (None, 0)) if texts else ((4,), (None, 2, 3))
    if spec[0].shape.rank in batched:
        dataset = dataset.unbatch()
    elif spec[0].shape.rank not in single:
        raise InputError(
            f"{split} must yield images [H, W, 3], strings, or batches of them, not "
            f"{list(spec[0].shape)}."
        )
    limit, size = free_memory() // 2, 0
    images, labels, cast = [], [], modality.caster(split)
    rows = progress_bar(dataset.as_numpy_iterator(), f"reading {split}", unit=modality.many)
    for image, label in rows:
        images.append(cast(image, f"{split} {len(images)}"))
        labels.append(label)
        size += len(images[-1]) if texts else images[-1].nbytes
        if size > limit:
            raise InputError(
                f"{split} is larger than half of the free memory ({len(images)} {modality.many} take "
                f"{size >> 20} MiB): write them to files or TFRecords."
            )
    cast.report()
    return images, labels


def _count(values) -> int | None:
    """Return how many values there are; None without a length."""
    try:
        return len(values)
    except TypeError:
        return None


def _numbered(reader):
    return [f"{reader.modality.one} {i}" for i in range(len(reader))]
