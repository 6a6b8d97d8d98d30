"""The options of the command line: those of a training are generated from `TrainConfig`."""

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from keras_transfer import adaptation
from keras_transfer.errors import InputError
from keras_transfer.export import FORMATS
from keras_transfer.schedules.recipes import AUTO
from keras_transfer.training.config import TYPES, TrainConfig

BatchNorm = StrEnum("BatchNorm", adaptation.BATCH_NORM)
KeepEpoch = StrEnum("KeepEpoch", adaptation.KEEP)
Format = StrEnum("Format", list(FORMATS))

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
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
Column = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="KIND=NAME[,NAME]",
        help="Columns of a table: path, label, labels, targets, split, group. Repeatable.",
    ),
]
Freeze = Annotated[str, typer.Option(help="The frozen part: all, none, stage:N, …")]

_COLUMNS = {
    "path": "path_column",
    "label": "label_column",
    "labels": "label_columns",
    "targets": "targets",
    "split": "split_column",
    "group": "group_column",
}
_SETTINGS = {spec.name: spec for spec in fields(TrainConfig)}
_REPEATED = ("columns", "overrides")  # options given once per column or number


@dataclass(frozen=True)
class Settings:
    """The settings of a command: defaults, overridden by `--config`, overridden by options.

    Attributes:
        config: all of them, validated.
        typed: names of the settings that were given as options.
        schedule: the schedule that the config file contains, if it applies.
    """

    config: TrainConfig
    typed: frozenset[str]
    schedule: Any = None


def takes(*names: str) -> Callable:
    """Give a command the options of these settings, and `--config` and `--no-flip` where they fit.

    The command receives them as one argument `settings`, a `Settings`.
    """

    def decorate(command: Callable) -> Callable:
        own = [
            parameter
            for parameter in inspect.signature(command).parameters.values()
            if parameter.name != "settings"
        ]
        generated = {name: _option(name) for name in names}
        if "augment" in names:
            help = "No mirror images: for signs, text, digits."
            generated["no_flip"] = Annotated[bool, typer.Option("--no-flip", help=help)]
        if "seed" in names:
            help = "A config.yaml; options given here override it."
            generated["config"] = Annotated[Path | None, typer.Option(help=help)]

        def run(**values):
            typed = {name: values.pop(name) for name in generated}
            return command(settings=read_settings(**typed), **values)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        parameters = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=False if name == "no_flip" else None,
                annotation=annotation,
            )
            for name, annotation in generated.items()
        ]
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        run.__signature__ = inspect.Signature([*own, *parameters])  # type: ignore[attr-defined]
        return run

    return decorate


def _choice(name: str, values: tuple[str, ...]):
    return StrEnum(name, values)


def _option(name: str):
    """Make the annotation of one setting's option."""
    spec = _SETTINGS[name]
    rule = spec.metadata
    kind: Any = TYPES[name]
    if rule["choices"]:
        kind = _choice(name, rule["choices"])
    elif name in _REPEATED or kind is Any:
        kind = list[str] if name in _REPEATED else str
    default = getattr(TrainConfig(), name)
    help = rule["help"]
    if default not in (None, {}):
        text = f"{default:g}" if isinstance(default, float) else default
        help += f" (default: {text})"
    flags = [rule["option"]] if rule["option"] else []
    option = typer.Option(
        *flags, help=help, metavar=rule["metavar"], rich_help_panel=f"{rule['group']} options"
    )
    return Annotated[kind | None, option]


def read_settings(config: Path | None = None, no_flip: bool = False, **typed) -> Settings:
    """Merge the config file and the options into validated settings.

    Raises:
        InputError: the file or a value is invalid.
    """
    from keras_transfer.modalities.image.augment import without_flip

    typed = {name: value for name, value in typed.items() if value is not None}
    if "columns" in typed:
        typed["columns"] = columns_of(typed["columns"])
    if "overrides" in typed:
        typed["overrides"] = overrides_of(typed["overrides"])
    file = {} if config is None else read_config_file(config)
    values = {**file, **typed}
    if no_flip:
        augment = values.get("augment", AUTO)
        values["augment"] = without_flip("light" if augment == AUTO else augment)
    schedule = file.get("schedule")
    if isinstance(schedule, dict) and not typed.keys() & {"strategy", "epochs", "learning_rate"}:
        schedule = schedule_of(config, schedule)
    else:
        schedule = None
    return Settings(TrainConfig.from_dict(values), frozenset(typed), schedule)


def read_config_file(path: Path) -> dict:
    """Read a `config.yaml`; raises InputError where it is not one."""
    import yaml

    if not path.is_file():
        raise InputError(f"Config file not found: {path}. Pass the config.yaml of a run.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        where = str(error).replace("\n", " ")
        raise InputError(f"{path} is not valid YAML: {where}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a config file: it must contain names and values.")
    return values


def schedule_of(path, data: dict):
    """Make the schedule that a config file contains; errors name the file."""
    from keras_transfer.schedules.phases import Schedule

    try:
        return Schedule.from_dict(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def check_png(path: Path | None) -> None:
    """Raise InputError where a plot cannot be written to the path; None is fine."""
    if path is not None and path.suffix.lower() != ".png":
        raise InputError(f"Cannot write a plot to {path}: choose a .png file.")


def overrides_of(pairs: list[str] | None) -> dict:
    """Parse `KEY=VALUE` pairs into numbers of a strategy."""
    import yaml

    overrides = {}
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"--set {pair}: use KEY=VALUE, e.g. --set all.learning_rate=1e-4.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"--set {pair}: invalid value '{text}'.") from None
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)  # YAML reads 1e-4, without a dot, as text
        overrides[key] = value
    return overrides


def columns_of(pairs: list[str] | None) -> dict | None:
    """Parse `KIND=NAME,NAME` pairs into arguments of `from_table`; None where there are no pairs."""
    if not pairs:
        return None
    columns: dict = {}
    for pair in pairs:
        kind, equals, names = pair.partition("=")
        if not equals or kind not in _COLUMNS or not names:
            kinds = ", ".join(_COLUMNS)
            raise InputError(f"--column {pair}: use KIND=NAME, with KIND one of {kinds}.")
        several = kind == "targets" or "," in names
        columns[_COLUMNS[kind]] = names.split(",") if several else names
    return columns


def sizes_of(text: str | None) -> list[int | None] | None:
    """Parse `5,20,all` into numbers, None for all; None where nothing was typed."""
    if text is None:
        return None
    sizes = [part.strip() for part in text.split(",")]
    if not all(size == "all" or size.isdecimal() for size in sizes):
        raise InputError(f"--sizes {text}: use numbers and commas, e.g. 5,20,80,all.")
    return [None if size == "all" else int(size) for size in sizes]


def seeds_of(text: str) -> list[int]:
    """Parse `3` into 0, 1, 2; `10,11` into these seeds."""
    seeds = [part.strip() for part in text.split(",")]
    if not all(seed.isdecimal() for seed in seeds):
        raise InputError(f"--seeds {text}: pass how many, e.g. 3, or which, e.g. 10,11,12.")
    return list(range(int(text))) if len(seeds) == 1 else [int(seed) for seed in seeds]
