"""What every row of the table of backbones must hold, on its smallest pictures and random weights.

Of each module of keras.applications the smallest row is run. The others, and every single cut of the
deep rows, carry the marker `large` and are run by hand (`-m large`).
"""

import importlib
import multiprocessing
import os

import keras
import numpy as np
import pytest

from keras_transfer.backbone_building import build_backbone
from keras_transfer.backbones import BACKBONES
from keras_transfer.builders import backbone_of, build_model
from keras_transfer.freezing import freeze
from keras_transfer.heads import Classification
from keras_transfer.stages import batch_norms

DEEP = 20


def _rows():
    """All of them; but for the smallest of the same code they are `large`."""
    smallest = {}
    for spec in sorted(BACKBONES.values(), key=lambda spec: spec.parameters):
        smallest.setdefault((spec.module, "minimalistic" in spec.name), spec)
    return [
        pytest.param(
            spec, id=spec.name, marks=[pytest.mark.large] * (spec not in smallest.values())
        )
        for spec in BACKBONES.values()
    ]


@pytest.fixture(scope="module")
def fresh_process():
    """A process that has only loaded this package's loader: it predicts from saved files."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve_predictions, args=(there,), daemon=True)
    process.start()
    yield here
    here.send(None)
    process.join(30)


def _serve_predictions(connection):
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    from keras_transfer.backbone_building import load_model

    while (request := connection.recv()) is not None:
        path, pictures = request
        model = load_model(path)
        connection.send(np.asarray(model(pictures, training=False)))
        keras.backend.clear_session(free_memory=True)


def _calibrate(backbone, size):
    """Gives BatchNorm the statistics of noise pictures.

    With the initial statistics (mean 0, variance 1) a deep random network fades to a constant,
    and a comparison of two constants would show nothing.
    """
    norms = batch_norms(backbone)
    if not norms:
        return
    pictures = np.random.default_rng(1).integers(0, 256, (16, size, size, 3))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    backbone(pictures.astype("uint8"), training=True)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def _relative(a, b):
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    return np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)


@pytest.mark.parametrize("spec", _rows())
def test_contract(spec, rng, tmp_path, fresh_process):
    pictures = rng.integers(0, 256, (2, spec.min_size, spec.min_size, 3)).astype("uint8")
    head = Classification(["a", "b", "c"])
    model = build_model(spec.name, head, image_size=spec.min_size, weights=None)
    backbone = backbone_of(model)
    _calibrate(backbone, spec.min_size)

    # The table says what is true.
    assert backbone.count_params() == spec.parameters
    assert len(backbone.stages) == spec.stages
    assert bool(batch_norms(backbone)) == spec.batch_norm

    # The same pixels reach the first convolution as in plain keras.applications.
    ours = keras.Model(backbone.inputs[0], backbone.get_layer("normalise").output)(pictures)
    family = _family_preprocessing(spec, pictures.astype("float32"))
    np.testing.assert_allclose(ours, family, rtol=1e-5, atol=1e-5)

    # Shape, and features that depend on the picture.
    features = np.asarray(backbone(pictures, training=False))
    assert features.shape == (2, backbone.output_shape[-1])
    assert np.isfinite(features).all()
    assert np.ptp(features, axis=0).max() > 0
    assert model(pictures, training=False).shape == (2, 3)

    # Every layer belongs to exactly one stage.
    staged = [layer for stage in backbone.stages for layer in stage.layers]
    assert len(staged) == len(set(map(id, staged))) == len(backbone.layers)

    _check_cuts(backbone, pictures, features, every_cut=len(backbone.stages) <= DEEP)

    # Frozen is frozen, whatever `training` says; and trained is not.
    freeze(model, "all")
    assert backbone.frozen_stages == len(backbone.stages)
    before = [np.array(w) for w in backbone.non_trainable_weights]
    np.testing.assert_array_equal(backbone(pictures, training=True), features)
    for weight, value in zip(backbone.non_trainable_weights, before):
        np.testing.assert_array_equal(weight, value)
    assert len(model.trainable_weights) == 2  # the head's

    # Half frozen and the rest with BatchNorm in training: only the rest's statistics move.
    k = len(backbone.stages) // 2
    freeze(model, f"stage:{k}", batch_norm="train")
    states = [
        [w for x in stage.layers for w in x.non_trainable_weights + x.trainable_weights]
        for stage in backbone.stages
    ]
    before = [[w.numpy() for w in weights] for weights in states]
    backbone(pictures, training=True)
    moved = [
        any((w.numpy() != value).any() for w, value in zip(weights, values))
        for weights, values in zip(states, before)
    ]
    has_norm = [
        any(isinstance(x, keras.layers.BatchNormalization) for x in stage.layers)
        for stage in backbone.stages
    ]
    assert moved == [False] * k + has_norm[k:]

    # A fresh process reads the saved model and predicts the same.
    freeze(model, "none")
    expected = np.asarray(model(pictures, training=False))
    path = tmp_path / "model.keras"
    model.save(path)
    fresh_process.send((str(path), pictures))
    assert _relative(fresh_process.recv(), expected) < 1e-5
    path.unlink()


def _check_cuts(backbone, pictures, features, every_cut):
    """Prefix∘suffix is the whole, for every stage.

    In a deep row by its links: stage k turns what the first k−1 stages give into what the first k
    give, so any prefix and the rest make the whole. Three of its cuts are made in earnest.
    """
    stages = backbone.stages
    cuts = range(1, len(stages))
    if not every_cut:
        ends = [backbone.inputs[0], *(stage.output for stage in stages)]
        values = keras.Model(ends[0], ends[1:])(pictures, training=False)
        assert _relative(values[-1], features) < 1e-4
        for k in cuts:
            link = keras.Model(ends[k], ends[k + 1])(values[k - 1], training=False)
            assert _relative(link, values[k]) < 1e-4, f"stage {k + 1}"
        cuts = sorted({1, len(stages) // 2, len(stages) - 1})
    for k in cuts:
        prefix, suffix = backbone.split(k)
        joined = suffix(prefix(pictures, training=False), training=False)
        assert _relative(joined, features) < 1e-4, f"cut after stage {k}"


@pytest.mark.large
@pytest.mark.parametrize(
    "spec", [s for s in BACKBONES.values() if s.stages > DEEP], ids=lambda s: s.name
)
def test_every_cut_of_a_deep_row(spec, rng):
    pictures = rng.integers(0, 256, (2, spec.min_size, spec.min_size, 3)).astype("uint8")
    backbone = build_backbone(spec.name, image_size=spec.min_size, weights=None)
    _calibrate(backbone, spec.min_size)
    features = np.asarray(backbone(pictures, training=False))
    _check_cuts(backbone, pictures, features, every_cut=True)


def _family_preprocessing(spec, pixels):
    """What reaches the first convolution of the family's own model with ImageNet weights."""
    module = importlib.import_module(f"keras.applications.{spec.module}")
    x = module.preprocess_input(pixels.copy())
    if spec.module == "efficientnet":
        # Inside of the model: Rescaling(1/255), Normalization with the statistics from the weights
        # file (which hold the deviation where the variance belongs), Rescaling(1/sqrt(deviation)).
        mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        return (x / 255 - mean) / np.sqrt(deviation) / np.sqrt(deviation)
    if np.abs(x - pixels).max() > 0:
        return x
    # A placeholder: the family does it in its first layers.
    application = getattr(keras.applications, spec.function)(
        include_top=False, weights=None, **spec.arguments
    )
    for layer in application.layers[1:]:
        if not isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization):
            return x
        x = layer(x)


# Keras builds the whole network before it asks for the file: the big sisters of a family, named by
# the same template, are left to `-m large`.
@pytest.mark.parametrize("spec", _rows())
def test_table_names_the_file_that_keras_downloads(spec, monkeypatch):
    """Runs Keras's own code path up to the download, and looks at what it asks for."""
    asked = []

    class Stop(Exception):
        pass

    def get_file(fname, origin, **kwargs):
        asked.append(fname)
        raise Stop

    from keras.src.utils import file_utils

    monkeypatch.setattr(file_utils, "get_file", get_file)
    with pytest.raises(Stop):
        getattr(keras.applications, spec.function)(
            include_top=False, weights="imagenet", **spec.arguments
        )
    assert asked == [spec.weights_file]


def test_every_function_of_keras_applications_is_in_the_table():
    functions = {name for name in dir(keras.applications) if name[0].isupper()}
    assert len(functions) == 40
    assert {spec.function for spec in BACKBONES.values()} == functions
