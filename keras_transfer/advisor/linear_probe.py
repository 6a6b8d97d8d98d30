"""The cross-validated linear probe: how often a head on these features would be right."""

import os
import warnings

import numpy as np

from keras_transfer.features.closed_form import logistic_regression

_FOLDS = 5
_COMPONENTS = 256
_MOST_FOR_CHOOSING = 1000  # of a handful of strengths, which takes most of the time


def probe(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, seed: int = 0
) -> np.ndarray | None:
    """Which images a logistic regression gets right that was fitted on the other folds.

    Stratified folds, five at most, rows of one image together; in each the features are reduced
    to 256 principal components at most. The strength is the one that
    `solvers.logistic_regression` chooses, as for the head in closed form, on 1000 rows at most of
    all folds: one of nine numbers, whose optimism is small against the standard error. A class that the training
    part of a fold lacks is got wrong there.

    Args:
        features: float [N, D].
        labels: int [N], 0 ≤ label < C, C ≥ 2.
        groups: int [N], rows of one image.
        seed: of the folds.

    Returns:
        bool [N]; None where no class has two images, so that nothing can be learned and tested.
    """
    import joblib
    from sklearn.model_selection import StratifiedGroupKFold
    from threadpoolctl import threadpool_limits

    images = _images(labels, groups)
    folds = min(_FOLDS, int(images.max()))
    if folds < 2:
        return None
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)

    def right(train, test):
        predicted = _predicted(features[train], labels[train], features[test], strength, seed)
        return test, predicted == labels[test]

    found = np.zeros(len(labels), bool)
    with (
        warnings.catch_warnings(),
        threadpool_limits(1, "blas"),
        joblib.parallel_config("threading", n_jobs=os.cpu_count()),
    ):
        # Classes of fewer images than folds are meant, and fits that do not converge rank alike.
        warnings.simplefilter("ignore")
        strength = _strength(features, labels, groups, images, seed)
        splits = splitter.split(features, labels, groups)
        for test, correct in joblib.Parallel()(joblib.delayed(right)(*split) for split in splits):
            found[test] = correct
    return found


def _images(labels, groups):
    """Number of images of each class [C]."""
    return np.bincount(labels[np.unique(groups, return_index=True)[1]], minlength=labels.max() + 1)


def _strength(features, labels, groups, images, seed):
    """Chosen on the classes that have enough images for folds; 1 where there are no two such."""
    for least in (_FOLDS, 2):
        common = np.flatnonzero(images >= least)
        if len(common) < 2:
            continue
        rows = np.isin(labels, common)
        (reduced,) = _reduced(seed, features[rows])
        names, numbers = (np.unique(x[rows], return_inverse=True) for x in (labels, groups))
        found = logistic_regression(
            reduced, names[1], numbers[1], seed=seed, most=_MOST_FOR_CHOOSING
        )
        return found.strength
    return 1.0


def _predicted(features, labels, others, strength, seed):
    from sklearn.linear_model import LogisticRegression

    if (labels == labels[0]).all():
        return np.full(len(others), labels[0])
    features, others = _reduced(seed, features, others)
    scale = max(float(features.std()), 1e-12)  # one for all, as `solvers` has it
    fitted = LogisticRegression(C=strength, max_iter=300).fit(features / scale, labels)
    return fitted.predict(others / scale)


def _reduced(seed, *parts):
    """The parts on the principal components of the first, float64."""
    from sklearn.decomposition import PCA

    components = min(_COMPONENTS, *parts[0].shape)
    fitted = PCA(components, random_state=seed).fit(parts[0])
    return [fitted.transform(part) for part in parts]
