"""Splits, exactly: the parts of earlier releases, the edges of the rules, the words of the messages."""

import hashlib
import json
import re

import numpy as np
from conftest import raises
from test_splits import drawn, is_partition, names

from keras_transfer.data import SplitRule, folds, split
from keras_transfer.data.splits import require_fraction
from keras_transfer.errors import InputError


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
    """Or an image that was trained on would be tested on after an update."""
    digests = {}
    divided_by_kind = {**example_splits(), "few groups": example_splits_of_few_groups()}
    for kind, divided in divided_by_kind.items():
        plain = [{name: part.tolist() for name, part in parts.items()} for parts in divided]
        text = json.dumps(plain).encode()
        digests[kind] = hashlib.blake2b(text, digest_size=8).hexdigest()
    assert digests == DIGESTS


def test_what_is_not_said():
    assert SplitRule() == SplitRule(None, 0.0, None, None, None, None, 0)
    assert SplitRule().shares(["train"]) == {"val": 0.2}
    labels = np.repeat([0, 1], 50)
    default, zero = (split(labels, {"val": 0.2}, names(100), **s) for s in ({}, {"seed": 0}))
    assert list(default) == ["train", "val"]
    assert np.array_equal(default["val"], zero["val"])
    first, same = (folds(labels, 3, names(100), **s) for s in ({}, {"seed": 0}))
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    other = folds(labels, 3, names(100), seed=1)
    assert not np.array_equal(first[0], other[0])


def test_as_many_images_of_a_class_as_parts_are_enough():
    labels = np.repeat([0, 1, 2], 3)
    for seed in range(10):
        parts = split(labels, {"test": 0.3, "val": 0.3}, names(9), seed=seed)
        assert list(parts) == ["train", "test", "val"]
        assert all(sorted(labels[part]) == [0, 1, 2] for part in parts.values())
        for fold in folds(labels, 3, names(9), seed=seed):
            assert sorted(labels[fold]) == [0, 1, 2]
    parts = split(np.array([0.5, 0.7]), {"val": 0.5}, names(2))
    assert {name: len(part) for name, part in parts.items()} == {"train": 1, "val": 1}
    with raises("too few examples to split: 1 group for 2 parts; add some"):
        split(np.array([0.5, 0.7]), {"val": 0.5}, ["same", "same"])


def test_each_fold_gets_one_of_three_unequal_groups():
    """Not two of them the first fold, which has room for both."""
    labels = np.array([0] * 30 + [1] * 12)
    who = [*names(30), "small", "smaller", *["large"] * 10]
    for seed in range(10):
        for fold in folds(labels, 3, names(42, "p"), groups=who, seed=seed):
            assert set(labels[fold]) == {0, 1}


def test_neither_the_order_of_images_nor_the_type_of_keys_matters():
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
    """Of three images one is tested on at most, where two parts are to come."""
    labels = np.repeat([0, 1], [3, 100])
    parts = split(labels, {"test": 0.7, "val": 0.1}, names(103))
    assert np.bincount(labels[parts["test"]]).tolist() == [1, 71]  # 72 of 103
    assert np.bincount(labels[parts["val"]]).tolist() == [1, 9]


def test_a_label_that_no_image_has_is_no_error():
    labels = np.zeros((40, 3), int)
    labels[:20, 0] = labels[10:30, 1] = 1
    val = split(labels, {"val": 0.5}, names(40), class_names="abc")["val"]
    assert labels[val].sum(axis=0).tolist() == [10, 10, 0] and len(val) == 20


def test_there_is_a_quantile_for_ten_images():
    """Up to ten of them: of 20 images both halves are divided alike, 19 are drawn as they come."""
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
    with raises("class emu has 1 readable example, for 3 parts"):
        folds(labels, 3, names(4), groups=who, class_names=("cat", "emu"))
    with raises("class emu has 1 readable example; add some or pass a validation folder"):
        folds(labels, 2, names(4), class_names=("cat", "emu"))
    labels, who = np.array([0] * 9 + [1] * 4), [*names(9), *"aabb"]
    with raises("class 1 has 4 readable examples, which belong together in 2 groups, for 3 parts;"):
        folds(labels, 3, names(13, "p"), groups=who)
    with raises("class 1 has 4 readable examples, which belong together in 1 group; add some"):
        folds(labels, 2, names(13, "p"), groups=[*names(9), *"aaaa"])
    with raises("no split found that has class 0 in every part"):
        folds(np.array([0, 1, 0, 2, 1, 2]), 2, names(6), groups=[*"xxyyzz"])
    for part, shown in (("val", "validation"), ("test", "test")):
        with raises(f"the {shown} share must be between 0 and 1 (both excluded), not 1;"):
            split(labels, {part: 1}, names(4))
        with raises(f"(--{part}-split 0.2)"):
            split(labels, {part: 0}, names(4))
    with raises("the shares test 0.5, val 0.6 leave nothing to train on"):
        split(labels, {"test": 0.5, "val": 0.6}, names(4))
    require_fraction(1e-9)
    with raises("the validation share must be between 0 and 1 (both excluded), not 0"):
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
    """A list is kept to where it leaves no image of a class to draw."""
    labels = np.array([0] * 10 + [1] * 3)
    fixed = [None] * 10 + ["train"] * 3
    parts = split(labels, {"val": 0.3}, names(13), fixed=fixed)
    assert labels[parts["val"]].tolist() == [0, 0, 0]
    everything = split(labels, {"val": 0.3}, names(13), fixed=["train"] * 13)
    assert len(everything["train"]) == 13 and len(everything["val"]) == 0
