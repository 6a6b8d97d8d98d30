"""The SavedModel for TF Serving, which decodes, rotates, resizes and normalizes images itself."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_transfer.errors import InputError
from keras_transfer.evaluation.typicality import Typicality
from keras_transfer.export.parity import HALF_ROUNDING, ROUNDING, ParityError
from keras_transfer.models.builders import by_head, head_layers, heads_of
from keras_transfer.models.framing import framing_of, modality_of
from keras_transfer.models.heads import Head
from keras_transfer.models.stages import backbone_of
from keras_transfer.utils.console import first_line, quiet_tensorflow
from keras_transfer.utils.files import encode_text, write_text
from keras_transfer.utils.keras_versions import first_node

WARMUP = Path("assets.extra") / "tf_serving_warmup_requests"
_WARMUP_BATCHES = (1, 8)
FEATURES = "features of the backbone"  # output of `scoring_model`
_BATCH = 32
_KERAS_ROUNDING = 10  # factor allowed over the difference of the Keras model from itself


# -- the model that is exported, in any format ----------------------------------------------------------


def signatures_of(model: keras.Model) -> tuple[str, ...]:
    """Return the names of the signatures of a model's SavedModel."""
    return (*modality_of(model).requests(framing_of(model)), "serve_bytes", "features")


def exported_model(
    model: keras.Model,
    temperatures: Mapping[str, float] | None = None,
    *,
    fixed: bool = False,
    pixel: str = "uint8",
) -> keras.Model:
    """Return `scoring_model` from what an exported file takes: the modality's front end included.

    Args:
        fixed: whether its input has no open shape; texts are then padded to the largest length.
        pixel: type of the images that it takes.
    """
    framing = framing_of(model)
    front = modality_of(model).front_end(framing)
    scorer = scoring_model(model, temperatures, pixel=pixel)
    if front is None and fixed and None in scorer.inputs[0].shape[1:]:
        taken = scorer.inputs[0]
        inputs = keras.Input(framing.longest, dtype=taken.dtype, name=taken.name)
        front = inputs, inputs
    if front is None:
        return scorer
    inputs, prepared = front
    return keras.Model(inputs, scorer(prepared), name="answers")


def scoring_model(
    model: keras.Model,
    temperatures: Mapping[str, float] | None = None,
    *,
    features: bool = False,
    pixel: str = "uint8",
) -> keras.Model:
    """Return a model with shared weights that turns inputs of the model into scores.

    Args:
        model: from `build_model`.
        temperatures: head name → temperature that its logits are divided by (Guo et al. 2017,
            arXiv:1706.04599); 1 by default.
        features: whether the backbone's features are an output, too: `FEATURES`.
        pixel: type of the images that it takes.

    Returns:
        A model from the inputs, such as `images`, uint8 [N, S, S, 3], to a dict of the heads'
        `Head.scores`, [N, C]: `scores` for a single head, `scores_NAME` for each of several.
    """
    heads, temperatures = heads_of(model), temperatures or {}
    dtype, name = modality_of(model).input_dtype, model.inputs[0].name
    dtype = pixel if dtype == "uint8" else dtype
    inputs = keras.Input(model.input_shape[1:], dtype=dtype, name=name)
    whole = keras.Model(model.inputs, [model.output, _features_in(model)]) if features else model
    answers = whole(inputs, training=False)
    outputs = by_head(heads, answers[0] if features else answers)
    scores = {}
    for name, head in heads.items():
        raw = outputs[name]
        if temperatures.get(name, 1.0) != 1.0:
            raw = raw / temperatures[name]
        scores[f"scores{suffix(heads, name)}"] = head.scores(raw)
    if features:
        scores[FEATURES] = answers[1]
    return keras.Model(inputs, scores, name="answers")


def _features_in(model):
    """Return the output of the backbone inside a model, as the head reads it."""
    layers = next(iter(head_layers(model).values()))
    return first_node(layers[0]).input_tensors[0]


def suffix(heads: Mapping[str, Head], name: str) -> str:
    """Return the suffix of a head's output names: `_NAME`, or nothing for a single head."""
    return f"_{name}" if len(heads) > 1 else ""


def scores_by_head(heads: Mapping[str, Head], outputs: Mapping) -> dict:
    """Return head name → scores, from outputs that are named as in `scoring_model`."""
    return {name: outputs[f"scores{suffix(heads, name)}"] for name in heads}


def computes_in_half(model: keras.Model) -> bool:
    """Return whether the model computes in 16 bits."""
    return keras.backend.standardize_dtype(model.compute_dtype) != "float32"


def in_float32(model: keras.Model) -> keras.Model:
    """Return the model itself if it computes in float32, otherwise a copy that does.

    Nothing is lost, because weights are float32 under every mixed precision policy of Keras.
    """
    if all(layer.compute_dtype == "float32" for layer in _layers(model)):
        return model
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    copy.set_weights(model.get_weights())
    for layer in _layers(copy):
        layer.dtype_policy = "float32"
    return copy


def _layers(model):
    yield model
    for layer in model.layers:
        yield from _layers(layer) if isinstance(layer, keras.Model) else [layer]


@contextmanager
def inline_functions() -> Iterator[None]:
    """Inline nested functions, including those for XLA, into the graph that is traced in the block.

    Keras compiles grouped convolutions (ConvNeXt) with XLA for the sake of their gradient. TF Serving
    rejects that on CPUs by default, tf2onnx does not support it, and TensorFlow's own convolution is
    faster.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def write_labels(folder: Path, heads: Mapping[str, Head]) -> None:
    """Write `labels.txt` (`labels_NAME.txt` for each of several heads): one score name per line.

    Line breaks and backslashes in a name are escaped as in Python, because the line number is the
    column.
    """
    for name, head in heads.items():
        lines = "".join(f"{_LINE_BREAKING.sub(_escaped, label)}\n" for label in head.names)
        write_text(folder / f"labels{suffix(heads, name)}.txt", lines)


_LINE_BREAKING = re.compile(
    r"[\\\n\r\v\f\x1c-\x1e\x85\u2028\u2029]"
)  # what `str.splitlines` splits at


def _escaped(match):
    return match[0].encode("unicode_escape").decode()


# -- the SavedModel -------------------------------------------------------------------------------------


def write_saved_model(
    model: keras.Model,
    folder: Path,
    temperatures: Mapping[str, float] | None,
    typicality: Typicality | None = None,
) -> None:
    """Write the SavedModel that `exporter.saved_model` describes into an empty folder."""
    heads, framing = heads_of(model), framing_of(model)
    modality = modality_of(model)
    framing = modality.framing_for(framing, None)
    scorer, backbone = (
        scoring_model(model, temperatures, features=typicality is not None),
        backbone_of(model),
    )
    text, contents = tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.string, "bytes")
    prepared = tf.TensorSpec([None, *model.input_shape[1:]], modality.input_dtype)
    decode_all = modality.batch_decoder(framing)
    decode_one = None if decode_all else modality.decoder(framing)

    # Separate functions, so that all signatures share one graph of the network and one decoder.
    @partial(tf.function, autograph=False, input_signature=[contents])
    def decode(contents):
        if decode_all:
            return decode_all(contents)
        return _decode(contents, decode_one, prepared, modality.unreadable)

    @partial(tf.function, autograph=False, input_signature=[prepared, text])
    def answer(inputs, error):
        outputs, valid = scorer(inputs, training=False), error == ""
        result = {"error": error}
        for name, head in heads.items():
            end, names = suffix(heads, name), tf.constant([encode_text(one) for one in head.names])
            scores = tf.cast(outputs[f"scores{end}"], tf.float32)
            # Zeros, because JSON has no NaN.
            scores = tf.where(valid[:, None], scores, tf.zeros_like(scores))
            result[f"scores{end}"] = scores
            result[f"class_names{end}"] = tf.tile(names[None], [tf.shape(scores)[0], 1])
            if head.task == "single_label":
                label = tf.gather(names, tf.argmax(scores, axis=1))
                result[f"label{end}"] = tf.where(valid, label, "")
                result[f"score{end}"] = tf.reduce_max(scores, axis=1)
        if typicality is not None:
            likeness = tf.where(valid, _typicality(outputs[FEATURES], typicality), 0.0)
            result["typicality"] = likeness
            result["is_typical"] = valid & (likeness >= typicality.threshold)
        return result

    @partial(tf.function, autograph=False, input_signature=[prepared])
    def embed(inputs):
        return _pooled(backbone(inputs, training=False))

    with inline_functions():
        answer, embed = answer.get_concrete_function(), embed.get_concrete_function()

    def prepared_and(answer, prepare):
        return lambda *inputs: answer(*prepare(*inputs))

    def answer_bytes(contents):
        return answer(*decode(contents))

    def embed_bytes(contents):
        inputs, error = decode(contents)
        features, valid = embed(inputs), tf.expand_dims(error == "", 1)
        return {"features": tf.where(valid, features, tf.zeros_like(features)), "error": error}

    # Keras finds the variables that the functions use; `track` would write each of them twice.
    archive = keras.export.ExportArchive()
    for name, (specs, prepare) in modality.requests(framing).items():
        archive.add_endpoint(name, prepared_and(answer, prepare), input_signature=specs)
    archive.add_endpoint("serve_bytes", answer_bytes, input_signature=[contents])
    archive.add_endpoint("features", embed_bytes, input_signature=[contents])
    with quiet_tensorflow():  # its message names the temporary folder
        archive.write_out(str(folder), verbose=False)
    (folder / "assets").mkdir(exist_ok=True)
    write_labels(folder / "assets", heads)
    write_warmup(folder, _warmup_requests(modality, framing))


def _pooled(features):
    """Return a backbone's features as float32 [N, D]; not every backbone pools them."""
    if len(features.shape) > 2:
        features = tf.reduce_mean(features, axis=list(range(1, len(features.shape) - 1)))
    return tf.cast(features, tf.float32)


def _typicality(features, typicality: Typicality):
    """Return `Typicality.scores` of a backbone's features, in the graph."""
    features = _pooled(features)
    length = tf.maximum(tf.norm(features, axis=1, keepdims=True), 1e-12)
    cosines = tf.matmul(features / length, typicality.prototypes, transpose_b=True)
    return tf.math.top_k(cosines, typicality.neighbor).values[:, -1]


def _decode(contents, decode_one, spec, unreadable):
    """Decode examples [N] to (inputs of the model [N, …], error [N], "" for valid examples).

    Only tf.data can catch an error within a graph: it drops the example, and the others carry their row
    number. It also decodes in parallel.
    """
    count, shape = tf.shape(contents)[0], spec.shape[1:]

    def decode(row, content):
        return row, tf.ensure_shape(decode_one(content), shape)

    # A spare last row, because an empty batch has no shape. Unreadable examples take its values.
    spare = tf.data.Dataset.from_tensors((count, tf.zeros(shape, spec.dtype)))
    readable = tf.data.Dataset.from_tensor_slices((tf.range(count), contents))
    readable = readable.map(decode, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
    readable = readable.concatenate(spare).batch(tf.cast(count, tf.int64) + 1)
    rows, inputs = readable.get_single_element()
    # The position of each row among those that could be read, or of the spare one.
    position = tf.tensor_scatter_nd_update(
        tf.fill([count + 1], tf.size(rows) - 1), rows[:, None], tf.range(tf.size(rows))
    )[:count]
    error = tf.where(position == tf.size(rows) - 1, unreadable, "")
    return tf.ensure_shape(tf.gather(inputs, position), spec.shape), error


def check_signatures(
    model: keras.Model,
    folder: Path,
    examples,
    temperatures: Mapping[str, float] | None,
    typicality: Typicality | None = None,
) -> None:
    """Compare every signature with the Keras model on a few examples.

    Some networks amplify rounding, most of all on unfamiliar images. The tolerance therefore includes
    how much the Keras model's own scores differ between one example alone and a batch.

    Args:
        examples: decoded, see `Modality.trials`.

    Raises:
        ParityError: if outputs differ by more than rounding.
        InputError: if this CPU cannot compute the model without oneDNN.
    """
    signatures = tf.saved_model.load(str(folder)).signatures
    tolerance = HALF_ROUNDING if computes_in_half(model) else ROUNDING
    ask_keras = _scores_and_features(model, temperatures, typicality)
    modality = modality_of(model)
    framing = modality.framing_for(framing_of(model), None)
    trials = [modality.trial(example, framing) for example in examples]
    prepared = tf.stack([inputs for inputs, _ in trials])
    batch = ask_keras(prepared)
    for i, (_, requests) in enumerate(trials):
        expected = ask_keras(prepared[i : i + 1])
        requests = {**requests, "features": requests["serve_bytes"]}
        for name, request in requests.items():
            try:
                answer = signatures[name](**{k: tf.constant(v)[None] for k, v in request.items()})
            except tf.errors.UnimplementedError as error:  # grouped convolutions without oneDNN
                raise InputError(
                    f"TensorFlow cannot compute the exported model on this CPU: {first_line(error)}. Set "
                    "TF_ENABLE_ONEDNN_OPTS=1 in the environment, here and where the model is served."
                ) from None
            for output in expected.keys() & answer.keys():
                values = expected[output]
                rounding = _KERAS_ROUNDING * float(np.abs(batch[output][i] - values).max())
                limit = max(tolerance * max(1.0, float(np.abs(values).max())), rounding)
                difference = float(np.abs(answer[output].numpy() - values).max())
                if not difference <= limit:
                    raise ParityError(
                        f"Signature {name} differs from the Keras model by {difference:g} (more "
                        f"than {limit:g}). Nothing was exported. Please report this."
                    )


def features_of(model: keras.Model, inputs: np.ndarray) -> np.ndarray:
    """Return the pooled features that `features` serves, for model inputs: float32 [N, D]."""
    backbone = backbone_of(model)
    found = [
        np.asarray(_pooled(backbone(inputs[start : start + _BATCH], training=False)))
        for start in range(0, len(inputs), _BATCH)
    ]
    return np.concatenate(found)


def _scores_and_features(model, temperatures, typicality=None):
    """Return a function from images to the outputs of all signatures, float32, by name."""
    scorer, backbone = scoring_model(model, temperatures), backbone_of(model)

    def ask(images):
        features = np.asarray(_pooled(backbone(images, training=False)))
        scores = {name: np.asarray(x, "float32") for name, x in scorer(images).items()}
        if typicality is not None:
            scores["typicality"] = typicality.scores(features)
        return {"features": features, **scores}

    return ask


def serve_contents(
    folder: Path, contents: Sequence[bytes], batch_size: int = 32
) -> tuple[dict, np.ndarray]:
    """Call `serve_bytes` on the bytes of files.

    Returns:
        (output name → scores, float32 [N, C]; whether each could be read, bool [N]).
    """
    loaded = tf.saved_model.load(str(folder))  # its signatures do not keep it alive
    serve, answers = loaded.signatures["serve_bytes"], []
    for start in range(0, len(contents), batch_size):
        answers.append(serve(bytes=tf.constant(contents[start : start + batch_size])))
    outputs = {
        name: np.concatenate([answer[name].numpy() for answer in answers])
        for name in answers[0]
        if name == "error" or name.startswith("scores")
    }
    return outputs, outputs.pop("error") == b""


# -- warm-up --------------------------------------------------------------------------------------------


def write_warmup(folder: Path, requests: Iterable[tuple[str, Mapping[str, np.ndarray]]]) -> None:
    """Write requests that TF Serving runs before a new version is used, so that no client waits.

    They are TFRecords of `PredictionLog`, a message that only `tensorflow-serving-api` contains. Just
    six field numbers are needed, which Protocol Buffers never change, so the messages are encoded here;
    the tests read them with the real classes.

    Args:
        folder: of a SavedModel.
        requests: (signature, inputs by name); at most 1,000, TF Serving's limit.
    """
    (folder / WARMUP).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(os.fsencode(folder / WARMUP)) as writer:
        for signature, inputs in requests:
            writer.write(_prediction_log(signature, inputs))


def _warmup_requests(modality, framing):
    _, requests = modality.trial(modality.noise(framing)[0], framing)
    encoded = requests.pop("serve_bytes")
    for batch in _WARMUP_BATCHES:
        for signature in ("serve_bytes", "features"):
            yield signature, {"bytes": np.array([encoded["bytes"]] * batch, object)}
    for signature, request in requests.items():
        yield signature, {name: np.asarray(value)[None] for name, value in request.items()}


def _prediction_log(signature, inputs):
    request = _field(1, _field(3, signature.encode()))  # model_spec.signature_name
    for name, value in inputs.items():
        tensor = tf.make_tensor_proto(value).SerializeToString()
        request += _field(2, _field(1, name.encode()) + _field(2, tensor))  # an entry of a map
    return _field(6, _field(1, request))  # PredictionLog.predict_log.request


def _field(number, payload):
    """Encode a field of bytes, a string or a message: number and wire type 2, length, payload."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value):
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])
