"""Augmentation: what varies and how much, that a seed fixes it, and what is refused."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import yaml
from conftest import raises, ramp, variants

from keras_transfer.data import (
    AUGMENTATIONS,
    Augmentation,
    plain_augmentation,
    resolve_augmentation,
    without_flip,
)


def drawn(augmentation, image, size, seeds):
    """Variants [N, size, size, 3] of one image, one a seed."""
    return variants(image, size, augmentation, [(7, seed) for seed in seeds])


# --- Our own ----------------------------------------------------------------------------------


def box_of(result: np.ndarray, height: int, width: int):
    """Read from an augmented `ramp` which box it shows: area share, aspect, mirrored."""
    columns, rows = result[..., 0].astype(float).mean(0), result[..., 1].astype(float).mean(1)
    span = len(columns) / (len(columns) - 1) / 255
    across, down = (columns[-1] - columns[0]) * span, (rows[-1] - rows[0]) * span
    return abs(across) * down, abs(across) * width / (down * height), across < 0


@pytest.mark.parametrize(("height", "width"), [(120, 160), (80, 400)])
def test_augment_draws_boxes_within_the_limits(height, width):
    made = drawn(Augmentation(min_area=0.1), ramp(height, width), 64, range(80))
    area, aspect, mirrored = np.array([box_of(image, height, width) for image in made]).T
    largest = min(1, 4 / 3 * min(height, width) / max(height, width))
    assert area.min() > 0.09 and largest * 0.8 < area.max() < largest * 1.03
    assert 0.72 < aspect.min() < 0.85 and 1.18 < aspect.max() < 1.37
    assert 20 <= mirrored.sum() <= 60


def test_augment_depends_on_the_seed_alone(rng):
    image = rng.integers(0, 256, (70, 90, 3)).astype(np.uint8)
    for name in ("light", "medium", "heavy"):
        first, again, other = variants(image, 32, name, [(1, 2), (1, 2), (1, 3)])
        assert first.dtype == np.uint8 and first.shape == (32, 32, 3)
        assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_augment_none_is_the_evaluation_transform(rng):
    from keras_transfer.data import batches as pipeline
    from keras_transfer.data.arrays import Arrays
    from keras_transfer.data.examples import Examples

    image = rng.integers(0, 256, (70, 90, 3)).astype(np.uint8)
    example = Examples(Arrays([image]), np.zeros(1, "int32"))
    ((plain, _),) = pipeline.batches(example, image_size=32, batch_size=1)
    assert np.array_equal(variants(image, 32, "none", [(0, 1)])[0], plain[0])


def test_each_colour_change_does_what_it_says():
    def vary(**strength):
        variant = Augmentation(crop=False, flip=False, **strength)
        results = variants(image, 16, variant, [(0, i) for i in range(12)]).astype(float)
        assert np.std([r.mean(axis=(0, 1)) + r[0, 0] for r in results], axis=0).max() > 1
        return results

    image = np.zeros((16, 16, 3), np.uint8)
    image[:, :8], image[:, 8:] = (120, 80, 40), (60, 60, 60)
    plain = variants(image, 16, "none", [(0, 0)])[0].astype(float)
    weights = np.array([0.2989, 0.5870, 0.1140])
    for result in vary(brightness=0.5):
        factor = result[0, 0, 0] / plain[0, 0, 0]
        assert 0.49 < factor < 1.51 and np.abs(result - plain * factor).max() <= 1.5
    for result in vary(contrast=0.5):
        assert abs((result @ weights).mean() - (plain @ weights).mean()) < 1
    for result in vary(saturation=0.5):
        assert np.abs(result @ weights - plain @ weights).max() < 1.5
        assert np.abs(result[:, 12] - 60).max() <= 1  # grey stays grey
    for result in vary(hue=0.5):
        assert np.abs(result[0, 0].max() - 120) <= 1 and np.abs(result[:, 12] - 60).max() <= 1
    white = np.full((16, 16, 3), 250, np.uint8)
    bright = variants(white, 8, Augmentation(brightness=1.0), [(0, i) for i in range(12)])
    bright = bright.max(axis=(1, 2, 3))
    assert max(bright) == 255  # clipped, not wrapped round


def test_augmentations_by_name():
    assert resolve_augmentation("heavy") is AUGMENTATIONS["heavy"]
    mine = Augmentation(hue=0.1)
    assert resolve_augmentation(mine) is mine
    with raises("unknown augmentation 'lite'; choose one of none, flip, light, medium, heavy"):
        resolve_augmentation("lite")
    for wrong in ({"hue": 0.6}, {"min_area": 0}, {"max_aspect": 0.5}, {"contrast": float("nan")}):
        with raises(f"augmentation: {next(iter(wrong))} must be between"):
            Augmentation(**wrong)


def test_rotate_turns_about_the_centre_by_all_angles_up_to_its_limit():
    """The slopes of red and green, which rise along the axes, turn with the image."""
    image = (0.4 * ramp(64, 64) + 60).round().astype(np.uint8)
    plain = drawn("none", image, 49, [0])[0].astype(float)
    turned = drawn(Augmentation(crop=False, flip=False, rotate=20.0), image, 49, range(60))
    angles = []
    for variant in turned.astype(float):
        down, across = (np.gradient(variant[..., 0], axis=i)[16:33, 16:33].mean() for i in (0, 1))
        angles.append(np.degrees(np.arctan2(down, across)))
        assert np.abs(variant[24, 24] - plain[24, 24]).max() <= 1
    angles = np.array(angles)
    assert np.abs(angles).max() < 20.5 and angles.min() < -14 and angles.max() > 14
    assert len(np.unique(angles.round(2))) > 40
    white = np.full((64, 64, 3), 255, np.uint8)
    assert drawn(Augmentation(rotate=180.0), white, 32, range(5)).min() == 255  # no black corners


def test_rand_augment_keeps_images_recognisable(rng):
    """No negative, and mostly near the image: Keras's own ranges fail this."""
    image = np.full((64, 64, 3), 60, np.uint8)
    image[16:48, 16:48] = 200
    weak = Augmentation(crop=False, flip=False, rand_augment=0.3)
    variants = drawn(weak, image, 48, range(24)).astype(float)
    assert len({v.tobytes() for v in variants}) > 12
    inner, outer = variants[:, 20:28, 20:28].mean((1, 2, 3)), variants[:, :3].mean((1, 2, 3))
    assert (inner > outer + 40).all()


def test_augmentations_are_built_from_presets_and_files(tmp_path):
    wanted = Augmentation(brightness=0.1, flip=False)
    assert resolve_augmentation({"brightness": 0.1, "flip": False}) == wanted
    medium = resolve_augmentation({"preset": "medium", "flip": False})
    assert medium == without_flip("medium") and medium.brightness == 0.2 and not medium.flip
    for name, text in {
        "a.yaml": "preset: medium\nflip: false\n",
        "a.json": '{"preset": "medium", "flip": false}',
    }.items():
        (tmp_path / name).write_text(text)
        assert resolve_augmentation(tmp_path / name) == medium
        assert plain_augmentation(str(tmp_path / name)) == medium.to_dict()
    assert plain_augmentation("heavy") == "heavy"
    assert resolve_augmentation(yaml.safe_load(yaml.safe_dump(medium.to_dict()))) == medium


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"flop": True}, "unknown field flop; the fields are preset, crop"),
        ({"preset": "lite"}, "unknown preset 'lite'; choose one of none, flip, light"),
        ({"flip": "no"}, "flip must be true or false, not 'no'"),
        ({"hue": "much"}, "hue must be between 0 and 0.5, not much"),
        ({"rotate": -1.0}, "rotate must be between 0 and 180"),
        (3, "3 is not a name"),
        ("no/such.yaml", "such.yaml cannot be read: No such file"),
        ("tests", "unknown augmentation 'tests'"),
    ],
)
def test_augmentations_that_are_none(given, words):
    with raises(words):
        resolve_augmentation(given)


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "transform: 3\n", "preset: [medium]\n"])
def test_files_that_hold_no_augmentation(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with raises("bad.yaml"):
        resolve_augmentation(tmp_path / "bad.yaml")


# --- albumentations ---------------------------------------------------------------------------


def compose(*more):
    import albumentations as A

    return A.Compose(
        [
            A.RandomCrop(30, 30),
            A.OneOf([A.HorizontalFlip(p=1), A.Rotate(15, p=1)], p=0.7),
            A.GaussNoise(p=0.5),
            *more,
        ]
    )


def test_a_compose_is_written_down_and_made_again(tmp_path):
    import albumentations as A

    resolved = resolve_augmentation(compose())
    fields = yaml.safe_load(yaml.safe_dump(plain_augmentation(compose())))
    assert fields == json.loads(json.dumps(A.to_dict(compose())))
    assert resolve_augmentation(fields) == resolved
    for kind in ("yaml", "json"):
        A.save(compose(), tmp_path / f"mine.{kind}", data_format=kind)
        assert resolve_augmentation(tmp_path / f"mine.{kind}") == resolved
    assert resolved != resolve_augmentation(compose(A.Blur(p=0.1)))
    assert resolved.flip and not resolve_augmentation(A.Compose([A.Blur()])).flip
    assert "HorizontalFlip" in str(resolve_augmentation(A.HorizontalFlip(p=1)))


def test_a_compose_depends_on_the_seed_alone_and_its_transforms_draw_apart(rng):
    import albumentations as A

    image = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    first, again = drawn(compose(), image, 24, range(6)), drawn(compose(), image, 24, range(6))
    assert np.array_equal(first, again) and len({v.tobytes() for v in first}) == 6

    # What has the size already is left as it is.
    square = np.ascontiguousarray(image[:40, :40])
    two = drawn(A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]), square, 40, range(60))
    kinds = [square, square[:, ::-1], square[::-1], square[::-1, ::-1]]
    seen = [sum(np.array_equal(variant, kind) for variant in two) for kind in kinds]
    assert sum(seen) == 60 and min(seen) >= 5


def test_a_transform_of_ones_own_is_stored_by_name(rng):
    import albumentations as A

    class Negative(A.ImageOnlyTransform):
        def apply(self, img, **params):
            img *= 0  # in place: must not reach the image that is kept
            return 255 - img

    resolved = resolve_augmentation(A.Compose([Negative(p=1)]))
    image = rng.integers(0, 256, (20, 20, 3)).astype(np.uint8)
    kept = image.copy()
    assert drawn(resolved, image, 20, [0]).min() == 255 and np.array_equal(image, kept)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"__class_fullname__": "Rotat", "p": 1}, "no transform 'Rotat'; did you mean Rotate"),
        ({"__class_fullname__": "os.system", "p": 1, "command": "ls"}, "no transform 'os.system'"),
        ({"__class_fullname__": "Rotate", "p": 1, "limt": 9}, "'limt' are not valid"),
        ({"__class_fullname__": "Rotate", "limit": 9}, "Rotate has no 'p' parameter"),
        ({"__class_fullname__": "Rotate", "p": 1, "limit": "x"}, "valid number"),
        ({"__class_fullname__": "Lambda", "__name__": "f"}, "invalid albumentations transform"),
        ({"p": 1}, "'__class_fullname__' is missing; give the output of albumentations.save"),
        (None, "invalid albumentations transform"),
    ],
)
def test_files_of_albumentations_make_its_transforms_and_nothing_else(fields, words):
    with raises(words):
        resolve_augmentation({"transform": fields})


def test_a_lambda_is_refused():
    import albumentations as A

    with pytest.warns(UserWarning), raises("a Lambda"):
        resolve_augmentation(A.Compose([A.Lambda(image=lambda image, **_: image, name="f")]))


def test_no_look_at_the_network():
    code = (
        "import sys, urllib.request\n"
        "def refuse(*_, **__): raise SystemExit('asked the network')\n"
        "urllib.request.OpenerDirector.open = refuse\n"
        "from keras_transfer.data import resolve_augmentation\n"
        "resolve_augmentation({'transform': {'__class_fullname__': 'HorizontalFlip', 'p': 1}})\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules\n"
    )
    clean = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    result = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# --- Keras layers -----------------------------------------------------------------------------


@keras.saving.register_keras_serializable("test_augmentation")
class Shade(keras.layers.Layer):
    """Draws without a generator of its own, as layers often do."""

    def call(self, inputs):
        return inputs * keras.random.uniform((1, 1, 1, 1)) * keras.random.uniform((1, 1, 1, 1))


def layers():
    return keras.layers.Pipeline(
        [keras.layers.RandomRotation(0.1), keras.layers.RandomContrast(0.5), Shade()]
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.layers.RandomRotation(0.1),
        lambda: keras.layers.RandAugment(),
        lambda: keras.layers.AugMix(),
        lambda: keras.Sequential([keras.layers.RandomZoom(0.4), keras.layers.Dropout(0.5)]),
        layers,
        Shade,
        lambda: keras.layers.RandomCrop(16, 20),
    ],
    ids=["rotation", "randaugment", "augmix", "sequential", "pipeline", "own", "crop"],
)
def test_a_layer_depends_on_the_seed_alone(rng, make):
    image = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    layer = make()
    first = drawn(layer, image, 24, range(5))
    again = drawn(plain_augmentation(make()), image, 24, range(5))
    assert first.shape == (5, 24, 24, 3) and first.dtype == np.uint8
    assert len({v.tobytes() for v in first}) >= 4
    # Another layer of the same arguments has another name only, and its own seeds.
    assert np.array_equal(first, again)
    assert resolve_augmentation(make()) == resolve_augmentation(layer)


def test_the_layer_itself_is_left_alone(rng):
    layer = keras.layers.RandomRotation(0.1, seed=3)
    before = layer.generator.state.numpy().tolist()
    drawn(layer, rng.integers(0, 256, (40, 50, 3)).astype(np.uint8), 24, range(2))
    assert layer.generator.state.numpy().tolist() == before and not layer.built
    x = rng.uniform(0, 255, (2, 24, 24, 3)).astype("float32")
    assert not np.array_equal(
        layer(x, training=True), layer(x, training=True)
    )  # draws on by itself


def test_pixels_are_not_rounded_to_half_precision(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    layer = keras.layers.Rescaling(1.0, offset=0.4)  # 200.4 would be 200 or 201
    image = rng.integers(130, 250, (40, 40, 3)).astype(np.uint8)
    assert np.array_equal(drawn(layer, image, 40, [0])[0], drawn("none", image, 40, [0])[0])


@pytest.mark.parametrize(
    "layer",
    [
        lambda: keras.layers.Rescaling(1 / 255),
        lambda: keras.layers.Rescaling(1 / 127.5, offset=-1.0),
        lambda: keras.layers.Rescaling(1.0, offset=-127.5),
        lambda: keras.layers.Normalization(mean=[124, 116, 104], variance=[3400, 3200, 3300]),
        lambda: keras.layers.RandAugment(value_range=(0, 1)),
        lambda: keras.layers.RandomBrightness(0.1, value_range=(0, 1)),
        lambda: keras.Sequential([keras.layers.RandomFlip(), keras.layers.Rescaling(1 / 255)]),
        lambda: keras.layers.Rescaling(255.0),
    ],
)
def test_a_layer_that_changes_the_range_is_refused(layer):
    with raises("it must keep 0–255"):
        drawn(layer(), np.zeros((40, 40, 3), np.uint8), 24, [0])


@pytest.mark.parametrize(
    "layer",
    [
        lambda: keras.layers.RandomBrightness((-1.0, 1.0)),
        lambda: keras.layers.RandomContrast(0.9),
        lambda: keras.layers.RandomInvert(1.0),
        lambda: keras.layers.Solarization(),
        lambda: keras.layers.RandomErasing(1.0, fill_value=0),
        lambda: keras.layers.GaussianNoise(1.0),
        lambda: keras.layers.RandomGrayscale(1.0),
        lambda: keras.layers.RandomColorDegeneration(1.0),
        lambda: keras.layers.RandomPosterization(1),
        lambda: keras.layers.RandomTranslation(0.9, 0.9, fill_mode="constant"),
    ],
)
def test_a_strong_layer_that_keeps_the_range_is_accepted(layer):
    drawn(layer(), np.full((40, 40, 3), 128, np.uint8), 24, [0])


def test_layers_that_are_refused():
    def raising(layer, words):
        with raises(words):
            drawn(layer, np.zeros((40, 40, 3), np.uint8), 24, [0])

    raising(keras.layers.Lambda(lambda x: x), "the Keras layer cannot be rebuilt")
    raising(keras.layers.Flatten(), "returned [1, 1728] for an image [1, 24, 24, 3]")
    raising(keras.layers.Reshape((3, 5)), "failed on an image of 24x24")
    raising(keras.losses.MeanSquaredError(), "is not a Keras layer")
    raising(
        {"class_name": "system", "module": "os", "config": {}}, "the Keras layer cannot be rebuilt"
    )
    assert resolve_augmentation(keras.layers.RandomFlip()).flip
    assert not resolve_augmentation(keras.layers.RandomFlip("vertical")).flip
    with raises("--no-flip"):
        without_flip(keras.layers.RandomFlip())
