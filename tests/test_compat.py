"""What must work with every set of versions; `scripts/compat.sh` runs this, and the tests marked `compat`
elsewhere, against the wheel.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import tiny_backbone
from packaging.version import Version

import keras_transfer as kt
from keras_transfer.data import from_directory
from keras_transfer.export import FORMATS
from keras_transfer.schedules.recipes import RECIPES
from keras_transfer.utils.extras import EXTRAS, is_installed

pytestmark = pytest.mark.compat

# A notebook that has imported these breaks if pip replaces them.
KEPT = (
    "tensorflow",
    "keras",
    "keras-hub",
    "tensorflow-text",
    "tf_keras",
    "tf-nightly",
    "keras-nightly",
)


@pytest.fixture(autouse=True)
def environment() -> Path:
    """The environment that scripts/compat.sh made; `.ci/run` makes two."""
    folder = os.environ.get("KERAS_TRANSFER_COMPAT")
    if not folder:
        pytest.skip("not run by scripts/compat.sh: there is no environment to examine")
    return Path(folder)


def frozen(file):
    return dict(
        re.split("==| @ ", line, maxsplit=1)
        for line in file.read_text().splitlines()
        if line and not line.startswith("#")
    )


def test_the_wheel_replaces_nothing(environment):
    before, after = frozen(environment / "before.txt"), frozen(environment / "after.txt")
    changed = {name: after.get(name) for name in before if after.get(name) != before[name]}
    assert not changed
    assert "keras_transfer" in set(after) - set(before)
    for name in KEPT:
        if name in before:
            assert importlib.metadata.version(name) == before[name]  # the extras kept it, too


def test_the_wheel_is_complete(environment):
    package = Path(kt.__file__).parent
    assert environment in package.parents
    checkout = Path(__file__).parents[1] / "keras_transfer"
    for folder in (package, checkout):
        assert (folder / "py.typed").is_file()
    files = [
        {p.relative_to(f) for p in f.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
        for f in (checkout, package)
    ]
    assert files[0] == files[1]
    assert importlib.metadata.version("keras_transfer") == kt.__version__


def test_a_missing_extra_is_named(environment):
    for module, extra in EXTRAS.items():
        if not is_installed(module):
            with pytest.raises(kt.InputError, match=re.escape(f'"keras_transfer[{extra}]"')):
                from keras_transfer.utils.extras import require

                require(module, "This")


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "bit"])
def test_each_recipe_trains_and_its_model_loads(colours, tmp_path, recipe):
    data = from_directory(colours, progress=False)
    keras.utils.set_random_seed(0)
    model = kt.build_model(tiny_backbone(), kt.Classification(data.class_names), image_size=32)
    overrides = {"image_size": 32, "smaller_by": -32} if recipe == "progressive_resize" else {}
    trainer = kt.Trainer(model, recipe, batch_size=8, epochs=5, overrides=overrides)
    run = trainer.fit(data, tmp_path / "run")
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype("uint8")
    loaded = kt.load_model(run.model_path)
    np.testing.assert_allclose(loaded(images), keras.saving.load_model(run.model_path)(images))
    assert np.isfinite(run.metrics["val"]["loss"])


def test_models_of_other_sets_load(environment, rng):
    """Each set leaves a model with its outputs; those that were tested before are read here."""
    own = environment / "saved"
    own.mkdir()
    keras.utils.set_random_seed(0)
    model = kt.build_model(tiny_backbone(), kt.Classification(("ant", "bee")), image_size=32)
    kt.freeze(model, 0.5)
    model.compile("adam", "sparse_categorical_crossentropy")
    images = rng.integers(0, 256, (4, 32, 32, 3)).astype("uint8")
    model.fit(images, np.array([0, 1, 0, 1]), verbose=0)
    model.save(own / "model.keras")
    np.savez(own / "outputs.npz", images=images, outputs=model(images), keras=keras.__version__)

    for file in sorted(environment.parent.glob("*/saved/outputs.npz")):
        folder, saved = file.parent, np.load(file)
        try:
            loaded = kt.load_model(folder / "model.keras")
        except kt.InputError as error:  # only a newer Keras may have written something unknown
            assert Version(str(saved["keras"])) > Version(keras.__version__), error
            assert str(saved["keras"]) in str(error) and keras.__version__ in str(error)
            continue
        difference = np.abs(loaded(saved["images"]) - saved["outputs"]).max()
        print(f"{folder.parent.name} (Keras {saved['keras']}): largest difference {difference:.1e}")
        assert difference <= 1e-5


def command(*arguments):
    """Run keras-transfer in a fresh process; return what it printed."""
    code = "from keras_transfer.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_from_training_to_export(colours, tmp_path):
    source = tmp_path / "source.keras"
    kt.build_model(tiny_backbone(), kt.Classification("ab"), image_size=32).save(source)
    run = tmp_path / "run"
    options = ["--backbone", source, "--strategy", "lp_ft", "--image-size", 32]
    command("train", colours, "--out", run, *options, "--batch-size", 8, "--epochs", 4)
    assert json.loads((run / "metrics.json").read_text())["val"]["accuracy"] >= 0
    assert "accuracy" in command("evaluate", run, colours)
    assert "red" in command("predict", run, colours / "red")
    command("report", run)
    assert (
        "<svg" in (run / "report.html").read_text() or "<img" in (run / "report.html").read_text()
    )
    for name, (packages, _) in FORMATS.items():
        if name != "page" and all(map(is_installed, packages)):  # npm may be missing
            command("export", run, "--format", name, "--out", tmp_path / name / "1")
            assert any((tmp_path / name / "1").iterdir())


def test_doctor_finds_no_conflict(environment):
    code = "from keras_transfer.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", "--json"], capture_output=True, text=True
    )
    report = json.loads(done.stdout)
    assert report["healthy"] and done.returncode == 0, report["findings"]
