"""Engines: a prefix made ready to run forward only, as fast as this machine can.

An engine is a function from a `Prefix` to a function from its input (uint8 images [N, H, W, 3]) to
its activations [N, …] as a NumPy array.
"""

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import keras
import numpy as np

from keras_transfer.features import has_openvino
from keras_transfer.features.prefix import Prefix
from keras_transfer.models.folding import folded
from keras_transfer.utils.machine import cpu_flags, remembered

Run = Callable[[np.ndarray], np.ndarray]
_MOST_ERROR = 1e-2
_MOST_PROBE_LOSS = 0.005
_LEAST_GAIN = 1.2
_SAMPLE = 256  # images to compare on
# Multiplications left, 10 to 30 seconds on two cores: converting, compiling and comparing take some.
_WORTH_MEASURING = 1e12


def keras_engine(prefix: Prefix) -> Run:
    """BatchNorm folded into the convolutions and, on TensorFlow, all weights made constants of the
    graph, so that its optimizer can join kernels, biases and activations."""
    model = folded(prefix.model)
    if keras.backend.backend() != "tensorflow":
        return lambda images: np.asarray(model.predict_on_batch(images))
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (  # no public name
        convert_variables_to_constants_v2,
    )

    signature = tf.TensorSpec([None, *prefix.model.input_shape[1:]], prefix.takes)
    function = tf.function(lambda x: model(x, training=False), autograph=False)
    frozen = convert_variables_to_constants_v2(function.get_concrete_function(signature))
    return lambda images: frozen(tf.convert_to_tensor(images))[0].numpy()


def openvino_engine(prefix: Prefix, form: str) -> Run:
    """OpenVINO on the CPU, computing in `form` (`"bf16"` or `"f32"`)."""
    import openvino
    import tensorflow as tf

    model = folded(prefix.model)
    signature = tf.TensorSpec([None, *prefix.model.input_shape[1:]], prefix.takes)
    function = tf.function(lambda x: model(x, training=False), input_signature=[signature])
    settings = {
        "PERFORMANCE_HINT": "LATENCY",  # all cores on one batch; batches come one after the other
        "INFERENCE_PRECISION_HINT": form,
    }
    compiled = openvino.Core().compile_model(openvino.convert_model(function), "CPU", settings)
    return lambda images: compiled(np.asarray(images))[0].copy()


# What rows in the store are marked with; `keras` is what the others are compared with.
ENGINES: dict[str, Callable[[Prefix], Run]] = {
    "keras": keras_engine,
    "openvino_bf16": partial(openvino_engine, form="bf16"),
    "openvino_f32": partial(openvino_engine, form="f32"),
}


@dataclass(frozen=True)
class Choice:
    """An engine and why it was taken."""

    name: str
    run: Run
    reason: str


def usable_engines(asked: str, prefix: Prefix) -> list[str]:
    """Names of `ENGINES` whose numbers may stand for the prefix's, as far as this machine knows.

    Keras's always may, unless OpenVINO was asked for; OpenVINO's where `choose_engine` compared
    them and found them right (and, for `"auto"`, faster).
    """
    if asked in ENGINES:
        return [asked]
    names = [] if asked == "openvino" else ["keras"]
    return names + [n for n in _others() if _fine(remembered("engines", _key(n, prefix)), asked)]


def choose_engine(
    asked: str,
    prefix: Prefix,
    sample: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None,
    left: int = 0,
) -> Choice:
    """Makes the fastest engine that can be trusted.

    The others are compared with Keras on a sample, once a machine and prefix. One may stand for it
    if its relative error is at most 0.01 and a classifier that was fitted on Keras's features of
    half of the sample is, on the other half, at most half a point less accurate on its features.

    Args:
        asked: a name of `ENGINES`; `"openvino"`, the fastest of its number formats that is right; or
            `"auto"`, the fastest of all, where enough work is left to gain by comparing.
        sample: gives so many of the images to come, uint8 [N, H, W, 3], with labels int [N]; at
            least one of them. Not needed where `asked` is a name of `ENGINES`.
        left: images to come.
    """

    def engine(name):
        if name not in prefix.engines:
            prefix.engines[name] = ENGINES[name](prefix)
        return prefix.engines[name]

    if asked in ENGINES:
        return Choice(asked, engine(asked), "as asked for")
    if not _others():
        return Choice("keras", engine("keras"), "no other is here, or none gains")
    drawn: list[tuple[np.ndarray, np.ndarray]] = []

    def measure(name):
        drawn.extend([] if drawn else [sample(_SAMPLE)])
        return compare(engine("keras"), engine(name), *drawn[0])

    def result(name):
        try:
            return remembered("engines", _key(name, prefix), partial(measure, name))
        except Exception as error:  # a faster engine is no reason to fail; not remembered
            if "KeyboardInterrupt" in str(
                error
            ):  # OpenVINO's converter makes it an error of its own
                raise KeyboardInterrupt from error
            return {"gain": 0.0, "error": 1.0, "probe": 1.0, "failed": str(error)}

    unknown = usable_engines(asked, prefix) == ["keras"]
    if asked == "auto" and unknown and prefix.cost * left < _WORTH_MEASURING:
        return Choice("keras", engine("keras"), "too little work to compare others")
    found = {name: result(name) for name in _others()}
    reason = "; ".join(f"{name} {_shown(how)}" for name, how in found.items())
    fine = [name for name in found if _fine(found[name], asked)]
    chosen = max(fine, key=lambda name: found[name]["gain"], default="keras")
    return Choice(chosen, engine(chosen), reason)


def engine_version(name: str) -> str:
    """Name and release of an engine: what its numbers depend on."""
    if name == "keras":
        return f"keras {keras.backend.backend()}"
    return f"{name} {importlib.metadata.version('openvino')}"


def compare(reference: Run, other: Run, images: np.ndarray, labels: np.ndarray) -> dict:
    """`gain` (times as fast), relative `error`, and `probe` (accuracy lost), see `choose_engine`."""
    expected, got = reference(images), other(images)
    gains = [_seconds(reference, images) / _seconds(other, images) for _ in range(3)]
    expected, got = (x.astype("float32").reshape(len(x), -1) for x in (expected, got))
    if not np.isfinite(got).all():
        return {"gain": 0.0, "error": 1.0, "probe": 1.0, "failed": "not finite"}
    error = np.linalg.norm(got - expected) / max(float(np.linalg.norm(expected)), 1e-30)
    return {
        "gain": float(np.median(gains)),
        "error": float(error),
        "probe": _probe_loss(expected, got, labels),
    }


def _probe_loss(expected, got, labels):
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted, measured = np.arange(len(labels)) % 2 == 0, np.arange(len(labels)) % 2 == 1
    if len(np.unique(labels[fitted])) < 2:
        return 0.0
    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=float(expected.shape[1])))
    probe.fit(expected[fitted], labels[fitted])
    plain, other = (probe.score(x[measured], labels[measured]) for x in (expected, got))
    return float(plain - other)


def _others():
    """Names of the engines beside Keras that this machine has, and that may gain."""
    if not has_openvino() or keras.backend.backend() != "tensorflow":
        return []
    return [
        name for name in ENGINES if name == "openvino_f32" or (_has_bfloat16() and name != "keras")
    ]


def _fine(found, asked):
    """True where a comparison (None: there was none) lets an engine stand for Keras."""
    right = found and found["error"] <= _MOST_ERROR and found["probe"] <= _MOST_PROBE_LOSS
    return bool(right) and (asked == "openvino" or found["gain"] >= _LEAST_GAIN)


def _shown(found):
    if "failed" in found:
        return f"failed ({found['failed']})"
    return (
        f"is {found['gain']:.1f} times as fast, relative error {found['error']:.4f}, probe "
        f"{-100 * found['probe']:+.1f} points"
    )


def _key(name, prefix):
    return f"{engine_version(name)} {keras.__version__} {prefix.fingerprint}"


def _seconds(run, images):
    started = time.perf_counter()
    run(images)
    return time.perf_counter() - started


def _has_bfloat16():
    return bool({"amx_bf16", "avx512_bf16"} & cpu_flags())
