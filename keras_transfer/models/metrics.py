"""Metrics of training that Keras lacks, or has in a form that misleads: of logits, and of labels.

They agree with scikit-learn's, up to the width of their bins, and are not compiled in `evaluation`,
which has all predictions at once.
"""

import keras
from keras import ops

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
