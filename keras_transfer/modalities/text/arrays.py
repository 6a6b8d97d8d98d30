"""Texts in memory."""

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.modalities.text.check import pair_of


def parts_of(value) -> list:
    """Return the items of a sequence in memory, such as a pair; [] for anything else."""
    sequence = isinstance(value, (tuple, list)) or (
        isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "UTSO"
    )
    return list(value) if sequence else []


class Cast:
    """Convert the texts of a split, or its pairs of texts, to strings, one by one.

    Args:
        split: its name, for messages.
    """

    def __init__(self, split: str):
        self.split = split

    def __call__(self, text, name: str) -> str:
        if len(pair := parts_of(text)) == 2:
            return pair_of(*(self(part, name) for part in pair))
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
