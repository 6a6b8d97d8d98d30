"""Which unlabeled examples to label next: those of which a model is unsure, unlike one another.

The gradient of the loss at the last layer, with the predicted label in the place of the true one, is large where
the model is unsure, and points elsewhere for other features and other confusions. K-means++ chooses gradients
that are far apart (BADGE, arXiv:1906.03671). They are never written out: the gradient is the product of an
example's residual and its features, and so are the distances.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_transfer.data.evaluation_data import examples_to_predict
from keras_transfer.data.examples import SEPARATOR, Examples, ImageData
from keras_transfer.data.files import Skipped
from keras_transfer.errors import InputError
from keras_transfer.runs import Run
from keras_transfer.utils.files import csv_text

FIELDS = ("path", "label", "predicted", "uncertainty")


@dataclass(frozen=True)
class Selected:
    """An example to label.

    Attributes:
        path: file of the example, or the text.
        predicted: the label that the model gives it, in words.
        uncertainty: norm of the difference between the scores and the predicted label: 0 if it is sure.
    """

    path: str
    predicted: str
    uncertainty: float


def select(
    run: Run | str,
    pool: Sequence = (),
    *,
    count: int,
    lines=None,
    batch_size: int = 32,
    seed: int = 0,
) -> tuple[list[Selected], list[Skipped]]:
    """Choose the examples of a pool whose labels would help a model most.

    Args:
        run: a finished run of classes or labels, or its path; of several heads, those for numbers are ignored.
        pool: files, and folders that are searched to any depth; or texts themselves. Leave out those that are
            labeled already.
        count: of examples to choose.
        lines: a file with one text per line.
        batch_size: examples per batch.
        seed: of the choice.

    Returns:
        The chosen examples, in the order in which to label them (any first part is a good choice, too), and
        the files that could not be read.

    Raises:
        InputError: the model predicts numbers only, or the pool is missing or smaller than `count`.
    """
    import keras

    from keras_transfer.evaluation.measures import predict_split
    from keras_transfer.evaluation.outputs import require_finite
    from keras_transfer.evaluation.prediction import require_usable
    from keras_transfer.models.builders import heads_of
    from keras_transfer.models.framing import framing_of, modality_of

    model = (run if isinstance(run, Run) else Run.open(run)).model
    heads = {name: head for name, head in heads_of(model).items() if head.task != "regression"}
    if not heads:
        raise InputError("select needs a model of classes or labels; this one predicts numbers.")
    good, skipped = examples_to_predict(pool, modality_of(model), lines, framing_of(model))
    require_usable(good, skipped, modality_of(model))
    check_count(count, len(good))
    data = ImageData(("any",), {"all": Examples(good, np.zeros(len(good), "int32"))}, skipped, "")
    outputs: dict = {}
    for name in heads:
        layer = model.get_layer(name)
        outputs |= {f"{name} features": layer.input, f"{name} outputs": layer.output}
    _, found = predict_split(keras.Model(model.input, outputs), data, "all", batch_size)
    parts, predicted = [], []
    for name, head in heads.items():
        features, values = found[f"{name} features"], found[f"{name} outputs"]
        require_finite(values, good.names)
        scores = keras.ops.convert_to_numpy(head.scores(values))
        labels = predicted_labels(scores, head.task)
        parts.append((scores - labels, features))
        of = f"{name}: " if len(heads) > 1 else ""
        predicted.append([f"{of}{_words(row, head.names)}" for row in labels])
    rows = spread(parts, count, seed)
    norms = np.sqrt(sum(np.square(residuals).sum(axis=1) for residuals, _ in parts))
    words = ["; ".join(texts) for texts in zip(*predicted)]
    return [Selected(good.names[i], words[i], float(norms[i])) for i in rows], skipped


def check_count(count: int, available: int | None = None) -> None:
    """Raise InputError if so many examples cannot be chosen."""
    if count < 1:
        raise InputError(f"count must be 1 or more, not {count}.")
    if available is not None and count > available:
        raise InputError(f"The pool has {available} usable examples: choose at most as many.")


def predicted_labels(scores: np.ndarray, task: str) -> np.ndarray:
    """Return what the scores of classes or labels [N, C] predict, 0 or 1 each."""
    if task == "single_label":
        return np.eye(scores.shape[1])[scores.argmax(axis=1)]
    return (scores > 0.5).astype(float)


def spread(parts: Sequence[tuple[np.ndarray, np.ndarray]], count: int, seed: int = 0) -> np.ndarray:
    """Return rows by k-means++ on gradients, int [count]: the largest gradient first.

    A further row is drawn with a probability proportional to the squared distance of its gradient from the
    nearest chosen one. Rows without a distance, such as copies, are drawn only if there is nothing else.

    Args:
        parts: of each head (residuals [N, C], features [N, D]), whose products are the gradients; the bias
            counts as a feature that is 1.
        count: at most N.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    heads = [
        (np.asarray(residuals, float), np.c_[np.asarray(features, float), np.ones(len(features))])
        for residuals, features in parts
    ]
    norms = sum(np.square(r).sum(axis=1) * np.square(h).sum(axis=1) for r, h in heads)
    chosen = [int(np.argmax(norms))]
    nearest = np.full(len(norms), np.inf)
    while True:
        last = chosen[-1]
        products = sum((r @ r[last]) * (h @ h[last]) for r, h in heads)
        nearest = np.minimum(nearest, np.maximum(norms + norms[last] - 2 * products, 0))
        nearest[chosen] = 0
        if len(chosen) == count:
            return np.array(chosen)
        total = nearest.sum()
        if total <= 1e-9 * norms.sum():
            free = np.setdiff1d(np.arange(len(norms)), chosen)
            return np.array([*chosen, *rng.permutation(free)[: count - len(chosen)]])
        chosen.append(int(rng.choice(len(norms), p=nearest / total)))


def _words(row, names):
    return SEPARATOR.join(names[i] for i in np.flatnonzero(row))


def selection_csv(selected: Sequence[Selected]) -> str:
    """Return a table to fill in: the column `label` is empty, see `FIELDS`."""
    return csv_text(FIELDS, [(s.path, "", s.predicted, f"{s.uncertainty:.4f}") for s in selected])
