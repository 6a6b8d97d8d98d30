"""The notebooks: what they share, what is kept in them, and that they run from start to end."""

import re

import nbformat
import pytest
from run_notebooks import REPOSITORY, ROOT, NotebookError, execute, notebooks, shown, tags

NAMES = [path.stem for path in notebooks()]
MOST_BYTES = 1_500_000
# Paths of a machine; noise that differs from run to run.
MACHINE = re.compile(
    r"/(work|tmp|home|root|Users|content|private|var|opt)/|site-packages|[A-Z]:\\\\"
)
NOISE = re.compile(r"^[IWEF]\d{4} |Warning\b|WARNING|INFO:|\d%\||it/s|\r|\x1b\[", re.M)


def read(name):
    (path,) = (path for path in notebooks() if path.stem == name)
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag):
    (cell,) = (cell for cell in notebook.cells if tag in tags(cell))
    return cell


def texts(notebook):
    """What the cells gave in words, of each output."""
    for cell in code(notebook):
        for output in cell.outputs:
            yield output.get("text", "") or output.get("data", {}).get("text/plain", "")


def pictures(notebook):
    return [
        output.data["image/png"]
        for cell in code(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]


def number(notebook, pattern):
    """The number that a cell printed after the words of a pattern."""
    return float(re.search(pattern + r"\s*(\d\.\d+)", "\n".join(texts(notebook)))[1])


def test_there_are_four():
    assert [name[:2] for name in NAMES] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_opens_in_colab_and_installs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    first, setup = notebook.cells[:2]
    repository = REPOSITORY.removeprefix("https://github.com/")
    badge = (
        f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name}.ipynb"
    )
    assert first.cell_type == "markdown" and f"]({badge})" in first.source
    assert setup == tagged(notebook, "setup") and setup.cell_type == "code"
    assert f"%pip install --quiet git+{REPOSITORY}\n" in setup.source + "\n"
    assert 'DATA = "' in tagged(notebook, "parameters").source
    links = re.findall(r"\]\((\w+)\.ipynb\)", "".join(cell.source for cell in notebook.cells))
    assert set(links) <= set(NAMES)


@pytest.mark.parametrize("tag", ["setup", "data"])
def test_all_have_the_same_cells_for_setup_and_data(tag):
    assert len({tagged(read(name), tag).source for name in NAMES}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_came_out_of_one_run_and_names_no_machine(name):
    notebook = read(name)
    assert [cell.execution_count for cell in code(notebook)] == [*range(1, len(code(notebook)) + 1)]
    said = "\n".join(texts(notebook))
    assert not MACHINE.search(said), MACHINE.search(said)
    assert not NOISE.search(said), NOISE.search(said)
    assert len(pictures(notebook)) >= 2
    (path,) = (path for path in notebooks() if path.stem == name)
    assert path.stat().st_size < MOST_BYTES
    assert not any("execution" in cell.metadata for cell in code(notebook))  # times


def test_the_docs_show_the_pictures_of_the_notebooks():
    found = {name: png for notebook in NAMES for name, png in shown(read(notebook)).items()}
    assert found.keys() == {"freeze_curve.png"}
    for name, png in found.items():
        assert (ROOT / "docs" / name).read_bytes() == png


def run(name, real_data, real_weights, **parameters):
    """Executed anew, in less time with other parameters; its pictures are as many as those that are kept."""
    (path,) = (path for path in notebooks() if path.stem == name)
    found = execute(path, parameters)
    assert len(pictures(found)) == len(pictures(read(name)))
    assert not NOISE.search("\n".join(texts(found)))
    return found


def test_quick_start_runs(real_data, real_weights):
    found = run("01_quick_start", real_data, real_weights)
    tables = [
        o.data["text/markdown"]
        for c in code(found)
        for o in c.outputs
        if "text/markdown" in o.get("data", {})
    ]
    assert float(re.search(r"accuracy \| (\d\.\d+)", tables[0])[1]) > 0.88
    said = "\n".join(texts(found))
    assert "same answer for 100.00 %" in said and "cannot be read as a picture" in said


def test_freezing_runs(real_data, real_weights):
    found = run("02_freezing", real_data, real_weights, FROZEN=(0,))
    fine_tuned = number(found, "\n0 stages frozen")
    assert fine_tuned > number(found, "all stages frozen") > 0.5
    assert fine_tuned > number(found, "\n0 frozen, BatchNorm trains")


def test_advisor_and_compare_runs(real_data, real_weights):
    found = run("03_advisor_and_compare", real_data, real_weights, SIZES=(40,), EPOCHS=8)
    said = "\n".join(texts(found))
    assert "40 pictures a class: transfer starts higher" in said and "ends higher" in said


def test_adaptation_and_serving_runs(real_data, real_weights):
    found = run("04_adaptation_and_serving", real_data, real_weights, EPOCHS=5, ADAPT_EPOCHS=2)
    source_alone = number(found, "on the target")
    assert number(found, "AdaBN:") > source_alone + 0.05
    said = "\n".join(texts(found))
    assert "serve_bytes(bytes: string (None,))" in said and "cannot be read as a picture" in said


@pytest.fixture
def small(tmp_path):
    """A notebook of two cells, written to disk."""

    def write(*cells):
        cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
        cells[0].metadata["tags"] = ["parameters"]
        path = tmp_path / "small.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path

    return write


def test_parameters_are_set_after_their_cell_and_not_kept(small):
    path = small("n = 1", "import sys\nprint(n)\nprint('I0000 00:00 1 port.cc', file=sys.stderr)")
    found = execute(path, {"n": 2})
    assert [cell.source for cell in found.cells] == [cell.source for cell in read_at(path).cells]
    assert found.cells[1].outputs[0].text == "2\n" and len(found.cells[1].outputs) == 1


def read_at(path):
    return nbformat.read(path, as_version=4)


def test_what_a_cell_raises_is_said_with_its_number(small):
    with pytest.raises(NotebookError, match=r"small\.ipynb, cell 1: ValueError: no such thing"):
        execute(small("n = 1", "raise ValueError('no such thing')"))
