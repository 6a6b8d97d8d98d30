"""States of the whole process that a training changes, and gives back.

Python, NumPy, TensorFlow and Keras each have a random state that the caller may rely on.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def restored() -> Iterator[None]:
    """Restore the random states at the end, and the rest of Keras's state, such as its dtype policy."""
    from keras_transfer.utils.keras_versions import keras_state, tensorflow_seed

    python, numpy = random.getstate(), np.random.get_state()
    try:
        with keras_state(), tensorflow_seed():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy, TensorFlow and Keras in the block, and restore their states at the end."""
    import keras

    with restored():
        keras.utils.set_random_seed(seed)
        yield
