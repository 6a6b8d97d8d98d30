"""The frozen part of a network: what it is, and what it costs."""

import hashlib
import importlib.metadata
import importlib.util
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate

import keras
import numpy as np

from keras_transfer.models.acceleration import folded
from keras_transfer.models.builders import backbone_at
from keras_transfer.models.stages import Backbone, chain
from keras_transfer.utils.files import cpu_flags, remembered

_FORMAT = 2  # of what a row means: raise it when decoding, views or preprocessing change


@dataclass(frozen=True)
class Prefix:
    """The first stages of a backbone, from uint8 images to the activations at the cut.

    Attributes:
        model: [N, H, W, 3] → [N, …]; shares the backbone's weights.
        name: for people.
        takes: dtype of its input; what starts at a cut takes the activations there.
        engines: what was made ready to run it, by name.
    """

    model: keras.Model
    name: str
    takes: str = "uint8"
    engines: dict = field(default_factory=dict, compare=False, repr=False)

    @property
    def image_size(self) -> int:
        return self.model.input_shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the activations of one image."""
        return tuple(self.model.output_shape[1:])

    @property
    def size(self) -> int:
        """Numbers of one image's activations."""
        return math.prod(self.shape)

    @cached_property
    def cost(self) -> float:
        """Multiplications for one image, see `stage_costs`."""
        return sum(_layer_costs(self.model).values())

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the graph and all its weights; names of layers and what trains do not matter."""
        graph = _nameless(self.model.get_config())
        text = json.dumps(graph, sort_keys=True, default=str)
        digest = hashlib.blake2b(text.encode(), digest_size=16)
        for weight in self.model.weights:
            digest.update(keras.ops.convert_to_numpy(weight).tobytes())
        return digest.hexdigest()

    @property
    def identity(self) -> dict:
        """What features depend on, besides image, view, engine and dtype; plain data."""
        return {
            "format": _FORMAT,
            "keras": keras.__version__,
            "prefix": self.fingerprint,
            "image_size": self.image_size,
        }


def prefix_of(model: keras.Model, stages: int, image_size: int | None = None) -> Prefix:
    """The first `stages` stages (at least one) of a model's backbone, at one of its image sizes."""
    backbone = backbone_at(model, image_size)
    name = f"{backbone.name}, {stages} of {len(backbone.stages)} stages"
    whole = stages == len(backbone.stages)
    return Prefix(backbone if whole else backbone.split(stages)[0], name)


def stage_costs(backbone: Backbone) -> list[float]:
    """Multiplications of each stage for one image, forward: those of its weight matrices.

    Args:
        backbone: built for one image size.
    """
    costs = _layer_costs(backbone)
    return [sum(costs[id(layer)] for layer in stage.layers) for stage in backbone.stages]


def _nameless(config, places=None):
    """The configuration of a model with places in the graph for names, which Keras counts up.

    Names are told by where they stand: a layer may be called like a setting (MobileNetV3 has one
    with the name "activation").

    Args:
        places: name → place, of the operations of the model that it is a part of.
    """
    if isinstance(config, (list, tuple)):
        return [_nameless(item, places) for item in config]
    if not isinstance(config, dict):
        return config
    if "layers" in config and "output_layers" in config:
        places = {layer["name"]: i for i, layer in enumerate(config["layers"])}
    found = {}
    for key, value in config.items():
        if key in ("trainable", "name"):
            continue
        if key == "keras_history":
            found[key] = [places[value[0]], *value[1:]]
        elif key in ("input_layers", "output_layers"):
            found[key] = _placed(value, places)
        elif str(config.get("class_name")).endswith("Policy"):
            found[key] = value  # the name is what it says
        else:
            found[key] = _nameless(value, places)
    return found


def _placed(outputs, places):
    """[name, node, tensor], or nested lists and dicts of such, with the place for the name."""
    if isinstance(outputs, dict):
        return {key: _placed(value, places) for key, value in outputs.items()}
    if outputs and isinstance(outputs[0], str):
        return [places[outputs[0]], *outputs[1:]]
    return [_placed(value, places) for value in outputs]


def _layer_costs(model):
    costs = {}
    for node in (node for piece in chain(model) for node in piece):
        weights = getattr(node.operation, "weights", ())
        places = math.prod(node.output_tensors[0].shape[1:-1]) if weights else 0
        matrices = sum(math.prod(w.shape) for w in weights if len(w.shape) > 1)
        costs[id(node.operation)] = costs.get(id(node.operation), 0.0) + float(places * matrices)
    return costs


_POOLINGS = {
    3: keras.layers.GlobalAveragePooling1D,
    4: keras.layers.GlobalAveragePooling2D,
}


def pooled_stages(backbone: Backbone) -> Prefix:
    """The outputs of all stages, each averaged over its places, one after the other.

    One pass over the images computes all of them, and engines and store take it like any prefix.
    An output that has no places (the features of a backbone with pooling) stays as it is. Averages
    are taken in float32, whatever the backbone computes in.

    Args:
        backbone: built for one image size.

    Returns:
        A prefix from uint8 [N, H, W, 3] to float32 [N, D], D the sum of the stages' channels; which
        of them are a stage's, see `stage_columns`.
    """
    vectors = []
    for stage in backbone.stages:
        # Names of our own: those that Keras counts up would make each build another network for
        # the store.
        pool = _POOLINGS.get(len(stage.output.shape))
        name = f"stage_{stage.index + 1}_pooled"
        vectors.append(pool(name=name, dtype="float32")(stage.output) if pool else stage.output)
    joined = keras.layers.Concatenate(name="all_stages", dtype="float32")(vectors)
    model = keras.Model(backbone.inputs[0], joined, name=f"{backbone.name}_stages")
    return Prefix(model, f"{backbone.name}, pooled after each of {len(vectors)} stages")


def stage_columns(backbone: Backbone) -> list[slice]:
    """Where each stage's channels lie in what `pooled_stages` gives."""
    ends = list(accumulate(stage.output.shape[-1] for stage in backbone.stages))
    return [slice(start, end) for start, end in zip([0, *ends], ends)]


def averaged(features: np.ndarray) -> np.ndarray:
    """Features [N, …, D] averaged over their places, float32; [N, D] as they are."""
    if features.ndim == 2:
        return features
    return features.mean(axis=tuple(range(1, features.ndim - 1)), dtype="float32")


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
    if importlib.util.find_spec("openvino") is None or keras.backend.backend() != "tensorflow":
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
