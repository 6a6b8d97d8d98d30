"""Turn images into model inputs, as TensorFlow graph functions.

Exported models and the tf.data service resize with `resize_and_crop` or `fit_in_graph`; `resample` does the
same in Python, several times faster. Both crop a box and resample it in one step, here with
`ScaleAndTranslate`, the op behind `tf.image.resize(antialias=True)`: only pixels inside the box are
computed, and the box may lie between pixels. `finisher` contains what augmentation changes afterwards.
"""

import math
from collections.abc import Callable
from functools import cache, partial

import keras
import tensorflow as tf

from keras_transfer.errors import InputError
from keras_transfer.modalities.image.augment import Augmentation, Mix, Variation
from keras_transfer.modalities.image.bands import RGB, Reading
from keras_transfer.modalities.image.boxes import (
    DRAWS,
    LEAST_SCALE,
    REDUCTIONS,
    aligned,
    central_box,
    is_flipped,
    random_box,
)
from keras_transfer.modalities.image.framing import DEFAULT_CROP, Framing
from keras_transfer.modalities.image.serving import open_in_graph
from keras_transfer.utils.image_sizes import sides

# What is drawn after the crop; the order determines the seeds.
_CHOICES = ["brightness", "contrast", "saturation", "hue", "rotate", "rand_augment"]
_OF_RGB = ["saturation", "hue", "rand_augment"]


def resize_and_crop(image, size: int | str, crop_fraction: float = DEFAULT_CROP) -> tf.Tensor:
    """Show the center of an image, see `boxes.central_box`.

    Resampling is bilinear and antialiased. Height and width may be unknown when the graph is built.

    Args:
        image: [..., height, width, channels], uint8 or float, values 0–255.
        size: of the result, see `utils.image_sizes`.
        crop_fraction: share of the largest rectangle of that shape, in (0, 1].

    Returns:
        uint8 [..., height, width, channels].
    """
    if not 0 < crop_fraction <= 1:
        raise ValueError(f"crop_fraction must be in (0, 1], not {crop_fraction}")
    image = tf.convert_to_tensor(image)
    shape = tf.cast(tf.shape(image)[-3:-1], tf.float32)
    box = central_box(shape[0], shape[1], size, crop_fraction, tf)
    return _to_uint8(_resample(image, box, size))


def fit_in_graph(
    contents, size: int | str, box_of: Callable, *, align: bool = False, reading: Reading = RGB
) -> tf.Tensor:
    """Decode an image, reduced if that is enough, and resample a box of it.

    Args:
        contents: string, the bytes of a file, see `serving.open_in_graph`.
        size: of the result, see `utils.image_sizes`.
        box_of: function (height, width) → box, see `boxes`.
        align: whether to move the box to a whole pixel.
        reading: what the model reads of the file.

    Returns:
        uint8 [height, width, channels].
    """
    height, width, reducible, decode = open_in_graph(contents, reading)
    box = box_of(tf.cast(height, tf.float32), tf.cast(width, tf.float32))
    rows, columns = sides(size)
    scale = tf.minimum(box[2] / rows, box[3] / columns)
    least = tf.constant([LEAST_SCALE * times for times in REDUCTIONS])
    times = tf.constant([1.0, *REDUCTIONS])
    halvings = tf.reduce_sum(tf.cast(scale >= least, tf.int32))
    box = aligned(box, times[halvings], tf) if align else box
    halvings = tf.where(reducible, halvings, 0)
    return _to_uint8(
        _resample(decode(halvings), tuple(side / times[halvings] for side in box), size)
    )


def fit_center_in_graph(
    contents, size: int | str, crop_fraction: float = DEFAULT_CROP, reading: Reading = RGB
) -> tf.Tensor:
    """Decode an image and show its center, like `resize_and_crop`; see `fit_in_graph`."""

    def center(height, width):
        return central_box(height, width, size, crop_fraction, tf)

    return fit_in_graph(contents, size, center, reading=reading)


def vary_in_graph(contents, variation: Variation, framing: Framing, seed) -> tf.Tensor:
    """Decode a training image and vary it, like a `Preparation`; the same seed gives the same variant.

    Args:
        contents: see `fit_in_graph`.
        variation: an `Augmentation` or a `KerasLayer`.
        seed: int64 [2].

    Returns:
        uint8 [height, width, channels].
    """
    size, crop = framing.square
    draws = tf.random.stateless_uniform([len(DRAWS)], seed)
    if isinstance(variation, Augmentation) and variation.crop:

        def box_of(height, width):
            return random_box(height, width, variation, draws, size, tf)

        image = fit_in_graph(contents, size, box_of, align=True, reading=framing.reading)
    else:
        image = fit_center_in_graph(contents, size, crop, framing.reading)
    if isinstance(variation, Augmentation) and variation.flip:
        image = tf.where(is_flipped(draws), tf.reverse(image, [1]), image)
    finish = finisher(variation, size, framing.reading.channels)
    return image if finish is None else finish(image, seed)


def finisher(
    variation: Variation | None, size: int | str, channels: int = RGB.channels
) -> Callable | None:
    """Return what changes an image after it was cropped: a graph function (image, seed) → image.

    Images are uint8 [height, width, channels]. Every choice has its own seed derived from the given one, int64
    [2], so that switching one choice on or off does not change the others. None if nothing changes.

    Raises:
        InputError: if a Keras layer fails on images of that size, or colors would vary that the images
            do not have.
    """
    from keras_transfer.modalities.image.transforms import KerasLayer

    if isinstance(variation, KerasLayer):
        layer = variation.function(size, channels)
        # A crop by the layer is not cropped again.
        return lambda image, seed: _of_size(
            layer(tf.cast(image, tf.float32)[None], seed)[0], size, crop_fraction=1.0
        )
    if isinstance(variation, Augmentation) and channels != RGB.channels:
        colors = [name for name in _OF_RGB if getattr(variation, name)]
        if colors:
            raise InputError(
                f"augmentation: {' and '.join(colors)} vary colors, which images of {channels} "
                "channels do not have: set them to 0, or choose 'light'."
            )
    if isinstance(variation, Augmentation) and any(map(partial(getattr, variation), _CHOICES)):
        return partial(_finish, variation)
    return None


def _finish(augmentation, image, seed):
    seeds = dict(zip(_CHOICES, tf.unstack(tf.random.split(seed, len(_CHOICES)))))
    image = tf.cast(image, tf.float32)
    if augmentation.rotate:
        image = _rotate(image, _uniform(seeds["rotate"], -1.0, 1.0) * augmentation.rotate)
    image = _vary_colors(image, augmentation, seeds)
    if augmentation.rand_augment:
        vary = _rand_augment(augmentation.rand_augment)
        pixels = tf.clip_by_value(tf.round(image), 0.0, 255.0)
        image = vary(pixels[None], seeds["rand_augment"])[0]
    return _to_uint8(image)


def mixer(mix: Mix):
    """Return a graph function (images, labels, seed) → (images, labels) that mixes a batch.

    Images are uint8 [B, S, S, 3], labels float32 [B, C] (one-hot, multi-hot or shares), the seed is
    int64 [2]. Each image keeps λ of its labels and gets 1-λ of those of another image of the batch.
    """
    from keras_transfer.modalities.image.transforms import drawn_from_seed

    if mix.kind == "mixup":
        layer = keras.layers.MixUp(alpha=mix.alpha, dtype="float32")
    else:
        # `factor` is the range of alpha.
        layer = keras.layers.CutMix(factor=(mix.alpha, mix.alpha), dtype="float32")
    mixed = drawn_from_seed(layer)

    def call(images, labels, seed):
        result = mixed({"images": tf.cast(images, tf.float32), "labels": labels}, seed)
        return _to_uint8(result["images"]), result["labels"]

    return call


def _of_size(image, size, crop_fraction):
    """Resize and crop an image unless it has the size already."""
    fits = tf.reduce_all(tf.equal(tf.shape(image)[:2], sides(size)))
    result = tf.cond(
        fits,
        lambda: _to_uint8(tf.cast(image, tf.float32)),
        lambda: resize_and_crop(image, size, crop_fraction),
    )
    return tf.ensure_shape(result, [*sides(size), image.shape[-1]])


@cache
def _rand_augment(strength):
    """Return a graph function (float32 [1, S, S, 3], seed [2]) that applies two random operations.

    `keras.layers.RandAugment` computes all eleven operations for each image, which is twenty times
    slower, and its ranges differ from the paper's: any rotation, one bit per color at the lowest
    strength, and almost the whole image solarized at any strength.
    """
    from keras_transfer.modalities.image.transforms import drawn_from_seed

    kinds, options = keras.layers, {"dtype": "float32"}
    with tf.init_scope():  # the layers' variables must not belong to a graph
        # The paper's widest ranges, times the strength.
        layers = [
            kinds.RandomRotation(strength * 30 / 360, **options),
            kinds.RandomShear(0.3 * strength, 0.3 * strength, **options),
            kinds.RandomTranslation(0.45 * strength, 0.45 * strength, **options),
            kinds.RandomBrightness(0.45 * strength, **options),
            kinds.RandomColorDegeneration(strength, **options),
            kinds.RandomContrast(strength, **options),
            kinds.RandomSharpness(strength, **options),
            kinds.RandomPosterization((8 - round(4 * strength), 8), **options),
            kinds.AutoContrast(**options),
            kinds.Equalization(**options),
        ]
    operations = [drawn_from_seed(layer) for layer in layers]

    def call(image, seed):
        for turn in range(2):
            operation_seed, which = tf.unstack(tf.random.split(tf.random.fold_in(seed, turn), 2))
            chosen = tf.random.stateless_uniform([], which, 0, len(operations), tf.int32)
            branches = [partial(operation, image, operation_seed) for operation in operations]
            image = tf.ensure_shape(tf.switch_case(chosen, branches), image.shape)
        return image

    return call


def _rotate(image, degrees):
    """Rotate float32 [height, width, channels] about its center; reflection fills the corners."""
    y, x = tf.unstack((tf.cast(tf.shape(image)[:2], tf.float32) - 1) / 2)
    angle = degrees * (math.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    matrix = [[cos, -sin, x - x * cos + y * sin, sin, cos, y - x * sin - y * cos, 0.0, 0.0]]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=matrix,
        output_shape=tf.shape(image)[:2],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )[0]


def _vary_colors(image, augmentation, seeds):
    if augmentation.brightness:
        image = image * _factor(seeds["brightness"], augmentation.brightness)
    if augmentation.contrast:
        gray = tf.image.rgb_to_grayscale if image.shape[-1] == RGB.channels else tf.identity
        mean = tf.reduce_mean(gray(image))
        image = mean + (image - mean) * _factor(seeds["contrast"], augmentation.contrast)
    if augmentation.saturation:
        gray = tf.image.rgb_to_grayscale(image)
        image = gray + (image - gray) * _factor(seeds["saturation"], augmentation.saturation)
    if augmentation.hue:
        turn = _uniform(seeds["hue"], -augmentation.hue, augmentation.hue)
        # Hue is defined only inside the color space.
        colors = tf.clip_by_value(image / 255.0, 0.0, 1.0)
        image = tf.image.adjust_hue(colors, turn) * 255.0
    return image


def _uniform(seed, low, high):
    return low + tf.random.stateless_uniform([], seed) * (high - low)


def _factor(seed, strength):
    return _uniform(seed, 1.0 - strength, 1.0 + strength)


def _resample(image, box, size):
    """Crop (top, left, height, width), in pixels, and scale to float32 [..., height, width, channels]."""
    top, left, height, width = box
    rows, columns = sides(size)
    scale = tf.stack([rows / height, columns / width])
    leading = tf.shape(image)[:-3]
    resampled = tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(image, tf.concat([[-1], tf.shape(image)[-3:]], 0)),
        size=[rows, columns],
        scale=scale,
        translation=-tf.stack([top, left]) * scale,
        kernel_type="triangle",
        antialias=True,
    )
    made = [rows, columns, image.shape[-1]]
    resampled = tf.reshape(resampled, tf.concat([leading, made], 0))
    return tf.ensure_shape(resampled, [*image.shape[:-3], *made])


def _to_uint8(image):
    return tf.cast(tf.clip_by_value(tf.round(image), 0.0, 255.0), tf.uint8)
