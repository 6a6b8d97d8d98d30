"""Distances of features: computed by hand, near 0 for equal domains, with correct errors."""

import numpy as np
import pytest

from keras_transfer.advisor.distances import (
    frechet_by_chance,
    frechet_distance,
    mmd,
    proxy_a_distance,
)
from keras_transfer.errors import InputError


def samples(rng, shift=0.0, n=60, m=50, d=4):
    return rng.normal(size=(n, d)), rng.normal(size=(m, d)) + shift


# -- proxy-A --------------------------------------------------------------------------------------


def test_proxy_a_is_2_where_a_line_divides_the_domains(rng):
    found = proxy_a_distance(*samples(rng, shift=10))
    assert found.value == 2
    assert 0 < found.error < 0.3  # no error among a hundred images is no certainty


def test_proxy_a_is_about_0_for_one_distribution():
    found = [proxy_a_distance(*samples(np.random.default_rng(seed))) for seed in range(10)]
    assert abs(np.mean([f.value for f in found])) < 0.25
    assert all(abs(f.value) < 4 * f.error for f in found)


def test_the_same_images_in_both_domains_do_not_count_as_a_difference(rng):
    a, _ = samples(rng)
    # A fold that saw an image in one domain would be wrong of it in the other, each time.
    assert proxy_a_distance(a, a).value < -0.5
    assert proxy_a_distance(a, a, np.tile(np.arange(60), 2)).value == pytest.approx(0)


def test_proxy_a_follows_from_the_error_by_hand():
    # Columns that say the domain of 9 in 10 images; the others are where the other domain is.
    column = np.r_[np.repeat([-1.0, 1.0], [90, 10]), np.repeat([-1.0, 1.0], [3, 27])]
    found = proxy_a_distance(column[:100, None], column[100:, None])
    assert found.value == pytest.approx(2 * (1 - 2 * 0.1))
    by_hand = 4 * np.sqrt((11 / 102 * 91 / 102 / 100 + 4 / 32 * 28 / 32 / 30) / 4)
    assert found.error == pytest.approx(by_hand)


def test_a_small_domain_counts_as_much_as_a_large_one(rng):
    a, b = samples(rng, n=400, m=20)
    # Always saying "a" is right for 95 % of the images and yet says nothing.
    assert abs(proxy_a_distance(a, b).value) < 1


def test_the_error_of_proxy_a_is_the_spread_over_samples():
    found = [
        proxy_a_distance(*samples(np.random.default_rng(seed), 0.6, d=2)) for seed in range(40)
    ]
    ratio = np.mean([f.error for f in found]) / np.std([f.value for f in found], ddof=1)
    assert 0.6 < ratio < 1.5


# -- MMD ------------------------------------------------------------------------------------------


def test_mmd_of_two_pairs_by_hand():
    a, b = np.array([[0.0], [1.0]]), np.array([[2.0], [4.0]])
    squares = {(0, 1): 1, (0, 2): 4, (0, 4): 16, (1, 2): 1, (1, 4): 9, (2, 4): 4}
    mean = sum(squares.values()) / 6

    def k(x, y):
        sigmas = [2.0**power * mean for power in (-3, -2, -1, 0, 1)]
        return np.mean([np.exp(-squares[x, y] / (2 * sigma)) for sigma in sigmas])

    by_hand = k(0, 1) + k(2, 4) - 2 * np.mean([k(0, 2), k(0, 4), k(1, 2), k(1, 4)])
    assert mmd(a, b, permutations=0).value == pytest.approx(by_hand)
    assert mmd(a, b, permutations=0).p_value is None


def test_mmd_is_unbiased_and_its_p_value_uniform_without_a_difference():
    found = [
        mmd(*samples(np.random.default_rng(seed), n=20, m=30), permutations=99)
        for seed in range(200)
    ]
    values = np.array([f.value for f in found])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    p = np.array([f.p_value for f in found])
    assert 0.42 < p.mean() < 0.58
    assert 0.01 <= (p <= 0.1).mean() <= 0.17


def test_mmd_finds_a_difference_of_spread_alone(rng):
    a = rng.normal(size=(80, 5))
    found = mmd(a, 2 * rng.normal(size=(80, 5)))
    assert found.p_value == 0.001
    assert found.value > 3 * found.error


def test_the_error_of_mmd_is_the_spread_over_samples():
    found = [mmd(*samples(np.random.default_rng(seed), 0.7), permutations=0) for seed in range(200)]
    ratio = np.mean([f.error for f in found]) / np.std([f.value for f in found], ddof=1)
    assert 0.8 < ratio < 1.25


def test_mmd_of_the_same_images_is_not_above_0(rng):
    a, _ = samples(rng)
    found = mmd(a, a)
    assert found.value < 0 and found.p_value > 0.9


def test_mmd_of_equal_images_everywhere():
    found = mmd(np.ones((4, 2)), np.ones((5, 2)), permutations=9)
    assert found.value == 0 and found.p_value == 1


# -- Fréchet --------------------------------------------------------------------------------------


def test_frechet_of_normal_distributions_by_hand():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(40_000, 3))
    b = rng.normal(size=(40_000, 3)) * [1, 2, 3] + [1, 0, 0]
    # For covariances that commute: ‖μ‖² + Σ (σ_a − σ_b)².
    assert frechet_distance(a, b) == pytest.approx(1 + 0 + 1 + 4, rel=0.03)


def test_frechet_of_correlated_features_against_the_matrix_root(rng):
    from scipy.linalg import sqrtm
    from sklearn.covariance import ledoit_wolf

    a = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4))
    b = rng.normal(size=(70, 4)) @ rng.normal(size=(4, 4)) + 1
    first, second = ledoit_wolf(a)[0], ledoit_wolf(b)[0]
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(
        first + second - 2 * sqrtm(first @ second).real
    )
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_frechet_of_fewer_images_than_features(rng):
    a, b = samples(rng, n=12, m=15, d=100)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    found, chance = frechet_distance(a, b), frechet_by_chance(a, b)
    assert np.isfinite(found) and found == pytest.approx(chance, rel=0.35)
    assert frechet_distance(a, b + 5) > 100 * 25 * 0.8


def test_every_distance_works_with_fewer_images_than_features(rng):
    a, b = samples(rng, shift=1.0, n=12, m=15, d=100)
    assert proxy_a_distance(a, b).value > 1
    assert mmd(a, b).p_value <= 0.01


@pytest.mark.parametrize("distance", [proxy_a_distance, mmd, frechet_distance])
def test_invalid_shapes_are_reported(distance):
    for a, b in (((3, 2), (3, 4)), ((1, 2), (3, 2)), ((3,), (3, 2))):
        with pytest.raises(InputError, match="at least two examples each"):
            distance(np.ones(a), np.ones(b))
