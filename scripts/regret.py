"""What following the advice costs in accuracy, against having tried everything.

    KERAS_HOME=… KERAS_TRANSFER_DATA=… python scripts/regret.py [TASK…] [--seeds 1 2]
                 [--what grid evidence classical bit] [--rows FILE.csv] [--table]

For each task of `tasks.py` and each seed

grid        head only, two thirds and one third of the stages frozen, LP-FT of all, and from scratch,
            with the two backbones whose real weights are at hand, each with the defaults of its
            recipe;
classical, evidence  what `--backbone auto --strategy auto` does with that policy, from nothing: its
            looking around is part of its time;
bit         the BiT-HyperRule: 500 updates from a head of zeros, in batches of 64 rather than 512.

are trained on the training images and measured on the test images in the last epoch, so that
nothing is chosen on them. The regret of a choice is the best accuracy in the grid, picked after the
fact with the test images, less its own. Image size and augmentation are those of the task for all.
Times are seconds of processor time, which other work on the machine does not change much; `auto`'s
include the advice and the race, and start with an empty cache, as the grid does.

A row is written after each run, so that an interrupted table goes on; what is there already is not
run again, and the table is printed at the end (`--table`: at once). Thresholds of the rules were set
with seed 0, others are reported.
"""

import argparse
import csv
import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tasks import TASKS

import keras_transfer as kt

BACKBONES = ("mobilenet_v2_0.35", "mobilenet_0.25")
CANDIDATES = {
    "head only": ("feature_extraction", {}),
    "freeze 2/3": ("freeze_k", {"k": 2 / 3}),
    "freeze 1/3": ("freeze_k", {"k": 1 / 3}),
    "LP-FT": ("lp_ft", {}),
    "from scratch": ("from_scratch", {}),
}
BIT = ("bit", {"batch_size": 64, "accumulate": 1})
POLICIES = ("evidence", "classical")
# Ways to choose: title in the table, and whose row it is.
WAYS = {
    "evidence": ("`auto`, evidence", "evidence", "auto"),
    "classical": ("`auto`, classical", "classical", "auto"),
    "large": (f"always LP-FT, `{BACKBONES[0]}`", "LP-FT", BACKBONES[0]),
    "small": (f"always LP-FT, `{BACKBONES[1]}`", "LP-FT", BACKBONES[1]),
    "bit": (f"BiT's rule, `{BACKBONES[0]}`", "BiT", BACKBONES[0]),
}
FIELDS = ("task", "seed", "what", "backbone", "accuracy", "cpu", "seconds", "choice")


@contextmanager
def cache_of_its_own():
    """An empty cache for each way to choose, which the runs of the grid share among them."""
    before = os.environ.get("KERAS_TRANSFER_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KERAS_TRANSFER_CACHE"] = folder
        yield
    os.environ.pop("KERAS_TRANSFER_CACHE")
    if before is not None:
        os.environ["KERAS_TRANSFER_CACHE"] = before


def fitted(task, data, backbone, recipe, overrides, seed, **options) -> float:
    """Accuracy on the test images after the last epoch."""
    import keras

    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model = kt.build_model(
        backbone,
        kt.Classification(data.class_names),
        image_size=task.image_size,
        weights=None if recipe == "from_scratch" else "imagenet",
    )
    settings = {"augment": task.augment, "seed": seed, "keep": "last", **options}
    trainer = kt.Trainer(model, recipe, overrides=overrides, **settings)
    with tempfile.TemporaryDirectory() as out:
        return trainer.fit(data, Path(out) / "run").metrics["val"]["accuracy"]


def runs_of(task, data, seed, what):
    """(name, backbone, what trains it: () → accuracy or (accuracy, choice)) of one way to choose."""
    if what == "grid":
        for name, (recipe, overrides) in CANDIDATES.items():
            for backbone in BACKBONES:
                yield (
                    name,
                    backbone,
                    lambda b=backbone, r=recipe, o=overrides: fitted(task, data, b, r, o, seed),
                )
    elif what == "bit":
        recipe, overrides = BIT
        yield (
            "BiT",
            BACKBONES[0],
            lambda: fitted(task, data, BACKBONES[0], recipe, overrides, seed),
        )
    else:
        yield what, "auto", lambda: advised(task, data, seed, what)


def advised(task, data, seed, policy):
    """(accuracy, what was chosen) of `--backbone auto --strategy auto`."""
    from keras_transfer.advisor.auto import decide, training_function

    def build(backbone):
        import keras

        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        head = kt.Classification(data.class_names)
        return kt.build_model(backbone, head, image_size=task.image_size)

    choice, _ = decide(
        data,
        training_function(build, augment=task.augment, seed=seed),
        backbones=BACKBONES,
        policy=policy,
        image_size=task.image_size,
        seed=seed,
    )
    accuracy = fitted(task, data, choice.backbone, choice.strategy, choice.overrides, seed)
    return accuracy, str(choice)


def measure(task, seed, what, done, write):
    with cache_of_its_own():
        data = task.data(seed)
        for name, backbone, train in runs_of(task, data, seed, what):
            key = {"task": task.name, "seed": str(seed), "what": name, "backbone": backbone}
            if any(key.items() <= row.items() for row in done):
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            found = train()
            accuracy, choice = found if isinstance(found, tuple) else (found, "")
            numbers = {
                "accuracy": f"{accuracy:.4f}",
                "cpu": f"{time.process_time() - cpu:.1f}",
                "seconds": f"{time.perf_counter() - wall:.1f}",
                "choice": choice,
            }
            write({**key, **numbers})


def table(rows) -> str:
    """Markdown: accuracy of each way to choose, with its regret; means over the seeds of a task."""
    tasks = [name for name in TASKS if any(row["task"] == name for row in rows)]
    titles = [title for title, *_ in WAYS.values()]
    lines = ["| task | best of the grid | " + " | ".join(titles) + " |"]
    lines.append("|---|---|" + "---|" * len(WAYS))
    regrets = {way: [] for way in WAYS}
    spent = {way: [] for way in WAYS}  # (seconds, those of the grid)
    for task in tasks:
        found = {way: [] for way in WAYS}
        bests = []
        for seed in sorted({row["seed"] for row in rows if row["task"] == task}):
            mine = [row for row in rows if row["task"] == task and row["seed"] == seed]
            grid = [row for row in mine if row["what"] in CANDIDATES]
            best = max(grid, key=lambda row: float(row["accuracy"]))
            bests.append(best)
            for way in WAYS:
                for row in (row for row in mine if _is(row, way)):
                    regret = float(best["accuracy"]) - float(row["accuracy"])
                    found[way].append((float(row["accuracy"]), regret))
                    whole = sum(float(row["cpu"]) for row in grid)
                    spent[way].append((float(row["cpu"]), whole))
        names = ", ".join(dict.fromkeys(f"{row['what']} `{row['backbone']}`" for row in bests))
        cells = [f"{100 * np.mean([float(row['accuracy']) for row in bests]):.1f} ({names})"]
        for way in WAYS:
            if not found[way]:
                cells.append("–")
                continue
            accuracy, regret = np.mean(found[way], axis=0)
            regrets[way].append(regret)
            gain = round(-100 * regret, 1)
            cells.append(f"{100 * accuracy:.1f} ({f'{gain:+.1f}' if gain else '0.0'})")
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    summaries = {
        "**mean regret**": lambda way: f"**{100 * np.mean(regrets[way]):.2f}**",
        "the same, gains counted as 0": lambda way: _points(np.mean(np.maximum(regrets[way], 0))),
        "worst": lambda way: _points(np.max(regrets[way])),
        "share of the grid's time": lambda way: (
            f"{100 * np.divide(*np.sum(spent[way], axis=0)):.0f} %"
        ),
    }
    for name, cell in summaries.items():
        cells = [cell(way) if regrets[way] else "–" for way in WAYS]
        lines.append(f"| {name} | | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _points(share):
    return f"{100 * share:.2f}"


def _is(row, way):
    return (row["what"], row["backbone"]) == WAYS[way][1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=list(TASKS), metavar="TASK")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--what", nargs="+", default=["grid", *POLICIES, "bit"])
    parser.add_argument("--rows", type=Path, default=Path("regret.csv"))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    done = list(csv.DictReader(options.rows.open())) if options.rows.exists() else []
    if options.table:
        print(table(done))
        return
    with options.rows.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if not done:
            writer.writeheader()

        def write(row):
            done.append(row)
            writer.writerow(row)
            file.flush()
            print(" ".join(f"{value}" for value in row.values()), flush=True)

        for seed in options.seeds:
            for name in options.tasks:
                for what in options.what:
                    measure(TASKS[name], seed, what, done, write)
    print(table(done))


if __name__ == "__main__":
    main()
