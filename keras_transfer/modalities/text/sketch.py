"""The sketch of a text: one bit of each minimum hash of its shingles (arXiv:0910.3349)."""

import numpy as np

from keras_transfer.modalities.sketch import Sketch

NEAR = 1.5
_BITS, _SHINGLE = 256, 4  # hashes; characters


def sketch(words: str) -> Sketch:
    """Return the sketch of a text, of which only lower-case words are left."""
    from datasketch import MinHash

    text = f" {words} "
    shingles = {text[i : i + _SHINGLE].encode() for i in range(max(1, len(text) - _SHINGLE + 1))}
    made = MinHash(_BITS)
    made.update_batch(list(shingles))
    return Sketch((made.hashvalues & 1).astype(bool)[None], np.zeros(0, "float32"))
