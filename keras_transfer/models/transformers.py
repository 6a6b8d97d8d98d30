"""Layers of transformer encoders, from which every source builds its backbones.

A hidden tensor [N, T, D] flows from block to block. Rows that are entirely zero are padding: a masked
block reads its mask from them, and its output is zero there again, so that one tensor is all that a
cut passes on.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache

import keras
import numpy as np
from keras import ops

TOKEN_POOLINGS = ("class", "avg", "class+avg", "max", None)


def _gelu(x):
    # Keras writes it with `erfc`, which ONNX Runtime does not have.
    return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))


ACTIVATIONS: dict[str, Callable] = {
    "gelu": _gelu,
    "gelu_approximate": lambda x: ops.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * ops.sigmoid(1.702 * x),
    "relu": ops.relu,
    "silu": ops.silu,
}


@dataclass(frozen=True)
class Form:
    """The form of a transformer block.

    Attributes:
        width: number of channels.
        heads: number of attention heads.
        inner: width of the layer between the two dense layers.
        activation: a key of `ACTIVATIONS`.
        epsilon: of the layer normalization.
        norm_first: normalize the inputs of attention and dense layers, rather than the sums.
        without_bias: names of the dense layers that have no bias.
        scaled: multiply both residual branches by a vector (LayerScale).
        gated: multiply the inner layer by an activated gate (GLU, arXiv:2002.05202).
        rotary: base of the rotary position embedding of square images (DINOv3); None for none.
        prefix: number of tokens before the patches.
        masked: zero rows are padding.
        dropout, attention_dropout, drop_path: rates in training.
    """

    width: int
    heads: int
    inner: int
    activation: str = "gelu"
    epsilon: float = 1e-6
    norm_first: bool = True
    without_bias: tuple[str, ...] = ()
    scaled: bool = False
    gated: bool = False
    rotary: float | None = None
    prefix: int = 0
    masked: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "without_bias", tuple(self.without_bias))

    def dense(self, owner, name, units, **arguments):
        """Return a dense layer of this form, for a layer of this module."""
        use_bias = name not in self.without_bias
        return keras.layers.Dense(
            units, use_bias=use_bias, dtype=owner.dtype_policy, name=name, **arguments
        )


class _Formed(keras.layers.Layer):
    """A layer whose configuration is a `Form`."""

    def __init__(self, form, **kwargs):
        super().__init__(**kwargs)
        self.form = form if isinstance(form, Form) else Form(**form)

    def get_config(self):
        return {**super().get_config(), "form": asdict(self.form)}

    def compute_output_shape(self, shape):
        return tuple(shape)

    def _norm(self, name):
        return keras.layers.LayerNormalization(
            epsilon=self.form.epsilon, dtype=self.dtype_policy, name=name
        )


class Attention(_Formed):
    """Multi-head attention from queries [N, Q, D] to a context [N, T, D]."""

    def __init__(self, form, **kwargs):
        super().__init__(form, **kwargs)
        for name in ("query", "key", "value", "output"):
            setattr(self, f"{name}_dense", self.form.dense(self, name, self.form.width))
        self.dropout = keras.layers.Dropout(self.form.attention_dropout, dtype=self.dtype_policy)

    def build(self, shape):
        for dense in (self.query_dense, self.key_dense, self.value_dense, self.output_dense):
            dense.build((None, None, self.form.width))

    def call(self, queries, context=None, tokens=None, training=None):
        context = queries if context is None else context
        query, key = self._heads(self.query_dense(queries)), self._heads(self.key_dense(context))
        if self.form.rotary:
            query, key = self._rotated(query), self._rotated(key)
        scale = math.sqrt(1 / (self.form.width // self.form.heads))
        scores = ops.matmul(query * scale, ops.transpose(key, (0, 1, 3, 2)))
        scores = ops.cast(scores, "float32")
        if tokens is not None:  # [N, T]; 0 for padding
            scores = scores + (ops.cast(tokens, "float32")[:, None, None, :] - 1.0) * 1e9
        weights = ops.cast(ops.softmax(scores, axis=-1), self.compute_dtype)
        weights = self.dropout(weights, training=training)
        values = ops.matmul(weights, self._heads(self.value_dense(context)))
        values = ops.transpose(values, (0, 2, 1, 3))
        return self.output_dense(ops.reshape(values, (-1, ops.shape(values)[1], self.form.width)))

    def _heads(self, x):
        """[N, T, D] → [N, heads, T, D / heads]."""
        size = (-1, ops.shape(x)[1], self.form.heads, self.form.width // self.form.heads)
        return ops.transpose(ops.reshape(x, size), (0, 2, 1, 3))

    def _rotated(self, x):
        # Only the patches have a position.
        prefix, x = x[:, :, : self.form.prefix], x[:, :, self.form.prefix :]
        cos, sin = (
            ops.cast(angles, x.dtype) for angles in _rotation(x.shape[2:], self.form.rotary)
        )
        first, second = ops.split(x, 2, axis=-1)
        x = x * cos + ops.concatenate([-second, first], axis=-1) * sin
        return ops.concatenate([prefix, x], axis=2)

    def compute_output_shape(self, shape, context=None):
        return tuple(shape)

    def multiplications(self, queries: int, context: int) -> int:
        """Return the multiplications for one example with so many rows."""
        return self.form.width * (2 * self.form.width * (queries + context) + 2 * queries * context)


def _rotation(shape, base):
    """Return cosine and sine of the angles [T, d] of a square of T patches, as in DINOv3."""
    patches, width = shape
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"rotary positions need a square of patches, not {patches} of them.")
    centers = (np.arange(side) + 0.5) / side * 2 - 1
    places = np.stack(np.meshgrid(centers, centers, indexing="ij"), -1).reshape(-1, 2, 1)
    frequencies = 1.0 / base ** np.arange(0, 1, 4 / width)
    angles = np.tile((2 * math.pi * places * frequencies).reshape(patches, -1), (1, 2))
    return np.cos(angles).astype("float32"), np.sin(angles).astype("float32")


class FeedForward(_Formed):
    """The two dense layers of a block, on [N, T, D]."""

    def __init__(self, form, **kwargs):
        super().__init__(form, **kwargs)
        form = self.form
        self.inner_dense = form.dense(self, "inner", form.inner)
        self.gate_dense = form.dense(self, "gate", form.inner) if form.gated else None
        self.outer_dense = form.dense(self, "outer", form.width)

    def build(self, shape):
        for dense in (self.inner_dense, self.gate_dense):
            if dense is not None:
                dense.build((None, None, self.form.width))
        self.outer_dense.build((None, None, self.form.inner))

    def call(self, x):
        activation = ACTIVATIONS[self.form.activation]
        if self.gate_dense is None:
            return self.outer_dense(activation(self.inner_dense(x)))
        return self.outer_dense(activation(self.gate_dense(x)) * self.inner_dense(x))

    def multiplications(self, rows: int) -> int:
        """Return the multiplications for one example with so many rows."""
        return rows * self.form.width * self.form.inner * (3 if self.form.gated else 2)


@keras.saving.register_keras_serializable("keras_transfer")
class Block(_Formed):
    """One block of an encoder: attention and two dense layers, each with a residual connection.

    [N, T, D] → [N, T, D].
    """

    def __init__(self, form, **kwargs):
        super().__init__(form, **kwargs)
        form, policy = self.form, {"dtype": self.dtype_policy}
        self.norm_1, self.norm_2 = self._norm("norm_1"), self._norm("norm_2")
        self.attention = Attention(form, name="attention", **policy)
        self.dense = FeedForward(form, name="dense", **policy)
        self.dropout = keras.layers.Dropout(form.dropout, **policy)
        self.drop_path = keras.layers.Dropout(form.drop_path, noise_shape=(None, 1, 1), **policy)

    def build(self, shape):
        for layer in (self.norm_1, self.norm_2, self.attention, self.dense):
            layer.build(shape)
        if self.form.scaled:
            self.scale_1 = self.add_weight((self.form.width,), "ones", name="scale_1")
            self.scale_2 = self.add_weight((self.form.width,), "ones", name="scale_2")

    def call(self, x, training=None):
        mask = (
            ops.cast(ops.any(ops.not_equal(x, 0), axis=-1), x.dtype) if self.form.masked else None
        )
        first = self.form.norm_first
        branch = self.attention(self.norm_1(x) if first else x, tokens=mask, training=training)
        x = x + self._branch(branch, "scale_1", training)
        x = x if first else self.norm_1(x)
        x = x + self._branch(self.dense(self.norm_2(x) if first else x), "scale_2", training)
        x = x if first else self.norm_2(x)
        return x if mask is None else x * mask[..., None]

    def _branch(self, x, scale, training):
        """Return what a branch adds."""
        x = self.dropout(x, training=training)
        if self.form.scaled:
            x = x * ops.cast(getattr(self, scale), x.dtype)
        return self.drop_path(x, training=training)

    def multiplications(self, shape) -> int:
        """Return the multiplications for one example, given the output shape [N, T, D]."""
        rows = shape[1] or 1
        return self.attention.multiplications(rows, rows) + self.dense.multiplications(rows)


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
        padding=0,
        separator=None,
        epsilon=1e-12,
        dropout=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.settings = dict(vocabulary=vocabulary, width=width, length=length, segments=segments)
        self.settings |= dict(projected=projected, padding=padding, separator=separator)
        self.settings |= dict(epsilon=epsilon, dropout=dropout)
        policy, layers = {"dtype": self.dtype_policy}, keras.layers
        self.words = layers.Embedding(vocabulary, width, name="words", **policy)
        self.positions = layers.Embedding(length, width, name="positions", **policy)
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
        x = self.words(ids) + self.positions(ops.arange(ops.shape(ids)[1]))[None]
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


@keras.saving.register_keras_serializable("keras_transfer")
class AttentionPooling(_Formed):
    """SigLIP's head: a learned query attends to all tokens. [N, T, D] → [N, D]."""

    def __init__(self, form, **kwargs):
        super().__init__(form, **kwargs)
        policy = {"dtype": self.dtype_policy}
        self.attention = Attention(self.form, name="attention", **policy)
        self.norm = self._norm("norm")
        self.dense = FeedForward(self.form, name="dense", **policy)

    def build(self, shape):
        self.probe = self.add_weight((1, 1, self.form.width), "glorot_uniform", name="probe")
        for layer in (self.attention, self.norm, self.dense):
            layer.build(shape)

    def call(self, x, training=None):
        probe = ops.broadcast_to(self.probe, (ops.shape(x)[0], 1, self.form.width))
        x = self.attention(ops.cast(probe, x.dtype), x, training=training)
        return (x + self.dense(self.norm(x)))[:, 0]

    def compute_output_shape(self, shape):
        return (shape[0], shape[-1])

    def multiplications(self, shape) -> int:
        """Return the multiplications for one example, without those that depend on the tokens."""
        return self.attention.multiplications(1, 1) + self.dense.multiplications(1)
