"""What several commands do alike once their options are read: open images, import Keras, advise, build."""

import contextlib
import os
import sys

from keras_transfer.schedules.recipes import AUTO, DEFAULT
from keras_transfer.utils.console import say


def load_keras():
    """Imports Keras and its backend without their start-up notes on stderr.

    TensorFlow's libraries write them before any log level is read. Errors are Python exceptions
    and are not lost.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import keras  # noqa: F401
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


@contextlib.contextmanager
def stop_said():
    """Says what an interruption leaves behind, and passes it on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        print(stop, file=sys.stderr)
        raise


def opened(data, settings, **others):
    """The labelled images at `data`, divided as the settings say; `others`: of `open_data`, win over them."""
    from keras_transfer.data import open_data

    names = ("val", "val_split", "test_split", "folds", "fold", "seed", "task", "columns")
    asked = {name: settings[name] for name in names}
    asked |= {"groups": settings["group"], "split_file": settings["split"]}
    return open_data(data, **{**asked, **others})


def kept_of(data, settings) -> dict:
    """What a run's `config.yaml` says of the command, besides what the trainer knows by itself."""
    names = (
        *("backbone", "strategy", "weights", "val", "val_split", "test_split"),
        *("group", "folds", "fold", "split", "task", "columns"),
    )
    kept = {"data": str(data), **{name: settings[name] for name in names}}
    return {**kept, "weights": kept["weights"] or "none"}


def build_for(images, settings, trains=True):
    """The model that the settings name, from its seed; `trains`: the backbone too."""
    import keras

    from keras_transfer.models.builders import build_model
    from keras_transfer.models.heads import head_for
    from keras_transfer.models.precision import set_precision

    precision = set_precision(
        settings["precision"], settings["backbone"], settings["image_size"], trains=trains
    )
    say(str(precision))
    keras.utils.set_random_seed(settings["seed"])
    return build_model(
        settings["backbone"],
        head_for(images),
        image_size=settings["image_size"],
        weights=settings["weights"],
    )


def settled(images, settings, schedule, overrides, options):
    """(schedule, overrides, advice as plain data) in place of `auto`; settings get the names."""
    from keras_transfer.advisor.auto import trained

    def build(backbone):
        return build_for(images, {**settings, "backbone": backbone})

    train = trained(build, overrides=overrides, **options)
    choice, advice = _decided(images, settings, train, schedule)
    settings["backbone"] = choice.backbone
    if schedule == AUTO:
        settings["strategy"] = choice.strategy
    if options["augment"] == AUTO:
        options["augment"] = choice.augment
    if choice.strategy == "from_scratch":
        settings["weights"] = None
    if advice is not None:
        # With the strategy that was given, where one was: a resumed run reads its numbers there.
        name = getattr(choice.strategy, "name", str(choice.strategy))
        advice = {**advice.brief(), "choice": {**choice.to_dict(), "strategy": name}}
    return choice.strategy, {**choice.overrides, **overrides}, advice


def pinned(images, settings) -> dict:
    """What `auto` means where one recipe is trained many times: the settings get names.

    The strategy becomes the default recipe, on the backbone and with the augmentation of the advice.

    Returns:
        The advice's overrides of that recipe, where it advises it.
    """
    overrides, asked = {}, settings["strategy"] == AUTO
    if asked:
        settings["strategy"] = DEFAULT
    if is_open(settings["backbone"]):
        load_keras()
        choice, advice = _decided(images, settings, None, settings["strategy"])
        settings["backbone"] = choice.backbone
        if settings["augment"] == AUTO:
            settings["augment"] = choice.augment
        if asked and advice and advice.choice.strategy == DEFAULT:
            overrides = advice.choice.overrides
    if settings["augment"] == AUTO:
        settings["augment"] = "light"
    return overrides


def is_open(backbone: str) -> bool:
    """True where the option leaves the backbone to the advisor: `auto`, or several names."""
    return backbone == AUTO or "," in backbone


def check_choice(settings) -> None:
    """All that can be said of the backbone option before Keras is imported, as InputError."""
    from keras_transfer.advisor.api import check_advice
    from keras_transfer.advisor.shortlist import named
    from keras_transfer.models.sources.applications import check_backbone

    size = settings["image_size"]
    if is_open(settings["backbone"]):
        names = named(settings["backbone"])
        check_advice(names, size, settings["minutes"], settings["policy"])
    else:
        check_backbone(settings["backbone"], size, settings["weights"])


def _decided(images, settings, train, strategy):
    from keras_transfer.advisor.auto import decide
    from keras_transfer.advisor.shortlist import named

    asked = ("image_size", "batch_size", "minutes", "policy", "engine", "seed")
    return decide(
        images,
        train,
        backbones=named(settings["backbone"]),
        strategy=strategy,
        **{name: settings[name] for name in asked},
    )
