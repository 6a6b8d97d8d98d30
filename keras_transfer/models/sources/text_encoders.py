"""The parts of KerasHub's encoders of texts, see `encoders`.

A text reaches them as one tensor of token ids: padding and segments follow from the ids.
"""

from collections.abc import Callable
from operator import itemgetter

from keras_transfer.models.sources.encoders import Encoder, Part, blocks_of, places_of
from keras_transfer.models.tokens import TextEmbedding

_DENSE = ("query", "key", "value", "output")
_PLACES = places_of(
    "_self_attention_layer_norm _feedforward_layer_norm",
    "_self_attention_layer",
    "_feedforward_intermediate_dense _feedforward_output_dense",
)


def _encoder(
    model, layers: dict, fields: dict, blocks=None, exact=False, padding=0, places=_PLACES
) -> Encoder:
    """Return the parts of an encoder.

    Args:
        layers: name of each part of `TextEmbedding` → layer of KerasHub.
        fields: of `Form`, and `padding` and `separator`, the ids of these tokens, where the caller
            knows better.
        blocks: of KerasHub; by default its `transformer_layers`.
        exact: whether its GELU is exact rather than an approximation.
        padding: the family's id of that token.
        places: of the parts of a block.
    """
    fields = {"activation": "gelu" if exact else "gelu_approximate", **fields}
    special = {
        "padding": fields.pop("padding", padding),
        "separator": fields.pop("separator", None),
    }
    projection = layers.get("projection")
    embedding = TextEmbedding(
        layers["words"].input_dim,
        layers["words"].output_dim,
        model.max_sequence_length,
        placed="positions" in layers,
        segments=layers["segments"].input_dim if "segments" in layers else 0,
        projected=None if projection is None else projection.units,
        epsilon=fields.get("epsilon", layers["norm"].epsilon),
        dropout=model.dropout,
        name="words",
        **special,
    )
    first = Part(embedding, layers, {name: itemgetter(name) for name in layers})
    rates = {"dropout": model.dropout, "attention_dropout": model.dropout}
    form = {"norm_first": False, "masked": True, **rates, **fields}
    blocks = model.transformer_layers if blocks is None else blocks
    return Encoder([first, *blocks_of(model, blocks, places, **form)], 0, "avg", None)


def _separate(model) -> dict:
    """Return the layers of an embedding whose parts stand alone."""
    return {
        "words": model.token_embedding,
        "positions": model.position_embedding,
        "segments": model.segment_embedding,
        "norm": model.embeddings_layer_norm,
    }


def _joint(model) -> dict:
    """Return the layers of an embedding of words and positions in one layer."""
    both = model.embeddings
    words, positions = both.token_embedding, both.position_embedding
    return {"words": words, "positions": positions, "norm": model.embeddings_layer_norm}


def _bert(model, **fields) -> Encoder:
    return _encoder(model, _separate(model), fields)


def _electra(model, **fields) -> Encoder:
    layers = _separate(model)
    if hasattr(model, "embeddings_projection"):
        layers["projection"] = model.embeddings_projection
    return _encoder(model, layers, fields)


def _albert(model, **fields) -> Encoder:
    # KerasHub calls the blocks of a group several times. Here each call is a block of its own.
    calls = model.num_layers // model.num_groups
    blocks = [block for group in model.transformer_layers for block in group * calls]
    layers = {**_separate(model), "projection": model.embeddings_projection}
    return _encoder(model, layers, fields, blocks)


def _roberta(model, **fields) -> Encoder:
    return _encoder(model, _joint(model), fields, exact=True, padding=1)


def _distilbert(model, **fields) -> Encoder:
    return _encoder(model, _joint(model), fields, exact=True)


def _deberta(model, **fields) -> Encoder:
    # KerasHub's blocks share one embedding of relative positions. Here each has a copy, already normalized.
    table = model.relative_embeddings
    attention = "_self_attention_layer"
    places = {
        **_PLACES,
        **{f"attention.{name}_dense": f"{attention}._{name}_dense" for name in _DENSE},
        "attention.relative": lambda _: [table.layer_norm(table.rel_embeddings)],
    }
    layers = {"words": model.token_embedding, "norm": model.embeddings_layer_norm}
    fields = {"relative": (model.bucket_size, model.max_sequence_length), **fields}
    return _encoder(model, layers, fields, exact=True, places=places)


TEXT_ENCODERS: dict[str, Callable[..., Encoder]] = {
    "BertBackbone": _bert,
    "RobertaBackbone": _roberta,
    "XLMRobertaBackbone": _roberta,
    "DistilBertBackbone": _distilbert,
    "AlbertBackbone": _albert,
    "ElectraBackbone": _electra,
    "DebertaV3Backbone": _deberta,
}
