"""Splits of folders: by pattern, by list, by fold; and what a rule asks `split` for."""

import csv
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import raises, write_image
from test_splits import drawn, names

from keras_transfer.data import (
    SplitRule,
    folds,
    from_directory,
    labeled_images,
    read_split_file,
    split,
)

# --- Folders ----------------------------------------------------------------------------------


def folder(root, counts, people=1):
    """root/<class>/p<person>_<i>.png, all of them different."""
    at = 0
    for name, count in counts.items():
        for i in range(count):
            at += 1
            write_image(root / name / f"p{i % people}_{i:02}.png", (90, 90, 90), (4, 4), seed=at)
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


def test_each_image_is_validated_in_one_fold(animals):
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
    capsys.readouterr()  # the names suggest groups
    again = from_directory(animals, split_file=file)
    assert again.split_table() == data.split_table()
    assert capsys.readouterr().err == ""
    # What is new goes by the rule, what is gone is named, and a copy follows its original.
    copied = data.examples["test"].names[0]
    (animals / "cat" / "copy.png").write_bytes(Path(copied).read_bytes())
    write_image(animals / "cat" / "new.png", (1, 1, 1), seed=99)
    gone = animals / "dog" / "p1_01.png"
    gone.unlink()
    broken = animals / "dog" / "p2_02.png"
    broken.write_bytes(b"")
    changed = from_directory(animals, split_file=file)
    said = capsys.readouterr().err
    assert "names 1 image that no longer exists: dog/p1_01.png\n" in said
    assert "does not name 2 images: the rule assigns them" in said
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
    refused("line 2: 'trian' is not a split; use train, val or test", [("a", "trian")])
    refused("is in train and in val", [("a", "train"), ("a", "val")])
    refused("names no example", [])
    refused("names none of the examples", [("elsewhere/cat/p0_00.png", "val")])
    everything = [(str(p.relative_to(animals)), "train") for p in animals.glob("*/*.png")]
    refused("leaves no example in val", everything)
    no_emu = [(name, "val" if name.startswith("emu") else part) for name, part in everything]
    refused("leaves no example of class emu in train", no_emu)
    assert read_split_file(write_list(tmp_path / "l.csv", [("a", "valid")])) == {"a": "val"}


def test_what_does_not_go_together(animals, tmp_path):
    for options, words in (
        ({"folds": 5}, "together"),
        ({"folds": 1, "fold": 1}, "needs 2 or more"),
        ({"folds": 5, "fold": 0}, "choose one from 1 to 5"),
        ({"folds": 5, "fold": 1, "split_file": "x.csv"}, "cannot be combined"),
        ({"groups": "p("}, "not a regular expression"),
        ({"groups": "p"}, "one pair of parentheses"),
    ):
        with raises(words):
            SplitRule(**options)
    with raises("finds no group in 40 of 40 paths, for example cat/p0_00.png"):
        from_directory(animals, groups=r"(q\d)")
    with raises("must be between 0 and 1"):
        from_directory(animals, test_split=1.0)
    root = folder(
        tmp_path / "given", {f"{p}/{c}": 3 for p in ("train", "val", "test") for c in "ab"}
    )
    with raises("omit --test-split"):
        from_directory(root, test_split=0.1)
    with raises("--folds needs all images in one folder"):
        from_directory(root, folds=3, fold=1)
    with raises("--group determines the split"):
        from_directory(root, groups="(p)")


def test_parts_of_a_list_are_measured(animals, tmp_path):
    data = from_directory(animals, test_split=0.2)
    file = write_list(tmp_path / "list.csv", data.split_table(), ("path", "label", "split"))
    test = labeled_images(animals, data.class_names, split="test", split_file=file)
    assert test.examples["test"].names == data.examples["test"].names
    whole = labeled_images(animals, data.class_names, split_file=file)
    assert len(whole.examples["all"]) == 40
    with raises("names no test example"):
        only = write_list(tmp_path / "only.csv", [("cat/p0_00.png", "val")])
        labeled_images(animals, data.class_names, split="test", split_file=only)


# --- The rule, exactly --------------------------------------------------------------------------


class Pool:
    """What a rule asks of `data.Examples`."""

    def __init__(self, labels, digests):
        self.labels, self.digests = np.asarray(labels), list(digests)
        self.alike = self.digests

    def __len__(self):
        return len(self.labels)

    def take(self, indices):
        return Pool(self.labels[indices], [self.digests[i] for i in indices])


ANIMALS = SimpleNamespace(task="classification", names=("cat", "dog", "emu"))
LABELS = np.repeat([0, 1, 2], [30, 20, 10])
PATHS = [f"{ANIMALS.names[label]}/p{i % 12}_{i}.png" for i, label in enumerate(LABELS)]


def assigned(rule, labels=LABELS, paths=PATHS, given=None, target=ANIMALS, skipped=()):
    """Part → places of the images."""
    given = np.array(["train"] * len(labels) if given is None else given)
    found = rule.assign(Pool(labels, names(len(labels))), paths, given, target, skipped)
    return {part: np.flatnonzero(found == part).tolist() for part in sorted(set(found))}


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
    with raises("class emu has 1 readable example"):
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
    with raises("class emu has 1 readable example"):
        assigned(SplitRule(folds=2, fold=1), alone, PATHS[:10])
    with raises("class emu has 1 readable example"):
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
        ({"folds": 5}, "pass --folds (how many) and --fold (which one) together"),
        ({"fold": 5}, "pass --folds (how many) and --fold (which one) together"),
        ({"folds": 1, "fold": 1}, "--folds 1: cross-validation needs 2 or more"),
        ({"folds": 3, "fold": 0}, "--fold 0: choose one from 1 to 3"),
        ({"folds": 3, "fold": 4}, "--fold 4: choose one from 1 to 3"),
        ({"folds": "3", "fold": 1}, "--folds '3': pass a whole number"),
        ({"folds": 3, "fold": 1, "split_file": "a"}, "--folds and --split cannot be combined"),
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
            "a test share of 0.3 cannot be combined with a folder of test images",
        ),
        ({"test_split": 1}, set(), "the test share must be between 0 and 1"),
        ({"val_split": 0}, set(), "the validation share must be between 0 and 1"),
        ({"val_split": "0.2"}, set(), "between 0 and 1 (both excluded), not '0.2'; 0.2 is usual"),
        ({"folds": 2, "fold": 1}, {"val"}, "--folds needs all images in one folder"),
        (
            {"groups": "(p)"},
            {"val"},
            "--group determines the split, but the validation examples are",
        ),
    ],
)
def test_rules_that_do_not_fit_the_folders(options, given, words):
    with raises(words):
        SplitRule(**options).check(given)


def test_paths_without_a_group_are_counted_and_one_is_shown():
    with raises("--group (p1)_ finds no group in 55 of 60 paths, for example cat/p0_0.png: pass"):
        assigned(SplitRule(groups="(p1)_"))


def test_a_list_and_the_rule_for_the_rest(tmp_path, capsys):
    rows = [(path, "train") for path in PATHS[:20]] + [(path, "val") for path in PATHS[20:25]]
    rows[0] = ("./cat//p0_0.png", "Validation ")
    file = write_list(tmp_path / "list.csv", rows)
    parts = assigned(SplitRule(split_file=file, seed=2))
    fixed = ["val", *["train"] * 19, *["val"] * 5, *[None] * 35]
    assert parts == drawn(LABELS, {"val": 0.2}, names(60), seed=2, fixed=fixed)
    assert capsys.readouterr().err == (f"{file} does not name 35 images: the rule assigns them\n")
    # What folders give as validation is not drawn from, and can be moved by the list.
    given = ["train"] * 58 + ["val", "val"]
    rows = [(path, "train") for path in PATHS[:56]] + [(PATHS[58], "train"), (PATHS[57], "test")]
    parts = assigned(SplitRule(split_file=write_list(file, rows)), given=given)
    assert parts == {"test": [57], "train": [*range(57), 58], "val": [59]}
    assert "does not name 1 image:" in capsys.readouterr().err


def test_what_is_gone_is_named_ten_times_at_most(tmp_path, capsys):
    rows = [(path, "val" if i % 3 == 0 else "train") for i, path in enumerate(PATHS)]
    whole = assigned(SplitRule(split_file=write_list(tmp_path / "a.csv", rows)))
    assert whole == {"train": [i for i in range(60) if i % 3], "val": list(range(0, 60, 3))}
    assert capsys.readouterr().err == ""
    for count, end in ((1, "gone00"), (10, "gone09"), (11, "gone09, and 1 more")):
        more = [(f"gone{i:02}", "test") for i in reversed(range(count))]
        rule = SplitRule(split_file=write_list(tmp_path / "b.csv", [*rows, *more, ("left", "val")]))
        assert assigned(rule, skipped=["left"]) == whole
        said = capsys.readouterr().err
        exist = "image that no longer exists" if count == 1 else "images that no longer exist"
        assert f"b.csv names {count} {exist}: gone00" in said
        assert said.endswith(f"{end}\n") and said.count("gone0") == min(count, 10)


def test_lists_that_leave_a_part_or_a_class_empty(tmp_path):
    def listed(parts, labels=LABELS, target=ANIMALS):
        rule = SplitRule(split_file=write_list(tmp_path / "l.csv", zip(PATHS, parts)))
        return assigned(rule, labels, target=target)

    for part, other in (("train", "val"), ("val", "train")):
        with raises(f"l.csv leaves no example in {part}: list some"):
            listed([other] * 60)
    cats = ["train"] * 30 + ["val"] * 30
    with raises("l.csv leaves no example of class dog in train: list some"):
        listed(cats)
    many = SimpleNamespace(task="multi_label", names=ANIMALS.names)
    assert listed(cats, np.eye(3, dtype=int)[LABELS], many)["val"] == list(range(30, 60))
    with raises(
        "l.csv names none of the examples: its paths must be relative to the folder of the"
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
        ("path,split\n", "l.csv names no example"),
        ("path,split\na,val\nb\n", "l.csv, line 3: None is not a split; use train, val or test"),
        ("split,path\nval,a\ntrain\n", "l.csv, line 3 has no path"),
        ("path,split\n,val\n", "l.csv, line 2 has no path"),
        ("path,split\na,trial\n", "l.csv, line 2: 'trial' is not a split"),
        ("path,split\na,val\na,train\n", "l.csv, line 3: a is in val and in train"),
        ("path,split\n" + "a" * 200_000, "l.csv is not a CSV file: field larger than"),
    ):
        with raises(words):
            read(text)
    assert [os.fsencode(name) for name in read("path,split\nä,val\n", "latin-1")] == [b"\xe4"]
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


def test_groups_of_the_split_and_copies_stay_together_later(tmp_path):
    """Cross-validation on the training images keeps the groups of the rule, and copies across them."""
    for i in range(24):
        color = (
            (i * 10, 50, 50) if i != 13 else (10, 50, 50)
        )  # 13 is a copy of 1, of another person
        seed = 1 if i == 13 else i
        write_image(tmp_path / "ab"[i % 2] / f"person{i // 4}_{i}.png", color, seed=seed)
    data = from_directory(tmp_path, groups=r"(person\d+)")
    train = data.examples["train"]
    persons = [Path(name).name.split("_")[0] for name in train.names]
    numbers = dict(zip(persons, train.together))
    assert [numbers[person] for person in persons] == train.together.tolist()
    assert numbers.get("person0") == numbers.get("person3")  # by the copy, if both are there
    others = set(numbers) - {"person0", "person3"}
    assert len({numbers[person] for person in others}) == len(others)
