"""A backbone's duplicate that has seen nothing: what its architecture knows without the weights."""

import hashlib
import random

import keras
import numpy as np

from keras_transfer.data.examples import Examples
from keras_transfer.features.prefix import Prefix
from keras_transfer.features.store import Store, Writer
from keras_transfer.modalities.image.augment import View
from keras_transfer.models.stages import Backbone, batch_norms

_FORMAT = 1  # of the statistics kept: raise it when they are measured otherwise
_BATCH, _BATCHES = 16, 8


def random_duplicate(
    backbone: Backbone,
    examples: Examples,
    *,
    seed: int = 0,
    store: Store | None = None,
    memory=None,
) -> Backbone:
    """The same architecture with new random weights, its BatchNorm made for these images.

    With the statistics a BatchNorm starts with (mean 0, variance 1) it does nothing, and after a
    dozen layers little is left of the images. In training it would divide by the statistics of
    its batches from the first step on; the duplicate gets the exact averages of these over 8 batches of
    16 images (as AdaBN computes them for another domain, arXiv:1603.04779). Labels have no part
    in it. The same seed, architecture and images give the same weights; the statistics are kept in
    the store, so that they are measured once.

    Args:
        backbone: built for one image size; it is not changed.
        examples: images to measure on; 128 of them, whatever their order, or all where there are fewer.
        seed: of the weights. Keras's and Python's random states stay as they are.
        store: by default the user's.
        memory: a `data.memory.ImageMemory` for images that another network looks at too.

    Raises:
        InputError: an image that cannot be read any more.
    """
    duplicate = _initialised(backbone, seed)
    norms = batch_norms(duplicate)
    if not norms:
        return duplicate
    # In the order of their digests, which is as good as shuffled: classes lie one after the other.
    chosen = sorted(range(len(examples)), key=examples.digests.__getitem__)[: _BATCH * _BATCHES]
    names = b"".join(examples.digests[i] for i in chosen)
    digest = hashlib.blake2b(names, digest_size=16).digest()
    table = _table(
        store or Store(), duplicate, sum(2 * norm.moving_mean.shape[0] for norm in norms)
    )
    table.refresh()
    if table.missing([digest]):
        _calibrate(duplicate, norms, _images(examples, chosen, duplicate.input_shape[1], memory))
        row = np.concatenate([keras.ops.convert_to_numpy(v) for v in _statistics(norms)])
        writer = Writer(table)
        writer.add([digest], row[None].astype("float32"))
        writer.flush()
    (row,) = table.gather(table.locate([digest]))
    start = 0
    for variable in _statistics(norms):
        variable.assign(row[start : start + variable.shape[0]])
        start += variable.shape[0]
    return duplicate


def _initialised(backbone, seed):
    # Initialisers without a seed of their own draw one from Python's generator. The user may have
    # seeded it with the same number before the backbone was built, which is no reason to be equal.
    state = random.getstate()
    random.seed(f"random duplicate {seed}")
    try:
        duplicate = Backbone.from_config(backbone.get_config())
    finally:
        random.setstate(state)
    for layer in duplicate.layers:  # what stands still in the backbone would not be measured
        layer.trainable = True
    return duplicate


def _statistics(norms):
    return [variable for norm in norms for variable in (norm.moving_mean, norm.moving_variance)]


def _table(store, duplicate, size):
    identity = {
        "format": _FORMAT,
        "what": "BatchNorm statistics",
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "prefix": Prefix(duplicate, duplicate.name).fingerprint,
        "image_size": duplicate.input_shape[1],
    }
    about = {
        "backbone": f"{duplicate.name}, random weights: BatchNorm statistics",
        "image_size": duplicate.input_shape[1],
        "shape": [size],
        "dtype": "float32",
        "engine": "keras",
        "view": "plain",
    }
    return store.table(identity, about)


def _images(examples, chosen, image_size, memory):
    from keras_transfer.data import batches as pipeline

    stream = pipeline.views(examples, chosen, [View()], image_size, _BATCH, memory)
    return (batch[0].numpy() for batch in stream)


def _calibrate(duplicate, norms, batches):
    """Sets moving mean and variance to the average of those of the batches."""
    momenta = [norm.momentum for norm in norms]
    for count, batch in enumerate(batches):
        for norm in norms:
            norm.momentum = count / (count + 1)
        duplicate(batch, training=True)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
