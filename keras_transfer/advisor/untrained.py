"""A backbone with random weights, to measure what its architecture contributes without pretraining."""

import hashlib
import random

import keras
import numpy as np

from keras_transfer.data.examples import Examples
from keras_transfer.features.prefix import Prefix
from keras_transfer.features.store import Store, Writer
from keras_transfer.modalities.views import View
from keras_transfer.models.framing import framing_of
from keras_transfer.models.stages import Backbone, batch_norms
from keras_transfer.utils.image_sizes import size_of

_FORMAT = 1  # of the stored statistics; increase it when they are measured differently
_BATCH, _BATCHES = 16, 8


def random_copy(
    backbone: Backbone,
    examples: Examples,
    *,
    seed: int = 0,
    store: Store | None = None,
    memory=None,
) -> Backbone:
    """Return the same architecture with random weights and BatchNorm statistics of these images.

    With its initial statistics (mean 0, variance 1), a BatchNorm does nothing, and after a dozen layers
    little remains of the images. In training it would divide by the statistics of its batches from
    the first step. The copy therefore gets the exact averages of these over 8 batches of 16 images, as
    AdaBN (arXiv:1603.04779) computes them for another domain. Labels are not used. The same seed,
    architecture and images give the same weights; the statistics are measured once and stored.

    Args:
        backbone: built for one image size; it is not changed.
        examples: images to measure on. Up to 128 are used, and their order does not matter.
        seed: of the weights. The random states of Keras and Python stay unchanged.
        store: by default the user's.
        memory: a `data.memory.ImageMemory` for images that another network will read too.

    Raises:
        InputError: an image can no longer be read.
    """
    copy = _initialized(backbone, seed)
    norms = batch_norms(copy)
    if not norms:
        return copy
    # Sorting by digest is as good as shuffling; in their own order, images are sorted by class.
    rows = sorted(range(len(examples)), key=examples.digests.__getitem__)[: _BATCH * _BATCHES]
    digests = b"".join(examples.digests[i] for i in rows)
    key = hashlib.blake2b(digests, digest_size=16).digest()
    table = _table(store or Store(), copy, sum(2 * norm.moving_mean.shape[0] for norm in norms))
    table.refresh()
    if table.missing([key]):
        _calibrate(copy, norms, _images(examples, rows, framing_of(copy), memory))
        values = np.concatenate([keras.ops.convert_to_numpy(v) for v in _statistics(norms)])
        writer = Writer(table)
        writer.add([key], values[None].astype("float32"))
        writer.flush()
    (values,) = table.gather(table.locate([key]))
    start = 0
    for variable in _statistics(norms):
        variable.assign(values[start : start + variable.shape[0]])
        start += variable.shape[0]
    return copy


def _initialized(backbone, seed):
    # Initializers without a seed draw one from Python's generator. The text prevents weights equal to
    # the backbone's, which the user may have built after setting the same number as the seed.
    state = random.getstate()
    random.seed(f"random duplicate {seed}")
    try:
        copy = Backbone.from_config(backbone.get_config())
    finally:
        random.setstate(state)
    for layer in copy.layers:  # a frozen BatchNorm would not be calibrated
        layer.trainable = True
    return copy


def _statistics(norms):
    return [variable for norm in norms for variable in (norm.moving_mean, norm.moving_variance)]


def _table(store, copy, size):
    identity = {
        **Prefix(copy, copy.name, framing=framing_of(copy)).identity,
        "format": _FORMAT,
        "what": "BatchNorm statistics",
        "backend": keras.backend.backend(),
    }
    about = {
        "backbone": f"{copy.name}, random weights: BatchNorm statistics",
        "image_size": size_of(copy.input_shape),
        "shape": [size],
        "dtype": "float32",
        "engine": "keras",
        "view": "plain",
    }
    return store.table(identity, about)


def _images(examples, rows, framing, memory):
    from keras_transfer.data import batches as pipeline

    stream = pipeline.views(examples, rows, [View()], framing, _BATCH, memory)
    return (batch[0].numpy() for batch in stream)


def _calibrate(copy, norms, batches):
    """Set moving mean and variance to their averages over the batches."""
    momenta = [norm.momentum for norm in norms]
    for count, batch in enumerate(batches):
        for norm in norms:
            norm.momentum = count / (count + 1)
        copy(batch, training=True)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
