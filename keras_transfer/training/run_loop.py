"""One training from its first phase to the finished run."""

import json
import math
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import keras
import numpy as np

from keras_transfer.errors import Diverged, Interrupted, Signals, explained
from keras_transfer.evaluation.measures import compute_metrics, predict_batches
from keras_transfer.features.caching import Caching, Supply
from keras_transfer.features.extraction import evaluation_batches, training_batches
from keras_transfer.features.known import say_cautions
from keras_transfer.models.acceleration import jit_compile, training_model
from keras_transfer.models.builders import compile_arguments
from keras_transfer.models.framing import framing_of
from keras_transfer.models.low_rank import factors_of, merge
from keras_transfer.models.stages import freeze, quick_statistics
from keras_transfer.runs import PLACES, STARTED_FROM, Run
from keras_transfer.schedules.plans import Plan, anchor_at, make_optimizer, set_restart
from keras_transfer.training.checkpoint import Progress, SwapAverages, watching_callbacks
from keras_transfer.training.networks import network_of
from keras_transfer.training.retraining import earlier_training, remember_training, say_start
from keras_transfer.training.solving import solve_heads
from keras_transfer.training.soup import obstacle
from keras_transfer.training.temperature import scale_logits
from keras_transfer.training.weights import assign, collect
from keras_transfer.utils.console import counted, say
from keras_transfer.utils.global_state import seeded
from keras_transfer.utils.image_sizes import size_of

_RESUME = "continue with --resume (resume=True)"
_HEAD_STEPS = 64  # steps per call of Keras if only the head trains
_EVALUATED = 1024  # features per batch


class TrainingRun:
    """One call of `Trainer.fit`.

    Everything that a phase trains with is a function of the trainer's settings, the phase and the
    data, and nothing depends on what ran before, so resuming is exact.

    Args:
        trainer: the `training.Trainer`.
        data: the examples, a `keras_transfer.data.ImageData`.
        plan: the trainer's plan for them.
        callbacks: the user's Keras callbacks.
        save: saves model and metrics when the last phase is over; `Run.finish` unless more follows.
        before: `phases` in metrics.json of a training on fewer examples, whose closed forms are fitted
            with the strengths that were chosen then.
    """

    def __init__(self, trainer, data, plan: Plan, callbacks, save=Run.finish, before=()):
        self.trainer, self.data, self.plan = trainer, data, plan
        self.callbacks, self.save, self.before = list(callbacks), save, before
        self.model, self.workers = trainer.model, trainer.workers
        # The last phase, and a function that returns labels and outputs of its validation stream.
        self.validated: tuple | None = None
        self.averages = False  # whether the best epochs of the current phase are averaged

    def fit(self, out, settings: dict, previous: dict | None, logs: Sequence[str]) -> Run:
        """Train all phases.

        Args:
            out: directory of the run.
            settings: see `Trainer.settings`.
            previous: settings of the run to resume; None starts a new one.
            logs: see `Trainer.fit`.
        """
        self.earlier = earlier_training(self.model)
        if self.earlier and not previous:
            settings = {**settings, STARTED_FROM: self.earlier}
        with seeded(self.trainer.config.seed), ExitStack() as self.cleanup:
            self.cleanup.callback(remember_training, self.model, out)
            merge(self.model)  # of low-rank updates that it came with
            return self._fit(out, settings, previous, logs)

    def _fit(self, out, settings, previous, logs):
        phases = self.plan.phases
        run, checkpoint, caching = self._begin(out, settings, previous)
        with Signals() as signals:
            val = self.data.examples.get("val", ())
            groups = getattr(val, "groups", None)
            progress = self.progress = Progress(
                run,
                checkpoint,
                self.trainer,
                signals,
                validation=len(val if groups is None else np.unique(groups)),
                logs=logs,
            )
            arrays = progress.load() if previous else None
            if arrays:
                say(f"resuming after epoch {progress.epoch}")
            elif self.earlier:  # also of this run, interrupted in its first epoch
                say_start(self.earlier)
            features_of = self._features(caching)
            try:
                while progress.phase < len(phases) and not self._cut_short():
                    planned = phases[progress.phase]
                    self.averages = self._decide_averaging(planned)
                    with explained(planned, _RESUME):
                        features = features_of(progress.phase)
                        if planned.phase.solver == "logistic":
                            self.solve_phase(planned, features)
                        else:
                            self.fit_phase(planned, features, arrays)
                    arrays = None
                with explained(phases[-1], _RESUME), signals.protected():
                    self._finish(run)
            except Diverged as error:
                if progress.best:
                    self._finish(run, stopped=str(error))
                raise
            except (KeyboardInterrupt, Exception) as error:
                if not isinstance(error, KeyboardInterrupt) and not signals.stopped:
                    raise
                if run.finished:
                    raise Interrupted(f"interrupted after {run.path} was finished") from None
                raise Interrupted(
                    f"interrupted in epoch {progress.epoch + 1}; "
                    f"{counted(progress.epoch, 'finished epoch')} saved in {run.path}: {_RESUME}"
                ) from None
            finally:
                progress.close()
        self.workers.barrier()  # a process that ends first would look lost to the others
        return run

    def _cut_short(self):
        """Return whether a limit of time has ended a phase: the others would only be compiled."""
        before = self.plan.phases[: self.progress.phase]
        trained = any(p.phase.solver == "gradient" for p in before)
        return trained and any(getattr(each, "time_is_over", False) for each in self.callbacks)

    # -- before the first phase

    def _begin(self, out, settings, previous):
        """Return (run, checkpoint, caching of each phase), which all workers agree on."""
        data, workers = self.data, self.workers
        schedule, fingerprints = self.plan.schedule, data.fingerprint()
        workers.check(self.model, schedule)
        workers.agree("examples", lambda: json.dumps(fingerprints).encode())
        say_cautions(data)
        if previous:
            # What depended on the free disk space is not decided again.
            caching = [
                Caching(**fields) if fields else None for fields in previous.get("caching", [])
            ]
        else:
            caching, reasons = self._decide_caching()
        settings = {**settings, "caching": [chosen and chosen.to_dict() for chosen in caching]}
        decisive = {key: value for key, value in settings.items() if key not in PLACES}
        workers.agree("settings", lambda: json.dumps(decisive, default=str).encode())
        if previous:
            run, checkpoint = workers.resume_run(out, settings, fingerprints)
        else:
            first = data.skipped, fingerprints, data.split_table()
            run, checkpoint = workers.create_run(out, settings, *first)
        self.cleanup.callback(run.release)
        if schedule.zero_head:
            for name in self.trainer.heads:
                for weight in self.model.get_layer(name).weights:
                    weight.assign(np.zeros(weight.shape))
        workers.agree("weights", lambda: b"".join(w.tobytes() for w in self.model.get_weights()))
        self.anchors = self._starting_weights(checkpoint, bool(previous))
        say(self.plan.table())
        if not previous:
            for planned, chosen, reason in zip(self.plan.phases, caching, reasons):
                if planned.frozen:
                    what = chosen or f"trains on images: {reason}"
                    say(f"cache: phase {planned.phase.name} {what}")
        return run, checkpoint, caching

    def _decide_caching(self):
        """Return (caching, reason) of each phase; they depend on the chief's memory and disk."""

        def decide():
            found = self.trainer.plan_phase_caching(self.plan, self.data)
            return [(c and c.to_dict(), reason) for c, reason in found]

        caching, reasons = zip(*self.workers.on_chief(decide))
        return [fields and Caching(**fields) for fields in caching], reasons

    def _starting_weights(self, checkpoint, resume):
        """Save the weights before the first phase if they are needed; return those to which L2-SP pulls, by id."""
        anchored = any(phase.l2_sp for phase in self.plan.schedule.phases)
        if not anchored and self.save is Run.finish:
            return {}
        start = checkpoint.load_arrays("start") if resume else None
        if start is None:
            start = collect(self.model.weights, "start")
            checkpoint.save_arrays("start", start)
        weights = self.model.weights if anchored else ()
        return {id(w): start[f"start/{i}"] for i, w in enumerate(weights)}

    def _features(self, caching):
        """Return a function that computes the features of a phase, given its number."""
        trainer, phases = self.trainer, self.plan.phases
        make = partial(
            Supply,
            data=self.data,
            phases=phases,
            caching=caching,
            views=[
                c and c.training_views(trainer.augmentation(p.phase))
                for c, p in zip(caching, phases)
            ],
            engines=self.progress.engines,
            # Images that phases will read again.
            memory=trainer.image_memory if any(caching) and not all(caching) else None,
            engine=self.workers.engine(trainer.config.engine),
        )
        return self.workers.features(make, self.model)

    # -- a phase

    def solve_phase(self, planned, features: dict) -> None:
        """Fit the heads in closed form, which counts as one epoch.

        Args:
            planned: the `PlannedPhase`.
            features: split → its features.
        """
        started = time.perf_counter()
        frozen = freeze(self.model, "all")
        self.progress.start_phase(planned, frozen, [])
        before = self.before[self.progress.phase].get("closed_form") if self.before else None
        train = self.data.examples["train"], features["train"]
        chosen = solve_heads(self.trainer, planned.phase, *train, before)
        self.progress.phases[-1]["closed_form"] = chosen
        model = self.workers.own_model(self.model)
        logs: dict[str, float] = {}
        with self.workers.alone():
            model = training_model(
                model, planned.frozen, image_size=planned.image_size, from_cut=True
            )
            # Eagerly, because tracing a graph takes longer than one pass.
            model.compile(**compile_arguments(self.trainer.heads), run_eagerly=True)
            for split, prefix in (("train", ""), ("val", "val_")):
                if split in features:
                    stream = evaluation_batches(
                        features[split],
                        self.data.examples[split].labels,
                        batch_size=_EVALUATED,
                        dtype=model.inputs[0].dtype,
                    )
                    found = model.evaluate(stream, return_dict=True, verbose=0)
                    logs |= {prefix + name: value for name, value in found.items()}
                    self.validated = planned, partial(predict_batches, model, stream)
        self.progress.record(logs, {"learning_rate": ""}, time.perf_counter() - started)

    def fit_phase(self, planned, features: dict, arrays: dict | None) -> None:
        """Compile once and call Keras's `fit`, again after each return to the best weights.

        Args:
            planned: the `PlannedPhase`.
            features: split → its features; empty if the phase trains on examples.
            arrays: the checkpoint to continue from, if there is one.
        """
        progress, workers = self.progress, self.workers
        try:
            with workers.scope():
                network, fresh = self._compile(planned, features, arrays)
            resumed = arrays is not None and progress.phase_epoch > 0
            self._call_fit(network, planned, features, resumed and not progress.rolled_back)
            while progress.rolled_back:
                with workers.scope():
                    self._go_back(network, planned, fresh)
                self._call_fit(network, planned, features)
        finally:
            with workers.scope():
                merge(self.model)  # also after an interruption, the model is a plain one

    def _call_fit(self, network, planned, features, resumed=False):
        data, progress, workers = self.data, self.progress, self.workers
        averaging = [SwapAverages(resumed)] if planned.phase.ema else []
        # Outside the scope: random layers of a stream belong to this process, not to the devices.
        stream = self._stream("train", network, planned, features)
        validation, steps = None, 0
        if "val" in data.examples:
            validation = self._stream("val", network, planned, features)
            steps = data.steps("val", planned.batch_size)
            self.validated = planned, partial(predict_batches, network, validation)
        if self.averages:
            progress.evaluate = partial(
                network.evaluate, validation, steps=steps, return_dict=True, verbose=0
            )
        first = progress.epoch - progress.phase_epoch
        every = self.trainer.config.validate_every
        if progress.watching or features:  # a callback needs it, or it costs next to nothing
            every = every or 1
        with workers.scope(), quick_statistics(self.model):
            workers.fit(
                network,
                self.model,
                stream,
                validation,
                steps or None,
                steps_per_epoch=planned.steps_per_epoch,
                initial_epoch=progress.epoch,
                epochs=first + planned.epochs,
                validation_freq=planned.validated_epochs(first + 1, every, steps),
                callbacks=[*progress.watching, *averaging, progress, *self.callbacks],
                shuffle=False,  # the stream is already shuffled
                verbose=0,
            )

    def _compile(self, planned, features, arrays):
        """Return the network to train, and the state of its optimizer before the first step."""
        phase, progress = planned.phase, self.progress
        network, frozen = network_of(self.trainer, planned, progress.phase, bool(features))
        optimizer = make_optimizer(self.model, phase, planned.steps, network.trainable_variables)
        arguments = compile_arguments(self.trainer.smoothed_heads(phase))
        network.compile(
            optimizer=optimizer,
            **self.workers.loss_arguments(arguments),
            jit_compile=jit_compile(),
            steps_per_execution=self._steps_per_execution(planned, bool(features)),
        )
        optimizer.build(network.trainable_variables)
        anchor_at(optimizer, self.anchors)
        updates = factors_of(self.model)
        fresh = {}
        if progress.goes_back(phase):
            fresh = {**collect(optimizer.variables, "optimizer"), **collect(updates, "update")}
        progress.start_phase(
            planned, frozen, watching_callbacks(phase, "val" in self.data.examples), self._oldest()
        )
        if progress.rolled_back:
            self._go_back(network, planned, fresh)
        elif arrays is not None and progress.phase_epoch > 0:  # else it is that of another phase
            assign(optimizer.variables, arrays, "optimizer")
            assign(updates, arrays, "update")
        # An epoch on features may be shorter than writing a checkpoint.
        progress.save_seconds = 1.0 if features else 0.0
        return network, fresh

    def _oldest(self):
        """Return the first epoch whose frozen stages are those of this phase: features stay valid."""
        phases, index = self.plan.phases, self.progress.phase
        first = index
        while first > 0 and phases[first - 1].frozen >= phases[index].frozen:
            first -= 1
        return 1 + sum(entry["epochs"] for entry in self.progress.phases[:first])

    def _decide_averaging(self, planned):
        if not self.trainer.config.soup or planned is not self.plan.phases[-1]:
            return False
        reason = obstacle(self.trainer, planned, "val" in self.data.examples)
        if reason:
            say(f"soup: no epochs are averaged, because {reason}")
        return reason is None

    def _go_back(self, network, planned, fresh):
        """Put the best weights into the model, and a fresh optimizer at a lower rate on them."""
        self.progress.load_best()
        optimizer = network.optimizer
        assign(optimizer.variables, fresh, "optimizer")
        assign(factors_of(self.model), fresh, "update")
        set_restart(optimizer, *self.progress.restart(planned))

    def _stream(self, split, network, planned, features):
        """Return the tf.data stream of batches that a phase trains on or validates with."""
        trainer, data = self.trainer, self.data
        options = {"batch_size": planned.batch_size, "share": self.workers.share}
        training, framing = split == "train", framing_of(self.model, planned.image_size)
        if training:
            options |= {"seed": trainer.config.seed, "start_epoch": self.progress.epoch}
            options |= trainer.balancing(planned.phase, data.examples[split].labels)
        if features:
            make, dtype = evaluation_batches, network.inputs[0].dtype
            if training:
                make = training_batches
                options["lengths"] = data.examples[split].lengths(framing)
            return make(features[split], data.examples[split].labels, dtype=dtype, **options)
        if trainer.config.data_service:
            options["service"] = trainer.config.data_service
        elif trainer.config.cache != "off" and planned.epochs > 1:
            options["memory"] = trainer.image_memory
        return data.batches(
            split,
            image_size=framing,
            training=training,
            augment=trainer.augmentation(planned.phase),
            mix=trainer.mixing(planned.phase),
            **options,
        )

    def _steps_per_execution(self, planned, on_features):
        most = self.trainer.config.steps_per_execution
        if on_features and planned.frozen == len(planned.rates):
            most = max(most, _HEAD_STEPS)  # a step of a head is shorter than the call
        # With any other number Keras would run on into the next epoch's examples.
        epoch = math.gcd(planned.steps_per_epoch, planned.steps)
        steps = max(n for n in range(1, most + 1) if epoch % n == 0)
        return self.workers.steps_per_execution(steps)

    # -- after the last phase

    def _finish(self, run, **more):
        progress, workers = self.progress, self.workers
        progress.load_best()
        freeze(self.model, "none", batch_norm="train")
        model = workers.own_model(self.model)
        # A plain optimizer: the file opens without this package's, and is a third of the size.
        with workers.alone(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.compile(
                optimizer=keras.optimizers.AdamW(1e-5),
                **compile_arguments(self.trainer.heads),
                jit_compile=jit_compile(),
            )
        metrics = progress.metrics(self.data, **more)
        if "val" in self.data.examples:
            batch, cached = self.trainer.config.batch_size, self._cached_outputs()
            outputs = workers.outputs(self.model, self.data, "val", batch, cached)
            # A closed form is calibrated already.
            steps = self.plan.phases[progress.phase_of_best].phase.solver == "gradient"
            calibrates = steps and self.trainer.config.calibrate
            scaled = scale_logits(self.model, self.trainer.heads, *outputs) if calibrates else {}
            self.trainer.val_outputs = outputs[1]
            details = compute_metrics(self.trainer.heads, *outputs)
            metrics["val"] = metrics["val"] | details if scaled else details | metrics["val"]
            metrics |= {"temperature": scaled} if scaled else {}
        save = Run.finish if more else self.save
        with workers.alone():  # only the chief saves
            save(run, model, metrics)
        if save is Run.finish:
            progress.finish_logs()

    def _cached_outputs(self):
        """Return what computes the outputs from the last phase's validation stream, or None.

        Its features are valid for the best weights if their part of the network has not been
        trained since.
        """
        if self.validated is None:
            return None
        planned, outputs = self.validated
        if planned.image_size != size_of(self.model.input_shape):
            return None
        since = self.plan.phases[self.progress.phase_of_best :]
        return outputs if all(p.frozen >= planned.frozen for p in since) else None
