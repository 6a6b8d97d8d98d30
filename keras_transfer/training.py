"""The trainer: runs a schedule phase by phase over `model.fit`."""

import contextlib
import dataclasses
import json
import math
import time
import warnings
from functools import cached_property, partial

import keras
import numpy as np

from keras_transfer import recipes
from keras_transfer.builders import backbone_of, head_layers, training_model
from keras_transfer.choices import check_overrides
from keras_transfer.data.augmentation import plain_augmentation, resolve_augmentation
from keras_transfer.data.balance import check_balance, check_class_weights, class_weights
from keras_transfer.data.mixing import Mix
from keras_transfer.data.report import find_twins
from keras_transfer.distribution import computing, faults, fitting, following
from keras_transfer.distribution.scaling import SCALINGS, scaled
from keras_transfer.distribution.workers import Workers, chosen
from keras_transfer.errors import InputError, say
from keras_transfer.failures import Diverged, Interrupted, Signals, explained
from keras_transfer.features import check_engine
from keras_transfer.features.caching import Caching, check_cache, plan_caching
from keras_transfer.features.store import Store
from keras_transfer.features.supply import Supply
from keras_transfer.freezing import freeze, quick_statistics
from keras_transfer.heads import (
    Head,
    by_head,
    check_targets,
    compile_arguments,
    fit_heads,
    heads_of,
)
from keras_transfer.machine import free_memory
from keras_transfer.measures import measured, outputs_of
from keras_transfer.optimizers import anchor_at, make_optimizer
from keras_transfer.plans import FORWARD, Plan, make_plan
from keras_transfer.precision import jit_compile
from keras_transfer.progress import Progress, SwapAverages, assign, collected
from keras_transfer.runs import Run
from keras_transfer.schedules import KEEP, Schedule
from keras_transfer.solvers import solve

_MOST_PICTURES = 1 << 30  # bytes of decoded pictures in memory
_HEAD_STEPS = 64
_MEASURED = 1024  # activations in one batch
_GO_ON = "go on with --resume (resume=True)"


class Trainer:
    """Trains a model of `build_model` along a schedule.

    Args:
        model: from `build_model`; its weights are changed.
        schedule: the name of a recipe (`recipes.RECIPES`), the path of a YAML file, a `Schedule`, or
            `"auto"`: what the advisor says of the first data that `fit` or `plan` sees (`auto.decide`),
            after which it is settled.
        overrides: other numbers for the recipe (`{"head_epochs": 2}`) and its phases
            (`{"all.learning_rate": 1e-4, "*.ema": 0.99}`), see `recipes.resolve_schedule`.
        epochs, learning_rate: short for those two arguments of the recipe. By default the number
            of epochs follows from the number of pictures, which `fit` sees.
        batch_size: pictures a step, ≥ 1, where the phase says nothing.
        augment: how training pictures vary, where the phase says nothing: `"none"`, `"light"`,
            `"medium"`, `"heavy"`, `"randaugment"`, a `data.Augmentation`, a transform of
            albumentations, a Keras layer, or a file, see `data.resolve_augmentation`; or `"auto"`:
            what the advisor says with an `"auto"` schedule, else `"light"`.
        mix: `"none"`, `"mixup"` or `"cutmix"`: training pictures of a batch are mixed with each
            other, and their labels alike, where the phase says nothing. Such a phase trains on
            pictures: nothing of it is cached. A head in closed form is not touched by it.
        mix_alpha: how strongly, see `data.Mix`.
        seed: fixes order, augmentation and dropout. Two runs with the same seed, model weights and
            machine are equal (on a GPU with `TF_DETERMINISTIC_OPS=1`).
        keep: `"best"` keeps the epoch with the highest validation accuracy (of labels: mean average
            precision), then least loss; of numbers and several heads the least loss alone;
            `"last"` the last one, whose accuracy no choice has flattered.
        balance: what is done about classes of unequal size: `"none"`; `"weights"`: each weighs by
            inverse frequency, see `data.balance.class_weights`; `"sampling"`: an epoch has as many
            pictures, of each class equally many (a closed form has no epochs: weights there). A
            phase's `class_weights` win over it.
        steps_per_execution: at most so many steps in one call of Keras, ≥ 1; the largest number
            that divides an epoch is taken. More than 1 helps where a step takes a few milliseconds
            (`scripts/step_times.py`); the loss is then looked at after each call only.
        validate_every: epochs from one validation to the next; the first and the last of a phase are
            always validated, and only validated ones are kept. By default each, but of few training
            pictures and many to validate on so seldom that it takes no longer than training.
        cache: where the activations of frozen stages are kept, so that they are computed once:
            `"disk"` (for later runs too, see `features.store`), `"memory"`, `"off"`, or `"auto"`:
            on disk where the estimated gain is worth it, see `features.caching`. Phases that train
            on pictures keep decoded ones in memory where they fit, unless it is `"off"`.
        engine: what computes them, see `features.engines`: `"auto"`, `"keras"` or `"openvino"`.
        feature_dtype: number format they are kept in; `"auto"` is that of the model where it fits,
            else float16.
        data_service: address of a tf.data service (`"grpc://HOST:PORT"`), whose workers read, resize
            and augment what phases train on in pictures, see `data.service`.
        distribute: `"auto"`: over the workers that `start_workers` has joined, if it has; `"none"`; or
            those workers, or their kind. The model must be built in their scope.
        scaling: what more devices do to a step, see `distribution.scaling`: `"auto"`: each has
            `batch_size` pictures, and the rate grows with their number; `"none"`: they share
            `batch_size` pictures, and the result is that of one device. A resumed run goes on with the
            batches that it began with, on whatever devices there are.

    The model's image size is that of its input.
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
        distribute: "str | Workers | None" = "auto",
        scaling: str = "auto",
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
        self.workers = chosen(distribute)
        if self.workers and data_service:
            raise InputError("A tf.data service cannot be used with distribute: leave out either.")
        # How many times the batch and the rate are those of one device.
        self._devices = self.workers.replicas if self.workers and scaling == "auto" else 1
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
        if schedule == recipes.AUTO:
            check_overrides(self._overrides)
        else:
            self._schedule(1000)

    def _schedule(self, pictures) -> Schedule:
        schedule = recipes.resolve_schedule(
            self._recipe,
            self._overrides,
            pictures=pictures,
            image_size=self.model.input_shape[1],
            linear_head=self._closed_form_obstacle() is None,
        )
        for phase in schedule.phases:
            if phase.solver == "logistic" and self._closed_form_obstacle():
                raise InputError(
                    f"Phase '{phase.name}': solver 'logistic' {self._closed_form_obstacle()}."
                )
            check_class_weights(phase.class_weights, self.heads)
            if self._mix(phase) and (self.head is None or self.head.task == "regression"):
                raise InputError(
                    f"Phase '{phase.name}': mix is for one head of classes or labels: half of each of "
                    "two pictures does not measure their mean."
                )
            self._smoothed(phase)
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
        pictures = len(data.examples["train"])
        schedule = scaled(self._schedule(pictures), self._devices, self.batch_size)
        return make_plan(self.model, schedule, pictures, self.batch_size * self._devices)

    def plan_caching(self, data) -> list[tuple[Caching | None, str]]:
        """For each phase how its frozen part would be computed once, or None and why not."""
        return self._caching(self.plan(data), data)

    def _settle(self, data):
        """The advisor's choice in place of `"auto"`; the model's weights stay as they are."""
        from keras_transfer.auto import decide, trained
        from keras_transfer.likeness import is_untrained

        if self.workers:
            raise InputError(
                "An 'auto' schedule is not decided with distribute: take what `keras-transfer advise` "
                "says of the data on one machine, and name it."
            )

        if is_untrained(backbone_of(self.model)):
            say("no advice: the backbone's weights are random, so everything is trained")
            self._recipe = "from_scratch"
            return
        start = self.model.get_weights()

        def build(_):
            self.model.set_weights(start)
            return self.model

        options = (
            "batch_size",
            "mix",
            "mix_alpha",
            "seed",
            "balance",
            "cache",
            "engine",
        )
        choice, self.advice = decide(
            data,
            trained(
                build,
                overrides=self._overrides,
                **{option: getattr(self, option) for option in options},
                augment=recipes.AUTO if self._any_augment else self.augment,
            ),
            backbones=[self.model],
            batch_size=self.batch_size,
            engine=self.engine,
            seed=self.seed,
        )
        self.model.set_weights(start)
        self._recipe = choice.strategy
        self._overrides = {**choice.overrides, **self._overrides}
        if self._any_augment:
            self.augment = plain_augmentation(choice.augment)

    def _caching(self, plan, data):
        pictures = {split: len(part) for split, part in data.examples.items()}
        return [
            plan_caching(
                self.cache,
                planned,
                self.model,
                pictures,
                self._augment(planned.phase),
                self._mix(planned.phase),
                store=Store(),
                dtype=self.feature_dtype,
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
    ) -> Run:
        """Trains, keeps the weights of one epoch (see `keep`), writes the run.

        Args:
            data: a `keras_transfer.data.ImageData`.
            out: directory of the run; must not exist, or be empty, unless `resume`.
            config: what else shall stand in `config.yaml` (the command's settings).
            resume: go on with an interrupted run of the same settings and pictures. The model must
                be built as it was then. Where nothing was begun yet, it begins.
            callbacks: of Keras, told of each epoch once it is kept (an epoch's number counts on over
                the phases; a head in closed form has none). What they raise ends the training.
            tensorboard: write each epoch's numbers into `RUN/tensorboard`, as it ends; of a resumed run
                those from there on.

        Returns:
            The finished `Run`. `self.model` has the kept weights.

        Raises:
            InputError: the model's heads are not the data's; `out` is not empty; the run to
                resume is finished, or its settings or pictures changed; memory or disk is full.
            Diverged: the loss became NaN or infinite; the best model before that is in the run.
            Interrupted: Ctrl-C or SIGTERM; `resume` goes on after the last finished epoch.
            WorkerLost: another process of those that train together is gone.
        """
        with faults.guarded(self.workers):
            return self._fit(data, out, config, resume, callbacks, tensorboard)

    def _fit(self, data, out, config, resume, callbacks, tensorboard):
        workers = self.workers
        check_targets(self.heads, data)
        self._callbacks = list(callbacks)
        fit_heads(self.model, data.examples["train"].labels)
        begun = self._begun(out) if resume else None
        resume = begun is not None
        if resume:
            self._devices = begun.get("devices", 1)
            if self._recipe == recipes.AUTO:
                self._recipe, self._overrides = Schedule.from_dict(begun["schedule"]), {}
                if self._any_augment:
                    self.augment = begun["augment"]
        plan = self.plan(data)
        schedule = plan.schedule
        keras.utils.set_random_seed(self.seed)
        pictures = data.fingerprint()
        if workers:
            fitting.check(workers, self.model, schedule)
            workers.agree("pictures", json.dumps(pictures).encode())
        if warning := find_twins(data).warning:
            say(warning)
        if resume:
            # What was decided by the room on the disk is not decided again.
            caching = [Caching(**fields) if fields else None for fields in begun.get("caching", [])]
        else:
            caching, reasons = self._decided_caching(plan, data)
        settings = self._config(self._schedule(len(data.examples["train"])), caching, config)
        first = data.skipped, pictures, data.split_table()
        if workers:
            workers.agree("settings", json.dumps(settings, default=str).encode())
        if resume:
            run = (
                following.resume(workers, out, settings, pictures)
                if workers
                else Run.resume(out, settings, pictures)
            )
        elif workers:
            run = following.create(workers, out, settings, *first)
        else:
            run = Run.create(out, settings, *first)
        if schedule.zero_head:
            for weight in (w for name in self.heads for w in self.model.get_layer(name).weights):
                weight.assign(np.zeros(weight.shape))
        if workers:
            workers.agree("weights", b"".join(w.tobytes() for w in self.model.get_weights()))
        self._start = self._starting_weights(run, schedule, resume)
        self._validated = None
        say(plan.table())
        if not resume:
            for planned, chosen, reason in zip(plan.phases, caching, reasons):
                if planned.frozen:
                    say(
                        f"cache: phase {planned.phase.name} {chosen or f'trains on pictures: {reason}'}"
                    )
        with Signals() as signals:
            progress = Progress(run, self.model, self.seed, self.keep, signals)
            progress.validates = "val" in data.examples
            progress.lane = workers.seed_offset if workers else 0
            if tensorboard and (workers is None or workers.chief):
                from keras_transfer.tensorboard import EpochLog

                progress.told = EpochLog(run.tensorboard_path)
            arrays = progress.load() if resume else None
            if arrays:
                say(f"resuming after epoch {progress.epoch}")
            supply = partial(
                Supply,
                data=data,
                phases=plan.phases,
                caching=caching,
                views=[
                    c and c.training_views(self._augment(p.phase))
                    for c, p in zip(caching, plan.phases)
                ],
                engines=progress.engines,
                memory=self._memory if any(caching) else None,
            )
            if workers is None:
                supply = supply(self.model, engine=self.engine)
            try:
                while progress.phase < len(plan.phases):
                    planned = plan.phases[progress.phase]
                    with explained(planned, _GO_ON):
                        if workers is None:
                            features = supply.of(progress.phase)
                        else:
                            features = self._features_together(supply, progress.phase)
                        if planned.phase.solver == "logistic":
                            self._solve_phase(planned, data, progress, features)
                        else:
                            self._run_phase(planned, data, progress, features, arrays)
                    arrays = None
                with explained(plan.phases[-1], _GO_ON), signals.protected():
                    self._finish(run, progress, data, plan)
            except Diverged as error:
                if progress.best:
                    self._finish(run, progress, data, plan, stopped=str(error))
                raise
            except KeyboardInterrupt:
                if run.finished:
                    raise Interrupted(f"interrupted when {run.path} was finished") from None
                raise Interrupted(
                    f"interrupted in epoch {progress.epoch + 1}; {progress.epoch} epochs are kept in "
                    f"{run.path}: {_GO_ON}"
                ) from None
        if workers:
            workers.barrier()  # who ends first would look lost to the others
        return run

    def _begun(self, out):
        """Settings of the run to be resumed; None where nothing was begun."""
        if self.workers:
            return following.begun_config(self.workers, out)
        return Run.open(out, finished=False).config if Run.begun(out) else None

    def _decided_caching(self, plan, data):
        """`_caching`, which depends on the room of a machine: the chief's, of several."""
        if self.workers is None:
            return zip(*self._caching(plan, data))

        def decide():
            return [(c and c.to_dict(), reason) for c, reason in self._caching(plan, data)]

        caching, reasons = zip(*self.workers.on_chief(decide))
        return [fields and Caching(**fields) for fields in caching], reasons

    def _features_together(self, supply, phase):
        """The activations of a phase, each worker computing a share, with the weights of now."""
        own = self.workers.own_model(self.model)
        # Which engine is fastest is measured, and might be another one on another machine.
        engine = "keras" if self.engine == "auto" else self.engine
        extract = partial(computing.extract_together, self.workers)
        return supply(own, engine=engine, extract=extract).of(phase)

    def _config(self, schedule, caching, extra):
        return {
            **(extra or {}),
            "image_size": self.model.input_shape[1],
            "batch_size": self.batch_size,
            "augment": self.augment,
            "mix": self.mix,
            "mix_alpha": self.mix_alpha,
            "seed": self.seed,
            "keep": self.keep,
            **({"devices": self._devices} if self._devices > 1 else {}),
            "balance": self.balance,
            "precision": self.model.dtype_policy.name,
            "cache": self.cache,
            "engine": self.engine,
            "feature_dtype": self.feature_dtype,
            "caching": [chosen and chosen.to_dict() for chosen in caching],
            **self._described_heads(),
            "schedule": schedule.to_dict(),
        }

    def _described_heads(self):
        heads = {n: {"task": h.task, "names": list(h.names)} for n, h in self.heads.items()}
        return {"heads": heads} if self.head is None else {"head": heads.popitem()[1]}

    def _starting_weights(self, run, schedule, resume):
        """What L2-SP pulls to: the weights before the first phase, also in a resumed run."""
        if not any(phase.l2_sp for phase in schedule.phases):
            return {}
        start = run.load_start() if resume else None
        if start is None:
            start = collected(self.model.weights, "start")
            run.save_start(start)
        return {id(w): start[f"start/{i}"] for i, w in enumerate(self.model.weights)}

    def _solve_phase(self, planned, data, progress, features):
        """The heads in closed form, as an epoch of their own."""
        started = time.perf_counter()
        frozen = freeze(self.model, "all")
        progress.start_phase(planned, frozen, [])
        train = features["train"]
        rows = np.arange(len(data.examples["train"]))
        activations = np.concatenate(
            [train.gather(rows, view) for view in range(train.views)]
        ).astype("float32")
        labels = by_head(self.heads, data.examples["train"].labels)
        weights = planned.phase.class_weights or ("balanced" if self.balance != "none" else None)
        for name, head in self.heads.items():
            layer, solved = self.model.get_layer(name), {}
            if self.workers is None or self.workers.chief:
                found = solve(
                    head.task,
                    activations,
                    np.concatenate([head.from_units(labels[name])] * train.views),
                    np.tile(rows, train.views),
                    class_weights=weights and class_weights(weights, head.names, labels[name]),
                    seed=self.seed,
                )
                say(f"head: {found}" if self.head else f"head {name}: {found}")
                solved = {"kernel": found.kernel, "bias": found.bias}
            if self.workers:
                solved = self.workers.arrays_from_chief(solved)
            layer.kernel.assign(solved["kernel"])
            layer.bias.assign(solved["bias"])
        own, alone = self._own_model()
        logs = {}
        with alone():
            model = training_model(
                own, planned.frozen, image_size=planned.image_size, from_cut=True
            )
            # Eagerly: it is one pass, and a graph takes longer to make.
            model.compile(**compile_arguments(self.heads), run_eagerly=True)
            for split, prefix in (("train", ""), ("val", "val_")):
                if split in features:
                    stream = self._measured_on(features[split], data.examples[split].labels, model)
                    found = model.evaluate(stream, return_dict=True, verbose=0)
                    logs |= {prefix + name: value for name, value in found.items()}
                    self._validated = planned, partial(outputs_of, model, stream)
        progress.record(logs, {"learning_rate": ""}, time.perf_counter() - started)

    def _own_model(self):
        """The model, and what gives a context, for what this process does without the others."""
        if self.workers is None:
            return self.model, contextlib.nullcontext
        return self.workers.own_model(self.model), self.workers.alone

    def _measured_on(self, activations, labels, model):
        from keras_transfer.features import batches

        dtype = model.inputs[0].dtype
        return batches.batches(activations, labels, batch_size=_MEASURED, dtype=dtype)

    def _run_phase(self, planned, data, progress, features, arrays):
        """One compile and fit; `arrays` is the state to go on from, where there is one."""
        with self.workers.scope() if self.workers else contextlib.nullcontext():
            self._fit_phase(planned, data, progress, features, arrays)

    def _fit_phase(self, planned, data, progress, features, arrays):
        phase, workers = planned.phase, self.workers
        frozen = freeze(self.model, phase.freeze, batch_norm=phase.batch_norm)
        model = training_model(
            self.model,
            planned.frozen,
            image_size=planned.image_size,
            from_cut=bool(features),
            fold=phase.batch_norm == "frozen",
        )
        self._set_dropout(phase)
        optimizer = make_optimizer(self.model, phase, planned.steps, model.trainable_variables)
        measures = compile_arguments(self._smoothed(phase))
        model.compile(
            optimizer=optimizer,
            **(fitting.weighted(measures) if workers else measures),
            jit_compile=jit_compile(),
            steps_per_execution=self._steps_per_execution(planned, bool(features)),
        )
        optimizer.build(model.trainable_variables)
        anchor_at(optimizer, self._start)
        resumed = arrays is not None and progress.phase_epoch > 0
        if resumed:  # otherwise the optimizer in there was another phase's
            assign(optimizer.variables, arrays, "optimizer")

        watched = list(_watchers(phase, "val" in data.examples))
        averages = [SwapAverages()] if phase.ema else []
        if resumed and averages:
            averages[0].resume()
        progress.start_phase(planned, frozen, watched)
        # An epoch on activations may be shorter than the writing of its state.
        progress.save_seconds = 1.0 if features else 0.0
        dtype = model.inputs[0].dtype
        stream = self._batches(data, "train", planned, features, dtype, start_epoch=progress.epoch)
        validation = None
        if "val" in data.examples:
            validation = self._batches(data, "val", planned, features, dtype)
            self._validated = planned, partial(outputs_of, model, validation)
        more, joined = [], contextlib.nullcontext()
        if workers:
            workers.prepare(model, stream)
            stream = workers.stream(stream)
            validation = None if validation is None else workers.stream(validation)
            more, joined = [fitting.Beats(workers)], fitting.synchronised(workers, self.model)
        with quick_statistics(self.model), joined:
            model.fit(
                stream,
                validation_data=validation,
                # Of one device the stream ends by itself; of a share's it does not.
                validation_steps=data.steps("val", planned.batch_size)
                if workers and validation is not None
                else None,
                steps_per_epoch=planned.steps_per_epoch,
                initial_epoch=progress.epoch,
                epochs=progress.epoch - progress.phase_epoch + planned.epochs,
                validation_freq=self._validated_epochs(planned, data, progress, watched, features),
                callbacks=[*more, *watched, *averages, progress, *self._callbacks],
                shuffle=False,  # the stream is shuffled already
                verbose=0,
            )

    def _validated_epochs(self, planned, data, progress, watched, features):
        """Numbers of the phase's epochs, counted from 1 over all phases, that end with a validation."""
        every = self.validate_every
        if watched or features:  # it is looked at each time, or costs next to nothing
            every = every or 1
        if every is None:
            passes = data.steps("val", planned.batch_size) if "val" in data.examples else 0
            every = math.ceil(passes * FORWARD / planned.steps_per_epoch)
        first = progress.epoch - progress.phase_epoch + 1
        last = first + planned.epochs - 1
        return sorted({*range(first, last + 1, max(1, every)), last})

    def _smoothed(self, phase):
        """The heads with the phase's label smoothing, which numbers have none of."""
        heads = self.heads
        if phase.label_smoothing is None:
            return heads
        return {
            name: dataclasses.replace(head, label_smoothing=phase.label_smoothing)
            if head.task != "regression" or self.head
            else head
            for name, head in heads.items()
        }

    def _steps_per_execution(self, planned, from_cut):
        if self.workers:
            return 1  # Keras's loop of steps is not for iterators of strategies
        most = self.steps_per_execution
        if from_cut and planned.frozen == len(planned.rates):
            most = max(most, _HEAD_STEPS)  # a head's step is shorter than the call of it
        # Keras would run on into the next epoch's pictures with any other.
        epoch = math.gcd(planned.steps_per_epoch, planned.steps)
        return max(n for n in range(1, most + 1) if epoch % n == 0)

    def _augment(self, phase):
        return resolve_augmentation(self.augment if phase.augment is None else phase.augment)

    def _mix(self, phase):
        if phase.solver == "logistic":
            return Mix()
        kind = self.mix if phase.mix is None else phase.mix
        return Mix(kind, self.mix_alpha if phase.mix_alpha is None else phase.mix_alpha)

    def _batches(self, data, split, planned, features, dtype, start_epoch=None):
        options = {"batch_size": planned.batch_size}
        if self.workers:
            options["share"] = self.workers.share
        order = {}
        if start_epoch is not None:
            order = {"seed": self.seed, "start_epoch": start_epoch}
            order |= self._balancing(planned.phase, data.examples["train"].labels)
        if features:
            from keras_transfer.features import batches

            labels = data.examples[split].labels
            options["dtype"] = dtype
            if start_epoch is None:
                return batches.batches(features[split], labels, **options)
            return batches.training_batches(features[split], labels, **options, **order)
        if self.data_service:
            options["service"] = self.data_service
        elif self.cache != "off" and planned.epochs > 1:
            options["memory"] = self._memory
        return data.batches(
            split,
            image_size=planned.image_size,
            training=start_epoch is not None,
            augment=self._augment(planned.phase),
            mix=self._mix(planned.phase),
            **options,
            **order,
        )

    def _balancing(self, phase, labels):
        """How the training stream makes up for classes of unequal size."""
        if phase.class_weights is None and self.balance == "sampling":
            return {"equal_classes": True}
        weights = phase.class_weights or ("balanced" if self.balance == "weights" else None)
        if weights is None:
            return {}
        return {"class_weights": class_weights(weights, self.head.names, labels)}

    @cached_property
    def _memory(self):
        from keras_transfer.data.pipeline import PictureMemory

        return PictureMemory(min(_MOST_PICTURES, free_memory() // 4))

    def _set_dropout(self, phase):
        for name, layers in head_layers(self.model).items():
            rate = self.heads[name].dropout if phase.dropout is None else phase.dropout
            for layer in layers:
                if not isinstance(layer, keras.layers.Dropout):
                    continue
                if rate and not hasattr(layer, "seed_generator"):
                    raise InputError(
                        f"Phase '{phase.name}': dropout {rate} needs a head that was built with "
                        "dropout; this one has 0."
                    )
                layer.rate = rate

    def _finish(self, run, progress, data, plan, **more):
        progress.load_best()
        freeze(self.model, "none", batch_norm="train")
        model, alone = self._own_model()
        # A plain optimizer: the file opens without this package's, and is a third of the size.
        with alone(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.compile(
                optimizer=keras.optimizers.AdamW(1e-5),
                **compile_arguments(self.heads),
                jit_compile=jit_compile(),
            )
        metrics = progress.metrics(data, **more)
        if "val" in data.examples:
            details = measured(self.heads, *self._val_outputs(progress, data, plan))
            metrics["val"] = {**details, **metrics["val"]}
        with alone():  # the chief saves, and what it does for that the others do not
            run.finish(model, metrics)

    def _val_outputs(self, progress, data, plan):
        """Labels and outputs of the kept weights on the validation pictures.

        From what the last phase was validated with: its activations, or pictures that are decoded
        already. Activations hold for the kept weights where their part of the network has not been
        trained since. Of several workers each predicts a share of the pictures.
        """
        if self.workers:
            return computing.outputs_together(
                self.workers, self.model, data, "val", self.batch_size
            )
        if self._validated is not None:
            planned, outputs = self._validated
            ends = np.cumsum([entry["epochs"] for entry in progress.phases])
            since = plan.phases[np.searchsorted(ends, progress.best["epoch"]) :]
            own_size = planned.image_size == self.model.input_shape[1]
            if own_size and all(later.frozen >= planned.frozen for later in since):
                return outputs()
        batches = data.batches(
            "val", image_size=self.model.input_shape[1], batch_size=self.batch_size
        )
        return outputs_of(self.model, batches, data.steps("val", self.batch_size))


def _watchers(phase, has_validation):
    """The callbacks of Keras that end a phase or lower its rate."""
    monitor = "val_loss" if has_validation else "loss"
    if phase.shape == "plateau":
        yield keras.callbacks.ReduceLROnPlateau(
            monitor, factor=phase.drop_factor, patience=phase.patience
        )
    if phase.early_stopping:
        yield keras.callbacks.EarlyStopping(monitor, patience=phase.early_stopping)
