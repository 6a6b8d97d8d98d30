"""`auto`: the best model within a budget, from evidence and a race."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import keras
import numpy as np

from keras_transfer.advisor.budget import (
    HALF,
    TRIED,
    WORTH,
    WORTH_WITH_LIMIT,
    Clock,
    Pace,
    TimeLeft,
    expected_share,
    lengths_up_to,
    longest,
    refit_points,
)
from keras_transfer.advisor.closed_forms import QUESTIONS, compare_closed_forms, joined, widest
from keras_transfer.advisor.plans import NO_SIGNAL, Plan, closed_form_of, first_plan, questions_of
from keras_transfer.advisor.race import ALWAYS, CLEARLY, UNLESS_WORSE, Entry, Race
from keras_transfer.advisor.rules import (
    CLASSICAL_POLICY,
    Choice,
    candidates,
    check_overrides,
    check_policy,
    classical,
)
from keras_transfer.data.examples import ImageData
from keras_transfer.errors import Diverged, InputError, Interrupted
from keras_transfer.models.builders import by_head, heads_for
from keras_transfer.models.framing import framing_of
from keras_transfer.runs import Run
from keras_transfer.schedules import defaults
from keras_transfer.schedules.recipes import AUTO, DEFAULT, default_epochs, default_rate
from keras_transfer.training.config import NO_REFIT, REFIT, TYPES, TrainConfig
from keras_transfer.training.networks import model_of, open_framing_of
from keras_transfer.training.refit import share_of_refit
from keras_transfer.training.trainer import Trainer
from keras_transfer.utils.console import say

_FOR_EVIDENCE = 0.4  # share of the minutes after which nothing more is compared
_BOLD = 2  # times the default learning rate


def train_best(
    data: ImageData,
    out,
    config: TrainConfig | None = None,
    *,
    backbones: Sequence[str] | None = None,
    build: Callable[[TrainConfig], keras.Model] | None = None,
    record: Callable[[TrainConfig], dict] = TrainConfig.to_dict,
    clock: Clock | None = None,
) -> Run:
    """Train the best model that the time allows; from the first minute on, a usable one is at `out`.

    1. A closed form on the first candidate, which is a finished run.
    2. Evidence: closed forms of other candidates, in cross-validation, see `compare_closed_forms`.
    3. A race of fine-tunings that start from the best closed form, judged on the validation
       examples. The best run so far is at `out` at any time. It ends when the minutes are over, or
       when a further training is not expected to be worth its time.
    4. A refit: the best model is trained again on training and validation examples, see `TrainConfig.refit`.

    Args:
        data: any task, or several heads; with training and validation examples.
        out: directory of the run; a race that was interrupted there is continued.
        config: settings; numbers in `epochs`, `learning_rate` and `overrides` win over the advisor's.
        backbones: names or paths to choose from; by default `rules.candidates`.
        build: makes the model of a config.
        record: what `config.yaml` records of a config.
        clock: by default one that starts now, with the config's `minutes`.

    Returns:
        The best run.

    Raises:
        InputError: there are no validation examples, or a setting is invalid.
        Interrupted: after Ctrl-C or SIGTERM; the message says what is at `out`.
    """
    auto = _Auto(data, Path(out), config or TrainConfig(), backbones, build, record, clock)
    try:
        return auto.run()
    except KeyboardInterrupt:
        best = auto.race.best
        saved = f"{out} has the best model so far: {best.choice}" if best else "no model was saved"
        raise Interrupted(f"interrupted; {saved}; continue with --resume") from None


class _Auto:
    """One call of `train_best`."""

    def __init__(self, data, out, config, backbones, build, record, clock):
        if "val" not in data.examples:
            raise InputError(
                f"{data.title} has no validation examples, on which trainings are judged: pass "
                "val_split."
            )
        check_policy(config.policy)
        self.data, self.config = data, config
        self.overrides = {**config.overrides, **config.recipe_arguments}
        check_overrides(self.overrides)
        self.names = list(backbones or candidates(config.image_size))
        self.build, self.record = build or partial(model_of, data=data), record
        self.clock = clock or Clock(config.minutes)
        self.worth = config.worth
        self.open_ended = self.worth is None and self.clock.minutes is None
        if self.worth is None:
            self.worth = WORTH if self.open_ended else WORTH_WITH_LIMIT
        wanted = config.refit
        self.may_refit = wanted == REFIT or (wanted == AUTO and data.val_drawn)
        heads = heads_for(data)
        labels = by_head(heads, data.examples["train"].labels)
        fitted = {name: head.fitted(labels[name]) for name, head in heads.items()}
        self.race = Race(out, self.train, fitted, data.examples["val"], self.clock)
        self.taps = data.modality.taps if config.taps == AUTO else (config.taps,)
        self.made: _Made | None = None

    # -- the steps

    def run(self) -> Run:
        self.race.open(self.record(self.config), self.data.fingerprint())
        first = self._first()
        self.race.enter(first)
        evidence = compare_closed_forms(
            self.data,
            self.names,
            image_size=open_framing_of(self.config),
            taps=self.taps,
            weights=self.config.weights,
            questions=questions_of(self.config.augment, QUESTIONS),
            engine=self.config.engine,
            seed=self.config.seed,
            time_left=TimeLeft(
                lambda: self.clock.has(_FOR_EVIDENCE),
                None if self.clock.minutes is None else self._fits,
            ),
            built={first.backbone: self.made.model} if self.made else {},
        )
        say(str(evidence))
        base = closed_form_of(evidence.best, self._augment(evidence))
        if not evidence.signal:
            say(NO_SIGNAL)
        elif self.config.policy == CLASSICAL_POLICY:
            strategy, overrides, why = classical(self._facts(evidence))
            textbook = replace(base, strategy=strategy, overrides=overrides, why=why)
            self.race.enter(textbook, ALWAYS)
        else:
            started = self._fine_tune(base, evidence)
            if evidence.best != evidence.default or base.augment != first.augment:
                self._enter_closed_form(base, evidence, started)
        self._refit()
        self.race.publish({"evidence": evidence.to_dict()})
        self.race.close()
        return Run.open(self.race.out)

    def _enter_closed_form(self, base, evidence, started):
        """Enter the closed form of the best candidate, unless the best run started from it.

        Args:
            started: `Plan` of the first fine-tuning, or None.
        """
        train, val = self.counts
        margin = UNLESS_WORSE  # the evidence has seen more examples
        if started and self.race.best is not self.race.entries[0]:
            if started.candidate == evidence.best:
                return
            margin = CLEARLY if started.equal else UNLESS_WORSE
        minutes = evidence.forward * (2 * train + val) / 60
        say(f"Closed form on {evidence.best}: about {minutes:.1f} min.")
        if minutes <= self.clock.left:
            self.race.enter(base, margin)
        else:
            say("There is no time for it.")

    def _error(self, evidence):
        """Return what the best closed form's score lacks to 1.

        By cross-validation it is that of fewer examples, so it is at most that of the validation examples,
        as if one more of them were wrong.
        """
        scores = self.race.entries[0].judged.scores
        scores = scores[np.isfinite(scores)]
        return float(min(evidence.error_left, 1 - scores.sum() / (len(scores) + 1)))

    def _fine_tune(self, base, evidence) -> Plan | None:
        """Train contenders as long as the next is expected to be worth its time; return the first's plan."""
        train, val = self.counts
        steps = -(-train // self.config.batch_size)
        pace, error, started = Pace.of(self.data, evidence), self._error(evidence), None
        tried = {"tried": max(TRIED, self.clock.spent)} if self.open_ended else {}
        tuned: list[Entry] = []
        gains: list[float] = []
        while True:
            before = self.race.best
            contender = self._next(base, tuned, steps)
            if contender is None:
                return started
            choice, lengths, share = contender
            limits = {"steps_per_epoch": steps, "worth": self.worth, "left": self._left}
            begun = (self.race.begun or {}).get("choice")  # as in the race that was interrupted
            if begun:
                if "epochs" not in begun["overrides"]:  # it had begun what follows
                    return started
                lengths = [begun["overrides"]["epochs"]]
                limits |= {"worth": -math.inf, "left": math.inf}
            margin = CLEARLY
            if tuned:
                found = longest(pace, error, gains, lengths=lengths, share=share, **limits)
            elif plan := first_plan(
                self.data, evidence, lengths, error=error, begun=begun, **limits, **tried
            ):
                started = plan
                base, pace = closed_form_of(evidence.tuned(plan.candidate), base.augment), plan.pace
                choice = replace(base, strategy=choice.strategy)
                if plan.equal:
                    margin = UNLESS_WORSE
                if plan.candidate != evidence.best:
                    say(f"The best candidate takes longer: {plan.candidate} is fine-tuned.")
                found = plan.epochs, plan.points, plan.minutes
            else:
                found = None
            if found is None:
                say(f"No further training is expected to bring {self.worth:g} points per minute.")
                return started
            epochs, points, minutes = found
            choice = replace(choice, overrides={**choice.overrides, "epochs": epochs})
            now = f"{evidence.score} {before.judged.score:.3f}"
            say(
                f"{choice.recipe}: expected to add {points:.1f} points to {now} in "
                f"{minutes:.1f} min, {self.clock.spent + minutes:.1f} min in all."
            )
            try:
                entry = self.race.enter(choice, margin)
            except Diverged:
                say(f"{choice.recipe} is left out, because its loss became NaN or infinite.")
                return started
            gains.append(1 - entry.judged.loss / max(before.judged.loss, 1e-12))
            error *= 1 - max(0.0, gains[-1])
            tuned.append(entry)
            pace = replace(pace, factor=pace.factor * entry.minutes / max(minutes, 1e-9))
            if expected_share(gains) * self.race.best.judged.loss < entry.behind[1]:
                say(
                    f"What a further training is expected to bring is less than {val} validation "
                    "examples can tell apart."
                )
                return started

    def _next(self, base, tuned, steps):
        """Return (choice, lengths, share of the network that is trained) of the next contender, or None.

        First the default recipe; then, if that was better than the closed form, a higher rate,
        otherwise half of the layers; then the best of them, for twice as long.
        """
        given = self.overrides.get("epochs")
        most = default_epochs(len(self.data.examples["train"]))
        lengths = [given] if given else lengths_up_to(most)
        improved = any(entry is self.race.best for entry in tuned)
        if not tuned:
            return replace(base, strategy=DEFAULT), lengths, 1.0
        if len(tuned) == 1 and not improved:
            return replace(base, strategy="freeze_k", overrides={"k": HALF}), lengths, 1 - HALF
        chosen = {name.rpartition(".")[2] for name in self.overrides}  # such as *.learning_rate
        if len(tuned) == 1 and "learning_rate" not in chosen:
            same = tuned[0].choice.overrides["epochs"]
            bold = {"learning_rate": _BOLD * _rate(tuned[0])}
            return replace(base, strategy=DEFAULT, overrides=bold), [same], 1.0
        if given or not improved:
            return None
        best = self.race.best.choice
        share = 1 - HALF if best.strategy == "freeze_k" else 1.0
        epochs = best.overrides["epochs"]
        if epochs > 2 * most:
            return None
        if bold := best.overrides.get("learning_rate"):  # a longer training has a lower rate
            slower = default_rate(2 * epochs * steps) / default_rate(epochs * steps)
            best = replace(best, overrides={**best.overrides, "learning_rate": bold * slower})
        return best, [2 * epochs], share

    @property
    def _left(self):
        """Minutes for a contender, after which there is time for a refit of it, or of the best so far.

        A fine-tuning without a refit is hardly better than a closed form with one (docs/accuracy.md).
        """
        if not self.may_refit:
            return self.clock.left
        train, val = self.counts
        own = self.clock.left / (1 + (train + val) / train)
        return min(own, self.clock.left - self._refit_minutes(self.race.best))

    def _refit_minutes(self, entry):
        """Return how long a refit takes; of a closed form, the features of the training examples are known."""
        train, val = self.counts
        closed = entry.choice.strategy == "feature_extraction"
        more = val / (train + val) if closed else (train + val) / train
        return entry.minutes * more * share_of_refit(Run(entry.folder), self.data.examples["val"])

    @property
    def counts(self):
        """Numbers of training and of validation examples."""
        return tuple(len(self.data.examples[split]) for split in ("train", "val"))

    def _fits(self, seconds, layers):
        """See `TimeLeft`: whether there is time for a fine-tuning of the default length."""
        train, val = self.counts
        epochs = self.overrides.get("epochs") or default_epochs(train)
        return Pace(seconds, layers, train, val).minutes(epochs) <= self._left

    def _refit(self):
        """Train the best model again on training and validation examples, by default or if it is worth it."""
        if not self.may_refit:
            return
        (train, val), best, wanted = self.counts, self.race.best, self.config.refit
        few = self.open_ended and train + val <= defaults.MOST_REFITTED
        if few or best.choice.strategy == "feature_extraction":
            wanted = REFIT  # as after a named strategy
        minutes = self._refit_minutes(best)
        points = refit_points(1 - best.judged.score, train, val)
        what = f"refit: expected to add {points:.1f} points in {minutes:.1f} min"
        begun = Run(best.folder).validated_path.is_file()  # before an interruption
        if not begun and minutes > self.clock.left:
            say(f"{what}, for which there is no time.")
        elif not begun and wanted == AUTO and points <= self.worth * minutes:
            say(f"{what}, which are not worth it.")
        else:
            say(f"{what}.")
            self.race.refit(partial(self._train_again, best.choice))

    def _train_again(self, choice, run, folder):
        """See `race.TrainAgain`."""
        trainer = self._trainer(choice)
        found = trainer.refit(self.data, run, folder, [self.clock.callback()])
        return found and (trainer.model, found)

    # -- a contender

    def train(self, choice: Choice, folder: Path) -> dict[str, np.ndarray]:
        """See `race.Train`."""
        trainer = self._trainer(choice)
        recorded = self.record(trainer.config)
        recorded["advice"] = {"policy": self.config.policy, "choice": choice.to_dict()}
        trainer.fit(
            self.data,
            folder,
            config=recorded,
            resume=Run.started(folder),
            callbacks=[self.clock.callback()],
        )
        return by_head(trainer.heads, trainer.val_outputs)

    def _trainer(self, choice):
        chosen = {
            "backbone": choice.backbone,
            "strategy": choice.strategy,
            "augment": choice.augment,
            "overrides": {**choice.overrides, **self._applicable(choice)},
            **{"epochs": None, "learning_rate": None, "refit": NO_REFIT},
        }
        if choice.taps is not None:
            chosen["taps"] = choice.taps
        if choice.framing is not None:  # what of it is a setting
            found = choice.framing.settings()
            chosen |= {name: found[name] for name in TYPES.keys() & found.keys()}
        if choice.strategy == "from_scratch":
            chosen["weights"] = None
        config = replace(self.config, **chosen)
        return Trainer(self._model(choice, config), config.strategy, config)

    def _model(self, choice, config) -> keras.Model:
        """Return an untrained model: the last one again, if it is the same network."""
        if self.made is None or not self.made.fits(choice, config):
            keras.utils.set_random_seed(config.seed)
            model = self.build(config)
            self.made = _Made(choice, config.weights, model, model.get_weights())
        else:
            self.made.model.set_weights(self.made.start)
        keras.utils.set_random_seed(config.seed)
        return self.made.model

    def _applicable(self, choice):
        """Return the user's numbers; a closed form takes those of its phase alone."""
        if choice.strategy != "feature_extraction":
            return self.overrides
        return {k: v for k, v in self.overrides.items() if k not in ("epochs", "learning_rate")}

    # -- choices

    def _first(self) -> Choice:
        """Return the closed form on the candidate that is best most often."""
        return Choice(
            joined(self.names) or self.names[0],
            "feature_extraction",
            augment=self.config.augment,
            taps=widest(self.taps),
        )

    def _augment(self, evidence):
        if self.config.augment != AUTO or evidence.mirror:
            return self.config.augment
        size = evidence.best.framing.size
        small = self.data.modality.default_augmentation(self.data, size) != "light"
        return "none" if small else {"preset": "light", "flip": False}

    def _facts(self, evidence):
        from keras_transfer.advisor.inputs import facts_of, sized_backbone

        best = evidence.best
        names = best.backbone.split("+")
        backbone = names[-1] if joined(names) else best.backbone
        network = sized_backbone(backbone, best.framing, self.data)
        return facts_of(self.data, network, self.config.seed)


def _rate(entry) -> float:
    """Return the learning rate of the last phase of a fine-tuning."""
    return Run(entry.folder).config["schedule"]["phases"][-1]["learning_rate"]


@dataclass(frozen=True, eq=False)
class _Made:
    """A model and the weights that it was built with.

    Attributes:
        choice: for which it was built.
        weights: setting of the config.
        start: of all layers.
    """

    choice: Choice
    weights: str | None
    model: keras.Model
    start: list

    def fits(self, choice, config) -> bool:
        """Return whether a choice would build the same network."""
        mine = self.choice.backbone, self.choice.taps, self.weights
        same = mine == (choice.backbone, choice.taps, config.weights)
        return same and choice.framing in (None, framing_of(self.model))
