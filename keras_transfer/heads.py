"""Heads: what a model is asked for. Layers, loss, metrics and decoding of each task side by side.

A head is plain data. Its last layer, `TaskOutput`, keeps it, so that the names of the classes
travel with the model through `model.save` and `keras.saving.load_model`.
"""

from dataclasses import asdict, dataclass
from typing import ClassVar

import keras

from keras_transfer.errors import InputError


@dataclass(frozen=True)
class Head:
    """What all heads share.

    Attributes:
        names: one name an output: the classes, labels or measured quantities.
        hidden: widths of hidden ReLU layers between features and output.
        dropout: share of the features (and of each hidden layer) dropped in training, 0 ≤ d < 1.
        label_smoothing: share of the target spread over all classes, 0 ≤ s < 1.
    """

    names: tuple[str, ...]
    hidden: tuple[int, ...] = ()
    dropout: float = 0.2
    label_smoothing: float = 0.0

    task: ClassVar[str]

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

    least_names: ClassVar[int] = 1

    def connect(self, features):
        """Puts the head's layers on symbolic features [N, D] (or [N, h, w, D], flattened).

        Returns the symbolic outputs [N, len(names)], float32 under any precision policy: logits
        for classes and labels, plain values for regression.
        """
        x = features
        if len(x.shape) > 2:
            x = keras.layers.Flatten(name="flatten")(x)
        for i, width in enumerate(self.hidden):
            x = keras.layers.Dropout(self.dropout, name=f"dropout_{i}")(x)
            x = keras.layers.Dense(width, activation="relu", name=f"hidden_{i}")(x)
        x = keras.layers.Dropout(self.dropout, name="dropout")(x)
        return TaskOutput(self, name="output")(x)

    def loss(self):
        """A new `keras.losses.Loss` for integer (or multi-hot, or real) targets and raw outputs."""
        raise NotImplementedError

    def metrics(self) -> list:
        """New `keras.metrics.Metric`s on raw outputs."""
        raise NotImplementedError

    def scores(self, outputs):
        """Raw outputs [N, C] to what is reported: probabilities in [0, 1], or values."""
        raise NotImplementedError


class Classification(Head):
    """One class a picture. Targets are integers [N]; outputs are logits, scores their softmax.

    Loss and metrics also take shares of the classes, float [N, C], see `data.mixing`.
    """

    task = "single_label"
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
    """Any number of labels a picture. Targets are 0/1 [N, C]; scores are sigmoids of the logits."""

    task = "multi_label"

    def loss(self):
        return LabelCrossentropy(label_smoothing=self.label_smoothing)

    def metrics(self):
        return [
            keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0),  # of logits
            keras.metrics.AUC(
                name="auc", multi_label=True, num_labels=len(self.names), from_logits=True
            ),
        ]

    def scores(self, outputs):
        return keras.ops.sigmoid(outputs)


class Regression(Head):
    """Real numbers. Targets are float [N, C] (or [N] for one); scores are the outputs themselves."""

    task = "regression"

    def __post_init__(self):
        super().__post_init__()
        if self.label_smoothing:
            raise InputError("label_smoothing means nothing for regression: leave it 0.")

    def loss(self):
        return keras.losses.MeanSquaredError()

    def metrics(self):
        return [keras.metrics.MeanAbsoluteError(name="mae")]

    def scores(self, outputs):
        return outputs


HEADS = {head.task: head for head in (Classification, MultiLabel, Regression)}


@keras.saving.register_keras_serializable("keras_transfer")
class TaskOutput(keras.layers.Dense):
    """The last layer: a float32 Dense layer that knows what its units mean."""

    def __init__(self, head, **kwargs):
        if isinstance(head, dict):  # from a saved model
            fields = dict(head)
            head = HEADS[fields.pop("task")](**fields)
        kwargs["dtype"] = "float32"  # logits in half precision lose the small probabilities
        super().__init__(len(head.names), **kwargs)
        self.head = head

    def get_config(self):
        config = super().get_config()
        del config["units"], config["dtype"]
        fields = asdict(self.head)
        fields.update(names=list(self.head.names), hidden=list(self.head.hidden))
        return {**config, "head": {"task": self.head.task, **fields}}


@keras.saving.register_keras_serializable("keras_transfer")
class SparseCrossentropy(keras.losses.Loss):
    """Cross entropy of integer targets [N] (or shares [N, C]) and logits [N, C], with label smoothing.

    Keras smooths only one-hot targets.
    """

    def __init__(self, label_smoothing=0.0, name="crossentropy", **kwargs):
        super().__init__(name=name, **kwargs)
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        if _are_shares(y_true, y_pred):
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

    Keras's takes the mean over the labels first, so that sample weights could only be of pictures;
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


class Accuracy(keras.metrics.SparseCategoricalAccuracy):
    """Share of right answers; of targets that are shares [N, C] the largest is the right one."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(_classes(y_true, y_pred), y_pred, sample_weight)


@keras.saving.register_keras_serializable("keras_transfer")
class TopAccuracy(keras.metrics.SparseTopKCategoricalAccuracy):
    """Share of pictures whose right answer is among the highest k, like `Accuracy`."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(_classes(y_true, y_pred), y_pred, sample_weight)


def _are_shares(y_true, y_pred):
    return len(y_true.shape) == 2 and y_true.shape[-1] == y_pred.shape[-1]


def _classes(y_true, y_pred):
    return keras.ops.argmax(y_true, axis=-1) if _are_shares(y_true, y_pred) else y_true


def head_of(model: keras.Model) -> Head:
    """The head that a model ends in.

    Raises:
        InputError: the model was not built by this package.
    """
    for layer in reversed(model.layers):
        if isinstance(layer, TaskOutput):
            return layer.head
    raise InputError(f"The model '{model.name}' has no head of keras_transfer: use build_model.")
