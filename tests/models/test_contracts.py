"""What every row of the table of backbones must hold, on its smallest images and random weights.

Of each module of keras.applications the smallest row is run. The others, and every single cut,
carry the marker `large` and are run by hand (`-m large`).
"""

import importlib
import subprocess
import sys
from subprocess import PIPE

import keras
import numpy as np
import pytest
from keras.src.utils import file_utils  # no public name

from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.sources.applications import BACKBONES
from keras_transfer.models.sources.backbones import build_backbone
from keras_transfer.models.stages import backbone_of, batch_norms, freeze


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


# Families with layers that Keras alone does not know how to load, or with statistics in a layer, and one
# plain one. Of the others the larger rows are saved and read.
SAVED = ("mobilenet_v2", "convnext", "efficientnet", "inception_resnet_v2")

# A process that has loaded nothing of this package but its loader predicts from saved files.
PREDICTIONS = """
import sys
import numpy as np
from keras_transfer.models.sources.own import load_model
for line in sys.stdin:
    folder = line.strip()
    model = load_model(folder + "/model.keras")
    np.save(folder + "/answer.npy", model(np.load(folder + "/images.npy"), training=False))
    print(folder, flush=True)
    del model
    __import__("keras").backend.clear_session(free_memory=True)
"""


@pytest.fixture(scope="module")
def fresh_process():
    """folder → what `PREDICTIONS` answers to its model.keras and images.npy."""
    command = [sys.executable, "-c", PREDICTIONS]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:

        def predict(folder):
            print(folder, file=process.stdin, flush=True)
            assert process.stdout.readline() == f"{folder}\n"
            return np.load(folder / "answer.npy")

        yield predict
        process.stdin.close()


def _calibrate(backbone, size):
    """Gives BatchNorm the statistics of noise images.

    With the initial statistics (mean 0, variance 1) a deep random network fades to a constant,
    and a comparison of two constants would show nothing.
    """
    norms = batch_norms(backbone)
    if not norms:
        return
    images = np.random.default_rng(1).integers(0, 256, (16, size, size, 3))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    backbone(images.astype("uint8"), training=True)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def _relative(a, b):
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    return np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)


def _build(spec, head, monkeypatch):
    """The model, the network of `keras.applications` in it, and the file that Keras would download.

    Keras takes its way to the ImageNet weights, but for the download and the reading: so one
    network shows which file it asks for, and that its graph is the one without weights.
    """
    applications, asked = [], []
    function = getattr(keras.applications, spec.function)

    def with_imagenet(weights, **arguments):
        with monkeypatch.context() as patch:
            patch.setattr(file_utils, "get_file", lambda fname, *a, **k: asked.append(fname))
            patch.setattr(keras.Model, "load_weights", lambda *a, **k: None)
            applications.append(function(weights="imagenet", **arguments))
        return applications[0]

    monkeypatch.setattr(keras.applications, spec.function, with_imagenet)
    model = build_model(spec.name, head, image_size=spec.min_size, weights=None)
    return model, applications[0], asked


@pytest.mark.parametrize("spec", _rows())
def test_contract(spec, rng, tmp_path, monkeypatch, fresh_process, request):
    images = rng.integers(0, 256, (2, spec.min_size, spec.min_size, 3)).astype("uint8")
    head = Classification(["a", "b", "c"])
    model, application, asked = _build(spec, head, monkeypatch)
    backbone = backbone_of(model)
    _calibrate(backbone, spec.min_size)

    # The table says what is true.
    assert backbone.count_params() == spec.parameters
    assert len(backbone.stages) == spec.stages
    assert bool(batch_norms(backbone)) == spec.batch_norm
    assert asked == [spec.weights_file]

    # The same pixels reach the first convolution as in plain keras.applications.
    ours = keras.Model(backbone.inputs[0], backbone.get_layer("normalise").output)(images)
    family = _family_preprocessing(spec, application, images.astype("float32"))
    np.testing.assert_allclose(ours, family, rtol=1e-5, atol=1e-5)

    # Shape, and features that depend on the image.
    features = np.asarray(backbone(images, training=False))
    assert features.shape == (2, backbone.output_shape[-1])
    assert np.isfinite(features).all()
    assert np.ptp(features, axis=0).max() > 0
    logits = np.asarray(model(images, training=False))
    assert logits.shape == (2, 3)

    # A fresh process reads the saved model and predicts the same.
    if spec.module in SAVED or request.node.get_closest_marker("large"):
        model.save(tmp_path / "model.keras")
        np.save(tmp_path / "images.npy", images)
        assert _relative(fresh_process(tmp_path), logits) < 1e-5
        (tmp_path / "model.keras").unlink()

    # Every layer belongs to exactly one stage.
    staged = [layer for stage in backbone.stages for layer in stage.layers]
    assert len(staged) == len(set(map(id, staged))) == len(backbone.layers)

    _check_cuts(backbone, images, features)

    # Frozen is frozen, whatever `training` says; and trained is not.
    freeze(model, "all")
    assert backbone.frozen_stages == len(backbone.stages)
    before = [np.array(w) for w in backbone.non_trainable_weights]
    np.testing.assert_array_equal(backbone(images, training=True), features)
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
    backbone(images, training=True)
    moved = [
        any((w.numpy() != value).any() for w, value in zip(weights, values))
        for weights, values in zip(states, before)
    ]
    has_norm = [
        any(isinstance(x, keras.layers.BatchNormalization) for x in stage.layers)
        for stage in backbone.stages
    ]
    assert moved == [False] * k + has_norm[k:]


def _check_cuts(backbone, images, features):
    """Prefix∘suffix is the whole, for every stage, by the links of the chain.

    Stage k turns what the first k−1 stages give into what the first k give, so any prefix and the
    rest make the whole. One cut, the middle, is made in earnest.
    """
    stages = backbone.stages
    ends = [backbone.inputs[0], *(stage.output for stage in stages)]
    values = keras.Model(ends[0], ends[1:])(images, training=False)
    assert _relative(values[-1], features) < 1e-4
    for k in range(1, len(stages)):
        link = keras.Model(ends[k], ends[k + 1])(values[k - 1], training=False)
        assert _relative(link, values[k]) < 1e-4, f"stage {k + 1}"
    _check_cut(backbone, len(stages) // 2, images, features)


def _check_cut(backbone, k, images, features):
    prefix, suffix = backbone.split(k)
    joined = suffix(prefix(images, training=False), training=False)
    assert _relative(joined, features) < 1e-4, f"cut after stage {k}"


@pytest.mark.large
@pytest.mark.parametrize("spec", BACKBONES.values(), ids=lambda s: s.name)
def test_every_cut(spec, rng):
    images = rng.integers(0, 256, (2, spec.min_size, spec.min_size, 3)).astype("uint8")
    backbone = build_backbone(spec.name, image_size=spec.min_size, weights=None)
    _calibrate(backbone, spec.min_size)
    features = np.asarray(backbone(images, training=False))
    for k in range(1, len(backbone.stages)):
        _check_cut(backbone, k, images, features)


def _family_preprocessing(spec, application, pixels):
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
    for layer in application.layers[1:]:
        if not isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization):
            return x
        x = layer(x)


def test_every_function_of_keras_applications_is_in_the_table():
    functions = {name for name in dir(keras.applications) if name[0].isupper()}
    assert len(functions) == 40
    assert {spec.function for spec in BACKBONES.values()} == functions
