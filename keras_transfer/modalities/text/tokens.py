"""Texts to token ids in TensorFlow ops, the same in training and in exported models."""

import base64
from functools import cache

import tensorflow as tf
import tensorflow_text

from keras_transfer.modalities.text.check import BETWEEN
from keras_transfer.modalities.text.framing import SentencePiece, TextFraming, WordPiece

NOT_UTF8 = "is not UTF-8"
EMPTY = "is empty"

_LONGEST = 100  # characters of a word; longer ones are unknown
_CONTROLS = r"[\x{FFFD}\p{Cf}\p{Co}\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x{9f}]"
_BREAKS = r"[\s\p{Z}\p{P}\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e"  # between words, besides ideographs
_IDEOGRAPHS = r"\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2FA1F}"
_LONG_WORDS = rf"[^{_BREAKS[1:]}{_IDEOGRAPHS}]{{{_LONGEST + 1},}}"
_LONG_RUNS = rf"(?s).*\S{{{_LONGEST + 1}}}.*"  # a quick test that finds all of them
_UNKNOWN = "\ue000"  # in no vocabulary


class WordPieces:
    """The pieces of texts, strings [N] → ids, int32 [N, …].

    They differ from those of Hugging Face's `BertTokenizer` for a text that contains a special token such as
    `[SEP]`, which is a word here, and for characters that entered Unicode recently.

    Args:
        tokenizer: its description.
    """

    def __init__(self, tokenizer: WordPiece):
        self._lowercase, self._strip = tokenizer.lowercase, tokenizer.strip_accents
        # Its own normalization replaces more than BERT's: … by three dots, control characters by spaces.
        self._pieces = tensorflow_text.FastBertTokenizer(
            tokenizer.vocabulary,
            unknown_token=tokenizer.unknown,
            token_out_type=tf.int32,
            lower_case_nfd_strip_accents=False,
            max_bytes_per_word=4 * _LONGEST,
        )

    def __call__(self, texts) -> tf.RaggedTensor:
        return self._pieces.tokenize(self._normalized(texts))

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


class SentencePieces:
    """The pieces of texts in the most likely segmentation, strings [N] → ids, int32 [N, …].

    They are those of Hugging Face's slow tokenizers, except for a text that contains a special token such
    as `</s>`, and for rare ties between two segmentations.

    Args:
        tokenizer: its description.
    """

    def __init__(self, tokenizer: SentencePiece):
        # Unlike `SentencepieceTokenizer`, it needs no resource in an exported graph.
        self._pieces = tensorflow_text.FastSentencepieceTokenizer(base64.b64decode(tokenizer.model))
        self._shift, self._unknown = tokenizer.shift, tokenizer.ids[tokenizer.unknown]

    def __call__(self, texts) -> tf.RaggedTensor:
        ids = self._pieces.tokenize(texts).with_row_splits_dtype(tf.int64)
        if self._shift:  # as in fairseq, where the file's first id is that of unknown pieces
            ids = ids.with_values(
                tf.where(ids.values == 0, self._unknown, ids.values + self._shift)
            )
        return ids


_PIECES = {WordPiece.kind: WordPieces, SentencePiece.kind: SentencePieces}


class Tokens:
    """A tokenizer: `tokens(texts, size)` are token ids with the special ones.

    A pair of texts is one string, see `check.pair_of`.

    Args:
        tokenizer: its description.
    """

    def __init__(self, tokenizer: WordPiece | SentencePiece):
        self._start, self._end = tokenizer.ids[tokenizer.start], tokenizer.ids[tokenizer.end]
        self.padding = tokenizer.ids[tokenizer.padding]
        self._between = getattr(tokenizer, "ends", 1) - 1  # further ends before a second text
        self._pieces = _PIECES[tokenizer.kind](tokenizer)

    def __call__(self, texts, size: int) -> tf.RaggedTensor:
        """Return token ids, int32 [N, …], at most `size` for each text, of strings [N] in UTF-8."""
        size = tf.cast(size, tf.int64)
        texts = tf.strings.split(texts, BETWEEN, maxsplit=1)  # [N, 1 or 2]
        ids = self._pieces(texts.values)
        lengths = texts.with_values(ids.row_lengths()).to_tensor(0, shape=[None, 2])
        # The longer text is cut first, as `longest_first` of Hugging Face's tokenizers does.
        first, second = lengths[:, 0], lengths[:, 1]
        room = size - 1 - texts.row_lengths() - self._between * (texts.row_lengths() - 1)
        shorter = tf.minimum(tf.minimum(first, second), room // 2)
        longer = tf.minimum(tf.maximum(first, second), room - shorter)
        most = tf.where(first > second, [longer, shorter], [shorter, longer])
        rows, places = _rows_and_places(texts)
        ids = _cut(ids, tf.gather_nd(most, tf.stack([places, rows], axis=1)))
        before = tf.where(places == 0, tf.constant(1, tf.int64), self._between)
        starts = tf.repeat(tf.where(places == 0, self._start, self._end), before)
        starts = tf.RaggedTensor.from_row_lengths(starts, before, validate=False)
        ids = tf.concat([starts, ids, tf.fill([ids.nrows(), 1], self._end)], 1)
        return texts.with_values(ids).merge_dims(1, 2)


def _rows_and_places(ragged: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return (the row of each value, its place in the row), int64."""
    rows = ragged.value_rowids()
    return rows, tf.range(tf.size(rows, tf.int64)) - tf.gather(ragged.row_starts(), rows)


def _cut(ids: tf.RaggedTensor, lengths) -> tf.RaggedTensor:
    """Return the beginning of each row, at most that long."""
    rows, places = _rows_and_places(ids)
    kept = tf.gather(ids.values, tf.where(places < tf.gather(lengths, rows))[:, 0])
    lengths = tf.minimum(ids.row_lengths(), lengths)
    return tf.RaggedTensor.from_row_lengths(kept, lengths, validate=False)


@cache
def tokens_of(tokenizer: WordPiece | SentencePiece) -> Tokens:
    """Return a tokenizer's ops, made once."""
    with tf.init_scope():
        return Tokens(tokenizer)


@cache
def traced_tokens(
    tokenizer: WordPiece | SentencePiece,
) -> tf.types.experimental.PolymorphicFunction:
    """Return a tokenizer's ops as a function of strings [N] and a limit, which is traced once."""
    signature = tf.TensorSpec([None], tf.string), tf.TensorSpec([], tf.int32)
    return tf.function(tokens_of(tokenizer), input_signature=signature, autograph=False)


def errors_of(texts) -> tf.Tensor:
    """Return why each text cannot be read, string [N]; "" where it can."""
    whole = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
    words = tf.strings.strip(tf.strings.regex_replace(texts, BETWEEN, " "))
    empty = tf.strings.length(words) == 0
    return tf.where(whole == texts, tf.where(empty, EMPTY, ""), NOT_UTF8)


def tokenized(texts, framing: TextFraming) -> tf.RaggedTensor:
    """Return the token ids of strings [N], int32 [N, …], at most as many as the framing says."""
    # Operation by operation, an eager call would take a tenth of a second.
    tokens = traced_tokens if tf.executing_eagerly() else tokens_of
    return tokens(framing.required)(texts, framing.size or tf.int32.max)


def token_ids(texts, framing: TextFraming) -> tf.Tensor:
    """Return the model input of strings [N], int32 [N, L], padded to the longest."""
    return tokenized(texts, framing).to_tensor(tokens_of(framing.required).padding)
