"""Hyper-parameter search with Optuna: trainings around a schedule, ranked by validation results.

Each trial is a normal run of the `Trainer`. The study lies in a folder (see `study`), so a killed
search can be resumed.
"""

import gc
import hashlib
import json
import math
import shutil
import time
from pathlib import Path

import keras

from keras_transfer.advisor.budget import Clock
from keras_transfer.errors import InputError, Interrupted
from keras_transfer.experiments.search_space import Search, format_values, plain_space
from keras_transfer.experiments.study import (
    BEST,
    Tuned,
    check_budget,
    finished,
    importances_of,
    next_trial,
    open_study,
    require_optuna,
    trials_of,
)
from keras_transfer.features.prefix import prefix_of
from keras_transfer.models.builders import heads_of
from keras_transfer.models.framing import framing_of, settle_framing
from keras_transfer.models.sources.applications import BACKBONES
from keras_transfer.models.stages import backbone_of
from keras_transfer.runs import REFITS, Run
from keras_transfer.schedules import recipes
from keras_transfer.training.config import NO_REFIT
from keras_transfer.training.distributed.single_process import require_single_process
from keras_transfer.training.estimate import say_estimate
from keras_transfer.training.trainer import Trainer
from keras_transfer.utils.console import progress_bar, say, silence
from keras_transfer.utils.documents import dump_yaml
from keras_transfer.utils.files import write_text
from keras_transfer.utils.image_sizes import size_of

TRIALS = 20
_HOPELESS = 3  # trials that all failed


def tune(
    model: keras.Model,
    data,
    out,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    strategy=recipes.DEFAULT,
    overrides: dict | None = None,
    space: dict | None = None,
    config: dict | None = None,
    **options,
) -> Tuned:
    """Search the learning rate, its decay per stage, the frozen stages, dropout and augmentation.

    The first trial is the unchanged schedule, so the best trial is never worse on the validation
    images. The next trials are random, the others use the tree-structured Parzen estimator
    (Bergstra et al. 2011). Every trial starts from the same weights, which are restored at the end.
    Trials are ranked like epochs with `keep="best"` of the trainer: by accuracy (multi-label: mean
    average precision); by the lowest loss for regression and for several heads. Trials behind the
    median of the others are pruned; failed trials are recorded. Repeat the call to resume an
    interrupted search, or with a larger budget to add trials.

    Args:
        model: from `build_model`.
        data: with the splits `train` and `val`. The best trial is evaluated once on `test`, if it
            exists.
        out: folder of the search: `best.yaml` (for `train --config`), `trials.csv`, `tune.png`, and
            the run of the best trial.
        trials: total number, ≥ 1; 20 by default if `minutes` is not given.
        minutes: budget over all calls, > 0: no trial starts that would exceed it, judging by the mean
            duration. The first trial always starts; a trial that runs at the limit ends there.
        strategy, overrides: the schedule to search around: lp_ft, freeze_k, discriminative,
            fine_tune or a similar schedule, see `search_space.check_base` and `Trainer`.
        space: other ranges, see `search_space.read_space`.
        config: more settings for `best.yaml` (those of the command).
        options: arguments of `Trainer`. `augment` is `"light"` by default; `seed` also seeds the
            search.

    Raises:
        InputError: Optuna is not installed; no validation images; the space does not fit the
            schedule or the model; `out` contains another search; the first three trials all failed.
        Interrupted: Ctrl-C or SIGTERM; repeat the call to resume.
    """
    require_optuna()
    require_single_process("A search")
    check_budget(trials, minutes)
    data.require("val")  # trials are ranked on it
    tuner = _Tuner(model, data, out, strategy, overrides, space, config, options)
    if trials is None and minutes is None:
        trials = TRIALS
    start = model.get_weights()
    try:
        return tuner.run(trials, minutes, start)
    finally:
        model.set_weights(start)


class _Tuner:
    """Everything that the trials of a search share, and how one trial runs."""

    def __init__(self, model, data, out, strategy, overrides, space, config, options):
        self.model, self.data, self.out = model, data, Path(out)
        settle_framing(model, data)
        augment = options.pop("augment", "light")
        self.options = {"seed": 0, "refit": NO_REFIT, **options}
        backbone = backbone_of(model)
        if config is None:
            config = {"backbone": backbone.name} if backbone.name in BACKBONES else {}
        self.config = config
        trainer = Trainer(model, strategy, overrides=overrides, augment=augment, **self.options)
        plan = trainer.plan(data)
        heads = list(heads_of(model).values())
        self.metric = heads[0].ranked_by if len(heads) == 1 else None
        solver = Trainer(model, "feature_extraction").plan(data).schedule.phases[0].solver
        self.search = Search(
            plan.schedule,
            frozen=plan.phases[-1].frozen,
            stages=len(backbone.stages),
            augment=augment,
            dropout=heads[0].dropout if all(head.dropout for head in heads) else None,
            closed_form=solver == "logistic",
            space=space,
        )
        # Of a name or path, as the model itself must stay as it is while a step is timed.
        self.source = self.config.get("backbone")
        self.batch_size = trainer.config.batch_size
        self.images_per_trial = sum(p.steps * p.batch_size for p in plan.phases)
        *before, last = (planned.epochs for planned in plan.phases)
        self.warmup = sum(before) + math.ceil(last / 3)

    def _settings(self):
        """The settings that all trials share, as plain data."""
        whole = prefix_of(self.model, len(backbone_of(self.model).stages))
        return {
            **self.config,
            **self.options,
            "image_size": size_of(self.model.input_shape),
            **framing_of(self.model).recorded(),
            "precision": self.model.dtype_policy.name,
            "model": whole.fingerprint,
            "space": plain_space(self.search.space),
            "augment": self.search.augmentations[self.search.default["augment"]],
            "schedule": self.search.schedule.to_dict(),
        }

    def run(self, trials, minutes, start) -> Tuned:
        images = json.dumps(self.data.fingerprint(), sort_keys=True)
        fingerprint = hashlib.blake2b(images.encode(), digest_size=16).hexdigest()
        with open_study(self.out, self._settings(), fingerprint, warmup=self.warmup) as study:
            waiting = [t for t in study.trials if t.state.name == "WAITING"]
            if not finished(study) and not waiting:
                study.enqueue_trial(self.search.default)
            say(
                f"searching {', '.join(self.search.space)}; the default is "
                f"{format_values(self.search.default)}"
            )
            done = len(finished(study))
            coming = 1 if trials is None else trials - done  # with minutes only, time one
            if coming > 0 and self.source is not None:
                images = self.images_per_trial * coming
                size = size_of(self.model.input_shape)
                say_estimate(self.source, size, self.batch_size, coming, images)
            progress = progress_bar(label="tuning", total=trials, done=done, unit="trials")
            try:
                while not _spent(study, trials, minutes):
                    self.model.set_weights(start)
                    left = None if minutes is None else minutes - _seconds(study) / 60
                    self._run_trial(study, Clock(left))
                    self._update(study).write(self.out)
                    # Models contain reference cycles, and Python does not see their memory.
                    gc.collect()
                    progress.update()
            except KeyboardInterrupt:
                raise Interrupted(
                    f"interrupted in trial {len(finished(study))}; the trials before are saved in "
                    f"{self.out}: repeat the same command to resume"
                ) from None
            finally:
                progress.close()
            return self._conclude(study)

    def _run_trial(self, study, clock):
        import optuna

        trial = next_trial(study, self.search.space, self.options["seed"])
        folder = self._folder(trial.number)
        shutil.rmtree(folder, ignore_errors=True)
        reports, started = _Reports(trial, self.metric), time.perf_counter()
        value, state, reason = None, optuna.trial.TrialState.FAIL, ""
        try:
            with silence():
                schedule, augment = self.search.training(trial.params)
                trainer = Trainer(self.model, schedule, augment=augment, **self.options)
                callbacks = [reports, clock.callback()]
                run = trainer.fit(self.data, folder, config=self.config, callbacks=callbacks)
            reports.val = _numbers(run.metrics["val"])
            reports.epochs = sum(phase["epochs"] for phase in run.metrics["phases"])
            value = _value(reports.val, self.metric)
            if math.isfinite(value):
                state = optuna.trial.TrialState.COMPLETE
            else:
                value, reason = None, f"the result is {value}"
        except optuna.TrialPruned:
            state = optuna.trial.TrialState.PRUNED
        except InputError as error:  # diverged, out of memory: other trials may succeed
            # A failure without a reason would count as killed, see `study.finished`.
            reason = " ".join(str(error).split()) or type(error).__name__
        for name, attribute in (
            ("val", reports.val),
            ("epochs", reports.epochs),
            ("reason", reason),
            ("seconds", time.perf_counter() - started),
        ):
            trial.set_user_attr(name, attribute)
        study.tell(trial, value, state=state)
        outcome = reason or f"{state.name.lower()}, {format_values(reports.val)}"
        say(f"trial {trial.number}: {outcome}; {format_values(trial.params)}")

    def _folder(self, number):
        return self.out / f"trial-{number}"

    def _update(self, study) -> Tuned:
        """Return the results so far; remove all runs but the best one, and write `best.yaml`."""
        tuned = self._results(study)
        for folder in self.out.glob("trial-*"):
            if tuned.best is None or folder != self._folder(tuned.best.number):
                shutil.rmtree(folder, ignore_errors=True)
        if len(tuned.trials) >= _HOPELESS:
            _check_completed(tuned)
        if tuned.best is not None:
            config = Run(self._folder(tuned.best.number)).config
            config = dump_yaml({k: v for k, v in config.items() if k not in ("refit", REFITS)})
            result = f"val {tuned.result(tuned.best)}"
            write_text(
                self.out / BEST,
                f"# trial {tuned.best.number} of {len(tuned.trials)}: {result}\n"
                f"# keras-transfer train DATA --config {BEST} --out RUN\n{config}",
            )
        return tuned

    def _results(self, study, **more):
        return Tuned(
            folder=self.out,
            metric=self.metric or "loss",
            images=len(self.data.examples["val"]),
            space=self.search.space,
            default=self.search.default,
            trials=trials_of(study),
            test=study.user_attrs.get("test"),
            **more,
        )

    def _conclude(self, study):
        """Evaluate the best trial on the test images, unless that was done, and draw the plots."""
        tuned = self._update(study)
        _check_completed(tuned)
        if "test" in self.data.examples and (tuned.test or {}).get("trial") != tuned.best.number:
            from keras_transfer.evaluation import evaluate

            result = evaluate(tuned.run.model, self.data, "test")
            study.set_user_attr("test", {"trial": tuned.best.number, **_numbers(result)})
        tuned = self._results(study, importances=importances_of(study))
        tuned.write(self.out)
        tuned.draw(self.out / "tune.png")
        return tuned


def _check_completed(tuned):
    if tuned.best is None:
        raise InputError(
            f"None of {len(tuned.trials)} trials was completed; the last failed: "
            f"{tuned.trials[-1].reason}"
        )


def _spent(study, trials, minutes):
    """Return True if the budget does not allow another trial."""
    before = finished(study)
    if trials is not None and len(before) >= trials:
        return True
    if minutes is None or not before:
        return False
    seconds = _seconds(study)
    return seconds + seconds / len(before) > 60 * minutes


def _seconds(study) -> float:
    """Return the time of all finished trials together."""
    return sum(trial.user_attrs["seconds"] for trial in finished(study))


def _value(val, metric):
    """Return the number that the study maximizes."""
    return float(val[metric]) if metric else -float(val["loss"])


def _numbers(metrics):
    return {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float))}


class _Reports(keras.callbacks.Callback):
    """Report each epoch's validation result to the study, and stop a pruned trial.

    Attributes:
        val: metrics of the last validation.
        epochs: number of finished epochs.
    """

    def __init__(self, trial, metric):
        super().__init__()
        self.trial, self.metric = trial, metric
        self.val, self.epochs = {}, 0

    def on_epoch_end(self, epoch, logs=None):
        import optuna

        logs = logs or {}
        validation = {k.removeprefix("val_"): v for k, v in logs.items() if k.startswith("val_")}
        self.epochs = epoch + 1
        if not validation:  # where it takes longer than an epoch, not every epoch has one
            return
        self.val = _numbers(validation)
        self.trial.report(_value(self.val, self.metric), epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned
