"""Tables as plain text and Markdown."""

import pytest

from keras_transfer.utils.console import Table, printable, text_width


def test_columns_of_numbers_are_right_aligned_by_default():
    table = Table(("class", "images", "share"), [("ants", 5, 0.25), ("bees", 123, None)])
    assert table.align == "lrr"
    assert table.text().splitlines() == [
        "class  images  share",
        "ants        5   0.25",
        "bees      123      –",
    ]


def test_wide_characters_take_two_columns():
    lines = Table(("name", "n"), [("日本", 1), ("é", 2), ("plain", 3)]).text().splitlines()
    assert len({text_width(line) for line in lines}) == 1
    assert lines[1] == "日本   1"


def test_markdown_escapes_bars_and_line_breaks():
    table = Table(("a|b", "n"), [("x\ny", "1")], align="lr")
    assert table.markdown() == "| a\\|b | n |\n|---|---:|\n| x\\ny | 1 |"


def test_a_table_without_rows_has_its_header():
    assert Table(("a", "b"), []).text() == "a  b"


@pytest.mark.parametrize("rows, align", [([(1,)], None), ([(1, 2)], "l")])
def test_entries_that_do_not_fit_the_header_are_refused(rows, align):
    with pytest.raises(ValueError, match="need 2 entries"):
        Table(("a", "b"), rows, align)


def test_control_characters_and_broken_names_are_escaped():
    assert printable("a\x1b[0m") == "a\\x1b[0m"
    assert printable("a\udcff") == "a\\xff"
