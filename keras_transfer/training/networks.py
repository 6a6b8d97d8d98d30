"""The model of a config, and the network that a phase trains on its weights."""

import keras

from keras_transfer.errors import InputError
from keras_transfer.modalities import Framing, open_framing
from keras_transfer.models import TAPS
from keras_transfer.models.acceleration import training_model
from keras_transfer.models.builders import build_model, head_for, head_layers
from keras_transfer.models.stages import Frozen
from keras_transfer.schedules.plans import PlannedPhase, set_trainable
from keras_transfer.schedules.recipes import AUTO
from keras_transfer.training.config import TrainConfig


def open_framing_of(config: TrainConfig) -> Framing:
    """Return what a config says of the framing; the rest is open."""
    return open_framing(config.image_size, config.open_crop, config.tokens, **config.reading)


def model_of(config: TrainConfig, data) -> keras.Model:
    """Build the model of a config for some data; `taps="auto"` stands for the last stage."""
    return build_model(
        config.backbone,
        head_for(data),
        # An open framing is one of images.
        image_size=open_framing(config.image_size, **config.reading),  # type: ignore[arg-type]
        weights=config.weights,
        crop=config.open_crop,
        tokens=config.tokens,
        taps=TAPS[0] if config.taps == AUTO else config.taps,
        data=data,
    )


def network_of(
    trainer, planned: PlannedPhase, number: int, from_cut: bool
) -> tuple[keras.Model, Frozen]:
    """Set up a trainer's model for a phase; return the network to compile, and what is frozen.

    Args:
        trainer: the `training.Trainer`.
        number: position of the phase in the schedule, from 0.
        from_cut: see `training_model`.
    """
    phase = planned.phase
    frozen = set_trainable(trainer.model, phase, (trainer.config.seed, number))
    network = training_model(
        trainer.model,
        planned.frozen,
        image_size=planned.image_size,
        from_cut=from_cut,
        fold=phase.batch_norm == "frozen",
    )
    _set_dropout(trainer, phase)
    return network, frozen


def _set_dropout(trainer, phase):
    for name, layers in head_layers(trainer.model).items():
        rate = trainer.heads[name].dropout if phase.dropout is None else phase.dropout
        for layer in layers:
            if not isinstance(layer, keras.layers.Dropout):
                continue
            if rate and not hasattr(layer, "seed_generator"):
                raise InputError(
                    f"Phase '{phase.name}': dropout {rate} needs a head that was built with "
                    "dropout; this head has dropout 0."
                )
            layer.rate = rate
