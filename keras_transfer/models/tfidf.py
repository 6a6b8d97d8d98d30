"""TF-IDF features of token ids: what a linear model reads that counts words, as a layer of a backbone.

A term is a token or a pair of neighbors. Its weight is that of scikit-learn's `TfidfVectorizer` with
`sublinear_tf`. As a text has few of the many terms, they are projected on their principal directions in
the training texts (latent semantic analysis, doi:10.1002/(SICI)1097-4571(199009)41:6<391::AID-ASI1>3.0.CO;2-9).
"""

from collections.abc import Iterable

import keras
import numpy as np
from keras import ops

from keras_transfer.data.examples import Examples
from keras_transfer.modalities.views import View
from keras_transfer.utils.console import say

WIDTH = 512  # features
_SCALE = (
    12.0  # of the features, beside those of an encoder: chosen on the training texts of banking77
)
_MOST_TEXTS = 20_000  # that are read
_MOST = 30_000  # terms: those of the most texts
_LEAST_TEXTS = 2  # that have a term
_BUCKETS = 1 << 18  # of the table that finds a term
_AT_ONCE = 1024  # texts


@keras.saving.register_keras_serializable("keras_transfer")
class TfIdf(keras.layers.Layer):
    """Turns token ids [N, T] into projected TF-IDF features, float32 [N, width]. It is never trained.

    Only operations that every export format has: terms are found by a table of hashes, and counted by
    comparing each with each.

    Args:
        vocabulary: number of token ids.
        terms: number of terms.
        width: number of features.
        ignored: ids of tokens that are not words: padding, start, end, mask.
        factor: of the first token in the hash of a pair; by default the one of before it was chosen odd.
    """

    def __init__(self, vocabulary, terms, width, ignored=(), factor=None, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.vocabulary, self.terms, self.width = vocabulary, terms, width
        self.ignored = tuple(ignored)
        self.factor = factor or _largest_factor(vocabulary)

    def build(self, shape):
        def weight(name, shape, dtype="float32"):
            return self.add_weight(shape, "zeros", dtype=dtype, trainable=False, name=name)

        self.rows = weight("rows", (_BUCKETS,), "int32")  # bucket → row, 0 for no term
        self.firsts = weight("firsts", (self.terms + 1,), "int32")
        self.seconds = weight("seconds", (self.terms + 1,), "int32")  # -1: the term is one token
        self.idf = weight("idf", (self.terms + 1,))
        self.directions = weight("directions", (self.terms + 1, self.width))

    def call(self, ids):
        rows = ops.concatenate([self._found(ids, None), self._found(ids[:, :-1], ids[:, 1:])], 1)
        equal = ops.equal(rows[:, :, None], rows[:, None, :])
        counts = ops.sum(ops.cast(equal, "float32"), axis=-1)  # of its term, at each place
        weights = ops.take(self.idf, rows) * (1 + ops.log(counts))
        squares = ops.sum(ops.square(weights) / counts, axis=1, keepdims=True)
        weights = weights / (counts * ops.sqrt(ops.maximum(squares, 1e-12)))
        features = ops.matmul(weights[:, None, :], ops.take(self.directions, rows, axis=0))
        return ops.squeeze(features, axis=1)

    def _found(self, first, second):
        """Return the row of each term, int32 [N, T]; 0 for unknown ones."""
        one = second is None
        second = ops.full_like(first, -1) if one else second
        rows = ops.take(self.rows, _bucket(first, second, self.factor))
        known = ops.logical_and(
            ops.equal(ops.take(self.firsts, rows), first),
            ops.equal(ops.take(self.seconds, rows), second),
        )
        return ops.where(known, rows, 0)

    def compute_output_shape(self, shape):
        return (shape[0], self.width)

    def multiplications(self, shape) -> int:
        """Return the multiplications for one example, about: those of a text of 32 tokens."""
        return 64 * self.width

    def get_config(self):
        own = dict(vocabulary=self.vocabulary, terms=self.terms, width=self.width)
        own |= dict(ignored=list(self.ignored), factor=self.factor)
        config = {**super().get_config(), **own}
        del config["dtype"]
        return config


def _largest_factor(vocabulary):
    """Return the largest factor whose products with token ids stay below 2^31, at most 40,503."""
    return min(40_503, (2**31 - 1 - vocabulary) // vocabulary)


def odd_factor(vocabulary):
    """Return the factor for new layers: an even one reaches few of the buckets."""
    return (_largest_factor(vocabulary) - 1) | 1


def _bucket(first, second, factor):
    """Return the bucket of each term; the numbers stay below 2^31.

    Without `%`, which OpenVINO computes in float32 on a CPU: wrong from 2^24.
    """
    number = first * factor + second + 1
    return number - number // _BUCKETS * _BUCKETS


# -- fitting --------------------------------------------------------------------------------------


def fitted_tfidf(examples: Examples, framing) -> TfIdf:
    """Return the layer for some training texts; their labels are not read.

    Args:
        examples: texts, of which at most 20,000 are read.
        framing: with the tokenizer of an encoder.
    """
    ids, vocabulary = framing.required.ids, len(framing.required.vocabulary)
    special = ("start", "end", "padding", "mask")
    ignored = sorted({ids.get(getattr(framing.required, name), -1) for name in special} - {-1})
    rows, terms = _terms(_token_ids(examples, framing), ignored)
    factor = odd_factor(vocabulary)
    counts, terms = _counted(rows, terms, vocabulary, factor)
    idf = np.log((1 + counts.shape[0]) / (1 + counts.getnnz(axis=0))) + 1
    directions = _directions(counts, idf)
    layer = TfIdf(vocabulary, len(terms), directions.shape[1], ignored, factor, name="tfidf")
    layer.build((None, None))
    places = np.zeros(_BUCKETS, "int32")
    places[_bucket(terms[:, 0], terms[:, 1], factor)] = np.arange(1, len(terms) + 1)
    none = np.zeros((1, 2), "int64")
    firsts, seconds = np.concatenate([none - 2, terms]).T  # row 0 is found by no term
    layer.set_weights(
        [places, firsts, seconds, np.append(0, idf), np.pad(directions, ((1, 0), (0, 0)))]
    )
    say(
        f"TF-IDF: {len(terms):,} words and pairs of {counts.shape[0]:,} training texts, {layer.width} features"
    )
    return layer


def _token_ids(examples, framing) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Yield (rows, their token ids, padded)."""
    chosen = np.random.default_rng(0).permutation(len(examples))[:_MOST_TEXTS]
    examples = examples.take(np.sort(chosen))
    texts = examples.modality.preparation(examples.images, (View(),), framing)
    for start in range(0, len(examples), _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, len(examples)))
        yield rows, texts.batch(rows, np.zeros(0), np.zeros((1, len(rows), 2), "int64"))[0]


def _terms(batches, ignored):
    """Return (row of each occurrence of a term, int [n], its tokens, int64 [n, 2])."""
    found = []
    for rows, ids in batches:
        word = ~np.isin(ids, ignored)
        pair = word[:, :-1] & word[:, 1:]
        one, two = np.nonzero(word), np.nonzero(pair)
        for (row, place), following in ((one, None), (two, 1)):
            first = ids[row, place]
            second = np.full(len(first), -1) if following is None else ids[row, place + 1]
            found.append((rows[row], np.stack([first, second], 1).astype("int64")))
    return tuple(np.concatenate(part) for part in zip(*found))


def _counted(rows, terms, vocabulary, factor):
    """Return (texts × terms in use, sparse; the tokens of these terms, int64 [M, 2])."""
    from scipy.sparse import csr_matrix

    keys, columns = np.unique(terms[:, 0] * (vocabulary + 1) + terms[:, 1] + 1, return_inverse=True)
    counts = csr_matrix(
        (np.ones(len(rows), "float32"), (rows, columns)), (rows.max(initial=-1) + 1, len(keys))
    )
    texts = counts.getnnz(axis=0)
    order = np.argsort(-texts, kind="stable")[:_MOST]
    order = order[texts[order] >= _LEAST_TEXTS]
    terms = np.stack([keys // (vocabulary + 1), keys % (vocabulary + 1) - 1], 1)[order]
    # Of terms in one bucket, the most frequent is found.
    first = np.sort(np.unique(_bucket(terms[:, 0], terms[:, 1], factor), return_index=True)[1])
    return counts[:, order[first]], terms[first]


def _directions(counts, idf):
    """Return the projection of terms on features, float [M, K]."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize
    from threadpoolctl import threadpool_limits

    width = min(WIDTH, *(size - 1 for size in counts.shape))
    if width < 1:
        return np.zeros((counts.shape[1], 1))
    weights = counts.copy()
    weights.data = 1 + np.log(weights.data)
    weights = normalize(weights.multiply(idf).tocsr())
    with threadpool_limits(1):  # the same on every run
        found = TruncatedSVD(width, random_state=0).fit(weights)
    return _SCALE * found.components_.T
