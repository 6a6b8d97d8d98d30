"""Probe every stage of real backbones on real images, with pretrained and with random weights.

    KERAS_HOME=… KERAS_TRANSFER_DATA=… python scripts/stage_curves.py --out curves/ [--image-size 128]

Prints a table and a verdict, and draws a plot, for each dataset and backbone: `sign_digits`;
`hymenoptera`; `shuffled`, the sign digits with permuted labels, which must show no signal; and `digits`,
scikit-learn's 8 × 8 scans.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

from keras_transfer.advisor.stage_probes import probe_stages
from keras_transfer.cli.demo import write_images
from keras_transfer.data import from_directory
from keras_transfer.data.examples import Examples, ImageData
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification

BACKBONES = ("mobilenet_0.25", "mobilenet_v2_0.35")
DATA = ("sign_digits", "hymenoptera", "shuffled", "digits")


def shuffled(data: ImageData, seed: int = 0) -> ImageData:
    """Return the same images with permuted labels."""
    rng = np.random.default_rng(seed)
    examples = {
        split: Examples(part.images, rng.permutation(part.labels))
        for split, part in data.examples.items()
    }
    return ImageData(data.class_names, examples, data.skipped, data.root)


def open_named(name: str, scratch: Path) -> ImageData:
    if name == "digits":
        write_images(scratch, seed=0, splits=False)
        return from_directory(scratch / "all", progress=False)
    folder = Path(os.environ["KERAS_TRANSFER_DATA"])
    if name == "shuffled":
        return shuffled(from_directory(folder / "sign_digits", progress=False))
    return from_directory(folder / name, progress=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=DATA)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES))
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.data:
            data = open_named(name, Path(scratch))
            for backbone in options.backbones:
                keras.backend.clear_session()
                head = Classification(data.class_names)
                model = build_model(backbone, head, image_size=options.image_size)
                started = time.perf_counter()
                probes = probe_stages(model, data, seed=options.seed)
                seconds = time.perf_counter() - started
                probes.draw(options.out / f"{name}_{backbone}.png", f"{name}, {backbone}")
                print(f"\n## {name}, {backbone}, {options.image_size} px, {seconds:.1f} s\n")
                print(probes, flush=True)


if __name__ == "__main__":
    main()
