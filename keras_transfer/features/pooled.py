"""What a backbone sees after each of its stages, as one vector per image."""

from itertools import accumulate

import keras
import numpy as np

from keras_transfer.features.prefix import Prefix
from keras_transfer.models.stages import Backbone

_POOLINGS = {
    3: keras.layers.GlobalAveragePooling1D,
    4: keras.layers.GlobalAveragePooling2D,
}


def pooled_stages(backbone: Backbone) -> Prefix:
    """The outputs of all stages, each averaged over its places, one after the other.

    One pass over the images computes all of them, and engines and store take it like any prefix.
    An output that has no places (the features of a backbone with pooling) stays as it is. Averages
    are taken in float32, whatever the backbone computes in.

    Args:
        backbone: built for one image size.

    Returns:
        A prefix from uint8 [N, H, W, 3] to float32 [N, D], D the sum of the stages' channels; which
        of them are a stage's, see `stage_columns`.
    """
    vectors = []
    for stage in backbone.stages:
        # Names of our own: those that Keras counts up would make each build another network for
        # the store.
        pool = _POOLINGS.get(len(stage.output.shape))
        name = f"stage_{stage.index + 1}_pooled"
        vectors.append(pool(name=name, dtype="float32")(stage.output) if pool else stage.output)
    joined = keras.layers.Concatenate(name="all_stages", dtype="float32")(vectors)
    model = keras.Model(backbone.inputs[0], joined, name=f"{backbone.name}_stages")
    return Prefix(model, f"{backbone.name}, pooled after each of {len(vectors)} stages")


def stage_columns(backbone: Backbone) -> list[slice]:
    """Where each stage's channels lie in what `pooled_stages` gives."""
    ends = list(accumulate(stage.output.shape[-1] for stage in backbone.stages))
    return [slice(start, end) for start, end in zip([0, *ends], ends)]


def averaged(features: np.ndarray) -> np.ndarray:
    """Features [N, …, D] averaged over their places, float32; [N, D] as they are."""
    if features.ndim == 2:
        return features
    return features.mean(axis=tuple(range(1, features.ndim - 1)), dtype="float32")
