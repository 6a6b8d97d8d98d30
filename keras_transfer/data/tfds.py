"""TensorFlow Datasets as a source."""

import difflib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from keras_transfer.data.arrays import Arrays, Contents, find_usable
from keras_transfer.data.examples import Examples, ImageData, Target
from keras_transfer.data.files import check_examples
from keras_transfer.data.split_rule import SplitRule, divide
from keras_transfer.data.tfrecord import read_shards
from keras_transfer.errors import InputError
from keras_transfer.modalities import find_modality
from keras_transfer.utils.console import progress_bar
from keras_transfer.utils.extras import require
from keras_transfer.utils.names import make_options

_SPLITS = {"train": ("train",), "val": ("validation", "val", "valid"), "test": ("test",)}


def from_tfds(
    builder,
    *,
    data_dir=None,
    splits: Mapping[str, str] | None = None,
    image: str | None = None,
    label: str = "label",
    rate: int | None = None,
    progress: bool = True,
    **rule,
) -> ImageData:
    """Open a dataset of TensorFlow Datasets with its splits.

    Images stay encoded and are decoded like files. TFRecord files and the files of an `ImageFolder`
    are read with random access; other datasets, and all clips, are read into memory.

    Args:
        builder: a `tfds.core.DatasetBuilder`, or a name for `tfds.builder`; it is downloaded and
            prepared if necessary.
        data_dir: folder of a named dataset.
        splits: `{"train": …, "val": …, "test": …}` → the dataset's names for them, if they are not
            train, validation and test.
        image: name of the feature of images or clips; by default `image`, or else `audio`.
        label: name of the feature of classes.
        rate: samples per second of clips, if the feature does not state it.
        progress: show a bar on stderr, in a terminal or a notebook.
        rule: fields of `SplitRule` (`val_split=0.2`, …), which draw the missing splits.

    Raises:
        InputError: if the dataset, a split or a feature does not exist, or a feature is not an image,
            a clip or a class; or the sample rate of clips is not known.
    """
    require("tensorflow_datasets", "Opening a dataset of TensorFlow Datasets")
    import tensorflow_datasets as tfds

    builder = _prepared(tfds, builder, data_dir)
    features = builder.info.features
    image = image or next((name for name in ("image", "audio") if name in features), "image")
    clips = image in features and isinstance(features[image], tfds.features.Audio)
    for name, kind, what in (
        (image, tfds.features.Audio if clips else tfds.features.Image, "image"),
        (label, tfds.features.ClassLabel, "class"),
    ):
        if not (name in features and isinstance(features[name], kind)):
            raise InputError(
                f"{builder.name} has no {what} called {name!r} ({kind.__name__}); its features are "
                f"{', '.join(features)}: name one."
            )
    target = Target("single_label", tuple(features[label].names))
    examples, skipped = {}, []
    for split, source in _chosen(builder, splits).items():
        if clips:
            examples[split], faulty = _read_clips(
                builder, split, source, image, label, rate, progress
            )
        else:
            examples[split], faulty = _read_split(
                tfds, builder, split, source, target, image, label, progress
            )
        skipped += faulty
    return divide(
        target, examples, skipped, builder.name, make_options(SplitRule, rule, "from_tfds")
    )


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
        hint = f"; similar names are {', '.join(near)}" if near else ""
        raise InputError(
            f"TensorFlow Datasets has no dataset named {builder}{hint}. Check the name, or pass "
            "the folder of the dataset (data_dir)."
        ) from None
    except Exception as error:  # from the network or the dataset's scripts
        message = " ".join(str(error).split())[:300]
        name = builder if isinstance(builder, str) else builder.name
        raise InputError(
            f"{name} cannot be prepared ({type(error).__name__}: {message}); prepare it with the tfds "
            "command, or pass data_dir."
        ) from error


def _chosen(builder, splits):
    available = list(builder.info.splits)
    if splits is None:
        splits = {
            split: next((name for name in names if name in available), None)
            for split, names in _SPLITS.items()
        }
        splits = {split: name for split, name in splits.items() if name}
    # A mocked dataset does not know its splits.
    unknown = [name for name in splits.values() if available and name not in available]
    if unknown or "train" not in splits or set(splits) - set(_SPLITS):
        raise InputError(
            f"{builder.name} has the splits {', '.join(available) or 'none'}: name them with "
            'splits={"train": …, "val": …, "test": …}.'
        )
    return splits


def _read_split(tfds, builder, split, source, target, image, label, progress):
    if shards := _shards(builder, source):
        keys = dict(image_key=image, label_key=label)
        return read_shards(shards, target, split=split, progress=progress, **keys)
    dataset = builder.as_dataset(
        split=source, decoders={image: tfds.decode.SkipDecoding()}, shuffle_files=False
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
        order = np.lexsort((files, labels))  # like the images of a folder
        label_of = dict(zip(files, labels))
        images, skipped = check_examples([files[i] for i in order], progress=progress)
        labels = np.array([label_of[path] for path in images.names], np.int32)
    else:
        whole = Contents(encoded, [f"{builder.name}/{source} {i}" for i in range(len(encoded))])
        usable, skipped = find_usable(whole, progress)
        images, labels = whole.take(usable), labels[usable]
    if not len(images):
        raise InputError(f"{builder.name} has no readable image in {source}.")
    return Examples(images, labels), skipped


def _read_clips(builder, split, source, audio, label, rate, progress):
    rate = builder.info.features[audio].sample_rate or rate
    if rate is None:
        raise InputError(
            f"{builder.name} does not state the sample rate of {audio}: pass rate=…, the samples per second."
        )
    modality = find_modality("audio")
    modality.require()
    cast, clips, labels, names = modality.caster(split, rate=rate), [], [], []
    dataset = builder.as_dataset(split=source, shuffle_files=False).as_numpy_iterator()
    for row in progress_bar(dataset, f"reading {split}", unit="clips", visible=progress):
        names.append(f"{builder.name}/{source} {len(names)}")
        clips.append(cast(_as_stored(row[audio]), names[-1]))
        labels.append(int(row[label]))
    usable, skipped = find_usable(Arrays(clips, names, modality), progress)
    if not len(usable):
        raise InputError(f"{builder.name} has no readable clip in {source}.")
    clips = Arrays([clips[i] for i in usable], [names[i] for i in usable], modality)
    return Examples(clips, np.array(labels, np.int32)[usable]), skipped


def _as_stored(samples):
    """Return whole numbers, which the features widen, in the 16 or 32 bits that they need."""
    if samples.dtype.kind != "i":
        return samples
    limits = np.iinfo(np.int16)
    fits = samples.min(initial=0) >= limits.min and samples.max(initial=0) <= limits.max
    return samples.astype(np.int16 if fits else np.int32)


def _shards(builder, split):
    """Return the TFRecord files of a split; empty if it has another format."""
    try:
        info = builder.info.splits[split]
        paths = [Path(path) for path in info.filepaths]
    except Exception:  # ImageFolder and mocked datasets have no shards
        return []
    kind = getattr(info.filename_template, "filetype_suffix", None) if paths else None
    return paths if kind == "tfrecord" and all(path.is_file() for path in paths) else []
