"""Losses of heads that Keras lacks: of logits and of values, with smoothing, shares and weights of labels."""

import keras

from keras_transfer.models.metrics import are_shares


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
