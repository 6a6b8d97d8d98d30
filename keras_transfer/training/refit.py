"""The refit: a model is trained once more, on training and validation examples, for as long as was best."""

import math
import shutil
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from itertools import accumulate

import numpy as np

from keras_transfer.data.examples import ImageData, join_examples
from keras_transfer.errors import Diverged, InputError, Interrupted, OutOfSpace, full_disk
from keras_transfer.evaluation.measures import compute_metrics, predict_split
from keras_transfer.models.stages import backbone_of
from keras_transfer.runs import REFITS, Run
from keras_transfer.schedules import defaults
from keras_transfer.schedules.phases import Schedule
from keras_transfer.schedules.plans import Plan
from keras_transfer.schedules.recipes import AUTO
from keras_transfer.training.config import NO_REFIT, REFIT
from keras_transfer.training.retraining import remember_training
from keras_transfer.training.rollback import fell
from keras_transfer.training.run_loop import TrainingRun
from keras_transfer.training.temperature import divide_logits
from keras_transfer.training.weights import assign
from keras_transfer.utils.checkpoint import Checkpoint
from keras_transfer.utils.console import counted, say

_STEERED = "validation decides its learning rate"


def refit_follows(trainer, data: ImageData, plan: Plan, previous: dict | None = None) -> bool:
    """Return whether a training is followed by one on the validation examples too, and say so.

    Args:
        trainer: `refit="auto"` in its settings means that validation was drawn from the training examples,
            and that all phases are closed forms, or that there are few examples and no `minutes`.
        data: the examples.
        plan: of the training.
        previous: settings of the run to resume, which holds what was decided when it began.
    """
    config = trainer.config
    if "val" not in data.examples or config.refit == NO_REFIT:
        return False
    count = sum(len(data.examples[split]) for split in ("train", "val"))
    closed = all(planned.phase.solver == "logistic" for planned in plan.phases)  # takes seconds
    wanted = config.refit == REFIT
    if config.refit == AUTO:
        few = count <= defaults.MOST_REFITTED
        wanted = data.val_drawn and (closed or few)
        if previous is not None:
            wanted = previous.get(REFITS, False)
        wanted = wanted and (closed or config.minutes is None)
    if wanted and _steered(plan.schedule):
        if config.refit == REFIT:
            say(f"refit: left out, because {_STEERED}")
        return False
    if wanted and trainer.workers.distributed:
        if previous and previous.get(REFITS):
            raise InputError(
                "The run began in one process, where a second training on all examples follows: resume it "
                "so, or leave that out with --refit never (refit='never')."
            )
        return False
    if wanted and not closed and previous is None:
        say(
            f"refit: after validation, trains once more on all {counted(count, data.modality.one)}, which "
            "takes about as long again; --refit never (refit='never') leaves it out"
        )
    return wanted


def refit(
    trainer, data: ImageData, run: Run, folder, callbacks: Sequence = (), outputs=None
) -> dict | None:
    """Train the model of a run again on all of its examples, with what validation has chosen.

    Schedule, rates and the number of epochs are those of the validated training; its temperatures are
    applied again. Without validation examples of its own, the new model is judged by those that the
    first one was validated on, which it has seen: its loss there must be lower.

    Args:
        trainer: a `training.Trainer`, whose model has the weights that the training of the run started from.
        data: the examples of the run, in the order of the heads.
        run: trained, with its metrics.
        folder: where the second training is saved; an interrupted one there is continued.
        callbacks: of Keras, for it.
        outputs: of the validated model for the validation examples; by default they are computed.

    Returns:
        What metrics.json says of it, and the model has the new weights; or None, after saying why the
        validated weights should stay.

    Raises:
        OutOfSpace: memory or disk is full; `folder` can be continued.
    """
    try:
        found = _refit(trainer, data, run, folder, callbacks, outputs)
    except (_LeftOut, InputError) as error:  # such as no space for its cache
        if isinstance(error, OutOfSpace):
            raise
        if cause := full_disk(error):
            raise OutOfSpace(f"Could not begin a second training: {cause}.") from cause
        reason = "its loss became NaN or infinite" if isinstance(error, Diverged) else error
        say(f"refit: left out, because {reason}")
        shutil.rmtree(folder, ignore_errors=True)
        return None
    backbone_of(trainer.model).seen = data.examples["val"].digest
    return found


def finish_refitted(trainer, data: ImageData, run: Run) -> None:
    """Train the model of a run again, see `refit`, and finish the run, which has its validated model.

    Args:
        trainer: whose model has the validated weights; it gets those that are saved.
        data: see `refit`.
        run: saved by `Run.keep_validated`.
    """
    model = trainer.model
    validated, checkpoint = model.get_weights(), Checkpoint(run.state_path)
    run.take()
    try:
        assign(model.weights, checkpoint.load_arrays("start") or {}, "start")
        folder = run.state_path / "refit"
        found = refit(trainer, data, run, folder, outputs=trainer.val_outputs)
        if found is None:
            model.set_weights(validated)
        run.finish(model, run.metrics | ({"refit": found} if found else {}))
    except (Interrupted, OutOfSpace) as error:
        interrupted = isinstance(error, Interrupted)
        raise type(error)(
            f"{'interrupted in the second training' if interrupted else error}; {run.validated_path} is the "
            "model of the first: continue with --resume (resume=True), or finish with that model by "
            "--resume --refit never"
        ) from None
    finally:
        run.release()
    remember_training(model, run.path)


class _LeftOut(Exception):
    """Why the validated weights should stay."""


def _refit(trainer, data, run, folder, callbacks, validated):
    metrics, parts = run.metrics, [data.examples[name] for name in ("train", "val")]
    everything = replace(data, examples={"train": join_examples(parts)})
    if any("rollbacks" in phase for phase in metrics["phases"]):
        raise _LeftOut("the training had to go back to earlier weights")
    if metrics.get("soup", {}).get("used"):
        raise _LeftOut("the saved weights are an average that validation has chosen")
    count = len(everything.examples["train"])
    schedule = Schedule.from_dict(run.config["schedule"])
    if _steered(schedule):
        raise _LeftOut(_STEERED)
    epochs = _length(run, trainer.head.ranked_by if trainer.head else None, data.examples["val"])
    plan = trainer.plan_of(schedule, count)
    plan = _cut(plan, [phase["epochs"] for phase in metrics["phases"]], epochs)
    say(f"refit: {counted(plan.epochs, 'epoch')} on all {counted(count, data.modality.one)}")
    begun = Run.open(folder, finished=False).config if Run.started(folder) else None
    trainer.forget_images()
    if validated is None:
        validated = predict_split(run.model_for("val"), data, "val", trainer.config.batch_size)[1]
    other = copy(trainer)
    other.config = replace(trainer.config, soup=False)  # which nothing could choose
    training = TrainingRun(other, everything, plan, callbacks, _only_metrics, metrics["phases"])
    again = training.fit(folder, other.settings(schedule, {}), begun, ())
    done = sum(phase["epochs"] for phase in again.metrics["phases"])
    if done < plan.epochs or any(getattr(each, "cut", False) for each in callbacks):
        raise _LeftOut("the time is over")
    for name, temperature in metrics.get("temperature", {}).items():
        divide_logits(trainer.model, name, temperature)
    size = trainer.config.batch_size
    outputs = trainer.workers.outputs(trainer.model, data, "val", size, None)
    seen = compute_metrics(trainer.heads, *outputs)["loss"]
    before = compute_metrics(trainer.heads, outputs[0], validated)["loss"]
    if not seen < before:
        raise _LeftOut(
            f"it is no better on the validation examples, although it has seen them ({seen:.4f})"
        )
    wall = again.metrics["wall_seconds"]
    return {"examples": count, "epochs": plan.epochs, "wall_seconds": wall}


def _only_metrics(run, model, metrics):
    """Save what the refit needs; its checkpoint stays until the run of which it is a part is finished."""
    run.write_metrics(metrics)


def _steered(schedule: Schedule) -> bool:
    """Return whether validation decides the learning rate."""
    return any(phase.shape == "plateau" for phase in schedule.phases)


def _length(run: Run, ranked_by: str | None, examples) -> int:
    """Return the epochs of a refit: up to the best one.

    Where groups were held out, such as one speaker, which of several good epochs was the best one says little
    about other groups, but the last ones have the lowest rate: all of its phase, unless its last epoch is
    far below the best one, by the number of groups.
    """
    best, groups = run.metrics["best_epoch"], examples.groups
    if groups is None:
        return best
    ends = accumulate(phase["epochs"] for phase in run.metrics["phases"])
    last = next(end for end in ends if end >= best)
    name = ranked_by or "loss"
    then, now = ({name: run.history[x - 1].get(f"val_{name}", math.nan)} for x in (best, last))
    return best if fell(now, then, ranked_by, len(np.unique(groups))) else last


def share_of_refit(run: Run, examples) -> float:
    """Return the share of a training after which its refit is expected to end.

    Args:
        examples: of validation.
    """
    best, total = run.metrics["best_epoch"], sum(each["epochs"] for each in run.metrics["phases"])
    return best / total if examples.groups is None or best == 1 else 1.0


def _cut(plan: Plan, trained: Sequence[int], epochs: int) -> Plan:
    """Return a plan that ends after a number of epochs, at the rates of the whole plan.

    Args:
        trained: epochs of each phase, of which some may have ended early.
    """
    phases = []
    for planned, done, before in zip(plan.phases, trained, accumulate(trained, initial=0)):
        if before < epochs:
            # A length in steps is fewer epochs of more batches.
            length = min(planned.epochs, done, epochs - before)
            phase = replace(planned.phase, early_stopping=None)  # it has ended already
            phases.append(replace(planned, epochs=length, phase=phase))
    return replace(plan, phases=tuple(phases))
