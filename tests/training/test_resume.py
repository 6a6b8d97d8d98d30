"""A run that was ended at any moment goes on and ends as if nothing had been."""

import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import MODALITIES, RUN_FILES, tiny_bert, write_image, write_words
from killed import Killed, killed_after

from keras_transfer.data import from_directory
from keras_transfer.errors import InputError
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.runs import Run
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.schedules.recipes import RECIPES
from keras_transfer.training.trainer import Trainer
from keras_transfer.utils.checkpoint import Checkpoint

SCRIPTS = Path(__file__).parents[2] / "scripts"
KILLS = 2  # the script with more of them is for by hand
NAMES = ("blue", "green", "red")
SCHEDULE = Schedule("s", (Phase("head", "all", 2, 1e-2), Phase("all", "none", 2, 1e-3, ema=0.9)))


def trainer(schedule=SCHEDULE, kind=MODALITIES["image"], **settings):
    _, backbone, options = kind
    keras.utils.set_random_seed(0)
    model = build_model(backbone(), Classification(NAMES), **options)
    return Trainer(model, schedule, **{"batch_size": 8, **settings})


def test_kills_at_random_moments():
    """`scripts/torture_resume.py`: kill -9, also while a checkpoint is written, then --resume.

    In a process of its own: it forks, which a process that has used TensorFlow must not.
    """
    result = subprocess.run(
        [sys.executable, SCRIPTS / "torture_resume.py", "--kills", str(KILLS)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 weights or histories differ" in result.stdout.splitlines()[-1]
    assert int(result.stdout.splitlines()[-1].split()[0]) >= KILLS


@pytest.fixture(scope="module", params=[*MODALITIES])
def undisturbed(request, tmp_path_factory):
    """(kind, data, weights of the run, its metrics, where what it had on disk is kept).

    `left / "2-True"` is what a death before the state of the second epoch was written would leave.
    """
    kind = MODALITIES[request.param]
    if request.param == "text":
        pytest.importorskip("tensorflow_text", reason="tensorflow-text is not installed")
        kind = (write_words, lambda: tiny_bert(dropout=0.2), {})
    folder = tmp_path_factory.mktemp("undisturbed")
    data = from_directory(kind[0](folder / "data"))
    save, left = Checkpoint.save, folder / "left"

    def save_and_copy(self, state, *args):
        shutil.copytree(self.folder.parent, left / f"{state['epoch']}-True")
        save(self, state, *args)
        shutil.copytree(self.folder.parent, left / f"{state['epoch']}-False")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_copy)
        whole = trainer(kind=kind).fit(data, folder / "whole")
    return kind, data, whole.model.get_weights(), whole.metrics, left


# By the state that is found: of the first phase, of between the phases, of the second one. Where the
# death came before an epoch's state was written, that of the epoch before is found.
MOMENTS = [(2, True), (3, True), (3, False)]


@pytest.mark.parametrize(
    ("epoch", "before"),
    [
        *MOMENTS,
        *(pytest.param(*m, marks=pytest.mark.large) for m in [(1, True), (1, False), (2, False)]),
    ],
)
def test_resume_ends_where_the_undisturbed_run_ends(undisturbed, tmp_path, epoch, before):
    kind, data, weights, metrics, left = undisturbed
    shutil.copytree(left / f"{epoch}-{before}", tmp_path / "cut")
    assert not (tmp_path / "cut" / "model.keras").exists()
    with pytest.raises(InputError, match="--resume"):
        trainer(kind=kind).fit(data, tmp_path / "cut")
    # What a killed process was writing is cleared away.
    (tmp_path / "cut" / "state").mkdir(exist_ok=True)  # before the first epoch there is none
    for file in ("state/.123.epoch-2.npz", ".123.history.csv"):
        (tmp_path / "cut" / file).write_bytes(b"half")
    resumed = trainer(kind=kind).fit(data, tmp_path / "cut", resume=True)
    assert {p.name for p in resumed.path.iterdir()} == RUN_FILES
    for a, b in zip(weights, resumed.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert resumed.metrics["best_epoch"] == metrics["best_epoch"]
    assert len((resumed.path / "history.csv").read_text().splitlines()) == 5
    with pytest.raises(InputError, match="finished: there is nothing to resume"):
        trainer(kind=kind).fit(data, tmp_path / "cut", resume=True)


@pytest.mark.large
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "bit"])
def test_each_recipe_resumes(colours, tmp_path, name):
    data = from_directory(colours)
    settings = {"epochs": 5, "overrides": {"image_size": 32, "smaller_by": -32}}
    if name != "progressive_resize":
        settings["overrides"] = {}
    whole = trainer(name, **settings).fit(data, tmp_path / "whole")
    with killed_after(epoch=3):
        trainer(name, **settings).fit(data, tmp_path / "cut")
    resumed = trainer(name, **settings).fit(data, tmp_path / "cut", resume=True)
    for a, b in zip(whole.model.weights, resumed.model.weights):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_the_command_goes_on_with_the_split_of_the_run(colours, tmp_path, monkeypatch):
    """Whatever rule divided the images when it began."""
    from keras_transfer.cli import app

    seen = []

    def stop(self, data, *args, **kwargs):
        seen.append(data)
        raise Killed

    monkeypatch.setattr(Trainer, "fit", stop)
    rows = [
        (str(p.relative_to(colours)), p.parent.name, "val" if p.stem in "34" else "train")
        for p in sorted(colours.glob("*/*.png"))
    ]
    begun = {"precision": "float32", "strategy": "lp_ft", "augment": "light"}
    begun["head"] = {"task": "single_label", "names": list(NAMES)}
    Run.create(tmp_path / "run", begun, [], {}, rows)
    options = ["--backbone", "mobilenet_0.25", "--weights", "none", "--image-size", "32"]
    options += ["--folds", "3", "--fold", "1", "--resume"]
    command = ["train", str(colours), "--out", str(tmp_path / "run"), *options]
    with pytest.raises(Killed):
        app(command, standalone_mode=False)
    assert sorted(seen[0].split_table()) == sorted(rows)


def test_a_run_goes_on_where_its_images_were_moved(colours, tmp_path):
    with killed_after(epoch=1):
        trainer().fit(from_directory(colours), tmp_path / "run")
    moved = colours.rename(tmp_path / "elsewhere")
    run = trainer().fit(from_directory(moved), tmp_path / "run", resume=True)
    assert len(run.history) == 4
    assert run.config["data"] == str(moved)


def test_what_changed_is_said(colours, tmp_path):
    data = from_directory(colours)
    with killed_after(epoch=1):
        trainer().fit(data, tmp_path / "cut")
    kept = {p: p.read_bytes() for p in (tmp_path / "cut").rglob("*") if p.is_file()}

    def refused(words, data=data, **settings):
        with pytest.raises(InputError, match=words):
            trainer(**settings).fit(data, tmp_path / "cut", resume=True)

    refused("batch_size: 8 is now 4", batch_size=4)
    refused("seed: 0 is now 1", seed=1)
    faster = {"overrides": {"all.learning_rate": 0.5}}
    refused(r"schedule\.phases\[1\]\.learning_rate: 0\.001 is now 0\.5", **faster)

    def with_split_of_run():  # by the rule another content may be on another side
        return from_directory(colours, split_file=tmp_path / "cut" / "split.csv")

    write_image(colours / "red" / "0.png", (1, 2, 3), seed=9)
    refused(r"1 example is changed \(\w+: red: red/0\.png\)", with_split_of_run())
    (colours / "red" / "0.png").unlink()
    refused(r"example is gone \(.*red/0\.png", with_split_of_run())
    write_image(colours / "blue" / "new.png", (1, 2, 3))
    refused(r"example is new \(.*blue/new\.png", with_split_of_run())
    assert kept == {p: p.read_bytes() for p in (tmp_path / "cut").rglob("*") if p.is_file()}


def test_resume_begins_where_nothing_was_begun(colours, tmp_path):
    """So that one command can be repeated until it is through."""
    (tmp_path / "empty").mkdir()
    schedule = Schedule("s", (Phase("head", "all", 1, 1e-2),))
    for out in (tmp_path / "none", tmp_path / "empty"):
        run = trainer(schedule).fit(from_directory(colours), out, resume=True)
        assert run.finished
        assert run.config["data"] == str(colours)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("dear")
    with pytest.raises(InputError, match="is not a run"):
        trainer(schedule).fit(from_directory(colours), tmp_path / "mine", resume=True)
    assert (tmp_path / "mine" / "note.txt").read_text() == "dear"


def test_hidden_files_of_other_programs_stay(tmp_path):
    run = Run.create(tmp_path / "run", {"seed": 0}, [], {"a.png": "1"})
    run.release()
    others = run.path / ".ipynb_checkpoints"  # by Jupyter, when a file there is opened
    others.mkdir()
    half = run.path / ".123.history.csv"
    half.write_text("epoch")
    Run.resume(run.path, {"seed": 0}, {"a.png": "1"}).release()
    assert others.is_dir() and not half.exists()
