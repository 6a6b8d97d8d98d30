"""Every setting of a training, with its range and its help text: `TrainConfig`.

The options of the command line, `config.yaml`, `Trainer` and resuming are derived from this one
dataclass. It is validated once, before Keras is imported.
"""

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from keras_transfer.data.examples import BALANCES
from keras_transfer.data.sources import FOLDER_TASKS
from keras_transfer.data.split_rule import DEFAULT_VAL_SPLIT, SplitRule
from keras_transfer.errors import InputError
from keras_transfer.features import CACHES, ENGINE_NAMES
from keras_transfer.features.store import DTYPES
from keras_transfer.modalities import plain_augmentation
from keras_transfer.modalities.image.bands import DEPTHS
from keras_transfer.modalities.image.framing import checked_crop
from keras_transfer.modalities.text.framing import LEAST_TOKENS
from keras_transfer.modalities.views import MIXES, Mix
from keras_transfer.models import PRECISIONS, TAPS
from keras_transfer.schedules.phases import KEEP
from keras_transfer.schedules.recipes import AUTO
from keras_transfer.training.distributed.single_process import CHOICES as DISTRIBUTE
from keras_transfer.training.distributed.single_process import SCALINGS
from keras_transfer.utils.extras import require
from keras_transfer.utils.image_sizes import checked_size

FEATURE_DTYPES = ("auto", *DTYPES[:3])
REFIT, NO_REFIT = "always", "never"
POLICIES = ("evidence", "classical")  # of the advisor

# The groups under which `--help` lists the settings.
DATA, MODEL, TRAINING, ADVICE, MACHINE = "Data", "Model", "Training", "Advice", "Machine"


def setting(
    default,
    group: str,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    option: str | None = None,
    metavar: str | None = None,
    saved: bool = True,
) -> Any:
    """Make a field of `TrainConfig`.

    Args:
        default: its value where nothing is given.
        group: the heading under which `--help` lists it.
        help: one sentence for `--help` and for readers of the code.
        choices: the values that it may have.
        least, above, below: the range of a number: at least, greater than, less than.
        option: name on the command line where it is not the field's; `""` means no option.
        metavar: what `--help` shows for the value.
        saved: whether `config.yaml` records it. What the schedule already contains, and what says
            where or for how long to train, is not recorded.
    """
    keys = ("group", "help", "choices", "least", "above", "below", "option", "metavar", "saved")
    values = (group, help, choices, least, above, below, option, metavar, saved)
    metadata = dict(zip(keys, values))
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training.

    The help text of each field says what it does.

    Raises:
        InputError: a value is out of its range, or two values do not go together.
    """

    # -- data
    task: str = setting(
        "single_label",
        DATA,
        "One class per example, or several labels: those of all folders that hold the file.",
        choices=FOLDER_TASKS,
    )
    columns: dict | None = setting(
        None,
        DATA,
        "Columns of a table: path, label, labels, targets, split, group; HEAD.label, … for several "
        "heads. Repeatable.",
        option="--column",
        metavar="KIND=NAME[,NAME]",
    )
    val: str | None = setting(None, DATA, "Folder of validation examples, VAL/<class>/.")
    val_split: float | None = setting(
        None, DATA, f"Share drawn for validation. (default: {DEFAULT_VAL_SPLIT})", above=0, below=1
    )
    test_split: float = setting(0.0, DATA, "Share set aside for testing.", least=0, below=1)
    group: str | None = setting(
        None,
        DATA,
        "Regular expression whose (brackets) find in a path the group that must stay together: a "
        "person, a patient, a film.",
        metavar="PATTERN",
    )
    keep_together: str = setting(
        "copies",
        DATA,
        "What stays in one split besides groups: copies, or near, near-duplicates too.",
        choices=("copies", "near"),
    )
    folds: int | None = setting(
        None, DATA, "Cross-validate in K folds; needs --fold.", least=2, metavar="K"
    )
    fold: int | None = setting(None, DATA, "The fold to validate on, 1 to K.", least=1, metavar="I")
    split: str | None = setting(
        None, DATA, "Table with the columns path and split, e.g. RUN/split.csv.", metavar="FILE.csv"
    )
    use_list: str | None = setting(
        None,
        DATA,
        "List of corrections, as `check --deep --write-list` writes it, with actions: relabel, drop.",
        metavar="FILE.csv",
    )

    # -- model
    backbone: str = setting(
        AUTO,
        MODEL,
        "A name from `keras-transfer backbones`, a .keras file, a RUN, or auto. Of several separated "
        "by commas the advisor chooses one; several joined by + work together.",
    )
    weights: str | None = setting("imagenet", MODEL, "imagenet, none, or a weights file.")
    image_size: Any = setting(
        None,
        MODEL,
        "Height and width in pixels, such as 224 or 96x192. (default: the backbone's; of clips 96)",
        metavar="HxW",
    )
    crop: Any = setting(
        AUTO,
        MODEL,
        "Share of an image's shorter side that the model sees, above 0 to 1, or auto: the data "
        "decide.",
    )
    channels: int | None = setting(
        None,
        MODEL,
        "Channels of the images: of multi-band TIFF files and .npy arrays of height x width x N. "
        "(default: the backbone's, mostly 3)",
        least=1,
    )
    depth: str = setting(
        AUTO,
        MODEL,
        "Greyscale images of 16 bits are scaled by the range that each uses (auto), or by that of 16 "
        "bits (full).",
        choices=DEPTHS,
    )
    tokens: int | None = setting(
        None,
        MODEL,
        "Most tokens that the model reads of a text. (default: the encoder's)",
        least=LEAST_TOKENS,
    )
    taps: str = setting(
        AUTO,
        MODEL,
        "What the head reads: the last stage, all stages, all stages and TF-IDF features (texts), or "
        "auto: all, unless less has a clearly lower loss in cross-validation.",
        choices=(AUTO, *TAPS),
    )
    precision: str = setting(AUTO, MODEL, "Number format of the training.", choices=PRECISIONS)

    # -- training
    strategy: str = setting(
        AUTO,
        TRAINING,
        "A recipe from `keras-transfer schedule`, a .yaml file, or auto: the advisor chooses.",
    )
    overrides: dict = setting(
        {},
        TRAINING,
        "Any number of the strategy: `head_epochs=2`, `all.ema=0.99`, `*.weight_decay=0`.",
        option="--set",
        metavar="KEY=VALUE",
        saved=False,
    )
    epochs: int | None = setting(
        None, TRAINING, "Epochs of all phases. (default: the strategy's)", least=1, saved=False
    )
    learning_rate: float | None = setting(
        None, TRAINING, "Highest learning rate. (default: the strategy's)", above=0, saved=False
    )
    batch_size: int = setting(32, TRAINING, "Examples per step.", least=1)
    augment: Any = setting(
        AUTO,
        TRAINING,
        "none, flip, light, medium, heavy, randaugment, a .yaml or .json file, or auto: as the data "
        "suggest.",
    )
    mix: str = setting(
        "none", TRAINING, "Mix the examples of a batch, and their labels with them.", choices=MIXES
    )
    mix_alpha: float | None = setting(
        None, TRAINING, "Strength of the mixing. (default: 0.2 for mixup, 1 for cutmix)", above=0
    )
    balance: str = setting(
        "none", TRAINING, "Compensate for classes of unequal size.", choices=BALANCES
    )
    seed: int = setting(0, TRAINING, "Two runs with the same seed are equal.", least=0, below=2**32)
    keep: str = setting(
        "best",
        TRAINING,
        "The epoch whose weights are saved: best on validation, or last.",
        choices=KEEP,
    )
    soup: bool = setting(
        False,
        TRAINING,
        "Save the average of the last phase's best epochs where it is no worse on validation.",
    )
    refit: str = setting(
        AUTO,
        TRAINING,
        "Train the model again on training and validation examples, for as long as was best. auto: if "
        "these were drawn from the same, closed forms, fine-tunings with up to 5,000 examples and no "
        "--minutes, and what the advisor finds worth its time.",
        choices=(AUTO, REFIT, NO_REFIT),
    )
    calibrate: bool = setting(
        True,
        TRAINING,
        "Divide the logits by the temperature that fits validation best, where that clearly lowers "
        "the loss.",
    )
    steps_per_execution: int = setting(
        1, TRAINING, "Most steps per call of Keras.", least=1, option="", saved=False
    )
    validate_every: int | None = setting(
        None, TRAINING, "Epochs between two validations.", least=1, option="", saved=False
    )

    # -- advice
    minutes: float | None = setting(
        None,
        ADVICE,
        "Most minutes of everything together, from the start on. (default: as long as it is worth)",
        above=0,
        saved=False,
    )
    worth: float | None = setting(
        None,
        ADVICE,
        "Points of accuracy that a further minute must be expected to bring. (default: 0.5; 0.05 with "
        "--minutes)",
        above=0,
        saved=False,
    )
    policy: str = setting(
        "evidence", ADVICE, "Rules that the advisor follows.", choices=POLICIES, saved=False
    )

    # -- machine
    cache: str = setting(
        AUTO, MACHINE, "Where to cache the activations of frozen stages.", choices=CACHES
    )
    engine: str = setting(AUTO, MACHINE, "What computes those activations.", choices=ENGINE_NAMES)
    feature_dtype: str = setting(
        AUTO, MACHINE, "Number format of cached activations.", choices=FEATURE_DTYPES, option=""
    )
    data_service: str | None = setting(
        None,
        MACHINE,
        "Address of a tf.data service that reads the examples, grpc://HOST:PORT.",
        saved=False,
    )
    distribute: str = setting(
        "none",
        MACHINE,
        "Devices and machines to train on, see docs/distributed.md.",
        choices=DISTRIBUTE,
        saved=False,
    )
    scaling: str = setting(
        AUTO,
        MACHINE,
        "auto: --batch-size is per device, and the learning rate grows with their number; none: "
        "the devices share --batch-size.",
        choices=SCALINGS,
        saved=False,
    )

    def __post_init__(self):
        for spec in fields(self):
            object.__setattr__(self, spec.name, validated(spec, getattr(self, spec.name)))
        object.__setattr__(self, "image_size", checked_size(self.image_size))
        if self.weights == "none":
            object.__setattr__(self, "weights", None)
        if self.augment != AUTO:
            object.__setattr__(self, "augment", plain_augmentation(self.augment))
        if self.crop != AUTO:
            object.__setattr__(self, "crop", checked_crop(self.crop))
        Mix(self.mix, self.mix_alpha)
        if self.engine == "openvino":
            require("openvino", "Engine 'openvino'")
        SplitRule(
            self.val_split,
            self.test_split,
            self.group,
            self.folds,
            self.fold,
            self.split,
            self.seed,
        )

    @classmethod
    def from_dict(cls, values: Mapping) -> "TrainConfig":
        """Make a config from plain data, such as a run's `config.yaml`; other keys are ignored."""
        names = {spec.name for spec in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in names})

    def to_dict(self) -> dict:
        """Return what `config.yaml` records, as plain data."""
        saved = {
            spec.name: getattr(self, spec.name) for spec in fields(self) if spec.metadata["saved"]
        }
        share = DEFAULT_VAL_SPLIT if self.val_split is None else self.val_split
        return {**saved, "val_split": share, "weights": self.weights or "none"}

    @property
    def open_crop(self) -> float | None:
        """The crop as `build_model` takes it: None where the data decide."""
        return None if self.crop == AUTO else self.crop

    @property
    def reading(self) -> dict:
        """Depth and channels as `build_model` takes them: None where they are as by default."""
        return {"depth": None if self.depth == AUTO else self.depth, "channels": self.channels}

    @property
    def recipe_arguments(self) -> dict:
        """The settings that are arguments of every recipe, where they are given."""
        arguments = {"epochs": self.epochs, "learning_rate": self.learning_rate}
        return {name: value for name, value in arguments.items() if value is not None}

    def training_dict(self) -> dict:
        """Return the part of `to_dict` that a `Trainer` uses, but for strategy and augmentation."""
        saved = self.to_dict()
        return {name: saved[name] for name in _TRAINER_NAMES if name in saved}


TYPES = get_type_hints(TrainConfig)
# What a `Trainer` takes by name, and what it records of that.
_TRAINER_SETTINGS = [
    spec.name
    for spec in fields(TrainConfig)
    if spec.metadata["group"] in (TRAINING, MACHINE) and spec.name not in ("strategy", "distribute")
]
_TRAINER_NAMES = [name for name in _TRAINER_SETTINGS if name != "augment"]


def check_names(settings: Mapping) -> None:
    """Raise InputError for a name that is not a setting of `Trainer`."""
    for name in settings:
        if name not in _TRAINER_SETTINGS:
            close = get_close_matches(name, _TRAINER_SETTINGS, 1)
            hint = f"Did you mean {close[0]}?" if close else ""
            raise InputError(
                f"Trainer has no setting '{name}'. {hint or 'Choose from'} "
                f"{'' if close else ', '.join(_TRAINER_SETTINGS) + '.'}".rstrip()
            )


def validated(spec: Field, value):
    """Return the value as the setting's type, or raise InputError where it is out of range."""
    rule, kind = spec.metadata, TYPES[spec.name]
    optional = None in getattr(kind, "__args__", ()) or type(None) in getattr(kind, "__args__", ())
    if value is None and (optional or kind is dict):
        return None if optional else {}
    if isinstance(value, Path) or (isinstance(value, str) and type(value) is not str):
        value = str(value)  # paths, and choices of the command line
    number = kind in (int, float, int | None, float | None)
    if rule["choices"]:
        valid = value in rule["choices"]
    elif number:
        valid, value = _number(kind, rule, value)
    elif kind in (str, str | None):
        valid = isinstance(value, str) and value != ""
    elif kind in (dict, dict | None):
        valid = isinstance(value, dict)
    elif kind is bool:
        valid = isinstance(value, bool)
    else:
        valid = True
    if not valid:
        raise InputError(f"{spec.name} must be {_requirement(kind, rule)}, not {value!r}.")
    return value


def _number(kind, rule, value):
    whole = kind in (int, int | None)
    if isinstance(value, str) and not whole:
        try:
            value = float(value)  # YAML reads 1e-4, without a dot, as text
        except ValueError:
            return False, value
    valid = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    valid = valid and (
        math.isfinite(value)
        and (rule["least"] is None or value >= rule["least"])
        and (rule["above"] is None or value > rule["above"])
        and (rule["below"] is None or value < rule["below"])
    )
    return valid, value


def _requirement(kind, rule):
    if rule["choices"]:
        return f"one of {', '.join(rule['choices'])}"
    if kind in (int, int | None, float, float | None):
        parts = [f"of {rule['least']} or more"] if rule["least"] is not None else []
        parts += [f"above {rule['above']}"] if rule["above"] is not None else []
        parts += [f"below {rule['below']}"] if rule["below"] is not None else []
        what = "a whole number" if kind in (int, int | None) else "a number"
        return f"{what} {' and '.join(parts)}".rstrip()
    if kind is bool:
        return "true or false"
    return "names and values" if kind in (dict, dict | None) else "a text"
