"""Temperature scaling of a trained model's heads (Guo et al. 2017, arXiv:1706.04599)."""

import numpy as np

from keras_transfer.evaluation.calibration import fit_temperature
from keras_transfer.evaluation.outputs import PROBABILITIES
from keras_transfer.models.builders import by_head


def scale_logits(model, heads: dict, labels, outputs) -> dict[str, float]:
    """Divide the logits of a model by temperatures that lower its loss on validation examples.

    Fine-tuned networks are too sure of themselves. The division changes their probabilities, not their
    predictions. It is folded into the last layer's weights.

    Args:
        model: whose last layers are changed in place.
        heads: name → fitted head; those without probabilities stay as they are.
        labels: of the validation examples.
        outputs: of the model for them, float32 [N, C], or a dict of them; divided in place.

    Returns:
        Name of a head → its temperature, where that lowers the loss by more than the standard error
        of the difference.
    """
    found = {}
    labels, outputs = by_head(heads, labels), by_head(heads, outputs)
    for name, head in heads.items():
        if head.task not in PROBABILITIES:
            continue
        temperature = fit_temperature(head.task, outputs[name], labels[name])
        probabilities = PROBABILITIES[head.task]
        gains = probabilities(outputs[name]).losses(labels[name])
        gains -= probabilities(outputs[name], temperature).losses(labels[name])
        if len(gains) < 2 or gains.mean() <= gains.std(ddof=1) / np.sqrt(len(gains)):
            continue
        divide_logits(model, name, temperature)
        outputs[name] /= np.float32(temperature)
        found[name] = temperature
    return found


def divide_logits(model, name: str, temperature: float) -> None:
    """Divide the logits of a head, by its weights."""
    layer = model.get_layer(name)
    layer.set_weights([weight / temperature for weight in layer.get_weights()])
