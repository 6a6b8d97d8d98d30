"""Heads that are fitted in blocks equal those that are fitted in memory."""

import numpy as np
import pytest
from conftest import raises

from keras_transfer.features import blocks
from keras_transfer.features.blocks import Rows, memory_budget
from keras_transfer.features.closed_form import solve

ROWS, WIDTH = 300, 24


@pytest.fixture
def features(rng, monkeypatch):
    """Features of different sizes and means, of which the first four depend on the class."""
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", 4 * WIDTH * 64)  # five blocks
    found = rng.normal(size=(ROWS, WIDTH)) + (np.arange(ROWS) % 4)[:, None] * (np.arange(WIDTH) < 4)
    return (found * np.geomspace(0.1, 30, WIDTH) + np.linspace(-50, 50, WIDTH)).astype("float32")


def stored(features, read=None):
    """The features as they are read from a store; `read` collects the numbers of rows."""

    def take(rows):
        if read is not None:
            read.append(len(rows))
        return features[rows].astype("float16").astype("float32")

    return Rows(features.shape, take)


def both(features, task, targets, **options):
    features, read = features.astype("float16").astype("float32"), []
    groups = np.arange(len(features))
    whole = solve(task, features, targets, groups, **options)
    parts = solve(task, stored(features, read), targets, groups, **options)
    assert max(read) <= ROWS  # cross-validation takes a sample, everything else is a block
    return whole, parts


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("part", [None, np.arange(2, 9)])
@pytest.mark.parametrize("weighted", [False, True])
def test_classes(features, classes, part, weighted):
    labels = np.arange(ROWS) % 4 % classes
    weights = np.linspace(0.5, 2, classes) if weighted else None
    whole, parts = both(features, "single_label", labels, class_weights=weights, part=part)
    assert parts.strength == whole.strength
    scores = [features @ head.kernel + head.bias for head in (whole, parts)]
    centered = [score - score.mean(axis=1, keepdims=True) for score in scores]
    np.testing.assert_allclose(*centered, atol=0.03 * np.abs(centered[0]).max())
    assert (scores[0].argmax(1) == scores[1].argmax(1)).mean() > 0.99


def test_labels_and_numbers(features):
    labels = np.stack([np.arange(ROWS) % 2, np.arange(ROWS) % 4 > 1, np.zeros(ROWS)], axis=1)
    whole, parts = both(features, "multi_label", labels)
    np.testing.assert_allclose(
        features @ parts.kernel + parts.bias, features @ whole.kernel + whole.bias, atol=0.1
    )
    targets = np.stack([np.arange(ROWS) % 4, features[:, 7]], axis=1)
    whole, parts = both(features, "regression", targets)
    np.testing.assert_allclose(
        features @ parts.kernel + parts.bias, features @ whole.kernel + whole.bias, atol=0.02
    )


def test_the_budget_decides(features, monkeypatch):
    rows, size = stored(features), 4 * features.size
    assert rows.within(3 * size) is rows
    assert np.array_equal(rows.within(4 * size), rows.take(np.arange(ROWS)))
    monkeypatch.setenv("KERAS_TRANSFER_MEMORY_GB", "0.5")
    assert memory_budget() == 1 << 29
    monkeypatch.delenv("KERAS_TRANSFER_MEMORY_GB")
    assert memory_budget() > 1 << 28
    for wrong in ("much", "0", "-1", "nan"):
        monkeypatch.setenv("KERAS_TRANSFER_MEMORY_GB", wrong)
        with raises(f"KERAS_TRANSFER_MEMORY_GB is '{wrong}'"):
            memory_budget()


def test_a_run_solves_in_blocks(data, tmp_path, store, monkeypatch, capsys):
    """The same model, up to the solvers' tolerance."""
    import keras
    from conftest import tiny_backbone

    import keras_transfer as kt

    accuracies = []
    for budget in ("", "0.000001"):
        monkeypatch.setenv("KERAS_TRANSFER_MEMORY_GB", budget)
        keras.utils.set_random_seed(0)
        model = kt.build_model(tiny_backbone(), kt.Classification(data.class_names), image_size=32)
        run = kt.Trainer(model, "feature_extraction", cache="memory").fit(
            data, tmp_path / f"run{budget}"
        )
        accuracies.append(run.metrics["val"]["accuracy"])
        assert ("solving in blocks" in capsys.readouterr().err) == bool(budget)
    assert accuracies[0] == accuracies[1]
