"""The trainer: runs a schedule phase by phase over `model.fit`.

What it is told is checked and planned here; `training_run` goes through the phases from the run's
beginning to its end, `phase_fitting` runs one of them, on what `phase_inputs` makes for it.
"""

from collections.abc import Callable
from functools import cached_property

import keras

from keras_transfer.data.balance import check_balance, check_class_weights
from keras_transfer.data.memory import ImageMemory
from keras_transfer.data.mixing import Mix
from keras_transfer.errors import InputError
from keras_transfer.features.caching import Caching, check_cache, check_engine
from keras_transfer.modalities.image.augment import plain_augmentation
from keras_transfer.models.builders import check_targets, fit_heads, heads_of
from keras_transfer.models.heads import Head
from keras_transfer.models.stages import backbone_of, is_untrained
from keras_transfer.runs import Run
from keras_transfer.schedules import recipes
from keras_transfer.schedules.phases import KEEP, Schedule
from keras_transfer.schedules.plans import Plan, make_plan
from keras_transfer.training.distributed.single_process import (
    SCALINGS,
    SingleProcess,
    resolve_workers,
    scaled,
)
from keras_transfer.training.phase_inputs import caching_of, mix_of, smoothed_heads
from keras_transfer.training.run_loop import TrainingRun, settings_of
from keras_transfer.utils.machine import free_memory

_MOST_IMAGES = 1 << 30  # bytes of decoded images in memory


class Trainer:
    """Trains a model of `build_model` along a schedule.

    Args:
        model: from `build_model`; its weights are changed.
        schedule: the name of a recipe (`recipes.RECIPES`), the path of a YAML file, a `Schedule`, or
            `"auto"`: the choice of `choose`, else the default recipe (`lp_ft`; `from_scratch` if
            the backbone's weights are random).
        overrides: other numbers for the recipe (`{"head_epochs": 2}`) and its phases
            (`{"all.learning_rate": 1e-4, "*.ema": 0.99}`), see `recipes.resolve_schedule`.
        epochs, learning_rate: short for those two arguments of the recipe. By default the number
            of epochs follows from the number of images, which `fit` sees.
        batch_size: images a step, ≥ 1, where the phase says nothing.
        augment: how training images vary, where the phase says nothing: `"none"`, `"light"`,
            `"medium"`, `"heavy"`, `"randaugment"`, a `data.Augmentation`, a transform of
            albumentations, a Keras layer, or a file, see `data.resolve_augmentation`; or `"auto"`:
            the choice of `choose` with an `"auto"` schedule, else `"light"`.
        mix: `"none"`, `"mixup"` or `"cutmix"`: training images of a batch are mixed with each
            other, and their labels alike, where the phase says nothing. Such a phase trains on
            images: nothing of it is cached. A head in closed form is not touched by it.
        mix_alpha: how strongly, see `data.Mix`.
        seed: fixes order, augmentation and dropout. Two runs with the same seed, model weights and
            machine are equal (on a GPU with `TF_DETERMINISTIC_OPS=1`).
        keep: `"best"` keeps the epoch with the highest validation accuracy (of labels: mean average
            precision), then least loss; of numbers and several heads the least loss alone;
            `"last"` the last one, whose accuracy no choice has flattered.
        balance: what is done about classes of unequal size: `"none"`; `"weights"`: each weighs by
            inverse frequency, see `data.balance.class_weights`; `"sampling"`: an epoch has as many
            images, of each class equally many (a closed form has no epochs: weights there). A
            phase's `class_weights` win over it.
        steps_per_execution: at most so many steps in one call of Keras, ≥ 1; the largest number
            that divides an epoch is taken. More than 1 helps where a step takes a few milliseconds
            (`scripts/step_times.py`); the loss is then looked at after each call only.
        validate_every: epochs from one validation to the next; the first and the last of a phase are
            always validated, and only validated ones are kept. By default each, but of few training
            images and many to validate on so seldom that it takes no longer than training.
        cache: where the activations of frozen stages are kept, so that they are computed once:
            `"disk"` (for later runs too, see `features.store`), `"memory"`, `"off"`, or `"auto"`:
            on disk where the estimated gain is worth it, see `features.caching`. Phases that train
            on images keep decoded ones in memory where they fit, unless it is `"off"`.
        engine: what computes them, see `features.engines`: `"auto"`, `"keras"` or `"openvino"`.
        feature_dtype: number format they are kept in; `"auto"` is that of the model where it fits,
            else float16.
        data_service: address of a tf.data service (`"grpc://HOST:PORT"`), whose workers read, resize
            and augment what phases train on in images, see `data.service`.
        distribute: `"auto"`: over the workers that `start_workers` has joined, if it has; `"none"`; or
            those workers, or their kind. The model must be built in their scope.
        scaling: what more devices do to a step, see `distribution.scaling`: `"auto"`: each has
            `batch_size` images, and the rate grows with their number; `"none"`: they share
            `batch_size` images, and the result is that of one device. A resumed run goes on with the
            batches that it began with, on whatever devices there are.
        choose: decides an `"auto"` schedule: a function of this trainer and the first data that
            `plan` or `fit` receives, which returns an object with `strategy`, `overrides` and
            `augment` and, second, the advice behind it; see `advisor.auto_trainer`.

    The model's image size is that of its input.

    Attributes:
        workers: the processes that train together, see `distributed.single_process`.
        devices: so many times the batch is that of one device, see `scaling`.
        advice: the second result of `choose`, once it was called.
    """

    def __init__(
        self,
        model: keras.Model,
        schedule: str | Schedule = recipes.AUTO,
        *,
        overrides: dict | None = None,
        epochs: int | None = None,
        learning_rate: float | None = None,
        batch_size: int = 32,
        augment=recipes.AUTO,
        mix: str = "none",
        mix_alpha: float | None = None,
        seed: int = 0,
        keep: str = "best",
        balance: str = "none",
        steps_per_execution: int = 1,
        validate_every: int | None = None,
        cache: str = "auto",
        engine: str = "auto",
        feature_dtype: str = "auto",
        data_service: str | None = None,
        distribute: str | SingleProcess | None = "auto",
        scaling: str = "auto",
        choose: Callable | None = None,
    ):
        for name, value in (
            ("batch_size", batch_size),
            ("steps_per_execution", steps_per_execution),
            ("validate_every", 1 if validate_every is None else validate_every),
        ):
            if value < 1:
                raise InputError(f"{name} must be 1 or more, not {value}.")
        if keep not in KEEP:
            raise InputError(f"keep must be one of {KEEP}, not {keep!r}.")
        check_cache(cache, feature_dtype)
        check_engine(engine)
        if scaling not in SCALINGS:
            raise InputError(f"scaling must be one of {SCALINGS}, not {scaling!r}.")
        self.workers = resolve_workers(distribute)
        if self.workers.distributed and data_service:
            raise InputError("A tf.data service cannot be used with distribute: leave out either.")
        self.devices = self.workers.replicas if scaling == "auto" else 1
        self.model = model
        tasks = [head.task for head in heads_of(model).values()]
        check_balance(balance, tasks)
        self._recipe = schedule
        self._overrides = dict(overrides or {})
        for name, value in (("epochs", epochs), ("learning_rate", learning_rate)):
            if value is not None:
                self._overrides[name] = value
        self.batch_size = batch_size
        # What can be wrong is said here, not after an epoch.
        self._any_augment = augment == recipes.AUTO
        self.augment = plain_augmentation("light" if self._any_augment else augment)
        self.mix, self.mix_alpha = mix, mix_alpha
        Mix(mix, mix_alpha)
        self.seed = seed
        self.keep = keep
        self.balance = balance
        self.steps_per_execution = steps_per_execution
        self.validate_every = validate_every
        self.cache = cache
        self.engine = engine
        self.feature_dtype = feature_dtype
        self.data_service = data_service
        self.advice = None
        self._choose = choose
        if schedule != recipes.AUTO or choose is None:
            self._schedule(1000)

    def _schedule(self, images) -> Schedule:
        schedule = recipes.resolve_schedule(
            self._default_recipe() if self._recipe == recipes.AUTO else self._recipe,
            self._overrides,
            images=images,
            image_size=self.model.input_shape[1],
            linear_head=self._closed_form_obstacle() is None,
        )
        for phase in schedule.phases:
            if phase.solver == "logistic" and self._closed_form_obstacle():
                raise InputError(
                    f"Phase '{phase.name}': solver 'logistic' {self._closed_form_obstacle()}."
                )
            check_class_weights(phase.class_weights, self.heads)
            if mix_of(self, phase) and (self.head is None or self.head.task == "regression"):
                raise InputError(
                    f"Phase '{phase.name}': mix is for one head of classes or labels: half of each of "
                    "two images does not measure their mean."
                )
            smoothed_heads(self, phase)
        return schedule

    @property
    def heads(self) -> dict[str, Head]:
        """Those of the model, see `heads_of`."""
        return heads_of(self.model)

    @property
    def head(self) -> Head | None:
        """The model's head; None where it has several."""
        heads = list(self.heads.values())
        return heads[0] if len(heads) == 1 else None

    def _closed_form_obstacle(self) -> str | None:
        """Why the head has no closed form; None where it has one."""
        if any(head.hidden or head.bottleneck for head in self.heads.values()):
            return "gives one linear layer, and this head has hidden ones"
        if len(self.model.layers[1].output.shape) > 2:
            return "needs pooled features"
        return None

    def plan(self, data) -> Plan:
        """What `fit` would do: `print(trainer.plan(data).table())`, `.draw("plan.png")`."""
        if self._recipe == recipes.AUTO:
            self._settle(data)
        images = len(data.examples["train"])
        schedule = scaled(self._schedule(images), self.devices, self.batch_size)
        return make_plan(self.model, schedule, images, self.batch_size * self.devices)

    def plan_caching(self, data) -> list[tuple[Caching | None, str]]:
        """For each phase how its frozen part would be computed once, or None and why not."""
        return caching_of(self, self.plan(data), data)

    def _default_recipe(self):
        return "from_scratch" if is_untrained(backbone_of(self.model)) else recipes.DEFAULT

    def _settle(self, data):
        """Replace `"auto"` by a choice that stays the same for all further data."""
        if self._choose is None:
            self._recipe = self._default_recipe()
            return
        if self.workers.distributed:
            raise InputError(
                "An 'auto' schedule cannot be chosen with distribute: run `keras-transfer advise` on "
                "one machine and name the schedule it recommends."
            )
        choice, self.advice = self._choose(self, data)
        self._recipe = choice.strategy
        self._overrides = {**choice.overrides, **self._overrides}
        if self._any_augment:
            self.augment = plain_augmentation(choice.augment)

    def fit(
        self,
        data,
        out,
        *,
        config: dict | None = None,
        resume: bool = False,
        callbacks=(),
        tensorboard: bool = False,
    ) -> Run:
        """Trains, keeps the weights of one epoch (see `keep`), writes the run.

        Args:
            data: a `keras_transfer.data.ImageData`.
            out: directory of the run; must not exist, or be empty, unless `resume`.
            config: what else shall stand in `config.yaml` (the command's settings). Where the images
                are those of `data.from_directory`, their folder stands there in any case.
            resume: go on with an interrupted run of the same settings and images. The model must
                be built as it was then. Where nothing was begun yet, it begins.
            callbacks: of Keras, told of each epoch once it is kept (an epoch's number counts on over
                the phases; a head in closed form has none). What they raise ends the training.
            tensorboard: write each epoch's numbers into `RUN/tensorboard`, as it ends; of a resumed run
                those from there on.

        Returns:
            The finished `Run`. `self.model` has the kept weights.

        Raises:
            InputError: the model's heads are not the data's; `out` is not empty; the run to
                resume is finished, or its settings or images changed; memory or disk is full.
            Diverged: the loss became NaN or infinite; the best model before that is in the run.
            Interrupted: Ctrl-C or SIGTERM; `resume` goes on after the last finished epoch.
            WorkerLost: another process of those that train together is gone.
        """
        with self.workers.guarded():
            check_targets(self.heads, data)
            fit_heads(self.model, data.examples["train"].labels)
            begun = self._begun_config(out) if resume else None
            if begun is not None:
                self._take_over(begun)
            plan = self.plan(data)
            asked = self._schedule(len(data.examples["train"]))
            training = TrainingRun(self, data, plan, lambda: self._memory, callbacks)
            config = {**data.source, **(config or {})}
            return training.fit(out, settings_of(self, asked, config), begun, tensorboard)

    def _begun_config(self, out):
        """The settings of the run that is to be resumed; None where nothing was begun."""

        def read():
            return Run.open(out, finished=False).config if Run.started(out) else None

        return self.workers.on_chief(read)

    def _take_over(self, begun):
        """What was open is as it was decided when the run to be resumed began."""
        self.devices = begun.get("devices", 1)
        if self._recipe == recipes.AUTO:
            self._recipe, self._overrides = Schedule.from_dict(begun["schedule"]), {}
            if self._any_augment:
                self.augment = begun["augment"]

    @cached_property
    def _memory(self):
        return ImageMemory(min(_MOST_IMAGES, free_memory() // 4))
