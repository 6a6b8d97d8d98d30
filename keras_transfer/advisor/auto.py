"""Choose a schedule for the `"auto"` strategy: the advice, and a race between close alternatives."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from keras_transfer.advisor.advice import Advice
from keras_transfer.advisor.api import advise, check_advice
from keras_transfer.advisor.rules import Choice, check_overrides, fallback_backbone
from keras_transfer.data.examples import ImageData
from keras_transfer.errors import InputError
from keras_transfer.modalities.image.framing import Framing
from keras_transfer.models.stages import backbone_of, is_untrained
from keras_transfer.schedules.recipes import AUTO, DEFAULT, default_epochs
from keras_transfer.training.trainer import Trainer
from keras_transfer.utils.console import say

RACE_FROM = 500  # training images; with fewer, the held-out part is too small to show a difference
_HELD_OUT = 0.2  # share of the training images
_EPOCHS = 0.2  # share of the recipe's epochs
_MIN_EPOCHS = 2  # one for the head, one for the other layers
_NOT_RACED = ("epochs", "learning_rate", "keep", "validate_every")  # options of the final training

Train = Callable[[Choice, ImageData, dict], float]


def auto_trainer(model: keras.Model, **options) -> Trainer:
    """Return a `Trainer` whose schedule and augmentation the advisor chooses for the data.

    It decides on the first data that `fit` or `plan` receives; the model's weights stay as they
    are. A resumed run continues with the schedule that it began with.

    Args:
        model: from `build_model`.
        options: of `Trainer`, except `schedule`. Numbers in `overrides`, `epochs` and
            `learning_rate` win over the advice.

    Raises:
        InputError: if an override does not exist in every recipe that the advisor may choose.
    """
    shorthands = {key: options[key] for key in ("epochs", "learning_rate") if options.get(key)}
    overrides = {**(options.get("overrides") or {}), **shorthands}
    check_overrides(overrides)
    raced = {key: value for key, value in options.items() if key not in _NOT_RACED}

    def choose(trainer, data):
        if is_untrained(backbone_of(model)):
            say("No advice: the backbone's weights are random, so every layer is trained.")
            return Choice(backbone_of(model).name, "from_scratch"), None
        start = model.get_weights()

        def build(_):
            model.set_weights(start)
            return model

        try:
            return decide(
                data,
                training_function(build, **{**raced, "overrides": overrides}),
                backbones=[model],
                batch_size=trainer.config.batch_size,
                engine=trainer.config.engine,
                seed=trainer.config.seed,
            )
        finally:
            model.set_weights(start)

    return Trainer(model, AUTO, choose=choose, **options)


def decide(
    data: ImageData,
    train: Train,
    *,
    backbones: Sequence | None = None,
    strategy: str = AUTO,
    seed: int = 0,
    **options,
) -> tuple[Choice, Advice | None]:
    """Decide what to train on the data: follow the advice, after a race if there is a contender.

    If no advice is possible (several labels per image, too few images), the default recipe is chosen
    and a message says so.

    Args:
        data: only its training images are read.
        train: see `training_function`.
        backbones: see `advise`.
        strategy: any schedule of `Trainer`; unless it is `"auto"`, only the backbone is chosen, without
            a race.
        seed: of the advice, and of the images that the race holds out.
        options: other arguments of `advise`.

    Returns:
        (the choice, the advice behind it or None).

    Raises:
        InputError: an option is invalid, or a backbone cannot be built.
    """
    # Invalid options are errors; data on which nothing can be measured get the default.
    checked = {key: options[key] for key in ("image_size", "minutes", "policy") if key in options}
    compared = check_advice(backbones, **checked)
    try:
        advice = advise(data, backbones=compared, seed=seed, probes=False, **options)
    except InputError as error:
        backbone = (
            backbones[0]
            if backbones
            else fallback_backbone(Framing.of(options.get("image_size")).size)
        )
        name = backbone if isinstance(backbone, str) else backbone.name
        choice = Choice(name, DEFAULT if strategy == AUTO else strategy, why=str(error))
        say(f"No advice: {error} The default is used: {choice}.")
        return choice, None
    say(advice.text())
    if strategy != AUTO:
        why = "The strategy was specified; the features of this backbone suit the data best."
        choice = replace(advice.choice, strategy=strategy, overrides={}, why=why, seconds=None)
        return choice, advice
    if advice.contender is None or advice.facts.images < RACE_FROM:
        return advice.choice, advice
    pair = advice.choice, advice.contender
    winner = race(data, pair, train, seed=seed)
    (loser,) = (choice for choice in pair if choice is not winner)
    return winner, replace(advice, choice=winner, contender=loser)


def race(data: ImageData, choices: Sequence[Choice], train: Train, *, seed: int = 0) -> Choice:
    """Return the choice with the highest accuracy after a short training; the first of equals.

    Each is trained for a fifth of the recipe's epochs on four fifths of the training images, and
    measured on the other fifth.

    Args:
        train: see `training_function`.
    """
    divided = _hold_out(data, seed)
    epochs = max(_MIN_EPOCHS, round(_EPOCHS * default_epochs(len(data.examples["train"]))))
    accuracies = []
    for choice in choices:
        overrides = {} if choice.strategy == "feature_extraction" else {"epochs": epochs}
        accuracies.append(train(choice, divided, overrides))
    results = ", ".join(f"{choice} {value:.3f}" for choice, value in zip(choices, accuracies))
    held_out = len(divided.examples["val"])
    say(f"Race of {epochs} epochs, accuracy on {held_out} held-out images: {results}.")
    return choices[int(np.argmax(accuracies))]


def training_function(
    build: Callable[[str], keras.Model], *, overrides: dict | None = None, augment=AUTO, **options
) -> Train:
    """Return the `train` argument of `decide`, which trains a new model with a `Trainer`.

    The returned function maps (choice, data with `train` and `val`, more overrides) to the accuracy
    on `val`.

    Args:
        build: maps the name of a backbone to a model with its initial weights.
        overrides: set by the user; they win over those of the choice.
        augment: see `Trainer`; `"auto"` is that of the choice.
        options: other arguments of `Trainer`.
    """

    def train(choice, data, more):
        trainer = Trainer(
            build(choice.backbone),
            choice.strategy,
            overrides={**choice.overrides, **(overrides or {}), **more},
            augment=choice.augment if augment == AUTO else augment,
            keep="last",
            **options,
        )
        with tempfile.TemporaryDirectory() as folder:
            return trainer.fit(data, Path(folder) / "run").metrics["val"]["accuracy"]

    return train


def _hold_out(data, seed):
    """Return the training images with a stratified fifth as `val`; identical files stay together."""
    from sklearn.model_selection import StratifiedGroupKFold

    train = data.examples["train"]
    splitter = StratifiedGroupKFold(round(1 / _HELD_OUT), shuffle=True, random_state=seed)
    rest, held_out = next(splitter.split(train.labels, train.labels, train.together))
    examples = {"train": train.take(rest), "val": train.take(held_out)}
    return ImageData(data.class_names, examples, [], data.root, data.targets)
