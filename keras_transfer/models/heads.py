"""Heads: the task of a model. Layers, loss, metrics and decoding of each task side by side.

A head is plain data. Its last layer, `TaskOutput`, stores it, so the class names travel with the
model through `model.save` and `keras.saving.load_model`.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from numbers import Real
from typing import ClassVar

import keras
import numpy as np
from keras import ops

from keras_transfer.errors import InputError
from keras_transfer.models.losses import (
    R2,
    Accuracy,
    LabelCrossentropy,
    LabelF1,
    LabelRanking,
    SparseCrossentropy,
    StandardisedError,
    TopAccuracy,
)
from keras_transfer.utils.names import sequence_of_names

BOTTLENECK = "bottleneck"  # name of the layer that outputs the bottleneck

# -- heads ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """Fields and methods that all heads share.

    To write your own head, subclass one of the three heads below, which determines the kind of
    labels (`task`): a frozen dataclass with other fields, layers, loss or metrics. Register it with
    `keras.saving.register_keras_serializable`, so that saved models find it.

    Attributes:
        names: one name per output: the classes, labels or measured quantities.
        hidden: widths of hidden ReLU layers between features and output.
        dropout: share of the features (and of each hidden layer) dropped in training, 0 ≤ d < 1.
        label_smoothing: share of the target spread over all classes, 0 ≤ s < 1.
        weight: weight of this head's loss in the sum, if a model has several heads, > 0.
        bottleneck: width of a linear layer with BatchNorm and ReLU right after the features, as
            used in domain adaptation (`adaptation`); None leaves it out.
    """

    names: tuple[str, ...]
    hidden: tuple[int, ...] = ()
    dropout: float = 0.2
    label_smoothing: float = 0.0
    weight: float = 1.0
    bottleneck: int | None = None

    task: ClassVar[str]
    ranked_by: ClassVar[str | None]  # metric whose highest value is best; None: the lowest loss
    least_names: ClassVar[int] = 1

    def __post_init__(self):
        what = f"The names of {type(self).__name__}"
        object.__setattr__(self, "names", sequence_of_names(self.names, what))
        object.__setattr__(self, "hidden", _widths(self.hidden))
        if len(set(self.names)) != len(self.names):
            raise InputError(f"The names of a head must differ: {self.names}.")
        if len(self.names) < self.least_names:
            raise InputError(
                f"A {self.task} head needs at least {self.least_names} names, not {self.names}."
            )
        for field in ("dropout", "label_smoothing"):
            if not (_is_number(getattr(self, field)) and 0 <= getattr(self, field) < 1):
                raise InputError(f"{field} must be in [0, 1), not {getattr(self, field)!r}.")
        if not (_is_number(self.weight) and self.weight > 0):
            raise InputError(f"The weight of a head must be above 0, not {self.weight!r}.")
        if self.bottleneck is not None and not (
            _is_number(self.bottleneck) and self.bottleneck >= 1
        ):
            raise InputError(f"bottleneck must be 1 or more, not {self.bottleneck!r}.")

    def connect(self, features, name: str | None = None):
        """Apply the head's layers to symbolic features [N, D] (or [N, h, w, D], flattened).

        With `name`, the last layer has that name, and the names of the others begin with it.

        Returns:
            The symbolic outputs [N, len(names)], float32 under any precision policy: logits for
            classes and labels, plain values for regression.
        """
        x, prefix = features, f"{name}_" if name else ""
        if len(x.shape) > 2:
            x = keras.layers.Flatten(name=f"{prefix}flatten")(x)
        if self.bottleneck:
            x = keras.layers.Dense(self.bottleneck, name=f"{prefix}bottleneck_dense")(x)
            x = keras.layers.BatchNormalization(momentum=0.9, name=f"{prefix}bottleneck_norm")(x)
            x = keras.layers.ReLU(name=f"{prefix}{BOTTLENECK}")(x)
        for i, width in enumerate(self.hidden):
            x = keras.layers.Dropout(self.dropout, name=f"{prefix}dropout_{i}")(x)
            x = keras.layers.Dense(width, activation="relu", name=f"{prefix}hidden_{i}")(x)
        x = keras.layers.Dropout(self.dropout, name=f"{prefix}dropout")(x)
        return TaskOutput(self, name=name or "output")(x)

    def fitted(self, targets: np.ndarray) -> "Head":
        """Return this head with what it derives from the training targets."""
        return self

    def from_units(self, targets):
        """Convert targets to outputs of the last linear layer."""
        return targets

    def to_units(self, values):
        """Convert outputs of the last linear layer to the model's raw outputs."""
        return values

    def loss(self):
        """Return a new `keras.losses.Loss` for targets and raw outputs."""
        raise NotImplementedError

    def metrics(self) -> list:
        """Return new `keras.metrics.Metric`s on raw outputs."""
        raise NotImplementedError

    def scores(self, outputs):
        """Convert raw outputs [N, C] to reported scores: probabilities in [0, 1], or values."""
        raise NotImplementedError

    def get_config(self) -> dict:
        """Return plain data, from which `TaskOutput` restores the head."""
        own = {} if type(self) in HEADS.values() else {"class": _registered_name(type(self))}
        fields = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }
        return {"task": self.task, **own, **fields}


class Classification(Head):
    """One class per example. Targets are integers [N]; outputs are logits, scores their softmax.

    Loss and metrics also accept shares of the classes, float [N, C], see `data.Mix`.
    """

    task = "single_label"
    ranked_by = "accuracy"
    least_names = 2

    def loss(self):
        return SparseCrossentropy(label_smoothing=self.label_smoothing)

    def metrics(self):
        top = [TopAccuracy(5, name="top5")] if len(self.names) > 5 else []
        return [Accuracy(name="accuracy"), *top]

    def scores(self, outputs):
        return ops.softmax(outputs, axis=-1)


class MultiLabel(Head):
    """Any number of labels per example. Targets are 0/1 [N, C]; scores are sigmoids of the logits.

    Metrics are means over the labels: `map` (average precision), `auc` and `f1` (at 0.5). The first
    two leave out labels that have the same value for all examples.
    """

    task = "multi_label"
    ranked_by = "map"

    def loss(self):
        return LabelCrossentropy(label_smoothing=self.label_smoothing)

    def metrics(self):
        count = len(self.names)
        return [
            LabelRanking(count, "PR", name="map"),
            LabelRanking(count, "ROC", name="auc"),
            LabelF1(),
        ]

    def scores(self, outputs):
        return ops.sigmoid(outputs)


@dataclass(frozen=True)
class Regression(Head):
    """Real numbers. Targets are float [N, C], and so are outputs and scores, in the same units.

    The last linear layer outputs standardized values, and the loss is their squared error, so that
    learning rates suit targets of any size, and all targets have the same weight.

    Attributes:
        mean, scale: mean and standard deviation of each training target [C]. `Trainer.fit` sets
            them unless they are given; until then they are 0 and 1.
    """

    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    task = "regression"
    ranked_by = None

    def __post_init__(self):
        super().__post_init__()
        if self.label_smoothing:
            raise InputError("label_smoothing does not apply to regression: leave it 0.")
        for field in ("mean", "scale"):
            object.__setattr__(self, field, tuple(float(value) for value in getattr(self, field)))
        sizes = {len(self.mean), len(self.scale)}
        if sizes not in ({0}, {len(self.names)}) or not all(value > 0 for value in self.scale):
            raise InputError(
                f"mean and scale must be given together, {len(self.names)} numbers each, scale "
                f"above 0: not {self.mean} and {self.scale}."
            )

    def fitted(self, targets):
        if self.scale:
            return self
        targets = np.asarray(targets, "float64")
        scale = targets.std(axis=0)
        return replace(self, mean=tuple(targets.mean(axis=0)), scale=tuple(scale + (scale == 0)))

    def from_units(self, targets):
        return (targets - self._row("mean")) / self._row("scale") if self.scale else targets

    def to_units(self, values):
        return values * self._row("scale") + self._row("mean") if self.scale else values

    def _row(self, field):
        return np.array(getattr(self, field), "float32")

    def loss(self):
        return StandardisedError(self.scale)

    def metrics(self):
        return [keras.metrics.MeanAbsoluteError(name="mae"), R2(self.mean, self.scale)]

    def scores(self, outputs):
        return outputs


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _widths(hidden) -> tuple[int, ...]:
    widths = tuple(hidden) if isinstance(hidden, Iterable) else (hidden,)
    if not all(_is_number(width) and width >= 1 and width == int(width) for width in widths):
        raise InputError(f"hidden must be the widths of layers, such as (128,), not {hidden!r}.")
    return tuple(int(width) for width in widths)


HEADS = {head.task: head for head in (Classification, MultiLabel, Regression)}


def _registered_name(kind):
    name = keras.saving.get_registered_name(kind)
    if keras.saving.get_registered_object(name) is not kind:
        raise InputError(
            f"Keras does not know the head {kind.__name__}, so its model could not be loaded: put "
            "@keras.saving.register_keras_serializable() on the class."
        )
    return name


def _restored(config):
    fields = dict(config)
    task, name = fields.pop("task"), fields.pop("class", None)
    kind = HEADS[task] if name is None else keras.saving.get_registered_object(name)
    if kind is None:
        raise InputError(
            f"The model has a head of the class {name}: import the module that registers it before "
            "loading the model."
        )
    return kind(**fields)


@keras.saving.register_keras_serializable("keras_transfer")
class TaskOutput(keras.layers.Dense):
    """The last layer: a float32 Dense layer that stores its head."""

    def __init__(self, head, **kwargs):
        if isinstance(head, dict):  # from a saved model
            head = _restored(head)
        head.get_config()  # fail now, rather than after the training, if it cannot be saved
        kwargs["dtype"] = "float32"  # logits in half precision lose the small probabilities
        super().__init__(len(head.names), **kwargs)
        self.head = head

    def call(self, inputs, training=None):
        return self.head.to_units(super().call(inputs, training=training))

    def get_config(self):
        config = super().get_config()
        del config["units"], config["dtype"]
        return {**config, "head": self.head.get_config()}
