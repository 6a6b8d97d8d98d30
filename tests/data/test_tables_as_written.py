"""Tables as spreadsheets, pandas and people write them."""

import codecs
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from conftest import raises, write_image

from keras_transfer.cli.columns import columns_of, command_with
from keras_transfer.data import from_table, open_labeled, read_targets
from keras_transfer.data.examples import Target
from keras_transfer.errors import ColumnError, InputError


@pytest.fixture
def images(tmp_path):
    """images/{cat,dog}/0.png to 5.png."""
    for label, colour in (("cat", (200, 30, 30)), ("dog", (30, 180, 40))):
        for i in range(6):
            write_image(tmp_path / "images" / label / f"{i}.png", colour, size=(8, 8), seed=i)
    return tmp_path


def lines(form="images/{0}/{1}.png,{0}"):
    return [form.format(label, i) for label in ("cat", "dog") for i in range(6)]


def table(folder, content, name="t.csv", **options):
    content = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(content)
    return from_table(folder / name, val_split=0.34, progress=False, **options)


def count_of(data):
    return sum(len(part) for part in data.examples.values())


# -- separators, encodings, empty rows ------------------------------------------------------------


PLAIN = "\n".join(["path,label", *lines()]) + "\n"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", "|"),
        "sep=;\r\n" + PLAIN.replace(",", ";").replace("\n", "\r\n"),
        '"sep=,"\n' + PLAIN,
        codecs.BOM_UTF8 + PLAIN.encode(),
        PLAIN.replace(",", "\t").encode("utf-16"),
        codecs.BOM_UTF16_BE + PLAIN.encode("utf-16-be"),
        PLAIN.encode("utf-16-le"),
        PLAIN + "\n\n",
        PLAIN + ",\n,\n",
        PLAIN.replace("path,label", "path,label,,").replace("\n", ",,\n"),
        PLAIN.replace("path,label\n", "path,label\n\n,\n"),
        PLAIN.replace("path,label", " path , label ").replace(",", " , "),
        PLAIN.replace("path,label", '"path", "label"').replace(",dog", ', "dog"'),
        "\n" + PLAIN,
        ",path,label\n" + "\n".join(f"{i},{line}" for i, line in enumerate(lines())),
        PLAIN.replace("path,label", "path,label,note").replace(
            "cat\n", 'cat,"two\nlines, and a comma"\n'
        ).replace("dog\n", "dog,\n"),
        PLAIN.replace("/", "\\"),
        PLAIN.replace(".png", ""),
        PLAIN.replace(".png", "").replace("/", "\\"),
        PLAIN.replace("/", "\\").replace("images", "C:\\Users\\me\\pets\\images"),
        PLAIN.replace(".png", "").replace("images", "D:/pets/images"),
    ],
)  # fmt: skip
def test_a_table_is_read_however_a_spreadsheet_writes_it(images, content):
    data = table(images, content)
    assert data.class_names == ("cat", "dog")
    assert count_of(data) == 12 and not data.skipped
    for part in data.examples.values():
        for path, label in zip(part.names, part.labels):
            assert f"/{data.class_names[label]}/" in path


def test_a_tsv_file_with_commas_is_read(images):
    assert count_of(table(images, PLAIN, "t.tsv")) == 12


def test_quotes_in_a_tsv_file_may_be_part_of_the_text(tmp_path, capsys):
    texts = [f'"Fine" said {i}' if i % 2 else f'"one quote {i}' for i in range(12)]
    rows = [f"{text}\t{'ab'[i // 6]}" for i, text in enumerate(texts)]
    data = table(tmp_path, "text\tlabel\n" + "\n".join(rows), "t.tsv")
    found = {p.images.decoded(i) for p in data.examples.values() for i in range(len(p))}
    assert found == set(texts)
    assert "its quotes do not enclose whole cells" in capsys.readouterr().err


def test_quotes_that_are_not_written_twice_are_refused_with_their_line(tmp_path):
    rows = [f'"He said \\"hi\\", {i}",{"ab"[i // 6]}' for i in range(12)]
    with pytest.raises(InputError, match=r"line 2: .* write a quote inside a cell in quotes twice"):
        table(tmp_path, "text,label\n" + "\n".join(rows))


def test_rows_keep_their_numbers_below_empty_rows(images, capsys):
    with pytest.raises(InputError, match="row 4: path is empty"):
        table(images, "path,label\nimages/cat/1.png,cat\n,\n\n,dog\n")
    assert "2 empty rows are left out (2, 3)" in capsys.readouterr().err


def test_two_columns_of_one_name_are_refused(images):
    with pytest.raises(InputError, match=r"t\.csv has several columns named 'label': rename"):
        table(images, "path,label, label \na.png,x,y\n")
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([["a.png", "x", "y"]], columns=["path", "label", "label"])
    with pytest.raises(InputError, match="several columns named 'label'"):
        from_table(frame)
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = arrow.Table.from_arrays([["a.png"], ["x"], ["y"]], ["path", "label", "label"])
    parquet.write_table(columns, images / "t.parquet")
    with pytest.raises(InputError, match="several columns named 'label'"):
        from_table(images / "t.parquet")


def test_the_ansi_export_of_excel_is_told_to_be_saved_as_utf_8(images):
    message = (
        r"UTF-8 CSV \([a-z ]+, line \d\)\. It fits cp1252: save it as 'CSV UTF-8', or .* -f cp1252 "
    )
    with pytest.raises(InputError, match=message):
        table(images, PLAIN.replace("cat\n", "Kätzchen\n").encode("cp1252"))
    with pytest.raises(InputError, match="It fits latin-1: save it as 'CSV UTF-8'"):
        table(images, PLAIN.encode().replace(b"cat\n", b"k\x81t\n"))
    with pytest.raises(InputError, match=r"cannot be read as UTF-16 CSV .*save it as 'CSV UTF-8'"):
        table(images, PLAIN.encode("utf-16")[:-1])


def test_a_row_without_all_cells_is_told_so(images):
    with pytest.raises(
        InputError, match="row 13 has 1 cells, but the header has 2; add the others"
    ):
        table(images, "path,label\n" + "\n".join([*lines(), "images/cat/0.png"]))


def test_a_folder_of_parquet_files_is_told_so(tmp_path):
    (tmp_path / "t.parquet").mkdir()
    with pytest.raises(InputError, match=r"t.parquet is a folder: .* as hf:"):
        from_table(tmp_path / "t.parquet")


def test_a_file_that_is_no_table_is_told_so(images):
    with pytest.raises(InputError, match=r"t\.csv is not CSV but binary: export the table"):
        table(images, b"PK\x03\x04\x00\x00")
    with pytest.raises(InputError, match=r"is not one of \.csv.*: export it as CSV UTF-8"):
        table(images, PLAIN, "t.xlsx")
    with pytest.raises(InputError, match=r"row names an image; add a header, such as path,label"):
        table(images, "\n".join(lines()))
    with pytest.raises(InputError, match="must be a file, a DataFrame or a mapping"):
        from_table([("a.png", "cat")])


# -- paths ----------------------------------------------------------------------------------------


def test_names_without_an_extension_find_their_image_and_it_is_said(images, capsys):
    for i, path in enumerate(sorted((images / "images" / "dog").iterdir())):
        path.rename(path.with_suffix((".JPEG", ".png", ".bmp")[i % 3]))
    assert count_of(table(images, PLAIN.replace(".png", ""))) == 12
    said = capsys.readouterr().err
    assert "12 paths have no extension" in said and said.count("\n") == 1
    write_image(images / "images" / "cat" / "3.bmp", (0, 0, 0), size=(8, 8))
    with pytest.raises(InputError, match=r"row 4: path is 'images/cat/3', but 2 files .*3\.bmp"):
        table(images, PLAIN.replace(".png", ""))


def test_numbers_are_names_of_files(images):
    for label in ("cat", "dog"):
        for path in (images / "images" / label).iterdir():
            path.rename(images / f"{'1' if label == 'cat' else '2'}{path.name}")
    ids = [10 + i for i in range(6)] + [20 + i for i in range(6)]
    columns = {"id": ids, "label": ["cat"] * 6 + ["dog"] * 6}
    options = dict(path_column="id", root=images, val_split=0.34, progress=False)
    assert count_of(from_table(columns, **options)) == 12
    columns["id"] = [float(i) for i in ids]  # as pandas reads them beside an empty cell
    assert count_of(from_table(columns, **options)) == 12


def test_absolute_paths_have_groups_in_a_table_with_a_relative_path(images, monkeypatch):
    people = [f"{label}{i // 2}" for label in ("cat", "dog") for i in range(6)]
    rows = [f"{images}/{row},{who}" for row, who in zip(lines(), people)]
    (images / "t.csv").write_text("path,label,person\n" + "\n".join(rows))
    monkeypatch.chdir(images)
    data = from_table("t.csv", group_column="person", val_split=0.34, progress=False)
    assert count_of(data) == 12
    numbers = {split: set(part.groups.tolist()) for split, part in data.examples.items()}
    assert len(numbers["train"]) == 4 and len(numbers["val"] - numbers["train"]) == 2


def test_a_path_has_one_group(images):
    first, *rest = [f"{row},{i % 4}" for i, row in enumerate(lines())]
    twice = [first, *rest, first]
    data = table(images, "\n".join(["path,label,who", *twice]), group_column="who")
    assert count_of(data) == 12 and data.title == str(images / "t.csv")
    with raises("row 13: images/cat/0.png has two groups, 0 and 5; remove one"):
        text = "\n".join(["path,label,who", *twice[:-1], f"{first[:-1]}5"])
        table(images, text, group_column="who")


def test_a_missing_image_is_skipped_with_its_path(images):
    data = table(images, PLAIN + "images\\cat\\none.png,cat\nimages/dog/none,dog\n")
    assert sorted(s.path for s in data.skipped) == [
        str(images / "images/cat/none.png"),
        str(images / "images/dog/none"),
    ]


# -- columns of other names -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "header, form, columns",
    [
        ("File Name,kind", "images/{0}/{1}.png,{0}", ["path=File Name", "label=kind"]),
        ("path,kind of pet,split", "images/{0}/{1}.png,{0},train", ["label=kind of pet"]),
        ("path,log_price,split", "images/{0}/{1}.png,{1}.5,train", ["targets=log_price"]),
        ("path,tags", "images/{0}/{1}.png,{0}|pet", ["labels=tags"]),
        ("ID,Label", "images/{0}/{1},{0}", ["path=ID", "label=Label"]),
        ("label,image", "{0},images/{0}/{1}.png", ["path=image"]),
        ("math,Label,paths", "1,{0},images/{0}/{1}.png", ["path=paths", "label=Label"]),
    ],
)
def test_columns_of_other_names_are_suggested_in_a_command_that_works(
    images, header, form, columns
):
    with pytest.raises(InputError, match="has no column ") as raised:
        table(images, "\n".join([header, *lines(form)]), "my table.csv")
    (command,) = re.findall("`(keras-transfer .*?)`", str(raised.value))
    program, check, path, *options = shlex.split(command)
    assert (program, check, path) == ("keras-transfer", "check", str(images / "my table.csv"))
    assert options == [part for column in columns for part in ("--column", column)]


def test_the_command_line_repeats_the_command_with_the_columns(images):
    (images / "my table.csv").write_text("\n".join(["File Name,kind", *lines()]))
    command = [sys.executable, "-m", "keras_transfer.cli", "check", str(images / "my table.csv")]
    failed = subprocess.run(
        [*command, "--column", "label=Kind", "--val-split", "0.34"], capture_output=True, text=True
    )
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1, failed.stderr
    (works,) = re.findall("`keras-transfer (.*?)`", failed.stderr)
    assert works.endswith("--val-split 0.34 --column 'path=File Name' --column label=kind")
    again = subprocess.run([*command[:3], *shlex.split(works)], capture_output=True, text=True)
    assert again.returncode == 0 and "12 usable images" in again.stdout


@pytest.mark.parametrize(
    "pairs, expected",
    [
        (["label=kind"], {"label_column": "kind"}),
        (["labels=tags"], {"label_columns": "tags"}),
        (["labels=a,b", "labels=c"], {"label_columns": ["a", "b", "c"]}),
        (["targets=a", "targets=b"], {"targets": ["a", "b"]}),
        (['targets="a, b",c', 'path="x,y"'], {"targets": ["a, b", "c"], "path_column": "x,y"}),
        (
            ["label=kind", "targets=age", "path=file"],
            {
                "path_column": "file",
                "heads": {"kind": {"label_column": "kind"}, "age": {"targets": ["age"]}},
            },
        ),
        (
            ["label=kind of pet", "label=2", "labels=a,b"],
            {
                "heads": {
                    "kind_of_pet": {"label_column": "kind of pet"},
                    "label_2": {"label_column": "2"},
                    "labels": {"label_columns": ["a", "b"]},
                }
            },
        ),
        (
            ["pet.label=kind", "size.targets=w,h"],
            {"heads": {"pet": {"label_column": "kind"}, "size": {"targets": ["w", "h"]}}},
        ),
    ],
)
def test_columns_are_named_on_the_command_line(pairs, expected):
    assert columns_of(pairs) == expected


@pytest.mark.parametrize(
    "pairs, message",
    [
        (["file"], "use KIND=NAME"),
        (["kind=file"], "use KIND=NAME"),
        (["label="], "use KIND=NAME"),
        (["label=a,b"], "label takes one column"),
        (["path=a", "path=b"], "pass one path=NAME"),
        (["x.path=a"], "pass one path=NAME"),
        (["a.label=x"], "a single head needs no name"),
        (["a.label=x", "a.label=y"], "there is another column for a"),
        (["a.label=x", "a.targets=y"], "two heads are named a"),
        (["a b.label=x", "targets=y"], "letters, digits and _ only"),
    ],
)
def test_columns_that_contradict_each_other_are_refused(pairs, message):
    with pytest.raises(InputError, match=message):
        columns_of(pairs)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"label_column": ["kind", "tags"]}, "label_column must be the name of one column"),
        ({"label_column": 2.5}, "label_column must be the name of one column, not 2.5"),
        ({"label_columns": []}, "label_columns must be names of columns, not []"),
        ({"targets": {"age": 1}}, "targets must be names of columns"),
        ({"path_column": ["a", "b"]}, "path_column must be the name of one column"),
        ({"heads": ["kind", "age"]}, "heads must be names and columns, such as"),
        ({"heads": {"a": "kind", "b": "age"}}, "Head 'a': pass label_column"),
        ({"class_names": 2}, "class_names must be a sequence of names"),
        ({"label": "kind"}, "Unknown option 'label'"),
    ],
)
def test_arguments_that_name_no_column_are_refused(options, message):
    columns = {"path": ["a.png", "b.png"], "label": ["x", "y"]}
    with pytest.raises(InputError) as raised:
        from_table(columns, progress=False, **options)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_columns_may_be_numbered(images):
    rows = [line.split(",") for line in lines()]
    columns = dict(enumerate(zip(*rows)))
    options = dict(root=images, val_split=0.34, progress=False)
    assert count_of(from_table(columns, path_column=0, label_column=1, **options)) == 12


def test_a_command_keeps_all_but_the_columns_that_are_missing():
    error = ColumnError("t.csv has no column 'x'", "name it", ("path=my file", "targets=age"))
    arguments = ["train", "t.csv", "--column=label=x", "--column", "split=part", "--out", "a b"]
    assert command_with([*arguments, "--column", "path=x"], error) == (
        "keras-transfer train t.csv --column split=part --out 'a b' --column 'path=my file' "
        "--column targets=age"
    )


# -- empty labels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", ["", "  ", "NA", "nan", "NaN", "N/A"])
def test_rows_without_a_label_are_skipped_counted_and_listed(images, capsys, empty):
    content = PLAIN.replace("0.png,cat", f"0.png,{empty}").replace("2.png,dog", f"2.png,{empty}")
    data = table(images, content)
    assert data.class_names == ("cat", "dog") and count_of(data) == 10
    assert [s.reason for s in data.skipped] == ["row 1: label is empty", "row 9: label is empty"]
    assert data.skipped[0].path == str(images / "images/cat/0.png")
    assert "2 rows are skipped, for label is empty (row 1, 9)" in capsys.readouterr().err
    known = Target("single_label", ("cat", "dog"))
    assert len(open_labeled(images / "t.csv", known).examples["all"]) == 10


def test_a_class_may_be_called_na_if_it_is_named(images):
    data = table(images, PLAIN.replace(",dog", ",NA"), class_names=("cat", "NA"))
    assert data.class_names == ("cat", "NA") and count_of(data) == 12


def test_numbers_that_are_missing_are_skipped(images):
    pandas = pytest.importorskip("pandas")
    paths = [line.split(",")[0] for line in lines()]
    frame = pandas.DataFrame({"path": paths, "age": [None, *range(11)]})
    data = from_table(frame, root=images, targets="age", val_split=0.34, progress=False)
    assert count_of(data) == 11 and data.skipped[0].reason == "row 1: age is empty"


@pytest.mark.parametrize("value", ["1e39", "-inf", 1e300, "1,5"])
def test_numbers_that_are_too_large_are_refused(value):
    with pytest.raises(InputError, match=r"row 2: age is .* which is not a number up to 3.4e"):
        read_targets({"age": [1.0, value]}, targets=["age"])


def test_labels_in_bytes_must_be_utf_8():
    labels, target = read_targets({"label": [b"a", b"\xc3\xa9"]}, label_column="label")
    assert labels.tolist() == [0, 1] and target.names == ("a", "é")
    with pytest.raises(InputError, match=r"row 2: label is b'\\xe9', which is not UTF-8"):
        read_targets({"label": [b"a", b"\xe9"]}, label_column="label")


@pytest.mark.parametrize("path", ["word " * 60, "a\\" + "ä" * 200, "a\0b.png"])
def test_texts_are_no_paths(path):
    with pytest.raises(InputError, match=r"row 1: text is .*, which is not a path"):
        from_table({"text": [path], "label": ["a"]}, path_column="text")


def test_long_cells_are_shortened_in_messages():
    with pytest.raises(InputError, match=r"row 1: image is .* which is not a path") as raised:
        from_table({"image": [{"bytes": b"x" * 100_000}], "label": ["a"]}, path_column="image")
    assert len(str(raised.value)) < 200


def test_the_column_that_is_empty_is_named(images, capsys):
    content = PLAIN.replace("path,label", "path,label,age").replace("cat\n", "cat,1\n")
    content = content.replace("dog\n", "dog,2\n").replace("0.png,dog,2", "0.png,dog,")
    heads = {"kind": {"label_column": "label"}, "old": {"targets": "age"}}
    data = table(images, content, heads=heads)
    assert [s.reason for s in data.skipped] == ["row 7: age is empty"]
    assert "1 row is skipped, for age is empty (row 7)" in capsys.readouterr().err


def test_a_table_without_any_label_is_refused(images):
    with pytest.raises(InputError, match="row 1: label is empty, and every row lacks"):
        table(images, "path,label\n" + "\n".join(lines("images/{0}/{1}.png,")))


# -- lists ----------------------------------------------------------------------------------------


LISTS = [["red"], ["round", "red"], [], ["round"]]
EXPECTED = [[1, 0], [1, 1], [0, 0], [0, 1]]


@pytest.mark.parametrize("kind", [list, tuple, set, np.array])
@pytest.mark.parametrize("option", ["label_column", "label_columns"])
def test_lists_are_several_labels(kind, option):
    labels, target = read_targets({"tags": [kind(row) for row in LISTS]}, **{option: "tags"})
    assert target == Target("multi_label", ("red", "round")) and labels.tolist() == EXPECTED


def test_a_column_of_lists_in_parquet_or_pandas_is_read_as_several_labels(images):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    paths = [line.split(",")[0] for line in lines()]
    frame = pandas.DataFrame({"path": paths, "label": LISTS * 3})
    frame.loc[4, "label"] = None
    frame.to_parquet(images / "t.parquet")
    for source in (frame, images / "t.parquet"):
        data = from_table(source, root=images, val_split=0.34, progress=False)
        assert data.targets == Target("multi_label", ("red", "round"))
        assert count_of(data) == 11 and data.skipped[0].reason == "row 5: label is empty"
    data = from_table(frame, root=images, class_names=("round", "red"), progress=False)
    assert data.class_names == ("round", "red")


@pytest.mark.parametrize(
    "cells",
    [
        ["['a', 'b']", "['a']"],
        ['["a", "b"]', "b"],
        ["['a' 'b']", "['b']"],
        ["[]", "a"],
        ["{'a', 'b'}", "a"],
        ["('a', 'b')", "a"],
        ["[0 1 0]", "[1 0 0]"],
        ["a, b", "a"],
        ["a;b", "b;c"],
        ["a|b", "b"],
    ],
)
def test_a_list_as_text_is_refused_and_the_separator_named(cells):
    with pytest.raises(InputError, match=r"row \d: label is .* joined by \|, .*--column labels="):
        read_targets({"label": cells}, label_column="label")
    if "|" not in cells[0]:
        with pytest.raises(InputError, match=r"row \d: label is .* joined by \|\."):
            read_targets({"label": cells}, label_columns="label")


def test_names_with_commas_are_classes_and_this_is_said(capsys):
    names = ["tench, Tinca tinca", "goldfish, Carassius auratus", "[unknown]", "(none)"]
    _, target = read_targets({"label": names}, label_column="label")
    assert set(target.names) == set(names)
    assert (
        "label has names such as 'goldfish, Carassius auratus'; each is one class"
        in capsys.readouterr().err
    )
    columns = {"tags": ["a, b|c", "c"]}
    assert read_targets(
        {**columns}, label_columns="tags", known=Target("multi_label", ("a, b", "c"))
    )


# -- classes without an image ---------------------------------------------------------------------


def test_a_class_without_a_readable_image_is_named(images):
    content = PLAIN + "images/bird/0.png,bird\nimages/bird/1.png,bird\n"
    message = r"class bird has no readable example in .*bird/0\.png: .*; add some"
    with pytest.raises(InputError, match=message):
        table(images, content)
    with pytest.raises(InputError, match="class fish has no readable example"):
        table(images, PLAIN, class_names=("cat", "dog", "fish"))
    with pytest.raises(InputError, match=message):
        table(images, content.replace(",cat", ",cat|pet"), label_columns="label")


# -- integers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [int, float, str, lambda i: f"{i}.0", np.int64])
def test_classes_that_are_integers_are_sorted_by_value(kind):
    numbers = [10, 2, 0, 1, 10]
    labels, target = read_targets({"n": [kind(i) for i in numbers]}, label_column="n")
    assert target.names == ("0", "1", "2", "10") and labels.tolist() == [3, 2, 0, 1, 3]


def test_labels_that_are_integers_are_sorted_by_value():
    _, target = read_targets({"n": ["10|2", "9", "2"]}, label_columns="n")
    assert target.names == ("2", "9", "10")


def test_names_and_versions_are_sorted_as_text():
    _, target = read_targets({"n": ["10", "2", "b"]}, label_column="n")
    assert target.names == ("10", "2", "b")
    _, target = read_targets({"n": ["1.0", "1.5"]}, label_column="n")
    assert target.names == ("1.0", "1.5")


def test_the_order_of_an_earlier_run_is_kept(images):
    content = PLAIN.replace(",cat", ",10").replace(",dog", ",2")
    (images / "t.csv").write_text(content)
    data = open_labeled(images / "t.csv", Target("single_label", ("10", "2")))
    assert data.class_names == ("10", "2")
    assert data.counts["all"] == {"10": 6, "2": 6}
    part = data.examples["all"]
    assert all(("/cat/" in name) == (label == 0) for name, label in zip(part.names, part.labels))
