"""BatchNorm that stands still, folded into the convolution before it.

BatchNorm in inference mode is one multiplication and one addition a channel. On a convolution's
kernel and bias they cost next to nothing; on its output they are another pass over memory, which on
a CPU takes as long as the convolution itself.
"""

import keras
from keras import ops
from keras.src.backend import AutocastScope  # no public name

from keras_transfer.models.stages import clone_with

_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)


def folded(model: keras.Model) -> keras.Model:
    """The same function on the same weights, each BatchNorm inside the convolution it follows.

    BatchNorm is computed in inference mode, whatever `training` says, and gradients reach the
    kernels as before: a training step of the result is a training step of the model, as long as its
    BatchNorm layers are frozen. A BatchNorm that does not follow a convolution directly (or whose
    convolution has another consumer) stays as it is.

    Args:
        model: functional, one input and one output.

    Returns:
        A new model on the shared layers; to float rounding it gives the same numbers.
    """
    pairs = _pairs(model)
    inside = {id(norm) for norm in pairs.values()}

    def call(layer, *args, **kwargs):
        if layer in pairs:
            return FoldedConv(layer, pairs[layer])(*args, **kwargs)
        if id(layer) in inside:
            return args[0]
        return layer(*args, **kwargs)

    inputs = keras.Input(model.input_shape[1:], dtype=model.inputs[0].dtype)
    return keras.Model(inputs, clone_with(model, inputs, call), name=f"{model.name}_folded")


def _pairs(model):
    """Convolution → the BatchNorm that is its only consumer."""
    nodes = [node for level in model._nodes_by_depth.values() for node in level]
    consumers = {}
    for node in nodes:
        for tensor in () if node.is_input else node.input_tensors:
            consumers.setdefault(id(tensor), []).append(node.operation)
    pairs = {}
    for node in nodes:
        layer = node.operation
        if type(layer) not in _CONVOLUTIONS or layer.activation is not keras.activations.linear:
            continue
        if layer.data_format != "channels_last" or getattr(layer, "groups", 1) != 1:
            continue
        following = consumers.get(id(node.output_tensors[0]), [])
        once = [type(x) for x in following] == [keras.layers.BatchNormalization]
        if once and node.output_tensors[0] is not model.outputs[0]:
            pairs[layer] = following[0]
    return pairs


class FoldedConv(keras.layers.Layer):
    """A convolution (plain or depthwise) and its BatchNorm, on the weights of both."""

    def __init__(self, conv, norm):
        # Weights are read in full precision, and rounded once: after they were multiplied.
        super().__init__(dtype=conv.dtype_policy, autocast=False, name=f"{conv.name}_folded")
        self.conv, self.norm = conv, norm
        self.built = True

    def compute_output_spec(self, x):
        return keras.KerasTensor(self.conv.compute_output_shape(x.shape), dtype=self.compute_dtype)

    def call(self, x):
        # Out of the scope in which an outer model's policy rounds what is read.
        with AutocastScope(None):
            kernel, bias = self._folded()
        conv = self.conv
        depthwise = isinstance(conv, keras.layers.DepthwiseConv2D)
        convolve = ops.depthwise_conv if depthwise else ops.conv
        x = convolve(
            ops.cast(x, self.compute_dtype),
            ops.cast(kernel, self.compute_dtype),
            strides=conv.strides,
            padding=conv.padding,
            dilation_rate=conv.dilation_rate,
            data_format=conv.data_format,
        )
        return x + ops.cast(bias, self.compute_dtype)

    def _folded(self):
        """(kernel, bias), in full precision."""
        conv, norm = self.conv, self.norm
        scale = ops.rsqrt(norm.moving_variance.value + norm.epsilon)
        if norm.scale:
            scale = scale * norm.gamma.value
        bias = -norm.moving_mean.value * scale
        if norm.center:
            bias = bias + norm.beta.value
        if conv.use_bias:
            bias = bias + conv.bias.value * scale
        kernel = conv.kernel.value
        if isinstance(conv, keras.layers.DepthwiseConv2D):
            scale = ops.reshape(scale, kernel.shape[2:])
        return kernel * scale, bias


class Inference(keras.layers.Layer):
    """A model that runs in inference mode whatever `training` the outer model is called with."""

    def __init__(self, model):
        super().__init__(dtype=model.dtype_policy, autocast=False, name=f"{model.name}_inference")
        self.model = model
        self.built = True

    def compute_output_spec(self, x):
        return keras.KerasTensor(
            (x.shape[0], *self.model.output_shape[1:]), self.model.outputs[0].dtype
        )

    def call(self, x):
        return self.model(x, training=False)
