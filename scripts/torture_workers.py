"""Stop workers of a training at random moments, and compare the resumed run with an undisturbed one.

    python scripts/torture_workers.py --losses 10 --distribute multi_worker
    KERAS_BACKEND=jax python scripts/torture_workers.py --losses 10 --distribute jax --workers 2 3 1

Prints one line per loss; the exit code is 1 after any failure. (JAX takes longer to compile than to train
here: JAX_COMPILATION_CACHE_DIR=FOLDER and JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 cache compilation.)

Each attempt is a group of processes on this machine that train with `resume=True`. After a random time one
of them, the first or another, receives kill -9, SIGSTOP (it hangs) or SIGTERM (a preemption). The others
must then end by themselves within a minute, with exit code 75 and a line that gives the reason. The next
attempt resumes with the next number of `--workers`. A finished run is compared with an undisturbed one with
the first number of workers: bit for bit, or within 1e-4 if the number of workers changed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import keras
import numpy as np
from torture_resume import tiny_backbone

from keras_transfer.cli.demo import write_images
from keras_transfer.data import from_directory
from keras_transfer.errors import WorkerLost
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.runs import Run
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.distributed import faults
from keras_transfer.training.distributed.environment import start_workers
from keras_transfer.training.trainer import Trainer

SCHEDULE = Schedule(
    "torture",
    (
        Phase("solved", "all", 1, 1.0, solver="logistic"),
        Phase("head", "all", 6, 1e-2, shape="plateau", patience=1),
        Phase(
            "all",
            "top:2",
            12,
            1e-2,
            optimizer="sgd",
            optimizer_options={"momentum": 0.9},
            rates={"head": 4.0},
            ema=0.9,
            class_weights="balanced",
            l2_sp=0.1,
            clip_norm=1.0,
            early_stopping=10,
        ),
    ),
)
LONGEST = 60.0  # seconds within which the others must end
SIGNALS = {"kill": signal.SIGKILL, "hang": signal.SIGSTOP, "preempt": signal.SIGTERM}
ENDED = {"kill": {-signal.SIGKILL}, "preempt": {130, -signal.SIGTERM}, "hang": {-signal.SIGKILL}}
TOLERANCE = 1e-4  # for different numbers of workers, whose sums are rounded differently


def train(images: Path, out: Path, kind: str, told) -> None:
    workers = start_workers(kind)
    told()
    with workers.translated():
        data = from_directory(images, progress=False)
        keras.utils.set_random_seed(0)
        with workers.scope():
            head = Classification(data.class_names, dropout=0.0)
            model = build_model(tiny_backbone(), head, image_size=32)
        trainer = Trainer(model, SCHEDULE, batch_size=6, augment="light", scaling="none")
        trainer.fit(data, out, resume=True)


class Group:
    """Workers of one training, each a fork of this process, which has computed nothing."""

    def __init__(self, count: int, images: Path, out: Path, kind: str):
        self.logs = [out.with_name(f"{out.name}-{i}.log") for i in range(count)]
        self.joined = [out.with_name(f"{out.name}-{i}.joined") for i in range(count)]
        self.codes: dict[int, int] = {}
        addresses = _addresses(count)
        self.pids = {}
        for index in range(count):
            self.joined[index].unlink(missing_ok=True)
            pid = os.fork()
            if pid == 0:
                self._work(index, addresses, images, out, kind)
            self.pids[index] = pid

    def _work(self, index, addresses, images, out, kind):
        os.dup2(os.open(self.logs[index], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(2, 1)
        task = {"type": "worker", "index": index}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
        os.environ["KERAS_DISTRIBUTION_JOB_ADDRESSES"] = addresses[0]
        os.environ["KERAS_DISTRIBUTION_NUM_PROCESSES"] = str(len(addresses))
        os.environ["KERAS_DISTRIBUTION_PROCESS_ID"] = str(index)
        # Separate, because workers on several machines do not share one either.
        os.environ["KERAS_TRANSFER_CACHE"] = str(out.with_name(f"cache-{index}"))
        code = 1
        try:
            train(images, out, kind, self.joined[index].touch)
            # A fork skips TensorFlow's orderly shutdown, which would wait for the others.
            time.sleep(5)
            code = 0
        except WorkerLost as error:
            print(f"error: {error}", flush=True)
            code = WorkerLost.exit_code
        except KeyboardInterrupt as stop:
            print(stop, flush=True)
            code = 130
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            faults.leave(code)

    def look(self) -> None:
        """Record which workers have ended."""
        for index, pid in self.pids.items():
            if index not in self.codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[index] = os.waitstatus_to_exitcode(status)

    def wait(self, seconds: float, until) -> bool:
        """Return True as soon as `until()` is true, and False after the given seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.look()
            if until():
                return True
            time.sleep(0.01)
        return False

    @property
    def running(self):
        return [index for index in self.pids if index not in self.codes]

    def meet(self, seconds: float = 300) -> bool:
        """Return True when all workers have joined."""
        return self.wait(seconds, lambda: all(file.exists() for file in self.joined))

    def all_end(self, seconds: float) -> bool:
        return self.wait(seconds, lambda: not self.running)

    def one_ends(self, seconds: float) -> bool:
        return self.wait(seconds, lambda: bool(self.codes))

    def end(self):
        for index in self.running:
            os.kill(self.pids[index], signal.SIGKILL)
        self.all_end(60)

    def said(self, index) -> str:
        return self.logs[index].read_text(errors="replace")


def _addresses(count):
    taken = [socket.socket() for _ in range(count)]
    for one in taken:
        one.bind(("127.0.0.1", 0))
    found = [f"127.0.0.1:{one.getsockname()[1]}" for one in taken]
    for one in taken:
        one.close()
    return found


def lose(group: Group, index: int, how: str) -> tuple[float, list[str]]:
    """Stop a worker; return (seconds until the others ended, what was wrong)."""
    others = [i for i in group.running if i != index]
    started = time.monotonic()
    os.kill(group.pids[index], SIGNALS[how])
    in_time = group.wait(2 * LONGEST, lambda: all(i in group.codes for i in others))
    took = time.monotonic() - started
    if how == "hang":
        os.kill(group.pids[index], signal.SIGKILL)
    group.wait(LONGEST, lambda: index in group.codes)
    wrong = [] if in_time and took <= LONGEST else [f"the others took {took:.0f} s"]
    for i in others:
        code = group.codes.get(i)
        if code == 0 and how != "hang":
            continue  # it had already finished
        # All workers may have treated the preemption of one as their own.
        line = "error: " in group.said(i) and "--resume" in group.said(i)
        if code != WorkerLost.exit_code or not line:
            wrong.append(f"worker {i} ended with {code}: {group.said(i)[-1500:]}")
    if group.codes.get(index) not in ENDED[how] | {0}:
        own = group.codes.get(index)
        wrong.append(f"worker {index} itself ended with {own}: {group.said(index)[-3000:]}")
    return took, wrong


def same(one: Path, other: Path) -> float:
    """Return the largest difference between weights of the two finished runs."""
    child = os.fork()  # so that this process can still fork
    file = one.with_suffix(".npy")
    if child == 0:
        try:
            pairs = zip(Run(one).model.get_weights(), Run(other).model.get_weights(), strict=True)
            np.save(file, max(float(np.abs(a - b).max()) for a, b in pairs))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return float(np.load(file))


def torture(losses, kind, counts, seed, folder: Path, log) -> int:
    """Return the number of failures."""
    choose = random.Random(seed)
    write_images(folder / "all", seed=0)
    images = folder / "all" / "target"
    for split in images.iterdir():  # few images, so that an epoch takes a fraction of a second
        for of_class in split.iterdir():
            for file in sorted(of_class.iterdir())[7:]:
                file.unlink()
    whole, out = folder / "whole", folder / "run"
    group = Group(counts[0], images, whole, kind)
    assert group.meet(), group.said(0)
    started = time.monotonic()
    group.all_end(600)
    duration = time.monotonic() - started
    assert set(group.codes.values()) == {0}, [group.said(i)[-3000:] for i in group.pids]
    log(f"undisturbed, {counts[0]} workers of {kind}: {duration:.1f} s after they met")
    wrong, times, attempts, finished = [], [], 0, 0
    while len(times) < losses or attempts:
        count = counts[attempts % len(counts)]
        attempts += 1
        group = Group(count, images, out, kind)
        met, started = group.meet(), time.monotonic()
        last = len(times) >= losses  # finish the current run
        moment = 600 if last else choose.uniform(0, 0.9 * duration)
        if met and not group.one_ends(moment) and not last:
            index = choose.choice(sorted(group.pids))
            how = choose.choice(["kill", "kill", "hang", "preempt"])
            took, bad = lose(group, index, how)
            times.append((how, took))
            log(
                f"{len(times)}. {how} of worker {index} of {count} after {moment:.1f} s: {took:.1f} s"
            )
        else:
            group.all_end(LONGEST)
            if attempts == 1:  # the compilation is cached now
                duration = min(duration, time.monotonic() - started)
            bad = [
                f"worker {i} ended by itself with {code}: {group.said(i)[-3000:]}"
                for i, code in group.codes.items()
                if code
            ]
        group.end()
        wrong += bad
        for text in bad:
            log(text)
        if not met:
            break
        if not (out / "metrics.json").exists():
            continue
        finished += 1
        difference = same(whole, out)
        log(f"a run is finished after {attempts} attempts; largest difference {difference:g}")
        if difference > (0 if len(set(counts)) == 1 else TOLERANCE):
            wrong.append(f"weights differ by {difference}")
        shutil.rmtree(out)
        attempts = 0
    for how, number in sorted(Counter(how for how, _ in times).items()):
        seconds = sorted(took for other, took in times if other == how)
        middle = seconds[len(seconds) // 2]
        log(
            f"{how}: {number} times, the others ended after {middle:.1f} s (at most {seconds[-1]:.1f} s)"
        )
    log(f"{len(times)} losses in {finished} finished runs: {len(wrong)} things were wrong")
    return len(wrong)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--losses", type=int, default=10)
    parser.add_argument("--distribute", choices=("multi_worker", "jax"), default="multi_worker")
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = lambda text: print(text, flush=True)  # noqa: E731
        wrong = torture(
            options.losses, options.distribute, options.workers, options.seed, Path(folder), log
        )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
