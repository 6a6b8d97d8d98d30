"""Image → normalise → backbone → pooling → head as one `keras.Model`, and the parts of such a model."""

import re
import weakref

import keras

from keras_transfer.errors import InputError
from keras_transfer.models.heads import (
    HEADS,
    Head,
    TaskOutput,
)
from keras_transfer.models.sources.applications import build_backbone
from keras_transfer.models.stages import Backbone, backbone_of, rebuild


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


def head_for(data, **options) -> "Head | dict[str, Head]":
    """What `build_model` needs for the labels of some data: a head, or one a name.

    Args:
        data: a `keras_transfer.data.ImageData`.
        options: fields of all heads, e.g. `dropout=0.5`.
    """

    def head(target):
        return HEADS[target.task](target.names, **options)

    if isinstance(data.targets, dict):
        return {name: head(target) for name, target in data.targets.items()}
    return head(data.targets)


def heads_of(model: keras.Model) -> dict[str, Head]:
    """The heads of a model, sorted by name; the only head of a model is called `output`.


    Raises:
        InputError: the model was not built by this package.
    """
    heads = {layer.name: layer.head for layer in model.layers if isinstance(layer, TaskOutput)}
    if not heads:
        raise InputError(
            f"The model '{model.name}' has no head of keras_transfer: use build_model."
        )
    return dict(sorted(heads.items()))


def head_of(model: keras.Model) -> Head:
    """The head that a model ends in.

    Raises:
        InputError: the model was not built by this package, or has several.
    """
    heads = heads_of(model)
    if len(heads) > 1:
        raise InputError(f"The model '{model.name}' has several heads: {', '.join(heads)}.")
    return next(iter(heads.values()))


def compile_arguments(heads: dict[str, Head]) -> dict:
    """`loss`, `metrics` and, of several heads, `loss_weights` for `model.compile`.

    Args:
        heads: `heads_of(model)`.
    """
    if len(heads) == 1:
        (head,) = heads.values()
        return {"loss": head.loss(), "metrics": head.metrics()}
    return {
        "loss": {name: head.loss() for name, head in heads.items()},
        "metrics": {name: head.metrics() for name, head in heads.items()},
        "loss_weights": {name: head.weight for name, head in heads.items()},
    }


def by_head(heads: dict[str, Head], values) -> dict:
    """Labels or outputs by the head's name: they are a dict only where there are several."""
    return values if isinstance(values, dict) else dict.fromkeys(heads, values)


def fit_heads(model: keras.Model, labels) -> None:
    """Lets the heads take from the training labels what they have to know (see `Head.fitted`).

    Compile the model afterwards.
    """
    heads = heads_of(model)
    for name, targets in by_head(heads, labels).items():
        model.get_layer(name).head = heads[name].fitted(targets)


def check_targets(heads: dict[str, Head], data) -> None:
    """Raises InputError where some data are labelled with something else than the heads answer."""
    targets = data.targets if isinstance(data.targets, dict) else {"": data.targets}
    if isinstance(data.targets, dict) != (len(heads) > 1):
        raise InputError(
            f"The model has the heads {', '.join(heads)}, the data labels for "
            f"{', '.join(targets) if targets.keys() != {''} else 'one'}: build the model with "
            "head_for(data)."
        )
    if len(heads) == 1:
        targets = {next(iter(heads)): data.targets}
    if heads.keys() != targets.keys():
        raise InputError(
            f"The model's heads are {', '.join(heads)}, the data's {', '.join(targets)}."
        )
    for name, head in heads.items():
        target = targets[name]
        if head.task != target.task:
            raise InputError(
                f"Head '{name}' of the model is {head.task}, but the data are {target.task}: build "
                "the model with head_for(data)."
            )
        if head.names != target.names:
            raise InputError(
                f"The model's classes {head.names} are not the data's {target.names}: build the "
                "model with head_for(data)."
            )
