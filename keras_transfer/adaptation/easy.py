"""Adaptation in one call, for `ImageData`."""

from pathlib import Path

import keras
import numpy as np

from keras_transfer.adaptation.adapter import Adapter
from keras_transfer.adaptation.methods import resolve_methods
from keras_transfer.adaptation.network import single_label_head
from keras_transfer.adaptation.progress import missing_classes
from keras_transfer.adaptation.streams import Stream, two_views
from keras_transfer.builders import backbone_of
from keras_transfer.data.sources import Examples, ImageData
from keras_transfer.errors import InputError, say
from keras_transfer.freezing import freeze
from keras_transfer.heads import check_targets, compile_arguments, heads_of
from keras_transfer.likeness import is_untrained
from keras_transfer.precision import jit_compile
from keras_transfer.recipes import default_epochs
from keras_transfer.schedules import Phase


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
    strong="randaugment",
    batch_norm: str = "joint",
    seed: int = 0,
    callbacks=(),
    verbose="auto",
    state=None,
) -> keras.callbacks.History:
    """Trains a model on labelled pictures of one domain for unlabelled pictures of another.

    SHOT, which does not see the source, starts from a model that is trained on the source here first
    (for as many epochs, plainly).

    Args:
        model: from `build_model` with `head_for(source)`; changed in place, and compiled.
        source: its training pictures are learnt from; its validation pictures, where there are any,
            are only reported (`val_…`).
        target: its training pictures; labels that they may have are removed here and reach nothing.
        method: see `Adapter`.
        phase: what trains and how fast; by default `default_phase`, with everything trained.
        epochs: passes over the larger domain, where no phase is given; by default as many as the
            trainer takes for so many pictures.
        batch_size: of each domain, where the phase says nothing.
        augment: of the training pictures of both domains, where the phase says nothing.
        strong: of the other view of a target picture, for FixMatch.
        batch_norm, seed, callbacks, verbose, state: see `Adapter` and `Adapter.fit`.

    Returns:
        The `History` of the adaptation.

    Raises:
        InputError: classes that are not the model's or have no source picture, no target picture, or
            see `Adapter`.
    """
    methods = resolve_methods(method)
    single_label_head(model)
    check_targets(heads_of(model), source)
    labelled, unlabelled = _examples(source), _without_labels(target)
    present = np.unique(labelled.labels)
    missing = [name for i, name in enumerate(source.class_names) if i not in present]
    if missing:
        raise InputError(missing_classes(missing))
    if phase is None:
        epochs = epochs or default_epochs(max(len(labelled), len(unlabelled)))
        phase = default_phase(model, epochs)
    elif epochs is not None or phase.epochs is None:
        raise InputError("Give the epochs in the phase.")
    size, batch = model.input_shape[1], phase.batch_size or batch_size
    settings = {
        "image_size": size,
        "batch_size": batch,
        "augmentation": augment if phase.augment is None else phase.augment,
    }
    streams = {
        "source": _stream("source", labelled, seed, settings),
        # Another order: pictures of equal place in both domains must not meet in every batch.
        "target": _stream("target", unlabelled, seed + 1_000_003, settings),
    }
    if any(method.views for method in methods):
        strongly = {**settings, "augmentation": strong}
        others = _stream("target", unlabelled, seed + 1_000_003, strongly)
        streams["target"] = two_views(streams["target"], others)
    validation = None
    if "val" in source.examples:
        validation = source.batches("val", image_size=size, batch_size=batch)
    common = {"verbose": verbose, "callbacks": callbacks}

    def run(methods, streams, name, **options):
        freeze(model, phase.freeze, batch_norm="train")
        adapter = Adapter(model, methods, batch_norm=batch_norm, seed=seed)
        steps = max(stream.length for stream in streams.values())
        adapter.compile(adapter.make_optimizer(phase, steps * phase.epochs))
        where = Path(state) / name if state is not None else None
        return adapter.fit(
            **streams, epochs=phase.epochs, steps_per_epoch=steps, state=where, **common, **options
        )

    if any(method.source_free for method in methods):
        say("first a model of the source alone")
        run((), {"source": streams["source"]}, "source", validation_data=validation)
        history = run(methods, {"target": streams["target"]}, "adapt")
    else:
        history = run(methods, streams, "adapt", validation_data=validation)
    freeze(model, "none", batch_norm="train")
    model.compile(
        keras.optimizers.AdamW(1e-5),
        **compile_arguments(heads_of(model)),
        jit_compile=jit_compile(),
    )
    return history


def _examples(data) -> Examples:
    if isinstance(data, Examples):
        return data
    if "train" not in data.examples:
        raise InputError(
            f"{data.root} has no training pictures: it has {', '.join(data.examples)}."
        )
    return data.examples["train"]


def _without_labels(target) -> Examples:
    examples = _examples(target)
    if not len(examples):
        raise InputError("There is no picture in the target: add some, without labels.")
    return Examples(examples.pictures, np.zeros(len(examples), "int32"))


def _stream(domain, examples, seed, settings) -> Stream:
    """Training batches from any position, so that a resumed run does not read what it has seen."""
    from keras_transfer.data import pipeline

    length = -(-len(examples) // settings["batch_size"])

    def start(number):
        batches = pipeline.batches(
            examples, training=True, seed=seed, start_epoch=number // length, **settings
        ).skip(number % length)
        return batches if domain == "source" else batches.map(lambda pictures, _: pictures)

    return Stream(start, domain, length)
