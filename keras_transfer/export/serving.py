"""A SavedModel for TF Serving: decoding, turning, resizing and normalising are inside of it."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_transfer.export.parity import HALF_ROUNDING, ROUNDING, ParityError
from keras_transfer.export.signatures import answering, inlined, suffix, write_labels
from keras_transfer.export.warmup import write_warmup
from keras_transfer.modalities.image.prepare import resize_and_crop
from keras_transfer.modalities.image.serving import decode_in_graph
from keras_transfer.models.builders import heads_of
from keras_transfer.models.stages import backbone_of
from keras_transfer.utils.console import quiet_tensorflow

SIGNATURES = ("serving_default", "serve_uint8", "serve_bytes", "features")
UNREADABLE = "cannot be read as an image (JPEG, PNG, GIF, BMP or WebP)"
NOT_FINITE = "has values that are not finite"
_WARM_UP_BATCHES = (1, 8)
_TIMES_OWN = 10  # how much more than the Keras model with itself a signature may differ from it


def write_saved_model(
    model: keras.Model, folder: Path, temperatures: Mapping[str, float] | None
) -> None:
    """Writes the SavedModel that `saved_model` describes into an empty folder."""
    heads, size = heads_of(model), model.input_shape[1]
    answers, backbone = answering(model, temperatures), backbone_of(model)
    rows, contents = tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.string, "bytes")

    # Functions of their own: all signatures share one graph of the network and one of the decoder.
    @partial(tf.function, autograph=False, input_signature=[contents])
    def decoded(contents):
        return _decoded(contents, size)

    @partial(
        tf.function,
        autograph=False,
        input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8), rows],
    )
    def answer(images, error):
        scores, fine = answers(images, training=False), error == ""
        result = {"error": error}
        for name, head in heads.items():
            end, names = suffix(heads, name), tf.constant(head.names)
            of_head = tf.cast(scores[f"scores{end}"], tf.float32)
            # Zeros, for JSON has no NaN.
            of_head = tf.where(fine[:, None], of_head, tf.zeros_like(of_head))
            result[f"scores{end}"] = of_head
            result[f"class_names{end}"] = tf.tile(names[None], [tf.shape(of_head)[0], 1])
            if head.task == "single_label":
                label = tf.gather(names, tf.argmax(of_head, axis=1))
                result[f"label{end}"] = tf.where(fine, label, "")
                result[f"score{end}"] = tf.reduce_max(of_head, axis=1)
        return result

    @partial(tf.function, autograph=False, input_signature=[answer.input_signature[0]])
    def embed(images):
        features = backbone(images, training=False)
        if len(features.shape) > 2:  # a backbone without pooling
            features = tf.reduce_mean(features, axis=list(range(1, len(features.shape) - 1)))
        return tf.cast(features, tf.float32)

    with inlined():
        answer, embed = answer.get_concrete_function(), embed.get_concrete_function()

    def answer_floats(images):
        fine = tf.reduce_all(tf.math.is_finite(images), axis=[1, 2, 3])
        images = tf.where(fine[:, None, None, None], images, tf.zeros_like(images))
        return answer(resize_and_crop(images, size), tf.where(fine, "", NOT_FINITE))

    def answer_pixels(images):
        none = tf.fill(tf.shape(images)[:1], "")
        return answer(resize_and_crop(images, size), none)

    def answer_bytes(contents):
        return answer(*decoded(contents))

    def embed_bytes(contents):
        images, error = decoded(contents)
        features, fine = embed(images), tf.expand_dims(error == "", 1)
        return {"features": tf.where(fine, features, tf.zeros_like(features)), "error": error}

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
    with quiet_tensorflow():  # it names the folder, which is renamed
        archive.write_out(str(folder), verbose=False)
    (folder / "assets").mkdir(exist_ok=True)
    write_labels(folder / "assets", heads)
    write_warmup(folder, _warm_up(size))


def _decoded(contents, size):
    """Encoded images [N] → (uint8 [N, size, size, 3], what is wrong with each, "" if nothing).

    Nothing in a graph catches an error but tf.data, which leaves such an image out; the others carry
    their row with them. Decoding goes on side by side too.
    """
    count = tf.shape(contents)[0]

    def decode(row, content):
        return row, resize_and_crop(decode_in_graph(content), size)

    # One more row, that is always there: a batch of nothing has no shape.
    spare = tf.data.Dataset.from_tensors((count, tf.zeros([size, size, 3], tf.uint8)))
    readable = tf.data.Dataset.from_tensor_slices((tf.range(count), contents))
    readable = readable.map(decode, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
    readable = readable.concatenate(spare).batch(tf.cast(count, tf.int64) + 1)
    rows, images = readable.get_single_element()
    # Where each row lies among those that could be read; the spare, which comes last, for the others.
    place = tf.tensor_scatter_nd_update(
        tf.fill([count + 1], tf.size(rows) - 1), rows[:, None], tf.range(tf.size(rows))
    )[:count]
    error = tf.where(place == tf.size(rows) - 1, UNREADABLE, "")
    return tf.ensure_shape(tf.gather(images, place), [None, size, size, 3]), error


def _warm_up(size):
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype="uint8")
    encoded = tf.io.encode_jpeg(image).numpy()
    for batch in _WARM_UP_BATCHES:
        for signature in ("serve_bytes", "features"):
            yield signature, {"bytes": np.array([encoded] * batch, object)}
    yield "serving_default", {"images": image[None].astype("float32")}
    yield "serve_uint8", {"images": image[None]}


def check_signatures(
    model: keras.Model, folder: Path, images, temperatures: Mapping[str, float] | None
) -> None:
    """Asks every signature for the same images as the Keras model.

    Some networks make much of rounding, most of all on images unlike those they know: what the Keras
    model's own answers to an image alone and to several at once differ by is held against nobody.

    Args:
        images: each uint8 [H, W, 3].

    Raises:
        ParityError: answers differ by more than rounding.
    """
    signatures = tf.saved_model.load(str(folder)).signatures
    tolerance = HALF_ROUNDING if in_half(model) else ROUNDING
    ask = _scores_and_features(model, temperatures)
    resized = tf.stack([resize_and_crop(image, model.input_shape[1]) for image in images])
    at_once = ask(resized)
    for i, image in enumerate(images):
        wanted, encoded = ask(resized[i : i + 1]), tf.io.encode_png(image)[None]
        for name, request in (
            ("serving_default", {"images": tf.cast(image[None], tf.float32)}),
            ("serve_uint8", {"images": tf.constant(image[None])}),
            ("serve_bytes", {"bytes": encoded}),
            ("features", {"bytes": encoded}),
        ):
            answer = signatures[name](**request)
            for output in wanted.keys() & answer.keys():
                values = wanted[output]
                own = float(np.abs(at_once[output][i] - values).max())
                most = max(tolerance * max(1.0, float(np.abs(values).max())), _TIMES_OWN * own)
                difference = float(np.abs(answer[output].numpy() - values).max())
                if not difference <= most:
                    raise ParityError(
                        f"Signature {name} differs from the Keras model by {difference:g} (more "
                        f"than {most:g}): nothing was exported. Please report this."
                    )


def _scores_and_features(model, temperatures):
    """A function from images to what the signatures give of them, float32, by name."""
    answers, backbone = answering(model, temperatures), backbone_of(model)

    def ask(images):
        features = np.asarray(tf.cast(backbone(images, training=False), tf.float32))
        features = features.reshape(len(features), -1, features.shape[-1]).mean(axis=1)
        scores = {name: np.asarray(x, "float32") for name, x in answers(images).items()}
        return {"features": features, **scores}

    return ask


def in_half(model: keras.Model) -> bool:
    """Whether the model computes in 16 bits."""
    return keras.backend.standardize_dtype(model.compute_dtype) != "float32"


def ask_files(folder: Path, files, batch_size: int = 32) -> tuple[dict, np.ndarray]:
    """Asks `serve_bytes` for files.

    Returns:
        (name of each output of scores → float32 [N, C], which rows were answered, bool [N]).
    """
    loaded = tf.saved_model.load(str(folder))  # kept: its signatures do not keep it alive
    serve, parts = loaded.signatures["serve_bytes"], []
    for start in range(0, len(files), batch_size):
        contents = [Path(file).read_bytes() for file in files[start : start + batch_size]]
        parts.append(serve(bytes=tf.constant(contents)))
    joined = {
        name: np.concatenate([part[name].numpy() for part in parts])
        for name in parts[0]
        if name == "error" or name.startswith("scores")
    }
    return joined, joined.pop("error") == b""
