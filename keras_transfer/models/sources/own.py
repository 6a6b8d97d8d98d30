"""Backbones as networks: built from a row of the table, or taken out of a user's own model.

What can be told of a name, a size or a file without Keras, `backbones` has told before.
"""

import keras

from keras_transfer.errors import InputError
from keras_transfer.models import heads  # noqa: F401  (registers its layers, for `load_model`)
from keras_transfer.models.sources.applications import (
    check_source_model,
    normalise,
)
from keras_transfer.models.stages import Backbone, chain, rebuild


def backbone_from_model(
    source, *, image_size=None, pooling="avg", weights="imagenet", preprocessing="none"
):
    """Takes the backbone out of a user's own trained model (the source model).

    A model built by this package gives back its backbone. From any other functional or sequential
    model the head is removed: everything from the last pooling or flattening on.

    Args:
        source: a `keras.Model`, a `.keras` file or a run directory.
        image_size: height and width of the images; by default those of the source model.
        pooling: as in `build_backbone`; a backbone of this package keeps the one it was built with.
        weights: None re-initialises the weights (training from scratch); else they are kept.
        preprocessing: the key of `PREPROCESSING` that was applied to the images outside of the
            source model; a model of this package has it inside.

    Returns:
        A `keras_transfer.models.stages.Backbone` that shares the source model's weights.

    Raises:
        InputError: the file is no Keras model, the model takes no RGB images, or its layers do
            not fit together at the image size.
    """
    model = source
    if not isinstance(source, keras.Model):
        model = load_model(check_source_model(source))
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[-1] != 3:
        raise InputError(
            f"The source model '{model.name}' takes inputs of shape {shape}; a backbone takes one "
            "batch of RGB images, shape (None, height, width, 3)."
        )
    inputs = keras.Input((image_size or shape[1], image_size or shape[2], 3), name="images")
    own = [layer for layer in [model, *model.layers] if isinstance(layer, Backbone)]
    try:
        if own:
            features = rebuild(own[0], inputs)
        else:
            features = _without_head(model, inputs, pooling, preprocessing)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"The layers of the source model '{model.name}' do not fit together at image size "
            f"{image_size}: it was made for {shape[1]}."
        ) from error
    backbone = Backbone(inputs, features, name=(own[0] if own else model).name)
    for layer in backbone.layers:  # what a former schedule froze is no property of the backbone
        layer.trainable = True
    if weights is None:
        backbone = Backbone.from_config(backbone.get_config())
    return backbone


def load_model(path):
    """Loads a model of this package, or any other Keras model, with safe mode on.

    The same as `keras.saving.load_model(path, compile=False)` once this package's layers are
    registered, which this function sees to.

    Raises:
        InputError: the file cannot be read as a Keras model.
    """
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:
        said = error
        while said.__context__ is not None and not isinstance(said, InputError):
            said = said.__context__  # Keras wraps what a layer of ours says into pages of config
        said = said if isinstance(said, InputError) else error
        reason = str(said).strip().splitlines()[0]
        raise InputError(f"Cannot load {path}: {reason}") from error


def _without_head(model, inputs, pooling, preprocessing):
    """The spatial part of a foreign model on `inputs`, with a pooling of our own."""
    # Unrolled at its own size first: at another one the head might not fit any more.
    own_inputs = keras.Input(model.input_shape[1:])
    feature_map = _last_feature_map(keras.Model(own_inputs, rebuild(model, own_inputs)))
    spatial_part = keras.Model(own_inputs, feature_map)
    features = rebuild(spatial_part, normalise(inputs, preprocessing))
    if pooling is not None:
        pool = {"avg": "GlobalAveragePooling2D", "max": "GlobalMaxPooling2D"}[pooling]
        features = getattr(keras.layers, pool)(name="pooling")(features)
    return features


def _last_feature_map(model):
    """The tensor that enters the head: the last [N, h, w, D] of the chain before it is pooled."""
    layers = keras.layers
    ends = (
        layers.GlobalAveragePooling2D,
        layers.GlobalMaxPooling2D,
        layers.Flatten,
        layers.Reshape,
    )
    feature_map = None
    for piece in chain(model):
        # Squeeze-and-excitation pools too, but inside of a longer piece.
        tensor = piece[-1].output_tensors[0]
        if len(tensor.shape) != 4 or (len(piece) == 1 and isinstance(piece[0].operation, ends)):
            break
        if any(getattr(node.operation, "weights", ()) for node in piece) or feature_map is not None:
            feature_map = tensor
    if feature_map is None:
        raise InputError(f"The source model '{model.name}' has no layer that gives a feature map.")
    return feature_map
