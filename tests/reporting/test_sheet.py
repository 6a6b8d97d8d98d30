"""The contact sheet: images as in evaluation and augmented."""

import albumentations as A
import numpy as np
import pytest
from conftest import raises
from PIL import Image
from test_augmentation import compose

from keras_transfer.data import Examples, ImageData, from_directory
from keras_transfer.data.arrays import Arrays
from keras_transfer.modalities import open_framing
from keras_transfer.reporting.sheet import _spread, show_batch, write_sheet


def test_a_sheet_shows_each_class_as_evaluation_and_as_training_see_it(colours, tmp_path):
    data = from_directory(colours)
    figure = show_batch(data, 5, augment=["light", compose()], image_size=20, variants=2)
    images = [axes for axes in figure.axes if axes.images]
    assert len(images) == 5 * (1 + 2 + 2)
    labels = [axes.texts[0].get_text() for axes in figure.axes if axes.texts]
    assert labels == ["blue", "blue", "green", "red", "red"]
    titles = [axes.get_title(loc="left") for axes in images if axes.get_title(loc="left")]
    assert titles == ["as in evaluation", "light", "Compose"]
    shown = {p.images[0].get_array().tobytes() for p in images[:5]}
    (batch,) = [b for b, _ in data.batches("train", image_size=20, batch_size=64)]
    assert shown <= {p.tobytes() for p in batch.numpy()}
    assert figure._repr_png_().startswith(b"\x89PNG")

    write_sheet(data, tmp_path / "s.png", 3, image_size=16, variants=1, mix="mixup")
    with Image.open(tmp_path / "s.png") as image:
        assert image.width > image.height > 300
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 300
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["s.png"]


def test_a_sheet_of_many_classes_has_examples_of_all():
    labels = np.repeat(np.arange(40), 3)
    chosen = labels[_spread(labels, 9, 0)]
    assert len(set(chosen)) == 9 and chosen.min() == 0 and chosen.max() == 39
    assert np.bincount(labels[_spread(labels, 60, 1)]).tolist().count(2) == 20
    assert len(_spread(labels, 999, 0)) == 120


def test_invalid_sheets(colours, tmp_path):
    data = from_directory(colours)
    with raises("it must be a .png file"):
        write_sheet(data, tmp_path / "s.pdf")
    with raises("has no test images; it has train, val"):
        show_batch(data, split="test")
    with raises("must be 1 or more, not 0, 5 and 224"):
        show_batch(data, 0)
    with raises("the transform failed on"):
        show_batch(data, 2, augment=A.RandomCrop(99, 99, p=1))
    arrays = ImageData(
        ("a", "b"),
        {"train": Examples(Arrays(np.zeros((2, 9, 9, 3), np.uint8)), np.array([0, 1]))},
        [],
        "memory",
    )
    assert len([axes for axes in show_batch(arrays, image_size=8).axes if axes.images]) == 12


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_other_than_three_channels(tmp_path, channels):
    for name in "ab":
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(2):
            values = np.full((30, 30, channels), 90 * i + 60, "uint8")
            np.save(tmp_path / "d" / name / f"{i}.npy", values)
    data = from_directory(tmp_path / "d", progress=False)
    seen = open_framing(16, channels=channels)
    figure = show_batch(data, 2, image_size=seen, variants=1)
    assert all(image.get_array().shape == (16, 16, 3) for ax in figure.axes for image in ax.images)
    if channels != 1:
        with raises("The model cannot read 4 of 4 images"):
            show_batch(data, 2, image_size=16)
