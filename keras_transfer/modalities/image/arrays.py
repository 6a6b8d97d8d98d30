"""Images in memory: values of other dtypes become uint8."""

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.utils.console import say


class Cast:
    """Convert the images of a split to uint8 RGB, one by one, and report how at the end."""

    def __init__(self, split: str):
        self.split = split
        self._types: set[str] = set()  # of images with values between whole numbers
        self._highest = 0.0  # value of images of floats
        self._floats = False
        self._scaled = True  # whether no whole number is above 1

    def __call__(self, image, name: str) -> np.ndarray:
        try:
            image = np.asarray(image)
        except ValueError:  # rows of different lengths, or a clip with its rate
            raise InputError(f"{name} is not an array: pass RGB values 0–255.") from None
        if image.dtype != np.uint8 and image.size:
            image = self._as_uint8(image, name)
        self._scaled &= bool(image.size) and image.max() <= 1
        if image.ndim == 2:
            image = image[..., None]
        if image.ndim == 3 and image.shape[-1] == 1:
            image = np.repeat(image, 3, axis=-1)
        return image

    def _as_uint8(self, image, name):
        kind = str(image.dtype)
        try:
            values = image.astype(np.float32)
        except (TypeError, ValueError):
            raise InputError(f"{name} is {kind}, not an image: pass RGB values 0–255.") from None
        if values.ndim == 1:
            raise InputError(
                f"{name} has the shape {list(values.shape)}, not that of an image: pass [height, width, "
                "3], or rate=… for clips."
            )
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 255):  # or NaN
            raise InputError(
                f"{name} has values from {low:g} to {high:g} of {kind}: pass whole numbers 0–255, "
                "preferably uint8, without normalization."
            )
        whole = np.rint(values)
        if image.dtype.kind not in "biu":
            self._floats, self._highest = True, max(self._highest, float(high))
            if not np.array_equal(whole, values):
                self._types.add(kind)
        return whole.astype(np.uint8)

    def report(self) -> None:
        """Print what was rounded; raise InputError if the images are 0–1."""
        if self._floats and self._highest <= 1:
            raise InputError(
                f"{self.split} has values from 0 to {self._highest:g}: images must be RGB 0–255, so "
                "multiply by 255 (the model normalizes its inputs)."
            )
        if self._scaled:
            say(
                f"warning: {self.split} has no value above 1, and images must be RGB 0–255: if they "
                "were scaled, multiply by 255 before they become integers"
            )
        if self._types:
            kinds = " and ".join(sorted(self._types))
            say(f"{self.split}: images of {kinds} are rounded to whole numbers 0–255")
