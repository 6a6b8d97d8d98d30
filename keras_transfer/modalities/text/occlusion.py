"""Variants of a text without each of its words."""

import re

import numpy as np
import tensorflow as tf

from keras_transfer.modalities.text.check import BETWEEN
from keras_transfer.modalities.text.framing import TextFraming
from keras_transfer.modalities.text.tokens import token_ids

_MOST = 100  # words that are left out, one by one
_WORD = re.compile(r"\s*\S+")


def occluded(text: str, framing: TextFraming) -> tuple[list[str], np.ndarray]:
    """Return (the first words, with the space before each; token ids of the text and without each word)."""
    words = _WORD.findall(text)
    # A pair stays a pair without the word that its second text begins with.
    rest = [BETWEEN if BETWEEN in word else "" for word in words]
    variants = [text]
    variants += [
        "".join([*words[:i], rest[i], *words[i + 1 :]]) for i in range(min(_MOST, len(words)))
    ]
    return words[:_MOST], token_ids(tf.constant(variants), framing).numpy()
