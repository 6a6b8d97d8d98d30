"""The crop is stored with the model, and goes wherever the model goes."""

import keras
import numpy as np
import pytest
from conftest import raises, tiny_backbone

from keras_transfer import load_model
from keras_transfer.data import from_arrays
from keras_transfer.data.arrays import Arrays
from keras_transfer.data.examples import Examples
from keras_transfer.features.prefix import pooled_stages, prefix_of
from keras_transfer.modalities.image.framing import Framing
from keras_transfer.models.builders import backbone_at, build_model
from keras_transfer.models.framing import framing_of, settle_framing
from keras_transfer.models.heads import Classification
from keras_transfer.models.sources.backbones import build_backbone
from keras_transfer.models.sources.own import backbone_from_model
from keras_transfer.models.stages import Backbone, backbone_of


def model_of(crop=None):
    return build_model(tiny_backbone(), Classification("ab"), image_size=32, crop=crop)


def small():
    return Examples(Arrays(np.zeros((4, 20, 20, 3), "uint8")), np.zeros(4, "int32"))


@pytest.mark.parametrize("crop", [None, 0.5, 1])
def test_a_file_of_a_model_contains_it(tmp_path, crop):
    model_of(crop).save(tmp_path / "model.keras")
    framing = backbone_of(load_model(tmp_path / "model.keras")).framing
    assert framing == (None if crop is None else Framing(crop=crop))


def test_models_saved_without_it_have_that_of_0_1():
    config = tiny_backbone().get_config()
    del config["framing"]
    assert Backbone.from_config(config).framing == Framing(crop=0.875, depth="full")


def test_an_invalid_crop_is_refused():
    with raises("crop must be a number above 0 and at most 1, not 1.2"):
        model_of(1.2)


def test_it_is_carried_on_to_other_sizes_networks_and_copies():
    model = model_of()
    other = backbone_at(model, 64)
    assert framing_of(other).crop is None and framing_of(model).square == (32, 0.875)
    settle_framing(model, small())
    assert framing_of(backbone_at(model, 64)).square == (64, 1.0)  # settled since
    assert framing_of(model, 64).square == (64, 1.0)
    assert backbone_from_model(model).framing.crop == 1.0
    assert build_model(model, Classification("ab"), crop=0.5).layers[1].framing.crop == 0.5
    copy = keras.models.clone_model(model)
    assert backbone_of(copy).framing.crop == 1.0
    assert build_backbone([model, tiny_backbone()], taps="all").framing.crop == 1.0
    assert prefix_of(model, 2).framing == pooled_stages(backbone_of(model)).framing
    assert prefix_of(model, 2, 64).framing.square == (64, 1.0)


def test_the_data_decide_only_what_is_open(capsys):
    model = model_of()
    assert framing_of(model, data=small()).crop == 1.0 and backbone_of(model).framing is None
    settle_framing(model, small())
    reason = "the originals' median shorter side, 20 px, is not above the image size, 32 px"
    assert capsys.readouterr().err == f"crop 1.0: {reason}\n"
    explicit = model_of(0.75)
    settle_framing(explicit, small())
    assert framing_of(explicit).crop == 0.75 and not capsys.readouterr().err


def test_a_backbone_with_another_crop_shares_the_layers():
    backbone = tiny_backbone()
    other = backbone.with_framing(Framing(crop=0.6))
    assert (backbone.framing, other.framing) == (None, Framing(crop=0.6))
    assert [stage.layers for stage in other.stages] == [s.layers for s in backbone.stages]


def test_features_of_different_crops_have_different_keys():
    backbone = tiny_backbone()
    crops = (0.875, 1.0, 0.5)
    framed = [backbone.with_framing(Framing(crop=crop)) for crop in crops]
    keys = [prefix_of(one, 3).identity for one in framed]
    assert prefix_of(backbone, 3).framed_for(small()).identity == keys[0]
    assert [key["crop"] for key in keys] == [*crops]
    assert len({key["prefix"] for key in keys}) == 1


def test_evidence_sees_the_crop_that_the_data_decide(tmp_path, monkeypatch):
    from keras_transfer.advisor import closed_forms

    crops, whole = [], closed_forms.extract
    monkeypatch.setattr(
        closed_forms,
        "extract",
        lambda prefix, *a, **k: crops.append(prefix.framing.crop) or whole(prefix, *a, **k),
    )
    build_model(tiny_backbone(), Classification("ab"), image_size=32).save(tmp_path / "own.keras")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (24, 20, 20, 3), "uint8")
    data = from_arrays((images, [0, 1] * 12), progress=False)
    source = [str(tmp_path / "own.keras")]
    closed_forms.compare_closed_forms(data, source, questions=())
    assert crops == [1.0]
