"""Texts in the cells of tables: read, split, checked and measured in slices."""

import csv

import numpy as np
import pytest
from conftest import raises

from keras_transfer.data import check_data, from_arrays, from_table, open_data, open_labeled
from keras_transfer.errors import ColumnError, InputError
from keras_transfer.evaluation.baseline import baseline_note, fit_baseline, measure_baseline
from keras_transfer.evaluation.slices import slice_values
from keras_transfer.experiments.comparison import AtSize, Comparison
from keras_transfer.experiments.learning_curves import Curve
from keras_transfer.modalities.text.check import alike, decode, examine, script_of
from keras_transfer.modalities.text.framing import TextFraming, WordPiece
from keras_transfer.modalities.text.notes import notes

GOOD = ["what a lovely film", "great fun for all", "lovely and moving", "a great cast", "so good"]
BAD = ["a dull and bad film", "bad acting again", "boring from start to end", "so bad", "dull plot"]
COLUMNS = {"text": [*GOOD, *BAD], "label": ["good"] * 5 + ["bad"] * 5}


def opened(columns, **options):
    return from_table(columns, progress=False, **{"val_split": 0.4, **options})


def texts_of(part):
    return [part.images.decoded(i) for i in range(len(part))]


def test_pairs_of_texts_are_two_columns():
    questions = [f"is {text} good?" for text in COLUMNS["text"]]
    columns = {**COLUMNS, "question": questions, "score": list(range(10))}
    data = opened(columns, text_column=["question", "text"])
    reader = data.examples["train"].images
    first = reader.decoded(0).partition("\x1f")[2]
    assert first in BAD and reader.decoded(0) == f"is {first} good?\x1f{first}"
    assert data.modality.excerpt(reader, 0) == f"is {first} good? | {first}"
    pairs = list(zip(questions, COLUMNS["text"]))
    same = [
        from_arrays((some, COLUMNS["label"]), val_split=0.4, progress=False)
        for some in (pairs, np.array(pairs), np.array(pairs, object))
    ]
    read, *others = (
        {text for part in one.examples.values() for text in texts_of(part)} for one in (data, *same)
    )
    assert others == [read] * 3 and len(read) == 10
    with raises("score is 0, a number, not a text"):
        opened(columns, text_column=["question", "score"])
    with pytest.raises(ColumnError, match="no column 'quest'") as caught:
        opened(columns, text_column=["quest", "text"])
    assert caught.value.options == ("text=question,text",)
    within = {"text": columns["text"], "texture": questions, "label": columns["label"]}
    with pytest.raises(ColumnError, match="no column 'tex'") as caught:
        opened(within, text_column=["tex", "texture"])  # one name is part of the other
    assert caught.value.options == ("text=text,texture",)
    with pytest.raises(ColumnError, match="no column 'tex' and no column 'unknown'") as caught:
        opened(within, text_column=["tex", "unknown"])
    assert caught.value.options == ()
    with raises("text_column must be names of columns, at most 2"):
        opened(columns, text_column=["question", "text", "score"])
    without = opened(
        {**columns, "question": ["", *questions[1:]]}, text_column=["question", "text"]
    )
    assert [one.reason for one in without.skipped] == ["empty text"]


def test_a_text_may_be_a_whole_book(tmp_path):
    rows = [f'"{"word " * 30_000}{i}",{"ab"[i // 3]}' for i in range(6)]
    (tmp_path / "books.csv").write_text("text,label\n" + "\n".join(rows))
    before = csv.field_size_limit()
    data = opened(tmp_path / "books.csv")
    assert sum(map(len, data.examples.values())) == 6 and csv.field_size_limit() == before


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "frame"])
def test_a_table_of_texts_needs_no_options(tmp_path, kind):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({**COLUMNS, "split": ["train", "train", "train", "val", "test"] * 2})
    table = frame if kind == "frame" else tmp_path / f"t.{kind}"
    if kind == "parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(table)
    elif kind != "frame":
        frame.to_csv(table, index=False, sep="\t" if kind == "tsv" else ",")
    data = from_table(table, progress=False)
    assert data.modality.name == "text" and data.class_names == ("bad", "good")
    assert {split: len(part) for split, part in data.examples.items()} == {
        "train": 6,
        "val": 2,
        "test": 2,
    }
    assert texts_of(data.examples["train"]) == [*BAD[:3], *GOOD[:3]]
    name = "row 1" if kind == "frame" else f"t.{kind} row 1"
    assert data.split_table()[3] == (name, "good", "train")


@pytest.mark.parametrize(
    "columns, options, task, label",
    [
        (
            {"tags": ["a|b", "a", "b", "|", "a"] * 2},
            {"label_columns": "tags"},
            "multi_label",
            [1, 1],
        ),
        ({"stars": list(range(10))}, {"targets": "stars"}, "regression", [0.0]),
        (
            {"stars": list(range(10))},
            {"heads": {"mood": {"label_column": "label"}, "stars": {"targets": "stars"}}},
            {"mood": "single_label", "stars": "regression"},
            None,
        ),
    ],
)
def test_every_task(columns, options, task, label):
    data = opened({**COLUMNS, **columns}, **options, val_split=0.2)
    assert data.task == task
    if label is not None:
        part = data.examples["train"]
        row = part.names.index("row 1") if "row 1" in part.names else None
        assert row is None or part.labels[row].tolist() == label


def test_groups_stay_in_one_split_and_an_empty_split_column_is_none():
    columns = {**COLUMNS, "who": ["x", "x", "y", "y", "z"] * 2, "split": [""] * 10}
    data = opened(columns, group_column="who")
    found = {
        split: {columns["who"][int(n.split()[1]) - 1] for n in part.names}
        for split, part in data.examples.items()
    }
    assert not found["train"] & found["val"]
    again = opened(COLUMNS)
    assert [p.names for p in again.examples.values()] == [
        p.names for p in opened(COLUMNS).examples.values()
    ]


def test_near_duplicates_stay_in_one_split_and_check_reports_them(tmp_path):
    columns = {
        "text": [*GOOD, "What a LOVELY film!!", *BAD, "so  good."],
        "label": ["good"] * 6 + ["bad"] * 6,
    }
    data = opened(columns, val_split=0.3)
    for pair in (("row 1", "row 6"), ("row 5", "row 12")):
        assert sum(set(pair) <= set(part.names) for part in data.examples.values()) == 1
    columns["split"] = ["train", "val"] * 6
    columns["text"][8] = "<br />dull &amp; plain"
    columns["text"][9] = "?!"
    columns["text"][3] = ""
    (tmp_path / "t.csv").write_text(
        "text,label,split\n" + "\n".join(map(",".join, zip(*columns.values())))
    )
    report = check_data(tmp_path / "t.csv")
    assert [s.reason for s in report.faulty] == ["empty text"]
    assert [s.reason for s in report.empty] == ["has no letters"]
    assert [(a.label, b.label) for a, b in report.duplicates.conflicts] == [("good", "bad")]
    assert len(report.duplicates.leaks) == 2
    assert report.statistics["markup"] == {"texts": 1}
    assert report.statistics["scripts"] == {"Latin": 10}
    text = report.text()
    assert "row 6 “What a LOVELY film!!” (val, good) is" in text
    assert "words: minimum 1, median" in text and "script: Latin: 10" in text


def test_pairs_with_an_empty_text_are_skipped_like_rows():
    pairs = list(zip(COLUMNS["text"], COLUMNS["text"]))
    pairs[1], pairs[7] = ("a film", " "), ("", "a film")
    first, second = zip(*pairs)
    columns = {"first": first, "second": second, "label": COLUMNS["label"]}
    table = opened(columns, text_column=["first", "second"])
    arrays = from_arrays((pairs, COLUMNS["label"]), val_split=0.4, progress=False)
    for data, names in ((table, ["row 2", "row 8"]), (arrays, ["train 1", "train 7"])):
        assert sorted(one.path for one in data.skipped) == names
        assert {one.reason for one in data.skipped} == {"empty text"}


def test_half_of_a_surrogate_pair_is_skipped():
    texts = [*COLUMNS["text"][:-1], "an emoji that was cut: \ud83d"]
    data = from_arrays((texts, COLUMNS["label"]), val_split=0.4, progress=False)
    assert [one.path for one in data.skipped] == ["train 9"]
    assert data.skipped[0].reason.startswith("not valid text: character 23")
    assert len(data.fingerprint()) == 9
    table = opened({**COLUMNS, "text": texts})
    assert [one.path for one in table.skipped] == ["row 10"]
    assert table.skipped[0].reason == data.skipped[0].reason
    texts[-1] = "caf\udce9"  # a byte that is not UTF-8, as Python reads it
    assert "it fits cp1252" in opened({**COLUMNS, "text": texts}).skipped[0].reason


def test_bad_tables_are_explained():
    for options, problem in (({}, "'path'"), ({"text_column": "reviwe"}, "'reviwe'")):
        with pytest.raises(ColumnError, match=f"no column {problem}") as caught:
            opened({"review": GOOD + BAD, "label": COLUMNS["label"]}, **options)
        assert caught.value.options == ("text=review",)
    with raises(
        "row 1: text is 0, a number, not a text: name the column of texts: --column text=review"
    ):
        opened({"text": list(range(10)), "review": GOOD + BAD, "label": COLUMNS["label"]})
    with raises("row 1: text is '0.5', a number, not a text"):
        opened({"text": ["0.5", "3"] * 5, "label": COLUMNS["label"]})
    with raises("Pass path_column for files, or text_column for texts, not both"):
        opened(COLUMNS, path_column="text", text_column="text")
    with raises("lists no readable text for train (row 6: empty text)"):
        opened({"text": [""] * 10, "label": COLUMNS["label"]})


def test_a_table_is_evaluated_in_slices(tmp_path):
    columns = {**COLUMNS, "source": ["web", "mail"] * 5}
    (tmp_path / "t.csv").write_text(
        "text,label,source\n" + "\n".join(map(",".join, zip(*columns.values())))
    )
    known = open_data(tmp_path / "t.csv", val_split=0.4, progress=False).targets
    data = open_labeled(tmp_path / "t.csv", known, progress=False)
    assert slice_values(data, "all", "size")[:2] == ["5–9 words", "0–4 words"]
    values = slice_values(data, "all", "source", table=tmp_path / "t.csv")
    assert sorted(values) == ["mail"] * 5 + ["web"] * 5


@pytest.mark.parametrize(
    "text, encoding, script",
    [
        ("Grüße aus Köln", "cp1252", "Latin"),
        ("Привет, как дела? Сегодня хорошо", "cp1251", "Cyrillic"),
        ("Привет, как дела? Сегодня хорошо", "koi8-r", "Cyrillic"),
        ("今日はいい天気ですね", "shift_jis", "Hiragana"),
        ("今日はいい天気ですね", "euc-jp", "Hiragana"),
        ("안녕하세요 오늘 날씨", "euc-kr", "Hangul"),
        ("今天天气很好，我们去公园", "gb18030", "Han"),
        ("hello wörld", "utf-16", "Latin"),
    ],
)
def test_the_encoding_that_fits_is_named(text, encoding, script):
    raw = text.encode(encoding)
    fault = examine(raw).fault
    assert fault.startswith("not UTF-8") and fault.endswith(f"iconv -f {encoding} -t utf-8")
    with pytest.raises(ValueError, match="not UTF-8"):
        decode(raw)
    assert examine(text.encode()).script == script == script_of(text)


def test_facts_of_strange_texts():
    assert examine(b" \n").fault == "empty text"
    assert examine(b"a\0b").fault == "not a text but binary data"
    assert examine(b"123 ?!").flaw == "has no letters"
    assert not examine(b"I <3 you, x < y & z").markup and examine(b"4 &lt;#&gt; <b>x</b>").markup
    assert alike(b"Free <b>entry</b>!!") == alike(b"  free ENTRY.")
    assert alike("😀".encode()) != alike("😁".encode())


def test_notes_on_what_an_encoder_does_not_read():
    words = "\n".join(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{chr(97 + i)}" for i in range(26))]
    )
    framing = TextFraming(8, WordPiece(words))
    reader = (
        opened(
            {"text": [f"привет мир {i}" for i in range(6)] + GOOD[:4], "label": COLUMNS["label"]},
            class_names=["good", "bad"],
        )
        .examples["train"]
        .images
    )
    lengths = np.array([8, 8, *[4] * (len(reader) - 2)])
    cut, *warnings = notes(reader, framing, lengths)
    assert cut.startswith(f"2 of {len(reader)} texts")
    assert "Cyrillic letters, but the encoder's vocabulary has only 0 such words" in warnings[0]


def test_the_baseline_of_every_task():
    columns = {
        "text": [f"{word} {i}" for i in range(12) for word in ("red", "blue", "red blue")],
        "label": ["r", "b", "both"] * 12,
        "tags": ["r", "b", "r|b"] * 12,
        "value": [1.0, 5.0, 3.0] * 12,
    }
    for options, measure in (
        ({}, "accuracy"),
        ({"label_columns": "tags"}, "mean average precision"),
        ({"targets": "value"}, "value: mae"),
        ({"heads": {"a": {"label_column": "label"}, "b": {"targets": "value"}}}, "accuracy"),
    ):
        data = opened(columns, **options)
        found = measure_baseline(data, "val")
        kinds = {"targets": "ridge", "heads": "logistic regression and ridge"}
        kind = kinds.get(next(iter(options), ""), "logistic")
        assert found["name"] == f"TF-IDF + {kind} regression"
        (title, value), *_ = next(iter(found["heads"].values())).items()
        assert title == measure
        value = value["value"] if isinstance(value, dict) else value
        assert value < 1.1 if title.endswith("mae") else value == 1.0
    assert measure_baseline(data, "train") is None


@pytest.mark.parametrize("noisy, strengths", [(False, {100.0}), (True, {1.0})])
def test_the_strength_of_the_baseline_follows_from_the_training_texts(rng, noisy, strengths):
    words = [("red", "blue")[i % 2] for i in range(240)]
    labels = [str(rng.integers(2)) if noisy else word for word in words]
    texts = [f"{word} {rng.integers(10**6)}" for word in words]
    data = opened({"text": texts, "label": labels})
    fitted = fit_baseline(data.examples["train"], data.targets)
    assert {model.C for model in fitted._models.values()} == strengths


def test_images_have_no_baseline(rng):
    from keras_transfer.data import from_arrays

    images = rng.integers(0, 255, (8, 8, 8, 3)).astype("uint8")
    data = from_arrays((images, [0, 1] * 4), val_split=0.25, progress=False)
    assert fit_baseline(data.examples["train"], data.targets) is None
    with pytest.raises(InputError):
        slice_values(data, "val", "nothing")


def test_the_baseline_in_advice_and_comparisons():
    words = ("red", "blue", "green")
    rows = [(f"{word} {i} one two", word) for i in range(20) for word in words]
    data = opened({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
    note = baseline_note(data)
    assert note.startswith(
        "TF-IDF + logistic regression, the simple model to beat, is right for 100.0 %"
    )
    curve = Curve.of([0.3, 0.5, 0.6])
    size = AtSize(5, 15, (curve,), (curve,), 0.33, "TF-IDF + logistic regression", (0.9,))
    found = Comparison("b", "s", 3, 10, (0,), 1.0, (size,))
    assert "| TF-IDF + logistic regression | – | – | – | 90.0 |" in " ".join(
        found.table().split()
    ).replace("|  |", "| – |")
    assert found.to_dict()["sizes"][0]["baseline"]["accuracy"] == [0.9]


def test_a_drawn_split_of_a_table_is_found_again(tmp_path):
    rows = [f"{text} {i},{label}" for i in range(4) for text, label in zip(*COLUMNS.values())]
    splits = ["train"] * 32 + ["test"] * 8
    lines = [f"{row},{split}" for row, split in zip(rows, splits)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label,split", *lines]))
    data = open_data(tmp_path / "t.csv", val_split=0.25, progress=False)
    listed = "\n".join(f"{path},{split}" for path, _, split in data.split_table())
    (tmp_path / "split.csv").write_text(f"path,split\n{listed}\n")
    options = {"split": "val", "split_file": tmp_path / "split.csv", "progress": False}
    again = open_labeled(tmp_path / "t.csv", data.targets, **options)
    assert again.examples["val"].names == data.examples["val"].names
