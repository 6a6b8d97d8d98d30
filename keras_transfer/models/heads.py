"""Heads: what a model is asked for. Layers, loss, metrics and decoding of each task side by side.

A head is plain data. Its last layer, `TaskOutput`, keeps it, so that the names of the classes
travel with the model through `model.save` and `keras.saving.load_model`.
"""

from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import keras
import numpy as np
from keras import ops

from keras_transfer.errors import InputError

_THRESHOLDS = 641
_WIDEST = 16.0  # logits beyond ± this are ranked alike


@keras.saving.register_keras_serializable("keras_transfer")
class LabelRanking(keras.metrics.AUC):
    """How well logits [N, L] rank the images of each label (0/1 [N, L]): the mean over labels.

    Keras's own `AUC(multi_label=True)` counts a label of which all images seen are positive, or
    all negative, as 0; here it is left out, as it has no ranking. Its area under the precision-recall
    curve is interpolated; here it is the average precision, as in scikit-learn. And its bins are even
    in the probability, where confident models put everything into the outer two; here in the logit.

    Args:
        num_labels: L.
        curve: `"ROC"` for the area under it, `"PR"` for average precision.
    """

    def __init__(self, num_labels, curve="ROC", name=None, dtype=None):
        super().__init__(
            _THRESHOLDS, curve, name=name, dtype=dtype, multi_label=True, num_labels=num_labels
        )

    def update_state(self, y_true, y_pred, sample_weight=None):
        # Any rising function of the logits ranks as they do; this one keeps the bins even.
        rank = ops.clip(0.5 + ops.cast(y_pred, "float32") / (2 * _WIDEST), 0.0, 1.0)
        super().update_state(y_true, rank, sample_weight)

    def result(self):
        # Counts [thresholds, L], at rising thresholds.
        positive = self.true_positives + self.false_negatives
        negative = self.true_negatives + self.false_positives
        recall = ops.divide_no_nan(self.true_positives, positive)
        fewer = recall[:-1] - recall[1:]
        if self.curve.value == "PR":
            precision = ops.divide_no_nan(
                self.true_positives, self.true_positives + self.false_positives
            )
            areas = fewer * precision[:-1]
        else:
            false_rate = ops.divide_no_nan(self.false_positives, negative)
            areas = (false_rate[:-1] - false_rate[1:]) * (recall[:-1] + recall[1:]) / 2
        ranked = ops.cast(ops.logical_and(positive[0] > 0, negative[0] > 0), areas.dtype)
        return ops.divide_no_nan(ops.sum(ranked * ops.sum(areas, axis=0)), ops.sum(ranked))

    def get_config(self):
        config = super().get_config()
        return {key: config[key] for key in ("num_labels", "curve", "name", "dtype")}


@keras.saving.register_keras_serializable("keras_transfer")
class LabelF1(keras.metrics.F1Score):
    """F1 of logits [N, L] against 0/1 [N, L] where the probability is over 0.5: the mean over labels.

    Keras's own wants probabilities.
    """

    def __init__(self, name="f1", dtype=None):
        super().__init__("macro", threshold=0.5, name=name, dtype=dtype)

    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(y_true, ops.sigmoid(y_pred), sample_weight)

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype}


@keras.saving.register_keras_serializable("keras_transfer")
class R2(keras.metrics.R2Score):
    """R² of values [N, D], the mean over targets.

    Keras's own sums squares of the values themselves in float32: of targets far from zero (years)
    nothing but rounding is left. Here `mean` and `scale`, of each target, are taken out first, which
    changes no R².
    """

    def __init__(self, mean=(), scale=(), name="r2", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.mean, self.scale = tuple(mean), tuple(scale)

    def update_state(self, y_true, y_pred, sample_weight=None):
        if self.scale:
            y_true, y_pred = (
                (ops.cast(y, "float32") - ops.array(self.mean, "float32"))
                / ops.array(self.scale, "float32")
                for y in (y_true, y_pred)
            )
        super().update_state(y_true, y_pred, sample_weight)

    def get_config(self):
        return {
            "mean": list(self.mean),
            "scale": list(self.scale),
            "name": self.name,
            "dtype": self.dtype,
        }


@keras.saving.register_keras_serializable("keras_transfer")
class Accuracy(keras.metrics.SparseCategoricalAccuracy):
    """Share of right answers; of targets that are shares [N, C] the largest is the right one."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(_classes_of(y_true, y_pred), y_pred, sample_weight)


@keras.saving.register_keras_serializable("keras_transfer")
class TopAccuracy(keras.metrics.SparseTopKCategoricalAccuracy):
    """Share of images whose right answer is among the highest k, like `Accuracy`."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(_classes_of(y_true, y_pred), y_pred, sample_weight)


def are_shares(y_true, y_pred) -> bool:
    """True where targets are shares of the classes [N, C], as of mixed images, not integers [N]."""
    return len(y_true.shape) == 2 and y_true.shape[-1] == y_pred.shape[-1]


def _classes_of(y_true, y_pred):
    return ops.argmax(y_true, axis=-1) if are_shares(y_true, y_pred) else y_true


@keras.saving.register_keras_serializable("keras_transfer")
class SparseCrossentropy(keras.losses.Loss):
    """Cross entropy of integer targets [N] (or shares [N, C]) and logits [N, C], with label smoothing.

    Keras smooths only one-hot targets.
    """

    def __init__(self, label_smoothing=0.0, name="crossentropy", **kwargs):
        super().__init__(name=name, **kwargs)
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        if are_shares(y_true, y_pred):
            shares = y_true
        elif not self.label_smoothing:
            return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)
        else:
            y_true = keras.ops.reshape(y_true, (-1,))
            shares = keras.ops.one_hot(y_true, y_pred.shape[-1], dtype=y_pred.dtype)
        return keras.losses.categorical_crossentropy(
            shares, y_pred, from_logits=True, label_smoothing=self.label_smoothing
        )

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable("keras_transfer")
class LabelCrossentropy(keras.losses.Loss):
    """Binary cross entropy of 0/1 targets [N, C] and logits [N, C]: the mean over both.

    Keras's takes the mean over the labels first, so that sample weights could only be of images;
    here they may be of single labels [N, C] too.
    """

    def __init__(self, label_smoothing=0.0, name="crossentropy", **kwargs):
        super().__init__(name=name, **kwargs)
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        y_true = keras.ops.cast(y_true, y_pred.dtype)
        y_true = y_true * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        return keras.ops.binary_crossentropy(y_true, y_pred, from_logits=True)

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable("keras_transfer")
class StandardisedError(keras.losses.Loss):
    """Mean squared error of targets [N, C] and values [N, C], each divided by `scale` [C]."""

    def __init__(self, scale=(), name="standardised_error", **kwargs):
        super().__init__(name=name, **kwargs)
        self.scale = tuple(scale)

    def call(self, y_true, y_pred):
        error = keras.ops.reshape(y_true, keras.ops.shape(y_pred)) - y_pred
        if self.scale:
            error = error / keras.ops.array(self.scale, error.dtype)
        return keras.ops.mean(keras.ops.square(error), axis=-1)

    def get_config(self):
        return {**super().get_config(), "scale": list(self.scale)}


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
