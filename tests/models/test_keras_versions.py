"""Models that another version of Keras saved."""

import json
import shutil
import zipfile

import keras
import numpy as np
import pytest
from conftest import tiny_backbone

import keras_transfer as kt
from keras_transfer.models.stages import Backbone, backbone_of

pytestmark = pytest.mark.compat


def saved_model(folder):
    model = kt.build_model(tiny_backbone(), kt.Classification(["ant", "bee"]))
    model.save(folder / "model.keras")
    return model


def test_keras_3_13_cannot_save_the_graph_of_a_subclass(tmp_path, monkeypatch):
    """There, only `keras.Model` itself counts as functional (the check is Keras's own)."""
    from keras.src.models import functional

    plain = (keras.Model, functional.Functional)
    monkeypatch.setattr(functional, "functional_like_constructor", lambda cls: cls in plain)
    model = saved_model(tmp_path)
    config = backbone_of(model).get_config()
    assert len(config["layers"]) == len(backbone_of(model).layers)
    loaded = kt.load_model(tmp_path / "model.keras")
    assert isinstance(backbone_of(loaded), Backbone)
    images = np.random.default_rng(0).uniform(0, 255, (2, *model.input_shape[1:]))
    np.testing.assert_array_equal(
        loaded.predict(images, verbose=0), model.predict(images, verbose=0)
    )


def test_a_config_is_that_of_a_plain_model():
    backbone = backbone_of(kt.build_model(tiny_backbone(), kt.Classification(["ant", "bee"])))
    backbone.layers[1].trainable = False
    plain = keras.Model(backbone.inputs, backbone.outputs, name=backbone.name).get_config()
    assert json.dumps(backbone.get_config()["layers"]) == json.dumps(plain["layers"])
    backbone.trainable = False
    assert backbone.get_config()["trainable"] is False
    assert not Backbone.from_config(backbone.get_config()).trainable_variables


def test_the_error_names_both_versions(tmp_path):
    saved_model(tmp_path)
    newer = tmp_path / "newer.keras"
    with zipfile.ZipFile(tmp_path / "model.keras") as old, zipfile.ZipFile(newer, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "metadata.json":
                content = json.dumps({**json.loads(content), "keras_version": "99.1.2"})
            elif name == "config.json":
                content = content.replace(b"GlobalAverage", b"GlobalUnknown")
            new.writestr(name, content)
    message = f"Keras 99.1.2 saved it, and this is Keras {keras.__version__}"
    with pytest.raises(kt.InputError, match=message):
        kt.load_model(newer)
    shutil.copy(tmp_path / "model.keras", tmp_path / "same.keras")
    assert kt.load_model(tmp_path / "same.keras").count_params()
