"""Transferability scores against other implementations, and at their edges."""

import json

import ml_dtypes
import numpy as np
import pytest

from keras_transfer.advisor.scores import Score
from keras_transfer.advisor.transferability import LogME, Neighbors, score_features
from keras_transfer.errors import InputError
from keras_transfer.features.probe import cross_validated_probe


def blobs(count, width, classes=3, distance=0.6, seed=0):
    """Return features float64 [N, D] around one center per class, and labels in random order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    centers = rng.normal(0, distance, (classes, width))
    return centers[labels] + rng.normal(0, 1, (count, width)), labels


def value(score, labels):
    return score.values(labels[None])[0]


# -- formulas against other implementations ---------------------------------------------------------


def dense_evidence(features, target, alpha, beta):
    """Return ln N(t; 0, FFᵀ/α + I/β) / N."""
    count = len(features)
    covariance = features @ features.T / alpha + np.eye(count) / beta
    sign, logdet = np.linalg.slogdet(covariance)
    assert sign == 1
    fit = target @ np.linalg.solve(covariance, target)
    return -0.5 * (fit + logdet + count * np.log(2 * np.pi)) / count


def fixed_point(features, target, steps):
    """Return α and β by the iteration of the paper, with dense matrices."""
    alpha = beta = 1.0
    count, width = features.shape
    gram = features.T @ features
    for _ in range(steps):
        inverse = np.linalg.inv(alpha * np.eye(width) + beta * gram)
        mean = beta * inverse @ features.T @ target
        gamma = width - alpha * np.trace(inverse)
        alpha = gamma / (mean @ mean)
        beta = (count - gamma) / np.square(target - features @ mean).sum()
    return alpha, beta


@pytest.mark.parametrize("count, width", [(60, 20), (40, 90), (50, 50)])
def test_logme_is_the_maximum_of_the_dense_evidence(count, width):
    features, labels = blobs(count, width)
    score = LogME(features)
    alphas, betas = score.hyperparameters(labels)
    targets = np.eye(3)[labels].T
    dense = [dense_evidence(features, t, a, b) for t, a, b in zip(targets, alphas, betas)]
    assert value(score, labels) == pytest.approx(np.mean(dense), abs=1e-9)
    for target, alpha, beta, best in zip(targets, alphas, betas, dense):
        for up in (0.1, 0.7, 0.97, 1.03, 1.4, 10.0):
            assert dense_evidence(features, target, alpha * up, beta) < best + 1e-7
            assert dense_evidence(features, target, alpha, beta * up) < best + 1e-7
            assert dense_evidence(features, target, alpha * up, beta * up) < best + 1e-7
        found = dense_evidence(features, target, *fixed_point(features, target, 300))
        assert best == pytest.approx(found, abs=1e-5)


def test_logme_of_random_labels_is_low_with_many_features():
    """The authors' code gives 86.6 here: it counts directions that the features do not have."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(100, 2048)), rng.integers(0, 10, 100)
    assert -0.4 < value(LogME(features), labels) < 0


def test_neighbors_match_scikit_learn():
    from sklearn.model_selection import LeaveOneOut, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier

    features, labels = blobs(90, 12, distance=0.4)
    plain = KNeighborsClassifier(5, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    expected = cross_val_predict(plain, features, labels, cv=LeaveOneOut()) == labels
    score = Neighbors(features, np.arange(90))
    np.testing.assert_array_equal(score.influence(labels), expected)
    assert value(score, labels) == pytest.approx(expected.mean())
    assert 0.4 < expected.mean() < 0.95


def test_the_probe_is_a_cross_validated_regression():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    features, labels = blobs(150, 20, distance=0.5)
    right = cross_validated_probe(features, labels).accuracy
    plain = [
        cross_val_score(
            LogisticRegression(C=strength, max_iter=1000),
            features,
            labels,
            cv=StratifiedKFold(5, shuffle=True, random_state=3),
        ).mean()
        for strength in (0.01, 0.1, 1.0)
    ]
    assert min(plain) - 0.05 < right < max(plain) + 0.05


# -- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [8, 150])
def test_influence_matches_leaving_each_example_out(width):
    features, labels = blobs(90, width)
    whole = value(LogME(features), labels)
    left_out = []
    for i in range(len(labels)):
        rows = np.delete(np.arange(len(labels)), i)
        left_out.append(value(LogME(features[rows]), labels[rows]))
    influence = (len(labels) - 1) * (whole - np.array(left_out))
    estimate = LogME(features).influence(labels)
    assert np.corrcoef(influence, estimate)[0, 1] > 0.98
    assert estimate.std() == pytest.approx(influence.std(), rel=0.12)


@pytest.mark.parametrize("width", [10, 200])
def test_errors_match_the_spread_over_samples(width):
    """Also for the difference between two kinds of features of the same examples."""
    kinds = {"knn": lambda x: Neighbors(x, np.arange(120)), "logme": LogME}
    found = {key: [] for key in (*kinds, "difference", "probe")}
    centers = np.random.default_rng(99).normal(0, 2 / np.sqrt(width), (3, width))
    for seed in range(50):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(120) % 3)
        features = centers[labels] + rng.normal(size=(120, width))
        worse = features + rng.normal(0, 0.7, features.shape)

        def score(make, features, labels=labels):
            made = make(features)
            return Score.of(value(made, labels), made.influence(labels), np.arange(120), chance=0.0)

        for key, make in kinds.items():
            one = score(make, features)
            found[key].append((one.value, one.error))
        found["difference"].append(score(LogME, features).minus(score(LogME, worse)))
        if seed < 15:
            right = cross_validated_probe(features, labels).correct
            one = Score.of(right.mean(), right, np.arange(120), chance=0.0, share=True)
            found["probe"].append((one.value, one.error))
    for key, pairs in found.items():
        values, errors = np.array(pairs).T
        assert 0.7 < errors.mean() / values.std(ddof=1) < 1.45, key


def test_perfect_accuracy_has_an_error():
    """Copies of an example do not reduce it."""
    few = Score.of(1.0, np.ones(4), np.arange(4), chance=0.5, share=True)
    many = Score.of(1.0, np.ones(400), np.arange(400), chance=0.5, share=True)
    assert few.error > 0.1 > 0.01 > many.error > 0
    parts = np.arange(6.0)
    once = Score.of(2.5, parts, np.arange(6), chance=0.0)
    thrice = Score.of(2.5, np.tile(parts, 3), np.tile(np.arange(6), 3), chance=0.0)
    assert thrice.error == pytest.approx(once.error)


# -- edges ------------------------------------------------------------------------------------------


def edges():
    features, labels = blobs(60, 200, distance=0.5)
    unequal = np.r_[
        np.flatnonzero(labels == 0),
        np.flatnonzero(labels == 1)[:4],
        [np.flatnonzero(labels == 2)[0]],
    ]
    return {
        "fewer images than features": (features, labels, True),
        "very unequal": (features[unequal] * 3, labels[unequal], None),
        "two classes": (features[labels < 2], labels[labels < 2], True),
        "float16": (features.astype("float16"), labels, True),
        "bfloat16": (features.astype(ml_dtypes.bfloat16), labels, True),
        "huge": (features * 1e20, labels, True),
        "tiny": (features * 1e-20, labels, True),
        "one image a class": (features[:30], np.arange(30), False),
        "two images": (features[:2], np.arange(2), False),
        "two of a class": (features[:3], np.array([0, 0, 1]), False),
        "constant": (np.tile(features[0], (60, 1)), np.sort(labels), False),
        "zero": (np.zeros((60, 5)), np.sort(labels), False),
        "one feature": (labels[:, None] + 0.1 * features[:, :1], labels, True),
        "labels far apart": (features, labels * 1000 + 7, True),
    }


@pytest.mark.parametrize("case", edges())
def test_edges(case):
    features, labels, signal = edges()[case]
    scores = score_features(features, labels)
    assert signal is None or scores.signal == signal
    assert set(scores.scores) == {"probe", "knn", "logme"}
    learnable = np.unique(labels, return_counts=True)[1].max() > 1
    assert (scores["probe"].value is None) == (not learnable)
    for key, score in scores.scores.items():
        if key != "probe" or learnable:
            assert np.isfinite([score.value, score.error, score.chance]).all(), key
    if case == "constant":  # no order of the rows may help
        assert scores["knn"].value < 0.45
    if case == "one image a class":  # all labelings differ by rounding only
        assert not np.any(scores.statistics)
    json.dumps(scores.to_dict(), allow_nan=False)
    assert np.isfinite(scores.statistics).all() and len(scores.statistics) == 100


def test_scale_and_order_do_not_matter(rng):
    features, labels = blobs(80, 30)
    one = score_features(features, labels)
    other = score_features(features * 50, labels)
    order = rng.permutation(80)
    third = score_features(features[order], labels[order])
    for key in ("knn", "logme"):
        assert other[key].value == pytest.approx(one[key].value, rel=1e-6)
        assert third[key].value == pytest.approx(one[key].value, rel=1e-6)


def test_random_labels_have_no_signal():
    """One in a hundred may show one; the probe stays at chance."""
    signals, probes = [], []
    for seed in range(12):
        features, _ = blobs(60, 40, seed=seed)
        scores = score_features(features, np.random.default_rng(seed).integers(0, 3, 60))
        signals.append(scores.signal)
        probes.append(scores["probe"].value - scores["probe"].chance)
    assert sum(signals) <= 1 and np.mean(probes) < 0.02


def test_copies_of_an_example_stay_in_one_fold(rng):
    features, _ = blobs(40, 30)
    labels = rng.integers(0, 2, 40)
    twice, groups = np.concatenate([features, features]), np.tile(np.arange(40), 2)
    fooled = score_features(twice, np.tile(labels, 2))
    scores = score_features(twice, np.tile(labels, 2), groups=groups)
    assert fooled["probe"].value > 0.8 and fooled.signal
    assert scores["probe"].value < 0.7 and scores["knn"].value < 0.7 and not scores.signal
    assert scores.images == 40
    own, known = blobs(60, 100, distance=0.2)  # with a signal, so that something is learned
    once = cross_validated_probe(own, known).accuracy
    grouped = cross_validated_probe(
        np.tile(own, (2, 1)), np.tile(known, 2), groups=np.tile(np.arange(60), 2)
    ).accuracy
    assert 0.4 < once < 0.85 and abs(grouped - once) < 0.12
    # An image under two labels is no reason to fail.
    mixed = score_features(twice, np.r_[labels, 1 - labels], groups=groups)
    assert not mixed.signal and mixed.images == 80


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(features=np.zeros((4, 2, 2))), "must be"),
        (dict(labels=np.zeros(4, int)), "in one class"),
        (dict(labels=np.arange(3)), "4 rows"),
        (dict(labels=np.array([0.5, 1, 2, 3])), "integers"),
        (dict(features=np.full((4, 2), np.nan)), "not finite"),
    ],
)
def test_invalid_input_is_reported(change, message):
    given = dict(features=np.eye(4), labels=np.array([0, 0, 1, 1])) | change
    with pytest.raises(InputError, match=message):
        score_features(**given)
