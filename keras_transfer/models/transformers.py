"""Layers of transformer encoders, from which every source builds its backbones.

A hidden tensor [N, T, D] flows from block to block. Rows that are entirely zero are padding: a masked
block reads its mask from them, and its output is zero there again, so that one tensor is all that a
cut passes on.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import keras
import numpy as np
from keras import ops


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
        relative: half of the number of relative positions that are told apart, and the longest distance,
            for attention to positions (DeBERTa, arXiv:2111.09543); None for none.
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
    relative: tuple[int, int] | None = None
    rotary: float | None = None
    prefix: int = 0
    masked: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "without_bias", tuple(self.without_bias))
        object.__setattr__(self, "relative", self.relative and tuple(self.relative))

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
        if self.form.relative:
            rows = 2 * self.form.relative[0]
            self.relative = self.add_weight((rows, self.form.width), "normal", name="relative")

    def call(self, queries, context=None, tokens=None, training=None):
        context = queries if context is None else context
        query, key = self._heads(self.query_dense(queries)), self._heads(self.key_dense(context))
        if self.form.rotary:
            query, key = self._rotated(query), self._rotated(key)
        sums = 3 if self.form.relative else 1
        scale = math.sqrt(1 / (sums * (self.form.width // self.form.heads)))
        scores = ops.matmul(query * scale, ops.transpose(key, (0, 1, 3, 2)))
        if self.form.relative:
            scores = scores + self._to_positions(query * scale, key * scale, training)
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

    def _to_positions(self, query, key, training):
        """Return what tokens and relative positions add to each other's scores, [N, heads, T, T]."""
        table = self.dropout(ops.cast(self.relative, query.dtype)[None], training=training)
        places = self._heads(self.key_dense(table)), self._heads(self.query_dense(table))
        rows = ops.arange(ops.shape(query)[2])
        buckets = _buckets(*self.form.relative)
        chosen = ops.take(buckets, rows[:, None] - rows[None] + len(buckets) // 2)
        content, position = (
            _taken(ops.matmul(x, ops.transpose(place, (0, 1, 3, 2))), indices)
            for x, place, indices in zip((query, key), places, (chosen, ops.transpose(chosen)))
        )
        return content + ops.transpose(position, (0, 1, 3, 2))

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
        positions = 2 * self.form.relative[0] * (queries + context) if self.form.relative else 0
        pairs = 2 * queries * context + positions
        return self.form.width * (2 * self.form.width * (queries + context) + pairs)


def _taken(x, indices):
    """Return [N, heads, T, T]: of each row of x [N, heads, T, P], the columns named by indices [T, T]."""
    # One index into the last two axes together: every format that is exported has this operation.
    count, heads, rows, width = ops.shape(x)[0], x.shape[1], ops.shape(x)[2], x.shape[3]
    flat = ops.reshape(ops.arange(rows)[:, None] * width + indices, (-1,))
    found = ops.take(ops.reshape(x, (count, heads, rows * width)), flat, axis=2)
    return ops.reshape(found, (count, heads, rows, rows))


def _buckets(half, longest):
    """Return the row of the relative embedding for each distance from −longest to longest, int32.

    Up to half of `half`, each distance has a row of its own; beyond, rows span logarithmic ranges.
    """
    distances = np.arange(-longest, longest + 1)
    middle = half // 2
    far = np.maximum(np.abs(distances), middle).astype("float32")
    steps = np.log(far / np.float32(middle)) / np.log(np.float32(longest - 1) / np.float32(middle))
    rows = np.ceil(steps * (middle - 1)) + middle
    near = np.abs(distances) <= middle
    found = np.where(near, distances, rows * np.sign(distances)) + half
    return np.clip(found, 0, 2 * half - 1).astype("int32")


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
