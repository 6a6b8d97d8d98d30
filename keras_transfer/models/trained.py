"""Which weights of the trained stages move: all, biases, normalizations, or low-rank updates."""

from collections.abc import Callable, Iterable

import keras

from keras_transfer.utils.keras_versions import inner_layers, own_weights


def is_bias(layer: keras.layers.Layer, weight: keras.Variable) -> bool:
    """Return whether a weight is added to what its layer computes: a bias, or a norm's offset."""
    return weight.name in ("bias", "beta")


def is_norm(layer: keras.layers.Layer, weight: keras.Variable) -> bool:
    """Return whether a weight is the scale or offset of a normalization, of Keras or another library."""
    return "Norm" in type(layer).__name__


def is_factor(layer: keras.layers.Layer, weight: keras.Variable) -> bool:
    """Return whether a weight is a factor of a low-rank update."""
    return weight.name.startswith("lora_")


# A name of `models.TRAINED` → whether a weight of a layer moves.
MOVES: dict[str, Callable[[keras.layers.Layer, keras.Variable], bool]] = {
    "all": lambda layer, weight: True,
    "bias": is_bias,
    "norm": is_norm,
    "bias+norm": lambda layer, weight: is_bias(layer, weight) or is_norm(layer, weight),
    "lora": is_factor,
}


def moving_weights(
    layers: Iterable[keras.layers.Layer], train: str = "all", batch_norm: str = "train"
) -> list[keras.Variable]:
    """Return the weights of layers, and of those inside them, that move in training.

    Args:
        layers: layers of the trained stages.
        train: a name of `models.TRAINED`.
        batch_norm: with `"frozen"`, `"all"` does not mean the scales and offsets of BatchNorm; the
            other kinds include them where they are of that kind. Its statistics are not weights.
    """
    found = {}
    for layer in layers:
        for inner in inner_layers(layer):
            if train == "all" and batch_norm == "frozen" and is_batch_norm(inner):
                continue
            for weight in own_weights(inner):
                if MOVES[train](inner, weight):
                    found[id(weight)] = weight
    return list(found.values())


def is_batch_norm(layer: keras.layers.Layer) -> bool:
    """Return whether a layer has statistics of batches."""
    return isinstance(layer, keras.layers.BatchNormalization)


def undecayed(layers: Iterable[keras.layers.Layer]) -> set[int]:
    """Return the ids of weights without weight decay: biases, scales and offsets of any shape.

    In an attention layer, a bias has an axis of heads.
    """
    return {
        id(weight)
        for layer in layers
        for inner in inner_layers(layer)
        for weight in own_weights(inner)
        if len(weight.shape) < 2 or is_bias(inner, weight) or is_norm(inner, weight)
    }
