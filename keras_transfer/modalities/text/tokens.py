"""Texts to token ids in TensorFlow ops, the same in training and in exported models."""

from functools import cache

import tensorflow as tf
import tensorflow_text

from keras_transfer.modalities.text.check import BETWEEN
from keras_transfer.modalities.text.framing import TextFraming, WordPiece

NOT_UTF8 = "is not UTF-8"
EMPTY = "is empty"

_LONGEST = 100  # characters of a word; longer ones are unknown
_CONTROLS = r"[\x{FFFD}\p{Cf}\p{Co}\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x{9f}]"
_BREAKS = r"[\s\p{Z}\p{P}\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e"  # between words, besides ideographs
_IDEOGRAPHS = r"\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2FA1F}"
_LONG_WORDS = rf"[^{_BREAKS[1:]}{_IDEOGRAPHS}]{{{_LONGEST + 1},}}"
_LONG_RUNS = rf"(?s).*\S{{{_LONGEST + 1}}}.*"  # a quick test that finds all of them
_UNKNOWN = "\ue000"  # in no vocabulary


class Tokens:
    """A tokenizer: `tokens(texts)` are the ids of Hugging Face's `BertTokenizer`.

    They differ for a text that contains a special token such as `[SEP]`, which is a word here, and
    for characters that entered Unicode recently. A pair of texts is one string, see `check.pair_of`.

    Args:
        tokenizer: its description.
    """

    def __init__(self, tokenizer: WordPiece):
        self._lowercase, self._strip = tokenizer.lowercase, tokenizer.strip_accents
        self._start, self._end = tokenizer.ids[tokenizer.start], tokenizer.ids[tokenizer.end]
        self.padding = tokenizer.ids[tokenizer.padding]
        # Its own normalization replaces more than BERT's: … by three dots, control characters by spaces.
        self._pieces = tensorflow_text.FastBertTokenizer(
            tokenizer.vocabulary,
            unknown_token=tokenizer.unknown,
            token_out_type=tf.int32,
            lower_case_nfd_strip_accents=False,
            max_bytes_per_word=4 * _LONGEST,
        )

    def __call__(self, texts, size: int | None) -> tf.RaggedTensor:
        """Return token ids, int32 [N, …], at most `size` for each text, of strings [N] in UTF-8."""
        size = tf.int32.max if size is None else size
        pairs = tf.strings.regex_full_match(texts, f"(?s).*{BETWEEN}.*")
        return tf.cond(
            tf.reduce_any(pairs),
            lambda: self._of_pairs(texts, pairs, size),
            lambda: self._framed(self._found(texts)[:, : size - 2]),
        )

    def _of_pairs(self, texts, pairs, size):
        """Return the same where some texts are pairs: the longer of two is cut first."""
        first, second = (
            self._found(tf.strings.regex_replace(texts, f"(?s){other}", ""))
            for other in (f"{BETWEEN}.*", f"^[^{BETWEEN}]*({BETWEEN}|$)")
        )
        one, other = (tf.cast(ids.row_lengths(), tf.int32) for ids in (first, second))
        room = size - 2 - tf.cast(pairs, tf.int32)
        # As `longest_first` of Hugging Face's tokenizers cuts, where an odd place is the longer one's.
        shorter = tf.minimum(tf.minimum(one, other), room // 2)
        longer = tf.minimum(tf.maximum(one, other), room - shorter)
        first = _cut(first, tf.where(one > other, longer, shorter))
        second = self._ended(_cut(second, tf.where(one > other, shorter, longer)))
        return tf.concat([self._framed(first), _cut(second, tf.where(pairs, size, 0))], 1)

    def _found(self, texts):
        return self._pieces.tokenize(self._normalized(texts))

    def _framed(self, ids):
        return self._ended(tf.concat([tf.fill([ids.nrows(tf.int32), 1], self._start), ids], 1))

    def _ended(self, ids):
        return tf.concat([ids, tf.fill([ids.nrows(tf.int32), 1], self._end)], 1)

    def _normalized(self, texts):
        texts = tf.strings.regex_replace(texts, _CONTROLS, "")
        if self._strip:
            texts = tensorflow_text.normalize_utf8(texts, "NFD")
            texts = tf.strings.regex_replace(texts, r"\p{Mn}", "")
        if self._lowercase:
            # Letter by letter: `lower` alone minds the end of a Greek word.
            texts = tf.strings.regex_replace(texts, "Σ", "σ")
            texts = tf.strings.lower(texts, "utf-8")
        return tf.cond(
            tf.reduce_any(tf.strings.regex_full_match(texts, _LONG_RUNS)),
            lambda: tf.strings.regex_replace(texts, _LONG_WORDS, _UNKNOWN),
            lambda: texts,
        )


def _cut(ids: tf.RaggedTensor, lengths) -> tf.RaggedTensor:
    """Return the beginning of each row, at most that long."""
    places = tf.ragged.range(tf.cast(ids.row_lengths(), tf.int32))
    return tf.ragged.boolean_mask(ids, places < lengths[:, None])


@cache
def tokens_of(tokenizer: WordPiece) -> Tokens:
    """Return a tokenizer's ops, made once."""
    with tf.init_scope():
        return Tokens(tokenizer)


@cache
def traced_tokens(tokenizer: WordPiece) -> tf.types.experimental.PolymorphicFunction:
    """Return a tokenizer's ops as a function of strings [N] and a limit, which is traced once."""
    signature = tf.TensorSpec([None], tf.string), tf.TensorSpec([], tf.int32)
    return tf.function(tokens_of(tokenizer), input_signature=signature, autograph=False)


def errors_of(texts) -> tf.Tensor:
    """Return why each text cannot be read, string [N]; "" where it can."""
    whole = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
    words = tf.strings.strip(tf.strings.regex_replace(texts, BETWEEN, " "))
    empty = tf.strings.length(words) == 0
    return tf.where(whole == texts, tf.where(empty, EMPTY, ""), NOT_UTF8)


def token_ids(texts, framing: TextFraming) -> tf.Tensor:
    """Return the model input of strings [N], int32 [N, L], padded to the longest."""
    tokens = tokens_of(framing.required)
    return tokens(texts, framing.size).to_tensor(tokens.padding)
