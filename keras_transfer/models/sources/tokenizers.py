"""The tokenizer of a preset of KerasHub or a folder of Hugging Face, as plain data."""

import base64
from collections.abc import Callable
from typing import Any

from keras_transfer.modalities.text.framing import SentencePiece, TextFraming, WordPiece
from keras_transfer.utils.console import first_line, say

_MOST = 256  # tokens, unless the preset states its own limit: attention to more is slow
# Tokenizers of KerasHub that add nothing to the pieces of a text but special tokens → how they differ from BERT.
_SENTENCE_PIECES: dict[str, dict[str, Any]] = {
    "XLMRobertaTokenizer": dict(
        **dict(shift=1, ends=2, start="<s>", end="</s>", padding="<pad>"),
        **dict(unknown="<unk>", mask="<mask>"),
    ),
    "DebertaV3Tokenizer": {},
}


def framing_of(tokenizer, most: int, stated: Callable[[str], dict]) -> TextFraming:
    """Return how an encoder reads texts; the tokenizer is left open if it is of another kind.

    Args:
        tokenizer: of KerasHub.
        most: number of positions of the encoder.
        stated: name of a JSON file of the preset → its content, {} if there is none.
    """
    limit = stated("sentence_bert_config.json").get("max_seq_length") or _MOST
    size = min(most, limit)
    if hasattr(tokenizer, "suffix_indicator"):
        return TextFraming(size, _word_piece(tokenizer, stated("tokenizer_config.json")))
    if type(tokenizer).__name__ in _SENTENCE_PIECES:
        return TextFraming(size, _sentence_piece(tokenizer))
    return TextFraming(size)


def _word_piece(tokenizer, config) -> WordPiece:
    lowercase = bool(config.get("do_lower_case", tokenizer.lowercase))
    # KerasHub leaves accents alone, which BERT's own tokenizer removes from small letters.
    strip = config.get("strip_accents")
    return WordPiece(
        "\n".join(tokenizer.vocabulary),
        lowercase=lowercase,
        strip_accents=lowercase if strip is None else bool(strip),
        start=tokenizer.cls_token,
        end=tokenizer.sep_token,
        padding=tokenizer.pad_token,
        unknown=tokenizer.oov_token,
        mask=tokenizer.mask_token,
    )


def _sentence_piece(tokenizer) -> SentencePiece | None:
    """Return the tokenizer, or None for a file that tensorflow-text's operation without a resource does not read as
    SentencePiece does: of another kind than unigram, or with bytes in place of unknown letters."""
    import tensorflow_text
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2
    spec = messages.ModelProto.FromString(tokenizer.proto).trainer_spec
    words = tokenizer.get_vocabulary()
    if spec.model_type != spec.UNIGRAM or spec.byte_fallback or any("\n" in w for w in words):
        return None
    try:
        tensorflow_text.FastSentencepieceTokenizer(tokenizer.proto).tokenize([words[-2]])
    except Exception as error:
        say(f"the tokenizer cannot be used in a graph: {first_line(error)}")
        return None
    file = base64.b64encode(tokenizer.proto).decode()
    return SentencePiece("\n".join(words), model=file, **_SENTENCE_PIECES[type(tokenizer).__name__])
