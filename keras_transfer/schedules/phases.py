"""Schedules as plain data: which weights train, how fast and for how long, phase by phase.

This module does not import Keras, so a schedule can be read and checked before Keras is imported.
`keras_transfer.schedules.plans` works out what a schedule means for one model and dataset.
"""

import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

from keras_transfer.errors import InputError
from keras_transfer.modalities import plain_augmentation
from keras_transfer.modalities.views import MIXES
from keras_transfer.models import BATCH_NORM_POLICIES, LOW_RANK, TRAINED
from keras_transfer.utils.console import Table
from keras_transfer.utils.documents import dump_yaml, read_yaml
from keras_transfer.utils.image_sizes import checked_size

SHAPES = ("cosine", "one_cycle", "step", "constant", "annealed", "plateau")
KEEP = ("best", "last")
SOLVERS = ("gradient", "logistic")


@dataclass(frozen=True)
class Phase:
    """One `compile` and `fit`, and everything that defines it.

    Attributes:
        name: shown in logs and files; unique in a schedule.
        freeze: the frozen part, see `keras_transfer.models.stages.frozen_stages`.
        epochs: passes over the training examples, ≥ 1; or
        steps: batches, ≥ 1, with an epoch ending after each pass. Exactly one of the two is given.
        learning_rate: highest learning rate of the phase, > 0.
        shape: learning rate over the phase: `"cosine"` (to 0), `"one_cycle"` (up and down in
            cosines; use a warmup of about 0.3), `"step"`, `"constant"`, `"annealed"` (times
            (1 + 10·p)^−0.75 at progress p, as in domain adaptation), or `"plateau"` (times
            `drop_factor` if the validation loss has not fallen for `patience` epochs).
        warmup: share of the steps in which the rate rises, 0 ≤ warmup < 1; not with `"plateau"`.
        drops: for `"step"`: shares of the phase after which the rate is multiplied by
            `drop_factor`.
        drop_factor: for `"step"` and `"plateau"`, 0 < factor < 1.
        patience: for `"plateau"`, epochs ≥ 1.
        rates: multipliers of the rate, > 0. Keys are `"head"`, `"backbone"` (all its stages) and
            `"stage:N"` (counted from 1, which is nearest to the input); the more specific key wins.
        lowest_rate: multiplier of the first stage; those of the stages between it and the head lie
            on a geometric scale (layer-wise decay: 0.8 per stage over 12 stages is 0.07). 1 turns
            it off.
        optimizer: class of `keras.optimizers`, in lower case: `"adamw"`, `"sgd"`, `"lion"`, …
        optimizer_options: arguments of that class, e.g. `{"momentum": 0.9}`.
        weight_decay: decoupled, times the rate; only for weight matrices, not for biases, offsets
            and scales (arXiv:1711.05101).
        l2_sp: like `weight_decay`, but towards the weights from which training started, for the
            backbone (arXiv:1802.01483). The head uses `weight_decay`. 0 turns it off.
        clip_norm: maximum norm of the gradient of all weights together, > 0; None means no limit.
        accumulate: batches whose gradients are averaged for one update, ≥ 1.
        ema: momentum of the exponential moving average of the weights, 0 ≤ ema < 1, which is then
            validated and saved; 0 turns it off. Each phase starts a new one. BatchNorm statistics
            are not averaged.
        batch_size, image_size, augment, mix, mix_alpha: override those of the trainer (augment: see
            `modalities.image.augment.resolve_augmentation`, stored as plain data; mix and mix_alpha:
            see `data.Mix`). An image size must differ from the model's by a multiple of 32,
            so that every layer pads the same way.
        batch_norm: `"frozen"` or `"train"`, for the trained part of the backbone.
        dropout, label_smoothing: override those of the head, in [0, 1).
        class_weights: `"balanced"` weights each class by 1/frequency; or a weight per class name.
        early_stopping: number of epochs without a lower validation loss after which the phase ends.
        roll_back: return to the best weights, and go on at a third of the rate, if two validations
            in a row are more than two standard errors below the best one of the run, see
            `training.rollback`. Only if the best epoch is saved, and not with `"plateau"`.
        solver: `"gradient"`, or `"logistic"`: fit the head in closed form on the features of the
            frozen backbone (all of it, and a head without hidden layers), by logistic regression
            for one class or several labels, and by ridge regression for numbers. It makes one pass
            over the examples; epochs is 1, and rate, optimizer, dropout, label smoothing and mix do
            not apply. Of the augmentation, only the mirror image is used.
        views: number of augmented views of each training example, where activations are computed
            once; one of them is drawn in each epoch. None leaves it to the trainer.
        train: which weights of the trained stages move: `"all"`; `"bias"`, `"norm"` or `"bias+norm"`,
            biases and the scales and offsets of normalizations, see `models.stages.freeze`; or
            `"lora"`, low-rank updates W + (alpha / rank)·A·B (arXiv:2106.09685), which are added to
            the weights when the phase ends. The head always moves. All but `"all"` need frozen
            BatchNorm statistics.
        lora_rank: rank of the updates, ≥ 1.
        lora_alpha: strength of the updates, > 0.
        lora_layers: layers with updates: `"attention"` (the matrices inside attention layers),
            `"dense"` (all dense layers), `"conv"` (convolutions, but not depthwise ones), `"embedding"`,
            several joined by `+`, or a regular expression that is searched in the paths of weights.
    """

    name: str
    freeze: str | int | float = "none"
    epochs: int | None = None
    learning_rate: float = 1e-3
    steps: int | None = None
    shape: str = "cosine"
    warmup: float = 0.1
    drops: tuple[float, ...] = (0.3, 0.6, 0.9)
    drop_factor: float = 0.1
    patience: int = 2
    rates: dict[str, float] = field(default_factory=dict)
    lowest_rate: float = 1.0
    optimizer: str = "adamw"
    optimizer_options: dict = field(default_factory=dict)
    weight_decay: float = 1e-4
    l2_sp: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    ema: float = 0.0
    batch_size: int | None = None
    image_size: int | str | None = None
    augment: str | dict | None = None
    mix: str | None = None
    mix_alpha: float | None = None
    batch_norm: str = "frozen"
    dropout: float | None = None
    label_smoothing: float | None = None
    class_weights: str | dict | None = None
    early_stopping: int | None = None
    solver: str = "gradient"
    views: int | None = None
    roll_back: bool = False
    train: str = "all"
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_layers: str = "dense+conv"

    def __post_init__(self):
        try:
            if self.augment is not None:
                object.__setattr__(self, "augment", plain_augmentation(self.augment))
        except InputError as error:
            raise InputError(f"Phase '{self.name}': {error}") from None
        for name, valid, requirement in _CHECKS:
            value = getattr(self, name)
            if _TYPES[name] in (float, float | None) and isinstance(value, str):
                value = _number(value)  # YAML reads 1e-4, without a dot, as text
                object.__setattr__(self, name, value)
            optional = value is None and type(None) in get_args(_TYPES[name])
            try:
                flag = isinstance(value, bool)
                passes = optional or (flag == (_TYPES[name] is bool) and valid(value))
            except (TypeError, ValueError, AttributeError):
                passes = False
            if not passes:
                raise InputError(
                    f"Phase '{self.name}': {name} must be {requirement}, not {value!r}."
                )
        if (self.epochs is None) == (self.steps is None):
            raise InputError(f"Phase '{self.name}': set either epochs or steps.")
        if self.solver == "logistic" and (self.freeze != "all" or self.epochs != 1):
            raise InputError(
                f"Phase '{self.name}': solver 'logistic' needs freeze 'all' and epochs 1, not "
                f"{self.freeze!r} and {self.epochs}."
            )
        if self.shape == "plateau" and self.accumulate > 1:
            raise InputError(f"Phase '{self.name}': shape 'plateau' cannot accumulate gradients.")
        if self.train != "all" and self.batch_norm == "train":
            raise InputError(
                f"Phase '{self.name}': train '{self.train}' needs batch_norm 'frozen', because BatchNorm's "
                "statistics would change without the weights that they belong to."
            )
        if self.train == "lora" and self.l2_sp:
            raise InputError(
                f"Phase '{self.name}': train 'lora' cannot have l2_sp, because the weights that it "
                "would pull back do not move: set weight_decay, which pulls the updates to zero."
            )
        object.__setattr__(self, "drops", tuple(self.drops))
        for key, value in self.rates.items():
            known = key in ("head", "backbone") or re.fullmatch(r"stage:\d+", str(key))
            if not known or isinstance(value, str) or not _positive(value):
                raise InputError(
                    f"Phase '{self.name}': rates has {key!r}: {value!r}; use 'head', 'backbone' or "
                    "'stage:N' and a number above 0 (to keep weights unchanged, set freeze)."
                )


_TYPES = get_type_hints(Phase)


def _positive(value):
    return value > 0


def _natural(value):
    return isinstance(value, int) and value >= 1


def _share(value):
    return 0 <= value < 1


def _one_of(choices):
    return lambda value: value in choices, f"one of {', '.join(choices)}"


def _pattern(value):
    try:
        return bool(re.compile(value).pattern)
    except re.error:
        return False


def _is_size(value):
    try:
        return checked_size(value) == value
    except InputError:
        return False


_NATURAL = (_natural, "a whole number above 0")
_POSITIVE = (_positive, "above 0")
_NOT_NEGATIVE = (lambda value: value >= 0, "at least 0")
_SHARE = (_share, "at least 0 and below 1")
_BETWEEN = (lambda value: 0 < value < 1, "between 0 and 1")

# Field, condition on its value, and the same in words.
_CHECKS = (
    ("name", lambda v: isinstance(v, str) and v, "a text"),
    ("freeze", lambda v: isinstance(v, (str, int, float)), "a name, a number or a share"),
    ("epochs", *_NATURAL),
    ("steps", *_NATURAL),
    ("learning_rate", *_POSITIVE),
    ("shape", *_one_of(SHAPES)),
    ("warmup", *_SHARE),
    ("drops", lambda v: list(v) == sorted(v) and all(0 < x < 1 for x in v), "increasing shares"),
    ("drop_factor", *_BETWEEN),
    ("patience", *_NATURAL),
    ("rates", lambda v: isinstance(v, dict), "names and numbers"),
    ("lowest_rate", lambda v: 0 < v <= 1, "above 0 and at most 1"),
    ("optimizer", lambda v: isinstance(v, str), "the name of a Keras optimizer"),
    ("optimizer_options", lambda v: isinstance(v, dict), "names and values"),
    ("weight_decay", *_NOT_NEGATIVE),
    ("l2_sp", *_NOT_NEGATIVE),
    ("clip_norm", *_POSITIVE),
    ("accumulate", *_NATURAL),
    ("ema", *_SHARE),
    ("batch_size", *_NATURAL),
    ("image_size", _is_size, "a number of pixels, or height and width such as 96x192"),
    ("mix", *_one_of(MIXES)),
    ("mix_alpha", *_POSITIVE),
    ("batch_norm", *_one_of(BATCH_NORM_POLICIES)),
    ("dropout", *_SHARE),
    ("label_smoothing", *_SHARE),
    (
        "class_weights",
        lambda v: v == "balanced" or all(x > 0 for x in v.values()),
        "'balanced' or a weight above 0 for each class",
    ),
    ("early_stopping", *_NATURAL),
    ("solver", *_one_of(SOLVERS)),
    ("views", *_NATURAL),
    ("roll_back", lambda value: True, "true or false"),
    ("train", *_one_of(TRAINED)),
    ("lora_rank", *_NATURAL),
    ("lora_alpha", *_POSITIVE),
    ("lora_layers", _pattern, f"{', '.join(LOW_RANK)}, several joined by +, or a pattern"),
)
PHASE_FIELDS = tuple(f.name for f in fields(Phase))


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class Schedule:
    """A list of phases, run one after the other.

    Attributes:
        name: name of the recipe, or your own.
        phases: at least one.
        pretrained: False if the backbone starts from random weights.
        zero_head: True if the head's last layer starts from zeros (BiT).
    """

    name: str
    phases: tuple[Phase, ...]
    pretrained: bool = True
    zero_head: bool = False

    def __post_init__(self):
        object.__setattr__(self, "phases", tuple(self.phases))
        if not self.phases:
            raise InputError(f"Schedule '{self.name}' has no phases.")
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise InputError(f"Schedule '{self.name}': names of phases must differ: {names}.")

    def override(self, settings: dict) -> "Schedule":
        """Return this schedule with some fields of its phases replaced.

        Args:
            settings: `"PHASE.FIELD"` → value; `"*.FIELD"` means every phase.

        Raises:
            InputError: unknown phase or field, or a value out of its range.
        """
        phases = {phase.name: phase for phase in self.phases}
        for key, value in settings.items():
            where, _, name = key.rpartition(".")
            if where != "*" and where not in phases:
                raise InputError(
                    f"Cannot set {key}: schedule '{self.name}' has the phases {', '.join(phases)}."
                )
            if name not in PHASE_FIELDS or name == "name":
                raise InputError(
                    f"Cannot set {key}: a phase has the fields {', '.join(PHASE_FIELDS[1:])}."
                )
            change = {name: value}
            if name in ("epochs", "steps") and value is not None:
                change["steps" if name == "epochs" else "epochs"] = None
            if change == {"solver": "logistic"}:
                change |= {"epochs": 1, "steps": None}  # the only length that it allows
            for each in phases if where == "*" else [where]:
                phases[each] = replace(phases[each], **change)
        return replace(self, phases=tuple(phases.values()))

    def to_dict(self) -> dict:
        """Return plain data for YAML and JSON; `from_dict` reads it."""
        data = asdict(self)
        data["phases"] = [_plain(phase) for phase in data["phases"]]
        return data

    @classmethod
    def from_dict(cls, data: dict) -> "Schedule":
        """Make a schedule from plain data.

        Raises:
            InputError: an unknown or missing key, or a value out of its range.
        """
        try:
            phases = tuple(Phase(**phase) for phase in data["phases"])
            return cls(**{**data, "phases": phases})
        except (KeyError, TypeError) as error:
            reason = str(error).replace("Phase.__init__() ", "").replace("Schedule.__init__() ", "")
            raise InputError(f"Invalid schedule: {reason}.") from None

    def to_yaml(self) -> str:
        """Return YAML text with every number written out; `from_yaml` reads it."""
        return dump_yaml(self.to_dict())

    @classmethod
    def from_yaml(cls, path) -> "Schedule":
        """Read a file from `to_yaml`, or one written by hand (a phase needs its name and epochs).

        Raises:
            InputError: missing file, invalid YAML or invalid schedule; the message names the file.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"No schedule file {path}.")
        found = read_yaml(path)
        try:
            return cls.from_dict(found)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def table(self) -> str:
        """Return one line of text per phase; `plans.Plan.table` adds one model and dataset."""
        rows = [
            (
                phase.name,
                phase.freeze,
                f"{phase.epochs} epochs" if phase.epochs else f"{phase.steps} steps",
                f"{phase.learning_rate:.3g}",
                phase.shape,
                ", ".join(differences(phase)),
            )
            for phase in self.phases
        ]
        return Table(("phase", "frozen", "length", "rate", "shape", "more"), rows, "llllll").text()


def _plain(phase: dict) -> dict:
    """Return a phase as plain data.

    The fields of partial training are left out where they have no effect, so that a schedule that
    was written before they existed stays the same.
    """
    plain = {
        name: value
        for name, value in phase.items()
        if phase["train"] == "lora" or _PARTIAL.get(name, _PARTIAL) != value
    }
    return {**plain, "drops": list(phase["drops"])}


_PARTIAL = {f.name: f.default for f in fields(Phase) if f.name == "train" or "lora_" in f.name}


_COLUMNS = ("freeze", "epochs", "steps", "learning_rate", "shape")


def differences(phase: Phase, without=()) -> list[str]:
    """Return `field=value` of each field that is not the default and has no column in a table."""
    plain = Phase(phase.name, epochs=1)
    return [
        f"{name}={getattr(phase, name)}"
        for name in PHASE_FIELDS
        if name not in (*_COLUMNS, *without) and getattr(phase, name) != getattr(plain, name)
    ]
