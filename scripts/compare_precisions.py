"""Compare the accuracy of number formats: the same training and seeds in float32 and in 16 bits.

    python scripts/compare_precisions.py [--seeds 0 1 2]
    KERAS_HOME=… python scripts/compare_precisions.py --data sign_digits/ --image-size 96 \\
        --precisions float32 mixed_bfloat16

Prints one line per run and one per format. By default it trains a network of three convolutions from
scratch on scikit-learn's handwritten digits (1797 images, a fifth for validation), because float16 is
emulated on CPUs and about fifty times slower. With `--data` it trains `lp_ft` of mobilenet_v2_0.35 on a
folder of images. The last epoch is evaluated. For float16 the loss scale of each epoch is printed.
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

from keras_transfer.cli.demo import AUGMENT, IMAGE_SIZE, write_images
from keras_transfer.data import from_directory
from keras_transfer.models import PRECISIONS
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.stages import Backbone
from keras_transfer.schedules.recipes import from_scratch, lp_ft
from keras_transfer.training.trainer import Trainer


def three_convolutions() -> Backbone:
    inputs = keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    for filters in (16, 32, 64):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
    return Backbone(inputs, keras.layers.Flatten()(x), name="three_convolutions")


def accuracy(data, policy: str, seed: int, image_size: int | None) -> tuple[float, float, list]:
    """Return (accuracy of the last epoch, seconds, loss scale after each epoch)."""
    keras.backend.clear_session()
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(seed)
    head = Classification(data.class_names)
    images = len(data.examples["train"])
    if image_size is None:
        model = build_model(three_convolutions(), head, image_size=IMAGE_SIZE)
        trainer = Trainer(
            model,
            from_scratch(epochs=8, learning_rate=3e-3),
            augment=AUGMENT,
            seed=seed,
            keep="last",
            refit="never",
        )
    else:
        model = build_model("mobilenet_v2_0.35", head, image_size=image_size)
        trainer = Trainer(model, lp_ft(images, epochs=6), seed=seed, keep="last", refit="never")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = trainer.fit(data, Path(folder) / "run")
        seconds = time.perf_counter() - started
        with (run.path / "history.csv").open() as file:
            scales = [row["loss_scale"] for row in csv.DictReader(file) if "loss_scale" in row]
        value = run.metrics["val"]["accuracy"]
    keras.config.set_dtype_policy("float32")
    return value, seconds, [float(scale) for scale in scales]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS[1:], default=PRECISIONS[1:])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    results = {policy: [] for policy in options.precisions}
    with tempfile.TemporaryDirectory() as scratch:
        folder, image_size = options.data, options.image_size
        if folder is None:
            write_images(Path(scratch), seed=0, splits=False)
            folder, image_size = Path(scratch) / "all", None
        for seed in options.seeds:
            data = from_directory(folder, seed=seed, progress=False)
            for policy in options.precisions:
                value, seconds, scales = accuracy(data, policy, seed, image_size)
                results[policy].append((value, seconds))
                shown = f", loss scale {' '.join(f'{s:g}' for s in scales)}" if scales else ""
                print(f"seed {seed} {policy}: {value:.4f}, {seconds:.0f} s{shown}", flush=True)
    first = np.mean([value for value, _ in results[options.precisions[0]]])
    for policy, pairs in results.items():
        values, seconds = np.array(pairs).T
        print(
            f"{policy:<16} accuracy {values.mean():.4f} (from {values.min():.4f} to "
            f"{values.max():.4f}), {100 * (values.mean() - first):+.2f} points, {seconds.mean():.0f} s"
        )


if __name__ == "__main__":
    main()
