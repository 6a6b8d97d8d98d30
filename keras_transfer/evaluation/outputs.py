"""Labels and raw outputs of a split, from one pass over its images."""

import numpy as np

from keras_transfer.data.examples import ImageData
from keras_transfer.data.targets import joined, map_labels
from keras_transfer.evaluation.measures import answers, outputs_of
from keras_transfer.evaluation.probabilities import require_finite
from keras_transfer.evaluation.tta import averaged
from keras_transfer.modalities.image.augment import View
from keras_transfer.models.acceleration import jit_compile
from keras_transfer.models.builders import by_head, heads_of
from keras_transfer.utils.console import progress_bar


def collect(
    model, data: ImageData, split: str, *, batch_size: int = 32, views: tuple[View, ...] = (View(),)
):
    """Labels and raw outputs (float32 [N, C]) of a split, from the same pass; dicts where the data
    or the model have several heads.

    Args:
        views: of each image, see `views.views_for`; the outputs stand for the mean of their scores.

    Raises:
        InputError: no such split, or outputs that are not finite.
    """
    if not model.compiled:
        model.jit_compile = jit_compile()
    if tuple(views) == (View(),):
        batches = data.batches(split, image_size=model.input_shape[1], batch_size=batch_size)
        labels, outputs = outputs_of(model, batches, data.steps(split, batch_size))
    else:
        labels, outputs = _of_views(model, data, split, batch_size, views)
    names = data.examples[split].names
    map_labels(lambda values: require_finite(values, names), outputs)
    return labels, outputs


def _of_views(model, data, split, batch_size, views):
    from keras_transfer.data import batches as pipeline

    total = data.steps(split, batch_size)  # says so where there is no such split
    examples, heads = data.examples[split], heads_of(model)
    # Views come in the order of the positions that were asked for, and so do the labels.
    positions = np.arange(len(examples))
    made = pipeline.views(examples, positions, views, model.input_shape[1], batch_size)
    outputs = []
    for batch in progress_bar(made, "predicting", total=total, unit="batches"):
        found = [answers(model, view, batch_size) for view in np.asarray(batch)]
        by_name = [by_head(heads, one) for one in found]
        mean = {
            name: averaged(head.task, [one[name] for one in by_name])
            for name, head in heads.items()
        }
        outputs.append(mean if isinstance(found[0], dict) else mean.popitem()[1])
    return map_labels(lambda values: values[positions], examples.labels), joined(outputs)
