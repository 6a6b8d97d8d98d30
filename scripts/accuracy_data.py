"""The datasets of `accuracy.py`, as folders `train/<class>/` and `test/<class>/` of links to the images.

Everything that is compared reads the same files. Faulty files are left out for all. `test` is the split
that a dataset calls `val`; nothing is trained or chosen on it. A seed draws the images per class; the
draw of 5 is part of the draw of 20.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHOTS = ("full", "5", "20")
MNIST_TRAIN, MNIST_TEST = 100, 2000  # images: per class, in all


@dataclass(frozen=True)
class Dataset:
    """What a user knows of a dataset, the same for everything that is compared.

    Attributes:
        half: "tuning" or "reporting".
        mirror: whether a mirror image has the same label.
        group: pattern for `--group`: what stays on one side of the inner validation split.
    """

    half: str
    mirror: bool = True
    group: str | None = None


DATASETS = {
    "aerial": Dataset("tuning"),
    "clothing": Dataset("tuning"),
    "scripts": Dataset("tuning", mirror=False, group=r"_(\d+)\.png$"),
    "mnist": Dataset("tuning", mirror=False),
    "hymenoptera": Dataset("tuning"),
    "chest_xray": Dataset("reporting", mirror=False),
    "flowers": Dataset("reporting"),
    "textures": Dataset("reporting"),
    "waste": Dataset("reporting"),
    "sign_digits": Dataset("reporting", mirror=False, group=r"person(\d+)_"),
}


def materialize(name: str, shots: str, seed: int, work: Path) -> Path:
    """Return the folder of a dataset below `work`, which is made if it is not there."""
    out = work / f"{name}-{shots}-{seed}"
    if out.exists():
        return out
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    whole = _whole(name, work)
    rng = np.random.default_rng(seed)
    for split in ("train", "test"):
        for folder in sorted(path for path in (whole / split).iterdir() if path.is_dir()):
            files = sorted(folder.iterdir())
            if split == "train":
                count = {"full": MNIST_TRAIN if name == "mnist" else None}.get(shots, shots)
                order = rng.permutation(len(files))[: None if count is None else int(count)]
                files = [files[i] for i in sorted(order)]
            (part / split / folder.name).mkdir(parents=True)
            for file in files:
                (part / split / folder.name / file.name).symlink_to(file.resolve())
    part.rename(out)
    return out


def _whole(name: str, work: Path) -> Path:
    """Return the folder with all images of a dataset, which is made if it is not there."""
    out = work / name
    if out.exists():
        return out
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    {"mnist": _mnist, "sign_digits": _sign_digits}.get(name, _folders)(name, part)
    part.rename(out)
    return out


def _folders(name: str, out: Path) -> None:
    import keras_transfer as kt

    root = Path(os.environ["KERAS_TRANSFER_DATA"])
    source = root / name if (root / name).exists() else root / "bench" / name
    data = kt.data.from_directory(source, progress=False)
    for split, own in (("train", "train"), ("val", "test")):
        examples = data.examples[split]
        _link(out / own, data, examples, [Path(str(file)).name for file in examples.names])


def _sign_digits(name: str, out: Path) -> None:
    from tasks import people, sign_digits

    import keras_transfer as kt

    folder = Path(os.environ["KERAS_TRANSFER_DATA"]) / name
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    everyone = kt.data.labeled_images(folder, classes, progress=False)
    names = (Path(str(file)).name for file in everyone.examples["all"].names)
    person = dict(zip(names, people(everyone), strict=True))
    data = sign_digits()
    for split, own in (("train", "train"), ("val", "test")):
        examples = data.examples[split]
        files = [Path(str(file)).name for file in examples.names]
        _link(out / own, data, examples, [f"person{person[f]:03}_{f}" for f in files])


def _link(out: Path, data, examples, names: list[str]) -> None:
    for file, label, link in zip(examples.names, examples.labels, names, strict=True):
        path = out / data.class_names[label] / link
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to((Path(data.root) / str(file)).resolve())


def _mnist(name: str, out: Path) -> None:
    from PIL import Image

    with np.load(Path(os.environ["KERAS_TRANSFER_DATA"]) / "mnist_10k.npz") as file:
        x, y = file["x"], file["y"]
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        split = "test" if i >= len(x) - MNIST_TEST else "train"
        path = out / split / str(label) / f"{i:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
