"""Every export format of one run: size, speed, and whether it answers as the Keras model does.

    python scripts/export_formats.py DATA                    # mobilenet_v2_0.35, ImageNet weights
    python scripts/export_formats.py DATA --families         # one backbone a family, random weights

DATA is a folder of class folders. A head is fitted on features computed once, the model is exported in
each format, in int8 where there is one (ranges measured on 200 training pictures), and asked for up to
300 validation pictures. Prints Markdown. Speed is of prepared pictures, 32 at a time (LiteRT: one), the
best of three rounds; a SavedModel also scales them.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

from keras_transfer.backbones import BACKBONES
from keras_transfer.builders import build_model
from keras_transfer.data import from_directory
from keras_transfer.export import check_format, export_run, open_export
from keras_transfer.heads import head_for
from keras_transfer.training import Trainer

KINDS = [("saved_model", False)]
KINDS += [(name, int8) for name in ("litert", "onnx", "openvino") for int8 in (False, True)]
# The smallest of each family.
FAMILIES = {}
for _spec in sorted(BACKBONES.values(), key=lambda spec: spec.parameters):
    FAMILIES.setdefault(_spec.module, _spec.name)


def measured(backbone, weights, data, size, kinds, folder):
    """Yields (format, megabytes, pictures a second, same answer, accuracy lost, largest difference)."""
    keras.utils.set_random_seed(0)
    model = build_model(backbone, head_for(data), image_size=size, weights=weights)
    trainer = Trainer(model, "feature_extraction", augment="none", cache="memory")
    kept = {"data": data.root, "backbone": backbone, "weights": weights or "none"}
    run = trainer.fit(data, folder / "run", config=kept)
    batch = next(iter(data.batches("val", image_size=size, batch_size=32)))[0].numpy()
    yield "Keras, `predict_on_batch`", None, speed(model.predict_on_batch, batch), None, None, None
    for format, int8 in kinds:
        name = f"{format}{', int8' if int8 else ''}"
        try:
            found = export_run(run, format, int8=int8, most_lost=1.0)
        except Exception as error:  # a row of the table
            print(f"{backbone}: {name}: {error!r}", file=sys.stderr)
            yield f"{name}: {type(error).__name__}", *[None] * 5
            continue
        if format == "saved_model":
            loaded = tf.saved_model.load(str(found.path))
            serve = loaded.signatures["serve_uint8"]

            def ask(pictures, serve=serve):
                return serve(pictures=tf.constant(pictures))["scores"].numpy()

        else:
            ask = open_export(found.path)
        parity = found.parity
        same = min(parity.agreement.values())
        yield name, found.bytes / 1e6, speed(ask, batch), same, parity.lost, parity.difference


def speed(ask, batch) -> float:
    """Pictures a second, the best of three rounds of at least half a second each."""
    ask(batch)
    best = 0.0
    for _ in range(3):
        rounds, started = 0, time.perf_counter()
        while (seconds := time.perf_counter() - started) < 0.5:
            ask(batch)
            rounds += 1
        best = max(best, rounds * len(batch) / seconds)
    return best


def line(*cells):
    print(f"| {' | '.join(cells)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="mobilenet_v2_0.35")
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--families", action="store_true", help="one of each, random weights")
    parser.add_argument(
        "--formats", nargs="+", default=["saved_model", "litert", "onnx", "openvino"]
    )
    parser.add_argument("--float", action="store_true", help="leave int8 out")
    options = parser.parse_args()
    kinds = [
        kind for kind in KINDS if kind[0] in options.formats and not (kind[1] and options.float)
    ]
    for name, int8 in list(kinds):
        check_format(name, int8)
    data = from_directory(options.data, val_split=0.2, seed=0)
    names = list(FAMILIES.values()) if options.families else [options.backbone]
    line("backbone", "format", "MB", "pictures/s", "same answer", "accuracy lost", "scores apart")
    line(*["---"] * 7)
    for backbone in names:
        keras.backend.clear_session(free_memory=True)
        size = options.image_size or BACKBONES[backbone].size
        weights = None if options.families else "imagenet"
        folder = Path(tempfile.mkdtemp())
        try:
            for name, mb, fast, same, lost, apart in measured(
                backbone, weights, data, size, kinds, folder
            ):
                line(
                    f"`{backbone}`, {size} px",
                    name,
                    "" if mb is None else f"{mb:.1f}",
                    "" if fast is None else f"{fast:.0f}",
                    "" if same is None else f"{100 * same:.2f} %",
                    "" if lost is None else f"{100 * lost:+.2f} points",
                    "" if apart is None else f"{apart:.1e}",
                )
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
