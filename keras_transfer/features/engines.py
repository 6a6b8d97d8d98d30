"""Engines: a prefix made ready to run forward only, as fast as this machine can.

An engine is a function from a `Prefix` to a function from uint8 pictures [N, H, W, 3] to its
activations [N, …] as a NumPy array. `ENGINES` lists them, Keras first: it is what the others are
checked against.
"""

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

from keras_transfer.features import has_openvino
from keras_transfer.features.prefix import Prefix
from keras_transfer.folding import folded
from keras_transfer.machine import cpu_flags, remembered

Run = Callable[[np.ndarray], np.ndarray]
_MOST_ERROR = 1e-2
_MOST_PROBE_LOSS = 0.005
_LEAST_GAIN = 1.2
_WORTH_MEASURING = 20.0  # seconds of Keras's work left; converting and compiling take some


def keras_engine(prefix: Prefix) -> Run:
    """BatchNorm folded into the convolutions and, on TensorFlow, all weights made constants of the
    graph, so that its optimizer can join kernels, biases and activations."""
    model = folded(prefix.model)
    if keras.backend.backend() != "tensorflow":
        return lambda pictures: np.asarray(model.predict_on_batch(pictures))
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (  # no public name
        convert_variables_to_constants_v2,
    )

    signature = tf.TensorSpec([None, *prefix.model.input_shape[1:]], tf.uint8)
    function = tf.function(lambda x: model(x, training=False), autograph=False)
    frozen = convert_variables_to_constants_v2(function.get_concrete_function(signature))
    return lambda pictures: frozen(tf.convert_to_tensor(pictures))[0].numpy()


def openvino_engine(prefix: Prefix) -> Run:
    """OpenVINO on the CPU; bfloat16 where the CPU multiplies it."""
    import openvino
    import tensorflow as tf

    model = folded(prefix.model)
    signature = tf.TensorSpec([None, *prefix.model.input_shape[1:]], tf.uint8)
    function = tf.function(lambda x: model(x, training=False), input_signature=[signature])
    settings = {
        "PERFORMANCE_HINT": "LATENCY",  # all cores on one batch; batches come one after the other
        "INFERENCE_PRECISION_HINT": _format(),
    }
    compiled = openvino.Core().compile_model(openvino.convert_model(function), "CPU", settings)
    return lambda pictures: compiled(np.asarray(pictures))[0].copy()


ENGINES: dict[str, Callable[[Prefix], Run]] = {
    "keras": keras_engine,
    "openvino": openvino_engine,
}


@dataclass(frozen=True)
class Choice:
    """An engine and why it was taken."""

    name: str
    run: Run
    reason: str


def choose_engine(
    asked: str,
    prefix: Prefix,
    sample: Callable[[], np.ndarray],
    labels: np.ndarray,
    left: int,
) -> Choice:
    """Makes the engine asked for, or the fastest that can be trusted.

    Args:
        asked: a name of `ENGINES`, or `"auto"`: others than Keras are timed on the sample and
            compared with it, once a machine and prefix, where enough work is left to gain by it.
            One is taken if it is faster, its relative error is at most 0.01, and a classifier
            that was fitted on Keras's features of half of the pictures is, on the other half, at
            most half a point less accurate on its features.
        sample: gives some of the pictures to come, uint8 [N, H, W, 3], with `labels` int [N].
        left: pictures to come.
    """
    if asked != "auto":
        return Choice(asked, ENGINES[asked](prefix), "as asked for")
    usable = has_openvino() and _has_bfloat16() and keras.backend.backend() == "tensorflow"
    if not usable:
        return Choice("keras", keras_engine(prefix), "the one that this machine gains by")
    made = {}
    if not trusted("openvino", prefix):
        made["keras"] = keras_engine(prefix)
        pictures = sample()
        few = pictures[:32]
        made["keras"](few)  # traces
        work = _seconds(made["keras"], few) * left / len(few)
        if work < _WORTH_MEASURING:
            return Choice(
                "keras", made["keras"], f"{work:.0f} s of work: too little to compare others"
            )

    def measure():
        made["openvino"] = openvino_engine(prefix)
        return compare(made["keras"], made["openvino"], pictures, labels)

    try:
        found = remembered("engines", _key("openvino", prefix), measure)
    except Exception as error:  # a faster engine is no reason to fail
        return Choice("keras", made["keras"], f"openvino failed: {error}")
    what = (
        f"openvino is {found['gain']:.1f} times as fast, relative error {found['error']:.4f}, "
        f"a probe loses {100 * found['probe']:.1f} points"
    )
    if not _good(found):
        return Choice("keras", made.get("keras") or keras_engine(prefix), what)
    return Choice("openvino", made.get("openvino") or openvino_engine(prefix), what)


def engine_version(name: str) -> str:
    """Name, release and number format of an engine: what its numbers depend on."""
    if name == "keras":
        return f"keras {keras.backend.backend()}"
    return f"{name} {importlib.metadata.version(name)} {_format()}"


def trusted(name: str, prefix: Prefix) -> bool:
    """True for Keras, and for an engine that was compared with it on this machine and taken."""
    if name == "keras":
        return True
    if not has_openvino():
        return False
    nothing = {"gain": 0.0, "error": 1.0, "probe": 1.0}
    return _good(remembered("engines", _key(name, prefix)) or nothing)


def compare(reference: Run, other: Run, pictures: np.ndarray, labels: np.ndarray) -> dict:
    """`gain` (times as fast), relative `error`, and `probe` (accuracy lost), see `choose_engine`."""
    expected, got = reference(pictures), other(pictures)
    gains = [_seconds(reference, pictures) / _seconds(other, pictures) for _ in range(3)]
    expected, got = (x.astype("float32").reshape(len(x), -1) for x in (expected, got))
    if not np.isfinite(got).all():
        return {"gain": float(np.median(gains)), "error": 1.0, "probe": 1.0}
    error = np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-30)
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


def _good(found):
    return (
        found["gain"] >= _LEAST_GAIN
        and found["error"] <= _MOST_ERROR
        and found["probe"] <= _MOST_PROBE_LOSS
    )


def _key(name, prefix):
    return f"{engine_version(name)} {keras.__version__} {prefix.fingerprint}"


def _seconds(run, pictures):
    started = time.perf_counter()
    run(pictures)
    return time.perf_counter() - started


def _format():
    return "bf16" if _has_bfloat16() else "f32"


def _has_bfloat16():
    return bool({"amx_bf16", "avx512_bf16"} & cpu_flags())
