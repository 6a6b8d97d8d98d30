"""The frozen part of a network: its identity, its cost, and engines that run it forward fast."""

import hashlib
import importlib.metadata
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import accumulate

import keras
import numpy as np

from keras_transfer.features.store import ROW_FORMAT
from keras_transfer.modalities import Framing, open_framing
from keras_transfer.models.acceleration import folded
from keras_transfer.models.builders import backbone_at
from keras_transfer.models.framing import framing_of, modality_of
from keras_transfer.models.graph import chain
from keras_transfer.models.stages import Backbone
from keras_transfer.utils.extras import is_installed
from keras_transfer.utils.files import cpu_flags, remembered
from keras_transfer.utils.image_sizes import size_of


@dataclass(frozen=True)
class Prefix:
    """The first stages of a backbone, from uint8 images to the activations at the cut.

    Attributes:
        model: [N, H, W, 3] → [N, …]; shares the backbone's weights.
        name: for people.
        takes: dtype of its input; a prefix that starts at a cut takes the activations there.
        framing: of the examples; None for a prefix that starts at a cut.
        engines: engines made so far, by name.
    """

    model: keras.Model
    name: str
    takes: str = "uint8"
    framing: Framing | None = None
    engines: dict = field(default_factory=dict, compare=False, repr=False)

    @property
    def image_size(self) -> int:
        return size_of(self.model.input_shape)

    def framed_for(self, examples) -> "Prefix":
        """Return the prefix with a framing that suits some examples, if it is open."""
        open_or_settled = self.framing or open_framing(self.image_size)
        framing = examples.modality.framing_for(open_or_settled, examples)
        return self if framing == self.framing else replace(self, framing=framing)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the activations of one image."""
        return tuple(self.model.output_shape[1:])

    @property
    def size(self) -> int:
        """Number of activations of one image."""
        return math.prod(self.shape)

    @cached_property
    def cost(self) -> float:
        """Multiplications for one image, or for one token of a text, see `stage_costs`."""
        return sum(_layer_costs(self.model).values())

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the graph and all weights, independent of layer names and `trainable` flags."""
        graph = _nameless(self.model.get_config())
        text = json.dumps(graph, sort_keys=True, default=str)
        digest = hashlib.blake2b(text.encode(), digest_size=16)
        for weight in self.model.weights:
            digest.update(keras.ops.convert_to_numpy(weight).tobytes())
        return digest.hexdigest()

    @property
    def identity(self) -> dict:
        """Everything but example, view, engine and dtype that features depend on, as plain data."""
        return {
            "format": ROW_FORMAT,
            "keras": keras.__version__,
            "prefix": self.fingerprint,
            "image_size": self.image_size,
            **(self.framing.recorded() if self.framing else {}),
        }


def prefix_of(model: keras.Model, stages: int, image_size: int | str | None = None) -> Prefix:
    """Return the first `stages` stages (at least one) of a model's backbone, at an image size."""
    backbone = backbone_at(model, image_size)
    name = f"{backbone.name}, {stages} of {len(backbone.stages)} stages"
    whole = stages == len(backbone.stages)
    first = backbone if whole else backbone.between(0, stages)
    framing = framing_of(backbone)
    return Prefix(first, name, takes=modality_of(backbone).input_dtype, framing=framing)


def _nameless(config, places=None):
    """Return a model's configuration with positions in the graph instead of names.

    Keras numbers the names. They are recognized by where they stand, because a layer may be called
    like a setting (MobileNetV3 has one with the name "activation").

    Args:
        places: name → position, for the operations of the model that it is a part of.
    """
    if isinstance(config, (list, tuple)):
        return [_nameless(item, places) for item in config]
    if not isinstance(config, dict):
        return config
    if "layers" in config and "output_layers" in config:
        places = {layer["name"]: i for i, layer in enumerate(config["layers"])}
    result = {}
    for key, value in config.items():
        if key in ("trainable", "name", "framing"):
            continue
        if key == "keras_history":
            result[key] = [places[value[0]], *value[1:]]
        elif key in ("input_layers", "output_layers"):
            result[key] = _placed(value, places)
        elif str(config.get("class_name")).endswith("Policy"):
            result[key] = value  # here, the name is the setting
        else:
            result[key] = _nameless(value, places)
    return result


def _placed(outputs, places):
    """Replace the name in [name, node, tensor], or in nested lists and dicts of such."""
    if isinstance(outputs, dict):
        return {key: _placed(value, places) for key, value in outputs.items()}
    if outputs and isinstance(outputs[0], str):
        return [places[outputs[0]], *outputs[1:]]
    return [_placed(value, places) for value in outputs]


def stage_costs(backbone: Backbone) -> list[float]:
    """Return the multiplications of each stage for one image, forward.

    Layers of transformers count their own; the others have one for each weight and position.

    Args:
        backbone: built for one image size.
    """
    costs = _layer_costs(backbone)
    return [sum(costs[id(layer)] for layer in stage.layers) for stage in backbone.stages]


def _layer_costs(model):
    costs = {}
    for node in (node for piece in chain(model) for node in piece):
        layer, shape = node.operation, node.output_tensors[0].shape
        counted = getattr(layer, "multiplications", _by_matrices(layer))(shape)
        costs[id(layer)] = costs.get(id(layer), 0.0) + float(counted)
    return costs


def _by_matrices(layer):
    weights = getattr(layer, "weights", ())
    matrices = sum(math.prod(w.shape) for w in weights if len(w.shape) > 1)
    return lambda shape: math.prod(shape[1:-1]) * matrices if weights else 0


# -- pooled features ------------------------------------------------------------------------------

_POOLINGS = {3: keras.layers.GlobalAveragePooling1D, 4: keras.layers.GlobalAveragePooling2D}


def pooled_stages(backbone: Backbone) -> Prefix:
    """Return a prefix that outputs one vector per image: every stage, averaged over positions.

    One pass over the images computes all stages, and engines and store take it like any prefix. An
    output without positions (the features of a backbone with pooling) is left as it is. Averages
    are taken in float32, regardless of the backbone's precision.

    Args:
        backbone: built for one image size.

    Returns:
        A prefix from uint8 [N, H, W, 3] to float32 [N, D], where D is the sum of the stages'
        channels; `stage_columns` gives the columns of each stage.
    """
    vectors = []
    for stage in backbone.stages:
        # Explicit names: with those that Keras numbers, each build would be another network.
        pool = _POOLINGS.get(len(stage.output.shape))
        name = f"stage_{stage.index + 1}_pooled"
        vectors.append(pool(name=name, dtype="float32")(stage.output) if pool else stage.output)
    joined = keras.layers.Concatenate(name="all_stages", dtype="float32")(vectors)
    model = keras.Model(backbone.inputs[0], joined, name=f"{backbone.name}_stages")
    name = f"{backbone.name}, pooled after each of {len(vectors)} stages"
    dtype = modality_of(backbone).input_dtype
    return Prefix(model, name, takes=dtype, framing=framing_of(backbone))


def stage_columns(backbone: Backbone) -> list[slice]:
    """Return the columns of each stage in the output of `pooled_stages`."""
    ends = list(accumulate(stage.output.shape[-1] for stage in backbone.stages))
    return [slice(start, end) for start, end in zip([0, *ends], ends)]


def averaged(features: np.ndarray) -> np.ndarray:
    """Return features [N, …, D] averaged over their positions, float32; [N, D] unchanged."""
    if features.ndim == 2:
        return features
    return features.mean(axis=tuple(range(1, features.ndim - 1)), dtype="float32")


# -- engines --------------------------------------------------------------------------------------

Run = Callable[[np.ndarray], np.ndarray]  # input of a prefix → its activations [N, …]
_MAX_ERROR = 1e-2
_MAX_PROBE_LOSS = 0.005
_MIN_GAIN = 1.2
_SAMPLE = 256  # images to compare on
# Remaining multiplications, 10 to 30 seconds on two cores, that justify converting and comparing.
_WORTH_MEASURING = 1e12
# The engine that was made last: often, the same network is built again right afterwards.
_made_last: dict[tuple, Run] = {}


def keras_engine(prefix: Prefix) -> Run:
    """Make an engine of folded convolutions and, on TensorFlow, of constants instead of weights.

    Constants let the graph's optimizer join kernels, biases and activations.
    """
    model = folded(prefix.model)
    if keras.backend.backend() != "tensorflow":
        return lambda images: np.asarray(model.predict_on_batch(images))
    import tensorflow as tf

    values = [(weight, keras.ops.convert_to_numpy(weight)) for weight in prefix.model.variables]

    def constant(images):
        # Traced so, it takes a third of the time that converting a graph of variables takes.
        constants = [(weight, tf.constant(value)) for weight, value in values]
        with keras.StatelessScope(state_mapping=constants):
            return model(images, training=False)

    signature = tf.TensorSpec([None, *prefix.model.input_shape[1:]], prefix.takes)
    function = tf.function(constant, autograph=False).get_concrete_function(signature)
    return lambda images: function(tf.convert_to_tensor(images)).numpy()


def openvino_engine(prefix: Prefix, form: str) -> Run:
    """Make an OpenVINO engine for the CPU that computes in `form` (`"bf16"` or `"f32"`)."""
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",  # all cores work on one batch at a time
        "INFERENCE_PRECISION_HINT": form,
    }
    model = openvino_model(folded(prefix.model), prefix.takes)
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    return lambda images: compiled(np.asarray(images))[0].copy()


def openvino_model(model: keras.Model, dtype: str, name: str = "images"):
    """Return a model as an `openvino.Model` with any batch size; needs the extra `openvino`.

    Args:
        model: with one input, on the TensorFlow backend.
        dtype, name: of the input, such as `"uint8"`.
    """
    import openvino
    import tensorflow as tf

    signature = tf.TensorSpec([None, *model.input_shape[1:]], dtype, name)
    function = tf.function(lambda x: model(x, training=False), input_signature=[signature])
    try:
        return openvino.convert_model(function)
    except NameError:  # OpenVINO 2026.4 cannot convert a function on Python 3.13, but files it can
        with tempfile.TemporaryDirectory() as folder:
            model.export(folder, verbose=False, input_signature=[signature])
            return openvino.convert_model(folder)


# Rows in the store are marked with these names. `keras` is the reference for the others.
ENGINES: dict[str, Callable[[Prefix], Run]] = {
    "keras": keras_engine,
    "openvino_bf16": partial(openvino_engine, form="bf16"),
    "openvino_f32": partial(openvino_engine, form="f32"),
}


@dataclass(frozen=True)
class Choice:
    """An engine, and why it was chosen."""

    name: str
    run: Run
    reason: str


def usable_engines(requested: str, prefix: Prefix) -> list[str]:
    """Return names of `ENGINES` whose results may be used for the prefix, as known so far.

    Keras always may, unless OpenVINO was requested; OpenVINO may if `choose_engine` has compared it
    and found it correct (and, for `"auto"`, faster).
    """
    if requested in ENGINES:
        return [requested]
    names = [] if requested == "openvino" else ["keras"]
    return names + [
        name for name in _others() if _usable(remembered("engines", _key(name, prefix)), requested)
    ]


def choose_engine(
    requested: str,
    prefix: Prefix,
    sample: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None,
    remaining: int = 0,
) -> Choice:
    """Make the fastest engine that can be trusted.

    The others are compared with Keras on a sample, once per machine and prefix. An engine may
    replace Keras if its relative error is at most 0.01, and if a classifier that was fitted on
    Keras's features of half the sample loses at most half a percentage point of accuracy on the
    engine's features of the other half.

    Args:
        requested: a name of `ENGINES`; `"openvino"`, the fastest of its number formats that is
            correct; or `"auto"`, the fastest of all, if enough work remains to justify comparing.
        sample: called with a number, returns that many of the remaining images (at least one),
            uint8 [N, H, W, 3], and labels, int [N]. Not needed for a name of `ENGINES`.
        remaining: number of images, or of tokens of texts, to compute.
    """

    def engine(name):
        if name not in prefix.engines:
            key = ENGINES[name], _key(name, prefix)
            prefix.engines[name] = _made_last.get(key) or ENGINES[name](prefix)
            _made_last.clear()
            _made_last[key] = prefix.engines[name]
        return prefix.engines[name]

    if requested in ENGINES:
        return Choice(requested, engine(requested), "as requested")
    if not _others():
        return Choice("keras", engine("keras"), "no other is installed, or none would gain")
    drawn: list[tuple[np.ndarray, np.ndarray]] = []

    def measure(name):
        drawn.extend([] if drawn else [sample(_SAMPLE)])
        return compare(engine("keras"), engine(name), *drawn[0])

    def result(name):
        try:
            return remembered("engines", _key(name, prefix), partial(measure, name))
        except Exception as error:  # a faster engine is optional; failures are not remembered
            if "KeyboardInterrupt" in str(error):  # wrapped by OpenVINO's converter
                raise KeyboardInterrupt from error
            return {"gain": 0.0, "error": 1.0, "probe": 1.0, "failed": str(error)}

    unknown = usable_engines(requested, prefix) == ["keras"]
    if requested == "auto" and unknown and prefix.cost * remaining < _WORTH_MEASURING:
        return Choice("keras", engine("keras"), "too little work to compare others")
    results = {name: result(name) for name in _others()}
    reason = "; ".join(f"{name} {_described(one)}" for name, one in results.items())
    usable = [name for name, one in results.items() if _usable(one, requested)]
    chosen = max(usable, key=lambda name: results[name]["gain"], default="keras")
    return Choice(chosen, engine(chosen), reason)


def engine_version(name: str) -> str:
    """Return name and release of an engine, on which its results depend."""
    if name == "keras":
        return f"keras {keras.backend.backend()}"
    return f"{name} {importlib.metadata.version('openvino')}"


def compare(reference: Run, other: Run, images: np.ndarray, labels: np.ndarray) -> dict:
    """Return `gain` (speed-up), relative `error`, and `probe` (accuracy lost), see `choose_engine`."""
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

    train, test = np.arange(len(labels)) % 2 == 0, np.arange(len(labels)) % 2 == 1
    if len(np.unique(labels[train])) < 2:
        return 0.0
    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=float(expected.shape[1])))
    probe.fit(expected[train], labels[train])
    exact, other = (probe.score(x[test], labels[test]) for x in (expected, got))
    return float(exact - other)


def _others():
    """Return names of the engines other than Keras that this machine has, and that may gain."""
    if not is_installed("openvino") or keras.backend.backend() != "tensorflow":
        return []
    return [
        name for name in ENGINES if name == "openvino_f32" or (_has_bfloat16() and name != "keras")
    ]


def _usable(result, requested):
    """Return whether a comparison (or None) allows an engine to replace Keras."""
    correct = result and result["error"] <= _MAX_ERROR and result["probe"] <= _MAX_PROBE_LOSS
    return bool(correct) and (requested == "openvino" or result["gain"] >= _MIN_GAIN)


def _described(result):
    if "failed" in result:
        return f"failed ({result['failed']})"
    return (
        f"is {result['gain']:.1f} times as fast, relative error {result['error']:.4f}, probe "
        f"{-100 * result['probe']:+.1f} points"
    )


def _key(name, prefix):
    return f"{engine_version(name)} {keras.__version__} {prefix.fingerprint}"


def _seconds(run, images):
    started = time.perf_counter()
    run(images)
    return time.perf_counter() - started


def _has_bfloat16():
    return bool({"amx_bf16", "avx512_bf16"} & cpu_flags())
