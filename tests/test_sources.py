"""The same pictures through every source; and what each source refuses."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_picture

from keras_transfer.data import (
    from_arrays,
    from_dataset,
    from_directory,
    from_records,
    from_table,
    from_tfds,
    open_data,
    write_records,
)
from keras_transfer.data.decode import decode
from keras_transfer.errors import InputError

OPTIONS = dict(image_size=32, batch_size=8)


@pytest.fixture
def folder(tmp_path):
    """train and val of three classes, JPEG and PNG, of several sizes; one file is broken."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 3)):
        for label, colour in (
            ("red", (200, 30, 30)),
            ("green", (30, 180, 40)),
            ("sky", (90, 150, 240)),
        ):
            for i in range(count):
                size = tuple(int(x) for x in rng.integers(30, 70, 2))
                kind = "jpg" if i % 2 else "png"
                path = tmp_path / "pictures" / split / label / f"{i}.{kind}"
                write_picture(path, colour, size=size, seed=i)
    (tmp_path / "pictures/train/green/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    return tmp_path / "pictures"


def batches_of(data):
    """Evaluation batches of each split, and two epochs of training."""
    steps = data.steps("train", 8)
    training = data.batches("train", training=True, seed=3, **OPTIONS).take(2 * steps)
    return [
        (np.asarray(pictures), np.asarray(labels))
        for stream in (*(data.batches(split, **OPTIONS) for split in data.examples), training)
        for pictures, labels in stream
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
def test_the_same_pictures_give_the_same_batches(folder, tmp_path, source):
    whole = from_directory(folder, progress=False)
    data = through(source, folder, tmp_path)
    assert data.class_names == whole.class_names
    assert (
        data.counts
        == whole.counts
        == {
            "train": {"green": 7, "red": 7, "sky": 7},
            "val": {"green": 3, "red": 3, "sky": 3},
        }
    )
    expected = batches_of(whole)
    assert len(expected) == 3 + 2 + 2 * 3
    for (pictures, labels), (others, other_labels) in zip(expected, batches_of(data), strict=True):
        np.testing.assert_array_equal(labels, other_labels)
        np.testing.assert_array_equal(pictures, others)
    if source in ("csv", "tfds"):
        assert [Path(s.path).name for s in data.skipped] == ["broken.jpg"]


@pytest.mark.parametrize("source", ["records", "arrays"])
def test_pictures_in_other_places_train_and_are_cached(folder, tmp_path, source, monkeypatch):
    """Places other than files go through the feature cache and the split too."""
    from keras_transfer.builders import build_model
    from keras_transfer.features.extraction import extract
    from keras_transfer.features.prefix import prefix_of
    from keras_transfer.features.store import Store
    from keras_transfer.heads import Classification

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
        ("path,label,split\na.png,x,extra\n", "split 'extra' is none of train, val, test"),
        ("path,label,split\na.png,x,val\n", "no row of train"),
        ("path,label\n", "has no rows"),
        ("", "is empty"),
        ("path,label\na.png,x\nb.png,x\n", "label has one class only (x)"),
        ("path,label\na.png,x\nb.png,y\n", "no readable picture of train"),
    ],
)
def test_tables_that_say_nothing(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        from_table(tmp_path / "t.csv", progress=False)


# -- arrays and data sets -------------------------------------------------------------------------


def _pictures(count=8, dtype="uint8"):
    return np.random.default_rng(0).integers(0, 256, (count, 20, 24, 3)).astype(dtype)


def test_grey_pictures_and_other_number_formats_become_uint8_rgb():
    pictures, labels = _pictures(), ["a", "b"] * 4
    expected = from_arrays((pictures, labels), progress=False)
    for dtype in ("float32", "int64"):
        data = from_arrays((pictures.astype(dtype), labels), progress=False)
        for a, b in zip(
            data.examples["train"].pictures.arrays, expected.examples["train"].pictures.arrays
        ):
            assert a.dtype == np.uint8
            np.testing.assert_array_equal(a, b)
    grey = (
        from_arrays((pictures[..., 0], labels), progress=False).examples["train"].pictures.arrays[0]
    )
    assert grey.shape == (20, 24, 3) and np.ptp(grey, axis=-1).max() == 0


@pytest.mark.parametrize(
    "pictures, labels, message",
    [
        (_pictures() / 255.0, [0, 1] * 4, "multiply by 255"),
        (_pictures() + 0.5, [0, 1] * 4, "give whole numbers 0–255"),
        (_pictures(), [0, 1] * 3, "one length, not 8 and 6"),
        (_pictures(), [0] * 8, "only one class"),
        (_pictures(), [0, 1, -1, 1] * 2, "none of the 2 classes: -1"),
        (_pictures()[..., :2], [0, 1] * 4, "not of shape [height, width, 3]"),
    ],
)
def test_arrays_that_are_no_pictures(pictures, labels, message):
    with pytest.raises(InputError, match=re.escape(message)):
        from_arrays((pictures, labels), progress=False)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.xlsx", b"PK", "a.xlsx is none of .csv"),
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
        from_arrays(_pictures(), [0, 1] * 4, progress=False)
    with pytest.raises(InputError, match="val must be a tuple"):
        from_arrays((_pictures(), [0, 1] * 4), _pictures(), progress=False)


def test_labels_that_train_does_not_have():
    with pytest.raises(InputError, match="val has labels that are none of the 2 classes: c"):
        from_arrays((_pictures(), ["a", "b"] * 4), (_pictures(2), ["a", "c"]), progress=False)


def test_data_sets_that_cannot_be_read_once():
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((_pictures(), np.arange(8) % 2))
    with pytest.raises(InputError, match=r"\.unbatch\(\)"):
        from_dataset(dataset.batch(2))
    with pytest.raises(InputError, match="is infinite"):
        from_dataset(dataset.repeat())
    with pytest.raises(InputError, match=r"must give \(picture, label\)"):
        from_dataset(dataset.map(lambda x, y: x))


# -- records --------------------------------------------------------------------------------------


def test_damaged_records_are_skipped_and_named(folder, tmp_path):
    whole = from_directory(folder, progress=False)
    write_records(whole, tmp_path / "r", shard_bytes=1 << 30, progress=False)
    shard = tmp_path / "r" / "train-00000.tfrecord"
    from keras_transfer.data.records import scan

    places = scan(shard)
    assert len(places) == 21
    data = bytearray(shard.read_bytes())
    offset, length = places[4]
    data[offset : offset + length] = bytes(length)  # one record of zeros
    shard.write_bytes(bytes(data[: places[20][0] + 5]))  # and the last one is cut short
    read = from_records(tmp_path / "r", progress=False)
    assert len(read.examples["train"]) == 19
    assert [Path(s.path).name for s in read.skipped] == [
        "train-00000.tfrecord",
        "train-00000.tfrecord#4",
    ]
    assert "cut short after 20 records" in read.skipped[0].reason


def test_records_are_whole_or_not_there(folder, tmp_path, monkeypatch):
    whole = from_directory(folder, progress=False)
    Path(whole.examples["val"].names[0]).unlink()
    with pytest.raises(FileNotFoundError):
        write_records(whole, tmp_path / "r", progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pictures"]
    with pytest.raises(InputError, match="give a folder of write_records"):
        from_records(tmp_path, progress=False)


def test_a_missing_shard_is_named(folder, tmp_path):
    write_records(from_directory(folder, progress=False), tmp_path / "r", progress=False)
    (tmp_path / "r/val-00000.tfrecord").unlink()
    with pytest.raises(InputError, match=r"lacks val-00000\.tfrecord"):
        from_records(tmp_path / "r", progress=False)


# -- TensorFlow Datasets --------------------------------------------------------------------------


def test_a_builder_in_record_files_is_read_at_random(folder, tmp_path):
    """One of the user's own, prepared from local files."""
    import tensorflow_datasets as tfds

    class Shapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path  # it lies in no package

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "photo": tfds.features.Image(),
                    "kind": tfds.features.ClassLabel(names=["green", "red", "sky"]),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._of("train"), "validation": self._of("val")}

        def _of(self, split):
            for path in sorted((folder / split).rglob("*.*")):
                if path.name != "broken.jpg":
                    yield str(path), {"photo": str(path), "kind": path.parent.name}

        def _generate_examples(self):
            raise AssertionError("the splits have generators of their own")

    builder = Shapes(data_dir=tmp_path / "tfds")
    builder.download_and_prepare()
    data = from_tfds(builder, image="photo", label="kind", progress=False)
    assert type(data.examples["train"].pictures).__name__ == "Records"
    whole = from_directory(folder, progress=False)
    assert data.counts == whole.counts
    for split in ("train", "val"):
        assert sorted(data.examples[split].digests) == sorted(whole.examples[split].digests)
    again = from_tfds("shapes", data_dir=tmp_path / "tfds", image="photo", label="kind")
    assert again.examples["train"].digests == data.examples["train"].digests
    with pytest.raises(InputError, match="no picture called 'image'"):
        from_tfds(builder)
    with pytest.raises(InputError, match="has the splits train, validation"):
        from_tfds(builder, image="photo", label="kind", splits={"train": "all"})


def test_a_mocked_data_set():
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=60):
        data = from_tfds(
            "mnist", splits={"train": "train", "test": "test"}, val_split=0.25, progress=False
        )
    assert len(data.class_names) == 10
    assert sum(len(part) for part in data.examples.values()) == 120


def test_a_name_that_is_no_data_set(tmp_path):
    with pytest.raises(InputError, match="TensorFlow Datasets has none of this name"):
        from_tfds("no_such_data_set_at_all", data_dir=tmp_path)


def test_a_folder_that_moved_gives_the_same_data(folder, tmp_path):
    """Names differ, numbers do not."""
    first = from_directory(folder, progress=False).fingerprint()
    shutil.move(folder, tmp_path / "moved")
    second = from_directory(tmp_path / "moved", progress=False)
    assert first == second.fingerprint()


# -- one name for all -----------------------------------------------------------------------------


def test_a_path_or_name_opens_what_it_stands_for(folder, tmp_path):
    import tensorflow_datasets as tfds

    whole = from_directory(folder, progress=False)
    for source in ("csv", "records"):
        through(source, folder, tmp_path)
    for path in (folder, tmp_path / "table.csv", tmp_path / "records"):
        assert open_data(path, progress=False).counts == whole.counts
    with tfds.testing.mock_data(num_examples=60), pytest.raises(InputError, match="mnist has the"):
        open_data("tfds:mnist", progress=False)
    with pytest.raises(InputError, match=r"is a table: mark its validation pictures there"):
        open_data(tmp_path / "table.csv", val=folder, progress=False)
    with pytest.raises(InputError, match="no such folder"):
        open_data(tmp_path / "nothing", progress=False)


def test_the_command_trains_on_a_table(folder, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from keras_transfer.cli import app

    through("csv", folder, tmp_path)
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path / "cache"))
    options = (
        "--backbone mobilenet_0.25 --weights none --image-size 32 --strategy feature_extraction"
    )
    arguments = ["train", str(tmp_path / "table.csv"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*arguments, *options.split()])
    assert result.exit_code == 0 and "val accuracy" in result.stdout, result.output


def test_the_command_trains_on_other_columns(folder, tmp_path, monkeypatch):
    """Numbers in columns of other names, and nobody on both sides."""
    from typer.testing import CliRunner

    from keras_transfer.cli import app

    with (tmp_path / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "redness", "size", "person"])
        for i, path in enumerate(sorted(folder.rglob("*.png"))):
            red = int(path.parent.name == "red") + 0.1 * i
            rows.writerow([path.relative_to(tmp_path), red, i, f"p{i % 6}"])
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path / "cache"))
    columns = ["path=file", "targets=redness,size", "group=person"]
    options = (
        "--backbone mobilenet_0.25 --weights none --image-size 32 --strategy feature_extraction"
    )
    arguments = [
        "train",
        str(tmp_path / "table.csv"),
        "--out",
        str(tmp_path / "run"),
        *options.split(),
    ]
    runner = CliRunner()
    result = runner.invoke(app, [*arguments, *(x for c in columns for x in ("--column", c))])
    assert result.exit_code == 0 and "r2" in result.stdout, result.output
    with (tmp_path / "run" / "split.csv").open() as file:
        splits = {row["path"]: row["split"] for row in csv.DictReader(file)}
    with (tmp_path / "table.csv").open() as file:
        people = {row["file"]: row["person"] for row in csv.DictReader(file)}
    sides = {}
    for path, side in splits.items():
        sides.setdefault(people[path], set()).add(side)
    assert len(sides) == 6 and all(len(side) == 1 for side in sides.values())
    assert {side for s in sides.values() for side in s} == {"train", "val"}
    # Measured on its own table it is what training said.
    again = ["evaluate", str(tmp_path / "run"), str(tmp_path / "table.csv"), "--json"]
    measured = json.loads(runner.invoke(app, [*again, "--split", "val"]).stdout)
    said = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert measured["pictures"] == said["images"]["val"]
    assert measured["mae"] == pytest.approx(said["val"]["mae"], rel=1e-3)
    assert json.loads(runner.invoke(app, again).stdout)["pictures"] == len(splits)
    wrong = runner.invoke(app, [*again, "--split", "test"])
    assert "has no split test" in str(wrong.exception)
    wrong = runner.invoke(app, ["evaluate", str(tmp_path / "run"), str(folder)])
    assert "give a table" in str(wrong.exception)
    wrong = runner.invoke(app, ["check", str(folder), "--column", "path=file"])
    assert "train would stop" in wrong.output and "is no table" in wrong.output
    wrong = runner.invoke(app, [*arguments, "--column", "file"])
    assert "give KIND=NAME" in str(wrong.exception)


def test_any_labels_go_through_records_and_arrays(tmp_path):
    """Several labels, numbers and several heads, to the bit."""
    from keras_transfer.data import Examples, ImageData, Target
    from keras_transfer.data.pictures import Arrays

    rng = np.random.default_rng(0)
    several, numbers = (rng.random((8, 3)) < 0.5).astype("float32"), rng.normal(0, 9, (8, 2))
    numbers = numbers.astype("float32")
    classes = np.arange(8, dtype="int32") % 2
    targets = {
        "kind": Target("single_label", ("a", "b")),
        "tags": Target("multi_label", ("x", "y", "z")),
        "sizes": Target("regression", ("w", "h")),
    }
    labels = {"kind": classes, "tags": several, "sizes": numbers}
    for name, (target, values) in {
        "heads": (targets, labels),
        **{name: (targets[name], labels[name]) for name in targets},
    }.items():
        pictures = Arrays(list(_pictures()))
        data = ImageData((), {"train": Examples(pictures, values)}, [], "", target)
        write_records(data, tmp_path / name, progress=False)
        read = from_records(tmp_path / name, val_split=0.25, progress=False)
        assert read.targets == target
        found = {n: i for i, n in enumerate(pictures.names)}
        for part in read.examples.values():
            rows = [found[n] for n in part.names]
            for key in labels if isinstance(values, dict) else [None]:
                a, b = (part.labels, values) if key is None else (part.labels[key], values[key])
                np.testing.assert_array_equal(a, b[rows])
                assert a.dtype == b.dtype
    tagged = from_arrays(
        (_pictures(), several), task="multi_label", class_names="xyz", val_split=0.25
    )
    assert tagged.targets == targets["tags"]
    measured = from_arrays((_pictures(), numbers[:, 0]), task="regression", val_split=0.25)
    assert measured.examples["train"].labels.shape[1] == 1
    with pytest.raises(InputError, match="must be 0 or 1"):
        from_arrays((_pictures(), numbers), task="multi_label")
    with pytest.raises(InputError, match="finite numbers"):
        from_arrays((_pictures(), numbers * np.nan), task="regression")
