"""Choosing without target labels: scores, ranks, vetoes, and independence of reports."""

import json
from math import log, sqrt

import numpy as np
import pytest

from keras_transfer.adaptation import selection
from keras_transfer.adaptation.selection import (
    Selector,
    batch_nuclear_norm,
    effective_classes,
    information_maximization,
    mean_ranks,
    soft_neighborhood_density,
)
from keras_transfer.errors import InputError

EVEN = [5, 5]
SURE = np.array([[1.0, 0.0], [0.0, 1.0]])
LESS_SURE = np.array([[0.9, 0.1], [0.2, 0.8]])
UNSURE = np.full((2, 2), 0.5)
COLLAPSED = np.array([[1.0, 0.0], [1.0, 0.0]])


# -- scores ---------------------------------------------------------------------------------------


def test_information_is_entropy_of_the_mean_less_mean_entropy():
    assert information_maximization(SURE) == pytest.approx(log(2))
    assert information_maximization(UNSURE) == pytest.approx(0)
    assert information_maximization(COLLAPSED) == pytest.approx(0)
    # H(0.55, 0.45) − (H(0.9, 0.1) + H(0.2, 0.8)) / 2
    assert information_maximization(LESS_SURE) == pytest.approx(0.688139 - 0.412743, abs=1e-6)


def test_the_nuclear_norm_is_the_sum_of_singular_values_per_image():
    assert batch_nuclear_norm(SURE) == pytest.approx(1)
    assert batch_nuclear_norm(COLLAPSED) == pytest.approx(sqrt(2) / 2)
    # Of a 2×2 matrix (σ1 + σ2)² = ‖P‖² + 2 |det P|.
    assert batch_nuclear_norm(LESS_SURE) == pytest.approx(sqrt(1.5 + 2 * 0.7) / 2)


def test_the_nuclear_norm_reaches_its_bound_for_sure_and_even_answers():
    sure = np.eye(4)[np.arange(12) % 4]
    assert batch_nuclear_norm(sure) == pytest.approx(sqrt(4 / 12))
    assert batch_nuclear_norm(np.full((12, 4), 0.25)) < sqrt(4 / 12)


def test_density_of_three_images_by_hand():
    # The duplicates see almost only each other; the third sees both equally.
    features = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    assert soft_neighborhood_density(features) == pytest.approx(log(2) / 3, abs=1e-6)
    # At a high temperature all neighbors have equal weight.
    assert soft_neighborhood_density(features, 1e6) == pytest.approx(log(2), abs=1e-6)


def test_density_does_not_depend_on_the_block_size(rng, monkeypatch):
    features = rng.normal(size=(23, 4))
    whole = soft_neighborhood_density(features)
    similar = features @ features.T / np.outer(*[np.linalg.norm(features, axis=1)] * 2)
    rows = []
    for i in range(23):
        weights = np.exp(np.delete(similar[i], i) / 0.05)
        weights /= weights.sum()
        rows.append(-(weights * np.log(weights)).sum())
    assert whole == pytest.approx(np.mean(rows))
    monkeypatch.setattr(selection, "_ROWS", 5)
    assert soft_neighborhood_density(features) == pytest.approx(whole)


def test_dense_groups_score_higher_than_scattered_images(rng):
    centres = np.eye(8)[np.arange(40) % 4]
    dense = soft_neighborhood_density(centres + 0.01 * rng.normal(size=(40, 8)))
    assert dense > soft_neighborhood_density(rng.normal(size=(40, 8))) + 0.5


def test_effective_classes():
    assert effective_classes([3, 3, 3]) == pytest.approx(3)
    assert effective_classes([7, 0, 0]) == pytest.approx(1)


@pytest.mark.parametrize("bad", [np.ones((3, 2)), [[1.5, -0.5]], [[np.nan, 1]], [0.5, 0.5], [[1]]])
def test_invalid_probabilities_are_refused(bad):
    with pytest.raises(InputError, match="robabilities"):
        information_maximization(np.array(bad))


def test_one_image_has_no_neighbors():
    with pytest.raises(InputError, match="at least two images"):
        soft_neighborhood_density(np.ones((1, 3)))


# -- ranks ----------------------------------------------------------------------------------------


def test_mean_ranks_by_hand():
    found = mean_ranks([[0.1, 0.3, 0.2], [5, 5, 1]])
    np.testing.assert_allclose(found, [(3 + 1.5) / 2, (1 + 1.5) / 2, (2 + 3) / 2])


def blend(certainty, classes=2, images=40):
    """Predictions of a given certainty, 0–1, for all classes equally often."""
    sure = np.eye(classes)[np.arange(images) % classes]
    return certainty * sure + (1 - certainty) / classes


def test_the_best_ranked_epoch_is_selected_and_last_is_the_last():
    selector = Selector(EVEN)
    for epoch, certainty in enumerate([0.1, 0.6, 0.3], 1):
        selector.add(epoch, 0.9, blend(certainty))
    assert (selector.selected, selector.last, selector.oracle) == (2, 3, None)


def test_of_equal_epochs_the_later_is_selected():
    selector = Selector(EVEN)
    for epoch in (1, 2):
        selector.add(epoch, 0.9, blend(0.5))
    assert selector.selected == 2


# -- the veto -------------------------------------------------------------------------------------


def test_an_epoch_that_forgot_the_source_is_not_selected():
    selector = Selector(EVEN)
    selector.add(1, 0.90, blend(0.3))
    selector.add(2, 0.84, blend(0.9))
    assert selector.selected == 1
    assert selector.veto(selector.scores[1]) == "source validation 84.0 %, reference 90.0 %"
    # A loss of up to five points is allowed.
    selector.add(3, 0.85, blend(0.8))
    assert selector.selected == 3


def test_the_reference_of_the_veto_may_be_given():
    selector = Selector(EVEN, source_accuracy=0.99)
    selector.add(1, 0.9, blend(0.9))
    assert selector.selected is None and selector.last == 1


def test_without_a_source_only_collapse_vetoes():
    selector = Selector(EVEN, source_accuracy=0.99)
    selector.add(1, None, blend(0.5))
    selector.add(2, None, COLLAPSED)
    assert [selector.veto(s) is None for s in selector.scores] == [True, False]
    assert selector.selected == 1 and selector.candidates == [1, 2]
    assert selector.table().splitlines()[2].split("|")[2].strip() == "–"


def test_collapsed_predictions_are_not_selected():
    selector = Selector([1, 1, 1, 1])
    selector.add(1, 0.9, blend(0.2, 4))
    two_of_four = np.eye(4)[np.arange(40) % 2]
    mostly_one = np.eye(4)[(np.arange(40) > 36).astype(int)]
    selector.add(2, 0.9, two_of_four)
    selector.add(3, 0.9, mostly_one)
    assert selector.veto(selector.scores[1]) is None  # half of the classes is not a collapse
    assert selector.veto(selector.scores[2]) == "predictions cover 1.3 of 4.0 classes"
    assert selector.selected == 2


def test_with_two_classes_only_a_single_one_is_collapse():
    selector = Selector(EVEN)
    selector.add(1, 0.9, blend(0.9)[[0, 2, 4, 6, 1]])
    assert selector.veto(selector.scores[0]) is None
    selector.add(2, 0.9, COLLAPSED)
    assert "1.0 of 2.0 classes" in selector.veto(selector.scores[1])


def test_few_images_cannot_show_many_classes():
    selector = Selector([1] * 100)
    selector.add(1, 0.9, np.eye(100)[:3])
    assert selector.veto(selector.scores[0]) is None


# -- target labels -------------------------------------------------------------------------------


def filled(seed, reports):
    rng, selector = np.random.default_rng(seed), Selector([1, 1, 1])
    for epoch in range(1, 13):
        answers = rng.dirichlet(np.full(3, 0.3), 30)
        selector.add(epoch, rng.uniform(0.85, 0.95), answers)
        if reports:
            selector.report(epoch, reports(epoch))
    return selector


def test_reports_change_only_the_oracle():
    found = [filled(0, reports) for reports in (None, lambda e: e / 12, lambda e: 1 - e / 12)]
    assert len({s.selected for s in found}) == 1
    assert len({tuple(s.candidates) for s in found}) == 1
    assert found[0].scores == found[1].scores == found[2].scores
    assert [s.oracle for s in found] == [None, 12, 1]


def test_the_selected_epoch_is_always_among_the_candidates_so_far():
    for seed in range(30):
        rng, selector = np.random.default_rng(seed), Selector([1, 1, 1])
        kept = set()
        for epoch in range(1, 15):
            # Few different values, so that ties occur.
            certainty = rng.integers(1, 5) / 5
            answers = blend(certainty, 3, 12)[: rng.choice([9, 12])]
            if rng.random() < 0.3:  # collapsed, but with more information than others
                answers = np.tile([[0.51, 0.49, 0], [0.51, 0, 0.49]], (6, 1))
            selector.add(epoch, rng.choice([0.7, 0.82, 0.9, 0.94]), answers)
            # Deleted weights do not come back.
            kept = (kept | {epoch}) & set(selector.candidates)
            assert selector.selected in kept | {None}  # None: all are vetoed


def test_it_survives_json():
    selector = filled(3, lambda e: e / 20)
    again = Selector.from_dict(json.loads(json.dumps(selector.to_dict())))
    assert again.to_dict() == selector.to_dict()
    assert again.selected == selector.selected and again.oracle == 12
    old = selector.to_dict()  # in version 0.1 the key had another name
    old["epochs"] = [{**row, "pictures": row["images"]} for row in old["epochs"]]
    for row in old["epochs"]:
        del row["images"]
    assert Selector.from_dict(old).to_dict() == selector.to_dict()


def test_the_table_marks_the_three_choices():
    selector = Selector(EVEN)
    for epoch, certainty, right in ((1, 0.3, 0.8), (2, 0.9, 0.7), (3, 0.5, 0.6)):
        selector.add(epoch, 0.9, blend(certainty))
        selector.report(epoch, right)
    rows = selector.table().splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["1 oracle", "2 selected", "3 last"]
    assert rows[0].split("|")[-2].strip() == "80.0"


def test_invalid_input():
    with pytest.raises(InputError, match="Cannot select by accuracy"):
        Selector(EVEN, criteria=["accuracy"])
    with pytest.raises(InputError, match="nothing"):
        Selector(EVEN, criteria=[])
    selector = Selector(EVEN)
    with pytest.raises(InputError, match="No epoch has been scored"):
        selector.last  # noqa: B018
    with pytest.raises(InputError, match="3 classes, the source has 2"):
        selector.add(1, 0.9, blend(0.5, 3))
    selector.add(1, 0.9, blend(0.5))
    with pytest.raises(InputError, match="does not come after epoch 1"):
        selector.add(1, 0.9, blend(0.5))
