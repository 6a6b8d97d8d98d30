"""Measure what the advisor's choice costs against the best of a grid, without the luck of the best.

    python scripts/accuracy.py --only "full,0,mobilenet_v2_0.35,auto_strategy,grid_*,lp_ft,closed_form" \
        --predictions docs/predictions …
    python scripts/regret.py docs/predictions [--of auto_strategy] [--json]

The best of many contenders on a test split is partly the luckiest. So the best is chosen on one half of the
test images and measured on the other, and the other way round, which measures each image once; this is
repeated with random halves, and the mean over the repetitions counts. `regret` is the accuracy of the best
so chosen minus that of `--of`, in points, and its error is the standard error over the test images, paired.

`share` is the processor time of `--of` over that of the whole grid. With several seeds, the last table says
for each dataset how many of them differ from the most frequent choice, and `cost`: by how many points these are
less accurate than the others.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

HALVES = 200
_CELL = ("dataset", "shots", "seed")


def read(folder: Path, of: str) -> dict[tuple, dict[str, dict]]:
    """Return (dataset, shots, seed) → contender and backbone and image size → its document.

    Only what all contenders measured counts: cells without `of` are left out.
    """
    cells = defaultdict(dict)
    for file in sorted(folder.glob("*.json")):
        found = json.loads(file.read_text())
        name = " ".join([found["contender"], found["backbone"], found["image_size"]])
        cells[tuple(found[key] for key in _CELL)][name] = found
    return {
        key: cell
        for key, cell in cells.items()
        if len(cell) > 1 and any(found["contender"] == of for found in cell.values())
    }


def regret(right: np.ndarray, own: np.ndarray, *, halves: int = HALVES, seed: int = 0) -> tuple:
    """Return (regret, its standard error), as shares.

    Args:
        right: bool [contenders, N], which test images each contender got right.
        own: bool [N], the same of the contender that is judged.
    """
    rng, count = np.random.default_rng(seed), right.shape[1]
    differences = np.zeros(count)
    for _ in range(halves):
        chosen = rng.permutation(count) < count // 2
        for half in (chosen, ~chosen):
            best = right[:, half].mean(axis=1).argmax()
            differences[~half] += right[best, ~half].astype(float) - own[~half]
    differences /= halves
    return float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(count))


def measure(cell: dict[str, dict], of: str) -> dict:
    """Return the numbers of one dataset and seed."""
    mine = next(found for found in cell.values() if found["contender"] == of)
    grid = [found for found in cell.values() if found["contender"] != of]
    names = sorted(mine["correct"])
    if any(sorted(found["correct"]) != names for found in grid):
        raise SystemExit(f"{mine['dataset']}: the contenders were measured on different images")

    def flags(found):
        return np.array([found["correct"][name] for name in names], bool)

    gap, error = regret(np.stack([flags(found) for found in grid]), flags(mine))
    return {
        "regret": 100 * gap,
        "error": 100 * error,
        "accuracy": 100 * float(flags(mine).mean()),
        "share": mine["cpu"] / sum(found["cpu"] for found in grid),
        "grid": len(grid),
        "choice": mine["choice"],
    }


def agreement(results: dict[tuple, dict]) -> list[dict]:
    """Return for each dataset with several seeds how often the choice differs, and at what cost."""
    groups = defaultdict(list)
    for (dataset, shots, _), found in results.items():
        groups[dataset, shots].append(found)
    rows = []
    for (dataset, shots), found in groups.items():
        usual, times = Counter(one["choice"] for one in found).most_common(1)[0]
        same = [one["accuracy"] for one in found if one["choice"] == usual]
        others = [one["accuracy"] for one in found if one["choice"] != usual]
        cost = float(np.mean(same) - np.mean(others)) if others else 0.0
        if len(found) > 1:
            counted = {"seeds": len(found), "differ": len(found) - times, "cost": cost}
            rows.append({"dataset": dataset, "shots": shots, **counted})
    return rows


def text(results: dict[tuple, dict], rows: list[dict]) -> str:
    """Return both tables as Markdown."""
    lines = ["| dataset | shots | seed | accuracy | regret | share of the grid's time | grid |"]
    lines.append("|---|---|---|---:|---:|---:|---:|")
    for key, one in results.items():
        numbers = f"{one['accuracy']:.1f} | {one['regret']:+.1f} ± {one['error']:.1f}"
        lines.append(f"| {' | '.join(key)} | {numbers} | {one['share']:.0%} | {one['grid']} |")
    gaps = [one["regret"] for one in results.values()]
    beyond = max(one["regret"] - one["error"] for one in results.values())
    lines += [
        "",
        f"mean regret {np.mean(gaps):+.2f}, worst beyond one standard error {beyond:+.2f}",
    ]
    if rows:
        lines += [
            "",
            "| dataset | shots | seeds | choice differs | cost |",
            "|---|---|---:|---:|---:|",
        ]
        lines += [
            f"| {r['dataset']} | {r['shots']} | {r['seeds']} | {r['differ']} | {r['cost']:+.1f} |"
            for r in rows
        ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of accuracy.py --predictions")
    parser.add_argument("--of", default="auto_strategy", help="the contender that is judged")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    results = {key: measure(cell, args.of) for key, cell in read(args.folder, args.of).items()}
    if not results:
        raise SystemExit(f"{args.folder} has no dataset with {args.of} and another contender")
    rows = agreement(results)
    if args.json:
        cells = [{**dict(zip(_CELL, key)), **found} for key, found in results.items()]
        print(json.dumps({"cells": cells, "agreement": rows}, indent=2))
    else:
        print(text(results, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
