"""The table of losses by task, and the budget's arithmetic."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from keras_transfer.advisor import budget
from keras_transfer.advisor.judging import constant_losses, difference, is_signal, judge, score_name
from keras_transfer.models.heads import Classification, MultiLabel, Regression


def test_losses_and_scores_of_every_task(rng):
    logits, labels = rng.normal(size=(50, 3)), rng.integers(0, 3, 50)
    logits[0] = np.nan  # in no fold
    classes = {"output": Classification("abc")}
    found = judge(classes, labels, {"output": logits})
    shares = np.exp(logits[1:]) / np.exp(logits[1:]).sum(axis=1, keepdims=True)
    assert found.loss == pytest.approx(log_loss(labels[1:], shares, labels=[0, 1, 2]))
    assert found.score == pytest.approx((logits[1:].argmax(1) == labels[1:]).mean())
    assert np.isnan(found.losses[0]) and np.isnan(found.scores[0])

    several = rng.integers(0, 2, (50, 3)).astype("float32")
    found = judge({"output": MultiLabel("abc")}, several, {"output": logits})
    by_hand = np.mean(
        [log_loss(several[1:, i], 1 / (1 + np.exp(-logits[1:, i]))) for i in range(3)]
    )
    assert found.loss == pytest.approx(by_hand)

    partly = logits.copy()
    partly[1:, 0] = np.nan  # a label that no fold measured
    found = judge({"output": MultiLabel("abc")}, several, {"output": partly})
    assert found.score == pytest.approx(((logits[1:] > 0) == several[1:])[:, 1:].mean())

    numbers = rng.normal(7, 3, (50, 1))
    head = Regression(("age",)).fitted(numbers)
    found = judge({"output": head}, numbers, {"output": np.zeros((50, 1))})  # the mean
    assert found.loss == pytest.approx(1, abs=1e-5) and found.score == pytest.approx(0, abs=1e-5)

    both = {"kind": Classification("abc"), "age": head}
    outputs = {"kind": logits, "age": np.zeros((50, 1))}
    found = judge(both, {"kind": labels, "age": numbers}, outputs)
    assert found.losses.shape == (50,) and score_name(both) == "mean score"
    assert score_name(classes) == "accuracy"


def test_differences_are_paired_and_groups_count_once(rng):
    losses = rng.normal(size=40)
    gap, error = difference(losses + 0.1, losses, np.arange(40))
    assert gap == pytest.approx(0.1) and error < 1e-9
    noise = rng.normal(size=40)
    single = difference(losses + noise, losses, np.arange(40))[1]
    assert single == pytest.approx(noise.std(ddof=1) / np.sqrt(40))
    assert difference(noise, losses, np.zeros(40))[1] == np.inf  # one group tells nothing
    twice = difference(np.tile(losses + noise, 2), np.tile(losses, 2), np.tile(np.arange(40), 2))[1]
    assert twice == pytest.approx(single)
    # Two speakers whose gaps agree by chance say no more than all their examples.
    speakers = np.arange(40) // 20
    noise -= np.where(speakers, noise[20:].mean(), noise[:20].mean())
    assert difference(noise + losses, losses, speakers)[1] == pytest.approx(noise.std() / 40**0.5)
    losses[3] = np.nan
    assert difference(losses + 1, losses, np.arange(40))[0] == pytest.approx(1)


def test_a_signal_about_a_rare_class_is_found():
    """Fifteen of 300 are sick, and the log odds of a test are known whose AUC is 0.74."""
    rng = np.random.default_rng(3)
    heads, labels = {"output": Classification("ab")}, (np.arange(300) < 15).astype(int)
    half = (np.log(15 / 285) + 0.9 * (rng.normal(size=300) + 0.9 * labels) - 0.9**2 / 2) / 2
    outputs, alone = {"output": np.stack([-half, half], axis=1)}, np.arange(300)
    losses = judge(heads, labels, outputs).losses
    gap, error = difference(losses, constant_losses(heads, labels), alone)
    assert gap > -2 * error  # hardly better than a constant answer
    assert is_signal(heads, labels, outputs, alone, seed=0)
    passed = [is_signal(heads, rng.permutation(labels), outputs, alone, seed) for seed in range(20)]
    assert sum(passed) <= 2
    # Examples that come in groups are not permuted.
    assert not is_signal(heads, labels, outputs, alone // 2, seed=0)


def test_trainings_are_expected_to_bring_less_and_less():
    assert budget.expected_share([]) == budget.PRIOR
    assert budget.expected_share([0.2]) == pytest.approx(0.1)
    assert budget.expected_share([0.2, 0.01]) == pytest.approx(0.005)
    assert budget.expected_share([-0.3]) == pytest.approx(budget.PRIOR / 8)


def test_the_length_follows_from_error_time_and_worth():
    pace = budget.Pace(0.001, 100, 200, 50)
    lengths = budget.lengths_up_to(28)
    assert lengths == [28, 18, 12, 8, 5, 3, 2, 1]
    plan = dict(gains=(), worth=0.5, left=float("inf"), steps_per_epoch=7, lengths=lengths)
    epochs, points, minutes = budget.longest(pace, 0.2, **plan)
    assert epochs == 28
    assert points > 0.5 * minutes and minutes == pytest.approx(pace.minutes(epochs))
    # Little error left: shorter, or no training; a limit is respected.
    assert 1 < budget.longest(pace, 0.026, **plan)[0] < 28
    assert budget.longest(pace, 0.001, **plan) is None
    assert budget.longest(pace, 0.2, **{**plan, "worth": 50}) is None
    left = pace.minutes(3)
    assert budget.longest(pace, 0.2, **{**plan, "left": left})[0] <= 3
    assert budget.longest(pace, 0.2, **{**plan, "left": 0.001}) is None
    assert pace.minutes(4, 0.5) < pace.minutes(4)


def test_the_clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(budget.time, "perf_counter", lambda: now[0])
    clock, open_end = budget.Clock(2), budget.Clock()
    now[0] += 60
    assert clock.spent == clock.left == 1 and open_end.left == float("inf")
    assert clock.has(0.6) and not clock.has(0.4) and open_end.has(0.1)

    class Model:
        stop_training = False

    callback = clock.callback()
    callback.set_model(model := Model())
    callback.on_train_batch_end(0)
    assert not model.stop_training
    now[0] += 61
    callback.on_train_batch_end(1)
    assert model.stop_training
