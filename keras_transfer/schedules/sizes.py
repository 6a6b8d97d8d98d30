"""What a phase trains and needs: the number of moving parameters, and an estimate of its memory."""

import math

import keras

from keras_transfer.errors import InputError
from keras_transfer.models.framing import framing_of
from keras_transfer.models.low_rank import (
    factor_sizes,
    has_attention,
    is_attention,
    low_rank_layers,
    require_layers,
)
from keras_transfer.models.stages import backbone_of, parameter_count, stage_of_weights
from keras_transfer.models.trained import is_batch_norm, moving_weights
from keras_transfer.schedules.phases import Phase
from keras_transfer.utils.image_sizes import sides, size_of
from keras_transfer.utils.keras_versions import inner_layers, nodes_of

_SLOTS = 2  # of AdamW, a moment and a variance for each moving weight; few optimizers have more
_NUMBER = 4  # bytes of a weight


def attention_stages(model: keras.Model) -> int:
    """Return the number of the backbone's stages if it has attention layers, else 0.

    From it recipes derive rates and decays for transformers.
    """
    backbone = backbone_of(model)
    return len(backbone.stages) if has_attention(backbone.layers) else 0


def head_share(model: keras.Model) -> float:
    """Return the share of the rate that a head on all stages gets; 1 for one on the last stage.

    Adam moves each weight by about the rate, whatever its gradient. The logits thus move by the rate
    times the sum of the features, and ten times as far with ten times the features. The head
    therefore gets the share of its features that come from the last stages (a rate ∝ 1/width:
    arXiv:2203.03466).
    """
    backbone = backbone_of(model)
    if not backbone.cuts.tapped:
        return 1.0
    return len(backbone.cuts.last_columns()) / backbone.output_shape[-1]


def trained_layers(model: keras.Model, frozen: int) -> list[keras.layers.Layer]:
    """Return the layers of the backbone's stages after the frozen ones."""
    return [layer for stage in backbone_of(model).stages[frozen:] for layer in stage.layers]


def updated_by(model: keras.Model, phase: Phase, frozen: int) -> list[keras.layers.Layer]:
    """Return the layers to which a phase adds low-rank updates.

    Raises:
        InputError: none of the trained stages' layers can have one.
    """
    if phase.train != "lora":
        return []
    layers = trained_layers(model, frozen)
    found = low_rank_layers(layers, phase.lora_layers)
    if layers:
        require_layers(found, phase.lora_layers, f"Phase '{phase.name}'")
    return found


def moving_parameters(model: keras.Model, phase: Phase, frozen: int) -> int:
    """Return the number of parameters that move in a phase, those of the head included.

    Raises:
        InputError: stages are to train, but they have no weights of the phase's kind.
    """
    in_stages = stage_of_weights(model)
    heads = [layer for layer in model.layers if layer is not backbone_of(model)]
    count = parameter_count(w for w in moving_weights(heads) if id(w) not in in_stages)
    if phase.train == "lora":
        return count + factor_sizes(updated_by(model, phase, frozen), phase.lora_rank)
    layers = trained_layers(model, frozen)
    moving = moving_weights(layers, phase.train, phase.batch_norm)
    if layers and not moving and phase.train != "all":
        raise InputError(
            f"Phase '{phase.name}': the trained stages have no weights of the kind '{phase.train}'."
        )
    return count + parameter_count(moving)


def memory_of(
    model: keras.Model, phase: Phase, frozen: int, batch_size: int, image_size: int | str | None
) -> int:
    """Return about how many bytes a phase needs besides the program: an estimate.

    Weights; for each that moves a gradient, two moments, and its average and anchor where the phase
    has them; and the activations of the trained stages, which the backward pass reads.
    """
    moving = moving_parameters(model, phase, frozen)
    extra = 1 + _SLOTS + bool(phase.ema) + bool(phase.l2_sp) + (phase.accumulate > 1)
    weights = parameter_count(model.weights) + moving * extra
    size = size_of(model.input_shape)
    scale = math.prod(sides(image_size)) / math.prod(sides(size)) if image_size and size else 1
    wide = _NUMBER if model.dtype_policy.compute_dtype == "float32" else _NUMBER // 2
    tokens = framing_of(model).size or 1  # of the longest text
    activations = _activations(model, frozen, tokens, folded=phase.batch_norm == "frozen")
    return int(_NUMBER * weights + wide * batch_size * scale * activations)


def _activations(model, frozen, tokens, folded):
    """Return about the number of activations of one example in the trained stages.

    Args:
        tokens: stands for a size that is open.
        folded: BatchNorm is computed inside the convolutions, see `models.acceleration.folded`.
    """
    layers = trained_layers(model, frozen)
    trained = {id(layer) for layer in layers if not (folded and is_batch_norm(layer))}
    total = 0
    for node in nodes_of(backbone_of(model)):
        if id(node.operation) in trained:
            shape = [size or tokens for size in node.output_tensors[0].shape[1:]]
            total += math.prod(shape) + _inside(node.operation, shape)
    return total


def _inside(layer, shape):
    """Return about the activations inside a layer that contains others, by its matrices and heads.

    What a matrix yields, and each row of scores, passes through about one more operation.
    """
    positions, total = math.prod(shape[:-1]), 0
    for inner in inner_layers(layer):
        if inner is not layer and isinstance(inner, keras.layers.Dense | keras.layers.EinsumDense):
            total += 2 * (positions * math.prod(inner.weights[0].shape) // shape[-1])
        if is_attention(inner):
            heads = getattr(inner, "num_heads", None) or getattr(inner, "_num_heads", 1)
            total += 4 * heads * positions**2
    return total
