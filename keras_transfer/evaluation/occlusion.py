"""Which parts of an example, such as the words of a text, a prediction depends on.

Each part is left out in turn (occlusion: Zeiler and Fergus 2014, arXiv:1311.2901).
"""

from dataclasses import dataclass

import keras
import numpy as np

from keras_transfer.data.examples import Examples
from keras_transfer.evaluation.gradcam import output_of
from keras_transfer.models.builders import by_head, heads_of
from keras_transfer.models.framing import framing_of


@dataclass(frozen=True, eq=False)
class Occluded:
    """What leaving out the parts of an example changes.

    Attributes:
        parts: in order, with the white space before them.
        drops: how much each of the C outputs falls without each of the P parts, float32 [P, C]: the log
            probability of a class, the logit of a label, or a number.
    """

    parts: tuple[str, ...]
    drops: np.ndarray

    def weights(self, output: int) -> np.ndarray:
        """Return the drops of one output, scaled to −1 … 1: positive parts speak for it."""
        drops = self.drops[:, output]
        return drops / max(float(np.abs(drops).max(initial=0)), 1e-30)


def occlude(
    model: keras.Model, examples: Examples, *, head: str | None = None, batch_size: int = 32
) -> list[Occluded] | None:
    """Leave out every part of every example, and return how the outputs of a model change.

    Args:
        model: from `build_model`.
        examples: of its modality. The first 100 words of a text are left out one by one.
        head: name of the head, for a model with several heads.
        batch_size: variants per batch.

    Returns:
        One result for each example; None if the examples have no parts, such as images (see `grad_cam`).

    Raises:
        InputError: the model does not have that head.
    """
    name, _ = output_of(model, head)
    framing, modality = framing_of(model), examples.modality
    found = []
    for row in range(len(examples)):
        occluded = modality.occluded(examples.images.decoded(row), framing)
        if occluded is None:
            return None
        parts, inputs = occluded
        outputs = by_head(heads_of(model), model.predict(inputs, batch_size=batch_size, verbose=0))
        raw = np.asarray(outputs[name], "float32")
        if heads_of(model)[name].task == "single_label":
            raw = raw - np.logaddexp.reduce(raw, axis=1, keepdims=True)
        found.append(Occluded(tuple(parts), raw[0] - raw[1:]))
    return found
