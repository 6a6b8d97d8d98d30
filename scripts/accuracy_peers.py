"""The alternatives that `accuracy.py` compares with, in plain Keras and scikit-learn, without this package.

    python scripts/accuracy_peers.py NAME FOLDER BACKBONE SIZE SEED FLIP

Trains on FOLDER/train, measures FOLDER/test after the last step and prints one line of JSON: accuracy,
log_loss, and the seconds and processor seconds of the measurement, which do not count as training.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from peers import guide_model

BATCH = 32
APPLICATIONS = {
    "mobilenet_0.25": ("MobileNet", {"alpha": 0.25}),
    "mobilenet_v2_0.35": ("MobileNetV2", {"alpha": 0.35}),
}
TORCH_EPOCHS = 13  # as our lp_ft: 2 + 11
TORCH_RESIZE = 256 / 224  # torchvision's presets resize to 256 and crop 224


def source(backbone: str, size: int):
    """Return (network without its top, whether it needs inputs of -1 … 1)."""
    import keras

    if backbone in APPLICATIONS:
        name, options = APPLICATIONS[backbone]
        options = {**options, "include_top": False}
        make = getattr(keras.applications, name)
        trained = make(weights="imagenet", input_shape=(224, 224, 3), **options)
        if size == 224:
            return trained, True
        base = make(weights=None, input_shape=(size, size, 3), **options)
        base.set_weights(trained.get_weights())
        return base, True
    whole = keras.saving.load_model(backbone, compile=False)
    pool = next(x for x in whole.layers if isinstance(x, keras.layers.GlobalAveragePooling2D))
    base = keras.Model(whole.inputs, pool.input)
    if base.input_shape[1] != size:
        raise SystemExit(f"{backbone} reads images of {base.input_shape[1]} px, not {size}")
    return base, False


def images(folder: Path, size: int, seed: int | None = None, **options):
    """Return (batches, number of classes), shuffled if there is a seed."""
    import keras

    found = keras.utils.image_dataset_from_directory(
        folder,
        image_size=(size, size),
        batch_size=BATCH,
        shuffle=seed is not None,
        seed=seed,
        verbose=False,
        **options,
    )
    return found.prefetch(2), len(found.class_names)


def arrays(batches):
    """Return (inputs, labels) of all batches as arrays."""
    x, y = zip(*((np.asarray(x), np.asarray(y)) for x, y in batches), strict=True)
    return np.concatenate(x), np.concatenate(y)


def measured(model, test) -> dict:
    """Return the test figures of a model that gives logits."""
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, metrics=["accuracy"])
    value, accuracy = model.evaluate(test, verbose=0)
    return {"accuracy": accuracy, "log_loss": value}


def fit(model, train, rate: float, epochs: int) -> None:
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    model.fit(train, epochs=epochs, verbose=0)


def guide(folder, backbone, size, seed, flip):
    """Return the measurement after the Keras guide "Transfer learning & fine-tuning".

    Flips and rotations, frozen network, Dropout 0.2, Dense: Adam 1e-3, 10 epochs; then everything, with
    BatchNorm in inference mode: Adam 1e-5, 5 epochs.
    """
    train, classes = images(folder / "train", size, seed)
    base, rescale = source(backbone, size)
    model = guide_model(base, classes, size, rescale=rescale, flip=flip)
    base.trainable = False
    fit(model, train, 1e-3, 10)
    base.trainable = True
    fit(model, train, 1e-5, 5)
    return lambda: measured(model, images(folder / "test", size)[0])


def torch_constants(folder, backbone, size, seed, flip):
    """Return the measurement after what most PyTorch scripts do.

    Adam 1e-4 on all layers, BatchNorm in training mode with PyTorch's momentum, a linear head,
    RandomResizedCrop (8 to 100 % of the area, aspect 3/4 to 4/3) and flips; for the test a center crop of 224/256.
    """
    import keras
    import tensorflow as tf

    whole = round(size * TORCH_RESIZE)

    def crop(batch, labels):
        count = tf.shape(batch)[0]
        area = tf.random.uniform([count], 0.08, 1.0)
        aspect = tf.exp(tf.random.uniform([count], np.log(3 / 4), np.log(4 / 3)))
        height = tf.minimum(tf.sqrt(area / aspect), 1.0)
        width = tf.minimum(tf.sqrt(area * aspect), 1.0)
        top = tf.random.uniform([count]) * (1 - height)
        left = tf.random.uniform([count]) * (1 - width)
        boxes = tf.stack([top, left, top + height, left + width], axis=1)
        batch = tf.image.crop_and_resize(batch, boxes, tf.range(count), (size, size))
        return (tf.image.random_flip_left_right(batch) if flip else batch), labels

    def center(batch, labels):
        start = (whole - size) // 2
        return batch[:, start : start + size, start : start + size], labels

    train, classes = images(folder / "train", whole, seed)
    base, rescale = source(backbone, size)
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = (
                0.9  # PyTorch's; that of keras.applications, 0.999, needs thousands of steps
            )
    inputs = keras.Input((size, size, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs) if rescale else inputs
    x = keras.layers.GlobalAveragePooling2D()(base(x))
    model = keras.Model(inputs, keras.layers.Dense(classes)(x))
    fit(model, train.map(crop), 1e-4, TORCH_EPOCHS)
    test, _ = images(folder / "test", whole, crop_to_aspect_ratio=True)
    return lambda: measured(model, test.map(center))


def sklearn_logistic(folder, backbone, size, seed, flip):
    """Return the measurement of scikit-learn's LogisticRegression on standardized features from
    `predict`; C from ten values by cross-validated log loss, in at most five folds.
    """
    import keras
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    base, rescale = source(backbone, size)
    inputs = keras.Input((size, size, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs) if rescale else inputs
    network = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(base(x)))
    x, y = arrays(images(folder / "train", size)[0])
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    search = GridSearchCV(
        pipeline,
        {"logisticregression__C": np.logspace(-4, 4, 10)},
        scoring="neg_log_loss",
        cv=min(5, int(np.bincount(y).min())),
    )
    search.fit(network.predict(x, batch_size=BATCH, verbose=0), y)

    def measure():
        x, y = arrays(images(folder / "test", size)[0])
        found = search.predict_proba(network.predict(x, batch_size=BATCH, verbose=0))
        return {
            "accuracy": float(np.mean(found.argmax(1) == y)),
            "log_loss": float(log_loss(y, found, labels=search.classes_)),
        }

    return measure


PEERS = {peer.__name__: peer for peer in (guide, torch_constants, sklearn_logistic)}

if __name__ == "__main__":
    import keras

    name, folder, backbone, size, seed, flip = sys.argv[1:]
    keras.utils.set_random_seed(int(seed))
    if backbone not in APPLICATIONS:
        backbone = str(Path(os.environ["KERAS_HOME"]) / "own" / f"{backbone}.keras")
    measure = PEERS[name](Path(folder), backbone, int(size), int(seed), flip == "True")
    seconds, cpu = time.perf_counter(), time.process_time()
    result = measure()
    result["measuring"] = time.perf_counter() - seconds
    result["measuring_cpu"] = time.process_time() - cpu
    print(json.dumps(result))
