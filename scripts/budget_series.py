"""Measure accuracy against `train --minutes`, on an idle machine, and whether the budget is met.

    KERAS_HOME=… KERAS_TRANSFER_DATA=… python scripts/budget_series.py [--csv docs/budget_series.csv]
                 [--datasets flowers,waste] [--minutes 0.5,1,2,5,10] [--strategy auto] [--table] [--plot series.png]

By default the five reporting datasets of `accuracy_data.py` in full, `mobilenet_v2_0.35` at 128 px. Each run is a process
of its own with an empty cache. `used` is its whole time, imports and saving included, over the minutes: at most 1.2 is
promised. `first` is when the first model was saved, in minutes since the command began. Rows that are there are skipped.
"""

import argparse
import itertools
import json
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from accuracy import present_commit, process, write_measured
from accuracy_data import DATASETS, materialize
from rows import Rows

KEY = ("dataset", "strategy", "minutes", "backbone", "image_size", "seed")
FIELDS = (
    *KEY,
    *("accuracy", "standard_error", "seconds", "cpu", "used", "first", "contenders", "chosen"),
    "commit",
)


def measure(key: dict, work: Path) -> dict:
    """Train within some minutes, and test; return the numbers."""
    dataset = DATASETS[key["dataset"]]
    folder = materialize(key["dataset"], "full", int(key["seed"]), work)
    words = ["--no-flip"] if not dataset.mirror else []
    words += ["--group", dataset.group] if dataset.group else []
    for option in ("strategy", "minutes", "backbone", "image_size", "seed"):
        words += [f"--{option.replace('_', '-')}", key[option]]
    command = [sys.executable, "-m", "keras_transfer.cli"]
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        run = Path(scratch) / "run"
        train = [*command, "train", folder / "train", *words, "--out", run, "--json"]
        out, seconds, cpu = process(train, Path(scratch))
        race = json.loads(out)["race"] or {"contenders": []}
        test = [*command, "evaluate", run, folder / "test", "--split", "all", "--json"]
        found = json.loads(process(test, Path(scratch))[0])
    accuracy, entries = found["accuracy"], race["contenders"]
    best = min(entries, key=lambda entry: entry["loss"], default={"strategy": key["strategy"]})
    return {
        "accuracy": f"{accuracy:.4f}",
        "standard_error": f"{np.sqrt(accuracy * (1 - accuracy) / found['images']):.4f}",
        "seconds": f"{seconds:.1f}",
        "cpu": f"{cpu:.1f}",
        "used": f"{seconds / 60 / float(key['minutes']):.2f}",
        "first": entries[0]["at"] if entries else "",
        "contenders": len(entries),
        "chosen": best["strategy"],
    }


def series(rows: list[dict]) -> dict[str, list[dict]]:
    """Return dataset → its rows, the fewest minutes first."""
    names = dict.fromkeys(row["dataset"] for row in rows)
    order = sorted(rows, key=lambda row: float(row["minutes"]))
    return {name: [row for row in order if row["dataset"] == name] for name in names}


def table(rows: list[dict]) -> str:
    """Return accuracies as Markdown, and a line on the budget and on falls."""
    minutes = sorted({row["minutes"] for row in rows}, key=float)
    lines = [f"| dataset | {' | '.join(f'{m} min' for m in minutes)} |"]
    lines.append("|---|" + "---:|" * len(minutes))
    falls = []
    for name, found in series(rows).items():
        cells = {
            row["minutes"]: f"{100 * float(row['accuracy']):.1f} ({row['used']})" for row in found
        }
        lines.append(f"| {name} | {' | '.join(cells.get(m, '–') for m in minutes)} |")
        for before, after in itertools.pairwise(found):
            drop = float(before["accuracy"]) - float(after["accuracy"])
            falls.append((100 * drop, f"{name}, {before['minutes']} to {after['minutes']} min"))
    most = max(rows, key=lambda row: float(row["used"]))
    lines += ["", "In parentheses: time used over the minutes."]
    lines += [f"At most {most['used']} ({most['dataset']}, {most['minutes']} min)."]
    if falls and max(falls)[0] > 0:
        lines += ["Largest fall: {:.1f} points ({}).".format(*max(falls))]
    elif falls:
        lines += ["Accuracy never falls."]
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    """Draw accuracy against minutes, a line for each dataset, with standard errors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, found in series(rows).items():
        values = [
            [float(row[key]) for row in found] for key in ("minutes", "accuracy", "standard_error")
        ]
        axes.errorbar(*values, fmt="o-", capsize=3, label=name)
    axes.set_xscale("log")
    minutes = sorted({float(row["minutes"]) for row in rows})
    axes.set_xticks(minutes, [f"{m:g}" for m in minutes])
    axes.minorticks_off()
    axes.set(xlabel="--minutes", ylabel="test accuracy")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reporting = ",".join(name for name, d in DATASETS.items() if d.half == "reporting")
    parser.add_argument("--csv", type=Path, default=Path("docs/budget_series.csv"))
    parser.add_argument("--datasets", default=reporting)
    parser.add_argument("--minutes", default="0.5,1,2,5,10")
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--backbone", default="mobilenet_v2_0.35")
    parser.add_argument("--image-size", default="128")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "accuracy")
    parser.add_argument("--table", action="store_true", help="print the table; run nothing")
    parser.add_argument("--plot", type=Path, help="draw the series; run nothing")
    args = parser.parse_args(arguments)
    results = Rows(args.csv, FIELDS)
    if args.plot:
        plot(results.rows, args.plot)
    if args.table:
        print(table(results.rows))
    if args.plot or args.table:
        return 0
    args.work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the process that trains too
    failures = 0
    for dataset in args.datasets.split(","):
        for minutes in args.minutes.split(","):
            values = dataset, args.strategy, minutes, args.backbone, args.image_size, args.seed
            key = dict(zip(KEY, values, strict=True))
            if results.contains(key):
                continue
            measuring = partial(measure, key, args.work)
            failures += not write_measured(results, key, measuring, present_commit())
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
