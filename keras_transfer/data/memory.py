"""Decoded images that stay in memory for later epochs."""

from collections.abc import Callable

import numpy as np

from keras_transfer.modalities.image.opened import Opened


class ImageMemory:
    """Decoded images, cached for later epochs until the limit is reached.

    Args:
        limit: maximum size, in bytes.
    """

    def __init__(self, limit: int):
        self.limit, self.bytes = limit, 0
        self._sizes: dict[tuple[int, int], tuple[int, int]] = {}
        self._pixels: dict[tuple, np.ndarray] = {}  # the last are arguments of `pixels`
        self._readers: dict = {}  # keeps the readers alive, whose ids are in the keys

    def reserve(self, size: int) -> bool:
        """Reserve memory; return False if it is not available."""
        fits = self.bytes + size <= self.limit
        self.bytes += size if fits else 0
        return fits

    def cached(self, reader, part: tuple, make: Callable) -> np.ndarray:
        """Return a part of a reader's example, made once if it fits.

        Args:
            reader: of the example.
            part: which part of which example.
            make: returns it.
        """
        self._readers[id(reader)] = reader
        key = (id(reader), *part)
        found = self._pixels.get(key)
        if found is None:
            found = make()
            if self.reserve(found.nbytes):
                self._pixels[key] = found
        return found

    def reader(self, images) -> Callable:
        """Return a cached version of `images.read`."""
        self._readers[id(images)] = images

        def read(index, use):
            key = (id(images), int(index))
            if key not in self._sizes:
                return images.read(index, lambda image: use(self._cached(key, image)))

            def decode(reduction, reading):
                part = reduction, reading
                found = self._pixels.get((*key, *part))
                if found is None:
                    found = images.read(index, lambda image: self._decoded(key, image, *part))
                return found

            return use(Opened(*self._sizes[key], decode))

        return read

    def _cached(self, key, image):
        return Opened(image.height, image.width, lambda *part: self._decoded(key, image, *part))

    def _decoded(self, key, image, reduction, reading):
        pixels, part = image.pixels(reduction, reading), (reduction, reading)
        if (*key, *part) not in self._pixels and self.reserve(pixels.nbytes):
            self._sizes[key] = image.height, image.width
            self._pixels[(*key, *part)] = pixels
        return pixels
