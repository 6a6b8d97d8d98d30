"""Lists of corrections: labels change, examples go, and what cannot be right is one line."""

import numpy as np
import pytest
from conftest import raises, write_image

from keras_transfer.data import correct, from_arrays, from_directory, open_data


def written(path, *rows):
    path.write_text("path,suggested,action\n" + "".join(f"{row}\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for i in range(3):
                write_image(tmp_path / "d" / split / name / f"{i}.png", (9, 9, 9), seed=i)
    return tmp_path / "d"


def test_actions_change_labels_and_drop_examples(folder, tmp_path):
    rows = (
        *("train/cat/0.png,dog,relabel", "val/dog/1.png,,drop", "train/cat/1.png,dog,keep"),
        "train/cat/2.png,dog,",
    )
    file = written(tmp_path / "list.csv", *rows)
    before, data = from_directory(folder), open_data(folder, use_list=file)
    assert data.counts == {"train": {"cat": 2, "dog": 4}, "val": {"cat": 3, "dog": 2}}
    assert [(item.path[-9:], item.reason) for item in data.skipped] == [
        ("dog/1.png", "dropped by list.csv")
    ]
    assert before.counts["train"] == {"cat": 3, "dog": 3}  # nothing else changed
    assert data.source == before.source
    file.write_text(file.read_text().replace(",", ";"))  # as Excel saves it in some countries
    assert open_data(folder, use_list=file).fingerprint() == data.fingerprint()


def test_other_tasks(tmp_path):
    images = np.zeros((4, 8, 8, 3), "uint8")
    images[:, 0, 0, 0] = np.arange(4)
    labels, names = np.array([[1, 0], [0, 1], [1, 1], [0, 1]]), ["x", "y"]
    tags = from_arrays((images, labels), class_names=names, task="multi_label", val_split=0.25)
    name = tags.split_table()[0][0]
    found = correct(tags, written(tmp_path / "a.csv", f"{name},x|y,relabel"))
    assert found.split_table()[0][1] == "x|y"


@pytest.mark.parametrize(
    "rows, problem",
    [
        (["train/cat/0.png,bird,relabel"], "'bird' is not a label of the data"),
        (["train/cat/0.png,,delete"], "line 2: action 'delete' must be one of relabel, drop, keep"),
        (["train/cat/0.png,dog,relabel", "train/cat/0.png,,drop"], "has two different actions"),
        ([",dog,relabel"], "line 2 has no path"),
        (["elsewhere/0.png,,drop"], "names none of the examples"),
        ([f"train/cat/{i}.png,,drop" for i in range(3)], "class cat has no readable example"),
    ],
)
def test_what_cannot_be_right(folder, tmp_path, rows, problem):
    with raises(problem):
        open_data(folder, use_list=written(tmp_path / "list.csv", *rows))
    (tmp_path / "other.csv").write_text("path,label\n")
    with raises("has no column action and no column suggested"):
        open_data(folder, use_list=tmp_path / "other.csv")
