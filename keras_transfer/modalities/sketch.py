"""What an example is like, in a few bytes: bits that near-duplicates share, and traits that may be odd."""

from typing import NamedTuple

import numpy as np


class Sketch(NamedTuple):
    """The sketch of one example.

    Attributes:
        bits: bool [V, B] of each of V views, such as rotations; half of those of unlike examples are
            equal. The first view is the example as it is.
        traits: float32 [T], see `Oddity`.
    """

    bits: np.ndarray
    traits: np.ndarray


class Oddity(NamedTuple):
    """What a trait of an example says if its value is low.

    Attributes:
        text: the oddity in words: `dark`.
        trait: position in `Sketch.traits`.
        below: values that are odd in any dataset.
        deviations: robust standard deviations below the median of the dataset beyond which values are
            odd; None if only `below` counts.
    """

    text: str
    trait: int
    below: float
    deviations: float | None = None
