"""How far the pixels that a model sees depend on who prepares them.

    python scripts/image_differences.py FOLDER [--size 224 96] [--most 100]

FOLDER contains images, at any depth. Prints, for each size, the mean difference over images, in levels of
255, and that of the image that differs most, between

training     what training, evaluation and features read: OpenCV or Pillow
served       what an exported model does: TensorFlow ops alone
Pillow       Pillow's `resize(…, BILINEAR, box)` of the whole image
TensorFlow   `tf.image.resize(antialias=True)` of the whole image, whose JPEGs were decoded by TensorFlow's
             default, the fast and less accurate one: the definition of version 0.1
"""

import argparse
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from keras_transfer.data.batches import batches
from keras_transfer.data.evaluation_data import list_images
from keras_transfer.data.examples import Examples
from keras_transfer.data.files import check_examples
from keras_transfer.modalities.image.boxes import central_box
from keras_transfer.modalities.image.framing import DEFAULT_CROP
from keras_transfer.modalities.image.prepare import fit_center_in_graph, resize_and_crop


def by_pillow(pixels: np.ndarray, size: int) -> np.ndarray:
    height, width = map(np.float32, pixels.shape[:2])
    top, left, tall, wide = central_box(height, width, size, DEFAULT_CROP)
    box = tuple(map(float, (left, top, left + wide, top + tall)))
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, box))


def by_tensorflow(contents: bytes, size: int) -> np.ndarray:
    image = tf.io.decode_image(contents, channels=3, expand_animations=False)
    return resize_and_crop(image, size).numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, nargs="+", default=[224, 96])
    parser.add_argument("--most", type=int, default=100, help="images, spread over the folder")
    options = parser.parse_args()
    files, _ = check_examples(list_images([options.folder]))
    rows = np.unique(np.linspace(0, len(files) - 1, min(options.most, len(files))).astype(int))
    files = files.take(rows)
    contents = [Path(name).read_bytes() for name in files.names]
    print("| size | compared | mean | largest image |")
    print("|---|---|---|---|")
    for size in options.size:
        examples = Examples(files, np.zeros(len(files), "int32"))
        stream = batches(examples, image_size=size, batch_size=32)
        training = np.concatenate([images.numpy() for images, _ in stream]).astype(int)
        served = tf.function(
            lambda file, size=size: fit_center_in_graph(file, size),
            input_signature=[tf.TensorSpec([], tf.string)],
            autograph=False,
        )
        others = {
            "served": [served(file) for file in contents],
            "Pillow": [by_pillow(files.decoded(i), size) for i in range(len(files))],
            "TensorFlow": [by_tensorflow(file, size) for file in contents],
        }
        for name, images in others.items():
            each = np.abs(training - np.stack(images)).mean(axis=(1, 2, 3))
            print(
                f"| {size} | training, {name} | {each.mean():.2f} | {each.max():.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
