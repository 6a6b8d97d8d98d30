"""Differences between Keras versions, and the Keras internals that have no public name.

This is the only module that touches `keras.src`, an underscored attribute of a graph, or TensorFlow's
context. Each entry
names the versions it is for, so that it can be deleted when those are no longer supported.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import keras
from keras.src.backend.common import global_state  # 3.12 to 3.16: no public name
from keras.src.backend.common.variables import AutocastScope  # 3.12 to 3.16: no public name
from keras.src.random.seed_generator import global_seed_generator  # 3.12 to 3.16: no public name
from keras.src.saving import saving_lib  # 3.12 to 3.16: see `remember_saved_attributes`

__all__ = [
    "OPTIMIZER_WRAPPERS",
    "first_node",
    "full_precision",
    "global_seed_generator",
    "inner_layers",
    "keras_state",
    "low_rank_parts",
    "nodes_of",
    "own_weights",
    "producer",
    "redirect_draws",
    "redirect_global_draws",
    "remember_saved_attributes",
    "remove_low_rank",
    "tensorflow_seed",
]

# Optimizers around optimizers. `MultiOptimizer` is new in Keras 3.15.
OPTIMIZER_WRAPPERS: tuple[type, ...] = tuple(
    getattr(keras.optimizers, name)
    for name in ("LossScaleOptimizer", "MultiOptimizer")
    if hasattr(keras.optimizers, name)
)


def full_precision() -> AutocastScope:
    """Return a context in which variables are read unrounded, whatever the outer model's policy."""
    return AutocastScope(None)


def remember_saved_attributes() -> None:
    """Let Keras find the names of a layer's own attributes, which it lists once for each layer otherwise.

    Keras (3.12 to 3.16) makes a layer to list them whenever it saves or loads one, as it remembers the list
    under another name than it looks for: a seventh of the time to load a model.
    """
    name, listed = "saving_attr_skiplist_Layer", getattr(saving_lib, "get_attr_skipset", None)
    if listed and global_state.get_global_attribute(name) is None:
        global_state.set_global_attribute(name, listed("Layer"))


def nodes_of(model: keras.Model) -> Iterator:
    """Yield the nodes of a functional model's graph (one call of one operation each), inputs first.

    `keras.utils.plot_model` draws from the same table; no public function returns it.
    """
    by_depth = model._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        yield from by_depth[depth]


def producer(tensor: keras.KerasTensor):
    """Return the node that computes a symbolic tensor."""
    operation, index, _ = tensor._keras_history
    return operation._inbound_nodes[index]


def first_node(layer: keras.layers.Layer):
    """Return the node of a layer's first call, which is the one in the model that it is built in."""
    return layer._inbound_nodes[0]


def inner_layers(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """Yield a layer and the layers inside it, at any depth (3.12 to 3.16: no public name)."""
    yield from layer._flatten_layers()


def own_weights(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Return the weights of a layer that can be trained, without those of the layers inside it.

    `layer.trainable_weights` contains both, and only those that train now.
    """
    return list(layer._trainable_variables)


def low_rank_parts(layer: keras.layers.Layer) -> tuple:
    """Return the matrix of a layer after `enable_lora` and the two factors of its update.

    `layer.kernel` is their sum, rounded to the compute dtype (3.12 to 3.16).
    """
    name = "embeddings" if isinstance(layer, keras.layers.Embedding) else "kernel"
    factors = (getattr(layer, f"lora_{name}_{part}") for part in "ab")
    return getattr(layer, f"_{name}"), *factors


def remove_low_rank(layer: keras.layers.Layer) -> None:
    """Undo `enable_lora`, which has no public counterpart (3.12 to 3.16); the update is lost."""
    matrix, *factors = low_rank_parts(layer)
    for factor in factors:
        layer._untrack_variable(factor)
    layer.lora_enabled = False
    layer.lora_rank = layer.lora_alpha = None
    matrix.trainable = layer.trainable


def redirect_draws(layer: keras.layers.Layer, draw: Callable) -> None:
    """Make a layer, and those inside it, take every seed from `draw(ordered=True)`, permanently."""
    for inner in inner_layers(layer):
        for generator in inner._seed_generators:
            generator.next = draw
        if hasattr(inner, "_get_seed_generator"):
            # Layers for tf.data create another generator if Keras runs on another backend.
            inner._get_seed_generator = lambda backend=None, own=inner: own.generator


def redirect_global_draws(generator) -> None:
    """Make `generator.next` answer for Keras's global generator; use it inside `keras_state`."""
    global_state.set_global_attribute("global_seed_generator", generator)


@contextmanager
def keras_state() -> Iterator[None]:
    """Restore Keras's global state at the end: seeds, dtype policy, counters of names.

    `keras.backend.clear_session` would leave the defaults (3.12 to 3.16: no public name).
    """
    before = dict(vars(global_state.GLOBAL_STATE_TRACKER))
    try:
        yield
    finally:
        state = vars(global_state.GLOBAL_STATE_TRACKER)
        state.clear()
        state.update(before)


@contextmanager
def tensorflow_seed() -> Iterator[None]:
    """Restore the seed of TensorFlow's eager operations, and how many were drawn from it.

    `tf.random.set_seed` is public, but reading the seed is not (2.19 to 2.21).
    """
    if "tensorflow" not in sys.modules:  # Keras runs on another backend
        yield
        return
    from tensorflow.python.eager import context

    state = vars(context.context())
    before = {name: state[name] for name in ("_seed", "_rng") if name in state}
    try:
        yield
    finally:
        for name in ("_seed", "_rng"):  # `_rng` exists once a seed was set
            state.pop(name, None)
        state.update(before)
