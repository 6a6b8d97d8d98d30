"""CONTRIBUTING.md, "Adding your own": extensions defined outside the package, and used."""

from dataclasses import dataclass

import keras
import numpy as np
import pytest
import yaml
from conftest import tiny_backbone

import keras_transfer as kt


@pytest.fixture
def model(data):
    return kt.build_model(tiny_backbone(), kt.Classification(data.class_names), image_size=32)


def tiny_application(include_top, weights, input_shape, pooling, filters=8):
    """A network like those of `keras.applications`: images in, a feature map or features out."""
    assert not include_top and weights is None
    inputs = x = keras.Input(input_shape)
    for width in (filters, 2 * filters):
        x = keras.layers.Conv2D(width, 3, strides=2, activation="relu")(x)
    pool = {"avg": keras.layers.GlobalAveragePooling2D(), None: lambda maps: maps}[pooling]
    return keras.Model(inputs, pool(x))


def test_a_backbone(data, tmp_path, monkeypatch):
    row = kt.models.BackboneSpec(
        name="tiny",
        function=tiny_application,
        module="mine",
        preprocessing="tf",
        size=32,
        min_size=16,
        parameters=1_392,
        stages=2,
        weights_file="tiny_notop.weights.h5",
        arguments={"filters": 8},
    )
    monkeypatch.setitem(kt.BACKBONES, row.name, row)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    pretrained = tiny_application(False, None, (32, 32, 3), "avg")
    (tmp_path / "models").mkdir()
    pretrained.save_weights(tmp_path / "models" / row.weights_file)

    model = kt.build_model("tiny", kt.Classification(data.class_names))
    backbone = kt.models.backbone_of(model)
    assert (backbone.name, len(backbone.stages), backbone.count_params()) == ("tiny", 2, 1_392)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    expected = pretrained.predict(images / 127.5 - 1, verbose=0)
    np.testing.assert_allclose(backbone.predict(images, verbose=0), expected, atol=1e-5)
    trainer = kt.Trainer(model, "freeze_k", overrides={"k": "stage:1"}, epochs=2)
    run = trainer.fit(data, tmp_path / "run")
    assert [phase["frozen_stages"] for phase in run.metrics["phases"]] == [2, 1]
    again = kt.Run.open(run.path).model
    np.testing.assert_array_equal(
        again.predict(images, verbose=0), run.model.predict(images, verbose=0)
    )
    with pytest.raises(kt.InputError, match="too small for tiny: use 16 or more"):
        kt.models.build_backbone("tiny", image_size=8)


@keras.saving.register_keras_serializable("tests")
class FocalLoss(keras.losses.Loss):
    """(1 - p)^gamma times the cross-entropy of integers [N] and logits [N, C] (arXiv:1708.02002)."""

    def __init__(self, gamma, name="focal", **kwargs):
        super().__init__(name=name, **kwargs)
        self.gamma = gamma

    def call(self, y_true, y_pred):
        loss = keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)
        return (1 - keras.ops.exp(-loss)) ** self.gamma * loss

    def get_config(self):
        return {**super().get_config(), "gamma": self.gamma}


@keras.saving.register_keras_serializable("tests")
@dataclass(frozen=True)
class Focal(kt.Classification):
    """Classes, trained with the focal loss."""

    gamma: float = 2.0

    def loss(self):
        return FocalLoss(self.gamma)


def test_a_head(data, colours, tmp_path):
    head = Focal(data.class_names, gamma=1.5)
    model = kt.build_model(tiny_backbone(), head, image_size=32)
    run = kt.Trainer(model, "feature_extraction", epochs=2).fit(data, tmp_path / "run")
    loaded = kt.load_model(run.path / "model.keras")
    assert kt.models.head_of(loaded) == head
    (named,), _ = kt.predict(loaded, [colours / "red" / "0.png"])
    assert named.label in data.class_names
    found = kt.evaluate(loaded, data)
    assert found["images"] == len(data.examples["val"]) and found["task"] == "single_label"

    # The loss is that of the head: for equal scores, (1 - 1/3)^1.5 times ln 3.
    equal = float(head.loss()(np.array([0]), np.zeros((1, 3), "float32")))
    assert equal == pytest.approx((2 / 3) ** 1.5 * np.log(3), rel=1e-5)


def test_a_head_that_could_not_be_loaded_again_is_refused():
    @dataclass(frozen=True)
    class Unregistered(kt.Classification):
        pass

    with pytest.raises(kt.InputError, match="Keras does not know the head Unregistered"):
        kt.build_model(tiny_backbone(), Unregistered(("a", "b")), image_size=32)


def test_a_model_whose_head_is_not_registered_here_says_so(tmp_path, monkeypatch):
    model = kt.build_model(tiny_backbone(), Focal(("a", "b")), image_size=32)
    model.save(tmp_path / "focal.keras")
    monkeypatch.delitem(keras.saving.get_custom_objects(), "tests>Focal")
    with pytest.raises(kt.InputError, match="head of the class tests>Focal: import"):
        kt.load_model(tmp_path / "focal.keras")


def sandwich(examples: int = 1000, epochs: int = 3, learning_rate: float = 1e-2) -> kt.Schedule:
    """The head, all stages, the head again."""
    around = {"freeze": "all", "epochs": 1, "learning_rate": learning_rate}
    middle = kt.Phase("all", "none", epochs - 2, learning_rate / 10)
    return kt.Schedule(
        "sandwich", (kt.Phase("before", **around), middle, kt.Phase("after", **around))
    )


def test_a_recipe(model, data, tmp_path, monkeypatch):
    monkeypatch.setitem(kt.RECIPES, "sandwich", sandwich)
    trainer = kt.Trainer(model, "sandwich", overrides={"learning_rate": 5e-3, "after.ema": 0.9})
    run = trainer.fit(data, tmp_path / "run")
    assert [phase["name"] for phase in run.metrics["phases"]] == ["before", "all", "after"]
    assert run.metrics["phases"][0]["frozen_stages"] == 3
    written = yaml.safe_load((run.path / "config.yaml").read_text())
    phases = written["schedule"]["phases"]
    assert phases[0]["learning_rate"] == 5e-3 and phases[2]["ema"] == 0.9
    with pytest.raises(
        kt.InputError, match="sandwich has the arguments examples, epochs, learning_rate"
    ):
        kt.schedules.resolve_schedule("sandwich", {"stages": 3})


@dataclass(frozen=True)
class MeanDifference(kt.adaptation.Method):
    """The squared distance between the mean features of both domains."""

    name = "mean_difference"
    title = "mean difference"
    logs = ("distance",)

    def loss(self, batch, strength, network=None, training=True):
        ops = keras.ops
        difference = ops.mean(batch.source_features, axis=0) - ops.mean(
            batch.target_features, axis=0
        )
        distance = ops.sum(ops.square(difference))
        return strength * distance, {"distance": distance}


def test_an_adaptation_method(model, data):
    assert MeanDifference(weight=0.5).to_dict() == {
        "name": "mean_difference",
        "weight": 0.5,
        "gamma": 0.0,
    }
    source = [(np.full((4, 32, 32, 3), 40, "uint8"), np.array([0, 1, 2, 0]))] * 2
    target = [np.full((4, 32, 32, 3), 200, "uint8")] * 2
    adapter = kt.adaptation.Adapter(model, [MeanDifference(weight=10.0)])
    adapter.compile(keras.optimizers.Adam(1e-2))
    history = adapter.fit(source, target=target, epochs=4, verbose=0).history
    assert history["align_loss"][-1] < history["align_loss"][0]
    assert history["align_loss"] == pytest.approx(10 * np.array(history["distance"]), rel=1e-5)


def test_an_augmentation_preset(model, data, tmp_path, monkeypatch):
    scans = kt.data.Augmentation(flip=False, rotate=5, brightness=0.3)
    monkeypatch.setitem(kt.data.AUGMENTATIONS, "scans", scans)
    assert kt.data.resolve_augmentation({"preset": "scans", "rotate": 0}).brightness == 0.3
    run = kt.Trainer(model, "fine_tune", augment="scans", epochs=1).fit(data, tmp_path / "run")
    assert yaml.safe_load((run.path / "config.yaml").read_text())["augment"] == "scans"
