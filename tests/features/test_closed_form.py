"""The head in closed form."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_score

from keras_transfer.features import closed_form as module
from keras_transfer.features.closed_form import logistic_regression, solve
from keras_transfer.features.cross_validation import cross_validated, log_loss
from keras_transfer.features.held_out import held_out_outputs
from keras_transfer.features.probe import cross_validated_probe

pytestmark = pytest.mark.compat


def blobs(classes, per_class=40, width=20, distance=1.5, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, distance, (classes, width))
    labels = np.repeat(np.arange(classes), per_class)
    # Far from zero and of unequal scales, as features are.
    features = 30 + 4 * (centres[labels] + rng.normal(0, 2.0, (len(labels), width)))
    return features.astype("float32"), labels


@pytest.mark.parametrize("classes", [2, 5])
def test_it_is_the_regression_of_scikit_learn(classes):
    features, labels = blobs(classes)
    found = logistic_regression(features, labels, np.arange(len(labels)))
    scaled = (features - features.mean(0)) / np.sqrt(features.std(0) * features.std())
    plain = LogisticRegression(C=found.strength, max_iter=1000).fit(scaled, labels)
    logits = features @ found.kernel + found.bias
    scores = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(
        scores / scores.sum(1, keepdims=True), plain.predict_proba(scaled), atol=2e-3
    )
    assert found.kernel.shape == (20, classes) and found.bias.shape == (classes,)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_part_of_the_features_has_a_say_of_its_own(classes):
    """The weighted sum of two heads loses less on held-out rows than either of them."""
    features, labels = blobs(classes, per_class=30, distance=0.8)
    noise = np.random.default_rng(5).normal(30, 4, (len(labels), 200)).astype("float32")
    features, groups = np.hstack([features, noise]), np.arange(len(labels))
    part = np.arange(20)
    alone = logistic_regression(features[:, part], labels, groups)
    whole = logistic_regression(features, labels, groups)
    both = logistic_regression(features, labels, groups, part=part)
    assert both.cross_validation <= min(alone.cross_validation, whole.cross_validation) + 1e-6
    # Both kernels are sums of the same two, so the three lie in a plane.
    padded = np.zeros_like(whole.kernel)
    padded[part] = alone.kernel
    basis = np.stack([padded.ravel(), whole.kernel.ravel()], axis=1)
    rest = np.linalg.lstsq(basis, both.kernel.ravel(), rcond=None)[1]
    assert rest.size == 0 or rest[0] < 1e-4 * np.square(both.kernel).sum()
    assert both.kernel.shape == whole.kernel.shape and both.bias.shape == (classes,)


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_what_was_chosen_gives_the_same_head_without_choosing_again(task, monkeypatch):
    features, labels = blobs(3, per_class=30, distance=0.8)
    groups, part = np.arange(len(labels)), np.arange(5)
    targets = labels if task == "single_label" else np.eye(3, dtype="float32")[labels]
    if task == "multi_label":
        targets = np.hstack([targets, np.zeros((len(labels), 1))])  # one that never occurs
    first = solve(task, features, targets, groups, part=part)
    chosen = json.loads(json.dumps(first.chosen))
    for name in ("cross_validated", "chosen_alphas"):
        monkeypatch.setattr(module, name, None)
    second = solve(task, features, targets, groups, part=part, chosen=chosen)
    np.testing.assert_array_equal(first.kernel, second.kernel)
    np.testing.assert_array_equal(first.bias, second.bias)
    assert second.chosen == first.chosen and second.strength == pytest.approx(first.strength)
    assert first.cross_validation is not None and second.cross_validation is None


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_what_could_not_be_chosen_is_chosen_later(task):
    features, labels = blobs(2, per_class=6)
    rows = np.arange(12) if task == "regression" else np.array([0, *range(6, 12)])  # one of class 0
    targets = labels if task == "single_label" else np.eye(2, dtype="float32")[labels]
    groups = np.zeros(12, int) if task == "regression" else np.arange(12)
    few = solve(task, features[rows], targets[rows], groups[rows])
    assert not any(any(values) for values in few.chosen.values())
    later = solve(task, features, targets, np.arange(12), chosen=few.chosen)
    alone = solve(task, features, targets, np.arange(12))
    assert later.chosen == alone.chosen and any(map(any, alone.chosen.values()))
    np.testing.assert_array_equal(later.kernel, alone.kernel)


def test_more_features_than_rows_make_no_difference():
    """The rows are then expressed in another basis, which the penalty does not see."""
    features, labels = blobs(3, per_class=20, width=300)
    found = logistic_regression(features, labels, np.arange(len(labels)))
    scaled = (features - features.mean(0)) / np.sqrt(features.std(0) * features.std())
    plain = LogisticRegression(C=found.strength, max_iter=1000).fit(scaled, labels)
    logits = features @ found.kernel + found.bias
    scores = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(
        scores / scores.sum(1, keepdims=True), plain.predict_proba(scaled), atol=2e-3
    )


def test_a_feature_that_never_varies_has_no_weight():
    features, labels = blobs(2)
    features[:, 3] = 7.0
    found = logistic_regression(features, labels, np.arange(len(labels)))
    assert np.isfinite(found.kernel).all() and abs(found.kernel[3]).max() < 1e-6


def test_the_strength_follows_the_noise():
    """Labels that mean nothing want the strongest regularisation, clear ones a weak one."""
    features, labels = blobs(3, distance=3.0)
    clear = logistic_regression(features, labels, np.arange(len(labels)))
    shuffled = np.random.default_rng(1).permutation(labels)
    noise = logistic_regression(features, shuffled, np.arange(len(labels)))
    assert noise.strength == pytest.approx(1e-4) and clear.strength > 0.05
    assert clear.cross_validation < 0.3 < noise.cross_validation


def test_views_of_a_image_stay_in_one_fold():
    """Else every image would be known from its copy, and no regularisation be best."""
    features, labels = blobs(3)
    shuffled = np.random.default_rng(1).permutation(labels)
    twice = np.concatenate([features, features])
    groups = np.tile(np.arange(len(labels)), 2)
    found = logistic_regression(twice, np.tile(shuffled, 2), groups)
    assert found.strength == pytest.approx(1e-4)


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_as_many_examples_are_compared_in_two_views_as_in_one(task, rng):
    """Otherwise a head would seem worse with another view, because it was fitted on fewer examples."""
    count = 2000
    features = rng.normal(size=(count, 3)).astype("float32")
    targets = {
        "single_label": np.arange(count) % 2,
        "multi_label": (features[:, :2] > 0).astype("float32"),
        "regression": features[:, :1],
    }[task]
    groups = np.arange(count)
    once = solve(task, features, targets, groups)
    twice = solve(
        task, np.tile(features, (2, 1)), np.concatenate([targets] * 2), np.tile(groups, 2), views=2
    )
    known = np.isfinite(once.held_out)
    assert 0 < known.sum() < known.size
    np.testing.assert_array_equal(np.isfinite(twice.held_out), np.tile(known, (2, 1)))


def test_few_images_and_class_weights():
    features, labels = blobs(2, per_class=1)
    alone = logistic_regression(features, labels, np.arange(2))
    assert alone.cross_validation is None
    assert ((features @ alone.kernel + alone.bias).argmax(1) == labels).all()

    features, labels = blobs(2, distance=0.3)
    keep = np.r_[0:40, 40:48]  # five of one for one of the other
    plain, balanced = (
        logistic_regression(features[keep], labels[keep], np.arange(48), class_weights=weights)
        for weights in (None, np.array([1.0, 5.0]))
    )
    predicted = [(features @ f.kernel + f.bias).argmax(1).mean() for f in (plain, balanced)]
    assert predicted[1] > predicted[0]


def test_groups_that_leave_one_class_in_the_training_part_of_a_fold():
    """The training part of the first fold has class 1 only, and can tell nothing."""
    labels, groups = np.array([0, 0, 1, 1, 0]), np.array([2, 0, 0, 1, 2])
    features = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    found = logistic_regression(features, labels, groups)
    assert np.isfinite(found.kernel).all() and np.isfinite(found.bias).all()
    np.testing.assert_array_equal(np.isfinite(found.held_out).all(axis=1), groups == 1)


def test_many_images_choose_on_some_of_each_class():
    features, labels = blobs(4, per_class=2000, width=4)
    found = logistic_regression(features, labels, np.arange(len(labels)))
    right = ((features @ found.kernel + found.bias).argmax(1) == labels).mean()
    assert found.cross_validation is not None and right > 0.3


# -- the probe ------------------------------------------------------------------------------------


def test_the_probe_is_a_cross_validated_regression():
    features, labels = blobs(3, per_class=50, distance=0.5)
    found = cross_validated_probe(features, labels)
    plain = [
        cross_val_score(
            LogisticRegression(C=strength, max_iter=1000),
            (features - features.mean(0)) / features.std(0),
            labels,
            cv=StratifiedKFold(5, shuffle=True, random_state=3),
        ).mean()
        for strength in (0.05, 0.5, 5.0)
    ]
    assert min(plain) - 0.05 < found.accuracy < max(plain) + 0.05
    np.testing.assert_array_equal(found.correct, found.predictions == labels)
    assert found.accuracy == found.correct.mean() == pytest.approx(np.mean(found.fold_accuracies))
    expected = found.correct.std(ddof=1) / np.sqrt(len(labels))
    assert found.standard_error == pytest.approx(expected)
    assert len(found.fold_accuracies) == 5 and found.other_predictions == ()
    again = cross_validated_probe(features * 1000 - 7, labels * 10 + 3)
    np.testing.assert_array_equal(again.predictions, found.predictions * 10 + 3)


def test_the_probe_is_logistic_regression_by_hand(rng):
    """Standardized on the fold's own rows, of four strengths that with the lowest log loss."""
    labels = np.repeat([0, 1, 2], [20, 14, 8])
    features = rng.normal(size=(42, 5)) * [1, 10, 0.1, 1, 1] + 50
    features[:, 1] += 12 * labels
    splits = StratifiedGroupKFold(4, shuffle=True, random_state=7).split(
        labels, labels, np.arange(42)
    )
    losses, answers = np.zeros(4), np.zeros((4, 42), int)
    for fit, held in splits:
        mean, scale = features[fit].mean(0), features[fit].std(0)
        x, other = ((features[rows] - mean) / scale for rows in (fit, held))
        for i, strength in enumerate((1, 10, 100, 1000)):
            kernel, bias = logistic(x, labels[fit], strength / 5)
            scores = log_softmax(other @ kernel + bias, axis=1)
            losses[i] -= scores[np.arange(len(held)), labels[held]].sum()
            answers[i, held] = scores.argmax(1)
    found = cross_validated_probe(features, labels, folds=4, seed=7)
    assert 0.4 < found.accuracy < 0.9
    np.testing.assert_array_equal(found.predictions, answers[losses.argmin()])
    others = answers[np.arange(4) != losses.argmin()]
    assert (others != found.predictions).any(axis=1).all()  # each strength answers differently


def logistic(x, labels, strength):
    """Minimize ½‖kernel‖² + strength · (sum of log losses)."""

    def loss(flat):
        kernel, bias = flat[:15].reshape(5, 3), flat[15:]
        scores = log_softmax(x @ kernel + bias, axis=1)
        return (kernel**2).sum() / 2 - strength * scores[np.arange(len(x)), labels].sum()

    found = minimize(loss, np.zeros(18)).x
    return found[:15].reshape(5, 3), found[15:]


@pytest.mark.parametrize("counts", [(2, 2), (30, 2), (9, 1, 4), (40, 1, 1, 1, 2)])
@pytest.mark.parametrize("channels", [3, 200])
def test_the_probe_with_few_examples_of_a_class(rng, counts, channels):
    """More channels than examples, a class with one example (never predicted), unequal classes."""
    labels = np.repeat(np.arange(len(counts)), counts)
    features = rng.normal(size=(len(labels), channels)).astype("float32")
    features[:, 0] = 100 * labels
    right = cross_validated_probe(features, labels).correct
    singles = np.isin(labels, np.flatnonzero(np.array(counts) == 1))
    assert right.shape == labels.shape and not right[singles].any()


def test_the_probe_of_noise_is_at_chance_and_copies_stay_together():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(60, 300)), rng.integers(0, 3, 60)
    twice, groups = np.tile(features, (2, 1)), np.tile(np.arange(60), 2)
    once = cross_validated_probe(features, labels)
    fooled = cross_validated_probe(twice, np.tile(labels, 2))
    grouped = cross_validated_probe(twice, np.tile(labels, 2), groups=groups * 5)
    # The folds are random: about four in five copies are in the training part.
    assert fooled.accuracy > 0.75 > 0.55 > grouped.accuracy
    assert grouped.standard_error == pytest.approx(once.standard_error, rel=0.25)
    assert fooled.standard_error < grouped.standard_error
    np.testing.assert_array_equal(grouped.correct[:60], grouped.correct[60:])


def test_the_probe_of_rare_classes():
    """A class that the training part lacks is wrong; without two of one class there is no probe."""
    features, labels = blobs(3, per_class=10, distance=4)
    rare = np.r_[0:10, 10:14, 20]
    found = cross_validated_probe(features[rare], labels[rare])
    assert not found.correct[-1] and found.accuracy > 0.7
    assert cross_validated_probe(features[[0, 10, 20]], np.arange(3)) is None
    # One training part has a single class.
    found = cross_validated_probe(features[[0, 1, 10]], np.array([4, 4, 2]))
    assert len(found.fold_accuracies) == 2 and not found.correct[2]
    assert set(found.predictions) <= {2, 4}


def test_the_probe_on_other_features_and_with_balanced_classes():
    features, labels = blobs(2, distance=3)
    found = cross_validated_probe(features, labels, others=[features, features[:, ::-1]])
    same, reversed_ = found.other_predictions
    np.testing.assert_array_equal(same, found.predictions)
    assert found.accuracy > 0.95 > (reversed_ == labels).mean()
    features, labels = blobs(2, distance=0.2)
    some = np.r_[0:40, 40:48]
    plain, balanced = (
        cross_validated_probe(features[some], labels[some], balanced=b) for b in (False, True)
    )
    assert balanced.predictions.mean() > plain.predictions.mean()


def test_the_probe_reduces_wide_features(rng):
    """Classes must differ along the leading components; narrow features are not reduced."""
    labels = np.repeat([0, 1], 30)
    noise = np.repeat(rng.normal(size=(60, 4)), 20, axis=1)  # four directions of high variance
    features = np.concatenate([noise, labels[:, None] + 0.1 * rng.normal(size=(60, 1))], axis=1)
    assert cross_validated_probe(features, labels).accuracy > 0.9
    assert cross_validated_probe(features, labels, max_dims=4).accuracy < 0.75


def test_groups_may_have_examples_of_all_classes(rng):
    """Ten writers of two letters: whole writers are held out, and a strength is chosen."""
    labels, writers = np.tile([0, 1], 20), np.repeat(np.arange(10), 4)
    features = rng.normal(size=(40, 6)) + labels[:, None] + 2 * rng.normal(size=(10, 6))[writers]
    found = logistic_regression(features.astype("float32"), labels, writers)
    assert found.cross_validation is not None and np.isfinite(found.held_out).all()
    # The first of each group alone is of one class.
    assert logistic_regression(features, labels, labels).cross_validation is None


@pytest.mark.parametrize("count", [2, 4])
def test_the_strength_is_chosen_where_groups_are_larger_than_the_sample(count, rng):
    labels = rng.integers(0, 3, 8000)
    features = (rng.normal(size=(8000, 4)) + labels[:, None]).astype("float32")
    groups = np.arange(8000) * count // 8000
    head = solve("single_label", features, labels, groups)
    assert head.cross_validation < 1 and np.isfinite(head.held_out).any()
    assert np.isfinite(held_out_outputs("single_label", features, labels, groups)).all()


def test_what_a_fold_cannot_know_does_not_count(rng):
    """One writer wrote all of the third class but one: the fold without that writer hardly knows it."""
    labels = np.repeat([0, 1, 2], 8)
    features = (np.eye(3)[labels] * 4 + rng.normal(size=(24, 3))).astype("float32")
    first = np.arange(24) % 2 == 0
    first[labels == 2] = True
    splits = [(np.flatnonzero(~first), np.flatnonzero(first))]
    splits.append(splits[0][::-1])
    _, held_out = cross_validated(features, labels, splits, None)
    np.testing.assert_array_equal(np.isnan(held_out).any(axis=1), labels == 2)
    assert log_loss(held_out, labels) < 0.5
    # Each group has examples of one class only: no fold can tell anything.
    assert cross_validated(features, labels, [(labels < 2).nonzero() + (labels == 2).nonzero()], None) == (
        1.0,
        None,
    )  # fmt: skip
