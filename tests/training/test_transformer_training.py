"""Recipes on a tiny ViT of KerasHub: that they learn, what moves, and how far."""

import keras
import numpy as np
import pytest

import keras_transfer as kt
from keras_transfer.data import from_directory
from keras_transfer.models.stages import backbone_of, stage_of_weights
from keras_transfer.training.trainer import Trainer

keras_hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed")


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    vit = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=24
    )
    return kt.build_model(vit, kt.Classification(("blue", "green", "red")))


def moved_by(model, recipe, data, folder, **settings):
    """(run, path of each of the backbone's weights → (its stage, how far it moved))."""
    stage_of = stage_of_weights(model)
    before = {id(w): w.numpy() for w in model.weights}
    run = Trainer(model, recipe, batch_size=8, epochs=8, **settings).fit(data, folder)
    return run, {
        w.path: (stage_of[id(w)], np.abs(w.numpy() - before[id(w)]).max())
        for w in model.weights
        if id(w) in stage_of
    }


def test_lp_ft_learns_with_the_rates_of_transformers(model, colours, tmp_path):
    data = from_directory(colours, progress=False)
    run, moved = moved_by(model, "lp_ft", data, tmp_path / "run", keep="last")
    phase = run.config["schedule"]["phases"][1]
    assert phase["learning_rate"] == pytest.approx(1e-4)
    assert phase["lowest_rate"] == pytest.approx(0.7**4) and phase["weight_decay"] == 1e-2
    head, everything = run.metrics["phases"]
    assert everything["val"]["loss"] < head["val"]["loss"]
    losses = [row["loss"] for row in run.history[1:]]
    assert losses[-1] < losses[0]
    furthest = [max(far for at, far in moved.values() if at == stage) for stage in range(4)]
    assert 0 < furthest[0] < furthest[1] < furthest[2] < furthest[3]
    biases = [far for path, (_, far) in moved.items() if path.endswith("bias")]
    assert all(biases[:3])


@pytest.mark.parametrize(
    ("recipe", "moves"), [("lora", ("kernel",)), ("bit_fit", ("bias", "beta"))]
)
def test_few_weights_move(model, colours, tmp_path, recipe, moves):
    data = from_directory(colours, progress=False)
    freeze = {"lora": {"lora.freeze": "stage:2"}, "bit_fit": {"bias.freeze": "stage:2"}}[recipe]
    run, moved = moved_by(model, recipe, data, tmp_path / "run", keep="last", overrides=freeze)
    head, few = run.metrics["phases"]
    assert few["val"]["loss"] < head["val"]["loss"]
    for path, (stage, far) in moved.items():
        # A bias of keys shifts all scores of a query alike, which the softmax ignores.
        if "key" not in path or recipe == "lora":
            assert (far > 0) == (stage >= 2 and path.rpartition("/")[2] in moves), path
    loaded = kt.load_model(run.model_path)
    assert len(loaded.weights) == len(model.weights)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3))
    np.testing.assert_allclose(loaded(images), model(images), atol=1e-5)
    prefix, suffix = backbone_of(model).split(2)
    np.testing.assert_allclose(suffix(prefix(images)), backbone_of(model)(images), atol=1e-5)
