"""Settings that only some kinds of examples have, checked before Keras is imported."""

from collections.abc import Sequence
from dataclasses import replace

from keras_transfer.errors import InputError
from keras_transfer.modalities import Modality, modalities
from keras_transfer.models.sources.backbones import require_encoder_name
from keras_transfer.training.config import TrainConfig
from keras_transfer.utils.console import say


def require_suitable(modality: Modality, config: TrainConfig) -> None:
    """Raise InputError for a setting of examples of other kinds, such as `--crop` of texts."""
    plain = TrainConfig()
    for name in dict.fromkeys(name for each in modalities() for name in each.framed_by):
        if name not in modality.framed_by and getattr(config, name) != getattr(plain, name):
            kinds = " and ".join(each.many for each in modalities() if name in each.framed_by)
            option = name.replace("_", "-")
            raise InputError(
                f"--{option} is for {kinds}, but these are {modality.many}: leave it out."
            )


def require_reader(modality: Modality, backbones: Sequence[str] | None, option: str) -> None:
    """Raise InputError if no backbone is named, and none of the usual ones reads such examples."""
    if not backbones:
        require_encoder_name(modality, option)


def unflipped(modality: Modality, config: TrainConfig, settings) -> TrainConfig:
    """Return the config without the `--no-flip` of some `Settings`, where nothing is ever mirrored."""
    if not settings.no_flip or modality.mirrors:
        return config
    say(f"--no-flip has no effect: {modality.many} have no mirror images")
    return replace(config, augment=settings.augment)


def say_ineffective(config: TrainConfig, closed: bool, explain: bool) -> None:
    """Print which settings have no effect on the training of a named strategy.

    Args:
        closed: whether its only phase is a closed form.
        explain: whether `--explain` was given.
    """
    plain = TrainConfig()
    for name in ("worth", "policy"):
        if getattr(config, name) != getattr(plain, name):
            say(f"--{name} has no effect: the strategy is given")
    if explain:
        say("--explain has no effect: the strategy is given")
    if config.mix != plain.mix and closed:
        say("--mix has no effect: the head is fitted in closed form; --epochs trains it in steps")
    if config.mix_alpha is not None and config.mix == plain.mix:
        say("--mix-alpha has no effect without --mix")
