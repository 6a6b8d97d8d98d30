"""A description of the tokenizer, beside exported files that take token ids."""

import base64
import json
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.modalities.text.framing import SentencePiece, TextFraming, WordPiece
from keras_transfer.utils.files import write_file, write_text

VOCABULARY, MODEL, DESCRIPTION = "vocab.txt", "sentencepiece.model", "tokenizer.json"


def write_description(folder: Path, framing: TextFraming) -> None:
    """Write the vocabulary, a word a line, and `tokenizer.json`, which says how the words are found."""
    tokenizer = framing.required
    special = {name: getattr(tokenizer, name) for name in ("start", "end", "padding", "unknown")}
    if isinstance(tokenizer, WordPiece):
        how = {
            "lowercase": tokenizer.lowercase,
            "strip_accents": tokenizer.strip_accents,
            "continuation": "##",
        }
    else:
        how = {"model": MODEL, "shift": tokenizer.shift, "ends_between_texts": tokenizer.ends}
        contents = base64.b64decode(tokenizer.model)
        write_file(folder / MODEL, lambda file: file.write_bytes(contents))
    description = {
        "type": tokenizer.kind,
        "vocabulary": VOCABULARY,
        **how,
        "most_tokens": framing.size,
        "special": {name: {"token": t, "id": tokenizer.ids[t]} for name, t in special.items()},
    }
    write_text(folder / VOCABULARY, tokenizer.words + "\n")
    write_text(folder / DESCRIPTION, json.dumps(description, indent=2, ensure_ascii=False) + "\n")


def describe(framing: TextFraming) -> str:
    """Return how to tokenize as in training, with code that works."""
    tokenizer = framing.required
    if isinstance(tokenizer, WordPiece):
        return (
            "Tokenize texts as in training: WordPiece by `tokenizer.json` and `vocab.txt`, such as with\n"
            "tokenizers or transformers:\n\n"
            "```python\n"
            "from transformers import BertTokenizerFast\n\n"
            f"tokenizer = BertTokenizerFast('vocab.txt', do_lower_case={tokenizer.lowercase})\n"
            f"ids = tokenizer(texts, truncation=True, max_length={framing.size}, padding=True,\n"
            "                return_tensors='np')['input_ids'].astype('int32')\n"
            "```"
        )
    start, end, padding, unknown = (
        tokenizer.ids[token]
        for token in (tokenizer.start, tokenizer.end, tokenizer.padding, tokenizer.unknown)
    )
    number = f"{unknown} if i == 0 else i + {tokenizer.shift}" if tokenizer.shift else "i"
    return (
        f"Tokenize texts as in training: by `{MODEL}` and `tokenizer.json`, such as with sentencepiece:\n\n"
        "```python\n"
        "import numpy as np\n"
        "import sentencepiece\n\n"
        f"pieces = sentencepiece.SentencePieceProcessor(model_file='{MODEL}')\n"
        f"rows = [pieces.encode(text)[:{framing.size} - 2] for text in texts]\n"
        f"rows = [[{start}, *({number} for i in row), {end}] for row in rows]\n"
        f"ids = np.full((len(rows), max(map(len, rows))), {padding}, 'int32')\n"
        "for row, found in zip(ids, rows):\n"
        "    row[: len(found)] = found\n"
        "```"
    )


def page_input(framing: TextFraming, pair: bool) -> dict:
    """Return what the tokenizer of a web page needs.

    Args:
        pair: whether examples are pairs of texts.

    Raises:
        InputError: the page has no such tokenizer.
    """
    tokenizer = framing.required
    if isinstance(tokenizer, SentencePiece):
        raise InputError(
            "A web page has no SentencePiece tokenizer: choose another --format, or an encoder with WordPiece."
        )
    names = ("lowercase", "strip_accents", "start", "end", "unknown")
    described = {name: getattr(tokenizer, name) for name in names}
    return {"size": framing.size, "pair": pair, **described}
