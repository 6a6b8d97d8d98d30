"""Heads: outputs, losses, and names that travel with the model."""

import keras
import numpy as np
import pytest
from conftest import tiny_backbone

from keras_transfer.errors import InputError
from keras_transfer.models.builders import build_model, head_of
from keras_transfer.models.heads import Classification, MultiLabel, Regression, SparseCrossentropy


def small(head):
    return build_model("mobilenet_0.25", head, image_size=32, weights=None)


@pytest.mark.parametrize(
    "head",
    [
        Classification(["ant", "bee", "füße"], label_smoothing=0.1),
        MultiLabel(["wings", "legs"], hidden=(8, 4), dropout=0.3),
        Regression(["weight"], dropout=0),
    ],
)
def test_the_head_travels_through_save_and_load(head, tmp_path, rng):
    model = small(head)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert head_of(loaded) == head
    x = rng.integers(0, 255, (2, 32, 32, 3)).astype("uint8")
    np.testing.assert_array_equal(loaded(x), model(x))


@pytest.mark.parametrize(
    "head, targets",
    [
        (Classification("abc", dropout=0), [0, 2]),
        (MultiLabel("abc", dropout=0), [[0, 1, 1], [1, 0, 0]]),
        (Regression("ab", dropout=0), [[0.5, 2.0], [1.0, -1.0]]),
    ],
)
def test_each_task_learns_two_images_by_heart(head, targets):
    model = build_model(tiny_backbone(), head, image_size=32)
    x = np.stack([np.zeros((32, 32, 3)), np.full((32, 32, 3), 255)]).astype("uint8")
    y = np.array(targets)
    model.compile(
        keras.optimizers.Adam(0.03), head.loss(), metrics=head.metrics(), jit_compile=False
    )
    first = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    model.fit(x, y, epochs=60, verbose=0)
    history = model.fit(x, y, epochs=1, verbose=0).history
    assert history["loss"][0] < 0.2 * first


def test_scores():
    logits = np.array([[0.0, np.log(3.0)]], "float32")
    np.testing.assert_allclose(Classification("ab").scores(logits), [[0.25, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(MultiLabel("ab").scores(logits), [[0.5, 0.75]], rtol=1e-6)
    np.testing.assert_array_equal(Regression("ab").scores(logits), logits)


def test_smoothed_crossentropy_by_hand():
    logits = np.array([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]])
    targets = np.array([1, 0])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    for smoothing in (0.0, 0.3):
        wanted = (1 - smoothing) * np.eye(3)[targets] + smoothing / 3
        expected = -(wanted * log_p).sum(1).mean()
        got = SparseCrossentropy(smoothing)(targets, logits.astype("float32"))
        assert float(got) == pytest.approx(expected, rel=1e-6)


def test_output_is_float32_under_mixed_precision(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = small(Classification("ab"))
    assert model.layers[1].compute_dtype == "bfloat16"
    assert model.output.dtype == "float32"
    assert model.get_layer("output").kernel.dtype == "float32"


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Classification(["only"]), "at least 2"),
        (lambda: Classification(["a", "a"]), "differ"),
        (lambda: Classification("ab", dropout=1.0), "dropout"),
        (lambda: MultiLabel([]), "at least 1"),
        (lambda: Regression(["a"], label_smoothing=0.1), "regression"),
    ],
)
def test_bad_heads(make, words):
    with pytest.raises(InputError, match=words):
        make()
