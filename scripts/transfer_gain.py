"""Measure what transfer brings on a real task: start, slope, end and images saved, with a plot.

    KERAS_HOME=… KERAS_TRANSFER_DATA=… python scripts/transfer_gain.py --out DIR [--task sign_digits]

The default settings are for the sign digits: hands of people who are in no training image, 20
training images per class in the left panel of the plot. Both learning rates were found at 20 images
per class with seed 10, which is not among the reported seeds, but on the same people. An
interrupted comparison is resumed.
"""

import argparse
from pathlib import Path

from tasks import TASKS

import keras_transfer as kt


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", default="sign_digits", choices=list(TASKS))
    parser.add_argument("--backbone", default="mobilenet_v2_0.35")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--scratch-rate", type=float, default=3e-3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 80])
    parser.add_argument("--show", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    task = TASKS[options.task]
    found = kt.compare(
        task.data(),
        options.out,
        backbone=options.backbone,
        overrides={"learning_rate": options.rate},
        scratch_overrides={"learning_rate": options.scratch_rate},
        sizes=options.sizes,
        seeds=options.seeds,
        image_size=task.image_size,
        epochs=options.epochs,
        augment=task.augment,
        precision="float32",
        show=options.show,
    )
    print(found)


if __name__ == "__main__":
    main()
