"""The search space as plain data, and the training that each of its points stands for (no Keras)."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.modalities import plain_augmentation, resolve_augmentation
from keras_transfer.modalities.image.augment import AUGMENTATIONS
from keras_transfer.schedules.phases import PHASE_FIELDS, Schedule
from keras_transfer.utils.documents import read_yaml

# Searched by default; a space can add fields of phases.
PARAMETERS = ("learning_rate", "lowest_rate", "k", "dropout", "augment")
_LOGARITHMIC = ("learning_rate", "lowest_rate", "weight_decay", "l2_sp")
_WHOLE = ("k", "epochs", "steps", "patience", "batch_size", "accumulate", "early_stopping", "views")
_PRESETS = ("none", "light", "medium", "heavy")
_LIMITS = {
    "learning_rate": (lambda x: x > 0, "above 0"),
    "lowest_rate": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "k": (lambda x: isinstance(x, int) and x >= 0, "whole numbers of stages, 0 or more"),
    "dropout": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
}


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, inclusive; `log` samples their logarithm uniformly."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def nearest(self, value):
        """Return the number in the range that is closest to `value`."""
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else float(value)


@dataclass(frozen=True)
class Choice:
    """Unordered values; a single value is fixed rather than searched."""

    values: tuple

    def nearest(self, value):
        """Return `value` if it is a choice, else the first choice."""
        return value if value in self.values else self.values[0]


Space = dict[str, Range | Choice]


def read_space(space: dict) -> Space:
    """Parse a search space: `{"k": 3, "augment": ["none", "light"], "dropout": {"low": 0, …}}`.

    Args:
        space: name → a value (fixed), a list (one of them), or `{"low", "high"}` with an optional
            `"log"`. A name is one of `PARAMETERS` or PHASE.FIELD (a field of a phase; `*.` means
            all phases).

    Raises:
        InputError: an unknown name, or an invalid range.
    """
    if not isinstance(space, dict):
        raise InputError(f"A search space must map names to ranges, not be {space!r}.")
    return {name: _read(name, value) for name, value in space.items()}


def _read(name, value):
    _, dot, field = str(name).rpartition(".")
    if (dot and (field not in PHASE_FIELDS or field == "name")) or (
        not dot and name not in PARAMETERS
    ):
        raise InputError(
            f"Cannot search {name}: choose from {', '.join(PARAMETERS)}, or PHASE.FIELD with a field "
            f"of a phase ({', '.join(PHASE_FIELDS[1:])})."
        )
    if isinstance(value, dict):
        part = _range(name, field, value)
        numbers = (part.low, part.high)
    else:
        numbers = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        plain = all(isinstance(x, (str, int, float)) for x in numbers)
        if not numbers or not plain or len(set(numbers)) < len(numbers):
            raise InputError(
                f"{name}: the values must be different texts or numbers, not {value!r}."
            )
        part = Choice(numbers)
    if name in _LIMITS:
        allowed, limits = _LIMITS[name]
        if not all(isinstance(x, (int, float)) and allowed(x) for x in numbers):
            raise InputError(f"{name} must be {limits}, not {value!r}.")
    return part


def _range(name, field, value):
    unknown = value.keys() - {"low", "high", "log"}
    low, high = value.get("low"), value.get("high")
    numbers = all(isinstance(x, (int, float)) and math.isfinite(x) for x in (low, high))
    if unknown or not numbers or isinstance(low, bool) or low > high or name == "augment":
        raise InputError(f"{name}: a range needs numbers low and high, low ≤ high, not {value!r}.")
    log = value.get("log", field in _LOGARITHMIC and low > 0)
    if log and low <= 0:
        raise InputError(f"{name}: on a logarithmic scale low must be above 0, not {low!r}.")
    if field in _WHOLE:
        return Range(low, high, bool(log), whole=True)
    return Range(float(low), float(high), bool(log))


def plain_space(space: Space) -> dict:
    """Return a space as plain data, for a file."""
    return {
        name: list(part.values) if isinstance(part, Choice) else asdict(part)
        for name, part in space.items()
    }


def check_base(schedule: Schedule) -> None:
    """Raise InputError unless a search can vary the last phase of a schedule."""
    *before, last = schedule.phases
    searchable = last.freeze != "all" and all(phase.freeze == "all" for phase in before)
    if not schedule.pretrained or not searchable:
        raise InputError(
            f"Cannot search around '{schedule.name}': choose lp_ft, freeze_k, discriminative or "
            "fine_tune, or a schedule in which one phase follows phases of the head alone."
        )


def check_fields(space: Space, schedule: Schedule) -> None:
    """Raise InputError for a PHASE.FIELD that the schedule lacks, or that is out of range."""
    for name, part in space.items():
        if "." in name:
            for value in (part.low, part.high) if isinstance(part, Range) else part.values:
                schedule.override({name: value})


class Search:
    """The space around a schedule: its default point, and the training for each point.

    Args:
        schedule: the default; see `check_base`.
        frozen: number of leading stages that the last phase of the schedule freezes.
        stages: number of stages of the backbone.
        augment: of the trainer, see `resolve_augmentation`.
        dropout: of the head; None if it was built without.
        closed_form: True if the head has a closed form.
        space: ranges that replace or extend the default ones, see `read_space`.

    Attributes:
        space: name → `Range` or `Choice`.
        default: name → the value in the schedule, or the nearest one in the space.

    Raises:
        InputError: see `read_space`, `check_base` and `check_fields`; `k` exceeds the number of
            stages; an unknown augmentation.
    """

    def __init__(self, schedule, *, frozen, stages, augment, dropout, closed_form, space=None):
        check_base(schedule)
        self.schedule, self.stages, self.closed_form = schedule, stages, closed_form
        self.augmentations, augmentation = _augmentations(augment)
        last = schedule.phases[-1]
        current = {
            "learning_rate": last.learning_rate,
            "lowest_rate": last.lowest_rate,
            "k": frozen,
            "dropout": dropout if last.dropout is None else last.dropout,
            "augment": augmentation,
        }
        ranges: Space = {
            "learning_rate": Range(last.learning_rate / 10, last.learning_rate * 10, log=True),
            "lowest_rate": Range(min(0.01, last.lowest_rate), 1.0, log=True),
            "k": Range(0, stages, whole=True),
            "dropout": Range(0.0, max(0.5, current["dropout"] or 0.0)),
            "augment": Choice(tuple(self.augmentations)),
        }
        requested = read_space(space or {})
        check_fields(requested, schedule)
        if not dropout:
            if "dropout" in requested:
                raise InputError("Cannot search dropout: the head was built with dropout 0.")
            del ranges["dropout"], current["dropout"]
        self.space = {**ranges, **requested}
        for name in requested.keys() - current.keys():
            phase_name, _, field = name.rpartition(".")
            phase = next((p for p in schedule.phases if p.name == phase_name), last)
            current[name] = getattr(phase, field)
        self._check()
        self.default = {
            name: part.nearest(_lowest(part) if current[name] is None else current[name])
            for name, part in self.space.items()
        }

    def _check(self):
        depth = self.space["k"]
        most = depth.high if isinstance(depth, Range) else max(depth.values)
        if most > self.stages:
            raise InputError(f"k: {most} stages cannot be frozen, the backbone has {self.stages}.")
        unknown = [x for x in self.space["augment"].values if x not in self.augmentations]
        if unknown:
            raise InputError(
                f"Unknown augment {', '.join(map(str, unknown))}: choose from "
                f"{', '.join(self.augmentations)}."
            )

    def training(self, values: dict) -> tuple[Schedule, str | dict]:
        """Return (schedule, augmentation) for a point of the space.

        If all stages are frozen, only the head is trained: in closed form if it has one.
        """
        *before, last = self.schedule.phases
        k = values["k"]
        if k == self.stages and self.closed_form:
            head = {"freeze": "all", "solver": "logistic", "epochs": 1, "steps": None}
            phases = (replace(last, name="head", **head),)
        else:
            freeze = "all" if k == self.stages else f"stage:{k}" if k else "none"
            rates = {name: values[name] for name in ("learning_rate", "lowest_rate")}
            phases = (*before, replace(last, freeze=freeze, **rates))
        schedule = Schedule("tuned", phases, zero_head=self.schedule.zero_head)
        fields = {name: value for name, value in values.items() if "." in name}
        if "dropout" in values:
            fields = {"*.dropout": values["dropout"], **fields}
        names = ("*", *(phase.name for phase in phases))
        fields = {name: value for name, value in fields.items() if name.rpartition(".")[0] in names}
        return schedule.override(fields), self.augmentations[values["augment"]]


def _lowest(part):
    return part.low if isinstance(part, Range) else part.values[0]


def _augmentations(augment) -> tuple[dict, str]:
    """Return (name → augmentation, name of the given one): the presets, and the given one if it is
    another. The presets do not flip images if the given one does not."""
    given = resolve_augmentation(augment)
    flips = given.flip or given == AUGMENTATIONS["none"]
    choices: dict = {
        name if flips or name == "none" else f"{name} without flip": name
        if flips or name == "none"
        else {"preset": name, "flip": False}
        for name in _PRESETS
    }
    for name, preset in choices.items():
        if resolve_augmentation(preset) == given:
            return choices, name
    name = augment if isinstance(augment, str) and augment in AUGMENTATIONS else "given"
    return {name: plain_augmentation(augment), **choices}, name


def space_of(file: Path | None, pairs: Iterable[str] | None) -> dict:
    """Return the space, as `read_space` takes it, from a YAML file and from NAME=… pairs.

    Args:
        file: a .yaml file, or None.
        pairs: `NAME=LOW..HIGH`, `NAME=A,B,C` or `NAME=VALUE`; they override the file.

    Raises:
        InputError: a missing or invalid file, or an invalid pair.
    """
    space = {} if file is None else _space_in(file)
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        low, dots, high = text.partition("..")
        if not equals or not text:
            raise InputError(
                f"--search {pair}: expected NAME=LOW..HIGH, NAME=A,B,C or NAME=VALUE, e.g. "
                "--search learning_rate=1e-5..1e-3."
            )
        if dots:
            space[name] = {"low": _typed(low), "high": _typed(high)}
        else:
            values = [_typed(part) for part in text.split(",")]
            space[name] = values if len(values) > 1 else values[0]
    return space


def _space_in(file):
    if not file.is_file():
        raise InputError(f"Search space not found: {file}. Give a .yaml file.")
    space = read_yaml(file)
    if not isinstance(space, dict):
        raise InputError(f"{file} is not a search space: it must map names to ranges.")
    # YAML reads 1e-4, which has no dot, as text.
    for part in space.values():
        if isinstance(part, dict):
            part |= {key: _typed(x) for key, x in part.items() if isinstance(x, str)}
    return space


def _typed(text):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip()


def format_values(values: dict) -> str:
    """Return a point of the space as one line of text."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )
