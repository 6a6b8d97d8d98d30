"""Whether an example is like the training examples: fitted in Python, answered by the export."""

import io

import numpy as np
import pytest
import tensorflow as tf
from conftest import tiny_backbone
from PIL import Image

from keras_transfer import export
from keras_transfer.evaluation.typicality import fit_typicality
from keras_transfer.export.serving import features_of
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification, MultiLabel


def cloud(count, center, seed):
    rng = np.random.default_rng(seed)
    return (np.eye(8)[center] * 3 + rng.normal(size=(count, 8))).astype("float32")


def test_95_percent_of_validation_are_typical_and_strangers_are_not():
    train, val, strangers = cloud(600, 0, 1), cloud(100, 0, 2), cloud(50, 5, 3)
    found, line = fit_typicality(train, val, strangers)
    assert found.prototypes.shape == (500, 8) and "AUROC" in line
    assert (found.scores(val) >= found.threshold).mean() == pytest.approx(0.95, abs=0.02)
    assert (found.scores(strangers) < found.threshold).mean() > 0.9
    by_hand = np.sort(val[0] / np.linalg.norm(val[0]) @ found.prototypes.T)[-5]
    assert found.scores(val[:1])[0] == pytest.approx(by_hand, abs=1e-6)


def test_off_where_it_tells_nothing():
    train, val = cloud(50, 0, 1), cloud(30, 5, 2)
    found, line = fit_typicality(train, val, cloud(30, 0, 3))
    assert found is None and "no more like the training than noise" in line
    found, line = fit_typicality(train, cloud(5, 0, 2), val)
    assert found is None and "too few" in line


@pytest.mark.parametrize("several", [False, True])
def test_the_export_answers_like_python(tmp_path, several):
    head = Classification(["a", "b"])
    heads = {"kind": head, "marks": MultiLabel(["x", "y"])} if several else head
    model = build_model(tiny_backbone(), heads, image_size=32)
    rng = np.random.default_rng(0)
    train, val = (rng.integers(0, high, (40, 32, 32, 3)).astype("uint8") for high in (255, 250))
    noise = np.full((30, 32, 32, 3), 255, "uint8") * rng.integers(
        0, 2, (30, 1, 1, 1), dtype="uint8"
    )
    found, _ = fit_typicality(*(features_of(model, x) for x in (train, val, noise)))
    folder = export.saved_model(model, tmp_path / "1", typicality=found)
    loaded = tf.saved_model.load(str(folder))
    contents = []
    for image in (val[0], noise[0]):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        contents.append(buffer.getvalue())
    answer = loaded.signatures["serve_bytes"](bytes=tf.constant([*contents, b"broken"]))
    features = loaded.signatures["features"](bytes=tf.constant(contents))["features"].numpy()
    expected = found.scores(features)
    np.testing.assert_allclose(answer["typicality"][:2], expected, atol=1e-4)
    assert answer["typicality"][2] == 0 and answer["error"][2].numpy()
    assert answer["is_typical"].numpy().tolist() == [*(expected >= found.threshold), False]
