"""Adaptation in one call, for `ImageData`."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import keras
import numpy as np

from keras_transfer.adaptation.adabn import apply_adabn, check_norms
from keras_transfer.adaptation.adapter import Adapter
from keras_transfer.adaptation.epoch_selection import EpochChoice
from keras_transfer.adaptation.methods import resolve_methods
from keras_transfer.adaptation.network import single_label_head
from keras_transfer.adaptation.progress import missing_classes
from keras_transfer.adaptation.selection import Selector
from keras_transfer.adaptation.streams import Stream, two_views
from keras_transfer.data.examples import Examples, ImageData
from keras_transfer.errors import InputError
from keras_transfer.models.acceleration import jit_compile
from keras_transfer.models.builders import check_targets, compile_arguments, heads_of
from keras_transfer.models.stages import backbone_of, freeze, is_untrained
from keras_transfer.schedules.phases import Phase
from keras_transfer.schedules.recipes import default_epochs
from keras_transfer.utils.console import say

MOST_SCORED = 2000  # target images that an epoch is scored on


@dataclass(frozen=True, eq=False)
class Adapted:
    """What an adaptation gave, beside the model.

    Attributes:
        history: name → value of each epoch, see `Adapter.fit`; `val_loss` and `val_accuracy` are those
            of the source's validation images, where there are any.
        epoch: the one whose weights the model has, from 1. AdaBN after the training counts as an
            epoch of its own, one more than `history` has.
        selector: the scores of all epochs.
        source_history: the same as `history`, of the model of the source that SHOT starts from.
    """

    history: dict[str, list[float]]
    epoch: int
    selector: Selector
    source_history: dict[str, list[float]] = field(default_factory=dict)


def default_phase(model: keras.Model, epochs: int) -> Phase:
    """The set-up of the Transfer-Learning-Library: Nesterov SGD whose rate falls as (1 + 10·p)^−0.75.

    A pretrained backbone learns at a tenth of the rate of the head.
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
    epochs: int | None = None,
    batch_size: int = 32,
    augment="light",
    strong=None,
    batch_norm: str = "joint",
    keep: str = "last",
    target_report: ImageData | Examples | None = None,
    seed: int = 0,
    callbacks=(),
    verbose="auto",
    state=None,
) -> Adapted:
    """Trains a model on labelled images of one domain for unlabelled images of another.

    SHOT, which does not see the source, starts from a model that is trained on the source here first
    (for as many epochs, plainly).

    Args:
        model: from `build_model` with `head_for(source)`; changed in place, and compiled.
        source: its training images are learned from; its validation images, where there are any,
            are measured on after each epoch (`val_…`), and `keep="selected"` sees in them that a model
            has unlearned the source.
        target: its training images; labels that they may have are removed here and reach nothing.
        method: see `Adapter`.
        phase: what trains and how fast; by default `default_phase`, with everything trained.
        epochs: passes over the larger domain, where no phase is given; by default as many as the
            trainer takes for so many images.
        batch_size: of each domain, where the phase says nothing.
        augment: of the training images of both domains, where the phase says nothing.
        strong: of the other view of a target image, for FixMatch; by default two operations of
            RandAugment at full strength after what `augment` does.
        keep: `"last"`, or `"selected"` without a label of the target: whose weights the model ends
            with, see `EpochChoice`. Epochs are scored on 2000 target images at most.
        target_report: labelled images of the target (the test images, where there are such, else
            those for validation or all), to be measured on after each epoch. For `Selector.oracle` and
            reports only: neither the weights nor the choice depend on them.
        batch_norm, seed, callbacks, verbose, state: see `Adapter` and `Adapter.fit`.

    Raises:
        InputError: classes that are not the model's or have no source image, no target image, or
            see `Adapter` and `EpochChoice`.
    """
    methods = resolve_methods(method)
    single_label_head(model)
    check_targets(heads_of(model), source)
    labelled, unlabelled = _examples(source), _without_labels(target)
    counts = np.bincount(np.asarray(labelled.labels), minlength=len(source.class_names))
    missing = [name for name, count in zip(source.class_names, counts) if not count]
    if missing:
        raise InputError(missing_classes(missing))
    if phase is None:
        epochs = epochs or default_epochs(max(len(labelled), len(unlabelled)))
        phase = default_phase(model, epochs)
    elif epochs is not None or phase.epochs is None:
        raise InputError("Give the epochs in the phase.")
    last = phase.epochs or 0  # given in any case
    # AdaBN after the training acts here, on the weights that are kept, and is scored like an epoch.
    normalises_last = bool(methods) and methods[-1].name == "adabn"
    if normalises_last:
        check_norms(model)
        methods = methods[:-1]
    source_free = any(method.source_free for method in methods)
    size, batch = model.input_shape[1], phase.batch_size or batch_size
    settings = {
        "image_size": size,
        "batch_size": batch,
        "augmentation": augment if phase.augment is None else phase.augment,
    }
    streams = {
        "source": _stream("source", labelled, seed, settings),
        # Another order: images of equal place in both domains must not meet in every batch.
        "target": _stream("target", unlabelled, seed + 1_000_003, settings),
    }
    if any(method.views for method in methods):
        # Two views of half as many images: a step costs what it costs with other methods.
        half = {**settings, "batch_size": max(1, batch // 2)}
        strongly = {**half, "augmentation": strong or _stronger(settings["augmentation"])}
        parts = (_stream("target", unlabelled, seed + 1_000_003, each) for each in (half, strongly))
        streams["target"] = two_views(*parts)
    steps = max(stream.length for stream in streams.values())
    measured = {"image_size": size, "batch_size": batch}
    validation = source.batches("val", **measured) if "val" in source.examples else None

    def folder(name):
        return None if state is None else Path(state) / name

    def run(methods, streams, name, *more, **options):
        freeze(model, phase.freeze, batch_norm="train")
        adapter = Adapter(model, methods, batch_norm=batch_norm, seed=seed)
        steps = max(stream.length for stream in streams.values())
        adapter.compile(adapter.make_optimizer(phase, steps * phase.epochs))
        return adapter.fit(
            **streams,
            epochs=phase.epochs,
            steps_per_epoch=steps,
            state=folder(name),
            callbacks=[*callbacks, *more],
            verbose=verbose,
            **options,
        ).history

    before = {}
    if source_free:
        say("first a model of the source alone")
        before = run((), {"source": streams["source"]}, "source", validation_data=validation)
        streams.pop("source")
    choice = EpochChoice(
        model,
        _scored(unlabelled, seed, measured),
        counts,
        source=validation,
        sourceless=source_free,
        keep=keep,
        target_report=_labelled(target_report, model, measured),
        folder=folder("choice"),
        verbose=verbose != 0,
    )
    history = run(methods, streams if methods else {"source": streams["source"]}, "adapt", choice)
    choice.back_to(last)
    epoch = choice.take()  # also where nothing was left to train
    if normalises_last:
        apply_adabn(model, streams["target"], most=steps)
        choice.measure(last + 1, sourceless=True)
        epoch = choice.take()
    freeze(model, "none", batch_norm="train")
    model.compile(
        keras.optimizers.AdamW(1e-5),
        **compile_arguments(heads_of(model)),
        jit_compile=jit_compile(),
    )
    return Adapted(history, epoch, choice.selector, before)


def _examples(data) -> Examples:
    if isinstance(data, Examples):
        return data
    if "train" not in data.examples:
        raise InputError(f"{data.root} has no training images: it has {', '.join(data.examples)}.")
    return data.examples["train"]


def _without_labels(target) -> Examples:
    examples = _examples(target)
    if not len(examples):
        raise InputError("There is no image in the target: add some, without labels.")
    return Examples(examples.images, np.zeros(len(examples), "int32"))


def _stronger(augment):
    from keras_transfer.modalities.image.augment import Augmentation, resolve_augmentation

    variation = resolve_augmentation(augment)
    if not isinstance(variation, Augmentation):  # a layer, an albumentations transform
        return "randaugment"
    return replace(variation, rand_augment=1.0)


def _scored(unlabelled, seed, settings):
    """Batches of the target images that epochs are scored on, as the model sees them in use."""
    from keras_transfer.data import batches as pipeline

    rows = np.sort(np.random.default_rng(seed).permutation(len(unlabelled))[:MOST_SCORED])
    return pipeline.batches(unlabelled.take(rows), **settings).map(lambda images, _: images)


def _labelled(target_report, model, settings):
    """Batches (images, labels) for reports; None where there are none."""
    from keras_transfer.data import batches as pipeline

    if target_report is None:
        return None
    examples = target_report
    if isinstance(target_report, ImageData):
        check_targets(heads_of(model), target_report)
        parts = target_report.examples
        examples = next(parts[name] for name in ("test", "val", "all", "train") if name in parts)
    return pipeline.batches(examples, **settings)


def _stream(domain, examples, seed, settings) -> Stream:
    """Training batches from any position, so that a resumed run does not read what it has seen."""
    from keras_transfer.data import batches as pipeline

    length = -(-len(examples) // settings["batch_size"])

    def start(number):
        batches = pipeline.batches(
            examples, training=True, seed=seed, start_epoch=number // length, **settings
        ).skip(number % length)
        return batches if domain == "source" else batches.map(lambda images, _: images)

    return Stream(start, domain, length)
