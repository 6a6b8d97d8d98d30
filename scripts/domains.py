"""Pairs of domains for `adaptation_benchmark.py`.

    KERAS_TRANSFER_DATA=… python scripts/domains.py SHEET.png      draw images of all pairs
    KERAS_HOME=… KERAS_TRANSFER_DATA=… python scripts/domains.py   print the distances between domains

Each pair has labeled images of a source (`train`, `val`) and images of a target (`train`, whose labels are
used only for the upper bound, and `test`). They are made from the images in `KERAS_TRANSFER_DATA` and
scikit-learn's digits. Every random choice has a fixed seed, so the datasets are the same in every run,
whatever the seed of the training.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image
from tasks import people

import keras_transfer as kt
from keras_transfer.data import Examples, ImageData
from keras_transfer.data.arrays import Arrays

DIGITS = tuple("0123456789")
SIZE = 28  # of MNIST
PHOTOGRAPH = 500  # longest side in px, as in BSDS500
HAND_SIZE = 96


@dataclass(frozen=True, eq=False)
class Domains:
    """A source and a target of the same classes.

    Attributes:
        source: images `train` and `val`.
        target: images `train` and `test`.
    """

    source: ImageData
    target: ImageData


@dataclass(frozen=True)
class DomainTask:
    """A pair of domains with the settings that all its trainings share.

    Attributes:
        name: its name on the command line.
        title: for tables.
        domains: makes the pair.
        build: makes a new model; may be given further settings of its head.
        image_size: height and width.
        epochs: passes over the longer of the two training sets.
        batch_size: images of each domain per step.
        learning_rate: initial learning rate of SGD.
        backbone_rate: its factor for the backbone.
        weight_decay, clip_norm: see `kt.Phase`.
        discriminator: settings of the methods that have one.
        shot_beta: weight of the pseudo-labels of SHOT.
        strong: makes from a seed the layer that augments the target images for FixMatch.
    """

    name: str
    title: str
    domains: Callable[[], Domains]
    build: Callable[..., object]
    image_size: int
    epochs: int
    batch_size: int
    learning_rate: float
    backbone_rate: float
    weight_decay: float
    clip_norm: float | None
    discriminator: dict
    shot_beta: float
    strong: Callable

    def phase(self, epochs: int | None = None) -> kt.Phase:
        """Return the phase, as in DANN: momentum, and a learning rate that decays as (1 + 10 p)^-0.75.

        Args:
            epochs: overrides the number of epochs.
        """
        return kt.Phase(
            "adapt",
            epochs=epochs or self.epochs,
            learning_rate=self.learning_rate,
            shape="annealed",
            warmup=0.0,
            rates={"backbone": self.backbone_rate},
            optimizer="sgd",
            optimizer_options={"momentum": 0.9, "nesterov": True},
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            batch_size=self.batch_size,
        )


def pixels(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Return (images uint8 [N, H, W, 3], labels int32 [N]) of examples of one size."""
    return np.stack(examples.images.arrays), examples.labels


# -- digits ---------------------------------------------------------------------------------------


@cache
def mnist() -> tuple[np.ndarray, np.ndarray]:
    """Return 10,000 digits, uint8 [N, 28, 28], and their labels."""
    with np.load(_shared("mnist_10k.npz")) as file:
        return file["x"], file["y"].astype("int32")


# Of MNIST. As targets, the validation digits of the source are used without labels. Only the test uses
# the test digits.
TRAIN, VAL, TRAIN_AND_VAL, TEST = slice(7200), slice(7200, 8000), slice(8000), slice(8000, None)


@cache
def mnist_to_mnistm() -> Domains:
    """Digits → other digits inverted by a patch of a photograph, as in MNIST-M (DANN, JMLR 2016).

    Per channel |patch − digit|, where the digit is 255 if MNIST is above 0. MNIST-M uses the photographs
    of BSDS500; these show insects, so the result is "MNIST-M-like". As in MNIST-M, the training digits of
    the source also occur in the target, on other backgrounds; test digits and test photographs are
    different.
    """
    x, y = mnist()
    train = blended(x[TRAIN_AND_VAL], photographs("train"), seed=1)
    test = blended(x[TEST], photographs("val"), seed=2)
    target = _data("mnistm", train=(train, y[TRAIN_AND_VAL]), test=(test, y[TEST]))
    return Domains(_mnist_source(), target)


def blended(digits: np.ndarray, photos: list[np.ndarray], seed: int) -> np.ndarray:
    """Return |patch − digit| of each digit [N, H, W] with a random patch of a random photograph.

    Returns:
        uint8 [N, H, W, 3].
    """
    rng = np.random.default_rng(seed)
    height, width = digits.shape[1:]
    made = np.empty((*digits.shape, 3), "uint8")
    for i, digit in enumerate(digits):
        photo = photos[rng.integers(len(photos))]
        top = rng.integers(photo.shape[0] - height + 1)
        left = rng.integers(photo.shape[1] - width + 1)
        patch = photo[top : top + height, left : left + width].astype("int16")  # signed
        made[i] = np.abs(patch - np.where(digit > 0, 255, 0)[..., None])
    return made


@cache
def photographs(split: str) -> list[np.ndarray]:
    """Return the photographs of hymenoptera, RGB, at most 500 px long; its GIF is a drawing."""
    found = []
    for path in sorted(_shared("hymenoptera").glob(f"{split}/*/*.jp*g")):
        with Image.open(path) as photo:
            photo = photo.convert("RGB")
            photo.thumbnail((PHOTOGRAPH, PHOTOGRAPH), Image.Resampling.LANCZOS)
            found.append(np.asarray(photo))
    return found


@cache
def mnist_to_digits() -> Domains:
    """MNIST → scikit-learn's 8 × 8 scans, which fill their frame."""
    x, y = _scans()
    target = _data("digits", train=(x[:1437], y[:1437]), test=(x[1437:], y[1437:]))
    return Domains(_mnist_source(), target)


@cache
def digits_to_mnist() -> Domains:
    """The reverse: from the scans, a fifth as many, to MNIST."""
    x, y = _scans()
    source = _data("digits", train=(x[:1437], y[:1437]), val=(x[1437:], y[1437:]))
    x, y = mnist()
    target = _data(
        "mnist", train=(_rgb(x[TRAIN_AND_VAL]), y[TRAIN_AND_VAL]), test=(_rgb(x[TEST]), y[TEST])
    )
    return Domains(source, target)


def _scans():
    """Return (uint8 [1797, 28, 28, 3], labels) in the order of the writers: those of the last 360 do
    not occur before.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    grey = np.round(x.reshape(-1, 8, 8) * 255 / 16).astype("uint8")
    large = [Image.fromarray(p).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for p in grey]
    return _rgb(np.stack(large)), y.astype("int32")


def _mnist_source():
    x, y = mnist()
    return _data("mnist", train=(_rgb(x[TRAIN]), y[TRAIN]), val=(_rgb(x[VAL]), y[VAL]))


def _rgb(grey):
    return np.repeat(grey[..., None], 3, axis=-1)


# -- hands ----------------------------------------------------------------------------------------


@cache
def hands_to_other_camera() -> Domains:
    """Sign digits → hands of other people, through a poor camera in the light of a bulb.

    Half of the 218 people belong to the source (a fifth of them for validation), the others to the target
    (two fifths of them for testing). No hand occurs in two parts.
    """
    folder = _shared("sign_digits")
    data = kt.data.labeled_images(folder, DIGITS, progress=False)
    whole = data.examples["all"]
    owner = people(data)
    order = np.random.default_rng(0).permutation(np.unique(owner))
    ends = (np.array([0.4, 0.5, 0.8]) * len(order)).round().astype(int)
    parts = [whole.take(np.flatnonzero(np.isin(owner, part))) for part in np.split(order, ends)]
    clean = [_hands(part) for part in parts[:2]]
    shifted = [
        (other_camera(_hands(part)[0], seed), part.labels) for seed, part in enumerate(parts[2:])
    ]
    return Domains(
        _data("hands", train=clean[0], val=clean[1]),
        _data("hands by lamplight", train=shifted[0], test=shifted[1]),
    )


def _hands(examples):
    made = []
    for name in examples.names:
        with Image.open(name) as image:
            image = image.convert("RGB")
            made.append(image.resize((HAND_SIZE, HAND_SIZE), Image.Resampling.LANCZOS))
    return np.stack(made), examples.labels


# The other camera; light is linear, 0–1.
CAST = (1.0, 0.75, 0.45)  # red, green and blue light of a bulb
LIGHT = 0.5  # share of the light of the first camera
BLUR = 1.0  # standard deviation in px
PHOTONS = 1500  # per white pixel


def other_camera(images: np.ndarray, seed: int) -> np.ndarray:
    """Make images blurred, tinted, dark and noisy, each to a slightly different degree.

    Args:
        images: uint8 [N, H, W, 3].
        seed: of the noise and of the differences between images.

    Returns:
        uint8 [N, H, W, 3].
    """
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    made = np.empty_like(images)
    for i, image in enumerate(images):
        light = (image / 255.0) ** 2.2
        light = gaussian_filter(light, (blur := BLUR * rng.uniform(0.8, 1.2), blur, 0))
        light = light * np.array(CAST) ** rng.uniform(0.8, 1.2) * LIGHT * rng.uniform(0.7, 1.4)
        light = rng.poisson(light * PHOTONS) / PHOTONS
        made[i] = np.round(255 * np.clip(light, 0, 1) ** (1 / 2.2))
    return made


# -- models ---------------------------------------------------------------------------------------


def dann_network(mean) -> "kt.models.Backbone":
    """Return the feature extractor of DANN's network for MNIST (Ganin et al., JMLR 2016), a `Backbone`.

    Convolution 5×5 to 32, pooling, convolution 5×5 to 48, pooling; with the head's hidden layers of
    100 and 100 (`Classification(…, hidden=(100, 100))`) it is their network. It has no BatchNorm.

    Args:
        mean: of the training images of both domains [3], in [0, 255], which is subtracted.
    """
    import keras

    from keras_transfer.models.stages import Backbone

    layers = keras.layers
    inputs = keras.Input((SIZE, SIZE, 3), name="images")
    offset = [-float(value) / 255 for value in mean]
    x = layers.Rescaling([1 / 255] * 3, offset=offset, name="normalise")(inputs)
    for width in (32, 48):
        x = layers.Conv2D(width, 5, activation="relu", name=f"conv_{width}")(x)
        x = layers.MaxPooling2D(2, name=f"pool_{width}")(x)
    return Backbone(inputs, layers.Flatten(name="features")(x), name="dann_mnist")


def dann_model(domains: Domains, **head):
    """Return DANN's network with its head for a pair of domains; `head` goes to `kt.Classification`."""
    parts = [pixels(data.examples["train"])[0] for data in (domains.source, domains.target)]
    mean = np.mean([part.mean(axis=(0, 1, 2)) for part in parts], axis=0)
    head = {"hidden": (100, 100), "dropout": 0.0, **head}
    head = kt.Classification(domains.source.class_names, **head)
    return kt.build_model(dann_network(mean), head, image_size=SIZE)


def mobilenet(domains: Domains, **head):
    """Return `mobilenet_v2_0.35` with ImageNet weights and a bottleneck as in the
    Transfer-Learning-Library.
    """
    head = {"bottleneck": 256, "dropout": 0.0, **head}
    head = kt.Classification(domains.source.class_names, **head)
    return kt.build_model("mobilenet_v2_0.35", head, image_size=HAND_SIZE)


def varied(seed: int, inverted: float = 0.0):
    """Return a Keras layer for FixMatch's strong view: shifts by up to a tenth, light and colors.

    Args:
        seed: of its random numbers.
        inverted: share of images that are inverted, an operation of AutoAugment: brightness does not
            identify a digit.
    """
    import keras

    layers, options = keras.layers, {"value_range": (0, 255)}
    return layers.Pipeline(
        [
            layers.RandomTranslation(0.1, 0.1, fill_mode="reflect", seed=seed),
            layers.RandomInvert(inverted, seed=seed + 1, **options),
            layers.RandomColorJitter(
                brightness_factor=0.3,
                contrast_factor=0.5,
                saturation_factor=0.5,
                hue_factor=0.3,
                seed=seed + 2,
                **options,
            ),
        ]
    )


# -- the table ------------------------------------------------------------------------------------

PAPER = {"hidden": (100,), "batch_norm": False}  # DANN's discriminator for MNIST
SMALL = {
    "build": dann_model,
    "image_size": SIZE,
    "batch_size": 32,
    "learning_rate": 0.01,
    "backbone_rate": 1.0,
    "weight_decay": 0.0,
    "clip_norm": None,
    "discriminator": PAPER,
    "shot_beta": 0.1,
    "strong": partial(varied, inverted=0.5),
}
TASKS = {
    task.name: task
    for task in (
        DomainTask("mnistm", "MNIST → MNIST-M-like", mnist_to_mnistm, epochs=60, **SMALL),
        DomainTask("mnist_digits", "MNIST → digits", mnist_to_digits, epochs=4, **SMALL),
        DomainTask("digits_mnist", "digits → MNIST", digits_to_mnist, epochs=4, **SMALL),
        DomainTask(
            "hands",
            "sign digits → by lamplight",
            hands_to_other_camera,
            mobilenet,
            HAND_SIZE,
            epochs=14,
            batch_size=32,
            learning_rate=0.01,
            backbone_rate=0.1,
            weight_decay=1e-3,
            clip_norm=5.0,
            discriminator={},
            shot_beta=0.3,
            strong=varied,
        ),
    )
}


def _data(name, **parts) -> ImageData:
    examples = {split: Examples(Arrays(x), y) for split, (x, y) in parts.items()}
    return ImageData(DIGITS, examples, [], name)


def _shared(name) -> Path:
    return Path(os.environ["KERAS_TRANSFER_DATA"]) / name


def draw(path: Path, each: int = 12) -> None:
    """Draw a sheet with a row of images from every part of every task, digits 0 to 9 in turn."""
    from matplotlib.figure import Figure

    rows = []
    for task in TASKS.values():
        domains = task.domains()
        for role, data in (("source", domains.source), ("target", domains.target)):
            for split, part in data.examples.items():
                x, y = pixels(part)
                # One image of each digit after the other.
                turn = [np.flatnonzero(y == i % 10)[i // 10] for i in range(each)]
                rows.append((f"{task.name}\n{role} {split}, {len(part)}", x[turn], y[turn]))
    figure = Figure(figsize=(each + 2, len(rows)), layout="constrained", facecolor="white")
    grid = figure.subplots(len(rows), each)
    for line, (name, images, labels) in zip(grid, rows):
        for axes, image, label in zip(line, images, labels):
            axes.imshow(image)
            axes.set(xticks=[], yticks=[])
            axes.set_title(str(label), fontsize=7, pad=1)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.savefig(path, dpi=80)


def distances(backbone: str = "mobilenet_v2_0.35", most: int = 500) -> str:
    """Return a Markdown table: the distance between the domains of each task, and between images of
    the source.
    """
    lines = [
        "| pair | proxy-A | MMD² | p | Fréchet (by chance) | source probe | worth trying |",
        "|---|---|---|---|---|---|---|",
    ]
    pairs = {}
    for task in TASKS.values():
        source, target = task.domains().source, task.domains().target
        pairs[f"{source.root}, other images"] = source, source.examples["val"], task
        pairs[f"{source.root} → {target.root}"] = source, target, task
    for name, (source, target, task) in pairs.items():
        size = max(64, task.image_size)  # the backbone's minimum
        found = kt.advisor.domain_distance(
            source, target, backbone=backbone, image_size=size, most=most
        )
        cells = (
            name,
            f"{found.proxy_a.value:.2f} ± {found.proxy_a.error:.2f}",
            f"{found.mmd.value:.4f} ± {found.mmd.error:.4f}",
            f"{found.mmd.p_value:.3f}",
            f"{found.frechet:.3f} ({found.frechet_by_chance:.3f})",
            f"{100 * found.source_accuracy:.1f} ± {100 * found.source_error:.1f}",
            "yes" if found.worth_trying else "no",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        draw(Path(sys.argv[1]))
    else:
        print(distances())
