"""Hyper-parameter search with Optuna: trainings around a schedule, chosen by validation alone.

A trial is a run of the `Trainer` like any other; the study lies in a folder (`study`), so that a
search that was killed goes on.
"""

import gc
import hashlib
import json
import math
import shutil
import time
from pathlib import Path

import keras

from keras_transfer.errors import InputError
from keras_transfer.experiments.search_space import Search, plain_space, shown_values
from keras_transfer.experiments.study import ask, check_budget, ended, open_study, require_optuna
from keras_transfer.experiments.tune_report import BEST, Tuned, importances_of, trials_of
from keras_transfer.features.prefix import prefix_of
from keras_transfer.models.builders import backbone_of
from keras_transfer.models.heads import heads_of
from keras_transfer.models.sources.applications import BACKBONES
from keras_transfer.runs import CONFIG, Run
from keras_transfer.schedules import recipes
from keras_transfer.training.distributed.workers import require_alone
from keras_transfer.training.failures import Interrupted
from keras_transfer.training.trainer import Trainer
from keras_transfer.utils.console import progress_bar, say, silence
from keras_transfer.utils.files import write_text

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
    augment="light",
    seed: int = 0,
    config: dict | None = None,
    **options,
) -> Tuned:
    """Searches rate, decay per stage, number of frozen stages, dropout and augmentation.

    The first trial is the schedule as it is, so that the best is not worse on the validation
    images. The next are drawn at random, then by the tree-structured Parzen estimator (Bergstra et al. 2011).
    Each trains from the same weights, which the model has again afterwards. What is maximised is
    what `keep="best"` of the trainer compares: accuracy (of labels: mean average precision); of
    numbers and several heads the least loss. A trial that is behind the median of the others is
    given up; one that fails is noted. The same call goes on with a search that was interrupted,
    and adds trials where it asks for more.

    Args:
        model: from `build_model`.
        data: with the splits `train` and `val`. With `test`, the best is measured there once.
        out: folder of the search: `best.yaml` (for `train --config`), `trials.csv`, `tune.png`, and
            the run of the best trial.
        trials: how many there shall be in all; 20 where minutes are not given either.
        minutes: none begins that would, by the mean of those before, end later than this, over
            all calls. The first is always made.
        strategy, overrides: what to search around: lp_ft, freeze_k, discriminative, fine_tune or
            a schedule like them, see `search_space.check_base` and the trainer's arguments.
        space: other ranges, see `search_space.read_space`.
        augment, seed: as in `Trainer`; the seed is that of the search too.
        config: what else shall stand in `best.yaml` (the command's settings).
        options: other arguments of `Trainer`.

    Raises:
        InputError: Optuna is not installed, no validation images, a space that does not fit the
            schedule or the model, another search in `out`, or none of the first three
            trials that comes to its end.
        Interrupted: Ctrl-C or SIGTERM; the same call goes on.
    """
    require_optuna()
    require_alone("A search")
    check_budget(trials, minutes)
    if "val" not in data.examples:
        raise InputError(f"{data.root} has no val images, by which a search must choose.")
    tuner = _Tuner(model, data, out, strategy, overrides, space, augment, seed, options, config)
    if trials is None and minutes is None:
        trials = TRIALS
    start = model.get_weights()
    try:
        return tuner.run(trials, minutes, start)
    finally:
        model.set_weights(start)


class _Tuner:
    """One search: what all trials share, and what is done with each."""

    def __init__(
        self, model, data, out, strategy, overrides, space, augment, seed, options, config
    ):
        self.model, self.data, self.out = model, data, Path(out)
        self.options = {**options, "seed": seed}
        self.seed = seed
        backbone = backbone_of(model)
        known = {"backbone": backbone.name} if backbone.name in BACKBONES else {}
        self.config = known if config is None else config
        trainer = Trainer(model, strategy, overrides=overrides, augment=augment, **self.options)
        plan = trainer.plan(data)
        heads = list(heads_of(model).values())
        self.metric = heads[0].ranked_by if len(heads) == 1 else None
        closed = Trainer(model, "feature_extraction").plan(data).schedule.phases[0].solver
        self.search = Search(
            plan.schedule,
            frozen=plan.phases[-1].frozen,
            stages=len(backbone.stages),
            augment=augment,
            dropout=heads[0].dropout if all(head.dropout for head in heads) else None,
            closed=closed == "logistic",
            given=space,
        )
        *before, last = (planned.epochs for planned in plan.phases)
        self.warmup = sum(before) + math.ceil(last / 3)

    def _settings(self):
        """All that the trials have in common."""
        images = json.dumps(self.data.fingerprint(), sort_keys=True)
        whole = prefix_of(self.model, len(backbone_of(self.model).stages))
        return {
            **self.config,
            **self.options,
            "image_size": self.model.input_shape[1],
            "precision": self.model.dtype_policy.name,
            "model": whole.fingerprint,
            "images": hashlib.blake2b(images.encode(), digest_size=16).hexdigest(),
            "space": plain_space(self.search.space),
            "augment": self.search.augmentations[self.search.default["augment"]],
            "schedule": self.search.schedule.to_dict(),
        }

    def run(self, trials, minutes, start) -> Tuned:
        with open_study(self.out, self._settings(), warmup=self.warmup) as study:
            waiting = [t for t in study.trials if t.state.name == "WAITING"]
            if not ended(study) and not waiting:
                study.enqueue_trial(self.search.default)
            say(
                f"searching {', '.join(self.search.space)}; the default is "
                f"{shown_values(self.search.default)}"
            )
            seen = progress_bar(label="tuning", total=trials, done=len(ended(study)), unit="trials")
            try:
                while not _spent(study, trials, minutes):
                    self.model.set_weights(start)
                    self._try(study)
                    self._tidy(study).write(self.out)
                    gc.collect()  # networks refer to themselves, and their memory is not Python's
                    seen.update()
            except KeyboardInterrupt:
                raise Interrupted(
                    f"interrupted in trial {len(ended(study))}; those before are kept in {self.out}: "
                    "the same command goes on"
                ) from None
            finally:
                seen.close()
            return self._concluded(study)

    def _try(self, study):
        """One trial: asked for, trained, told."""
        import optuna

        trial = ask(study, self.search.space, self.seed)
        folder = self._folder(trial.number)
        shutil.rmtree(folder, ignore_errors=True)
        reports, started = _Reports(trial, self.metric), time.perf_counter()
        value, state, reason = None, optuna.trial.TrialState.FAIL, ""
        try:
            with silence():
                schedule, augment = self.search.training(trial.params)
                trainer = Trainer(self.model, schedule, augment=augment, **self.options)
                run = trainer.fit(self.data, folder, config=self.config, callbacks=[reports])
            reports.val, reports.epochs = _numbers(run.metrics["val"]), _epochs(run)
            value = _value(reports.val, self.metric)
            if math.isfinite(value):
                state = optuna.trial.TrialState.COMPLETE
            else:
                value, reason = None, f"the result is {value}"
        except optuna.TrialPruned:
            state = optuna.trial.TrialState.PRUNED
        except InputError as error:  # diverged, out of memory: the others may do better
            # Without one the trial would count as killed, see `study.ended`.
            reason = " ".join(str(error).split()) or type(error).__name__
        for name, found in (
            ("val", reports.val),
            ("epochs", reports.epochs),
            ("reason", reason),
            ("seconds", time.perf_counter() - started),
        ):
            trial.set_user_attr(name, found)
        study.tell(trial, value, state=state)
        ended_as = reason or f"{state.name.lower()}, {shown_values(reports.val)}"
        say(f"trial {trial.number}: {ended_as}; {shown_values(trial.params)}")

    def _folder(self, number):
        return self.out / f"trial-{number}"

    def _tidy(self, study) -> Tuned:
        """What was found so far; of the runs only the best one's stays."""
        tuned = self._found(study)
        for folder in self.out.glob("trial-*"):
            if tuned.best is None or folder != self._folder(tuned.best.number):
                shutil.rmtree(folder, ignore_errors=True)
        if len(tuned.trials) >= _HOPELESS:
            _require_best(tuned)
        if tuned.best is not None:
            text = (self._folder(tuned.best.number) / CONFIG).read_text(encoding="utf-8")
            about = (
                f"# trial {tuned.best.number} of {len(tuned.trials)}: val {tuned.shown(tuned.best)}"
            )
            write_text(
                self.out / BEST,
                f"{about}\n# keras-transfer train DATA --config {BEST} --out RUN\n{text}",
            )
        return tuned

    def _found(self, study, **more):
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

    def _concluded(self, study):
        """The best is measured on the test images, once; the image is drawn."""
        tuned = self._tidy(study)
        _require_best(tuned)
        if "test" in self.data.examples and (tuned.test or {}).get("trial") != tuned.best.number:
            from keras_transfer.evaluation import evaluate

            result = evaluate(tuned.run.model, self.data, "test")
            found = {"trial": tuned.best.number, **_numbers(result)}
            study.set_user_attr("test", found)
        tuned = self._found(study, importances=importances_of(study))
        tuned.write(self.out)
        tuned.draw(self.out / "tune.png")
        return tuned


def _require_best(tuned):
    if tuned.best is None:
        count = len(tuned.trials)
        raise InputError(
            f"None of {count} trials came to its end; the last: {tuned.trials[-1].reason}"
        )


def _spent(study, trials, minutes):
    """True where the budget has no room for another trial."""
    before = ended(study)
    if trials is not None and len(before) >= trials:
        return True
    if minutes is None or not before:
        return False
    seconds = sum(trial.user_attrs["seconds"] for trial in before)
    return seconds + seconds / len(before) > 60 * minutes


def _value(val, metric):
    """What is maximised."""
    return float(val[metric]) if metric else -float(val["loss"])


def _numbers(metrics):
    """Of what was measured that which is a number."""
    return {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float))}


def _epochs(run: Run):
    return sum(phase["epochs"] for phase in run.metrics["phases"])


class _Reports(keras.callbacks.Callback):
    """Tells the study how validation goes, and ends a trial that is behind.

    Attributes:
        val: metrics of the last epoch on the validation images.
        epochs: that are done.
    """

    def __init__(self, trial, metric):
        super().__init__()
        self.trial, self.metric = trial, metric
        self.val, self.epochs = {}, 0

    def on_epoch_end(self, epoch, logs=None):
        import optuna

        logs = logs or {}
        validation = {k.removeprefix("val_"): v for k, v in logs.items() if k.startswith("val_")}
        self.val = _numbers(validation)
        self.epochs = epoch + 1
        self.trial.report(_value(self.val, self.metric), epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned
