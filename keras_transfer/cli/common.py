"""Steps that several commands share: import Keras, open the data, ask the advisor, build the model."""

import contextlib
import os
import sys
from dataclasses import replace

from keras_transfer.schedules.recipes import AUTO, DEFAULT
from keras_transfer.training.config import TrainConfig
from keras_transfer.utils.console import say


def load_keras() -> None:
    """Import Keras and its backend without their start-up messages on stderr.

    TensorFlow's libraries write them before they read any log level. Errors are Python exceptions
    and are not lost.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        import keras  # noqa: F401
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)


@contextlib.contextmanager
def interruption_reported():
    """Print what an interruption leaves on disk, then pass it on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        print(stop, file=sys.stderr)
        raise


def open_images(data, config: TrainConfig, **overrides):
    """Open the labelled examples and split them as the config says.

    Args:
        data: a path or name that `open_data` takes.
        overrides: arguments of `open_data` that win over the config.
    """
    from keras_transfer.data import open_data

    options = {
        "val": config.val,
        "val_split": config.val_split,
        "test_split": config.test_split,
        "groups": config.group,
        "folds": config.folds,
        "fold": config.fold,
        "split_file": config.split,
        "seed": config.seed,
        "task": config.task,
        "columns": config.columns,
    }
    return open_data(data, **{**options, **overrides})


def saved_config(data, config: TrainConfig) -> dict:
    """Return what a run's `config.yaml` records of the command."""
    return {"data": str(data), **config.to_dict()}


def build(images, config: TrainConfig, trains_backbone: bool = True):
    """Build the model from its seed, with the number format that suits the machine."""
    import keras

    from keras_transfer.models.acceleration import set_precision
    from keras_transfer.models.builders import build_model, head_for

    precision = set_precision(
        config.precision, config.backbone, config.image_size, trains=trains_backbone
    )
    say(str(precision))
    keras.utils.set_random_seed(config.seed)
    return build_model(
        config.backbone,
        head_for(images),
        image_size=config.image_size,
        weights=config.weights,
    )


def advisor_chooses(backbone: str) -> bool:
    """Return whether the option leaves the backbone to the advisor: `auto`, or several names."""
    return backbone == AUTO or "," in backbone


def check_backbones(config: TrainConfig) -> None:
    """Raise InputError for an invalid backbone, as far as that can be told without Keras."""
    from keras_transfer.advisor.api import check_advice
    from keras_transfer.advisor.rules import named
    from keras_transfer.models.sources.applications import check_backbone

    if advisor_chooses(config.backbone):
        names = named(config.backbone)
        check_advice(names, config.image_size, config.minutes, config.policy)
    else:
        check_backbone(config.backbone, config.image_size, config.weights)


def advised(images, config: TrainConfig, schedule):
    """Resolve `auto` by the advisor, with a race where it is undecided.

    Args:
        schedule: a recipe's name, a `Schedule`, or `"auto"`.

    Returns:
        (config with names in place of `auto`, schedule, advice as plain data or None).
    """
    from keras_transfer.advisor.auto import training_function

    def model_with(backbone):
        return build(images, replace(config, backbone=backbone))

    train = training_function(model_with, overrides=config.overrides, **trainer_options(config))
    choice, advice = _decide(images, config, train, schedule)
    names = {"backbone": choice.backbone}
    if schedule == AUTO:
        names["strategy"] = choice.strategy
    if config.augment == AUTO:
        names["augment"] = choice.augment
    if choice.strategy == "from_scratch":
        names["weights"] = None
    config = replace(config, **names, overrides={**choice.overrides, **config.overrides})
    if advice is not None:
        # A resumed run reads the overrides here, so record the strategy that was trained.
        name = getattr(choice.strategy, "name", str(choice.strategy))
        advice = {**advice.brief(), "choice": {**choice.to_dict(), "strategy": name}}
    return config, choice.strategy, advice


def without_auto(images, config: TrainConfig) -> TrainConfig:
    """Resolve `auto` where one recipe is trained many times: the default recipe, on the backbone
    and with the augmentation that the advisor chooses."""
    automatic = config.strategy == AUTO
    if automatic:
        config = replace(config, strategy=DEFAULT)
    if advisor_chooses(config.backbone):
        load_keras()
        choice, advice = _decide(images, config, None, config.strategy)
        config = replace(config, backbone=choice.backbone)
        if config.augment == AUTO:
            config = replace(config, augment=choice.augment)
        if automatic and advice and advice.choice.strategy == DEFAULT:
            config = replace(config, overrides={**advice.choice.overrides, **config.overrides})
    if config.augment == AUTO:
        config = replace(config, augment="light")
    return config


def trainer_options(config: TrainConfig) -> dict:
    """Return the settings that `Trainer` takes by name, but for its schedule."""
    names = ("batch_size", "mix", "mix_alpha", "seed", "balance", "cache", "engine")
    return {name: getattr(config, name) for name in (*names, "feature_dtype", "augment")}


def _decide(images, config, train, strategy):
    from keras_transfer.advisor.auto import decide
    from keras_transfer.advisor.rules import named

    options = ("image_size", "batch_size", "minutes", "policy", "engine", "seed")
    return decide(
        images,
        train,
        backbones=named(config.backbone),
        strategy=strategy,
        **{name: getattr(config, name) for name in options},
    )
