"""The base of preparations that make one example at a time, all of one shape."""

from typing import Any

import numpy as np

from keras_transfer.utils.threads import for_each


class OneByOne:
    """Makes batches with its method `make`, which writes the views of one example, in threads.

    Attributes:
        shape, dtype: of a view.
        busy: context in which the threads work.
        lengths: None, because all examples cost the same.
    """

    shape: tuple
    dtype: str
    busy: Any
    lengths = None

    @property
    def nbytes(self) -> int:
        """Bytes of a view."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def make(self, index: int, draws: np.ndarray, seeds: np.ndarray, out: np.ndarray) -> None:
        """Write the views of one example into `out`."""
        raise NotImplementedError

    def batch(self, rows: np.ndarray, draws: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Return the views of some examples, [V, B, …].

        Args:
            rows: positions of the examples, int [B].
            draws: float32 [V, B, `draws`], in [0, 1).
            seeds: int64 [V, B, 2].
        """
        out = np.empty((*seeds.shape[:2], *self.shape), self.dtype)
        with self.busy:
            for_each(lambda i: self.make(rows[i], draws[:, i], seeds[:, i], out[:, i]), len(rows))
        return out
