"""Models that version 0.1 saved load in safe mode, and give the outputs that they gave then."""

from pathlib import Path

import numpy as np
import pytest

import keras_transfer as kt
from keras_transfer.models.builders import by_head, heads_of

SAVED = Path(__file__).parent.parent / "saved_by_0_1"
FILES = {
    "finished": "finished/model.keras",
    "multi_label": "multi_label.keras",
    "regression": "regression.keras",
    "several": "several.keras",
}


@pytest.fixture(scope="module")
def outputs():
    """`name`, or `name:head` with several heads → outputs of the images."""
    with np.load(SAVED / "outputs.npz") as saved:
        return dict(saved)


def test_every_saved_output_has_a_model(outputs):
    assert {key.partition(":")[0] for key in outputs} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_model_of_0_1_gives_its_outputs(name, outputs):
    model = kt.load_model(SAVED / FILES[name])
    images = np.stack([np.full((32, 32, 3), value, "uint8") for value in (0, 80, 160, 240)])
    found = by_head(heads_of(model), model(images, training=False))
    expected = {
        key.partition(":")[2] or "output": value
        for key, value in outputs.items()
        if key.partition(":")[0] == name
    }
    assert found.keys() == expected.keys()
    for head, value in expected.items():
        np.testing.assert_allclose(found[head], value, atol=1e-5)
