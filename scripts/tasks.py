"""Real tasks on which backbones and strategies are chosen.

Each is made from the images in `KERAS_TRANSFER_DATA`, or from scikit-learn's, and has a training split
and a test split (`val`) on which nothing is chosen. The sign digits are split by person: no person
occurs in both splits.
"""

import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

import keras_transfer as kt
from keras_transfer.data import ImageData

# No mirrored signs and digits, and no crop that cuts off a finger.
UPRIGHT = {"min_area": 0.7, "max_aspect": 1.2, "flip": False}


@dataclass(frozen=True)
class Task:
    """A dataset and the settings that its images need, the same for everything that is compared.

    Attributes:
        name: its name on the command line.
        image_size: height and width.
        augment: as `Trainer` takes it.
        source: a key of `SOURCES`.
        per_class: training images per class; None for all.
        shuffled: labels are permuted, so that there is nothing to learn.
    """

    name: str
    image_size: int
    augment: str | dict
    source: str
    per_class: int | None = None
    shuffled: bool = False

    def data(self, seed: int = 0) -> ImageData:
        """Open the task; the seed draws the images of each class and permutes the labels."""
        data = SOURCES[self.source]()
        rng = np.random.default_rng(seed)
        train, test = data.examples["train"], data.examples["val"]
        if self.per_class is not None:
            order = rng.permutation(len(train))
            rows = [
                order[train.labels[order] == label][: self.per_class]
                for label in range(len(data.class_names))
            ]
            train = train.take(np.sort(np.concatenate(rows)))
        parts = {"train": train, "val": test}
        if self.shuffled:
            parts = {
                split: kt.data.Examples(part.images, rng.permutation(part.labels))
                for split, part in parts.items()
            }
        return ImageData(data.class_names, parts, data.skipped, data.root)


@cache
def hymenoptera() -> ImageData:
    """Ants and bees: 245 training and 153 test photographs."""
    return kt.data.from_directory(_shared("hymenoptera"), progress=False)


@cache
def sign_digits() -> ImageData:
    """Hands that show digits: 70 % of the people for training, the others for testing."""
    folder = _shared("sign_digits")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    data = kt.data.labeled_images(folder, names, progress=False)
    whole = data.examples["all"]
    owner = people(data)
    owners = np.random.default_rng(0).permutation(np.unique(owner))
    mine = np.isin(owner, owners[: round(0.7 * len(owners))])
    return _divided(data, whole.take(np.flatnonzero(mine)), whole.take(np.flatnonzero(~mine)))


def people(data: ImageData) -> np.ndarray:
    """Return whose hand each image shows: image numbers ascend, and each person begins with the
    sign for 0.
    """
    whole = data.examples["all"]
    numbers = np.array([int(re.sub(r"\D", "", Path(name).stem)) for name in whole.names])
    return np.searchsorted(np.sort(numbers[whole.labels == 0]), numbers, side="right")


@cache
def mnist() -> ImageData:
    """8000 training and 2000 test digits."""
    with np.load(_shared("mnist_10k.npz")) as file:
        x, y = file["x"], file["y"].astype(int)
    return kt.data.from_arrays((x[:8000], y[:8000]), (x[8000:], y[8000:]), progress=False)


@cache
def digits() -> ImageData:
    """scikit-learn's 8 × 8 scans: 1437 training and 360 test digits."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    images = np.round(x.reshape(-1, 8, 8) * 255 / 16).astype("uint8")
    whole = kt.data.from_arrays((images, y), val_split=0.2, progress=False)
    return whole


def _shared(name) -> Path:
    return Path(os.environ["KERAS_TRANSFER_DATA"]) / name


def _divided(data, train, test) -> ImageData:
    return ImageData(data.class_names, {"train": train, "val": test}, data.skipped, data.root)


SOURCES = {source.__name__: source for source in (hymenoptera, sign_digits, mnist, digits)}
TASKS = {
    task.name: task
    for task in (
        Task("hymenoptera", 224, "light", "hymenoptera"),
        Task("sign_digits", 96, UPRIGHT, "sign_digits"),
        Task("sign_digits, 5 a class", 96, UPRIGHT, "sign_digits", 5),
        Task("sign_digits, 20 a class", 96, UPRIGHT, "sign_digits", 20),
        Task("mnist", 64, UPRIGHT, "mnist"),
        Task("mnist, 10 a class", 64, UPRIGHT, "mnist", 10),
        Task("digits", 64, UPRIGHT, "digits"),
        Task("random labels", 96, UPRIGHT, "sign_digits", 20, shuffled=True),
    )
}
