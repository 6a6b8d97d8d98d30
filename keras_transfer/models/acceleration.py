"""The same function, computed faster: folded BatchNorm, frozen parts in inference mode, precision and XLA."""

import subprocess
import time
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops
from keras.src.backend import AutocastScope

from keras_transfer.errors import InputError
from keras_transfer.models.builders import backbone_at, build_model, head_layers
from keras_transfer.models.heads import Classification
from keras_transfer.models.stages import clone_with, freeze
from keras_transfer.utils.machine import cpu_flags, remembered

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


def training_model(
    model: keras.Model,
    frozen: int,
    *,
    image_size: int | None = None,
    from_cut: bool = False,
    fold: bool = True,
) -> keras.Model:
    """The model as a phase trains it, on shared weights: the same function, made to run fast.

    Args:
        model: from `build_model`.
        frozen: number of leading stages that do not train.
        image_size: of the phase, see `backbone_at`.
        from_cut: take the activations after the frozen stages (at least one) in place of images.
        fold: fold BatchNorm into the convolutions of the trained part too, which must be frozen
            there. In the frozen part it always is.
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
        x = inputs = keras.Input(backbone.input_shape[1:], name="images")
        if prefix is not None:
            x = Inference(folded(prefix))(x)
    if suffix is not None:
        x = (folded(suffix) if fold else suffix)(x)
    return keras.Model(inputs, _head_on(model, x), name=model.name)


def _head_on(model, features):
    """The layers after the backbone, on other features: the output, of several heads a dict."""
    outputs = {}
    for name, layers in head_layers(model).items():
        outputs[name] = features
        for layer in layers:
            outputs[name] = layer(outputs[name])
    return outputs if len(outputs) > 1 else outputs.popitem()[1]


PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
_LEAST_GAIN = 1.15  # below this a shorter number format is not worth its rounding


@dataclass(frozen=True)
class Precision:
    """A dtype policy of Keras and why it was taken."""

    name: str
    reason: str

    def __str__(self):
        return f"precision {self.name}: {self.reason}"


def set_precision(
    precision: str = "auto",
    backbone: str | None = None,
    image_size: int | None = None,
    *,
    trains: bool = True,
) -> Precision:
    """Sets Keras's global dtype policy for the models built next.

    `"auto"` takes bfloat16 on a TPU and on GPUs that compute in it (NVIDIA from compute capability
    8.0), float16 with loss scaling on GPUs with tensor cores before those (7.x), float32 on older
    ones. On a CPU it is float32, unless the CPU multiplies bfloat16 matrices (AMX): there it
    depends on the backbone, so a training step of it is measured, once a machine. (On such a CPU
    ResNet50 gained a half and MobileNetV2 lost as much: `scripts/step_times.py`.)

    Args:
        precision: a name of `PRECISIONS`.
        backbone, image_size: what will be trained, as `build_model` takes it; where it matters and
            is not given, float32 is taken.
        trains: False where all of the backbone stays frozen: no step of it is measured then.

    Raises:
        InputError: no such precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"Unknown precision '{precision}': give one of {', '.join(PRECISIONS)}.")
    chosen = Precision(precision, "as asked for")
    if precision == "auto":
        chosen = _choose(backbone if trains else None, image_size)
    keras.config.set_dtype_policy(chosen.name)
    return chosen


def has_gpu() -> bool:
    """True where the Keras backend sees an accelerator."""
    return bool(keras.distribution.list_devices("gpu") or keras.distribution.list_devices("tpu"))


def jit_compile() -> bool | str:
    """XLA makes training slower on a CPU; on JAX there is no training without it."""
    on_cpu = keras.backend.backend() == "tensorflow" and not has_gpu()
    return False if on_cpu else "auto"


def _choose(backbone, image_size):
    if keras.distribution.list_devices("tpu"):
        return Precision("mixed_bfloat16", "a TPU computes in it")
    if keras.distribution.list_devices("gpu"):
        return _for_gpu(_compute_capability(), backbone, image_size)
    if "amx_bf16" not in cpu_flags():
        return Precision("float32", "this CPU has no bfloat16 matrix unit")
    return _by_measurement("this CPU multiplies bfloat16 (AMX)", backbone, image_size)


def _for_gpu(capability, backbone, image_size):
    if capability is None:
        return _by_measurement("a GPU of unknown kind", backbone, image_size)
    what = f"a GPU of compute capability {capability}"
    if capability >= 8.0:
        return Precision("mixed_bfloat16", f"{what} computes in it")
    if capability >= 7.0:
        return Precision("mixed_float16", f"{what} has float16 tensor cores, no bfloat16")
    return Precision("float32", f"{what} gains nothing from shorter numbers")


def _compute_capability() -> float | None:
    """The least of this machine's NVIDIA GPUs. Asked of the driver: no framework is imported."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return min(float(line) for line in answer.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _by_measurement(what, backbone, image_size):
    if backbone is None:
        return Precision("float32", f"{what}, but no backbone is known that will train")
    try:
        key = f"{keras.__version__} {keras.backend.backend()} {backbone} {image_size}"
        gain = remembered("bfloat16", key, lambda: bfloat16_gain(backbone, image_size))
    except Exception as error:  # a guess at speed must not stop a training
        return Precision("float32", f"{what}, but measuring failed: {error}")
    name = "mixed_bfloat16" if gain >= _LEAST_GAIN else "float32"
    return Precision(name, f"{what}; a training step in bfloat16 is {gain:.2f} times as fast")


def bfloat16_gain(backbone: str, image_size: int | None = None, batch_size: int = 16) -> float:
    """Time of a training step (everything trains) in float32 over that in mixed bfloat16."""
    before = keras.config.dtype_policy()
    steps = []
    try:
        for policy in ("float32", "mixed_bfloat16"):
            keras.config.set_dtype_policy(policy)
            steps.append(training_step(backbone, image_size, batch_size))
    finally:
        keras.config.set_dtype_policy(before)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(4):  # in turn, so that a busy moment hits both
        for step, mine in zip(steps, times):
            started = time.perf_counter()
            step()
            mine.append(time.perf_counter() - started)
    return min(times[0]) / min(times[1])


def training_step(backbone: str, image_size: int | None = None, batch_size: int = 16):
    """A function that does one training step of a whole model on random images, compiled."""
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
