"""Several folders as several labels: which files are one picture (no TensorFlow)."""

import os
from functools import cache
from pathlib import Path

import numpy as np

from keras_transfer.data.files import digest_files, open_picture

# Of 80 photographs, half the size or JPEG quality 40 makes at most 0.007 of the range on average, and
# the nearest two pictures, of one hand, differ by 0.017.
_SIDE, _MOST_DIFFERENCE = 8, 0.01


def merge_copies(
    classes: dict[str, list[str]], names: tuple[str, ...], *, progress: bool = True
) -> tuple[list[str], np.ndarray]:
    """Pictures that lie in several label folders, each once with all its labels.

    Two files are one picture where their content is the same; or where they have the same name
    below their folders and look the same (saved anew, or at another size). Folders that merely
    number their files alike (`a/1.jpg`, `b/1.jpg`) are not mixed up.

    Args:
        classes: label → files, `FOLDER/<label>/…` with one FOLDER for all.
        names: the labels, in the order wanted.
        progress: show a bar on stderr, if that is a terminal.

    Returns:
        Paths (the first of each picture's), and 0/1 float32 [n, L].
    """
    files = [(i, path) for i, name in enumerate(names) for path in classes.get(name, [])]
    digests = digest_files([path for _, path in files], progress=progress)
    used = [name for name in names if classes.get(name)]
    # With files in two folders of different names, what they share ends above both.
    folder = Path(os.path.commonpath([classes[name][0] for name in used]) if len(used) > 1 else "")
    paths, labels = [], []
    by_digest, by_name = {}, {}
    for (i, path), digest in zip(files, digests):
        name = os.path.relpath(path, folder / names[i])
        alike = by_name.setdefault(name, [])
        at = by_digest.get(digest)
        if at is None:
            at = next((k for k in alike if _look_the_same(paths[k], path)), None)
        if at is None:
            at = len(paths)
            paths.append(path)
            labels.append(np.zeros(len(names), np.float32))
            alike.append(at)
        by_digest[digest] = at
        labels[at][i] = 1
    _thumbnail.cache_clear()
    return paths, np.array(labels, np.float32).reshape(len(paths), len(names))


def _look_the_same(a, b):
    return float(np.abs(_thumbnail(a) - _thumbnail(b)).mean()) <= _MOST_DIFFERENCE


@cache
def _thumbnail(path):
    picture = open_picture(Path(path).read_bytes()).convert("RGB").resize((_SIDE, _SIDE))
    return np.asarray(picture, np.float32) / 255
