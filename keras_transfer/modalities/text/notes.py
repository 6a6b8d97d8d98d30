"""What is worth knowing before an encoder reads some texts: how much it reads, and whether it knows the script."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from keras_transfer.modalities.text.check import script_of
from keras_transfer.modalities.text.framing import TextFraming

_SAMPLED = 500  # texts that tell the scripts
_FEW = 0.1  # share of texts in a script that are worth a warning
_LEAST, _SHARE = 300, 0.1  # words of a script in a vocabulary that was made for it
_LETTERS = 2  # of a word: single letters are in every vocabulary
_SPACE = "▁"  # begins a word in the vocabularies of SentencePiece


def notes(reader, framing: TextFraming, lengths: np.ndarray) -> Iterator[str]:
    """Yield lines about the texts that are cut, and about scripts that the vocabulary lacks.

    Args:
        reader: of the texts.
        framing: with a tokenizer.
        lengths: number of tokens of each text, at most the framing's size.
    """
    cut = int((lengths >= framing.size).sum()) if framing.size else 0
    if cut:
        yield (
            f"{cut} of {len(lengths)} texts ({100 * cut / len(lengths):.1f} %) have {framing.size} tokens "
            "or more: only their beginning is read"
        )
    rows = np.unique(np.linspace(0, len(lengths) - 1, min(len(lengths), _SAMPLED)).astype(int))
    found = Counter(script_of(reader.decoded(row)) for row in rows)
    words = Counter(
        script_of(word)
        for word in (word.lstrip(_SPACE) for word in framing.required.vocabulary)
        if len(word) >= _LETTERS and not word.startswith(("[", "<"))
    )
    for script, count in found.most_common():
        known = words[script] >= min(_LEAST, _SHARE * len(framing.required.vocabulary))
        if script and count > _FEW * len(rows) and not known:
            yield (
                f"warning: {100 * count / len(rows):.0f} % of the texts are in {script} letters, but the "
                f"encoder's vocabulary has only {words[script]} such words of {len(framing.required.vocabulary):,}: "
                "choose an encoder for their language"
            )
