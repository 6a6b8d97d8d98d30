"""Compare the speed of this package with the usual alternatives.

    KERAS_HOME=… KERAS_TRANSFER_DATA=… python scripts/benchmark.py [SECTION...] [--rounds 3]
                                             [--torch PYTHON] [--against CHECKOUT] [--out FILE.md]

Prints a Markdown table with the median of both sides over several alternating rounds, the spread and
the ratio. Sections:

whole       `feature_extraction` against the Keras guide's recipe, whole processes
again       time until a second run with another head starts training, after imports
advise      `keras-transfer advise`, whole process, with an empty cache and again
cache       20 epochs with a frozen part, with the cache (empty at the start) and without
cuts        accuracy with and without the cache, for three frozen stages
extraction  forward pass only: the engines against `model.predict`
step        a fine-tuning step: the trainer's model against the guide's `fit` and the convolutions alone
pipeline    images from files: our batches against `image_dataset_from_directory` and bare OpenCV
starts      short commands, whole processes (`--against`: another checkout of this repository)
growth      time per image and peak memory, for 1,000 to 100,000 images
torch       PyTorch's ResNet-50 (`--torch`: a Python with PyTorch) against ours

`ours.py` and `peers.py` run each measurement in a separate process, so that memory is measured separately.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ours import BACKBONE, SIZES

HERE = Path(__file__).resolve().parent


def child(*args, python=sys.executable, cache=None, environment=None) -> dict:
    """Run a process whose last line is JSON; return it with the elapsed `seconds`."""
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})}
    if cache:
        env["KERAS_TRANSFER_CACHE"] = str(cache)
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(python), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    out, errors = process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, args))} failed:\n{errors[-2000:]}")
    lines = [line for line in out.splitlines() if line.startswith("{")]
    return {**(json.loads(lines[-1]) if lines else {}), "seconds": seconds}


def own(function: str, *args, cache=None) -> dict:
    """Run a function of `ours.py` in a separate process."""
    return child(HERE / "ours.py", function, *args, cache=cache)


class Table:
    """Rows of a Markdown table, printed as they are measured."""

    def __init__(self, out):
        self.out = out
        self.lines = []
        self._put("| what | ours | peer | ratio | peak memory |")
        self._put("|---|---|---|---|---|")

    def _put(self, line):
        print(line, flush=True)
        self.lines.append(line)
        if self.out:
            Path(self.out).write_text("\n".join(self.lines) + "\n", encoding="utf-8")

    def add(self, what, ours, peer=None, unit="s", higher=False, memory="", note=""):
        """Add a row from two lists of rounds; the ratio is how many times better ours is."""
        texts, ratio = [_rounds(ours, unit)], ""
        if peer is None:
            texts.append("")
        else:
            texts.append(_rounds(peer, unit))
            ours, peer = np.median(ours), np.median(peer)
            ratio = f"{ours / peer if higher else peer / ours:.2f}"
        self._put(
            f"| {what}{note and f' ({note})'} | {texts[0]} | {texts[1]} | {ratio} | {memory} |"
        )


def _rounds(values, unit):
    values = np.asarray(values, float)
    digits = ".3g" if values.max() < 100 else ".0f"
    spread = f" ({values.min():{digits}}–{values.max():{digits}})" if len(values) > 1 else ""
    return f"{np.median(values):{digits}}{spread} {unit}"


def _gib(size):
    return f"{size / 2**30:.2f} GiB"


# -- whole process --------------------------------------------------------------------------------


def whole(table, options):
    for name in SIZES:
        ours, peers, accuracies = [], [], [[], []]
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                command = Path(sys.executable).parent / "keras-transfer"
                data = Path(os.environ["KERAS_TRANSFER_DATA"]) / name
                run = Path(folder) / "run"
                result = child(
                    "train", data, "--out", run, "--backbone", BACKBONE, "--strategy",
                    # Like the peer, which never trains on validation images.
                    "feature_extraction", "--refit", "never", "--image-size", SIZES[name],
                    python=command, cache=Path(folder) / "cache",
                )  # fmt: skip
                metrics = json.loads((run / "metrics.json").read_text())
            ours.append(result["seconds"])
            accuracies[0].append(metrics["val"]["accuracy"])
            peer = child(HERE / "peers.py", "guide", name)
            peers.append(peer["seconds"])
            accuracies[1].append(peer["accuracy"])
        note = "accuracy {:.4f} and {:.4f}".format(*(np.median(a) for a in accuracies))
        table.add(f"`feature_extraction`, {name}, whole process", ours, peers, note=note)


def again(table, options):
    for name in SIZES:
        waits = []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                for hidden in ("", "64"):
                    found = own("start_of_training", name, folder, hidden, cache=folder + "/cache")
            waits.append(found["wait"])
        table.add(f"second run with another head, {name}: training starts after", waits)


def advise(table, options):
    command = Path(sys.executable).parent / "keras-transfer"
    data = Path(os.environ["KERAS_TRANSFER_DATA"]) / "sign_digits"
    times = {"from nothing": [], "once more": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for seconds in times.values():
                seconds.append(child("advise", data, python=command, cache=cache)["seconds"])
    for when, seconds in times.items():
        table.add(f"`keras-transfer advise`, sign_digits, {when}", seconds)


# -- the cache ------------------------------------------------------------------------------------


# Recipe, augmentation, backbone, data. `resnet50` has random weights, because only its time counts.
PLANS = [
    ("feature_extraction", "none", BACKBONE, "sign_digits"),
    ("freeze_k", "none", BACKBONE, "hymenoptera"),
    ("freeze_k", "light", BACKBONE, "hymenoptera"),
    ("freeze_k", "none", BACKBONE, "sign_digits"),
    ("feature_extraction", "light", BACKBONE, "sign_digits"),
    ("feature_extraction", "none", "resnet50", "hymenoptera"),
]


def cache(table, options):
    """Caches are empty at the start; the fastest engine is known from an earlier run."""
    for recipe, augment, backbone, name in PLANS:
        found = {"auto": [], "off": []}
        with tempfile.TemporaryDirectory() as folder:
            known = Path(folder) / "known"
            own("fit", name, recipe, augment, backbone, "auto", folder, 2, cache=known)
            shutil.rmtree(known / "features")
            for i in range(options.rounds):
                for where, results in found.items():
                    fresh = Path(folder) / f"{where}-{i}"
                    shutil.copytree(known, fresh)
                    arguments = (name, recipe, augment, backbone, where, fresh, 20)
                    results.append(own("fit", *arguments, cache=fresh))
        note = ""
        if backbone == BACKBONE:
            accuracies = [np.median([r["accuracy"] for r in results]) for results in found.values()]
            note = "accuracy {:.4f} and {:.4f}".format(*accuracies)
        what = "head only" if recipe == "feature_extraction" else "`freeze_k`, half of the stages"
        table.add(
            f"20 epochs, {what}, augmentation {augment}, {backbone}, {name} {SIZES[name]} px: cache "
            "against none",
            *([r["fit"] for r in results] for results in found.values()),
            note=note,
        )


def cuts(table, options):
    """The accuracy is the same with and without the cache, at any cut."""
    for name in SIZES:
        for k in ("stage:4", "stage:9", "stage:14"):
            found = {"auto": [], "off": []}
            with tempfile.TemporaryDirectory() as folder:
                for where, results in found.items():
                    arguments = (name, "freeze_k", "none", BACKBONE, where, f"{folder}/{where}", 8)
                    results.append(own("fit", *arguments, k, cache=folder))
            accuracies = [results[0]["accuracy"] for results in found.values()]
            table.add(
                f"8 epochs, `freeze_k` at {k}, {name} {SIZES[name]} px: cache against none",
                *([r["fit"] for r in results] for results in found.values()),
                note="accuracy {:.4f} and {:.4f}".format(*accuracies),
            )


# -- engines and steps ----------------------------------------------------------------------------


def extraction(table, options):
    for name in ("resnet50", "mobilenet_v2", BACKBONE):
        found = own("engines", name, options.rounds)
        for engine, speeds in found["speeds"].items():
            if engine != "predict":
                error = f"relative error {found['errors'][engine]:.4f}"
                table.add(
                    f"extraction, {name}, `{engine}` against `predict`", speeds,
                    found["speeds"]["predict"], "images/s", higher=True, note=error,
                )  # fmt: skip


def step(table, options):
    for name in (BACKBONE, "resnet50"):
        found = own("steps", name, options.rounds)
        for peer, text in {
            "guide": "the guide's `fit`",
            "convolutions": "the convolutions alone",
        }.items():
            table.add(
                f"fine-tuning step, {name}, {found['precision']}, against {text}", found["ours"],
                found[peer], "images/s", higher=True,
            )  # fmt: skip


def torch(table, options):
    if not options.torch:
        print("torch: pass a Python that has PyTorch with --torch", file=sys.stderr)
        return
    ours = {"forward float32": [], "forward bfloat16": [], "step float32": [], "step bfloat16": []}
    peers = {key: [] for key in ours}
    for _ in range(options.rounds):
        for key, speed in own("resnet50_speeds").items():
            if key in ours:
                ours[key].append(speed)
        for key, speed in child(HERE / "peers.py", "torch", python=options.torch).items():
            if key in peers:
                peers[key].append(speed)
    for key, speeds in ours.items():
        table.add(f"ResNet-50 {key} against PyTorch", speeds, peers[key], "images/s", higher=True)


# -- images from files --------------------------------------------------------------------------


# Data, image size, the addition to its name.
STREAMS = [("hymenoptera", 224, ""), ("sign_digits", 224, ""), ("hymenoptera", 96, " to 96 px")]
PEERS = {
    "peer": "`image_dataset_from_directory`",
    "bare": "bare OpenCV decode and resize on all cores",
    "limit": "bare OpenCV decode on all cores",
}


def pipeline(table, options):
    for name, size, addition in STREAMS:
        found = own("pipelines", name, options.rounds, size)
        for kind in ("evaluation", "training"):
            for peer, text in PEERS.items():
                cpu = [np.median(found["cpu"][side]) for side in (kind, peer)]
                table.add(
                    f"pipeline, {name}{addition}, {kind}, against {text}", found["speeds"][kind],
                    found["speeds"][peer], "images/s", higher=True,
                    note="CPU {:.2f} and {:.2f} ms an image".format(*cpu),
                )  # fmt: skip


def starts(table, options):
    """Whole processes of short commands; `--against` measures another checkout in turn."""
    data = Path(os.environ["KERAS_TRANSFER_DATA"])
    image = next(path for path in sorted((data / "hymenoptera/val/ants").iterdir()))
    sides = {"ours": HERE.parent} | ({"peer": Path(options.against)} if options.against else {})
    with tempfile.TemporaryDirectory() as folder:
        runs = {side: Path(folder) / side / "run" for side in sides}
        commands = {
            "--help": lambda run, out: ["--help"],
            "closed-form train on 288 images": lambda run, out: [
                "train", data / "bench/waste", "--out", out, "--backbone", BACKBONE,
                "--strategy", "feature_extraction", "--image-size", 224,
            ],
            "predict on one image": lambda run, out: ["predict", run, image],
            "evaluate on 192": lambda run, out: ["evaluate", run, data / "bench/waste"],
            "report": lambda run, out: ["report", run],
            "export": lambda run, out: ["export", run, "--out", f"{out}-export/1"],
        }  # fmt: skip
        times = {(what, side): [] for what in commands for side in sides}
        for turn in range(options.rounds + 1):  # the first makes the runs
            for what, words in commands.items():
                for side, root in sides.items():
                    out = runs[side] if not turn else runs[side].with_name(f"run{turn}")
                    # Without the current folder, which may be a checkout, too.
                    environment = dict(PYTHONPATH=str(root), PYTHONSAFEPATH="1")
                    found = child(
                        "-m", "keras_transfer.cli", *words(runs[side], out),
                        cache=out.with_name(f"cache{turn}"), environment=environment,
                    )  # fmt: skip
                    if turn:
                        times[what, side].append(found["seconds"])
        for what in commands:
            table.add(f"`{what}`, whole process", *(times[what, side] for side in sides))


# -- growth ---------------------------------------------------------------------------------------

COUNTS = (1_000, 10_000, 100_000)


def growth(table, options):
    with tempfile.TemporaryDirectory(prefix="images") as folder:
        folder = Path(folder)
        own("write_images", folder, max(COUNTS))
        for count in COUNTS:
            cache = folder / f"cache-{count}"
            found = own("extract_images", folder, count, cache=cache)
            shutil.rmtree(cache, ignore_errors=True)
            table.add(
                f"mobilenet_0.25 features of {count:,} JPEGs, 96 px: time an image",
                [1e3 * found["extraction"] / count], unit="ms", memory=_gib(found["memory"]),
                note=f"{found['extraction']:.0f} s, then {found['rest']:.0f} s for the head",
            )  # fmt: skip


SECTIONS = {
    f.__name__: f
    for f in (whole, again, advise, cache, cuts, extraction, step, pipeline, starts, growth, torch)
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", help="another checkout, for `starts`")
    parser.add_argument("--torch", help="a Python interpreter with PyTorch")
    parser.add_argument("--out", help="a Markdown file, written after each line")
    options = parser.parse_args()
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {unknown[0]}: choose of {', '.join(SECTIONS)}")
    for needed in ("KERAS_HOME", "KERAS_TRANSFER_DATA"):
        if needed not in os.environ:
            parser.error(f"set {needed}: real weights and images are measured")
    table = Table(options.out)
    for name in options.sections or SECTIONS:
        SECTIONS[name](table, options)


if __name__ == "__main__":
    main()
