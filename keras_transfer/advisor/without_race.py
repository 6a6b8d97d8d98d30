"""A `Trainer` that chooses its schedule from evidence on the data, without a race."""

from dataclasses import replace

import keras

from keras_transfer.advisor.closed_forms import compare_closed_forms
from keras_transfer.advisor.plans import decide, questions_of
from keras_transfer.advisor.rules import Choice, check_overrides
from keras_transfer.models.stages import backbone_of, is_untrained
from keras_transfer.schedules.recipes import AUTO
from keras_transfer.training.config import TrainConfig
from keras_transfer.training.trainer import Trainer
from keras_transfer.utils.console import say


def auto_trainer(model: keras.Model, *, minutes: float | None = None, **options) -> Trainer:
    """Return a `Trainer` whose schedule and augmentation follow from evidence on the data.

    It decides on the first data that `fit` or `plan` receives: the closed form alone, or a
    fine-tuning of a length that is expected to be worth its time. There is no race; `train_best` has
    one. A resumed run continues with the schedule that it began with.

    Args:
        model: from `build_model`.
        minutes: limit of the training.
        options: of `Trainer`, except `schedule`. Numbers in `overrides`, `epochs` and
            `learning_rate` win over the advice.

    Raises:
        InputError: if an override does not exist in every recipe that the advisor may choose.
    """
    config = options.pop("config", None) or TrainConfig()
    config = config if minutes is None else replace(config, minutes=minutes)
    given = {key: options[key] for key in ("epochs", "learning_rate") if options.get(key)}
    overrides = {**(options.get("overrides") or {}), **given}
    check_overrides(overrides)

    def choose(trainer, data):
        if is_untrained(backbone_of(model)):
            say("The backbone's weights are random, so every layer is trained.")
            return Choice(backbone_of(model).name, "from_scratch", augment="light"), None
        config = trainer.config
        evidence = compare_closed_forms(
            data,
            [model],
            questions=questions_of(config.augment, ("mirror", "pace")),
            engine=config.engine,
            seed=config.seed,
        )
        say(str(evidence))
        return decide(data, evidence, config.batch_size, config.minutes, overrides), evidence

    return Trainer(model, AUTO, config, choose=choose, **options)
