"""The parts of KerasHub's transformers: one function per family, and where the weights are.

KerasHub hides the blocks of a transformer in one layer, or passes a mask to each of them. Here their
weights go into layers of `models.transformers`, one per block, so that a saved model needs no KerasHub.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import keras
import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.models.sources.applications import PREPROCESSING
from keras_transfer.models.tokens import Patches
from keras_transfer.models.transformers import ACTIVATIONS, AttentionPooling, Block, Form

# Name of a part → its place in the layer of KerasHub, or a function that returns its weights.
Places = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A layer of ours, the layer of KerasHub whose weights it takes, and where they are in it."""

    layer: keras.layers.Layer
    source: Any
    places: Places

    def copy(self) -> None:
        """Copy the weights."""
        for name, place in self.places.items():
            found = place(self.source) if callable(place) else attrgetter(place)(self.source)
            target = attrgetter(name)(self.layer) if name else self.layer
            for weight, value in zip(_weights(target), _weights(found), strict=True):
                weight.assign(keras.ops.reshape(value, weight.shape))


def _weights(found) -> Sequence:
    if isinstance(found, keras.layers.Layer):
        return found.weights
    return found if isinstance(found, (list, tuple)) else [found]


@dataclass(frozen=True)
class Encoder:
    """The parts of a transformer in order, from the images or token ids to the last tokens.

    Attributes:
        parts: the layers and their sources.
        prefix: number of tokens before the patches.
        pooling: the default.
        preprocessing: of the images, if the preset does not say.
        head: pools in place of `TokenPooling` by default, if there is one.
        class_token: whether the first token is one.
    """

    parts: list[Part]
    prefix: int
    pooling: str
    preprocessing: dict | None
    head: Part | None = None
    class_token: bool = True


# -- parts ----------------------------------------------------------------------------------------


def places_of(norms: str, attention: str, dense: str) -> Places:
    """Return the places of a block's parts: two names each, and that of the attention."""
    names = [f"{name}_dense" for name in ("query", "key", "value", "output")]
    return {
        **dict(zip(("norm_1", "norm_2"), norms.split())),
        **{f"attention.{name}": f"{attention}.{name}" for name in names},
        **dict(zip(("dense.inner_dense", "dense.outer_dense"), dense.split())),
    }


_SCALES: Places = {"scale_1": "layer_scale1.lambda1", "scale_2": "layer_scale2.lambda1"}


def _form(model, source, places: Places, **fields) -> Form:
    """Return the form of a block, with what its layers show."""
    without_bias = []
    for name, place in places.items():
        part = name.rpartition(".")[2].removesuffix("_dense")
        if "." in name and isinstance(place, str) and attrgetter(place)(source).bias is None:
            without_bias.append(part)
    norm = places["norm_1" if "norm_1" in places else "norm"]
    outer = attrgetter(places["dense.outer_dense"])(source)
    fields = {
        "width": model.hidden_dim,
        "heads": model.num_heads,
        "inner": outer.kernel.shape[0],
        "epsilon": attrgetter(norm)(source).epsilon,
        "without_bias": tuple(without_bias),
        **fields,
    }
    if fields.get("activation", "gelu") not in ACTIVATIONS:
        raise InputError(
            f"'{model.name}' has the activation {fields['activation']!r}; supported are "
            f"{', '.join(ACTIVATIONS)}."
        )
    return Form(**fields)


def blocks_of(model, sources, places: Places, **fields) -> list[Part]:
    return [
        Part(Block(_form(model, source, places, **fields), name=f"block_{i + 1}"), source, places)
        for i, source in enumerate(sources)
    ]


def _norm(source, name: str, fields: dict) -> Part:
    epsilon = fields.get("epsilon", source.epsilon)
    layer = keras.layers.LayerNormalization(epsilon=epsilon, name=name)
    return Part(layer, source, {"": lambda found: found.weights})


def side(model, sizes, what: str) -> int:
    sizes = (sizes, sizes) if isinstance(sizes, int) else tuple(sizes)[:2]
    if sizes[0] != sizes[1]:
        raise InputError(f"'{model.name}' has {what} of {sizes}: only squares are supported.")
    return int(sizes[0])


def _patches(model, source, convolution, prefix, positions=None, images=None, **options) -> Part:
    """Return `Patches`.

    Args:
        prefix: [P, D], the tokens before the patches.
        positions: [P' + patches, D] at the image size `images`; the first P' belong to the first
            tokens before the patches.
    """
    size = side(model, source.patch_size, "patches")
    own = {} if positions is None else {"grid": side(model, images, "images") // size}
    use_bias = attrgetter(convolution)(source).use_bias
    layer = Patches(
        model.hidden_dim, size, len(prefix), use_bias=use_bias, name="patches", **own, **options
    )
    places: Places = {"convolution": convolution}
    if positions is not None:
        first = len(positions) - layer.grid**2
        prefix = np.concatenate([prefix[:first] + positions[:first], prefix[first:]])
        places["positions"] = lambda _: [positions[first:]]
    if len(prefix):
        places["prefix"] = lambda _: [prefix]
    return Part(layer, source, places)


def _rows(*weights) -> np.ndarray:
    """Return weights [1, n, D] as rows [all n, D]."""
    return np.concatenate([keras.ops.convert_to_numpy(weight)[0] for weight in weights])


# -- families -------------------------------------------------------------------------------------

_CENTERED, IMAGENET = PREPROCESSING["tf"], PREPROCESSING["torch"]
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_CLIP = dict(
    scale=[1 / (255 * s) for s in _CLIP_STD], offset=[-m / s for m, s in zip(_CLIP_MEAN, _CLIP_STD)]
)


def _vit(model, **fields) -> Encoder:
    first, encoder = model.get_layer("vit_patching_and_embedding"), model.get_layer("vit_encoder")
    prefix = _rows(first.class_token) if first.use_class_token else np.zeros((0, model.hidden_dim))
    positions = keras.ops.convert_to_numpy(first.position_embedding.embeddings)
    rates = {"dropout": model.dropout_rate, "attention_dropout": model.attention_dropout}
    places = places_of("layer_norm_1 layer_norm_2", "mha", "mlp.dense_1 mlp.dense_2")
    parts = [
        _patches(model, first, "patch_embedding", prefix, positions, first.image_size),
        *blocks_of(model, encoder.encoder_layers, places, **{**rates, **fields}),
        _norm(encoder.layer_norm, "norm", fields),
    ]
    pooling = "class" if first.use_class_token else "avg"
    return Encoder(parts, len(prefix), pooling, _CENTERED, class_token=first.use_class_token)


def _deit(model, **fields) -> Encoder:
    first, encoder = model.get_layer("deit_patching_and_embedding"), model.get_layer("deit_encoder")
    prefix = _rows(first.class_token, first.distillation_token)
    positions = _rows(first.position_embedding)
    rates = {"dropout": model.dropout_rate, "attention_dropout": model.attention_dropout}
    places = places_of("layer_norm_1 layer_norm_2", "mha", "mlp.dense output_layer.dense")
    parts = [
        _patches(model, first, "patch_embedding", prefix, positions, first.image_size),
        *blocks_of(model, encoder.encoder_layers, places, **{**rates, **fields}),
        _norm(encoder.layer_norm, "norm", fields),
    ]
    return Encoder(parts, 2, "class", IMAGENET)


def _dino_prefix(source) -> np.ndarray:
    registers = [source.register_tokens] if source.num_register_tokens else []
    return _rows(source.cls_token, *registers)


def _dinov2(model, **fields) -> Encoder:
    first = model.embeddings
    prefix = _dino_prefix(first)
    places = places_of("norm1 norm2", "attention.attention", "mlp.fc1 mlp.fc2") | _SCALES
    if model.use_swiglu_ffn:
        # One dense layer computes the gate and the inner layer.
        places["dense.outer_dense"] = "mlp.weights_out"
        places["dense.gate_dense"] = lambda block: _halves(block.mlp.weights_in, 0)
        places["dense.inner_dense"] = lambda block: _halves(block.mlp.weights_in, 1)
        fields = {"gated": True, "activation": "silu", **fields}
    fields = {"drop_path": model.drop_path_rate, **fields}
    parts = [
        _patches(
            *(model, first, "patch_embeddings.projection", prefix),
            *_dinov2_positions(first),
            antialias=first.antialias_in_interpolation,
            dropout=model.dropout_rate,
        ),
        *blocks_of(model, model.encoder.layers, places, scaled=True, **fields),
        _norm(model.layernorm, "norm", fields),
    ]
    return Encoder(parts, len(prefix), "class", IMAGENET)


def _halves(dense, which):
    return [np.split(keras.ops.convert_to_numpy(x), 2, axis=-1)[which] for x in dense.weights]


def _dinov2_positions(source):
    """Return (position embeddings, their image size): those of the pretraining, unless others were trained."""
    full = source.position_embeddings, source.position_embedding_shape
    resized = source.interpolated_position_embeddings, source.image_shape
    follow = source._interpolate_position_embeddings(
        full[0], source.patch_size, full[1], resized[1], source.antialias_in_interpolation
    )
    trained = np.abs(_rows(follow) - _rows(resized[0])).max() > 1e-4
    positions, size = resized if trained else full
    return _rows(positions), size


def _dinov3(model, **fields) -> Encoder:
    first = model.embeddings
    prefix = _dino_prefix(first)
    places = places_of("norm1 norm2", "attention", "mlp.up_proj mlp.down_proj") | _SCALES
    if model.use_gated_mlp:
        places["dense.gate_dense"] = "mlp.gate_proj"
    own = {"activation": model.hidden_activation, "gated": model.use_gated_mlp, "scaled": True}
    own |= {"rotary": model.rope_theta, "prefix": len(prefix)}
    own |= {"attention_dropout": model.attention_dropout, "drop_path": model.drop_path_rate}
    parts = [
        _patches(model, first, "patch_embeddings.projection", prefix),
        *blocks_of(model, model.encoder.layers, places, **{**own, **fields}),
        _norm(model.layernorm, "norm", fields),
    ]
    return Encoder(parts, len(prefix), "class", IMAGENET)


def _clip(model, **fields) -> Encoder:
    model = getattr(model, "vision_encoder", model)
    first = model.embedding
    prefix = keras.ops.convert_to_numpy(first.class_embedding)[None]
    places = places_of("layer_norm_1 layer_norm_2", "attention", "dense_1 dense_2")
    fields = {"activation": model.intermediate_activation, **fields}
    parts = [
        _patches(model, first, "patch_embedding", prefix, _listed(first), first.image_size),
        _norm(model.pre_layer_norm, "norm_before", fields),
        *blocks_of(model, model.encoder_layers, places, **fields),
        _norm(model.layer_norm, "norm", fields),
    ]
    return Encoder(parts, 1, "class", _CLIP)


def _listed(source):
    table, ids = source.position_embedding.embeddings, source.position_ids
    return keras.ops.convert_to_numpy(table)[keras.ops.convert_to_numpy(ids)[0]]


def _siglip(model, **fields) -> Encoder:
    model = getattr(model, "vision_encoder", model)
    first, head = model.embedding, model.head
    prefix = np.zeros((0, model.hidden_dim))
    places = places_of("layer_norm1 layer_norm2", "self_attn", "mlp.fc1 mlp.fc2")
    head_places = places_of("", "attention", "mlp.fc1 mlp.fc2")
    head_places |= {"norm": "layer_norm", "probe": lambda found: [found.probe]}
    activation = model.intermediate_activation
    activation = {"gelu_pytorch_tanh": "gelu_approximate"}.get(activation, activation)
    fields = {"activation": activation, **fields}
    parts = [
        _patches(model, first, "patch_embedding", prefix, _listed(first), first.image_size),
        *blocks_of(model, model.encoder_layers, places, **fields),
        _norm(model.post_layer_norm, "norm", fields),
    ]
    form = _form(model, head, head_places, **fields)
    pooling = Part(AttentionPooling(form, name="pooling"), head, head_places)
    return Encoder(parts, 0, "attention", _CENTERED, pooling, class_token=False)


ENCODERS: dict[str, Callable[..., Encoder]] = {
    "ViTBackbone": _vit,
    "DeiTBackbone": _deit,
    "DINOV2Backbone": _dinov2,
    "DINOV3Backbone": _dinov3,
    "CLIPBackbone": _clip,
    "CLIPVisionEncoder": _clip,
    "SigLIPBackbone": _siglip,
    "SigLIPVisionEncoder": _siglip,
}
