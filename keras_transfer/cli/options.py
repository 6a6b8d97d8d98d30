"""What commands share: options generated from `TrainConfig`, and the steps that use them."""

import atexit
import contextlib
import gc
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from keras_transfer import adaptation
from keras_transfer.cli.columns import columns_of
from keras_transfer.errors import InputError
from keras_transfer.export import FORMATS
from keras_transfer.runs import CONFIG, PLACES, place_of
from keras_transfer.schedules.recipes import AUTO
from keras_transfer.training.config import TYPES, TrainConfig
from keras_transfer.utils.documents import read_yaml
from keras_transfer.utils.files import absolute_paths, check_output

BatchNorm = StrEnum("BatchNorm", adaptation.BATCH_NORM)
KeepEpoch = StrEnum("KeepEpoch", adaptation.KEEP)
Format = StrEnum("Format", list(FORMATS))
Runner = StrEnum("Runner", ("local", "beam"))

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="The --out directory of a training.")]
RunOut = Annotated[Path, typer.Option(help="Directory of the run; must not exist yet.")]
Images = Annotated[list[Path], typer.Argument(metavar="PATH...", help="Images and folders.")]
Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="DATA/<class>/*.jpg, a .csv or .parquet table, a folder of TFRecords, tfds:NAME or hf:NAME.",
    ),
]
Column = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="KIND=NAME[,NAME]",
        help="Columns of a table: path, label, labels, targets, split, group; HEAD.label, … for "
        "several heads. Repeatable.",
    ),
]
Freeze = Annotated[str, typer.Option(help="The frozen part: all, none, stage:N, …")]

_SETTINGS = {spec.name: spec for spec in fields(TrainConfig)}
_REPEATED = ("columns", "overrides")  # options given once per column or number


@dataclass(frozen=True)
class Settings:
    """The settings of a command: defaults, overridden by `--config`, overridden by options.

    Attributes:
        config: all of them, validated.
        schedule: the schedule that the config file contains, if it applies.
        no_flip: whether mirror images were excluded.
        augment: the augmentation, regardless of that.
    """

    config: TrainConfig
    schedule: Any = None
    no_flip: bool = False
    augment: Any = AUTO


def takes(*names: str, resumes: bool = False) -> Callable:
    """Give a command the options of these settings, and `--config` and `--no-flip` where they fit.

    The command receives them as one argument `settings`, a `Settings`.

    Args:
        names: of the settings.
        resumes: with `--resume`, those that are not given are those of the run at `--out`.
    """

    def decorate(command: Callable) -> Callable:
        own = [
            parameter
            for parameter in inspect.signature(command).parameters.values()
            if parameter.name != "settings"
        ]
        generated: dict[str, Any] = {name: _option(name) for name in names}
        if "augment" in names:
            help = "No mirror images: for signs, text, digits."
            generated["no_flip"] = Annotated[bool, typer.Option("--no-flip", help=help)]
        if "seed" in names:
            help = "A config.yaml; options given here override it."
            generated["config"] = Annotated[Path | None, typer.Option(help=help)]

        def run(**values):
            typed = {name: values.pop(name) for name in generated}
            if resumes and values["resume"] and typed["config"] is None:
                typed["config"] = begun_config(values["out"])
            try:
                return command(settings=read_settings(**typed), **values)
            except KeyboardInterrupt as stop:
                if not stop.args:  # before any training
                    print("interrupted; nothing was trained", file=sys.stderr)
                raise

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
    return StrEnum(name, values)  # in a function: mypy would read an assignment as a class


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
    from keras_transfer.schedules.phases import Schedule

    typed = {name: value for name, value in typed.items() if value is not None}
    if "columns" in typed:
        typed["columns"] = columns_of(typed["columns"])
    if "overrides" in typed:
        typed["overrides"] = overrides_of(typed["overrides"])
    file = {} if config is None else read_config_file(config)
    values = {**file, **typed}
    augment = values.get("augment", AUTO)
    if no_flip:
        values["augment"] = without_flip("light" if augment == AUTO else augment)
    schedule = file.get("schedule")
    if isinstance(schedule, dict) and not typed.keys() & {"strategy", "epochs", "learning_rate"}:
        try:
            schedule = Schedule.from_dict(schedule)
        except InputError as error:
            raise InputError(f"{config}: {error}") from None
    else:
        schedule = None
    return Settings(TrainConfig.from_dict(values), schedule, no_flip, augment)


def begun_config(out: Path) -> Path | None:
    """Return the settings of the run that a command resumes; None if nothing, or a race, was begun."""
    file = out / CONFIG
    return file if file.is_file() and not place_of(out).is_dir() else None


def read_config_file(path: Path) -> dict:
    """Read a `config.yaml`; raises InputError where it is not one."""
    if not path.is_file():
        raise InputError(f"Config file not found: {path}. Pass the config.yaml of a run.")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a config file: it must contain names and values.")
    return values


def check_png(path: Path | None) -> None:
    """Raise InputError where a plot cannot be written to the path; None is fine."""
    if path is not None and path.suffix.lower() != ".png":
        raise InputError(f"Cannot write a plot to {path}: choose a .png file.")
    if path is not None:
        check_output(path)


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
        except (yaml.YAMLError, ValueError):  # or a date that does not exist
            raise InputError(f"--set {pair}: invalid value '{text}'.") from None
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)  # YAML reads 1e-4, without a dot, as text
        overrides[key] = value
    return overrides


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


# -- steps ------------------------------------------------------------------------------------------


def load_keras() -> None:
    """Import Keras and its backend without their start-up messages on stderr, as fast as possible.

    TensorFlow's libraries write them before they read any log level. Errors are Python exceptions
    and are not lost.

    Keras imports scikit-learn, SciPy, pandas, matplotlib and IPython for functions that no command
    uses, and TensorFlow imports JAX for one of its converters: half of the time. To both, they are
    missing here. Searching a million new objects for garbage takes a fifth of the rest, and again
    when the process ends: imported objects stay, so they are never searched.
    """
    if "keras" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    unused = {"sklearn", "scipy", "pandas", "matplotlib", "IPython", "jax"}
    hidden = unused - {os.environ.get("KERAS_BACKEND")} - sys.modules.keys()
    # None is a module that cannot be imported.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    atexit.register(gc.freeze)
    gc.disable()
    try:
        import keras  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
        for name in hidden:
            del sys.modules[name]
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)


@contextlib.contextmanager
def interruption_reported():
    """Print what an interruption leaves on disk, then pass it on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        stop.args = stop.args or ("interrupted",)  # it is not printed again
        raise


def open_images(data, config: TrainConfig, **overrides):
    """Open the labelled examples and split them as the config says; near-duplicates may stay together.

    Args:
        data: a path or name that `open_data` takes.
        overrides: arguments of `open_data` that win over the config.
    """
    from keras_transfer.cli.kinds import require_suitable
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
        "use_list": config.use_list,
    }
    options |= overrides
    images = open_data(data, **options)
    require_suitable(images.modality, config)
    if config.keep_together == "copies" or options["split_file"] is not None:
        return images
    from keras_transfer.diagnosis.near import near_names

    load_keras()
    backbone = AUTO if advisor_chooses(config.backbone) else config.backbone
    return open_data(data, **{**options, "groups": near_names(images, backbone)})


def saved_config(data, config: TrainConfig) -> dict:
    """Return what a run's `config.yaml` records of the command."""
    return absolute_paths({"data": data, **config.to_dict()}, PLACES)


def advisor_chooses(backbone: str) -> bool:
    """Return whether the option leaves the backbone to the advisor: `auto`, or several names."""
    return backbone == AUTO or "," in backbone


def check_backbones(config: TrainConfig) -> None:
    """Raise InputError for an invalid backbone, as far as that can be told without Keras."""
    if advisor_chooses(config.backbone):
        from keras_transfer.advisor.api import check_advice
        from keras_transfer.advisor.rules import named

        names = named(config.backbone)
        check_advice(names, config.image_size, config.minutes, config.policy)
    else:
        from keras_transfer.models.sources.backbones import check_backbone

        check_backbone(config.backbone, config.image_size, config.weights)


def trainer_options(config: TrainConfig) -> dict:
    """Return the settings that `Trainer` takes by name, but for its schedule."""
    names = ("batch_size", "mix", "mix_alpha", "seed", "balance", "cache", "engine")
    return {name: getattr(config, name) for name in (*names, "feature_dtype", "augment")}
