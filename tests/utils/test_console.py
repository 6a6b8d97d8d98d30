"""Progress bars: where they are seen and where not."""

import io
import sys
from types import SimpleNamespace

import pytest
import tqdm.auto

from keras_transfer.utils.console import bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def notebook(monkeypatch):
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def drawn(file, **options):
    assert [*bar(range(3), file=file, **options)] == [0, 1, 2]
    return file.getvalue()


def test_a_terminal_shows_it_and_a_file_does_not():
    assert "images: " in drawn(Terminal(), desc="images")
    assert drawn(Terminal(), desc="images", shown=False) == ""
    assert drawn(io.StringIO(), desc="images") == ""


def test_it_is_gone_when_it_is_done():
    assert drawn(Terminal()).endswith("\r")
    assert not drawn(Terminal(), leave=True).endswith("\r")


def test_a_notebook_shows_it_though_it_is_no_terminal(notebook, monkeypatch):
    monkeypatch.setattr(tqdm.auto, "tqdm", tqdm.tqdm)  # as without ipywidgets
    assert "images: " in drawn(io.StringIO(), desc="images")
    assert drawn(io.StringIO(), desc="images", shown=False) == ""
