"""The values of a model's weights as named arrays, and its random states.

A model with low-rank updates has two forms: what a checkpoint continues from (matrices and factors),
and what is saved, ranked and averaged (the plain model, see `models.low_rank`).
"""

import keras
import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.models.low_rank import clear_updates, factors_of, merged_values, plain_variables
from keras_transfer.utils.keras_versions import global_seed_generator


def collect(variables, name: str) -> dict[str, np.ndarray]:
    """Return the values of Keras variables as `NAME/POSITION` → array."""
    return {f"{name}/{i}": keras.ops.convert_to_numpy(v) for i, v in enumerate(variables)}


def assign(variables, arrays: dict, name: str) -> None:
    """Set Keras variables to the values that `collect` returned.

    Raises:
        InputError: if the variables have other shapes, because the model is a different one.
    """
    shapes = [arrays[key].shape for key in arrays if key.startswith(f"{name}/")]
    if shapes != [tuple(variable.shape) for variable in variables]:
        raise InputError(
            f"Cannot resume: the shapes of the {name}'s weights differ from those that were saved. "
            "Build the model as it was built when the work began."
        )
    for i, variable in enumerate(variables):
        variable.assign(arrays[f"{name}/{i}"])


def reseed(model: keras.Model, seed: int, epoch: int, offset: int = 0) -> None:
    """Set every random state of the layers to a function of (seed, epoch, offset).

    Keras stores them outside the weights, so no file contains them. Layers without a state of their
    own (StochasticDepth in ConvNeXt) use Keras's global generator.
    """
    weights = {id(w) for w in model.weights}
    states = [v for v in model.variables if id(v) not in weights]
    states.append(global_seed_generator().state)
    entropy = [seed, epoch, offset] if offset else [seed, epoch]
    fresh = np.random.SeedSequence(entropy).generate_state(len(states)) >> 1  # 31 bits
    for state, value in zip(states, fresh):
        state.assign(
            np.array([value, 0], "int64").astype(keras.backend.standardize_dtype(state.dtype))
        )


def state_of(model: keras.Model) -> dict[str, np.ndarray]:
    """Return the matrices of a model, as `model/…`, and the factors of its updates, as `update/…`."""
    return {**collect(plain_variables(model), "model"), **collect(factors_of(model), "update")}


def set_state(model: keras.Model, arrays: dict) -> None:
    """Set what `state_of` returned; the model must have the same updates."""
    assign(plain_variables(model), arrays, "model")
    assign(factors_of(model), arrays, "update")


def plain_values(model: keras.Model) -> dict[str, np.ndarray]:
    """Return the values of a model, as `model/…`, with its low-rank updates added."""
    return {f"model/{i}": value for i, value in enumerate(merged_values(model))}


def set_plain(model: keras.Model, arrays: dict) -> None:
    """Set what `plain_values` returned; low-rank updates become zero."""
    assign(plain_variables(model), arrays, "model")
    clear_updates(model)
