"""Which examples to label next: k-means++ on gradients of the head, by hand and through runs."""

import csv
import json

import keras
import numpy as np
import pytest
from conftest import raises, tiny_backbone, tiny_bert, write_words

import keras_transfer as kt
from keras_transfer.diagnosis.selection import predicted_labels, spread
from keras_transfer.models.builders import build_model, head_for
from keras_transfer.models.heads import Classification, MultiLabel, Regression


def gradients(parts):
    """The products that `spread` never writes out, of all heads side by side."""
    rows = []
    for residuals, features in parts:
        h = np.c_[features, np.ones(len(features))]
        rows.append(np.einsum("nc,nd->ncd", residuals, h).reshape(len(h), -1))
    return np.concatenate(rows, axis=1)


def test_the_choice_is_that_of_k_means_on_whole_gradients(rng):
    """With the same draws, distances between written-out gradients choose the same rows."""
    parts = [(rng.normal(size=(60, c)), rng.normal(size=(60, d))) for c, d in ((3, 5), (2, 4))]
    whole, draws = gradients(parts), np.random.default_rng(4)
    chosen = [int(np.square(whole).sum(axis=1).argmax())]
    while len(chosen) < 12:
        apart = np.square(whole[:, None] - whole[chosen]).sum(axis=2).min(axis=1)
        apart[chosen] = 0
        chosen.append(int(draws.choice(60, p=apart / apart.sum())))
    assert spread(parts, 12, seed=4).tolist() == chosen


def test_the_unsure_are_chosen_and_copies_are_not(rng):
    features = rng.normal(size=(200, 8))
    scores = np.tile([0.999, 0.001], (200, 1))
    scores[:40] = [0.55, 0.45]
    features[20:40] = features[0]  # twenty copies of one unsure example
    rows = spread([(scores - predicted_labels(scores, "single_label"), features)], 15)
    assert len(set(rows)) == 15
    assert sum(rows >= 40) <= 1  # one stands for all of which the model is sure
    assert sum((rows == 0) | ((rows >= 20) & (rows < 40))) == 1


def test_what_cannot_be_told_apart_is_filled_up():
    same = [(np.ones((5, 2)), np.ones((5, 3)))]
    assert sorted(spread(same, 5)) == [0, 1, 2, 3, 4]
    sure = [(np.zeros((5, 2)), np.ones((5, 3)))]
    assert len(set(spread(sure, 4))) == 4


@pytest.fixture(scope="module")
def texts_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    data = kt.data.open_data(write_words(folder / "d"), progress=False)
    keras.utils.set_random_seed(0)
    model = build_model(tiny_bert(), head_for(data))
    return kt.Trainer(model, "feature_extraction", cache="off").fit(data, folder / "run")


def test_texts_and_the_command(texts_run, tmp_path):
    from typer.testing import CliRunner

    from keras_transfer.cli.main import app
    from keras_transfer.data.files import Skipped
    from keras_transfer.evaluation.prediction import predictions_json

    def predict(file):
        return kt.predict(texts_run.model, lines=file)

    file, out = tmp_path / "pool.txt", tmp_path / "next.csv"
    pool = [f"the walls number {i} of a {c} room" for i in range(5) for c in ("red", "blue")]
    file.write_text("\n".join(pool))
    command = ["select", "--run", str(texts_run.path), "--lines", str(file), "--count", "4"]
    result = CliRunner().invoke(app, [*command, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    chosen = json.loads(result.stdout)
    assert len({one["path"] for one in chosen}) == 4 and {c["path"] for c in chosen} <= set(pool)
    with out.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["path"] for row in rows] == [one["path"] for one in chosen]
    assert all(row["label"] == "" and row["predicted"] in ("red", "green", "blue") for row in rows)
    again, _ = kt.select(texts_run, lines=file, count=4)
    assert [one.path for one in again] == [one["path"] for one in chosen]
    with raises("10 usable examples"):
        kt.select(texts_run, lines=file, count=11)
    file.write_text("")
    for ask in (lambda: kt.select(texts_run, lines=file, count=1), lambda: predict(file)):
        with raises("No readable text in the given file: it is empty"):
            ask()
    found = predictions_json([], [Skipped("", "empty text")])
    assert found["skipped"] == [{"path": "", "reason": "empty text"}]
    result = CliRunner().invoke(app, [*command[:-1], "0"])
    assert result.exit_code and "count must be 1 or more" in str(result.exception)


@pytest.mark.parametrize(
    "heads, words",
    [
        (MultiLabel(("a", "b")), {"", "a", "b", "a|b"}),
        ({"kind": Classification(("x", "y")), "age": Regression(("age",))}, {"x", "y"}),
    ],
    ids=("labels", "heads"),
)
def test_other_tasks(heads, words, colours, monkeypatch):
    model = build_model(tiny_backbone(), heads)
    monkeypatch.setattr("keras_transfer.runs.Run.model", model)
    run = kt.Run(colours)
    chosen, skipped = kt.select(run, [colours], count=5)
    assert not skipped and len({one.path for one in chosen}) == 5
    assert {one.predicted for one in chosen} <= words
    assert all(one.uncertainty > 0 for one in chosen)


def test_files_that_the_model_cannot_read(colours, tmp_path, monkeypatch):
    model = build_model(tiny_backbone(), Classification(("a", "b")))
    monkeypatch.setattr("keras_transfer.runs.Run.model", model)
    bad, deep = tmp_path / "bad.png", tmp_path / "four_channels.npy"
    bad.write_bytes(b"no")
    np.save(deep, np.zeros((40, 40, 4), "uint8"))
    chosen, skipped = kt.select(kt.Run(colours), [colours, bad, deep], count=2)
    assert len(chosen) == 2 and [one.path for one in skipped] == [str(bad), str(deep)]
    with raises("No readable image in"):
        kt.select(kt.Run(colours), [bad], count=2)


def test_numbers_alone_are_refused(colours, monkeypatch):
    monkeypatch.setattr(
        "keras_transfer.runs.Run.model", build_model(tiny_backbone(), Regression(("age",)))
    )
    with raises("needs a model of classes or labels"):
        kt.select(kt.Run(colours), [colours], count=5)
