"""Training both arms of a comparison: each size with each seed, resumable run by run."""

import inspect
import json
import math
import time
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np

from keras_transfer.data import ImageData, plain_augmentation
from keras_transfer.data.examples import digest_of_fingerprints
from keras_transfer.errors import InputError, Interrupted
from keras_transfer.evaluation.baseline import fit_baseline
from keras_transfer.experiments.comparison import ARMS, AtSize, Comparison
from keras_transfer.experiments.learning_curves import Curve, read_curve
from keras_transfer.experiments.scores import Score
from keras_transfer.features.known import say_cautions
from keras_transfer.modalities import open_framing
from keras_transfer.modalities.image.framing import checked_crop
from keras_transfer.models.sources.backbones import check_backbone
from keras_transfer.runs import Run
from keras_transfer.schedules.phases import Schedule
from keras_transfer.schedules.recipes import DEFAULT, RECIPES, resolve_schedule
from keras_transfer.utils.checkpoint import Checkpoint
from keras_transfer.utils.console import progress_bar, quiet_tensorflow, say
from keras_transfer.utils.files import write_text
from keras_transfer.utils.global_state import restored
from keras_transfer.utils.names import check_minutes, make_options

SCRATCH = "from_scratch"
_SMALLEST = 5  # images per class of the smallest default size
_SMALLEST_WHOLE = 40  # the same without classes: images in all


def compare(data: ImageData, out, **options) -> Comparison:
    """Train with transfer and from scratch, and measure the advantage of transfer.

    Both arms train on the same images for as many epochs, with batches of the same size, the same
    head and the same augmentation; training from scratch has its own recipe
    (`recipes.from_scratch`). The accuracy on the validation images (or what other tasks have instead) is
    measured after each epoch; nothing is chosen by it.

    Args:
        data: any task, or several heads, with the splits `train` and `val`. What counts is the accuracy;
            for several labels their mean average precision, for numbers R², for several heads the mean.
        out: directory of the comparison. If it contains one with the same settings, only missing
            runs are trained, also if `sizes` or `seeds` have grown.
        options: see `CompareOptions`.

    Returns:
        A `Comparison`: `print` it, `draw` it, or use its numbers. `comparison.json`, `.md` and `.png`
        in `out` contain the same.

    Raises:
        InputError: unsuitable data, an invalid option, or `out` contains something else.
        Interrupted: finished runs are saved; repeat the call to resume.
    """
    return Experiment(data, out, **options).run()


@dataclass(frozen=True)
class CompareOptions:
    """Options of `compare`.

    Attributes:
        backbone: as `build_model` takes it: a name, a `.keras` file or a run.
        strategy: of transfer: the name of a recipe, a YAML file or a `Schedule`.
        overrides, scratch_overrides: changes of the strategy and of `from_scratch`; see
            `recipes.resolve_schedule`.
        sizes: training images per class, ≥ 1; None means all. A smaller class contributes all it
            has. The larger sample of a seed contains the smaller one. By default 5, 10, 20, … up to
            all. For labels, numbers and several heads: training images in all; by default 40, 80, ….
        seeds: of the sample, the initial weights, the order and the augmentation, for both arms.
        image_size: the backbone's by default.
        crop: see `build_model`; by default, all training images decide, for all runs.
        channels, depth: of images, see `modalities.image.bands.Reading`.
        epochs: of transfer. By default those of `from_scratch`, unless the strategy has a length
            of its own.
        scratch_budget: epochs from scratch per epoch of transfer, > 0.
        batch_size, augment: see `Trainer`.
        weights: of the backbone for transfer, see `build_model`.
        precision: see `precision.set_precision`.
        keep_models: keep the model of each run on disk.
        show: the size (images per class) whose curves are plotted; the middle one by default.
        minutes: limit of this call, > 0: no run starts that would end later, judging by the last one of
            its arm, or by the estimate that is printed before the first; the result has the seeds that
            are complete.
    """

    backbone: str = "mobilenet_v2"
    strategy: str | Schedule = DEFAULT
    overrides: dict = field(default_factory=dict)
    scratch_overrides: dict = field(default_factory=dict)
    sizes: Sequence[int | None] | None = None
    seeds: Sequence[int] = (0, 1, 2)
    image_size: int | str | None = None
    crop: float | None = None
    channels: int | None = None
    depth: str | None = None
    epochs: int | None = None
    scratch_budget: float = 1.0
    batch_size: int = 32
    augment: object = "light"
    weights: str | None = "imagenet"
    precision: str = "auto"
    keep_models: bool = False
    show: int | None = None
    minutes: float | None = None

    def __post_init__(self):
        for value, name in ((self.batch_size, "batch_size"), (self.epochs, "epochs")):
            if value is not None and value < 1:
                raise InputError(f"{name} must be 1 or more, not {value}.")
        check_minutes(self.minutes)
        if not self.scratch_budget > 0:
            raise InputError(f"scratch_budget must be above 0, not {self.scratch_budget}.")
        if self.weights is None:
            raise InputError("Random weights cannot be transferred: omit weights.")
        seeds = tuple(self.seeds)
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise InputError(f"seeds must be different numbers, 0 or more, not {list(seeds)}.")
        overrides = dict(self.overrides or {})
        if self.epochs is not None:
            overrides["epochs"] = self.epochs
        for name, value in {
            "backbone": str(self.backbone),
            "strategy": self.strategy
            if isinstance(self.strategy, Schedule)
            else str(self.strategy),
            "overrides": overrides,
            "scratch_overrides": dict(self.scratch_overrides or {}),
            "seeds": seeds,
            "scratch_budget": float(self.scratch_budget),
            "augment": plain_augmentation(self.augment),
            "crop": checked_crop(self.crop),
        }.items():
            object.__setattr__(self, name, value)
        open_framing(**self.reading)  # which checks it

    @property
    def reading(self) -> dict:
        """Channels and depth, where they are given."""
        given = {"channels": self.channels, "depth": self.depth}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def strategy_name(self) -> str:
        return self.strategy.name if isinstance(self.strategy, Schedule) else self.strategy


class Experiment:
    """A comparison, validated before Keras is imported; the arguments are those of `compare`."""

    def __init__(self, data: ImageData, out, **options):
        train, val = (data.require(split) for split in ("train", "val"))
        self.options = make_options(CompareOptions, options, "compare")
        self.data, self.out = data, Path(out)
        self.score = Score.of(data.targets, val.labels)
        # The examples drawn from: of each class as many examples, or of everything.
        self._of_classes = data.task == "single_label"
        self._classes = np.asarray(train.labels) if self._of_classes else np.zeros(len(train), int)
        self._counts = np.bincount(self._classes)
        least = _SMALLEST if self._of_classes else _SMALLEST_WHOLE
        self.sizes = _check_sizes(self.options.sizes, int(self._counts.max()), least, self._each)
        self.seeds = self.options.seeds
        if self.options.show not in (None, *self.sizes):
            raise InputError(
                f"Cannot show {self.options.show}: the sizes are {', '.join(map(str, self.sizes))}."
            )
        check_backbone(self.options.backbone, self.options.image_size, self.options.weights)
        for size, arm in product(self.sizes, ARMS):  # validates the overrides
            self._epochs(arm, size)
        if not resolve_schedule(self.options.strategy, self._transfer_overrides(100)).pretrained:
            raise InputError(
                f"Strategy '{self.options.strategy_name}' trains from scratch: choose one that "
                "transfers."
            )
        fingerprint = digest_of_fingerprints(data.fingerprint())
        Checkpoint.open(self.out, self._settings(), what="comparison", fingerprint=fingerprint)

    @property
    def _each(self):
        return " per class" if self._of_classes else ""

    # -- lengths ----------------------------------------------------------------------------------

    def _images(self, size):
        return int(np.minimum(self._counts, size).sum())

    def _transfer_overrides(self, images):
        """Return the overrides of the strategy, with the epochs of `from_scratch` by default."""
        strategy = self.options.strategy
        recipe = RECIPES.get(strategy) if isinstance(strategy, str) else None
        if recipe is None or "epochs" not in inspect.signature(recipe).parameters:
            return self.options.overrides
        return {"epochs": self._length(SCRATCH, {}, images), **self.options.overrides}

    def _epochs(self, arm, size):
        """Return the number of epochs of an arm at a size."""
        images = self._images(size)
        epochs = self._length(self.options.strategy, self._transfer_overrides(images), images)
        if arm == "transfer":
            return epochs
        epochs = max(1, round(epochs * self.options.scratch_budget))
        overrides = {"epochs": epochs, **self.options.scratch_overrides}
        return self._length(SCRATCH, overrides, images)

    def _length(self, strategy, overrides, images):
        phases = resolve_schedule(strategy, overrides, examples=images).phases
        phases = [p for p in phases if p.solver == "gradient"] or phases  # but for a closed form
        steps = [-(-images // (phase.batch_size or self.options.batch_size)) for phase in phases]
        return sum(phase.epochs or -(-phase.steps // n) for phase, n in zip(phases, steps))

    def _settings(self):
        """Everything that all runs depend on, as plain data. Sizes and seeds may grow."""
        strategy = self.options.strategy
        if isinstance(strategy, Schedule) or Path(strategy).suffix in (".yaml", ".yml"):
            strategy = resolve_schedule(strategy).to_dict()
        names = ("backbone", "weights", "overrides", "scratch_overrides", "image_size")
        names += ("scratch_budget", "batch_size", "augment", "precision")
        crop = self.options.crop or "auto"
        return {
            "strategy": strategy,
            "crop": crop,
            **self.options.reading,
            **{name: getattr(self.options, name) for name in names},
        }

    # -- running ----------------------------------------------------------------------------------

    def run(self) -> Comparison:
        """Train the missing runs, and write the result.

        Raises:
            InputError: see `Trainer.fit`.
            Interrupted: finished runs are saved, and an unfinished one resumes at its last epoch.
        """
        from keras_transfer.models.acceleration import set_precision
        from keras_transfer.training.distributed.single_process import require_single_process

        require_single_process("A comparison")
        options = self.options
        with restored():
            set_precision(options.precision, options.backbone, options.image_size)
            return self._run()

    def _run(self):
        from keras_transfer.training.estimate import say_estimate  # imports Keras

        options = self.options
        say_cautions(self.data)
        samples = {
            (size, seed): draw_images(self._classes, size, seed)
            for seed, size in product(self.seeds, self.sizes)  # so that one seed is complete first
        }
        jobs = list(product(samples, ARMS))
        curves = {}
        images = [self._images(size) * self._epochs(arm, size) for (size, _), arm in jobs]
        missing = [i for i, (key, arm) in enumerate(jobs) if not self._file(key, arm).is_file()]
        limit, over = math.inf if options.minutes is None else options.minutes, False
        started, estimate, paces = time.perf_counter(), 0.0, {}
        if missing:
            parts = options.backbone, options.image_size, options.batch_size
            whole = sum(images[i] for i in missing)
            estimate = say_estimate(*parts, len(missing), whole) / whole  # minutes per image
        with progress_bar(total=sum(images), unit="images") as progress:
            for done, (key, arm) in enumerate(jobs):
                progress.relabel(f"{done} of {len(jobs)} runs; {key[0]}{self._each}, {arm}")
                before = (time.perf_counter() - started) / 60
                if done in missing:
                    over = over or before + paces.get(arm, estimate) * images[done] > limit
                    if over:
                        continue
                try:
                    curves[key, arm] = self._curve(key, arm, samples[key])
                except KeyboardInterrupt:
                    raise Interrupted(
                        f"interrupted after {done} of {len(jobs)} runs, which are saved in {self.out}: "
                        "repeat the same command to resume"
                    ) from None
                progress.update(images[done])
                if done in missing:
                    paces[arm] = ((time.perf_counter() - started) / 60 - before) / images[done]
        seeds = [
            s for s in self.seeds if all(((n, s), a) in curves for n in self.sizes for a in ARMS)
        ]
        if not seeds:
            raise InputError(
                f"The {options.minutes:g} minutes are over before all sizes of one seed: {len(curves)} of "
                f"{len(jobs)} runs are saved in {self.out}. Repeat the same command to go on."
            )
        if len(curves) < len(jobs):
            say(f"The time is over after {len(curves)} of {len(jobs)} runs; repeat to go on.")
        result = self._result(curves, tuple(seeds))
        result.write(self.out, a_class=options.show)
        return result

    def _result(self, curves, seeds):
        sizes = [
            AtSize(
                size,
                self._images(size),
                *(tuple(curves[(size, seed), arm] for seed in seeds) for arm in ARMS),
                self.score.chance,
                *self._baseline(size, seeds),
            )
            for size in self.sizes
        ]
        return Comparison(
            backbone=self.options.backbone,
            strategy=self.options.strategy_name,
            classes=len(self.data.class_names),
            val_images=len(self.data.examples["val"]),
            seeds=seeds,
            scratch_budget=self.options.scratch_budget,
            sizes=tuple(sizes),
            score=self.score.title,
            each=self._each,
        )

    def _baseline(self, size, seeds) -> tuple:
        """Return (name of the modality's baseline, its score for each seed), or nothing."""
        train, val = (self.data.examples[split] for split in ("train", "val"))
        if train.modality.baseline is None:
            return ()
        from keras_transfer.evaluation.measures import compute_metrics
        from keras_transfer.models.builders import heads_for

        heads = heads_for(self.data)
        drawn = [draw_images(self._classes, size, seed) for seed in seeds]
        found = (fit_baseline(train.take(rows), self.data.targets) for rows in drawn)
        fitted = [one for one in found if one is not None]
        measured = (compute_metrics(heads, val.labels, one.outputs(val)) for one in fitted)
        return fitted[0].name, tuple(self.score.in_metrics(one) for one in measured)

    def _curve(self, key, arm, rows) -> Curve:
        """Return the curve of one run: from its file, or by training it."""
        size, seed = key
        file = self._file(key, arm)
        folder = file.parent
        run = Run(folder / arm)
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with _logged_to(folder / f"{arm}.log"):
                if not run.finished:
                    self._train(run.path, size, seed, arm, rows)
            if "stopped" in run.metrics:
                raise InputError(f"{run.path} cannot be compared: {run.metrics['stopped']}")
            curve = read_curve(run, self.score)
            write_text(file, json.dumps({"accuracy": curve.accuracy}) + "\n")
            say(
                f"{size}{self._each}, seed {seed}, {arm}: starts at {curve.start:.3f}, ends at "
                f"{curve.asymptote:.3f}"
            )
        if not self.options.keep_models:
            run.model_path.unlink(missing_ok=True)
        return Curve.of(json.loads(file.read_text(encoding="utf-8"))["accuracy"])

    def _file(self, key, arm) -> Path:
        size, seed = key
        return self.out / "runs" / f"{size}_a_class" / f"seed_{seed}" / f"{arm}.json"

    def _train(self, out, size, seed, arm, rows):
        import keras

        from keras_transfer.models.builders import build_model, head_for
        from keras_transfer.models.framing import settle_framing
        from keras_transfer.training.config import NO_REFIT
        from keras_transfer.training.trainer import Trainer

        options, examples = self.options, self.data.examples
        drawn = {"train": examples["train"].take(rows), "val": examples["val"]}
        data = replace(self.data, examples=drawn)
        weights, strategy, overrides = None, SCRATCH, options.scratch_overrides
        if arm == "transfer":
            weights, strategy = options.weights, options.strategy
            overrides = self._transfer_overrides(len(rows))
        else:
            overrides = {**overrides, "epochs": self._epochs(arm, size)}
        policy = keras.config.dtype_policy()
        keras.backend.clear_session()  # which would forget the policy
        keras.config.set_dtype_policy(policy)
        keras.utils.set_random_seed(seed)
        model = build_model(
            options.backbone,
            head_for(data),
            image_size=open_framing(options.image_size, options.crop, **options.reading),
            weights=weights,
            data=data,
        )
        settle_framing(model, self.data)
        trainer = Trainer(
            model,
            strategy,
            overrides=overrides,
            batch_size=options.batch_size,
            augment=options.augment,
            seed=seed,
            keep="last",
            refit=NO_REFIT,
            validate_every=1,
        )
        trainer.fit(data, out, resume=True)


@contextmanager
def _logged_to(file):
    """Write the trainer's messages to a file, and suppress TensorFlow's warnings about new models."""
    with quiet_tensorflow(), file.open("a", encoding="utf-8") as log, redirect_stderr(log):
        yield


def draw_images(labels: np.ndarray, a_class: int, seed: int) -> np.ndarray:
    """Draw `a_class` images of each class, or all it has; return sorted rows.

    The larger sample of a seed contains the smaller one.

    Args:
        labels: int [N]; all equal to draw from everything.
        a_class: images per class, ≥ 1.
        seed: of the sample.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    drawn = [order[labels[order] == label][:a_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(drawn))


def _check_sizes(sizes, most, least, each):
    if sizes is None:
        doubled = [least * 2**i for i in range(64) if least * 2**i * 2**0.5 < most]
        return (*doubled, most)
    sizes = [most if size is None else size for size in sizes]
    for size in sizes:
        if not 1 <= size <= most:
            raise InputError(f"Cannot draw {size} training examples{each}: give 1 to {most} (all).")
    if not sizes:
        raise InputError("Give at least one size.")
    return tuple(sorted(set(sizes)))
