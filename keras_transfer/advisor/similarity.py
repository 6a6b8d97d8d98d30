"""How much images look, to a pretrained network, like those it was trained on; no labels needed.

A network with BatchNorm remembers mean and variance of every channel over the images it was
trained on. Where the same channels have other means and variances on new images, the new images
are something else (the statistics that AdaBN, arXiv:1603.04779, exchanges for this reason).
"""

from functools import partial

import keras
import numpy as np
from keras import ops

from keras_transfer.data.examples import Examples
from keras_transfer.errors import InputError
from keras_transfer.features.prefix import prefix_of
from keras_transfer.features.store import Store, concluded, digest_of
from keras_transfer.modalities.image.augment import View
from keras_transfer.models.stages import Backbone, clone_with

_IMAGES = 128
_VERSION = 1  # of the formula: raise it when it changes
_BATCH = 32


def activation_shift(
    backbone: Backbone, examples: Examples, *, most: int = _IMAGES, seed: int = 0, store=None
) -> float | None:
    """How far the activations of images are from those of the images that it learned from.

    For each channel that goes into a BatchNorm, the Kullback-Leibler divergence in nats of the
    normal distribution of its values on these images from the one that BatchNorm remembers;
    the median over the channels of a layer, the mean over layers. 0 is the same images. Measured
    with two MobileNets: photographs of insects 0.01 to 0.03, of hands on white 0.11 to 0.16,
    MNIST digits 0.19 to 0.29, at 64 to 224 px and from 50 images on.

    Args:
        backbone: with pretrained weights, built for one image size.
        examples: the images; of more than `most` a random sample is looked at.
        seed: of the sample.
        store: a `features.store.Store` where the answer is kept; by default the user's.

    Returns:
        ≥ 0, or None where the backbone has no BatchNorm (ConvNeXt, VGG).

    Raises:
        InputError: a backbone without an image size.
    """
    size = backbone.input_shape[1]
    if size is None:
        raise InputError(f"The backbone '{backbone.name}' takes any image size: build it for one.")
    rows = np.sort(np.random.default_rng(seed).permutation(len(examples))[:most])
    sample = examples.take(rows)
    whole = prefix_of(backbone, len(backbone.stages))
    found = concluded(
        whole,
        store or Store(),
        f"activation shift {_VERSION}",
        partial(_measured, backbone, sample),
        of=f"shift of activations of {len(sample)} images",
        sample=digest_of(sample.digests),
    )
    return found["shift"]


def _measured(backbone, sample):
    from keras_transfer.data import batches as pipeline

    model, norms = _moments(backbone)
    if not norms:
        return {"shift": None}
    stream = pipeline.views(sample, range(len(sample)), [View()], backbone.input_shape[1], _BATCH)
    # Over places and images: averages of the images' own.
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
    """KL(N(mean, variance) ‖ N(mean0, variance0)) of each channel; epsilon keeps still channels quiet."""
    variance, variance0 = variance + epsilon, variance0 + epsilon
    ratio = variance / variance0
    return 0.5 * (ratio + (mean - mean0) ** 2 / variance0 - 1 - np.log(ratio))


def _moments(backbone):
    """(images → mean and mean square of each channel that goes into a BatchNorm [N, 2 C], the
    BatchNorms in that order)."""
    norms, means, squares = [], [], []

    def call(layer, *args, **kwargs):
        if isinstance(layer, keras.layers.BatchNormalization) and layer.axis in (
            -1,
            len(args[0].shape) - 1,
        ):
            x = ops.cast(args[0], "float32")
            places = tuple(range(1, len(x.shape) - 1))
            norms.append(layer)
            means.append(ops.mean(x, axis=places) if places else x)
            squares.append(ops.mean(ops.square(x), axis=places) if places else ops.square(x))
        return layer(*args, **kwargs)

    inputs = keras.Input(backbone.input_shape[1:], dtype=backbone.inputs[0].dtype)
    clone_with(backbone, inputs, call)
    if not norms:
        return None, norms
    return keras.Model(inputs, ops.concatenate([*means, *squares], axis=-1)), norms
