"""Images a second of a ResNet-50 training step on a GPU: Keras on JAX beside PyTorch.

    python scripts/gpu_step_times.py [--batch-size 128] [--rounds 5]

Each framework and number format runs in a process of its own, one after the other and `--rounds`
times in turn, with random images of 224 px on the device, SGD with momentum, and BatchNorm in
training mode on both sides. PyTorch runs channels-last, with autocast for bfloat16. `tf32` is
float32 with TF32 matrix products. Prints the median of the rounds, their spread, the peak of the
device's memory, and the ratio to PyTorch in the same format. Without a GPU it runs on the CPU, where
it serves as a test of itself (`--batch-size 2 --steps 1`).
"""

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

FORMATS = ("float32", "tf32", "bfloat16")


def measure(step, sync, batch_size: int, steps: int) -> float:
    """Images a second, after two steps to compile and warm up."""
    for _ in range(2):
        step()
    sync()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    sync()
    return batch_size * steps / (time.perf_counter() - started)


def on_keras(form: str, batch_size: int, steps: int) -> dict:
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import keras

    from keras_transfer.models.builders import build_model
    from keras_transfer.models.heads import Classification
    from keras_transfer.models.stages import freeze

    if form == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    else:
        precision = "highest" if form == "float32" else "tensorfloat32"
        jax.config.update("jax_default_matmul_precision", precision)
    head = Classification([str(i) for i in range(1000)], dropout=0.0)
    model = build_model("resnet50", head, weights=None)
    freeze(model, "none", batch_norm="train")
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), head.loss(), jit_compile=True)
    rng = np.random.default_rng(0)
    images = jax.device_put(rng.integers(0, 256, (batch_size, 224, 224, 3)).astype("uint8"))
    labels = jax.device_put(rng.integers(0, 1000, batch_size))
    # The compiled step itself, as `fit` calls it, without reading the loss after each.
    model.optimizer.build(model.trainable_variables)
    model._symbolic_build(data_batch=(images, labels))
    model.make_train_function()
    state = [
        [v.value for v in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    ]

    def step():
        nonlocal state
        _, state = model.train_function(tuple(state), iter([(images, labels)]))

    speed = measure(step, lambda: jax.block_until_ready(state), batch_size, steps)
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return {"images_per_second": speed, "memory": memory, "device": str(jax.devices()[0])}


def on_torch(form: str, batch_size: int, steps: int) -> dict:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = form == "tf32"
    torch.backends.cudnn.benchmark = True
    model = torch_resnet50().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    loss_of = torch.nn.CrossEntropyLoss()
    rng = np.random.default_rng(0)
    raw = torch.from_numpy(rng.integers(0, 256, (batch_size, 3, 224, 224)).astype("uint8"))
    raw = raw.to(device, memory_format=torch.channels_last)
    labels = torch.from_numpy(rng.integers(0, 1000, batch_size)).to(device)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=form == "bfloat16"):
            loss = loss_of(model(raw.float() / 127.5 - 1.0), labels)
        loss.backward()
        optimizer.step()

    def sync():
        if device == "cuda":
            torch.cuda.synchronize()

    speed = measure(step, sync, batch_size, steps)
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return {"images_per_second": speed, "memory": memory, "device": device}


def torch_resnet50():
    """ResNet-50 (arXiv:1512.03385) as torchvision has it, which need not be installed."""
    from torch import nn

    def conv(inputs, outputs, kernel, stride=1, relu=True):
        layers = [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))

    class Block(nn.Module):
        def __init__(self, inputs, width, stride):
            super().__init__()
            outputs = 4 * width
            self.main = nn.Sequential(
                conv(inputs, width, 1),
                conv(width, width, 3, stride),
                conv(width, outputs, 1, relu=False),
            )
            same = inputs == outputs and stride == 1
            self.short = nn.Identity() if same else conv(inputs, outputs, 1, stride, relu=False)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(self.main(x) + self.short(x))

    layers, inputs = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
    for i, (width, count) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3))):
        for j in range(count):
            layers.append(Block(inputs, width, 2 if i and not j else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs=2, metavar=("FRAMEWORK", "FORMAT"), help="one measurement")
    options = parser.parse_args()
    if options.only:
        framework, form = options.only
        run = {"keras": on_keras, "torch": on_torch}[framework]
        print(json.dumps(run(form, options.batch_size, options.steps)))
        return
    found = {}
    for _ in range(options.rounds):
        for form in FORMATS:
            for framework in ("keras", "torch"):
                command = [sys.executable, __file__, "--only", framework, form]
                command += ["--batch-size", str(options.batch_size), "--steps", str(options.steps)]
                answer = subprocess.run(command, capture_output=True, text=True)
                if answer.returncode:
                    print(f"{framework} {form} failed: {answer.stderr.strip()[-300:]}", flush=True)
                    continue
                result = json.loads(answer.stdout.splitlines()[-1])
                found.setdefault((framework, form), []).append(result)
    for form in FORMATS:
        peer = np.median(
            [r["images_per_second"] for r in found.get(("torch", form), [])] or [np.nan]
        )
        for framework in ("keras", "torch"):
            results = found.get((framework, form), [])
            if not results:
                continue
            speeds = np.array([r["images_per_second"] for r in results])
            print(
                f"{form:<10}{framework:<7}{np.median(speeds):>9.1f} images/s (from "
                f"{speeds.min():.1f} to {speeds.max():.1f}), peak {results[0]['memory'] / 2**30:.2f} "
                f"GiB, {np.median(speeds) / peer:.2f} of PyTorch, {results[0]['device']}"
            )


if __name__ == "__main__":
    main()
