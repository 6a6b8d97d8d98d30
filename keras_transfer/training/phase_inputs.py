"""What a phase is made of: its images or activations, its heads, its callbacks.

Each is a function of the trainer's settings (a `training.Trainer`), the phase and the data; nothing
hangs on what ran before.
"""

import dataclasses
import math

import keras

from keras_transfer.data.balance import class_weights
from keras_transfer.data.mixing import Mix
from keras_transfer.errors import InputError
from keras_transfer.features.caching import Caching, plan_caching
from keras_transfer.features.store import Store
from keras_transfer.modalities.image.augment import resolve_augmentation
from keras_transfer.models.builders import head_layers
from keras_transfer.schedules.plans import FORWARD, Plan

_HEAD_STEPS = 64


def augmentation_of(trainer, phase):
    """How the phase's training images vary, see `data.resolve_augmentation`."""
    return resolve_augmentation(trainer.augment if phase.augment is None else phase.augment)


def mix_of(trainer, phase) -> Mix:
    """How they are mixed with each other; a closed form is not touched by it."""
    if phase.solver == "logistic":
        return Mix()
    kind = trainer.mix if phase.mix is None else phase.mix
    return Mix(kind, trainer.mix_alpha if phase.mix_alpha is None else phase.mix_alpha)


def smoothed_heads(trainer, phase) -> dict:
    """The heads with the phase's label smoothing, which numbers have none of."""
    heads = trainer.heads
    if phase.label_smoothing is None:
        return heads
    return {
        name: dataclasses.replace(head, label_smoothing=phase.label_smoothing)
        if head.task != "regression" or trainer.head
        else head
        for name, head in heads.items()
    }


def caching_of(trainer, plan: Plan, data) -> list[tuple[Caching | None, str]]:
    """For each phase how its frozen part is computed once, or None and why not."""
    images = {split: len(part) for split, part in data.examples.items()}
    return [
        plan_caching(
            trainer.cache,
            planned,
            trainer.model,
            images,
            augmentation_of(trainer, planned.phase),
            mix_of(trainer, planned.phase),
            store=Store(),
            dtype=trainer.feature_dtype,
        )
        for planned in plan.phases
    ]


def batches_of(trainer, data, split, planned, features, dtype, *, memory, start_epoch=None):
    """The tf.data stream of a split that the phase trains on or is validated with.

    Args:
        features: split → its activations; empty where the phase begins at images.
        dtype: of the activations in the stream.
        memory: gives the `data.memory.ImageMemory` for images that come again.
        start_epoch: of a training stream; None for a pass in order.
    """
    options = {"batch_size": planned.batch_size, "share": trainer.workers.share}
    order = {}
    if start_epoch is not None:
        order = {"seed": trainer.seed, "start_epoch": start_epoch}
        order |= _balancing(trainer, planned.phase, data.examples["train"].labels)
    if features:
        from keras_transfer.features import extraction

        labels = data.examples[split].labels
        options["dtype"] = dtype
        if start_epoch is None:
            return extraction.evaluation_batches(features[split], labels, **options)
        return extraction.training_batches(features[split], labels, **options, **order)
    if trainer.data_service:
        options["service"] = trainer.data_service
    elif trainer.cache != "off" and planned.epochs > 1:
        options["memory"] = memory()
    return data.batches(
        split,
        image_size=planned.image_size,
        training=start_epoch is not None,
        augment=augmentation_of(trainer, planned.phase),
        mix=mix_of(trainer, planned.phase),
        **options,
        **order,
    )


def _balancing(trainer, phase, labels):
    """How the training stream makes up for classes of unequal size."""
    if phase.class_weights is None and trainer.balance == "sampling":
        return {"equal_classes": True}
    weights = phase.class_weights or ("balanced" if trainer.balance == "weights" else None)
    if weights is None:
        return {}
    return {"class_weights": class_weights(weights, trainer.head.names, labels)}


def set_dropout(trainer, phase) -> None:
    """Gives the heads' dropout layers the phase's rate.

    Raises:
        InputError: the head has no such layer, and needs one.
    """
    for name, layers in head_layers(trainer.model).items():
        rate = trainer.heads[name].dropout if phase.dropout is None else phase.dropout
        for layer in layers:
            if not isinstance(layer, keras.layers.Dropout):
                continue
            if rate and not hasattr(layer, "seed_generator"):
                raise InputError(
                    f"Phase '{phase.name}': dropout {rate} needs a head that was built with "
                    "dropout; this one has 0."
                )
            layer.rate = rate


def steps_per_execution(trainer, planned, from_cut: bool) -> int:
    """Steps in one call of Keras."""
    most = trainer.steps_per_execution
    if from_cut and planned.frozen == len(planned.rates):
        most = max(most, _HEAD_STEPS)  # a head's step is shorter than the call of it
    # Keras would run on into the next epoch's images with any other.
    epoch = math.gcd(planned.steps_per_epoch, planned.steps)
    steps = max(n for n in range(1, most + 1) if epoch % n == 0)
    return trainer.workers.steps_per_execution(steps)


def validated_epochs(trainer, planned, data, first: int, each: bool) -> list[int]:
    """Numbers of the phase's epochs, counted from 1 over all phases, that end with a validation.

    Args:
        first: the phase's first.
        each: something looks at each validation, or it costs next to nothing.
    """
    every = trainer.validate_every
    if each:
        every = every or 1
    if every is None:
        passes = data.steps("val", planned.batch_size) if "val" in data.examples else 0
        every = math.ceil(passes * FORWARD / planned.steps_per_epoch)
    last = first + planned.epochs - 1
    return sorted({*range(first, last + 1, max(1, every)), last})


def watchers(phase, has_validation: bool) -> list[keras.callbacks.Callback]:
    """The callbacks of Keras that end a phase or lower its rate."""
    monitor = "val_loss" if has_validation else "loss"
    found = []
    if phase.shape == "plateau":
        found.append(
            keras.callbacks.ReduceLROnPlateau(
                monitor, factor=phase.drop_factor, patience=phase.patience
            )
        )
    if phase.early_stopping:
        found.append(keras.callbacks.EarlyStopping(monitor, patience=phase.early_stopping))
    return found
