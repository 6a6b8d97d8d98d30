"""SHOT's step between the epochs: the centroids of the classes among the target's pictures."""

import keras
import numpy as np
from keras import ops

from keras_transfer.adaptation import losses
from keras_transfer.adaptation.streams import Stream, pictures_of


def target_centroids(
    encoder: keras.Model, classifier: keras.Model, target: Stream, most: int
) -> np.ndarray:
    """Where the classes lie among all target pictures as the model sees them now [C, D + 1].

    In inference mode.

    Args:
        encoder, classifier: of `network.feature_models`.
        most: batches that are read of a stream without end.
    """
    features, probabilities = [], []
    for batch in target.once(most):
        found = encoder(np.asarray(pictures_of(batch)), training=False)
        logits = classifier(found, training=False)
        features.append(ops.convert_to_numpy(ops.cast(found, "float32")))
        probabilities.append(ops.convert_to_numpy(ops.softmax(logits)))
    return ops.convert_to_numpy(
        losses.centroids(
            ops.convert_to_tensor(np.concatenate(features)),
            ops.convert_to_tensor(np.concatenate(probabilities)),
        )
    )


class Centroids(keras.callbacks.Callback):
    """Computes an adapter's centroids before each epoch."""

    def __init__(self, target: Stream, most: int):
        super().__init__()
        self.target, self.most = target, most

    def on_epoch_begin(self, epoch, logs=None):
        adapter = self.model
        adapter.centroids.assign(
            target_centroids(adapter.encoder, adapter.classifier, self.target, self.most)
        )
