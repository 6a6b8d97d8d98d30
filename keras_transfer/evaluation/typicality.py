"""How much an example is like those that a model was trained on.

The score is the cosine of the example's features and those of its fifth nearest of a few hundred training
examples, which stand for all (arXiv:2204.06507). On the tuning half, `scripts/typicality.py` found it better
than the nearest one, the Mahalanobis distance, and the energy of the logits.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

PROTOTYPES = 500  # training examples, at most
NEIGHBOR = 5  # whose cosine is the score, counted from the nearest
_PASSING = 0.95  # share of the validation examples that are typical
_LEAST = 20  # validation examples by which a limit can be set


@dataclass(frozen=True, eq=False)
class Typicality:
    """What the training examples are like, and from where on an example is unlike them.

    Attributes:
        prototypes: features of training examples, of unit norm, float32 [P, D].
        threshold: an example is typical if its score is at least this; 95 % of the validation examples
            are.
        auroc: of validation examples against noise, 0.5 to 1.
    """

    prototypes: np.ndarray
    threshold: float
    auroc: float

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return the score of each row of features [N, D], −1 to 1: float32 [N]."""
        cosines = unit(features) @ self.prototypes.T
        return np.partition(cosines, -self.neighbor, axis=1)[:, -self.neighbor]

    @property
    def neighbor(self) -> int:
        """Which of the nearest prototypes the score is the cosine to."""
        return min(NEIGHBOR, len(self.prototypes))


def fit_typicality(
    train: np.ndarray, val: np.ndarray, noise: np.ndarray
) -> tuple[Typicality | None, str]:
    """Return (what is typical, or None if that cannot be told; one line about it).

    Args:
        train, val, noise: features of training and validation examples and of noise, float32 [N, D].
    """
    if len(val) < _LEAST:
        return None, f"{len(val)} validation examples are too few: {_LEAST} are needed"
    prototypes = unit(train[np.random.default_rng(0).permutation(len(train))[:PROTOTYPES]])
    found = Typicality(prototypes, 0.0, 0.0)
    own = found.scores(val)
    # A little below the quantile, so that rounding in a graph does not decide.
    threshold = float(np.quantile(own, 1 - _PASSING, method="lower")) - 1e-6
    truth = np.repeat([1, 0], [len(val), len(noise)])
    auroc = float(roc_auc_score(truth, np.concatenate([own, found.scores(noise)])))
    if auroc <= 0.5:
        return (
            None,
            f"validation examples are no more like the training than noise (AUROC {auroc:.2f})",
        )
    line = f"typical from {threshold:.3f}; against noise, AUROC {auroc:.3f}"
    return Typicality(prototypes, threshold, auroc), line


def unit(features: np.ndarray) -> np.ndarray:
    """Return rows of unit norm, float32 [N, D]."""
    features = np.asarray(features, "float32")
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
