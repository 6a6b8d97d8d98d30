"""TensorFlow Datasets as a source."""

import difflib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from keras_transfer.data.examples import Examples, ImageData
from keras_transfer.data.files import Skipped
from keras_transfer.data.folders import assembled
from keras_transfer.data.index import check_images
from keras_transfer.data.readers import Contents, find_faults
from keras_transfer.data.records import read_shards
from keras_transfer.data.split_rule import SplitRule
from keras_transfer.data.targets import Target
from keras_transfer.errors import InputError
from keras_transfer.utils.console import progress_bar

_SPLITS = {"train": ("train",), "val": ("validation", "val", "valid"), "test": ("test",)}


def from_tfds(
    builder,
    *,
    data_dir=None,
    splits: Mapping[str, str] | None = None,
    image: str = "image",
    label: str = "label",
    progress: bool = True,
    **rule,
) -> ImageData:
    """A data set of TensorFlow Datasets, with its own splits.

    Images stay encoded and are decoded as files are. Those of a data set in TFRecord files are
    read from there at random; of `ImageFolder` the files are; others are kept in memory.

    Args:
        builder: a `tfds.core.DatasetBuilder`, or a name for `tfds.builder`; it is downloaded and
            prepared where it is not there yet.
        data_dir: where a named one is looked for.
        splits: `{"train": …, "val": …, "test": …}` → the data set's names for them, where they are
            not train, validation and test.
        image, label: names of the features.
        progress: show a bar on stderr, in a terminal or a notebook.
        rule: how what is not divided yet is divided: fields of `SplitRule` (`val_split=0.2`, …).

    Raises:
        InputError: no such data set, split or feature; or features that are no image and class.
    """
    import tensorflow_datasets as tfds

    builder = _prepared(tfds, builder, data_dir)
    features = builder.info.features
    for name, kind, what in (
        (image, tfds.features.Image, "image"),
        (label, tfds.features.ClassLabel, "class"),
    ):
        if not (name in features and isinstance(features[name], kind)):
            raise InputError(
                f"{builder.name} has no {what} called {name!r} ({kind.__name__}); its features are "
                f"{', '.join(features)}: name one."
            )
    target = Target("single_label", tuple(features[label].names))
    examples, skipped = {}, []
    for split, its_name in _chosen(builder, splits).items():
        examples[split], faulty = _read_split(
            tfds, builder, split, its_name, target, image, label, progress
        )
        skipped += faulty
    return assembled(target, examples, skipped, builder.name, SplitRule(**rule))


def _prepared(tfds, builder, data_dir):
    if not isinstance(builder, str):
        return builder
    try:
        builder = tfds.builder(builder, data_dir=data_dir)
        if not Path(builder.data_dir).exists():
            builder.download_and_prepare()
        return builder
    except tfds.core.DatasetNotFoundError:
        near = difflib.get_close_matches(builder, tfds.list_builders(), 5)
        hint = f"; near are {', '.join(near)}" if near else ""
        raise InputError(
            f"TensorFlow Datasets has none of this name: {builder}{hint}. Check the name, or say where "
            "it lies (data_dir)."
        ) from None
    except Exception as error:  # of the network, of the data set's own scripts
        message = " ".join(str(error).split())[:300]
        raise InputError(
            f"{builder if isinstance(builder, str) else builder.name} cannot be prepared "
            f"({type(error).__name__}: {message}); prepare it with the tfds command, or give data_dir."
        ) from error


def _chosen(builder, splits):
    available = list(builder.info.splits)
    if splits is None:
        splits = {
            split: next((name for name in names if name in available), None)
            for split, names in _SPLITS.items()
        }
        splits = {split: name for split, name in splits.items() if name}
    # A mocked data set does not know its splits.
    unknown = [name for name in splits.values() if available and name not in available]
    if unknown or "train" not in splits or set(splits) - set(_SPLITS):
        raise InputError(
            f"{builder.name} has the splits {', '.join(available) or 'none'}: name them with "
            'splits={"train": …, "val": …, "test": …}.'
        )
    return splits


def _read_split(tfds, builder, split, its_name, target, image, label, progress):
    shards = [Path(p) for p in _shards(builder, its_name)]
    if shards:
        keys = dict(image_key=image, label_key=label)
        return read_shards(shards, target, split=split, progress=progress, **keys)
    dataset = builder.as_dataset(
        split=its_name, decoders={image: tfds.decode.SkipDecoding()}, shuffle_files=False
    )
    encoded, labels, files = [], [], []
    rows = progress_bar(
        dataset.as_numpy_iterator(), f"reading {split}", unit="images", visible=progress
    )
    for row in rows:
        labels.append(int(row[label]))
        file = row.get(f"{image}/filename")
        if file is not None and Path(file.decode()).is_file():
            files.append(file.decode())
        else:
            encoded.append(row[image])
    labels = np.array(labels, np.int32)
    if files and not encoded:
        order = np.lexsort((files, labels))  # as the images of a folder are
        label_of = dict(zip(files, labels))
        images, skipped = check_images([files[i] for i in order], progress=progress)
        labels = np.array([label_of[path] for path in images.names], np.int32)
    else:
        whole = Contents(encoded, [f"{builder.name}/{its_name} {i}" for i in range(len(encoded))])
        faults = find_faults(whole, progress=progress)
        kept = [i for i, fault in enumerate(faults) if fault is None]
        skipped = [Skipped(whole.names[i], f) for i, f in enumerate(faults) if f is not None]
        images, labels = whole.take(kept), labels[kept]
    if not len(images):
        raise InputError(f"{builder.name} has no readable image in {its_name}.")
    return Examples(images, labels), skipped


def _shards(builder, split):
    """The TFRecord files of a split; none where it is kept in another way."""
    try:
        info = builder.info.splits[split]
        paths = info.filepaths
    except Exception:  # ImageFolder and mocked data sets have no files
        return []
    kind = getattr(info.filename_template, "filetype_suffix", None) if paths else None
    return paths if kind == "tfrecord" and all(Path(p).is_file() for p in paths) else []
