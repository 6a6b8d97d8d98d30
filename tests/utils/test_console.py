"""Progress bars, tables and messages: what appears where."""

import io
import sys
from types import SimpleNamespace

import pytest

from keras_transfer.utils import console
from keras_transfer.utils.console import (
    Table,
    counted,
    listed,
    print_table,
    progress_bar,
    say,
    silence,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def use_terminal(monkeypatch):
    """Return a function that makes stderr a terminal, on which each update is drawn."""

    def use():  # in the test: pytest sets stderr between a fixture and its test
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    monkeypatch.setattr(console, "_DRAW_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    yield use
    console._close_display()


@pytest.fixture
def notebook(monkeypatch):
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def test_a_terminal_shows_the_bar_and_removes_it(use_terminal):
    stderr = use_terminal()
    assert [*progress_bar(range(3), "reading [bold]images[/]", unit="files")] == [0, 1, 2]
    shown = stderr.getvalue()
    assert "reading [bold]images[/]" in shown and "files" in shown
    assert "\x1b[2K" in shown.rpartition("files")[2]  # the line is erased
    assert console._display is None and sys.stderr is stderr


def test_nothing_is_drawn_if_hidden_or_silenced_or_switched_off(use_terminal, monkeypatch):
    stderr = use_terminal()
    assert [*progress_bar(range(3), visible=False)] == [0, 1, 2]
    with silence():
        assert [*progress_bar(range(3))] == [0, 1, 2]
    monkeypatch.setenv("TTY_INTERACTIVE", "0")
    assert [*progress_bar(range(3))] == [0, 1, 2]
    assert stderr.getvalue() == ""


def test_bars_share_one_display_and_messages_appear_above_it(use_terminal):
    stderr = use_terminal()
    with progress_bar(label="outer", total=2) as outer:
        for _ in range(2):
            with progress_bar(label="inner", total=1) as inner:
                inner.details({"loss": 0.25})
                inner.update()
                say("a message [red]")
            outer.update()
        outer.relabel("renamed")
    shown = stderr.getvalue()
    assert all(text in shown for text in ("outer", "inner", "loss 0.250", "renamed"))
    assert shown.count("a message [red]\n") == 2


def test_an_exception_closes_the_bar(use_terminal):
    use_terminal()
    with pytest.raises(KeyError), progress_bar(label="images", total=2):
        raise KeyError
    assert console._display is None


def test_a_file_receives_a_line_now_and_then(capsys, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: clock.now))
    for _ in progress_bar(range(400), "reading", unit="files"):
        clock.now += 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "reading: 10 of 400 files (2 %)"
    assert len(lines) == 14  # 10 seconds apart at first, later more


def test_short_work_prints_nothing_to_a_file(capsys):
    assert [*progress_bar(range(3), "reading")] == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_notebook_draws_with_widgets_and_not_into_a_log(notebook, monkeypatch):
    stream = io.StringIO()
    stream.name = "stderr"
    monkeypatch.setattr(console.importlib.util, "find_spec", lambda name: name)
    assert console._can_draw(stream)
    assert not console._can_draw(io.StringIO())  # stderr is redirected
    monkeypatch.setattr(console.importlib.util, "find_spec", lambda name: None)
    assert not console._can_draw(stream)


def test_a_table_is_drawn_in_a_terminal_and_plain_elsewhere(capsys, monkeypatch):
    table = Table(("name", "count"), [("[red]x[/]", 3)])
    print_table(table)
    assert capsys.readouterr().out == "name       count\n[red]x[/]      3\n"
    monkeypatch.setattr(sys, "stdout", Terminal())
    print_table(table)
    assert "[red]x[/]" in sys.stdout.getvalue() and "─" in sys.stdout.getvalue()


def test_numbers_have_units_in_singular_or_plural():
    counts = [counted(0, "epoch"), counted(1, "epoch"), counted("2.5", "epoch")]
    assert counts == ["0 epochs", "1 epoch", "2.5 epochs"]


def test_a_list_is_one_line_of_its_first_items():
    assert listed([]) == "" and listed("ab") == "a, b" and listed(range(3), 3) == "0, 1, 2"
    assert listed(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, and 2 more"
    assert listed((f"a\n{i}" for i in range(3)), 1) == "a\\n0, and 2 more"


def test_a_log_receives_names_that_are_not_utf_8(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "_log", None)
    console.log_to(tmp_path / "log")
    say("ä\udcff.png")
    assert (tmp_path / "log").read_text(encoding="utf-8") == "ä\\udcff.png\n"
