"""What trains: from (model, what to freeze) to the weights that train and the mode of the rest."""

import contextlib
import math
from dataclasses import dataclass

import keras

from keras_transfer.errors import InputError
from keras_transfer.models import BATCH_NORM_POLICIES
from keras_transfer.models.builders import backbone_of
from keras_transfer.models.stages import Backbone, Stage, batch_norms

_QUICK = 0.9  # momentum of BatchNorm's averages


@dataclass(frozen=True)
class Frozen:
    """What `freeze` did. `print` it: it says the rounding too.

    Attributes:
        stages: number of leading stages that are frozen.
        of: number of stages of the backbone.
        layers: number of the backbone's layers in the frozen stages.
        of_layers: number of the backbone's layers.
        trainable_parameters: number of parameters of the whole model that train.
        parameters: number of parameters of the whole model.
    """

    stages: int
    of: int
    layers: int
    of_layers: int
    trainable_parameters: int
    parameters: int

    def __str__(self):
        return (
            f"frozen: {self.stages} of {self.of} stages ({self.layers} of {self.of_layers} layers);"
            f" {self.trainable_parameters:,} of {self.parameters:,} parameters train"
        )


def frozen_stages(backbone: Backbone, what) -> int:
    """The number of leading stages that `what` means, rounded down to a stage boundary.

    Args:
        backbone: the backbone that is asked about.
        what: `"all"`, `"none"`, a `Stage` (frozen up to and with it), `"stage:N"` (the first N
            stages), `"top:N"` (all but the last N stages), the name of a layer (up to and with it),
            an int (that many layers, counted as `backbone.layers[:k]`), or a float between 0 and 1
            (that share of the layers).

    Returns:
        The largest number of stages that together have no layer beyond those asked for.

    Raises:
        InputError: no such layer or stage, or a number out of range.
    """
    sizes = [len(stage.layers) for stage in backbone.stages]
    layers = [layer.name for stage in backbone.stages for layer in stage.layers]
    count = _layer_count(backbone, what, sizes, layers)
    stages = 0
    while stages < len(sizes) and sum(sizes[: stages + 1]) <= count:
        stages += 1
    return stages


def _layer_count(backbone, what, sizes, layers):
    if isinstance(what, Stage):
        what = f"stage:{what.index + 1}"
    if isinstance(what, bool) or not isinstance(what, (str, int, float)):
        raise InputError(f"Cannot freeze {what!r}: give 'all', 'none', a layer, a number or stage.")
    if isinstance(what, float):
        if not 0 <= what <= 1:
            raise InputError(f"Cannot freeze a share of {what}: give a number between 0.0 and 1.0.")
        return int(what * len(layers))
    if isinstance(what, int):
        if not 0 <= what <= len(layers):
            raise InputError(f"Cannot freeze {what} layers: {backbone.name} has {len(layers)}.")
        return what
    if what in ("all", "none"):
        return len(layers) if what == "all" else 0
    if what in layers:
        return layers.index(what) + 1
    kind, _, number = what.partition(":")
    if kind in ("stage", "top") and number.isdecimal() and int(number) <= len(sizes):
        return sum(sizes[: int(number) if kind == "stage" else len(sizes) - int(number)])
    raise InputError(
        f"Cannot freeze '{what}': {backbone.name} has no such layer; it has {len(sizes)} stages "
        f"(stage:1 to stage:{len(sizes)}). `summary(model)` lists them."
    )


def freeze(model: keras.Model, what="all", *, batch_norm: str = "frozen") -> Frozen:
    """Freezes the leading part of the backbone and sets the rest of the model to train.

    The frozen part runs in inference mode whatever `training` the model is called with. Compile
    the model afterwards: Keras reads what trains at that moment.

    Args:
        model: a model of `build_model`, or a `Backbone`.
        what: see `frozen_stages`.
        batch_norm: for the trained part of the backbone. `"frozen"` keeps BatchNorm's statistics,
            scale and offset as they were trained: right for fine-tuning on small batches.
            `"train"` trains them: right from scratch.

    Returns:
        What was done, after rounding.

    Raises:
        InputError: no such layer, stage or policy, or a model without a backbone.
    """
    if batch_norm not in BATCH_NORM_POLICIES:
        raise InputError(f"batch_norm must be one of {BATCH_NORM_POLICIES}, not {batch_norm!r}.")
    backbone = backbone_of(model)
    k = frozen_stages(backbone, what)
    # Keras passes a model's flag on to its layers only when it changes: say it to each.
    for layer in [model, *model.layers]:
        layer.trainable = True
    backbone.trainable = k < len(backbone.stages)
    for stage in backbone.stages:
        for layer in stage.layers:
            is_norm = isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = stage.index >= k and not (is_norm and batch_norm == "frozen")
    return Frozen(
        stages=k,
        of=len(backbone.stages),
        layers=sum(len(stage.layers) for stage in backbone.stages[:k]),
        of_layers=sum(len(stage.layers) for stage in backbone.stages),
        trainable_parameters=_size(model.trainable_weights),
        parameters=_size(model.weights),
    )


@contextlib.contextmanager
def quick_statistics(model: keras.Model):
    """Within it, BatchNorm's moving averages span the last ten batches or so, whatever was built.

    Momenta of `keras.applications` (0.99 to 0.999) are for hundreds of thousands of steps. After a
    thousand steps a network from scratch would still be evaluated with a third of the statistics
    that it was born with, and name one class for every image.
    """
    norms = batch_norms(backbone_of(model))
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = min(norm.momentum, _QUICK)
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum


def stage_of_weights(model: keras.Model) -> dict[int, int]:
    """id(weight) → index of its stage, for the weights of the backbone; the head's are missing."""
    stages = backbone_of(model).stages
    return {id(w): s.index for s in stages for layer in s.layers for w in layer.weights}


def summary(model: keras.Model) -> str:
    """A table of what trains: a line a stage and one for the head."""
    backbone = backbone_of(model)
    lines = [
        f"{'stage':<6}{'last layer with weights':<44}{'layers':>7}{'parameters':>13}{'train':>13}"
    ]
    weights: set[int] = set()
    trainable: set[int] = set()
    for stage in backbone.stages:
        own = [w for layer in stage.layers for w in layer.weights]
        learned = [w for layer in stage.layers for w in layer.trainable_weights]
        weights.update(map(id, own))
        trainable.update(map(id, learned))
        lines.append(
            f"{stage.index + 1:<6}{stage.name[:42]:<44}{len(stage.layers):>7}"
            f"{_size(own):>13,}{_size(learned):>13,}"
        )
    head = [w for w in model.weights if id(w) not in weights]
    head_trainable = [w for w in model.trainable_weights if id(w) not in trainable]
    if head:
        layers = len(model.layers) - 2  # without the input and the backbone
        lines.append(f"{'head':<50}{layers:>7}{_size(head):>13,}{_size(head_trainable):>13,}")
    return "\n".join(lines)


def _size(weights):
    return sum(math.prod(w.shape) for w in weights)
