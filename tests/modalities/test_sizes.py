"""Images that are not square: from files to features, training, heat maps and every export; and the options."""

import keras
import numpy as np
import pytest
from conftest import raises, require_format, write_colours
from PIL import Image

import keras_transfer as kt
from keras_transfer.data import from_directory
from keras_transfer.evaluation.gradcam import grad_cam
from keras_transfer.export import FORMATS
from keras_transfer.export.exporter import export_run
from keras_transfer.modalities.image.framing import Framing
from keras_transfer.models.builders import backbone_at, build_model, head_for
from keras_transfer.models.framing import framing_of
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.schedules.recipes import progressive_resize
from keras_transfer.training.config import TrainConfig
from keras_transfer.training.trainer import Trainer

SIZE = "48x64"


def of_images(folder):
    return from_directory(write_colours(folder), progress=False)


def of_clips(folder):
    pytest.importorskip("soundfile", reason="the extra audio is not installed")
    pytest.importorskip("soxr", reason="the extra audio is not installed")
    from test_audio import write_clips

    return from_directory(write_clips(folder, {"low": 10, "high": 10}), progress=False)


@pytest.fixture(scope="module", params=[of_images, of_clips])
def trained(request, tmp_path_factory):
    """(run, data) of a network with taps whose last phase trains it at another size."""
    folder = tmp_path_factory.mktemp("sizes")
    data = request.param(folder / "data")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((48, 64, 3), name="images")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    for filters in (8, 16):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    source = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x), name="source")
    model = build_model(source, head_for(data), image_size=(48, 64), taps="all")
    assert model.input_shape == (None, 48, 64, 3)
    phases = (
        Phase("head", "all", 2, 1e-2),
        Phase("all", "none", 1, 1e-3, image_size="80x96"),
        Phase("end", "none", 2, 1e-3),
    )
    run = Trainer(model, Schedule("s", phases), cache="memory").fit(data, folder / "run")
    return run, data


def test_every_step_takes_height_and_width(trained):
    run, data = trained
    assert run.config["image_size"] == SIZE and framing_of(run.model).size == SIZE
    ((images, _), *_) = data.batches("val", image_size=framing_of(run.model), batch_size=4)
    assert images.shape == (4, 48, 64, 3)
    heats = grad_cam(run.model, images.numpy())
    assert heats.shape[:1] == (4,) and heats.shape[2] > heats.shape[1]
    assert backbone_at(run.model, "80x96").input_shape == (None, 80, 96, 3)
    with raises("Image size 50x64 does not differ from the model's 48x64 by a multiple of 32"):
        backbone_at(run.model, (50, 64))


def test_the_report_shows_them(trained, tmp_path):
    run, _ = trained
    assert "48x64" in kt.write_report(run).read_text()


@pytest.mark.parametrize("kind", FORMATS)
def test_exports_answer_like_the_model(trained, tmp_path, kind):
    require_format(kind)
    run, data = trained
    parity = export_run(run, kind, out=tmp_path / "1", data=data).parity
    assert min(parity.agreement.values()) == 1 and parity.difference < 5e-3


def test_the_largest_center_of_that_shape_is_shown():
    from keras_transfer.modalities.image.prepare import resize_and_crop

    columns = np.arange(80, dtype="uint8")[None, :, None].repeat(40, 0).repeat(3, 2)
    shown = resize_and_crop(columns, "20x30", 1.0).numpy()
    assert shown.shape == (20, 30, 3)
    # 40 × 60 of the 40 × 80 pixels, two for one.
    np.testing.assert_allclose(shown[10, 2:-2, 0], np.arange(10.5, 70, 2)[2:-2], atol=1)
    tall = resize_and_crop(columns.transpose(1, 0, 2), "30x20", 1.0).numpy()
    np.testing.assert_allclose(tall, shown.transpose(1, 0, 2), atol=1)


@pytest.mark.parametrize("augmentation", ["light", "heavy", "randaugment"])
def test_varied_images_have_that_shape(tmp_path, augmentation):
    Image.new("RGB", (60, 50), (200, 10, 10)).save(tmp_path / "a.png")
    data = from_directory(write_colours(tmp_path / "d"), progress=False)
    batches = data.batches(
        "train", image_size=Framing(SIZE, 1.0), batch_size=8, augment=augmentation
    )
    assert next(iter(batches))[0].shape == (8, 48, 64, 3)


def test_options_and_recipes():
    assert TrainConfig(image_size="96x192").to_dict()["image_size"] == "96x192"
    assert (
        TrainConfig(image_size="96").image_size == TrainConfig(image_size=(96, 96)).image_size == 96
    )
    small, *_ = progressive_resize(image_size="128x192").phases
    assert small.image_size == "64x128"
    with raises("too small for mobilenet_0.25"):
        build_model(
            "mobilenet_0.25", kt.Classification(("a", "b")), image_size="16x192", weights=None
        )
