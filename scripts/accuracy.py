"""Measure the accuracy of recipes, settings and alternatives on ten datasets; each in a process of its own.

    KERAS_HOME=… KERAS_TRANSFER_DATA=… python scripts/accuracy.py [--csv docs/accuracy.csv]
                 [--only hymenoptera,full,lp_ft,mobilenet_*] [--list] [--table] [--base closed_form]

Datasets (`accuracy_data.py`): constants of the package are chosen on the tuning half only, and the other
half is reported.

tuning     aerial, clothing, scripts, mnist, hymenoptera
reporting  chest_xray, flowers, textures, waste, sign_digits (other people in the test split)

Each is used in full (mnist: 100 images per class) and with 5 and 20 images per class, drawn by the seed.
The test split is only measured. What needs validation gets it from the training images: the package
sets aside 20 % by default, with few images too (1 of 5 per class), by writer and by person where the dataset
has them. The peers of `accuracy_peers.py` train on all training images and choose nothing.

A row is written after each run; rows that are there are skipped, so an interrupted benchmark resumes. Times
are those of the process that trains, from start to end, imports included, without the test; `cpu` is
its processor time. Each starts with an empty cache. `commit` is recorded, not compared: delete the rows
of what has changed. `first_drop`: by how much the validation accuracy falls below that of the closed-form
start in the three epochs after it, at most; below 0 if it only rises.

`--predictions FOLDER` also stores for each run of the package which test images were right, and what the
advisor chose, for `regret.py`.
"""

import argparse
import csv
import fnmatch
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from accuracy_data import DATASETS, SHOTS, materialize
from accuracy_peers import PEERS
from rows import Rows

from keras_transfer.runs import Run

SCRIPTS = Path(__file__).parent
BACKBONES = ("mobilenet_0.25", "mobilenet_v2_0.35", "efficientnet_lite0")
BOTH = "mobilenet_0.25+mobilenet_v2_0.35"
ONCE = "--strategy lp_ft --refit never"
SEEDS = ("0", "1", "2")
KEY = ("dataset", "shots", "contender", "backbone", "seed")
FIELDS = (
    *KEY,
    "image_size",
    *("accuracy", "standard_error", "log_loss", "test_images", "first_drop"),
    *("seconds", "cpu", "commit"),
)
# Options of `keras-transfer train`. With `--backbone`, a contender runs once instead of with each of BACKBONES.
CONTENDERS = (
    {
        "closed_form_last": "--strategy feature_extraction --taps last",
        # Taps chosen by cross-validation, fitted on validation examples too in the end, and not so.
        "closed_form": "--strategy feature_extraction",
        "closed_form_once": "--strategy feature_extraction --refit never",
        "closed_form_both": f"--strategy feature_extraction --backbone {BOTH}",
        "fine_tune": "--strategy fine_tune",
        "freeze_k": "--strategy freeze_k --set k=0.5",
        "gradual_unfreeze": "--strategy gradual_unfreeze",
        "lp_ft": "--strategy lp_ft",
        # One part of it changed, all without the second training.
        "lp_ft_once": ONCE,
        "lp_ft_last": f"{ONCE} --taps last",
        "lp_ft_both": f"{ONCE} --backbone {BOTH}",
        "lp_ft_no_average": f"{ONCE} --set all.ema=0",
        "lp_ft_random_head": f"{ONCE} --set head_learning_rate=0.003",
        "lp_ft_rate3e-4": f"{ONCE} --learning-rate 3e-4",
        "lp_ft_rate1e-3": f"{ONCE} --learning-rate 1e-3",
        "lp_ft_crop1": f"{ONCE} --crop 1",
        "lp_ft_soup": f"{ONCE} --soup",
        "lp_ft_ema": f"{ONCE} --set all.ema=0.98",
        "discriminative": "--strategy discriminative",
        "bit": "--strategy bit",
        "progressive_resize": "--strategy progressive_resize",
        "from_scratch": "--strategy from_scratch",
        "auto_strategy": "--strategy auto",
        "auto": "--backbone auto --strategy auto",
        "classical": "--strategy auto --policy classical",  # the textbooks' four scenarios, as a baseline
    }
    | {
        f"grid_rate{rate}_k{k}_crop{crop}_{size}px": (
            f"--strategy freeze_k --set top.learning_rate={rate} --set k={k} --crop {crop} --image-size {size}"
        )
        for rate, k, crop, size in product(
            ("6e-5", "2e-4", "6e-4"), ("0", "0.5"), ("0.875", "1"), (128, 224)
        )
    }
)


@dataclass(frozen=True)
class Plan:
    """One run; its fields are those of KEY."""

    dataset: str
    shots: str
    contender: str
    backbone: str
    seed: str

    def key(self, image_size: str) -> dict[str, str]:
        return {**{name: getattr(self, name) for name in KEY}, "image_size": image_size}


class Failed(Exception):
    """A contender's process failed; the message is the end of its output."""


def plans(only: str = "") -> list[Plan]:
    """Return all runs, cheap comparisons first, or those that match.

    Args:
        only: glob patterns, separated by commas. Each belongs to the first of dataset, shots,
            contender, backbone and seed that has a match; patterns of one kind are alternatives.
    """
    found = []
    for seed, shots, dataset in product(SEEDS, SHOTS, DATASETS):
        for contender in (*CONTENDERS, *PEERS):
            words = CONTENDERS.get(contender, "").split()
            own = words[words.index("--backbone") + 1] if "--backbone" in words else None
            for backbone in (own,) if own else BACKBONES:
                found.append(Plan(dataset, shots, contender, backbone, seed))
    for kind, patterns in _by_kind(found, only).items():
        found = [
            plan
            for plan in found
            if any(fnmatch.fnmatchcase(getattr(plan, kind), pattern) for pattern in patterns)
        ]
    return found


def _by_kind(found: list[Plan], only: str) -> dict[str, list[str]]:
    kinds = {}
    for pattern in filter(None, only.split(",")):
        for kind in KEY:
            if fnmatch.filter({getattr(plan, kind) for plan in found}, pattern):
                kinds.setdefault(kind, []).append(pattern)
                break
        else:
            raise SystemExit(f"--only {pattern}: no dataset, shots, contender, backbone or seed")
    return kinds


def measure(plan: Plan, image_size: str, work: Path, keep: Path | None = None) -> dict:
    """Train and test one contender; return its numbers.

    Args:
        keep: folder for a JSON file with the test images that were right, as for `regret.py`.
    """
    folder = materialize(plan.dataset, plan.shots, int(plan.seed), work)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        how = _peer if plan.contender in PEERS else _ours
        found = how(plan, image_size, folder, Path(scratch))
        if keep is not None and how is _ours:
            found |= _right(Path(scratch) / "run", folder, Path(scratch))
    if keep is not None and "correct" in found:
        keep.mkdir(parents=True, exist_ok=True)
        key = plan.key(image_size)
        document = {**key, **{name: found[name] for name in ("cpu", "choice", "correct")}}
        name = "-".join(key.values()).replace("/", "_")
        (keep / f"{name}.json").write_text(json.dumps(document) + "\n")
    accuracy, count = found["accuracy"], len(list((folder / "test").glob("*/*")))
    return {
        "accuracy": f"{accuracy:.4f}",
        "standard_error": f"{np.sqrt(accuracy * (1 - accuracy) / count):.4f}",
        "log_loss": f"{found['log_loss']:.4f}",
        "test_images": count,
        "first_drop": found.get("first_drop", ""),
        "seconds": f"{found['seconds']:.1f}",
        "cpu": f"{found['cpu']:.1f}",
    }


def _ours(plan, image_size, folder, scratch) -> dict:
    dataset, run = DATASETS[plan.dataset], scratch / "run"
    words = CONTENDERS[plan.contender].split()
    if "--backbone" not in words:
        own = Path(os.environ.get("KERAS_HOME", "")) / "own" / f"{plan.backbone}.keras"
        words += ["--backbone", str(own) if own.exists() else plan.backbone]
    if image_size != "default":
        words += ["--image-size", image_size]  # the last one counts
    words += [] if dataset.mirror else ["--no-flip"]
    words += ["--group", dataset.group] if dataset.group else []
    words += ["--seed", plan.seed, "--out", str(run)]
    command = [sys.executable, "-m", "keras_transfer.cli"]
    _, seconds, cpu = process([*command, "train", folder / "train", *words], scratch)
    out, _, _ = process(
        [*command, "evaluate", run, folder / "test", "--split", "all", "--json"], scratch
    )
    found = json.loads(out)
    return {
        "accuracy": found["accuracy"],
        "log_loss": found["loss"],
        "first_drop": first_drop(Run.open(run)),
        "seconds": seconds,
        "cpu": cpu,
    }


def _right(run, folder, scratch) -> dict:
    """Return which test images a run classifies correctly, and what it trained."""
    out = scratch / "test"
    words = ["evaluate", run, folder / "test", "--split", "all", "--out", out]
    process([sys.executable, "-m", "keras_transfer.cli", *words], scratch)
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    config = Run.open(run).config
    chosen = {
        name: config.get(name) for name in ("backbone", "strategy", "taps", "crop", "image_size")
    }
    chosen |= (config.get("advice") or {}).get("choice", {}).get("overrides", {})
    return {
        "choice": " ".join(f"{name}={value}" for name, value in chosen.items()),
        "correct": {"/".join(Path(row["path"]).parts[-2:]): int(row["correct"]) for row in rows},
    }


def first_drop(run: Run) -> str:
    """Return how far the validation accuracy falls after a closed-form start, e.g. "0.0125"; "" without one."""
    phases = run.metrics["phases"]
    if len(phases) < 2 or run.config["schedule"]["phases"][0]["solver"] == "gradient":
        return ""
    start, *after = [row["val_accuracy"] for row in run.history[:4]]
    return f"{start - min(after):.4f}"


def _peer(plan, image_size, folder, scratch) -> dict:
    size = "224" if image_size == "default" else image_size
    flip = DATASETS[plan.dataset].mirror
    words = [plan.contender, folder, plan.backbone, size, plan.seed, flip]
    out, seconds, cpu = process([sys.executable, SCRIPTS / "accuracy_peers.py", *words], scratch)
    found = json.loads(out.splitlines()[-1])
    return {**found, "seconds": seconds - found["measuring"], "cpu": cpu - found["measuring_cpu"]}


def process(command, scratch: Path) -> tuple[str, float, float]:
    """Return (standard output, seconds, processor seconds) of a command."""
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    environment["KERAS_TRANSFER_CACHE"] = str(scratch / "cache")
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise Failed("\n".join((done.stdout + done.stderr).splitlines()[-8:]))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, seconds, cpu


def present_commit() -> str:
    """Return the abbreviated hash of the code that is measured."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True)
    return done.stdout.strip()


def write_measured(results: Rows, key: dict, measure: Callable[[], dict], commit: str) -> bool:
    """Measure a row and write it; return False, after printing why, if its process failed."""
    try:
        numbers = measure()
    except Failed as error:
        print(f"FAILED {' '.join(key.values())}:\n{error}", file=sys.stderr, flush=True)
        return False
    results.write({**key, **numbers, "commit": commit})
    return True


def remaining(missing: list[Plan], rows: list[dict]) -> float | None:
    """Return the seconds that the missing runs take at the mean of the rows most like each; None
    without rows.
    """
    means = {}
    for columns in (("contender", "backbone", "shots", "dataset"), ("contender", "shots"), ()):
        groups = {}
        for row in rows:
            key = tuple(row[column] for column in columns)
            groups.setdefault(key, []).append(float(row["seconds"]))
        means[columns] = {key: float(np.mean(values)) for key, values in groups.items()}
    if not rows:
        return None
    return sum(
        next(
            groups[key]
            for columns, groups in means.items()
            if (key := tuple(getattr(plan, column) for column in columns)) in groups
        )
        for plan in missing
    )


def table(rows: list[dict], base: str = "closed_form") -> str:
    """Return two Markdown tables, of the tuning and of the reporting datasets.

    Accuracies are means over the seeds, in percent. Their standard error has two parts: the number of
    test images and, with several seeds, the spread between these. The difference to `base` is the mean over the
    datasets that have rows of both with the same seeds, with the standard error over the datasets.
    """
    parts = []
    for half in ("tuning", "reporting"):
        names = [name for name, dataset in DATASETS.items() if dataset.half == half]
        mine = [row for row in rows if row["dataset"] in names]
        names = [name for name in names if any(row["dataset"] == name for row in mine)]
        heads = ["shots", "backbone", "contender", *names, f"− {base}", "worst", "log loss", "s"]
        lines = [f"| {' | '.join(heads)} |", "|---|---|---|" + "---:|" * (len(heads) - 3)]
        lines += [f"| {' | '.join(cells)} |" for cells in _lines(mine, names, base)]
        parts.append(f"**{half.capitalize()} datasets**\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _lines(rows, names, base):
    groups = {}
    for row in rows:
        group = groups.setdefault(
            (row["shots"], row["image_size"], row["backbone"], row["contender"]), {}
        )
        group.setdefault(row["dataset"], {})[row["seed"]] = row
    order = [list(SHOTS).index, str, str, [*CONTENDERS, *PEERS].index]
    known = [key for key in groups if key[3] in (*CONTENDERS, *PEERS)]
    for key in sorted(known, key=lambda key: [rank(x) for rank, x in zip(order, key, strict=True)]):
        shots, size, backbone, contender = key
        # Several backbones are compared with the last of them alone.
        alone = (shots, size, backbone.split("+")[-1], base)
        group, other = groups[key], groups.get(alone, {})
        cells = [_accuracy(group[name].values()) if name in group else "–" for name in names]
        gaps = differences(group, other)
        everything = [row for seeds in group.values() for row in seeds.values()]
        yield [
            shots,
            backbone if size == "default" else f"{backbone}, {size} px",
            contender,
            *cells,
            _difference(gaps, len(names)) if contender != base else "",
            f"{min(gaps.values()):+.1f}" if gaps and contender != base else "",
            f"{np.mean([float(row['log_loss']) for row in everything]):.3f}",
            f"{np.mean([float(row['seconds']) for row in everything]):.0f}",
        ]


def differences(group: dict, other: dict) -> dict[str, float]:
    """Return the mean difference of accuracies in points, over common seeds, for each common dataset."""
    found = {}
    for name in group.keys() & other.keys():
        seeds = group[name].keys() & other[name].keys()
        gaps = [
            float(group[name][s]["accuracy"]) - float(other[name][s]["accuracy"]) for s in seeds
        ]
        if gaps:
            found[name] = 100 * float(np.mean(gaps))
    return found


def _accuracy(rows) -> str:
    values = np.array([float(row["accuracy"]) for row in rows])
    variance = np.mean([float(row["standard_error"]) ** 2 for row in rows])
    if len(values) > 1:
        variance += np.var(values, ddof=1) / len(values)
    return f"{100 * values.mean():.1f} ± {100 * np.sqrt(variance):.1f}"


def _difference(gaps: dict[str, float], datasets: int) -> str:
    if not gaps:
        return "–"
    values = list(gaps.values())
    cell = f"{np.mean(values):+.2f}"
    if len(values) > 1:
        cell += f" ± {np.std(values, ddof=1) / np.sqrt(len(values)):.2f}"
    return cell + ("" if len(values) == datasets else f" ({len(values)} datasets)")


def listing(chosen: list[Plan], missing: list[Plan], rows: list[dict]) -> str:
    """Return how many runs of each contender are done, and the total."""
    lines = []
    for name in dict.fromkeys(plan.contender for plan in chosen):
        whole = sum(plan.contender == name for plan in chosen)
        left = sum(plan.contender == name for plan in missing)
        lines.append(f"{name}: {whole - left} of {whole}  {CONTENDERS.get(name, 'peer')}")
    return "\n".join([*lines, progress(chosen, missing, rows)])


def progress(chosen, missing, rows) -> str:
    seconds = remaining(missing, rows)
    left = "unknown" if seconds is None else f"{seconds / 3600:.1f} h"
    return f"{len(chosen) - len(missing)} of {len(chosen)} runs done, training time left: {left}"


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 1 if a run failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--csv", type=Path, default=Path("docs/accuracy.csv"))
    parser.add_argument("--only", default="", help="glob patterns, separated by commas")
    parser.add_argument("--image-size", default="default", help="of everything, for a trial")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "accuracy")
    parser.add_argument("--predictions", type=Path, help="folder for files of `regret.py`")
    parser.add_argument("--list", action="store_true", help="what would run; run nothing")
    parser.add_argument("--table", action="store_true", help="print the table; run nothing")
    parser.add_argument("--base", default="closed_form_last", help="contender to compare with")
    args = parser.parse_args(arguments)
    results = Rows(args.csv, FIELDS)
    chosen = plans(args.only)
    keys = {plan: plan.key(args.image_size) for plan in chosen}
    if args.table:
        print(
            table(
                [
                    row
                    for row in results.rows
                    if any(k.items() <= row.items() for k in keys.values())
                ],
                args.base,
            )
        )
        return 0
    missing = [plan for plan in chosen if not results.contains(keys[plan])]
    if args.list:
        print(listing(chosen, missing, results.rows))
        return 0
    args.work.mkdir(parents=True, exist_ok=True)
    commit = present_commit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the process that trains too
    failures = 0
    while missing:
        plan = missing.pop(0)
        keep = [args.predictions] if args.predictions else []
        measuring = partial(measure, plan, args.image_size, args.work, *keep)
        if write_measured(results, keys[plan], measuring, commit):
            print(progress(chosen, missing, results.rows), flush=True)
        else:
            failures += 1
    if failures:
        print(f"{failures} runs failed; the next call tries them again", file=sys.stderr)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
