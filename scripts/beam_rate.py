"""Predict 20,000 files with `predict` and with Beam on two workers, one of which is killed midway.

    KERAS_TRANSFER_DATA=DATA python scripts/beam_rate.py [--files 20000] [--folder DIR]

The files are handwritten digits (DATA/mnist_10k.npz) as PNG files of 64 px, each once dark on white and once
white on dark. A model of `mobilenet_0.25` is trained on 500 of them. The same command of Beam runs twice: once
undisturbed, for its rate, and once with a worker killed (SIGKILL) when half of the shards are done; it
is then repeated until it ends. Prints the rates, and whether each file appears once with the label of
`predict`. Results in `--folder` are not computed again.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SHARD = 250
OPTIONS = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
PATIENCE = 60  # seconds without a new shard, after which a stopped pipeline is ended


def write_files(folder: Path, count: int) -> None:
    with np.load(Path(os.environ["KERAS_TRANSFER_DATA"]) / "mnist_10k.npz") as digits:
        images, labels = digits["x"], digits["y"]
    for number in range(count):
        image = Image.fromarray(images[number // 2]).resize((64, 64), Image.Resampling.BICUBIC)
        image = ImageOps.invert(image) if number % 2 else image
        image.save(folder / "all" / f"{number:05d}.png")
        if number < 500:
            label = folder / "train" / str(labels[number // 2])
            label.mkdir(parents=True, exist_ok=True)
            image.save(label / f"{number:05d}.png")


def start(*arguments) -> subprocess.Popen:
    line = [sys.executable, "-m", "keras_transfer.cli", *map(str, arguments)]
    return subprocess.Popen(
        line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def run(*arguments) -> float:
    """Return the seconds that a command takes; stop if it fails."""
    begin = time.perf_counter()
    process = start(*arguments)
    errors = process.communicate()[1]
    if process.returncode:
        sys.exit(errors[-2000:])
    return time.perf_counter() - begin


def workers_of(pid: int) -> list[int]:
    """Return the worker processes below a process."""
    parents, workers = {}, []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state = (place / "stat").read_text().rpartition(")")[2].split()
            command = (place / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        parents[int(place.name)] = int(state[1])
        # The interpreter itself, not the shell around it.
        if b"sdk_worker_main" in command and b"python" in command.split(b"\0")[0]:
            workers.append(int(place.name))

    def below(one):
        while one > 1 and one != pid:
            one = parents.get(one, 0)
        return one == pid

    return [one for one in workers if below(one)]


def done(out: Path) -> int:
    return len(list(out.glob("predictions-*.parquet")))


def disturbed(command, out: Path, shards: int) -> dict:
    """Kill a worker when half of the shards are done; run the command again until it ends well."""
    process = start(*command)
    while done(out) < shards // 2:
        if process.poll() is not None:
            sys.exit(process.stderr.read()[-2000:])
        time.sleep(0.05)
    workers = workers_of(process.pid)
    os.kill(workers[0], signal.SIGKILL)
    at, seen, since = done(out), done(out), time.monotonic()
    while process.poll() is None and time.monotonic() - since < PATIENCE:
        if done(out) > seen:
            seen, since = done(out), time.monotonic()
        time.sleep(0.2)
    hung = process.poll() is None
    if hung:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    found = {"workers": len(workers), "killed_after": at, "left": shards - done(out), "hung": hung}
    found["again"] = run(*command) if hung or process.returncode else 0.0
    return found


def labels_of(out: Path) -> list[tuple[str, str]]:
    from pyarrow import parquet

    rows = []
    for file in sorted(out.glob("predictions-*.parquet")):
        table = parquet.read_table(file).to_pydict()
        rows += list(zip(table["path"], table["label"]))
    return rows


def measure(folder: Path, count: int) -> dict:
    """Run the steps that are missing in `results.json`, and return its content."""
    place = folder / "results.json"
    found = json.loads(place.read_text()) if place.exists() else {}
    images, trained = folder / "all", folder / "run"
    table, whole, killed = folder / "predict.csv", folder / "whole", folder / "killed"
    shards = -(-count // SHARD)
    beam = ("predict", trained, images, "--runner", "beam", "--shard-size", SHARD)
    beam += tuple(part for option in OPTIONS for part in ("--beam-option", option))
    settings = ("--backbone", "mobilenet_0.25", "--image-size", 64, "--no-flip", "--taps", "last")

    def write():
        images.mkdir(parents=True, exist_ok=True)
        write_files(folder, count)
        return count

    def train():
        strategy = ("--strategy", "feature_extraction", "--out", trained)
        return run("train", folder / "train", *settings, *strategy)

    steps = {
        "files": write,
        "train": train,
        "predict": lambda: run("predict", trained, images, "--out", table),
        "beam": lambda: run(*beam, "--out", whole),
        "disturbed": lambda: disturbed((*beam, "--out", killed), killed, shards),
    }
    for name, step in steps.items():
        if name not in found:
            print(f"{name} …", file=sys.stderr, flush=True)
            found[name] = step()
            place.write_text(json.dumps(found))
    return found


def report(folder: Path, found: dict) -> None:
    count = found["files"]
    with (folder / "predict.csv").open(newline="", encoding="utf-8") as file:
        expected = {str(Path(row["path"]).absolute()): row["label"] for row in csv.DictReader(file)}
    print("| | s | files/s |")
    print("|---|---:|---:|")
    for name, title in (("predict", "`predict`"), ("beam", "Beam, two workers")):
        print(f"| {title} | {found[name]:.0f} | {count / found[name]:.0f} |")
    print()
    state = found["disturbed"]
    print(
        f"one of {state['workers']} workers killed after {state['killed_after']} shards: the pipeline "
        f"{'stood still and was ended' if state['hung'] else 'ended'} with {state['left']} shards left, "
        f"which the same command did in {state['again']:.0f} s"
    )
    for name in ("whole", "killed"):
        rows = labels_of(folder / name)
        times = Counter(Counter(path for path, _ in rows).values())
        same = sum(expected[path] == label for path, label in rows)
        print(
            f"{name}: {len(rows):,} rows of {count:,} files, each {sorted(times)} times; "
            f"{same:,} labels are those of predict"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        report(folder, measure(folder, options.files))


if __name__ == "__main__":
    main()
