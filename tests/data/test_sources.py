"""The same images through every source; and what each source refuses."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from keras_transfer.data import (
    from_arrays,
    from_dataset,
    from_directory,
    from_records,
    from_table,
    from_tfds,
    write_records,
)
from keras_transfer.errors import InputError
from keras_transfer.modalities.image.decode import decode

OPTIONS = dict(image_size=32, batch_size=8)


def batches_of(data):
    """Evaluation batches of each split, and two epochs of training."""
    steps = data.steps("train", 8)
    training = data.batches("train", training=True, seed=3, **OPTIONS).take(2 * steps)
    return [
        (np.asarray(images), np.asarray(labels))
        for stream in (*(data.batches(split, **OPTIONS) for split in data.examples), training)
        for images, labels in stream
    ]


def through(source, folder, tmp_path):
    whole = from_directory(folder, progress=False)
    if source == "csv":
        with (tmp_path / "table.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "label", "split"])
            for path in sorted(folder.rglob("*.*")):
                rows.writerow(
                    [path.relative_to(tmp_path), path.parent.name, path.parent.parent.name]
                )
        return from_table(tmp_path / "table.csv", class_names=whole.class_names, progress=False)
    if source == "tfds":
        import tensorflow_datasets as tfds

        return from_tfds(tfds.ImageFolder(str(folder)), splits={"train": "train", "val": "val"})
    if source == "records":
        write_records(whole, tmp_path / "records", shard_bytes=10_000, progress=False)
        assert len(list((tmp_path / "records").glob("train-*"))) > 2
        return from_records(tmp_path / "records", progress=False)
    arrays = {
        split: ([decode(Path(name).read_bytes()) for name in part.names], part.labels)
        for split, part in whole.examples.items()
    }
    if source == "arrays":
        return from_arrays(**arrays, class_names=whole.class_names, progress=False)
    import tensorflow as tf

    datasets = {
        split: tf.data.Dataset.from_generator(
            lambda part=part: zip(*part),
            output_signature=(
                tf.TensorSpec([None, None, 3], tf.uint8),
                tf.TensorSpec([], tf.int64),
            ),
        )
        for split, part in arrays.items()
    }
    return from_dataset(**datasets, class_names=whole.class_names, progress=False)


@pytest.mark.parametrize("source", ["csv", "tfds", "records", "arrays", "dataset"])
def test_the_same_images_give_the_same_batches(folder, tmp_path, source):
    whole = from_directory(folder, progress=False)
    data = through(source, folder, tmp_path)
    assert data.class_names == whole.class_names
    assert (
        data.counts
        == whole.counts
        == {"train": {"green": 7, "red": 7, "sky": 7}, "val": {"green": 3, "red": 3, "sky": 3}}
    )
    expected = batches_of(whole)
    assert len(expected) == 3 + 2 + 2 * 3
    for (images, labels), (others, other_labels) in zip(expected, batches_of(data), strict=True):
        np.testing.assert_array_equal(labels, other_labels)
        np.testing.assert_array_equal(images, others)
    if source in ("csv", "tfds"):
        assert [Path(s.path).name for s in data.skipped] == ["broken.jpg"]


@pytest.mark.parametrize("source", ["records", "arrays"])
def test_images_in_other_places_train_and_are_cached(folder, tmp_path, source, monkeypatch):
    """Places other than files go through the feature cache and the split too."""
    from keras_transfer.features.extraction import extract
    from keras_transfer.features.prefix import prefix_of
    from keras_transfer.features.store import Store
    from keras_transfer.models.builders import build_model
    from keras_transfer.models.heads import Classification

    whole = from_directory(folder, progress=False)
    data = through(source, folder, tmp_path)
    model = build_model(
        "mobilenet_0.25", Classification(whole.class_names), image_size=32, weights=None
    )
    prefix = prefix_of(model, 14)
    rows = np.arange(21)
    expected, got = (
        extract(prefix, d.examples["train"], store=Store(tmp_path / f"store{i}")).gather(rows)
        for i, d in enumerate((whole, data))
    )
    np.testing.assert_allclose(expected, got, rtol=1e-5, atol=1e-6)


# -- tables ---------------------------------------------------------------------------------------


def test_a_table_may_be_a_mapping_a_frame_or_parquet(folder, tmp_path):
    whole = from_directory(folder, progress=False)
    paths = [str(p) for p in sorted(folder.rglob("*.png"))]
    columns = {
        "file": [str(Path(p).relative_to(folder)) for p in paths],
        "kind": [Path(p).parent.name for p in paths],
    }
    made = [
        from_table(columns, path_column="file", label_column="kind", root=folder, val_split=0.3)
    ]
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(columns)
    made.append(
        from_table(frame, path_column="file", label_column="kind", root=folder, val_split=0.3)
    )
    pytest.importorskip("pyarrow")
    frame.to_parquet(tmp_path / "table.parquet")
    made.append(
        from_table(
            tmp_path / "table.parquet", path_column="file", label_column="kind", root=folder,
            val_split=0.3,
        )
    )  # fmt: skip
    for data in made:
        assert data.class_names == whole.class_names
        names = [name for part in data.examples.values() for name in part.names]
        assert sorted(names) == sorted(paths)


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,label\na.png\n", "row 1 has 1 cells, but the header has 2"),
        ("path,kind\na.png,x\n", "no column 'label'; it has path, kind"),
        ("path,label\na.png,\n", "row 1: label is empty"),
        ("path,label\na.png,x\na.png,y\n", "a.png has two labels, x and y"),
        ("path,label,split\na.png,x,extra\n", "split 'extra' is not train, val or test"),
        ("path,label,split\na.png,x,val\n", "no train rows"),
        ("path,label\n", "has no rows"),
        ("", "is empty"),
        ("path,label\na.png,x\nb.png,x\n", "label has only one class (x)"),
        ("path,label\na.png,x\nb.png,y\n", "no readable image for train"),
    ],
)
def test_tables_that_say_nothing(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        from_table(tmp_path / "t.csv", progress=False)


# -- arrays and data sets -------------------------------------------------------------------------


def random_images(count=8, dtype="uint8"):
    return np.random.default_rng(0).integers(0, 256, (count, 20, 24, 3)).astype(dtype)


def test_grey_images_and_other_number_formats_become_uint8_rgb():
    images, labels = random_images(), ["a", "b"] * 4
    expected = from_arrays((images, labels), progress=False)
    for dtype in ("float32", "int64"):
        data = from_arrays((images.astype(dtype), labels), progress=False)
        for a, b in zip(
            data.examples["train"].images.arrays, expected.examples["train"].images.arrays
        ):
            assert a.dtype == np.uint8
            np.testing.assert_array_equal(a, b)
    grey = from_arrays((images[..., 0], labels), progress=False).examples["train"].images.arrays[0]
    assert grey.shape == (20, 24, 3) and np.ptp(grey, axis=-1).max() == 0


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (random_images() / 255.0, [0, 1] * 4, "multiply by 255"),
        (random_images() + 0.5, [0, 1] * 4, "pass whole numbers 0–255"),
        (random_images(), [0, 1] * 3, "equal length, not 8 and 6"),
        (random_images(), None, "equal length, not 8 and None."),
        (iter([1]), [0] * 8, "must be (images, labels) of equal length, not <list_iterator"),
        (random_images(), [0] * 8, "only one class"),
        (random_images(), [0, 1, -1, 1] * 2, "not among the 2 classes: -1"),
        (random_images()[..., 0, 0], [0, 1] * 4, "not of shape [height, width, channels]"),
    ],
)
def test_arrays_that_are_no_images(images, labels, message):
    with pytest.raises(InputError, match=re.escape(message)):
        from_arrays((images, labels), progress=False)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.xlsx", b"PK", "a.xlsx is not one of .csv"),
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"path,label\n\xff,red\n", "cannot be read as UTF-8 CSV"),
        (
            "a.csv",
            b"path,label\na,b.png,red\n",
            "row 1 has 3 cells, but the header has 2; put quotes",
        ),
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
        ("none.csv", None, "no such file"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        from_table(tmp_path / name, progress=False)


def test_columns_of_another_length():
    with pytest.raises(InputError, match="differ in length: path 2, label 1"):
        from_table({"path": ["a.png", "b.png"], "label": ["red"]}, progress=False)


def test_arrays_given_without_a_tuple_are_told_how():
    with pytest.raises(InputError, match=r"train must be a tuple .* not ndarray: from_arrays\(\("):
        from_arrays(random_images(), [0, 1] * 4, progress=False)
    with pytest.raises(InputError, match="val must be a tuple"):
        from_arrays((random_images(), [0, 1] * 4), random_images(), progress=False)


def test_labels_that_train_does_not_have():
    with pytest.raises(InputError, match="val has labels that are not among the 2 classes: c"):
        from_arrays(
            (random_images(), ["a", "b"] * 4), (random_images(2), ["a", "c"]), progress=False
        )


def test_data_sets_that_cannot_be_read_once():
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((random_images(), np.arange(8) % 2))
    batched = from_dataset(dataset.batch(3))
    assert sum(len(part) for part in batched.examples.values()) == 8
    with pytest.raises(InputError, match="is infinite"):
        from_dataset(dataset.repeat())
    with pytest.raises(InputError, match=r"must yield \(image, label\)"):
        from_dataset(dataset.map(lambda x, y: x))
