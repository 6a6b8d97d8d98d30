"""How well near-duplicates are found: copies that were changed in eight ways are planted among photographs.

    python scripts/near_duplicates.py                      the reporting half: flowers, waste, textures
    python scripts/near_duplicates.py --half tuning        the sets on which the limit was chosen

Of some photographs of each set, eight changed copies are added. A pair of examples is right if both come
from one photograph. The table shows the share of copies that are linked to their photograph (directly, or
through a group), and the share of linked pairs that are right, next to the hashes of imagededup with its
default limits, if it is installed. Needs KERAS_HOME and KERAS_TRANSFER_DATA.
"""

import argparse
import io
import logging
import os
import sys
import tempfile
import time
import types
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from keras_transfer.data import open_data
from keras_transfer.diagnosis.near import groups_of, near_pairs
from keras_transfer.diagnosis.seen import compare, default_backbone, see
from keras_transfer.utils.console import Table

SETS = {
    "tuning": ("hymenoptera", "clothing", "aerial"),
    "reporting": ("flowers", "waste", "textures"),
}
PLANTED = 60  # photographs with copies, in each set
MARK = "--"


def recompressed(image, rng):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(15, 40)))
    return Image.open(io.BytesIO(buffer.getvalue()))


def scaled(image, rng):
    factor = rng.choice([0.4, 0.5, 0.7, 1.5, 2])
    return image.resize((round(image.width * factor), round(image.height * factor)))


def tilted(image, rng):
    """Turn by 2 to 5 degrees and cut the empty corners off."""
    degrees = rng.uniform(2, 5) * rng.choice([-1, 1])
    left, top = (round(1.2 * np.tan(np.radians(abs(degrees))) / 2 * x) for x in image.size[::-1])
    turned = image.rotate(degrees, Image.Resampling.BILINEAR)
    return turned.crop((left, top, image.width - left, image.height - top))


def cropped(image, rng):
    """Cut 3 to 10 % of the width and of the height off, more on one side than on the other."""
    (left, right), (top, bottom) = (
        np.sort(size * rng.uniform(0.03, 0.1) * np.array([(x := rng.uniform()), 1 - x]))
        for size in image.size
    )
    return image.crop((int(left), int(top), image.width - int(right), image.height - int(bottom)))


def brightened(image, rng):
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.7, 1.3))
    return ImageEnhance.Contrast(image).enhance(rng.uniform(0.7, 1.3))


WAYS = {
    "recompressed": recompressed,
    "scaled": scaled,
    "turned by 90°": lambda image, rng: image.transpose(Image.Transpose.ROTATE_90),
    "turned by 180°": lambda image, rng: image.transpose(Image.Transpose.ROTATE_180),
    "mirrored": lambda image, rng: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "cropped": cropped,
    "tilted": tilted,
    "brightness, contrast": brightened,
}


def plant(name: str, folder: Path) -> Path:
    """Write the photographs of a set, and changed copies of some of them."""
    root = Path(os.environ["KERAS_TRANSFER_DATA"])
    source = root / name if (root / name).exists() else root / "bench" / name
    data = open_data(source, progress=False)
    rng = np.random.default_rng(0)
    for split, part in data.examples.items():
        chosen = set(rng.choice(len(part), PLANTED * (split == "train"), replace=False))
        for row, (path, label) in enumerate(zip(part.names, part.labels)):
            out = folder / data.class_names[label]
            out.mkdir(parents=True, exist_ok=True)
            image = Image.open(path).convert("RGB")
            stem = f"{split}{row}"
            image.save(out / f"{stem}.png")
            for number, change in enumerate(WAYS.values() if row in chosen else ()):
                change(image, rng).save(out / f"{stem}{MARK}{number}.png")
    return folder


def sources_of(names):
    """Return (the photograph of each file, the way in which it was changed or −1)."""
    stems = [Path(name).stem.split(MARK) for name in names]
    return [stem[0] for stem in stems], np.array([int(s[1]) if len(s) > 1 else -1 for s in stems])


def score(names, pairs):
    """Return (recall of each way, recall, precision of the links, precision of the groups)."""
    sources, ways = sources_of(names)
    place = {source: row for row, source in enumerate(sources) if ways[row] < 0}
    group = groups_of(len(names), pairs)
    linked = np.array([group[row] == group[place[sources[row]]] for row in range(len(names))])
    recalls = [linked[ways == way].mean() for way in range(len(WAYS))]
    right = [sources[a] == sources[b] for a, b in pairs]
    members = [np.flatnonzero(group == g) for g in np.flatnonzero(np.bincount(group) > 1)]
    within = [sources[a] == sources[b] for rows in members for a, b in combinations(rows, 2)]
    return recalls, linked[ways >= 0].mean(), np.mean(right), np.mean(within)


def imagededups(folder: Path, names) -> dict[str, np.ndarray]:
    """Return name of a method of imagededup → pairs; empty if it is not installed."""
    if find_spec("imagededup") is None:
        return {}
    # Its packages import PyTorch for a network; the hashes do without.
    (place,) = find_spec("imagededup").submodule_search_locations
    for part in ("methods", "utils"):
        package = types.ModuleType(f"imagededup.{part}")
        package.__path__ = [str(Path(place) / part)]
        sys.modules.setdefault(package.__name__, package)
    logging.disable(logging.INFO)
    from imagededup.methods.hashing import DHash, PHash

    found = {}
    rows = {Path(name).name: row for row, name in enumerate(names)}
    for method in (PHash, DHash):
        hasher = method(verbose=False)
        encodings = {name: hasher.encode_image(str(path)) for name, path in zip(rows, names)}
        pairs = hasher.find_duplicates(encoding_map=encodings, num_dist_workers=0)
        links = {tuple(sorted((rows[a], rows[b]))) for a, others in pairs.items() for b in others}
        found[f"imagededup {method.__name__}"] = np.array(sorted(links), int).reshape(-1, 2)
    return found


def report(names: tuple) -> None:
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as work:
            folder = plant(name, Path(work) / name)
            data = open_data(folder, progress=False)
            seen = see(data, default_backbone(), None, "auto")
            before = time.process_time()
            distinct = compare(seen)
            found, _ = near_pairs(
                distinct.directions, distinct.neighbors, distinct.bits, data.modality.near
            )
            pairs = distinct.rows[found]
            seconds = time.process_time() - before
            files = seen.examples.names
            print(f"{name}: {len(files)} images, {seconds:.1f} CPU s for sketches and pairs")
            for method, links in {"keras_transfer": pairs, **imagededups(folder, files)}.items():
                recalls, recall, precision, within = score(files, links)
                cells = (*recalls, recall, precision, within)
                rows.append((name, method, *(f"{100 * x:.1f}" for x in cells)))
    header = ("set", "method", *WAYS, "recall", "precision", "in groups")
    print(Table(header, rows, "ll" + "r" * (len(header) - 2)).text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--half", choices=tuple(SETS), default="reporting")
    options = parser.parse_args()
    report(SETS[options.half])
