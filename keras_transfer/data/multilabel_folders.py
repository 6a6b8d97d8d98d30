"""Folders as labels: find copies of one image in several folders."""

import os
from functools import cache
from pathlib import Path

import numpy as np

from keras_transfer.data.readers import Files
from keras_transfer.modalities import find_modality
from keras_transfer.modalities.image.decode import open_image

# Among 80 photographs, half the size or JPEG quality 40 changes pixels by at most 0.007 of the range on
# average, and the two most similar images differ by 0.017.
_SIDE, _MAX_DIFFERENCE = 8, 0.01


def merge_copies(
    files: Files, labels: np.ndarray, names: tuple[str, ...]
) -> tuple[Files, np.ndarray]:
    """Return the first file of each image in label folders, and all its labels, 0/1 float32 [n, L].

    Two files are one image if their content is equal; or if they have the same name below their
    folders and look the same (images saved again, or at another size).

    Args:
        files: `FOLDER/<label>/…`, all in one FOLDER.
        labels: the label folder of each file, int [n].
        names: the labels, in the desired order.
    """
    images = files.modality is find_modality("image")
    used = {int(label): path for label, path in zip(labels, files.names)}
    # The common path of files in two label folders ends above both.
    folder = Path(os.path.commonpath(list(used.values())) if len(used) > 1 else "")
    first: list = []
    rows: list = []
    by_digest: dict = {}
    by_name: dict = {}
    for place, (path, label, digest) in enumerate(zip(files.names, labels, files.digests)):
        # Not `names[label]`: that is in Unicode's composed form.
        name = Path(os.path.relpath(path, folder)).parts[1:]
        same_name = by_name.setdefault(name, [])
        at = by_digest.get(digest)
        if at is None and images:
            at = next((k for k in same_name if _look_the_same(files.names[first[k]], path)), None)
        if at is None:
            at = len(first)
            first.append(place)
            rows.append(np.zeros(len(names), np.float32))
            same_name.append(at)
        by_digest[digest] = at
        rows[at][label] = 1
    _thumbnail.cache_clear()
    return files.take(np.array(first, int)), np.array(rows, np.float32).reshape(-1, len(names))


def _look_the_same(a, b):
    return float(np.abs(_thumbnail(a) - _thumbnail(b)).mean()) <= _MAX_DIFFERENCE


@cache
def _thumbnail(path):
    image = open_image(Path(path).read_bytes()).convert("RGB").resize((_SIDE, _SIDE))
    return np.asarray(image, np.float32) / 255
