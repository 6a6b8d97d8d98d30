"""Exports answer like the Keras model, in processes that never heard of Keras."""

import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_transfer import export
from keras_transfer.builders import build_model
from keras_transfer.data.transforms import resize_and_crop
from keras_transfer.demo import small_backbone
from keras_transfer.errors import InputError
from keras_transfer.heads import Classification, MultiLabel


@pytest.fixture
def model():
    keras.utils.set_random_seed(3)
    return build_model(small_backbone(), Classification(["ant", "bee", "füße"]), image_size=32)


@pytest.fixture
def pictures(rng):
    return rng.integers(0, 256, (2, 50, 70, 3), dtype="uint8")


def test_every_signature_gives_the_keras_models_scores(model, pictures, tmp_path):
    folder = export.saved_model(model, tmp_path / "serving" / "1")
    resized = resize_and_crop(pictures, 32)
    expected = np.asarray(model.layers[-1].head.scores(model(resized)))
    signatures = tf.saved_model.load(str(folder)).signatures
    encoded = tf.stack([tf.io.encode_png(p) for p in pictures])
    for name, request in {
        "serving_default": {"pictures": tf.cast(pictures, tf.float32)},
        "serve_uint8": {"pictures": tf.constant(pictures)},
        "serve_bytes": {"bytes": encoded},
    }.items():
        answer = signatures[name](**request)
        assert answer["scores"].dtype == tf.float32
        np.testing.assert_allclose(answer["scores"], expected, atol=1e-5)
        labels = [s.decode() for s in answer["label"].numpy()]
        assert labels == [["ant", "bee", "füße"][i] for i in expected.argmax(1)]
        np.testing.assert_allclose(answer["score"], expected.max(1), atol=1e-5)
        assert answer["class_names"].shape == (2, 3)


def test_multi_label_has_scores_and_names(pictures, tmp_path):
    model = build_model(small_backbone(), MultiLabel(["wings", "legs"]), image_size=32)
    folder = export.saved_model(model, tmp_path / "1")
    answer = tf.saved_model.load(str(folder)).signatures["serve_uint8"](pictures=pictures)
    assert set(answer) == {"scores", "class_names"}


def test_pictures_of_different_sizes_in_one_request(model, rng, tmp_path):
    folder = export.saved_model(model, tmp_path / "1")
    sizes = [(20, 90), (64, 64), (200, 33)]
    pictures = [rng.integers(0, 256, (*s, 3), dtype="uint8") for s in sizes]
    serve = tf.saved_model.load(str(folder)).signatures["serve_bytes"]
    together = serve(bytes=tf.stack([tf.io.encode_png(p) for p in pictures]))["scores"]
    for i, picture in enumerate(pictures):
        alone = serve(bytes=tf.io.encode_png(picture)[None])["scores"]
        np.testing.assert_allclose(together[i], alone[0], atol=1e-5)


def test_mixed_precision_gives_float32(pictures, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = build_model(small_backbone(), Classification("ab"), image_size=32)
    folder = export.saved_model(model, tmp_path / "1")
    answer = tf.saved_model.load(str(folder)).signatures["serve_uint8"](pictures=pictures)
    assert answer["scores"].dtype == tf.float32


def test_an_export_that_differs_is_refused(model, tmp_path, monkeypatch):
    write = export._write

    def write_another(model, folder):
        model.get_layer("output").bias.assign([5.0, 0.0, 0.0])
        write(model, folder)
        model.get_layer("output").bias.assign([0.0, 0.0, 0.0])

    monkeypatch.setattr(export, "_write", write_another)
    with pytest.raises(export.ParityError, match="differs from the Keras model"):
        export.saved_model(model, tmp_path / "serving" / "1")
    assert list((tmp_path / "serving").iterdir()) == []


def test_a_version_is_never_overwritten(model, tmp_path):
    (tmp_path / "1").mkdir()
    with pytest.raises(InputError, match="exists"):
        export.saved_model(model, tmp_path / "1")


# TensorFlow imports Keras where it finds it, so this process must not find it.
WITHOUT_KERAS = """
import importlib.machinery
import sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.split(".")[0] in ("keras", "keras_transfer")
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path = [Finder if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
import json
import tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serve_bytes"]
answer = serve(bytes=tf.constant([open(path, "rb").read() for path in sys.argv[2:]]))
assert not {"keras", "keras_transfer"} & set(sys.modules)
print(json.dumps([s.decode() for s in answer["label"].numpy()]))
print(json.dumps(answer["scores"].numpy().tolist()))
"""


def served_without_keras(folder, *paths):
    """(labels, scores) from a process that has no Keras."""
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERAS, str(folder), *map(str, paths)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_process_without_keras_answers(model, pictures, tmp_path):
    folder = export.saved_model(model, tmp_path / "1")
    (tmp_path / "p.png").write_bytes(tf.io.encode_png(pictures[0]).numpy())
    labels, scores = served_without_keras(folder, tmp_path / "p.png")
    expected = np.asarray(model.layers[-1].head.scores(model(resize_and_crop(pictures[:1], 32))))
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert labels == [["ant", "bee", "füße"][int(expected.argmax())]]


def test_requests_in_tf_servings_messages(model, pictures, tmp_path):
    """The request a TF Serving client sends, taken apart as the server does."""
    from tensorflow_serving.apis import predict_pb2

    folder = export.saved_model(model, tmp_path / "1")
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "flowers"
    request.model_spec.signature_name = "serve_bytes"
    encoded = [tf.io.encode_png(p).numpy() for p in pictures]
    request.inputs["bytes"].CopyFrom(tf.make_tensor_proto(encoded))
    received = predict_pb2.PredictRequest.FromString(request.SerializeToString())

    loaded = tf.saved_model.load(str(folder))
    signature = loaded.signatures[received.model_spec.signature_name]
    inputs = {key: tf.constant(tf.make_ndarray(proto)) for key, proto in received.inputs.items()}
    response = predict_pb2.PredictResponse()
    for key, value in signature(**inputs).items():
        response.outputs[key].CopyFrom(tf.make_tensor_proto(value.numpy()))
    assert tf.make_ndarray(response.outputs["scores"]).shape == (2, 3)
    assert tf.make_ndarray(response.outputs["label"])[0] in (b"ant", b"bee", "füße".encode())


def test_saved_model_cli_sees_the_signatures(model, tmp_path):
    folder = export.saved_model(model, tmp_path / "1")
    tool = shutil.which("saved_model_cli", path=str(sys.prefix) + "/bin")
    shown = subprocess.run(
        [tool, "show", "--dir", folder, "--tag_set", "serve", "--signature_def", "serve_bytes"],
        capture_output=True,
        text=True,
    ).stdout
    assert "inputs['bytes'] tensor_info" in shown and "DT_STRING" in shown
    for output in ("label", "score", "scores", "class_names"):
        assert f"outputs['{output}'] tensor_info" in shown
