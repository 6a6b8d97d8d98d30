"""Adapting folders: the command, the run directory, the report."""

import csv
import html
import json
import re
import shlex
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import RUN_FILES, tiny_backbone, write_image
from test_adapt_run import COLOURS, NAMES, domain, same_weights, tiny_model
from typer.testing import CliRunner

from keras_transfer.adaptation import Adaptation, feature_map
from keras_transfer.data import Examples
from keras_transfer.data.arrays import Arrays
from keras_transfer.errors import InputError, Interrupted
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.runs import Run
from keras_transfer.training import estimate

# -- folders --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Source, target, a saved backbone: colors, darker in the target; one invalid file in each."""
    root = tmp_path_factory.mktemp("domains")
    for folder, count, darker in (("source", 15, 0), ("target", 10, 60)):
        for name, colour in zip(NAMES, COLOURS):
            for i in range(count):
                write_image(root / folder / name / f"{i}.png", colour - darker, seed=i, noise=60)
        (root / folder / "red" / "bad.jpg").write_bytes(b"\xff\xd8\xff bad")
    keras.utils.set_random_seed(1)
    backbone = build_model(tiny_backbone(), Classification("ab"), image_size=32)
    backbone.save(root / "tiny.keras")
    return root / "source", root / "target", root / "tiny.keras"


def adaptation(folders, out, **options):
    source, target, backbone = folders
    settings = {
        "method": "mcc,dann",
        "backbone": str(backbone),
        "epochs": 3,
        "batch_size": 12,
        "augment": "none",
        "precision": "float32",
        "bottleneck": 8,
    }
    return Adaptation(source, target, out, **{**settings, **options})


def command(*words):
    """Run a command in this process, which has imported TensorFlow, and return its output."""
    from keras_transfer.cli.main import app

    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def history_of(out):
    with (out / "history.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_command_writes_a_run_for_the_other_commands(folders, tmp_path, monkeypatch):
    source, target, backbone = folders
    out = tmp_path / "run"
    options = ["--method", "mcc,dann", "--backbone", backbone, "--epochs", 2, "--batch-size", 12]
    options += ["--precision", "float32", "--bottleneck", 8, "--no-flip"]
    found = json.loads(
        command("adapt", source, target, "--out", out, *options, "--target-labels", "--json")
    )
    assert {file.name for file in out.iterdir()} == {*RUN_FILES, "feature_maps.npz", "report.html"}
    run = Run.open(out)
    assert found == run.metrics
    assert found["images"] == {"train": 36, "val": 9, "target": 30}
    assert found["best_epoch"] == 2 and found["adaptation"]["keep"] == "last"
    assert found["skipped"] == 2
    assert (out / "skipped.csv").read_text().count("bad.jpg") == 2
    rows = history_of(out)
    assert [(row["epoch"], row["phase"]) for row in rows] == [("1", "adapt"), ("2", "adapt")]
    wanted = ("class_loss", "align_loss", "domain_accuracy", "lambda", "target_entropy")
    for name in (*wanted, "val_accuracy", "target_accuracy", "seconds"):
        assert float(rows[-1][name]) >= 0
    # (1 + 10·p)^−0.75 after the last of 6 steps.
    assert float(rows[-1]["learning_rate"]) == pytest.approx(1e-2 * (1 + 50 / 6) ** -0.75, rel=1e-4)

    evaluated = json.loads(command("evaluate", out, target, "--json"))
    assert evaluated["accuracy"] == found["adaptation"]["target"]["accuracy"]
    assert evaluated["accuracy"] == pytest.approx(float(rows[-1]["target_accuracy"]))
    validated = json.loads(command("evaluate", out, source, "--split", "val", "--json"))
    assert validated["accuracy"] == found["val"]["accuracy"]
    predicted = json.loads(command("predict", out, target / "red" / "0.png", "--json"))
    assert predicted["predictions"][0]["label"] in NAMES
    command("export", out)
    assert (out / "export" / "1" / "saved_model.pb").is_file()

    page = run.report_path.read_text()
    assert page.count("<svg") == page.count("</svg>") == 9  # 5 plots over epochs, 4 feature maps
    for part in ("Discriminator", "Domains, before", "Classes of the source, after", "proxy-A"):
        assert part in page
    assert page.count("bad.jpg") == 2 and "2 last" in page
    # The page is self-contained: it has no address other than XML names.
    assert not re.findall(r"""(?:src|href)="(?!#|data:)|@import|url\((?!#)|<script""", page)
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page
    again = html.unescape(re.search(r"<code>(.*?)</code>", page, re.DOTALL)[1])
    words = shlex.split(again)
    # The report can be written again from the files of the run.
    assert command("report", out, "--out", tmp_path / "again.html").strip().endswith("again.html")
    assert (tmp_path / "again.html").read_text() == page
    words[words.index("NEW_RUN")] = str(tmp_path / "again")
    assert words[:2] == ["keras-transfer", "adapt"] and "--target-labels" in words
    found = []
    monkeypatch.setattr(Adaptation, "run", lambda self: found.append(self) or run)
    command(*words[1:])
    (again,) = found
    begun = run.config
    asked = {"source": again.source.root, "target": again.target_folder, **again.options.to_dict()}
    assert asked == {name: begun[name] for name in asked}
    assert (again.options.epochs, again.options.learning_rate) == (2, 0.01)
    assert again.options.image_size == 32


def test_a_killed_run_is_resumed_from_its_directory(folders, tmp_path, monkeypatch):
    from keras_transfer.adaptation.callbacks import SaveState

    def begin(out, **options):
        return adaptation(folders, out, keep="selected", method="shot", **options)

    whole = begin(tmp_path / "whole").run()
    save = SaveState.on_epoch_end

    def interrupt(self, epoch, logs=None):
        if epoch == 1 and self.checkpoint.folder.name == "adapt":  # scored, not saved
            raise KeyboardInterrupt
        save(self, epoch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(SaveState, "on_epoch_end", interrupt)
        with pytest.raises(Interrupted, match="continue with --resume"):
            begin(tmp_path / "cut").run()
    with pytest.raises(InputError, match="is not finished"):
        Run.open(tmp_path / "cut")
    with pytest.raises(InputError, match=r"not empty.*continue the run with --resume"):
        begin(tmp_path / "cut")
    with pytest.raises(InputError, match="batch_size: 12 is now 6"):
        begin(tmp_path / "cut", resume=True, batch_size=6).run()
    run = begin(tmp_path / "cut", resume=True).run()
    assert same_weights(run.model, whole.model)
    selections = (r.metrics["adaptation"]["selection"] for r in (run, whole))
    assert next(selections) == next(selections)
    histories = [history_of(r.path) for r in (run, whole)]
    assert all(float(row.pop("seconds")) >= 0 for rows in histories for row in rows)
    assert histories[0] == histories[1] and len(histories[0]) == 6
    assert [p["name"] for p in run.metrics["phases"]] == ["source", "adapt"]
    assert run.metrics["best_epoch"] == 3 + run.metrics["adaptation"]["epoch"]
    assert not run.state_path.exists()
    with pytest.raises(InputError, match="is finished"):
        begin(tmp_path / "cut", resume=True).run()


WRONG_USE = """
import json, sys
from keras_transfer.cli.main import main
found = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["keras-transfer", *words]
    try:
        main()
    except SystemExit as end:
        loaded = [name for name in ("tensorflow", "keras") if name in sys.modules]
        print("CODE", end.code, loaded, file=sys.stderr)
"""


def test_invalid_input_is_reported_before_keras_is_imported(folders, tmp_path):
    source, target, backbone = folders
    other, nothing, loose = tmp_path / "other", tmp_path / "nothing", tmp_path / "loose"
    for name in ("red", "pink"):
        write_image(other / name / "0.png", (9, 9, 9))
    write_image(loose / "0.png", (9, 9, 9))
    nothing.mkdir()
    bad = tmp_path / "bad" / "0.png"
    bad.parent.mkdir()
    bad.write_bytes(b"bad")
    own = ["--backbone", backbone]
    cases = {
        "no image, clip or text in": [source, nothing, "--method", "dann", *own],
        "no readable image in": [source, bad.parent, "--method", "dann", *own],
        "is a file: pass a folder": [source, loose / "0.png", "--method", "dann", *own],
        "no such file or folder": [source, tmp_path / "none", "--method", "dann", *own],
        "no such folder or file": [tmp_path / "none", target, "--method", "dann", *own],
        "does not know: pink": [source, other, "--method", "dann", *own, "--target-labels"],
        "no class folders in": [source, loose, "--method", "dann", *own, "--target-labels"],
        "Unknown method 'dan'. Choose from dann, coral, mmd": [source, target, "--method", "dan"],
        "A method is given twice": [source, target, "--method", "mcc,mcc"],
        "SHOT never sees the source": [source, target, "--method", "mcc,shot"],
        "AdaBN needs BatchNorm, which vgg16 does not have": [
            *(source, target, "--method", "adabn", "--backbone", "vgg16")
        ],
        "did you mean resnet50": [source, target, "--method", "mcc", "--backbone", "resnet5"],
        "Give one backbone": [source, target, "--method", "mcc", "--backbone", "vgg16,resnet50"],
        "epochs must be a whole number of 1 or more": [
            source,
            target,
            "--method",
            "mcc",
            *own,
            "--epochs",
            0,
        ],
        "not empty": [source, target, "--method", "mcc", *own, "--out", loose],
        "is not a run": [source, target, "--method", "mcc", *own, "--out", loose, "--resume"],
    }
    words = [["adapt", *map(str, case)] for case in cases.values()]
    words = [w if "--out" in w else [*w, "--out", str(tmp_path / "run")] for w in words]
    result = subprocess.run(
        [sys.executable, "-c", WRONG_USE, json.dumps([["--help"], *words])],
        capture_output=True,
        text=True,
    )
    assert "│ adapt " in result.stdout
    lines = result.stderr.splitlines()
    assert lines.pop(0) == "CODE 0 []"
    assert len(lines) == 2 * len(cases), result.stderr
    for case, answer, code in zip(cases, lines[::2], lines[1::2]):
        assert answer.startswith("error: ") and case in answer
        assert code == "CODE 2 []"
    assert not (tmp_path / "run").exists()


def test_adabn_on_a_users_model_without_batch_norm(folders, tmp_path):
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    x = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(inputs, x).save(tmp_path / "plain.keras")
    plain = adaptation(
        folders, tmp_path / "run", method="adabn", backbone=str(tmp_path / "plain.keras")
    )
    with pytest.raises(InputError, match="AdaBN needs BatchNorm"):
        plain.run()
    assert not (tmp_path / "run").exists()


# -- the report -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 12])
def test_a_feature_map_places_images_of_both_domains(count):
    (x, y), (z, _) = domain(count, 0), domain(count, 1, darker=60)
    model = tiny_model()
    parts = Examples(Arrays(x), y), Examples(Arrays(z), np.zeros(count, "int32"))
    found = feature_map(model, *parts)
    assert found.places.shape == (2 * count, 2) and np.isfinite(found.places).all()
    np.testing.assert_array_equal(found.labels, y)
    assert (found.distance is None) == (count == 2)
    assert ("t-SNE" in found.how) == (count == 12)
    same = feature_map(model, *parts)
    np.testing.assert_array_equal(found.places, same.places)
    if count == 12:
        assert found.distance.value > 1  # the target is darker
        assert len(feature_map(model, *parts, most=5).labels) == 5


def test_minutes_limit_the_epochs_and_the_training(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(estimate, "timed_step", lambda *_: (60.0, 60.0))
    run = adaptation(folders, tmp_path / "a", minutes=9).run()  # 1 min, and 3 for each epoch
    assert len(run.history) == 2
    assert "2 epochs, as 3 do not fit: at most about 7.0 min" in capsys.readouterr().err
    monkeypatch.setattr(estimate, "timed_step", lambda *_: (0.0, 1e-9))
    cut = adaptation(folders, tmp_path / "b", epochs=50, minutes=0.05).run()
    assert 1 <= len(cut.history) < 50 and cut.metrics["adaptation"]["epoch"] == len(cut.history)
    with pytest.raises(InputError, match="minutes must be above 0"):
        adaptation(folders, tmp_path / "c", minutes=0)


@pytest.mark.parametrize(("again", "epochs"), [({}, 2), ({"minutes": 9}, 2), ({"epochs": 5}, 5)])
def test_a_limited_run_is_resumed_at_its_length(folders, tmp_path, again, epochs):
    first = adaptation(folders, tmp_path / "first", epochs=None, minutes=9)
    schedule = {"phases": [{"epochs": 2}]}
    config = {**first.options.to_dict(), "schedule": schedule, "precision": "float32"}
    split = first.source.split_table()
    Run.create(tmp_path / "run", config, [], first.source.fingerprint(), split).release()
    resumed = adaptation(folders, tmp_path / "run", resume=True, **{"epochs": None, **again})
    assert resumed.options.epochs == epochs
