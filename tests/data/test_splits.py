"""Splits: class shares, groups, folds, lists, and what moves when files are added or renamed."""

from collections import Counter

import numpy as np
import pytest
from conftest import raises

from keras_transfer.data import folds, split
from keras_transfer.data.examples import Target
from keras_transfer.data.split_rule import strata
from keras_transfer.data.splits import stratified_sample


def names(count, prefix="picture"):
    # The digests in test_splits_exactly.py are those of these names.
    return [f"{prefix} {i}" for i in range(count)]


def is_partition(parts, count):
    return np.array_equal(np.sort(np.concatenate(list(parts))), np.arange(count))


def drawn(*args, **kwargs):
    parts = split(*args, **kwargs)
    return {part: parts[part].tolist() for part in sorted(parts)}


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
def test_single_images_are_split_exactly(counts, fraction, expected):
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


def test_several_labels_a_image_keep_their_shares():
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
    with raises("class tail has 1 readable example"):
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
    for i in range(0, 40, 2):  # ten pairs of copies of class 0, and of an image of class 1
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
    with raises("class dog has 4 readable examples, which belong together in 1 group"):
        split(labels, {"val": 0.2}, names(14), groups=who, class_names=("cat", "dog"))
    with raises("too few examples to split: class dog has 1 readable example; add some or"):
        split(np.array([0, 0, 1]), {"val": 0.5}, names(3), class_names=("cat", "dog"))
    with raises("class 0 has 2 readable examples, for 3 parts"):
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
        with raises("must be between 0 and 1"):
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
def test_added_images_move_few_old_ones(more):
    rng = np.random.default_rng(more)
    for seed in range(5):
        labels, added = rng.integers(0, 10, 1000), rng.integers(0, 10, more)
        # Each new image takes at most one place; rounding moves at most one a class.
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


def test_added_images_may_move_none():
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
    with raises("class 1 has 3 readable examples, for 5 parts"):
        folds(np.array([0] * 20 + [1] * 3), 5, names(23))
    with raises("3 groups for 4 parts"):
        folds(np.linspace(0, 1, 9), 4, names(9), groups=[*"aaabbbccc"])


def sample_counts(labels, size, **options):
    chosen = stratified_sample(labels, size, **options)
    assert (np.diff(chosen) > 0).all() and len(chosen) <= size
    return np.bincount(np.asarray(labels)[chosen], minlength=max(labels) + 1).tolist()


def test_a_sample_has_the_shares_of_all_rows_and_five_of_each_class():
    labels = np.repeat([0, 1, 2], [600, 300, 6])
    assert sample_counts(labels, 90) == [57, 28, 5]
    assert sample_counts(labels, 15) == [5, 5, 5]
    assert sample_counts(labels, 905) == [599, 300, 6]
    assert stratified_sample(labels, 906).tolist() == list(range(906))
    assert stratified_sample(labels, 2000).tolist() == list(range(906))
    assert len(stratified_sample(labels, 2)) == 2


def test_a_sample_depends_on_the_seed_alone():
    labels = np.repeat([0, 1], 100)
    first = stratified_sample(labels, 20, seed=3)
    assert first.tolist() == stratified_sample(labels, 20, seed=3).tolist()
    assert first.tolist() != stratified_sample(labels, 20, seed=4).tolist()
    assert stratified_sample(labels, 20).tolist() == stratified_sample(labels, 20, seed=0).tolist()
    # Samples of earlier releases, on which recorded measurements depend.
    assert stratified_sample(np.repeat([0, 1], [12, 8]), 8, seed=1).tolist() == [
        *(1, 7, 10, 11, 12, 16, 17, 18)
    ]


def test_groups_are_sampled_whole():
    labels, groups = np.repeat([0, 1], [40, 20]), np.repeat(np.arange(15) * 7, 4)
    chosen = stratified_sample(labels, 24, groups=groups)
    assert (np.bincount(np.unique(groups[chosen], return_inverse=True)[1]) == 4).all()
    assert len(chosen) == 24 and len(set(groups[chosen])) == 6
    large = np.repeat([0, 1, 2], [10, 3, 3])
    few = stratified_sample(np.repeat([0, 1], [10, 6]), 6, groups=large)
    assert 3 <= len(few) <= 6 and set(large[few]) <= {1, 2}


def test_several_heads_are_split_by_the_first_with_classes():
    heads = {
        "age": Target("regression", ("age",)),
        "tags": Target("multi_label", ("a", "b")),
        "kind": Target("single_label", ("x", "y")),
    }
    labels = {"age": np.array([[1.0]]), "tags": np.array([[0, 1]]), "kind": np.array([1])}
    chosen, names = strata(labels, heads)
    assert chosen is labels["kind"] and names == ("x", "y")
    chosen, names = strata(labels["tags"], heads["tags"])
    assert chosen is labels["tags"] and names == ("a", "b")
    assert strata(labels["age"], heads["age"]) == (labels["age"], None)


def test_a_sample_is_not_empty_where_groups_are_larger():
    labels, groups = np.arange(100) % 2, np.arange(100) // 50
    sampled = stratified_sample(labels, 20, groups=groups)
    assert len(sampled) == 20 and labels[sampled].sum() == 10
