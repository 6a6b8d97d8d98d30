"""Adapting folders: data and options validated before Keras is imported, the run directory, resuming."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from keras_transfer.adaptation.options import RunOptions, no_batch_norm
from keras_transfer.advisor.budget import Clock
from keras_transfer.advisor.rules import fallback_backbone
from keras_transfer.data import (
    ImageData,
    labeled_images,
    open_data,
    require_source,
    unlabeled_images,
)
from keras_transfer.errors import InputError, Interrupted, Signals, explained
from keras_transfer.modalities import framing_from
from keras_transfer.runs import PLACES, Run, check_out
from keras_transfer.schedules.recipes import AUTO, default_epochs
from keras_transfer.utils.console import counted, say
from keras_transfer.utils.files import absolute_paths
from keras_transfer.utils.image_sizes import size_of
from keras_transfer.utils.names import make_options

_RESUME = "continue with --resume (resume=True)"


class Adaptation:
    """An adaptation of folders, validated before Keras is imported.

    ```python
    run = Adaptation("catalogue/", "shop_floor/", "runs/adapted", method="mcc,dann").run()
    ```

    Args:
        source: labelled images: an `ImageData` with one class per example, or any argument of
            `open_data`.
        target: a folder of images at any depth; labels in the names of folders or files are ignored.
        out: directory of the run; must not exist, or be empty, unless `resume`.
        resume: continue an interrupted run with the same settings and images, or start if `out` is
            empty.
        options: see `RunOptions`.

    Raises:
        InputError: invalid options or data, as far as that is known before Keras is imported.
    """

    def __init__(self, source, target, out, *, resume: bool = False, **options):
        self.options = make_options(RunOptions, options, "Adaptation")
        self.clock = Clock(self.options.minutes)
        self.out, self.resume = Path(out), resume and Run.started(out)
        resumed = None
        if self.resume:
            resumed = Run.open(out, finished=False)
            if "method" not in resumed.config:
                raise InputError(f"{out} is not the run of an adaptation: give another --out.")
        else:
            check_out(out)
        self._resolve_auto(resumed)
        open_length = self.clock.minutes is not None or self.options.epochs is None
        if resumed and open_length:  # it was settled when the run began
            begun = resumed.config["schedule"]["phases"][0]["epochs"]
            self.options = replace(self.options, epochs=begun)
        options = self.options
        opened: dict[str, Any] = {
            name: getattr(options, name) for name in ("val", "val_split", "columns")
        }
        self.target_folder = str(Path(target).expanduser())
        self.target, self.target_skipped = unlabeled_images(target)
        if isinstance(source, ImageData):
            self.source = source
        else:
            require_source(source)
            split: dict[str, Any] = {"split_file": resumed.split_path} if resumed else {}
            self.source = open_data(source, **opened, **split, seed=options.seed)
        if self.source.modality.any_length:
            raise InputError(
                f"{self.source.title} has {self.source.modality.many}, which cannot be adapted: adaptation "
                "needs images or clips."
            )
        if self.source.task != "single_label":
            raise InputError(
                f"The labels of {self.source.title} are {self.source.task}: adaptation needs one class "
                "per image."
            )
        self.source.require("train")
        self.report = None
        if options.target_labels:
            self.report = labeled_images(target, self.source.class_names)

    def _resolve_auto(self, resumed):
        """Replace "auto": by the choice of the resumed run, or by the first backbone that is here."""
        backbone, precision = self.options.backbone, self.options.precision
        if backbone == AUTO:
            size = self.options.image_size
            backbone = resumed.config["backbone"] if resumed else fallback_backbone(size)
        if precision == AUTO and resumed:
            precision = resumed.config["precision"]
        self.options = self.options.with_backbone(backbone, precision)
        self._framing = framing_from(resumed.config) if resumed else None

    def describe(self) -> str:
        """Return a few lines about the data of both domains."""
        lines = [
            self.source.describe(),
            f"{self.target_folder}: {counted(len(self.target), self.target.modality.one)}",
        ]
        if self.target_skipped:
            lines[-1] += f", {counted(len(self.target_skipped), 'file')} skipped"
        if self.report:
            (labelled,) = self.report.examples.values()
            lines[-1] += f"; labels of {len(labelled)} for the report only"
        return "\n".join(lines)

    # -- running ----------------------------------------------------------------------------------

    def run(self) -> Run:
        """Adapt, and write the run; `kt.write_report(run)` writes its report.

        Returns:
            The finished `Run`: `run.model`, `run.metrics`, `run.history`.

        Raises:
            InputError: the run to resume is finished, or its settings or images changed; the model is
                unsuitable; memory or disk is full.
            Diverged: the loss became NaN or infinite.
            Interrupted: Ctrl-C or SIGTERM; `resume` continues after the last finished epoch.
        """
        from keras_transfer.training.distributed.single_process import require_single_process
        from keras_transfer.utils.global_state import seeded

        require_single_process("An adaptation")
        with seeded(self.options.seed):
            return self._run()

    def _run(self):
        from keras_transfer.adaptation.api import adapt
        from keras_transfer.models.stages import freeze

        options, model = self.options, self._build()
        policy = "frozen" if options.batch_norm == "frozen" else "train"
        frozen = freeze(model, options.freeze, batch_norm=policy)
        say(str(frozen))
        schedule = self._schedule(model)
        plans = self._plans(model, schedule)
        run = self._open_run(model, schedule)
        same = ("batch_size", "augment", "batch_norm", "keep", "seed")
        with Signals() as signals:
            try:
                with explained(plans["adapt"], _RESUME):
                    before = self._feature_map(model)
                    adapted = adapt(
                        model,
                        self.source,
                        self.target,
                        options.methods,
                        phase=schedule.phases[0],
                        target_report=self.report,
                        callbacks=[_clock(), self.clock.callback()],
                        state=run.state_path,
                        **{name: getattr(options, name) for name in same},
                    )
                    with signals.protected():
                        self._finish(run, model, adapted, frozen, plans, before)
            except KeyboardInterrupt:
                if run.finished:
                    raise Interrupted(f"interrupted after {run.path} was finished") from None
                raise Interrupted(
                    f"interrupted; finished epochs are saved in {run.path}: {_RESUME}"
                ) from None
            finally:
                run.release()
        return run

    def _build(self):
        from keras_transfer.models.acceleration import set_precision
        from keras_transfer.models.builders import build_model, head_for
        from keras_transfer.models.framing import framing_of, set_framing, settle_framing
        from keras_transfer.models.stages import backbone_of, batch_norms

        options = self.options
        say(str(set_precision(options.precision, options.backbone, options.image_size)))
        head = head_for(self.source, bottleneck=options.bottleneck or None)
        model = build_model(
            options.backbone,
            head,
            image_size=options.image_size,
            weights=options.weights,
            crop=options.crop,
            data=self.source,
        )
        if self._framing is not None and not framing_of(model).settled:
            set_framing(model, self._framing)
        settle_framing(model, self.source)
        if "adabn" in options.methods and not batch_norms(backbone_of(model)):
            raise no_batch_norm(options.backbone)
        return model

    def _schedule(self, model):
        from keras_transfer.adaptation.api import default_phase
        from keras_transfer.schedules.phases import Schedule

        options = self.options
        epochs = options.epochs or default_epochs(max(self._images().values()))
        if not self.resume:
            epochs = self._fitting(epochs)
        phase = default_phase(model, epochs)
        rate = options.learning_rate or phase.learning_rate
        return Schedule("adaptation", (replace(phase, freeze=options.freeze, learning_rate=rate),))

    def _fitting(self, epochs):
        """Return as many epochs as are expected to fit into the minutes, and print how long they take."""
        from keras_transfer.training.estimate import timed_step
        from keras_transfer.utils.global_state import restored

        options, images = self.options, self._images().values()
        both = 2 * options.batch_size  # a batch of each domain
        with restored():
            start, step = timed_step(options.backbone, options.image_size, both)
        start, epoch = len(images) * start, step * sum(-(-n // options.batch_size) for n in images)
        fitting = epochs
        if self.clock.minutes is not None:
            fitting = min(epochs, max(1, int((60 * self.clock.left - start) / epoch)))
        minutes = (start + fitting * epoch) / 60
        fewer = f", as {epochs} do not fit" if fitting < epochs else ""
        say(f"{counted(fitting, 'epoch')}{fewer}: at most about {minutes:.1f} min")
        return fitting

    def _images(self):
        """Return name of each part of the training → images per epoch."""
        source, target = len(self.source.examples["train"]), len(self.target)
        if "shot" in self.options.methods:
            return {"source": source, "adapt": target}
        return {"adapt": source if self.options.methods == ["adabn"] else max(source, target)}

    def _plans(self, model, schedule):
        """Return name of each part of the training → its `PlannedPhase`."""
        from keras_transfer.schedules.plans import make_plan

        return {
            name: make_plan(model, schedule, images, self.options.batch_size).phases[0]
            for name, images in self._images().items()
        }

    def _feature_map(self, model):
        from keras_transfer.adaptation.network import feature_map

        sizes = {"batch_size": self.options.batch_size, "seed": self.options.seed}
        return feature_map(model, self.source.examples["train"], self.target, **sizes)

    # -- the run directory ------------------------------------------------------------------------

    def _open_run(self, model, schedule):
        from keras_transfer.adaptation.methods import resolve_methods
        from keras_transfer.models.framing import framing_of

        places = {"source": self.source.root, "target": self.target_folder}
        config = {
            **absolute_paths({**places, **self.options.to_dict()}, PLACES),
            "image_size": size_of(model.input_shape),
            **framing_of(model).recorded(),
            "precision": model.dtype_policy.name,
            "methods": [method.to_dict() for method in resolve_methods(self.options.methods)],
            "head": {"task": "single_label", "names": list(self.source.class_names)},
            "schedule": schedule.to_dict(),
        }
        target = {
            f"target: {os.path.relpath(name, self.target_folder)}": digest.hex()
            for name, digest in zip(self.target.names, self.target.digests)
        }
        images = {**self.source.fingerprint(), **target}
        if self.resume:
            return Run.resume(self.out, config, images)
        skipped = [*self.source.skipped, *self.target_skipped]
        return Run.create(self.out, config, skipped, images, self.source.split_table())

    def _finish(self, run, model, adapted, frozen, plans, before):
        """Write history, feature maps, metrics, and the model last."""
        from keras_transfer.adaptation.network import write_feature_maps

        rows = history_rows(adapted, plans)
        run.write_history(rows)
        write_feature_maps(run.feature_maps_path, before, self._feature_map(model))
        run.finish(model, self._metrics(model, adapted, rows, frozen))

    def _metrics(self, model, adapted, rows, frozen) -> dict:
        """Return the content of metrics.json, after evaluating the model."""
        from keras_transfer.evaluation import evaluate

        val, target, batch_size = {}, None, self.options.batch_size
        if "val" in self.source.examples:
            result = evaluate(model, self.source, "val", batch_size=batch_size)
            val = {name: result[name] for name in ("accuracy", "accuracy_interval", "loss")}
        if self.report:
            (split,) = self.report.examples
            result = evaluate(model, self.report, split, batch_size=batch_size)
            names = ("images", "accuracy", "accuracy_interval", "balanced_accuracy", "loss")
            target = {name: result[name] for name in names}
        phases = [
            _phase(name, [row for row in rows if row["phase"] == name], frozen)
            for name in dict.fromkeys(row["phase"] for row in rows)
        ]
        sizes = {split: len(examples) for split, examples in self.source.examples.items()}
        return {
            "val": val,
            "best_epoch": sum(phase["epochs"] for phase in phases[:-1]) + adapted.epoch,
            "wall_seconds": round(sum(phase["wall_seconds"] for phase in phases), 3),
            "images": {**sizes, "target": len(self.target)},
            "skipped": len(self.source.skipped) + len(self.target_skipped),
            "phases": phases,
            "adaptation": {
                "method": self.options.methods,
                "keep": self.options.keep,
                "epoch": adapted.epoch,
                "target": target,
                "selection": adapted.selector.to_dict(),
            },
        }


def history_rows(adapted, plans: dict) -> list[dict]:
    """Return the rows of history.csv, one per epoch.

    Args:
        adapted: an `Adapted` whose history contains `seconds`.
        plans: name of each part of the training → its `PlannedPhase`, in order.
    """
    rows: list[dict] = []
    for name, planned in plans.items():
        history = adapted.source_history if name == "source" else adapted.history
        rates = planned.learning_rate((np.arange(planned.epochs) + 1) * planned.steps_per_epoch - 1)
        for i, rate in enumerate(rates[: len(history["seconds"])]):  # it may end at a limit
            values = {key: column[i] for key, column in history.items()}
            seconds = values.pop("seconds")
            row = {"epoch": len(rows) + 1, "phase": name, "learning_rate": float(rate), **values}
            target = adapted.selector.target_accuracy(i + 1) if name == "adapt" else None
            if target is not None:
                row["target_accuracy"] = target
            rows.append({**row, "seconds": seconds})
    return rows


def _phase(name, rows, frozen):
    last = rows[-1].items()
    return {
        "name": name,
        "epochs": len(rows),
        "frozen_stages": frozen.stages,
        "trainable_parameters": frozen.trainable_parameters,
        "wall_seconds": round(sum(row["seconds"] for row in rows), 3),
        "val": {key.removeprefix("val_"): value for key, value in last if key.startswith("val_")},
    }


def _clock():
    """Return a callback that logs the seconds of each epoch."""
    import time

    import keras

    started = [0.0]

    def start(epoch, logs):
        started[0] = time.perf_counter()

    def stop(epoch, logs):
        logs["seconds"] = round(time.perf_counter() - started[0], 3)

    return keras.callbacks.LambdaCallback(on_epoch_begin=start, on_epoch_end=stop)


def result_line(run: Run) -> str:
    """Return a line that sums up a finished run."""
    metrics = run.metrics
    adaptation = metrics["adaptation"]
    parts = []
    if adaptation["target"]:
        low, high = adaptation["target"]["accuracy_interval"]
        parts.append(
            f"target accuracy {adaptation['target']['accuracy']:.4f} (95 % interval {low:.3f}–"
            f"{high:.3f}, {adaptation['target']['images']} images)"
        )
    if metrics["val"]:
        parts.append(f"source val accuracy {metrics['val']['accuracy']:.4f}")
    epochs = adaptation["selection"]["epochs"][-1]["epoch"]
    parts.append(f"{adaptation['keep']} epoch {adaptation['epoch']} of {epochs}")
    parts.append(f"{metrics['wall_seconds']:.0f} s of training, {metrics['skipped']} files skipped")
    return ", ".join(parts)
