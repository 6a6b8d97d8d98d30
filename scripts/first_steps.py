"""Measure what the first 100 steps after the closed-form head do to validation accuracy, one change at a time.

    KERAS_HOME=… KERAS_TRANSFER_DATA=… python scripts/first_steps.py [--dataset clothing] [--taps all last]
                 [--seeds 3] [--csv docs/first_steps.csv] [--out docs/first_steps.png] [--table]

Each variant starts from the same head and trains all weights with the package's own network, optimizer and
batches. The images are those of `train/` of a tuning dataset (`accuracy_data.py`): a share of them, drawn
by the seed, is held out and measured every 10 steps; the dataset's test split is never read. The shapes
of the rates are those of the whole phase, of which these are the first steps. The base is AdamW at 3e-4
with a warm-up of a fifth of the phase, gradients clipped at norm 1, BatchNorm frozen and light augmentation.

A row is written after each run; rows that are there are skipped, so a later call continues.
"""

import argparse
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from accuracy import present_commit
from accuracy_data import DATASETS, materialize
from rows import Rows

STEPS, EVERY, NORMS, BATCH = 100, 10, 5, 32
HELD_OUT = (
    0.4  # of the images: with the usual 0.2, the error of an accuracy hides a drop of some points
)
WEIGHTS: str | None = "imagenet"
BASE = dict(learning_rate=3e-4, warmup=0.2, clip_norm=1.0, batch_norm="frozen")
# Variant → fields of `Phase`. The recipe's own phase is taken as `lp_ft` makes it.
VARIANTS: dict[str, dict] = {
    "base": {},
    "rate 1e-3": {"learning_rate": 1e-3},
    "rate 1e-4": {"learning_rate": 1e-4},
    "warm-up 0": {"warmup": 0.0},
    "warm-up 0.5": {"warmup": 0.5},
    "no clipping": {"clip_norm": None},
    "BatchNorm trained": {"batch_norm": "train"},
    "no augmentation": {"augment": "none"},
    "head rate × 0.1": {"rates": {"head": 0.1}},
    "lowest_rate 0.05": {"lowest_rate": 0.05},
    "epsilon 1e-3": {"optimizer_options": {"epsilon": 1e-3}},
    "beta_2 0.99": {"optimizer_options": {"beta_2": 0.99}},
    "SGD 3e-3": {"optimizer": "sgd", "optimizer_options": {"momentum": 0.9}, "learning_rate": 3e-3},
    "EMA 0.98": {"ema": 0.98},
    "recipe lp_ft": {},
}
DRAWN = ("base", "rate 1e-3", "rate 1e-4", "warm-up 0", "SGD 3e-3", "EMA 0.98", "recipe lp_ft")
KEY = ("dataset", "backbone", "taps", "image_size", "variant", "seed")
SERIES = ("accuracy", "loss", "rate", "gradient_norm")
FIELDS = (*KEY, "train_images", "phase_steps", *SERIES, "commit")


@dataclass(frozen=True)
class Setting:
    """What the variants are compared on; its fields are the first of KEY."""

    dataset: str
    backbone: str
    taps: str
    image_size: str

    def key(self, variant: str, seed: int) -> dict[str, str]:
        return {**vars(self), "variant": variant, "seed": str(seed)}


def measure(setting: Setting, missing: list[tuple[str, int]], folder: Path, write) -> None:
    """Run the missing variants of a setting.

    Args:
        missing: pairs (variant, seed).
        folder: of the images, `folder/<class>/`.
        write: called with (variant, seed, numbers) after each run.
    """
    import keras_transfer as kt

    rule = {"val_split": HELD_OUT, "groups": DATASETS[setting.dataset].group}
    seeds = sorted({seed for _, seed in missing})
    data = {s: kt.data.from_directory(folder, progress=False, seed=s, **rule) for s in seeds}
    model = kt.build_model(
        setting.backbone,
        kt.Classification(data[seeds[0]].class_names),
        image_size=int(setting.image_size),
        taps=setting.taps,
        weights=WEIGHTS,
    )
    pretrained, starts = model.get_weights(), {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in seeds:
            model.set_weights(pretrained)
            head = kt.Trainer(
                model,
                "feature_extraction",
                augment=_light(setting),
                keep="last",
                refit="never",  # validation measures what follows
                seed=seed,
            )
            head.fit(data[seed], Path(scratch) / str(seed))
            starts[seed] = model.get_weights()
    for variant in VARIANTS:
        mine = [seed for name, seed in missing if name == variant]
        if mine:
            _run(setting, variant, model, {s: (data[s], starts[s]) for s in mine}, write)


def _light(setting):
    from keras_transfer.modalities.image.augment import AUGMENTATIONS

    return replace(AUGMENTATIONS["light"], flip=DATASETS[setting.dataset].mirror)


def phase_of(variant: str, examples: int):
    """Return the phase of a variant, with its real length."""
    from keras_transfer.schedules.phases import Phase
    from keras_transfer.schedules.recipes import default_epochs, lp_ft

    if variant == "recipe lp_ft":
        return lp_ft(examples).phases[-1]
    return Phase("all", "none", default_epochs(examples), **{**BASE, **VARIANTS[variant]})


def _run(setting, variant, model, by_seed, write):
    """Measure a variant with each seed; the network is compiled once."""
    from keras_transfer.data.memory import ImageMemory
    from keras_transfer.models.acceleration import jit_compile, training_model
    from keras_transfer.models.builders import compile_arguments, heads_of
    from keras_transfer.models.framing import framing_of
    from keras_transfer.models.stages import freeze, quick_statistics
    from keras_transfer.schedules.plans import make_optimizer
    from keras_transfer.schedules.rates import rate_of
    from keras_transfer.training.checkpoint import SwapAverages
    from keras_transfer.training.weights import assign, collect, reseed
    from keras_transfer.utils.global_state import seeded

    examples = len(next(iter(by_seed.values()))[0].examples["train"])
    phase = phase_of(variant, examples)
    steps = phase.epochs * -(-examples // BATCH)
    freeze(model, "none", batch_norm=phase.batch_norm)
    network = training_model(model, 0, fold=phase.batch_norm == "frozen")
    optimizer = make_optimizer(model, phase, steps, network.trainable_variables)
    network.compile(optimizer, **compile_arguments(heads_of(model)), jit_compile=jit_compile())
    optimizer.build(network.trainable_variables)
    norm = _recorded_norm(optimizer)
    fresh = collect(optimizer.variables, "optimizer")
    rates = [float(rate_of(phase, steps)(step)) for step in range(0, STEPS + 1, EVERY)]
    for seed, (data, start) in by_seed.items():
        model.set_weights(start)
        assign(optimizer.variables, fresh, "optimizer")
        augment = _light(setting) if phase.augment is None else phase.augment
        options = {"image_size": framing_of(model), "batch_size": BATCH}
        memory = ImageMemory(1 << 28)
        stream = data.batches(
            "train", training=True, augment=augment, seed=seed, memory=memory, **options
        )
        held = [np.concatenate(part) for part in zip(*data.batches("val", **options))]
        check = partial(
            network.evaluate, *held, batch_size=len(held[0]), return_dict=True, verbose=0
        )
        norms = []
        reseed(model, seed, 0)  # dropout: the same draws for every variant
        with seeded(seed), quick_statistics(model):
            found = [check()]  # there are no averages yet
            for step, (images, labels) in enumerate(stream.take(STEPS), 1):
                network.train_on_batch(images, labels)
                if step <= NORMS:
                    norms.append(float(norm))
                if step % EVERY == 0:
                    found.append(check(callbacks=[SwapAverages()] if phase.ema else []))
        columns = ([f["accuracy"] for f in found], [f["loss"] for f in found], rates, norms)
        numbers = {n: " ".join(f"{v:.4g}" for v in c) for n, c in zip(SERIES, columns)}
        write(variant, seed, {"train_images": examples, "phase_steps": steps, **numbers})


def _recorded_norm(optimizer):
    """Return a variable that holds the norm of the last step's gradient, before clipping."""
    import tensorflow as tf

    norm, apply = tf.Variable(0.0), optimizer.apply

    def recording(gradients, trainable_variables=None):
        norm.assign(tf.linalg.global_norm([tf.convert_to_tensor(g) for g in gradients]))
        return apply(gradients, trainable_variables)

    optimizer.apply = recording
    return norm


# -- the table and the plot -----------------------------------------------------------------------


def series(rows: list[dict], name: str) -> np.ndarray:
    """Return a series of some rows, [rows, values]."""
    return np.array([[float(value) for value in row[name].split()] for row in rows])


def by_setting(rows: list[dict]) -> dict[Setting, dict[str, list[dict]]]:
    """Return setting → variant, in the order of VARIANTS → its rows, one for each seed."""
    found: dict[Setting, dict[str, list[dict]]] = {}
    for variant in VARIANTS:
        for row in rows:
            if row["variant"] == variant:
                setting = Setting(*(row[name] for name in KEY[:4]))
                found.setdefault(setting, {}).setdefault(variant, []).append(row)
    return found


def table(rows: list[dict]) -> str:
    """Return a Markdown table for each setting.

    Accuracies in percent are means over the seeds. "Lowest" is the mean of each seed's lowest accuracy
    after step 0, and "drop" that of its difference from step 0 in points, with the standard error over the
    seeds. The norm is that of the gradient in the first five steps.
    """
    shown = [step for step in (0, 10, 30, 100) if step <= STEPS]
    heads = ["variant", *(f"step {s}" for s in shown), "lowest", "drop", "loss at 0"]
    heads += ["highest loss", f"loss at {STEPS}", "gradient norm", "seeds"]
    parts = []
    for setting, variants in by_setting(rows).items():
        lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
        for variant, mine in variants.items():
            accuracy, loss = 100 * series(mine, "accuracy"), series(mine, "loss")
            lowest = accuracy[:, 1:].min(axis=1)
            cells = [
                variant,
                *(f"{accuracy[:, step // EVERY].mean():.1f}" for step in shown),
                f"{lowest.mean():.1f}",
                mean_and_error(accuracy[:, 0] - lowest),
                *(f"{x.mean():.3f}" for x in (loss[:, 0], loss[:, 1:].max(axis=1), loss[:, -1])),
                f"{series(mine, 'gradient_norm').mean():.2f}",
                str(len(mine)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        name = f"{setting.dataset}, `{setting.backbone}` at {setting.image_size} px"
        parts.append(f"**{name}, `--taps {setting.taps}`**\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def mean_and_error(values: np.ndarray) -> str:
    """Return the mean, with its standard error if there are several values."""
    text = f"{values.mean():.1f}"
    if len(values) > 1:
        text += f" ± {values.std(ddof=1) / np.sqrt(len(values)):.1f}"
    return text


def draw(rows: list[dict], path: Path) -> None:
    """Plot accuracy and rate over the steps into a PNG file, a row of two panels for each setting."""
    from matplotlib.figure import Figure

    from keras_transfer.utils.files import write_file

    settings = by_setting(rows)
    figure = Figure(figsize=(9, 3.4 * len(settings)), layout="constrained")
    panels = figure.subplots(len(settings), 2, squeeze=False)
    for (setting, variants), (left, right) in zip(settings.items(), panels):
        for variant in (name for name in DRAWN if name in variants):
            accuracy = 100 * series(variants[variant], "accuracy").mean(axis=0)
            left.plot(EVERY * np.arange(len(accuracy)), accuracy, label=variant)
            rate = series(variants[variant], "rate").mean(axis=0)
            right.plot(EVERY * np.arange(len(rate)), rate, label=variant)
        title = f"{setting.dataset}, taps {setting.taps}: held-out accuracy in %"
        left.set(xlabel="step", title=title)
        right.set(xlabel="step", title="learning rate", yscale="log")
        right.legend(fontsize=7)
    write_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=90))


def main(arguments: list[str] | None = None) -> int:
    tuning = [name for name, dataset in DATASETS.items() if dataset.half == "tuning"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="clothing", choices=tuning)
    parser.add_argument("--backbone", default="mobilenet_v2_0.35")
    parser.add_argument("--taps", nargs="+", default=["all", "last"], choices=("all", "last"))
    parser.add_argument("--image-size", default="128")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--csv", type=Path, default=Path("docs/first_steps.csv"))
    parser.add_argument("--out", type=Path, default=Path("docs/first_steps.png"))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "accuracy")
    parser.add_argument("--table", action="store_true", help="table and plot only; train nothing")
    args = parser.parse_args(arguments)
    results = Rows(args.csv, FIELDS)
    commit = present_commit()
    for taps in () if args.table else args.taps:
        setting = Setting(args.dataset, args.backbone, taps, args.image_size)
        pairs = [(variant, seed) for variant in args.variants for seed in range(args.seeds)]
        missing = [pair for pair in pairs if not results.contains(setting.key(*pair))]
        if missing:
            args.work.mkdir(parents=True, exist_ok=True)
            folder = materialize(args.dataset, "full", 0, args.work) / "train"

            def write(variant, seed, numbers, setting=setting):
                results.write({**setting.key(variant, seed), **numbers, "commit": commit})

            measure(setting, missing, folder, write)
    if results.rows:
        print(table(results.rows))
        draw(results.rows, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
