"""The tokenizer of a preset of KerasHub or a folder of Hugging Face, as plain data."""

from collections.abc import Callable

from keras_transfer.modalities.text.framing import TextFraming, WordPiece

_MOST = 256  # tokens, unless the preset states its own limit: attention to more is slow


def framing_of(tokenizer, most: int, stated: Callable[[str], dict]) -> TextFraming:
    """Return how an encoder reads texts; the tokenizer is left open if it is not WordPiece.

    Args:
        tokenizer: of KerasHub.
        most: number of positions of the encoder.
        stated: name of a JSON file of the preset → its content, {} if there is none.
    """
    limit = stated("sentence_bert_config.json").get("max_seq_length") or _MOST
    size = min(most, limit)
    if not hasattr(tokenizer, "suffix_indicator"):  # SentencePiece or bytes
        return TextFraming(size)
    config = stated("tokenizer_config.json")
    lowercase = bool(config.get("do_lower_case", tokenizer.lowercase))
    # KerasHub leaves accents alone, which BERT's own tokenizer removes from small letters.
    strip = config.get("strip_accents")
    return TextFraming(
        size,
        WordPiece(
            "\n".join(tokenizer.vocabulary),
            lowercase=lowercase,
            strip_accents=lowercase if strip is None else bool(strip),
            start=tokenizer.cls_token,
            end=tokenizer.sep_token,
            padding=tokenizer.pad_token,
            unknown=tokenizer.oov_token,
            mask=tokenizer.mask_token,
        ),
    )
