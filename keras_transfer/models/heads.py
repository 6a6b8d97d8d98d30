"""Heads: what a model is asked for. Layers, loss, metrics and decoding of each task side by side.

A head is plain data. Its last layer, `TaskOutput`, keeps it, so that the names of the classes
travel with the model through `model.save` and `keras.saving.load_model`.
"""

from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import keras
import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.models.losses import LabelCrossentropy, SparseCrossentropy, StandardisedError
from keras_transfer.models.metrics import R2, Accuracy, LabelF1, LabelRanking, TopAccuracy

BOTTLENECK = "bottleneck"  # name of the layer whose output the bottleneck is


@dataclass(frozen=True)
class Head:
    """What all heads share.

    A head of your own is a subclass of one of the three, which says what the labels are (`task`): a
    frozen dataclass with other fields, layers, loss or metrics, registered with
    `keras.saving.register_keras_serializable`, so that saved models find it.

    Attributes:
        names: one name an output: the classes, labels or measured quantities.
        hidden: widths of hidden ReLU layers between features and output.
        dropout: share of the features (and of each hidden layer) dropped in training, 0 ≤ d < 1.
        label_smoothing: share of the target spread over all classes, 0 ≤ s < 1.
        weight: of this head's loss in the sum, where a model has several heads, > 0.
        bottleneck: width of a linear layer with BatchNorm and ReLU right after the features, as
            domain adaptation has it (`adaptation`); None is none.
    """

    names: tuple[str, ...]
    hidden: tuple[int, ...] = ()
    dropout: float = 0.2
    label_smoothing: float = 0.0
    weight: float = 1.0
    bottleneck: int | None = None

    task: ClassVar[str]
    ranked_by: ClassVar[str | None]  # the metric whose highest value is best; None: the least loss

    def __post_init__(self):
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        object.__setattr__(self, "hidden", tuple(int(width) for width in self.hidden))
        if len(set(self.names)) != len(self.names):
            raise InputError(f"Names of a head must differ from each other: {self.names}.")
        if len(self.names) < self.least_names:
            raise InputError(
                f"A {self.task} head needs at least {self.least_names} names, not {self.names}."
            )
        for field in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, field) < 1:
                raise InputError(f"{field} must be in [0, 1), not {getattr(self, field)}.")
        if not self.weight > 0:
            raise InputError(f"weight of a head must be above 0, not {self.weight}.")
        if self.bottleneck is not None and self.bottleneck < 1:
            raise InputError(f"bottleneck must be 1 or more, not {self.bottleneck}.")

    least_names: ClassVar[int] = 1

    def connect(self, features, name: str | None = None):
        """Puts the head's layers on symbolic features [N, D] (or [N, h, w, D], flattened).

        With `name` the last layer has that name, and the others begin with it.

        Returns the symbolic outputs [N, len(names)], float32 under any precision policy: logits
        for classes and labels, plain values for regression.
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
        """This head with what it has to know of the training targets."""
        return self

    def from_units(self, targets):
        """Targets as the last linear layer shall give them."""
        return targets

    def to_units(self, values):
        """What the last linear layer gives, as the model's raw outputs."""
        return values

    def loss(self):
        """A new `keras.losses.Loss` for integer (or multi-hot, or real) targets and raw outputs."""
        raise NotImplementedError

    def metrics(self) -> list:
        """New `keras.metrics.Metric`s on raw outputs."""
        raise NotImplementedError

    def scores(self, outputs):
        """Raw outputs [N, C] to what is reported: probabilities in [0, 1], or values."""
        raise NotImplementedError

    def get_config(self) -> dict:
        """Plain data, from which `_saved_head` makes it again."""
        own = {} if type(self) in HEADS.values() else {"class": _registered_name(type(self))}
        fields = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }
        return {"task": self.task, **own, **fields}


class Classification(Head):
    """One class per image. Targets are integers [N]; outputs are logits, scores their softmax.

    Loss and metrics also take shares of the classes, float [N, C], see `data.mixing`.
    """

    task = "single_label"
    ranked_by = "accuracy"
    least_names = 2

    def loss(self):
        return SparseCrossentropy(label_smoothing=self.label_smoothing)

    def metrics(self):
        metrics = [Accuracy(name="accuracy")]
        if len(self.names) > 5:
            metrics.append(TopAccuracy(5, name="top5"))
        return metrics

    def scores(self, outputs):
        return keras.ops.softmax(outputs, axis=-1)


class MultiLabel(Head):
    """Any number of labels per image. Targets are 0/1 [N, C]; scores are sigmoids of the logits.

    Metrics are means over the labels: `map` (average precision), `auc` and `f1` (at 0.5). A label of
    which every image measured on has the same value is left out of the first two.
    """

    task = "multi_label"
    ranked_by = "map"

    def loss(self):
        return LabelCrossentropy(label_smoothing=self.label_smoothing)

    def metrics(self):
        return [
            LabelRanking(len(self.names), "PR", name="map"),
            LabelRanking(len(self.names), "ROC", name="auc"),
            LabelF1(),
        ]

    def scores(self, outputs):
        return keras.ops.sigmoid(outputs)


@dataclass(frozen=True)
class Regression(Head):
    """Real numbers. Targets are float [N, C], and so are outputs and scores, in the same units.

    The last linear layer gives standardised values, and the loss is the squared error of those, so
    that learning rates suit targets of any size, and each target counts alike.

    Attributes:
        mean, scale: mean and standard deviation of each training target [C]. `Trainer.fit` sets
            them where they are not given; until then they are 0 and 1.
    """

    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    task = "regression"
    ranked_by = None

    def __post_init__(self):
        super().__post_init__()
        if self.label_smoothing:
            raise InputError("label_smoothing means nothing for regression: leave it 0.")
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


HEADS = {head.task: head for head in (Classification, MultiLabel, Regression)}


def _registered_name(kind):
    name = keras.saving.get_registered_name(kind)
    if keras.saving.get_registered_object(name) is not kind:
        raise InputError(
            f"The head {kind.__name__} is not known to Keras, so its model could not be loaded again: "
            "put @keras.saving.register_keras_serializable() on the class."
        )
    return name


def _saved_head(config):
    fields = dict(config)
    task, name = fields.pop("task"), fields.pop("class", None)
    kind = HEADS[task] if name is None else keras.saving.get_registered_object(name)
    if kind is None:
        raise InputError(
            f"The model has a head of the class {name}: import the module that registers it, then "
            "load the model."
        )
    return kind(**fields)


@keras.saving.register_keras_serializable("keras_transfer")
class TaskOutput(keras.layers.Dense):
    """The last layer: a float32 Dense layer that knows what its units mean."""

    def __init__(self, head, **kwargs):
        if isinstance(head, dict):  # from a saved model
            head = _saved_head(head)
        head.get_config()  # what cannot be saved is said now, not after the training
        kwargs["dtype"] = "float32"  # logits in half precision lose the small probabilities
        super().__init__(len(head.names), **kwargs)
        self.head = head

    def call(self, inputs, training=None):
        return self.head.to_units(super().call(inputs, training=training))

    def get_config(self):
        config = super().get_config()
        del config["units"], config["dtype"]
        return {**config, "head": self.head.get_config()}


def head_for(data, **options) -> "Head | dict[str, Head]":
    """What `build_model` needs for the labels of some data: a head, or one a name.

    Args:
        data: a `keras_transfer.data.ImageData`.
        options: fields of all heads, e.g. `dropout=0.5`.
    """

    def head(target):
        return HEADS[target.task](target.names, **options)

    if isinstance(data.targets, dict):
        return {name: head(target) for name, target in data.targets.items()}
    return head(data.targets)


def heads_of(model: keras.Model) -> dict[str, Head]:
    """The heads of a model, sorted by name; the only head of a model is called `output`.


    Raises:
        InputError: the model was not built by this package.
    """
    heads = {layer.name: layer.head for layer in model.layers if isinstance(layer, TaskOutput)}
    if not heads:
        raise InputError(
            f"The model '{model.name}' has no head of keras_transfer: use build_model."
        )
    return dict(sorted(heads.items()))


def head_of(model: keras.Model) -> Head:
    """The head that a model ends in.

    Raises:
        InputError: the model was not built by this package, or has several.
    """
    heads = heads_of(model)
    if len(heads) > 1:
        raise InputError(f"The model '{model.name}' has several heads: {', '.join(heads)}.")
    return next(iter(heads.values()))


def compile_arguments(heads: dict[str, Head]) -> dict:
    """`loss`, `metrics` and, of several heads, `loss_weights` for `model.compile`.

    Args:
        heads: `heads_of(model)`.
    """
    if len(heads) == 1:
        (head,) = heads.values()
        return {"loss": head.loss(), "metrics": head.metrics()}
    return {
        "loss": {name: head.loss() for name, head in heads.items()},
        "metrics": {name: head.metrics() for name, head in heads.items()},
        "loss_weights": {name: head.weight for name, head in heads.items()},
    }


def by_head(heads: dict[str, Head], values) -> dict:
    """Labels or outputs by the head's name: they are a dict only where there are several."""
    return values if isinstance(values, dict) else dict.fromkeys(heads, values)


def fit_heads(model: keras.Model, labels) -> None:
    """Lets the heads take from the training labels what they have to know (see `Head.fitted`).

    Compile the model afterwards.
    """
    heads = heads_of(model)
    for name, targets in by_head(heads, labels).items():
        model.get_layer(name).head = heads[name].fitted(targets)


def check_targets(heads: dict[str, Head], data) -> None:
    """Raises InputError where some data are labelled with something else than the heads answer."""
    targets = data.targets if isinstance(data.targets, dict) else {"": data.targets}
    if isinstance(data.targets, dict) != (len(heads) > 1):
        raise InputError(
            f"The model has the heads {', '.join(heads)}, the data labels for "
            f"{', '.join(targets) if targets.keys() != {''} else 'one'}: build the model with "
            "head_for(data)."
        )
    if len(heads) == 1:
        targets = {next(iter(heads)): data.targets}
    if heads.keys() != targets.keys():
        raise InputError(
            f"The model's heads are {', '.join(heads)}, the data's {', '.join(targets)}."
        )
    for name, head in heads.items():
        target = targets[name]
        if head.task != target.task:
            raise InputError(
                f"Head '{name}' of the model is {head.task}, but the data are {target.task}: build "
                "the model with head_for(data)."
            )
        if head.names != target.names:
            raise InputError(
                f"The model's classes {head.names} are not the data's {target.names}: build the "
                "model with head_for(data)."
            )
