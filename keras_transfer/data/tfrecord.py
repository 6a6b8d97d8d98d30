"""TFRecord shards as a source: written from any dataset, read with random access."""

import json
import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_transfer.data.arrays import find_usable
from keras_transfer.data.examples import Examples, ImageData, Target, join_labels, map_labels
from keras_transfer.data.files import SCHEMA, Skipped
from keras_transfer.data.readers import Encoded, encoded_bytes
from keras_transfer.data.split_rule import SplitRule, divide
from keras_transfer.errors import InputError
from keras_transfer.modalities import find_modality
from keras_transfer.utils.console import progress_bar
from keras_transfer.utils.files import new_folder
from keras_transfer.utils.names import make_options

# The schema: one `tf.train.Example` per image, with the names of TensorFlow's conversion scripts.
IMAGE, LABEL, NAME = "image/encoded", "image/class/label", "image/filename"
_SHARD = 128 << 20  # bytes: large enough to read fast, small enough to move
_HEADER, _FOOTER = 12, 4  # of a record: length and its CRC; CRC of the data


class Records(Encoded):
    """A reader of images in TFRecord shards.

    Args:
        shards: paths.
        places: int64 [N, 3]: number of the shard, offset and length of each record's data.
        names: for messages and predictions.
        image_key: feature of the encoded image.
    """

    modality = find_modality("image")

    def __init__(self, shards, places: np.ndarray, names: Sequence[str], image_key: str = IMAGE):
        self.shards = [str(shard) for shard in shards]
        self.places, self.names, self.image_key = places, list(names), image_key
        self._files: dict = {}
        self._lock = threading.Lock()

    def contents(self, index: int) -> bytes:
        return _one(self.features(index), self.image_key, "bytes_list")

    def take(self, indices) -> "Records":
        names = [self.names[i] for i in indices]
        return Records(self.shards, self.places[indices], names, self.image_key)

    def features(self, index: int):
        """Return the features of a record's `tf.train.Example`, by name; a ValueError says why not."""
        import tensorflow as tf
        from google.protobuf.message import DecodeError

        shard, offset, length = self.places[index]
        with self._lock:
            if shard not in self._files:
                self._files[shard] = Path(self.shards[shard]).open("rb")  # noqa: SIM115
        data = os.pread(self._files[shard].fileno(), int(length), int(offset))
        if len(data) < length:
            raise ValueError("the shard is truncated")
        try:
            return tf.train.Example.FromString(data).features.feature
        except DecodeError:
            raise ValueError("not a tf.train.Example") from None


def scan(shard) -> np.ndarray:
    """Return (offset, length) of each complete record's data in a TFRecord file, int64 [N, 2]."""
    records, position = [], 0
    size = Path(shard).stat().st_size
    with Path(shard).open("rb") as file:
        while position + _HEADER <= size:
            file.seek(position)
            (length,) = struct.unpack("<Q", file.read(8))
            if position + _HEADER + length + _FOOTER > size:
                break
            records.append((position + _HEADER, length))
            position += _HEADER + length + _FOOTER
    return np.array(records, np.int64).reshape(-1, 2)


def write_records(
    data: ImageData, out, *, shard_bytes: int = _SHARD, progress: bool = True
) -> Path:
    """Write a dataset as TFRecord shards, `OUT/train-00000.tfrecord` and so on, with its schema.

    Encoded images are copied, arrays are written as PNG, so nothing is lost. Each record is a
    `tf.train.Example` with `image/encoded`, `image/filename` and `image/class/label`: an integer, or 0
    and 1, or numbers (float); with several heads `image/class/label/HEAD`.

    Args:
        data: a dataset from any source.
        out: a folder that does not exist; it appears when it is complete.
        shard_bytes: minimum size of a shard, except for the last one of a split.

    Raises:
        InputError: if `out` exists, the examples are not images, or one can no longer be read.
    """
    if data.modality is not Records.modality:
        raise InputError(f"TFRecord shards contain images, not {data.modality.many}: use files.")
    out = Path(out).expanduser()
    with new_folder(out) as temporary:
        shards = {
            split: _write_split(examples, temporary, split, shard_bytes, progress)
            for split, examples in data.examples.items()
        }
        targets = data.targets if isinstance(data.targets, dict) else {"": data.targets}
        written = {head: [target.task, target.names] for head, target in targets.items()}
        schema = {"targets": written, "shards": shards}
        (temporary / SCHEMA).write_text(json.dumps(schema, indent=2), encoding="utf-8")
    return out


def from_records(folder, *, progress: bool = True, **rule) -> ImageData:
    """Open the TFRecord shards of `write_records`.

    Records are read by their offsets, so order, splits and augmentation work as for other sources.

    Args:
        folder: a folder of `write_records`.
        progress: show a bar on stderr, in a terminal or a notebook.
        rule: fields of `SplitRule` (`val_split=0.2`, …), which draw the missing splits.

    Raises:
        InputError: if it is not such a folder, or a shard is missing.
    """
    folder = Path(folder).expanduser()
    try:
        schema = json.loads((folder / SCHEMA).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{folder} has no {SCHEMA} ({error.strerror}): pass a folder of write_records."
        ) from None
    except ValueError:
        schema = None
    if not isinstance(schema, dict) or not {"targets", "shards"} <= schema.keys():
        raise InputError(
            f"{folder / SCHEMA} is not one of write_records: restore it, or move it away if these are "
            "class folders."
        )
    target = {head: Target(*fields) for head, fields in schema["targets"].items()}
    target = target.get("", target)
    examples, skipped = {}, []
    for split, shards in schema["shards"].items():
        missing = [shard for shard in shards if not (folder / shard).is_file()]
        if missing:
            raise InputError(f"{folder} lacks {missing[0]}: copy the whole folder.")
        paths = [folder / shard for shard in shards]
        examples[split], faulty = read_shards(paths, target, split=split, progress=progress)
        skipped += faulty
    return divide(target, examples, skipped, folder, make_options(SplitRule, rule, "from_records"))


def read_shards(
    shards: Sequence[Path],
    target: Target | dict[str, Target],
    *,
    split: str,
    image_key: str = IMAGE,
    label_key: str = LABEL,
    progress: bool = True,
) -> tuple[Examples, list[Skipped]]:
    """Return the images of some shards that can be decoded, and the others with the reason."""
    places, names, labels, skipped = [], [], [], []
    for number, shard in enumerate(shards):
        spans = scan(shard)
        end = int(spans[-1].sum()) + _FOOTER if len(spans) else 0
        if end < shard.stat().st_size:
            skipped.append(Skipped(str(shard), f"truncated after {len(spans)} records"))
        records = Records([shard], np.insert(spans, 0, 0, axis=1), [""] * len(spans))
        for row, (offset, length) in enumerate(spans):
            name = f"{shard}#{row}"
            try:
                features = records.features(row)
                label = _label(features, label_key, target)
            except ValueError as error:
                skipped.append(Skipped(name, str(error)))
                continue
            stored = features[NAME].bytes_list.value if NAME in features else ()
            names.append(os.fsdecode(stored[0]) if stored else name)
            places.append((number, offset, length))
            labels.append(label)
    whole = Records(shards, np.array(places, np.int64).reshape(-1, 3), names, image_key)
    good, faulty = find_usable(whole, progress)
    skipped += faulty
    if not len(good):
        why = f" ({skipped[0].path}: {skipped[0].reason})" if skipped else ""
        raise InputError(f"The {split} shards contain no readable image{why}.")
    return Examples(whole.take(good), join_labels([labels[i] for i in good])), skipped


def _write_split(examples, folder, split, shard_bytes, progress):
    import tensorflow as tf

    shards, size, writer = [], shard_bytes, None
    rows = progress_bar(range(len(examples)), f"writing {split}", unit="images", visible=progress)
    for index in rows:
        if size >= shard_bytes:
            if writer:
                writer.close()
            shards.append(f"{split}-{len(shards):05}.tfrecord")
            writer, size = tf.io.TFRecordWriter(os.fsencode(folder / shards[-1])), 0
        values = {
            IMAGE: encoded_bytes(examples.images, index),
            NAME: os.fsencode(examples.names[index]),
        }
        label = map_labels(lambda array: array[index], examples.labels)  # noqa: B023
        if isinstance(label, dict):
            values |= {f"{LABEL}/{head}": value for head, value in label.items()}
        else:
            values[LABEL] = label
        record = tf.train.Example(
            features=tf.train.Features(feature={k: _feature(v) for k, v in values.items()})
        ).SerializeToString()
        writer.write(record)
        size += len(record)
    if writer:
        writer.close()
    return shards


def _label(features, key, target):
    """Return the labels of one record as an array of one row; with several heads a dict."""
    if isinstance(target, dict):
        return {head: _label(features, f"{key}/{head}", one) for head, one in target.items()}
    count = len(target.names)
    if target.task == "single_label":
        label = _one(features, key, "int64_list")
        if not 0 <= label < count:
            raise ValueError(f"label {label}, but there are {count} classes")
        return np.array([label], np.int32)
    values = features[key].float_list.value if key in features else ()
    if len(values) != count:
        raise ValueError(f"{len(values)} values of {key}, not {count}")
    return np.array([values], np.float32)


def _one(features, key, kind):
    values = getattr(features[key], kind).value if key in features else ()
    if len(values) != 1:
        raise ValueError(f"{len(values)} values of {key}, not one")
    return values[0]


def _feature(value):
    import tensorflow as tf

    if isinstance(value, bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    if np.issubdtype(value.dtype, np.integer):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value)]))
    return tf.train.Feature(float_list=tf.train.FloatList(value=value.tolist()))
