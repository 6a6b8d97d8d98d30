"""Picture → normalise → backbone → pooling → head, as one `keras.Model`."""

import keras

from keras_transfer.backbones import build_backbone
from keras_transfer.errors import InputError
from keras_transfer.heads import Head
from keras_transfer.stages import Backbone, rebuild


def build_model(
    backbone: str | Backbone | keras.Model,
    head: Head,
    *,
    image_size: int | None = None,
    weights: str | None = "imagenet",
    pooling: str | None = "avg",
) -> keras.Model:
    """Builds a model for a task on a pretrained backbone.

    Args:
        backbone: a name of the table (`keras-transfer backbones`), a `Backbone`, or the user's own
            source model: a `.keras` file, a run directory or a `keras.Model`, whose head goes.
        head: what the model shall answer, e.g. `Classification(["ants", "bees"])`.
        image_size: height and width of the pictures; by default that of the ImageNet training, or
            that of the source model.
        weights: `"imagenet"`, a path to a weights file, or None for random weights.
        pooling: `"avg"`, `"max"`, or None (the head flattens the feature map).

    Returns:
        A `keras.Model` from RGB pictures [N, image_size, image_size, 3] (uint8 or float, 0–255) to
        the head's float32 outputs [N, C]: logits for classification. Nothing is frozen yet.

    Raises:
        InputError: unknown backbone, image size below the family's least, weights that cannot be
            had, or a source model that does not take pictures.
    """
    if not isinstance(backbone, Backbone):
        backbone = build_backbone(backbone, image_size=image_size, weights=weights, pooling=pooling)
    image_size = image_size or backbone.input_shape[1]
    if image_size is None:
        raise InputError(f"Give image_size: '{backbone.name}' does not say which it was made for.")
    if backbone.input_shape[1] not in (None, image_size):
        raise InputError(
            f"This backbone was built for image size {backbone.input_shape[1]}, not {image_size}."
        )
    inputs = keras.Input((image_size, image_size, 3), name="pictures")
    outputs = head.connect(backbone(inputs))
    return keras.Model(inputs, outputs, name=f"{backbone.name}_{head.task}")


def at_image_size(model: keras.Model, image_size: int) -> keras.Model:
    """The same model for pictures of another size, on shared weights: what one learns, both know.

    Args:
        model: from `build_model`.
        image_size: differs from the model's by a multiple of 32, so that every layer pads alike.

    Raises:
        InputError: another image size, or one that is too small for the layers.
    """
    backbone = backbone_of(model)
    size = model.input_shape[1]
    if image_size == size:
        return model
    if (image_size - size) % 32:
        raise InputError(
            f"Image size {image_size} does not differ from {size} by a multiple of 32."
        )
    inner = keras.Input((image_size, image_size, 3), name="pictures")
    inputs = keras.Input((image_size, image_size, 3), name="pictures")
    try:
        other = Backbone(inner, rebuild(backbone, inner), name=backbone.name)
        x = other(inputs)
    except ValueError as error:
        raise InputError(f"{backbone.name} takes no {image_size} px: {error}") from None
    for layer in model.layers[model.layers.index(backbone) + 1 :]:
        x = layer(x)
    return keras.Model(inputs, x, name=model.name)


def backbone_of(model: keras.Model) -> Backbone:
    """The backbone inside a model that `build_model` made (or the model itself, if it is one).

    Raises:
        InputError: there is none.
    """
    for layer in [model, *model.layers]:
        if isinstance(layer, Backbone):
            return layer
    raise InputError(
        f"The model '{model.name}' has no keras_transfer backbone: build it with build_model, or "
        "take its backbone with backbone_from_model."
    )
