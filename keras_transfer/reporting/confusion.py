"""The confusion matrix of an evaluation, readable for ten classes and for a thousand."""

import io

import numpy as np
from PIL import Image

from keras_transfer.evaluation.plots import row_shares, similarity_order
from keras_transfer.evaluation.result import confused_table
from keras_transfer.reporting.page import data_uri
from keras_transfer.utils.tables import printable

_MOST_WHOLE = 20  # classes of a table with all counts
_MOST_PART = 16  # with more classes, the most confused ones in such a table
_MOST_POINTS = 400  # side of the image of a large matrix
CORRECT, WRONG = (27, 158, 119), (217, 95, 2)


def confusion(head: dict) -> dict:
    """Return the data of a confusion matrix, for the template.

    Args:
        head: one head of an evaluation's document, with one class per image.

    Returns:
        `matrix` (`names` and `rows` of (count, shade in 0–1); of many classes only the most
        confused ones), `whole` (an image of the whole matrix as a data URI, or None), `classes`
        (their number) and `pairs`, a table of the most confused pairs, or None.
    """
    counts, names = np.array(head["confusion"]), [printable(n) for n in head["names"]]
    order = similarity_order(counts).tolist()
    whole = None
    if len(names) > _MOST_WHOLE:
        whole = _image(counts[np.ix_(order, order)])
        most_confused = set(_most_confused(counts))
        order = [i for i in order if i in most_confused]
    # Shades follow the square root, so that a few mistakes in a hundred are visible.
    shades = 0.75 * np.sqrt(row_shares(counts))
    matrix = {
        "names": [names[i] for i in order],
        "rows": [[(int(counts[r, c]), f"{shades[r, c]:.2f}") for c in order] for r in order],
    }
    pairs = confused_table(head["confused"]) if head["confused"] and len(names) > 2 else None
    return {"matrix": matrix, "whole": whole, "classes": len(names), "pairs": pairs}


def often_predicted_as(head: dict, most: int = 3) -> list[str]:
    """Return, for each class, the classes that it is most often confused with: `bees ×3`."""
    counts, names = np.array(head["confusion"]), head["names"]
    np.fill_diagonal(counts, 0)
    texts = []
    for row in counts:
        best = [c for c in np.argsort(-row, kind="stable")[:most] if row[c]]
        texts.append(", ".join(f"{printable(names[c])} ×{row[c]}" for c in best))
    return texts


def _most_confused(counts):
    """Return the classes of the most frequent mistakes, as many as a table can show."""
    wrong = counts + counts.T
    np.fill_diagonal(wrong, 0)
    chosen: list[int] = []
    for at in np.argsort(-wrong, axis=None, kind="stable")[: 4 * _MOST_PART**2]:
        r, c = np.unravel_index(at, wrong.shape)
        new = {int(r), int(c)} - set(chosen)
        if not wrong[r, c] or len(chosen) + len(new) > _MOST_PART:
            break
        chosen += sorted(new)
    return chosen


def _image(counts):
    """Draw a matrix, one point per cell or per block of cells; orange marks mistakes."""
    block = -(-len(counts) // _MOST_POINTS)
    shares, wrong_shares = row_shares(counts), row_shares(counts)
    np.fill_diagonal(wrong_shares, 0)
    strength, wrong = _block_maximum(shares, block), _block_maximum(wrong_shares, block)
    # A block may contain both: mistakes matter more.
    strength = np.where(wrong > 0, wrong, strength)
    pixels = np.empty((*strength.shape, 4), "uint8")
    pixels[..., :3] = np.where(wrong[..., None] > 0, WRONG, CORRECT)
    opacity = np.where(strength > 0, 0.25 + 0.75 * np.sqrt(strength), 0)
    pixels[..., 3] = np.round(255 * opacity)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return data_uri("image/png", buffer.getvalue())


def _block_maximum(values, block):
    """Return the maximum of each block × block square."""
    side = -(-len(values) // block) * block
    padded = np.pad(values, (0, side - len(values)))
    return padded.reshape(side // block, block, -1, block).max(axis=(1, 3))
