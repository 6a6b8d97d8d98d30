"""Datasets of Hugging Face: folders made by `datasets`, read offline."""

import io
import wave

import numpy as np
import pytest
from conftest import raises, write_colours
from PIL import Image

from keras_transfer.data import Target, from_hf, open_data, open_labeled

datasets = pytest.importorskip("datasets", reason="datasets is not installed")
COLOURS = ("blue", "green", "red")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(colour, seed) -> bytes:
    noise = np.random.default_rng(seed).integers(-20, 20, (40, 48, 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype("uint8")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def images(count=8, **more):
    """`count` images of each colour, with more columns: name → (feature, values)."""
    labels = [label for label in range(3) for _ in range(count)]
    colours = np.eye(3, dtype=int)[::-1] * 160 + 40
    columns = {
        "picture": [{"bytes": png(colours[v], i), "path": None} for i, v in enumerate(labels)],
        "colour": labels,
        **{name: values for name, (_, values) in more.items()},
    }
    features = {
        "picture": datasets.Image(),
        "colour": datasets.ClassLabel(names=list(COLOURS)),
        **{name: feature for name, (feature, _) in more.items()},
    }
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def test_a_saved_dataset_is_opened_with_its_splits_and_its_revision(tmp_path):
    made = datasets.DatasetDict({"train": images(), "validation": images(3)})
    made.save_to_disk(tmp_path / "saved")
    data = open_data(f"hf:{tmp_path / 'saved'}", progress=False)
    assert data.class_names == COLOURS and data.modality.name == "image"
    assert data.counts == {s: dict.fromkeys(COLOURS, n) for s, n in (("train", 8), ("val", 3))}
    for part in data.examples.values():
        for i in range(len(part)):
            mean = part.images.decoded(i).mean(axis=(0, 1))
            assert np.argmax(mean[::-1]) == part.labels[i]
    assert data.source["data"] == f"hf:{tmp_path / 'saved'}" and data.source["revision"]
    again = open_data(f"hf:{tmp_path / 'saved'}", progress=False)
    assert again.fingerprint() == data.fingerprint() and again.source == data.source
    evaluated = open_labeled(f"hf:{tmp_path / 'saved'}", data.targets, progress=False)
    assert {s: len(part) for s, part in evaluated.examples.items()} == {"val": 9}
    with raises("has other labels than the model"):
        open_labeled(f"hf:{tmp_path / 'saved'}", Target("single_label", ("a", "b")), progress=False)


def test_datasets_without_a_split_to_train_on_can_be_evaluated(tmp_path):
    target = Target("single_label", COLOURS)
    some = images(3).filter(lambda row: row["colour"] > 0)
    datasets.DatasetDict({"validation": images(2), "test": some}).save_to_disk(tmp_path / "saved")
    for split, counts in (("test", (0, 3, 3)), ("val", (2, 2, 2))):
        data = open_labeled(f"hf:{tmp_path / 'saved'}", target, split=split, progress=False)
        assert data.targets == target and data.counts == {split: dict(zip(COLOURS, counts))}
    with raises("but no train"):
        open_data(f"hf:{tmp_path / 'saved'}", progress=False)
    with raises("green"):
        open_labeled(
            f"hf:{tmp_path / 'saved'}", Target("single_label", ("blue", "red")), progress=False
        )


def test_two_columns_of_texts_are_pairs():
    names = datasets.ClassLabel(names=["no", "yes"])
    rows = {"premise": list("abcdefgh"), "claim": list("abcdabcd"), "label": [1] * 4 + [0] * 4}
    features = {**dict.fromkeys(("premise", "claim"), datasets.Value("string")), "label": names}
    made = datasets.Dataset.from_dict(rows, datasets.Features(features))
    data = from_hf(made, text_column=["premise", "claim"], val_split=0.25, progress=False)
    train = data.examples["train"]
    found = {train.images.decoded(i) for i in range(len(train))}
    assert data.counts["train"] == {"no": 3, "yes": 3}
    assert found < {f"{a}\x1f{b}" for a, b in zip("abcdefgh", "abcdabcd")}
    blank = datasets.Dataset.from_dict({**rows, "claim": [*"abc ab", None, "d"]}, made.features)
    data = from_hf(blank, text_column=["premise", "claim"], val_split=0.4, progress=False)
    assert [(one.path, one.reason) for one in data.skipped] == [
        ("the dataset/train 3", "empty text"),
        ("the dataset/train 6", "empty text"),
    ]
    with raises("has no column 'claims'"):
        from_hf(made, text_column=["premise", "claims"], progress=False)
    numbers = made.add_column("number", list(range(8)))
    for options, part in (
        (dict(path_column=["premise", "claim"]), "path_column must be the name of one column"),
        (dict(path_column="premise", text_column="claim"), "not both"),
        (dict(text_column=["premise", "number"]), "the column number has no texts"),
    ):
        with raises(part):
            from_hf(numbers, progress=False, **options)


def test_large_strings_are_texts():
    rows = {"text": list("abcdefgh"), "label": [1] * 4 + [0] * 4}
    features = {"text": datasets.Value("large_string"), "label": datasets.Value("int64")}
    made = datasets.Dataset.from_dict(rows, datasets.Features(features))
    assert from_hf(made, progress=False).modality.name == "text"


def test_an_image_folder_and_parquet_as_datasets_reads_them(tmp_path):
    write_colours(tmp_path / "train_folder" / "train")
    data = from_hf(str(tmp_path / "train_folder"), progress=False, val_split=0.25)
    assert data.counts["train"] == dict.fromkeys(COLOURS, 9)
    (tmp_path / "parquet").mkdir()
    images().to_parquet(tmp_path / "parquet" / "train-00000.parquet")
    data = from_hf(str(tmp_path / "parquet"), progress=False, val_split=0.25)
    assert data.counts["train"] == dict.fromkeys(COLOURS, 6)
    folder = tmp_path / "metadata"
    write_colours(folder)
    rows = ["file_name,sharpness"]
    rows += [
        f"{path.relative_to(folder).as_posix()},{i / 36}"
        for i, path in enumerate(sorted(folder.rglob("*.png")))
    ]
    (folder / "metadata.csv").write_text("\n".join(rows))
    data = from_hf(str(folder), targets=["sharpness"], progress=False)
    assert data.task == "regression" and sum(len(part) for part in data.examples.values()) == 36


def test_several_labels_numbers_missing_labels_groups_and_bad_images():
    tags = datasets.Sequence(datasets.ClassLabel(names=["bright", "dark"]))
    more = {
        "tags": (tags, [[0], [1], [0, 1]] * 8),
        "weight": (datasets.Value("float32"), np.linspace(0, 1, 24).tolist()),
        "person": (datasets.Value("string"), [f"p{i % 6}" for i in range(24)]),
    }
    dataset = images(**more)
    data = from_hf(dataset, label_columns="tags", progress=False)
    assert data.task == "multi_label" and data.class_names == ("bright", "dark")
    assert from_hf(dataset, targets=["weight"], progress=False).task == "regression"
    data = from_hf(dataset, label_column="colour", group_column="person", progress=False)
    people = [
        {dataset["person"][int(name.split()[-1])] for name in part.names}
        for part in data.examples.values()
    ]
    assert len(people) == 2 and not people[0] & people[1]

    rows = dataset.to_dict()
    rows["colour"][3] = -1  # no label
    rows["picture"][5] = {"bytes": b"not an image", "path": None}
    data = from_hf(
        datasets.Dataset.from_dict(rows, dataset.features), label_column="colour", progress=False
    )
    assert {item.path: item.reason.split(":")[0] for item in data.skipped} == {
        "the dataset/train 3": "it has no label",
        "the dataset/train 5": "not an image",
    }


def test_clips(tmp_path):
    pytest.importorskip("soundfile")

    def wav(pitch, seed):
        time = np.arange(4000) / 8000
        noise = np.random.default_rng(seed).normal(0, 0.01, 4000)
        samples = (32767 * np.clip(0.5 * np.sin(2 * np.pi * pitch * time) + noise, -1, 1)).astype(
            "<i2"
        )
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(samples.tobytes())
        return {"bytes": buffer.getvalue(), "path": None}

    columns = {
        "audio": [wav(300 + 900 * (i % 2), i) for i in range(12)],
        "label": [i % 2 for i in range(12)],
    }
    plain = datasets.Dataset.from_dict(columns)  # to encode clips, `datasets` would need torch
    made = plain.cast_column("audio", datasets.Audio(decode=False))
    made = made.cast_column("label", datasets.ClassLabel(names=["low", "high"]))
    data = from_hf(made, progress=False)
    assert data.modality.name == "audio" and data.class_names == ("high", "low")
    samples, rate = data.examples["train"].images.decoded(0)
    assert rate == 8000 and len(samples) == 4000


def test_what_cannot_be_opened(tmp_path):
    people = [*"abc", None] * 6
    dataset = images(person=(datasets.Value("string"), people))
    for options, part in {
        "near": (dict(label_column="color"), "Did you mean colour?"),
        "path": (dict(path_column="photo"), "has no column 'photo'"),
        "numbers": (dict(path_column="colour"), "neither images, clips nor texts"),
        "group": (dict(group_column="person"), "train 3: person is empty"),
        "split": (dict(split_column="person"), "has its own splits"),
    }.values():
        with raises(part):
            from_hf(dataset, progress=False, **options)
    with raises("has no column label (it has other)"):
        from_hf(dataset.remove_columns(["colour", "person"]).add_column("other", [1] * 24))
    for wrong in (dataset.to_iterable_dataset(), {"train": [1]}, {}, 5):
        with raises("from_hf reads a name, a folder, a datasets.Dataset"):
            from_hf(wrong)
    with raises("but no train"):
        from_hf(datasets.DatasetDict({"part1": dataset}))
    with raises("several columns of examples (picture, second)"):
        second = images().rename_columns({"picture": "second", "colour": "shade"})
        from_hf(datasets.concatenate_datasets([dataset, second], axis=1))
    with raises("cannot be opened"):
        open_data("hf:nobody/nothing")
    (tmp_path / "empty").mkdir()
    with raises("Check the folder"):
        open_data(f"hf:{tmp_path / 'empty'}")
