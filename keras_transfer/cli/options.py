"""The options of the command line, and what is made of them before Keras is imported."""

import contextlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from keras_transfer import adaptation
from keras_transfer.advisor.rules import DEFAULT_POLICY, MINUTES, POLICIES
from keras_transfer.data.balance import BALANCES
from keras_transfer.data.folders import FOLDER_TASKS
from keras_transfer.data.mixing import MIXES
from keras_transfer.errors import InputError
from keras_transfer.export import FORMATS
from keras_transfer.features import CACHES, ENGINE_NAMES
from keras_transfer.schedules import phases as schedules
from keras_transfer.schedules.recipes import AUTO
from keras_transfer.training.distributed import environment
from keras_transfer.training.distributed.scaling import SCALINGS


class Precision(StrEnum):  # `precision` has them too, but loads Keras
    auto = "auto"
    float32 = "float32"
    mixed_bfloat16 = "mixed_bfloat16"
    mixed_float16 = "mixed_float16"


# What the library takes is said once, where it is used.
Keep = StrEnum("Keep", schedules.KEEP)
KeepEpoch = StrEnum("KeepEpoch", adaptation.KEEP)
BatchNorm = StrEnum("BatchNorm", adaptation.BATCH_NORM)
Balance = StrEnum("Balance", BALANCES)
Cache = StrEnum("Cache", CACHES)
Engine = StrEnum("Engine", ENGINE_NAMES)
Task = StrEnum("Task", FOLDER_TASKS)
Policy = StrEnum("Policy", POLICIES)
MixKind = StrEnum("MixKind", MIXES)
Distribute = StrEnum("Distribute", environment.CHOICES)
Scaling = StrEnum("Scaling", SCALINGS)
Format = StrEnum("Format", list(FORMATS))


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The --out directory of a training.")]
RunOut = Annotated[Path, typer.Option(help="Directory of the run; must not exist yet.")]
Images = Annotated[list[Path], typer.Argument(metavar="PATH...", help="Images and folders.")]
Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="DATA/<class>/*.jpg, a .csv or .parquet table, a folder of TFRecords, or tfds:NAME.",
    ),
]
BackboneOption = Annotated[
    str | None,
    typer.Option(
        help="A name of `keras-transfer backbones`, a .keras file, a RUN, or auto; several with "
        "commas: the advisor chooses. [auto]"
    ),
]
TaskOption = Annotated[
    Task | None,
    typer.Option(
        help="One class per image, or several labels: those of all folders it lies in. [single_label]"
    ),
]
StrategyOption = Annotated[
    str | None,
    typer.Option(
        help="A recipe of `keras-transfer schedule`, a .yaml file, or auto: what the advisor says. "
        "[auto]"
    ),
]
MinutesOption = Annotated[
    float | None, typer.Option(help="What training may take; the advice keeps to it. [30]")
]
PolicyOption = Annotated[
    Policy | None, typer.Option(help="Rules of the advice. [evidence]", show_choices=True)
]
ValOption = Annotated[Path | None, typer.Option(help="Folder of validation images, VAL/<class>/.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any number of the strategy: `head_epochs=2`, `all.ema=0.99`, `*.weight_decay=0`.",
    ),
]
ImageSize = Annotated[int | None, typer.Option(help="Height and width. [the backbone's]")]
BatchSize = Annotated[int | None, typer.Option(help="Images a step. [32]")]
Epochs = Annotated[int | None, typer.Option(help="Epochs of all phases. [the strategy's]")]
Freeze = Annotated[str, typer.Option(help="What is frozen: all, none, stage:N, …")]
LearningRate = Annotated[float | None, typer.Option(help="Highest rate. [the strategy's]")]
PrecisionOption = Annotated[Precision | None, typer.Option(help="[auto]", show_choices=True)]
AugmentOption = Annotated[
    str | None,
    typer.Option(
        help="none, light, medium, heavy, randaugment, a .yaml or .json file, or auto: what the "
        "advisor says. [auto]"
    ),
]
NoFlip = Annotated[
    bool, typer.Option("--no-flip", help="No mirror images: for signs, text, digits.")
]
MixOption = Annotated[
    MixKind | None, typer.Option(help="Mix images of a batch, and their labels alike. [none]")
]
MixAlpha = Annotated[float | None, typer.Option(help="How strongly. [0.2 for mixup, 1 for cutmix]")]
WeightsOption = Annotated[str | None, typer.Option(help="imagenet, none, or a weights file.")]
Seed = Annotated[int | None, typer.Option(help="Two runs with one seed are equal. [0]")]
ValSplit = Annotated[float | None, typer.Option(help="Share taken for validation. [0.2]")]
TestSplit = Annotated[float | None, typer.Option(help="Share kept for testing. [0]")]
Group = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN",
        help="Regular expression whose (brackets) find in a path what must not be parted.",
    ),
]
Folds = Annotated[int | None, typer.Option(metavar="K", help="Cross-validation in K folds.")]
Fold = Annotated[int | None, typer.Option(metavar="I", help="The fold to validate on, 1 to K.")]
SplitFile = Annotated[
    Path | None,
    typer.Option("--split", metavar="FILE.csv", help="Columns path, split: RUN/split.csv, say."),
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="KIND=NAME[,NAME]",
        help="Columns of a table: path, label, labels, targets, split, group. Repeatable.",
    ),
]
BalanceOption = Annotated[
    Balance | None, typer.Option(help="Classes of unequal size: weigh or draw them alike. [none]")
]
CacheOption = Annotated[
    Cache | None, typer.Option(help="Where activations of frozen stages are kept. [auto]")
]
DistributeOption = Annotated[
    Distribute | None,
    typer.Option(
        help="Over which devices and machines: docs/distributed.md. [none]", show_choices=True
    ),
]
ScalingOption = Annotated[
    Scaling | None,
    typer.Option(
        help="auto: --batch-size is a device's, and the rate grows with their number; none: they share "
        "it. [auto]"
    ),
]
EngineOption = Annotated[Engine | None, typer.Option(help="What computes them. [auto]")]
Config = Annotated[Path | None, typer.Option(help="A config.yaml; options given here win over it.")]


def check_png(path: Path | None) -> None:
    """Raises InputError for a file that no image can be drawn into; there may be none."""
    if path is not None and path.suffix.lower() != ".png":
        raise InputError(f"Cannot draw into {path}: give a .png file.")


def overrides_of(pairs, **arguments):
    """`KEY=VALUE` as typed, and the options that are arguments of every recipe."""
    import yaml

    overrides = {key: value for key, value in arguments.items() if value is not None}
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"--set {pair}: give KEY=VALUE, e.g. --set all.learning_rate=1e-4.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"--set {pair}: '{text}' is no value.") from None
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)  # YAML reads 1e-4, without a dot, as text
        overrides[key] = value
    return overrides


def sizes_of(text):
    """`5,20,all` as typed → whole numbers, None for all; None where nothing was typed."""
    if text is None:
        return None
    sizes = [part.strip() for part in text.split(",")]
    if not all(size == "all" or size.isdecimal() for size in sizes):
        raise InputError(f"--sizes {text}: give numbers and commas, e.g. 5,20,80,all.")
    return [None if size == "all" else int(size) for size in sizes]


def seeds_of(text):
    """`3` as typed → 0, 1, 2; `10,11` → these."""
    seeds = [part.strip() for part in text.split(",")]
    if not all(seed.isdecimal() for seed in seeds):
        raise InputError(f"--seeds {text}: give how many, e.g. 3, or which, e.g. 10,11,12.")
    return list(range(int(text))) if len(seeds) == 1 else [int(seed) for seed in seeds]


_COLUMNS = {
    "path": "path_column",
    "label": "label_column",
    "labels": "label_columns",
    "targets": "targets",
    "split": "split_column",
    "group": "group_column",
}


def columns_of(pairs):
    """`KIND=NAME,NAME` as typed → arguments of `from_table`; None where there are none."""
    if not pairs:
        return None
    columns = {}
    for pair in pairs:
        kind, equals, names = pair.partition("=")
        if not equals or kind not in _COLUMNS or not names:
            raise InputError(f"--column {pair}: give KIND=NAME, KIND one of {', '.join(_COLUMNS)}.")
        several = kind == "targets" or "," in names
        columns[_COLUMNS[kind]] = names.split(",") if several else names
    return columns


def schedule_of(config, data):
    from keras_transfer.schedules.phases import Schedule

    try:
        return Schedule.from_dict(data)
    except InputError as error:
        raise InputError(f"{config}: {error}") from None


DEFAULTS = {
    "task": "single_label",
    "columns": None,
    "backbone": AUTO,
    "strategy": AUTO,
    "weights": "imagenet",
    "val": None,
    "val_split": 0.2,
    "test_split": 0.0,
    "group": None,
    "folds": None,
    "fold": None,
    "split": None,
    "image_size": None,
    "batch_size": 32,
    "precision": "auto",
    "augment": AUTO,
    "mix": "none",
    "mix_alpha": None,
    "seed": 0,
    "keep": "best",
    "balance": "none",
    "cache": "auto",
    "engine": "auto",
    "feature_dtype": "auto",
    "minutes": MINUTES,
    "policy": DEFAULT_POLICY,
}


def settings_of(typed: dict, but: str | None = None) -> dict:
    """Defaults, overridden by the config file, overridden by the options that were given.

    Args:
        typed: a command's arguments by their names: its `locals()`. What is no setting of `DEFAULTS`,
            nor makes one, is not looked at.
        but: an argument that means something else to this command than to `train`.
    """
    from keras_transfer.data import Mix, plain_augmentation, without_flip

    config = typed.get("config")
    settings: dict = dict(DEFAULTS)
    given = {name: typed.get(name) for name in DEFAULTS if name != but}
    given["columns"] = columns_of(typed.get("column"))
    if config is not None:
        import yaml

        if not config.is_file():
            raise InputError(f"No config file {config}: give the config.yaml of a run.")
        try:
            read = yaml.safe_load(config.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            where = str(error).replace("\n", " ")
            raise InputError(f"{config} is no YAML: {where}") from None
        if not isinstance(read, dict):
            raise InputError(f"{config} is no config: it must hold names and values.")
        settings.update({k: v for k, v in read.items() if k in DEFAULTS or k == "schedule"})
    settings.update(
        {
            key: str(value) if isinstance(value, (Path, StrEnum)) else value
            for key, value in given.items()
            if value is not None
        }
    )
    if settings["weights"] == "none":
        settings["weights"] = None
    if typed.get("no_flip"):
        augment = settings["augment"]
        settings["augment"] = without_flip("light" if augment == AUTO else augment)
    if settings["augment"] != AUTO:
        settings["augment"] = plain_augmentation(settings["augment"])
    Mix(settings["mix"], settings["mix_alpha"])
    return settings
