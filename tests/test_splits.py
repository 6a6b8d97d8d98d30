"""Splits: class shares, groups, folds, lists, and what moves when files are added or renamed."""

import csv
import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import write_picture

from keras_transfer.data import (
    SplitRule,
    folds,
    from_directory,
    labelled_pictures,
    read_split_file,
    split,
)
from keras_transfer.data.splits import require_fraction
from keras_transfer.errors import InputError


def names(count, prefix="picture"):
    return [f"{prefix} {i}" for i in range(count)]


def raises(part):
    """Expect an InputError of one line that contains `part`."""
    return pytest.raises(InputError, match=r"\A[^\n]*" + re.escape(str(part)) + r"[^\n]*\Z")


def is_partition(parts, count):
    return np.array_equal(np.sort(np.concatenate(list(parts))), np.arange(count))


# --- Class shares -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "fraction", "expected"),
    [
        ((50, 30, 20), 0.2, (10, 6, 4)),
        ((7, 7, 7), 0.2, (2, 1, 1)),  # 4 of 21: the shares are 1.4 each
        ((15, 12, 3), 0.25, (4, 3, 1)),  # 8 of 30 (7.5 to even): 3.75, 3, 0.75
        ((2, 2, 96), 0.1, (1, 1, 8)),  # small classes get one each
        ((2, 2, 2), 0.9, (1, 1, 1)),  # and keep one each
    ],
)
def test_single_pictures_are_split_exactly(counts, fraction, expected):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], counts))
    parts = split(labels, {"val": fraction}, names(len(labels)), seed=3)
    assert tuple(np.bincount(labels[parts["val"]], minlength=3)) == expected
    assert is_partition(parts.values(), len(labels))
    assert all(np.array_equal(part, np.sort(part)) for part in parts.values())


def test_three_parts_in_their_shares():
    labels = np.repeat([0, 1], [100, 40])
    keys = names(140)
    parts = split(labels, {"test": 0.1, "val": 0.2}, keys)
    counts = {name: np.bincount(labels[part]).tolist() for name, part in parts.items()}
    assert counts == {"test": [10, 4], "val": [20, 8], "train": [70, 28]}
    assert is_partition(parts.values(), 140)
    # The test part stays when the validation share is changed.
    again = split(labels, {"test": 0.1, "val": 0.4}, keys)
    assert np.array_equal(again["test"], parts["test"])


def test_the_seed_and_the_keys_decide_and_nothing_else():
    labels, keys = np.repeat([0, 1], 50), names(100)
    first, again, other = (split(labels, {"val": 0.2}, keys, seed=s)["val"] for s in (5, 5, 6))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert not np.array_equal(first % 50 < 10, np.ones(20))  # not simply the first of each class
    order = np.random.default_rng(0).permutation(100)
    shuffled = split(labels[order], {"val": 0.2}, [keys[i] for i in order], seed=5)["val"]
    assert set(order[shuffled]) == set(first)


def test_several_labels_a_picture_keep_their_shares():
    rng = np.random.default_rng(1)
    share = np.array([0.5, 0.3, 0.1, 0.03, 0.01])
    labels = (rng.random((1000, 5)) < share).astype(int)
    labels[:3, 4] = 1
    for seed in range(5):
        val = split(labels, {"val": 0.2}, names(1000), seed=seed)["val"]
        expected = labels.sum(axis=0) * 0.2
        assert abs(len(val) - 200) <= 20
        assert (np.abs(labels[val].sum(axis=0) - expected) <= 2 + 0.12 * expected).all()
        assert labels[val].any(axis=0).all()  # each label on both sides
    alone = np.zeros((50, 2), int)
    alone[:20, 0] = alone[0, 1] = 1
    with raises("class tail has 1 readable picture"):
        split(alone, {"val": 0.2}, names(50), class_names=("dog", "tail"))


@pytest.mark.parametrize("shape", [(500,), (500, 1)])
def test_targets_are_split_by_quantiles(shape):
    values = np.random.default_rng(0).exponential(size=500)
    val = split(values.reshape(shape).astype("float32"), {"val": 0.2}, names(500))["val"]
    tenth = np.searchsorted(np.quantile(values, np.arange(1, 10) / 10), values, side="right")
    assert np.bincount(tenth[val]).tolist() == [10] * 10


def test_equal_targets_are_no_error():
    values = np.concatenate([np.zeros(90), [1.5]])
    parts = split(values, {"val": 0.2}, names(91))
    assert abs(len(parts["val"]) - 18) <= 1 and is_partition(parts.values(), 91)


# --- Groups -----------------------------------------------------------------------------------


def people(count=218, each=10, seed=0):
    """Labels and a person for each: nearly every person in every class."""
    rng = np.random.default_rng(seed)
    keep = rng.random(count * each) < 0.9
    who, labels = np.repeat(np.arange(count), each)[keep], np.tile(np.arange(each), count)[keep]
    return labels, [f"person{i}" for i in who]


def test_nobody_is_on_two_sides():
    labels, who = people()
    for seed in range(3):
        parts = split(labels, {"val": 0.2}, names(len(labels)), groups=who, seed=seed)
        sides = [{who[i] for i in part} for part in parts.values()]
        assert not sides[0] & sides[1]
        counts = np.bincount(labels[parts["val"]])
        assert (np.abs(counts - np.bincount(labels) * 0.2) <= 5).all()


def test_groups_of_one_class_miss_the_quota_by_half_a_group():
    rng = np.random.default_rng(0)
    for seed in range(20):
        sizes = rng.integers(1, 20, 60)
        kind = np.arange(60) % 2
        labels = np.repeat(kind, sizes)
        who = np.repeat(np.arange(60), sizes).tolist()
        val = split(labels, {"val": 0.25}, names(len(labels)), groups=who, seed=seed)["val"]
        off = np.bincount(labels[val]) - np.bincount(labels) * 0.25
        assert (np.abs(off) <= 10.5).all()  # half of the largest, and the quota's rounding


def test_copies_stay_together_also_across_groups():
    labels = np.tile([0, 1], 60)
    keys = names(120)
    for i in range(0, 40, 2):  # ten pairs of copies of class 0, and of a picture of class 1
        keys[i + 1] = keys[i]
    who = [f"person {i // 3}" for i in range(120)]
    for groups in (None, who):
        for seed in range(5):
            parts = split(labels, {"val": 0.3}, keys, groups=groups, seed=seed)
            side = {i: name for name, part in parts.items() for i in part}
            assert all(side[i] == side[i + 1] for i in range(0, 40, 2))
            if groups:  # persons 0 to 13 are linked one to the next by copies, where they share one
                assert all(side[i] == side[j] for i, j in ((0, 1), (1, 2), (2, 3), (3, 4)))


def test_classes_that_cannot_be_parted_are_named():
    labels = np.array([0] * 10 + [1] * 4)
    who = [f"a{i}" for i in range(10)] + ["b"] * 4
    with raises("class dog has 4 readable pictures, which belong together in 1 group"):
        split(labels, {"val": 0.2}, names(14), groups=who, class_names=("cat", "dog"))
    with raises("too few pictures to split: class dog has 1 readable picture; add pictures or"):
        split(np.array([0, 0, 1]), {"val": 0.5}, names(3), class_names=("cat", "dog"))
    with raises("class 0 has 2 readable pictures, for 3 parts"):
        split(np.array([0, 0, 1, 1, 1]), {"test": 0.2, "val": 0.2}, names(5))
    # Two persons have all: whoever goes takes one class away from the other side.
    with raises("no split found that has class"):
        split(
            np.array([0, 1, 0, 2, 1, 2]),
            {"val": 0.3},
            names(6),
            groups=["x", "x", "y", "y", "z", "z"],
        )


def test_a_class_of_two_unequal_groups_is_on_both_sides():
    labels = np.array([0] * 100 + [1] * 40)
    who = [*names(100), *["large"] * 35, *["small"] * 5]
    for seed in range(10):
        for share in (0.02, 0.2, 0.5, 0.9):
            parts = split(labels, {"val": share}, names(140, "p"), groups=who, seed=seed)
            assert all(set(labels[part]) == {0, 1} for part in parts.values())


def test_shares_that_make_no_sense():
    labels = np.array([0, 0, 1, 1])
    for share in (0, 1, -0.1, 1.5, float("nan")):
        with raises("must lie between 0 and 1"):
            split(labels, {"val": share}, names(4))
    with raises("leave nothing to train on"):
        split(labels, {"test": 0.5, "val": 0.5}, names(4))


# --- What moves -------------------------------------------------------------------------------


def moved(labels, keys, more_labels, more_keys, groups=None, more_groups=None, seed=0):
    """How many of the old examples change sides when others are added."""
    before = split(labels, {"val": 0.2}, keys, groups=groups, seed=seed)["val"]
    after = split(
        np.concatenate([labels, more_labels]),
        {"val": 0.2},
        [*keys, *more_keys],
        groups=None if groups is None else [*groups, *more_groups],
        seed=seed,
    )["val"]
    return len(set(before) ^ set(after[after < len(labels)]))


@pytest.mark.parametrize("more", [1, 10, 100])
def test_added_pictures_move_few_old_ones(more):
    rng = np.random.default_rng(more)
    for seed in range(5):
        labels, added = rng.integers(0, 10, 1000), rng.integers(0, 10, more)
        # Each new picture takes at most one place; rounding moves at most one a class.
        assert moved(labels, names(1000), added, names(more, "new"), seed=seed) <= more + 10
        several = (rng.random((1000, 6)) < 0.2).astype(int)
        new = (rng.random((more, 6)) < 0.2).astype(int)
        assert moved(several, names(1000), new, names(more, "new"), seed=seed) <= more + 10
        values, new = rng.normal(size=1000), rng.normal(size=more)
        assert moved(values, names(1000), new, names(more, "new"), seed=seed) <= more + 10


def test_added_people_move_few_old_ones():
    labels, who = people()
    new_labels, new_who = people(count=5, seed=1)
    for seed in range(5):
        count = moved(
            labels, names(len(labels)), new_labels, names(len(new_labels), "new"),
            who, [f"new {w}" for w in new_who], seed=seed,
        )  # fmt: skip
        assert count <= len(new_labels) + 10


def test_added_pictures_may_move_none():
    """The old validation part is mostly kept, against 20 % by chance."""
    labels, keys = np.repeat(np.arange(10), 100), names(1000)
    before = split(labels, {"val": 0.2}, keys)["val"]
    after = split(np.append(labels, [3]), {"val": 0.2}, [*keys, "new"])["val"]
    assert len(set(before) & set(after)) >= 199


# --- Folds ------------------------------------------------------------------------------------


def test_folds_are_disjoint_complete_and_stratified():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [103, 50, 7]))
    found = folds(labels, 5, names(160), seed=1)
    assert len(found) == 5 and is_partition(found, 160)
    counts = np.array([np.bincount(labels[fold], minlength=3) for fold in found])
    expected = np.array([103, 50, 7]) / 5
    assert (np.floor(expected) <= counts).all() and (counts <= np.ceil(expected)).all()
    sizes = counts.sum(axis=1)
    assert sizes.max() - sizes.min() <= 2


def test_folds_keep_groups():
    labels, who = people(each=6)
    found = folds(labels, 4, names(len(labels)), groups=who)
    assert is_partition(found, len(labels))
    seen = Counter(person for fold in found for person in {who[i] for i in fold})
    assert set(seen.values()) == {1}
    counts = np.array([np.bincount(labels[fold]) for fold in found])
    assert (np.abs(counts - np.bincount(labels) / 4) <= 6).all()


def test_folds_with_too_few_of_a_class():
    with raises("class 1 has 3 readable pictures, for 5 parts"):
        folds(np.array([0] * 20 + [1] * 3), 5, names(23))
    with raises("3 groups for 4 parts"):
        folds(np.linspace(0, 1, 9), 4, names(9), groups=[*"aaabbbccc"])


# --- Folders ----------------------------------------------------------------------------------


def folder(root, counts, people=1):
    """root/<class>/p<person>_<i>.png, all of them different."""
    at = 0
    for name, count in counts.items():
        for i in range(count):
            at += 1
            write_picture(root / name / f"p{i % people}_{i:02}.png", (90, 90, 90), (4, 4), seed=at)
    return root


def sides(data):
    return {name: part for name, _, part in data.split_table()}


@pytest.fixture
def animals(tmp_path):
    return folder(tmp_path / "animals", {"cat": 20, "dog": 12, "emu": 8}, people=4)


def test_renamed_files_stay_on_their_side(animals):
    before = from_directory(animals)
    contents = {part: set(examples.digests) for part, examples in before.examples.items()}
    for at, file in enumerate(sorted(animals.glob("*/*.png"))):
        file.rename(file.with_name(f"{97 * at % 100:02} renamed.png"))
    after = from_directory(animals)
    assert {part: set(e.digests) for part, e in after.examples.items()} == contents
    assert before.split_table() != after.split_table()


def test_groups_by_pattern_and_by_function(animals):
    data = from_directory(animals, groups=r"/(p\d)_", val_split=0.25)
    by = {"train": set(), "val": set()}
    for name, part in sides(data).items():
        by[part].add(name.split("/")[1][:2])
    assert len(by["val"]) == 1 and len(by["train"]) == 3 and not by["val"] & by["train"]
    same = from_directory(animals, groups=lambda path: path.split("/")[1][:2], val_split=0.25)
    assert same.split_table() == data.split_table()


def test_a_test_share(animals):
    data = from_directory(animals, test_split=0.25)
    assert list(data.examples) == ["train", "val", "test"]
    assert data.counts["test"] == {"cat": 5, "dog": 3, "emu": 2}
    assert data.counts["val"] == {"cat": 4, "dog": 2, "emu": 2}


def test_each_picture_is_validated_in_one_fold(animals):
    data = [from_directory(animals, folds=4, fold=i, test_split=0.1) for i in (1, 2, 3, 4)]
    tests = [d.examples["test"].names for d in data]
    assert tests[0] and all(t == tests[0] for t in tests)
    validated = [name for d in data for name in d.examples["val"].names]
    assert len(validated) == len(set(validated)) == 40 - len(tests[0])
    for d in data:
        assert not set(d.examples["val"].names) & set(d.examples["train"].names)


def write_list(path, rows, header=("path", "split")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_a_list_is_kept_to(animals, tmp_path, capsys):
    data = from_directory(animals, seed=5, test_split=0.2)
    file = write_list(tmp_path / "list.csv", data.split_table(), ("path", "label", "split"))
    again = from_directory(animals, split_file=file)
    assert again.split_table() == data.split_table()
    assert capsys.readouterr().err == ""
    # What is new goes by the rule, what is gone is named, and a copy follows its original.
    copied = data.examples["test"].names[0]
    (animals / "cat" / "copy.png").write_bytes(Path(copied).read_bytes())
    write_picture(animals / "cat" / "new.png", (1, 1, 1), seed=99)
    gone = animals / "dog" / "p1_01.png"
    gone.unlink()
    broken = animals / "dog" / "p2_02.png"
    broken.write_bytes(b"")
    changed = from_directory(animals, split_file=file)
    said = capsys.readouterr().err
    assert "names 1 pictures that are gone: dog/p1_01.png\n" in said
    assert "does not name 2 pictures: split by the rule" in said
    expected = sides(data)
    found = sides(changed)
    assert found.pop("cat/copy.png") == "test" and found.pop("cat/new.png") in ("train", "val")
    del expected["dog/p1_01.png"], expected["dog/p2_02.png"]
    assert found == expected


def test_a_list_wins_over_folders(tmp_path):
    root = folder(tmp_path / "data", {"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2})
    before = from_directory(root)
    file = write_list(
        tmp_path / "list.csv", [("val/a/p0_00.png", "train"), ("./train/b/p0_01.png", "Validation")]
    )
    expected = sides(before) | {"val/a/p0_00.png": "train", "train/b/p0_01.png": "val"}
    assert sides(from_directory(root, split_file=file)) == expected
    other = folder(tmp_path / "other", {"a": 1, "b": 1})
    with_val = from_directory(root / "train", val=other)
    file = write_list(tmp_path / "of_run.csv", with_val.split_table(), ("path", "label", "split"))
    again = from_directory(root / "train", val=other, split_file=file)
    assert again.split_table() == with_val.split_table()


def test_lists_that_cannot_be_used(animals, tmp_path):
    def refused(words, rows, header=("path", "split")):
        with raises(words):
            from_directory(animals, split_file=write_list(tmp_path / "list.csv", rows, header))

    with raises("cannot read the list of splits"):
        from_directory(animals, split_file=tmp_path / "none.csv")
    refused("has no column split", [("a", "train")], ("path", "part"))
    refused("line 2: 'trian' is no split; use train, val or test", [("a", "trian")])
    refused("is in train and in val", [("a", "train"), ("a", "val")])
    refused("names no picture", [])
    refused("names none of the pictures", [("elsewhere/cat/p0_00.png", "val")])
    everything = [(str(p.relative_to(animals)), "train") for p in animals.glob("*/*.png")]
    refused("leaves no picture in val", everything)
    no_emu = [(name, "val" if name.startswith("emu") else part) for name, part in everything]
    refused("leaves no picture of class emu in train", no_emu)
    assert read_split_file(write_list(tmp_path / "l.csv", [("a", "valid")])) == {"a": "val"}


def test_what_does_not_go_together(animals, tmp_path):
    for options, words in (
        ({"folds": 5}, "together"),
        ({"folds": 1, "fold": 1}, "needs 2 or more"),
        ({"folds": 5, "fold": 0}, "choose one from 1 to 5"),
        ({"folds": 5, "fold": 1, "split_file": "x.csv"}, "exclude each other"),
        ({"groups": "p("}, "not a regular expression"),
        ({"groups": "p"}, "one pair of brackets"),
    ):
        with raises(words):
            SplitRule(**options)
    with raises("finds no group in 40 of 40 paths, for example cat/p0_00.png"):
        from_directory(animals, groups=r"(q\d)")
    with raises("must lie between 0 and 1"):
        from_directory(animals, test_split=1.0)
    root = folder(
        tmp_path / "given", {f"{p}/{c}": 3 for p in ("train", "val", "test") for c in "ab"}
    )
    with raises("leave out --test-split"):
        from_directory(root, test_split=0.1)
    with raises("--folds needs all pictures in one folder"):
        from_directory(root, folds=3, fold=1)
    with raises("--group says how to split"):
        from_directory(root, groups="(p)")


def test_parts_of_a_list_are_measured(animals, tmp_path):
    data = from_directory(animals, test_split=0.2)
    file = write_list(tmp_path / "list.csv", data.split_table(), ("path", "label", "split"))
    test = labelled_pictures(animals, data.class_names, split="test", split_file=file)
    assert test.examples["test"].names == data.examples["test"].names
    whole = labelled_pictures(animals, data.class_names, split_file=file)
    assert len(whole.examples["all"]) == 40
    with raises("names no test picture"):
        only = write_list(tmp_path / "only.csv", [("cat/p0_00.png", "val")])
        labelled_pictures(animals, data.class_names, split="test", split_file=only)


# --- Exactly ----------------------------------------------------------------------------------


def example_splits():
    """Kind of labels → the parts that a hundred or so small data sets are divided into."""
    rng = np.random.RandomState(7)  # whose numbers NumPy does not change
    found = {kind: [] for kind in ("classes", "groups", "labels", "targets", "folds", "fixed")}
    shares = {"test": 0.15, "val": 0.3}
    for seed in range(20):
        count = int(rng.randint(40, 90))
        keys = names(count)
        classes = rng.choice(3, count, p=[0.6, 0.3, 0.1])
        classes[:12] = [0, 1, 2] * 4
        who = [f"who {i}" for i in rng.randint(0, count // 3, count)]
        who[:9] = [*"abcdefghi"]
        several = (rng.random_sample((count, 4)) < [0.5, 0.3, 0.2, 0]).astype(int)
        several[:6, :3] = 1
        values = rng.normal(size=(count, 2)).astype("float32")
        fixed = rng.choice([None, "train", "val"], count, p=[0.6, 0.3, 0.1]).tolist()
        found["classes"].append(split(classes, shares, keys, seed=seed))
        found["groups"].append(split(classes, shares, keys, groups=who, seed=seed))
        found["labels"].append(split(several, shares, keys, seed=seed))
        found["targets"].append(split(values, shares, keys, groups=who, seed=seed))
        found["folds"].append(dict(enumerate(folds(classes, 3, keys, groups=who, seed=seed))))
        found["fixed"].append(split(classes, shares, keys, groups=who, seed=seed, fixed=fixed))
    return found


def example_splits_of_few_groups():
    """The same, or why not, where a class may be in few groups, and these be large."""
    rng, found = np.random.RandomState(7), []
    for seed in range(160):
        kinds, count = int(rng.randint(2, 7)), int(rng.randint(4, 12))
        who = np.repeat(np.arange(count), 1 + rng.geometric(0.2, count))
        home, other = rng.randint(0, kinds, count)[who], rng.randint(0, kinds, len(who))
        labels = np.where(rng.random_sample(len(who)) < 0.7, home, other)
        part = rng.choice([None, "train", "val"], count, p=[0.6, 0.2, 0.2])[who].tolist()
        shares = {"val": [0.03, 0.1, 0.3, 0.6, 0.9][seed % 5]}
        for fixed in (None, part):
            rule = {"groups": who.tolist(), "fixed": fixed, "seed": seed}
            try:
                found.append(split(labels, shares, names(len(who)), **rule))
            except InputError as error:
                found.append(
                    {"refused": np.array(re.findall("class (.*) (?:in every|has)", str(error)))}
                )
    return found


DIGESTS = {
    "classes": "efc9814179254f18",
    "groups": "29d75c93be8349c3",
    "labels": "034542235683301f",
    "targets": "2721f0881a974995",
    "folds": "1208aaa3f36fc35e",
    "fixed": "866885302eb511f3",
    "few groups": "d635784b61cf7757",
}


def test_parts_are_those_of_earlier_releases():
    """Or a picture that was trained on would be tested on after an update."""
    digests = {}
    divided_by_kind = {**example_splits(), "few groups": example_splits_of_few_groups()}
    for kind, divided in divided_by_kind.items():
        plain = [{name: part.tolist() for name, part in parts.items()} for parts in divided]
        text = json.dumps(plain).encode()
        digests[kind] = hashlib.blake2b(text, digest_size=8).hexdigest()
    assert digests == DIGESTS


def test_what_is_not_said():
    assert SplitRule() == SplitRule(0.2, 0.0, None, None, None, None, 0)
    labels = np.repeat([0, 1], 50)
    default, zero = (split(labels, {"val": 0.2}, names(100), **s) for s in ({}, {"seed": 0}))
    assert list(default) == ["train", "val"]
    assert np.array_equal(default["val"], zero["val"])
    first, same = (folds(labels, 3, names(100), **s) for s in ({}, {"seed": 0}))
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    other = folds(labels, 3, names(100), seed=1)
    assert not np.array_equal(first[0], other[0])


def test_as_many_pictures_of_a_class_as_parts_are_enough():
    labels = np.repeat([0, 1, 2], 3)
    for seed in range(10):
        parts = split(labels, {"test": 0.3, "val": 0.3}, names(9), seed=seed)
        assert list(parts) == ["train", "test", "val"]
        assert all(sorted(labels[part]) == [0, 1, 2] for part in parts.values())
        for fold in folds(labels, 3, names(9), seed=seed):
            assert sorted(labels[fold]) == [0, 1, 2]
    parts = split(np.array([0.5, 0.7]), {"val": 0.5}, names(2))
    assert {name: len(part) for name, part in parts.items()} == {"train": 1, "val": 1}
    with raises("too few pictures to split: 1 groups for 2 parts; add pictures"):
        split(np.array([0.5, 0.7]), {"val": 0.5}, ["same", "same"])


def test_each_fold_gets_one_of_three_unequal_groups():
    """Not two of them the first fold, which has room for both."""
    labels = np.array([0] * 30 + [1] * 12)
    who = [*names(30), "small", "smaller", *["large"] * 10]
    for seed in range(10):
        for fold in folds(labels, 3, names(42, "p"), groups=who, seed=seed):
            assert set(labels[fold]) == {0, 1}


def test_neither_the_order_of_pictures_nor_the_type_of_keys_matters():
    rng = np.random.RandomState(0)
    labels = np.repeat([0, 1, 2], 20)
    keys = names(60)
    for i in range(0, 40, 4):  # joins two groups
        keys[i] = keys[i + 1]
    who = [f"who {i}" for i in rng.permutation(60) // 2]
    for groups in (None, who):
        first = split(labels, {"val": 0.3}, keys, groups=groups)["val"]
        for _ in range(5):
            order = rng.permutation(60)
            mixed = groups and [groups[i] for i in order]
            again = split(labels[order], {"val": 0.3}, [keys[i] for i in order], groups=mixed)
            assert set(order[again["val"]]) == set(first)
    as_bytes = [key.encode() for key in keys]
    assert drawn(labels, {"val": 0.3}, as_bytes) == drawn(labels, {"val": 0.3}, keys)


def test_what_a_list_put_into_a_part_counts():
    """Three of four shall validate, and two do."""
    labels = np.repeat([0, 1], [4, 40])
    fixed = ["val", "val", None, None, *[None] * 40]
    val = split(labels, {"val": 0.75}, names(44), fixed=fixed)["val"]
    assert np.bincount(labels[val]).tolist() == [3, 30]


def test_a_class_with_less_than_its_share_leaves_it_to_the_others():
    """Of three pictures one is tested on at most, where two parts are to come."""
    labels = np.repeat([0, 1], [3, 100])
    parts = split(labels, {"test": 0.7, "val": 0.1}, names(103))
    assert np.bincount(labels[parts["test"]]).tolist() == [1, 71]  # 72 of 103
    assert np.bincount(labels[parts["val"]]).tolist() == [1, 9]


def test_a_label_that_no_picture_has_is_no_error():
    labels = np.zeros((40, 3), int)
    labels[:20, 0] = labels[10:30, 1] = 1
    val = split(labels, {"val": 0.5}, names(40), class_names="abc")["val"]
    assert labels[val].sum(axis=0).tolist() == [10, 10, 0] and len(val) == 20


def test_there_is_a_quantile_for_ten_pictures():
    """Up to ten of them: of 20 pictures both halves are divided alike, 19 are drawn as they come."""
    for seed in range(10):
        for count, bins in ((20, 2), (30, 3), (200, 10)):
            values = np.random.default_rng(seed).permutation(count).astype(float)
            val = split(values, {"val": 0.5}, names(count), seed=seed)["val"]
            each = np.bincount((values[val] * bins / count).astype(int), minlength=bins)
            assert each.tolist() == [count // bins // 2] * bins
    halves = set()
    for seed in range(40):
        val = split(np.arange(19.0), {"val": 0.5}, names(19), seed=seed)["val"]
        halves.add(int((val < 10).sum()))
    assert max(halves) - min(halves) > 2


def test_messages_name_the_class_and_the_option():
    labels, who = np.array([0, 0, 0, 1]), [*"abcd"]
    with raises("class emu has 1 readable picture, for 3 parts"):
        folds(labels, 3, names(4), groups=who, class_names=("cat", "emu"))
    with raises("class emu has 1 readable picture; add pictures or give a validation folder"):
        folds(labels, 2, names(4), class_names=("cat", "emu"))
    labels, who = np.array([0] * 9 + [1] * 4), [*names(9), *"aabb"]
    with raises("class 1 has 4 readable pictures, which belong together in 2 groups, for 3 parts;"):
        folds(labels, 3, names(13, "p"), groups=who)
    with raises("class 1 has 4 readable pictures, which belong together in 1 group; add pictures"):
        folds(labels, 2, names(13, "p"), groups=[*names(9), *"aaaa"])
    with raises("no split found that has class 0 in every part"):
        folds(np.array([0, 1, 0, 2, 1, 2]), 2, names(6), groups=[*"xxyyzz"])
    for part, shown in (("val", "validation"), ("test", "test")):
        with raises(f"the {shown} share must lie between 0 and 1 (both excluded), not 1;"):
            split(labels, {part: 1}, names(4))
        with raises(f"(--{part}-split 0.2)"):
            split(labels, {part: 0}, names(4))
    with raises("the shares test 0.5, val 0.6 leave nothing to train on"):
        split(labels, {"test": 0.5, "val": 0.6}, names(4))
    require_fraction(1e-9)
    with raises("the validation share must lie between 0 and 1 (both excluded), not 0"):
        require_fraction(0)


def test_copies_follow_the_fixed_one_and_training_first():
    labels = np.repeat([0, 1], 20)
    keys = names(40)
    keys[1] = keys[2] = keys[0]
    keys[4] = keys[5] = keys[3]
    keys[7] = keys[6]
    fixed = [None] * 40
    fixed[0], fixed[1] = "val", "train"  # the third copy trains
    fixed[3], fixed[4] = "val", "test"  # no copy trains: to the part that is drawn first
    fixed[6] = "held"  # a name of the list's own
    parts = split(labels, {"test": 0.2, "val": 0.2}, keys, fixed=fixed)
    side = {int(i): name for name, part in parts.items() for i in part}
    assert [side[i] for i in range(8)] == [
        *("val", "train", "train"),
        *("val", "test", "test"),
        *("held", "held"),
    ]
    assert list(parts) == ["train", "test", "val", "held"]
    assert is_partition(parts.values(), 40)


def test_what_is_fixed_may_leave_a_class_out():
    """A list is kept to where it leaves no picture of a class to draw."""
    labels = np.array([0] * 10 + [1] * 3)
    fixed = [None] * 10 + ["train"] * 3
    parts = split(labels, {"val": 0.3}, names(13), fixed=fixed)
    assert labels[parts["val"]].tolist() == [0, 0, 0]
    everything = split(labels, {"val": 0.3}, names(13), fixed=["train"] * 13)
    assert len(everything["train"]) == 13 and len(everything["val"]) == 0


# --- The rule, exactly --------------------------------------------------------------------------


class Pool:
    """What a rule asks of `data.Examples`."""

    def __init__(self, labels, digests):
        self.labels, self.digests = np.asarray(labels), list(digests)

    def __len__(self):
        return len(self.labels)

    def take(self, indices):
        return Pool(self.labels[indices], [self.digests[i] for i in indices])


ANIMALS = SimpleNamespace(task="classification", names=("cat", "dog", "emu"))
LABELS = np.repeat([0, 1, 2], [30, 20, 10])
PATHS = [f"{ANIMALS.names[label]}/p{i % 12}_{i}.png" for i, label in enumerate(LABELS)]


def assigned(rule, labels=LABELS, paths=PATHS, given=None, target=ANIMALS, skipped=()):
    """Part → places of the pictures."""
    given = np.array(["train"] * len(labels) if given is None else given)
    found = rule.assign(Pool(labels, names(len(labels))), paths, given, target, skipped)
    return {part: np.flatnonzero(found == part).tolist() for part in sorted(set(found))}


def drawn(*args, **kwargs):
    parts = split(*args, **kwargs)
    return {part: parts[part].tolist() for part in sorted(parts)}


def test_a_rule_draws_what_split_draws():
    keys = names(60)
    shares = {"test": 0.1, "val": 0.3}
    rule = {"val_split": 0.3, "test_split": 0.1, "seed": 4}
    assert list(SplitRule(**rule).shares(set())) == ["test", "val"]
    assert assigned(SplitRule(**rule)) == drawn(LABELS, shares, keys, seed=4)
    assert assigned(SplitRule()) == drawn(LABELS, {"val": 0.2}, keys)
    who = [path.split("/")[1].split("_")[0] for path in PATHS]
    expected = drawn(LABELS, shares, keys, seed=4, groups=who)
    assert assigned(SplitRule(**rule, groups=r"/(p\d+)_")) == expected
    function = SplitRule(**rule, groups=lambda path: Path(path.split("/")[1].split("_")[0]))
    assert assigned(function) == expected  # whatever it returns is read as text
    values = np.random.RandomState(0).normal(size=60)
    number = SimpleNamespace(task="regression", names=("age",))
    assert assigned(SplitRule(), values, target=number) == drawn(values, {"val": 0.2}, keys)
    with raises("class emu has 1 readable picture"):
        assigned(SplitRule(), [0, 0, 1, 1, 2], PATHS[:5])


def test_a_rule_takes_the_fold_that_was_asked_for():
    keys = names(60)
    test = split(LABELS, {"test": 0.1}, keys, seed=4)["test"]
    rest = np.setdiff1d(np.arange(60), test)
    found = folds(LABELS[rest], 3, [keys[i] for i in rest], seed=4)
    for fold in (1, 2, 3):
        parts = assigned(SplitRule(folds=3, fold=fold, test_split=0.1, seed=4))
        val = rest[found[fold - 1]]
        train = np.setdiff1d(rest, val).tolist()
        assert parts == {"test": test.tolist(), "train": train, "val": val.tolist()}
    who = [f"p{i % 12}" for i in range(60)]
    plain = folds(LABELS, 2, keys, groups=who)
    parts = assigned(SplitRule(folds=2, fold=2, groups=r"/(p\d+)_"))
    assert parts == {"train": plain[0].tolist(), "val": plain[1].tolist()}
    alone = [0] * 9 + [2]
    with raises("class emu has 1 readable picture"):
        assigned(SplitRule(folds=2, fold=1), alone, PATHS[:10])
    with raises("class emu has 1 readable picture"):
        assigned(SplitRule(folds=2, fold=1, test_split=0.2), alone, PATHS[:10])


def test_what_the_folders_give_is_not_divided():
    given = ["val" if i % 5 == 0 else "train" for i in range(60)]
    rest = [i for i in range(60) if i % 5]
    assert assigned(SplitRule(), given=given)["val"] == list(range(0, 60, 5))
    parts = assigned(SplitRule(test_split=0.25), given=given)
    assert parts["val"] == list(range(0, 60, 5))
    expected = split(LABELS[rest], {"test": 0.25}, [names(60)[i] for i in rest])["test"]
    assert parts["test"] == [rest[i] for i in expected]


@pytest.mark.parametrize(
    "options, given, shares",
    [
        ({}, (), {"val": 0.2}),
        ({}, ("test",), {"val": 0.2}),
        ({}, ("val",), {}),
        ({"val_split": 7}, ("val",), {}),  # not asked for
        ({"test_split": 0.1}, (), {"test": 0.1, "val": 0.2}),
        ({"test_split": 0.1}, ("val",), {"test": 0.1}),
        ({"test_split": 0.1, "groups": "(p)"}, ("val",), {"test": 0.1}),
        ({"folds": 2, "fold": 2}, (), {}),
        ({"folds": 2, "fold": 1, "test_split": 0.1}, (), {"test": 0.1}),
        ({"groups": "(p)"}, (), {"val": 0.2}),
    ],
)
def test_what_a_rule_draws(options, given, shares):
    rule = SplitRule(**options)
    assert rule.shares(set(given)) == shares
    assert rule.check(set(given)) is bool(shares or "folds" in options)


def test_a_list_is_something_to_divide_by(tmp_path):
    rule = SplitRule(split_file=write_list(tmp_path / "list.csv", [("a", "val")]), groups="(p)")
    assert rule.check({"val"}) is True and rule.shares({"val"}) == {}
    assert rule.listed == {"a": "val"} and SplitRule().listed == {}
    (tmp_path / "list.csv").unlink()
    assert rule.listed == {"a": "val"}  # it was read once


@pytest.mark.parametrize(
    "options, words",
    [
        ({"folds": 5}, "give --folds (how many) and --fold (which one) together"),
        ({"fold": 5}, "give --folds (how many) and --fold (which one) together"),
        ({"folds": 1, "fold": 1}, "--folds 1: cross-validation needs 2 or more"),
        ({"folds": 3, "fold": 0}, "--fold 0: choose one from 1 to 3"),
        ({"folds": 3, "fold": 4}, "--fold 4: choose one from 1 to 3"),
        ({"folds": 3, "fold": 1, "split_file": "a"}, "--folds and --split exclude each other"),
        ({"groups": "("}, "--group (: not a regular expression: missing )"),
        ({"groups": "p"}, "--group p: put the part of the path that names the group in one pair"),
        ({"groups": "(p)(q)"}, "--group (p)(q): put the part of the path"),
    ],
)
def test_rules_that_cannot_be(options, words):
    with raises(words):
        SplitRule(**options)


@pytest.mark.parametrize(
    "options, given, words",
    [
        (
            {"test_split": 0.3},
            {"test"},
            "a test share of 0.3 and a folder of test pictures exclude",
        ),
        ({"test_split": 1}, set(), "the test share must lie between 0 and 1"),
        ({"val_split": 0}, set(), "the validation share must lie between 0 and 1"),
        ({"folds": 2, "fold": 1}, {"val"}, "--folds needs all pictures in one folder"),
        ({"groups": "(p)"}, {"val"}, "--group says how to split, and the validation pictures are"),
    ],
)
def test_rules_that_do_not_fit_the_folders(options, given, words):
    with raises(words):
        SplitRule(**options).check(given)


def test_paths_without_a_group_are_counted_and_one_is_shown():
    with raises("--group (p1)_ finds no group in 55 of 60 paths, for example cat/p0_0.png: give"):
        assigned(SplitRule(groups="(p1)_"))


def test_a_list_and_the_rule_for_the_rest(tmp_path, capsys):
    rows = [(path, "train") for path in PATHS[:20]] + [(path, "val") for path in PATHS[20:25]]
    rows[0] = ("./cat//p0_0.png", "Validation ")
    file = write_list(tmp_path / "list.csv", rows)
    parts = assigned(SplitRule(split_file=file, seed=2))
    fixed = ["val", *["train"] * 19, *["val"] * 5, *[None] * 35]
    assert parts == drawn(LABELS, {"val": 0.2}, names(60), seed=2, fixed=fixed)
    assert capsys.readouterr().err == (f"{file} does not name 35 pictures: split by the rule\n")
    # What folders give as validation is not drawn from, and can be moved by the list.
    given = ["train"] * 58 + ["val", "val"]
    rows = [(path, "train") for path in PATHS[:56]] + [(PATHS[58], "train"), (PATHS[57], "test")]
    parts = assigned(SplitRule(split_file=write_list(file, rows)), given=given)
    assert parts == {"test": [57], "train": [*range(57), 58], "val": [59]}
    assert "does not name 1 pictures" in capsys.readouterr().err


def test_what_is_gone_is_named_ten_times_at_most(tmp_path, capsys):
    rows = [(path, "val" if i % 3 == 0 else "train") for i, path in enumerate(PATHS)]
    whole = assigned(SplitRule(split_file=write_list(tmp_path / "a.csv", rows)))
    assert whole == {"train": [i for i in range(60) if i % 3], "val": list(range(0, 60, 3))}
    assert capsys.readouterr().err == ""
    for count, end in ((1, "gone00"), (10, "gone09"), (11, "gone09, …")):
        more = [(f"gone{i:02}", "test") for i in reversed(range(count))]
        rule = SplitRule(split_file=write_list(tmp_path / "b.csv", [*rows, *more, ("left", "val")]))
        assert assigned(rule, skipped=["left"]) == whole
        said = capsys.readouterr().err
        assert f"b.csv names {count} pictures that are gone: gone00" in said
        assert said.endswith(f"{end}\n") and said.count("gone0") == min(count, 10)


def test_lists_that_leave_a_part_or_a_class_empty(tmp_path):
    def listed(parts, labels=LABELS, target=ANIMALS):
        rule = SplitRule(split_file=write_list(tmp_path / "l.csv", zip(PATHS, parts)))
        return assigned(rule, labels, target=target)

    for part, other in (("train", "val"), ("val", "train")):
        with raises(f"l.csv leaves no picture in {part}: name some"):
            listed([other] * 60)
    cats = ["train"] * 30 + ["val"] * 30
    with raises("l.csv leaves no picture of class dog in train: name some"):
        listed(cats)
    many = SimpleNamespace(task="multi_label", names=ANIMALS.names)
    assert listed(cats, np.eye(3, dtype=int)[LABELS], many)["val"] == list(range(30, 60))
    with raises(
        "l.csv names none of the pictures: its paths must be relative to the folder of the"
    ):
        assigned(SplitRule(split_file=write_list(tmp_path / "l.csv", [("b", "val"), ("a", "val")])))
    with raises("like cat/p0_0.png, not a"):
        assigned(SplitRule(split_file=tmp_path / "l.csv"))


def test_files_of_lists(tmp_path, monkeypatch):
    def read(text, encoding="utf-8"):
        (tmp_path / "l.csv").write_bytes(text.encode(encoding))
        return read_split_file(tmp_path / "l.csv")

    text = "path,label,split\nä.png,x, TRAIN \r\nb,,valid\nä/c,,test\nä.png,,train\n"
    expected = {"ä.png": "train", "b": "val", "ä/c": "test"}
    assert read(text) == read(text, "utf-8-sig") == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_split_file("~/l.csv") == expected
    assert list(read('path,split\n"two\r\nlines",val\n')) == ["two\r\nlines"]
    for text, words in (
        ("", "has no column path and no column split; a list of splits has the columns path and"),
        ("path\n", "has no column split;"),
        ("path,split\n", "l.csv names no picture"),
        ("path,split\na,val\nb\n", "l.csv, line 3: None is no split; use train, val or test"),
        ("path,split\na,training\n", "l.csv, line 2: 'training' is no split"),
        ("path,split\na,val\na,train\n", "l.csv, line 3: a is in val and in train"),
        ("path,split\n" + "a" * 200_000, "l.csv is no CSV file in UTF-8: field larger than"),
    ):
        with raises(words):
            read(text)
    with raises("l.csv is no CSV file in UTF-8: 'utf-8' codec can't decode"):
        read("path,split\nä,val\n", "latin-1")
    with raises(f"cannot read the list of splits {tmp_path / 'no.csv'}: No such file or directory"):
        read_split_file(tmp_path / "no.csv")


def test_nobody_is_tested_on_and_trained_on_with_folds():
    who = np.array([f"p{i % 12}" for i in range(60)])
    rule = SplitRule(folds=2, fold=1, test_split=0.25, groups=r"/(p\d+)_")
    people_of = [set(who[part].tolist()) for part in assigned(rule).values()]
    assert sum(map(len, people_of)) == len(set.union(*people_of)) == 12


def test_a_list_may_train_on_what_folders_validate(tmp_path):
    rows = [(path, "train") for i, path in enumerate(PATHS) if i % 3]
    rule = SplitRule(split_file=write_list(tmp_path / "list.csv", rows))
    parts = assigned(rule, given=["val"] * 60)
    assert parts == {"train": [i for i in range(60) if i % 3], "val": list(range(0, 60, 3))}


def test_the_class_most_above_its_share_gives_to_rare_ones():
    labels = np.repeat([0, 1, 2, 3], [40, 25, 2, 2])
    val = split(labels, {"val": 0.1}, names(69))["val"]
    assert np.bincount(labels[val]).tolist() == [3, 2, 1, 1]  # the shares are 4, 2.5, 0.2 and 0.2
