"""Adapting from folder to folder: checks before Keras is imported, the run directory, resuming."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from keras_transfer.adaptation import BATCH_NORM, KEEP, check_methods, no_batch_norm
from keras_transfer.advisor.rules import fallback_backbone
from keras_transfer.data import (
    ImageData,
    labelled_images,
    open_data,
    plain_augmentation,
    require_source,
    unlabelled_images,
)
from keras_transfer.errors import InputError
from keras_transfer.models.sources.applications import check_backbone, find_spec, is_source_model
from keras_transfer.runs import Run, check_out
from keras_transfer.schedules.recipes import AUTO, default_epochs
from keras_transfer.training.failures import Interrupted, Signals, explained
from keras_transfer.utils.console import say

BOTTLENECK = 256


class Adaptation:
    """An adaptation that is to be run, checked before Keras is imported.

    ```python
    run = Adaptation("catalogue/", "shop_floor/", "runs/adapted", method="mcc,dann").run()
    ```

    Args:
        source: labelled images: an `ImageData` of one class per image, or what `open_data` takes.
        target: a folder of images at any depth; their labels, if folders or names say any, are not
            looked at.
        out: directory of the run; must not exist, or be empty, unless `resume`.
        method: names of `METHOD_NAMES`, as a list or with commas.
        backbone: as `build_model` takes it: a name, a `.keras` file or a run; `"auto"` is the first of
            the advisor's shortlist whose weights are here (no measuring, no race).
        weights: of the backbone, as `build_model` takes them.
        epochs: passes over the larger domain, ≥ 1; by default as many as the trainer takes.
        learning_rate: highest rate, > 0; by default that of `default_phase`.
        image_size: by default the backbone's.
        batch_size: of each domain, ≥ 1.
        augment: see `data.resolve_augmentation`.
        precision: see `precision.set_precision`.
        freeze: see `freezing.frozen_stages`.
        batch_norm: see `Adapter`.
        bottleneck: width of the layer whose output is aligned; 0: the backbone's output is.
        keep: `"last"` or `"selected"`, see `EpochChoice`.
        target_labels: TARGET has class folders: the accuracy on them is reported. Nothing else
            depends on it.
        seed: of everything random.
        val, val_split, columns: of the source, see `open_data`.
        resume: go on with an interrupted run of the same settings and images; where nothing was
            begun yet, begin.

    Raises:
        InputError: whatever is wrong that can be told now; the rest when it is run.
    """

    def __init__(
        self,
        source,
        target,
        out,
        *,
        method: str | Sequence[str] = "dann",
        backbone: str = AUTO,
        weights: str | None = "imagenet",
        epochs: int | None = None,
        learning_rate: float | None = None,
        image_size: int | None = None,
        batch_size: int = 32,
        augment="light",
        precision: str = AUTO,
        freeze: str = "none",
        batch_norm: str = "joint",
        bottleneck: int = BOTTLENECK,
        keep: str = "last",
        target_labels: bool = False,
        seed: int = 0,
        val=None,
        val_split: float = 0.2,
        columns: dict | None = None,
        resume: bool = False,
    ):
        self.methods = _names(method)
        check_methods(self.methods)
        for name, value, least in (
            ("epochs", epochs, 1),
            ("batch_size", batch_size, 1),
            ("bottleneck", bottleneck, 0),
        ):
            if value is not None and value < least:
                raise InputError(f"{name} must be {least} or more, not {value}.")
        if learning_rate is not None and not learning_rate > 0:
            raise InputError(f"learning_rate must be above 0, not {learning_rate}.")
        for name, value, allowed in (("keep", keep, KEEP), ("batch_norm", batch_norm, BATCH_NORM)):
            if value not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, not '{value}'.")
        self.out, self.resumes = Path(out), resume and Run.begun(out)
        begun = None
        if self.resumes:
            begun = Run.open(out, finished=False)
            if "method" not in begun.config:
                raise InputError(
                    f"{out} is a run of another kind: give the --out of an adaptation."
                )
            # Chosen as the run began.
            backbone = begun.config["backbone"] if backbone == AUTO else backbone
            precision = begun.config["precision"] if precision == AUTO else precision
        else:
            check_out(out)
        self.backbone = fallback_backbone(image_size) if backbone == AUTO else str(backbone)
        self.weights, self.image_size, self.precision = weights, image_size, precision
        self._check_backbone()
        self.epochs, self.learning_rate, self.freeze = epochs, learning_rate, freeze
        self.batch_size, self.augment = batch_size, plain_augmentation(augment)
        self.batch_norm, self.bottleneck, self.keep = batch_norm, bottleneck, keep
        self.seed, self.target_labels = seed, target_labels
        self.opened: dict[str, Any] = {
            "val": val and str(val),
            "val_split": val_split,
            "columns": columns,
        }
        self.target_folder = str(Path(target).expanduser())
        self.target, self.target_skipped = unlabelled_images(target)
        if isinstance(source, ImageData):
            self.source = source
        else:
            require_source(source)
            split: dict[str, Any] = {"split_file": begun.split_path} if begun else {}
            self.source = open_data(source, **self.opened, **split, seed=seed)
        self._check_source()
        self.report = None
        if target_labels:
            self.report = labelled_images(target, self.source.class_names)

    def _check_backbone(self):
        own = is_source_model(self.backbone)
        if "," in self.backbone:
            raise InputError(f"Give one backbone, not '{self.backbone}'.")
        if "adabn" in self.methods and not own and not find_spec(self.backbone).batch_norm:
            raise no_batch_norm(self.backbone)
        check_backbone(self.backbone, self.image_size, self.weights)

    def _check_source(self):
        if self.source.task != "single_label":
            raise InputError(
                f"The labels of {self.source.root} are {self.source.task}: adaptation is for one class "
                "an image."
            )
        if "train" not in self.source.examples:
            raise InputError(f"{self.source.root} has no training images.")

    def describe(self) -> str:
        """A few lines for people: what there is of each domain."""
        lines = [self.source.describe(), f"{self.target_folder}: {len(self.target)} images"]
        if self.target_skipped:
            lines[-1] += f", {len(self.target_skipped)} files skipped"
        if self.report:
            (labelled,) = self.report.examples.values()
            lines[-1] += f"; labels of {len(labelled)} for reporting only"
        return "\n".join(lines)

    # -- running ----------------------------------------------------------------------------------

    def run(self) -> Run:
        """Adapt, and write the run; `kt.write_report(run)` writes its report.

        Returns:
            The finished `Run`: `run.model`, `run.metrics`, `run.history`.

        Raises:
            InputError: the run to resume is finished, or its settings or images changed; what only
                the network can tell; memory or disk is full.
            Diverged: the loss became NaN or infinite.
            Interrupted: Ctrl-C or SIGTERM; `resume` goes on after the last finished epoch.
        """
        from keras_transfer.adaptation.api import adapt
        from keras_transfer.adaptation.progress import Clock
        from keras_transfer.models.stages import freeze
        from keras_transfer.training.distributed.workers import require_alone

        require_alone("An adaptation")
        model = self._build()
        policy = "frozen" if self.batch_norm == "frozen" else "train"
        frozen = freeze(model, self.freeze, batch_norm=policy)
        say(str(frozen))
        schedule = self._schedule(model)
        config = self._config(model, schedule)
        images = {**self.source.fingerprint(), **self._target_fingerprint()}
        if self.resumes:
            run = Run.resume(self.out, config, images)
        else:
            run = Run.create(self.out, config, self._skipped(), images, self.source.split_table())
        plans = self._plans(model, schedule)
        with Signals() as signals:
            try:
                with explained(plans["adapt"], "go on with --resume (resume=True)"):
                    before = self._feature_map(model)
                    adapted = adapt(
                        model,
                        self.source,
                        self.target,
                        self.methods,
                        phase=schedule.phases[0],
                        batch_size=self.batch_size,
                        augment=self.augment,
                        batch_norm=self.batch_norm,
                        keep=self.keep,
                        target_report=self.report,
                        seed=self.seed,
                        callbacks=[Clock()],
                        state=run.state_path,
                    )
                    with signals.protected():
                        self._finish(run, model, adapted, frozen, plans, before)
            except KeyboardInterrupt:
                if run.finished:
                    raise Interrupted(f"interrupted when {run.path} was finished") from None
                raise Interrupted(
                    f"interrupted; the finished epochs are kept in {run.path}: go on with --resume "
                    "(resume=True)"
                ) from None
        return run

    def _finish(self, run, model, adapted, frozen, plans, before):
        """Writes what the run says of itself, the model last."""
        from keras_transfer.adaptation.feature_maps import write_feature_maps
        from keras_transfer.adaptation.outcome import history_rows, metrics_of

        rows = history_rows(adapted, plans)
        metrics = metrics_of(
            model,
            adapted,
            rows,
            frozen,
            source=self.source,
            report=self.report,
            methods=self.methods,
            keep=self.keep,
            target_images=len(self.target),
            skipped=len(self._skipped()),
            batch_size=self.batch_size,
        )
        run.write_history(rows)
        write_feature_maps(run.feature_maps_path, before, self._feature_map(model))
        run.finish(model, metrics)

    def _feature_map(self, model):
        from keras_transfer.adaptation.feature_maps import feature_map

        train = self.source.examples["train"]
        return feature_map(model, train, self.target, batch_size=self.batch_size, seed=self.seed)

    def _skipped(self):
        return [*self.source.skipped, *self.target_skipped]

    def _build(self):
        import keras

        from keras_transfer.models.acceleration import set_precision
        from keras_transfer.models.builders import build_model, head_for
        from keras_transfer.models.stages import backbone_of, batch_norms

        say(str(set_precision(self.precision, self.backbone, self.image_size)))
        keras.utils.set_random_seed(self.seed)
        head = head_for(self.source, bottleneck=self.bottleneck or None)
        model = build_model(self.backbone, head, image_size=self.image_size, weights=self.weights)
        if "adabn" in self.methods and not batch_norms(backbone_of(model)):
            raise no_batch_norm(self.backbone)
        return model

    def _schedule(self, model):
        from keras_transfer.adaptation.api import default_phase
        from keras_transfer.schedules.phases import Schedule

        phase = default_phase(model, self.epochs or default_epochs(max(self._images().values())))
        rate = self.learning_rate or phase.learning_rate
        return Schedule("adaptation", (replace(phase, freeze=self.freeze, learning_rate=rate),))

    def _images(self):
        """Name of each part of the training → images in an epoch of it."""
        source, target = len(self.source.examples["train"]), len(self.target)
        if "shot" in self.methods:
            return {"source": source, "adapt": target}
        return {"adapt": source if self.methods == ["adabn"] else max(source, target)}

    def _plans(self, model, schedule):
        """Name of each part of the training → its `PlannedPhase`."""
        from keras_transfer.schedules.plans import make_plan

        return {
            name: make_plan(model, schedule, images, self.batch_size).phases[0]
            for name, images in self._images().items()
        }

    def _settings(self):
        """What was asked for, as plain data."""
        return {
            "source": self.source.root,
            "target": self.target_folder,
            "method": ",".join(self.methods),
            "backbone": self.backbone,
            "weights": self.weights or "none",
            **self.opened,
            "batch_size": self.batch_size,
            "augment": self.augment,
            "freeze": self.freeze,
            "batch_norm": self.batch_norm,
            "bottleneck": self.bottleneck,
            "keep": self.keep,
            "target_labels": self.target_labels,
            "seed": self.seed,
        }

    def _config(self, model, schedule):
        from keras_transfer.adaptation.methods import resolve_methods

        return {
            **self._settings(),
            "image_size": model.input_shape[1],
            "precision": model.dtype_policy.name,
            "methods": [_plain(method.to_dict()) for method in resolve_methods(self.methods)],
            "head": {"task": "single_label", "names": list(self.source.class_names)},
            "schedule": schedule.to_dict(),
        }

    def _target_fingerprint(self):
        return {
            f"target: {os.path.relpath(name, self.target_folder)}": digest.hex()
            for name, digest in zip(self.target.names, self.target.digests)
        }


def _names(method) -> list[str]:
    if isinstance(method, str):
        method = method.split(",")
    names = [str(name).strip() for name in method]
    if not any(names):
        raise InputError("Name a method or more.")
    return names


def _plain(fields):
    return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
