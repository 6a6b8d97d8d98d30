"""Augmentation: what varies and how much, that a seed fixes it, and what is refused."""

import json
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import yaml
from conftest import ramp, tiny_backbone, write_picture

from keras_transfer.builders import build_model
from keras_transfer.data import (
    AUGMENTATIONS,
    Augmentation,
    Examples,
    ImageData,
    Mix,
    View,
    from_directory,
    plain_augmentation,
    resolve_augmentation,
    views_of,
    without_flip,
)
from keras_transfer.data.pictures import Arrays
from keras_transfer.errors import InputError
from keras_transfer.heads import Classification, MultiLabel, Regression
from keras_transfer.schedules import Phase, Schedule
from keras_transfer.training import Trainer

NAMES = ("blue", "green", "red")


def raises(message: str):
    return pytest.raises(InputError, match=re.escape(message))


def drawn(augmentation, picture, size, seeds):
    """Variants [N, size, size, 3] of one picture, one a seed."""
    import tensorflow as tf

    from keras_transfer.data.transforms import augmenter

    vary = tf.function(augmenter(resolve_augmentation(augmentation), size, ["the picture"]))
    index = tf.constant(0)
    return np.stack([vary(picture, tf.constant([7, s], tf.int64), index) for s in seeds])


# --- Our own ----------------------------------------------------------------------------------


def box_of(result: np.ndarray, height: int, width: int):
    """Read from an augmented `ramp` which box it shows: area share, aspect, mirrored."""
    columns, rows = result[..., 0].astype(float).mean(0), result[..., 1].astype(float).mean(1)
    span = len(columns) / (len(columns) - 1) / 255
    across, down = (columns[-1] - columns[0]) * span, (rows[-1] - rows[0]) * span
    return abs(across) * down, abs(across) * width / (down * height), across < 0


@pytest.mark.parametrize(("height", "width"), [(120, 160), (80, 400)])
def test_augment_draws_boxes_within_the_limits(height, width):
    import tensorflow as tf

    from keras_transfer.data.transforms import augment

    variant = Augmentation(min_area=0.1)
    draw = tf.function(lambda seed: augment(ramp(height, width), 64, variant, seed))
    boxes = np.array([box_of(draw(tf.constant([7, i])).numpy(), height, width) for i in range(80)])
    area, aspect, mirrored = boxes.T
    largest = min(1, 4 / 3 * min(height, width) / max(height, width))
    assert area.min() > 0.09 and largest * 0.8 < area.max() < largest * 1.03
    assert 0.72 < aspect.min() < 0.85 and 1.18 < aspect.max() < 1.37
    assert 20 <= mirrored.sum() <= 60


def test_augment_depends_on_the_seed_alone(rng):
    from keras_transfer.data.transforms import augment

    picture = rng.integers(0, 256, (70, 90, 3)).astype(np.uint8)
    for name in ("light", "medium", "heavy"):
        first, again, other = (
            augment(picture, 32, AUGMENTATIONS[name], seed).numpy()
            for seed in ((1, 2), (1, 2), (1, 3))
        )
        assert first.dtype == np.uint8 and first.shape == (32, 32, 3)
        assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_augment_none_is_the_evaluation_transform(rng):
    from keras_transfer.data.transforms import augment, resize_and_crop

    picture = rng.integers(0, 256, (70, 90, 3)).astype(np.uint8)
    assert np.array_equal(
        augment(picture, 32, AUGMENTATIONS["none"], (0, 1)), resize_and_crop(picture, 32)
    )


def test_each_colour_change_does_what_it_says():
    import tensorflow as tf

    from keras_transfer.data.transforms import augment

    def vary(**strength):
        variant = Augmentation(crop=False, flip=False, **strength)
        results = [augment(picture, 16, variant, (0, i)).numpy().astype(float) for i in range(12)]
        assert np.std([r.mean(axis=(0, 1)) + r[0, 0] for r in results], axis=0).max() > 1
        return results

    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:, :8], picture[:, 8:] = (120, 80, 40), (60, 60, 60)
    plain = augment(picture, 16, AUGMENTATIONS["none"], (0, 0)).numpy().astype(float)
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
    white = tf.fill([16, 16, 3], tf.constant(250, tf.uint8))
    bright = [
        augment(white, 8, Augmentation(brightness=1.0), (0, i)).numpy().max() for i in range(12)
    ]
    assert max(bright) == 255  # clipped, not wrapped round


def test_augmentations_by_name():
    assert resolve_augmentation("heavy") is AUGMENTATIONS["heavy"]
    mine = Augmentation(hue=0.1)
    assert resolve_augmentation(mine) is mine
    with raises("no augmentation named 'lite'; choose one of none, light, medium, heavy"):
        resolve_augmentation("lite")
    for wrong in ({"hue": 0.6}, {"min_area": 0}, {"max_aspect": 0.5}, {"contrast": float("nan")}):
        with raises(f"augmentation: {next(iter(wrong))} must lie between"):
            Augmentation(**wrong)


def test_rotate_turns_about_the_centre_by_all_angles_up_to_its_limit():
    """The slopes of red and green, which rise along the axes, turn with the picture."""
    picture = (0.4 * ramp(64, 64) + 60).round().astype(np.uint8)
    plain = drawn("none", picture, 49, [0])[0].astype(float)
    turned = drawn(Augmentation(crop=False, flip=False, rotate=20.0), picture, 49, range(60))
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


def test_rand_augment_keeps_pictures_recognisable(rng):
    """No negative, and mostly near the picture: Keras's own ranges fail this."""
    picture = np.full((64, 64, 3), 60, np.uint8)
    picture[16:48, 16:48] = 200
    weak = Augmentation(crop=False, flip=False, rand_augment=0.3)
    variants = drawn(weak, picture, 48, range(24)).astype(float)
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
        ({"flop": True}, "there is no field flop; an augmentation has preset, crop"),
        ({"preset": "lite"}, "no preset named 'lite'; choose one of none, light"),
        ({"flip": "no"}, "flip must be true or false, not 'no'"),
        ({"hue": "much"}, "hue must lie between 0 and 0.5, not much"),
        ({"rotate": -1.0}, "rotate must lie between 0 and 180"),
        (3, "3 is neither a name"),
        ("no/such.yaml", "such.yaml cannot be read: No such file"),
        ("tests", "no augmentation named 'tests'"),
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

    picture = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    first, again = drawn(compose(), picture, 24, range(6)), drawn(compose(), picture, 24, range(6))
    assert np.array_equal(first, again) and len({v.tobytes() for v in first}) == 6

    # What has the size already is left as it is.
    square = np.ascontiguousarray(picture[:40, :40])
    two = drawn(A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]), square, 40, range(60))
    kinds = [square, square[:, ::-1], square[::-1], square[::-1, ::-1]]
    seen = [sum(np.array_equal(variant, kind) for variant in two) for kind in kinds]
    assert sum(seen) == 60 and min(seen) >= 5


def test_a_transform_of_ones_own_is_stored_by_name(rng):
    import albumentations as A

    class Negative(A.ImageOnlyTransform):
        def apply(self, img, **params):
            img *= 0  # in place: must not reach the picture that is kept
            return 255 - img

    resolved = resolve_augmentation(A.Compose([Negative(p=1)]))
    picture = rng.integers(0, 256, (20, 20, 3)).astype(np.uint8)
    kept = picture.copy()
    assert drawn(resolved, picture, 20, [0]).min() == 255 and np.array_equal(picture, kept)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"__class_fullname__": "Rotat", "p": 1}, "no transform 'Rotat'; did you mean Rotate"),
        ({"__class_fullname__": "os.system", "p": 1, "command": "ls"}, "no transform 'os.system'"),
        ({"__class_fullname__": "Rotate", "p": 1, "limt": 9}, "'limt' are not valid"),
        ({"__class_fullname__": "Rotate", "limit": 9}, "Rotate has no 'p' parameter"),
        ({"__class_fullname__": "Rotate", "p": 1, "limit": "x"}, "valid number"),
        ({"__class_fullname__": "Lambda", "__name__": "f"}, "no transform of albumentations"),
        ({"p": 1}, "'__class_fullname__' is missing; give what albumentations.save writes"),
        (None, "this is no transform"),
    ],
)
def test_files_of_albumentations_make_its_transforms_and_nothing_else(fields, words):
    with raises(words):
        resolve_augmentation({"transform": fields})


def test_a_lambda_is_refused():
    import albumentations as A

    with pytest.warns(UserWarning), raises("a Lambda"):
        resolve_augmentation(A.Compose([A.Lambda(image=lambda image, **_: image, name="f")]))


def test_a_transform_that_fails_names_the_picture_and_itself(numbered, tmp_path):
    import albumentations as A
    import tensorflow as tf

    too_large = A.Compose([A.RandomCrop(45, 45, p=1)])  # the pictures are 50x40
    with pytest.raises(tf.errors.OpError, match=r"failed on .*0\d.png \(50x40\).*RandomCrop"):
        stream(numbered, 1, augmentation=too_large)
    with pytest.raises(tf.errors.OpError, match=r"made float32 .* of .*0\d.png.*Normalize"):
        stream(numbered, 1, augmentation=A.Compose([A.Normalize()]))
    names = tuple("abcdefghijk")
    data = ImageData(names, {"train": numbered}, [], str(tmp_path))
    model = build_model(tiny_backbone(), Classification(names), image_size=32)
    trainer = Trainer(model, Schedule("s", (Phase("p", "none", 1),)), augment=too_large)
    with pytest.raises(InputError, match=r"failed on .*0\d.png") as caught:
        trainer.fit(data, tmp_path / "run")
    assert "\n" not in str(caught.value)


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
    picture = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    layer = make()
    first = drawn(layer, picture, 24, range(5))
    again = drawn(plain_augmentation(make()), picture, 24, range(5))
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
    picture = rng.integers(130, 250, (40, 40, 3)).astype(np.uint8)
    assert np.array_equal(drawn(layer, picture, 40, [0])[0], drawn("none", picture, 40, [0])[0])


def test_layers_that_are_refused():
    def raising(layer, words):
        with raises(words):
            drawn(layer, np.zeros((40, 40, 3), np.uint8), 24, [0])

    raising(keras.layers.Lambda(lambda x: x), "no Keras layer can be made")
    raising(keras.layers.Flatten(), "made [1, 1728] of a picture [1, 24, 24, 3]")
    raising(keras.layers.Reshape((3, 5)), "failed on a picture of 24x24")
    raising(keras.losses.MeanSquaredError(), "is no Keras layer")
    raising({"class_name": "system", "module": "os", "config": {}}, "no Keras layer")
    assert resolve_augmentation(keras.layers.RandomFlip()).flip
    assert not resolve_augmentation(keras.layers.RandomFlip("vertical")).flip
    with raises("--no-flip"):
        without_flip(keras.layers.RandomFlip())


# --- The stream -------------------------------------------------------------------------------


@pytest.fixture
def numbered(tmp_path):
    """Eleven noisy pictures whose label is their index."""
    for i in range(11):
        write_picture(tmp_path / f"{i:02}.png", (20 * i, 100, 100), size=(50, 40), seed=i)
    return Examples(sorted(map(str, tmp_path.glob("*.png"))), np.arange(11, dtype=np.int32))


def stream(examples, batches, *, threads=None, **options):
    import tensorflow as tf

    from keras_transfer.data import pipeline

    dataset = pipeline.batches(
        examples, image_size=16, batch_size=4, training=True, classes=11, **options
    )
    if threads:
        wanted = tf.data.Options()
        wanted.threading.private_threadpool_size = threads
        dataset = dataset.with_options(wanted)
    return list(dataset.take(batches).as_numpy_iterator())


def same(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a, b) for x, y in zip(one, other) for a, b in zip(x, y)
    )


KINDS = {
    **{name: (lambda name=name: name, Mix()) for name in AUGMENTATIONS},
    "rotate": (lambda: {"preset": "heavy", "rotate": 20.0}, Mix()),
    "albumentations": (compose, Mix()),
    "layers": (layers, Mix()),
    "mixup": (lambda: "light", Mix("mixup", 1.0)),
    "cutmix": (compose, Mix("cutmix")),
}


# "rotate" is "heavy" and more, and that has all that the lighter ones have.
CONTAINED = ("none", "light", "medium", "heavy")


@pytest.mark.parametrize(
    "kind", [pytest.param(x, marks=[pytest.mark.large] * (x in CONTAINED)) for x in KINDS]
)
def test_threads_and_a_later_start_change_nothing(numbered, kind):
    make, mix = KINDS[kind]
    options = {"augmentation": make(), "mix": mix, "seed": 5}
    one = stream(numbered, 15, threads=1, **options)
    # A run that was killed in its fourth epoch goes on from there, in many threads.
    assert same(one[9:], stream(numbered, 6, threads=8, start_epoch=3, **options))
    if kind != "none":
        # Another epoch, and another seed, is another draw: of the same pictures.
        for other in (one[3:6], stream(numbered, 3, **{**options, "seed": 6})):
            assert not {p.tobytes() for b in one[:3] for p in b[0]} & {
                p.tobytes() for b in other for p in b[0]
            }


def test_fixed_views_follow_from_the_pictures_content(numbered):
    from keras_transfer.data import pipeline

    def seen(chosen, batch_size, view):
        made = pipeline.views(numbered, chosen, [View(), view], 16, batch_size)
        return np.concatenate([batch[1] for batch in made.as_numpy_iterator()])

    for make in (compose, layers):
        zero, one = views_of(make(), 2)
        assert json.loads(json.dumps(zero.identity())) == views_of(make(), 1)[0].identity()
        whole = seen(range(11), 4, zero)
        assert np.array_equal(seen([7, 2], 1, views_of(make(), 1)[0]), whole[[7, 2]])
        assert not np.array_equal(seen([7], 1, one), whole[[7]])


# --- Mixing -----------------------------------------------------------------------------------


def mixed(mix, pictures, labels, seed=(3, 4)):
    import tensorflow as tf

    from keras_transfer.data.mixing import mixer

    out = mixer(mix)(tf.constant(pictures), tf.constant(labels), tf.constant(seed, tf.int64))
    return [part.numpy() for part in out]


def test_mixup_by_hand(rng):
    pictures = rng.integers(0, 256, (8, 12, 12, 3)).astype(np.uint8)
    made, shares = mixed(Mix("mixup", 1.0), pictures, np.eye(8, dtype="float32"))
    assert made.dtype == np.uint8 and shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(made, np.tensordot(shares, pictures, 1), atol=0.51)
    assert ((shares > 0.02).sum(1) == 2).sum() >= 4
    other, _ = mixed(Mix("mixup", 1.0), pictures, np.eye(8, dtype="float32"), seed=(3, 5))
    assert not np.array_equal(made, other)


def test_cutmix_by_hand(rng):
    colours = np.arange(8, dtype=np.uint8) * 30
    pictures = np.broadcast_to(colours[:, None, None, None], (8, 64, 64, 3)).copy()
    made, shares = mixed(Mix("cutmix"), pictures, np.eye(8, dtype="float32"))
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    assert ((shares > 0.02).sum(1) == 2).sum() >= 4
    for own, picture, share in zip(colours, made, shares):
        area = np.array([(picture[..., 0] == colour).mean() for colour in colours])
        # The box need not end on whole pixels: half a pixel along each edge.
        assert np.abs(area - share).max() <= 2 / 64
        inside = picture[..., 0] != own
        rows, columns = inside.any(1).sum(), inside.any(0).sum()
        assert inside.sum() == rows * columns  # one box


def test_strengths_of_mixing():
    assert Mix("mixup").alpha == 0.2 and Mix("cutmix").alpha == 1.0 and not Mix()
    for kind, alpha, words in (
        ("mixcut", None, "mix must be one of none, mixup, cutmix"),
        ("mixup", 0.0, "mix_alpha of mixup must be above 0"),
        ("cutmix", 2.0, "mix_alpha of cutmix must be above 0 and at most 1"),
    ):
        with raises(words):
            Mix(kind, alpha)


def test_mixed_labels_in_the_loss_and_the_metrics_by_hand():
    logits = np.array([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]], "float32")
    shares = np.array([[0.3, 0.7, 0.0], [0.6, 0.0, 0.4]], "float32")
    weights = np.array([1.0, 3.0], "float32")
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    for smoothing in (0.0, 0.3):
        loss = Classification("abc", label_smoothing=smoothing).loss()
        each = -(((1 - smoothing) * shares + smoothing / 3) * log_p).sum(1)
        assert float(loss(shares, logits)) == pytest.approx(each.mean(), rel=1e-5)
        weighted = (each * weights).sum() / 2
        assert float(loss(shares, logits, weights)) == pytest.approx(weighted, rel=1e-5)
        # Whole classes, as validation has them, give the same either way.
        whole = float(loss(np.eye(3, dtype="float32")[[1, 2]], logits))
        assert whole == pytest.approx(float(loss(np.array([1, 2]), logits)), rel=1e-5)
    accuracy, top5 = Classification("abcdefg").metrics()
    wide = np.pad(logits, ((0, 0), (0, 4)), constant_values=1.5)
    for targets in (np.pad(shares, ((0, 0), (0, 4))), np.array([1, 0])):
        accuracy.reset_state(), top5.reset_state()
        accuracy.update_state(targets, wide), top5.update_state(targets, wide)
        assert float(accuracy.result()) == 0.5 and float(top5.result()) == 0.5


def test_a_mixed_batch_has_the_shares_of_its_pictures_and_their_weights(numbered):
    weights = np.arange(1, 12, dtype="float32")
    for (plain, labels), (pictures, shares, weight) in zip(
        stream(numbered, 3, augmentation="none"),
        stream(numbered, 3, augmentation="none", mix=Mix("mixup", 1.0), class_weights=weights),
    ):
        assert shares.shape == (len(labels), 11) and shares.dtype == np.float32
        np.testing.assert_allclose(
            pictures, np.tensordot(shares[:, labels], plain.astype(float), 1), atol=0.51
        )
        np.testing.assert_allclose(weight, shares @ weights, rtol=1e-5)


def test_labels_of_many_kinds_at_once_are_mixed_as_they_are(numbered):
    hot = (np.arange(33).reshape(11, 3) % 2).astype("float32")
    for (_, plain), (_, shares) in zip(
        stream(Examples(numbered.pictures, hot), 3, augmentation="none"),
        stream(Examples(numbered.pictures, hot), 3, augmentation="none", mix=Mix("mixup", 1.0)),
    ):
        assert shares.shape == plain.shape
        assert (shares >= -1e-6).all() and (shares <= 1 + 1e-6).all()


# --- The trainer ------------------------------------------------------------------------------


def trainer(augment, freeze="none", epochs=2, head=Classification(NAMES), **settings):
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), head, image_size=32)
    phase = Phase("p", freeze, epochs, 1e-3)
    return Trainer(model, Schedule("s", (phase,)), batch_size=8, augment=augment, **settings)


def test_a_killed_run_goes_on_to_the_same_weights(colours, tmp_path, monkeypatch):
    from keras_transfer.runs import Run

    class Stop(Exception):
        pass

    def made(*more, **settings):
        return trainer(compose(*more), mix="cutmix", **settings)

    data = from_directory(colours)
    whole = made().fit(data, tmp_path / "whole")
    save_state = Run.save_state

    def save_and_stop(self, *args):
        save_state(self, *args)
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Run, "save_state", save_and_stop)
        made().fit(data, tmp_path / "cut")
    stored = Run.open(tmp_path / "cut", finished=False).config
    assert stored["augment"] == plain_augmentation(compose()) and stored["mix"] == "cutmix"
    import albumentations as A

    for changed in (lambda: made(A.Blur()), lambda: made(mix_alpha=0.5)):
        with raises("begun otherwise"):
            changed().fit(data, tmp_path / "cut", resume=True)
    # What the file says makes the same transform.
    resumed = trainer(stored["augment"], mix="cutmix").fit(data, tmp_path / "cut", resume=True)
    for a, b in zip(whole.model.weights, resumed.model.weights):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_the_loss_of_a_mixed_epoch_by_hand(colours, tmp_path):
    """Nothing moves, so the epoch's loss is that of its batches: class weights and smoothing too."""
    import csv

    data = from_directory(colours)
    keras.utils.set_random_seed(0)
    head = Classification(NAMES, dropout=0.0, label_smoothing=0.1)
    model = build_model(tiny_backbone(), head, image_size=32)
    weights = {"blue": 1.0, "green": 2.0, "red": 4.0}
    phase = Phase("p", "none", 1, 1e-12, weight_decay=0.0, class_weights=weights)
    run = Trainer(
        model, Schedule("s", (phase,)), batch_size=8, augment="light", mix="mixup", mix_alpha=1.0
    ).fit(data, tmp_path / "run")
    batches = data.batches(
        "train", image_size=32, batch_size=8, training=True, mix=Mix("mixup", 1.0)
    )
    losses, right, totals = [], [], []
    for pictures, shares in batches.take(4).as_numpy_iterator():
        logits = model.predict_on_batch(pictures)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        each = -((0.9 * shares + 0.1 / 3) * log_p).sum(1) * (shares @ [1.0, 2.0, 4.0])
        losses += list(each)
        right += list(logits.argmax(1) == shares.argmax(1))
        totals.append(len(shares))
    (row,) = csv.DictReader((run.path / "history.csv").open())
    assert sum(totals) == 29
    assert float(row["loss"]) == pytest.approx(np.mean(losses), rel=1e-3)
    assert float(row["accuracy"]) == pytest.approx(np.mean(right), abs=1e-6)


def test_what_cannot_be_mixed_is_refused_and_what_is_mixed_is_not_cached(colours):
    with raises("Phase 'p': mix is for one head of classes or labels"):
        trainer("light", head=Regression("ab"), mix="mixup")
    trainer("light", head=MultiLabel("ab"), mix="mixup")
    with raises("mix must be one of"):
        trainer("light", mix="blend")
    data = from_directory(colours)
    ((caching, reason),) = trainer("light", "all", mix="mixup").plan_caching(data)
    assert caching is None and reason == "mixup mixes pictures with each other"
    ((caching, _),) = trainer("light", "all", epochs=8).plan_caching(data)
    assert caching.views > 1


def test_activations_of_transforms_and_layers_are_views_of_them(colours):
    data = from_directory(colours)
    for augment in (compose(), layers()):
        ((caching, _),) = trainer(augment, "all", epochs=8).plan_caching(data)
        views = caching.training_views(resolve_augmentation(augment))
        assert len(set(views)) == caching.views > 1


@pytest.mark.parametrize(
    ("augment", "views"),
    [
        ("medium", 2),
        ({"preset": "medium", "flip": False}, 1),
        ("none", 1),
        (lambda: compose(), 2),
        (lambda: keras.layers.RandomRotation(0.1), 1),
    ],
)
def test_the_closed_head_sees_mirror_images_where_the_augmentation_mirrors(colours, augment, views):
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification(NAMES), image_size=32)
    given = augment() if callable(augment) else augment
    ((caching, _),) = Trainer(model, "feature_extraction", augment=given).plan_caching(
        from_directory(colours)
    )
    assert caching.mirror and caching.views == views


def test_a_phase_keeps_what_it_was_given_as_plain_data():
    phase = Phase("p", epochs=1, augment=compose(), mix="cutmix", mix_alpha="5e-1")
    assert phase.augment == plain_augmentation(compose()) and phase.mix_alpha == 0.5
    schedule = Schedule("s", (phase, Phase("q", epochs=1, augment=layers())))
    again = Schedule.from_dict(yaml.safe_load(schedule.to_yaml()))
    assert again == schedule
    with raises("Phase 'p': no augmentation named 'lite'"):
        Phase("p", epochs=1, augment="lite")
    with raises("Phase 'p': mix must be one of none, mixup, cutmix"):
        Phase("p", epochs=1, mix="blend")


def test_options_of_the_command(tmp_path):
    from keras_transfer.cli_options import settings_of

    assert settings_of({})["augment"] == "auto"
    plain = settings_of({"augment": "medium", "no_flip": True})["augment"]
    assert plain == {**AUGMENTATIONS["medium"].to_dict(), "flip": False}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"augment": plain, "mix": "mixup"}))
    read = settings_of({"config": tmp_path / "config.yaml"})
    assert read["augment"] == plain and read["mix"] == "mixup"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(plain_augmentation(compose())))
    with raises("--no-flip: the augmentation that was given mirrors"):
        settings_of({"augment": str(tmp_path / "mine.yaml"), "no_flip": True})


# --- The sheet --------------------------------------------------------------------------------


def test_a_sheet_shows_each_class_as_evaluation_and_as_training_see_it(colours, tmp_path):
    from PIL import Image

    import keras_transfer as kt
    from keras_transfer.data.sheet import sheet

    data = from_directory(colours)
    figure = kt.show_batch(data, 5, augment=["light", compose()], image_size=20, variants=2)
    pictures = [axes for axes in figure.axes if axes.images]
    assert len(pictures) == 5 * (1 + 2 + 2)
    labels = [axes.texts[0].get_text() for axes in figure.axes if axes.texts]
    assert labels == ["blue", "blue", "green", "red", "red"]
    titles = [axes.get_title(loc="left") for axes in pictures if axes.get_title(loc="left")]
    assert titles == ["as in evaluation", "light", "Compose"]
    shown = {p.images[0].get_array().tobytes() for p in pictures[:5]}
    (batch,) = [b for b, _ in data.batches("train", image_size=20, batch_size=64)]
    assert shown <= {p.tobytes() for p in batch.numpy()}
    assert figure._repr_png_().startswith(b"\x89PNG")

    sheet(data, tmp_path / "s.png", 3, image_size=16, variants=1, mix="mixup")
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.width > picture.height > 300
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 300
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["s.png"]


def test_a_sheet_of_many_classes_takes_some_of_all_over():
    from keras_transfer.data.sheet import _spread

    labels = np.repeat(np.arange(40), 3)
    chosen = labels[_spread(labels, 9, 0)]
    assert len(set(chosen)) == 9 and chosen.min() == 0 and chosen.max() == 39
    assert np.bincount(labels[_spread(labels, 60, 1)]).tolist().count(2) == 20
    assert len(_spread(labels, 999, 0)) == 120


def test_what_a_sheet_cannot_show(colours, tmp_path):
    import albumentations as A

    import keras_transfer as kt
    from keras_transfer.data.sheet import sheet

    data = from_directory(colours)
    with raises("Cannot draw into"):
        sheet(data, tmp_path / "s.pdf")
    with raises("has no test pictures; it has train, val"):
        kt.show_batch(data, split="test")
    with raises("must be 1 or more, not 0, 5 and 224"):
        kt.show_batch(data, 0)
    with raises("the transform failed on"):
        kt.show_batch(data, 2, augment=A.RandomCrop(99, 99, p=1))
    arrays = ImageData(
        ("a", "b"),
        {"train": Examples(Arrays(np.zeros((2, 9, 9, 3), np.uint8)), np.array([0, 1]))},
        [],
        "memory",
    )
    assert len([axes for axes in kt.show_batch(arrays, image_size=8).axes if axes.images]) == 12
