"""Measure the accuracy lost by following the advice instead of trying everything.

    KERAS_HOME=… KERAS_TRANSFER_DATA=… python scripts/regret.py [TASK…] [--seeds 1 2]
                 [--what grid evidence classical bit] [--rows FILE.csv] [--table]

Prints a Markdown table (`--table`: without training). For each task of `tasks.py` and each seed it trains

grid        the head only, with two thirds and with one third of the stages frozen, LP-FT of all stages,
            and from scratch, with both backbones whose weights are available and default settings;
classical, evidence  the choice of `--backbone auto --strategy auto` with that policy, including the
            time of the choice;
bit         the BiT-HyperRule: 500 updates from a head of zeros, in batches of 64 instead of 512;

on the training images and evaluates the last epoch on the test images, so that nothing is chosen on them.
The regret of a choice is the best accuracy in the grid, selected on the test images, minus its own. Image
size and augmentation are those of the task. Times are seconds of processor time, which other work on
the machine hardly affects; `auto` includes the advice and the race, and starts with an empty cache, as the
grid does.

A row is written after each run, and an interrupted benchmark resumes. The thresholds of the rules were
set with seed 0, so results are reported for others.
"""

import argparse
import os
import tempfile
import time
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
from rows import Rows
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
# Ways to choose: title in the table, and the `what` and backbone of their rows.
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
    """Use an empty cache for each way to choose; the runs of the grid share one."""
    before = os.environ.get("KERAS_TRANSFER_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KERAS_TRANSFER_CACHE"] = folder
        yield
    os.environ.pop("KERAS_TRANSFER_CACHE")
    if before is not None:
        os.environ["KERAS_TRANSFER_CACHE"] = before


def fitted(task, data, backbone, recipe, overrides, seed, **options) -> float:
    """Return the accuracy on the test images after the last epoch."""
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
    """Yield (name, backbone, function that trains and returns accuracy or (accuracy, choice)) for
    one way to choose.
    """
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
    """Return (accuracy, choice) of `--backbone auto --strategy auto`."""
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


def measure(task, seed, what, results):
    with cache_of_its_own():
        data = task.data(seed)
        for name, backbone, train in runs_of(task, data, seed, what):
            key = {"task": task.name, "seed": str(seed), "what": name, "backbone": backbone}
            if results.contains(key):
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
            results.write({**key, **numbers})


def table(rows) -> str:
    """Return a Markdown table: accuracy and regret of each way to choose, means over the seeds of a
    task.
    """
    tasks = [name for name in TASKS if any(row["task"] == name for row in rows)]
    titles = [title for title, *_ in WAYS.values()]
    lines = ["| task | best of the grid | " + " | ".join(titles) + " |"]
    lines.append("|---|---|" + "---|" * len(WAYS))
    regrets = {way: [] for way in WAYS}
    spent = {way: [] for way in WAYS}  # (seconds, seconds of the grid)
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
    results = Rows(options.rows, FIELDS)
    if not options.table:
        for seed, name, what in product(options.seeds, options.tasks, options.what):
            measure(TASKS[name], seed, what, results)
    print(table(results.rows))


if __name__ == "__main__":
    main()
