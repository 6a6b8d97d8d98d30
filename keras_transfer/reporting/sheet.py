"""A contact sheet: images as the model sees them in evaluation and, augmented, in training."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure  # pyplot would look for a display

from keras_transfer.data.check import report_reading
from keras_transfer.data.examples import ImageData, label_texts, rough_classes
from keras_transfer.errors import InputError, input_error_in
from keras_transfer.modalities import Framing, Modality, open_framing, resolve_augmentation
from keras_transfer.modalities.image.bands import select
from keras_transfer.modalities.views import Mix, View, views_of
from keras_transfer.utils.console import printable
from keras_transfer.utils.plotting import save

_CELL = 1.25  # inches
_LABEL_WIDTH, _GAP, _HEADER, _FOOTER = 1.05, 0.12, 0.42, 0.16  # cells
_GRAY = "#555555"


class Sheet(Figure):
    """A figure that notebooks display."""

    def _repr_png_(self):
        buffer = io.BytesIO()
        save(self, buffer, format="png", dpi=100)
        return buffer.getvalue()


def show_batch(
    data: ImageData,
    n: int = 8,
    *,
    augment="light",
    image_size: int | str | Framing = 224,
    variants: int = 5,
    split: str = "train",
    mix: str = "none",
    mix_alpha: float | None = None,
    seed: int = 0,
) -> Sheet:
    """Draw a few images of all classes, one per row: as in evaluation, then augmented variants.

    Args:
        data: a `keras_transfer.data.ImageData`.
        n: number of examples, ≥ 1; each class has one before any has two.
        augment: as for the trainer; or a list, to compare several augmentations.
        image_size: of the model, in pixels; a `Framing` also says the crop, which the data decide
            otherwise, as for a model.
        variants: number of variants per augmentation, ≥ 1.
        split: one of `data.examples`.
        mix, mix_alpha: as for the trainer; a last column shows the first variants mixed.
        seed: of the choice of images and of the mixing.

    Returns:
        A matplotlib figure, which notebooks display: `show_batch(data).savefig("sheet.png")`.

    Raises:
        InputError: if the split or augmentation does not exist, or a transform fails on an image.
    """
    framing = open_framing(image_size)
    size = framing.size
    if n < 1 or variants < 1 or size is None:
        raise InputError(
            f"show_batch: n, variants and image_size must be 1 or more, not {n}, {variants} and "
            f"{size}."
        )
    check_sheet(data.modality)
    augmentations = augment if isinstance(augment, (list, tuple)) else [augment]
    resolve = data.modality.resolve_augmentation
    titled = [(_title(one), views_of(resolve(one), variants)) for one in augmentations]
    mix = Mix(mix, mix_alpha)
    data.require(split)
    if mix and data.task not in ("single_label", "multi_label"):
        raise InputError(
            "show_batch: mixing requires data with a single head of classes or labels."
        )
    whole = data.examples[split]
    if not framing.settled:
        framing = framing.settled_as(data.modality.choose_framing(data, size)[0])
    report_reading(data, framing)
    examples = whole.take(_spread(rough_classes(whole.labels), n, seed))
    labels = label_texts(examples.labels, data.targets)
    captions = [(label, Path(name).name) for label, name in zip(labels, examples.names)]
    views = [View(), *(view for _, of_one in titled for view in of_one)]
    images = _images(examples, list(dict.fromkeys(views)), framing)
    blocks = [("as in evaluation", [images[View()]])]
    blocks += [(title, [images[view] for view in of_one]) for title, of_one in titled]
    shares = None
    if mix:
        mixer = data.modality.mixer(mix)
        mixed, shares = _mixed(blocks[-1][1][0], examples.labels, data.class_names, mixer, seed)
        blocks.append((mix.kind, [mixed]))
    return _draw(blocks, captions, shares, size)


def check_sheet(modality: Modality) -> None:
    """Raise InputError if examples are not shown on a sheet."""
    if modality.axes != 4:
        raise InputError(f"A contact sheet shows images; {modality.many} have none.")


def write_sheet(
    data: ImageData,
    path,
    n: int = 10,
    *,
    augment=("light", "medium", "heavy"),
    image_size: int | str | Framing = 224,
    variants: int = 3,
    **options,
) -> None:
    """Write `show_batch` with several augmentations side by side as a PNG file.

    Raises:
        InputError: as for `show_batch`, or if the path is not a .png file.
    """
    from keras_transfer.utils.files import write_file

    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"Cannot write a contact sheet to {path}: it must be a .png file.")
    figure = show_batch(
        data, n, augment=augment, image_size=image_size, variants=variants, **options
    )
    write_file(path, lambda temporary: save(figure, temporary, dpi=110))


def _title(augment):
    if isinstance(augment, (str, Path)):
        return Path(augment).name
    if isinstance(augment, dict) and "preset" in augment:
        changes = (f"{name}={value}" for name, value in augment.items() if name != "preset")
        return ", ".join([augment["preset"], *changes])
    return type(resolve_augmentation(augment) if type(augment) is dict else augment).__name__


def _spread(labels: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return positions of n examples, sorted by class; each class has one before any has two."""
    shuffled = np.random.default_rng(abs(int(seed))).permutation(len(labels))
    turn = np.empty(len(labels), int)  # rank of each example within its class
    for label in np.unique(labels):
        of_class = shuffled[labels[shuffled] == label]
        turn[of_class] = np.arange(len(of_class))
    first = np.lexsort((labels, turn))
    of_last_turn = first[turn[first] == turn[first[min(n, len(first)) - 1]]]
    before = first[turn[first] < turn[of_last_turn[0]]]
    # If not all classes get another example, those that do are spread evenly over all classes.
    places = np.linspace(0, len(of_last_turn) - 1, min(n, len(first)) - len(before)).round()
    chosen = np.concatenate([before, of_last_turn[places.astype(int)]])
    return chosen[np.lexsort((turn[chosen], labels[chosen]))]


def _images(examples, views: Sequence[View], framing) -> dict[View, np.ndarray]:
    from keras_transfer.data import batches as pipeline

    try:
        made = pipeline.views(examples, range(len(examples)), views, framing, len(examples))
        (batch,) = made.as_numpy_iterator()
    except Exception as error:
        raise input_error_in(error) or error from None
    return dict(zip(views, batch))


def _mixed(images, labels, class_names, mixer, seed):
    """Return mixed images and, as text, the share of each class in them."""
    import tensorflow as tf

    whole = labels if labels.ndim == 2 else tf.one_hot(labels, len(class_names))
    images, shares = mixer(tf.constant(images), whole, tf.constant([seed, 0], tf.int64))
    texts = []
    for row in shares.numpy():
        order = [i for i in np.argsort(-row, kind="stable")[:2] if row[i] > 0.005]
        texts.append(", ".join(f"{_shortened(class_names[i], 9)}: {row[i]:.0%}" for i in order))
    return images.numpy(), texts


def _draw(blocks, captions, shares, image_size):
    """Draw blocks of columns, with a gap between them; `shares` is below the last column."""
    widths, places = [_LABEL_WIDTH], []
    for _, images in blocks:
        places.append(len(widths))
        widths += [1.0] * len(images) + [_GAP]
    widths.pop()
    footer = _FOOTER if shares else 0.0
    height = len(captions) * (1 + footer)
    figure = Sheet(figsize=(_CELL * sum(widths), _CELL * (height + _HEADER)), dpi=100)
    grid = figure.add_gridspec(
        len(captions),
        len(widths),
        width_ratios=widths,
        left=0,
        right=0.995,
        bottom=0.005 + footer / (height + _HEADER),
        top=height / (height + _HEADER),
        wspace=0.04,
        hspace=0.04 + footer,
    )
    for row, (label, name) in enumerate(captions):
        axes = figure.add_subplot(grid[row, 0])
        axes.axis("off")
        right = {"ha": "right", "parse_math": False}
        axes.text(0.92, 0.56, _shortened(label, 15), va="bottom", fontsize=10, **right)
        axes.text(0.92, 0.48, _shortened(name, 19), va="top", fontsize=6, color=_GRAY, **right)
    for (title, images), place in zip(blocks, places):
        for i, column in enumerate(images):
            for row, image in enumerate(column):
                axes = figure.add_subplot(grid[row, place + i])
                axes.imshow(select(image, None), interpolation="antialiased")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if shares and images is blocks[-1][1]:
                    axes.set_xlabel(shares[row], fontsize=6, labelpad=1.5, parse_math=False)
                if row == 0 and i == 0:
                    # Left-aligned, so that a long title extends over the block's other columns.
                    text = _shortened(title, 18 * len(images))
                    axes.set_title(text, fontsize=9, loc="left", pad=4)
    figure.text(0.005, 0.995, f"{image_size} px", ha="left", va="top", fontsize=8, color=_GRAY)
    return figure


def _shortened(text, most):
    text = printable(str(text))
    return text if len(text) <= most else text[: most - 1] + "…"
