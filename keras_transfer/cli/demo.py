"""The offline demo, on scikit-learn's handwritten digits, on generated sounds or on generated texts.

A small model is trained on some classes, such as the digits 0–5, then transferred to the others with ten
examples of each, and compared with the same network trained from scratch on those forty examples.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

from keras_transfer.cli.demo_sounds import write_clips
from keras_transfer.cli.demo_texts import small_encoder, write_texts
from keras_transfer.data import Augmentation, from_directory
from keras_transfer.experiments.comparison_plot import draw_curves
from keras_transfer.experiments.learning_curves import curve_table, read_curve
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.stages import Backbone
from keras_transfer.schedules.recipes import from_scratch, lp_ft
from keras_transfer.training.trainer import Trainer

SOURCE_DIGITS = (0, 1, 2, 3, 4, 5)
TARGET_DIGITS = (6, 7, 8, 9)
EACH = 10
IMAGE_SIZE = 32
SOURCE_EPOCHS = 8
EPOCHS = 8
# A mirrored digit is not a digit, and a small crop may turn a 9 into a 7.
AUGMENT = Augmentation(crop=True, min_area=0.7, max_aspect=1.15, flip=False)


@dataclass(frozen=True)
class Demo:
    """The data of a demo.

    Attributes:
        classes: what the classes are called.
        many: what the examples are called.
        write: function (folder, seed) that writes source/<class>/ and target/{train,val}/<class>/.
        augment: how training examples vary.
        backbone: returns a small network for such examples.
        image_size: of its input; None for texts.
    """

    classes: str
    many: str
    write: Callable
    augment: Any
    backbone: Callable[[], Backbone]
    image_size: int | None = None


def run_demo(out, *, seed: int = 0, modality: str = "image") -> None:
    """Run the demo of a modality in the directory `out` and print its results."""
    import tensorflow as tf

    from keras_transfer.export import saved_model

    started = time.perf_counter()
    out = Path(out)
    demo = DEMOS[modality]
    demo.write(out / demo.many, seed)

    source_data = from_directory(out / demo.many / "source", seed=seed)
    print(f"1. source model: {demo.classes} {_list(source_data)}, trained from scratch")
    keras.utils.set_random_seed(seed)
    source = build_model(
        demo.backbone(), Classification(source_data.class_names), image_size=demo.image_size
    )
    trainer = Trainer(
        source,
        from_scratch(epochs=SOURCE_EPOCHS),
        augment=demo.augment,
        seed=seed,
        refit="never",  # a source model is the validated one
    )
    source_run = trainer.fit(source_data, out / "source")
    print(f"   validation accuracy {source_run.metrics['val']['accuracy']:.3f}")

    data = from_directory(out / demo.many / "target")
    print(f"2. target: {demo.classes} {_list(data)}; {EACH} {demo.many} of each")
    transfer = lp_ft(
        epochs=EPOCHS,
        head_epochs=EPOCHS * 3 // 8,
        head_learning_rate=3e-2,
        learning_rate=1e-3,
        batch_norm="train",  # the source model's statistics describe only six classes
    )
    runs = {}
    for name, schedule, weights in (
        ("transfer", transfer, "imagenet"),  # those of the source model
        ("from scratch", from_scratch(epochs=EPOCHS), None),
    ):
        keras.utils.set_random_seed(seed)
        head = Classification(data.class_names, dropout=0)
        model = build_model(str(source_run.path), head, weights=weights)
        trainer = Trainer(
            model, schedule, seed=seed, batch_size=4, augment=demo.augment, validate_every=1
        )
        runs[name] = trainer.fit(data, out / schedule.name)
    curves = {name: read_curve(run) for name, run in runs.items()}
    counts = data.counts["val"].values()
    print(curve_table(curves, chance=max(counts) / sum(counts)))
    title = f"{demo.classes} {_list(data)} from {EACH} {demo.many} each"
    draw_curves(curves, out / "curves.png", title)
    print(f"   curves: {out / 'curves.png'}")

    print("3. export and one request")
    example = data.examples["val"].names[0]
    export = saved_model(runs["transfer"].model, runs["transfer"].next_export())
    serve = tf.saved_model.load(str(export)).signatures["serve_bytes"]
    answer = serve(bytes=tf.constant([Path(example).read_bytes()]))
    print(
        f"   {export} classifies {example} as {answer['label'][0].numpy().decode()} "
        f"(score {float(answer['score'][0]):.3f})"
    )
    print(f"done in {time.perf_counter() - started:.0f} s")


def write_images(folder: Path, seed: int, splits: bool = True) -> None:
    """Write the digits as PNG files to source/<digit>/ and target/{train,val}/<digit>/.

    Without `splits`, all ten are written to all/<digit>/.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    count = dict.fromkeys(range(10), 0)
    for i in order:
        digit = int(digits.target[i])
        count[digit] += 1
        if not splits:
            split = Path("all")
        elif digit in SOURCE_DIGITS:
            split = Path("source")
        else:
            split = Path("target") / ("train" if count[digit] <= EACH else "val")
        file = folder / split / str(digit) / f"{i:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        gray = np.pad(digits.images[i] * (255 / 16), 1).astype("uint8")  # 10×10, in [0, 255]
        Image.fromarray(gray).resize((40, 40), Image.Resampling.BICUBIC).save(file)


def small_backbone() -> Backbone:
    """Return a residual network with 0.3 million parameters for 32×32 images."""
    layers = keras.layers
    inputs = keras.Input((None, None, 3), name="images")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = _conv(x, 32, 3)
    for filters in (32, 64, 128):
        shortcut = layers.Conv2D(filters, 1, strides=2, padding="same", use_bias=False)(x)
        y = _conv(x, filters, 3, strides=2)
        y = layers.Conv2D(filters, 3, padding="same", use_bias=False)(y)
        y = layers.BatchNormalization(momentum=0.9)(y)
        x = layers.ReLU()(layers.Add()([y, layers.BatchNormalization(momentum=0.9)(shortcut)]))
    return Backbone(inputs, layers.GlobalAveragePooling2D()(x), name="small_resnet")


def _conv(x, filters, kernel, strides=1):
    x = keras.layers.Conv2D(filters, kernel, strides=strides, padding="same", use_bias=False)(x)
    # There are few steps, so the statistics must follow quickly.
    return keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))


def _list(data):
    return ", ".join(data.class_names)


# Modality → its demo.
DEMOS = {
    "image": Demo("digits", "images", write_images, AUGMENT, small_backbone, IMAGE_SIZE),
    "audio": Demo("sounds", "clips", write_clips, "light", small_backbone, IMAGE_SIZE),
    "text": Demo("requests", "texts", write_texts, "none", small_encoder),
}
