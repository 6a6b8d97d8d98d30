"""Templates and figures of pages."""

import re
import subprocess
import sys
from pathlib import Path

from keras_transfer.reporting import page
from keras_transfer.utils.console import Table


def plot(axes):
    axes.plot([1, 2], label="a<b")


def comparison(**values):
    table = Table(["&", "number"], [["<b>", 1], ["x", None]])
    names = ("introduction", "metrics_text")
    values = {**dict.fromkeys(names, "1 < 2"), "title": "<a>", "curves": [], **values}
    return page.render("comparison", metrics=table, times=table, settings=table, **values)


def test_figures_take_the_color_of_the_text():
    figure = page.figure(plot, "Rise & fall")
    svg = figure["svg"]
    assert "currentColor" in svg and page._TEXT_COLOR not in svg
    head = svg[: svg.index(">", svg.index("<svg")) + 1]
    assert "width=" not in head and "height=" not in head and "viewBox=" in head
    assert 'aria-label="Rise &amp; fall"' in head
    assert page.figure(plot, "x") == page.figure(plot, "x")


def test_text_is_escaped():
    text = comparison()
    assert "<a>" not in text and "<b>" not in text
    assert "&lt;a&gt;" in text and "1 &lt; 2" in text
    assert '<th scope="col">&amp;</th>' in text and '<th scope="col" class="number">number' in text
    assert '<td>&lt;b&gt;</td><td class="number">1</td>' in text
    assert '<td>x</td><td class="number">–</td>' in text


def test_figures_on_a_page_have_ids_of_their_own():
    text = comparison(curves=[page.figure(plot, "x")] * 2)
    assert "script-src 'none'" in text and "<script" not in text
    ids = re.findall(r' id="([^"]*)"', text)
    assert ids and len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)


def test_the_package_includes_the_templates(tmp_path):
    root = Path(page.__file__).parents[2]
    code = "from setuptools import setup; setup()"
    build = ["-q", "egg_info", "-e", tmp_path, "build_py", "-d", tmp_path / "lib"]
    subprocess.run([sys.executable, "-c", code, *map(str, build)], cwd=root, check=True)
    templates = Path(page.__file__).parent / "templates"
    built = tmp_path / "lib" / "keras_transfer" / "reporting" / "templates"
    assert {file.name for file in built.iterdir()} == {file.name for file in templates.iterdir()}
