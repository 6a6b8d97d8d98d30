"""Texts in memory."""

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.modalities.text.check import pair_of


class Cast:
    """Convert the texts of a split, or its pairs of texts, to strings, one by one.

    Args:
        split: its name, for messages.
    """

    def __init__(self, split: str):
        self.split = split

    def __call__(self, text, name: str) -> str:
        if isinstance(text, (tuple, list)) and len(text) == 2:
            return pair_of(*(self(part, name) for part in text))
        if isinstance(text, np.ndarray) and text.ndim == 0:
            text = text.item()
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError:
                raise InputError(f"{name} is not UTF-8: decode it before you pass it.") from None
        if not isinstance(text, str):
            raise InputError(f"{name} is {text!r}, not a text: pass strings, or pairs of strings.")
        return str(text)

    def report(self) -> None:
        """There is nothing to print."""
