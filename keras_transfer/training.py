"""The trainer: runs a schedule phase by phase over `model.fit`."""

import sys
import time
import warnings
from dataclasses import asdict

import keras
from tqdm.auto import tqdm

from keras_transfer.data.augmentation import resolve_augmentation
from keras_transfer.errors import InputError
from keras_transfer.freezing import freeze
from keras_transfer.heads import head_of
from keras_transfer.optimizers import adamw, warmup_cosine
from keras_transfer.runs import Run
from keras_transfer.schedules import Phase, Schedule, resolve_schedule

PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")


def has_gpu() -> bool:
    """True where the Keras backend sees an accelerator."""
    return bool(keras.distribution.list_devices("gpu") or keras.distribution.list_devices("tpu"))


def set_precision(precision: str = "auto") -> str:
    """Sets Keras's global dtype policy for the models built next, and returns its name.

    `"auto"` is bfloat16 on an accelerator and float32 on a CPU, where Keras's casts and unfused
    normalisations cost more than bfloat16 gains.
    """
    if precision not in PRECISIONS:
        raise InputError(f"Unknown precision '{precision}': give one of {', '.join(PRECISIONS)}.")
    if precision == "auto":
        precision = "mixed_bfloat16" if has_gpu() else "float32"
    keras.config.set_dtype_policy(precision)
    return precision


class Trainer:
    """Trains a model of `build_model` along a schedule.

    Args:
        model: from `build_model`; its weights are changed.
        schedule: the name of a recipe (`"feature_extraction"`, `"fine_tune"`, `"from_scratch"`) or
            a `Schedule`.
        epochs, learning_rate: override the recipe's numbers. By default the number of epochs
            follows from the number of pictures, which `fit` sees.
        batch_size: pictures a step, ≥ 1.
        augment: `"none"`, `"light"`, `"medium"`, `"heavy"` or a `data.Augmentation`.
        seed: fixes order, augmentation and dropout. Two runs with the same seed, model weights and
            machine are equal.

    The model's image size is that of its input.
    """

    def __init__(
        self,
        model: keras.Model,
        schedule: str | Schedule = "fine_tune",
        *,
        epochs: int | None = None,
        learning_rate: float | None = None,
        batch_size: int = 32,
        augment="light",
        seed: int = 0,
    ):
        if batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, not {batch_size}.")
        self.model = model
        self.head = head_of(model)
        self._numbers = dict(epochs=epochs, learning_rate=learning_rate)
        self.schedule = resolve_schedule(schedule, **self._numbers)
        self._recipe = schedule
        self.batch_size = batch_size
        resolve_augmentation(augment)  # an unknown name is said here, not in the first epoch
        self.augment = augment
        self.seed = seed

    def fit(self, data, out, *, config: dict | None = None, resume: bool = False) -> Run:
        """Trains, keeps the weights of the best epoch (validation accuracy, then loss), writes the run.

        Args:
            data: a `keras_transfer.data.ImageData`.
            out: directory of the run; must not exist, or be empty, unless `resume`.
            config: what else shall stand in `config.yaml` (the command's settings).
            resume: go on with an interrupted run of the same schedule.

        Returns:
            The finished `Run`. `self.model` has the best weights.

        Raises:
            InputError: the model's classes are not the data's, or `out` is not empty.
        """
        if tuple(data.class_names) != tuple(self.head.names):
            raise InputError(
                f"The model's classes {self.head.names} are not the data's {data.class_names}: "
                "build the head with Classification(data.class_names)."
            )
        pictures = len(data.examples["train"])
        self.schedule = resolve_schedule(self._recipe, pictures=pictures, **self._numbers)
        keras.utils.set_random_seed(self.seed)
        run = Run.open(out, finished=False) if resume else Run.create(out)
        progress = _Progress(run)
        restore = None
        if resume:
            restore = progress.load(self._config(config))
        else:
            run.write_config(self._config(config))
            run.write_skipped(data.skipped)

        validation = self._batches(data, "val", training=False) if "val" in data.examples else None
        first_epoch = 0
        for phase in self.schedule.phases:
            if progress.epoch < first_epoch + phase.epochs:
                self._run_phase(phase, data, validation, progress, first_epoch, restore)
                restore = None
            first_epoch += phase.epochs

        with warnings.catch_warnings():
            # The best epoch may be of an earlier phase, whose optimizer is of no use any more.
            warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
            self.model.load_weights(run.state_file(progress.best["weights"]))
        run.finish(self.model, progress.metrics(data))
        return run

    def _config(self, extra):
        return {
            **(extra or {}),
            "image_size": self.model.input_shape[1],
            "batch_size": self.batch_size,
            "augment": self.augment if isinstance(self.augment, str) else asdict(self.augment),
            "seed": self.seed,
            "precision": self.model.dtype_policy.name,
            "head": {"task": self.head.task, "names": list(self.head.names)},
            "schedule": self.schedule.to_dict(),
        }

    def _batches(self, data, split, *, training, start_epoch=0):
        return data.batches(
            split,
            image_size=self.model.input_shape[1],
            batch_size=self.batch_size,
            training=training,
            augment=self.augment,
            seed=self.seed,
            start_epoch=start_epoch,
        )

    def _run_phase(self, phase: Phase, data, validation, progress, first_epoch, restore):
        start = max(first_epoch, progress.epoch)
        steps = data.steps("train", self.batch_size)
        frozen = freeze(self.model, phase.freeze, batch_norm=phase.batch_norm)
        progress.start_phase(phase, frozen)
        if restore and start == first_epoch:
            self.model.load_weights(restore)  # the optimizer in there was another phase's
        rate = warmup_cosine(phase.learning_rate, steps * phase.epochs, phase.warmup)
        self.model.compile(
            optimizer=adamw(rate, phase.weight_decay),
            loss=self.head.loss(),
            metrics=self.head.metrics(),
            jit_compile=jit_compile(),
        )
        if restore and start > first_epoch:
            self.model.optimizer.build(self.model.trainable_variables)
            self.model.load_weights(restore)
        self.model.fit(
            self._batches(data, "train", training=True, start_epoch=start),
            steps_per_epoch=steps,
            initial_epoch=start,
            epochs=first_epoch + phase.epochs,
            validation_data=validation,
            callbacks=[progress],
            shuffle=False,  # the stream is shuffled already
            verbose=0,
        )


def jit_compile() -> bool | str:
    """XLA makes training slower on a CPU; on JAX there is no training without it."""
    on_cpu = keras.backend.backend() == "tensorflow" and not has_gpu()
    return False if on_cpu else "auto"


class _Progress(keras.callbacks.Callback):
    """After each epoch: history, best weights, state for resuming, and a line for the reader."""

    def __init__(self, run: Run):
        super().__init__()
        self.run = run
        self.mark = time.perf_counter()  # up to here the phases' wall_seconds are counted
        self.epoch = 0  # epochs done
        self.rows = []
        self.phases = []
        self.best = {}

    def load(self, config: dict):
        """Takes up an interrupted run; returns the file with its last weights, if there is one."""
        if self.run.finished:
            raise InputError(f"{self.run.path} is finished: there is nothing to resume.")
        old = self.run.config
        changed = [key for key in config if old.get(key) != config[key]]
        if changed:
            what = "; ".join(f"{key}: {old.get(key)!r} is now {config[key]!r}" for key in changed)
            raise InputError(f"Cannot resume {self.run.path}, its settings changed: {what}.")
        state = self.run.load_state()
        if state is None:
            return None
        self.epoch, self.rows, self.phases = state["epoch"], state["rows"], state["phases"]
        self.best = state["best"]
        _say(f"resuming after epoch {self.epoch}")
        return self.run.state_file(state["weights"])

    def start_phase(self, phase, frozen):
        if not self.phases or self.phases[-1]["name"] != phase.name:
            self.phases.append(
                {
                    "name": phase.name,
                    "epochs": phase.epochs,
                    "frozen_stages": frozen.stages,
                    "trainable_parameters": frozen.trainable_parameters,
                    "wall_seconds": 0.0,
                    "val": {},
                }
            )
        _say(f"phase {phase.name}: {phase.epochs} epochs, rate {phase.learning_rate:g}; {frozen}")

    def on_epoch_begin(self, epoch, logs=None):
        self.started_epoch = True
        self.started = time.perf_counter()
        self.bar = tqdm(
            total=self.params["steps"],
            desc=f"epoch {epoch + 1}/{self.params['epochs']}",
            unit="batch",
            leave=False,
            disable=None,  # no bar where stderr is no terminal
        )

    def on_train_batch_end(self, batch, logs=None):
        self.bar.update()
        if not self.bar.disable:
            self.bar.set_postfix({k: f"{float(v):.3f}" for k, v in (logs or {}).items()})

    def on_epoch_end(self, epoch, logs=None):
        self.bar.close()
        now = time.perf_counter()
        seconds = now - self.started
        self.phases[-1]["wall_seconds"] += now - self.mark  # with compiling and saving
        self.mark = now
        logs = {name: float(value) for name, value in (logs or {}).items()}
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self.epoch = epoch + 1
        self.rows.append(
            {
                "epoch": self.epoch,
                "phase": self.phases[-1]["name"],
                "learning_rate": rate,
                **logs,
                "seconds": round(seconds, 3),
            }
        )
        validation = {k.removeprefix("val_"): v for k, v in logs.items() if k.startswith("val_")}
        self.phases[-1]["val"] = validation
        if validation:
            # The highest accuracy (where the task has one), of equal ones the least loss.
            rank = [validation.get("accuracy", 0.0), -validation["loss"]]
        else:
            rank = [self.epoch]  # without validation pictures the last epoch is the best
        improved = not self.best or rank > self.best["rank"]
        if improved:
            name = f"best-{self.epoch}.weights.h5"
            self.best = {"epoch": self.epoch, "rank": rank, "val": validation, "weights": name}
        self.run.write_history(self.rows)
        self.run.save_state(
            self.model,
            {
                "epoch": self.epoch,
                "rows": self.rows,
                "phases": self.phases,
                "best": self.best,
                "best_weights": self.best["weights"],
            },
            best=improved,
        )
        shown = "  ".join(f"{name} {value:.4f}" for name, value in logs.items())
        _say(f"epoch {self.epoch}/{self.params['epochs']}  {seconds:.1f} s  {shown}")

    def metrics(self, data):
        """The content of metrics.json."""
        return {
            "val": self.best["val"],
            "best_epoch": self.best["epoch"],
            "wall_seconds": round(sum(phase["wall_seconds"] for phase in self.phases), 3),
            "images": {split: len(examples) for split, examples in data.examples.items()},
            "skipped": len(data.skipped),
            "phases": self.phases,
        }


def _say(text):
    print(text, file=sys.stderr, flush=True)
