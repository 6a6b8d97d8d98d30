"""Compare the training images with the pretraining images."""

from functools import partial

import keras
import numpy as np
from keras import ops

from keras_transfer.advisor.inputs import random_sample, sized_backbone
from keras_transfer.data.examples import Examples
from keras_transfer.features.prefix import prefix_of
from keras_transfer.features.store import Store, concluded, digest_of
from keras_transfer.modalities.views import View
from keras_transfer.models.framing import framing_of
from keras_transfer.models.graph import clone_with
from keras_transfer.models.stages import Backbone

_SHIFT_VERSION = 1  # of the stored results; increase it when the numbers change
_SHIFT_IMAGES = 128
_BATCH = 32


def activation_shift(
    backbone: Backbone,
    examples: Examples,
    *,
    most: int = _SHIFT_IMAGES,
    seed: int = 0,
    store: Store | None = None,
) -> float | None:
    """Measure how much images differ, to a pretrained backbone, from those of its pretraining.

    A BatchNorm stores the mean and variance of every channel over the pretraining images. For each
    channel that enters a BatchNorm, this takes the Kullback-Leibler divergence in nats of the normal
    distribution of its values on these images from the stored one; then the median over the channels
    of a layer and the mean over layers. No labels are needed. (AdaBN, arXiv:1603.04779, replaces
    these statistics in a new domain.)

    With two MobileNets, photographs of insects have 0.01 to 0.03, of hands on white 0.11 to 0.16, and
    MNIST digits 0.19 to 0.29, at 64 to 224 px and from 50 images on.

    Args:
        backbone: pretrained, built for one image size.
        examples: the images, or a larger set.
        most: maximum number of images, drawn at random.
        seed: of the sample.
        store: a `features.store.Store` for the result; by default the user's.

    Returns:
        A number ≥ 0, where 0 means equal statistics; None for a backbone without BatchNorm (ConvNeXt,
        VGG).

    Raises:
        InputError: the backbone has no fixed image size.
    """
    backbone = sized_backbone(backbone, data=examples)
    sample = random_sample(examples, most, seed)
    stored = concluded(
        prefix_of(backbone, len(backbone.stages)),
        store or Store(),
        f"activation shift {_SHIFT_VERSION}",
        partial(_measure_shift, backbone, sample),
        of=f"shift of activations of {len(sample)} images",
        sample=digest_of(sample.digests),
    )
    return stored["shift"]


def _measure_shift(backbone, sample):
    from keras_transfer.data import batches as pipeline

    model, norms = _moments(backbone)
    if not norms:
        return {"shift": None}
    stream = pipeline.views(sample, range(len(sample)), [View()], framing_of(backbone), _BATCH)
    # The moments over all images and positions are means of the moments of single images.
    moments = np.concatenate([model.predict_on_batch(batch[0]) for batch in stream])
    mean, square = np.split(moments.astype("float64").mean(axis=0), 2)
    variance = np.maximum(square - mean**2, 0)
    shifts, start = [], 0
    for norm in norms:
        channels = slice(start, start := start + norm.moving_mean.shape[0])
        learned = ops.convert_to_numpy(norm.moving_mean), ops.convert_to_numpy(norm.moving_variance)
        divergence = _divergence(mean[channels], variance[channels], *learned, norm.epsilon)
        shifts.append(np.median(divergence))
    return {"shift": float(np.mean(shifts))}


def _divergence(mean, variance, mean0, variance0, epsilon):
    """Return KL(N(mean, variance) ‖ N(mean0, variance0)) per channel.

    Epsilon prevents nearly constant channels from dominating.
    """
    variance, variance0 = variance + epsilon, variance0 + epsilon
    ratio = variance / variance0
    return 0.5 * (ratio + (mean - mean0) ** 2 / variance0 - 1 - np.log(ratio))


def _moments(backbone):
    """Return (model, BatchNorms in order); the model maps images to the mean and mean square of each
    channel that enters a BatchNorm [N, 2 C]."""
    norms, means, squares = [], [], []

    def call(layer, *args, **kwargs):
        if isinstance(layer, keras.layers.BatchNormalization) and layer.axis in (
            -1,
            len(args[0].shape) - 1,
        ):
            x = ops.cast(args[0], "float32")
            positions = tuple(range(1, len(x.shape) - 1))
            norms.append(layer)
            means.append(ops.mean(x, axis=positions) if positions else x)
            squares.append(ops.mean(ops.square(x), axis=positions) if positions else ops.square(x))
        return layer(*args, **kwargs)

    inputs = keras.Input(backbone.input_shape[1:], dtype=backbone.inputs[0].dtype)
    clone_with(backbone, inputs, call)
    if not norms:
        return None, norms
    return keras.Model(inputs, ops.concatenate([*means, *squares], axis=-1)), norms
