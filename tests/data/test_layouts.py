"""Folders as people have them: splits of any name, what systems leave behind, and wrong levels."""

import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from conftest import make_folder, raises

from keras_transfer.data import from_directory, labeled_images, read_tree
from keras_transfer.data.folders import split_of


def sizes(tree):
    return {split: {name: len(f) for name, f in classes.items()} for split, classes in tree.items()}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[(name, "train") for name in ("train", "TRAIN", "Training", "seg_train", "TrainImages")],
        *[(name, "train") for name in ("train-2017", "my data train", "x.train", "trainset")],
        *[
            (name, "val")
            for name in ("Validation", "VAL", "valid_images", "dev", "EvalSet", "val2017")
        ],
        *[(name, "test") for name in ("test_set", "Testing", "seg_test", "testData")],
        *[
            (name, None)
            for name in ("testudo", "strain", "valley", "devil", "train_val", "cats", "x")
        ],
    ],
)
def test_the_split_in_a_name(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("training_set", "test_set", "test"),
        ("train_images", "test_images", "test"),
        ("seg_train", "seg_test", "test"),
        ("Train", "VALIDATION", "val"),
        ("train", "Valid", "val"),
        ("train", "dev", "val"),
        ("seg_train", "test_set", "test"),
        ("train", "test_set", "test"),
        ("TRAIN2017", "Val2017", "val"),
        ("flowers.train", "flowers.eval", "val"),
    ],
)
def test_folders_of_splits_are_no_classes(tmp_path, train, other, split):
    make_folder(
        tmp_path, {f"{train}/ant": 3, f"{train}/bee": 2, f"{other}/ant": 1, f"{other}/bee": 1}
    )
    assert sizes(read_tree(tmp_path)) == {
        "train": {"ant": 3, "bee": 2},
        split: {"ant": 1, "bee": 1},
    }


def test_a_folder_to_train_on_may_be_alone(tmp_path):
    make_folder(tmp_path, {"training_set/ants": 2, "training_set/bees": 2})
    assert sizes(read_tree(tmp_path)) == {"train": {"ants": 2, "bees": 2}}


def test_a_model_is_measured_on_the_test_folder_of_any_name(tmp_path):
    make_folder(
        tmp_path, {"training_set/a": 3, "training_set/b": 3, "test_set/a": 2, "test_set/b": 2}
    )
    data = labeled_images(tmp_path, ["a", "b"], progress=False)
    assert list(data.examples) == ["test"] and len(data.examples["test"]) == 4


@pytest.mark.parametrize(
    "names",
    [
        ("train", "tram"),  # a vehicle
        ("train_station", "test_tube"),
        ("testudo", "valley"),
        ("test", "car"),
    ],
)
def test_classes_whose_names_contain_a_split_stay_classes(tmp_path, names):
    tree = read_tree(make_folder(tmp_path, dict.fromkeys(names, 2)))
    assert sizes(tree) == {"all": dict.fromkeys(sorted(names), 2)}


def test_classes_with_folders_of_their_own_stay_classes(tmp_path):
    make_folder(tmp_path, {"train_station/old": 2, "test_tube/old": 2, "car/old": 2})
    assert list(read_tree(tmp_path)) == ["all"]


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"train_a/x": 1, "train_a/y": 1, "train_b/x": 1, "train_b/y": 1}, "two folders for train"),
        ({"train/x": 1, "train/y": 1, "val/x": 1, "dev/x": 1}, "two folders for val"),
        ({"val/x": 1, "val/y": 1, "test/x": 1, "test/y": 1}, "none to train on"),
        ({"train": 2, "test": 2}, "without class folders"),
        ({"train_images": 2, "test_images": 2}, "without class folders"),
        (
            {"x/train": 2, "x/test": 1, "y/train": 2, "y/test": 1},
            "splits inside each class (x/test, x/train)",
        ),
        (
            {"train/steam": 2, "train/diesel": 1, "car/old": 2, "bus/red": 1},
            "is train the training images, or a class like bus, car?",
        ),
        ({"seg_train/ant": 2, "VALID/bee": 2}, "seg_train (ant): are these splits, or classes?"),
        ({"d/e/ants": 2, "d/e/bees": 2}, "d/e contains ants, bees: pass that folder"),
        ({"d/ants": 2, "d/bees": 2}, "contains ants, bees: pass that folder"),
        ({"val/a": 2, "val/b": 2, "extra/a": 2, "extra/b": 2}, "none is called train"),
        ({"d/train/a": 2, "d/val/a": 2}, "contains train, val: pass that folder"),
    ],
)
def test_layouts_that_are_refused(tmp_path, counts, words):
    with raises(words):
        read_tree(make_folder(tmp_path, counts))


@pytest.mark.parametrize("splits", [("test",), ("val", "test")])
def test_folders_without_one_to_train_on_can_be_evaluated(tmp_path, splits):
    make_folder(tmp_path, {f"{split}/{name}": 2 for split in splits for name in "xy"})
    data = labeled_images(tmp_path, ["x", "y", "z"], progress=False)
    assert data.counts == {"test": {"x": 2, "y": 2, "z": 0}}
    with raises("does not know: test" if len(splits) == 1 else "none to train on"):
        labeled_images(tmp_path, ["a", "b"], progress=False)


def test_what_is_left_out_is_counted(tmp_path, capsys):
    make_folder(
        tmp_path,
        {
            "train/a": 2,
            "train/b": 2,
            "val/a": 1,
            "val/b": 1,
            "extra/a": 3,
            "seg_pred": 4,
            "test": 5,
        },
    )
    assert list(read_tree(tmp_path)) == ["train", "val"]
    said = capsys.readouterr().err
    for name, count in (("extra", 3), ("seg_pred", 4), ("test", 5)):
        assert f"ignored: {tmp_path / name}, with {count} images" in said
    make_folder(tmp_path / "loose", {"a": 2, "b": 2, ".": 3})
    read_tree(tmp_path / "loose")
    assert "ignored: 3 images directly in" in capsys.readouterr().err


def test_a_validation_folder_makes_the_share_superfluous_and_says_so(tmp_path, capsys):
    make_folder(tmp_path, {"train/a": 4, "train/b": 4, "Valid/a": 1})
    data = from_directory(tmp_path, val_split=0.5, progress=False)
    assert len(data.examples["train"]) == 8 and len(data.examples["val"]) == 1
    said = capsys.readouterr().err
    assert "--val-split has no effect" in said
    assert "val has no example of b" in said


@pytest.mark.parametrize(
    "name",
    [
        *(
            "@eaDir",
            "#recycle",
            "@Recently-Snapshot",
            "__MACOSX",
            ".ipynb_checkpoints",
            "lost+found",
        ),
        *("$RECYCLE.BIN", "System Volume Information", ".Trash-1000"),
    ],
)
def test_folders_that_systems_leave_behind_are_no_classes(tmp_path, name):
    make_folder(tmp_path, {"a": 2, "b": 2, f"a/{name}": 2, name: 2})
    (tmp_path / "a" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "a" / "._00.png").write_bytes(b"x")
    assert sizes(read_tree(tmp_path)) == {"all": {"a": 2, "b": 2}}


def test_both_unicode_forms_are_one_class(tmp_path, capsys):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    make_folder(tmp_path, {composed: 2, "tea": 2})
    make_folder(tmp_path / decomposed, {".": 1})
    assert sizes(read_tree(tmp_path)) == {"all": {composed: 3, "tea": 2}}
    assert "they are one class" in capsys.readouterr().err
    # A model of an earlier version knows the form that its folder had.
    for known in (composed, decomposed):
        data = labeled_images(tmp_path, [known, "tea"], progress=False)
        assert data.class_names == (known, "tea") and len(data.examples["all"]) == 5


def test_images_in_folders_inside_class_folders_are_counted(tmp_path, capsys):
    make_folder(tmp_path, {"ants": 2, "bees": 2, "ants/more": 3, "bees/a/b": 1})
    (tmp_path / "ants" / "more" / "notes.txt").write_text("no image")
    tree = read_tree(tmp_path)
    assert {name: len(files) for name, files in tree["all"].items()} == {"ants": 6, "bees": 3}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"4 images in {tmp_path} lie in folders inside class folders")
    assert str(tmp_path / "ants" / "more") in line


def test_each_folder_is_listed_once(tmp_path, monkeypatch):
    make_folder(tmp_path, {f"{s}/{c}": 1 for s in ("Train", "test_set") for c in ("ants", "bees")})
    listed, iterdir = Counter(), Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: listed.update([self]) or iterdir(self))
    assert set(read_tree(tmp_path)) == {"train", "test"}
    assert set(listed.values()) == {1} and len(listed) == 3
