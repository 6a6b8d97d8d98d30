"""The head in closed form."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from keras_transfer.features.closed_form import logistic_regression


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
    scaled = (features - features.mean(0)) / features.std()
    plain = LogisticRegression(C=found.strength, max_iter=1000).fit(scaled, labels)
    logits = features @ found.kernel + found.bias
    scores = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(
        scores / scores.sum(1, keepdims=True), plain.predict_proba(scaled), atol=2e-3
    )
    assert found.kernel.shape == (20, classes) and found.bias.shape == (classes,)


def test_the_strength_follows_the_noise():
    """Labels that mean nothing want the strongest regularisation, clear ones a weak one."""
    features, labels = blobs(3, distance=3.0)
    clear = logistic_regression(features, labels, np.arange(len(labels)))
    shuffled = np.random.default_rng(1).permutation(labels)
    noise = logistic_regression(features, shuffled, np.arange(len(labels)))
    assert noise.strength == pytest.approx(1e-3) and clear.strength > 0.05
    assert clear.cross_validation < 0.3 < noise.cross_validation


def test_views_of_a_image_stay_in_one_fold():
    """Else every image would be known from its copy, and no regularisation be best."""
    features, labels = blobs(3)
    shuffled = np.random.default_rng(1).permutation(labels)
    twice = np.concatenate([features, features])
    groups = np.tile(np.arange(len(labels)), 2)
    found = logistic_regression(twice, np.tile(shuffled, 2), groups)
    assert found.strength == pytest.approx(1e-3)


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


def test_many_images_choose_on_some_of_each_class():
    features, labels = blobs(4, per_class=2000, width=4)
    found = logistic_regression(features, labels, np.arange(len(labels)))
    right = ((features @ found.kernel + found.bias).argmax(1) == labels).mean()
    assert found.cross_validation is not None and right > 0.3
