"""The front end as a Keras layer."""

import keras
from keras import ops

from keras_transfer.modalities.audio.framing import ClipFraming
from keras_transfer.modalities.audio.log_mel import shades


@keras.saving.register_keras_serializable("keras_transfer")
class LogMel(keras.layers.Layer):
    """Turns windows of samples into log-mel images, see `log_mel.shades`.

    Takes float32 [N, samples], -1 to 1, at the framing's rate, where `samples` is
    `ClipFraming.samples`; returns float32 [N, height, width, 3], whole numbers 0–255, three equal channels.

    Args:
        size, rate, seconds: see `ClipFraming`.
    """

    def __init__(self, size: int | str, rate: int, seconds: float, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.framing = ClipFraming(size, rate, seconds)

    def call(self, samples):
        image = ops.round(shades(samples, self.framing, ops))
        return ops.repeat(image[..., None], 3, axis=-1)

    def compute_output_shape(self, shape):
        return (shape[0], *self.framing.shape)

    def get_config(self):
        config = super().get_config()
        del config["dtype"]
        framing = self.framing
        return {**config, "size": framing.size, "rate": framing.rate, "seconds": framing.seconds}
