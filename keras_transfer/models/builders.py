"""Build a model: image → normalization → backbone → pooling → head(s); and find its parts again."""

import re
import weakref
from dataclasses import replace

import keras

from keras_transfer.data.classes import in_recorded_order
from keras_transfer.data.examples import Target
from keras_transfer.errors import InputError
from keras_transfer.modalities.image.framing import Framing
from keras_transfer.models.framing import limit_tokens, modality_of
from keras_transfer.models.graph import rebuild
from keras_transfer.models.heads import HEADS, Head, TaskOutput
from keras_transfer.models.sources.backbones import build_backbone
from keras_transfer.models.stages import (
    Backbone,
    backbone_of,
    parameter_count,
    require_model,
    stage_of_weights,
)
from keras_transfer.utils.console import Table
from keras_transfer.utils.image_sizes import checked_size, sides, size_of
from keras_transfer.utils.keras_versions import first_node


def build_model(
    backbone: str | Backbone | keras.Model | list,
    head: Head | dict[str, Head],
    *,
    image_size: "int | str | Framing | None" = None,
    weights: str | None = "imagenet",
    pooling: str | None = "auto",
    taps: str = "last",
    crop: float | None = None,
    tokens: int | None = None,
    data=None,
    channels: int | None = None,
) -> keras.Model:
    """Build a model for a task on a pretrained backbone.

    Args:
        backbone: a name listed by `keras-transfer backbones`; a preset of KerasHub (`dinov2_small`,
            `hf://…`, `kaggle://…` or a folder) or one of its models; a `Backbone`; or your own source
            model: a `.keras` file, a run directory or a `keras.Model`, whose head is removed; or a
            list of them, or names joined by `+`: the head then reads the features of all.
        head: the task, e.g. `Classification(["ants", "bees"])`; or name → head for several on one
            backbone, e.g. `{"kind": Classification(…), "age": Regression(…)}`.
        image_size: height and width of the images, such as 224 or `"96x192"`; by default those of the ImageNet training or of
            the source model. A `Framing` of images also says crop, depth and channels.
        weights: `"imagenet"`, a path to a weights file, or None for random weights.
        pooling: `"avg"`, `"max"`, or None (the head flattens the feature map); of a transformer also
            `"class"` (its class token) and `"class+avg"`. `"auto"` is as it was trained, or `"avg"`.
        taps: what the head reads: `"last"`, the last stage, `"all"`, every stage, or, of texts,
            `"all+tfidf"`, see `build_backbone`.
        crop: share of an image's shorter side that the central square covers, in (0, 1]. By default
            that of the source model, or the data of the first training decides.
        tokens: most tokens that the model reads of a text, special ones included; by default as many
            as the encoder reads.
        data: an `ImageData`: of clips it decides the default size; taps `"all+tfidf"` are fitted to its
            training texts.
        channels: of the images; by default 3 (RGB), or those of the source model. See
            `models.channels.with_channels`.

    Returns:
        A `keras.Model` from images [N, height, width, channels] (uint8 or float, 0–255), or
        from the token ids of texts (int32 [N, T], padded), to the head's float32 outputs [N, C]:
        logits for classes and labels, values for numbers; with several heads, a dict of them.
        Nothing is frozen yet.

    Raises:
        InputError: unknown backbone, an image size below the family's minimum, unavailable weights,
            a crop or a number of tokens out of its range, a source model that does not take images, or invalid head names.
    """
    depth = None
    if isinstance(image_size, Framing):
        given, image_size = image_size, image_size.size
        crop, depth, channels = given.crop or crop, given.depth, given.channels or channels
    image_size = checked_size(image_size)
    for one in head.values() if isinstance(head, dict) else [head]:
        if not isinstance(one, Head):
            raise InputError(
                "A head must be Classification(names), MultiLabel(names) or Regression(names), not "
                f"{one!r}."
            )
    if isinstance(head, dict):
        _check_names(head)
    if not isinstance(backbone, Backbone):
        backbone = build_backbone(
            backbone,
            image_size=image_size,
            weights=weights,
            pooling=pooling,
            taps=taps,
            channels=channels,
            data=data,
        )
    inputs = _inputs(backbone, image_size)
    _set_images(backbone, crop, channels, depth)
    if tokens is not None:
        limit_tokens(backbone, tokens)
    features = backbone(inputs)
    if None in features.shape[1:]:
        raise InputError(f"{backbone.name} reads texts of any length: a head needs a pooling.")
    if isinstance(head, dict):
        # Sorted, as Keras sorts them when it saves.
        outputs = {name: head[name].connect(features, name) for name in sorted(head)}
        return keras.Model(inputs, outputs, name=f"{backbone.name}_{'_'.join(head)}")
    return keras.Model(inputs, head.connect(features), name=f"{backbone.name}_{head.task}")


def _set_images(backbone, crop, channels, depth):
    """Set the given parts of a framing of images."""
    found = backbone.input_shape[-1]
    if channels is not None and (len(backbone.input_shape) != 4 or channels != found):
        raise InputError(f"The backbone '{backbone.name}' does not read {channels} channels.")
    if len(backbone.input_shape) == 4 and backbone.framing is None and found != 3:
        backbone.framing = Framing(channels=found)
    given = {name: x for name, x in (("crop", crop), ("depth", depth)) if x is not None}
    images = len(backbone.input_shape) == 4
    if given and images:
        known = backbone.framing if isinstance(backbone.framing, Framing) else None
        backbone.framing = replace(
            known or Framing(channels=None if found == 3 else found), **given
        )


def _inputs(backbone, image_size):
    kind = modality_of(backbone)
    shape, dtype, name = kind.model_input(backbone.name, backbone.input_shape, image_size)
    return keras.Input(shape, dtype=dtype, name=name)


def _check_names(heads):
    if len(heads) < 2:
        raise InputError("A dict of heads needs two or more: pass a single head itself.")
    for name in heads:
        # They become names of layers, metrics, columns and outputs of the exported model.
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", str(name)) or name in ("images", "loss"):
            raise InputError(
                f"Invalid head name {name!r}: use letters, digits and _, starting with a letter "
                "(neither 'images' nor 'loss')."
            )


# -- the backbone ---------------------------------------------------------------------------------

# Outside the backbones: Keras would track them as layers.
_resized: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def backbone_at(model: keras.Model, image_size: int | str | None = None) -> Backbone:
    """Return the model's backbone for images of one size (by default the model's), on shared weights.

    Raises:
        InputError: see `check_other_size`, or the size is too small for the layers.
    """
    image_size = checked_size(image_size)
    backbone = backbone_of(model)
    image_size = image_size or size_of(model.input_shape)
    if size_of(backbone.input_shape) == image_size:
        return backbone
    check_other_size(model, image_size)
    resized = _resized.setdefault(backbone, {})
    if image_size not in resized:
        channels = backbone.input_shape[-1]
        inputs = keras.Input((*sides(image_size), channels), name="images")
        try:
            resized[image_size] = Backbone(inputs, rebuild(backbone, inputs), name=backbone.name)
        except ValueError as error:
            raise InputError(
                f"{backbone.name} cannot be built for image size {image_size}: {error}"
            ) from None
    resized[image_size].framing = backbone.framing  # it may have been settled since
    return resized[image_size]


def check_other_size(model: keras.Model, image_size: int | str) -> None:
    """Raise InputError if `backbone_at` would, as far as the number alone shows it.

    The sizes must differ by a multiple of 32, so that every layer pads the same way.
    """
    image_size = checked_size(image_size)
    size = size_of(model.input_shape)
    if image_size == size:
        return
    if size is None:
        modality_of(model).model_input(f"'{model.name}'", model.input_shape, image_size)
    pairs = zip(sides(image_size), sides(size))
    if any((other - own) % 32 or other < 32 for other, own in pairs):
        raise InputError(
            f"Image size {image_size} does not differ from the model's {size} by a multiple of 32."
        )


def summary(model: keras.Model) -> str:
    """Return a table of parameters and trainable parameters, one line per stage and for the head."""
    stages = backbone_of(model).stages
    rows: list[tuple] = [
        (
            stage.index + 1,
            stage.name,
            len(stage.layers),
            parameter_count(w for layer in stage.layers for w in layer.weights),
            parameter_count(w for layer in stage.layers for w in layer.trainable_weights),
        )
        for stage in stages
    ]
    in_stages = stage_of_weights(model)
    head, trainable = (
        [w for w in weights if id(w) not in in_stages]
        for weights in (model.weights, model.trainable_weights)
    )
    if head:
        layers = len(model.layers) - 2  # without the input and the backbone
        rows.append(("head", "", layers, parameter_count(head), parameter_count(trainable)))
    header = ("stage", "last layer with weights", "layers", "parameters", "trainable")
    return Table(header, [(*row[:3], *(f"{n:,}" for n in row[3:])) for row in rows], "llrrr").text()


# -- heads ----------------------------------------------------------------------------------------


def head_for(data, **options) -> Head | dict[str, Head]:
    """Return the head that `build_model` needs for the labels of some data, or a dict of heads.

    Args:
        data: a `keras_transfer.data.ImageData`.
        options: fields of all heads, e.g. `dropout=0.5`.
    """

    def head(target):
        return HEADS[target.task](target.names, **options)

    if isinstance(data.targets, dict):
        return {name: head(target) for name, target in data.targets.items()}
    return head(data.targets)


def heads_for(data) -> dict[str, Head]:
    """Return the heads for the labels of some data by name; a single one is called `output`."""
    found = head_for(data)
    return found if isinstance(found, dict) else {"output": found}


def heads_of(model: keras.Model) -> dict[str, Head]:
    """Return the heads of a model, sorted by name; a single head is called `output`.

    Raises:
        InputError: the model was not built by this package, or is something else, such as a run.
    """
    require_model(model)
    heads = {layer.name: layer.head for layer in model.layers if isinstance(layer, TaskOutput)}
    if not heads:
        raise InputError(
            f"The model '{model.name}' has no keras_transfer head: build it with build_model."
        )
    return dict(sorted(heads.items()))


def head_of(model: keras.Model) -> Head:
    """Return the single head of a model.

    Raises:
        InputError: the model was not built by this package, or has several heads.
    """
    heads = heads_of(model)
    if len(heads) > 1:
        raise InputError(f"The model '{model.name}' has several heads: {', '.join(heads)}.")
    return next(iter(heads.values()))


def head_layers(model) -> dict[str, list[keras.layers.Layer]]:
    """Return name of each head → its layers, from the features to the output."""
    chains = {}
    for output in model.layers:
        if isinstance(output, TaskOutput):
            chain: list[keras.layers.Layer] = []
            node = first_node(output)
            while not isinstance(node.operation, Backbone):
                chain.insert(0, node.operation)
                (node,) = node.parent_nodes
            chains[output.name] = chain
    return chains


def by_head(heads: dict[str, Head], values) -> dict:
    """Return labels or outputs by the head's name; they are a dict only if there are several."""
    return values if isinstance(values, dict) else dict.fromkeys(heads, values)


def compile_arguments(heads: dict[str, Head]) -> dict:
    """Return `loss`, `metrics` and, for several heads, `loss_weights` for `model.compile`.

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


def fit_heads(model: keras.Model, labels) -> None:
    """Let the heads derive what they need from the training labels (see `Head.fitted`).

    Compile the model afterwards.
    """
    heads = heads_of(model)
    for name, targets in by_head(heads, labels).items():
        model.get_layer(name).head = heads[name].fitted(targets)


def check_targets(heads: dict[str, Head], data):
    """Return data with its classes in the order of the heads; InputError if its labels do not fit."""
    several = isinstance(data.targets, dict)
    if several != (len(heads) > 1):
        raise InputError(
            f"The model has the heads {', '.join(heads)}, but the data has labels for "
            f"{', '.join(data.targets) if several else 'one'}: build the model with head_for(data)."
        )
    wanted = {name: Target(head.task, head.names) for name, head in heads.items()}
    data = in_recorded_order(data, wanted if several else next(iter(wanted.values())))
    targets = by_head(heads, data.targets)
    if heads.keys() != targets.keys():
        raise InputError(
            f"The model's heads are {', '.join(heads)}, but the data's are {', '.join(targets)}."
        )
    for name, head in heads.items():
        target = targets[name]
        if head.task != target.task:
            raise InputError(
                f"Head '{name}' of the model is {head.task}, but the data is {target.task}: build "
                "the model with head_for(data)."
            )
        if head.names != target.names:
            raise InputError(
                f"The model's classes {head.names} are not the data's {target.names}: build the "
                "model with head_for(data)."
            )
    return data
