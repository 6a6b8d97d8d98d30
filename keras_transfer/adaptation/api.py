"""Adapting a model to `ImageData` in one call."""

from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from keras_transfer.adaptation.adapter import Adapter
from keras_transfer.adaptation.callbacks import EpochChoice, check_classes
from keras_transfer.adaptation.methods import resolve_methods
from keras_transfer.adaptation.network import single_label_head
from keras_transfer.adaptation.options import AdaptOptions
from keras_transfer.adaptation.selection import Selector
from keras_transfer.adaptation.streams import Stream, two_views
from keras_transfer.adaptation.target_passes import apply_adabn, check_norms
from keras_transfer.advisor.inputs import random_sample
from keras_transfer.data import batches as pipeline
from keras_transfer.data.evaluation_data import usual_split
from keras_transfer.data.examples import Examples, ImageData
from keras_transfer.errors import InputError
from keras_transfer.models.acceleration import jit_compile
from keras_transfer.models.builders import check_targets, compile_arguments, heads_of
from keras_transfer.models.framing import framing_of, settle_framing
from keras_transfer.models.stages import backbone_of, freeze, is_untrained
from keras_transfer.schedules.phases import Phase
from keras_transfer.schedules.recipes import default_epochs
from keras_transfer.utils.console import say
from keras_transfer.utils.global_state import restored
from keras_transfer.utils.names import make_options

MOST_SCORED = 2000  # target images on which each epoch is scored
# Added to the seed of the target, so that images at the same position in both domains do not meet in
# every batch.
_TARGET_SEED = 1_000_003


@dataclass(frozen=True, eq=False)
class Adapted:
    """Result of an adaptation, in addition to the model.

    Attributes:
        history: name → value per epoch, see `Adapter.fit`; `val_loss` and `val_accuracy` are those
            of the source's validation images, if there are any.
        epoch: the one whose weights the model has, from 1. AdaBN after the training counts as a
            separate epoch, one more than `history` has.
        selector: the scores of all epochs.
        source_history: the history of the source model that SHOT starts from.
    """

    history: dict[str, list[float]]
    epoch: int
    selector: Selector
    source_history: dict[str, list[float]] = field(default_factory=dict)


def default_phase(model: keras.Model, epochs: int) -> Phase:
    """Return the setup of the Transfer-Learning-Library: Nesterov SGD, rate ∝ (1 + 10·p)^−0.75.

    A pretrained backbone trains at a tenth of the learning rate of the head.
    """
    rates = {} if is_untrained(backbone_of(model)) else {"backbone": 0.1}
    return Phase(
        "adapt",
        "none",
        epochs,
        1e-2,
        shape="annealed",
        warmup=0.0,
        rates=rates,
        optimizer="sgd",
        optimizer_options={"momentum": 0.9, "nesterov": True},
        weight_decay=1e-3,
        clip_norm=5.0,
    )


def adapt(
    model: keras.Model,
    source: ImageData,
    target: ImageData | Examples,
    method="dann",
    *,
    phase: Phase | None = None,
    target_report: ImageData | Examples | None = None,
    callbacks=(),
    state=None,
    **options,
) -> Adapted:
    """Train a model on labelled images of one domain for unlabelled images of another.

    SHOT, which never sees the source, starts from a model that is first trained on the source here,
    for as many epochs.

    Args:
        model: from `build_model` with `head_for(source)`; changed in place, and compiled.
        source: the `train` split is learned; the `val` split, if there is one, is measured after
            each epoch (`val_…`), and lets `keep="selected"` detect that a model forgets the source.
        target: the `train` split is used; its labels, if there are any, are removed.
        method: see `Adapter`.
        phase: trained weights and optimizer; by default `default_phase`, which trains everything.
        target_report: labelled images of the target, of the first split among `test`, `val`, `all` and
            `train`, to be measured after each epoch, for `Selector.oracle` and reports only: neither
            the weights nor the choice of the epoch depend on them.
        callbacks, state: see `Adapter.fit`.
        options: see `AdaptOptions`: epochs, batch_size, augment, strong, batch_norm, keep, seed,
            verbose.

    Raises:
        InputError: the classes differ from those of the model, a class without source images, no
            target images, or see `Adapter` and `EpochChoice`.
    """
    with restored():
        work = _Adaptation(model, source, target, method, phase, target_report, options)
        return work.run(callbacks, None if state is None else Path(state))


class _Adaptation:
    """One call of `adapt`."""

    def __init__(self, model, source, target, method, phase, target_report, options):
        self.options = options = make_options(AdaptOptions, options, "adapt")
        self.model, self.methods = model, resolve_methods(method)
        single_label_head(model)
        source = check_targets(heads_of(model), source)
        labelled, unlabelled = _training_examples(source), _without_labels(target)
        classes = source.class_names
        self.counts = np.bincount(np.asarray(labelled.labels), minlength=len(classes))
        check_classes(classes, self.counts)
        if phase is None:
            images = max(len(labelled), len(unlabelled))
            phase = default_phase(model, options.epochs or default_epochs(images))
        elif options.epochs is not None or phase.epochs is None:
            raise InputError("Give the epochs in the phase.")
        self.phase = phase
        # AdaBN after the training acts on the chosen weights, and is scored like an epoch.
        self.adabn_last = bool(self.methods) and self.methods[-1].name == "adabn"
        if self.adabn_last:
            check_norms(model)
            self.methods = self.methods[:-1]
        settle_framing(model, source)
        framing, batch = framing_of(model), phase.batch_size or options.batch_size
        settings = {
            "image_size": framing,
            "batch_size": batch,
            "augmentation": options.augment if phase.augment is None else phase.augment,
        }
        target_seed = options.seed + _TARGET_SEED
        self.streams = {
            "source": _stream("source", labelled, options.seed, settings),
            "target": _stream("target", unlabelled, target_seed, settings),
        }
        if any(method.views for method in self.methods):
            # Two views of half as many images: a step takes as long as with other methods.
            half = {**settings, "batch_size": max(1, batch // 2)}
            stronger = source.modality.stronger_augmentation(half["augmentation"])
            strong = {**half, "augmentation": options.strong or stronger}
            views = (_stream("target", unlabelled, target_seed, each) for each in (half, strong))
            self.streams["target"] = two_views(*views)
        measured = {"image_size": framing, "batch_size": batch}
        self.validation = source.batches("val", **measured) if "val" in source.examples else None
        self.scored = _scored(unlabelled, options.seed, measured)
        self.report = _labelled(target_report, model, measured)

    def run(self, callbacks, state) -> Adapted:
        def folder(name):
            return None if state is None else state / name

        streams = dict(self.streams)
        source_free = any(method.source_free for method in self.methods)
        source_history = {}
        if source_free:
            say("first a model of the source alone")
            source_only = {"source": streams.pop("source")}
            source_history = self._fit(
                (), source_only, folder("source"), callbacks, validation_data=self.validation
            )
        choice = EpochChoice(
            self.model,
            self.scored,
            self.counts,
            source=self.validation,
            sourceless=source_free,
            keep=self.options.keep,
            target_report=self.report,
            folder=folder("choice"),
            verbose=self.options.verbose != 0,
        )
        used = streams if self.methods else {"source": streams["source"]}
        history = self._fit(self.methods, used, folder("adapt"), [*callbacks, choice])
        last = max(map(len, history.values()))  # a callback may have ended the training
        choice.back_to(last)
        epoch = choice.take()  # also if nothing was left to train
        if self.adabn_last:
            steps = max(stream.length for stream in self.streams.values())
            apply_adabn(self.model, streams["target"], most=steps)
            choice.measure(last + 1, sourceless=True)
            epoch = choice.take()
        freeze(self.model, "none", batch_norm="train")
        self.model.compile(
            keras.optimizers.AdamW(1e-5),
            **compile_arguments(heads_of(self.model)),
            jit_compile=jit_compile(),
        )
        return Adapted(history, epoch, choice.selector, source_history)

    def _fit(self, methods, streams, state, callbacks, **more):
        phase, options = self.phase, self.options
        freeze(self.model, phase.freeze, batch_norm="train")
        adapter = Adapter(self.model, methods, batch_norm=options.batch_norm, seed=options.seed)
        steps = max(stream.length for stream in streams.values())
        adapter.compile(adapter.make_optimizer(phase, steps * phase.epochs))
        return adapter.fit(
            **streams,
            epochs=phase.epochs,
            steps_per_epoch=steps,
            state=state,
            callbacks=callbacks,
            verbose=options.verbose,
            **more,
        ).history


def _training_examples(data) -> Examples:
    return data if isinstance(data, Examples) else data.require("train")


def _without_labels(target) -> Examples:
    examples = _training_examples(target)
    if not len(examples):
        raise InputError("The target contains no images: add unlabelled images.")
    return Examples(examples.images, np.zeros(len(examples), "int32"))


def _scored(unlabelled, seed, settings):
    """Return batches of the target images on which epochs are scored, without augmentation."""
    sample = random_sample(unlabelled, MOST_SCORED, seed)
    return pipeline.batches(sample, **settings).map(lambda images, _: images)


def _labelled(target_report, model, settings):
    """Return batches (images, labels) for reports, or None."""
    if target_report is None:
        return None
    examples = target_report
    if isinstance(target_report, ImageData):
        target_report = check_targets(heads_of(model), target_report)
        examples = target_report.examples[usual_split(target_report)]
    return pipeline.batches(examples, **settings)


def _stream(domain, examples, seed, settings) -> Stream:
    """Return training batches that start at any position, so that a resumed run skips no time on
    batches that it has seen."""
    length = -(-len(examples) // settings["batch_size"])

    def start_at(number):
        batches = pipeline.batches(
            examples, training=True, seed=seed, start_epoch=number // length, **settings
        ).skip(number % length)
        return batches if domain == "source" else batches.map(lambda images, _: images)

    return Stream(start_at, domain, length)
