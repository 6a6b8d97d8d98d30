"""Measurements of this package for `benchmark.py`, each in a separate process.

    python scripts/ours.py steps resnet50 2

Prints one line of JSON. `peers.py` measures the alternatives.
"""

import json
import os
import resource
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from peers import calls_per_second, guide_model

BACKBONE = "mobilenet_v2_0.35"
SIZES = {"hymenoptera": 320, "sign_digits": 224}
_EPOCHS = 4


def start_of_training(name, folder, hidden):
    """Return the seconds from the imports to the first `fit`."""
    import keras

    import keras_transfer as kt
    from keras_transfer.training import trainer as training  # noqa: F401

    started, waits, fit = time.perf_counter(), [], keras.Model.fit

    def first(self, *args, **kwargs):
        waits.append(time.perf_counter() - started)
        return fit(self, *args, **kwargs)

    keras.Model.fit = first
    data = kt.data.from_directory(Path(os.environ["KERAS_TRANSFER_DATA"]) / name, progress=False)
    head = kt.Classification(data.class_names, hidden=[int(hidden)] if hidden else [])
    model = kt.build_model(BACKBONE, head)
    trainer = kt.Trainer(model, "feature_extraction", epochs=2)
    trainer.fit(data, Path(folder) / f"run{hidden}")
    return {"wait": waits[0]}


def fit(name, recipe, augment, backbone, where, folder, epochs, k=None):
    """Return the seconds and the accuracy of a training, with the cache given by `where`."""
    import keras

    import keras_transfer as kt

    keras.utils.set_random_seed(0)
    data = kt.data.from_directory(Path(os.environ["KERAS_TRANSFER_DATA"]) / name, progress=False)
    weights = "imagenet" if backbone == BACKBONE else None
    head = kt.Classification(data.class_names)
    model = kt.build_model(backbone, head, image_size=SIZES[name], weights=weights)
    overrides = {"epochs": int(epochs)}
    if recipe == "freeze_k":
        overrides["k"] = k or f"stage:{len(kt.models.backbone_of(model).stages) // 2}"
    trainer = kt.Trainer(
        model, recipe, overrides=overrides, augment=augment, cache=where, keep="last", refit="never"
    )
    started = time.perf_counter()
    run = trainer.fit(data, Path(folder) / "run")
    return {"fit": time.perf_counter() - started, "accuracy": run.metrics["val"]["accuracy"]}


def engines(name, rounds):
    """Return images/s of `predict` and of each engine, in turn, and the difference of outputs."""
    from keras_transfer.features.prefix import ENGINES, prefix_of
    from keras_transfer.models.builders import build_model
    from keras_transfer.models.heads import Classification
    from keras_transfer.models.stages import Backbone

    weights = "imagenet" if name == BACKBONE else None
    model = build_model(name, Classification("ab"), weights=weights)
    prefix = prefix_of(model, len(model.layers[1].stages))
    count = 128 if name == "resnet50" else 512
    images = _photographs(count)
    backbone: Backbone = prefix.model

    def batched(run):
        return lambda: np.concatenate([run(images[i : i + 32]) for i in range(0, count, 32)])

    runs = {"predict": lambda: backbone.predict(images, batch_size=32, verbose=0)}
    runs |= {engine: batched(make(prefix)) for engine, make in ENGINES.items()}
    outputs = {engine: run() for engine, run in runs.items()}
    norm = np.linalg.norm(outputs["predict"])
    errors = {e: float(np.linalg.norm(o - outputs["predict"]) / norm) for e, o in outputs.items()}
    speeds = {engine: [] for engine in runs}
    for _ in range(int(rounds)):
        for engine, run in runs.items():
            started = time.perf_counter()
            run()
            speeds[engine].append(count / (time.perf_counter() - started))
    return {"speeds": speeds, "errors": errors}


def _photographs(count, size=224):
    import keras_transfer as kt

    folder = Path(os.environ["KERAS_TRANSFER_DATA"]) / "hymenoptera"
    data = kt.data.from_directory(folder, progress=False)
    batches = data.batches("train", image_size=size, batch_size=128)
    few = np.concatenate([np.asarray(images) for images, _ in batches.take(2)])
    return np.concatenate([few] * -(-count // len(few)))[:count]


def steps(name, rounds):
    """Return images/s of the guide's `fit` and of the trainer: all weights, batches of 32, epochs in
    turn.
    """
    import keras
    import tensorflow as tf

    import keras_transfer as kt
    from keras_transfer.models.acceleration import jit_compile, set_precision, training_model

    count = 512 if name == BACKBONE else 96
    images, labels = _photographs(count), np.arange(count) % 2
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(32).prefetch(2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    function, options = (
        (keras.applications.ResNet50, {})
        if name == "resnet50"
        else (keras.applications.MobileNetV2, {"alpha": 0.35})
    )
    base = function(include_top=False, weights=None, input_shape=(224, 224, 3), **options)
    guide = guide_model(base, classes=2)
    guide.compile(keras.optimizers.Adam(1e-5), loss, metrics=["accuracy"])

    precision = set_precision("auto", name)
    model = kt.build_model(name, kt.Classification("ab"), weights=None)
    frozen = kt.freeze(model, "none")
    ours = training_model(model, frozen.stages)
    ours.compile(
        keras.optimizers.AdamW(1e-5), loss, metrics=["accuracy"], jit_compile=jit_compile()
    )
    alone = convolutions(base, 32, precision.name)
    epochs = {
        "guide": lambda: guide.fit(batches, verbose=0),
        "ours": lambda: ours.fit(batches, verbose=0),
        "convolutions": lambda: [alone() for _ in range(count // 32)],
    }
    speeds = {kind: [] for kind in epochs}
    for turn in range(int(rounds) + 1):
        for kind, epoch in epochs.items():
            started = time.perf_counter()
            epoch()
            if turn:  # the first epoch compiles
                speeds[kind].append(count / (time.perf_counter() - started))
    return {**speeds, "precision": precision.name}


def convolutions(model, batch_size, precision):
    """Return a function that computes a model's convolutions and their gradients, and nothing else.

    Each reads random numbers of the shape that it reads in the model, so no training step can be faster.
    """
    import keras
    import tensorflow as tf

    dtype = keras.DTypePolicy(precision).compute_dtype
    kinds = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
    layers = [layer for layer in model.layers if type(layer) in kinds]
    random = {layer.input.shape: None for layer in layers}
    for shape in random:
        values = tf.random.stateless_normal((batch_size, *shape[1:]), (0, 0))
        random[shape] = tf.cast(values, dtype)
    kernels = [tf.cast(layer.kernel.value, dtype) for layer in layers]

    def outcome(layer, kernel):
        images = random[layer.input.shape]
        plain = type(layer) is keras.layers.Conv2D
        function = tf.nn.conv2d if plain else tf.nn.depthwise_conv2d
        strides = (1, *layer.strides, 1)
        with tf.GradientTape() as tape:
            tape.watch([images, kernel])
            output = function(images, kernel, strides, layer.padding.upper())
        gradients = tape.gradient(output, [images, kernel], output_gradients=output)
        # One number of each, so that the graph's optimizer removes none.
        return tf.add_n([tf.reshape(tensor, [-1])[0] for tensor in gradients])

    @tf.function(autograph=False)
    def run():
        return tf.add_n([outcome(*pair) for pair in zip(layers, kernels)])

    return lambda: run().numpy()


def resnet50_speeds(batch_size=32):
    """Return images/s forward and in a training step, in two formats."""
    import keras

    from keras_transfer.features.prefix import ENGINES, prefix_of
    from keras_transfer.models.acceleration import training_step
    from keras_transfer.models.builders import build_model
    from keras_transfer.models.heads import Classification

    images = _photographs(batch_size)
    found = {}
    for form, engine, policy in (
        ("float32", "openvino_f32", "float32"),
        ("bfloat16", "openvino_bf16", "mixed_bfloat16"),
    ):
        keras.config.set_dtype_policy("float32")
        model = build_model("resnet50", Classification("ab"), weights=None)
        forward = ENGINES[engine](prefix_of(model, len(model.layers[1].stages)))
        keras.config.set_dtype_policy(policy)
        train = training_step("resnet50", batch_size=batch_size)
        for key, run in ((f"forward {form}", partial(forward, images)), (f"step {form}", train)):
            found[key] = batch_size * calls_per_second(run)
    return found


def pipelines(name, rounds, size=224):
    """Return images/s and CPU milliseconds an image read from files, in turn: our streams for
    evaluation and training, `image_dataset_from_directory`, and OpenCV in as many threads as there
    are cores, once with a resize (of the whole image, without antialiasing) and once decoding alone.
    """
    from concurrent.futures import ThreadPoolExecutor

    import cv2
    import keras

    import keras_transfer as kt

    folder, size = Path(os.environ["KERAS_TRANSFER_DATA"]) / name, int(size)
    data = kt.data.from_directory(folder, progress=False)
    names = data.examples["train"].names
    peer = folder / "train" if (folder / "train").is_dir() else folder
    options = dict(image_size=size, batch_size=32)
    steps = data.steps("train", 32)
    # A part of a folder without splits, so that the number of images is the same.
    whole = keras.utils.image_dataset_from_directory(
        peer, image_size=(size, size), batch_size=32, shuffle=False, verbose=False
    ).take(steps)

    def decode(path):
        return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)

    def resize(path):
        return cv2.resize(decode(path), (size, size))

    def bare(function):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for image in pool.map(function, names):
                del image

    def drain(batches):
        for batch in batches:
            del batch

    plain = data.batches("train", **options)
    endless = data.batches("train", training=True, **options)
    runs = {
        "evaluation": lambda: drain(plain),
        # Several epochs, because the stream reads ahead of the last batch.
        "training": lambda: drain(endless.take(_EPOCHS * steps)),
        "peer": lambda: drain(whole),
        "bare": lambda: bare(resize),
        "limit": lambda: bare(decode),
    }
    cv2.setNumThreads(0)
    found = {"speeds": {kind: [] for kind in runs}, "cpu": {kind: [] for kind in runs}}
    for turn in range(int(rounds) + 1):
        for kind, run in runs.items():
            started, used = time.perf_counter(), time.process_time()
            run()
            used, seconds = time.process_time() - used, time.perf_counter() - started
            if turn:
                count = len(names) * (_EPOCHS if kind == "training" else 1)
                found["speeds"][kind].append(count / seconds)
                found["cpu"][kind].append(1e3 * used / count)
    return found


def write_images(folder, count):
    """Write synthetic JPEGs: blobs of two colors with noise, in two classes and many folders."""
    from concurrent.futures import ThreadPoolExecutor

    from PIL import Image

    def write(index):
        rng = np.random.default_rng(index)
        small = rng.integers(0, 256, (8, 8, 3), "uint8")
        small[..., index % 2] //= 2
        image = Image.fromarray(small).resize((128, 96), Image.Resampling.BICUBIC)
        path = Path(folder) / "ab"[index % 2] / f"{index // 1000:03}" / f"{index:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=85)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(write, range(int(count))):
            pass
    return {"written": int(count)}


def extract_images(folder, count):
    """Check and extract the first `count` images of a folder, as the command does."""
    import keras

    import keras_transfer as kt
    from keras_transfer.data.examples import Examples, ImageData
    from keras_transfer.data.files import check_examples
    from keras_transfer.features.closed_form import logistic_regression
    from keras_transfer.features.extraction import extract
    from keras_transfer.features.prefix import prefix_of

    count = int(count)
    paths = [
        str(Path(folder) / "ab"[i % 2] / f"{i // 1000:03}" / f"{i:06}.jpg") for i in range(count)
    ]
    started = time.perf_counter()
    good, _ = check_examples(paths, progress=False)
    labels = np.arange(count, dtype="int32") % 2
    data = ImageData(("a", "b"), {"train": Examples(good, labels)}, [], str(folder))
    keras.utils.set_random_seed(0)
    model = kt.build_model("mobilenet_0.25", kt.Classification(("a", "b")), image_size=96)
    prefix = prefix_of(model, len(model.layers[1].stages))
    found = extract(prefix, data.examples["train"], engine="keras")
    extraction = time.perf_counter() - started
    started = time.perf_counter()
    rows = np.arange(count)
    logistic_regression(found.gather(rows), labels, rows)
    return {
        "extraction": extraction,
        "rest": time.perf_counter() - started,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


MEASURES = (
    start_of_training,
    fit,
    engines,
    steps,
    resnet50_speeds,
    pipelines,
    write_images,
    extract_images,
)

if __name__ == "__main__":
    measure = {f.__name__: f for f in MEASURES}[sys.argv[1]]
    print(json.dumps(measure(*sys.argv[2:])))
