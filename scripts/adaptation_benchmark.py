"""What each method of domain adaptation gains on the pairs of `domains.py`.

    KERAS_HOME=… KERAS_TRANSFER_DATA=… python scripts/adaptation_benchmark.py [TASK…]
                 [--methods mcc dann mcc+dann …] [--seeds 0 1 2] [--epochs N] [--rows FILE.csv] [--table]

For each task and each seed of the training the same network, optimizer and number of steps give

source_only   what the labelled source alone makes of it;
a method      of `keras_transfer.adaptation.METHODS`, or several joined by "+";
target_only   what the target's labels would have made of it: the upper bound.

Accuracies are of the target's test pictures after the last epoch; `selected` is the epoch that
`Selector` chooses without a label of the target, `oracle` the best one picked with the test labels,
which nobody can do in earnest. The share of the gap is (method − source only) / (target only − source
only). Times are those of the training steps, without the first epoch (compilation) and without the
measuring; beside the time on the clock, which other work on the machine changes, stands the
processor's.

SHOT and AdaBN alone start from the model of `source_only`, which is kept beside the rows. AdaBN is left
out where the network has no BatchNorm. A row is written after each run, so that an interrupted benchmark
goes on; the tables are printed at the end (`--table`: at once).
"""

import argparse
import csv
import time
from itertools import product
from pathlib import Path

import keras
import numpy as np
from domains import TASKS, pixels

from keras_transfer.errors import silence

METHODS = (
    *("coral", "mmd", "dann", "cdan", "cdan_e", "mcc", "fixmatch", "adabn", "shot"),
    *("mcc+dann", "fixmatch+dann"),
)
BOUNDS = ("source_only", "target_only")
WITH_DISCRIMINATOR = ("dann", "cdan", "cdan_e")
MOST_UNLABELLED = 2000  # target pictures that the selection looks at
NUMBERS = (
    *("target", "selected", "oracle", "source"),  # accuracies
    *("selected_epoch", "oracle_epoch", "step_ms", "step_cpu_ms", "seconds"),
)
FIELDS = ("task", "seed", "epochs", "method", *NUMBERS)


class Trial:
    """One task with one seed: its pictures as arrays, and what trains on them.

    Args:
        epochs: passes over the longer of the two training sets.
        folder: where source models are kept.
    """

    def __init__(self, task, seed: int, epochs: int, folder: Path):
        self.task, self.seed = task, seed
        self.reference = None  # accuracy of `source_only` on the source's validation pictures
        self.phase = task.phase(epochs)
        self.domains = task.domains()
        source, target = self.domains.source.examples, self.domains.target.examples
        self.source, self.validation = pixels(source["train"]), pixels(source["val"])
        self.target, self.test = pixels(target["train"]), pixels(target["test"])
        # One number for all trainings, the bounds too.
        longest = max(len(self.source[0]), len(self.target[0]))
        self.steps = longest // task.batch_size
        self.weights = folder / f"{task.name}-{seed}-{self.phase.epochs}.weights.h5"

    def run(self, method: str) -> dict:
        """Trains with a method or a bound; returns what was measured, or {} where the method does not suit the network."""
        started = time.perf_counter()
        if method == "adabn":
            model = self.source_model()
            if not any(isinstance(x, keras.layers.BatchNormalization) for x in _layers(model)):
                return {}
            from keras_transfer.adaptation import apply_adabn

            record = Record(self, model, sourceless=True)
            apply_adabn(model, self.batches(self.target[0]))
            record.measure(1)
        elif method == "shot":
            model = self.source_model()
            record = self.fit(model, [method], target=self.batches(self.target[0]))
        else:
            model = self.new_model()
            if method == "source_only":
                record = self.fit(model, [], self.batches(*self.source))
                self.weights.parent.mkdir(parents=True, exist_ok=True)
                model.save_weights(self.weights)
            elif method == "target_only":
                record = self.fit(model, [], self.batches(*self.target))
            else:
                names = method.split("+")
                target = self.batches(self.target[0])
                if "fixmatch" in names:
                    target = self.two_views(target)
                record = self.fit(model, names, self.batches(*self.source), target)
        return {**record.numbers(), "seconds": time.perf_counter() - started}

    def new_model(self):
        keras.backend.clear_session()
        keras.utils.set_random_seed(self.seed)
        return self.task.build(self.domains)

    def source_model(self):
        """A model with the weights of `source_only`, which is trained first where it was not yet."""
        if not self.weights.exists():
            self.run("source_only")
        model = self.new_model()
        model.load_weights(self.weights)
        return model

    def fit(self, model, methods, source=None, target=None) -> "Record":
        from keras_transfer.adaptation import Adapter

        chosen = [_configured(name, self.task) for name in methods]
        adapter = Adapter(model, chosen, seed=self.seed)
        epochs = self.phase.epochs
        adapter.compile(adapter.make_optimizer(self.phase, epochs * self.steps))
        record = Record(self, model, sourceless=source is None)
        adapter.fit(
            source,
            target,
            epochs=epochs,
            steps_per_epoch=self.steps,
            callbacks=[record],
            verbose=0,
        )
        return record

    def batches(self, pictures, labels=None):
        """One shuffled pass, of pictures alone or with their labels."""
        import tensorflow as tf

        parts = pictures if labels is None else (pictures, labels)
        # In orders of their own: the digits of the two domains are the same ones.
        seed = 2 * self.seed + (labels is None)
        made = tf.data.Dataset.from_tensor_slices(parts).shuffle(len(pictures), seed=seed)
        return made.batch(self.task.batch_size, drop_remainder=True)

    def two_views(self, batches):
        """(pictures, the same strongly varied), as FixMatch needs them."""
        import tensorflow as tf

        vary = self.task.strong(self.seed)

        def both(pictures):
            varied = vary(tf.cast(pictures, "float32"), training=True)
            return pictures, tf.cast(varied, pictures.dtype)

        return batches.map(both)


class Record(keras.callbacks.Callback):
    """Times the steps of each epoch and measures the model after it.

    Args:
        trial: whose pictures are measured on.
        measured: the model that the adapter trains.
        sourceless: the method leaves the source behind, and is not vetoed for it.
    """

    def __init__(self, trial: Trial, measured: keras.Model, sourceless: bool):
        from keras_transfer.adaptation.selection import Selector

        super().__init__()
        self.trial, self.measured, self.sourceless = trial, measured, sourceless
        self.unlabelled = trial.target[0][:MOST_UNLABELLED]
        classes = len(trial.domains.source.class_names)
        shares = np.bincount(trial.source[1], minlength=classes)
        self.selector = Selector(shares, source_accuracy=trial.reference)
        self.times = []  # (seconds, processor seconds) of the steps of each epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.started = self.ended = _clocks()

    def on_train_batch_end(self, batch, logs=None):
        self.ended = _clocks()

    def on_epoch_end(self, epoch, logs=None):
        self.times.append(self.ended - self.started)
        self.measure(epoch + 1)

    def measure(self, epoch: int) -> None:
        self.source = self._accuracy(*self.trial.validation)
        answers = keras.ops.softmax(self._logits(self.unlabelled))
        self.selector.add(epoch, None if self.sourceless else self.source, answers)
        self.selector.report(epoch, self._accuracy(*self.trial.test))

    def _accuracy(self, pictures, labels):
        return float((self._logits(pictures).argmax(axis=1) == labels).mean())

    def _logits(self, pictures):
        return self.measured.predict(pictures, batch_size=500, verbose=0)

    def numbers(self) -> dict:
        s = self.selector
        found = {
            "target": s.target_accuracy(s.last),
            "selected": s.target_accuracy(s.selected),
            "oracle": s.target_accuracy(s.oracle),
            "source": self.source,
            "selected_epoch": s.selected,
            "oracle_epoch": s.oracle,
        }
        if self.times:  # the first epoch has the compilation, where there are others
            later = np.mean(self.times[1:] or self.times, axis=0) / self.trial.steps
            found |= dict(zip(("step_ms", "step_cpu_ms"), 1000 * later))
        return found


def _clocks():
    return np.array([time.perf_counter(), time.process_time()])


def _layers(model):
    from keras_transfer.builders import backbone_of

    return [*model.layers, *backbone_of(model).layers]


def _configured(name, task):
    """A method with the settings that the task has for it."""
    from keras_transfer.adaptation import METHODS

    if name in WITH_DISCRIMINATOR:
        return METHODS[name](**task.discriminator)
    return METHODS[name](beta=task.shot_beta) if name == "shot" else METHODS[name]()


# -- tables ---------------------------------------------------------------------------------------


def table(rows: list[dict], task: str) -> str:
    """Markdown: a row a method, means over the seeds ± their standard deviation."""
    mine = _by_method(rows, task)
    lines = [
        f"**{TASKS[task].title}**, {_shown_seeds(mine)}",
        "",
        "| method | target | share of the gap | selected | oracle | source | time of a step |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, found in mine.items():
        shares = gap_shares(mine, method)
        ratios = [_ratios(mine, method, key) for key in ("step_ms", "step_cpu_ms")]
        cells = [method, _percent(found, "target")]
        cells.append("" if not shares or method in BOUNDS else _mean_spread(shares, " %"))
        chosen = ("selected", "oracle") if method != BOUNDS[1] else ()
        cells += [_percent(found, key) for key in chosen] or ["", ""]
        cells.append(_percent(found, "source"))
        cells.append(" / ".join(f"{np.mean(r):.2f}" for r in ratios if r))
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Time of a step: as a multiple of source_only's, on the clock / of the processor.",
    ]
    return "\n".join(lines)


def gap_shares(mine, method) -> list[float]:
    """(method − source only) / (target only − source only) of each seed that has all three, in %."""
    shares = []
    for seed, row in mine[method].items():
        bounds = [mine.get(bound, {}).get(seed) for bound in BOUNDS]
        if all(bounds):
            low, high = (float(bound["target"]) for bound in bounds)
            shares.append(100 * (float(row["target"]) - low) / (high - low))
    return shares


def _by_method(rows, task):
    """method → seed → row, the bounds first and last."""
    order = {"source_only": -1, "target_only": 1}
    mine = sorted(
        (row for row in rows if row["task"] == task and row["target"]),
        key=lambda row: order.get(row["method"], 0),
    )
    found = {}
    for row in mine:
        found.setdefault(row["method"], {})[row["seed"]] = row
    return found


def _ratios(mine, method, key):
    """Times of a method as multiples of those of source only, of each seed that has both."""
    other = mine.get("source_only", {})
    pairs = ((row[key], other[seed][key]) for seed, row in mine[method].items() if seed in other)
    return [float(one) / float(source) for one, source in pairs if one]


def _percent(found, key):
    values = [100 * float(row[key]) for row in found.values() if row[key]]
    missing = len(found) - len(values)
    return _mean_spread(values) + (f" ({missing} vetoed)" if missing else "")


def _mean_spread(values, unit=""):
    if not values:
        return "–"
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}{unit}"


def _shown_seeds(mine):
    seeds = sorted({seed for found in mine.values() for seed in found}, key=int)
    epochs = sorted({row["epochs"] for found in mine.values() for row in found.values()}, key=int)
    return f"{len(seeds)} seeds, {' or '.join(epochs)} epochs"


# -- the benchmark --------------------------------------------------------------------------------


def measure(options, done, write):
    for seed, name in product(options.seeds, options.tasks):
        trial = None
        epochs = options.epochs or TASKS[name].epochs
        for method in (BOUNDS[0], *options.methods, BOUNDS[1]):
            key = _key(name, seed, epochs, method)
            if _row(done, key):
                continue
            trial = trial or Trial(TASKS[name], seed, epochs, options.rows.with_suffix(""))
            before = _row(done, _key(name, seed, epochs, BOUNDS[0]))
            adapts = before and method not in BOUNDS
            trial.reference = float(before["source"]) if adapts else None
            found = {n: v for n, v in trial.run(method).items() if v is not None}
            shown = {n: f"{v:.4f}" if isinstance(v, float) else v for n, v in found.items()}
            write({**dict.fromkeys(NUMBERS, ""), **key, **shown})


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
    options = parser.parse_args()
    done = list(csv.DictReader(options.rows.open())) if options.rows.exists() else []
    if not options.table:
        with options.rows.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if not done:
                writer.writeheader()

            def write(row):
                done.append({name: str(value) for name, value in row.items()})
                writer.writerow(row)
                file.flush()
                print(" ".join(str(row[name]) for name in FIELDS), flush=True)

            with silence():
                measure(options, done, write)
    for task in options.tasks:
        if any(row["task"] == task for row in done):
            print(f"\n{table(done, task)}")


if __name__ == "__main__":
    main()
