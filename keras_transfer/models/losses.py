"""Losses and metrics that Keras lacks, of logits and values."""

import keras
from keras import ops

_THRESHOLDS = 641
_WIDEST = 16.0  # logits beyond ± this are ranked as equal


def _has_shares(y_true, y_pred) -> bool:
    """Return whether targets are shares of the classes [N, C] (mixed examples), not integers [N]."""
    return len(y_true.shape) == 2 and y_true.shape[-1] == y_pred.shape[-1]


def _classes_of(y_true, y_pred):
    return ops.argmax(y_true, axis=-1) if _has_shares(y_true, y_pred) else y_true


@keras.saving.register_keras_serializable("keras_transfer")
class SparseCrossentropy(keras.losses.Loss):
    """Cross-entropy of integer targets [N] (or shares [N, C]) and logits [N, C].

    Keras applies label smoothing to one-hot targets only.
    """

    def __init__(self, label_smoothing=0.0, name="crossentropy", **kwargs):
        super().__init__(name=name, **kwargs)
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        if _has_shares(y_true, y_pred):
            shares = y_true
        elif not self.label_smoothing:
            return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)
        else:
            y_true = ops.reshape(y_true, (-1,))
            shares = ops.one_hot(y_true, y_pred.shape[-1], dtype=y_pred.dtype)
        return keras.losses.categorical_crossentropy(
            shares, y_pred, from_logits=True, label_smoothing=self.label_smoothing
        )

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable("keras_transfer")
class LabelCrossentropy(keras.losses.Loss):
    """Binary cross-entropy of 0/1 targets [N, C] and logits [N, C]: the mean over both.

    Keras's own loss averages over the labels first, so it accepts sample weights per example only;
    this one also accepts them per label [N, C].
    """

    def __init__(self, label_smoothing=0.0, name="crossentropy", **kwargs):
        super().__init__(name=name, **kwargs)
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        y_true = ops.cast(y_true, y_pred.dtype)
        y_true = y_true * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        return ops.binary_crossentropy(y_true, y_pred, from_logits=True)

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable("keras_transfer")
class StandardisedError(keras.losses.Loss):
    """Mean squared error of targets [N, C] and values [N, C], each divided by `scale` [C]."""

    def __init__(self, scale=(), name="standardised_error", **kwargs):
        super().__init__(name=name, **kwargs)
        self.scale = tuple(scale)

    def call(self, y_true, y_pred):
        error = ops.reshape(y_true, ops.shape(y_pred)) - y_pred
        if self.scale:
            error = error / ops.array(self.scale, error.dtype)
        return ops.mean(ops.square(error), axis=-1)

    def get_config(self):
        return {**super().get_config(), "scale": list(self.scale)}


@keras.saving.register_keras_serializable("keras_transfer")
class LabelRanking(keras.metrics.AUC):
    """How well logits [N, L] rank the examples of each label (0/1 [N, L]): the mean over labels.

    It agrees with scikit-learn up to the width of its bins. Keras's own `AUC(multi_label=True)`
    counts a label as 0 if all examples are positive, or all negative; here such a label is left out,
    since it has no ranking. Keras interpolates the area under the precision-recall curve; this is
    the average precision. Keras's bins are even in the probability, where confident models put
    everything into the outer two; these are even in the logit.

    Args:
        num_labels: L.
        curve: `"ROC"` for the area under it, `"PR"` for average precision.
    """

    def __init__(self, num_labels, curve="ROC", name=None, dtype=None):
        super().__init__(
            _THRESHOLDS, curve, name=name, dtype=dtype, multi_label=True, num_labels=num_labels
        )

    def update_state(self, y_true, y_pred, sample_weight=None):
        # Any increasing function of the logits gives their ranking; this one makes even bins. Keras
        # counts them with a vectorized map, which TensorFlow traces anew at each call outside a graph.
        y_true = ops.cast(ops.cast(y_true, "bool"), "float32")
        rank = ops.clip(0.5 + ops.cast(y_pred, "float32") / (2 * _WIDEST), 0.0, 1.0)
        bins = ops.cast(ops.relu(ops.ceil(rank * (_THRESHOLDS - 1)) - 1), "int32")
        weights = ops.ones_like(rank)
        if sample_weight is not None:
            sample_weight = ops.cast(sample_weight, "float32")
            if len(sample_weight.shape) == 1:
                sample_weight = sample_weight[:, None]
            weights = weights * sample_weight
        for of_kind, above, below in (
            (weights * y_true, self.true_positives, self.false_negatives),
            (weights * (1 - y_true), self.false_positives, self.true_negatives),
        ):
            counts = self._count(of_kind, bins)
            reached = ops.flip(ops.cumsum(ops.flip(counts, axis=0), axis=0), axis=0)
            above.assign_add(reached)
            below.assign_add(ops.sum(of_kind, axis=0) - reached)

    def _count(self, weights, bins):
        """Return the sum of the weights [N, L] in each bin of each label [thresholds, L]."""
        cells = bins * self.num_labels + ops.arange(self.num_labels, dtype="int32")
        sums = ops.segment_sum(
            ops.reshape(weights, (-1,)),
            ops.reshape(cells, (-1,)),
            num_segments=_THRESHOLDS * self.num_labels,
        )
        return ops.reshape(sums, (_THRESHOLDS, self.num_labels))

    def result(self):
        # Counts [thresholds, L], at increasing thresholds.
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
    """F1 of logits [N, L] against 0/1 [N, L] at a probability of 0.5: the mean over labels."""

    def __init__(self, name="f1", dtype=None):
        super().__init__("macro", threshold=0.5, name=name, dtype=dtype)

    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(y_true, ops.sigmoid(y_pred), sample_weight)

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype}


@keras.saving.register_keras_serializable("keras_transfer")
class R2(keras.metrics.R2Score):
    """R² of values [N, D], the mean over targets.

    Keras sums the squares of the values in float32, which leaves nothing but rounding for targets
    far from zero (years). Standardizing by `mean` and `scale` first does not change any R².
    """

    def __init__(self, mean=(), scale=(), name="r2", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.mean, self.scale = tuple(mean), tuple(scale)

    def update_state(self, y_true, y_pred, sample_weight=None):
        if self.scale:
            mean, scale = (ops.array(x, "float32") for x in (self.mean, self.scale))
            y_true, y_pred = ((ops.cast(y, "float32") - mean) / scale for y in (y_true, y_pred))
        super().update_state(y_true, y_pred, sample_weight)

    def get_config(self):
        fields = {"mean": list(self.mean), "scale": list(self.scale)}
        return {**fields, "name": self.name, "dtype": self.dtype}


@keras.saving.register_keras_serializable("keras_transfer")
class Accuracy(keras.metrics.SparseCategoricalAccuracy):
    """Top-1 accuracy; if targets are shares [N, C], the class with the largest share is right."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(_classes_of(y_true, y_pred), y_pred, sample_weight)


@keras.saving.register_keras_serializable("keras_transfer")
class TopAccuracy(keras.metrics.SparseTopKCategoricalAccuracy):
    """Top-k accuracy; see `Accuracy`."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(_classes_of(y_true, y_pred), y_pred, sample_weight)
