"""Image to model input, as TensorFlow graph functions.

Evaluation, prediction and the exported model share `resize_and_crop`; training has `augment`.
Both cut a box out of the image and resample it in one step with `ScaleAndTranslate`, the
op behind `tf.image.resize(antialias=True)`: only the pixels that are kept are computed, and
the box need not fall on whole pixels.
"""

import math
from functools import cache, partial

import keras
import tensorflow as tf

from keras_transfer.modalities.image.augment import Augmentation, Variation
from keras_transfer.modalities.image.layers import KerasLayer, drawn_from_seed

EVAL_CROP = 0.875


def resize_and_crop(image, size: int, crop_fraction: float = EVAL_CROP) -> tf.Tensor:
    """Shorter side to `round(size / crop_fraction)`, aspect kept; then the central square.

    Bilinear with antialias. Height and width may be unknown when the graph is built.

    Args:
        image: [..., height, width, 3], uint8 or float, values 0-255.
        size: side of the result in pixels.
        crop_fraction: share of the shorter side that is kept, in (0, 1].

    Returns:
        uint8 [..., size, size, 3].
    """
    if not 0 < crop_fraction <= 1:
        raise ValueError(f"crop_fraction must lie in (0, 1], not {crop_fraction}")
    image = tf.convert_to_tensor(image)
    height, width = _height_and_width(image)
    side = tf.minimum(height, width) * (size / round(size / crop_fraction))
    box = ((height - side) / 2, (width - side) / 2, side, side)
    return _to_uint8(_resample(image, box, size))


def augment(image, size: int, augmentation: Augmentation, seed) -> tf.Tensor:
    """Draw one variant of a training image; the same seed gives the same variant.

    Args:
        image: [height, width, 3], uint8 or float, values 0-255.
        size: side of the result in pixels.
        augmentation: what may change and how much.
        seed: int32 or int64 [2]. Every choice has its own seed derived from it, so that
            switching one choice on or off leaves the others as they were.

    Returns:
        uint8 [size, size, 3].
    """
    image = tf.convert_to_tensor(image)
    seeds = dict(zip(_CHOICES, tf.unstack(tf.random.split(seed, len(_CHOICES)))))
    if augmentation.crop:
        height, width = _height_and_width(image)
        box = _random_box(height, width, augmentation, seeds)
        image = _resample(image, box, size)
    else:
        image = tf.cast(resize_and_crop(image, size), tf.float32)
    if augmentation.flip:
        mirror = tf.random.stateless_uniform([], seeds["flip"]) < 0.5
        image = tf.cond(mirror, lambda: tf.reverse(image, [1]), lambda: image)
    if augmentation.rotate:
        image = _rotate(image, _uniform(seeds["rotate"], -1.0, 1.0) * augmentation.rotate)
    image = _vary_colours(image, augmentation, seeds)
    if augmentation.rand_augment:
        vary = _rand_augment(augmentation.rand_augment)
        pixels = tf.clip_by_value(tf.round(image), 0.0, 255.0)
        image = vary(pixels[None], seeds["rand_augment"])[0]
    return _to_uint8(image)


def augmenter(augmentation: Variation, size: int, names):
    """A graph function (image uint8 [H, W, 3], seed [2], index) → uint8 [size, size, 3].

    Args:
        augmentation: of `resolve_augmentation`.
        size: side of the result in pixels.
        names: what to call the image of each index, for errors.

    Raises:
        InputError: a Keras layer that fails on images of that size.
    """
    if isinstance(augmentation, Augmentation):
        return lambda image, seed, index: augment(image, size, augmentation, seed)
    if isinstance(augmentation, KerasLayer):
        layer = augmentation.varied(size)

        def vary(image, seed, index):
            plain = tf.cast(resize_and_crop(image, size), tf.float32)
            # What the layer has cut is not cut again.
            return _of_size(layer(plain[None], seed)[0], size, crop_fraction=1.0)

        return vary
    transform = augmentation.varied(names)
    return lambda image, seed, index: _of_size(transform(image, seed, index), size)


def _of_size(image, size, crop_fraction=EVAL_CROP):
    """Leaves what has the size as it is, to the bit; the rest is resized and cropped to it."""
    fits = tf.reduce_all(tf.equal(tf.shape(image)[:2], size))
    made = tf.cond(
        fits,
        lambda: _to_uint8(tf.cast(image, tf.float32)),
        lambda: resize_and_crop(image, size, crop_fraction),
    )
    return tf.ensure_shape(made, [size, size, 3])


@cache
def _rand_augment(strength):
    """A graph function (float32 [1, S, S, 3], seed [2]) → the same after two operations.

    `keras.layers.RandAugment` computes all eleven operations of each image, twenty times as slow,
    in ranges of its own: a full circle, one bit a colour at the least strength, and nearly the whole
    image solarized at any.
    """
    made, options = keras.layers, {"dtype": "float32"}
    with tf.init_scope():  # layers have variables, which belong to no graph
        # The paper's widest ranges, times the strength.
        layers = [
            made.RandomRotation(strength * 30 / 360, **options),
            made.RandomShear(0.3 * strength, 0.3 * strength, **options),
            made.RandomTranslation(0.45 * strength, 0.45 * strength, **options),
            made.RandomBrightness(0.45 * strength, **options),
            made.RandomColorDegeneration(strength, **options),
            made.RandomContrast(strength, **options),
            made.RandomSharpness(strength, **options),
            made.RandomPosterization((8 - round(4 * strength), 8), **options),
            made.AutoContrast(**options),
            made.Equalization(**options),
        ]
    operations = [drawn_from_seed(layer) for layer in layers]

    def call(image, seed):
        for turn in range(2):
            own, which = tf.unstack(tf.random.split(tf.random.fold_in(seed, turn), 2))
            chosen = tf.random.stateless_uniform([], which, 0, len(operations), tf.int32)
            branches = [partial(operation, image, own) for operation in operations]
            image = tf.ensure_shape(tf.switch_case(chosen, branches), image.shape)
        return image

    return call


def _rotate(image, degrees):
    """Turns float32 [size, size, 3] about its centre, the corners filled by reflection."""
    size = tf.cast(tf.shape(image)[0], tf.float32)
    angle = degrees * (math.pi / 180)
    cos, sin, centre = tf.cos(angle), tf.sin(angle), (size - 1) / 2
    matrix = [[cos, -sin, centre * (1 - cos + sin), sin, cos, centre * (1 - cos - sin), 0.0, 0.0]]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=matrix,
        output_shape=tf.shape(image)[:2],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )[0]


_CHOICES = (
    "area",
    "aspect",
    "top",
    "left",
    "flip",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "rotate",
    "rand_augment",
)


def _random_box(height, width, augmentation, seeds):
    # First the aspect ratio, then an area among those that fit the image at that ratio:
    # no draw is ever rejected, and a very wide image is not squashed.
    log_aspect = math.log(augmentation.max_aspect)
    aspect = tf.exp(_uniform(seeds["aspect"], -log_aspect, log_aspect))
    largest = tf.minimum(width / (height * aspect), height * aspect / width)
    smallest = tf.minimum(augmentation.min_area, largest)
    area = _uniform(seeds["area"], smallest, largest) * height * width
    box_height, box_width = tf.sqrt(area / aspect), tf.sqrt(area * aspect)
    top = _uniform(seeds["top"], 0.0, height - box_height)
    left = _uniform(seeds["left"], 0.0, width - box_width)
    return top, left, box_height, box_width


def _vary_colours(image, augmentation, seeds):
    if augmentation.brightness:
        image = image * _factor(seeds["brightness"], augmentation.brightness)
    if augmentation.contrast:
        mean = tf.reduce_mean(tf.image.rgb_to_grayscale(image))
        image = mean + (image - mean) * _factor(seeds["contrast"], augmentation.contrast)
    if augmentation.saturation:
        grey = tf.image.rgb_to_grayscale(image)
        image = grey + (image - grey) * _factor(seeds["saturation"], augmentation.saturation)
    if augmentation.hue:
        turn = _uniform(seeds["hue"], -augmentation.hue, augmentation.hue)
        # Hue is defined for colours that exist only.
        colours = tf.clip_by_value(image / 255.0, 0.0, 1.0)
        image = tf.image.adjust_hue(colours, turn) * 255.0
    return image


def _uniform(seed, low, high):
    return low + tf.random.stateless_uniform([], seed) * (high - low)


def _factor(seed, strength):
    return _uniform(seed, 1.0 - strength, 1.0 + strength)


def _height_and_width(image):
    shape = tf.cast(tf.shape(image)[-3:-1], tf.float32)
    return shape[0], shape[1]


def _resample(image, box, size):
    """Cut (top, left, height, width), in pixels, and scale it to float32 [..., size, size, 3]."""
    top, left, height, width = box
    scale = tf.stack([size / height, size / width])
    leading = tf.shape(image)[:-3]
    resampled = tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(image, tf.concat([[-1], tf.shape(image)[-3:]], 0)),
        size=[size, size],
        scale=scale,
        translation=-tf.stack([top, left]) * scale,
        kernel_type="triangle",
        antialias=True,
    )
    resampled = tf.reshape(resampled, tf.concat([leading, [size, size, 3]], 0))
    return tf.ensure_shape(resampled, [*image.shape[:-3], size, size, 3])


def _to_uint8(image):
    return tf.cast(tf.clip_by_value(tf.round(image), 0.0, 255.0), tf.uint8)
