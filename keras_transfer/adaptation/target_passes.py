"""Passes over the target outside of the training steps: AdaBN's statistics, SHOT's pseudo-labels."""

import keras
import numpy as np
from keras import ops

from keras_transfer.adaptation import losses
from keras_transfer.adaptation.network import feature_models
from keras_transfer.adaptation.options import no_batch_norm
from keras_transfer.adaptation.streams import MOST_BATCHES, Stream, check_target, images_of
from keras_transfer.models.builders import head_layers
from keras_transfer.models.graph import clone_with
from keras_transfer.models.stages import backbone_of, norms_of

# -- AdaBN ----------------------------------------------------------------------------------------


def apply_adabn(model: keras.Model, images, *, most: int = MOST_BATCHES) -> int:
    """Replace the statistics of every BatchNorm by those of images (Li et al., arXiv:1603.04779).

    In one pass each layer normalizes by the statistics of the batch. The new mean and variance are
    those of the layer's inputs over all images, not moving averages, and do not depend on the order
    within batches. Use batches of 32 or more. Weights, scales and offsets do not change.

    Args:
        model: from `build_model`; changed in place, including frozen stages.
        images: batches of images [N, H, W, 3] of the model's size, see `streams.Stream`.
        most: number of batches to read if the stream has no end.

    Returns:
        The number of images.

    Raises:
        InputError: the model has no BatchNorm; no images, images of another size, or labels.
    """
    check_norms(model)
    stream = images if isinstance(images, Stream) else Stream(images, "target")
    first = stream.first()
    # The stream of an adapter has been checked; it may contain views in addition to the images.
    check_target(images_of(first) if stream is images else first, model.input_shape[1:])
    moments, norms = _moments(model)
    results, counts = [], []
    for batch in stream.one_pass(most):
        batch = np.asarray(images_of(batch))
        results.append(ops.convert_to_numpy(moments(batch, training=False)).astype("float64"))
        counts.append(len(batch))
    means, variances = np.split(np.stack(results), 2, axis=1)
    mean = np.average(means, axis=0, weights=counts)
    variance = np.average(variances + (means - mean) ** 2, axis=0, weights=counts)
    start = 0
    for norm in norms:
        channels = slice(start, start := start + norm.moving_mean.shape[0])
        norm.moving_mean.assign(mean[channels])
        norm.moving_variance.assign(variance[channels])
    return sum(counts)


def check_norms(model: keras.Model) -> None:
    """Raise InputError if a model has no BatchNorm."""
    if not norms_of(model):
        raise no_batch_norm(model.name)


def _moments(model):
    """Return (images → means, then variances, of each BatchNorm's input in a batch [2·ΣC], the
    BatchNorms in that order)."""
    norms, means, variances = [], [], []

    def call(layer, *args, **kwargs):
        if not isinstance(layer, keras.layers.BatchNormalization):
            return layer(*args, **kwargs)
        x, mean, variance = BatchMoments(layer)(args[0])
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
    """A BatchNorm that uses the statistics of the batch and also returns them.

    The output is (normalized, mean float32 [C], variance float32 [C]).
    """

    def __init__(self, norm):
        super().__init__(dtype=norm.dtype_policy, autocast=False, name=f"{norm.name}_moments")
        self.norm = norm
        self.built = True

    def compute_output_spec(self, x):
        channels = (x.shape[self.norm.axis],)
        moments = (keras.KerasTensor(channels, "float32") for _ in ("mean", "variance"))
        return keras.KerasTensor(x.shape, x.dtype), *moments

    def call(self, x):
        norm = self.norm
        axis = norm.axis % len(x.shape)
        others = [i for i in range(len(x.shape)) if i != axis]
        exact = ops.cast(x, "float32")
        mean, variance = ops.moments(exact, axes=others)
        normalized = ops.batch_normalization(
            exact,
            mean,
            variance,
            axis=axis,
            offset=norm.beta.value if norm.center else None,
            scale=norm.gamma.value if norm.scale else None,
            epsilon=norm.epsilon,
        )
        return ops.cast(normalized, x.dtype), mean, variance


# -- SHOT -----------------------------------------------------------------------------------------


class PseudoLabels(keras.layers.Layer):
    """A copy of a model, and the centroids of the classes among the target features.

    The copy does not change within an epoch. Labels computed from the moving features would follow
    them anywhere: from MNIST to MNIST-M-like digits a model fell from 49 to 13 % in five epochs.

    The layer maps images [M, H, W, 3] to the class of the nearest centroid, int [M].

    Args:
        model: from `build_model`.
        feature_layer: see `network.cut_head`.
        classes: number of classes.
    """

    def __init__(self, model: keras.Model, feature_layer: str | None, classes: int):
        super().__init__(trainable=False, dtype="float32")
        self.original = [model]  # in a list, so that its weights do not belong to this layer
        self.copy = keras.models.clone_model(model)
        self.copy.trainable = False
        self.encoder, self.classifier = feature_models(self.copy, feature_layer)
        self.centroids = self.add_weight(
            name="centroids",
            shape=(classes, self.encoder.output_shape[-1] + 1),
            initializer="zeros",
            trainable=False,
        )
        self.built = True

    def call(self, images):
        features = ops.cast(self.encoder(images, training=False), "float32")
        return ops.stop_gradient(losses.nearest_centroid(features, self.centroids))

    def renew(self, target: Stream, most: int) -> None:
        """Copy the weights of the model, and compute the centroids.

        Args:
            target: batches of images.
            most: number of batches to read if the stream has no end.
        """
        self.copy.set_weights(self.original[0].get_weights())
        features, probabilities = [], []
        for batch in target.one_pass(most):
            encoded = self.encoder(np.asarray(images_of(batch)), training=False)
            logits = self.classifier(encoded, training=False)
            features.append(ops.convert_to_numpy(ops.cast(encoded, "float32")))
            probabilities.append(ops.convert_to_numpy(ops.softmax(ops.cast(logits, "float32"))))
        features, probabilities = np.concatenate(features), np.concatenate(probabilities)
        self.centroids.assign(losses.centroids(features, probabilities))
