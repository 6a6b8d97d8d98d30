"""Run README.md and docs/walkthrough.md from top to bottom: every block of Python, every command.

The images are noise with labels that do not depend on them, so the advisor finds no signal and makes the cheapest
choice. ImageNet weights of `mobilenet_v2` are not available: a file with random ones lies where Keras would
have put the download (`KERAS_HOME`). Trainings take six epochs by default; nothing else is replaced.
"""

import re
import shlex

import documents
import numpy as np
import pytest
import readme_tables
from PIL import Image
from typer.testing import CliRunner

import keras_transfer.advisor.auto
from keras_transfer.cli.main import app
from keras_transfer.errors import InputError
from keras_transfer.schedules import defaults, recipes

PAGES = ("README.md", "docs/walkthrough.md")
BACKBONE = "mobilenet_v2"
IMAGES = 12  # per class

# Long commands get these additional options; the last value of an option counts.
SHORT = "--image-size 64 --epochs 2"
QUICK = {
    "train flowers/ --out runs/flowers": "",
    "advise flowers/": "",
    "backbones": "",
    "check flowers/ --sheet sheet.png": "",
    "evaluate runs/flowers flowers/": "",
    "predict runs/flowers new_images/": "",
    "train flowers/ --out runs/flowers --resume": "",
    "schedule gradual_unfreeze --backbone mobilenet_v2_0.35 --out plan.png": "",
}
LONG = {
    "train flowers/ --out runs/own --backbone mobilenet_v2 --strategy lp_ft": SHORT,
    "compare flowers/ --out runs/gain": f"{SHORT} --sizes 2,4 --seeds 0,1",
    "tune flowers/ --out runs/search --trials 30": f"{SHORT} --trials 2",
    "adapt catalogue/ shop_floor/ --method mcc,dann --out runs/adapted": SHORT,
    "evaluate runs/flowers flowers/ --out results --calibrate --precision 0.98 --slice size": "",
    "report runs/flowers": "",
    "report runs/flowers runs/own": "",
    "train flowers/ --out runs/quick --strategy feature_extraction": "",
    "export runs/flowers": "",
    "export runs/flowers --format openvino --int8": "--max-loss 1",
    "train roses/ --out runs/roses --backbone auto,runs/flowers": "",
    "train table.csv --out runs/t --column path=file --column targets=age --column group=patient": SHORT,
    "train signs/ --out runs/s --augment medium --no-flip --mix mixup": SHORT,
    "find-rate flowers/": "--image-size 64",
}
# No run was interrupted here, so the command must say so.
REFUSED = {"train flowers/ --out runs/flowers --resume": "is finished: there is nothing to resume"}
LEFT_OUT = {
    "pip install keras_transfer": "needs the package registry",
    "./scripts/demo.sh": "CI runs it",
    "./scripts/test.sh": "it runs this file",
    "keras-transfer ask http://localhost:8501 flowers new_images/": "needs TF Serving; `test_client.py` has a stand-in",
    "keras-transfer train tfds:cassava --out runs/c --augment medium --balance weights": "a download; `test_sources.py` has made-up ones",
    "scripts/launch_local.sh 2": "two processes; `test_distribution_processes.py` runs it",
    "RUN=$PWD/runs/flowers MODEL=flowers docker compose -f serving/compose.yaml up": "needs Docker",
    "curl -d": "needs TF Serving",
}


def lines():
    """Yield the command lines of the README and of the walkthrough, in their order."""
    for block in executed_blocks("bash"):
        yield from (shlex.join(words) for words in documents.commands(block.text))


def executed_blocks(language):
    return [b for page in PAGES for b in documents.blocks(language) if b.file == page]


def test_each_line_is_run_or_left_out_for_a_reason():
    known = {f"keras-transfer {line}" for line in QUICK | LONG}
    for line in lines():
        plain = shlex.join(shlex.split(line)).replace("'", "")
        assert line in known or plain.startswith(tuple(LEFT_OUT)), f"no test runs: {line}"
    for line in known:
        assert line in lines(), f"no longer in {' or '.join(PAGES)}: {line}"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return a `KERAS_HOME` with random weights for the backbone named in the README."""
    import h5py
    import keras
    from keras.src.legacy.saving import legacy_h5_format  # no public name

    from keras_transfer.models.sources.applications import BACKBONES, weights_path

    home = tmp_path_factory.mktemp("keras")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(home))
        file = weights_path(BACKBONES[BACKBONE])
    model = BACKBONES[BACKBONE].constructor(include_top=False, weights=None)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # Statistics of a trained network: initial ones would be recognized as random weights.
            layer.moving_mean.assign(rng.normal(0, 0.1, layer.moving_mean.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 1.5, layer.moving_variance.shape))
    file.parent.mkdir()
    with h5py.File(file, "w") as out:
        legacy_h5_format.save_weights_to_hdf5_group(out, model)
    return home


@pytest.fixture
def newcomer(weights, tmp_path, monkeypatch):
    """Return a folder with the data named in the pages, and Keras's weights."""
    monkeypatch.setenv("KERAS_HOME", str(weights))
    monkeypatch.chdir(tmp_path)
    for module in (defaults, recipes, keras_transfer.advisor.auto):
        monkeypatch.setattr(module, "default_epochs", lambda examples: 6)
    rng = np.random.default_rng(0)

    def write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (72, 72, 3), "uint8")).save(path)

    for folder in ("flowers", "roses", "signs", "catalogue"):
        for kind in ("first", "second"):
            for number in range(IMAGES):
                write(tmp_path / folder / kind / f"{number}.png")
    for folder in ("new_images", "shop_floor", "scans"):
        for number in range(IMAGES):
            write(tmp_path / folder / f"{number}.png")
    rows = [f"scans/{number}.png,{20 + number},{number // 2}" for number in range(IMAGES)]
    (tmp_path / "table.csv").write_text("\n".join(["file,age,patient", *rows]))
    return tmp_path


def test_the_python_blocks(newcomer, capsys):
    blocks = executed_blocks("python")
    names = {}
    for block in blocks:
        exec(compile(block.text, str(block), "exec"), names)
    assert len(blocks) >= 3 and names["run"].path.samefile("runs/first")
    assert (newcomer / "runs/first/report.html").is_file()
    assert (newcomer / "serving/flowers/1/saved_model.pb").is_file()
    said = capsys.readouterr().out
    assert "freezes 12 of 18 stages" in said or "stage" in said
    assert len(names["prefix"].layers) > 10 and len(names["suffix"].layers) > 10


def test_the_quick_commands(newcomer):
    run(newcomer, QUICK)
    assert {path.name for path in (newcomer / "runs").iterdir()} == {"flowers"}
    assert all((newcomer / name).is_file() for name in ("sheet.png", "plan.png"))


@pytest.mark.large
def test_all_commands(newcomer):
    run(newcomer, QUICK | LONG)
    assert (newcomer / "runs/flowers/report.html").is_file()
    made = {path.name for path in (newcomer / "runs").iterdir() if path.is_dir()}
    assert made == {*("flowers", "own", "gain", "search", "adapted", "quick", "roses", "t", "s")}
    assert (newcomer / "runs/flowers/export/1/saved_model.pb").is_file()
    assert (newcomer / "results/evaluation.json").is_file()


def run(folder, chosen):
    """Run the chosen lines in the order of the pages, each once."""
    wanted = [line.removeprefix("keras-transfer ") for line in dict.fromkeys(lines())]
    wanted = [line for line in wanted if line in chosen]
    for line in wanted:
        found = CliRunner().invoke(app, shlex.split(f"{line} {chosen[line]}"))
        said = f"{line}: {found.output[-2000:]}"
        if line in REFUSED:
            assert isinstance(found.exception, InputError), said
            assert REFUSED[line] in str(found.exception)
        elif found.exception is not None:
            raise AssertionError(said) from found.exception


def test_tables_are_what_the_benchmarks_printed():
    assert readme_tables.stale() == {}, "run scripts/readme_tables.py"


def test_a_page_without_the_lines_around_a_table_is_an_error():
    readme = (readme_tables.ROOT / "README.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="measured"):
        readme_tables.filled("README.md", readme.replace("<!-- /measured -->", ""))


def test_the_readme_is_short():
    text = (readme_tables.ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900
    assert len(readme_tables.README_ROWS) <= 6


# A number with a decimal point or a unit, outside of code.
FIGURE = re.compile(r"(?<![\d.])(\d+\.\d+|\d+(?= (?:%|(?:images/s|s|points|times)\b)))")


# Page → least number of figures that must be found on it.
WITH_FIGURES = {
    "README.md": 5,
    "docs/adaptation-measure.md": 2,
    "docs/data-augmentation.md": 2,
    "docs/distributed.md": 3,
    "docs/features.md": 2,
    "docs/limits.md": 5,
    "docs/training.md": 3,
}


@pytest.mark.parametrize("file", WITH_FIGURES)
def test_figures_are_those_of_the_benchmarks_they_name(file):
    """A benchmark NAME printed the figures in each paragraph or table row that links to `measured.md#NAME`."""
    text = (readme_tables.ROOT / file).read_text(encoding="utf-8")
    seen = 0
    for passage in re.split(r"\n\n|\n(?=\|)", text):
        names = re.findall(r"measured\.md#(\w+)", passage)
        prose = re.sub(r"`[^`]*`|95 % interval", "", passage)
        printed = "\n".join((readme_tables.MEASURED / f"{n}.txt").read_text("utf-8") for n in names)
        for figure in FIGURE.findall(prose) if names else []:
            assert re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", printed), (figure, passage)
            seen += 1
    assert seen >= WITH_FIGURES[file]
