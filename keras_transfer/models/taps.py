"""Taps: features pooled after every stage, of one or of several backbones, for one head.

A head on all stages often sees what a head on the last stage misses (Head2Toe, arXiv:2201.03529). A
backbone with taps ends in one `Taps` layer, from which everything here is found again. Where it is cut,
one tensor flows on, as everywhere: the hidden tensors and the taps before the cut, flattened and joined.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import keras
import numpy as np
from keras import ops

from keras_transfer.errors import InputError
from keras_transfer.models.graph import Stage, find_stages, rebuild
from keras_transfer.models.tfidf import TfIdf
from keras_transfer.models.tokens import masked_mean, row_mask
from keras_transfer.utils.keras_versions import producer

_LEAST_VARIANCE = 1e-6  # the gradient of a square root is infinite at 0


@keras.saving.register_keras_serializable("keras_transfer")
class Taps(keras.layers.Layer):
    """Joins the taps of several hidden tensors: float32 [N, D].

    The tap of a feature map [N, h, w, C] is the mean and the standard deviation over the positions,
    [N, 2·C]; that of tokens [N, T, C] is their mean, as there may be few of them; a tensor [N, C] is its
    own tap.
    """

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})

    def call(self, tensors):
        taps = [tap for x in tensors for tap in _pooled(x)]
        return ops.concatenate(taps, axis=-1) if len(taps) > 1 else taps[0]

    def compute_output_shape(self, shapes):
        return (shapes[0][0], sum(tap_width(shape) for shape in shapes))

    def get_config(self):
        config = super().get_config()
        del config["dtype"]
        return config


def _pooled(x):
    if len(x.shape) == 2:
        return [x]
    if len(x.shape) == 3:  # tokens; rows of padding are zero
        return [masked_mean(x, row_mask(x))]
    mean, variance = ops.moments(x, axes=tuple(range(1, len(x.shape) - 1)))
    return [mean, ops.sqrt(variance + _LEAST_VARIANCE)]


def tap_width(shape) -> int:
    """Return the number of features of the tap of a tensor with this shape."""
    return shape[-1] * (2 if len(shape) == 4 else 1)


def tapped(
    backbones: Sequence[keras.Model], taps: str, tfidf: TfIdf | None = None
) -> tuple[keras.KerasTensor, ...]:
    """Return (images, features) of one graph with the layers and weights of all backbones.

    Args:
        backbones: chains without taps, of one image size, without pooling if `taps` is `"all"`.
            Where there are several, their layers are copied and get new names.
        taps: `"last"` (the outputs of the backbones) or `"all"` (after every stage).
        tfidf: whose features are one more tap.
    """
    first = backbones[0].inputs[0]
    inputs = keras.Input(first.shape[1:], dtype=first.dtype, name=first.name)
    parts = backbones if len(backbones) == 1 else map(_renamed, backbones)
    ends = [rebuild(part, inputs) for part in parts]
    ends += [] if tfidf is None else [tfidf(inputs)]
    stages = merged([find_stages(keras.Model(inputs, end)) for end in ends])
    if taps != "last":
        tensors = [stage.output for stage in stages]
    else:  # in the order of the stages, so that the taps before a cut are the first
        tensors = [s.output for s in stages if any(s.output is end for end in ends)]
    return inputs, Taps(name="taps")(tensors)


def _renamed(backbone):
    """Return a copy whose layers' names begin with the backbone's, so that they differ."""

    def renamed(layer):
        return type(layer).from_config(
            {**layer.get_config(), "name": f"{backbone.name}_{layer.name}"}
        )

    plain = keras.Model(backbone.inputs[0], backbone.outputs[0])
    copy = keras.models.clone_model(plain, clone_function=renamed)
    copy.set_weights(backbone.get_weights())
    return copy


def merged(branches: Sequence[Sequence[Stage]]) -> list[Stage]:
    """Return the stages of several chains as one, side by side from the input to the end.

    TF-IDF features come first, because they are never trained.
    """
    places = sorted(
        (0.0 if _is_tfidf(branch) else (i + 1) / len(branch), number, stage)
        for number, branch in enumerate(branches)
        for i, stage in enumerate(branch)
    )
    return [replace(stage, index=i) for i, (*_, stage) in enumerate(places)]


def _is_tfidf(branch) -> bool:
    return isinstance(branch[-1].layers[-1], TfIdf)


class Cuts:
    """The stages of a backbone with or without taps, and its parts from one cut to another.

    Args:
        model: a functional model with one input and one output. It is not retained.
    """

    def __init__(self, model: keras.Model):
        last = producer(model.outputs[0])
        self.images = model.inputs[0]
        self.tapped = list(last.input_tensors) if isinstance(last.operation, Taps) else []
        ends = _ends(self.tapped) or [model.outputs[0]]
        self.branches = [find_stages(keras.Model(self.images, end)) for end in ends]
        self.stages = merged(self.branches)

    def last_columns(self) -> np.ndarray:
        """Return the positions of the features that a head on the last stages would read, int.

        These are their means.
        """
        ends = [branch[-1].output for branch in self.branches if not _is_tfidf(branch)]
        found, start = [], 0
        for tensor in self.tapped:
            if any(tensor is end for end in ends):
                found.append(np.arange(start, start + tensor.shape[-1]))
            start += tap_width(tensor.shape)
        return np.concatenate(found)

    def columns_of_branches(self) -> list[np.ndarray]:
        """Return the positions of the features that each branch computes, int."""
        found: list[list] = [[] for _ in self.branches]
        start = 0
        for tensor in self.tapped:
            width = tap_width(tensor.shape)
            number = next(i for i, branch in enumerate(self.branches) if _among(tensor, branch))
            found[number].append(np.arange(start, start + width))
            start += width
        return [np.concatenate(columns) for columns in found]

    def tfidf_columns(self) -> np.ndarray:
        """Return the positions of the TF-IDF features, int; there may be none."""
        found = [
            columns
            for branch, columns in zip(self.branches, self.columns_of_branches())
            if _is_tfidf(branch)
        ]
        return np.concatenate([np.zeros(0, int), *found])

    def stages_of_branches(self) -> list[list[int]]:
        """Return the indices of the stages of each branch."""
        return [
            [stage.index for stage in self.stages if _among(stage.output, branch)]
            for branch in self.branches
        ]

    def between(self, first: int, last: int) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """Return (the tensor at one cut, that at a later one), on shared weights.

        Args:
            first, last: number of stages before the cut; 0 means the images.
        """
        if not self.tapped:
            start = self.stages[first - 1].output if first else self.images
            return start, self.stages[last - 1].output
        whole = (first, last) == (0, len(self.stages))
        if not whole and any(None in stage.output.shape[1:] for stage in self.stages):
            raise InputError(
                "A backbone with taps that reads texts of any length cannot be cut: freeze all of it "
                "or nothing, or build it without taps."
            )
        if first == 0:
            inputs, taps = self.images, None
            tensors = [self.images, *(stage.output for stage in self.stages)]
            outputs = {id(tensor): tensor for tensor in tensors}
        else:
            inputs, taps, outputs = self._after(first)
        new = [outputs[id(tensor)] for tensor in self._taps(first, last)]
        if new:
            new = [Taps(name=f"taps_{first}_to_{last}")(new)]
            taps = new[0] if taps is None else ops.concatenate([taps, *new], axis=-1)
        if last == len(self.stages):
            return inputs, taps
        hidden = [outputs[id(tensor)] for _, tensor in self._hidden(last)]
        parts = [*hidden, *([] if taps is None else [taps])]
        dtype = keras.backend.result_type(*(tensor.dtype for tensor in hidden))
        return inputs, Joined(dtype=dtype, name=f"cut_{last}")(parts)

    def _taps(self, first, last):
        """Return the tapped tensors of the stages after `first` up to `last`."""
        outputs = {id(stage.output) for stage in self.stages[first:last]}
        return [tensor for tensor in self.tapped if id(tensor) in outputs]

    def _hidden(self, count):
        """Return (branch's remaining stages, the tensor that they read) after `count` stages."""
        done = {id(stage.output) for stage in self.stages[:count]}
        found = []
        for branch in self.branches:
            passed = [stage for stage in branch if id(stage.output) in done]
            if rest := branch[len(passed) :]:
                found.append((rest, passed[-1].output if passed else self.images))
        return found

    def _after(self, first):
        """Return (the tensor of a cut, its taps or None, id of each later tensor → the same)."""
        hidden = self._hidden(first)
        width = sum(tap_width(tensor.shape) for tensor in self._taps(0, first))
        size = sum(math.prod(tensor.shape[1:]) for _, tensor in hidden) + width
        dtype = keras.backend.result_type(*(tensor.dtype for _, tensor in hidden))
        inputs = keras.Input((size,), dtype=dtype)
        outputs, start = {}, 0
        for rest, tensor in hidden:
            part = Part(start, tensor.shape[1:], dtype=tensor.dtype, name=f"part_{start}")(inputs)
            ends = [stage.output for stage in rest]
            later = rebuild(keras.Model(tensor, ends), part)
            outputs |= zip(map(id, [tensor, *ends]), [part, *later])
            start += math.prod(tensor.shape[1:])
        taps = Part(start, (width,), dtype="float32", name="taps_before")(inputs) if width else None
        return inputs, taps, outputs


def _among(tensor, stages) -> bool:
    return any(tensor is stage.output for stage in stages)


def _ends(tensors):
    """Return the tensors from which no other one is computed."""
    ends: list[keras.KerasTensor] = []
    for tensor in reversed(tensors):  # later stages come last
        if not any(_reaches(tensor, end) for end in ends):
            ends.insert(0, tensor)
    return ends


def _reaches(tensor, end):
    """Return whether `end` is computed from a tensor."""
    seen, waiting = set(), [end]
    while waiting:
        current = waiting.pop()
        if current is tensor:
            return True
        if id(current) not in seen:
            seen.add(id(current))
            waiting += producer(current).input_tensors
    return False


class Joined(keras.layers.Layer):
    """Tensors [N, …], flattened and joined, in the layer's dtype: [N, D]."""

    def call(self, tensors):
        flat = [ops.reshape(x, (-1, math.prod(x.shape[1:]))) for x in tensors]
        return ops.concatenate([ops.cast(x, self.compute_dtype) for x in flat], axis=-1)

    def compute_output_shape(self, shapes):
        return (shapes[0][0], sum(math.prod(shape[1:]) for shape in shapes))


class Part(keras.layers.Layer):
    """One of the joined tensors: the columns from `start` on, in their shape and dtype."""

    def __init__(self, start, shape, **kwargs):
        super().__init__(**kwargs)
        self.start, self.shape = start, tuple(shape)

    def call(self, x):
        x = x[:, self.start : self.start + math.prod(self.shape)]
        return ops.cast(ops.reshape(x, (-1, *self.shape)), self.compute_dtype)

    def compute_output_shape(self, shape):
        return (shape[0], *self.shape)

    def get_config(self):
        return {**super().get_config(), "start": self.start, "shape": list(self.shape)}
