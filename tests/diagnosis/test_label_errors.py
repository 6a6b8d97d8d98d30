"""Labels that are probably wrong: confident learning, suggestions, and the shares it estimates."""

import numpy as np
import pytest
from scipy.special import log_softmax

from keras_transfer.data.examples import Target
from keras_transfer.diagnosis.label_errors import confident_classes, find_label_errors
from keras_transfer.features.held_out import held_out_outputs

CLASSES = Target("single_label", ("a", "b", "c"))


@pytest.fixture(scope="module")
def blobs():
    """Features of three classes that a line can part, and their true classes."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3, dtype="int32"), 80)
    centers = 4 * np.eye(3, 12)
    return (centers[labels] + rng.normal(size=(240, 12))).astype("float32"), labels


def test_confident_classes_by_hand():
    """Thresholds are the mean probabilities of the labeled examples: 0.7 for a, 0.6 for b."""
    probabilities = np.array([[0.9, 0.1], [0.5, 0.5], [0.3, 0.7], [0.5, 0.5], [0.35, 0.65]])
    labels = np.array([0, 0, 1, 1, 0])
    # a: (0.9 + 0.5 + 0.35) / 3 = 0.583; b: (0.7 + 0.5) / 2 = 0.6
    assert confident_classes(probabilities, labels).tolist() == [0, -1, 1, -1, 1]
    found = find_label_errors(CLASSES, np.log(np.c_[probabilities, np.full(5, 1e-9)]), labels)
    assert found.rows.tolist() == [4] and found.suggested.tolist() == [1]
    assert found.scores[0] == pytest.approx(0.65, abs=1e-6)
    # Of the three labeled a, one of two that are sure is b: 1.5 of 5 labels.
    assert found.wrong["value"] == pytest.approx(0.3)
    assert found.pairs == [("a", "b", pytest.approx(1.5))]


def test_flipped_classes_are_found(blobs):
    features, labels = blobs
    rng = np.random.default_rng(1)
    wrong = rng.choice(240, 24, replace=False)
    noisy = labels.copy()
    noisy[wrong] = (labels[wrong] + 1) % 3
    outputs = held_out_outputs("single_label", features, noisy, np.arange(240))
    found = find_label_errors(CLASSES, outputs, noisy)
    assert 22 <= len(found.rows) <= 28 and np.isin(found.rows[:22], wrong).all()
    assert (found.suggested == labels[found.rows])[:22].mean() > 0.9
    assert (np.diff(found.scores) <= 0).all()
    assert found.wrong["low"] <= 0.1 <= found.wrong["high"]


def test_copies_do_not_vouch_for_each_other(blobs):
    """An example whose copies share its wrong label is found as long as they are in its fold."""
    features, labels = blobs
    features, labels = np.r_[features, features[:1].repeat(9, 0)], np.r_[labels, [0] * 9]
    noisy = labels.astype("int32")
    copies = np.r_[0, np.arange(240, 249)]
    noisy[copies] = 2
    groups = np.arange(249)
    groups[copies] = 0
    found = find_label_errors(
        CLASSES, held_out_outputs("single_label", features, noisy, groups), noisy
    )
    assert set(copies) <= set(found.rows)


def test_what_has_one_example_is_not_judged(blobs):
    features, labels = blobs
    noisy = np.where(labels == 2, 0, labels)
    noisy[0] = 2
    outputs = held_out_outputs("single_label", features, noisy, np.arange(240))
    found = find_label_errors(CLASSES, outputs, noisy)
    assert found.judged == 239 and 0 not in found.rows
    assert np.isnan(outputs[0]).all() and np.isfinite(outputs[1:]).all()


def test_more_rows_than_choose_the_strength(blobs, monkeypatch):
    from keras_transfer.features import held_out

    features, labels = blobs
    whole = held_out_outputs("single_label", features, labels, np.arange(240))
    monkeypatch.setattr(held_out, "MOST_FOR_CHOOSING", 100)
    sampled = held_out_outputs("single_label", features, labels, np.arange(240))
    assert np.isfinite(sampled).all()
    assert (log_softmax(sampled, 1).argmax(1) == whole.argmax(1)).mean() > 0.97


def test_labels_and_numbers(blobs):
    features, labels = blobs
    several = np.eye(3, dtype="float32")[labels]
    several[5] = [0, 1, 1]  # should have been [1, 0, 0]
    outputs = held_out_outputs("multi_label", features, several, np.arange(240))
    found = find_label_errors(Target("multi_label", ("a", "b", "c")), outputs, several)
    assert found.rows[0] == 5 and found.suggested[0].tolist() == [1, 0, 0]
    assert 0 < found.wrong["value"] < 0.05

    numbers = (features[:, :1] * 3 + 7).astype("float32")
    numbers[9] += 40
    outputs = held_out_outputs("regression", features, numbers, np.arange(240))
    found = find_label_errors(Target("regression", ("size",)), outputs, numbers)
    assert found.rows.tolist()[0] == 9
    assert found.suggested[0, 0] == pytest.approx(numbers[9, 0] - 40, abs=2)
