"""Decoded images that stay in memory for later epochs."""

import numpy as np


class ImageMemory:
    """Decoded images, cached for later epochs until the limit is reached.

    Args:
        limit: maximum size, in bytes.
    """

    def __init__(self, limit: int):
        self.limit, self.bytes = limit, 0
        self._pixels: dict[tuple[int, int], np.ndarray] = {}
        self._readers: dict = {}  # keeps the readers alive, whose ids are in the keys

    def reserve(self, size: int) -> bool:
        """Reserve memory; return False if it is not available."""
        fits = self.bytes + size <= self.limit
        self.bytes += size if fits else 0
        return fits

    def reader(self, images):
        """Return a cached version of `images.pixels`."""
        self._readers[id(images)] = images

        def pixels(index):
            key = (id(images), int(index))
            if key in self._pixels:
                return self._pixels[key]
            image = images.pixels(index)
            if self.reserve(image.nbytes):
                self._pixels[key] = image
            return image

        return pixels
