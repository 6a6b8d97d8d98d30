"""Kill a training at random moments, resume it, and compare it with an undisturbed run.

    python scripts/torture_resume.py --kills 200 [--refit]

Prints one line per finished run; the exit code is 1 if a weight differs. Each attempt is a process that
trains with `resume=True` and is killed with kill -9: after a random time, or as soon as it begins to write
a file of its checkpoint. When a run finishes, its weights are compared with those of the undisturbed run,
and the next run begins. The schedule contains all state that must survive: several phases, averaged
weights, low-rank updates, accumulated gradients, dropout, L2-SP, early stopping and a plateau. With
`--refit`, without the plateau, it is trained a second time on validation images, too.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

from keras_transfer.cli.demo import AUGMENT, write_images
from keras_transfer.data import from_directory
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.stages import Backbone
from keras_transfer.runs import MODEL, Run
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.trainer import Trainer

SCHEDULE = Schedule(
    "torture",
    (
        Phase("head", "all", 3, 3e-2, shape="plateau", patience=1, early_stopping=2),
        Phase("top", "top:2", 2, 1e-3, ema=0.9, accumulate=2, class_weights="balanced"),
        Phase("all", "none", 3, 1e-3, l2_sp=0.1, clip_norm=1.0, batch_norm="train", dropout=0.4),
        Phase("updates", "none", 2, 3e-3, train="lora", lora_rank=2, ema=0.9, roll_back=True),
        Phase("offsets", "none", 2, 1e-3, train="bias", l2_sp=0.1),
        Phase("fast", "none", steps=15, learning_rate=1e-3, optimizer="sgd", lowest_rate=0.1),
    ),
)


def tiny_backbone() -> Backbone:
    """Return a backbone of three stages, small enough that compilation does not dominate."""
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    for filters in (8, 16, 16):
        x = keras.layers.Conv2D(filters, 3, strides=2, use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
    return Backbone(inputs, keras.layers.GlobalAveragePooling2D()(x), name="tiny")


def without_plateau() -> Schedule:
    """Return the schedule that validation does not steer, so that it may be trained again."""
    head, *others = SCHEDULE.phases
    head = dataclasses.replace(head, shape="cosine", early_stopping=None)
    others = [dataclasses.replace(phase, roll_back=False) for phase in others]
    return dataclasses.replace(SCHEDULE, phases=(head, *others))


def train(images: Path, out: Path, refit: bool) -> None:
    data = from_directory(images, progress=False)
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification(data.class_names), image_size=32)
    options = {"batch_size": 4, "augment": AUGMENT, "refit": "always" if refit else "never"}
    schedule = without_plateau() if refit else SCHEDULE
    Trainer(model, schedule, **options).fit(data, out, resume=True)


def attempt(
    images: Path, out: Path, seconds: float, at_checkpoint: bool, refit: bool
) -> tuple[bool, float]:
    """Train in a process of its own; return (whether it was killed, seconds it ran).

    The process is a fork of this one, which has imported Keras but computed nothing: otherwise most of
    the time, and most of the kills, would be in the import.
    """
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        code = 1
        try:
            errors = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(errors, 2)
            train(images, out, refit)
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    started = time.perf_counter()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        ran = time.perf_counter() - started
        if done:
            if status:
                raise RuntimeError(out.with_suffix(".log").read_text())
            return False, ran
        writing = at_checkpoint and ran > seconds and any((out / "state").rglob(".*"))
        if writing or (ran > seconds and not at_checkpoint):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True, ran
        time.sleep(0.0002)


def weights_of(run: Path) -> list[np.ndarray]:
    """Read weights in a separate process, so that this one can still fork."""
    file = run.with_suffix(".npz")
    child = os.fork()
    if child == 0:
        try:
            model = Run(run).model
            np.savez(file, *[keras.ops.convert_to_numpy(w) for w in model.weights])
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    with np.load(file) as arrays:
        return [arrays[name] for name in arrays.files]


def same(a: Path, b: Path) -> tuple[int, float]:
    """Return (number of weights that differ in any bit, largest difference)."""
    pairs = list(zip(weights_of(a), weights_of(b), strict=True))
    different = sum(not np.array_equal(x, y) for x, y in pairs)
    return different, max(float(np.abs(x - y).max()) for x, y in pairs)


def log_of(run: Path) -> list[dict]:
    metrics = json.loads((run / "metrics.json").read_text())
    return [{k: p[k] for k in ("name", "epochs", "val")} for p in metrics["phases"]]


def torture(kills: int, seed: int, folder: Path, log=print, refit: bool = False) -> int:
    """Return the number of weights that differ, over all runs."""
    choose = random.Random(seed)
    write_images(folder / "images", seed=0)
    images = folder / "images" / "target"
    for split in images.iterdir():  # few images, so that an epoch takes a fraction of a second
        for of_class in split.iterdir():
            for file in sorted(of_class.iterdir())[10:]:
                file.unlink()
    whole = folder / "whole"
    _, duration = attempt(images, whole, 1e9, False, refit)
    assert refit == ("refit" in Run(whole).metrics)
    log(f"undisturbed: {duration:.1f} s; phases {log_of(whole)}")
    killed = finished = differing = at_checkpoints = attempts = 0
    largest = 0.0
    out = folder / "killed"
    while killed < kills or attempts:
        last = killed >= kills  # finish the current run
        at_checkpoint = choose.random() < 0.4
        moment = 1e9 if last else choose.uniform(0, duration * (0.4 if at_checkpoint else 0.8))
        attempts += 1
        was_killed, _ = attempt(images, out, moment, at_checkpoint and not last, refit)
        killed += was_killed
        at_checkpoints += was_killed and at_checkpoint
        if was_killed:
            continue
        assert (out / MODEL).is_file()
        different, difference = same(whole, out)
        differing += different
        largest = max(largest, difference)
        finished += 1
        log(
            f"{killed} kills, {finished} runs finished (this one in {attempts} attempts), "
            f"{different} weights differ, same history: {log_of(whole) == log_of(out)}"
        )
        differing += log_of(whole) != log_of(out)
        shutil.rmtree(out)
        attempts = 0
    log(
        f"{killed} kills ({at_checkpoints} while a checkpoint was written) in {finished} runs: "
        f"{differing} weights or histories differ, largest difference {largest:g}"
    )
    return differing


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--refit", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = lambda text: print(text, flush=True)  # noqa: E731
        sys.exit(bool(torture(options.kills, options.seed, Path(folder), log, options.refit)))


if __name__ == "__main__":
    main()
