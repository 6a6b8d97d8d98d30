"""Image → normalise → backbone → pooling → head as one `keras.Model`, and the parts of such a model."""

import re
import weakref

import keras

from keras_transfer.errors import InputError
from keras_transfer.models.folding import Inference, folded
from keras_transfer.models.heads import Head, TaskOutput
from keras_transfer.models.sources.build import build_backbone
from keras_transfer.models.stages import Backbone, batch_norms, rebuild


def build_model(
    backbone: str | Backbone | keras.Model,
    head: Head | dict[str, Head],
    *,
    image_size: int | None = None,
    weights: str | None = "imagenet",
    pooling: str | None = "avg",
) -> keras.Model:
    """Builds a model for a task on a pretrained backbone.

    Args:
        backbone: a name of the table (`keras-transfer backbones`), a `Backbone`, or the user's own
            source model: a `.keras` file, a run directory or a `keras.Model`, whose head goes.
        head: what the model shall answer, e.g. `Classification(["ants", "bees"])`; or name → head
            for several on one backbone, e.g. `{"kind": Classification(…), "age": Regression(…)}`.
        image_size: height and width of the images; by default that of the ImageNet training, or
            that of the source model.
        weights: `"imagenet"`, a path to a weights file, or None for random weights.
        pooling: `"avg"`, `"max"`, or None (the head flattens the feature map).

    Returns:
        A `keras.Model` from RGB images [N, image_size, image_size, 3] (uint8 or float, 0–255) to
        the head's float32 outputs [N, C]: logits for classes and labels, values for numbers; of
        several heads a dict of them. Nothing is frozen yet.

    Raises:
        InputError: unknown backbone, image size below the family's least, weights that cannot be
            had, a source model that does not take images, or names that are none for heads.
    """
    if isinstance(head, dict):
        _check_names(head)
    if not isinstance(backbone, Backbone):
        backbone = build_backbone(backbone, image_size=image_size, weights=weights, pooling=pooling)
    image_size = image_size or backbone.input_shape[1]
    if image_size is None:
        raise InputError(f"Give image_size: '{backbone.name}' does not say which it was made for.")
    if backbone.input_shape[1] not in (None, image_size):
        raise InputError(
            f"This backbone was built for image size {backbone.input_shape[1]}, not {image_size}."
        )
    inputs = keras.Input((image_size, image_size, 3), name="images")
    features = backbone(inputs)
    if isinstance(head, dict):
        # Sorted, as Keras sorts them when it saves.
        outputs = {name: head[name].connect(features, name) for name in sorted(head)}
        return keras.Model(inputs, outputs, name=f"{backbone.name}_{'_'.join(head)}")
    return keras.Model(inputs, head.connect(features), name=f"{backbone.name}_{head.task}")


def _check_names(heads):
    if len(heads) < 2:
        raise InputError("A dict of heads needs two or more: give a single head itself.")
    for name in heads:
        # They become names of layers, metrics, columns and outputs of the exported model.
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", str(name)) or name in ("images", "loss"):
            raise InputError(
                f"{name!r} is no name for a head: take letters, digits and _, beginning with a "
                "letter (and neither 'images' nor 'loss')."
            )


# Kept outside of the backbones, which would take them for layers of their own.
_duplicates: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def backbone_at(model: keras.Model, image_size: int | None = None) -> Backbone:
    """The model's backbone for images of one size (by default the model's), on shared weights.

    Raises:
        InputError: see `check_other_size`, or the size is too small for the layers.
    """
    backbone = backbone_of(model)
    image_size = image_size or model.input_shape[1]
    if backbone.input_shape[1] == image_size:
        return backbone
    check_other_size(model, image_size)
    duplicates = _duplicates.setdefault(backbone, {})
    if image_size not in duplicates:
        inputs = keras.Input((image_size, image_size, 3), name="images")
        try:
            duplicates[image_size] = Backbone(inputs, rebuild(backbone, inputs), name=backbone.name)
        except ValueError as error:
            raise InputError(f"{backbone.name} takes no {image_size} px: {error}") from None
    return duplicates[image_size]


def check_other_size(model: keras.Model, image_size: int) -> None:
    """Raises InputError where `backbone_at` would, as far as it can be told from the number.

    The sizes differ by a multiple of 32, so that every layer pads alike.
    """
    size = model.input_shape[1]
    if (image_size - size) % 32 or image_size < 32:
        raise InputError(
            f"Image size {image_size} does not differ from the model's {size} by a multiple of 32."
        )


def training_model(
    model: keras.Model,
    frozen: int,
    *,
    image_size: int | None = None,
    from_cut: bool = False,
    fold: bool = True,
) -> keras.Model:
    """The model as a phase trains it, on shared weights: the same function, made to run fast.

    Args:
        model: from `build_model`.
        frozen: number of leading stages that do not train.
        image_size: of the phase, see `backbone_at`.
        from_cut: take the activations after the frozen stages (at least one) in place of images.
        fold: fold BatchNorm into the convolutions of the trained part too, which must be frozen
            there. In the frozen part it always is.
    """
    backbone = backbone_at(model, image_size)
    if frozen == 0:
        prefix, suffix = None, backbone
    elif frozen == len(backbone.stages):
        prefix, suffix = backbone, None
    else:
        prefix, suffix = backbone.split(frozen)
    if from_cut:
        assert prefix is not None, "a cut has stages before it"
        x = inputs = keras.Input(prefix.output_shape[1:], dtype=prefix.outputs[0].dtype)
    else:
        x = inputs = keras.Input(backbone.input_shape[1:], name="images")
        if prefix is not None:
            x = Inference(folded(prefix))(x)
    if suffix is not None:
        x = (folded(suffix) if fold else suffix)(x)
    return keras.Model(inputs, _head_on(model, x), name=model.name)


def _head_on(model, features):
    """The layers after the backbone, on other features: the output, of several heads a dict."""
    outputs = {}
    for name, layers in head_layers(model).items():
        outputs[name] = features
        for layer in layers:
            outputs[name] = layer(outputs[name])
    return outputs if len(outputs) > 1 else outputs.popitem()[1]


def head_layers(model) -> dict[str, list[keras.layers.Layer]]:
    """Name of each head → its layers, from the features to the output."""
    chains = {}
    for output in model.layers:
        if isinstance(output, TaskOutput):
            chain: list[keras.layers.Layer] = []
            node = output._inbound_nodes[0]  # the first is that of the model itself
            while not isinstance(node.operation, Backbone):
                chain.insert(0, node.operation)
                (node,) = node.parent_nodes
            chains[output.name] = chain
    return chains


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


def norms_of(model: keras.Model, frozen: int = 0) -> list:
    """The BatchNorm layers of the stages after the frozen ones, and of the heads."""
    parts = [*backbone_of(model).stages[frozen:], model]
    return [norm for part in parts for norm in batch_norms(part)]
