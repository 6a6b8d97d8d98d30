"""The command line: bad input ends in one line and exit code 2, at once and with nothing written."""

import csv
import json
import os
import subprocess
import sys

import pytest
from conftest import raises, tiny_backbone, write_image
from typer.testing import CliRunner

from keras_transfer.cli.main import cache

COLOURS = {"red": (200, 40, 40), "blue": (40, 40, 200)}


def run(*args, **kwargs):
    # Measured by hand, asserted by imports: TensorFlow must not be loaded for any of these.
    code = (
        "import sys; from keras_transfer.cli.main import main\n"
        "try: main()\n"
        "finally: print('LOADED', [m for m in ('tensorflow', 'keras') if m in sys.modules],"
        " file=sys.stderr)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, **kwargs
    )


def here(*args):
    """The command in this process, which has TensorFlow already."""
    from keras_transfer.cli.main import app

    return CliRunner().invoke(app, [*map(str, args)])


@pytest.fixture
def source(tmp_path):
    """A network of one's own, as a file, that compiles at once."""
    from keras_transfer.models.builders import build_model
    from keras_transfer.models.heads import Classification

    path = tmp_path / "source.keras"
    build_model(tiny_backbone(), Classification("ab"), image_size=32).save(path)
    return path


def folder_of(path, classes, count=6):
    for name in classes:
        for i in range(count):
            write_image(path / name / f"{i}.png", COLOURS.get(name, (9, 9, 9)), seed=i)
    return path


def bad_folder(tmp_path, case):
    data = tmp_path / "data"
    if case == "no such folder":
        return data, "no such folder"
    if case == "no classes":
        write_image(data / "loose.png", (1, 2, 3))
        return data, "class"
    if case == "one class":
        return folder_of(data, ["red"]), "one class"
    if case == "class without readable image":
        folder_of(data, COLOURS)
        for file in (data / "blue").iterdir():
            file.write_bytes(b"not an image")
        return data, "no readable example"
    assert case == "too few to split"
    folder_of(data, ["red"])
    folder_of(data, ["blue"], count=1)
    return data, "too few"


UNTRAINED = ("--weights", "none")
LP_FT = ("--strategy", "lp_ft")
CASES = {
    "unknown backbone": (["--backbone", "resnet5"], "did you mean resnet50"),
    "image size": (["--backbone", "xception", "--image-size", "40"], "too small for xception"),
    "no weights": (["--backbone", "resnet50"], "Copy resnet50_weights"),
    "unknown strategy": (["--strategy", "magic"], "Unknown strategy 'magic'"),
    "no source model": (["--backbone", "./none.keras"], "does not exist"),
    "no config": (["--config", "none.yaml"], "Config file not found: none.yaml"),
    "not a config": (["--config", "list.yaml"], "list.yaml is not a config file"),
    "a config of another kind": (["--config", "broken.yaml"], "broken.yaml is not valid YAML"),
    "no value of YAML": ([*LP_FT, "--set", "epochs=["], "invalid value '['"),
    "no such phase": ([*LP_FT, "--set", "al.ema=0.9"], "has the phases head, all"),
    "no such field": ([*LP_FT, "--set", "all.emma=0.9"], "a phase has the fields"),
    "no such argument": ([*LP_FT, "--set", "k=3"], "lp_ft has the arguments"),
    "a value out of range": (
        [*LP_FT, "--set", "all.ema=1.5"],
        "ema must be at least 0 and below 1",
    ),
    "no value": ([*LP_FT, "--set", "epochs"], "use KEY=VALUE"),
    "a number of one strategy": (["--set", "k=0.3"], "may choose feature_extraction: Cannot set k"),
    "minutes": (["--minutes", "0"], "minutes must be a number above 0, not 0.0"),
    "no schedule file": (["--strategy", "none.yaml"], "No schedule file"),
    "no batch": (["--batch-size", "0"], "batch_size must be a whole number of 1 or more, not 0"),
    "a negative batch": (["--batch-size", "-3"], "batch_size must be a whole number of 1 or more"),
    "a negative seed": (["--seed", "-1"], "seed must be a whole number of 0 or more"),
    "no epochs": (["--epochs", "0"], "epochs must be a whole number of 1 or more, not 0"),
    "a negative rate": (["--learning-rate", "-1"], "learning_rate must be a number above 0"),
    "a share": (
        [*UNTRAINED, "--val-split", "1.5"],
        "val_split must be a number above 0 and below 1, not 1.5",
    ),
    "a group": ([*UNTRAINED, "--group", "(a"], "not a regular expression"),
    "a fold": ([*UNTRAINED, "--folds", "3"], "--fold"),
    "no list": ([*UNTRAINED, "--split", "none.csv"], "cannot read the list of splits none.csv"),
    "epochs of bit": (["--strategy", "bit", "--epochs", "3"], "bit has the arguments"),
}


def check_one_line(result, words):
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2, result.stderr
    assert len(lines) == 2 and lines[0].startswith("error: "), result.stderr
    assert words in lines[0]
    assert lines[1] == "LOADED []"
    assert result.stdout == ""


@pytest.mark.parametrize(
    "case",
    [
        "no such folder",
        "no classes",
        "one class",
        "class without readable image",
        "too few to split",
    ],
)
def test_bad_folders(tmp_path, case):
    data, words = bad_folder(tmp_path, case)
    result = run(
        "train",
        data,
        "--out",
        tmp_path / "run",
        "--backbone",
        "mobilenet_0.25",
        "--strategy",
        "from_scratch",
    )
    check_one_line(result, words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("case", CASES)
def test_bad_options(tmp_path, case):
    options, words = CASES[case]
    data = folder_of(tmp_path / "data", COLOURS)
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "broken.yaml").write_text("epochs: [")
    # A proxy that nobody answers: the weights are out of reach on any machine.
    away = {"KERAS_HOME": str(tmp_path / "home"), "https_proxy": "http://127.0.0.1:9"}
    env = {**os.environ, **away}
    result = run("train", data, "--out", tmp_path / "run", *options, env=env, cwd=tmp_path)
    check_one_line(result, words)
    assert not (tmp_path / "run").exists()


def test_out_that_is_taken(tmp_path):
    data = folder_of(tmp_path / "data", COLOURS)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("dear")
    result = run("train", data, "--out", tmp_path / "run")
    check_one_line(result, "not empty")
    assert (tmp_path / "run" / "mine").read_text() == "dear"


@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
def test_what_is_no_run(tmp_path, command):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.keras").write_text("by somebody else")
    data = [] if command == "export" else [folder_of(tmp_path / "data", COLOURS)]
    check_one_line(run(command, tmp_path / "none", *data), "the directory does not exist")
    check_one_line(run(command, tmp_path / "other", *data), "is not a run")


def test_model_file_made_by_something_else(tmp_path):
    data = folder_of(tmp_path / "data", COLOURS)
    (tmp_path / "model.keras").write_text("by somebody else")
    result = run("train", data, "--out", tmp_path / "run", "--backbone", tmp_path / "model.keras")
    check_one_line(result, "not a Keras 3 model file")


def test_help_and_backbones_load_no_tensorflow():
    schedules = (["schedule"], ["schedule", "bit", "--images", "300"])
    for args in (
        ["--help"],
        ["train", "--help"],
        *schedules,
        ["backbones"],
        ["backbones", "--json"],
    ):
        result = run(*args)
        assert result.returncode == 0 and result.stderr.strip() == "LOADED []"
    rows = json.loads(result.stdout)
    assert len(rows) == 52
    assert {
        "name",
        "parameters",
        "image_size",
        "stages",
        "preprocessing",
        "weights_present",
    } <= set(rows[0])


def test_importing_the_package_loads_no_keras():
    code = "import sys, keras_transfer as kt; kt.Trainer if 0 else kt.BACKBONES; print('keras' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False"


def test_schedules_are_shown_written_and_drawn(tmp_path):
    from keras_transfer.schedules.recipes import RECIPES

    shown = run("schedule").stdout
    assert len(shown.splitlines()) == len(RECIPES) and "gradual_unfreeze" in shown
    file = tmp_path / "mine.yaml"
    first = run("schedule", "lp_ft", "--epochs", "5", "--set", "all.ema=0.9", "--out", file)
    assert "ema=0.9" in first.stdout
    assert run("schedule", file).stdout == first.stdout
    image = tmp_path / "plan.png"
    options = ["--backbone", "mobilenet_0.25", "--image-size", "64", "--out", image]
    drawn = here("schedule", file, *options)
    assert drawn.exit_code == 0, drawn.output
    assert "of 14" in drawn.stdout and image.read_bytes().startswith(b"\x89PNG")
    check_one_line(run("schedule", "lp_ft", "--out", image), "needs --backbone")
    check_one_line(run("schedule", "lp_ft", "--out", tmp_path / "x.txt"), "a .yaml or a .png")


def test_a_rate_is_suggested(tmp_path, source):
    data = folder_of(tmp_path / "data", COLOURS, count=12)
    image = tmp_path / "rates.png"
    options = [
        "--backbone",
        source,
        "--batch-size",
        "4",
        "--steps",
        "30",
        "--precision",
        "float32",
        "--out",
        image,
    ]
    result = here("find-rate", data, *options)
    assert result.exit_code == 0, result.output
    assert float(result.stdout.split()[3]) > 0
    assert image.read_bytes().startswith(b"\x89PNG")
    check_one_line(run("find-rate", data, "--out", "x.txt"), "choose a .png")


def test_the_whole_road(tmp_path, cache, source):
    """train → evaluate → predict → export → train again from the run's config, by commands."""
    data = folder_of(tmp_path / "data", COLOURS, count=10)
    (data / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    out = tmp_path / "run"
    options = ["--backbone", source, "--epochs", "2", "--batch-size", "8", "--test-split", "0.1"]
    trained = here("train", data, "--out", out, *LP_FT, *options)
    assert trained.exit_code == 0, trained.output
    assert "95 % interval" in trained.stdout and "1 file skipped" in trained.stdout
    assert "broken.jpg" in (out / "skipped.csv").read_text()

    evaluated = here("evaluate", out, data, "--json")
    result = json.loads(evaluated.stdout)
    assert result["images"] == 20 and result["skipped"] == 1
    assert set(result["per_class"]) == {"blue", "red"}

    with (out / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    tested = [row["path"] for row in rows if row["split"] == "test"]
    assert len(rows) == 20 and {path.split("/")[0] for path in tested} == {"blue", "red"}
    result = json.loads(here("evaluate", out, data, "--split", "test", "--json").stdout)
    assert result["images"] == len(tested) == 2

    image = data / "blue" / "0.png"
    predicted = json.loads(here("predict", out, image, data / "red", "--json").stdout)
    assert len(predicted["predictions"]) == 11 and len(predicted["skipped"]) == 1
    csv_file = tmp_path / "predictions.csv"
    assert here("predict", out, image, "--out", csv_file).stdout == ""
    header, row = csv_file.read_text().splitlines()
    assert header == "path,label,score,top1,top2"
    assert row.split(",")[1] == predicted["predictions"][0]["label"]

    exported = here("export", out)
    assert exported.exit_code == 0, exported.output
    assert (out / "export" / "1" / "saved_model.pb").is_file()
    assert here("export", out).exit_code == 0 and (out / "export" / "2").is_dir()

    again = here("train", data, "--out", tmp_path / "again", "--config", out / "config.yaml")
    assert again.exit_code == 0, again.output
    first, second = (
        json.loads((d / "metrics.json").read_text()) for d in (out, tmp_path / "again")
    )
    assert first["val"] == second["val"]
    assert [p["epochs"] for p in second["phases"]] == [1, 2]


def test_cache_lists_limits_and_clears(tmp_path):
    import numpy as np

    from keras_transfer.features.store import DIGEST, Store

    env = {**os.environ, "KERAS_TRANSFER_CACHE": str(tmp_path)}
    store = Store(tmp_path / "features")
    about = {"backbone": "resnet50, 3 of 9 stages", "image_size": 224, "view": "plain"}
    for name in "ab":
        table = store.table({"name": name}, {**about, "engine": "keras"})
        table.add([bytes(DIGEST)], np.zeros((1, 1000), "float32"))
    shown = run("cache", env=env)
    assert shown.stdout.count("resnet50, 3 of 9 stages") == 2 and "LOADED []" in shown.stderr
    found = json.loads(run("cache", "--json", env=env).stdout)
    assert found["bytes"] > 8000 and [t["engine"] for t in found["tables"]] == ["keras"] * 2
    less = run("cache", "--limit", "0.000005", env=env)  # gigabytes: one of the two
    assert less.stdout.count("resnet50") == 1 and "removed 4" in less.stderr
    assert "resnet50" not in run("cache", "--clear", env=env).stdout
    wrong = run("cache", "--limit", "-1", env=env)
    assert wrong.returncode == 2 and "--limit -1" in wrong.stderr
    for number in ("nan", "inf"):
        with raises(f"--limit {number}: it must be a number of gigabytes"):
            cache(limit=float(number))
