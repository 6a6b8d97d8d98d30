"""From a trained model to a SavedModel that TF Serving serves."""

import os
import shutil
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_transfer.data.serving import decode_in_graph
from keras_transfer.data.transforms import resize_and_crop
from keras_transfer.errors import InputError
from keras_transfer.heads import by_head, heads_of


class ParityError(RuntimeError):
    """The exported model does not answer like the Keras model; nothing was exported."""


def saved_model(model: keras.Model, out, *, pictures=None) -> Path:
    """Exports a SavedModel with normalisation, resizing and decoding inside.

    Signatures (all outputs float32 or string, N rows each):

    - `serving_default(pictures)`: float32 [N, H, W, 3], RGB 0–255, any size.
    - `serve_uint8(pictures)`: the same for uint8.
    - `serve_bytes(bytes)`: string [N], each an encoded JPEG, PNG, GIF or plain BMP or WebP file,
      turned as its EXIF orientation says, see `data.serving`.

    Each gives `scores` [N, C] (of a regression model the values) and `class_names` [N, C]; a
    single-label model also `label` [N] and `score` [N]. A model with several heads gives the same
    for each, with the head's name: `scores_kind`, `class_names_kind`, … TF Serving's REST interface takes bytes as `{"b64": "…"}`.

    Args:
        model: from `build_model`.
        out: the version directory, e.g. `serving/flowers/1`; must not exist.
        pictures: a few uint8 pictures [H, W, 3] for the parity check; by default noise.

    Returns:
        `out`. It appears only after the exported model answered like the Keras model.

    Raises:
        InputError: `out` exists already.
        ParityError: scores differ by more than rounding.
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists: choose another version directory for the export.")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        _write(model, temporary)
        _check_parity(model, temporary, _noise() if pictures is None else pictures)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _write(model, folder):
    size = model.input_shape[1]

    def answer(pictures):
        result = {}
        for suffix, head, scores in _scores(model, pictures):
            names, count = tf.constant(head.names), tf.shape(scores)[0]
            result[f"scores{suffix}"] = scores
            result[f"class_names{suffix}"] = tf.tile(names[None], [count, 1])
            if head.task == "single_label":
                result[f"label{suffix}"] = tf.gather(names, tf.argmax(scores, axis=1))
                result[f"score{suffix}"] = tf.reduce_max(scores, axis=1)
        return result

    def decode(contents):
        return resize_and_crop(decode_in_graph(contents), size)

    def answer_bytes(contents):
        pictures = tf.map_fn(
            decode, contents, fn_output_signature=tf.TensorSpec([size, size, 3], tf.uint8)
        )
        return answer(pictures)

    def answer_pictures(pictures):
        return answer(resize_and_crop(pictures, size))

    any_size = [None, None, None, 3]
    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, function, spec in (
        ("serving_default", answer_pictures, tf.TensorSpec(any_size, tf.float32, "pictures")),
        ("serve_uint8", answer_pictures, tf.TensorSpec(any_size, tf.uint8, "pictures")),
        ("serve_bytes", answer_bytes, tf.TensorSpec([None], tf.string, "bytes")),
    ):
        archive.add_endpoint(name, function, input_signature=[spec])
    archive.write_out(str(folder), verbose=False)


def _scores(model, pictures):
    """For each head (what ends the names of its outputs, the head, its scores float32 [N, C])."""
    heads = heads_of(model)
    outputs = by_head(heads, model(pictures, training=False))
    for name, head in heads.items():
        suffix = f"_{name}" if len(heads) > 1 else ""
        yield suffix, head, tf.cast(head.scores(outputs[name]), tf.float32)


def _check_parity(model, folder, pictures):
    """Asks every signature of the exported model for the same pictures as the Keras model."""
    signatures = tf.saved_model.load(str(folder)).signatures
    half = keras.backend.standardize_dtype(model.compute_dtype) != "float32"
    tolerance = 2e-2 if half else 1e-4
    for picture in pictures:
        resized = resize_and_crop(picture, model.input_shape[1])[None]
        expected = [(suffix, scores.numpy()) for suffix, _, scores in _scores(model, resized)]
        answers = {
            "serving_default": {"pictures": tf.cast(picture[None], tf.float32)},
            "serve_uint8": {"pictures": tf.constant(picture[None])},
            "serve_bytes": {"bytes": tf.io.encode_png(picture)[None]},
        }
        for name, request in answers.items():
            answer = signatures[name](**request)
            for suffix, wanted in expected:
                difference = float(np.abs(answer[f"scores{suffix}"].numpy() - wanted).max())
                if not difference <= tolerance * max(1.0, float(np.abs(wanted).max())):
                    raise ParityError(
                        f"Signature {name} differs from the Keras model by {difference:g} (more "
                        f"than {tolerance:g}): nothing was exported. Please report this."
                    )


def _noise():
    return np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), dtype="uint8")
