"""Measure training steps in each number format, and several steps per call.

    python scripts/step_times.py [--backbones mobilenet_v2_0.35 resnet50] [--batch-size 16]

Prints the median, the spread and the ratio to float32. All formats are built first and then run in turn, so
that other work on the machine affects all of them. All weights are trained; BatchNorm is frozen, as in
fine-tuning; images are random, in the backbone's default size.
"""

import argparse
import time

import keras
import numpy as np

from keras_transfer.cli.demo import small_backbone
from keras_transfer.models import PRECISIONS
from keras_transfer.models.acceleration import jit_compile, training_step
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification


def timed(steps: dict, rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds of each function in each round, run in turn."""
    times = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - started)
    return {name: np.array(values) for name, values in times.items()}


def report(title: str, times: dict[str, np.ndarray], images: int) -> None:
    first = np.median(next(iter(times.values())))
    print(title)
    for name, values in times.items():
        middle = np.median(values)
        print(
            f"  {name:<18}{middle * 1e3:>9.1f} ms (from {values.min() * 1e3:.1f} to "
            f"{values.max() * 1e3:.1f})  {images / middle:>8.1f} images/s  "
            f"{middle / first:.2f} of the first",
            flush=True,
        )


def precisions(backbone: str, policies, batch_size: int, rounds: int) -> None:
    steps = {}
    for policy in policies:
        keras.config.set_dtype_policy(policy)
        steps[policy] = training_step(backbone, batch_size=batch_size)
    keras.config.set_dtype_policy("float32")
    title = f"{backbone}, batches of {batch_size}, {keras.backend.backend()}"
    report(title, timed(steps, rounds), batch_size)


def bundles(rounds: int, batch_size: int = 8, count: int = 48) -> None:
    """Measure `steps_per_execution` with the demo's network at 32 px, whose steps are short."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size * count, 32, 32, 3)).astype("uint8")
    labels = np.arange(len(images)) % 2
    steps = {}
    for n in (1, 4, 16):
        model = build_model(small_backbone(), Classification("ab"), image_size=32)
        model.compile(
            "sgd", model.layers[-1].head.loss(), jit_compile=jit_compile(), steps_per_execution=n
        )

        def epoch(model=model):
            model.fit(images, labels, batch_size=batch_size, verbose=0)

        epoch()
        steps[f"{n} steps per call"] = epoch
    title = f"small network of the demo, {count} batches of {batch_size} at 32 px"
    report(title, timed(steps, rounds), len(images))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="*", default=["mobilenet_v2_0.35", "resnet50"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS[1:], default=PRECISIONS[1:])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    bundles(options.rounds)
    for backbone in options.backbones:
        precisions(backbone, options.precisions, options.batch_size, options.rounds)


if __name__ == "__main__":
    main()
