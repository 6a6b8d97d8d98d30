"""Compare an exported model with its Keras model: same decisions, and the quality lost if not."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from keras_transfer.data.examples import ImageData, rough_classes
from keras_transfer.data.readers import Encoded
from keras_transfer.data.splits import stratified_sample
from keras_transfer.errors import InputError
from keras_transfer.modalities import Framing, Modality
from keras_transfer.models.heads import Head

MIN_AGREEMENT = 0.99  # of a float export
MAX_LOSS = 0.02  # of an int8 export
ROUNDING, HALF_ROUNDING = 1e-3, 2e-2  # differences of scores computed in float32 and in 16 bits
# What `Parity.quality` measures, by task: the higher the better, 1 at best.
_QUALITY = {
    "single_label": "accuracy",
    "multi_label": "share of correct labels",
    "regression": "1 − MAE / standard deviation",
}
_SAME_VALUE = 0.01  # as a share of a target's standard deviation


class ParityError(RuntimeError):
    """The exported model differs from the Keras model; nothing was exported."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Examples to compare models on, or to measure the ranges of values for int8.

    Attributes:
        of: a split's name, or `"noise"`.
        inputs: of the model [N, …], as in evaluation: images are uint8 [N, S, S, 3].
        exported: inputs of an exported file, see `Modality.front_end`; often the same.
        first: a few of the examples, decoded.
        labels: head name → labels as the head takes them; None if unknown.
        contents: bytes of their files, unless the examples are arrays.
        many: what they are: "images", …
    """

    of: str
    inputs: np.ndarray
    exported: np.ndarray
    first: Sequence = ()
    labels: Mapping[str, np.ndarray] | None = None
    contents: tuple[bytes, ...] | None = None
    many: str = "images"


def draw_sample(
    data: ImageData, split: str, of: str, framing: Framing, count: int, heads: Iterable[str]
) -> Sample:
    """Draw a stratified sample of `count` images, or all of a smaller split.

    Args:
        data: contains `split`.
        of: the sample's `of`.
        framing: of the model.
        heads: names of the model's heads.
    """
    examples = data.examples[split]
    examples = examples.take(stratified_sample(rough_classes(examples.labels), count))
    drawn = replace(data, examples={split: examples})
    # One batch, because each is padded to its own longest example.
    ((inputs, _),) = drawn.batches(split, image_size=framing, batch_size=len(examples))
    inputs = np.asarray(inputs)

    def decoded(row):
        return examples.images.read(row, partial(examples.modality.whole, framing=framing))

    exported = examples.modality.exported_inputs(map(decoded, range(len(examples))), framing)
    first = [decoded(i) for i in range(min(2, len(examples)))]
    labels = examples.labels
    labels = labels if isinstance(labels, dict) else dict.fromkeys(heads, labels)
    contents = None
    if isinstance(examples.images, Encoded):
        contents = tuple(map(examples.images.contents, range(len(examples))))
    many = examples.modality.many
    exported = inputs if exported is None else exported
    return Sample(of, inputs, exported, first, labels, contents, many)


def noise_sample(modality: Modality, framing: Framing, count: int = 32) -> Sample:
    """Make examples of noise, for models whose own examples cannot be found."""
    framing = modality.framing_for(framing, None)
    examples = modality.noise(framing, count)
    inputs = np.stack([np.asarray(modality.trial(one, framing)[0]) for one in examples])
    exported = modality.exported_inputs(examples, framing)
    exported = inputs if exported is None else exported
    return Sample("noise", inputs, exported, examples[:2], many=modality.many)


@dataclass(frozen=True)
class Parity:
    """How an exported model's decisions compare with the Keras model's on the same examples.

    Attributes:
        images: number of examples.
        of: their split, or `"noise"`.
        refused: how many of them the exported model cannot read (see docs/data-check.md).
        labelled: whether `quality` was measured on labels; if not, the Keras model's decisions take
            their place.
        agreement: head name → share of equal decisions, in [0, 1]: the same class; each label on the
            same side of 0.5; numbers within 1 % of their standard deviation.
        difference: the largest difference between two scores.
        quality: head name → (Keras model, exported model): accuracy; for multi-label heads the share of
            correct labels; for regression 1 − mean absolute error / standard deviation.
        answers: head name → number of different decisions by the Keras model. If it is 1, even an
            export that ignores its input agrees.
        tasks: head name → its task, on which the kind of quality depends.
        many: what the examples are: "images", …
    """

    images: int
    of: str
    refused: int
    labelled: bool
    agreement: dict[str, float]
    difference: float
    quality: dict[str, tuple[float, float]]
    answers: dict[str, int]
    tasks: dict[str, str] = field(default_factory=dict)
    many: str = "images"

    @property
    def lost(self) -> float:
        """The largest loss of quality of a head; 0.02 is two points, for classes of accuracy."""
        return max(before - after for before, after in self.quality.values())

    def text(self) -> str:
        """Return the comparison in one line."""
        same = f"same answer for {100 * min(self.agreement.values()):.2f} %"
        if self.labelled:
            for name, (before, after) in self.quality.items():
                kind = _QUALITY.get(self.tasks.get(name, ""), "quality")
                head = f" ({name})" if len(self.quality) > 1 else ""
                same += f", {kind} {before:.4f} → {after:.4f}{head}"
        if min(self.answers.values()) == 1:
            same += f" (weak evidence: the Keras model gives all {self.many} the same answer)"
        refused = f", {self.refused} of them unreadable" if self.refused else ""
        return (
            f"{same}, scores differ by at most {self.difference:.2g} "
            f"({self.images} {self.of} {self.many}{refused})"
        )


def compare(
    heads: Mapping[str, Head],
    expected: Mapping[str, np.ndarray],
    exported: Mapping[str, np.ndarray],
    sample: Sample,
    *,
    valid: np.ndarray | None = None,
) -> Parity:
    """Compare the scores of an exported model with those of the Keras model, and both with labels.

    Args:
        expected: head name → scores [N, C] of the Keras model.
        exported: head name → scores [N, C] of the exported model.
        sample: the images that were scored.
        valid: bool [N], the images that the exported model could read; all by default.

    Raises:
        ParityError: if no image could be read, or scores are not finite.
    """
    count = len(sample.inputs)
    rows = np.ones(count, bool) if valid is None else valid
    if not rows.any():
        raise ParityError(
            f"The exported model could read none of {count} {sample.of} {sample.many}."
        )
    agreement, quality, answers, difference = {}, {}, {}, 0.0
    for name, head in heads.items():
        before, after = (np.asarray(x[name], "float64")[rows] for x in (expected, exported))
        if not np.isfinite(after).all():
            raise ParityError(
                f"The exported model's scores of {sample.of} {sample.many} are not finite."
            )
        difference = max(difference, float(np.abs(before - after).max(initial=0)))
        decisions, other = _DECISIONS[head.task](before), _DECISIONS[head.task](after)
        answers[name] = len(np.unique(decisions, axis=0))
        truth = decisions if sample.labels is None else np.asarray(sample.labels[name])[rows]
        if head.task == "regression":
            spread = truth.std(axis=0)
            spread = np.where(spread > 0, spread, 1.0)
            agreement[name] = float((np.abs(before - after) <= _SAME_VALUE * spread).mean())
            correct = [float(1 - (np.abs(x - truth) / spread).mean()) for x in (before, after)]
        else:
            agreement[name] = float((decisions == other).mean())
            correct = [float((x == truth).mean()) for x in (decisions, other)]
        quality[name] = (correct[0], correct[1])
    refused, labelled = int((~rows).sum()), sample.labels is not None
    return Parity(
        images=count,
        of=sample.of,
        refused=refused,
        labelled=labelled,
        agreement=agreement,
        difference=difference,
        quality=quality,
        answers=answers,
        tasks={name: head.task for name, head in heads.items()},
        many=sample.many,
    )


_DECISIONS = {
    "single_label": lambda scores: scores.argmax(axis=1),
    "multi_label": lambda scores: (scores > 0.5).astype(int),
    "regression": lambda scores: scores,
}


def require_parity(parity: Parity, format: str, rounding: float = ROUNDING) -> None:
    """Raise ParityError if under 99 % of a float export's decisions are the same.

    Args:
        rounding: scores that differ by at most this much are equal, even if two classes are so close
            that their order changes.
    """
    if parity.difference <= rounding or min(parity.agreement.values()) >= MIN_AGREEMENT:
        return
    raise ParityError(
        f"The exported {format} differs from the Keras model: {parity.text()}; at least "
        f"{100 * MIN_AGREEMENT:g} % of the answers must be the same. Nothing was exported. Please "
        "report this."
    )


def require_quality(parity: Parity, format: str, max_loss: float = MAX_LOSS) -> None:
    """Raise InputError if an int8 export loses more than `max_loss`."""
    if not parity.lost <= max_loss:
        raise InputError(
            f"The {format} in int8 loses {100 * parity.lost:.1f} points, more than "
            f"{100 * max_loss:g}: {parity.text()}. Nothing was exported. Export it without int8, "
            "or allow the loss with --max-loss."
        )
