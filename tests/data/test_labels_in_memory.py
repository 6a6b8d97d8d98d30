"""Labels and images in the shapes in which Keras's datasets and loaders have them."""

import numpy as np
import pytest
from conftest import write_image

from keras_transfer.data import from_arrays, from_dataset
from keras_transfer.data.examples import Target
from keras_transfer.errors import InputError

CLASSES = np.arange(12) % 3


def pixels(count=12, dtype="uint8"):
    return np.random.default_rng(0).integers(0, 256, (count, 10, 12, 3)).astype(dtype)


def labels_of(data):
    """Labels in the order of the arrays."""
    pairs = [
        (int(name.split()[1]), label)
        for part in data.examples.values()
        for name, label in zip(part.names, part.labels)
    ]
    return [label.tolist() for _, label in sorted(pairs, key=lambda pair: pair[0])]


def opened(labels, **options):
    return from_arrays((pixels(), labels), val_split=0.25, progress=False, **options)


@pytest.mark.parametrize(
    "labels, said",
    [
        (CLASSES, None),
        (CLASSES.astype("uint8"), None),
        (CLASSES.tolist(), None),
        (CLASSES.astype("uint8")[:, None], "labels of shape [12, 1] are read as [N]"),
        (CLASSES.astype("float32"), "labels of float32 are whole numbers and read as integers"),
        (CLASSES.astype("float64")[:, None], "read as integers"),
        (np.eye(3)[CLASSES], "labels are one-hot, [12, 3]"),
        (np.eye(3, dtype="int64")[CLASSES], "labels are one-hot, [12, 3]"),
        (np.eye(3, dtype=bool)[CLASSES], "labels are one-hot, [12, 3]"),
        (CLASSES.astype(object), None),
    ],
)
def test_classes_are_read_in_any_shape_and_the_cast_is_said(labels, said, capsys):
    data = opened(labels)
    assert data.class_names == ("0", "1", "2") and labels_of(data) == CLASSES.tolist()
    error = capsys.readouterr().err
    assert (error == "") if said is None else (said in error and error.count("\n") == 1)


@pytest.mark.parametrize("kind", [bool, "float32", "int8"])
def test_two_classes_are_read_as_numbers_of_any_type(kind):
    for labels in ((CLASSES > 0).astype(kind), (CLASSES > 0).astype(kind)[:, None]):
        assert opened(labels).class_names == ("0", "1")


@pytest.mark.parametrize("kind", [str, str.encode, np.str_])
def test_names_are_text_or_bytes(kind):
    names = [kind("cab"[i]) for i in CLASSES]
    for labels in (names, np.array(names), np.array(names, object), np.array(names)[:, None]):
        data = opened(labels)
        assert data.class_names == ("a", "b", "c")
        assert labels_of(data) == [(2, 0, 1)[i] for i in CLASSES]


def test_names_that_are_numbers_are_sorted_by_value():
    assert opened([("10", "9", "2")[i] for i in CLASSES]).class_names == ("2", "9", "10")


@pytest.mark.parametrize("values", [(1, 2, 3), (0, 5, 10), (7, 5, 6)])
def test_labels_that_skip_numbers_name_the_classes(values, capsys):
    labels = np.array(values)[CLASSES]
    data = opened(labels)
    assert data.class_names == tuple(map(str, sorted(values)))
    assert labels_of(data) == [sorted(values).index(label) for label in labels]
    assert "these numbers name the classes" in capsys.readouterr().err
    again = opened(labels, class_names=data.class_names)
    assert labels_of(again) == labels_of(data)


@pytest.mark.parametrize(
    "labels, options, message",
    [
        (CLASSES + 0.5, {}, "labels that are not whole numbers (0.5, 1.5, 2.5"),
        (CLASSES * np.nan, {}, "labels that are not whole numbers (nan"),
        (np.ones((12, 3)), {}, "labels of shape [12, 3] that are not one-hot"),
        (np.full((12, 3), 1 / 3), {}, "that are not one-hot"),
        (np.zeros((12, 2, 2)), {}, "labels of shape [12, 2, 2]: pass one per example"),
        ([["a", "b"]] * 12, {}, "labels of shape [12, 2]: pass one per example"),
        ([["a"], ["a", "b"]] * 6, {}, "inhomogeneous"),
        (["a", None] * 6, {}, "must be integers or names, one per example, not object (None)"),
        (["a", float("nan")] * 6, {}, "train has no label at 1, 3, 5, 7, 9, 11"),
        (CLASSES + 1, {"class_names": ["a", "b", "c"]}, "not among the 3 classes: 3"),
        (
            CLASSES,
            {"class_names": ["a", "b", "c", "d"]},
            "class d has no readable example in arrays",
        ),
        (CLASSES, {"class_names": 3}, "class_names must be a sequence of names"),
        (np.eye(4)[CLASSES], {}, "class 3 has no readable example in arrays"),
        (np.eye(4)[CLASSES], {"task": "multi_label"}, "class 3 has no readable example"),
        (CLASSES, {"vall_split": 0.2}, "Unknown option 'vall_split' of from_arrays"),
        (CLASSES, {"task": "classes"}, "task must be one of single_label"),
        (["x"] * 12, {"task": "regression"}, "must be numbers of shape [N, C]"),
    ],
)
def test_labels_that_are_refused(labels, options, message):
    with pytest.raises(InputError) as raised:
        opened(labels, **options)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_class_whose_images_are_unusable_is_named():
    images = list(pixels())
    for i in np.flatnonzero(CLASSES == 1):
        images[i] = images[i][..., 0, 0]
    with pytest.raises(
        InputError, match=r"class 1 has no readable example in arrays \(train 1: not of"
    ):
        from_arrays((images, CLASSES), progress=False)


# -- Keras's loader -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pets")
    for label, colour in (("cat", (200, 30, 30)), ("dog", (30, 180, 40))):
        for i in range(6):
            write_image(folder / label / f"{i}.png", colour, size=(31, 17), seed=i)
    write_image(folder / "cat" / "6.png", (0, 0, 0), size=(31, 17), noise=0)  # black: 0 to 0
    return folder


@pytest.mark.parametrize("mode", ["int", "categorical", "binary"])
@pytest.mark.parametrize("batched", [True, False])
def test_the_loader_of_keras_is_read_as_it_is(folder, mode, batched, capsys):
    import keras

    loaded = keras.utils.image_dataset_from_directory(
        folder, label_mode=mode, image_size=(20, 20), batch_size=4, shuffle=False, verbose=False
    )
    data = from_dataset(loaded if batched else loaded.unbatch(), val_split=0.25, progress=False)
    assert data.class_names == (("cat", "dog") if batched else ("0", "1"))
    assert labels_of(data) == [0] * 7 + [1] * 6
    image = data.examples["train"].images.decoded(1)
    assert image.dtype == np.uint8 and image.shape == (20, 20, 3) and image.max() > 100
    error = capsys.readouterr().err
    assert "images of float32 are rounded to whole numbers 0–255" in error
    assert ("labels" in error) == (mode != "int")


def test_numbers_from_a_batched_dataset_are_read():
    import tensorflow as tf

    numbers = np.linspace(0, 1, 12, dtype="float32")
    dataset = tf.data.Dataset.from_tensor_slices((pixels(), numbers)).batch(5)
    data = from_dataset(dataset, task="regression", val_split=0.25, progress=False)
    assert data.targets == Target("regression", ("0",))


def test_clips_without_their_rate_are_refused():
    clips = list(np.linspace(-1, 1, 1200).reshape(12, 100))
    with pytest.raises(InputError, match=r"train 0 has the shape \[100\], .* or rate=… for clips"):
        from_arrays((clips, CLASSES), progress=False)
    with pytest.raises(InputError, match="train 0 is not an array: pass RGB values"):
        from_arrays(([(clip, 8000) for clip in clips], CLASSES), progress=False)


def test_normalized_images_are_refused():
    for images, message in (
        (pixels() / 127.5 - 1, "from -1 to .* without normalization"),
        (pixels() / 255, "train has values from 0 to 1.*multiply by 255"),
        (pixels().astype("float32") * np.nan, "from nan to nan"),
    ):
        with pytest.raises(InputError, match=message):
            from_arrays((images, CLASSES), progress=False)
    with pytest.raises(InputError, match="is <U1, not an image"):
        from_arrays(([np.array([["x"]])] * 12, CLASSES), progress=False)
