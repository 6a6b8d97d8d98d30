"""Schedules as plain data: which part trains, how fast and for how long, phase by phase.

No Keras here, so that a schedule can be read and checked before Keras is imported. What a schedule
means for one model and one data set is worked out in `keras_transfer.schedules.plans`.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from keras_transfer.data.mixing import MIXES
from keras_transfer.errors import InputError
from keras_transfer.modalities.image.augment import plain_augmentation
from keras_transfer.models import BATCH_NORM_POLICIES

SHAPES = ("cosine", "one_cycle", "step", "constant", "annealed", "plateau")
KEEP = ("best", "last")
SOLVERS = ("gradient", "logistic")


@dataclass(frozen=True)
class Phase:
    """One `compile` + `fit`. Everything about it is written here.

    Attributes:
        name: shown in logs and files; differs from phase to phase.
        freeze: what is frozen, as `keras_transfer.models.freezing.frozen_stages` takes it.
        epochs: passes over the training images, ≥ 1; or
        steps: batches, ≥ 1, with an epoch's end after each pass. One of the two is given.
        learning_rate: highest rate of the phase, > 0.
        shape: of the rate over the phase: `"cosine"` (to 0), `"one_cycle"` (up and down in cosines,
            give it a warmup of about 0.3), `"step"`, `"constant"`, `"annealed"` (times (1 + 10·p)^−0.75
            at progress p, as domain adaptation has it), or `"plateau"` (times `drop_factor` when the
            validation loss has not fallen for `patience` epochs).
        warmup: share of the steps in which the rate rises, 0 ≤ warmup < 1; not with `"plateau"`.
        drops: of `"step"`: shares of the phase after which the rate is multiplied by `drop_factor`.
        drop_factor: of `"step"` and `"plateau"`, 0 < factor < 1.
        patience: of `"plateau"`, epochs ≥ 1.
        rates: multipliers of the rate, > 0: keys `"head"`, `"backbone"` (all its stages) and
            `"stage:N"` (counted from 1, nearest to the image), the more special wins.
        lowest_rate: multiplier of the first stage; those of the stages between it and the head lie
            on a geometric scale (layer-wise decay: 0.8 a stage over 12 stages is 0.07). 1 is none.
        optimizer: class of `keras.optimizers`, in lower case: `"adamw"`, `"sgd"`, `"lion"`, …
        optimizer_options: arguments of that class, e.g. `{"momentum": 0.9}`.
        weight_decay: decoupled, times the rate, of weight matrices only: biases, offsets and scales
            are spared (arXiv:1711.05101).
        l2_sp: like `weight_decay`, but towards the weights that training started from, for the
            backbone (arXiv:1802.01483). The head keeps `weight_decay`. 0 is none.
        clip_norm: longest gradient over all weights together, > 0; None is no limit.
        accumulate: batches whose gradients are averaged for one update, ≥ 1.
        ema: momentum of the weights' exponential average, 0 ≤ ema < 1, which is then what is
            validated and kept; 0 is none. A new one starts with each phase. BatchNorm's statistics
            are not averaged.
        batch_size, image_size, augment, mix, mix_alpha: where they differ from the trainer's
            (augment: see `data.resolve_augmentation`, kept as plain data; mix and mix_alpha: see
            `data.Mix`). An image size must differ from the model's by a multiple of 32, so that
            every layer pads alike.
        batch_norm: `"frozen"` or `"train"`, for the trained part of the backbone.
        dropout, label_smoothing: where they differ from the head's, in [0, 1).
        class_weights: `"balanced"` weighs each class by 1/frequency; or a weight a class, by name.
        early_stopping: ends the phase when the validation loss has not fallen for so many epochs.
        solver: `"gradient"`, or `"logistic"`: the head in closed form, by logistic regression on the
            features of the frozen backbone (all of it, and a head without hidden layers); of several
            labels by one for each, of numbers by ridge regression. It takes one pass over the
            images; epochs is 1, and rate, optimizer, dropout, label smoothing and mix mean
            nothing. Of the augmentation only the mirror image is used.
        views: of each training image, where activations are computed once and something varies:
            one of them is drawn each epoch. None leaves it to the trainer.
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
    image_size: int | None = None
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

    def __post_init__(self):
        try:
            if self.augment is not None:
                object.__setattr__(self, "augment", plain_augmentation(self.augment))
        except InputError as error:
            raise InputError(f"Phase '{self.name}': {error}") from None
        for name, good, what in _CHECKS:
            value = getattr(self, name)
            if name in _NUMBERS and isinstance(value, str):
                value = _number(value)  # YAML reads 1e-4, without a dot, as text
                object.__setattr__(self, name, value)
            optional = name in _OPTIONAL and value is None
            try:
                fine = optional or (not isinstance(value, bool) and good(value))
            except (TypeError, ValueError, AttributeError):
                fine = False
            if not fine:
                raise InputError(f"Phase '{self.name}': {name} must be {what}, not {value!r}.")
        if (self.epochs is None) == (self.steps is None):
            raise InputError(f"Phase '{self.name}': give either epochs or steps.")
        if self.solver == "logistic" and (self.freeze != "all" or self.epochs != 1):
            raise InputError(
                f"Phase '{self.name}': solver 'logistic' needs freeze 'all' and epochs 1, not "
                f"{self.freeze!r} and {self.epochs}."
            )
        if self.shape == "plateau" and self.accumulate > 1:
            raise InputError(f"Phase '{self.name}': shape 'plateau' cannot accumulate gradients.")
        object.__setattr__(self, "drops", tuple(self.drops))
        for key, value in self.rates.items():
            known = key in ("head", "backbone") or (
                key.startswith("stage:") and key[6:].isdecimal()
            )
            if not known or not _positive(value):
                raise InputError(
                    f"Phase '{self.name}': rates has {key!r}: {value!r}; give 'head', 'backbone' or "
                    "'stage:N' and a number above 0 (what shall not move is frozen by freeze)."
                )


def _positive(value):
    return value > 0


def _natural(value):
    return isinstance(value, int) and value >= 1


def _share(value):
    return 0 <= value < 1


# Field, what it must hold, and the same in words.
_CHECKS = (
    ("freeze", lambda v: isinstance(v, (str, int, float)), "a name, a number or a share"),
    ("epochs", _natural, "a whole number above 0"),
    ("steps", _natural, "a whole number above 0"),
    ("learning_rate", _positive, "above 0"),
    ("shape", lambda v: v in SHAPES, f"one of {', '.join(SHAPES)}"),
    ("warmup", _share, "at least 0 and below 1"),
    ("drops", lambda v: list(v) == sorted(v) and all(0 < x < 1 for x in v), "rising shares"),
    ("drop_factor", lambda v: 0 < v < 1, "between 0 and 1"),
    ("patience", _natural, "a whole number above 0"),
    ("rates", lambda v: isinstance(v, dict), "names and numbers"),
    ("lowest_rate", lambda v: 0 < v <= 1, "above 0 and at most 1"),
    ("optimizer", lambda v: isinstance(v, str), "the name of an optimizer of Keras"),
    ("optimizer_options", lambda v: isinstance(v, dict), "names and values"),
    ("weight_decay", lambda v: v >= 0, "at least 0"),
    ("l2_sp", lambda v: v >= 0, "at least 0"),
    ("clip_norm", _positive, "above 0"),
    ("accumulate", _natural, "a whole number above 0"),
    ("ema", _share, "at least 0 and below 1"),
    ("batch_size", _natural, "a whole number above 0"),
    ("image_size", _natural, "a whole number above 0"),
    ("mix", lambda v: v in MIXES, f"one of {', '.join(MIXES)}"),
    ("mix_alpha", _positive, "above 0"),
    ("batch_norm", lambda v: v in BATCH_NORM_POLICIES, f"one of {BATCH_NORM_POLICIES}"),
    ("dropout", _share, "at least 0 and below 1"),
    ("label_smoothing", _share, "at least 0 and below 1"),
    (
        "class_weights",
        lambda v: v == "balanced" or all(x > 0 for x in v.values()),
        "'balanced' or a weight above 0 for each class",
    ),
    ("early_stopping", _natural, "a whole number above 0"),
    ("solver", lambda v: v in SOLVERS, f"one of {', '.join(SOLVERS)}"),
    ("views", _natural, "a whole number above 0"),
)
_NUMBERS = [
    "learning_rate",
    "warmup",
    "drop_factor",
    "lowest_rate",
    "weight_decay",
    "l2_sp",
    "clip_norm",
    "ema",
    "mix_alpha",
    "dropout",
    "label_smoothing",
]
_OPTIONAL = [
    "epochs",
    "steps",
    "clip_norm",
    "batch_size",
    "image_size",
    "mix",
    "mix_alpha",
    "dropout",
    "label_smoothing",
    "class_weights",
    "early_stopping",
    "views",
]
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
        name: the recipe's name, or the user's.
        phases: at least one.
        pretrained: False where the backbone starts from random weights.
        zero_head: True where the head's last layer starts from zeros (BiT).
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
        """The same with some fields of its phases replaced.

        Args:
            settings: `"PHASE.FIELD"` → value; `"*.FIELD"` means every phase.

        Raises:
            InputError: no such phase or field, or a value out of its range.
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
                change["steps" if name == "epochs" else "epochs"] = None  # one of the two
            if change == {"solver": "logistic"}:
                change |= {"epochs": 1, "steps": None}  # it has no others
            for each in phases if where == "*" else [where]:
                phases[each] = replace(phases[each], **change)
        return replace(self, phases=tuple(phases.values()))

    def to_dict(self) -> dict:
        """Plain data for YAML and JSON; `from_dict` takes it back."""
        data = asdict(self)
        data["phases"] = [{**phase, "drops": list(phase["drops"])} for phase in data["phases"]]
        return data

    @classmethod
    def from_dict(cls, data: dict) -> "Schedule":
        """Raises InputError where a key is unknown or missing, or a value out of its range."""
        try:
            phases = tuple(Phase(**phase) for phase in data["phases"])
            return cls(**{**data, "phases": phases})
        except (KeyError, TypeError) as error:
            reason = str(error).replace("Phase.__init__() ", "").replace("Schedule.__init__() ", "")
            raise InputError(f"This is no schedule: {reason}.") from None

    def to_yaml(self) -> str:
        """YAML text, every number written out. `from_yaml` takes it back."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, path) -> "Schedule":
        """Reads a file of `to_yaml`, or one written by hand (a phase needs its name and epochs).

        Raises:
            InputError: no such file, no YAML, or no schedule; the message names the file.
        """
        import yaml

        path = Path(path)
        if not path.is_file():
            raise InputError(f"No schedule file {path}.")
        try:
            return cls.from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        except yaml.YAMLError as error:
            raise InputError(f"{path} is no YAML: {error}") from None
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def table(self) -> str:
        """A line a phase, for people; `plans.Plan.table` says it for one model and data set."""
        lines = [f"{'phase':<12}{'frozen':<12}{'length':<12}{'rate':<10}{'shape':<11}{'more'}"]
        for phase in self.phases:
            length = f"{phase.epochs} epochs" if phase.epochs else f"{phase.steps} steps"
            lines.append(
                f"{phase.name:<12}{phase.freeze!s:<12}{length:<12}{phase.learning_rate:<10.3g}"
                f"{phase.shape:<11}{', '.join(differences(phase))}"
            )
        return "\n".join(lines)


_SHOWN = ("freeze", "epochs", "steps", "learning_rate", "shape")


def differences(phase: Phase, without=()) -> list[str]:
    """`field=value` of what differs from the defaults and has no column of its own in a table."""
    plain = Phase(phase.name, epochs=1)
    return [
        f"{name}={getattr(phase, name)}"
        for name in PHASE_FIELDS
        if name not in (*_SHOWN, *without) and getattr(phase, name) != getattr(plain, name)
    ]
