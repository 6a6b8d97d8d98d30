"""This package against what people use today, side by side in one run.

    KERAS_HOME=… KERAS_TRANSFER_DATA=… python scripts/benchmark.py [SECTION...] [--rounds 3]
                                                                   [--torch PYTHON] [--out FILE.md]

Ours and the peer run in turn, several rounds; a line gives both medians, with the spread over the
rounds, and the ratio of the medians. Sections:

whole       `feature_extraction`, whole command against the Keras guide's recipe, whole process
again       how soon a second run with another head starts training, its packages imported
advise      `keras-transfer advise`, whole process: with an empty cache, and once more
cache       20 epochs with a frozen part, with the cache (empty at the start) and without
cuts        accuracy with the cache and without, frozen up to three different stages
extraction  forward only: the engines against `model.predict`
step        a fine-tuning step: the trainer's model against the guide's `fit`
pipeline    pictures from files: our batches against `image_dataset_from_directory`
growth      time a picture and peak memory, for 1,000 to 100,000 pictures
torch       ResNet-50 of PyTorch (`--torch` names a Python that has it) against ours

What a section needs the packages for runs in a process of its own, so that its memory is its own.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
BACKBONE = "mobilenet_v2_0.35"


def child(*args, python=sys.executable, cache=None) -> dict:
    """Runs a process; its last line is JSON. Adds wall seconds and peak memory (bytes)."""
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if cache:
        env["KERAS_TRANSFER_CACHE"] = str(cache)
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(python), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    out, errors = process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, args))} failed:\n{errors[-2000:]}")
    lines = [line for line in out.splitlines() if line.startswith("{")]
    return {**(json.loads(lines[-1]) if lines else {}), "seconds": seconds}


def own(function: str, *args, cache=None) -> dict:
    """A function of this file, in a process of its own."""
    return child(__file__, "--child", function, *args, cache=cache)


class Table:
    """Lines of a Markdown table, printed as they come."""

    def __init__(self, out):
        self.out = out
        self.lines = []
        self._put("| what | ours | peer | ratio | peak memory |")
        self._put("|---|---|---|---|---|")

    def _put(self, line):
        print(line, flush=True)
        self.lines.append(line)
        if self.out:
            Path(self.out).write_text("\n".join(self.lines) + "\n", encoding="utf-8")

    def add(self, what, ours, peer=None, unit="s", higher=False, memory="", note=""):
        """A line of two lists of rounds; the ratio says how many times better ours is."""
        texts, ratio = [_rounds(ours, unit)], ""
        if peer is None:
            texts.append("")
        else:
            texts.append(_rounds(peer, unit))
            ours, peer = np.median(ours), np.median(peer)
            ratio = f"{ours / peer if higher else peer / ours:.2f}"
        self._put(
            f"| {what}{note and f' ({note})'} | {texts[0]} | {texts[1]} | {ratio} | {memory} |"
        )


def _rounds(values, unit):
    values = np.asarray(values, float)
    digits = ".3g" if values.max() < 100 else ".0f"
    spread = f" ({values.min():{digits}}–{values.max():{digits}})" if len(values) > 1 else ""
    return f"{np.median(values):{digits}}{spread} {unit}"


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _gib(size):
    return f"{size / 2**30:.2f} GiB"


# -- whole process --------------------------------------------------------------------------------

SIZES = {"hymenoptera": 320, "sign_digits": 224}


def whole(table, options):
    for name in SIZES:
        ours, peers, accuracies = [], [], [[], []]
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                command = Path(sys.executable).parent / "keras-transfer"
                data = Path(os.environ["KERAS_TRANSFER_DATA"]) / name
                run = Path(folder) / "run"
                result = child(
                    "train", data, "--out", run, "--backbone", BACKBONE, "--strategy",
                    "feature_extraction", "--image-size", SIZES[name],
                    python=command, cache=Path(folder) / "cache",
                )  # fmt: skip
                metrics = json.loads((run / "metrics.json").read_text())
            ours.append(result["seconds"])
            accuracies[0].append(metrics["val"]["accuracy"])
            peer = child(HERE / "peers.py", "guide", name)
            peers.append(peer["seconds"])
            accuracies[1].append(peer["accuracy"])
        note = "accuracy {:.4f} and {:.4f}".format(*(np.median(a) for a in accuracies))
        table.add(f"`feature_extraction`, {name}, whole process", ours, peers, note=note)


def again(table, options):
    for name in SIZES:
        waits = []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                for hidden in ("", "64"):
                    found = own("start_of_training", name, folder, hidden, cache=folder + "/cache")
            waits.append(found["wait"])
        table.add(f"second run with another head, {name}: training starts after", waits)


def start_of_training(name, folder, hidden):
    """Seconds from the imports to the first `fit`."""
    import keras

    import keras_transfer as kt
    from keras_transfer import training  # noqa: F401

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


def advise(table, options):
    command = Path(sys.executable).parent / "keras-transfer"
    data = Path(os.environ["KERAS_TRANSFER_DATA"]) / "sign_digits"
    times = {"from nothing": [], "once more": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for seconds in times.values():
                seconds.append(child("advise", data, python=command, cache=cache)["seconds"])
    for when, seconds in times.items():
        table.add(f"`keras-transfer advise`, sign_digits, {when}", seconds)


# -- the cache ------------------------------------------------------------------------------------


# Recipe, augmentation, backbone, data. The weights of `resnet50` are random: it is timed only.
PLANS = [
    ("feature_extraction", "none", BACKBONE, "sign_digits"),
    ("freeze_k", "none", BACKBONE, "hymenoptera"),
    ("freeze_k", "light", BACKBONE, "hymenoptera"),
    ("freeze_k", "none", BACKBONE, "sign_digits"),
    ("feature_extraction", "light", BACKBONE, "sign_digits"),
    ("feature_extraction", "none", "resnet50", "hymenoptera"),
]


def cache(table, options):
    """Tables are empty at the start; which engine is fastest is known from a run before."""
    for recipe, augment, backbone, name in PLANS:
        found = {"auto": [], "off": []}
        with tempfile.TemporaryDirectory() as folder:
            known = Path(folder) / "known"
            own("fit", name, recipe, augment, backbone, "auto", folder, 2, cache=known)
            shutil.rmtree(known / "features")
            for i in range(options.rounds):
                for where, results in found.items():
                    fresh = Path(folder) / f"{where}-{i}"
                    shutil.copytree(known, fresh)
                    arguments = (name, recipe, augment, backbone, where, fresh, 20)
                    results.append(own("fit", *arguments, cache=fresh))
        note = ""
        if backbone == BACKBONE:
            accuracies = [np.median([r["accuracy"] for r in results]) for results in found.values()]
            note = "accuracy {:.4f} and {:.4f}".format(*accuracies)
        what = "head only" if recipe == "feature_extraction" else "`freeze_k`, half of the stages"
        table.add(
            f"20 epochs, {what}, augmentation {augment}, {backbone}, {name} {SIZES[name]} px: cache "
            "against none",
            *([r["fit"] for r in results] for results in found.values()),
            note=note,
        )


def cuts(table, options):
    """The same accuracy with the cache as without, whatever the cut."""
    for name in SIZES:
        for k in ("stage:4", "stage:9", "stage:14"):
            found = {"auto": [], "off": []}
            with tempfile.TemporaryDirectory() as folder:
                for where, results in found.items():
                    arguments = (name, "freeze_k", "none", BACKBONE, where, f"{folder}/{where}", 8)
                    results.append(own("fit", *arguments, k, cache=folder))
            accuracies = [results[0]["accuracy"] for results in found.values()]
            table.add(
                f"8 epochs, `freeze_k` at {k}, {name} {SIZES[name]} px: cache against none",
                *([r["fit"] for r in results] for results in found.values()),
                note="accuracy {:.4f} and {:.4f}".format(*accuracies),
            )


def fit(name, recipe, augment, backbone, where, folder, epochs, k=None):
    import keras

    import keras_transfer as kt

    keras.utils.set_random_seed(0)
    data = kt.data.from_directory(Path(os.environ["KERAS_TRANSFER_DATA"]) / name, progress=False)
    weights = "imagenet" if backbone == BACKBONE else None
    head = kt.Classification(data.class_names)
    model = kt.build_model(backbone, head, image_size=SIZES[name], weights=weights)
    overrides = {"epochs": int(epochs)}
    if recipe == "freeze_k":
        overrides["k"] = k or f"stage:{len(kt.backbone_of(model).stages) // 2}"
    trainer = kt.Trainer(
        model, recipe, overrides=overrides, augment=augment, cache=where, keep="last"
    )
    started = time.perf_counter()
    run = trainer.fit(data, Path(folder) / "run")
    return {"fit": time.perf_counter() - started, "accuracy": run.metrics["val"]["accuracy"]}


# -- engines and steps ----------------------------------------------------------------------------


def extraction(table, options):
    for name in ("resnet50", "mobilenet_v2", BACKBONE):
        found = own("engines", name, options.rounds)
        for engine, speeds in found["speeds"].items():
            if engine != "predict":
                error = f"relative error {found['errors'][engine]:.4f}"
                table.add(
                    f"extraction, {name}, `{engine}` against `predict`", speeds,
                    found["speeds"]["predict"], "pictures/s", higher=True, note=error,
                )  # fmt: skip


def engines(name, rounds):
    from keras_transfer.builders import build_model
    from keras_transfer.features.engines import ENGINES
    from keras_transfer.features.prefix import prefix_of
    from keras_transfer.heads import Classification
    from keras_transfer.stages import Backbone

    weights = "imagenet" if name == BACKBONE else None
    model = build_model(name, Classification("ab"), weights=weights)
    prefix = prefix_of(model, len(model.layers[1].stages))
    count = 128 if name == "resnet50" else 512
    pictures = _photographs(count)
    backbone: Backbone = prefix.model

    def batched(run):
        return lambda: np.concatenate([run(pictures[i : i + 32]) for i in range(0, count, 32)])

    runs = {"predict": lambda: backbone.predict(pictures, batch_size=32, verbose=0)}
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
    few = np.concatenate([np.asarray(pictures) for pictures, _ in batches.take(2)])
    return np.concatenate([few] * -(-count // len(few)))[:count]


def step(table, options):
    for name in (BACKBONE, "resnet50"):
        found = own("steps", name, options.rounds)
        table.add(
            f"fine-tuning step, {name}, {found['precision']}, against the guide's `fit`",
            found["ours"], found["guide"], "pictures/s", higher=True,
        )  # fmt: skip


def steps(name, rounds):
    """Everything trains, batches of 32, whole epochs of `fit` in turn."""
    import keras
    import tensorflow as tf

    import keras_transfer as kt
    from keras_transfer.builders import training_model
    from keras_transfer.precision import jit_compile, set_precision

    count = 512 if name == BACKBONE else 96
    pictures, labels = _photographs(count), np.arange(count) % 2
    batches = tf.data.Dataset.from_tensor_slices((pictures, labels)).batch(32).prefetch(2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    function, options = (
        (keras.applications.ResNet50, {})
        if name == "resnet50"
        else (keras.applications.MobileNetV2, {"alpha": 0.35})
    )
    base = function(include_top=False, weights=None, input_shape=(224, 224, 3), **options)
    inputs = keras.Input((224, 224, 3))
    x = keras.layers.RandomFlip("horizontal")(inputs)
    x = keras.layers.RandomRotation(0.1)(x)
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(x)
    x = keras.layers.GlobalAveragePooling2D()(base(x, training=False))
    guide = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dropout(0.2)(x)))
    guide.compile(keras.optimizers.Adam(1e-5), loss, metrics=["accuracy"])

    precision = set_precision("auto", name)
    model = kt.build_model(name, kt.Classification("ab"), weights=None)
    frozen = kt.freeze(model, "none")
    ours = training_model(model, frozen.stages)
    ours.compile(
        keras.optimizers.AdamW(1e-5), loss, metrics=["accuracy"], jit_compile=jit_compile()
    )
    speeds = {"guide": [], "ours": []}
    for turn in range(int(rounds) + 1):
        for kind, trained in (("guide", guide), ("ours", ours)):
            started = time.perf_counter()
            trained.fit(batches, verbose=0)
            if turn:  # the first one compiles
                speeds[kind].append(count / (time.perf_counter() - started))
    return {**speeds, "precision": precision.name}


def torch(table, options):
    if not options.torch:
        print("torch: name a Python that has it with --torch", file=sys.stderr)
        return
    ours = {"forward float32": [], "forward bfloat16": [], "step float32": [], "step bfloat16": []}
    peers = {key: [] for key in ours}
    for _ in range(options.rounds):
        for key, speed in own("resnet50_speeds").items():
            if key in ours:
                ours[key].append(speed)
        for key, speed in child(HERE / "peers.py", "torch", python=options.torch).items():
            if key in peers:
                peers[key].append(speed)
    for key, speeds in ours.items():
        table.add(f"ResNet-50 {key} against PyTorch", speeds, peers[key], "pictures/s", higher=True)


def resnet50_speeds(batch_size=32, seconds=6.0):
    import keras

    from keras_transfer.builders import build_model
    from keras_transfer.features.engines import ENGINES
    from keras_transfer.features.prefix import prefix_of
    from keras_transfer.heads import Classification
    from keras_transfer.precision import training_step

    pictures = _photographs(batch_size)
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
        for key, run in ((f"forward {form}", partial(forward, pictures)), (f"step {form}", train)):
            run()
            count, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds:
                run()
                count += 1
            found[key] = batch_size * count / (time.perf_counter() - started)
    return found


# -- pictures from files --------------------------------------------------------------------------


def pipeline(table, options):
    for name in SIZES:
        found = own("pipelines", name, options.rounds)
        for kind in ("evaluation", "training"):
            table.add(
                f"pipeline, {name}, {kind}, against `image_dataset_from_directory`", found[kind],
                found["peer"], "pictures/s", higher=True,
            )  # fmt: skip


def pipelines(name, rounds):
    import keras

    import keras_transfer as kt

    folder = Path(os.environ["KERAS_TRANSFER_DATA"]) / name
    data = kt.data.from_directory(folder, progress=False)
    count = len(data.examples["train"])
    peer = folder / "train" if (folder / "train").is_dir() else folder
    options = dict(image_size=224, batch_size=32)
    plain = data.batches("train", **options)
    endless = data.batches("train", training=True, **options)
    steps = data.steps("train", 32)
    # Part of the folder where it has no splits: the same number of pictures.
    whole = keras.utils.image_dataset_from_directory(
        peer, image_size=(224, 224), batch_size=32, shuffle=False
    )
    runs = {"evaluation": plain, "training": endless.take(steps), "peer": whole.take(steps)}
    speeds = {kind: [] for kind in runs}
    for turn in range(int(rounds) + 1):
        for kind, batches in runs.items():
            started = time.perf_counter()
            for batch in batches:
                del batch
            if turn:
                speeds[kind].append(count / (time.perf_counter() - started))
    return speeds


# -- growth ---------------------------------------------------------------------------------------

COUNTS = (1_000, 10_000, 100_000)


def growth(table, options):
    with tempfile.TemporaryDirectory(prefix="pictures") as folder:
        folder = Path(folder)
        own("write_pictures", folder, max(COUNTS))
        for count in COUNTS:
            cache = folder / f"cache-{count}"
            found = own("extract_pictures", folder, count, cache=cache)
            shutil.rmtree(cache, ignore_errors=True)
            table.add(
                f"mobilenet_0.25 features of {count:,} JPEGs, 96 px: time a picture",
                [1e3 * found["extraction"] / count], unit="ms", memory=_gib(found["memory"]),
                note=f"{found['extraction']:.0f} s, then {found['rest']:.0f} s for the head",
            )  # fmt: skip


def write_pictures(folder, count):
    """Synthetic JPEGs: blobs of two colours and noise, in two classes, many to a folder."""
    from concurrent.futures import ThreadPoolExecutor

    from PIL import Image

    def write(index):
        rng = np.random.default_rng(index)
        small = rng.integers(0, 256, (8, 8, 3), "uint8")
        small[..., index % 2] //= 2
        picture = Image.fromarray(small).resize((128, 96), Image.Resampling.BICUBIC)
        path = Path(folder) / "ab"[index % 2] / f"{index // 1000:03}" / f"{index:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=85)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(write, range(int(count))):
            pass
    return {"written": int(count)}


def extract_pictures(folder, count):
    """What the command does with a folder, on the first `count` pictures."""
    import keras

    import keras_transfer as kt
    from keras_transfer.data.examples import Examples, ImageData
    from keras_transfer.data.index import check_pictures
    from keras_transfer.features.extraction import extract
    from keras_transfer.features.prefix import prefix_of
    from keras_transfer.solvers import logistic_regression

    count = int(count)
    paths = [
        str(Path(folder) / "ab"[i % 2] / f"{i // 1000:03}" / f"{i:06}.jpg") for i in range(count)
    ]
    started = time.perf_counter()
    good, _ = check_pictures(paths, progress=False)
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
        "memory": _peak(),
    }


SECTIONS = {
    f.__name__: f
    for f in (whole, again, advise, cache, cuts, extraction, step, pipeline, growth, torch)
}
CHILDREN = (
    start_of_training,
    fit,
    engines,
    steps,
    resnet50_speeds,
    pipelines,
    write_pictures,
    extract_pictures,
)


def main():
    if sys.argv[1:2] == ["--child"]:
        chosen = {f.__name__: f for f in CHILDREN}[sys.argv[2]]
        print(json.dumps(chosen(*sys.argv[3:])))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch", help="a Python that has PyTorch")
    parser.add_argument("--out", help="a Markdown file, written after each line")
    options = parser.parse_args()
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {unknown[0]}: choose of {', '.join(SECTIONS)}")
    for needed in ("KERAS_HOME", "KERAS_TRANSFER_DATA"):
        if needed not in os.environ:
            parser.error(f"set {needed}: real weights and pictures are measured")
    table = Table(options.out)
    for name in options.sections or SECTIONS:
        SECTIONS[name](table, options)


if __name__ == "__main__":
    main()
