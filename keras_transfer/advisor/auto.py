"""`auto`: the advisor's choice, raced where that says something, as a schedule to train."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from keras_transfer.advisor.advice import Advice
from keras_transfer.advisor.api import advise, check_advice
from keras_transfer.advisor.rules import Choice, check_overrides
from keras_transfer.advisor.shortlist import fallback_backbone
from keras_transfer.data.examples import ImageData
from keras_transfer.errors import InputError
from keras_transfer.models.stages import backbone_of, is_untrained
from keras_transfer.schedules.recipes import AUTO, DEFAULT, default_epochs
from keras_transfer.utils.console import say

RACED_FROM = 500  # training images: of fewer, a fifth held out tells nothing apart
_HELD_OUT = 0.2
_SHARE = 0.2  # of the epochs
_LEAST_EPOCHS = 2  # one of the head, one of the rest
_NOT_RACED = ("epochs", "learning_rate", "keep", "validate_every")  # options of the training itself


def decide(
    data: ImageData,
    train: Callable[[Choice, ImageData, dict], float],
    *,
    backbones: Sequence | None = None,
    strategy: str = AUTO,
    seed: int = 0,
    **options,
) -> tuple[Choice, Advice | None]:
    """What to train on the data: advice, and a race where there is a contender.

    Where no advice can be had (several labels per image, too few images to measure anything), the
    default recipe is taken, and that is said.

    Args:
        data: only its training images are looked at.
        train: (choice, data with `train` and `val`, more overrides) → accuracy on `val`.
        backbones: see `advise`.
        strategy: what is given (as `Trainer` takes it); then only the backbone is chosen, without a
            race.
        seed: of the advice, and of what is held out for the race.
        options: of `advise`.

    Returns:
        (the choice, the advice it is from or None).

    Raises:
        InputError: a wrong option, or a backbone that cannot be had.
    """
    # A wrong request is refused; what cannot be measured falls back.
    asked = {key: options[key] for key in ("image_size", "minutes", "policy") if key in options}
    looked_at = check_advice(backbones, **asked)
    try:
        advice = advise(data, backbones=looked_at, seed=seed, probes=False, **options)
    except InputError as error:
        name = backbones[0] if backbones else fallback_backbone(options.get("image_size"))
        name = name if isinstance(name, str) else name.name
        choice = Choice(name, DEFAULT if strategy == AUTO else strategy, why=str(error))
        say(f"no advice ({error}): {choice}")
        return choice, None
    say(advice.text())
    if strategy != AUTO:
        why = "the strategy was given; of the backbones, the one whose features suit the data best"
        choice = replace(advice.choice, strategy=strategy, overrides={}, why=why, seconds=None)
        return choice, advice
    if advice.contender is None or advice.facts.images < RACED_FROM:
        return advice.choice, advice
    both = advice.choice, advice.contender
    winner = race(data, both, train, seed=seed)
    (other,) = (choice for choice in both if choice is not winner)
    return winner, replace(advice, choice=winner, contender=other)


def race(
    data: ImageData,
    choices: Sequence[Choice],
    train: Callable[[Choice, ImageData, dict], float],
    *,
    seed: int = 0,
) -> Choice:
    """The choice that is best after a fifth of the recipe's epochs, on a fifth of the training images that
    are held out for it; of equals the first.

    Args:
        train: see `decide`.
    """
    course = _course(data, seed)
    epochs = max(_LEAST_EPOCHS, round(_SHARE * default_epochs(len(data.examples["train"]))))
    found = []
    for choice in choices:
        more = {} if choice.strategy == "feature_extraction" else {"epochs": epochs}
        found.append(train(choice, course, more))
    names = [f"{choice} {value:.3f}" for choice, value in zip(choices, found)]
    held_out = len(course.examples["val"])
    say(f"race of {epochs} epochs, accuracy on {held_out} held out: {', '.join(names)}")
    return choices[int(np.argmax(found))]


def trained(
    build: Callable[[str], keras.Model],
    *,
    overrides: dict | None = None,
    augment=AUTO,
    **options,
):
    """A `train` for `decide`: a `Trainer` on a model that is built for each choice.

    Args:
        build: name of a backbone → model with the weights to start from.
        overrides: what the user has set; wins over the choice's.
        augment: as `Trainer` takes it; `"auto"` is the choice's.
        options: of `Trainer`.
    """
    from keras_transfer.training.trainer import Trainer

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


def auto_trainer(model: keras.Model, **options):
    """Return a `Trainer` whose schedule and augmentation the advisor chooses for the data.

    It decides on the first data that `fit` or `plan` receives; the model's weights stay as they
    are. A resumed run keeps the schedule that it began with.

    Args:
        model: from `build_model`.
        options: of `Trainer`, except `schedule`. Numbers in `overrides`, `epochs` and
            `learning_rate` win over the advice.

    Raises:
        InputError: if an override does not exist in every recipe that the advisor may choose.
    """
    from keras_transfer.training.trainer import Trainer

    shorthands = {key: options[key] for key in ("epochs", "learning_rate") if options.get(key)}
    overrides = {**(options.get("overrides") or {}), **shorthands}
    check_overrides(overrides)
    given = {key: value for key, value in options.items() if key not in _NOT_RACED}

    def choose(trainer, data):
        if is_untrained(backbone_of(model)):
            say("no advice: the backbone's weights are random, so everything is trained")
            return Choice(backbone_of(model).name, "from_scratch"), None
        start = model.get_weights()

        def build(_):
            model.set_weights(start)
            return model

        try:
            return decide(
                data,
                trained(build, **{**given, "overrides": overrides}),
                backbones=[model],
                batch_size=trainer.batch_size,
                engine=trainer.engine,
                seed=trainer.seed,
            )
        finally:
            model.set_weights(start)

    return Trainer(model, AUTO, choose=choose, **options)


def _course(data, seed):
    """The training images, a fifth of them as `val`; identical files stay together."""
    from sklearn.model_selection import StratifiedGroupKFold

    train = data.examples["train"]
    splitter = StratifiedGroupKFold(round(1 / _HELD_OUT), shuffle=True, random_state=seed)
    rest, held_out = next(splitter.split(train.labels, train.labels, train.copies))
    parts = {"train": train.take(rest), "val": train.take(held_out)}
    return ImageData(data.class_names, parts, [], data.root, data.targets)
