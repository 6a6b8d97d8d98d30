"""Several folders as several labels: which files are one image (no TensorFlow)."""

import os
from functools import cache
from pathlib import Path

import numpy as np

from keras_transfer.data.readers import Files
from keras_transfer.modalities.image.check import open_image

# Of 80 photographs, half the size or JPEG quality 40 makes at most 0.007 of the range on average, and
# the nearest two images, of one hand, differ by 0.017.
_SIDE, _MOST_DIFFERENCE = 8, 0.01


def merge_copies(
    files: Files, labels: np.ndarray, names: tuple[str, ...]
) -> tuple[Files, np.ndarray]:
    """Images that lie in several label folders, each once with all its labels.

    Two files are one image where their content is the same; or where they have the same name
    below their folders and look the same (saved anew, or at another size). Folders that merely
    number their files alike (`a/1.jpg`, `b/1.jpg`) are not mixed up.

    Args:
        files: `FOLDER/<label>/…` with one FOLDER for all.
        labels: the folder of each, int [n].
        names: the labels, in the order wanted.

    Returns:
        The first file of each image, and 0/1 float32 [n, L].
    """
    used = {int(label): path for label, path in zip(labels, files.names)}
    # With files in two folders of different names, what they share ends above both.
    folder = Path(os.path.commonpath(list(used.values())) if len(used) > 1 else "")
    kept: list = []
    rows: list = []
    by_digest: dict = {}
    by_name: dict = {}
    for place, (path, label, digest) in enumerate(zip(files.names, labels, files.digests)):
        name = os.path.relpath(path, folder / names[label])
        alike = by_name.setdefault(name, [])
        at = by_digest.get(digest)
        if at is None:
            at = next((k for k in alike if _look_the_same(files.names[kept[k]], path)), None)
        if at is None:
            at = len(kept)
            kept.append(place)
            rows.append(np.zeros(len(names), np.float32))
            alike.append(at)
        by_digest[digest] = at
        rows[at][label] = 1
    _thumbnail.cache_clear()
    return files.take(np.array(kept, int)), np.array(rows, np.float32).reshape(-1, len(names))


def _look_the_same(a, b):
    return float(np.abs(_thumbnail(a) - _thumbnail(b)).mean()) <= _MOST_DIFFERENCE


@cache
def _thumbnail(path):
    image = open_image(Path(path).read_bytes()).convert("RGB").resize((_SIDE, _SIDE))
    return np.asarray(image, np.float32) / 255
