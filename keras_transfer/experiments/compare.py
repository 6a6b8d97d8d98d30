"""Trains both arms of a comparison: every size with every seed, kept run by run."""

import hashlib
import inspect
import json
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stderr
from itertools import product
from pathlib import Path

import numpy as np

from keras_transfer.data import ImageData, plain_augmentation
from keras_transfer.data.check import find_duplicates
from keras_transfer.errors import InputError
from keras_transfer.experiments.comparison import AtSize, Comparison
from keras_transfer.experiments.learning_curves import Curve, read_curve
from keras_transfer.models.sources.applications import check_backbone
from keras_transfer.runs import Run
from keras_transfer.schedules.phases import Schedule
from keras_transfer.schedules.recipes import DEFAULT, RECIPES, resolve_schedule
from keras_transfer.training.failures import Interrupted
from keras_transfer.utils.console import progress_bar, quiet_tensorflow, say
from keras_transfer.utils.files import write_text

SETTINGS = "settings.json"
ARMS = ("transfer", "scratch")
SCRATCH = "from_scratch"
_LEAST = 5  # images a class of the smallest default size


def compare(data: ImageData, out, **settings) -> Comparison:
    """Trains with transfer and from scratch, and says what transfer brought.

    Args:
        data, out, settings: see `Experiment`.

    Returns:
        A `Comparison`: `print` it, `draw` it, or take its numbers. `comparison.json`, `.md` and `.png`
        in `out` have the same.
    """
    return Experiment(data, out, **settings).run()


class Experiment:
    """A comparison that is to be made, checked before Keras is imported.

    Both arms see the same images for as many epochs, in batches of the same size, with the same
    head and augmentation; from scratch has its own recipe (`recipes.from_scratch`). Accuracy on the
    validation images is measured after each epoch; nothing is chosen by it.

    Args:
        data: one class per image, with training and validation images.
        out: directory of the comparison. One that was begun with the same settings goes on: what is
            there already is not trained again, also where `sizes` or `seeds` have grown since.
        backbone: as `build_model` takes it: a name, a `.keras` file or a run.
        strategy: of transfer: a recipe's name, a YAML file or a `Schedule`.
        overrides, scratch_overrides: other numbers for the strategy, and for `from_scratch`; see
            `recipes.resolve_schedule`.
        sizes: training images a class, each 1 or more; None among them is all. A class that has
            fewer has all of its own. The larger draw of a seed contains the smaller. By default
            doubling from 5 up to all.
        seeds: of the draw, the first weights, order and augmentation; both arms have the same.
        image_size: by default the backbone's.
        epochs: of transfer; by default as many as `from_scratch` asks for, and where the strategy
            has its own length, that.
        scratch_budget: epochs from scratch for each epoch of transfer, above 0.
        batch_size, augment: as `Trainer` takes them.
        weights: of the backbone for transfer, as `build_model` takes them.
        precision: see `precision.set_precision`.
        keep_models: leave the model of each run on the disk.
        show: the size, in images a class, whose curves the image has; by default the middle one.

    Raises:
        InputError: data of another kind, values out of range, or `out` has something else in it.
    """

    def __init__(
        self,
        data: ImageData,
        out,
        *,
        backbone="mobilenet_v2",
        strategy: str | Path | Schedule = DEFAULT,
        overrides: dict | None = None,
        scratch_overrides: dict | None = None,
        sizes: Sequence[int | None] | None = None,
        seeds: Sequence[int] = (0, 1, 2),
        image_size: int | None = None,
        epochs: int | None = None,
        scratch_budget: float = 1.0,
        batch_size: int = 32,
        augment="light",
        weights: str | None = "imagenet",
        precision: str = "auto",
        keep_models: bool = False,
        show: int | None = None,
    ):
        data.require_classes("a comparison", "train", "val")
        for value, name in ((batch_size, "batch_size"), (epochs, "epochs")):
            if value is not None and value < 1:
                raise InputError(f"{name} must be 1 or more, not {value}.")
        if not scratch_budget > 0:
            raise InputError(f"scratch_budget must be above 0, not {scratch_budget}.")
        self.data, self.out = data, Path(out)
        self.backbone, self.weights = str(backbone), weights
        self.strategy = strategy if isinstance(strategy, Schedule) else str(strategy)
        self.overrides = dict(overrides or {})
        if epochs is not None:
            self.overrides["epochs"] = epochs
        self.scratch_overrides = dict(scratch_overrides or {})
        self.image_size, self.batch_size = image_size, batch_size
        self.scratch_budget = float(scratch_budget)
        self.augment = plain_augmentation(augment)
        self.precision, self.keep_models = precision, keep_models
        self._counts = np.bincount(np.asarray(data.examples["train"].labels))
        self.sizes = _check_sizes(sizes, int(self._counts.max()))
        self.seeds = _check_seeds(seeds)
        if show not in (None, *self.sizes):
            raise InputError(
                f"Cannot show {show}: the sizes are {', '.join(map(str, self.sizes))}."
            )
        self.show = show
        if weights is None:
            raise InputError("Random weights have nothing to transfer: leave weights out.")
        check_backbone(self.backbone, image_size, weights)
        for size, arm in product(self.sizes, ARMS):  # wrong overrides are said now
            self._epochs(arm, size)
        if not resolve_schedule(self.strategy, self._of_transfer(100)).pretrained:
            raise InputError(
                f"Strategy '{self._strategy_name()}' trains from scratch itself: give one that transfers."
            )
        self._open()

    # -- what is trained --------------------------------------------------------------------------

    def _images(self, size):
        return int(np.minimum(self._counts, size).sum())

    def _of_transfer(self, images):
        """Overrides of the strategy, with a length where it takes one and none is given."""
        recipe = RECIPES.get(self.strategy) if isinstance(self.strategy, str) else None
        if recipe is None or "epochs" not in inspect.signature(recipe).parameters:
            return self.overrides
        alone = self._length(SCRATCH, {}, images)
        return {"epochs": alone, **self.overrides}

    def _epochs(self, arm, size):
        """Epochs of an arm at a size."""
        images = self._images(size)
        epochs = self._length(self.strategy, self._of_transfer(images), images)
        if arm == "transfer":
            return epochs
        epochs = max(1, round(epochs * self.scratch_budget))
        return self._length(SCRATCH, {"epochs": epochs, **self.scratch_overrides}, images)

    def _length(self, strategy, overrides, images):
        phases = resolve_schedule(strategy, overrides, images=images).phases
        batches = [-(-images // (phase.batch_size or self.batch_size)) for phase in phases]
        return sum(phase.epochs or -(-phase.steps // n) for phase, n in zip(phases, batches))

    def _strategy_name(self):
        return self.strategy.name if isinstance(self.strategy, Schedule) else self.strategy

    def _settings(self):
        """What all runs depend on, as plain data; sizes and seeds may grow."""
        strategy = self.strategy
        if isinstance(strategy, Schedule) or Path(strategy).suffix in (".yaml", ".yml"):
            strategy = resolve_schedule(strategy).to_dict()
        images = json.dumps(self.data.fingerprint(), sort_keys=True)
        return {
            "backbone": self.backbone,
            "weights": self.weights,
            "strategy": strategy,
            "overrides": self.overrides,
            "scratch_overrides": self.scratch_overrides,
            "image_size": self.image_size,
            "scratch_budget": self.scratch_budget,
            "batch_size": self.batch_size,
            "augment": self.augment,
            "precision": self.precision,
            "images": hashlib.sha256(images.encode("utf-8", "surrogateescape")).hexdigest(),
        }

    def _open(self):
        """Makes the directory, or sees that what was begun there is this comparison."""
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out} is a file: give a directory.")
        now = json.loads(json.dumps(self._settings()))
        file = self.out / SETTINGS
        if not file.is_file():
            if self.out.is_dir() and any(self.out.iterdir()):
                raise InputError(f"{self.out} exists and is no comparison: choose another --out.")
            self.out.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(now, indent=2) + "\n")
            return
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = [
            "the images changed"
            if key == "images"
            else f"{key}: {before.get(key)!r} is now {now.get(key)!r}"
            for key in now.keys() | before.keys()
            if before.get(key) != now.get(key)
        ]
        if changed:
            raise InputError(
                f"{self.out} has a comparison with other settings: {'; '.join(sorted(changed))}. Undo "
                "that, or choose another --out."
            )

    # -- running ----------------------------------------------------------------------------------

    def run(self) -> Comparison:
        """Trains what is missing and writes what was found.

        Raises:
            InputError: see `Trainer.fit`.
            Interrupted: what is finished is kept, and an unfinished run goes on from its last epoch.
        """
        from keras_transfer.models.precision import set_precision
        from keras_transfer.training.distributed.workers import require_alone

        require_alone("A comparison")
        set_precision(self.precision, self.backbone, self.image_size)
        if warning := find_duplicates(self.data).warning:
            say(warning)
        labels = np.asarray(self.data.examples["train"].labels)
        draws = {
            (size, seed): draw_images(labels, size, seed)
            for size, seed in product(self.sizes, self.seeds)
        }
        jobs = list(product(draws, ARMS))
        curves = {}
        seen = [self._images(size) * self._epochs(arm, size) for (size, _), arm in jobs]
        with progress_bar(total=sum(seen), unit="images") as progress:
            for done, (key, arm) in enumerate(jobs):
                progress.relabel(f"{done} of {len(jobs)} runs; {key[0]} a class, {arm}")
                try:
                    curves[key, arm] = self._curve(key[0], key[1], arm, draws[key])
                except KeyboardInterrupt:
                    raise Interrupted(
                        f"interrupted after {done} of {len(jobs)} runs, which are kept in {self.out}: "
                        "give the same command again to go on"
                    ) from None
                progress.update(seen[done])
        found = self._result(curves)
        found.write(self.out, a_class=self.show)
        return found

    def _result(self, curves):
        val = self.data.examples["val"].labels
        chance = float(np.bincount(val).max() / len(val))
        sizes = [
            AtSize(
                size,
                self._images(size),
                *(tuple(curves[(size, seed), arm] for seed in self.seeds) for arm in ARMS),
                chance,
            )
            for size in self.sizes
        ]
        return Comparison(
            backbone=self.backbone,
            strategy=self._strategy_name(),
            classes=len(self.data.class_names),
            val_images=len(val),
            seeds=self.seeds,
            scratch_budget=self.scratch_budget,
            sizes=tuple(sizes),
        )

    def _curve(self, size, seed, arm, rows) -> Curve:
        """The curve of one run: read where it is there, else trained."""
        folder = self.out / "runs" / f"{size}_a_class" / f"seed_{seed}"
        file, run = folder / f"{arm}.json", Run(folder / arm)
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with _said_into(folder / f"{arm}.log"):
                if not run.finished:
                    self._train(run.path, size, seed, arm, rows)
            if "stopped" in run.metrics:
                raise InputError(f"{run.path}, which cannot be compared: {run.metrics['stopped']}")
            curve = read_curve(run)
            write_text(file, json.dumps({"accuracy": curve.accuracy}) + "\n")
            shown = f"{size} a class, seed {seed}, {arm}: {curve.start:.3f} at first"
            say(f"{shown}, {curve.asymptote:.3f} in the end")
        if not self.keep_models:
            run.model_path.unlink(missing_ok=True)
        return Curve.of(json.loads(file.read_text(encoding="utf-8"))["accuracy"])

    def _train(self, out, size, seed, arm, rows):
        import keras

        from keras_transfer.models.builders import build_model
        from keras_transfer.models.heads import head_for
        from keras_transfer.training.trainer import Trainer

        parts = self.data.examples
        data = ImageData(
            self.data.class_names,
            {"train": parts["train"].take(rows), "val": parts["val"]},
            self.data.skipped,
            self.data.root,
        )
        transfers = arm == "transfer"
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        model = build_model(
            self.backbone,
            head_for(data),
            image_size=self.image_size,
            weights=self.weights if transfers else None,
        )
        overrides = self._of_transfer(len(rows))
        if not transfers:
            overrides = {**self.scratch_overrides, "epochs": self._epochs(arm, size)}
        trainer = Trainer(
            model,
            self.strategy if transfers else SCRATCH,
            overrides=overrides,
            batch_size=self.batch_size,
            augment=self.augment,
            seed=seed,
            keep="last",
            validate_every=1,
        )
        trainer.fit(data, out, resume=True)


@contextmanager
def _said_into(file):
    """What the trainer says of each epoch would bury the bar; TensorFlow warns of every new model."""
    with quiet_tensorflow(), file.open("a", encoding="utf-8") as log, redirect_stderr(log):
        yield


def draw_images(labels: np.ndarray, a_class: int, seed: int) -> np.ndarray:
    """Sorted rows of `a_class` images of each class, or all it has; the larger draw of a seed
    contains the smaller.

    Args:
        labels: int [N].
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    drawn = [order[labels[order] == label][:a_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(drawn))


def _check_sizes(sizes, most):
    if sizes is None:
        doubled = [_LEAST * 2**i for i in range(64) if _LEAST * 2**i * 2**0.5 < most]
        return (*doubled, most)
    sizes = [most if size is None else size for size in sizes]
    for size in sizes:
        if not 1 <= size <= most:
            raise InputError(
                f"Cannot draw {size} training images a class: give 1 to {most}, which is all."
            )
    if not sizes:
        raise InputError("Give at least one size.")
    return tuple(sorted(set(sizes)))


def _check_seeds(seeds):
    seeds = tuple(seeds)
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError(f"Give different seeds, each 0 or more, not {list(seeds)}.")
    return seeds
