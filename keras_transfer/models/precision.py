"""Number formats and compilation: what suits the hardware."""

import subprocess
import time
from dataclasses import dataclass

import keras
import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.models.builders import build_model, training_model
from keras_transfer.models.freezing import freeze
from keras_transfer.models.heads import Classification
from keras_transfer.utils.machine import cpu_flags, remembered

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
