"""SavedModels return the scores of the Keras model, also in processes without Keras."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import tiny_backbone
from tensorflow.core.protobuf import saved_model_pb2

from keras_transfer import export
from keras_transfer.errors import InputError
from keras_transfer.export import exporter as exporting
from keras_transfer.export import serving
from keras_transfer.modalities.image.modality import MODALITY
from keras_transfer.modalities.image.prepare import resize_and_crop
from keras_transfer.modalities.image.requests import NOT_FINITE
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification, MultiLabel
from keras_transfer.models.stages import Backbone
from keras_transfer.utils.files import new_folder

pytestmark = pytest.mark.compat


def new_model():
    keras.utils.set_random_seed(3)
    return build_model(tiny_backbone(), Classification(["ant", "bee", "füße"]), image_size=32)


@pytest.fixture
def model():
    return new_model()


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """Return (an export, the files that a server saw each time it looked for versions).

    Like TF Serving, it lists the folder repeatedly and loads each new number.
    """
    base, done, seen = tmp_path_factory.mktemp("serving") / "models", Event(), []
    base.mkdir()

    def look_on():
        while True:
            last = done.is_set()
            for version in (p for p in base.iterdir() if p.name.isdecimal()):
                seen.append(sorted(str(f.relative_to(version)) for f in version.rglob("*")))
            if last:
                return

    reader = Thread(target=look_on)
    reader.start()
    try:
        folder = export.saved_model(new_model(), base / "1")
    finally:
        done.set()
        reader.join()
    return folder, seen


@pytest.fixture(scope="module")
def exported(watched):
    """Return an export of `model`, its signatures, and the loaded object."""
    folder, _ = watched
    loaded = tf.saved_model.load(str(folder))
    return folder, loaded.signatures, loaded  # signatures do not keep the loaded object alive


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (2, 50, 70, 3), dtype="uint8")


def test_every_signature_returns_the_scores_of_the_keras_model(exported, model, images):
    _, signatures, _ = exported
    resized = resize_and_crop(images, 32)
    expected = np.asarray(model.layers[-1].head.scores(model(resized)))
    encoded = tf.stack([tf.io.encode_png(p) for p in images])
    for name, request in {
        "serving_default": {"images": tf.cast(images, tf.float32)},
        "serve_uint8": {"images": tf.constant(images)},
        "serve_bytes": {"bytes": encoded},
    }.items():
        answer = signatures[name](**request)
        assert answer["scores"].dtype == tf.float32
        np.testing.assert_allclose(answer["scores"], expected, atol=1e-5)
        labels = [s.decode() for s in answer["label"].numpy()]
        assert labels == [["ant", "bee", "füße"][i] for i in expected.argmax(1)]
        np.testing.assert_allclose(answer["score"], expected.max(1), atol=1e-5)
        assert answer["class_names"].shape == (2, 3)


def test_multi_label_has_scores_and_names_and_its_temperature(images, tmp_path):
    model = build_model(tiny_backbone(), MultiLabel(["wings", "legs"]), image_size=32)
    folder = export.saved_model(model, tmp_path / "1", temperatures={"output": 2.5})
    loaded = tf.saved_model.load(str(folder))
    answer = loaded.signatures["serve_uint8"](images=images)
    assert set(answer) == {"scores", "class_names", "error"}
    logits = np.asarray(model(resize_and_crop(images, 32)), "float64")
    np.testing.assert_allclose(answer["scores"], 1 / (1 + np.exp(-logits / 2.5)), atol=1e-5)


def test_images_of_different_sizes_in_one_request(exported, rng):
    _, signatures, _ = exported
    sizes = [(20, 90), (64, 64), (200, 33)]
    images = [rng.integers(0, 256, (*s, 3), dtype="uint8") for s in sizes]
    serve = signatures["serve_bytes"]
    together = serve(bytes=tf.stack([tf.io.encode_png(p) for p in images]))["scores"]
    for i, image in enumerate(images):
        alone = serve(bytes=tf.io.encode_png(image)[None])["scores"]
        np.testing.assert_allclose(together[i], alone[0], atol=1e-5)


def test_mixed_precision_gives_float32(images, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = build_model(tiny_backbone(), Classification("ab"), image_size=32)
    folder = export.saved_model(model, tmp_path / "1")
    answer = tf.saved_model.load(str(folder)).signatures["serve_uint8"](images=images)
    assert answer["scores"].dtype == tf.float32


def test_nothing_is_left_for_xla(tmp_path):
    """TF Serving has no XLA on CPUs by default; Keras compiles grouped convolutions with it."""
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 3, groups=8)(keras.layers.Conv2D(8, 4, strides=4)(inputs))
    backbone = Backbone(inputs, keras.layers.GlobalAveragePooling2D()(x), name="grouped")
    model = build_model(backbone, Classification("ab"), image_size=32)
    folder = export.saved_model(model, tmp_path / "1")
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    functions = saved.meta_graphs[0].graph_def.library.function
    compiled = [f.signature.name for f in functions if f.attr["_XlaMustCompile"].b]
    assert len(functions) > 4 and compiled == []


def test_an_export_that_differs_is_refused(exported, model, tmp_path, monkeypatch):
    of_another, _, _ = exported

    def write_another(model, folder, *options):
        shutil.copytree(of_another, folder, dirs_exist_ok=True)

    model.get_layer("output").bias.assign([5.0, 0.0, 0.0])
    monkeypatch.setattr(exporting, "write_saved_model", write_another)
    with pytest.raises(export.ParityError, match="differs from the Keras model"):
        export.saved_model(model, tmp_path / "serving" / "1")
    assert list((tmp_path / "serving").iterdir()) == []


def test_rounding_of_the_keras_model_itself_is_tolerated(exported, model, images, monkeypatch):
    folder, _, _ = exported
    model.get_layer("output").bias.assign([0.1, 0.0, 0.0])  # scores differ by a few hundredths
    with pytest.raises(export.ParityError):
        serving.check_signatures(model, folder, images, None)
    ask = serving._scores_and_features(model, None)

    def chaotic(images):  # a batch gives other scores than single images
        return {name: values + 0.01 * len(images) for name, values in ask(images).items()}

    monkeypatch.setattr(serving, "_scores_and_features", lambda *_: chaotic)
    serving.check_signatures(model, folder, images, None)


def test_a_version_is_never_overwritten(model, tmp_path):
    (tmp_path / "1").mkdir()
    with pytest.raises(InputError, match="exists"):
        export.saved_model(model, tmp_path / "1")


def test_a_broken_image_is_marked_and_the_others_are_answered(exported, images):
    _, signatures, _ = exported
    good = [tf.io.encode_png(p).numpy() for p in images]
    mixed = [good[0], b"no image", good[1], tf.io.encode_jpeg(images[0]).numpy()[:90], b""]
    serve, embed = signatures["serve_bytes"], signatures["features"]
    alone, answer = serve(bytes=tf.constant(good)), serve(bytes=tf.constant(mixed))
    assert [e.decode() for e in answer["error"].numpy()] == [
        "",
        MODALITY.unreadable,
        "",
        *[MODALITY.unreadable] * 2,
    ]
    fine, broken = [0, 2], [1, 3, 4]
    for name in ("scores", "score"):
        np.testing.assert_allclose(answer[name].numpy()[fine], alone[name], atol=1e-6)
        assert not answer[name].numpy()[broken].any()
    assert answer["label"].numpy()[fine].tolist() == alone["label"].numpy().tolist()
    assert answer["label"].numpy()[broken].tolist() == [b""] * 3
    features = embed(bytes=tf.constant(mixed))
    assert [bool(e) for e in features["error"].numpy()] == [False, True, False, True, True]
    expected = embed(bytes=tf.constant(good))["features"].numpy()
    np.testing.assert_allclose(features["features"].numpy()[fine], expected, atol=1e-5)
    assert expected.any() and not features["features"].numpy()[broken].any()
    # Every image of a request may be broken.
    assert serve(bytes=tf.constant([b"x"]))["error"].numpy().tolist() == [
        MODALITY.unreadable.encode()
    ]


def test_floats_that_are_not_finite_are_marked(exported, images):
    _, signatures, _ = exported
    serve = signatures["serving_default"]
    floats = images.astype("float32")
    alone = serve(images=floats[1:])["scores"].numpy()
    floats[0, 3, 4, 0] = np.nan
    answer = serve(images=floats)
    assert answer["error"].numpy().tolist() == [NOT_FINITE.encode(), b""]
    np.testing.assert_allclose(answer["scores"].numpy(), [[0, 0, 0], alone[0]], atol=1e-6)


def test_features_are_those_of_the_backbone(exported, model, images):
    _, signatures, _ = exported
    from keras_transfer.models.stages import backbone_of

    embed = signatures["features"]
    got = embed(bytes=tf.stack([tf.io.encode_png(p) for p in images]))["features"]
    expected = np.asarray(backbone_of(model)(resize_and_crop(images, 32)))
    assert got.shape == (2, 16)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_names_are_an_asset(exported):
    folder, _, _ = exported
    names = (folder / "assets" / "labels.txt").read_text(encoding="utf-8")
    assert names.splitlines() == ["ant", "bee", "füße"]
    assert not (folder / "labels.txt").exists()


def test_warm_up_requests_are_valid_messages_and_can_be_answered(exported):
    folder, signatures, _ = exported
    prediction_log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")

    records = tf.data.TFRecordDataset(str(folder / "assets.extra" / "tf_serving_warmup_requests"))
    asked = []
    for record in records.as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
        answer = signatures[request.model_spec.signature_name](**inputs)
        assert not any(answer["error"].numpy())
        asked.append((request.model_spec.signature_name, len(answer["error"])))
    assert {name for name, _ in asked} == set(signatures)
    assert ("serve_bytes", 8) in asked and len(asked) <= 1000


# -- the folder ---------------------------------------------------------------------------------------


def test_a_version_appears_complete_or_not_at_all(watched):
    folder, seen = watched
    assert [p.name for p in folder.parent.iterdir()] == ["1"]
    assert seen and all(files == seen[-1] for files in seen)
    assert {"saved_model.pb", "variables/variables.index", "assets/labels.txt"} <= set(seen[-1])
    assert "assets.extra/tf_serving_warmup_requests" in seen[-1]


def test_an_unfinished_export_does_not_look_like_a_version(tmp_path):
    with new_folder(tmp_path / "7") as folder:
        (folder / "part").write_text("half")
        assert [p.name.isdecimal() for p in tmp_path.iterdir()] == [False]
    assert (tmp_path / "7" / "part").read_text() == "half"


def test_of_two_exports_to_one_version_the_second_fails(tmp_path):
    with pytest.raises(InputError, match="exists"), new_folder(tmp_path / "1") as folder:
        (folder / "mine").touch()
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "theirs").touch()
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["1", "1/theirs"]


# -- without Keras ------------------------------------------------------------------------------------

WITHOUT_KERAS = """
import sys
import without_keras
import json
import tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serve_bytes"]
answer = serve(bytes=tf.constant([open(path, "rb").read() for path in sys.argv[2:]]))
assert not {"keras", "keras_transfer"} & set(sys.modules)
print(json.dumps([s.decode() for s in answer["label"].numpy()]))
print(json.dumps(answer["scores"].numpy().tolist()))
"""


def served_without_keras(folder, *paths):
    """Return (labels, scores) from a process without Keras."""
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERAS, str(folder), *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_process_without_keras_answers(exported, model, images, tmp_path):
    folder, _, _ = exported
    (tmp_path / "p.png").write_bytes(tf.io.encode_png(images[0]).numpy())
    (tmp_path / "broken.png").write_bytes((tmp_path / "p.png").read_bytes()[:300])
    labels, scores = served_without_keras(folder, tmp_path / "broken.png", tmp_path / "p.png")
    expected = np.asarray(model.layers[-1].head.scores(model(resize_and_crop(images[:1], 32))))
    np.testing.assert_allclose(scores, [[0, 0, 0], *expected], atol=1e-5)
    assert labels == ["", ["ant", "bee", "füße"][int(expected.argmax())]]


def test_requests_in_tf_servings_messages(exported, images):
    """The request of a TF Serving client, decoded as the server does."""
    _, signatures, _ = exported
    predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2")

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "flowers"
    request.model_spec.signature_name = "serve_bytes"
    encoded = [tf.io.encode_png(p).numpy() for p in images]
    request.inputs["bytes"].CopyFrom(tf.make_tensor_proto(encoded))
    received = predict_pb2.PredictRequest.FromString(request.SerializeToString())

    signature = signatures[received.model_spec.signature_name]
    inputs = {key: tf.constant(tf.make_ndarray(proto)) for key, proto in received.inputs.items()}
    response = predict_pb2.PredictResponse()
    for key, value in signature(**inputs).items():
        response.outputs[key].CopyFrom(tf.make_tensor_proto(value.numpy()))
    assert tf.make_ndarray(response.outputs["scores"]).shape == (2, 3)
    assert tf.make_ndarray(response.outputs["label"])[0] in (b"ant", b"bee", "füße".encode())


# `saved_model_cli` runs in this process, because importing TensorFlow again takes longer.


def saved_model_cli(capsys, *words):
    from absl.testing import flagsaver
    from tensorflow.python.tools import saved_model_cli as tool

    with flagsaver.flagsaver():
        tool.create_parser().parse_args([str(word) for word in words]).func()
    return capsys.readouterr().out


def test_saved_model_cli_shows_every_signature(exported, capsys):
    folder, signatures, _ = exported
    shown = saved_model_cli(capsys, "show", "--all", "--dir", folder)
    parts = dict(re.findall(r"signature_def\['(\w+)'\]:\n(.*?)(?=\n\n|\Z)", shown, re.DOTALL))
    assert set(signatures) <= set(parts)
    for name, signature in signatures.items():
        (given,) = signature.structured_input_signature[1]
        assert f"inputs['{given}'] tensor_info" in parts[name]
        for output in signature.structured_outputs:
            assert f"outputs['{output}'] tensor_info" in parts[name]
    assert "DT_STRING" in parts["serve_bytes"] and "DT_UINT8" in parts["serve_uint8"]


def test_saved_model_cli_runs_a_signature(exported, images, tmp_path, capsys):
    folder, signatures, _ = exported
    encoded = [tf.io.encode_png(images[0]).numpy(), b"broken"]
    np.save(tmp_path / "asked.npy", np.array(encoded))
    saved_model_cli(
        capsys,
        *("run", "--dir", folder, "--tag_set", "serve", "--signature_def", "serve_bytes"),
        *("--inputs", f"bytes={tmp_path / 'asked.npy'}", "--outdir", tmp_path),
    )
    expected = signatures["serve_bytes"](bytes=tf.constant(encoded))
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), expected["scores"], atol=1e-6)
    assert np.load(tmp_path / "error.npy", allow_pickle=True).tolist() == [
        b"",
        MODALITY.unreadable.encode(),
    ]
