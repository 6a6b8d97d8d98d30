"""The trainer: checks settings, plans a schedule and trains it phase by phase."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property

import keras

from keras_transfer.data.examples import check_balance, check_class_weights, class_weights
from keras_transfer.data.memory import ImageMemory
from keras_transfer.errors import InputError
from keras_transfer.features.caching import Caching, plan_caching
from keras_transfer.features.store import Store
from keras_transfer.modalities import framing_from, plain_augmentation
from keras_transfer.modalities.views import Mix
from keras_transfer.models.builders import check_targets, fit_heads, heads_of
from keras_transfer.models.framing import framing_of, modality_of, set_framing, settle_framing
from keras_transfer.models.heads import Head
from keras_transfer.models.stages import backbone_of, is_untrained
from keras_transfer.runs import PLACES, REFITS, Run
from keras_transfer.schedules import recipes
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.schedules.plans import Plan, make_plan
from keras_transfer.schedules.sizes import attention_stages
from keras_transfer.training.config import REFIT, TrainConfig, check_names
from keras_transfer.training.distributed.single_process import (
    SingleProcess,
    resolve_workers,
    scaled,
)
from keras_transfer.training.logs import check_logs
from keras_transfer.training.refit import finish_refitted, refit, refit_follows
from keras_transfer.training.run_loop import TrainingRun
from keras_transfer.utils.console import say
from keras_transfer.utils.files import absolute_paths, free_memory
from keras_transfer.utils.image_sizes import size_of
from keras_transfer.utils.keras_versions import remember_saved_attributes

_MOST_IMAGE_BYTES = 1 << 30  # of decoded images in memory


class Trainer:
    """Trains a model along a schedule.

    The examples are resized to the input size of the model.

    Args:
        model: from `build_model`; its weights are changed.
        schedule: name of a recipe (`schedules.RECIPES`), path of a YAML file, a `Schedule`, or
            `"auto"`: the choice of `choose`, else the default recipe (`lp_ft`; `from_scratch` if
            the backbone's weights are random).
        config: the settings; by default those of `TrainConfig()`.
        distribute: `"auto"`: the workers that `start_workers` has started, if any; `"none"`; the
            workers themselves; or their kind. The model must be built in their scope.
        choose: decides an `"auto"` schedule, see `advisor.auto_trainer`. It is called with this
            trainer and the first data that `plan` or `fit` receives, and returns an object with
            `strategy`, `overrides` and `augment`, and the advice behind it.
        settings: settings of `TrainConfig` by name, which override `config`: `epochs`,
            `learning_rate`, `overrides`, `batch_size`, `augment`, `seed`, `cache`, …; those of the
            data and the model have no effect here and are refused.

    Attributes:
        config: the settings.
        augment: the augmentation where a phase has none; settled with an `"auto"` schedule.
        workers: the processes that train together, see `distributed.single_process`.
        devices: factor of the batch size, see `scaling`.
        advice: the second result of `choose`, once it was called.
        val_outputs: raw outputs of the validated weights for the validation examples, float32 [N, C] (a
            dict with several heads), once `fit` is finished.

    Raises:
        InputError: if a setting is out of its range, or the model cannot be trained so.
    """

    def __init__(
        self,
        model: keras.Model,
        schedule: str | Schedule = recipes.AUTO,
        config: TrainConfig | None = None,
        *,
        distribute: str | SingleProcess | None = "auto",
        choose: Callable | None = None,
        **settings,
    ):
        check_names(settings)
        self.config = config = dataclasses.replace(config or TrainConfig(), **settings)
        self.workers = resolve_workers(distribute)
        if self.workers.distributed and config.data_service:
            raise InputError(
                "data_service and distribute cannot be combined: leave out one of them."
            )
        if self.workers.distributed and config.refit == REFIT:
            raise InputError("refit 'always' is for one process: leave it out, or distribute.")
        self.devices = self.workers.replicas if config.scaling == "auto" else 1
        self.model = model
        check_balance(config.balance, [head.task for head in heads_of(model).values()])
        self._recipe = schedule
        self._overrides = {**config.overrides, **config.recipe_arguments}
        self._any_augment = config.augment == recipes.AUTO
        self.augment = "light" if self._any_augment else config.augment
        self.advice = None
        self.val_outputs = None
        self._choose = choose
        self._head_in_steps = False  # although it has a closed form
        if schedule != recipes.AUTO or choose is None:
            self._schedule(1000)  # validate now rather than after the first epoch

    def _schedule(self, examples: int, head_in_steps: bool = False) -> Schedule:
        obstacle = self._closed_form_obstacle()
        in_steps = obstacle is not None or head_in_steps or self._head_in_steps
        schedule = recipes.resolve_schedule(
            self._default_recipe() if self._recipe == recipes.AUTO else self._recipe,
            self._overrides,
            examples=examples,
            image_size=size_of(self.model.input_shape),
            linear_head=not in_steps,
            attention_stages=attention_stages(self.model),
            rate_scale=modality_of(self.model).rate_scale,
        )
        for phase in schedule.phases:
            if phase.solver == "logistic" and obstacle:
                raise InputError(f"Phase '{phase.name}': solver 'logistic' {obstacle}.")
            check_class_weights(phase.class_weights, self.heads)
            if self.mixing(phase) and (self.head is None or self.head.task == "regression"):
                raise InputError(
                    f"Phase '{phase.name}': mix needs a single head of classes or labels, because "
                    "half of each of two images does not measure the mean of their numbers."
                )
            self.smoothed_heads(phase)
        return schedule

    def _closed_form_obstacle(self) -> str | None:
        """Return why the head cannot be fitted in closed form, or None."""
        if any(head.hidden or head.bottleneck for head in self.heads.values()):
            return "fits one linear layer, but this head has hidden layers"
        if len(self.model.layers[1].output.shape) > 2:
            return "needs pooled features"
        return None

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
        settle_framing(self.model, data)
        choice, self.advice = self._choose(self, data)
        self._recipe = choice.strategy
        self._overrides = {**choice.overrides, **self._overrides}
        if self._any_augment:
            self.augment = plain_augmentation(choice.augment)

    def _settle_augmentation(self, data):
        """Replace an open augmentation by the one that suits the data."""
        if self._any_augment and self.augment == "light":
            self.augment = data.modality.default_augmentation(data, size_of(self.model.input_shape))

    # -- what a phase trains with

    @property
    def heads(self) -> dict[str, Head]:
        """Name → head of the model."""
        return heads_of(self.model)

    @property
    def head(self) -> Head | None:
        """The model's head, or None if it has several."""
        heads = list(self.heads.values())
        return heads[0] if len(heads) == 1 else None

    def augmentation(self, phase: Phase):
        """Return the augmentation of a phase's training images."""
        chosen = self.augment if phase.augment is None else phase.augment
        return modality_of(self.model).resolve_augmentation(chosen)

    def mixing(self, phase: Phase) -> Mix:
        """Return how a phase mixes training images; a closed form does not."""
        if phase.solver == "logistic":
            return Mix()
        kind = self.config.mix if phase.mix is None else phase.mix
        return Mix(kind, self.config.mix_alpha if phase.mix_alpha is None else phase.mix_alpha)

    def balancing(self, phase: Phase, labels) -> dict:
        """Return the options of a training stream that compensate for unequal classes."""
        weights = phase.class_weights
        if weights is None and self.config.balance == "sampling":
            return {"equal_classes": True}
        if weights is None and self.config.balance == "weights":
            weights = "balanced"
        if weights is None:
            return {}
        return {
            "class_weights": class_weights(weights, next(iter(self.heads.values())).names, labels)
        }

    def smoothed_heads(self, phase: Phase) -> dict[str, Head]:
        """Return the heads with the phase's label smoothing, which regression does not have."""
        if phase.label_smoothing is None:
            return self.heads
        return {
            name: dataclasses.replace(head, label_smoothing=phase.label_smoothing)
            if head.task != "regression" or self.head
            else head
            for name, head in self.heads.items()
        }

    @cached_property
    def image_memory(self) -> ImageMemory:
        """Decoded images that come again."""
        return ImageMemory(min(_MOST_IMAGE_BYTES, free_memory() // 4))

    def forget_images(self) -> None:
        """Free the decoded images: other examples follow."""
        self.__dict__.pop("image_memory", None)

    # -- planning and training

    def plan(self, data) -> Plan:
        """Return what `fit` would do: `print(trainer.plan(data).table())`, `.draw("plan.png")`."""
        if self._recipe == recipes.AUTO:
            self._settle(data)
        self._settle_augmentation(data)
        return self._planned(data, self._must_train_head(data))

    def _planned(self, data, head_in_steps=False):
        examples = len(data.examples["train"])
        return self.plan_of(self._schedule(examples, head_in_steps), examples)

    def plan_of(self, schedule: Schedule, examples: int) -> Plan:
        """Return the plan of a schedule for one device, on all devices and a number of examples."""
        batch = self.config.batch_size
        schedule = scaled(schedule, self.devices, batch)
        return make_plan(self.model, schedule, examples, batch * self.devices)

    def _must_train_head(self, data) -> bool:
        """Return whether a recipe trains its head in steps because the features do not fit.

        Only where other phases follow: `feature_extraction` raises the error, because all that it
        does is the closed form.
        """
        plan = self._planned(data)
        closed = tuple(p for p in plan.phases if p.phase.solver == "logistic")
        if self._head_in_steps or not closed or len(closed) == len(plan.phases):
            return self._head_in_steps
        try:
            self.plan_phase_caching(dataclasses.replace(plan, phases=closed), data)
        except InputError as error:
            # A schedule that names the solver raises the error when it is trained.
            if not _closed(
                self._schedule(len(data.examples["train"]), head_in_steps=True).to_dict()
            ):
                say(f"{str(error).split('. ')[0]}: the head is trained in steps instead")
                return True
        return False

    def plan_caching(self, data) -> list[tuple[Caching | None, str]]:
        """Return for each phase how its frozen part would be cached, or None, and why."""
        return self.plan_phase_caching(self.plan(data), data)

    def plan_phase_caching(self, plan: Plan, data) -> list[tuple[Caching | None, str]]:
        """Return the same for a plan."""
        counts = {split: len(part) for split, part in data.examples.items()}
        return [
            plan_caching(
                self.config.cache,
                planned,
                self.model,
                counts,
                self.augmentation(planned.phase),
                self.mixing(planned.phase),
                store=Store(),
                dtype=self.config.feature_dtype,
            )
            for planned in plan.phases
        ]

    def fit(
        self,
        data,
        out,
        *,
        config: dict | None = None,
        resume: bool = False,
        callbacks=(),
        tensorboard: bool = False,
        logs: Sequence[str] = (),
    ) -> Run:
        """Train, and write a run with the weights of one epoch, see `keep`.

        Args:
            data: a `keras_transfer.data.ImageData`.
            out: directory of the run; it must be missing or empty, unless `resume`.
            config: further settings to record in `config.yaml`. The folder of
                `data.from_directory` is always recorded.
            resume: continue an interrupted run with the same settings and examples; the model must
                be built as it was then. If nothing was started yet, start.
            callbacks: of Keras, called after an epoch is saved. The numbers of epochs count on over
                the phases. They are not called for a head in closed form, nor in a second training on
                all examples (`refit`). An exception ends the training.
            tensorboard: short for `logs=["tensorboard"]`.
            logs: where each epoch's numbers are logged as it ends, for a resumed run from there on:
                `"tensorboard"` (`RUN/tensorboard`), `"mlflow"` (also settings and files, see
                `training.logs.MlflowLog`).

        Returns:
            The finished `Run`. `self.model` has the saved weights.

        Raises:
            InputError: if the model's heads do not match the data, `out` is not empty, the run to
                resume is finished or began with other settings or examples, or memory or disk is
                full.
            Diverged: if the loss became NaN or infinite; the run has the best model before that.
            Interrupted: after Ctrl-C or SIGTERM; `resume` continues after the last finished epoch.
            WorkerLost: if another process of a distributed training is gone.
        """
        logs = check_logs([*(["tensorboard"] if tensorboard else []), *logs])
        remember_saved_attributes()
        with self.workers.guarded():
            previous = self._previous_settings(out) if resume else None
            data = self._prepared(data, previous)
            in_steps = self._head_in_steps
            if previous is None:  # the memory and the disk of the chief decide
                in_steps = self.workers.on_chief(lambda: self._must_train_head(data))
            plan = self._planned(data, in_steps)
            again = refit_follows(self, data, plan, previous)
            save = Run.keep_validated if again else Run.finish
            training = TrainingRun(self, data, plan, callbacks, save)
            schedule = self._schedule(len(data.examples["train"]), in_steps)
            places = absolute_paths({**data.source, **(config or {})}, PLACES)
            settings = {**self.settings(schedule, places), REFITS: again}
            run = training.fit(out, settings, previous, logs)
            if again:
                finish_refitted(self, data, run)
                training.progress.finish_logs()
            return run

    def refit(self, data, run: Run, folder, callbacks=()) -> dict | None:
        """Train the model of a finished run again on all examples, see `training.refit`.

        Args:
            data: the examples of the run.
            run: stays as it is; `self.model` gets the new weights.
            folder, callbacks: see `training.refit`.
        """
        with self.workers.guarded():
            return refit(self, self._prepared(data), run, folder, callbacks)

    def _prepared(self, data, previous=None):
        """Return the data in the order of the heads, after everything that it decides is settled."""
        data = check_targets(self.heads, data)
        fit_heads(self.model, data.examples["train"].labels)
        if previous is not None:
            self._adopt(previous)
        seen, val = backbone_of(self.model).seen, data.examples.get("val")
        if seen and val is not None and seen == val.digest:
            say(
                "a refit of this model has trained on the validation examples, which are too easy for it now: "
                "start from run.model_for('val'), or train with refit='never'"
            )
        settle_framing(self.model, data, self.workers.on_chief)
        if self._recipe == recipes.AUTO:
            self._settle(data)
        self._settle_augmentation(data)
        return data

    def settings(self, schedule: Schedule, extra: dict) -> dict:
        """Return the content of `config.yaml`, except for the caching.

        Args:
            schedule: for one device.
            extra: where the data are, and further settings to record.
        """
        heads = {n: {"task": h.task, "names": list(h.names)} for n, h in self.heads.items()}
        return {
            **extra,
            **self.config.training_dict(),
            "image_size": size_of(self.model.input_shape),
            **framing_of(self.model).recorded(),
            "augment": self.augment,
            **({"devices": self.devices} if self.devices > 1 else {}),
            "precision": self.model.dtype_policy.name,
            **({"heads": heads} if self.head is None else {"head": heads.popitem()[1]}),
            "schedule": schedule.to_dict(),
        }

    def _previous_settings(self, out):
        """Return the settings of the run to resume, or None if nothing was started."""

        def read():
            return Run.open(out, finished=False).config if Run.started(out) else None

        return self.workers.on_chief(read)

    def _adopt(self, previous):
        """Adopt the decisions that were made when the run began."""
        self.devices = previous.get("devices", 1)
        for name in {"soup", "calibrate"} - previous.keys():  # began before the setting existed
            self.config = dataclasses.replace(self.config, **{name: False})
        if not framing_of(self.model).settled:
            set_framing(self.model, framing_from(previous))
        # Before 0.2, recipes trained every head in steps; later, if its features did not fit.
        self._head_in_steps = not _closed(previous.get("schedule", {}))
        if not any(
            "roll_back" in phase for phase in previous.get("schedule", {}).get("phases", ())
        ):
            self._overrides = {"*.roll_back": False, **self._overrides}  # as in 0.1
        if self._any_augment:
            self.augment = previous["augment"]
            self._any_augment = False
        if self._recipe == recipes.AUTO:
            self._recipe, self._overrides = Schedule.from_dict(previous["schedule"]), {}


def _closed(schedule: dict) -> bool:
    """Return whether a schedule as plain data has a phase in closed form."""
    return any(phase.get("solver") == "logistic" for phase in schedule.get("phases", ()))
