"""The layer graph of a functional model: its stages, and the same layers on another input.

A backbone is a chain of stages; one tensor flows from each stage to the next. Such a tensor is an
articulation point of the layer graph: every path from the input to the features passes through it.
"""

from collections import Counter
from dataclasses import dataclass

import keras

from keras_transfer.utils.keras_versions import nodes_of, producer


@dataclass(frozen=True)
class Stage:
    """One link of the chain.

    Attributes:
        index: position in the chain; 0 is nearest to the input.
        name: name of the stage's last layer that has weights.
        layers: the `keras.layers.Layer`s of the stage, in the order in which they are computed.
        output: the one `KerasTensor` that later stages read.
    """

    index: int
    name: str
    layers: tuple
    output: keras.KerasTensor


def find_stages(model: keras.Model) -> list[Stage]:
    """Return the stages of a functional model with one input and one output, in order.

    The graph is cut at its articulation points. A cut remains if it separates two parts that each
    contain a channel-mixing layer (normalization, activation, padding and pooling belong to the
    layer before them, a depthwise convolution to the layer after it), and if the tensor is no wider
    than that of the next remaining cut: a wide tensor that is narrowed again lies inside an inverted
    bottleneck or before a transition, not between two blocks.

    Raises:
        ValueError: the model is not functional, or has several inputs or outputs.
    """
    if not getattr(model, "inputs", None) or len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(f"Stages need a functional model with one input and one output: {model}")
    stages = []
    for index, piece in enumerate(_without_wide_cuts(_grouped(chain(model)))):
        operations = dict.fromkeys(node.operation for node in piece)  # each once
        layers = tuple(x for x in operations if isinstance(x, keras.layers.Layer))
        names = [layer.name for layer in layers if layer.weights] or [piece[-1].operation.name]
        stages.append(Stage(index, names[-1], layers, piece[-1].output_tensors[0]))
    return stages


def chain(model: keras.Model) -> list[list]:
    """Return the graph's nodes (one call of one operation each), cut after each articulation point.

    In a graph with one input and one output, every node lies on a path between them, so it comes
    before or after an articulation point in any topological order: a node is an articulation point
    exactly if no edge jumps over it. Between two calls of one layer nothing is cut either, because the
    layer belongs to one stage.
    """
    nodes = list(nodes_of(model))
    producer_of = {id(t): i for i, node in enumerate(nodes) for t in node.output_tensors}
    last_use = list(range(len(nodes)))
    for i, node in enumerate(nodes):
        for tensor in () if node.is_input else node.input_tensors:
            source = producer_of[id(tensor)]
            last_use[source] = max(last_use[source], i)
    last_call = {id(node.operation): i for i, node in enumerate(nodes)}
    pieces, start, reach = [], 0, -1
    for i in range(len(nodes)):
        reach = max(reach, last_call[id(nodes[i].operation)])
        if reach <= i and len(nodes[i].output_tensors) == 1:
            pieces.append(nodes[start : i + 1])
            start = i + 1
        reach = max(reach, last_use[i])
    return pieces


def _has_matrix(piece, without=()):
    """Return whether a piece has a weight matrix, leaving out layers of some classes."""
    return any(
        len(weight.shape) > 1
        for node in piece
        if not isinstance(node.operation, without)
        for weight in getattr(node.operation, "weights", ())
    )


def _mixes_channels(piece):
    # A normalization or a depthwise convolution alone would be half of the neighboring stage.
    return _has_matrix(piece, without=keras.layers.DepthwiseConv2D)


def _grouped(pieces):
    """Join pieces until each group has a channel-mixing layer and everything that trails it."""
    groups, current = [], []
    for piece in pieces:
        if current and _mixes_channels(current) and _has_matrix(piece):
            groups.append(current)
            current = []
        current = current + piece
    if groups and not _mixes_channels(current):
        groups[-1] = groups[-1] + current
    else:
        groups.append(current)
    return groups


def _without_wide_cuts(groups):
    """Join a group to the next if its output is wider than the next remaining output."""
    joined = [groups[-1]]
    for group in reversed(groups[:-1]):
        channels, limit = (g[-1].output_tensors[0].shape[-1] for g in (group, joined[0]))
        if channels > limit:
            joined[0] = group + joined[0]
        else:
            joined.insert(0, group)
    return joined


def clone_with(model: keras.Model, inputs, call):
    """Apply a functional model to another symbolic tensor, by `call(layer, *args)` for each layer.

    Returns:
        The output, or a list of them if the model was made with a list.
    """
    results = {}

    def recorded(layer, *args, **kwargs):
        results[layer] = call(layer, *args, **kwargs)
        return results[layer]

    # Cloning walks the graph for us. Only the tensors made by `call` are used, because the cloned
    # model starts at an input of its own.
    keras.models.clone_model(
        model, input_tensors=inputs, clone_function=lambda layer: layer, call_function=recorded
    )
    return keras.tree.map_structure(
        lambda tensor: results[producer(tensor).operation], model.output
    )


def rebuild(model: keras.Model, inputs, skip=()) -> keras.KerasTensor:
    """Apply the layers of a functional model to another tensor, with nested models unrolled.

    The weights are shared. Layers of the classes in `skip` are left out. A layer without weights that is
    called more than once, such as one activation for the whole network, is copied, so that each stage
    has its own.
    """
    calls: Counter = Counter()

    def apply(layer, *args, **kwargs):
        if isinstance(layer, skip):
            return args[0]
        if isinstance(layer, keras.Sequential):
            x = args[0]
            for inner in layer.layers:
                x = apply(inner, x)
            return x
        if isinstance(layer, keras.Model) and getattr(layer, "inputs", None):
            return clone_with(layer, args[0], apply)
        calls[layer] += 1
        if calls[layer] > 1 and _can_be_copied(layer):
            config = {**layer.get_config(), "name": f"{layer.name}_call_{calls[layer]}"}
            layer = type(layer).from_config(config)
        return layer(*args, **kwargs)

    if isinstance(model, keras.Sequential):
        return apply(model, inputs)
    return clone_with(model, inputs, apply)


def _can_be_copied(layer) -> bool:
    plain = isinstance(layer, keras.layers.Layer) and not isinstance(layer, keras.Model)
    # The code of a Lambda layer cannot be read back in Keras's safe mode.
    return plain and not layer.weights and not isinstance(layer, keras.layers.Lambda)
