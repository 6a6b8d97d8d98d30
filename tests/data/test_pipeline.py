"""Files to batches: decoding, transforms, the training stream, real images."""

import os
import re
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ramp, write_image
from PIL import Image
from test_data import BOTTOM_RIGHT, LEFT, TOP_RIGHT, encode, three_colours

from keras_transfer.data import check_examples, from_directory


def png_of_16_bits(pixels: np.ndarray, colour_type: int) -> bytes:
    """PNG bytes of 16-bit pixels, by hand: Pillow cannot write such RGB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


# --- Decoding ---------------------------------------------------------------------------------


def grey(colour) -> tuple[int, int, int]:
    return (int(np.dot(colour, [0.299, 0.587, 0.114])),) * 3


COLOURS = (LEFT, TOP_RIGHT, BOTTOM_RIGHT)
GREYS = tuple(map(grey, COLOURS))
RGB = three_colours()
PALETTE = RGB.quantize(8)
# 16 bits whose low byte is noise: scaling down gives the high byte back.
HIGH = np.asarray(RGB).astype(np.uint16) * 256 + 77
HIGH_GREY = np.asarray(RGB.convert("L")).astype(np.uint16)[..., None] * 256 + 77
UPSIDE_DOWN = RGB.rotate(180)

ENCODED = {
    "JPEG": (encode(RGB, "JPEG", quality=95, subsampling=0), COLOURS),
    "JPEG grey": (encode(RGB.convert("L"), "JPEG"), GREYS),
    "JPEG CMYK": (encode(RGB.convert("CMYK"), "JPEG", quality=95), COLOURS),
    "PNG": (encode(RGB, "PNG"), COLOURS),
    "PNG grey": (encode(RGB.convert("L"), "PNG"), GREYS),
    "PNG grey + alpha": (encode(with_alpha(RGB).convert("LA"), "PNG"), GREYS),
    "PNG alpha": (encode(with_alpha(RGB), "PNG"), COLOURS),
    "PNG palette": (encode(PALETTE, "PNG"), COLOURS),
    "PNG palette + transparency": (encode(PALETTE, "PNG", transparency=0), COLOURS),
    "PNG palette + alphas": (encode(PALETTE, "PNG", transparency=bytes([0, 99, 255])), COLOURS),
    "PNG 1 bit": (
        encode(RGB.convert("L").point(lambda v: v > 100, "1"), "PNG"),
        ((0,) * 3, (255,) * 3, (0,) * 3),
    ),
    "PNG 16 bits grey": (png_of_16_bits(HIGH_GREY, 0), GREYS),
    "PNG 16 bits RGB": (png_of_16_bits(HIGH, 2), COLOURS),
    "GIF": (encode(PALETTE, "GIF"), COLOURS),
    "GIF animated": (
        encode(PALETTE, "GIF", save_all=True, append_images=[UPSIDE_DOWN.quantize(8)]),
        COLOURS,
    ),
    "BMP": (encode(RGB, "BMP"), COLOURS),
    "BMP grey": (encode(RGB.convert("L"), "BMP"), GREYS),
    "BMP palette": (encode(PALETTE, "BMP"), COLOURS),
    "BMP 1 bit": (
        encode(RGB.convert("L").point(lambda v: v > 100, "1"), "BMP"),
        ((0,) * 3, (255,) * 3, (0,) * 3),
    ),
    "WebP": (encode(RGB, "WEBP", lossless=True), COLOURS),
    "WebP lossy": (encode(RGB, "WEBP", quality=95), COLOURS),
    "WebP alpha": (encode(with_alpha(RGB), "WEBP", lossless=True, exact=True), COLOURS),
    "WebP animated": (
        encode(RGB, "WEBP", lossless=True, save_all=True, append_images=[UPSIDE_DOWN]),
        COLOURS,
    ),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_decode_gives_the_right_colours(kind):
    from keras_transfer.modalities.image.bands import Reading
    from keras_transfer.modalities.image.decode import decode

    contents, expected = ENCODED[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = decode(contents, Reading(depth="full"))
    assert pixels.dtype == np.uint8 and pixels.shape == (32, 48, 3)
    centres = pixels[[16, 8, 24], [12, 36, 36]].astype(int)
    tolerance = 4 if kind.startswith(("JPEG", "WebP lossy")) else 1
    assert np.abs(centres - expected).max() <= tolerance, centres


@pytest.mark.parametrize("kind", ENCODED)
def test_every_decodable_kind_passes_the_check(kind, tmp_path):
    path = tmp_path / "image.PNG"
    path.write_bytes(ENCODED[kind][0])
    good, skipped = check_examples([str(path)])
    assert good.names == [str(path)] and skipped == []


def test_pillow_takes_over_where_tensorflow_fails(monkeypatch):
    import tensorflow as tf

    from keras_transfer.modalities.image.bands import Reading
    from keras_transfer.modalities.image.decode import decode

    def fail(*_, **__):
        raise tf.errors.InvalidArgumentError(None, None, "no")

    monkeypatch.setattr(tf.io, "decode_image", fail)
    for kind in ("JPEG CMYK", "PNG 16 bits grey", "PNG palette + alphas", "GIF animated"):
        contents, expected = ENCODED[kind]
        pixels = decode(contents, Reading(depth="full")).astype(int)
        assert np.abs(pixels[[16, 8, 24], [12, 36, 36]] - expected).max() <= 4, kind


@pytest.mark.parametrize("mode", ["I", "I;16", "F", "LA", "P", "CMYK"])
def test_to_rgb_of_every_mode(mode):
    from keras_transfer.modalities.image.decode import to_rgb

    level = {"I": 100 * 257, "I;16": 100 * 257}.get(mode, 100)
    if mode in ("I", "I;16", "F"):
        image = Image.new(mode, (2, 2), level)
    elif mode == "P":
        image = Image.new("RGB", (2, 2), (level,) * 3).quantize(4)
    else:
        image = Image.new("L", (2, 2), level).convert("RGB").convert(mode)
    assert image.mode == mode
    expected = np.full((2, 2, 3), 100)
    if mode.startswith("I"):  # scaled by the range that the image uses
        image.putpixel((0, 0), 0)
        image.putpixel((1, 1), 255 * 257)
        expected[0, 0], expected[1, 1] = 0, 255
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), expected)


def test_decode_refuses_what_is_no_image():
    from keras_transfer.modalities.image.decode import decode

    jpeg = ENCODED["JPEG"][0]
    for contents in (b"", b"no image", jpeg[: len(jpeg) // 2], b"BM" + bytes(60)):
        with pytest.raises(ValueError, match=r"not a readable image: ."):
            decode(contents)


# --- Transforms -------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(200, 200), (150, 400), (333, 120), (40, 70)])
def test_resize_and_crop_keeps_the_centre(height, width):
    from keras_transfer.modalities.image.prepare import resize_and_crop

    result = resize_and_crop(ramp(height, width), 56).numpy().astype(float)
    assert result.shape == (56, 56, 3) and result[..., 2].max() == 0
    kept = 0.875 * min(height, width)  # pixels of the source along either axis
    along = (np.arange(56) + 0.5 - 28) / 56 * kept
    assert np.abs(result[..., 0] - 255 * (0.5 + along / width)).max() <= 1
    assert np.abs(result[..., 1] - 255 * (0.5 + along / height)[:, None]).max() <= 1


def test_resize_and_crop_equals_resize_then_crop(rng):
    import tensorflow as tf

    from keras_transfer.modalities.image.prepare import resize_and_crop

    image = rng.integers(0, 256, (128, 192, 3)).astype(np.uint8)
    resized = tf.image.resize(image, (64, 96), antialias=True).numpy()
    ours = resize_and_crop(image, 56).numpy().astype(float)
    assert np.abs(ours - resized[4:60, 20:76]).max() <= 0.51
    whole = resize_and_crop(image, 64, crop_fraction=1).numpy().astype(float)
    assert np.abs(whole - resized[:, 16:80]).max() <= 0.51
    with pytest.raises(ValueError, match="crop_fraction"):
        resize_and_crop(image, 56, crop_fraction=1.1)


def test_resize_and_crop_of_batches_and_unknown_sizes(rng):
    import tensorflow as tf

    from keras_transfer.modalities.image.prepare import resize_and_crop

    images = rng.integers(0, 256, (2, 3, 90, 61, 3)).astype(np.uint8)
    single = np.stack([[resize_and_crop(p, 24) for p in row] for row in images])
    assert np.array_equal(resize_and_crop(images[0], 24), single[0])
    assert np.array_equal(resize_and_crop(images, 24), single)
    assert np.array_equal(resize_and_crop(images.astype(np.float32), 24), single)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
    def in_a_graph(batch):
        result = resize_and_crop(batch, 24)
        assert result.shape.as_list() == [None, 24, 24, 3] and result.dtype == tf.uint8
        return result

    assert np.array_equal(in_a_graph(images[1]), single[1])
    assert in_a_graph(images[1][:0]).shape == (0, 24, 24, 3)


# --- The stream -------------------------------------------------------------------------------


@pytest.fixture
def numbered(tmp_path):
    """Eleven noisy images whose label is their index, so that a batch says which they are."""
    from keras_transfer.data import Examples

    for i in range(11):
        write_image(tmp_path / f"{i:02}.png", (20 * i, 100, 100), size=(50, 40), seed=i)
    return Examples(sorted(map(str, tmp_path.iterdir())), np.arange(11, dtype=np.int32))


def stream(examples, batches, *, batch_size=4, **options):
    from keras_transfer.data import batches as pipeline

    dataset = pipeline.batches(
        examples, image_size=16, batch_size=batch_size, training=True, **options
    )
    return list(dataset.take(batches).as_numpy_iterator())


def test_evaluation_batches_are_in_order_and_finite(numbered):
    from keras_transfer.data import batches as pipeline
    from keras_transfer.modalities.image.decode import decode
    from keras_transfer.modalities.image.prepare import resize_and_crop

    dataset = pipeline.batches(numbered, image_size=16, batch_size=4)
    assert dataset.cardinality() == 3
    images, labels = zip(*dataset.as_numpy_iterator())
    assert [len(p) for p in images] == [4, 4, 3]
    assert images[0].dtype == np.uint8 and labels[0].dtype == np.int32
    assert np.concatenate(labels).tolist() == list(range(11))
    expected = [resize_and_crop(decode(Path(path).read_bytes()), 16) for path in numbered.names]
    difference = np.abs(np.concatenate(images).astype(int) - np.stack(expected))
    assert difference.mean() < 0.5 and difference.max() <= 4


def test_training_epochs_have_each_example_once(numbered):
    epochs = 3
    rows = stream(numbered, 3 * epochs)
    assert [len(labels) for _, labels in rows] == [4, 4, 3] * epochs
    assert all(p.shape[1:] == (16, 16, 3) and p.dtype == np.uint8 for p, _ in rows)
    orders = np.concatenate([labels for _, labels in rows]).reshape(epochs, 11)
    assert (np.sort(orders, axis=1) == np.arange(11)).all()
    assert len({tuple(order) for order in orders}) == epochs
    # The same image looks different from epoch to epoch.
    images = np.concatenate([p for p, _ in rows]).reshape(epochs, 11, 16, 16, 3)
    first, second = (images[e][np.argsort(orders[e])] for e in (0, 1))
    assert all(not np.array_equal(a, b) for a, b in zip(first, second))


def test_equal_images_get_variants_of_their_own(numbered):
    numbered = type(numbered)(numbered.names[:1] * 11, numbered.labels)
    (images, _), *_ = stream(numbered, 1, batch_size=11)
    assert len({image.tobytes() for image in images}) == 11


def test_training_stream_starts_at_any_epoch(numbered):
    whole = stream(numbered, 5 * 3, augmentation="medium", seed=9)
    late = stream(numbered, 2 * 3, augmentation="medium", seed=9, start_epoch=3)
    for (images, labels), (late_images, late_labels) in zip(whole[9:], late):
        assert np.array_equal(labels, late_labels) and np.array_equal(images, late_images)
    other = stream(numbered, 3, augmentation="medium", seed=10)
    assert any(not np.array_equal(a[1], b[1]) for a, b in zip(whole[:3], other))


def test_variants_do_not_depend_on_the_batch_size(numbered):
    small, large = (
        stream(numbered, 6, batch_size=2, seed=4),
        stream(numbered, 1, batch_size=64, seed=4),
    )
    assert len(large[0][1]) == 11
    for position in (0, 1):
        assert np.array_equal(np.concatenate([row[position] for row in small]), large[0][position])


def test_training_without_augmentation_shows_the_evaluation_images(numbered):
    from keras_transfer.data import batches as pipeline

    rows = stream(numbered, 3, augmentation="none")
    images, labels = (np.concatenate(part) for part in zip(*rows))
    (expected, _), *_ = pipeline.batches(numbered, image_size=16, batch_size=11)
    assert np.array_equal(images[np.argsort(labels)], expected)


def test_training_is_infinite_to_keras(numbered):
    from keras_transfer.data import batches as pipeline

    dataset = pipeline.batches(numbered, image_size=16, batch_size=4, training=True)
    assert dataset.cardinality() == -1  # fit asks for steps_per_epoch
    assert dataset.element_spec[0].shape.as_list() == [None, 16, 16, 3]
    assert dataset.element_spec[1].shape.as_list() == [None]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("damage", ["gone", "broken"])
def test_a_file_that_goes_bad_is_named(numbered, training, damage):
    import tensorflow as tf

    from keras_transfer.data import batches as pipeline

    victim = Path(numbered.names[5])
    victim.unlink() if damage == "gone" else victim.write_bytes(b"broken")
    dataset = pipeline.batches(numbered, image_size=16, batch_size=4, training=training)
    with pytest.raises(tf.errors.OpError, match=re.escape(str(victim))):
        list(dataset.take(3))


def test_images_of_a_split(animals):
    data = from_directory(animals, val_split=0.25)
    assert data.test is None
    rows = list(data.val.as_numpy_iterator())
    assert [label for _, label in rows] == data.examples["val"].labels.tolist()
    for (image, _), path in zip(rows, data.examples["val"].names):
        assert np.array_equal(image, np.asarray(Image.open(path)))
    # Names that are no valid UTF-8 are as good as others.
    odd = os.fsencode(animals / "cat") + b"/\xff\xfe.png"
    with open(odd, "wb") as file:  # noqa: PTH123 - a path of bytes
        file.write(ENCODED["PNG"][0])
    data = from_directory(animals, val_split=0.25)
    assert len(list(data.train)) + len(list(data.val)) == 21


def test_a_living_stream_is_quiet_before_python_ends(animals):
    # A call into Python that comes while the interpreter shuts down never returns, and the
    # program hangs (not every time). The check is registered first, so that it runs last.
    code = """
import atexit, sys, time
begun, ended = [], []

def check():
    before = len(begun)
    time.sleep(0.3)
    print("quiet" if before == len(begun) == len(ended) else "busy")

atexit.register(check)
import keras_transfer.data as d
from keras_transfer.modalities.image.preparation import Preparation
make = Preparation.make

def slow(*given):
    begun.append(1)
    time.sleep(0.05)
    make(*given)
    ended.append(1)

Preparation.make = slow
data = d.from_directory(sys.argv[1])
rows = iter(data.batches("train", image_size=32, batch_size=8, training=True))
next(rows)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, animals], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0 and result.stdout == "quiet\n"
    assert "shutting down" not in result.stderr


# --- Real images ----------------------------------------------------------------------------


def test_hymenoptera(real_data):
    data = from_directory(real_data / "hymenoptera")
    assert data.counts == {"train": {"ants": 124, "bees": 121}, "val": {"ants": 70, "bees": 83}}
    assert not data.skipped
    images, labels = next(iter(data.batches("val", image_size=96, batch_size=8)))
    assert images.shape == (8, 96, 96, 3) and labels.numpy().tolist() == [0] * 8
    assert images.numpy().std() > 30  # photographs, not blank


def test_sign_digits(real_data):
    data = from_directory(real_data / "sign_digits", val_split=0.2, seed=0)
    assert data.class_names == tuple("0123456789")
    assert [len(part) for part in data.examples.values()] == [1650, 412]
    shares = np.array(list(data.counts["val"].values())) / 41.2
    assert np.abs(shares - 1).max() < 0.03


def test_images_in_memory_are_the_same_and_read_once(colours, monkeypatch):
    """Training and evaluation with a memory, and with one that has room for a part only."""
    from keras_transfer.data.memory import ImageMemory
    from keras_transfer.modalities.image import opened

    data = from_directory(colours, progress=False)
    options = dict(image_size=32, batch_size=8)
    steps = data.steps("train", 8)

    def seen(memory):
        training = data.batches("train", training=True, memory=memory, **options)
        plain = data.batches("val", memory=memory, **options)
        batches = [*training.take(2 * steps), *plain, *plain]
        return [np.asarray(images) for images, _ in batches]

    expected = seen(None)
    read, decode = [], opened._decode
    monkeypatch.setattr(opened, "_decode", lambda *given: read.append(1) or decode(*given))
    one = 40 * 48 * 3  # evaluation takes its room first: 7 of 32 x 32, less than four of these
    for limit, kept in ((1 << 30, 29), (10 * one, 6)):
        read.clear()
        memory = ImageMemory(limit)
        for images, other in zip(seen(memory), expected, strict=True):
            np.testing.assert_array_equal(images, other)
        assert len(memory._pixels) == kept and memory.bytes <= limit
        # At the border of two epochs a file may be read before it is remembered.
        assert len(read) >= 29 + 7 and (kept < 29 or len(read) <= 29 + 7 + 4)


def test_calls_on_their_way_do_not_hang_the_end():
    """Such as one that waits for a core: nothing counts it yet when Python ends."""
    code = """
import gc, time
import tensorflow as tf
from keras_transfer.utils.python_calls import python_calls

def late(i):
    time.sleep(0.5)
    with python_calls:
        return i

def rows(strategy=None):
    stream = tf.data.Dataset.range(100).repeat().map(
        lambda i: tf.ensure_shape(tf.numpy_function(late, [i], tf.int64), []), num_parallel_calls=2
    ).batch(1).prefetch(2)
    kept = iter(strategy.experimental_distribute_dataset(stream) if strategy else stream)
    next(kept)
    return kept

by_a_name, by_a_strategy = rows(), rows(tf.distribute.MirroredStrategy(["CPU:0"]))
gc.disable()
circle = [rows()]
circle.append(circle)
del circle
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
