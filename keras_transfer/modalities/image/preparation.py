"""Make model inputs of images: decode, crop and resample in Python, and vary colors in graph ops.

An object like `Preparation` is what a modality offers to `data.batches`.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from keras_transfer.modalities.image.augment import View
from keras_transfer.modalities.image.boxes import (
    DRAWS,
    aligned,
    central_box,
    is_flipped,
    random_box,
    reduction,
)
from keras_transfer.modalities.image.framing import Framing
from keras_transfer.modalities.image.opened import open_pixels
from keras_transfer.modalities.image.prepare import finisher
from keras_transfer.modalities.image.resample import one_thread, resample
from keras_transfer.modalities.image.transforms import Albumentations, KerasLayer
from keras_transfer.modalities.one_by_one import OneByOne


class Preparation(OneByOne):
    """Makes views of single images, in two steps.

    The first, `make`, runs in Python, in any number of threads. The second is the view's function in
    `finish`, if there is one, and runs in graph ops.

    Args:
        images: a reader, see `data.files`.
        views: the V views to make of each image.
        framing: size and crop.
        memory: a `data.memory.ImageMemory`, which caches decoded images.

    Attributes:
        shape: of a view, (height, width, channels).
        dtype: of a view, `"uint8"`.
        draws: number of random numbers that `make` needs for a view.
        finish: for each view a graph function (image, seed int64 [2]) → image, or None.
        busy: context in which threads call `make`.
        lengths: of the examples, int [N], if they differ in what they cost; else None.
        nbytes: of a view, in the mean.

    Raises:
        InputError: if a Keras layer fails on images of that size.
    """

    dtype = "uint8"
    draws = len(DRAWS)
    busy = one_thread

    def __init__(self, images, views: Sequence[View], framing: Framing, memory=None):
        self._size, self._crop = framing.square
        self.shape, self._reading = framing.shape, framing.reading
        self.finish = [
            finisher(view.augmentation, self._size, framing.reading.channels) for view in views
        ]
        self._read = images.read if memory is None else memory.reader(images)
        self._views = [self._function(view, images.names) for view in views]

    def make(self, index: int, draws: np.ndarray, seeds: np.ndarray, out: np.ndarray) -> None:
        """Write the views of one image into `out`.

        Args:
            index: position of the image.
            draws: float32 [V, `draws`], in [0, 1).
            seeds: int64 [V, 2], for transforms that draw by themselves.
            out: uint8 [V, height, width, channels].

        Raises:
            ValueError: if the image cannot be read; the message names it.
        """

        def write(image):
            for n, view in enumerate(self._views):
                view(image, draws[n], seeds[n], index, out[n])

        self._read(index, write)

    def _function(self, view, names):
        """Return a function (opened image, draws, seed, index, out) that writes a view."""
        varied = view.augmentation
        if varied is None or isinstance(varied, KerasLayer):
            return partial(self._plain, flip=view.kind == "mirror")
        if isinstance(varied, Albumentations):
            return partial(self._transformed, varied.function(names))
        return partial(self._random, varied)

    def _plain(self, image, draws, seed, index, out, flip=False):
        self._show(image, self._center(image), out, flip)

    def _random(self, augmentation, image, draws, seed, index, out):
        height, width = np.float32(image.height), np.float32(image.width)
        box = self._center(image)
        if augmentation.crop:
            box = random_box(height, width, augmentation, draws, self._size)
            box = aligned(box, reduction(box, self._size))
        self._show(image, box, out, augmentation.flip and is_flipped(draws))

    def _transformed(self, transform, image, draws, seed, index, out):
        made = transform(image.pixels(1, self._reading), seed, index)
        if made.shape == out.shape:
            np.copyto(out, made)
        else:
            image = open_pixels(made)
            self._show(image, self._center(image), out)

    def _center(self, image):
        height, width = np.float32(image.height), np.float32(image.width)
        return central_box(height, width, self._size, self._crop)

    def _show(self, image, box, out, flip=False):
        part = reduction(box, self._size)
        resample(image.pixels(part, self._reading), tuple(side / part for side in box), out, flip)
