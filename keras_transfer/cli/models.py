"""The model that a command trains: built from its settings, after what is open is settled by evidence."""

import contextlib
from dataclasses import replace

from keras_transfer.cli.options import advisor_chooses, load_keras
from keras_transfer.errors import InputError
from keras_transfer.models import TAPS
from keras_transfer.schedules.recipes import AUTO, DEFAULT
from keras_transfer.training.config import TrainConfig
from keras_transfer.utils.console import say


def build(images, config: TrainConfig, trains_backbone: bool = True):
    """Build the model from its seed, with the number format that suits the machine."""
    import keras

    from keras_transfer.models.acceleration import set_precision
    from keras_transfer.training.networks import model_of

    precision = set_precision(
        config.precision, config.backbone, config.image_size, trains=trains_backbone
    )
    say(str(precision))
    keras.utils.set_random_seed(config.seed)
    return model_of(config, images)


def built_on_evidence(images, config: TrainConfig, trains_backbone: bool):
    """Return (the config with what was open settled by evidence, the model that it describes).

    A model of the first candidate is built before, if its backbone stays frozen in float32: the
    evidence then reads the same network, which is built and traced once.
    """
    from keras_transfer.advisor.closed_forms import joined, widest
    from keras_transfer.advisor.rules import candidates, named

    first, model = config, None
    if config.weights is not None and not trains_backbone:
        names = [config.backbone]
        if advisor_chooses(config.backbone):
            names = named(config.backbone) or candidates(config.image_size)
        taps = widest(images.modality.taps) if config.taps == AUTO else config.taps
        first = replace(config, backbone=joined(names) or names[0], taps=taps)
        with contextlib.suppress(InputError):  # of which the evidence takes note
            model = build(images, first, trains_backbone)
    if model is not None and model.dtype_policy.name != "float32":
        model = None
    settled = with_evidence(images, config, built={first.backbone: model} if model else {})
    if model is None or settled != first:
        model = build(images, settled, trains_backbone)
    return settled, model


def with_evidence(images, config: TrainConfig, together: bool = True, built=None) -> TrainConfig:
    """Settle an open backbone, and what its head reads, by closed forms in cross-validation.

    Args:
        together: whether two backbones may be joined.
        built: models that were built already, see `compare_closed_forms`.
    """
    if config.weights is None:  # random features say nothing
        return replace(config, taps=TAPS[0] if config.taps == AUTO else config.taps)
    if not advisor_chooses(config.backbone) and config.taps != AUTO:
        return config
    from keras_transfer.advisor.closed_forms import compare_closed_forms
    from keras_transfer.advisor.rules import candidates, named
    from keras_transfer.training.networks import open_framing_of

    names = [config.backbone]
    if advisor_chooses(config.backbone):
        names = named(config.backbone) or candidates(config.image_size)
    evidence = compare_closed_forms(
        images,
        names,
        image_size=open_framing_of(config),
        taps=images.modality.taps if config.taps == AUTO else (config.taps,),
        weights=config.weights,
        questions=("together",) if together else (),
        engine=config.engine,
        seed=config.seed,
        built=built,
    )
    say(str(evidence))
    return replace(config, backbone=evidence.best.backbone, taps=evidence.best.taps)


def without_auto(images, config: TrainConfig) -> TrainConfig:
    """Resolve `auto` where one recipe is trained many times: the default recipe, on the backbone
    that the evidence favors."""
    if config.strategy == AUTO:
        config = replace(config, strategy=DEFAULT)
    if advisor_chooses(config.backbone):
        from keras_transfer.advisor.rules import named
        from keras_transfer.cli.kinds import require_reader

        require_reader(images.modality, named(config.backbone), "--backbone")
        load_keras()
        config = with_evidence(images, replace(config, taps=TAPS[0]), together=False)
    if config.augment == AUTO:
        config = replace(config, augment="light")
    if config.taps == AUTO:
        config = replace(config, taps=TAPS[0])
    return config
