"""Raw outputs of a split, from one pass over its images, and the probabilities that they stand for.

Logits of 50,000 images and 1,000 classes take 200 MB. They are held once; everything else is
computed a few rows or one column at a time. Importing this module does not load Keras.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from keras_transfer.data.examples import ImageData, join_labels, map_labels
from keras_transfer.errors import InputError, input_errors
from keras_transfer.modalities import Modality, resolve_augmentation
from keras_transfer.modalities.views import View, views_of
from keras_transfer.utils.console import progress_bar, say

_BLOCK_SIZE = 1 << 22  # numbers per block


@input_errors()
def collect(
    model, data: ImageData, split: str, *, batch_size: int = 32, views: tuple[View, ...] = (View(),)
):
    """Return labels and raw outputs of a split, from the same pass.

    Args:
        model: from `build_model`.
        data: labeled images.
        split: one of `data.examples`.
        batch_size: images per batch.
        views: views of each image, see `resolve_views`; the outputs stand for the mean of their
            scores.

    Returns:
        (labels [N, …], outputs float32 [N, C]); each is a dict if it has several heads.

    Raises:
        InputError: if the split does not exist or an output is not finite.
    """
    from keras_transfer.evaluation.measures import predict_split
    from keras_transfer.models.acceleration import jit_compile
    from keras_transfer.models.stages import backbone_of

    if not model.compiled:
        model.jit_compile = jit_compile()
    if tuple(views) == (View(),):
        labels, outputs = predict_split(model, data, split, batch_size)
    else:
        labels, outputs = _collect_views(model, data, split, batch_size, views)
    if (seen := backbone_of(model).seen) and seen == data.examples[split].digest:
        say(
            f"{split}: the refit of this model has trained on these {data.modality.many}, so the result is "
            "too good; measure them with run.model_for('val')"
        )
    names = data.examples[split].names
    map_labels(lambda values: require_finite(values, names), outputs)
    return labels, outputs


def _collect_views(model, data, split, batch_size, views):
    from keras_transfer.data import batches as pipeline
    from keras_transfer.evaluation.measures import predict_batch
    from keras_transfer.models.builders import by_head, heads_of
    from keras_transfer.models.framing import framing_of

    total = data.steps(split, batch_size)  # raises InputError for a missing split
    examples, heads = data.examples[split], heads_of(model)
    # The views come in the order of these positions, and so must the labels.
    positions = np.arange(len(examples))
    batches = pipeline.views(examples, positions, views, framing_of(model), batch_size)
    outputs = []
    for batch in progress_bar(batches, "predicting", total=total, unit="batches"):
        per_view = [predict_batch(model, view, batch_size) for view in np.asarray(batch)]
        by_name = [by_head(heads, one) for one in per_view]
        mean = {
            name: average_views(head.task, [one[name] for one in by_name])
            for name, head in heads.items()
        }
        outputs.append(mean if isinstance(per_view[0], dict) else mean.popitem()[1])
    return map_labels(lambda values: values[positions], examples.labels), join_labels(outputs)


def require_finite(outputs: np.ndarray, names: Sequence[str]) -> None:
    """Raise InputError if an output is not finite; the message names the first image.

    Args:
        outputs: float [N, C].
        names: of the images [N].
    """
    wrong = np.flatnonzero([not np.isfinite(block).all() for block in outputs])
    if len(wrong):
        raise InputError(
            f"The outputs of the model are not finite for {len(wrong)} of {len(outputs)} examples "
            f"(first {names[wrong[0]]}), so nothing can be measured. Training diverged: lower the "
            "learning rate or train in float32."
        )


# -- test-time augmentation -----------------------------------------------------------------------


def resolve_views(
    tta: str | int | None, augmentation="light", modality: Modality | None = None
) -> tuple[View, ...]:
    """Return the views of each image over which the scores are averaged.

    Args:
        tta: `"mirror"`: each image and its mirror image; a number N ≥ 2: each image and N − 1
            variants, which are determined by its content; None: the image alone.
        augmentation: how variants differ, see `Modality.resolve_augmentation`.
        modality: of the examples; None if it is not known yet.

    Raises:
        InputError: if `tta` is none of these, the augmentation changes nothing, or the examples cannot
            be mirrored.
    """
    resolve = modality.resolve_augmentation if modality else resolve_augmentation
    if tta is None:
        return (View(),)
    if tta == "mirror":
        if modality and not modality.mirrors:
            raise InputError(f"tta mirror is not for {modality.many}: choose a number of views.")
        return View(), View("mirror")
    if not str(tta).isdecimal() or int(tta) < 2:
        raise InputError(f"Invalid tta {tta}: choose mirror or a number of views, 2 or more.")
    variants = views_of(resolve(augmentation), int(tta) - 1)
    if variants == (View(),):
        raise InputError(
            f"tta {tta} has no effect, because with the augmentation 'none' all views are the "
            "same: choose mirror or omit it."
        )
    return View(), *variants


def average_views(task: str, outputs: np.ndarray) -> np.ndarray:
    """Combine raw outputs of V views [V, N, C] into raw outputs [N, C] for the mean score.

    The softmax (for `multi_label`, the sigmoid) of the result is the mean over the views.
    """
    from scipy.special import log_expit, log_softmax, logsumexp

    outputs = np.asarray(outputs, "float64")
    if task == "regression":
        mean = outputs.mean(axis=0)
    elif task == "single_label":
        mean = logsumexp(log_softmax(outputs, axis=-1), axis=0) - np.log(len(outputs))
    else:
        present, absent = (logsumexp(log_expit(sign * outputs), axis=0) for sign in (1, -1))
        mean = present - absent
    return mean.astype("float32")


# -- probabilities --------------------------------------------------------------------------------


def _blocks(outputs: np.ndarray, temperature: float = 1.0) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (rows, these rows of `outputs` [N, C] divided by the temperature, float64)."""
    step = max(1, _BLOCK_SIZE // outputs.shape[1])
    for start in range(0, len(outputs), step):
        rows = slice(start, start + step)
        yield rows, outputs[rows].astype("float64") / temperature


class Softmax:
    """Probabilities of mutually exclusive classes: the softmax of logits divided by a temperature.

    Args:
        logits: float32 [N, C], not copied.
        temperature: > 0; above 1 it lowers the confidence (Guo et al. 2017, arXiv:1706.04599).
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
        """Logarithm of the softmax's denominator, float64 [N]."""
        from scipy.special import logsumexp

        total = np.empty(len(self))
        for rows, block in _blocks(self.logits, self.temperature):
            total[rows] = logsumexp(block, axis=1)
        return total

    @cached_property
    def confidence(self) -> np.ndarray:
        """Probability of the predicted class, float64 [N]."""
        return np.exp(np.minimum(self.log_of(self.predicted), 0))

    def confidence_and_truth(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (confidence float64 [N], whether the prediction is correct, bool [N])."""
        return self.confidence, self.predicted == labels

    def log_of(self, classes: np.ndarray) -> np.ndarray:
        """Return the log probability of one class per example, int [N] → float64 [N]."""
        chosen = self.logits[np.arange(len(self)), classes].astype("float64")
        return chosen / self.temperature - self.log_total

    def log_column(self, index: int) -> np.ndarray:
        """Return the log probability of one class in all images, float64 [N]."""
        return self.logits[:, index].astype("float64") / self.temperature - self.log_total

    def losses(self, labels: np.ndarray) -> np.ndarray:
        """Return the negative log probability of the true class, in nats, float64 [N]."""
        return -self.log_of(labels)

    def log_loss(self, labels: np.ndarray) -> float:
        """Return the mean of `losses`."""
        return float(self.losses(labels).mean())

    def brier(self, labels: np.ndarray) -> float:
        """Return the Brier score (1950): the mean over images of Σ_c (p_c − y_c)², 0 to 2."""
        squares = np.empty(len(self))
        for rows, block in _blocks(self.logits, self.temperature):
            squares[rows] = np.exp(2 * (block - self.log_total[rows, None])).sum(axis=1)
        return float((squares - 2 * np.exp(self.log_of(labels)) + 1).mean())

    def rank_of(self, labels: np.ndarray) -> np.ndarray:
        """Return how many classes are more probable than the true one, int [N]."""
        ranks = np.empty(len(self), int)
        for rows, block in _blocks(self.logits):
            truth = block[np.arange(len(block)), labels[rows]]
            ranks[rows] = (block > truth[:, None]).sum(axis=1)
        return ranks

    def top(self, row: int, count: int) -> list[tuple[int, float]]:
        """Return (class, probability) of an image's most probable classes, highest first."""
        order = np.argsort(-self.logits[row], kind="stable")[:count]
        values = self.logits[row, order].astype("float64") / self.temperature
        return list(zip(order.tolist(), np.exp(values - self.log_total[row]).tolist()))


class Sigmoid:
    """Probabilities of independent labels: the sigmoid of logits divided by a temperature.

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

    def confidence_and_truth(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (scores float64 [N, L], whether each label is present, bool [N, L])."""
        return self.scores, labels > 0

    def losses(self, labels: np.ndarray) -> np.ndarray:
        """Return the mean binary cross-entropy over the labels, in nats, float64 [N]."""
        losses = np.empty(len(self))
        for rows, block in _blocks(self.logits, self.temperature):
            signed = np.where(labels[rows] > 0, -block, block)
            losses[rows] = np.logaddexp(0, signed).mean(axis=1)
        return losses

    def log_loss(self, labels: np.ndarray) -> float:
        """Return the mean of `losses`."""
        return float(self.losses(labels).mean())

    def brier(self, labels: np.ndarray) -> float:
        """Return the mean over images and labels of (p − y)², 0 to 1."""
        return float(np.square(self.scores - labels).mean())


PROBABILITIES: dict[str, type[Softmax] | type[Sigmoid]] = {
    "single_label": Softmax,
    "multi_label": Sigmoid,
}
