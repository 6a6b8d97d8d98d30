"""The same model, faster: folded BatchNorm, frozen parts in inference mode, precision, compilation."""

import time
from collections import Counter
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from keras_transfer.errors import InputError
from keras_transfer.models import PRECISIONS
from keras_transfer.models.builders import backbone_at, build_model, head_layers
from keras_transfer.models.graph import clone_with
from keras_transfer.models.heads import Classification
from keras_transfer.models.stages import freeze
from keras_transfer.utils.files import cpu_flags, remembered
from keras_transfer.utils.image_sizes import checked_size
from keras_transfer.utils.keras_versions import full_precision, nodes_of
from keras_transfer.utils.machine import driver_gpus

_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
_MIN_GAIN = 1.15  # a shorter number format that gains less is not worth its rounding


# -- the model of a phase -------------------------------------------------------------------------


def training_model(
    model: keras.Model,
    frozen: int,
    *,
    image_size: int | str | None = None,
    from_cut: bool = False,
    fold: bool = True,
) -> keras.Model:
    """Return the model as a phase trains it: the same function on shared weights, made to run fast.

    Args:
        model: from `build_model`.
        frozen: number of leading stages that are frozen.
        image_size: height and width of the phase's images, see `backbone_at`.
        from_cut: take the activations after the frozen stages (at least one) instead of images.
        fold: fold BatchNorm into the convolutions of the trained part too, where it must be frozen.
            In the frozen part it is always folded.
    """
    backbone = backbone_at(model, image_size)
    if frozen == 0:
        prefix, suffix = None, backbone
    elif frozen == len(backbone.stages):
        prefix, suffix = backbone, None
    else:
        prefix, suffix = backbone.split(frozen)
    if from_cut:
        assert prefix is not None, "a cut has stages before it"
        x = inputs = keras.Input(prefix.output_shape[1:], dtype=prefix.outputs[0].dtype)
    else:
        first = backbone.inputs[0]
        x = inputs = keras.Input(first.shape[1:], dtype=first.dtype, name=first.name)
        if prefix is not None:
            x = Inference(folded(prefix))(x)
    if suffix is not None:
        x = (folded(suffix) if fold else suffix)(x)
    outputs = {}
    for name, layers in head_layers(model).items():
        outputs[name] = x
        for layer in layers:
            outputs[name] = layer(outputs[name])
    whole = outputs if len(outputs) > 1 else outputs.popitem()[1]
    return keras.Model(inputs, whole, name=model.name)


def folded(model: keras.Model) -> keras.Model:
    """Return the same function on shared weights, with each BatchNorm inside its convolution.

    BatchNorm in inference mode is one multiplication and one addition per channel. On a
    convolution's kernel and bias they cost next to nothing; on its output they are another pass over
    memory, which on a CPU takes as long as the convolution itself.

    BatchNorm is computed in inference mode regardless of `training`, and gradients reach the kernels
    as before: if the BatchNorm layers are frozen, a training step of the result is a training step
    of the model. A BatchNorm that does not directly follow a convolution (or whose convolution has
    another consumer), or one of two that are called more than once, is left as it is.

    Args:
        model: functional, with one input and one output.

    Returns:
        A new model; its outputs are equal up to float rounding.
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
    """Return convolution → the BatchNorm that is its only consumer."""
    nodes = list(nodes_of(model))
    consumers = {}
    for node in nodes:
        for tensor in () if node.is_input else node.input_tensors:
            consumers.setdefault(id(tensor), []).append(node.operation)
    pairs = {}
    calls = Counter(node.operation for node in nodes)
    for node in nodes:
        layer = node.operation
        if type(layer) not in _CONVOLUTIONS or layer.activation is not keras.activations.linear:
            continue
        if layer.data_format != "channels_last" or getattr(layer, "groups", 1) != 1:
            continue
        following = consumers.get(id(node.output_tensors[0]), [])
        only_norm = [type(x) for x in following] == [keras.layers.BatchNormalization]
        once = all(calls[each] == 1 for each in (layer, *following))
        if once and only_norm and node.output_tensors[0] is not model.outputs[0]:
            pairs[layer] = following[0]
    return pairs


class FoldedConv(keras.layers.Layer):
    """A convolution (plain or depthwise) and its BatchNorm, on the weights of both."""

    def __init__(self, conv, norm):
        # Weights are read in full precision, and rounded once, after the multiplication.
        super().__init__(dtype=conv.dtype_policy, autocast=False, name=f"{conv.name}_folded")
        self.conv, self.norm = conv, norm
        self.built = True

    def compute_output_spec(self, x):
        return keras.KerasTensor(self.conv.compute_output_shape(x.shape), dtype=self.compute_dtype)

    def call(self, x):
        # Outside the scope in which an outer model's policy rounds the weights on reading.
        with full_precision():
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
        """Return (kernel, bias) in full precision."""
        conv, norm = self.conv, self.norm
        scale = ops.rsqrt(norm.moving_variance.value + norm.epsilon)
        if norm.scale:
            scale = scale * norm.gamma.value
        bias = -norm.moving_mean.value * scale
        if norm.center:
            bias = bias + norm.beta.value
        if conv.use_bias:
            bias = bias + conv.bias.value * scale
        kernel = ops.convert_to_tensor(conv.kernel)  # with a low-rank update, it is no variable
        if isinstance(conv, keras.layers.DepthwiseConv2D):
            scale = ops.reshape(scale, kernel.shape[2:])
        return kernel * scale, bias


class Inference(keras.layers.Layer):
    """A model that runs in inference mode regardless of `training` in calls of the outer model."""

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


# -- precision and compilation --------------------------------------------------------------------


@dataclass(frozen=True)
class Precision:
    """A Keras dtype policy, and why it was chosen."""

    name: str
    reason: str

    def __str__(self):
        return f"precision {self.name}: {self.reason}"


def set_precision(
    precision: str = "auto",
    backbone: str | None = None,
    image_size: int | str | None = None,
    *,
    trains: bool = True,
) -> Precision:
    """Set Keras's global dtype policy for the models built next.

    `"auto"` chooses bfloat16 on a TPU and on GPUs that compute in it (NVIDIA from compute capability
    8.0), float16 on GPUs with float16 tensor cores only (7.0 and 7.5), and float32 on older GPUs and
    on CPUs without AMX. Otherwise (a CPU with AMX, a GPU of unknown kind) it measures a few training
    steps of the backbone in both formats and remembers the result for this machine. (On such a CPU,
    ResNet50 gained a half and MobileNetV2 lost as much: `scripts/step_times.py`.)

    Args:
        precision: a name of `PRECISIONS`.
        backbone, image_size: the backbone to be trained, as for `build_model`. If a measurement is
            needed and they are missing, the result is float32.
        trains: False if the whole backbone stays frozen, so that no step of it is measured.

    Raises:
        InputError: unknown precision.
    """
    image_size = checked_size(image_size)
    if precision not in PRECISIONS:
        raise InputError(f"Unknown precision '{precision}'. Choose one of {', '.join(PRECISIONS)}.")
    chosen = Precision(precision, "as requested")
    if precision == "auto":
        chosen = _choose(backbone if trains else None, image_size)
    keras.config.set_dtype_policy(chosen.name)
    return chosen


def has_gpu() -> bool:
    """Return whether the Keras backend sees an accelerator."""
    return bool(keras.distribution.list_devices("gpu") or keras.distribution.list_devices("tpu"))


def jit_compile() -> bool | str:
    """Return `jit_compile` for `model.compile`: False for TensorFlow on a CPU, which XLA slows down."""
    on_cpu = keras.backend.backend() == "tensorflow" and not has_gpu()
    return False if on_cpu else "auto"


def _choose(backbone, image_size):
    if keras.distribution.list_devices("tpu"):
        return Precision("mixed_bfloat16", "a TPU computes in it")
    if keras.distribution.list_devices("gpu"):
        capabilities = [gpu.capability for gpu in driver_gpus()]
        return _for_gpu(min(capabilities, default=None), backbone, image_size)
    if "amx_bf16" not in cpu_flags():
        return Precision("float32", "this CPU has no bfloat16 matrix unit")
    return _by_measurement("this CPU multiplies bfloat16 (AMX)", backbone, image_size)


def _for_gpu(capability, backbone, image_size):
    if capability is None:
        return _by_measurement("a GPU of unknown kind", backbone, image_size)
    gpu = "a GPU of compute capability {}.{}".format(*capability)
    if capability >= (8, 0):
        return Precision("mixed_bfloat16", f"{gpu} computes in it")
    if capability >= (7, 0):
        return Precision("mixed_float16", f"{gpu} has float16 tensor cores, no bfloat16")
    return Precision("float32", f"{gpu} gains nothing from shorter numbers")


def _by_measurement(device, backbone, image_size):
    if backbone is None:
        return Precision("float32", f"{device}, but no backbone is known that will train")
    try:
        key = f"{keras.__version__} {keras.backend.backend()} {backbone} {image_size}"
        gain = remembered("bfloat16", key, lambda: bfloat16_gain(backbone, image_size))
    except Exception as error:  # a guess about speed must not stop the training
        return Precision("float32", f"{device}, but the measurement failed: {error}")
    name = "mixed_bfloat16" if gain >= _MIN_GAIN else "float32"
    return Precision(name, f"{device}; a training step in bfloat16 is {gain:.2f} times as fast")


def bfloat16_gain(
    backbone: str, image_size: int | str | None = None, batch_size: int = 16
) -> float:
    """Return the time of a training step (everything trains) in float32 over that in bfloat16."""
    before = keras.config.dtype_policy()
    steps = []
    try:
        for policy in ("float32", "mixed_bfloat16"):
            keras.config.set_dtype_policy(policy)
            steps.append(training_step(backbone, image_size, batch_size))
    finally:
        keras.config.set_dtype_policy(before)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(4):  # in turn, so that a busy moment affects both
        for step, seconds in zip(steps, times):
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
    return min(times[0]) / min(times[1])


def training_step(backbone: str, image_size: int | str | None = None, batch_size: int = 16):
    """Return a compiled function that does one training step of a whole model on random images."""
    head = Classification(("a", "b"))
    whole = build_model(backbone, head, image_size=image_size, weights=None)
    model = training_model(whole, freeze(whole, "none").stages)
    model.compile(keras.optimizers.SGD(1e-4), head.loss(), jit_compile=jit_compile())
    shape = (batch_size, *model.input_shape[1:])
    images = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    labels = np.arange(batch_size) % 2

    def step():
        model.train_on_batch(images, labels)

    step()
    return step
