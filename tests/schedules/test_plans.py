"""What a schedule means for one model: numbers, table and image."""

import re

import numpy as np
import pytest
from conftest import tiny_backbone
from PIL import Image

from keras_transfer.cli.demo import small_backbone
from keras_transfer.errors import InputError
from keras_transfer.models.acceleration import training_model
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.schedules.plans import make_plan
from keras_transfer.schedules.recipes import RECIPES, resolve_schedule
from keras_transfer.training.step_time import step_seconds


def test_numbers_are_worked_out():
    model = build_model(small_backbone(), Classification("ab"), image_size=32)
    schedule = Schedule(
        "s",
        (
            Phase("a", "stage:1", epochs=2, learning_rate=0.1, lowest_rate=0.01, shape="constant"),
            Phase("b", "all", steps=25, batch_size=10, image_size=64, rates={"head": 3}),
        ),
    )
    plan = make_plan(model, schedule, examples=100, batch_size=32)
    a, b = plan.phases
    assert (a.epochs, a.steps, a.steps_per_epoch, a.frozen) == (2, 8, 4, 1)
    np.testing.assert_allclose(a.rates, [0, 0.01**0.75, 0.01**0.5, 0.01**0.25])
    assert (b.epochs, b.steps, b.steps_per_epoch, b.image_size) == (3, 25, 10, 64)
    assert b.rates == (0, 0, 0, 0) and b.head_rate == 3
    assert a.learning_rate([0, 7])[1] == pytest.approx(0.1)
    assert plan.epochs == 5
    wrong = resolve_schedule(schedule, {"b.image_size": 50})
    with pytest.raises(InputError, match="multiple of 32"):
        make_plan(model, wrong, 100)


@pytest.mark.parametrize("name", RECIPES)
def test_table_and_image(name, tmp_path):
    model = build_model("mobilenet_0.25", Classification("ab"), image_size=128, weights=None)
    schedule = resolve_schedule(name, examples=300, image_size=128)
    plan = make_plan(model, schedule, 300)
    lines = plan.table().splitlines()
    assert len(lines) == 1 + len(schedule.phases)
    for line, planned in zip(lines[1:], plan.phases):
        words = line.split()
        assert words[0] == planned.phase.name
        assert words[1:4] == [str(planned.frozen), "of", str(len(plan.stage_names))]
        assert words[4:6] == [str(planned.epochs), str(planned.steps)]
    plan.draw(tmp_path / "plan.png")
    with Image.open(tmp_path / "plan.png") as image:
        assert np.asarray(image.convert("L")).std() > 10


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v2_0.35",
        "efficientnet_b0",
        pytest.param("nasnet_mobile", marks=pytest.mark.large),
        pytest.param("convnext_tiny", marks=pytest.mark.large),
        pytest.param("resnet50", marks=pytest.mark.large),
    ],
)
def test_another_image_size_is_the_model_that_keras_would_build(name, rng):
    """On shared weights; families that pad by the size of the image among them."""
    small, large = 96, 160
    model = build_model(name, Classification("ab"), image_size=small, weights=None)
    duplicate = training_model(model, 0, image_size=large, fold=False)
    assert duplicate.input_shape == (None, large, large, 3)
    assert {id(w) for w in duplicate.weights} == {id(w) for w in model.weights}
    reference = build_model(name, Classification("ab"), image_size=large, weights=None)
    reference.set_weights(model.get_weights())
    images = rng.integers(0, 256, (2, large, large, 3)).astype("float32")
    expected = reference(images).numpy()
    np.testing.assert_allclose(duplicate(images).numpy(), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="multiple of 32"):
        training_model(model, 0, image_size=small + 1)


def test_steps_of_each_phase_are_timed():
    model = build_model(tiny_backbone(), Classification("ab"), image_size=32)
    order = [w.path for w in model.weights]
    phases = (
        Phase("head", "all", 1, solver="logistic"),
        Phase("lora", "stage:1", 1, train="lora", lora_rank=2),
        Phase("large", "none", 1, image_size=64),
    )
    plan = make_plan(model, Schedule("s", phases), 100, batch_size=8)
    head, lora, large = step_seconds(model, plan)
    assert head is None and 0 < lora < 30 and 0 < large < 30
    assert [w.path for w in model.weights] == order
    header, *rows = plan.table([None, 0.25, 2.0]).splitlines()
    assert " a step " in header and " a step " not in plan.table()
    assert [re.search(r"B +([\d.]+ s) ", row)[1] for row in rows[1:]] == ["0.25 s", "2 s"]
    assert plan.phases[1].parameters == 2 * ((72 + 16) + (144 + 16)) + 16 * 2 + 2
    assert f" {plan.phases[1].parameters:,} " in rows[1]
