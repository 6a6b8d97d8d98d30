"""The SavedModel for TF Serving, which decodes, rotates, resizes and normalizes images itself."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_transfer.export.parity import HALF_ROUNDING, ROUNDING, ParityError
from keras_transfer.modalities.image.prepare import fit_center_in_graph, resize_and_crop
from keras_transfer.models.builders import by_head, heads_of
from keras_transfer.models.framing import framing_of
from keras_transfer.models.heads import Head
from keras_transfer.models.stages import backbone_of
from keras_transfer.utils.console import quiet_tensorflow
from keras_transfer.utils.files import encode_text, write_text

SIGNATURES = ("serving_default", "serve_uint8", "serve_bytes", "features")
UNREADABLE = "cannot be read as an image (JPEG, PNG, GIF, BMP or WebP)"
NOT_FINITE = "has values that are not finite"
WARMUP = Path("assets.extra") / "tf_serving_warmup_requests"
_WARMUP_BATCHES = (1, 8)
_KERAS_ROUNDING = 10  # factor allowed over the difference of the Keras model from itself


# -- the model that is exported, in any format ----------------------------------------------------------


def scoring_model(
    model: keras.Model, temperatures: Mapping[str, float] | None = None
) -> keras.Model:
    """Return a model with shared weights that turns images into scores.

    Args:
        model: from `build_model`.
        temperatures: head name → temperature that its logits are divided by (Guo et al. 2017,
            arXiv:1706.04599); 1 by default.

    Returns:
        A model from `images`, uint8 [N, S, S, 3], to a dict of the heads' `Head.scores`, [N, C]:
        `scores` for a single head, `scores_NAME` for each of several.
    """
    heads, temperatures = heads_of(model), temperatures or {}
    inputs = keras.Input(model.input_shape[1:], dtype="uint8", name="images")
    outputs = by_head(heads, model(inputs, training=False))
    scores = {}
    for name, head in heads.items():
        raw = outputs[name]
        if temperatures.get(name, 1.0) != 1.0:
            raw = raw / temperatures[name]
        scores[f"scores{suffix(heads, name)}"] = head.scores(raw)
    return keras.Model(inputs, scores, name="answers")


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
    model: keras.Model, folder: Path, temperatures: Mapping[str, float] | None
) -> None:
    """Write the SavedModel that `exporter.saved_model` describes into an empty folder."""
    heads, (size, crop) = heads_of(model), framing_of(model).square
    scorer, backbone = scoring_model(model, temperatures), backbone_of(model)
    text, contents = tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.string, "bytes")
    prepared = tf.TensorSpec([None, size, size, 3], tf.uint8)

    # Separate functions, so that all signatures share one graph of the network and one decoder.
    @partial(tf.function, autograph=False, input_signature=[contents])
    def decode(contents):
        return _decode(contents, size, crop)

    @partial(tf.function, autograph=False, input_signature=[prepared, text])
    def answer(images, error):
        outputs, valid = scorer(images, training=False), error == ""
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
        return result

    @partial(tf.function, autograph=False, input_signature=[prepared])
    def embed(images):
        features = backbone(images, training=False)
        if len(features.shape) > 2:  # a backbone without pooling
            features = tf.reduce_mean(features, axis=list(range(1, len(features.shape) - 1)))
        return tf.cast(features, tf.float32)

    with inline_functions():
        answer, embed = answer.get_concrete_function(), embed.get_concrete_function()

    def answer_floats(images):
        # RGB 0–255, as in training; images scaled to 0–1 would look black.
        valid = tf.reduce_all(tf.math.is_finite(images), axis=[1, 2, 3])
        images = tf.where(valid[:, None, None, None], images, tf.zeros_like(images))
        return answer(resize_and_crop(images, size, crop), tf.where(valid, "", NOT_FINITE))

    def answer_pixels(images):
        return answer(resize_and_crop(images, size, crop), tf.fill(tf.shape(images)[:1], ""))

    def answer_bytes(contents):
        return answer(*decode(contents))

    def embed_bytes(contents):
        images, error = decode(contents)
        features, valid = embed(images), tf.expand_dims(error == "", 1)
        return {"features": tf.where(valid, features, tf.zeros_like(features)), "error": error}

    any_size = [None, None, None, 3]
    # Keras finds the variables that the functions use; `track` would write each of them twice.
    archive = keras.export.ExportArchive()
    for function, spec, name in (
        (answer_floats, tf.TensorSpec(any_size, tf.float32, "images"), "serving_default"),
        (answer_pixels, tf.TensorSpec(any_size, tf.uint8, "images"), "serve_uint8"),
        (answer_bytes, contents, "serve_bytes"),
        (embed_bytes, contents, "features"),
    ):
        archive.add_endpoint(name, function, input_signature=[spec])
    with quiet_tensorflow():  # its message names the temporary folder
        archive.write_out(str(folder), verbose=False)
    (folder / "assets").mkdir(exist_ok=True)
    write_labels(folder / "assets", heads)
    write_warmup(folder, _warmup_requests(size))


def _decode(contents, size, crop):
    """Decode images [N] to (uint8 [N, size, size, 3], error [N], "" for valid images).

    Only tf.data can catch an error within a graph: it drops the image, and the others carry their row
    number. It also decodes in parallel.
    """
    count = tf.shape(contents)[0]

    def decode(row, content):
        return row, fit_center_in_graph(content, size, crop)

    # A spare last row, because an empty batch has no shape. Unreadable images take its pixels.
    spare = tf.data.Dataset.from_tensors((count, tf.zeros([size, size, 3], tf.uint8)))
    readable = tf.data.Dataset.from_tensor_slices((tf.range(count), contents))
    readable = readable.map(decode, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
    readable = readable.concatenate(spare).batch(tf.cast(count, tf.int64) + 1)
    rows, images = readable.get_single_element()
    # The position of each row among those that could be read, or of the spare one.
    position = tf.tensor_scatter_nd_update(
        tf.fill([count + 1], tf.size(rows) - 1), rows[:, None], tf.range(tf.size(rows))
    )[:count]
    error = tf.where(position == tf.size(rows) - 1, UNREADABLE, "")
    return tf.ensure_shape(tf.gather(images, position), [None, size, size, 3]), error


def check_signatures(
    model: keras.Model, folder: Path, images, temperatures: Mapping[str, float] | None
) -> None:
    """Compare every signature with the Keras model on a few images.

    Some networks amplify rounding, most of all on unfamiliar images. The tolerance therefore includes
    how much the Keras model's own scores differ between one image alone and a batch.

    Args:
        images: each uint8 [H, W, 3].

    Raises:
        ParityError: if outputs differ by more than rounding.
    """
    signatures = tf.saved_model.load(str(folder)).signatures
    tolerance = HALF_ROUNDING if computes_in_half(model) else ROUNDING
    ask_keras = _scores_and_features(model, temperatures)
    square = framing_of(model).square
    resized = tf.stack([resize_and_crop(image, *square) for image in images])
    batch = ask_keras(resized)
    for i, image in enumerate(images):
        expected, encoded = ask_keras(resized[i : i + 1]), tf.io.encode_png(image)[None]
        for name, request in (
            ("serving_default", {"images": tf.cast(image[None], tf.float32)}),
            ("serve_uint8", {"images": tf.constant(image[None])}),
            ("serve_bytes", {"bytes": encoded}),
            ("features", {"bytes": encoded}),
        ):
            answer = signatures[name](**request)
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


def _scores_and_features(model, temperatures):
    """Return a function from images to the outputs of all signatures, float32, by name."""
    scorer, backbone = scoring_model(model, temperatures), backbone_of(model)

    def ask(images):
        features = np.asarray(tf.cast(backbone(images, training=False), tf.float32))
        features = features.reshape(len(features), -1, features.shape[-1]).mean(axis=1)
        scores = {name: np.asarray(x, "float32") for name, x in scorer(images).items()}
        return {"features": features, **scores}

    return ask


def serve_files(folder: Path, files, batch_size: int = 32) -> tuple[dict, np.ndarray]:
    """Call `serve_bytes` on files.

    Returns:
        (output name → scores, float32 [N, C]; whether each file could be read, bool [N]).
    """
    loaded = tf.saved_model.load(str(folder))  # its signatures do not keep it alive
    serve, answers = loaded.signatures["serve_bytes"], []
    for start in range(0, len(files), batch_size):
        contents = [Path(file).read_bytes() for file in files[start : start + batch_size]]
        answers.append(serve(bytes=tf.constant(contents)))
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


def _warmup_requests(size):
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype="uint8")
    encoded = tf.io.encode_jpeg(image).numpy()
    for batch in _WARMUP_BATCHES:
        for signature in ("serve_bytes", "features"):
            yield signature, {"bytes": np.array([encoded] * batch, object)}
    yield "serving_default", {"images": image[None].astype("float32")}
    yield "serve_uint8", {"images": image[None]}


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
