"""Several views of each image (test-time augmentation), and one answer from them."""

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.modalities.image.augment import View, views_of


def views_for(tta: str | int | None, augmentation="light") -> tuple[View, ...]:
    """The views that answers are averaged over.

    Args:
        tta: `"mirror"`: each image and its mirror image; a number N ≥ 2: each image and N − 1
            variants of it, which follow from its content; None: the image alone.
        augmentation: what varies, see `data.resolve_augmentation`.

    Raises:
        InputError: none of these, or an augmentation in which nothing varies.
    """
    if tta is None:
        return (View(),)
    if tta == "mirror":
        return View(), View("mirror")
    if not str(tta).isdecimal() or int(tta) < 2:
        raise InputError(f"tta {tta}: give mirror, or a number of views, 2 or more.")
    variants = views_of(augmentation, int(tta) - 1)
    if variants == (View(),):
        raise InputError(
            f"tta {tta}: with the augmentation 'none' all views are the same; give mirror, or leave "
            "it out."
        )
    return View(), *variants


def averaged(task: str, outputs: np.ndarray) -> np.ndarray:
    """Raw outputs of V views [V, N, C] → raw outputs [N, C] that stand for the mean of the scores.

    Of classes and labels the scores are probabilities: softmax (sigmoid) of what is returned is the
    mean of the views' softmax (sigmoid).
    """
    from scipy.special import log_expit, log_softmax, logsumexp

    outputs = np.asarray(outputs, "float64")
    if task == "regression":
        mean = outputs.mean(axis=0)
    elif task == "single_label":
        mean = logsumexp(log_softmax(outputs, axis=-1), axis=0) - np.log(len(outputs))
    else:
        there, not_there = (logsumexp(log_expit(sign * outputs), axis=0) for sign in (1, -1))
        mean = there - not_there
    return mean.astype("float32")
