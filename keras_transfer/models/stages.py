"""The stages of a backbone, found from its layer graph, and the `Backbone` model that has them.

A backbone is a chain of stages that touch at exactly one tensor. Such a tensor is an articulation
point of the layer graph: every path from the images to the features runs through it. Freezing,
cutting and rates all speak of stages, so every cut is a real cut.
"""

import weakref
from dataclasses import dataclass

import keras
import numpy as np


@dataclass(frozen=True)
class Stage:
    """One link of the chain.

    Attributes:
        index: position in the chain, 0 is nearest to the image.
        name: name of the stage's last layer that has weights.
        layers: the `keras.layers.Layer`s of the stage, in the order they are computed.
        output: the one `KerasTensor` that later stages see.
    """

    index: int
    name: str
    layers: tuple
    output: keras.KerasTensor


# Layers with weights that do not mix channels. A stage needs one layer that does: a stage of
# nothing but a normalisation or a depthwise convolution would be half of its neighbour.
_NOT_MIXING = (keras.layers.DepthwiseConv2D,)


def find_stages(model: keras.Model) -> list[Stage]:
    """The stages of a functional model with one input and one output, in order.

    The graph is cut at its articulation points. Of these, a cut is kept when it separates two
    parts that each hold a channel-mixing layer (normalisation, activation, padding and pooling
    belong to what precedes them, a depthwise convolution to what follows), and when the tensor
    there is no wider than the next kept one: a wide tensor that is narrowed again lies inside an
    inverted bottleneck or before a transition, not between two blocks.

    Raises:
        ValueError: the model has several inputs or outputs, or is no functional model.
    """
    if not getattr(model, "inputs", None) or len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(f"Stages need a functional model with one input and one output: {model}")
    stages = []
    for index, piece in enumerate(_without_wide_cuts(_grouped(chain(model)))):
        layers = tuple(
            node.operation for node in piece if isinstance(node.operation, keras.layers.Layer)
        )
        named = [layer.name for layer in layers if layer.weights] or [piece[-1].operation.name]
        stages.append(Stage(index, named[-1], layers, piece[-1].output_tensors[0]))
    return stages


def chain(model: keras.Model) -> list[list]:
    """The graph's nodes (one call of one operation each), cut after each articulation point.

    In a graph with one input and one output every node lies on a path between them, so each node
    comes before or after an articulation point in any topological order: a node is one exactly
    when no edge jumps over it.
    """
    by_depth = model._nodes_by_depth  # the same table that keras.utils.plot_model draws from
    nodes = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    producer = {id(t): i for i, node in enumerate(nodes) for t in node.output_tensors}
    last_use = list(range(len(nodes)))
    for i, node in enumerate(nodes):
        for tensor in () if node.is_input else node.input_tensors:
            source = producer[id(tensor)]
            last_use[source] = max(last_use[source], i)
    pieces, start, reach = [], 0, -1
    for i in range(len(nodes)):
        if reach <= i and len(nodes[i].output_tensors) == 1:
            pieces.append(nodes[start : i + 1])
            start = i + 1
        reach = max(reach, last_use[i])
    return pieces


def _has_kernel(piece):
    """True where a piece has a weight matrix; the vectors of a normalisation are none."""
    return any(len(w.shape) > 1 for node in piece for w in _weights(node.operation))


def _mixes(piece):
    return any(
        not isinstance(node.operation, _NOT_MIXING)
        and any(len(w.shape) > 1 for w in _weights(node.operation))
        for node in piece
    )


def _weights(operation):
    return getattr(operation, "weights", ())


def _grouped(pieces):
    """Joins pieces until each group has a channel-mixing layer and all that trails it."""
    groups, current = [], []
    for piece in pieces:
        if current and _mixes(current) and _has_kernel(piece):
            groups.append(current)
            current = []
        current = current + piece
    if groups and not _mixes(current):
        groups[-1] = groups[-1] + current
    else:
        groups.append(current)
    return groups


def _without_wide_cuts(groups):
    """Joins a group to the next where its output is wider than the next kept output."""
    kept = [groups[-1]]
    for group in reversed(groups[:-1]):
        channels, limit = (g[-1].output_tensors[0].shape[-1] for g in (group, kept[0]))
        if channels > limit:
            kept[0] = group + kept[0]
        else:
            kept.insert(0, group)
    return kept


# Stages and cut models are kept outside of the model: as attributes Keras would track and save
# their layers a second time.
_stages: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_splits: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@keras.saving.register_keras_serializable("keras_transfer")
class Backbone(keras.Model):
    """A functional model (images in, features out) that knows its stages.

    Images are RGB, float or uint8 [N, H, W, 3] with values 0–255; the family's normalisation is
    the first layer inside. Features are float [N, D], or [N, h, w, D] when built without pooling.

    It is used like any functional model, with one difference: leading stages whose layers all have
    `trainable=False` run in inference mode (BatchNorm statistics, Dropout, StochasticDepth)
    whatever `training` the call says. Keras alone freezes only BatchNorm so, and overrides a
    `training=False` given when the model was built (keras issue 20285).

    After `import keras_transfer.models.stages` (or through `keras_transfer.load_model`), a model that
    contains a backbone is loaded by `keras.saving.load_model` with safe mode on.
    """

    def __init__(self, inputs, outputs, name=None, **kwargs):
        # The signature of keras.Model: with another one Keras could not save the graph.
        super().__init__(inputs=inputs, outputs=outputs, name=name, **kwargs)

    @property
    def stages(self) -> list[Stage]:
        """The stages, from the image upwards."""
        if self not in _stages:
            _stages[self] = find_stages(self)
        return _stages[self]

    @property
    def frozen_stages(self) -> int:
        """How many leading stages have no trainable layer."""
        for stage in self.stages:
            # An input layer has nothing to train, and Keras forgets its flag in saving.
            if any(x.trainable for x in stage.layers if not isinstance(x, keras.layers.InputLayer)):
                return stage.index
        return len(self.stages)

    def split(self, k: int) -> tuple[keras.Model, keras.Model]:
        """(prefix, suffix): the first `k` stages and the rest, on shared weights.

        `suffix(prefix(x))` equals the whole to float rounding.

        Raises:
            ValueError: `k` is not between 1 and the number of stages minus 1.
        """
        if not 0 < k < len(self.stages):
            raise ValueError(
                f"{self.name} has {len(self.stages)} stages; it splits after 1 to "
                f"{len(self.stages) - 1} of them, not after {k}."
            )
        splits = _splits.setdefault(self, {})
        if k not in splits:
            cut = self.stages[k - 1].output
            splits[k] = (
                keras.Model(self.inputs[0], cut, name=f"{self.name}_first_{k}"),
                keras.Model(cut, self.outputs[0], name=f"{self.name}_after_{k}"),
            )
        return splits[k]

    def call(self, inputs, training=None, mask=None):
        frozen = self.frozen_stages if training else 0
        if frozen == 0:
            return super().call(inputs, training=training, mask=mask)
        if frozen == len(self.stages):
            return super().call(inputs, training=False, mask=mask)
        prefix, suffix = self.split(frozen)
        return suffix(prefix(inputs, training=False), training=training)


def batch_norms(part: "keras.Model | Stage") -> list:
    """The BatchNorm layers among the layers of a model or stage, in their order.

    Those of a layer that is a model itself are not among them: of a model of `build_model` they are
    those of its heads.
    """
    return [x for x in part.layers if isinstance(x, keras.layers.BatchNormalization)]


def is_untrained(backbone: keras.Model) -> bool:
    """Return True if the weights are random, because no BatchNorm layer has seen an example.

    Without BatchNorm layers this cannot be told, and the answer is False.
    """
    means = [keras.ops.convert_to_numpy(norm.moving_mean) for norm in batch_norms(backbone)]
    return bool(means) and not any(map(np.any, means))


def clone_with(model: keras.Model, inputs, call) -> keras.KerasTensor:
    """Applies a functional model to another symbolic tensor, `call(layer, *args)` for each layer."""
    results = {}

    def recorded(layer, *args, **kwargs):
        results[layer] = call(layer, *args, **kwargs)
        return results[layer]

    # Cloning walks the graph for us; of its result only the tensors we made ourselves are used,
    # since the cloned model starts at an input of its own.
    keras.models.clone_model(
        model,
        input_tensors=inputs,
        clone_function=lambda layer: layer,
        call_function=recorded,
    )
    return results[model.outputs[0]._keras_history.operation]


def rebuild(model: keras.Model, inputs, skip=()) -> keras.KerasTensor:
    """Applies the layers of a functional model, nested models unrolled, to another tensor.

    The weights are shared. `skip` names layer classes that are left out.
    """

    def apply(layer, *args, **kwargs):
        if isinstance(layer, skip):
            return args[0]
        if isinstance(layer, keras.Sequential):
            x = args[0]
            for inner in layer.layers:
                x = apply(inner, x)
            return x
        if isinstance(layer, keras.Model) and getattr(layer, "inputs", None):
            return rebuild(layer, args[0], skip)
        return layer(*args, **kwargs)

    if isinstance(model, keras.Sequential):
        return apply(model, inputs)
    return clone_with(model, inputs, apply)
