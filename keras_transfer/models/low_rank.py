"""Low-rank updates of weight matrices: W + (alpha / rank)·A·B, of which only A and B move.

LoRA (arXiv:2106.09685), with the factors that Keras's own layers make. They exist while a phase
trains: at its end they are added to the matrices, so that the model which is saved, exported, cut,
cached or trained further is the plain one.
"""

import math
import re
from collections.abc import Iterable, Iterator

import keras
import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.models import LOW_RANK
from keras_transfer.utils.keras_versions import inner_layers, low_rank_parts, remove_low_rank

_DENSE = (keras.layers.Dense, keras.layers.EinsumDense)
_CONV = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
# A name of `models.LOW_RANK` → (classes of layers, whether only those inside an attention layer).
_KINDS = {
    "attention": (_DENSE, True),
    "dense": (_DENSE, False),
    "conv": (_CONV, False),
    "embedding": ((keras.layers.Embedding,), False),
}


def is_attention(layer: keras.layers.Layer) -> bool:
    """Return whether a layer is an attention layer, of Keras or another library."""
    return "Attention" in type(layer).__name__


def has_attention(layers: Iterable[keras.layers.Layer]) -> bool:
    """Return whether some layers are attention layers or contain one, as a transformer's do."""
    return any(is_attention(inner) for layer in layers for inner in inner_layers(layer))


def low_rank_layers(layers: Iterable[keras.layers.Layer], which: str) -> list[keras.layers.Layer]:
    """Return the layers, also those inside others, that get a low-rank update.

    Args:
        layers: layers of the trained stages.
        which: names of `models.LOW_RANK` joined by `+`, or a regular expression that is searched in
            the paths of the layers' weights, such as `"query|value"`.
    """
    names = which.split("+")
    if set(names) <= set(LOW_RANK):
        wanted = [_KINDS[name] for name in names]
    else:
        wanted = [(kinds, False) for kinds, attention in _KINDS.values() if not attention]
    found = {}
    for layer in layers:
        inside = {
            id(inner)
            for outer in inner_layers(layer)
            if is_attention(outer)
            for inner in inner_layers(outer)
        }
        for inner in inner_layers(layer):
            of_kind = any(
                isinstance(inner, kinds) and (id(inner) in inside or not attention)
                for kinds, attention in wanted
            )
            if of_kind and _can_be_updated(inner) and _named(inner, which, names):
                found[id(inner)] = inner
    return list(found.values())


def _can_be_updated(layer):
    if getattr(layer, "groups", 1) > 1:
        return False  # a depthwise convolution, in some families
    names = ("kernel_constraint", "embeddings_constraint", "quantization_mode")
    return not any(getattr(layer, name, None) for name in names)


def _named(layer, which, names):
    """Return whether a pattern is found in the layer's path; names of kinds fit every path."""
    return set(names) <= set(LOW_RANK) or bool(re.search(which, layer.weights[0].path))


def factor_sizes(layers: Iterable[keras.layers.Layer], rank: int) -> int:
    """Return the number of parameters of the factors that `add_low_rank` would make."""
    shapes = [layer.weights[0].shape for layer in layers]
    return sum(rank * (math.prod(shape[:-1]) + shape[-1]) for shape in shapes)


def add_low_rank(layers: list[keras.layers.Layer], rank: int, alpha: float, seed) -> None:
    """Add A and B to layers, in whose matrices nothing moves any more; B is zero.

    Args:
        rank: number of columns of A and rows of B, ≥ 1.
        alpha: strength of the update; the product of the factors is multiplied by alpha / rank.
        seed: whole numbers from which A is drawn.
    """
    draws = np.random.SeedSequence(seed).generate_state(len(layers)) >> 1  # 31 bits
    for layer, draw in zip(layers, draws):
        initializer = keras.initializers.HeUniform(seed=int(draw))
        layer.enable_lora(rank, lora_alpha=alpha, a_initializer=initializer)


def updated_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yield the layers of a model that have a low-rank update now, each once."""
    for layer in inner_layers(model):
        if getattr(layer, "lora_enabled", False):
            yield layer


def factors_of(model: keras.Model) -> list[keras.Variable]:
    """Return the factors of all low-rank updates of a model."""
    return [factor for layer in updated_layers(model) for factor in low_rank_parts(layer)[1:]]


def plain_variables(model: keras.Model) -> list[keras.Variable]:
    """Return the variables of a model without its factors, in the order of the model without them."""
    factors = {id(factor) for factor in factors_of(model)}
    return [variable for variable in model.variables if id(variable) not in factors]


def merged_values(model: keras.Model) -> list[np.ndarray]:
    """Return the values that `plain_variables` would have after `merge`."""
    sums = {id(low_rank_parts(layer)[0]): _sum(layer) for layer in updated_layers(model)}
    return [
        sums[id(variable)] if id(variable) in sums else keras.ops.convert_to_numpy(variable)
        for variable in plain_variables(model)
    ]


def _sum(layer):
    matrix, a, b = map(keras.ops.convert_to_numpy, low_rank_parts(layer))
    return (matrix + layer.lora_alpha / layer.lora_rank * (a @ b)).astype(matrix.dtype)


def merge(model: keras.Model) -> None:
    """Add all low-rank updates to their matrices and remove them: the same function, a plain model."""
    for layer in list(updated_layers(model)):
        matrix, _, b = low_rank_parts(layer)
        matrix.assign(_sum(layer))
        b.assign(
            np.zeros(b.shape, "float32")
        )  # graphs that were traced before add the factors still
        remove_low_rank(layer)


def clear_updates(model: keras.Model) -> None:
    """Make the low-rank updates of a model zero, so that its matrices alone count."""
    for layer in updated_layers(model):
        b = low_rank_parts(layer)[2]
        b.assign(np.zeros(b.shape, "float32"))


def require_layers(layers: list, which: str, where: str) -> None:
    """Raise InputError if no layer gets an update."""
    if not layers:
        raise InputError(
            f"{where}: lora_layers {which!r} fits no layer of the trained stages; choose from "
            f"{', '.join(LOW_RANK)}, several joined by +, or a pattern such as 'query|value'."
        )
