"""Internals of Keras that `utils.keras_versions` works around."""

import keras
import numpy as np

from keras_transfer.utils.keras_versions import remember_saved_attributes, saving_lib


def test_the_attributes_of_a_layer_are_listed_once(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, bias_initializer="ones")])
    listed = saving_lib.get_attr_skipset("Layer")
    remember_saved_attributes()
    assert saving_lib.get_attr_skipset("Layer") is saving_lib.get_attr_skipset("Layer")
    assert saving_lib.get_attr_skipset("Layer") == listed
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for mine, saved in zip(loaded.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(mine, saved)
