"""The page of a diagnosis, for each kind of example, in a real browser."""

import re
from contextlib import contextmanager

import pytest
from conftest import write_words
from report_opening import CHROMIUM
from test_audio import write_clips

import keras_transfer as kt
from keras_transfer.diagnosis.result import Diagnosis, Problem
from keras_transfer.reporting.problems import render_problems, write_problems

PLAYED = (
    "e => new Promise(done => e.addEventListener('timeupdate', () => e.currentTime && done(true)))"
)


def found_in(data, extra=()):
    """A diagnosis of the first examples of each class."""
    rows = data.split_table()
    (a, label, split), (b, other, into) = rows[0], rows[-1]
    problems = (
        Problem(a, "label", label, split, 0.97, suggested=other),
        Problem(
            b, "leakage", other, into, 1.7, related=(a, rows[1][0]), reason="with another label"
        ),
        *extra,
        Problem(rows[2][0], "outlier", rows[2][1], rows[2][2], 4.2, reason="dark <b>"),
    )
    return Diagnosis(
        data.root, "tiny", len(rows), data.modality.many, problems, {}, ("a note",), data.title
    )


@contextmanager
def opened(file, width=1200):
    """Yield a file in headless Chromium; nothing may be fetched or written to the console."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("there is no Chromium on this machine")
    complaints = []
    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda asked: asked.url.startswith(("file:", "data:")) or complaints.append(asked.url),
        )
        page.goto(file.as_uri())
        yield page
        browser.close()
    assert not complaints


def visible(page):
    return page.eval_on_selector_all(
        ".case", "all => all.filter(e => e.offsetParent).map(e => e.dataset.problem)"
    )


def test_filters_with_mouse_and_keyboard(data, tmp_path):
    file = write_problems(found_in(data), data, tmp_path / "problems.html")
    with opened(file) as page:
        assert visible(page) == ["label", "leakage", "outlier"]
        images = page.eval_on_selector_all(".case img", "all => all.map(e => e.naturalWidth)")
        assert len(images) == 4 and min(images) > 20  # the partner is next to the near-duplicate
        page.click("text=outlier >> input")
        assert visible(page) == ["label", "leakage"]
        assert page.text_content("[role=status]") == "2 of 3 problems"
        page.select_option("select", data.split_table()[0][1])
        assert visible(page) == ["label"]
        page.select_option("select", "")
        page.keyboard.press("Escape")
        for key in "jj":
            page.keyboard.press(key)
        focused = "document.activeElement.dataset.problem"
        assert page.evaluate(focused) == "leakage"
        page.keyboard.press("k")
        assert page.evaluate(focused) == "label"
        page.keyboard.press("/")
        page.keyboard.type(data.split_table()[-1][0])
        assert visible(page) == ["leakage"]


@pytest.mark.parametrize("width", (390, 1200), ids=("phone", "desktop"))
def test_clips_are_drawn_and_can_be_played(tmp_path, width):
    data = kt.data.open_data(write_clips(tmp_path / "d", {"low": 6, "high": 6}), progress=False)
    file = write_problems(found_in(data), data, tmp_path / "problems.html")
    with opened(file, width) as page:
        sounds = page.locator(".case audio")
        assert sounds.count() == 4
        page.keyboard.press("j")
        page.keyboard.press("p")
        assert page.eval_on_selector("audio", PLAYED)
        assert page.eval_on_selector(".case img", "e => e.naturalWidth > e.naturalHeight")
        assert page.eval_on_selector("body", "e => e.scrollWidth <= window.innerWidth")


def test_texts_are_read_side_by_side(tmp_path):
    data = kt.data.open_data(write_words(tmp_path / "d"), progress=False)
    text = render_problems(found_in(data), data)
    assert text.count("<blockquote>") == 4 and "<img" not in text
    first = data.modality.excerpt(next(iter(data.examples.values())).images, 0, 600)
    assert first in text


def test_classes_with_any_characters_can_be_chosen(tmp_path):
    """A browser joins the spaces of an option's text, so its value is a number."""
    data = kt.data.open_data(write_words(tmp_path / "d"), progress=False)
    path, _, split = data.split_table()[0]
    odd = Problem(path, "label", "two  spaces", split, 0.9, suggested="a line\nbreak")
    text = render_problems(found_in(data, [odd]), data)
    values = {name: n for n, name in re.findall(r'<option value="(\d+)">([^<]*)<', text)}
    chosen = re.findall(r'data-classes="(.*?)"', text)
    assert " ".join(values[name] for name in (odd.label, odd.suggested)) in chosen
    assert {n for one in chosen for n in one.split(" ")} == set(values.values())


def test_what_is_beyond_the_budget_is_named(data, monkeypatch):
    from keras_transfer.reporting import problems

    monkeypatch.setattr(problems, "_MOST", 2)
    text = render_problems(found_in(data), data)
    assert "1 more problems are not on this page" in text
    assert re.findall(r'data-problem="(.*?)"', text) == ["label", "leakage"]
    monkeypatch.setattr(problems, "_MOST", 9)
    monkeypatch.setattr(problems, "Budget", lambda: problems_budget(1))
    text = render_problems(found_in(data), data)
    assert "<img" not in text and text.count("not shown") == 4
    assert "dark &lt;b&gt;" in text


def problems_budget(left):
    from keras_transfer.reporting.gallery import Budget

    return Budget(left)


def test_the_command_needs_a_deep_check(colours):
    from typer.testing import CliRunner

    from keras_transfer.cli.main import app

    result = CliRunner().invoke(app, ["check", str(colours), "--page", "x.html"])
    assert result.exit_code and "--page needs --deep" in str(result.exception)
