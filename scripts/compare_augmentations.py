"""Measure the gain of augmentation with few images, and its cost.

    KERAS_HOME=… KERAS_TRANSFER_DATA=… python scripts/compare_augmentations.py [accuracy] [speed]
                 [--augment none medium … FILE.yaml] [--seeds 10 11 12] [--rounds 5] [--out FILE.md]

Prints Markdown tables, row by row, and writes them to --out.

accuracy    sign_digits with 20 training images per class. The same half of all images is held out in
            every run; the training images are drawn from the other half for each seed, the same for
            every augmentation. Nothing is chosen on the held-out half: the number of epochs is fixed,
            and the weights of the last epoch are evaluated. No image is mirrored. Settings were chosen
            with the seeds 0, 1 and 2, so results are reported for others.
speed       images per second of the training stream on hymenoptera at 224 px, decoding files, relative
            to no augmentation: all kinds in turn, medians over several rounds.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from tasks import people

import keras_transfer as kt
from keras_transfer.cli.options import overrides_of
from keras_transfer.data import AUGMENTATIONS, Augmentation, Mix, without_flip
from keras_transfer.data.examples import ImageData

BACKBONE, PER_CLASS = "mobilenet_v2_0.35", 20
SIZE = {"sign_digits": 128, "hymenoptera": 224}  # sign_digits contains photographs of 100 × 100 px
SCHEDULE, OVERRIDES = "lp_ft", {"epochs": 30, "head_epochs": 5, "learning_rate": 1e-3}
SECONDS = 2.0  # per measurement of speed


class Report:
    """Lines that are printed and written to a file."""

    def __init__(self, out):
        self.out, self.lines = out, []

    def add(self, line):
        print(line, flush=True)
        self.lines.append(line)
        if self.out:
            self.out.write_text("\n".join(self.lines) + "\n", encoding="utf-8")


def few(data: ImageData, seed: int, by: str) -> ImageData:
    """Draw `PER_CLASS` training images per class; the held-out half, `test`, shows other people.

    `by="images"` draws images regardless of people.
    """
    whole = data.examples["all"]
    owner = people(data) if by == "people" else np.arange(len(whole))
    owners = np.random.default_rng(0).permutation(np.unique(owner))
    held_out, rest = np.split(owners, [len(owners) // 2])
    if by == "people":
        rest = [
            one for one in rest if len(set(whole.labels[owner == one])) == len(data.class_names)
        ]
    order = np.random.default_rng(seed).permutation(rest)
    mine = np.concatenate([np.flatnonzero(owner == one) for one in order])
    chosen = [
        mine[whole.labels[mine] == label][:PER_CLASS] for label in range(len(data.class_names))
    ]
    parts = {
        "train": whole.take(np.sort(np.concatenate(chosen))),
        "test": whole.take(np.flatnonzero(np.isin(owner, held_out))),
    }
    return ImageData(data.class_names, parts, data.skipped, data.root)


def measured(data, augment, seed: int, overrides: dict, mix: str, size: int) -> float:
    """Return the accuracy on the held-out half."""
    import keras

    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model = kt.build_model(BACKBONE, kt.Classification(data.class_names), image_size=size)
    trainer = kt.Trainer(
        model,
        SCHEDULE,
        overrides=overrides,
        augment=augment,
        mix=mix,
        seed=seed,
        keep="last",
        cache="off",  # without a cache, which would draw from a few views only
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(data, Path(folder) / "run")
    return kt.evaluate(model, data, "test")["accuracy"]


def accuracy(report, options):
    folder = Path(os.environ["KERAS_TRANSFER_DATA"]) / "sign_digits"
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    data = kt.data.labeled_images(folder, names, progress=False)
    settings = {**OVERRIDES, **overrides_of(options.set)}
    count = len(few(data, 0, options.by).examples["test"])
    report.add(
        f"{SCHEDULE} {settings}, {options.image_size} px, {PER_CLASS} images a class, {count} held "
        f"out by {options.by}\n"
    )
    report.add(
        "| augmentation | "
        + " | ".join(f"seed {s}" for s in options.seeds)
        + " | mean | against the first |"
    )
    report.add("|---|" + "---|" * (len(options.seeds) + 2))
    first = None
    for name in options.augment:
        given, _, mix = name.partition("+")
        values = []
        for seed in options.seeds:
            drawn, augment = few(data, seed, options.by), without_flip(given)
            score = measured(drawn, augment, seed, settings, mix or "none", options.image_size)
            values.append(100 * score)
        first = first or values
        each = " | ".join(f"{value:.2f}" for value in values)
        gain = np.subtract(values, first)
        report.add(
            f"| {name} | {each} | {np.mean(values):.2f} | {gain.mean():+.2f} ({gain.min():+.2f} to {gain.max():+.2f}) |"
        )


def kinds() -> dict:
    """Return name → (augmentation, mix)."""
    import albumentations as A
    import keras

    size = SIZE["hymenoptera"]
    compose = A.Compose(  # what `medium` does
        [
            A.RandomResizedCrop((size, size), scale=(0.6, 1), ratio=(3 / 4, 4 / 3)),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0, p=1),
        ]
    )
    turned = AUGMENTATIONS["medium"].rotate
    if turned:
        compose = A.Compose([*compose.transforms, A.Rotate(turned, p=1)])
    plain = Augmentation(crop=False, flip=False)
    return {
        **{name: (name, "none") for name in AUGMENTATIONS},
        "Compose like medium": (compose, "none"),
        "keras.layers.RandomRotation": (keras.layers.RandomRotation(0.05), "none"),
        "none, mixup": (plain, "mixup"),
        "none, cutmix": (plain, "cutmix"),
    }


def images_a_second(data, augment, mix) -> float:
    stream = data.batches(
        "train",
        image_size=SIZE["hymenoptera"],
        batch_size=32,
        training=True,
        augment=augment,
        mix=Mix(mix),
    )
    batches = iter(stream)  # one at a time, so that none prefetches while another is measured
    for _ in range(4):
        next(batches)
    count, started = 0, time.perf_counter()
    while time.perf_counter() < started + SECONDS:
        count += len(next(batches)[0])
    return count / (time.perf_counter() - started)


def speed(report, options):
    folder = Path(os.environ["KERAS_TRANSFER_DATA"]) / "hymenoptera"
    data = kt.data.from_directory(folder, progress=False)
    chosen = kinds()
    rates = {name: [] for name in chosen}
    for round in range(options.rounds + 1):
        for name, (augment, mix) in chosen.items():
            rate = images_a_second(data, augment, mix)
            if round:  # the first epoch reads the files from disk
                rates[name].append(rate)
    report.add("| augmentation | images a second (least–most) | ratio to none |")
    report.add("|---|---|---|")
    base = np.median(rates["none"])
    for name, values in rates.items():
        middle = np.median(values)
        report.add(
            f"| {name} | {middle:.0f} ({min(values):.0f}–{max(values):.0f}) | {middle / base:.2f} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", default=["accuracy", "speed"])
    parser.add_argument("--augment", nargs="+", default=["none", "light", "medium", "heavy"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--by", choices=("people", "images"), default="people")
    parser.add_argument("--image-size", type=int, default=SIZE["sign_digits"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report = Report(options.out)
    for section in options.sections:
        {"accuracy": accuracy, "speed": speed}[section](report, options)


if __name__ == "__main__":
    main()
