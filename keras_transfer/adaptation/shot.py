"""SHOT's pseudo-labels: the classes of the target's images as they lay when the epoch began."""

import keras
import numpy as np
from keras import ops

from keras_transfer.adaptation import losses
from keras_transfer.adaptation.network import feature_models
from keras_transfer.adaptation.streams import Stream, images_of


class PseudoLabels(keras.layers.Layer):
    """A copy of a model and the centroids of the classes among the target's features.

    The copy stands still within an epoch. Labels by the features as they move would follow them
    wherever they go: on MNIST → MNIST-M-like a model fell from 49 to 13 % within five epochs.

    Images [M, H, W, 3] → class of the nearest centroid, int [M].

    Args:
        model: from `build_model`.
        feature_layer: see `network.cut_head`.
        classes: number of them.
    """

    def __init__(self, model: keras.Model, feature_layer: str | None, classes: int):
        super().__init__(trainable=False, dtype="float32")
        self.original = [model]  # in a list: its weights are not this layer's
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
        """Takes the model as it is now, and computes the centroids.

        Args:
            most: batches that are read of a stream without end.
        """
        self.copy.set_weights(self.original[0].get_weights())
        features, probabilities = [], []
        for batch in target.once(most):
            found = self.encoder(np.asarray(images_of(batch)), training=False)
            logits = self.classifier(found, training=False)
            features.append(ops.convert_to_numpy(ops.cast(found, "float32")))
            probabilities.append(ops.convert_to_numpy(ops.softmax(ops.cast(logits, "float32"))))
        features, probabilities = np.concatenate(features), np.concatenate(probabilities)
        self.centroids.assign(losses.centroids(features, probabilities))


class Renew(keras.callbacks.Callback):
    """Renews an adapter's pseudo-labels before each epoch."""

    def __init__(self, target: Stream, most: int):
        super().__init__()
        self.target, self.most = target, most

    def on_epoch_begin(self, epoch, logs=None):
        self.model.pseudo_labels.renew(self.target, self.most)
