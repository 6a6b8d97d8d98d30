"""Where the tokens of a transformer come from, and how they become features.

Rows of tokens [N, T, D] that are entirely zero are padding.
"""

import math
from functools import cache

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable("keras_transfer")
class Patches(keras.layers.Layer):
    """Turns images [N, H, W, C] into tokens [N, prefix + patches, width].

    Position embeddings are stored for the square of patches of the pretraining, and resized
    (bicubic) to that of the images. A margin of less than a patch, on the right and at the bottom, is
    ignored.

    Args:
        width: number of channels of a token.
        size: height and width of a patch in pixels.
        prefix: number of learned tokens before the patches (class token, registers).
        grid: number of patches along each side in the pretraining; None: no position embeddings.
        antialias: smooth the position embeddings where their square becomes smaller.
        use_bias: whether the convolution has a bias.
        dropout: rate in training.
    """

    def __init__(
        self,
        width,
        size,
        prefix=0,
        grid=None,
        antialias=False,
        use_bias=True,
        dropout=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.width, self.size, self.prefix_tokens, self.grid = width, size, prefix, grid
        self.antialias, self.use_bias, self.dropout_rate = antialias, use_bias, dropout
        self.convolution = keras.layers.Conv2D(
            width, size, strides=size, use_bias=use_bias, dtype=self.dtype_policy, name="patches"
        )
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, shape):
        self.convolution.build(shape)
        if self.prefix_tokens:
            self.prefix = self.add_weight(
                (self.prefix_tokens, self.width), "random_normal", name="prefix"
            )
        if self.grid:
            self.positions = self.add_weight(
                (self.grid**2, self.width), "random_normal", name="positions"
            )

    def call(self, images, training=None):
        x = self.convolution(images)
        rows, columns = x.shape[1:3]
        x = ops.reshape(x, (-1, rows * columns, self.width))
        if self.grid:
            x = x + ops.cast(self._resized(rows, columns), x.dtype)
        if self.prefix_tokens:
            prefix = ops.cast(self.prefix, x.dtype)[None]
            prefix = ops.broadcast_to(prefix, (ops.shape(x)[0], *prefix.shape[1:]))
            x = ops.concatenate([prefix, x], axis=1)
        return self.dropout(x, training=training)

    def _resized(self, rows, columns):
        """Return the position embeddings [rows * columns, D]."""
        if (rows, columns) == (self.grid, self.grid):
            return self.positions
        # As products of matrices, which every export format has.
        x = ops.reshape(self.positions, (self.grid, self.grid * self.width))
        down, across = (bicubic(self.grid, new, self.antialias) for new in (rows, columns))
        x = ops.matmul(ops.cast(down, x.dtype), x)
        x = ops.reshape(x, (rows, self.grid, self.width))
        x = ops.matmul(ops.cast(across, x.dtype)[None], x)
        return ops.reshape(x, (rows * columns, self.width))

    def compute_output_shape(self, shape):
        patches = (shape[1] // self.size) * (shape[2] // self.size)
        return (shape[0], self.prefix_tokens + patches, self.width)

    def multiplications(self, shape) -> int:
        """Return the multiplications for one example, given the output shape [N, T, D]."""
        return math.prod(self.convolution.kernel.shape) * (shape[1] - self.prefix_tokens)

    def get_config(self):
        own = {"width": self.width, "size": self.size, "prefix": self.prefix_tokens}
        own |= {"grid": self.grid, "antialias": self.antialias, "use_bias": self.use_bias}
        own |= {"dropout": self.dropout_rate}
        return {**super().get_config(), **own}


@cache
def bicubic(old: int, new: int, antialias: bool = False) -> np.ndarray:
    """Return the matrix [new, old] that resizes a row of numbers as `ops.image.resize` does.

    This is the cubic convolution of Keys (1981) with a = -0.5; neighbors beyond the border have no
    weight.
    """
    centers = (np.arange(new) + 0.5) * old / new - 0.5
    distance = np.abs(centers[:, None] - np.arange(old)[None])
    if antialias:
        distance = distance / max(old / new, 1.0)
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype("float32")


@keras.saving.register_keras_serializable("keras_transfer")
class TextEmbedding(keras.layers.Layer):
    """Turns token ids [N, T] into tokens [N, T, D]; rows of padding are zero.

    Args:
        vocabulary: number of words.
        width: number of channels.
        length: the largest number of tokens.
        segments: number of segments, which a separator ends; 0: no segment embeddings.
        projected: number of channels after a last dense layer; None: no such layer.
        placed: whether the position of a token is embedded, too.
        padding, separator: ids of these tokens; without a separator there is one segment.
        epsilon: of the layer normalization.
        dropout: rate in training.
    """

    def __init__(
        self,
        vocabulary,
        width,
        length,
        segments=0,
        projected=None,
        placed=True,
        padding=0,
        separator=None,
        epsilon=1e-12,
        dropout=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.settings = dict(vocabulary=vocabulary, width=width, length=length, segments=segments)
        self.settings |= dict(projected=projected, placed=placed, padding=padding)
        self.settings |= dict(separator=separator, epsilon=epsilon, dropout=dropout)
        policy, layers = {"dtype": self.dtype_policy}, keras.layers
        self.words = layers.Embedding(vocabulary, width, name="words", **policy)
        self.positions = (
            layers.Embedding(length, width, name="positions", **policy) if placed else None
        )
        self.segments = layers.Embedding(segments, width, **policy) if segments else None
        self.norm = layers.LayerNormalization(epsilon=epsilon, name="norm", **policy)
        self.projection = layers.Dense(projected, **policy) if projected else None
        self.dropout = layers.Dropout(dropout, **policy)

    def build(self, shape):
        most = self.settings["length"]
        if shape[1] is not None and shape[1] > most:
            raise ValueError(f"The encoder reads at most {most} tokens, not {shape[1]}.")
        for layer in (self.words, self.positions, self.segments):
            if layer is not None:
                layer.build(shape)
        self.norm.build((*shape, self.settings["width"]))
        if self.projection is not None:
            self.projection.build((*shape, self.settings["width"]))

    def call(self, ids, training=None):
        x = self.words(ids)
        if self.positions is not None:
            x = x + self.positions(ops.arange(ops.shape(ids)[1]))[None]
        if self.segments is not None:
            x = x + self.segments(self._segments(ids))
        x = self.dropout(self.norm(x), training=training)
        if self.projection is not None:
            x = self.projection(x)
        mask = ops.not_equal(ids, self.settings["padding"])
        return x * ops.cast(mask, x.dtype)[..., None]

    def _segments(self, ids):
        """Return the number of separators before each token, as far as there are segments."""
        if self.settings["separator"] is None:
            return ops.zeros_like(ids)
        ends = ops.cast(ops.equal(ids, self.settings["separator"]), "int32")
        return ops.minimum(ops.cumsum(ends, axis=1) - ends, self.settings["segments"] - 1)

    def compute_output_shape(self, shape):
        return (*shape, self.settings["projected"] or self.settings["width"])

    def multiplications(self, shape) -> int:
        """Return the multiplications for one example, given the output shape [N, T, D]."""
        projected = self.settings["projected"] or 0
        return (shape[1] or 1) * self.settings["width"] * projected

    def get_config(self):
        return {**super().get_config(), **self.settings}


@keras.saving.register_keras_serializable("keras_transfer")
class TokenPooling(keras.layers.Layer):
    """Features of a sequence: tokens [N, T, D] → [N, D], or [N, 2·D] for `"class+avg"`.

    Args:
        kind: `"class"` (the first token), `"avg"` or `"max"` (over the patches or words; zero rows
            are left out), or `"class+avg"` (both).
        prefix: number of tokens before the patches, which `"avg"` and `"max"` leave out.
    """

    def __init__(self, kind, prefix=0, **kwargs):
        super().__init__(**kwargs)
        self.kind, self.prefix = kind, prefix

    def call(self, x):
        return ops.concatenate([_pool(x, kind, self.prefix) for kind in self.kind.split("+")], -1)

    def compute_output_shape(self, shape):
        return (shape[0], shape[-1] * len(self.kind.split("+")))

    def get_config(self):
        return {**super().get_config(), "kind": self.kind, "prefix": self.prefix}


def _pool(x, kind, prefix):
    if kind == "class":
        return x[:, 0]
    x = x[:, prefix:]
    mask = row_mask(x)
    if kind == "max":
        return ops.max(ops.where(mask > 0, x, ops.cast(-1e4, x.dtype)), axis=1)
    return masked_mean(x, mask)


def row_mask(x):
    """Return 1 for the rows of [N, T, D] that are not padding, float32 [N, T, 1]."""
    return ops.cast(ops.any(ops.not_equal(x, 0), axis=-1, keepdims=True), "float32")


def masked_mean(x, mask):
    """Return the mean of [N, T, D] over the rows of a mask [N, T, 1]: [N, D], in x's dtype.

    It is computed in float32, because sums of half precision over many rows are not exact.
    """
    total = ops.sum(ops.cast(x, "float32") * mask, axis=1)
    return ops.cast(total / ops.maximum(ops.sum(mask, axis=1), 1.0), x.dtype)
