"""Measure workers on this machine: features and training steps per second.

    python scripts/distributed_speed.py extraction [--images 600] [--rounds 3]
    python scripts/distributed_speed.py steps [--workers 1 2 4] [--frozen 0 9 18]

Each worker is a process that is pinned to one core (worker i to core i, and from the first one again),
so that two of them on two cores can be compared with one on one core. Run it where nothing else runs:
the load is printed. Against what runs nevertheless the fastest step counts, and of extraction
the processor's time is given too, of the slower worker: what it would be if each had its core alone.

`extraction`: images a second through a frozen backbone, merged in the cache at the end, by one worker
and by two. `steps`: the time of a training step, the gradients that it sums (MB), and its efficiency
against one worker. If there are more workers than cores, one worker's step counts as many times as
workers share a core.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ENGINE = "multi_worker"


# -- in a worker ------------------------------------------------------------------------------------


def worker(what: str, options) -> None:
    """Measures in this process; the first worker prints a line of JSON."""
    index = json.loads(os.environ.get("TF_CONFIG") or '{"task": {"index": 0}}')["task"]["index"]
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[index % len(cores)]})
    from keras_transfer.training.distributed.environment import start_workers

    workers = start_workers(ENGINE if options.count > 1 else "none")
    found = {"extraction": extraction, "steps": steps}[what](workers, options)
    if index == 0:
        print("RESULT " + json.dumps(found), flush=True)


def extraction(workers, options):
    import keras
    import numpy as np

    import keras_transfer as kt
    from keras_transfer.data.arrays import Arrays
    from keras_transfer.data.examples import Examples
    from keras_transfer.features.extraction import extract
    from keras_transfer.features.prefix import prefix_of
    from keras_transfer.training.distributed.workers import extract_together

    keras.utils.set_random_seed(0)
    size = options.image_size
    shape = (options.images + 64, size, size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    examples = Examples(Arrays(pixels), np.zeros(len(pixels), "int32"))
    model = kt.build_model(options.backbone, kt.Classification("ab"), weights=None, image_size=size)
    prefix = prefix_of(model, len(model.layers[1].stages))
    warm, measured = np.arange(64), np.arange(64, len(pixels))
    extract(prefix, examples.take(warm), engine="keras")
    examples.digests  # noqa: B018 (of all images, which takes a while, and is no extraction)
    workers.barrier()
    started, busy = time.perf_counter(), time.process_time()
    if workers.distributed:
        extract_together(workers, prefix, examples.take(measured), engine="keras")
    else:
        extract(prefix, examples.take(measured), engine="keras")
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    if workers.distributed:
        busy = max(float(other) for other in workers.gather(str(busy).encode()))
    return {"seconds": seconds, "busy": busy}


def steps(workers, options):
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_transfer as kt
    from keras_transfer.models.acceleration import training_model
    from keras_transfer.models.stages import freeze

    found = {"steps": {}, "trained": {}}
    size, batch = options.image_size, options.batch_size
    for frozen in options.frozen:
        keras.backend.clear_session()
        with workers.scope():
            head = kt.Classification("ab", dropout=0.0)
            model = kt.build_model(options.backbone, head, weights=None, image_size=size)
            freeze(model, f"stage:{frozen}")
            trained = training_model(model, frozen, image_size=size)
            optimizer = keras.optimizers.SGD(1e-3)
            trained.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
            pixels = np.zeros((batch, size, size, 3), "uint8")
            one = tf.data.Dataset.from_tensors((pixels, np.zeros(batch, "int32")))
            stream = one.repeat()
            if workers.distributed:
                workers.prepare(trained, stream)
                stream = workers.stream(stream)
            times = StepTimes()
            trained.fit(stream, steps_per_epoch=options.steps, callbacks=[times.made()], verbose=0)
        found["steps"][frozen] = min(times.seconds[3:])
        weights = trained.trainable_weights
        found["trained"][frozen] = sum(int(np.prod(weight.shape)) for weight in weights)
    return found


class StepTimes:
    """Seconds of each step."""

    def __init__(self):
        self.seconds = []

    def made(self):
        import keras

        outer = self

        class Callback(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                outer.started = time.perf_counter()

            def on_train_batch_end(self, batch, logs=None):
                float((logs or {}).get("loss", 0.0))
                outer.seconds.append(time.perf_counter() - outer.started)

        return Callback()


# -- the measurements -------------------------------------------------------------------------------


def launched(what: str, count: int, arguments: list[str]) -> dict:
    """What the first of `count` workers says."""
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, __file__, what, "--count", str(count), *arguments]
        if count > 1:
            line = [str(HERE / "launch_local.sh"), str(count), *line]
        env = {**os.environ, "KERAS_TRANSFER_CACHE": folder, "PYTHON": sys.executable}
        if count == 1:
            env.pop("TF_CONFIG", None)
        done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=900)
    for text in done.stdout.splitlines():
        if "RESULT " in text:
            return json.loads(text.partition("RESULT ")[2])
    raise SystemExit(done.stdout[-2000:] + done.stderr[-3000:])


def measure_extraction(options, arguments):
    print(f"load {os.getloadavg()[0]:.2f}, {os.cpu_count()} cores")
    ratios = []
    for turn in range(options.rounds):
        order = (1, 2) if turn % 2 == 0 else (2, 1)
        found = {n: launched("extraction", n, arguments) for n in order}
        ratios.append([found[1][what] / found[2][what] for what in ("seconds", "busy")])
        speeds = {n: options.images / found[n]["seconds"] for n in (1, 2)}
        print(
            f"{options.backbone}, {options.images} images of {options.image_size} px: "
            f"one worker {speeds[1]:.1f}/s, two {speeds[2]:.1f}/s: {ratios[-1][0]:.2f} times; "
            f"of the processor's time {ratios[-1][1]:.2f} times (load {os.getloadavg()[0]:.2f})",
            flush=True,
        )
    middle = [statistics.median(values) for values in zip(*ratios)]
    print(f"median of {options.rounds}: {middle[0]:.2f} times, by processor's time {middle[1]:.2f}")


def measure_steps(options, arguments):
    print(f"load {os.getloadavg()[0]:.2f}, {os.cpu_count()} cores")
    found = {n: launched("steps", n, arguments) for n in sorted({1, *options.workers})}
    alone, cores = found[1], len(os.sched_getaffinity(0))
    print("| frozen | MB a step | workers | step, ms | efficiency |\n|---:|---:|---:|---:|---:|")
    for frozen in map(str, options.frozen):
        for n in sorted({1, *options.workers}):
            seconds = found[n]["steps"][frozen]
            efficiency = alone["steps"][frozen] * -(-n // cores) / seconds
            megabytes = 4 * alone["trained"][frozen] / 1e6
            print(
                f"| {frozen} | {megabytes:.2f} | {n} | {1e3 * seconds:.0f} | {100 * efficiency:.0f} % |"
            )
    print(f"load {os.getloadavg()[0]:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("extraction", "steps"))
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--frozen", type=int, nargs="+", default=[0, 9, 18])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)  # in a worker
    options = parser.parse_args()
    if options.count:
        worker(options.what, options)
        return
    given = sys.argv[2:]
    {"extraction": measure_extraction, "steps": measure_steps}[options.what](options, given)


if __name__ == "__main__":
    main()
