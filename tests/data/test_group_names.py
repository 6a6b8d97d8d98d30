"""Groups that the names of files suggest, and the line that says so."""

import numpy as np
import pytest
from conftest import write_image

from keras_transfer.data import from_directory
from keras_transfer.data.group_names import suggest_groups

CLASSES = ("cat", "cow", "dog")


def names(form, speakers=("ann", "bob", "carl", "dora"), files=4):
    made = [
        (form.format(c=c, s=s, i=i, n=len(speakers) * i + k), c)
        for c in CLASSES
        for k, s in enumerate(speakers)
        for i in range(files)
    ]
    return [name for name, _ in made], np.array([CLASSES.index(c) for _, c in made])


@pytest.mark.parametrize(
    "form",
    [
        "{c}/{s}_{i}.wav",
        "train/{c}/{s}-{i}-x.wav",
        "{c}/{c}_{s}_{i}.wav",
        "{c}/{s}{i}.wav",
        "{c}/{s}/{i}.wav",
        "{c}/{s} take {i}.jpg",
    ],
)
def test_a_suggested_pattern_finds_the_groups(form):
    import re

    paths, labels = names(form)
    found = suggest_groups(paths, labels)
    assert found.names == ["ann", "bob", "carl", "dora"]
    assert {re.search(found.pattern, path)[1] for path in paths} == set(found.names)


@pytest.mark.parametrize(
    "form",
    [
        "{c}/{n}.jpg",
        "{c}/IMG_{n:04}.jpg",
        "{c}/{c}_{n}.jpg",
        "{c}/{c}{n}.jpg",
        "{c}/flower_{n}_crop.jpg",
        "train/{c}/{n}.jpg",
        "{c}/{c}{n}_hash_{n}.jpg",
    ],
)
def test_numbers_and_classes_are_no_groups(form):
    assert suggest_groups(*names(form)) is None


def test_a_line_names_the_pattern_unless_groups_are_given(tmp_path, capfd):
    for number, name in enumerate(names("{c}/{s}_{i}.png")[0]):
        write_image(tmp_path / name, (90, 90, 90), (4, 4), seed=number)
    from_directory(tmp_path, progress=False)
    line = capfd.readouterr().err
    assert "the names suggest 4 groups: ann, bob, carl, and 1 more" in line
    pattern = line.split("--group '")[1].split("'")[0]
    data = from_directory(tmp_path, progress=False, groups=pattern)
    assert "suggest" not in capfd.readouterr().err
    sides = [{p.rsplit("/", 1)[1].split("_")[0] for p in x.names} for x in data.examples.values()]
    assert not sides[0] & sides[1]
