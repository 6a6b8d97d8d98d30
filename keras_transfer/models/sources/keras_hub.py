"""Backbones from KerasHub: its transformers block by block, and its other networks as they are."""

import json
import os
from pathlib import Path

import keras
import keras_hub

from keras_transfer.errors import InputError
from keras_transfer.models.graph import rebuild
from keras_transfer.models.sources import tokenizers
from keras_transfer.models.sources.applications import check_pooling, normalized, pooled
from keras_transfer.models.sources.encoders import ENCODERS, IMAGENET, side
from keras_transfer.models.sources.presets import FAMILIES, PRESETS, not_available
from keras_transfer.models.sources.text_encoders import TEXT_ENCODERS
from keras_transfer.models.stages import Backbone
from keras_transfer.models.tokens import TokenPooling
from keras_transfer.utils.console import first_line, say
from keras_transfer.utils.image_sizes import sides, size_of

_SIZE = 224  # of images, if a network takes any

# -- building -------------------------------------------------------------------------------------


def backbone_from_preset(name, *, image_size=None, pooling="auto", weights="imagenet") -> Backbone:
    """Build a backbone from a preset of KerasHub.

    Args:
        name: a built-in preset, an address (`hf://…`, `kaggle://…`) or a folder, see `presets`.
        image_size: by default the preset's.
        pooling: see `backbone_from_hub`.
        weights: None for random weights; otherwise those of the preset.

    Raises:
        InputError: the preset is unavailable, or KerasHub cannot read it.
    """
    name = os.fspath(name)
    if weights not in ("imagenet", None):
        raise InputError(
            f"The preset '{name}' brings its weights: it takes no weights file {weights}."
        )
    try:
        model = keras_hub.models.Backbone.from_preset(name, load_weights=weights is not None)
        _add_token_type(name, model)
        fields = {**_stated_form(name), **_text_fields(name, model)}
        if pooling == "auto":
            pooling = _stated_pooling(name)
        preprocessing = _stated_preprocessing(name)
    except Exception as error:
        if "://" in name or not Path(name).exists():
            raise not_available(name, first_line(error)) from error
        raise InputError(f"KerasHub cannot read {name}: {first_line(error)}") from error
    return backbone_from_hub(
        model,
        image_size=image_size or _stated_size(name),
        pooling=pooling,
        weights=weights,
        preprocessing=preprocessing,
        name=Path(name).name,
        **fields,
    )


def _stated_size(name) -> int | None:
    preset = PRESETS.get(name)
    return preset.size if preset and preset.kind == "image" else None


def backbone_from_hub(
    model,
    *,
    image_size=None,
    pooling="auto",
    weights="imagenet",
    preprocessing=None,
    name=None,
    framing=None,
    **fields,
) -> Backbone:
    """Take the backbone out of a model of KerasHub.

    Args:
        model: a `keras_hub.models.Backbone`, or a task that has one.
        image_size: height and width of the images; by default the model's. Position embeddings are
            resized.
        pooling: `"class"` (the class token), `"avg"` (mean of the patches or words), `"class+avg"`,
            `"max"`, None (all tokens), or `"auto"`: as the family was trained; for texts, `"avg"`.
        weights: None re-initializes the weights.
        preprocessing: scale and offset of the pixels; by default the family's.
        name: of the backbone; by default the model's.
        framing: of the texts, if they are known to be tokenized so.
        fields: fields of `Form` that differ from KerasHub's.

    Raises:
        InputError: an unsupported family, size or pooling.
    """
    model = getattr(model, "backbone", model)
    family = next((c.__name__ for c in type(model).__mro__ if c.__name__ in FAMILIES), None)
    if family is None:
        raise InputError(
            f"{type(model).__name__} is not a supported backbone of KerasHub; supported are "
            f"{', '.join(FAMILIES)}."
        )
    if family not in ENCODERS | TEXT_ENCODERS:
        backbone = _as_it_is(
            model, image_size, pooling, preprocessing or IMAGENET, name or model.name
        )
        return backbone if weights is not None else Backbone.from_config(backbone.get_config())
    encoder = (ENCODERS | TEXT_ENCODERS)[family](model, **fields)
    if family in TEXT_ENCODERS:
        if image_size is not None:
            raise InputError(f"{name or model.name} reads texts: it has no image_size.")
        x = inputs = keras.Input((None,), dtype="int32", name="token_ids")
    else:
        shape = getattr(model, "vision_encoder", model).image_shape
        size = image_size or side(model, shape, "images")
        inputs = keras.Input((*sides(size), 3), name="images")
        x = normalized(inputs, preprocessing or encoder.preprocessing)
    for part in encoder.parts:
        x = part.layer(x)
    parts = list(encoder.parts)
    pooling = encoder.pooling if pooling == "auto" else pooling
    if pooling == "attention" and encoder.head is not None:
        parts.append(encoder.head)
        x = encoder.head.layer(x)
    elif pooling is not None:
        _check_pooling(pooling, encoder.class_token, name or model.name)
        x = TokenPooling(pooling, encoder.prefix, name="pooling")(x)
    for part in parts if weights is not None else ():
        part.copy()
    return Backbone(inputs, x, name=name or model.name, framing=framing)


def _check_pooling(pooling, class_token, name):
    if pooling not in ("class", "avg", "class+avg", "max"):
        raise InputError(
            f"Unknown pooling {pooling!r} for {name}. Choose 'class', 'avg', 'class+avg', 'max', "
            "'auto' or None."
        )
    if "class" in pooling and not class_token:
        raise InputError(f"{name} has no class token: choose the pooling 'avg', 'max' or 'auto'.")


def _as_it_is(model, image_size, pooling, preprocessing, name) -> Backbone:
    """Return a backbone of KerasHub's own layers, for networks whose graph shows their stages."""
    check_pooling(pooling, name)
    size = image_size or size_of(model.input_shape) or _SIZE
    inputs = keras.Input((*sides(size), 3), name="images")
    try:
        x = rebuild(model, normalized(inputs, preprocessing))
    except ValueError as error:
        raise InputError(f"{name} cannot be built for image size {size}: {error}") from None
    return Backbone(inputs, pooled(x, pooling), name=name)


# -- what a preset says beside its weights --------------------------------------------------------

_ACTIVATION_NAMES = {
    "gelu_new": "gelu_approximate",
    "gelu_fast": "gelu_approximate",
    "gelu_pytorch_tanh": "gelu_approximate",
    "swish": "silu",
}


def _path(preset: str, name: str) -> Path | None:
    """Return a file of a folder or of a model on Hugging Face; None if there is none."""
    path = Path(preset) / name
    if preset.startswith("hf://"):
        import huggingface_hub

        try:
            path = Path(huggingface_hub.hf_hub_download(preset.removeprefix("hf://"), name))
        except Exception:  # most files are optional
            return None
    return path if path.is_file() else None


def _file(preset: str, name: str) -> dict:
    """Return the content of a JSON file, see `_path`; {} if there is none."""
    path = _path(preset, name)
    return json.loads(path.read_text("utf-8")) if path else {}


def _add_token_type(preset: str, model) -> None:
    """Add the embedding of RoBERTa's only token type, which KerasHub ignores, to those of the positions.

    It is zero after the pretraining, but not after fine-tuning.
    """
    path = _path(preset, "model.safetensors")
    if path is None or not isinstance(model, keras_hub.models.RobertaBackbone):
        return
    import safetensors

    with safetensors.safe_open(path, "numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (it cannot be iterated)
            if name.endswith("embeddings.token_type_embeddings.weight"):
                positions = model.embeddings.position_embedding.position_embeddings
                positions.assign_add(tensors.get_tensor(name)[:1])


def _stated_form(preset: str) -> dict:
    """Return the fields of `Form` that a Hugging Face model states, which KerasHub ignores."""
    config = _file(preset, "config.json")
    fields = {}
    if _ported(preset):
        fields["activation"] = "gelu"
    if activation := config.get("hidden_act", config.get("activation")):
        fields["activation"] = _ACTIVATION_NAMES.get(activation, activation)
    if "layer_norm_eps" in config:
        fields["epsilon"] = config["layer_norm_eps"]
    return fields


def _ported(preset: str) -> bool:
    """Return whether a preset is a BERT that was trained in PyTorch, whose GELU is exact."""
    found = PRESETS.get(preset)
    return found is not None and found.family == "BertBackbone" and found.collection != "bert"


def _stated_pooling(preset: str) -> str:
    """Return the pooling with which sentence embeddings were trained, or `"auto"`."""
    if preset in PRESETS and PRESETS[preset].collection in ("bge", "mxbai-embed"):
        return "class"
    stated = _file(preset, "1_Pooling/config.json")
    if stated.get("pooling_mode_cls_token"):
        return "class"
    return "max" if stated.get("pooling_mode_max_tokens") else "auto"


def _text_fields(preset: str, model) -> dict:
    """Return the framing of texts, and the ids of padding and, if there are segments, separator."""
    if model.token_embedding is None:  # it reads images
        return {}
    try:
        tokenizer = keras_hub.tokenizers.Tokenizer.from_preset(preset)
    except Exception as error:
        reason = first_line(error)
        say(f"{preset} has no tokenizer ({reason}): its family's padding token, one segment")
        return {}
    framing = tokenizers.framing_of(
        tokenizer, model.max_sequence_length, lambda file: _file(preset, file)
    )
    fields = {"padding": tokenizer.pad_token_id, "framing": framing}
    if hasattr(model, "segment_embedding"):
        fields["separator"] = tokenizer.sep_token_id
    return fields


def _stated_preprocessing(preset: str) -> dict | None:
    """Return scale and offset of the pixels as a preset states them, or None."""
    stated = _file(preset, "preprocessor_config.json")
    if "image_mean" in stated:
        mean, std = stated["image_mean"], stated["image_std"]
        factor = stated.get("rescale_factor", 1 / 255)
        return dict(scale=[factor / s for s in std], offset=[-m / s for m, s in zip(mean, std)])
    try:
        converter = keras_hub.layers.ImageConverter.from_preset(preset)
    except Exception:  # presets for texts, or without one
        return None
    if converter is None or converter.scale is None:
        return None
    return dict(scale=converter.scale, offset=0.0 if converter.offset is None else converter.offset)
