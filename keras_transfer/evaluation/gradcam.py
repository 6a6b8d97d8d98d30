"""Grad-CAM: the parts of an image that contribute to a class (Selvaraju et al. 2017).

arXiv:1610.02391
"""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_transfer.errors import InputError
from keras_transfer.models.builders import head_layers, heads_of
from keras_transfer.models.graph import chain
from keras_transfer.models.stages import backbone_of


def grad_cam(
    model: keras.Model,
    images: np.ndarray,
    classes: int | Sequence[int] | None = None,
    stage: int = -1,
    *,
    head: str | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """Return a map of how much each position of an image contributes to a class.

    The channels of a feature map are summed, each weighted by the mean gradient over all positions
    of the class's logit with respect to that channel; negative sums are set to 0. The backbone runs
    once, in inference mode; only the layers after the feature map are differentiated.

    Args:
        model: from `build_model`, with heads of any task.
        images: RGB, [N, height, width, 3], uint8 or float, 0–255, N ≥ 1.
        classes: position of an output (a class, label or target) for each image, or one for all.
            By default the highest output of each image; for regression the first.
        stage: the backbone's stage whose output is the feature map; negative numbers count from the
            last one (of several backbones side by side, -1 is the end of the last). If a stage ends in padding or pooling, the last map before that with more than
            one position is used.
        head: name of the head, for a model with several heads.
        batch_size: images per batch.

    Returns:
        float32 [N, h, w] in 0–1, the size of the feature map. The maximum of an image is 1; all
        values are 0 if nothing in it contributes to the class.

    Raises:
        InputError: if the images have the wrong shape, the stage, head or output does not exist,
            there is no feature map up to that stage, or the Keras backend is neither TensorFlow nor
            JAX.
    """
    name, outputs = output_of(model, head)
    images = np.asarray(images)
    if images.ndim != 4 or not len(images) or images.shape[1:] != model.input_shape[1:]:
        raise InputError(
            f"Grad-CAM requires images of shape [N, {', '.join(map(str, model.input_shape[1:]))}], "
            f"N ≥ 1, not {list(images.shape)}."
        )
    if classes is not None:
        classes = np.asarray(classes, "int64")
        if classes.shape not in ((), (len(images),)):
            raise InputError(
                f"classes must be one position or one for each of the {len(images)} images, not an "
                f"array of shape {list(classes.shape)}."
            )
        classes = np.broadcast_to(classes, len(images))
        if classes.min() < 0 or classes.max() >= outputs:
            raise InputError(f"classes must be positions of outputs, 0 to {outputs - 1}.")
    prefix, suffix = _split(model, stage)
    tapped = bool(backbone_of(model).cuts.tapped)
    layers = head_layers(model)[name]

    def logits(maps, images):
        features = suffix([images, maps] if tapped else maps, training=False)
        for layer in layers:
            features = layer(features)
        return features

    heat = []
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        # Eager: compiling a graph would take longer for so few images.
        batch = ops.convert_to_tensor(images[rows], dtype="float32")
        maps = ops.convert_to_numpy(ops.cast(prefix(batch, training=False), "float32"))
        chosen = None if classes is None else classes[rows]
        if chosen is None:
            predicted = ops.convert_to_numpy(logits(ops.convert_to_tensor(maps), batch))
            chosen = predicted.argmax(axis=1)
            if heads_of(model)[name].task == "regression":
                chosen[:] = 0
        mask = np.eye(outputs, dtype="float32")[chosen]

        def of_classes(maps, mask=mask, batch=batch):
            return ops.sum(logits(maps, batch) * mask)

        heat.append(_heat(maps, _gradient(of_classes, maps)))
    return np.concatenate(heat)


def _heat(maps, gradients):
    weights = gradients.mean(axis=(1, 2), keepdims=True)
    # Only the proportions matter, and products with tiny gradients would underflow.
    weights /= np.abs(weights).max(axis=(1, 2, 3), keepdims=True) + 1e-30
    heat = np.maximum((weights * maps).sum(axis=-1), 0)
    return heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-30)


def _gradient(function, maps: np.ndarray) -> np.ndarray:
    """Return the gradient of a scalar function; Keras has no function for it."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        inputs = tf.constant(maps)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(inputs)
            value = function(inputs)
        return tape.gradient(value, inputs).numpy()
    if backend == "jax":
        import jax

        return np.asarray(jax.grad(function)(maps))
    raise InputError(f"Grad-CAM requires the backend tensorflow or jax, not {backend}.")


def output_of(model, head):
    """Return (name of the head, number of its outputs)."""
    heads = heads_of(model)
    name = next(iter(heads)) if head is None and len(heads) == 1 else head
    if name not in heads:
        problem = "Choose a head:" if head is None else f"The model has no head {head!r}; it has"
        raise InputError(f"{problem} {', '.join(heads)}.")
    return name, len(heads[name].names)


def _split(model, stage):
    """Return (prefix, suffix) of the backbone, sharing its weights, cut at the feature map.

    With taps, the suffix takes images too.
    """
    backbone = backbone_of(model)
    count = len(backbone.stages)
    if not -count <= stage < count:
        raise InputError(
            f"{backbone.name} has {count} stages: stage must be {-count} to {count - 1}, not {stage}."
        )
    cut = _feature_map(backbone, stage % count)
    prefix = keras.Model(backbone.inputs[0], cut)
    if backbone.cuts.tapped:  # other taps follow from the images
        return prefix, keras.Model([backbone.inputs[0], cut], backbone.outputs[0])
    # A backbone without pooling may end in the feature map.
    whole = cut is backbone.outputs[0]
    return prefix, keras.layers.Identity() if whole else keras.Model(cut, backbone.outputs[0])


def _feature_map(backbone, stage):
    """Return the last tensor with several positions, up to the stage's end, that cuts the graph."""
    end, feature_map = backbone.stages[stage].output, None
    for piece in chain(keras.Model(backbone.inputs[0], end)):
        node, tensor = piece[-1], piece[-1].output_tensors[0]
        # Padding shifts the positions.
        excluded = node.is_input or isinstance(node.operation, keras.layers.ZeroPadding2D)
        if not excluded and len(tensor.shape) == 4 and set(tensor.shape[1:3]) != {1}:
            feature_map = tensor
    if feature_map is None:
        raise InputError(
            f"{backbone.name} has no feature map with more than one position up to stage {stage + 1}: "
            "choose a later stage or larger images."
        )
    return feature_map
