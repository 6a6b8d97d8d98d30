"""AdaBN: BatchNorm's statistics of other images, computed exactly."""

import keras
import numpy as np
from keras import ops

from keras_transfer.adaptation import no_batch_norm
from keras_transfer.adaptation.streams import Stream, check_target, images_of
from keras_transfer.models.builders import head_layers
from keras_transfer.models.stages import backbone_of, clone_with, norms_of

_MOST = 1000  # batches of a stream without end


def apply_adabn(model: keras.Model, images, *, most: int = _MOST) -> int:
    """Puts the statistics of images into every BatchNorm of a model (Li et al., arXiv:1603.04779).

    One pass, in which each layer is normalised by the statistics of the batch; mean and variance of
    what reaches it are then those over all images, not a moving average, and do not depend on the
    order within the batches. Give batches of 32 or more. Weights, scales and offsets stay.

    Args:
        model: from `build_model`; changed in place, frozen stages too.
        images: batches of images [N, H, W, 3] of the model's size, see `streams.Stream`.
        most: batches that are read of a stream without end.

    Returns:
        The number of images.

    Raises:
        InputError: the model has no BatchNorm; no image, images of another size, or labels.
    """
    check_norms(model)
    stream = images if isinstance(images, Stream) else Stream(images, "target")
    first = stream.first()
    # An adapter's stream is checked; it may give other views beside the images.
    check_target(images_of(first) if stream is images else first, model.input_shape[1:])
    moments, norms = _moments(model)
    found, counts = [], []
    for batch in stream.once(most):
        batch = np.asarray(images_of(batch))
        found.append(ops.convert_to_numpy(moments(batch, training=False)).astype("float64"))
        counts.append(len(batch))
    means, variances = np.split(np.stack(found), 2, axis=1)
    mean = np.average(means, axis=0, weights=counts)
    variance = np.average(variances + (means - mean) ** 2, axis=0, weights=counts)
    start = 0
    for norm in norms:
        channels = slice(start, start := start + norm.moving_mean.shape[0])
        norm.moving_mean.assign(mean[channels])
        norm.moving_variance.assign(variance[channels])
    return sum(counts)


def check_norms(model: keras.Model) -> None:
    """Raises InputError where a model has no BatchNorm."""
    if not norms_of(model):
        raise no_batch_norm(model.name)


def _moments(model):
    """(images → means, then variances, of what reaches each BatchNorm in a batch [2·ΣC], these
    BatchNorms in that order)."""
    norms, means, variances = [], [], []

    def call(layer, *args, **kwargs):
        if not isinstance(layer, keras.layers.BatchNormalization):
            return layer(*args, **kwargs)
        moments = BatchMoments(layer)
        x, mean, variance = moments(args[0])
        norms.append(layer)
        means.append(mean)
        variances.append(variance)
        return x

    backbone = backbone_of(model)
    inputs = keras.Input(model.input_shape[1:], name="images")
    start = keras.Input(backbone.input_shape[1:], dtype=backbone.inputs[0].dtype)
    x = clone_with(backbone, start, call)
    ((_, layers),) = head_layers(model).items()
    for layer in layers[:-1]:
        x = call(layer, x)
    outputs = keras.Model(start, ops.concatenate([*means, *variances]))(inputs)
    return keras.Model(inputs, outputs), norms


class BatchMoments(keras.layers.Layer):
    """BatchNorm by the statistics of the batch: (normalised, mean [C], variance [C]), the two float32."""

    def __init__(self, norm):
        super().__init__(dtype=norm.dtype_policy, autocast=False, name=f"{norm.name}_moments")
        self.norm = norm
        self.built = True

    def compute_output_spec(self, x):
        channels = (x.shape[self.norm.axis],)
        return (
            keras.KerasTensor(x.shape, x.dtype),
            keras.KerasTensor(channels, "float32"),
            keras.KerasTensor(channels, "float32"),
        )

    def call(self, x):
        norm = self.norm
        axis = norm.axis % len(x.shape)
        others = [i for i in range(len(x.shape)) if i != axis]
        exact = ops.cast(x, "float32")
        mean, variance = ops.moments(exact, axes=others)
        normalised = ops.batch_normalization(
            exact,
            mean,
            variance,
            axis=axis,
            offset=norm.beta.value if norm.center else None,
            scale=norm.gamma.value if norm.scale else None,
            epsilon=norm.epsilon,
        )
        return ops.cast(normalised, x.dtype), mean, variance
