"""TF-IDF features of texts, for the baseline: words and pairs of words, counted by scikit-learn."""

from collections import Counter
from collections.abc import Sequence

from keras_transfer.modalities.text.check import script_of

# Scripts that do not put spaces between words: letters and runs of them stand for words.
_UNSPACED = {"Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan"}
_SAMPLED = 200  # texts that tell the script
_MOST = 200_000  # features: those of the most frequent words


def vectorizer(texts: Sequence[str]):
    """Return an unfitted `TfidfVectorizer` that suits some texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    some = texts[:: max(1, len(texts) // _SAMPLED)]
    scripts = Counter(script_of(text) for text in some)
    unspaced = sum(scripts[script] for script in _UNSPACED) > len(some) / 2
    return TfidfVectorizer(
        analyzer="char" if unspaced else "word",
        ngram_range=(1, 3) if unspaced else (1, 2),
        token_pattern=r"(?u)\b\w+\b",  # single letters and digits too
        strip_accents=None if unspaced else "unicode",
        sublinear_tf=True,
        max_features=_MOST,
    )
