"""A description of the tokenizer, beside exported files that take token ids."""

import json
from pathlib import Path

from keras_transfer.modalities.text.framing import TextFraming
from keras_transfer.utils.files import write_text

VOCABULARY, DESCRIPTION = "vocab.txt", "tokenizer.json"


def write_description(folder: Path, framing: TextFraming) -> None:
    """Write `vocab.txt`, a word a line, and `tokenizer.json`, which says how the words are found."""
    tokenizer = framing.required
    special = {name: getattr(tokenizer, name) for name in ("start", "end", "padding", "unknown")}
    description = {
        "type": "WordPiece",
        "vocabulary": VOCABULARY,
        "lowercase": tokenizer.lowercase,
        "strip_accents": tokenizer.strip_accents,
        "continuation": "##",
        "most_tokens": framing.size,
        "special": {name: {"token": t, "id": tokenizer.ids[t]} for name, t in special.items()},
    }
    write_text(folder / VOCABULARY, tokenizer.words + "\n")
    write_text(folder / DESCRIPTION, json.dumps(description, indent=2, ensure_ascii=False) + "\n")
