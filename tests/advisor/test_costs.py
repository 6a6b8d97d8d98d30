"""Training costs: timing leaves the model unchanged, and costs add up per phase."""

import keras
import numpy as np
import pytest

from keras_transfer.advisor import costs as timing
from keras_transfer.advisor.costs import Speed, speed_of, stage_shares
from keras_transfer.cli.demo import small_backbone
from keras_transfer.models.builders import backbone_at, build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.stages import freeze
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.schedules.plans import make_plan
from keras_transfer.schedules.recipes import resolve_schedule


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return build_model(small_backbone(), Classification("ab"), image_size=32)


def test_timing_leaves_the_model_unchanged(model, cache, rng):
    for weight in model.weights:  # statistics that a batch of black images would move
        weight.assign(weight + rng.random(weight.shape))
    freeze(model, "stage:1")
    backbone = backbone_at(model)
    before, flags = model.get_weights(), [layer.trainable for layer in backbone.layers]
    speed = speed_of(backbone, 4)
    assert 0 < speed.step < 10 and 0 < speed.start < 100
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert flags == [layer.trainable for layer in backbone.layers]
    assert len(set(flags)) == 2 and backbone.frozen_stages == 1


def test_the_speed_is_cached(model, cache, monkeypatch):
    backbone = backbone_at(model)
    speed = speed_of(backbone, 4)
    monkeypatch.setattr(timing, "_timed", lambda _, batch: {"step": float(batch), "start": 0.5})
    assert speed_of(backbone, 4) == speed
    assert speed_of(backbone, 8) == Speed(8.0, 0.5)  # another batch size is measured anew


def test_shares_of_the_stages(model):
    shares = stage_shares(backbone_at(model))
    assert len(shares) == len(backbone_at(model).stages)
    assert shares.sum() == pytest.approx(1) and (shares >= 0).all()


def seconds(model, phases, images=100, shares=None):
    """Return the cost at 0.03 s per image and 5 s to start, in batches of 10."""
    stages = len(backbone_at(model).stages)
    shares = np.full(stages, 1 / stages) if shares is None else shares
    plan = make_plan(model, Schedule("s", phases), images, 10)
    return Speed(0.03, 5.0).seconds(plan, shares, images)


def test_costs_by_hand(model):
    stages = len(backbone_at(model).stages)
    one = 1 / stages
    # All of it, in two epochs of 100 images.
    assert seconds(model, (Phase("all", "none", 2),)) == pytest.approx(200 * 0.03 + 5)
    # The head in closed form: each image once, and forwards only, a third of a step.
    head = Phase("head", "all", 1, solver="logistic")
    assert seconds(model, (head,)) == pytest.approx(100 * 0.03 / 3)
    # In steps: three views of each image, however many epochs.
    for epochs in (1, 50):
        steps = Phase("head", "all", epochs)
        assert seconds(model, (steps,)) == pytest.approx(3 * 100 * 0.03 / 3)
    # A stage frozen: it is computed once, the others in each of two epochs.
    top = Phase("top", "stage:1", 2)
    expected = 3 * 100 * 0.01 * one + (200 * 0.03 + 5) * (1 - one)
    assert seconds(model, (top,)) == pytest.approx(expected)
    # What the first phase computed, the second does not compute again.
    assert seconds(model, (Phase("head", "all", 4), top)) == pytest.approx(
        3 * 100 * 0.01 + (200 * 0.03 + 5) * (1 - one)
    )


def test_smaller_images_cost_less(model):
    smaller = build_model(small_backbone(), Classification("ab"), image_size=64)
    phases = (Phase("small", "none", 1, image_size=32), Phase("full", "none", 1))
    assert seconds(smaller, phases) == pytest.approx(100 * 0.03 * (1 / 4 + 1) + 2 * 5)


def test_more_frozen_stages_cost_less(model):
    backbone = backbone_at(model)
    names = ("feature_extraction", "freeze_k", "lp_ft", "from_scratch")
    costs = []
    for name in names:
        plan = make_plan(model, resolve_schedule(name, examples=500), 500, 32)
        costs.append(Speed(0.01, 2.0).seconds(plan, stage_shares(backbone), 500))
    assert costs == sorted(costs) and len(set(costs)) == 4
