"""Where in an image a model sees a class: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391)."""

import weakref
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_transfer.errors import InputError
from keras_transfer.models.builders import head_layers, heads_of
from keras_transfer.models.stages import backbone_of, chain


def grad_cam(
    model: keras.Model,
    images: np.ndarray,
    classes: int | Sequence[int] | None = None,
    stage: int = -1,
    *,
    head: str | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """How much each place of an image speaks for a class.

    The channels of a feature map are added up, each times the mean over all places of the
    gradient of the class's raw output (its logit) by that channel; what speaks against the class
    is cut off. The backbone runs once, in inference mode; only what comes after the feature map is
    derived.

    Args:
        model: from `build_model`, with heads of any task.
        images: RGB, [N, image_size, image_size, 3], uint8 or float, 0–255, N ≥ 1.
        classes: position of an output for each image, or one for all: of the class, the label or
            the number that is asked for. By default the highest output of each image; of numbers
            the first.
        stage: of the backbone, whose output is the feature map: negative numbers count from the
            last one. Where a stage ends in something else (padding, pooling and what follows it),
            the last map before that is taken that has more than one place.
        head: its name, for a model of several heads.
        batch_size: images that are computed at a time.

    Returns:
        float32 [N, h, w] in 0–1, of the size of the feature map; the highest value of an image is
        1, and all are 0 where nothing in it speaks for the class.

    Raises:
        InputError: not a model of this package, images of another shape, no such stage, head or
            output, no feature map up to that stage, or a Keras backend other than TensorFlow and
            JAX.
    """
    name, outputs = _output(model, head)
    images = np.asarray(images)
    if images.ndim != 4 or not len(images) or images.shape[1:] != model.input_shape[1:]:
        raise InputError(
            f"Grad-CAM needs images of shape [N, {', '.join(map(str, model.input_shape[1:]))}], "
            f"N ≥ 1, not {list(images.shape)}."
        )
    if classes is not None:
        classes = np.asarray(classes, "int64")
        if classes.shape not in ((), (len(images),)):
            raise InputError(
                f"classes must be one position, or one for each of the {len(images)} images, "
                f"not of shape {list(classes.shape)}."
            )
        classes = np.broadcast_to(classes, len(images))
        if classes.min() < 0 or classes.max() >= outputs:
            raise InputError(f"classes must be 0 to {outputs - 1}, the positions of the outputs.")
    prefix, suffix = _parts(model, stage)
    layers = head_layers(model)[name]

    def logits(maps):
        features = suffix(maps, training=False)
        for layer in layers:
            features = layer(features)
        return features

    heat = []
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        # Layer by layer: for so few images the compilation of a graph would take longer.
        maps = ops.convert_to_numpy(ops.cast(prefix(images[rows], training=False), "float32"))
        chosen = None if classes is None else classes[rows]
        if chosen is None:
            found = ops.convert_to_numpy(logits(ops.convert_to_tensor(maps)))
            numbers = heads_of(model)[name].task == "regression"
            chosen = np.zeros(len(found), "int64") if numbers else found.argmax(axis=1)
        mask = np.eye(outputs, dtype="float32")[chosen]

        def of_classes(maps, mask=mask):
            return ops.sum(logits(maps) * mask)

        heat.append(_heat(maps, _gradient(of_classes, maps)))
    return np.concatenate(heat)


def _heat(maps, gradients):
    weights = gradients.mean(axis=(1, 2), keepdims=True)
    # Only proportions matter, and tiny gradients would vanish in the products.
    weights /= np.abs(weights).max(axis=(1, 2, 3), keepdims=True) + 1e-30
    heat = np.maximum((weights * maps).sum(axis=-1), 0)
    return heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-30)


def _gradient(function, maps: np.ndarray) -> np.ndarray:
    """Of a function from an array to a number. The one place that Keras has no words for."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        at = tf.constant(maps)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(at)
            value = function(at)
        return tape.gradient(value, at).numpy()
    if backend == "jax":
        import jax

        return np.asarray(jax.grad(function)(maps))
    raise InputError(f"Grad-CAM needs the backend tensorflow or jax, not {backend}.")


def _output(model, head):
    """(name of the head, number of its outputs)."""
    heads = heads_of(model)
    name = next(iter(heads)) if head is None and len(heads) == 1 else head
    if name not in heads:
        what = "Say which head" if head is None else f"The model has no head {head!r}"
        raise InputError(f"{what}: it has {', '.join(heads)}.")
    return name, len(heads[name].names)


# Kept outside of the backbones, which would take them for layers of their own.
_cuts: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _parts(model, stage):
    """(prefix, suffix) of the backbone, on shared weights, cut at the feature map."""
    backbone = backbone_of(model)
    count = len(backbone.stages)
    if not -count <= stage < count:
        raise InputError(
            f"{backbone.name} has {count} stages: give {-count} to {count - 1}, not {stage}."
        )
    stage %= count
    cuts = _cuts.setdefault(backbone, {})
    if stage not in cuts:
        cut = _feature_map(backbone, stage)
        prefix = keras.Model(backbone.inputs[0], cut, name=f"{backbone.name}_map")
        # A backbone without pooling may end in the very map.
        whole = cut is backbone.outputs[0]
        suffix = keras.layers.Identity() if whole else keras.Model(cut, backbone.outputs[0])
        cuts[stage] = prefix, suffix
    return cuts[stage]


def _feature_map(backbone, stage):
    """The last tensor up to the stage's end that all that follows sees, and that has places."""
    end, found = backbone.stages[stage].output, None
    for piece in chain(backbone):
        node, tensor = piece[-1], piece[-1].output_tensors[0]
        # Padding shifts the places.
        other = node.is_input or isinstance(node.operation, keras.layers.ZeroPadding2D)
        if not other and len(tensor.shape) == 4 and set(tensor.shape[1:3]) != {1}:
            found = tensor
        if tensor is end:
            break
    if found is None:
        raise InputError(
            f"{backbone.name} has no feature map with more than one place up to stage {stage + 1}: "
            "take a later stage or larger images."
        )
    return found
