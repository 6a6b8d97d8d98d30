"""The table of `scripts/budget_series.py`, and the images of `scripts/derived_tasks.py`."""

import csv

import budget_series
import derived_tasks
import numpy as np
import pytest
from accuracy_data import DATASETS
from PIL import Image


def row(minutes, accuracy, used):
    key = {"dataset": "flowers", "minutes": minutes, "standard_error": "0.03"}
    return {**key, "accuracy": str(accuracy), "used": str(used)}


def test_falls_and_the_largest_use_are_named(tmp_path):
    rows = [row("2", 0.79, 0.9), row("0.5", 0.7, 1.1), row("1", 0.8, 1.0)]
    text = budget_series.table(rows)
    assert "| flowers | 70.0 (1.1) | 80.0 (1.0) | 79.0 (0.9) |" in text
    assert "Largest fall: 1.0 points (flowers, 1 to 2 min)." in text
    assert "At most 1.1 (flowers, 0.5 min)" in text
    assert "never falls" in budget_series.table(rows[1:])
    budget_series.plot(rows, tmp_path / "series.png")
    assert (tmp_path / "series.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["clothing_pairs", "hymenoptera_angle", "sign_value"])
def test_derived_images_and_their_labels(name, tmp_path, monkeypatch):
    source = derived_tasks.TASKS[name].source
    monkeypatch.setattr(derived_tasks, "materialize", lambda *_: tmp_path / "images")
    classes = ("3", "7") if DATASETS[source].group else ("a", "b")
    for split in ("train", "test"):
        for number, label in enumerate(classes):
            for i in range(4):
                path = tmp_path / "images" / split / label / f"person{i % 2}_{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 30), (100 * number + 50,) * 3).save(path)
    table = derived_tasks.table_of(name, 0, tmp_path)
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16 and {r["split"] for r in rows} == {"train", "test"}
    pixels = np.asarray(Image.open(table.parent / rows[0]["path"]))
    if name == "clothing_pairs":
        for found in rows:
            values = set(np.unique(np.asarray(Image.open(table.parent / found["path"])).ravel()))
            assert values == {
                50 + 100 * i for i, label in enumerate(classes) if found[label] == "1"
            }
    elif name == "hymenoptera_angle":
        assert pixels.shape == (256, 256, 3) and pixels.min() == 50  # no black corner
        assert len({r["number"] for r in rows}) == 16
    else:
        assert {r["number"] for r in rows} == {"3", "7"} and {r["group"] for r in rows} == {
            "0",
            "1",
        }
    columns = derived_tasks.columns_of(name, table)
    assert columns[-1] == ("labels=a,b" if name == "clothing_pairs" else "targets=number")
