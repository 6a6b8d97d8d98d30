"""How much of an image a model sees: the setting, the choice by the data, and every stream of batches."""

import numpy as np
import pytest
from conftest import raises, ramp, variants, write_image

from keras_transfer.data import Augmentation, View, from_arrays, from_directory
from keras_transfer.data.readers import Files, concatenated
from keras_transfer.modalities.image.framing import Framing, choose_crop


def arrays(*shapes, val=(500, 500)):
    """Images of two classes, of which the training ones have these shapes."""
    images = [np.zeros((*shape, 3), "uint8") for shape in shapes]
    others = [np.zeros((*val, 3), "uint8")] * 2
    names = [i % 2 for i in range(len(shapes))]
    return from_arrays((images, names), (others, [0, 1]), progress=False)


# -- the setting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", [0, -0.5, 1.001, float("nan"), "wide", True, [0.5]])
def test_a_crop_is_a_share_above_0_and_at_most_1(crop):
    with raises("crop must be a number above 0 and at most 1, not "):
        Framing(32, crop)


def test_a_framing_and_an_image_size_mean_the_same():
    assert Framing.of(32).square == (32, 0.875)
    assert Framing.of(Framing(32, 1)).square == (32, 1.0)
    assert Framing(32, "0.5").crop == 0.5
    with raises("Pass image_size"):
        Framing.of(None).square  # noqa: B018
    assert Framing.of((32, 48)) == Framing("32x48") and Framing("32x48", 1).shape == (32, 48, 3)
    with raises("image_size must be a whole number of pixels"):
        Framing.of((32, 32, 3))


# -- the choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "crop"),
    [
        ([(32, 32)] * 4, 1.0),
        ([(64, 90)] * 4, 1.0),  # neither enlarged nor reduced: the crop would enlarge it
        ([(65, 90)] * 4, 0.875),
        ([(40, 900)] * 4, 1.0),  # the shorter side counts
        ([(40, 40), (50, 50), (100, 100), (200, 200)], 0.875),  # the median is 75
        ([(40, 40), (50, 50), (60, 60), (200, 200)], 1.0),
    ],
)
def test_images_that_would_be_enlarged_are_shown_whole(shapes, crop):
    assert choose_crop(arrays(*shapes), 64)[0] == crop


def test_the_training_images_decide_and_the_reason_names_both_sides():
    data = arrays((32, 40), (32, 40))
    reason = "the originals' median shorter side, 32 px, is not above the image size, 128 px"
    assert choose_crop(data, 128) == (1.0, reason)
    assert choose_crop(data.examples["val"], 128)[0] == 0.875
    assert choose_crop(data.examples["train"].take(np.array([], int)), 128)[0] == 0.875


def test_only_headers_of_at_most_200_files_are_read(tmp_path, monkeypatch):
    for i in range(440):
        write_image(tmp_path / f"{i % 2}" / f"{i:03}.png", (99, 99, 99), size=(20, 30), seed=i)
    data = from_directory(tmp_path, val_split=0.5, progress=False)
    read, side = [], Files.shorter_side
    monkeypatch.setattr(Files, "shorter_side", lambda self, i: read.append(i) or side(self, i))
    monkeypatch.setattr(Files, "contents", None)
    assert choose_crop(data, 64)[0] == 1.0
    assert len(read) == 200


def test_every_reader_knows_the_shorter_side(tmp_path):
    write_image(tmp_path / "a.png", (9, 9, 9), size=(20, 30))
    from keras_transfer.data.arrays import Arrays, Contents

    files = Files([str(tmp_path / "a.png")])
    contents = Contents([(tmp_path / "a.png").read_bytes()])
    both = concatenated([files, Arrays([np.zeros((9, 7, 3), "uint8")])])
    assert [files.shorter_side(0), contents.shorter_side(0)] == [20, 20]
    assert [both.shorter_side(i) for i in range(2)] == [20, 7]
    (tmp_path / "a.png").unlink()
    with raises("can no longer be read"):
        files.shorter_side(0)


# -- every stream ---------------------------------------------------------------------------------


def test_the_whole_image_is_shown_with_a_crop_of_1():
    from keras_transfer.modalities.image.prepare import resize_and_crop

    image = ramp(90, 60)
    expected = resize_and_crop(image, 30, 1.0).numpy()
    assert expected[0, 0, 0] < 8 and expected[0, -1, 0] > 247  # from edge to edge
    images = [image.astype("uint8")] * 2, [0, 1]
    data = from_arrays(images, images, progress=False)
    framing, options = Framing(30, 1.0), {"batch_size": 2}
    from keras_transfer.data import batches as pipeline

    (evaluated,) = data.batches("train", image_size=framing, **options)
    trained = data.batches("train", image_size=framing, training=True, augment="none", **options)
    views = pipeline.views(data.examples["train"], [0], [View(), View("mirror")], framing, 1)
    whole = np.asarray(evaluated[0][0])
    np.testing.assert_allclose(whole.astype(int), expected, atol=2)
    assert np.array_equal(next(iter(trained))[0][0], whole)
    (made,) = views.as_numpy_iterator()
    assert np.array_equal(made[:, 0], [whole, whole[:, ::-1]])
    (narrow,) = data.batches("train", image_size=30, **options)
    narrower = resize_and_crop(image.astype("uint8"), 30).numpy()
    np.testing.assert_allclose(narrow[0][0].numpy().astype(int), narrower, atol=2)
    assert np.abs(narrower.astype(int) - whole).max() > 8


def test_a_layer_and_a_fixed_augmentation_start_from_the_models_crop():
    import keras

    image = ramp(90, 60)
    (whole,) = variants(image, 30, "none", [(1, 2)], crop=1.0)
    steady = Augmentation(crop=False, flip=False, brightness=0, contrast=0, saturation=0, hue=0)
    for augment in (steady, keras.layers.Rescaling(1.0)):
        assert np.array_equal(variants(image, 30, augment, [(1, 2)], crop=1.0)[0], whole)
