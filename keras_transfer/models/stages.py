"""The backbone: a model that knows its stages, and what of them is frozen.

Freezing, cutting and learning rates all refer to stages, so every cut is a real cut.
"""

import contextlib
import math
import weakref
from dataclasses import dataclass

import keras
import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.modalities import Framing, framing_from
from keras_transfer.models import BATCH_NORM_POLICIES, TRAINED
from keras_transfer.models.graph import Stage
from keras_transfer.models.taps import Cuts
from keras_transfer.models.trained import is_batch_norm, moving_weights
from keras_transfer.utils.keras_versions import inner_layers, own_weights

_QUICK = 0.9  # momentum of moving averages, see `quick_statistics`


# Outside the model: Keras would track attributes, and save their layers a second time.
_cuts: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_parts: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@keras.saving.register_keras_serializable("keras_transfer")
class Backbone(keras.Model):
    """A functional model (images in, features out) that knows its stages.

    Images are RGB, float or uint8 [N, H, W, 3] with values 0–255; the family's normalization is
    the first layer inside. Features are float [N, D], or [N, h, w, D] if built without pooling.

    It works like any functional model, with one difference: leading stages whose layers all have
    `trainable=False` run in inference mode (BatchNorm statistics, Dropout, StochasticDepth)
    regardless of `training` in the call. Keras itself does this only for BatchNorm, and overrides a
    `training=False` given when the model was built (keras issue 20285).

    After `import keras_transfer.models.stages` (or with `keras_transfer.load_model`),
    `keras.saving.load_model` loads a model that contains a backbone with safe mode on.

    Attributes:
        framing: how examples become its inputs (the size is that of the input); None until the data
            of the first training decides, see `models.framing.settle_framing`.
        seen: digest of the validation examples that a refit has trained on (`Examples.digest`), or None.
    """

    def __init__(
        self,
        inputs,
        outputs,
        name=None,
        *,
        framing: Framing | None = None,
        seen: str | None = None,
        **kwargs,
    ):
        super().__init__(inputs=inputs, outputs=outputs, name=name, **kwargs)
        self.framing, self.seen = framing, seen

    # Keras 3.13 neither saves nor rebuilds the graph of a subclass, so a plain model does both.

    def get_config(self):
        plain = keras.Model(self.inputs[0], self.outputs[0], name=self.name)
        framing = self.framing and self.framing.to_dict()
        seen = {"seen": self.seen} if self.seen else {}
        return {**plain.get_config(), "trainable": self.trainable, "framing": framing, **seen}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        # 0.1 recorded nothing, as it had images and one crop.
        crop = {"crop": config.pop("crop")} if "crop" in config else {}
        framing, seen = config.pop("framing", crop), config.pop("seen", None)
        plain = keras.Model.from_config(config, custom_objects=custom_objects)
        names = {"name": plain.name, "trainable": plain.trainable}
        framing = None if framing is None else framing_from(framing)
        return cls(plain.inputs[0], plain.outputs[0], **names, framing=framing, seen=seen)

    def with_framing(self, framing: Framing) -> "Backbone":
        """Return a backbone of the same layers whose examples are framed otherwise."""
        return Backbone(self.inputs[0], self.outputs[0], name=self.name, framing=framing)

    @property
    def cuts(self) -> Cuts:
        """What is known about the graph: its stages, branches and taps."""
        if self not in _cuts:
            _cuts[self] = Cuts(self)
        return _cuts[self]

    @property
    def stages(self) -> list[Stage]:
        """The stages, starting at the input; those of several networks side by side."""
        return self.cuts.stages

    @property
    def frozen_stages(self) -> int:
        """Number of leading stages without a trainable layer."""
        for stage in self.stages:
            # An input layer has nothing to train, and Keras does not save its flag.
            if any(x.trainable for x in stage.layers if not isinstance(x, keras.layers.InputLayer)):
                return stage.index
        return len(self.stages)

    def split(self, k: int) -> tuple[keras.Model, keras.Model]:
        """Return (prefix, suffix): the first `k` stages and the rest, on shared weights.

        `suffix(prefix(x))` equals the whole up to float rounding.

        Raises:
            ValueError: `k` is not between 1 and the number of stages minus 1.
        """
        if not 0 < k < len(self.stages):
            raise ValueError(
                f"{self.name} has {len(self.stages)} stages; it splits after 1 to "
                f"{len(self.stages) - 1} of them, not after {k}."
            )
        return self.between(0, k), self.between(k, len(self.stages))

    def between(self, first: int, last: int) -> keras.Model:
        """Return the part from the cut after `first` stages (0: the images) to that after `last`.

        One tensor flows through a cut: the stage's output, or with taps [N, D], which contains the
        hidden tensors and the taps before the cut.
        """
        parts = _parts.setdefault(self, {})
        if (first, last) not in parts:
            name = f"{self.name}_{first}_to_{last}"
            parts[first, last] = keras.Model(*self.cuts.between(first, last), name=name)
        return parts[first, last]

    def call(self, inputs, training=None, mask=None):
        frozen = self.frozen_stages if training else 0
        if frozen == 0:
            return super().call(inputs, training=training, mask=mask)
        if frozen == len(self.stages):
            return super().call(inputs, training=False, mask=mask)
        prefix, suffix = self.split(frozen)
        return suffix(prefix(inputs, training=False), training=training)


def backbone_of(model: keras.Model) -> Backbone:
    """Return the backbone inside a model from `build_model` (or the model itself, if it is one).

    Raises:
        InputError: the model has no backbone, or is something else, such as a run.
    """
    require_model(model)
    for layer in [model, *model.layers]:
        if isinstance(layer, Backbone):
            return layer
    raise InputError(
        f"The model '{model.name}' has no keras_transfer backbone: build it with build_model, or "
        "take its backbone with backbone_from_model."
    )


def require_model(model) -> None:
    """Raise InputError if something else than a Keras model was passed, such as a run or its path."""
    if not isinstance(model, keras.Model):
        raise InputError(
            f"This needs a Keras model, not {model!r}: load that of a run with load_model(PATH)."
        )


def batch_norms(part: "keras.Model | Stage") -> list:
    """Return the BatchNorm layers of a model or stage, in order; nested models are not searched."""
    return [x for x in part.layers if isinstance(x, keras.layers.BatchNormalization)]


def norms_of(model: keras.Model, frozen: int = 0) -> list:
    """Return the BatchNorm layers of the stages after the frozen ones, and of the heads."""
    parts = [*backbone_of(model).stages[frozen:], model]
    return [norm for part in parts for norm in batch_norms(part)]


def is_untrained(backbone: keras.Model) -> bool:
    """Return True if the weights are random, because no BatchNorm layer has seen an example.

    Without BatchNorm layers this cannot be determined, and the answer is False.
    """
    means = [keras.ops.convert_to_numpy(norm.moving_mean) for norm in batch_norms(backbone)]
    return bool(means) and not any(map(np.any, means))


# -- freezing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frozen:
    """Result of `freeze`, after rounding to a stage boundary. Print it for a one-line summary.

    Attributes:
        stages: number of leading stages that are frozen.
        of: number of stages of the backbone.
        layers: number of the backbone's layers in the frozen stages.
        of_layers: number of the backbone's layers.
        trainable_parameters: number of trainable parameters of the whole model.
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
    """Return the number of leading stages to freeze, rounded down to a stage boundary.

    Args:
        backbone: the backbone.
        what: `"all"`, `"none"`, a `Stage` (up to and including it), `"stage:N"` (the first N
            stages), `"top:N"` (all but the last N stages), the name of a layer (up to and including
            it), an int (that many layers, counted as in `backbone.layers[:k]`), or a float between
            0 and 1 (that share of the layers).

    Returns:
        The largest number of stages that together contain no layer beyond `what`.

    Raises:
        InputError: unknown layer or stage, or a number out of range.
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
        raise InputError(
            f"Cannot freeze {what!r}: pass 'all', 'none', a layer, a stage or a number."
        )
    if isinstance(what, float):
        if not 0 <= what <= 1:
            raise InputError(f"Cannot freeze a share of {what}: it must be between 0.0 and 1.0.")
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


def freeze(
    model: keras.Model, what="all", *, batch_norm: str = "frozen", train: str = "all"
) -> Frozen:
    """Freeze the leading part of the backbone and make the rest of the model trainable.

    The frozen part runs in inference mode regardless of `training` in calls of the model. Compile
    the model afterwards, because Keras reads then which weights are trainable.

    Args:
        model: a model from `build_model`, or a `Backbone`.
        what: see `frozen_stages`.
        batch_norm: treatment of BatchNorm in the trained part of the backbone. `"frozen"` leaves
            statistics, scale and offset as they are, which suits fine-tuning on small batches;
            `"train"` trains them, which suits training from scratch.
        train: which weights move in the trained part of the backbone: `"all"`, `"bias"` (with the
            offsets of normalizations; BitFit, arXiv:2106.10199), `"norm"` (scales and offsets of
            normalizations), `"bias+norm"`, or `"lora"`, the factors of `models.low_rank`. Scales and
            offsets of BatchNorm are among them while its statistics stay frozen.

    Raises:
        InputError: unknown layer, stage, policy or kind of weights, or a model without a backbone.
    """
    if train not in TRAINED:
        raise InputError(f"train must be one of {', '.join(TRAINED)}, not {train!r}.")
    if batch_norm not in BATCH_NORM_POLICIES:
        raise InputError(f"batch_norm must be one of {BATCH_NORM_POLICIES}, not {batch_norm!r}.")
    backbone = backbone_of(model)
    k = frozen_stages(backbone, what)
    # Keras passes a flag on to the layers inside only if it changes, so set it on each.
    for layer in [model, *model.layers]:
        layer.trainable = True
    backbone.trainable = k < len(backbone.stages)
    trained = [layer for stage in backbone.stages[k:] for layer in stage.layers]
    moving = {id(weight) for weight in moving_weights(trained, train, batch_norm)}
    for stage in backbone.stages:
        for inner in (inner for layer in stage.layers for inner in inner_layers(layer)):
            # Without its flag, BatchNorm ignores the batch's statistics, whatever of it moves.
            keeps_statistics = is_batch_norm(inner) and batch_norm == "frozen"
            inner.trainable = stage.index >= k and not keeps_statistics
            for weight in own_weights(inner):
                weight.trainable = id(weight) in moving
    return Frozen(
        stages=k,
        of=len(backbone.stages),
        layers=sum(len(stage.layers) for stage in backbone.stages[:k]),
        of_layers=sum(len(stage.layers) for stage in backbone.stages),
        trainable_parameters=parameter_count(model.trainable_weights),
        parameters=parameter_count(model.weights),
    )


@contextlib.contextmanager
def quick_statistics(model: keras.Model):
    """Make BatchNorm's moving averages span about the last ten batches, inside a `with` block.

    The momenta of `keras.applications` (0.99 to 0.999) suit hundreds of thousands of steps. After a
    thousand steps, a network trained from scratch would still be evaluated with a third of its
    initial statistics, and predict one class for every image.
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
    """Return id(weight) → index of its stage, for the backbone's weights only."""
    stages = backbone_of(model).stages
    return {id(w): s.index for s in stages for layer in s.layers for w in layer.weights}


def parameter_count(weights) -> int:
    """Return the number of parameters in some weights."""
    return sum(math.prod(w.shape) for w in weights)
