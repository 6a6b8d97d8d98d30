"""TFRecords, TensorFlow Datasets, and one name for every source."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_sources import random_images, through

from keras_transfer.data import (
    from_arrays,
    from_directory,
    from_records,
    from_tfds,
    open_data,
    write_records,
)
from keras_transfer.errors import InputError

# -- records --------------------------------------------------------------------------------------


def test_damaged_records_are_skipped_and_named(folder, tmp_path):
    whole = from_directory(folder, progress=False)
    write_records(whole, tmp_path / "r", shard_bytes=1 << 30, progress=False)
    shard = tmp_path / "r" / "train-00000.tfrecord"
    from keras_transfer.data.tfrecord import scan

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
    assert "truncated after 20 records" in read.skipped[0].reason


def test_records_are_whole_or_not_there(folder, tmp_path, monkeypatch):
    whole = from_directory(folder, progress=False)
    Path(whole.examples["val"].names[0]).unlink()
    with pytest.raises(FileNotFoundError):
        write_records(whole, tmp_path / "r", progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images"]
    with pytest.raises(InputError, match="pass a folder of write_records"):
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
    assert type(data.examples["train"].images).__name__ == "Records"
    whole = from_directory(folder, progress=False)
    assert data.counts == whole.counts
    for split in ("train", "val"):
        assert sorted(data.examples[split].digests) == sorted(whole.examples[split].digests)
    again = from_tfds("shapes", data_dir=tmp_path / "tfds", image="photo", label="kind")
    assert again.examples["train"].digests == data.examples["train"].digests
    with pytest.raises(InputError, match="no image called 'image'"):
        from_tfds(builder)
    with pytest.raises(InputError, match="has the splits train, validation"):
        from_tfds(builder, image="photo", label="kind", splits={"train": "all"})


def test_a_builder_of_clips(tmp_path):
    """With the sample rate in the feature, or passed; values are those of the 16-bit samples."""
    pytest.importorskip("soundfile", reason="the extra audio is not installed")
    pytest.importorskip("soxr", reason="the extra audio is not installed")
    import tensorflow_datasets as tfds

    clips = [np.full(400 + 10 * i, 100 * (i + 1), np.int64) for i in range(6)]

    def built(name, rate):
        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "audio": tfds.features.Audio(sample_rate=rate),
                    "label": tfds.features.ClassLabel(names=["high", "low"]),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, clip in enumerate(clips):
                yield i, {"audio": clip, "label": i % 2}

        own = {"VERSION": tfds.core.Version("1.0.0"), "pkg_dir_path": tmp_path, "_info": _info}
        own |= {"_split_generators": _split_generators, "_generate_examples": _generate_examples}
        builder = type(name, (tfds.core.GeneratorBasedBuilder,), own)(data_dir=tmp_path / name)
        builder.download_and_prepare()
        return builder

    builder = built("Clips", 8000)
    data = from_tfds(builder, val_split=0.34, progress=False)
    assert data.modality.name == "audio" and data.class_names == ("high", "low")
    found = [
        (part.images.decoded(i), label)
        for part in data.examples.values()
        for i, label in enumerate(part.labels)
    ]
    assert len(found) == 6
    for (samples, rate), label in found:
        number = (len(samples) - 400) // 10
        assert rate == 8000 and label == number % 2
        np.testing.assert_allclose(samples, 100 * (number + 1) / 32768, rtol=1e-6)
    unknown = built("Untold", None)
    with pytest.raises(InputError, match="does not state the sample rate of audio: pass rate="):
        from_tfds(unknown, progress=False)
    given = from_tfds(unknown, rate=4000, val_split=0.34, progress=False)
    assert given.examples["train"].images.decoded(0)[1] == 4000


def test_a_mocked_data_set():
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=60):
        data = from_tfds(
            "mnist", splits={"train": "train", "test": "test"}, val_split=0.25, progress=False
        )
    assert len(data.class_names) == 10
    assert sum(len(part) for part in data.examples.values()) == 120


def test_a_name_that_is_no_data_set(tmp_path):
    with pytest.raises(InputError, match="TensorFlow Datasets has no dataset named"):
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
    with pytest.raises(InputError, match=r"is a table: mark its validation examples there"):
        open_data(tmp_path / "table.csv", val=folder, progress=False)
    with pytest.raises(InputError, match="no such folder"):
        open_data(tmp_path / "nothing", progress=False)


def test_the_command_trains_on_a_table(folder, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from keras_transfer.cli.main import app

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

    from keras_transfer.cli.main import app

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
    assert measured["images"] == said["images"]["val"]
    assert measured["mae"] == pytest.approx(said["val"]["mae"], rel=1e-3)
    assert json.loads(runner.invoke(app, again).stdout)["images"] == len(splits)
    wrong = runner.invoke(app, [*again, "--split", "test"])
    assert "has no split test" in str(wrong.exception)
    wrong = runner.invoke(app, ["evaluate", str(tmp_path / "run"), str(folder)])
    assert "pass a table" in str(wrong.exception)
    wrong = runner.invoke(app, ["check", str(folder), "--column", "path=file"])
    assert "train would stop" in wrong.output and "is not a table" in wrong.output
    wrong = runner.invoke(app, [*arguments, "--column", "file"])
    assert "use KIND=NAME" in str(wrong.exception)


def test_the_command_trains_two_heads_of_a_table(folder, tmp_path, monkeypatch):
    """Each `--column` of labels is a head; `evaluate` and `report` read the same columns again."""
    from typer.testing import CliRunner

    from keras_transfer.cli.main import app

    table, run = tmp_path / "table.csv", tmp_path / "run"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "colour", "size", "tags"])
        for i, path in enumerate(sorted(folder.rglob("*.png"))):
            tags = "odd|small" if i % 2 else "big" if i % 3 else "small"
            rows.writerow([path.relative_to(tmp_path), path.parent.name, i, tags])
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path / "cache"))
    runner = CliRunner()

    def invoke(*arguments):
        result = runner.invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    columns = ["--column", "path=file", "--column", "label=colour", "--column", "targets=size"]
    checked = json.loads(invoke("check", table, *columns, "--json"))
    assert (
        "colour: green" in checked["labels"]["train"] and "size: size" in checked["labels"]["train"]
    )
    options = [
        "--backbone",
        "mobilenet_0.25",
        "--weights",
        "none",
        "--image-size",
        "32",
        "--val-split",
        "0.3",
    ]
    options += ["--strategy", "feature_extraction"]
    said = invoke("train", table, "--out", run, *options, *columns)
    assert "colour_accuracy" in said and "size_mae" in said
    measured = json.loads(invoke("evaluate", run, table, "--split", "val", "--json"))
    assert set(measured["heads"]) == {"colour", "size"}
    invoke("evaluate", run, table, "--column", "path=file")  # the labels are those of the run
    invoke("report", run)
    named = ["path=file", "what.label=colour", "many.labels=tags", "long.targets=size"]
    columns = [part for pair in named for part in ("--column", pair)]
    said = invoke("train", table, "--out", tmp_path / "named", *options, *columns)
    assert "what_accuracy" in said and "many_map" in said and "long_mae" in said
    wrong = runner.invoke(app, ["evaluate", str(run), str(table), *columns])
    assert "expected is the heads colour, size" in str(wrong.exception)


def test_any_labels_go_through_records_and_arrays(tmp_path):
    """Several labels, numbers and several heads, to the bit."""
    from keras_transfer.data import Examples, ImageData, Target
    from keras_transfer.data.arrays import Arrays

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
        images = Arrays(list(random_images()))
        data = ImageData((), {"train": Examples(images, values)}, [], "", target)
        write_records(data, tmp_path / name, progress=False)
        read = from_records(tmp_path / name, val_split=0.25, progress=False)
        assert read.targets == target
        found = {n: i for i, n in enumerate(images.names)}
        for part in read.examples.values():
            rows = [found[n] for n in part.names]
            for key in labels if isinstance(values, dict) else [None]:
                a, b = (part.labels, values) if key is None else (part.labels[key], values[key])
                np.testing.assert_array_equal(a, b[rows])
                assert a.dtype == b.dtype
    tagged = from_arrays(
        (random_images(), several), task="multi_label", class_names="xyz", val_split=0.25
    )
    assert tagged.targets == targets["tags"]
    measured = from_arrays((random_images(), numbers[:, 0]), task="regression", val_split=0.25)
    assert measured.examples["train"].labels.shape[1] == 1
    with pytest.raises(InputError, match="must be 0 or 1"):
        from_arrays((random_images(), numbers), task="multi_label")
    with pytest.raises(InputError, match="finite numbers"):
        from_arrays((random_images(), numbers * np.nan), task="regression")


@pytest.mark.parametrize("text", ["{}", "[1]", "{", '{"targets": {}}'])
def test_a_schema_of_something_else_is_said(colours, text):
    (colours / "schema.json").write_text(text)
    with pytest.raises(
        InputError, match=r"schema.json is not one of write_records: .* move it away"
    ):
        open_data(colours)
