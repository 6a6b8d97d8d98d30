"""Linear models on features that do not fit into memory: every pass reads them from the store, in blocks."""

from collections.abc import Callable, Iterator

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from keras_transfer.features.threads import shared_fits
from keras_transfer.utils.console import progress_bar
from keras_transfer.utils.files import bytes_in, total_memory

_BLOCK_BYTES = 64 << 20
_COPIES = 4  # of the features that the solvers in memory need at most
_MAX_STEPS = 300


def memory_budget() -> int:
    """Return the bytes that features may take in memory while a head is fitted.

    That is `KERAS_TRANSFER_MEMORY_GB` (gigabytes), or else a quarter of the machine's memory.

    Raises:
        InputError: the variable is not a positive number.
    """
    return bytes_in("KERAS_TRANSFER_MEMORY_GB", total_memory() // 4, least=1)


class Rows:
    """Features of many rows that are read when they are needed.

    Args:
        shape: (N, D).
        read: returns the rows at some positions, float [n, D].
    """

    def __init__(self, shape: tuple[int, int], read: Callable[[np.ndarray], np.ndarray]):
        self.shape, self._read = shape, read

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return float32 [n, D]."""
        return self._read(rows).astype("float32", copy=False)

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (which rows, float32 [n, D]) of all rows in order."""
        count = max(1, _BLOCK_BYTES // (4 * self.shape[1]))
        for start in range(0, len(self), count):
            rows = np.arange(start, min(start + count, len(self)))
            yield slice(start, start + len(rows)), self.take(rows)

    def within(self, budget: int) -> "np.ndarray | Rows":
        """Return the rows as an array if the solvers can work on it within `budget` bytes."""
        size = 4 * self.shape[0] * self.shape[1]
        return self.take(np.arange(len(self))) if _COPIES * size <= budget else self


def scales(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return what each feature is divided by, from mean and variance of each: float64 [D].

    It is the geometric mean of its own deviation and that of all features together. Divided by their
    own, features that hardly vary become as important as the others; by a common one, those of
    stages with small activations do not count.
    """
    common = max(float(np.sqrt(np.mean(variance + (mean - mean.mean()) ** 2))), 1e-12)
    return np.sqrt(np.maximum(np.sqrt(variance), 1e-3 * common) * common)


class Blocks:
    """Standardized features that are fitted in blocks, like `closed_form.Standardized` in memory.

    Args:
        features: N rows of D features.
        columns: positions of those that count; by default all.
    """

    def __init__(self, features: Rows, columns: np.ndarray | None = None):
        self.features, self.width = features, features.shape[1]
        self.columns = np.arange(self.width) if columns is None else columns
        count, self.mean, spread = 0, np.zeros(len(self.columns)), np.zeros(len(self.columns))
        for _, block in self._blocks():
            # Chan, Golub and LeVeque: differences of large sums would lose the variance.
            mean, rows = block.mean(axis=0, dtype="float64"), len(block)
            spread += block.var(axis=0, dtype="float64") * rows
            spread += (mean - self.mean) ** 2 * (count * rows / (count + rows))
            self.mean += (mean - self.mean) * (rows / (count + rows))
            count += rows
        self.scale = scales(self.mean, spread / count)

    def _blocks(self):
        for rows, block in self.features.blocks():
            yield rows, block[:, self.columns]

    def sample(self, rows: np.ndarray) -> np.ndarray:
        """Return some rows, standardized, float32 [n, K]."""
        return self._standard(self.features.take(rows)[:, self.columns])

    def _standard(self, block):
        return (block - self.mean.astype("float32")) / self.scale.astype("float32")

    def logistic(self, labels: np.ndarray, strength: float, class_weight: dict | None):
        """Return (weights [C, K], offsets [C]) of multinomial logistic regression.

        The loss and the criterion to stop are scikit-learn's; each step of L-BFGS is a pass over
        the features.
        """
        classes = int(labels.max()) + 1
        weights = (
            np.ones(classes) if class_weight is None else np.array(list(class_weight.values()))
        )
        total = float(weights[labels].sum())
        # Two classes have one logit in scikit-learn, whose square is penalized half as much here.
        penalty = (2 if classes == 2 else 1) / (strength * total)
        width = len(self.columns)
        steps = progress_bar(label="fitting in blocks", unit="passes")

        def loss(values):
            values = values.reshape(classes, width + 1)
            kernel, offsets = values[:, :-1].astype("float32"), values[:, -1]
            value, gradient = 0.0, np.zeros_like(values)
            for rows, block in self._blocks():
                block = self._standard(block)
                logs = log_softmax(block @ kernel.T + offsets, axis=1)
                own, where = labels[rows], np.arange(len(block))
                share = weights[own] / total
                value -= float(share @ logs[where, own])
                errors = np.exp(logs)
                errors[where, own] -= 1
                errors *= share[:, None]
                gradient[:, :-1] += errors.T.astype("float32") @ block
                gradient[:, -1] += errors.sum(axis=0)
            value += 0.5 * penalty * float((values[:, :-1] ** 2).sum())
            gradient[:, :-1] += penalty * values[:, :-1]
            steps.update()
            return value, gradient.ravel()

        options = dict(maxiter=_MAX_STEPS, maxls=50, gtol=1e-4, ftol=64 * np.finfo(float).eps)
        start = np.zeros(classes * (width + 1))
        try:
            with shared_fits():
                found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
        finally:
            steps.close()
        values = found.x.reshape(classes, width + 1)
        return values[:, :-1], values[:, -1]

    def ridge(self, targets: np.ndarray, alphas: np.ndarray):
        """Return (weights [C, K], offsets [C]) of ridge regression, by the normal equations."""
        width, center = len(self.columns), targets.mean(axis=0)
        gram, product = np.zeros((width, width)), np.zeros((width, targets.shape[1]))
        for rows, block in self._blocks():
            block = self._standard(block).astype("float64")
            gram += block.T @ block
            product += block.T @ (targets[rows] - center)
        values, vectors = np.linalg.eigh(gram)
        rotated = (vectors.T @ product) / (np.maximum(values, 0)[:, None] + alphas)
        return (vectors @ rotated).T, center

    def unfolded(self, weights: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (kernel [D, C], bias [C]) on the features from weights [C, K], offsets on rows."""
        kernel = np.zeros((self.width, len(weights)))
        kernel[self.columns] = weights.T / self.scale[:, None]
        bias = offsets - self.mean @ kernel[self.columns]
        return kernel.astype("float32"), bias.astype("float32")
