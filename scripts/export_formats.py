"""Measure every export format: size, speed, and agreement with the Keras model.

    python scripts/export_formats.py DATA [--backbones NAME …] [--weights imagenet|none] [--families]
                 [--image-size N] [--per-class N] [--val-split SHARE] [--formats litert …]
                 [--rows FILE.csv] [--table | --no-table]

Prints Markdown tables (`--table`: without measuring). DATA contains one folder per class. The script fits
a head to cached features and exports the model in each format and, where possible, in int8 (ranges measured
on 200 training images, any loss allowed). It compares up to 300 validation images. The speed is that of
prepared images, 32 at a time (LiteRT: one), the best of three rounds; a SavedModel also resizes them.

Without ImageNet weights the network is a `random_copy`, because with the initial statistics of BatchNorm
its answers would be nearly constant in every format. `--families` takes one such backbone per family. A
row is written after each format, and an interrupted run resumes; each backbone runs in a separate
process.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rows import Rows

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from keras_transfer.models.sources.applications import BACKBONES

KINDS = {"saved_model": ("saved_model", False)}
for _name in ("litert", "onnx", "openvino"):
    KINDS |= {_name: (_name, False), f"{_name}_int8": (_name, True)}
KINDS["tfjs"] = ("tfjs", False)
TITLES = {
    "keras": "Keras, `predict_on_batch`",
    "saved_model": "SavedModel",
    "litert": "LiteRT",
    "litert_int8": "LiteRT, int8",
    "onnx": "ONNX",
    "onnx_int8": "ONNX, int8",
    "openvino": "OpenVINO",
    "openvino_int8": "OpenVINO, int8",
    "tfjs": "TensorFlow.js",
}
# The smallest of each module of keras.applications; of MobileNetV3 the smallest that has its
# hard-swish and squeeze-and-excite, which the minimalistic ones leave out.
FAMILIES = {}
for _spec in sorted(BACKBONES.values(), key=lambda spec: spec.parameters):
    if "minimalistic" not in _spec.name:
        FAMILIES.setdefault(_spec.module, _spec.name)
KEYS = ("backbone", "weights", "image_size", "format")
# `accuracy` and `answers` (the number of different ones) are the Keras model's, on the same images.
NUMBERS = ("mb", "images_per_s", "agreement", "lost", "difference", "accuracy", "answers")
IMAGES, EXAMPLES = 300, 200  # that `export_run` takes as well
FIELDS = (*KEYS, *NUMBERS, "refused")


# -- measuring ----------------------------------------------------------------------------------------


def measure(options, backbone, wanted, write):
    """Write a row for each requested format of one backbone."""
    import keras

    from keras_transfer.data import from_directory
    from keras_transfer.models.builders import head_for
    from keras_transfer.training.trainer import Trainer

    keras.utils.set_random_seed(0)
    folder = Path(tempfile.mkdtemp())
    try:
        images = options.data
        if options.per_class:
            images = folder / "images"
            for kind in sorted(path for path in options.data.iterdir() if path.is_dir()):
                (images / kind.name).mkdir(parents=True)
                for image in sorted(kind.iterdir())[: options.per_class]:
                    shutil.copy(image, images / kind.name)
        data = from_directory(images, val_split=options.val_split, seed=0, progress=False)
        model = network(backbone, head_for(data), data, options, folder)
        trainer = Trainer(model, "feature_extraction", augment="none", cache="memory")
        kept = {"data": data.root, "backbone": backbone, "weights": options.weights}
        run = trainer.fit(data, folder / "run", config=kept)
        stream = data.batches("val", image_size=model.input_shape[1], batch_size=32)
        batch = next(iter(stream))[0].numpy()
        measuring = Measuring(run, run.model, data, batch, folder)
        for name in wanted:
            row = measuring.row(name)
            write({**dict.fromkeys((*NUMBERS, "refused"), ""), "format": name, **row})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def network(backbone, head, data, options, folder):
    """Return the model with its head, with ImageNet weights or with random ones made for the
    images.
    """
    import keras

    from keras_transfer.advisor.untrained import random_copy
    from keras_transfer.features.store import Store
    from keras_transfer.models.builders import build_model
    from keras_transfer.models.sources.backbones import build_backbone

    size = image_size(options, backbone)
    if options.weights == "imagenet":
        return build_model(backbone, head, image_size=size, weights="imagenet")
    initial = build_backbone(backbone, image_size=size, weights=None)
    duplicate = random_copy(initial, data.examples["train"], store=Store(folder / "store"))
    for layer in duplicate.layers:
        # ConvNeXt's blocks initially add a millionth of their output, so a missing block would not show.
        if type(layer).__name__ == "LayerScale":
            layer.gamma.assign(keras.ops.full_like(layer.gamma, 0.1))
    return build_model(duplicate, head, image_size=size)


@dataclass
class Measuring:
    """The formats of one run; its model is loaded and its images are decoded once for all.

    Args:
        batch: uint8 [N, S, S, 3], to measure the speed on.
        folder: where exports may be written.
    """

    run: Any
    model: Any
    data: Any
    batch: np.ndarray
    folder: Path

    def row(self, name) -> dict:
        """Return the numbers of one format."""
        if name == "keras":
            return {"images_per_s": speed(self.model.predict_on_batch, self.batch)}
        try:
            found = self.exported(name)
        except Exception as error:  # a row of the table
            return {"refused": f"{type(error).__name__}: {error}"}
        parity = found.parity
        return {
            "mb": found.bytes / 1e6,
            # Each call of TensorFlow.js starts Node.js, which takes most of its time.
            "images_per_s": "" if name == "tfjs" else speed(self.ask(found), self.batch),
            "agreement": min(parity.agreement.values()),
            "lost": parity.lost,
            "difference": parity.difference,
            "accuracy": next(iter(parity.quality.values()))[0],
            "answers": min(parity.answers.values()),
        }

    def exported(self, name):
        from keras_transfer.export import convert, export_run

        format, int8 = KINDS[name]
        if format == "saved_model":
            return export_run(self.run)
        options = dict(int8=int8, examples=self.examples.images) if int8 else {}
        out = self.folder / name
        return convert(self.model, out, format, sample=self.sample, most_lost=1.0, **options)

    def ask(self, found):
        import tensorflow as tf

        from keras_transfer.export import open_export

        if found.format != "saved_model":
            return open_export(found.path)
        loaded = tf.saved_model.load(str(found.path))  # its signatures do not keep it alive
        serve = loaded.signatures["serve_uint8"]
        return lambda images: (loaded, serve(images=tf.constant(images))["scores"].numpy())

    @cached_property
    def sample(self):
        return self.draw("val", IMAGES)

    @cached_property
    def examples(self):
        return self.draw("train", EXAMPLES)

    def draw(self, split, count):
        from keras_transfer.export.parity import draw_sample
        from keras_transfer.models.builders import heads_of

        size = self.model.input_shape[1]
        return draw_sample(self.data, split, split, size, count, heads_of(self.model))


def speed(ask, batch) -> float:
    """Return images per second, the best of three rounds of at least half a second each."""
    ask(batch)
    best = 0.0
    for _ in range(3):
        rounds, started = 0, time.perf_counter()
        while (seconds := time.perf_counter() - started) < 0.5:
            ask(batch)
            rounds += 1
        best = max(best, rounds * len(batch) / seconds)
    return best


# -- tables -------------------------------------------------------------------------------------------


def line(*cells):
    return f"| {' | '.join(cells)} |"


def head(*cells):
    return [line(*cells), line(*["---"] * len(cells))]


def tables(rows) -> str:
    """Return a long table per backbone with ImageNet weights, and two wide ones for random weights."""
    parts = []
    for key in dict.fromkeys((row["backbone"], row["image_size"]) for row in rows):
        mine = [row for row in rows if (row["backbone"], row["image_size"]) == key]
        if mine[0]["weights"] == "imagenet":
            parts.append(f"`{key[0]}`, ImageNet weights, {key[1]} px\n\n{long_table(mine)}")
    others = [row for row in rows if row["weights"] == "none"]
    if others:
        parts += ["Random weights", wide_table(others, amount), wide_table(others, likeness)]
    return "\n\n".join(parts)


def long_table(rows):
    lines = head("format", "MB", "images/s", "same answer", "accuracy lost", "scores apart")
    for row in sorted(rows, key=lambda row: list(TITLES).index(row["format"])):
        cells = [f"{float(row['mb']):.1f}"] if row["mb"] else [""]
        fast = f"{float(row['images_per_s']):.0f}" if row["images_per_s"] else ""
        cells += [fast or ("refused" if row["refused"] else "")]
        if row["agreement"]:
            cells += [
                percent(row["agreement"]),
                points(row["lost"]),
                f"{float(row['difference']):.1e}",
            ]
        lines.append(line(TITLES[row["format"]], *cells, *[""] * (5 - len(cells))))
    return "\n".join(lines)


def wide_table(rows, cell):
    """Return a table with a row per backbone and a column per format."""
    lines = head("backbone", *cell.columns)
    for name in dict.fromkeys(row["backbone"] for row in rows):
        mine = {row["format"]: row for row in rows if row["backbone"] == name}
        size = next(iter(mine.values()))["image_size"]
        lines.append(line(f"`{name}`, {size} px", *cell(mine)))
    return "\n".join(lines)


def amount(mine):
    """Return MB and images per second of each format."""
    for name in TITLES:
        row = mine.get(name, {})
        mb = f"{float(row['mb']):.1f} MB" if row.get("mb") else ""
        fast = f"{float(row['images_per_s']):.0f}/s" if row.get("images_per_s") else ""
        yield ", ".join(filter(None, (mb, fast))) or ("refused" if row else "")


def likeness(mine):
    """Return the Keras model's accuracy and number of answers; the same answers of each format, and
    the loss of int8.
    """
    known = next((row for row in mine.values() if row["accuracy"]), None)
    yield f"{float(known['accuracy']):.3f}, {known['answers']}" if known else ""
    for name in KINDS:
        row = mine.get(name, {})
        if not row.get("agreement"):
            yield "refused" if row else ""
        elif name.endswith("int8"):
            yield f"{percent(row['agreement'])}, {points(row['lost'])}"
        else:
            yield percent(row["agreement"])


amount.columns = list(TITLES.values())
likeness.columns = ["accuracy, answers", *(TITLES[name] for name in KINDS)]


def percent(share):
    return f"{100 * float(share):.2f} %"


def points(share):
    # Avoid a negative zero.
    return f"{100 * float(share) + 0.0:.2f}".replace("-0.00", "0.00")


# -- the run ------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--backbones", nargs="+", default=["mobilenet_v2_0.35"])
    parser.add_argument("--weights", choices=("imagenet", "none"), default="imagenet")
    parser.add_argument(
        "--families", action="store_true", help="one backbone per family, with random weights"
    )
    parser.add_argument("--image-size", type=int, help="or the smallest size of the family")
    parser.add_argument("--per-class", type=int, help="images per class")
    parser.add_argument("--val-split", type=float, default=0.2)
    parser.add_argument("--formats", nargs="+", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--rows", type=Path, default=Path("export.csv"))
    parser.add_argument("--table", action=argparse.BooleanOptionalAction)
    options = parser.parse_args()
    if options.families:
        options.backbones, options.weights = list(FAMILIES.values()), "none"
    if not options.table:
        if options.data is None:
            parser.error("give a folder of class folders")
        for backbone in options.backbones:
            run(options, backbone)
    if options.table is not False:
        print(tables(Rows(options.rows, FIELDS).rows))


def image_size(options, backbone):
    spec = BACKBONES[backbone]
    return max(options.image_size or spec.size, spec.min_size)


def run(options, backbone):
    """Measure the missing rows, in a separate process if there are several backbones."""
    size = image_size(options, backbone)
    key = dict(zip(KEYS, (backbone, options.weights, str(size))))
    results = Rows(options.rows, FIELDS)
    wanted = [f for f in options.formats if not results.contains({**key, "format": f})]
    if not wanted:
        return
    if len(options.backbones) > 1:
        words = [options.data, "--backbones", backbone, "--weights", options.weights]
        words += ["--image-size", size, "--rows", options.rows, "--formats", *wanted]
        words += ["--val-split", options.val_split, "--no-table"]
        words += ["--per-class", options.per_class] if options.per_class else []
        # A crash does not stop the others.
        subprocess.run([sys.executable, __file__, *map(str, words)])
        return

    def write(row):
        row = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
        results.write(key | row)

    measure(options, backbone, wanted, write)


if __name__ == "__main__":
    main()
