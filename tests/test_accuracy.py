"""The bench of `scripts/accuracy.py`: which runs, what is already done, and the table's arithmetic."""

from types import SimpleNamespace

import accuracy
import numpy as np
import pytest
from accuracy_data import DATASETS, materialize
from PIL import Image
from rows import Rows

NUMBERS = {"standard_error": "0.03", "log_loss": "0.5", "test_images": "100", "seconds": "10"}
NUMBERS |= {"first_drop": ""}
NUMBERS |= {"cpu": "12", "commit": "abc"}


def row(dataset, contender, seed, value, **more):
    plan = accuracy.Plan(dataset, "full", contender, "mobilenet_0.25", seed)
    return {**plan.key("default"), "accuracy": str(value), **NUMBERS, **more}


def cells(table, contender):
    """The cells of the first line of a contender."""
    line = next(line for line in table.splitlines() if f"| {contender} |" in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_csv_is_continued(tmp_path, monkeypatch):
    done = []

    def measure(plan, image_size, work):
        done.append(plan)
        if len(done) == 3:
            raise KeyboardInterrupt
        return {"accuracy": "0.5", **NUMBERS}

    monkeypatch.setattr(accuracy, "measure", measure)
    file = tmp_path / "rows.csv"
    call = ["--csv", str(file), "--work", str(tmp_path), "--only", "mnist,5,guide,mobilenet_0.25"]
    with pytest.raises(KeyboardInterrupt):
        accuracy.main(call)
    assert len(Rows(file, accuracy.FIELDS).rows) == 2
    assert accuracy.main(call) == 0
    assert [plan.seed for plan in done] == ["0", "1", "2", "2"]
    assert accuracy.main(call) == 0
    assert len(done) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_a_failed_run_is_named_and_tried_again(tmp_path, monkeypatch, capsys):
    def measure(plan, image_size, work):
        if plan.seed == "1":
            raise accuracy.Failed("no memory")
        return {"accuracy": "0.5", **NUMBERS}

    monkeypatch.setattr(accuracy, "measure", measure)
    file = tmp_path / "rows.csv"
    call = ["--csv", str(file), "--work", str(tmp_path), "--only", "mnist,5,guide,mobilenet_0.25"]
    assert accuracy.main(call) == 1
    assert "no memory" in capsys.readouterr().err
    assert [row["seed"] for row in Rows(file, accuracy.FIELDS).rows] == ["0", "2"]


def test_list_counts_what_is_done(tmp_path, capsys):
    results = Rows(tmp_path / "rows.csv", accuracy.FIELDS)
    results.write(row("mnist", "lp_ft", "0", 0.5, seconds="3600"))
    capsys.readouterr()
    only = "mnist,full,lp_ft,guide,mobilenet_0.25"
    assert accuracy.main(["--csv", str(tmp_path / "rows.csv"), "--only", only, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "lp_ft: 1 of 3  --strategy lp_ft"
    assert lines[1].split("  ") == ["guide: 0 of 3", "peer"]
    assert lines[2] == "1 of 6 runs done, training time left: 5.0 h"


@pytest.mark.parametrize(
    ("solvers", "accuracies", "drop"),
    [
        (["logistic", "gradient"], [0.8, 0.75, 0.7, 0.9, 0.1], "0.1000"),
        (["logistic", "gradient"], [0.8, 0.85], "-0.0500"),
        (["gradient", "gradient"], [0.8, 0.7], ""),
        (["logistic"], [0.8], ""),
    ],
)
def test_the_first_drop(solvers, accuracies, drop):
    phases = [{"solver": solver} for solver in solvers]
    run = SimpleNamespace(
        metrics={"phases": phases},
        config={"schedule": {"phases": phases}},
        history=[{"val_accuracy": value} for value in accuracies],
    )
    assert accuracy.first_drop(run) == drop


def test_a_file_without_a_new_column_is_continued(tmp_path):
    (tmp_path / "rows.csv").write_text("a\n1\n")
    Rows(tmp_path / "rows.csv", ("a", "b")).write({"a": 2, "b": 3})
    assert (tmp_path / "rows.csv").read_text() == "a,b\n1,\n2,3\n"


def test_only_selects_by_kind():
    found = accuracy.plans("flowers,waste,20,grid_*,guide,mobilenet_*,1")
    assert {plan.dataset for plan in found} == {"flowers", "waste"}
    assert {plan.backbone for plan in found} == {"mobilenet_0.25", "mobilenet_v2_0.35"}
    assert len(found) == 2 * 2 * (24 + 1)
    auto = accuracy.plans("mnist,full,auto,0")
    assert [plan.backbone for plan in auto] == ["auto"]
    with pytest.raises(SystemExit, match="--only mnits"):
        accuracy.plans("mnits")


def test_means_and_errors_of_the_table():
    rows = [row("mnist", "lp_ft", "0", 0.5), row("mnist", "lp_ft", "1", 0.6)]
    # Test images: 3 points. Seeds: standard deviation 7.07 / sqrt(2) = 5. Together sqrt(9 + 25).
    assert cells(accuracy.table(rows), "lp_ft")[3] == "55.0 ± 5.8"
    assert cells(accuracy.table(rows[:1]), "lp_ft")[3] == "50.0 ± 3.0"


def test_differences_are_paired_by_dataset_and_seed():
    rows = [
        row("mnist", "closed_form", "0", 0.5),
        row("mnist", "closed_form", "1", 0.9),  # no lp_ft with this seed
        row("mnist", "lp_ft", "0", 0.52),
        row("aerial", "closed_form", "0", 0.7),
        row("aerial", "lp_ft", "0", 0.76),
        row("clothing", "lp_ft", "0", 0.1),  # no closed form
        row("flowers", "closed_form", "0", 0.8),
        row("flowers", "lp_ft", "0", 0.7),  # of the other half
    ]
    tuning, reporting = accuracy.table(rows).split("**Reporting datasets**")
    # +2 and +6: mean 4, standard deviation 2.83 / sqrt(2) = 2.
    assert cells(tuning, "lp_ft")[6:8] == ["+4.00 ± 2.00 (2 datasets)", "+2.0"]
    assert cells(reporting, "lp_ft")[4:6] == ["-10.00", "-10.0"]
    assert cells(accuracy.table(rows, "lp_ft"), "closed_form")[7] == "-6.0"


def test_datasets_are_halved_and_drawn_by_seed(tmp_path, monkeypatch):
    assert sum(dataset.half == "tuning" for dataset in DATASETS.values()) == 5
    assert set(accuracy.__doc__.split()) >= {f"{name}," for name in ("aerial", "flowers", "waste")}
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in "ab":
            for i in range(30):
                path = tmp_path / "bench" / "waste" / split / label / f"{split}{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), "uint8")).save(path)
    monkeypatch.setenv("KERAS_TRANSFER_DATA", str(tmp_path))

    def names(shots, seed, split="train"):
        folder = materialize("waste", shots, seed, tmp_path / "work")
        return {f"{path.parent.name}/{path.name}" for path in (folder / split).glob("*/*")}

    assert len(names("5", 0)) == 10
    assert names("5", 0) < names("20", 0) < names("full", 0)
    assert names("5", 0) != names("5", 1)
    assert len(names("full", 0)) == len(names("5", 0, "test")) == 60
    assert all("/val" in name for name in names("5", 0, "test"))
