"""The refit: a model is trained once more, on training and validation examples, for as long as was best."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np

from keras_transfer.data.examples import Examples, ImageData, join_labels
from keras_transfer.data.readers import concatenated
from keras_transfer.errors import Diverged
from keras_transfer.evaluation.measures import compute_metrics
from keras_transfer.runs import Run
from keras_transfer.schedules.phases import Schedule
from keras_transfer.schedules.plans import Plan, make_plan
from keras_transfer.training.distributed.single_process import scaled
from keras_transfer.training.run_loop import TrainingRun
from keras_transfer.utils.console import counted, say


def refit(trainer, data: ImageData, run: Run, folder, callbacks: Sequence = ()) -> dict | None:
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

    Returns:
        What metrics.json says of it, and the model has the new weights; or None, after saying why the
        validated weights should stay.
    """
    try:
        return _refit(trainer, data, run, folder, callbacks)
    except (_LeftOut, Diverged) as error:
        say(f"refit: left out, because {error}")
        return None


class _LeftOut(Exception):
    """Why the validated weights should stay."""


def _refit(trainer, data, run, folder, callbacks):
    metrics, everything = run.metrics, _joined(data)
    if any("rollbacks" in phase for phase in metrics["phases"]):
        raise _LeftOut("the training had to go back to earlier weights")
    if metrics.get("soup", {}).get("used"):
        raise _LeftOut("the saved weights are an average that validation has chosen")
    count, epochs = len(everything.examples["train"]), metrics["best_epoch"]
    schedule = Schedule.from_dict(run.config["schedule"])
    batch = trainer.config.batch_size
    plan = make_plan(
        trainer.model, scaled(schedule, trainer.devices, batch), count, batch * trainer.devices
    )
    plan = _cut(plan, [phase["epochs"] for phase in metrics["phases"]], epochs)
    begun = Run.open(folder, finished=False).config if Run.started(folder) else None
    say(f"refit: {counted(epochs, 'epoch')} on all {counted(count, data.modality.one)}")
    again = Run(folder)
    if again.finished:
        trainer.model.set_weights(again.model.get_weights())
    else:
        settings = trainer.settings(schedule, {})
        TrainingRun(trainer, everything, plan, callbacks).fit(folder, settings, begun, ())
    done = again.metrics
    if sum(phase["epochs"] for phase in done["phases"]) < epochs:
        raise _LeftOut("the time is over")
    for name, temperature in metrics.get("temperature", {}).items():
        layer = trainer.model.get_layer(name)
        layer.set_weights([weight / temperature for weight in layer.get_weights()])
    outputs = trainer.workers.outputs(trainer.model, data, "val", batch, None)
    seen = compute_metrics(trainer.heads, *outputs)["loss"]
    if seen >= metrics["val"]["loss"]:
        raise _LeftOut(
            f"it is no better on the validation examples, although it has seen them ({seen:.4f})"
        )
    return {"examples": count, "epochs": epochs, "wall_seconds": done["wall_seconds"]}


def _joined(data: ImageData) -> ImageData:
    """Return a dataset whose training examples are those of training and of validation."""
    parts = [data.examples["train"], data.examples["val"]]
    groups: Any = [part.groups for part in parts]
    whole = Examples(
        concatenated([part.images for part in parts]),
        join_labels([part.labels for part in parts]),
        None if any(one is None for one in groups) else np.concatenate(groups),
    )
    return replace(data, examples={"train": whole})


def _cut(plan: Plan, trained: Sequence[int], epochs: int) -> Plan:
    """Return a plan that ends after a number of epochs, at the rates of the whole plan.

    Args:
        trained: epochs of each phase, of which some may have ended early.
    """
    phases = []
    for planned, done, before in zip(plan.phases, trained, accumulate(trained, initial=0)):
        if before < epochs:
            phases.append(replace(planned, epochs=min(done, epochs - before)))
    return replace(plan, phases=tuple(phases))
