"""A head on pooled features of every stage, and of several backbones."""

import keras
import numpy as np
import pytest

from keras_transfer.errors import InputError
from keras_transfer.evaluation.gradcam import grad_cam
from keras_transfer.features.prefix import Prefix, keras_engine, prefix_of
from keras_transfer.models.acceleration import training_model
from keras_transfer.models.builders import backbone_at, build_model
from keras_transfer.models.graph import find_stages
from keras_transfer.models.heads import Classification
from keras_transfer.models.sources.backbones import build_backbone
from keras_transfer.models.sources.own import load_model
from keras_transfer.models.stages import Backbone, backbone_of, freeze

HEAD = Classification(("a", "b", "c"))
FORMS = [("small", "all"), ("small+other", "last"), ("small+other", "all")]


def tiny(name, widths, seed):
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((32, 32, 3))
    for i, width in enumerate(widths):
        x = keras.layers.Conv2D(width, 3, 2, "same", use_bias=False, name=f"conv_{i}")(x)
        x = keras.layers.BatchNormalization(name=f"norm_{i}")(x)
        x = keras.layers.ReLU(name=f"relu_{i}")(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D(name="pool")(x), name=name)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Two networks whose layers have the same names, in files."""
    folder = tmp_path_factory.mktemp("networks")
    paths = {}
    for seed, (name, widths) in enumerate({"small": (4, 6, 8), "other": (5, 7)}.items()):
        network = tiny(name, widths, seed)
        rng = np.random.default_rng(seed)
        for layer in network.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.moving_mean.assign(rng.normal(size=layer.moving_mean.shape))
                layer.moving_variance.assign(rng.uniform(0.5, 2, layer.moving_variance.shape))
        paths[name] = str(folder / f"{name}.keras")
        network.save(paths[name])
    return paths


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (5, 32, 32, 3)).astype("uint8")


def built(networks, form, **options):
    names, taps = form
    return build_model([networks[n] for n in names.split("+")], HEAD, taps=taps, **options)


def outputs(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


def test_taps_are_mean_and_deviation_after_every_stage(networks, images):
    backbone = build_backbone(networks["small"], taps="all")
    plain = build_backbone(networks["small"], pooling=None)
    stages = find_stages(plain)
    maps = keras.Model(plain.inputs[0], [stage.output for stage in stages])(images)
    expected = np.concatenate(
        [
            value
            for x in map(keras.ops.convert_to_numpy, maps)
            for value in (x.mean((1, 2)), np.sqrt(x.var((1, 2)) + 1e-6))
        ],
        axis=-1,
    )
    np.testing.assert_allclose(outputs(backbone, images), expected, atol=1e-4)
    assert backbone.output_shape == (None, 2 * (4 + 6 + 8)) and len(backbone.stages) == 3


def test_several_backbones_are_side_by_side(networks, images):
    both = backbone_of(built(networks, ("small+other", "last")))
    alone = [outputs(build_backbone(path), images) for path in networks.values()]
    np.testing.assert_allclose(outputs(both, images), np.hstack(alone), atol=1e-5)
    assert len(both.stages) == 5 and both.name == "small_and_other"
    names = [layer.name for stage in both.stages for layer in stage.layers if layer.weights]
    assert len(set(names)) == len(names)
    # From the input to the ends: the second of three lies before the second of two.
    assert [stage.name.split("_")[0] for stage in both.stages] == [
        *("small", "other", "small", "small", "other")
    ]


@pytest.mark.parametrize("form", FORMS)
def test_every_cut_is_a_real_cut(networks, images, form):
    backbone = backbone_of(built(networks, form))
    whole, count = outputs(backbone, images), len(backbone.stages)
    for k in range(1, count):
        prefix, suffix = backbone.split(k)
        assert len(prefix.output_shape) == 2 or len(prefix.outputs) == 1
        np.testing.assert_allclose(outputs(suffix, prefix(images)), whole, atol=1e-5)
        for later in range(k + 1, count):
            between = backbone.between(k, later)
            expected = outputs(backbone.between(0, later), images)
            np.testing.assert_allclose(outputs(between, prefix(images)), expected, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_folding_and_engines_change_nothing(networks, images, form):
    model = built(networks, form)
    expected = outputs(model, images)
    for frozen in range(len(backbone_of(model).stages) + 1):
        trained = training_model(model, frozen)
        np.testing.assert_allclose(outputs(trained, images), expected, atol=1e-4)
        if frozen:
            prefix = prefix_of(model, frozen)
            assert isinstance(prefix, Prefix)
            rows = keras_engine(prefix)(images)
            from_cut = training_model(model, frozen, from_cut=True)
            np.testing.assert_allclose(outputs(from_cut, rows), expected, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_frozen_parts_stay_frozen(networks, images, form):
    model = built(networks, form)
    assert freeze(model, "stage:2").stages == 2
    backbone = backbone_of(model)
    weights = [w for stage in backbone.stages for layer in stage.layers for w in layer.weights]
    before = [keras.ops.convert_to_numpy(w) for w in weights]
    model.compile(keras.optimizers.SGD(0.1), HEAD.loss())
    model.fit(images.astype("float32"), np.arange(5) % 3, epochs=2, verbose=0)
    frozen = {
        id(w) for stage in backbone.stages[:2] for layer in stage.layers for w in layer.weights
    }
    changed = [
        id(w)
        for w, old in zip(weights, before)
        if not np.array_equal(old, keras.ops.convert_to_numpy(w))
    ]
    assert changed and not frozen & set(changed)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_saved_rebuilt_and_taken_as_a_source(networks, images, form, tmp_path):
    model = built(networks, form)
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(outputs(loaded, images), outputs(model, images), atol=1e-6)
    names = [[s.name for s in backbone_of(m).stages] for m in (model, loaded)]
    assert names[0] == names[1]
    again = build_model(str(tmp_path / "model.keras"), HEAD)
    np.testing.assert_allclose(
        outputs(backbone_of(again), images), outputs(backbone_of(model), images), atol=1e-6
    )
    larger = backbone_at(model, 64)
    assert isinstance(larger, Backbone) and larger.output_shape == backbone_of(model).output_shape


@pytest.mark.parametrize("form", FORMS)
def test_grad_cam_differentiates_all_taps_after_the_map(networks, images, form):
    model = built(networks, form)
    heat = grad_cam(model, images, classes=1)
    assert heat.shape[0] == 5 and heat.min() >= 0 and heat.max() == 1
    first = grad_cam(model, images, classes=1, stage=0)
    assert first.shape == (5, 16, 16)


def test_invalid_backbones_and_taps(networks):
    with pytest.raises(InputError, match="Unknown taps 'some'"):
        build_backbone(networks["small"], taps="some")
    with pytest.raises(InputError, match="different"):
        build_backbone([networks["small"]] * 2)
    with pytest.raises(InputError, match="pooling"):
        build_backbone(list(networks.values()), pooling=None)
    with pytest.raises(InputError, match="Unknown backbone 'nothing'"):
        build_backbone("mobilenet_0.25+nothing", weights=None)
    tapped = build_backbone(networks["small"], taps="all")
    with pytest.raises(InputError, match="taps already"):
        build_backbone([tapped, networks["other"]])


def test_a_head_on_all_stages_moves_as_slowly_as_its_features_are_many():
    from keras_transfer.schedules.phases import Phase
    from keras_transfer.schedules.plans import rates_of

    model = build_model("mobilenet_0.25", Classification(["a", "b"]), image_size=32, weights=None)
    assert rates_of(model, Phase("p", epochs=1))[1] == 1.0
    model = build_model(
        "mobilenet_0.25", Classification(["a", "b"]), image_size=32, weights=None, taps="all"
    )
    width = backbone_of(model).output_shape[-1]
    stages, head = rates_of(model, Phase("p", epochs=1, rates={"head": 2.0}))
    assert set(stages) == {1.0} and head == pytest.approx(2.0 * 256 / width)
