"""Memory and time of a step in which few weights move, against one of full fine-tuning.

    python scripts/partial_training.py --backbone vit_base_patch16_224_imagenet --image-size 176

Each kind of training runs in a process of its own, on random images and random weights. CPU seconds are
those of all threads; memory is how far the largest resident set grows from before the model is compiled
to the end, which also contains what compiling takes. The estimate is that of the plan.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

KINDS = ("all", "lora", "bias", "norm", "head")
# MiniLM-L6's encoder as a ViT, on as many tokens as --image-size gives patches of 16 × 16.
MINILM = dict(patch_size=16, num_layers=6, num_heads=12, hidden_dim=384, mlp_dim=1536)


def measure(kind: str, backbone: str, image_size: int, batch_size: int, steps: int) -> dict:
    """Return the numbers of one kind of training; it takes the memory of this process."""
    import numpy as np

    from keras_transfer.models.acceleration import jit_compile, training_model
    from keras_transfer.models.builders import build_model, compile_arguments, heads_of
    from keras_transfer.models.heads import Classification
    from keras_transfer.schedules.phases import Phase, Schedule
    from keras_transfer.schedules.plans import make_optimizer, make_plan, set_trainable

    source = backbone
    if backbone == "minilm":
        import keras_hub

        shape = (image_size, image_size, 3)
        source = keras_hub.models.ViTBackbone(image_shape=shape, **MINILM)
    model = build_model(source, Classification(("a", "b")), image_size=image_size, weights=None)
    frozen = kind == "head"
    phase = Phase("p", "all" if frozen else "none", steps=steps, train="all" if frozen else kind)
    (planned,) = make_plan(model, Schedule("s", (phase,)), batch_size, batch_size).phases
    set_trainable(model, phase, (0, 0))
    network = training_model(model, planned.frozen)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    optimizer = make_optimizer(model, phase, steps, network.trainable_variables)
    losses = compile_arguments(heads_of(model))
    network.compile(optimizer=optimizer, **losses, jit_compile=jit_compile())
    shape = (batch_size, *network.input_shape[1:])
    images = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    labels = np.zeros(batch_size, "int32")
    network.train_on_batch(images, labels)
    started = time.process_time()
    for _ in range(steps):
        network.train_on_batch(images, labels)
    return {
        "parameters": planned.parameters,
        "estimate": planned.memory / 2**20,
        "memory": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10,
        "seconds": (time.process_time() - started) / steps,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="minilm", help="a name, or minilm: of its shape")
    parser.add_argument("--image-size", type=int, default=176, help="pixels; 176 are 121 tokens")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = (options.image_size, options.batch_size, options.steps)
    if options.kind:
        print(json.dumps(measure(options.kind, options.backbone, *sizes)))
        return
    print("| moves | parameters | estimate, MiB | memory, MiB | CPU seconds a step |")
    print("|---|---:|---:|---:|---:|")
    for kind in KINDS:
        command = [sys.executable, __file__, *sys.argv[1:], "--kind", kind]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(result.stdout.splitlines()[-1])
        print(
            f"| {kind} | {row['parameters']:,} | {row['estimate']:.0f} | {row['memory']:.0f} | "
            f"{row['seconds']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
