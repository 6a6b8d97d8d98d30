"""Arguments of another kind than the one needed are refused in one line that says what to pass."""

import numpy as np
import pytest
from conftest import raises, tiny_backbone

import keras_transfer as kt
from keras_transfer import advisor
from keras_transfer.data import from_arrays
from keras_transfer.models.builders import backbone_at, build_model
from keras_transfer.models.heads import Classification, MultiLabel, Regression
from keras_transfer.models.sources.backbones import build_backbone
from keras_transfer.schedules.recipes import RECIPES, resolve_schedule
from keras_transfer.training import TrainConfig
from keras_transfer.utils.image_sizes import checked_size
from keras_transfer.utils.names import check_minutes

HEAD = Classification(["a", "b"])


@pytest.fixture(scope="module")
def data():
    images = np.random.default_rng(0).integers(0, 256, (12, 40, 40, 3)).astype("uint8")
    return from_arrays((images, np.arange(12) % 2), val_split=0.25, progress=False)


@pytest.mark.parametrize(
    "use",
    [
        lambda data, size: build_model(tiny_backbone(), HEAD, image_size=size),
        lambda data, size: build_model("mobilenet_0.25", HEAD, image_size=size, weights=None),
        lambda data, size: build_backbone("mobilenet_0.25", image_size=size, weights=None),
        lambda data, size: backbone_at(build_model(tiny_backbone(), HEAD, image_size=32), size),
        lambda data, size: data.batches("train", image_size=size, batch_size=4),
        lambda data, size: data.batches("train", image_size=size, batch_size=4, training=True),
        lambda data, size: kt.reporting.show_batch(data, image_size=size),
        lambda data, size: kt.Phase("head", "all", 1, image_size=size),
        lambda data, size: RECIPES["progressive_resize"](image_size=size),
        lambda data, size: resolve_schedule("progressive_resize", image_size=size),
        lambda data, size: kt.compare(data, "out", backbone="mobilenet_0.25", image_size=size),
        lambda data, size: kt.advise(data, image_size=size),
        lambda data, size: advisor.score_backbone("mobilenet_0.25", data, image_size=size),
        lambda data, size: advisor.probe_stages("mobilenet_0.25", data, image_size=size),
        lambda data, size: advisor.domain_distance(
            data, data, backbone="mobilenet_0.25", image_size=size
        ),
        lambda data, size: kt.models.set_precision("float32", "mobilenet_0.25", size),
        lambda data, size: TrainConfig(image_size=size),
    ],
)
@pytest.mark.parametrize("size", [(64, 64, 3), "64 px", 64.0])
def test_an_image_size_is_one_number_or_two(data, use, size):
    with pytest.raises(kt.InputError) as raised:
        use(data, size)
    message = str(raised.value)
    assert "\n" not in message and repr(size) in message
    assert "image_size" in message or "image size" in message


def test_an_image_size_is_plain_data():
    for size, plain in (
        (None, None),
        (np.int64(64), 64),
        ("64", 64),
        ((64, 64), 64),
        ("64x64", 64),
        ([64, 32], "64x32"),
        ("64x32", "64x32"),
    ):
        assert checked_size(size) == plain
    for size in (0, True, "64x", (64, 0), "-3", [], 64.0):
        with pytest.raises(kt.InputError) as raised:
            checked_size(size)
        assert f"such as 96x192, not {size!r}" in str(raised.value)


@pytest.mark.parametrize("head", [Classification, MultiLabel, Regression])
@pytest.mark.parametrize("names", [5, None, 2.5, {"a": 0, "b": 1}])
def test_a_head_is_made_of_names(head, names):
    with pytest.raises(kt.InputError) as raised:
        head(names)
    assert str(raised.value) == (
        f"The names of {head.__name__} must be a sequence of names, such as ['cat', 'dog'], not "
        f"{names!r}."
    )
    assert head(np.array(["a", "b"])).names == ("a", "b")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"hidden": "wide"}, "hidden must be the widths of layers, such as (128,), not 'wide'"),
        ({"hidden": (0,)}, "hidden must be the widths"),
        ({"dropout": "0.5"}, "dropout must be in [0, 1), not '0.5'"),
        ({"dropout": None}, "dropout must be in [0, 1), not None"),
        ({"weight": None}, "weight of a head must be above 0, not None"),
        ({"bottleneck": (256,)}, "bottleneck must be 1 or more, not (256,)"),
    ],
)
def test_the_numbers_of_a_head_are_numbers(options, words):
    with pytest.raises(kt.InputError) as raised:
        Classification(["a", "b"], **options)
    assert words in str(raised.value)
    assert Classification(["a", "b"], hidden=64).hidden == (64,)


@pytest.mark.parametrize("head", [Classification, ["a", "b"], 2, {"x": 2, "y": 3}])
def test_a_model_is_built_with_a_head(head):
    with pytest.raises(kt.InputError, match="A head must be Classification"):
        build_model(tiny_backbone(), head, image_size=32)


def test_limits_in_minutes():
    for minutes in (None, 1, 0.5, np.float32(2)):
        check_minutes(minutes)
    for minutes, shown in ((0, "0"), (-1.5, "-1.5"), (float("nan"), "nan"), ("5", "'5'")):
        with raises(f"minutes must be above 0, not {shown}."):
            check_minutes(minutes)
