"""Measure the size of a run's report, and how long a browser takes to open it.

    python scripts/report_opening.py RUN [--classes 100 1000] [--mistakes 1000] [--rounds 5]

Prints a Markdown table. RUN is a finished single-label run. Its report is generated with random predictions
for that many classes and mistakes, with images of noise, which compress worst. Headless Chromium opens it
and an empty page in turn; the difference of the two times is the cost of the report and its scripts.
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from keras_transfer.evaluation.tasks import measure_classes
from keras_transfer.reporting.gallery import Shot
from keras_transfer.reporting.run_report import render_report
from keras_transfer.runs import Run

CALIBRATION = {"temperature": 1.5, "thresholds": [{"precision": 0.9, "threshold": 0.5}]}
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
# Run without a screen and without looking for updates.
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-quic", "--enable-logging=stderr"),
)


def random_answers(classes: int, count: int, most: int, first: str = "class number 0") -> dict:
    """Return the document of an evaluation with `count` random predictions, most of them wrong.

    Args:
        most: number of listed mistakes, and of least confident predictions.
        first: name of the first class, and of a folder that contains all images.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)).astype("float32")
    logits[np.arange(count), labels] += 2
    paths = [f"folder/{first}/{i}.jpg" for i in range(count)]
    names = [first, *(f"class number {i}" for i in range(1, classes))]
    options = {"calibration": CALIBRATION, "most": most}
    head, _ = measure_classes(names, labels, logits, paths, **options)
    return {
        "split": "test",
        "images": count,
        "skipped": 2,
        "tta": None,
        "calibrated_on": {"split": "val", "images": 9},
        "heads": {"output": head},
    }


def noise_shots(document: dict) -> dict:
    """Return noise for all images that the document shows."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 224, 224, 3)).astype("uint8")
    heat = rng.random((8, 7, 7))

    def shots(kind):
        entries = document["heads"]["output"][kind]
        return {
            e["path"]: Shot(pixels[i % 8], {"prediction": heat[i % 8], "truth": heat[-i % 8]})
            for i, e in enumerate(entries)
        }

    return {"output": {kind: shots(kind) for kind in ("mistakes", "unsure")}}


def seconds_to_open(page: Path, profile: Path) -> float:
    """Return the time to start a browser, load the page and print its document."""
    command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode or "<html" not in done.stdout:
        raise RuntimeError(f"Chromium did not open {page}: {done.stderr[-500:]}")
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--classes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--mistakes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not CHROMIUM:
        parser.error("chromium, chromium-browser or google-chrome not found")
    run = Run.open(options.run)
    model = run.model
    print(
        "| classes | mistakes | MB | seconds to open, median | least to most |\n" + "|---" * 5 + "|"
    )
    with tempfile.TemporaryDirectory() as folder:
        page, empty = Path(folder, "report.html"), Path(folder, "empty.html")
        empty.write_text("<!doctype html><html><title>nothing</title></html>")
        for classes in options.classes:
            document = random_answers(classes, 2 * options.mistakes, options.mistakes)
            text = render_report(run, model, document, noise_shots(document))
            page.write_text(text, encoding="utf-8")
            seconds_to_open(empty, Path(folder, "profile"))  # creates the profile
            found = []
            for _ in range(options.rounds):
                nothing = seconds_to_open(empty, Path(folder, "profile"))
                found.append(seconds_to_open(page, Path(folder, "profile")) - nothing)
            mistakes = len(document["heads"]["output"]["mistakes"])
            size = page.stat().st_size / 1e6
            spread = f"{min(found):.2f}–{max(found):.2f}"
            median = statistics.median(found)
            print(f"| {classes} | {mistakes} | {size:.1f} | {median:.2f} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
