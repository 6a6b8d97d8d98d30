"""What distribution costs, on paper: bytes to sum a step, its time, the efficiency of many workers.

    python scripts/distributed_cost.py [BACKBONE…] [--stages all] [--batch-size 32] [--classes 10]
        [--bandwidth 12.5e9] [--latency 20e-6] [--speed 30e12] [--overlap 0.5]

For each backbone a Markdown table, a row a number of frozen stages. `--speed` is what a device gets
done in training, multiplications with addition a second: an A100 in bfloat16 trains ResNet-50
(4.1e9 an image forward) at about 2500 images a second, which is 30e12. `--bandwidth` is that of
the slowest link in bytes a second (12.5e9 is 100 Gbit/s Ethernet, 1.25e9 is 10 Gbit/s).
"""

import argparse

import keras

from keras_transfer.features.prefix import stage_costs
from keras_transfer.models.sources.applications import build_backbone
from keras_transfer.training.distributed.cost import Link, all_reduce_seconds, steps_of

BACKBONES = ("mobilenet_v2", "resnet50", "vgg16")
WORKERS = (2, 4, 8, 16, 64, 256, 1024)


def sizes_of(backbone) -> list[int]:
    """Parameters of each stage that a phase trains with BatchNorm frozen."""
    return [
        sum(
            int(keras.ops.size(weight))
            for layer in stage.layers
            if not isinstance(layer, keras.layers.BatchNormalization)
            for weight in layer.trainable_weights
        )
        for stage in backbone.stages
    ]


def chosen_stages(count: int, which: str) -> list[int]:
    """All numbers of frozen stages, or none, the quarters and all."""
    if which == "all":
        return list(range(count + 1))
    return sorted({round(count * share) for share in (0, 0.25, 0.5, 0.75, 1)})


def table(name: str, options) -> str:
    """The table of one backbone."""
    backbone = build_backbone(name, weights=None)
    head = (backbone.output_shape[-1] + 1) * options.classes
    steps = steps_of(sizes_of(backbone), stage_costs(backbone), head, options.batch_size)
    link = Link(options.bandwidth, options.latency)
    lines = [
        f"**{name}**, {len(backbone.stages)} stages, {backbone.input_shape[1]} px",
        "",
        "| frozen | MB a step | step, ms | sum over 8, ms | "
        + " | ".join(f"{n}" for n in WORKERS)
        + " |",
        "|" + "---:|" * (4 + len(WORKERS)),
    ]
    for k in chosen_stages(len(backbone.stages), options.stages):
        step = steps[k]
        reached = (step.efficiency(n, link, options.speed, options.overlap) for n in WORKERS)
        lines.append(
            f"| {k} | {step.bytes / 1e6:.2f} | {1e3 * step.seconds(options.speed):.2f} | "
            f"{1e3 * all_reduce_seconds(step.bytes, 8, link):.2f} | "
            + " | ".join(f"{100 * share:.0f} %" for share in reached)
            + " |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbones", nargs="*", default=BACKBONES)
    parser.add_argument("--stages", choices=("some", "all"), default="some")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--bandwidth", type=float, default=12.5e9)
    parser.add_argument("--latency", type=float, default=20e-6)
    parser.add_argument("--speed", type=float, default=30e12)
    parser.add_argument("--overlap", type=float, default=0.5)
    options = parser.parse_args()
    print("\n\n".join(table(name, options) for name in options.backbones))


if __name__ == "__main__":
    main()
