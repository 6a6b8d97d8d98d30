"""Plots whose font lacks some letters."""

import io
import warnings

import pytest
from matplotlib.figure import Figure

from keras_transfer.reporting.page import figure as drawn_on_page
from keras_transfer.utils import plotting
from keras_transfer.utils.plotting import save


@pytest.fixture(autouse=True)
def no_other_fonts(monkeypatch):
    monkeypatch.setattr(plotting, "FALLBACKS", ())
    monkeypatch.setattr(plotting, "_said", [])


def figure_of(*ticks):
    figure = Figure(layout="constrained")
    figure.subplots().set_xticks(range(len(ticks)), ticks)
    return figure


def test_missing_letters_are_said_once_in_a_line(tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            save(figure_of("猫", "犬", "dog"), tmp_path / "a.png")
        drawn_on_page(lambda axes: axes.set_title("猫"), "猫")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "lacks some letters, such as 猫犬," in said


def test_a_font_that_has_the_letters_is_used(monkeypatch, capsys):
    monkeypatch.setattr(plotting, "FALLBACKS", ("No Such Font", "STIXGeneral"))
    buffer, figure = io.BytesIO(), figure_of("\u2312", "b")  # an arc, which DejaVu Sans lacks
    save(figure, buffer, format="png")
    assert capsys.readouterr().err == ""
    assert figure.axes[0].get_xticklabels()[0].get_fontfamily() == ["sans-serif", "STIXGeneral"]
    assert buffer.getvalue().startswith(b"\x89PNG") and buffer.getvalue().count(b"IEND") == 1


def test_other_warnings_are_passed_on(tmp_path):
    class Warns(Figure):
        def savefig(self, *args, **options):
            warnings.warn("too small", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="too small"):
        save(Warns(), tmp_path / "a.png")
