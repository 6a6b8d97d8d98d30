"""Measure the gain of each domain adaptation method on the pairs of domains in `domains.py`.

    KERAS_HOME=… KERAS_TRANSFER_DATA=… python scripts/adaptation_benchmark.py [TASK…]
                 [--methods mcc dann mcc+dann …] [--seeds 0 1 2] [--epochs N] [--rows FILE.csv] [--table]

Prints a Markdown table of all tasks, then one per task (`--table`: without training). For each task
and seed it trains the same network with the same optimizer and number of steps:

source_only   on the labeled source alone;
a method      of `keras_transfer.adaptation.METHODS`, or several joined by "+";
target_only   on the labeled target: the upper bound.

Accuracies are measured on the target's test images after the last epoch. `selected` is the epoch that
`Selector` chooses without target labels; `oracle` is the best epoch according to the test labels, which
are unavailable in practice. The share of the gap is (method − source only) / (target only − source
only). Times cover the training steps without the first epoch, which compiles, and without evaluation.
Other work on the machine affects them; use `--cost ROUNDS` to compare times: it runs a few steps of
each method in turn in one process and trains nothing to the end.

AdaBN alone starts from the model of `source_only`. SHOT starts from `shot_source`, trained on the source
as in its paper: with BatchNorm in the bottleneck and label smoothing. Both models are saved next to the
rows. Methods that need BatchNorm are omitted if the network has none. A row is written after each
run, and an interrupted benchmark resumes.
"""

import argparse
import time
from functools import partial
from itertools import product
from pathlib import Path

import keras
import numpy as np
from domains import TASKS, pixels
from rows import Rows

from keras_transfer.utils.console import progress_bar, silence

METHODS = (
    *("coral", "mmd", "dann", "cdan", "cdan_e", "mcc", "fixmatch", "adabn", "shot_source", "shot"),
    *("mcc+dann", "fixmatch+dann"),
)
BOUNDS = ("source_only", "target_only")
# Models trained on the source alone → options of their heads.
SOURCES = {"source_only": {}, "shot_source": {"bottleneck": 256, "label_smoothing": 0.1}}
NEED_NORMS = ("adabn", "shot_source", "shot")
WITH_DISCRIMINATOR = ("dann", "cdan", "cdan_e")
MOST_UNLABELLED = 2000  # target images used for the selection
NUMBERS = (
    *("target", "selected", "oracle", "source"),  # accuracies
    *("selected_epoch", "oracle_epoch", "step_ms", "step_cpu_ms", "seconds"),
)
FIELDS = ("task", "seed", "epochs", "method", *NUMBERS)


class Trial:
    """One task with one seed: its images as arrays, and the trainings on them.

    Args:
        epochs: passes over the longer of the two training sets.
        folder: where source models are saved.
    """

    def __init__(self, task, seed: int, epochs: int, folder: Path):
        self.task, self.seed = task, seed
        self.reference = None  # accuracy of `source_only` on the source's validation images
        self.phase = task.phase(epochs)
        self.domains = task.domains()
        source, target = self.domains.source.examples, self.domains.target.examples
        self.source, self.validation = pixels(source["train"]), pixels(source["val"])
        self.target, self.test = pixels(target["train"]), pixels(target["test"])
        # The same number for all trainings, including the bounds.
        longest = max(len(self.source[0]), len(self.target[0]))
        self.steps = longest // task.batch_size
        self.folder = folder

    def run(self, method: str) -> dict:
        """Train with a method or a bound; return the measurements, or {} if the method does not suit the
        network.
        """
        started = time.perf_counter()
        names = method.split("+")
        target = self.unlabelled(names)
        if method in NEED_NORMS and not _norms(self.new_model()):
            return {}
        if method == "adabn":
            from keras_transfer.adaptation import apply_adabn

            model = self.source_model("source_only")
            choice = self.choice(model, sourceless=True)
            apply_adabn(model, target)
            found = _accuracies(choice, choice.measure(1)["val_accuracy"])
        elif method == "shot":
            found = self.fit(self.source_model("shot_source"), [method], target=target)
        elif method in SOURCES:
            model = self.new_model(**SOURCES[method])
            found = self.fit(model, [], self.batches(*self.source))
            self.folder.mkdir(parents=True, exist_ok=True)
            model.save_weights(self._weights(method))
        elif method == "target_only":
            found = self.fit(self.new_model(), [], self.batches(*self.target))
        else:
            found = self.fit(self.new_model(), names, self.batches(*self.source), target)
        return {**found, "seconds": time.perf_counter() - started}

    def new_model(self, **head):
        keras.backend.clear_session()
        keras.utils.set_random_seed(self.seed)
        return self.task.build(self.domains, **head)

    def source_model(self, name):
        """Return a model with the weights of one of `SOURCES`, and train it first if necessary."""
        if not self._weights(name).exists():
            self.run(name)
        model = self.new_model(**SOURCES[name])
        model.load_weights(self._weights(name))
        return model

    def _weights(self, name):
        ending = "" if name == "source_only" else f"-{name}"
        return self.folder / f"{self.task.name}-{self.seed}-{self.phase.epochs}{ending}.weights.h5"

    def adapter(self, model, methods):
        """Return the `Adapter`, compiled for all epochs."""
        from keras_transfer.adaptation import Adapter

        chosen = [_configured(name, self.task) for name in methods]
        adapter = Adapter(model, chosen, seed=self.seed)
        adapter.compile(adapter.make_optimizer(self.phase, self.phase.epochs * self.steps))
        return adapter

    def fit(self, model, methods, source=None, target=None) -> dict:
        clock, choice = Clock(), self.choice(model, sourceless=source is None)
        history = self.adapter(model, methods).fit(
            source,
            target,
            epochs=self.phase.epochs,
            steps_per_epoch=self.steps,
            callbacks=[clock, choice],
            verbose=0,
        )
        source_accuracy = history.history["val_accuracy"][-1]
        return {**_accuracies(choice, source_accuracy), **clock.step(self.steps)}

    def choice(self, model, sourceless: bool):
        """Return the selector that scores epochs without labels and, for the table, with labels."""
        from keras_transfer.adaptation import EpochChoice

        classes = len(self.domains.source.class_names)
        return EpochChoice(
            model,
            _chunks(self.target[0][:MOST_UNLABELLED]),
            np.bincount(self.source[1], minlength=classes),
            source=_chunks(*self.validation),
            sourceless=sourceless,
            target_report=_chunks(*self.test),
            source_accuracy=self.reference,
            verbose=False,
        )

    def batches(self, images, labels=None, size: int | None = None):
        """Return one shuffled pass over images, with or without labels."""
        import tensorflow as tf

        parts = images if labels is None else (images, labels)
        # In different orders, because both domains consist of the same digits.
        seed = 2 * self.seed + (labels is None)
        made = tf.data.Dataset.from_tensor_slices(parts).shuffle(len(images), seed=seed)
        return made.batch(size or self.task.batch_size, drop_remainder=True)

    def unlabelled(self, methods):
        """Return batches of the target in the form that the methods need."""
        return self.two_views() if "fixmatch" in methods else self.batches(self.target[0])

    def two_views(self):
        """Return (images, the same images strongly augmented) as one batch, for FixMatch."""
        import tensorflow as tf

        vary = self.task.strong(self.seed)

        def both(images):
            varied = vary(tf.cast(images, "float32"), training=True)
            return images, tf.cast(varied, images.dtype)

        return self.batches(self.target[0], size=self.task.batch_size // 2).map(both).prefetch(2)


class Clock(keras.callbacks.Callback):
    """Measure the time of the steps in each epoch, without the work between epochs."""

    def __init__(self):
        super().__init__()
        self.times = []  # (seconds, processor seconds) of each epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.started = self.ended = _clocks()

    def on_train_batch_end(self, batch, logs=None):
        self.ended = _clocks()

    def on_epoch_end(self, epoch, logs=None):
        self.times.append(self.ended - self.started)

    def step(self, steps: int) -> dict:
        """Return milliseconds per step, without the first epoch (compilation) if there are others."""
        later = np.mean(self.times[1:] or self.times, axis=0) / steps
        return dict(zip(("step_ms", "step_cpu_ms"), 1000 * later))


def _accuracies(choice, source):
    s = choice.selector
    return {
        "target": s.target_accuracy(s.last),
        "selected": s.target_accuracy(s.selected),
        "oracle": s.target_accuracy(s.oracle),
        "source": source,
        "selected_epoch": s.selected,
        "oracle_epoch": s.oracle,
    }


def _chunks(*arrays):
    """Yield batches of 500 rows of each array."""
    cuts = range(0, len(arrays[0]), 500)
    parts = [tuple(array[i : i + 500] for array in arrays) for i in cuts]
    return parts if len(arrays) > 1 else [part for (part,) in parts]


def _clocks():
    return np.array([time.perf_counter(), time.process_time()])


def _norms(model):
    from keras_transfer.models.stages import backbone_of, batch_norms

    return batch_norms(backbone_of(model))


def _configured(name, task):
    """Return a method with the settings of the task."""
    from keras_transfer.adaptation import METHODS

    if name in WITH_DISCRIMINATOR:
        return METHODS[name](**task.discriminator)
    return METHODS[name](beta=task.shot_beta) if name == "shot" else METHODS[name]()


# -- tables ---------------------------------------------------------------------------------------


def table(rows: list[dict], task: str) -> str:
    """Return a Markdown table: one row per method, mean over seeds ± standard deviation."""
    mine = _by_method(rows, task)
    lines = [
        f"**{TASKS[task].title}**, {_shown_seeds(mine)}",
        "",
        "| method | target | share of the gap | selected | oracle | source |",
        "|---|---|---|---|---|---|",
    ]
    for method, found in mine.items():
        shares = gap_shares(mine, method)
        cells = [f"`{method}`", _percent(found, "target")]
        cells.append("" if not shares or method in BOUNDS else _mean_spread(shares, " %"))
        chosen = ("selected", "oracle") if method != BOUNDS[1] else ()
        cells += [_percent(found, key) for key in chosen] or ["", ""]
        cells.append(_percent(found, "source"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(rows: list[dict]) -> str:
    """Return a Markdown table of all tasks: one row per method, accuracy on the target and share of
    the gap.
    """
    found = {task: _by_method(rows, task) for task in TASKS}
    found = {task: mine for task, mine in found.items() if mine}
    lines = [
        f"| method | {' | '.join(TASKS[task].title for task in found)} |",
        "|---" * (1 + len(found)) + "|",
    ]
    for method in (BOUNDS[0], *METHODS, BOUNDS[1]):
        cells = [f"`{method}`"]
        for mine in found.values():
            shares = gap_shares(mine, method) if method in mine and method not in BOUNDS else []
            share = f", {np.mean(shares):.0f} %" if shares else ""
            cells.append(_percent(mine[method], "target") + share if method in mine else "–")
        if any(cell != "–" for cell in cells[1:]):
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gap_shares(mine, method) -> list[float]:
    """Return (method − source only) / (target only − source only) in %, for each seed that has
    all three.
    """
    shares = []
    for seed, row in mine[method].items():
        bounds = [mine.get(bound, {}).get(seed) for bound in BOUNDS]
        if all(bounds):
            low, high = (float(bound["target"]) for bound in bounds)
            shares.append(100 * (float(row["target"]) - low) / (high - low))
    return shares


def _by_method(rows, task):
    """Return method → seed → row, with the bounds first and last."""
    order = (BOUNDS[0], *METHODS, BOUNDS[1])
    mine = sorted(
        (row for row in rows if row["task"] == task and row["target"]),
        key=lambda row: (order.index(row["method"]), row["seed"]),
    )
    found = {}
    for row in mine:
        found.setdefault(row["method"], {})[row["seed"]] = row
    return found


def _percent(found, key):
    values = [100 * float(row[key]) for row in found.values() if row[key]]
    missing = len(found) - len(values)
    return _mean_spread(values) + (f" ({missing} vetoed)" if missing else "")


def _mean_spread(values, unit=""):
    if not values:
        return "–"
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else " (1 seed)"
    return f"{np.mean(values):.1f}{unit}{spread}"


def _shown_seeds(mine):
    seeds = sorted({seed for found in mine.values() for seed in found}, key=int)
    epochs = sorted({row["epochs"] for found in mine.values() for row in found.values()}, key=int)
    return f"{len(seeds)} seeds, {' or '.join(epochs)} epochs"


# -- the benchmark --------------------------------------------------------------------------------


def measure(options, results):
    for seed, name in product(options.seeds, options.tasks):
        trial = None
        epochs = options.epochs or TASKS[name].epochs
        for method in (BOUNDS[0], *options.methods, BOUNDS[1]):
            key = _key(name, seed, epochs, method)
            if _row(results.rows, key):
                continue
            trial = trial or Trial(TASKS[name], seed, epochs, options.rows.with_suffix(""))
            before = _row(results.rows, _key(name, seed, epochs, BOUNDS[0]))
            adapts = before and method not in (*BOUNDS, *SOURCES)
            trial.reference = float(before["source"]) if adapts else None
            found = {n: v for n, v in trial.run(method).items() if v is not None}
            shown = {n: f"{v:.4f}" if isinstance(v, float) else v for n, v in found.items()}
            results.write({**dict.fromkeys(NUMBERS, ""), **key, **shown})


def cost(trial, methods, rounds: int, steps: int) -> str:
    """Return a Markdown table: the time per step of each method as a multiple of source only, measured
    in turn.
    """
    fits, times = {}, {}
    for name in (BOUNDS[0], *methods):
        names = [] if name == BOUNDS[0] else name.split("+")
        adapter = trial.adapter(trial.task.build(trial.domains), names)
        source = trial.batches(*trial.source).repeat()
        target = trial.unlabelled(names).repeat() if names else None
        given = {"epochs": 1, "steps_per_epoch": steps, "verbose": 0}
        fits[name] = partial(adapter.fit, source, target, **given)
        fits[name]()  # compiles
        times[name] = []
    for _ in progress_bar(range(rounds), trial.task.name, unit="rounds"):
        for name, fit in fits.items():
            clock = Clock()
            fit(callbacks=[clock])
            times[name].append(1000 * clock.times[0] / steps)
    base = np.array(times.pop(BOUNDS[0]))
    lines = [
        f"**{trial.task.title}**: source_only {np.median(base[:, 0]):.1f} ms a step, the others as multiples",
        "",
        "| method | on the clock: median, least – most | of the processor: the same |",
        "|---|---|---|",
    ]
    for name, found in times.items():
        both = (np.array(found) / base).T
        cells = [f"{np.median(r):.2f}, {r.min():.2f} – {r.max():.2f}" for r in both]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def _key(*values):
    return dict(zip(FIELDS, map(str, values)))


def _row(rows, key):
    return next((row for row in rows if key.items() <= row.items()), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=list(TASKS), metavar="TASK")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rows", type=Path, default=Path("adaptation.csv"))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--cost", type=int, metavar="ROUNDS", help="measure only the time per step")
    parser.add_argument(
        "--steps", type=int, default=20, help="steps per method and round of --cost"
    )
    options = parser.parse_args()
    if options.cost:
        methods = [name for name in options.methods if name not in NEED_NORMS]
        for name in options.tasks:
            with silence():
                trial = Trial(TASKS[name], 0, TASKS[name].epochs, options.rows.with_suffix(""))
                print(f"\n{cost(trial, methods, options.cost, options.steps)}", flush=True)
        return
    results = Rows(options.rows, FIELDS)
    if not options.table:
        with silence():
            measure(options, results)
    print(f"\n{summary(results.rows)}")
    for task in options.tasks:
        if results.contains({"task": task}):
            print(f"\n{table(results.rows, task)}")


if __name__ == "__main__":
    main()
