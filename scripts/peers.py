"""The alternatives that `benchmark.py` compares with, each as its documentation recommends.

    python scripts/peers.py guide hymenoptera
    python scripts/peers.py torch          # needs only PyTorch, in any Python that has it

Prints one line of JSON.
"""

import json
import os
import sys
import time
from pathlib import Path

EPOCHS = {"hymenoptera": (10, 5), "sign_digits": (5, 2)}


def guide_model(base, classes: int, size: int = 224, *, rescale: bool = True, flip: bool = True):
    """Return the guide's model around `base`, a network without its top for `size` px.

    `rescale` to -1 … 1, if `base` does not do it itself; no `flip` for digits and signs.
    """
    import keras

    inputs = keras.Input((size, size, 3))
    x = keras.layers.RandomFlip("horizontal")(inputs) if flip else inputs
    x = keras.layers.RandomRotation(0.1)(x)
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(x) if rescale else x
    x = base(x, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.2)(x)
    return keras.Model(inputs, keras.layers.Dense(classes)(x))


def guide(name: str) -> dict:
    """Run the Keras guide "Transfer learning & fine-tuning" on one of the image folders.

    Folder → random flip and rotation → frozen MobileNetV2 0.35 at 224 px → global average →
    Dropout 0.2 → Dense, Adam 1e-3; then everything, Adam 1e-5. Compiled as in the guide.
    """
    import keras

    keras.utils.set_random_seed(0)
    folder = Path(os.environ["KERAS_TRANSFER_DATA"]) / name
    options = dict(image_size=(224, 224), batch_size=32)
    if (folder / "train").is_dir():
        parts = [
            keras.utils.image_dataset_from_directory(
                folder / part, shuffle=part == "train", **options
            )
            for part in ("train", "val")
        ]
    else:
        parts = keras.utils.image_dataset_from_directory(
            folder, validation_split=0.2, subset="both", seed=0, **options
        )
    classes = len(parts[0].class_names)
    train, val = (part.prefetch(2) for part in parts)
    base = keras.applications.MobileNetV2(
        alpha=0.35, include_top=False, weights="imagenet", input_shape=(224, 224, 3)
    )
    base.trainable = False
    model = guide_model(base, classes)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    head_epochs, all_epochs = EPOCHS[name]
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    model.fit(train, validation_data=val, epochs=head_epochs, verbose=0)
    base.trainable = True
    model.compile(keras.optimizers.Adam(1e-5), loss, metrics=["accuracy"])
    history = model.fit(train, validation_data=val, epochs=all_epochs, verbose=0).history
    return {"accuracy": history["val_accuracy"][-1]}


def calls_per_second(run, seconds: float = 6.0) -> float:
    """How often `run` is done in a second, after a first call that is not counted."""
    run()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        run()
        count += 1
    return count / (time.perf_counter() - started)


def torch_resnet50():
    """Return ResNet-50 (arXiv:1512.03385) as in torchvision, which need not be installed."""
    from torch import nn

    def conv(inputs, outputs, kernel, stride=1, relu=True):
        layers = [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))

    class Block(nn.Module):
        def __init__(self, inputs, width, stride):
            super().__init__()
            outputs = 4 * width
            self.main = nn.Sequential(
                conv(inputs, width, 1),
                conv(width, width, 3, stride),
                conv(width, outputs, 1, relu=False),
            )
            same = inputs == outputs and stride == 1
            self.short = nn.Identity() if same else conv(inputs, outputs, 1, stride, relu=False)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(self.main(x) + self.short(x))

    layers, inputs = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
    for i, (width, count) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3))):
        for j in range(count):
            layers.append(Block(inputs, width, 2 if i and not j else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def torch(batch_size: int = 32) -> dict:
    """Return images/s of PyTorch's ResNet-50, eager, forward and in a training step, in two formats."""
    import numpy as np
    import torch as t

    images = np.random.default_rng(0).normal(size=(batch_size, 3, 224, 224)).astype("float32")
    images = t.from_numpy(images).to(memory_format=t.channels_last)
    labels = t.arange(batch_size) % 2
    model = torch_resnet50().to(memory_format=t.channels_last)
    optimizer = t.optim.AdamW(model.parameters(), 1e-5)

    def forward():
        with t.inference_mode():
            model(images)

    def step():
        optimizer.zero_grad()
        t.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    found = {}
    for form, half in (("float32", False), ("bfloat16", True)):
        for name, run, training in (("forward", forward, False), ("step", step, True)):
            model.train(training)
            with t.autocast("cpu", t.bfloat16, enabled=half):
                found[f"{name} {form}"] = batch_size * calls_per_second(run)
    return found


if __name__ == "__main__":
    print(json.dumps({"guide": guide, "torch": torch}[sys.argv[1]](*sys.argv[2:])))
