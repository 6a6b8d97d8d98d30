"""The range test: what it suggests, and that nothing of it stays behind."""

import random

import keras
import numpy as np
import pytest
from keras.src.random.seed_generator import global_seed_generator

from keras_transfer.cli.demo import small_backbone
from keras_transfer.data import from_directory
from keras_transfer.errors import InputError
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.stages import freeze
from keras_transfer.schedules.phases import Phase
from keras_transfer.training.rate_finder import find_rate

NAMES = ("blue", "green", "red")


def test_it_finds_a_rate_that_learns_and_leaves_everything_as_it_was(colours, tmp_path):
    data = from_directory(colours)
    keras.utils.set_random_seed(0)
    model = build_model(small_backbone(), Classification(NAMES), image_size=32)
    freeze(model, "stage:2")
    model.compile(keras.optimizers.Adam(1e-3), model.layers[-1].head.loss(), jit_compile=False)
    batch = next(iter(data.batches("train", image_size=32, batch_size=8)))
    model.train_on_batch(*batch)

    def state():
        values = [v.numpy().copy() for v in (*model.variables, *model.optimizer.variables)]
        values.append(global_seed_generator().state.numpy().copy())
        values.append(np.random.get_state()[1].copy())
        return values

    flags = [(layer.name, layer.trainable) for layer in model.layers[1].layers]
    before, optimizer, chance = state(), model.optimizer, random.getstate()
    test = find_rate(model, data, steps=60, batch_size=8, progress=False)
    for a, b in zip(before, state(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert random.getstate() == chance and model.optimizer is optimizer
    assert [(layer.name, layer.trainable) for layer in model.layers[1].layers] == flags

    assert len(test.rates) == len(test.losses) == len(test.smooth)
    assert test.rates[0] == pytest.approx(1e-6) and (np.diff(test.rates) > 0).all()
    assert test.smooth.min() < 0.8 * test.smooth[0]  # it did learn on the way
    assert 1e-5 < test.suggestion < 0.1
    test.draw(tmp_path / "rates.png")
    assert (tmp_path / "rates.png").stat().st_size > 5000
    again = find_rate(model, data, steps=60, batch_size=8, progress=False)
    np.testing.assert_allclose(again.losses, test.losses, rtol=1e-5)


def test_it_tests_the_phase_it_is_given_and_refuses_what_is_no_range(colours):
    data = from_directory(colours)
    model = build_model(small_backbone(), Classification(NAMES), image_size=32)
    head = Phase("head", "all", steps=20, optimizer="sgd", optimizer_options={"momentum": 0.9})
    test = find_rate(model, data, phase=head, steps=20, batch_size=8, progress=False)
    assert len(test.losses) > 10
    with pytest.raises(InputError, match="invalid range"):
        find_rate(model, data, lowest=1.0, highest=0.1)
    model.layers[-1].kernel.assign(np.full(model.layers[-1].kernel.shape, np.nan))
    with pytest.raises(InputError, match="not finite even"):
        find_rate(model, data, steps=20, batch_size=8, progress=False)
