"""A sheet of images as the model sees them: as in evaluation, and varied as in training."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure  # no pyplot: it would look for a screen

from keras_transfer.data.examples import ImageData
from keras_transfer.data.mixing import Mix
from keras_transfer.data.targets import rough_classes, shown
from keras_transfer.errors import InputError, said_in
from keras_transfer.modalities.image.augment import (
    AUGMENTATIONS,
    View,
    resolve_augmentation,
    views_of,
)

_CELL = 1.25  # inches
_GREY = "#555555"


class Sheet(Figure):
    """A figure that notebooks show by itself."""

    def _repr_png_(self):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def show_batch(
    data: ImageData,
    n: int = 8,
    *,
    augment="light",
    image_size: int = 224,
    variants: int = 5,
    split: str = "train",
    mix: str = "none",
    mix_alpha: float | None = None,
    seed: int = 0,
) -> Sheet:
    """Draws a few images of all classes, a row each: as in evaluation, and variants of it.

    Args:
        data: a `keras_transfer.data.ImageData`.
        n: number of images, ≥ 1; each class has one before any has two.
        augment: as the trainer takes it; or a list of such, to compare them.
        image_size: of the model, in pixels.
        variants: number of them for each augmentation, ≥ 1.
        split: whose images.
        mix, mix_alpha: as the trainer takes them; a last column shows the first variants mixed.
        seed: of the choice of images, and of the mixing.

    Returns:
        A matplotlib figure, which a notebook shows: `show_batch(data).savefig("sheet.png")`.

    Raises:
        InputError: no such split or augmentation, or a transform that fails on an image.
    """
    if n < 1 or variants < 1 or image_size < 1:
        raise InputError(
            f"show_batch: n, variants and image_size must be 1 or more, not {n}, {variants} and "
            f"{image_size}."
        )
    several = augment if isinstance(augment, (list, tuple)) else [augment]
    named = [(_title(given), views_of(given, variants)) for given in several]
    mix = Mix(mix, mix_alpha)
    if split not in data.examples:
        raise InputError(f"{data.root} has no {split} images; it has {', '.join(data.examples)}")
    if mix and data.task not in ("single_label", "multi_label"):
        raise InputError("show_batch: only images with one head of classes or labels are mixed.")
    whole = data.examples[split]
    examples = whole.take(_spread(rough_classes(whole.labels), n, seed))
    captions = [
        (label, Path(name).name)
        for label, name in zip(shown(examples.labels, data.targets), examples.names)
    ]
    views = [View(), *(view for _, of_one in named for view in of_one)]
    images = _images(examples, list(dict.fromkeys(views)), image_size)
    blocks = [("as in evaluation", [images[View()]])]
    blocks += [(title, [images[view] for view in of_one]) for title, of_one in named]
    below = {}
    if mix:
        mixed, shares = _mixed(blocks[-1][1][0], examples.labels, data.class_names, mix, seed)
        below[sum(len(columns) for _, columns in blocks)] = shares
        blocks.append((mix.kind, [mixed]))
    return _draw(blocks, captions, below, image_size)


def sheet(
    data: ImageData,
    path,
    n: int = 10,
    *,
    augment=("light", "medium", "heavy"),
    image_size: int = 224,
    variants: int = 3,
    **options,
) -> None:
    """Writes `show_batch` of several augmentations side by side into a PNG file.

    Raises:
        InputError: as `show_batch` does, or a path that is no .png file.
    """
    from keras_transfer.utils.files import write_file

    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"Cannot draw into {path}: give a .png file.")
    figure = show_batch(
        data, n, augment=augment, image_size=image_size, variants=variants, **options
    )
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=110))


def _title(augment):
    if isinstance(augment, str) and augment in AUGMENTATIONS:
        return augment
    if isinstance(augment, (str, Path)):
        return Path(augment).name
    if isinstance(augment, dict) and "preset" in augment:
        changes = (f"{name}={value}" for name, value in augment.items() if name != "preset")
        return ", ".join([augment["preset"], *changes])
    given = type(augment).__name__
    return type(resolve_augmentation(augment)).__name__ if given == "dict" else given


def _spread(labels: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Positions of n examples, sorted by class: of each class one before any has two."""
    shuffled = np.random.default_rng(abs(int(seed))).permutation(len(labels))
    turn = np.empty(len(labels), int)  # the how many-th of its class each one is
    for label in np.unique(labels):
        mine = shuffled[labels[shuffled] == label]
        turn[mine] = np.arange(len(mine))
    first = np.lexsort((labels, turn))
    of_last_turn = first[turn[first] == turn[first[min(n, len(first)) - 1]]]
    before = first[turn[first] < turn[of_last_turn[0]]]
    # Where not all classes have a turn more, those that do are spread over all.
    places = np.linspace(0, len(of_last_turn) - 1, min(n, len(first)) - len(before)).round()
    chosen = np.concatenate([before, of_last_turn[places.astype(int)]])
    return chosen[np.lexsort((turn[chosen], labels[chosen]))]


def _images(examples, views: Sequence[View], image_size) -> dict[View, np.ndarray]:
    from keras_transfer.data import batches as pipeline

    try:
        made = pipeline.views(examples, range(len(examples)), views, image_size, len(examples))
        (batch,) = made.as_numpy_iterator()
    except Exception as error:
        raise said_in(error) or error from None
    return dict(zip(views, batch))


def _mixed(images, labels, class_names, mix, seed):
    import tensorflow as tf

    from keras_transfer.data.mixing import mixer

    whole = labels if labels.ndim == 2 else tf.one_hot(labels, len(class_names))
    images, shares = mixer(mix)(tf.constant(images), whole, tf.constant([seed, 0], tf.int64))
    texts = []
    for row in shares.numpy():
        order = [i for i in np.argsort(-row, kind="stable")[:2] if row[i] > 0.005]
        texts.append(", ".join(f"{_short(class_names[i], 9)}: {row[i]:.0%}" for i in order))
    return images.numpy(), texts


def _draw(blocks, captions, below, image_size):
    # Blocks are set apart by a narrow column of nothing; the first column has the labels.
    widths, places = [1.05], []
    for _, images in blocks:
        places.append(len(widths))
        widths += [1.0] * len(images) + [0.12]
    widths.pop()
    foot = 0.16 if below else 0.0
    height, top = len(captions) * (1 + foot), 0.42
    figure = Sheet(figsize=(_CELL * sum(widths), _CELL * (height + top)), dpi=100)
    grid = figure.add_gridspec(
        len(captions),
        len(widths),
        width_ratios=widths,
        left=0,
        right=0.995,
        bottom=0.005 + foot / (height + top),
        top=height / (height + top),
        wspace=0.04,
        hspace=0.04 + foot,
    )
    for row, (label, name) in enumerate(captions):
        axes = figure.add_subplot(grid[row, 0])
        axes.axis("off")
        axes.text(0.92, 0.56, _short(label, 15), ha="right", va="bottom", fontsize=10)
        axes.text(0.92, 0.48, _short(name, 19), ha="right", va="top", fontsize=6, color=_GREY)
    count = 0
    for (title, images), place in zip(blocks, places):
        for i, column in enumerate(images):
            for row, image in enumerate(column):
                axes = figure.add_subplot(grid[row, place + i])
                axes.imshow(image, interpolation="antialiased")
                axes.set_xticks([])
                axes.set_yticks([])
                for side in axes.spines.values():
                    side.set_visible(False)
                if count in below:
                    axes.set_xlabel(below[count][row], fontsize=6, labelpad=1.5)
                if row == 0 and i == 0:
                    # Left of the block, so that a long name runs over its other columns.
                    axes.set_title(_short(title, 18 * len(images)), fontsize=9, loc="left", pad=4)
            count += 1
    figure.text(0.005, 0.995, f"{image_size} px", ha="left", va="top", fontsize=8, color=_GREY)
    return figure


def _short(text, most):
    text = str(text)
    return text if len(text) <= most else text[: most - 1] + "…"
