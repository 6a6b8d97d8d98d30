"""Take a backbone out of your own model or file; load models of this package."""

import functools
import json
import os
import zipfile
from pathlib import Path

import keras

from keras_transfer.errors import InputError
from keras_transfer.models import heads  # noqa: F401  (registers its layers, for `load_model`)
from keras_transfer.models.graph import chain, rebuild
from keras_transfer.models.low_rank import has_attention
from keras_transfer.models.sources.applications import (
    check_pooling,
    check_source_model,
    damage_of,
    normalized,
    pooled,
)
from keras_transfer.models.sources.hub_files import HUB, downloaded
from keras_transfer.models.sources.keras_2 import readable
from keras_transfer.models.stages import Backbone
from keras_transfer.utils.console import first_line, say
from keras_transfer.utils.extras import require
from keras_transfer.utils.global_state import restored
from keras_transfer.utils.image_sizes import checked_size, sides
from keras_transfer.utils.keras_versions import remember_saved_attributes

_MODEL = "model.keras"


def backbone_from_model(
    source, *, image_size=None, pooling="auto", weights="imagenet", preprocessing="auto"
):
    """Take the backbone out of your own trained model (the source model).

    A model built by this package returns its backbone, whatever it reads. From any other functional or
    sequential model for images, the head is removed: everything from the last pooling or flattening on.

    Args:
        source: a `keras.Model`, a `.keras` or `.h5` file or a run directory.
        image_size: height and width of the images; by default those of the source model.
        pooling: as in `build_backbone`; a backbone of this package retains its own.
        weights: None re-initializes the weights (training from scratch); otherwise they remain.
        preprocessing: the key of `PREPROCESSING` that was applied to the images outside the source
            model; a model of this package has it inside. `"auto"` is that of Teachable Machine for a model
            of its form, and `"none"` for others.

    Returns:
        A `keras_transfer.models.stages.Backbone` that shares the source model's weights.

    Raises:
        InputError: the file is not a Keras model, the model does not take RGB images, or its layers
            do not fit together at the image size.
    """
    image_size = checked_size(image_size)
    check_pooling(pooling, "your own model")
    model = source
    if not isinstance(source, keras.Model):
        if not isinstance(source, (str, os.PathLike)):
            raise InputError(
                f"A backbone is a name, a path or a model of Keras {keras.__version__}, not "
                f"{source!r} ({type(source).__module__})."
            )
        model = load_model(check_source_model(source))
    shape = getattr(model, "input_shape", None)
    ours = next((x for x in [model, *model.layers] if isinstance(x, Backbone)), None)
    texts = ours is not None and len(ours.input_shape) == 2
    if texts and image_size is not None:
        raise InputError(f"{ours.name} reads texts: it has no image_size.")
    if not texts and (not isinstance(shape, tuple) or len(shape) != 4 or shape[-1] is None):
        raise InputError(
            f"The source model '{model.name}' takes inputs of shape {shape}; a backbone takes one "
            "batch of RGB images, shape (None, height, width, 3)."
        )
    if texts:
        first = ours.inputs[0]
        inputs = keras.Input(first.shape[1:], dtype=first.dtype, name=first.name)
    else:
        extent = sides(image_size) if image_size else shape[1:3]
        inputs = keras.Input((*extent, shape[-1]), name="images")
    try:
        if ours is not None:
            features = rebuild(ours, inputs)
        else:
            features = _without_head(model, inputs, pooling, preprocessing)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"The layers of the source model '{model.name}' do not fit together at image size "
            f"{image_size}: it was made for {shape[1]}."
        ) from error
    framing = None if ours is None else ours.framing
    name = (model if ours is None else ours).name
    backbone = Backbone(inputs, features, name=name, framing=framing)
    for layer in backbone.layers:  # what an earlier schedule froze does not belong to the backbone
        layer.trainable = True
    return backbone if weights is not None else _untrained(backbone)


def _untrained(backbone):
    """Return a backbone with random weights, whose images are normalized as before."""
    made = Backbone.from_config(backbone.get_config())
    for before, after in zip(backbone.layers, made.layers, strict=True):
        if isinstance(before, keras.layers.Normalization):
            after.set_weights(before.get_weights())
    return made


def load_model(path):
    """Load a model of this package, or any other Keras model, with safe mode on.

    This is `keras.saving.load_model(path, compile=False)` with the layers of this package
    registered.

    Args:
        path: a file, a folder that has a `model.keras` (a run, or an export for the hub), or
            `hf://USER/NAME` for such a folder on the Hugging Face Hub.

    Raises:
        InputError: the file cannot be read as a Keras model, or not be downloaded.
    """
    if str(path).startswith(HUB):
        path = downloaded(str(path), _MODEL)
    elif (Path(path) / _MODEL).is_file():
        path = Path(path) / _MODEL
    remember_saved_attributes()
    try:
        # Initializers without a seed draw one, although it is never used.
        with restored(), readable(path) as file:
            return keras.saving.load_model(file, compile=False)
    except Exception as error:
        if not Path(path).exists():
            raise InputError(f"Cannot load {path}: the file does not exist.") from None
        if Path(path).is_file() and (damage := damage_of(Path(path))):
            raise InputError(f"Cannot load {path}: it {damage}") from None
        cause: BaseException = error
        while cause.__context__ is not None and not isinstance(cause, InputError):
            cause = cause.__context__  # Keras wraps the errors of our layers in pages of config
        cause = cause if isinstance(cause, InputError) else error
        reason = first_line(cause)
        if '"keras_hub' in _config(path):
            require("keras_hub", f"{path} has layers of KerasHub. Loading it")
        raise InputError(f"Cannot load {path}: {reason}{_newer_keras(path)}") from error


def _config(path) -> str:
    """Return the configuration in a .keras file; nothing for another kind of file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read("config.json").decode()
    except (OSError, KeyError, zipfile.BadZipFile):
        return ""


def _newer_keras(path):
    """Return a hint if another version of Keras saved the file, since its layers may have changed."""
    try:
        with zipfile.ZipFile(path) as archive:
            saved = json.loads(archive.read("metadata.json"))["keras_version"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return ""  # not a .keras file
    if saved == keras.__version__:
        return ""
    return f" Keras {saved} saved it, and this is Keras {keras.__version__}: install Keras {saved}."


def _without_head(model, inputs, pooling, preprocessing):
    """Apply the spatial part of a foreign model to `inputs`, followed by our own pooling."""
    _name_apart(model)
    # Unrolled at its own size first, because at another size its head might not fit.
    own_inputs = keras.Input(model.input_shape[1:])
    unrolled = keras.Model(own_inputs, rebuild(model, own_inputs))
    spatial_part = keras.Model(own_inputs, _last_feature_map(unrolled))
    _check_layers(model.name, spatial_part.layers, unrolled.layers)
    if preprocessing == "auto":
        preprocessing = _likely_preprocessing(model, spatial_part.operations)
    features = rebuild(spatial_part, normalized(inputs, preprocessing))
    return pooled(features, pooling)


# Layers and operations that scale or shift pixels; `preprocess_input` of `keras.applications` adds or divides.
_SCALING = {
    *("Add", "BatchNormalization", "Divide", "Multiply", "Normalization", "Rescaling", "Subtract"),
    "TrueDivide",
}


def _likely_preprocessing(model, operations):
    """Return a key of `PREPROCESSING`, and say so unless the model scales the pixels."""
    if _scales_pixels(operations):
        return "none"
    if _is_of_teachable_machine(model):
        _say_once(
            f"source model '{model.name}': of Teachable Machine, so pixels are scaled to −1 to 1. If that is "
            'wrong: backbone_from_model(…, preprocessing="none").'
        )
        return "tf"
    _say_once(
        f"source model '{model.name}': no layer scales the pixels, so it gets them from 0 to 255. If its images "
        "were scaled before, name how: backbone_from_model(…, preprocessing=…)."
    )
    return "none"


_say_once = functools.cache(say)  # a backbone is built many times for one training


def _scales_pixels(operations):
    """Return whether pixels are scaled before the first layer with a matrix or filters."""
    for operation in operations:
        if type(operation).__name__ in _SCALING:
            return True
        if any(len(weight.shape) > 1 for weight in getattr(operation, "weights", ())):
            return False
    return False


def _is_of_teachable_machine(model):
    """Return whether a model is a sequence of two: a network with its pooling, and dense layers."""
    sequences = isinstance(model, keras.Sequential) and [
        x.layers for x in model.layers if isinstance(x, keras.Sequential)
    ]
    if not sequences or not len(sequences) == len(model.layers) == 2 or not all(sequences):
        return False
    (network, *others), dense = sequences
    return (
        isinstance(network, keras.Model)
        and [type(x) for x in others] == [keras.layers.GlobalAveragePooling2D]
        and all(isinstance(x, keras.layers.Dense) for x in dense)
    )


def _name_apart(model):
    """Rename layers inside nested models that have the name of another layer, or of one of ours."""
    names = {"images": None, "normalise": None, "pooling": None}
    for parent, layer in _leaves(model):
        if names.setdefault(layer.name, layer) is not layer:
            name = f"{parent.name}_{layer.name}"
            while name in names:
                name += "_"
            layer.name = name
            names[name] = layer


def _leaves(model):
    """Yield (the model that has it, layer) for the layers that are left when a model is unrolled."""
    for layer in model.layers:
        if isinstance(layer, keras.Model) and getattr(layer, "inputs", None):
            yield from _leaves(layer)
        elif not isinstance(layer, keras.layers.InputLayer):
            yield model, layer


def _check_layers(name, layers, all_layers):
    """Raise InputError if the layers before the head cannot be its backbone.

    Args:
        layers: those before the head.
        all_layers: those of the unrolled model.
    """
    for layer in layers:
        if getattr(layer, "data_format", None) == "channels_first":
            raise InputError(
                f"The layer {layer.name} of the source model '{name}' is channels_first; a backbone is "
                "channels_last: build the model so, and copy the weights."
            )
    matrices = [x for x in layers if any(len(weight.shape) > 1 for weight in x.weights)]
    head = [x for x in all_layers if x not in layers]
    if len(matrices) == 1 and has_attention(head):
        raise InputError(
            f"The source model '{name}' is a transformer whose blocks would count as its head, because "
            f"they follow {matrices[0].name} as a sequence: choose a preset of KerasHub, or a network of "
            "feature maps."
        )


def _last_feature_map(model):
    """Return the tensor that enters the head: the last [N, h, w, D] of the chain before pooling."""
    layers = keras.layers
    ends = (
        layers.GlobalAveragePooling2D,
        layers.GlobalMaxPooling2D,
        layers.Flatten,
        layers.Reshape,
    )
    feature_map = None
    for piece in chain(model):
        # Squeeze-and-excitation pools too, but inside a longer piece.
        tensor = piece[-1].output_tensors[0]
        if len(tensor.shape) != 4 or (len(piece) == 1 and isinstance(piece[0].operation, ends)):
            break
        if any(getattr(node.operation, "weights", ()) for node in piece) or feature_map is not None:
            feature_map = tensor
    if feature_map is None:
        raise InputError(
            f"The source model '{model.name}' has no layer that outputs a feature map."
        )
    return feature_map
