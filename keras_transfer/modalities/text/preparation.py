"""Make token ids of texts: all are tokenized once, and each batch is padded to its own length."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import tensorflow as tf

from keras_transfer.modalities.text.framing import TextFraming
from keras_transfer.modalities.text.tokens import tokenized
from keras_transfer.modalities.views import View
from keras_transfer.utils.console import progress_bar

_AT_ONCE = 4096  # texts
# Reader → framing → (ids of all texts one after the other, where each ends).
_known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class Preparation:
    """Makes views of texts; see `modalities.image.preparation.Preparation`.

    Args:
        texts: a reader, see `data.files`.
        views: the V views to make of each text.
        framing: with a tokenizer.
        memory: not used: token ids take about as much as the text itself.

    Attributes:
        lengths: number of tokens of each text, int [N].

    Raises:
        ValueError: if a text cannot be read; the message names it.
    """

    dtype = "int32"
    draws = 0  # everything is drawn from the seeds
    busy = nullcontext()
    shape = (None,)

    def __init__(self, texts, views: Sequence[View], framing: TextFraming, memory=None):
        tokenizer = framing.required
        self.finish = [None] * len(views)
        self._views = [view.augmentation for view in views]
        self._ids, self._ends = _tokenized(texts, framing)
        self.lengths = np.diff(self._ends, prepend=0)
        self._padding = tokenizer.ids[tokenizer.padding]
        self._end = tokenizer.ids[tokenizer.end]
        self._mask = tokenizer.ids.get(tokenizer.mask, tokenizer.ids[tokenizer.unknown])

    @property
    def nbytes(self) -> int:
        """Bytes of a view, in the mean."""
        return 4 * int(np.ceil(self.lengths.mean())) if len(self.lengths) else 0

    def batch(self, rows: np.ndarray, draws: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Return the views of some texts, int32 [V, B, T], padded to the longest of them."""
        lengths = self.lengths[rows]
        out = np.full((len(self._views), len(rows), lengths.max(initial=0)), self._padding, "int32")
        for place, (row, length) in enumerate(zip(rows, lengths)):
            end = self._ends[row]
            ids = self._ids[end - length : end]
            for augmentation, view, seed in zip(self._views, out[:, place], seeds[:, place]):
                view[:length] = ids
                if augmentation is not None and augmentation.masked:
                    rng = np.random.default_rng(np.abs(seed))
                    inner = view[1 : length - 1]
                    masked = rng.random(len(inner)) < augmentation.masked
                    inner[masked & (inner != self._end)] = self._mask
        return out


def _tokenized(texts, framing):
    known = _known.setdefault(texts, {})
    if framing not in known:
        known[framing] = _tokenize(texts, framing)
    return known[framing]


def _tokenize(texts, framing):
    parts, lengths = [np.zeros(0, "int32")], [np.zeros(0, "int64")]
    with progress_bar(label="tokenizing", total=len(texts), unit="texts") as bar:
        for some in _in_parts(texts):
            ids = tokenized(tf.constant(some), framing)
            parts.append(ids.values.numpy())
            lengths.append(ids.row_lengths().numpy())
            bar.update(len(some))
    return np.concatenate(parts), np.cumsum(np.concatenate(lengths))


def _in_parts(texts) -> Iterator[list[str]]:
    for start in range(0, len(texts), _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, len(texts)))
        yield [texts.read(row, lambda text: text) for row in rows]
