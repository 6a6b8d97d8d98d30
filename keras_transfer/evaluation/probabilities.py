"""Raw outputs of all images as probabilities, a few rows or a column at a time.

Logits of 50,000 images and 1,000 classes are 200 MB. They are kept once; nothing else of their size
is made.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from keras_transfer.errors import InputError

_AT_ONCE = 1 << 22  # numbers in a block


def require_finite(outputs: np.ndarray, names: Sequence[str]) -> None:
    """Raises InputError where a model gives no numbers; the message names the first image.

    Args:
        outputs: float [N, C].
        names: of the images [N].
    """
    wrong = np.flatnonzero([not np.isfinite(block).all() for block in outputs])
    if len(wrong):
        raise InputError(
            f"The model gives no finite numbers for {len(wrong)} of {len(outputs)} images (first "
            f"{names[wrong[0]]}): nothing can be measured. Its training diverged; lower the learning "
            "rate, or train in float32."
        )


def blocks(outputs: np.ndarray, temperature: float = 1.0) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, those rows of `outputs` [N, C] over the temperature, float64)."""
    step = max(1, _AT_ONCE // outputs.shape[1])
    for start in range(0, len(outputs), step):
        rows = slice(start, start + step)
        yield rows, outputs[rows].astype("float64") / temperature


class Softmax:
    """Probabilities of classes that exclude each other: softmax of logits over a temperature.

    Args:
        logits: float32 [N, C], kept as they are.
        temperature: > 0; above 1 makes the model less sure (Guo et al. 2017, arXiv:1706.04599).
    """

    def __init__(self, logits: np.ndarray, temperature: float = 1.0):
        self.logits, self.temperature = logits, temperature

    def __len__(self) -> int:
        return len(self.logits)

    @cached_property
    def predicted(self) -> np.ndarray:
        """The most probable class, int [N]."""
        return self.logits.argmax(axis=1)

    @cached_property
    def log_total(self) -> np.ndarray:
        """Logarithm of the sum that the exponentials are divided by, float64 [N]."""
        from scipy.special import logsumexp

        total = np.empty(len(self))
        for rows, block in blocks(self.logits, self.temperature):
            total[rows] = logsumexp(block, axis=1)
        return total

    @cached_property
    def confidence(self) -> np.ndarray:
        """Probability of the predicted class, float64 [N]."""
        return np.exp(np.minimum(self.log_of(self.predicted), 0))

    def log_of(self, classes: np.ndarray) -> np.ndarray:
        """Logarithm of the probability of one class per image, int [N] → float64 [N]."""
        chosen = self.logits[np.arange(len(self)), classes].astype("float64")
        return chosen / self.temperature - self.log_total

    def log_column(self, index: int) -> np.ndarray:
        """Logarithm of the probability of one class in all images, float64 [N]."""
        return self.logits[:, index].astype("float64") / self.temperature - self.log_total

    def log_loss(self, labels: np.ndarray) -> float:
        """Mean negative logarithm of the true class's probability, in nats."""
        return float(-self.log_of(labels).mean())

    def brier(self, labels: np.ndarray) -> float:
        """Brier's score (1950): mean over images of Σ_c (p_c − y_c)², 0 to 2."""
        squares = np.empty(len(self))
        for rows, block in blocks(self.logits, self.temperature):
            squares[rows] = np.exp(2 * (block - self.log_total[rows, None])).sum(axis=1)
        return float((squares - 2 * np.exp(self.log_of(labels)) + 1).mean())

    def rank_of(self, labels: np.ndarray) -> np.ndarray:
        """How many classes are more probable than the true one, int [N]."""
        ranks = np.empty(len(self), int)
        for rows, block in blocks(self.logits):
            truth = block[np.arange(len(block)), labels[rows]]
            ranks[rows] = (block > truth[:, None]).sum(axis=1)
        return ranks

    def top(self, row: int, count: int) -> list[tuple[int, float]]:
        """(class, probability) of the most probable ones of an image, highest first."""
        order = np.argsort(-self.logits[row], kind="stable")[:count]
        values = self.logits[row, order].astype("float64") / self.temperature
        return list(zip(order.tolist(), np.exp(values - self.log_total[row]).tolist()))


class Sigmoid:
    """Probabilities of labels, each by itself: sigmoid of logits over a temperature.

    Args:
        logits: float32 [N, L].
        temperature: > 0.
    """

    def __init__(self, logits: np.ndarray, temperature: float = 1.0):
        self.logits, self.temperature = logits, temperature

    def __len__(self) -> int:
        return len(self.logits)

    @cached_property
    def scores(self) -> np.ndarray:
        """float64 [N, L]."""
        from scipy.special import expit

        return expit(self.logits.astype("float64") / self.temperature)

    def log_loss(self, labels: np.ndarray) -> float:
        """Mean over images and labels of the binary cross entropy, in nats."""
        signed = np.where(labels > 0, -1.0, 1.0) * self.logits / self.temperature
        return float(np.logaddexp(0, signed).mean())

    def brier(self, labels: np.ndarray) -> float:
        """Mean over images and labels of (p − y)², 0 to 1."""
        return float(np.square(self.scores - labels).mean())


PROBABILITIES: dict[str, type[Softmax] | type[Sigmoid]] = {
    "single_label": Softmax,
    "multi_label": Sigmoid,
}
