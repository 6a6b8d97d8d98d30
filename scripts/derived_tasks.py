"""Measure closed form, `lp_ft` and `auto` on labels and numbers; the datasets are derived from others.

    KERAS_HOME=… KERAS_TRANSFER_DATA=… python scripts/derived_tasks.py [--csv docs/derived_tasks.csv]
                 [--only textures_pairs,auto_strategy] [--table]

No dataset of `accuracy_data.py` has several labels or numbers, so these are made from them, with their halves
and their test splits:

- `…_pairs` (several labels): two images side by side, each squeezed to half the width; the labels are both
  classes. Of signs, both show the same person.
- `…_angle` (a number): an image turned by −45 to 45 degrees, of which the largest square without corners is cut out.
- `sign_value` (a number): the digit that a hand shows.

The score is the mean average precision of labels and R² of numbers, on the test split. Rows that are there are
skipped. Times are those of the training process; each starts with an empty cache.
"""

import argparse
import csv
import json
import math
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from accuracy import present_commit, process, write_measured
from accuracy_data import DATASETS, materialize
from PIL import Image
from rows import Rows

SIDE = 256  # of the images that are made
MOST_DEGREES = 45
CONTENDERS = {
    "closed_form": ["--strategy", "feature_extraction"],
    "lp_ft": ["--strategy", "lp_ft"],
    "auto_strategy": ["--strategy", "auto"],
}
KEY = ("dataset", "contender", "backbone", "image_size", "seed")
FIELDS = (*KEY, "half", "metric", "score", "loss", "test_images", "seconds", "cpu", "commit")


@dataclass(frozen=True)
class Derived:
    """A dataset with other labels.

    Attributes:
        source: name in `accuracy_data.DATASETS`.
        kind: "pairs", "angle" or "value".
    """

    source: str
    kind: str

    @property
    def metric(self) -> str:
        return "map" if self.kind == "pairs" else "r2"

    @property
    def mirror(self) -> bool:
        """Whether a mirror image has the same labels."""
        return self.kind == "pairs" and DATASETS[self.source].mirror


TASKS = {
    "clothing_pairs": Derived("clothing", "pairs"),
    "hymenoptera_angle": Derived("hymenoptera", "angle"),
    "textures_pairs": Derived("textures", "pairs"),
    "sign_pairs": Derived("sign_digits", "pairs"),
    "flowers_angle": Derived("flowers", "angle"),
    "sign_value": Derived("sign_digits", "value"),
}


def table_of(name: str, seed: int, work: Path) -> Path:
    """Return the CSV file of a derived dataset below `work`, which is made if it is not there."""
    out = work / f"{name}-{seed}"
    if out.exists():
        return out / "table.csv"
    task, part = TASKS[name], out.with_name(f"{name}-{seed}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    folder, rng = materialize(task.source, "full", 0, work), np.random.default_rng(seed)
    classes = sorted(path.name for path in (folder / "train").iterdir())
    rows = []
    for split in ("train", "test"):
        files = sorted((folder / split).glob("*/*"))
        owners = [_owner(file, task) for file in files]
        for number, (file, owner) in enumerate(zip(files, owners, strict=True)):
            row = {"path": f"{split}{number:05}.png", "split": split, "group": owner or number}
            if task.kind == "pairs":
                same = [i for i, other in enumerate(owners) if other == owner and i != number]
                other = files[rng.choice(same)]
                image = _side_by_side(file, other)
                shown = {file.parent.name, other.parent.name}
                row |= {label: int(label in shown) for label in classes}
            elif task.kind == "angle":
                row["number"] = round(float(rng.uniform(-MOST_DEGREES, MOST_DEGREES)), 2)
                image = _turned(file, row["number"])
            else:
                image, row["number"] = _opened(file), int(file.parent.name)
            image.save(part / str(row["path"]))
            rows.append(row)
    with (part / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    part.rename(out)
    return out / "table.csv"


def _owner(file, task):
    """Return the person that an image shows, as far as its dataset tells."""
    group = DATASETS[task.source].group
    found = re.search(group, file.name) if group else None
    return found.group(1) if found else None


def _opened(file) -> Image.Image:
    return Image.open(file).convert("RGB")


def _side_by_side(left, right) -> Image.Image:
    canvas = Image.new("RGB", (SIDE, SIDE))
    for number, file in enumerate((left, right)):
        half = _opened(file).resize((SIDE // 2, SIDE), Image.Resampling.BILINEAR)
        canvas.paste(half, (number * SIDE // 2, 0))
    return canvas


def _turned(file, degrees) -> Image.Image:
    """Return the square of an image that has no corner of the background at any angle."""
    image = _opened(file)
    side = min(image.size)
    turned = image.rotate(degrees, Image.Resampling.BILINEAR)
    half, (width, height) = side / math.sqrt(2) / 2, image.size
    box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
    return turned.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)


def columns_of(name: str, table: Path) -> list[str]:
    """Return the options that name the columns of a derived dataset."""
    with table.open(encoding="utf-8") as file:
        columns = file.readline().strip().split(",")
    labels = [column for column in columns if column not in ("path", "split", "group")]
    kind = "labels" if TASKS[name].kind == "pairs" else "targets"
    pairs = ("path=path", "split=split", "group=group", f"{kind}={','.join(labels)}")
    return [word for pair in pairs for word in ("--column", pair)]


def measure(name: str, contender: str, args) -> dict:
    """Train and test one contender; return its numbers."""
    table = table_of(name, args.seed, args.work)
    columns = columns_of(name, table)
    words = [*CONTENDERS[contender], "--backbone", args.backbone, "--image-size", args.image_size]
    words += [] if TASKS[name].mirror else ["--no-flip"]
    command = [sys.executable, "-m", "keras_transfer.cli"]
    with tempfile.TemporaryDirectory(dir=args.work) as scratch:
        run = Path(scratch) / "run"
        train = [*command, "train", table, *columns, *words, "--seed", args.seed, "--out", run]
        _, seconds, cpu = process(train, Path(scratch))
        test = [*command, "evaluate", run, table, *columns, "--split", "test", "--json"]
        found = json.loads(process(test, Path(scratch))[0])
    return {
        "half": DATASETS[TASKS[name].source].half,
        "metric": TASKS[name].metric,
        "score": f"{found[TASKS[name].metric]:.4f}",
        "loss": f"{found['loss']:.4f}",
        "test_images": found["images"],
        "seconds": f"{seconds:.1f}",
        "cpu": f"{cpu:.1f}",
    }


def table(rows: list[dict]) -> str:
    """Return the rows as Markdown: score, loss and processor seconds of each contender."""
    names = [name for name in TASKS if any(row["dataset"] == name for row in rows)]
    heads = ["half", "dataset", "metric", *CONTENDERS]
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|" + "---:|" * len(CONTENDERS)]
    for name in names:
        cells = []
        for contender in CONTENDERS:
            mine = [r for r in rows if (r["dataset"], r["contender"]) == (name, contender)]
            numbers = [
                np.mean([float(r[key]) for r in mine]) for key in ("score", "loss", "cpu") if mine
            ]
            cells.append("{:.3f} ({:.3f}, {:.0f} s)".format(*numbers) if mine else "–")
        half = DATASETS[TASKS[name].source].half
        lines.append(f"| {' | '.join([half, name, TASKS[name].metric, *cells])} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=Path("docs/derived_tasks.csv"))
    parser.add_argument("--only", default="", help="datasets and contenders, separated by commas")
    parser.add_argument("--backbone", default="mobilenet_v2_0.35")
    parser.add_argument("--image-size", default="128")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "accuracy")
    parser.add_argument("--table", action="store_true", help="print the table; run nothing")
    args = parser.parse_args(arguments)
    results = Rows(args.csv, FIELDS)
    if args.table:
        print(table(results.rows))
        return 0
    words = [word for word in args.only.split(",") if word]
    if unknown := set(words) - {*TASKS, *CONTENDERS}:
        raise SystemExit(f"--only {','.join(unknown)}: no dataset or contender")
    names = [name for name in TASKS if name in words] or list(TASKS)
    contenders = [name for name in CONTENDERS if name in words] or list(CONTENDERS)
    args.work.mkdir(parents=True, exist_ok=True)
    failures = 0
    for name in names:
        for contender in contenders:
            values = (name, contender, args.backbone, args.image_size, str(args.seed))
            key = dict(zip(KEY, values, strict=True))
            if results.contains(key):
                continue
            measuring = partial(measure, name, contender, args)
            failures += not write_measured(results, key, measuring, present_commit())
    return int(failures > 0)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main())
