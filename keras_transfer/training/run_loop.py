"""A training from its beginning, or from where it was interrupted, to the finished run."""

import json
import warnings
from collections.abc import Callable
from functools import partial

import keras
import numpy as np

from keras_transfer.data.check import find_duplicates
from keras_transfer.evaluation.measures import compute_metrics
from keras_transfer.features.caching import Caching
from keras_transfer.features.extraction import Supply
from keras_transfer.models.acceleration import jit_compile
from keras_transfer.models.builders import compile_arguments
from keras_transfer.models.stages import freeze
from keras_transfer.runs import PLACES, Run
from keras_transfer.schedules.phases import Schedule
from keras_transfer.schedules.plans import Plan
from keras_transfer.training.checkpoint import collect
from keras_transfer.training.failures import Diverged, Interrupted, Signals, explained
from keras_transfer.training.phase_inputs import augmentation_of, caching_of
from keras_transfer.training.phases import PhaseFitting
from keras_transfer.training.progress import Progress
from keras_transfer.utils.console import say

_GO_ON = "go on with --resume (resume=True)"


def settings_of(trainer, schedule: Schedule, extra: dict | None) -> dict:
    """What stands in `config.yaml`, but for the caching.

    Args:
        schedule: as it was asked for: of one device.
        extra: where the images lie, and the command's settings.
    """
    heads = {n: {"task": h.task, "names": list(h.names)} for n, h in trainer.heads.items()}
    return {
        **(extra or {}),
        "image_size": trainer.model.input_shape[1],
        "batch_size": trainer.batch_size,
        "augment": trainer.augment,
        "mix": trainer.mix,
        "mix_alpha": trainer.mix_alpha,
        "seed": trainer.seed,
        "keep": trainer.keep,
        **({"devices": trainer.devices} if trainer.devices > 1 else {}),
        "balance": trainer.balance,
        "precision": trainer.model.dtype_policy.name,
        "cache": trainer.cache,
        "engine": trainer.engine,
        "feature_dtype": trainer.feature_dtype,
        **({"heads": heads} if trainer.head is None else {"head": heads.popitem()[1]}),
        "schedule": schedule.to_dict(),
    }


class TrainingRun:
    """One call of `Trainer.fit`.

    Args:
        trainer: the `training.Trainer` whose model and settings are used.
        data: its images.
        plan: of the trainer, for them.
        memory: gives the `data.memory.ImageMemory` for images that come again.
        callbacks: the user's.
    """

    def __init__(self, trainer, data, plan: Plan, memory: Callable, callbacks):
        self.trainer, self.data, self.plan = trainer, data, plan
        self.memory, self.callbacks = memory, list(callbacks)
        self.model, self.workers = trainer.model, trainer.workers

    def fit(self, out, settings: dict, begun: dict | None, tensorboard: bool) -> Run:
        """Trains all phases.

        Args:
            out: directory of the run.
            settings: see `settings_of`.
            begun: those of the run that is resumed; None begins one.
            tensorboard: see `Trainer.fit`.
        """
        trainer, data, plan, workers = self.trainer, self.data, self.plan, self.workers
        keras.utils.set_random_seed(trainer.seed)
        run, checkpoint, caching, anchors = self._begin(out, settings, begun)
        with Signals() as signals:
            progress = self.progress = self._progress(run, checkpoint, signals, tensorboard)
            arrays = progress.load() if begun else None
            if arrays:
                say(f"resuming after epoch {progress.epoch}")
            supply = self._supply(caching)
            self.phases = phases = PhaseFitting(
                trainer,
                data,
                progress,
                anchors=anchors,
                memory=self.memory,
                callbacks=self.callbacks,
            )
            try:
                while progress.phase < len(plan.phases):
                    planned = plan.phases[progress.phase]
                    with explained(planned, _GO_ON):
                        features = supply(progress.phase)
                        if planned.phase.solver == "logistic":
                            phases.solve(planned, features)
                        else:
                            phases.fit(planned, features, arrays)
                    arrays = None
                with explained(plan.phases[-1], _GO_ON), signals.protected():
                    self._finish(run)
            except Diverged as error:
                if progress.best:
                    self._finish(run, stopped=str(error))
                raise
            except (KeyboardInterrupt, Exception) as error:
                if not isinstance(error, KeyboardInterrupt) and not signals.stopped:
                    raise
                if run.finished:
                    raise Interrupted(f"interrupted when {run.path} was finished") from None
                raise Interrupted(
                    f"interrupted in epoch {progress.epoch + 1}; {progress.epoch} epochs are kept in "
                    f"{run.path}: {_GO_ON}"
                ) from None
        workers.barrier()  # a process that ends first would look lost to the others
        return run

    # -- before the first phase -------------------------------------------------------------------

    def _begin(self, out, settings, begun):
        """(run, its checkpoint, the caching of each phase, what L2-SP pulls to); all workers agree."""
        trainer, data, workers = self.trainer, self.data, self.workers
        schedule, images = self.plan.schedule, data.fingerprint()
        workers.check(self.model, schedule)
        workers.agree("images", lambda: json.dumps(images).encode())
        if warning := find_duplicates(data).warning:
            say(warning)
        if begun:
            # What was decided by the room on the disk is not decided again.
            caching = [Caching(**fields) if fields else None for fields in begun.get("caching", [])]
        else:
            caching, reasons = self._decided_caching()
        settings = {**settings, "caching": [chosen and chosen.to_dict() for chosen in caching]}
        decisive = {key: value for key, value in settings.items() if key not in PLACES}
        workers.agree("settings", lambda: json.dumps(decisive, default=str).encode())
        if begun:
            run, checkpoint = workers.resume_run(out, settings, images)
        else:
            first = data.skipped, images, data.split_table()
            run, checkpoint = workers.create_run(out, settings, *first)
        if schedule.zero_head:
            for weight in (w for name in trainer.heads for w in self.model.get_layer(name).weights):
                weight.assign(np.zeros(weight.shape))
        workers.agree("weights", lambda: b"".join(w.tobytes() for w in self.model.get_weights()))
        anchors = self._starting_weights(checkpoint, bool(begun))
        say(self.plan.table())
        if not begun:
            for planned, chosen, reason in zip(self.plan.phases, caching, reasons):
                if planned.frozen:
                    say(
                        f"cache: phase {planned.phase.name} {chosen or f'trains on images: {reason}'}"
                    )
        return run, checkpoint, caching, anchors

    def _decided_caching(self):
        """(caching, reason) of each phase, which depend on a machine's room: the chief's, of several."""

        def decide():
            found = caching_of(self.trainer, self.plan, self.data)
            return [(c and c.to_dict(), reason) for c, reason in found]

        decided = self.workers.on_chief(decide)
        caching, reasons = zip(*decided)
        return [fields and Caching(**fields) for fields in caching], reasons

    def _starting_weights(self, checkpoint, resume):
        """What L2-SP pulls to: the weights before the first phase, also in a resumed run."""
        if not any(phase.l2_sp for phase in self.plan.schedule.phases):
            return {}
        start = checkpoint.load_arrays("start") if resume else None
        if start is None:
            start = collect(self.model.weights, "start")
            checkpoint.save_arrays("start", start)
        return {id(w): start[f"start/{i}"] for i, w in enumerate(self.model.weights)}

    def _progress(self, run, checkpoint, signals, tensorboard):
        trainer = self.trainer
        progress = Progress(run, checkpoint, self.model, trainer.seed, trainer.keep, signals)
        progress.validates = "val" in self.data.examples
        progress.lane = self.workers.seed_offset
        if tensorboard and self.workers.chief:
            from keras_transfer.training.tensorboard import EpochLog

            progress.told = EpochLog(run.tensorboard_path)
        return progress

    def _supply(self, caching):
        """A function of a phase's number that gives its activations, see `Supply.of`."""
        trainer, phases = self.trainer, self.plan.phases
        supply = partial(
            Supply,
            data=self.data,
            phases=phases,
            caching=caching,
            views=[
                c and c.training_views(augmentation_of(trainer, p.phase))
                for c, p in zip(caching, phases)
            ],
            engines=self.progress.engines,
            memory=self.memory() if any(caching) else None,
            engine=self.workers.engine(trainer.engine),
        )
        return self.workers.features(supply, self.model)

    # -- after the last one -----------------------------------------------------------------------

    def _finish(self, run, **more):
        trainer, data, progress = self.trainer, self.data, self.progress
        progress.load_best()
        freeze(self.model, "none", batch_norm="train")
        model, alone = self.workers.own_model(self.model), self.workers.alone
        # A plain optimizer: the file opens without this package's, and is a third of the size.
        with alone(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.compile(
                optimizer=keras.optimizers.AdamW(1e-5),
                **compile_arguments(trainer.heads),
                jit_compile=jit_compile(),
            )
        metrics = progress.metrics(data, **more)
        if "val" in data.examples:
            details = compute_metrics(trainer.heads, *self._val_outputs())
            metrics["val"] = {**details, **metrics["val"]}
        with alone():  # the chief saves, and what it does for that the others do not
            run.finish(model, metrics)

    def _val_outputs(self):
        """Labels and outputs of the kept weights on the validation images.

        From what the last phase was validated with: its activations, or images that are decoded
        already. Activations hold for the kept weights where their part of the network has not been
        trained since. Of several workers each predicts a share of the images.
        """
        data, model, size = self.data, self.model, self.trainer.batch_size
        return self.workers.outputs(model, data, "val", size, self._validated())

    def _validated(self):
        if self.phases.validated is None:
            return None
        planned, outputs = self.phases.validated
        ends = np.cumsum([entry["epochs"] for entry in self.progress.phases])
        since = self.plan.phases[np.searchsorted(ends, self.progress.best["epoch"]) :]
        own_size = planned.image_size == self.model.input_shape[1]
        if own_size and all(later.frozen >= planned.frozen for later in since):
            return outputs
        return None
