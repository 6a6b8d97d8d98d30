"""What a search may vary, as plain data, and which training a choice of values means (no Keras)."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.modalities.image.augment import (
    AUGMENTATIONS,
    plain_augmentation,
    resolve_augmentation,
)
from keras_transfer.schedules.phases import PHASE_FIELDS, Schedule

# What is searched where nothing else is said; the fields of a phase can be added.
PARAMETERS = ("learning_rate", "lowest_rate", "k", "dropout", "augment")
_LOGARITHMIC = ("learning_rate", "lowest_rate", "weight_decay", "l2_sp")
_WHOLE = ("k", "epochs", "steps", "patience", "batch_size", "accumulate", "early_stopping", "views")
_PRESETS = ("none", "light", "medium", "heavy")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both among them; `log`: drawn by their logarithm."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def nearest(self, value):
        """Where the search starts for a default of `value`."""
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else float(value)


@dataclass(frozen=True)
class Choice:
    """Some values, in no order; a single one is not searched."""

    values: tuple

    def nearest(self, value):
        return value if value in self.values else self.values[0]


Space = dict[str, Range | Choice]


def read_space(given: dict) -> Space:
    """A space as people write it: `{"k": 3, "augment": ["none", "light"], "dropout": {"low": 0, …}}`.

    Args:
        given: name → a value (fixed), a list (one of them), or `{"low", "high"}` and, where it
            shall be another than usual, `"log"`. A name is one of `PARAMETERS` or PHASE.FIELD (a
            field of a phase, `*.` for all phases).

    Raises:
        InputError: an unknown name or form; the message says which.
    """
    if not isinstance(given, dict):
        raise InputError(f"A search space holds names and ranges, not {given!r}.")
    return {name: _read(name, value) for name, value in given.items()}


def _read(name, value):
    _, dot, field = str(name).rpartition(".")
    if (dot and (field not in PHASE_FIELDS or field == "name")) or (
        not dot and name not in PARAMETERS
    ):
        raise InputError(
            f"Cannot search {name}: give {', '.join(PARAMETERS)}, or PHASE.FIELD with a field of a "
            f"phase ({', '.join(PHASE_FIELDS[1:])})."
        )
    if isinstance(value, dict):
        found = _range(name, field, value)
    else:
        values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        plain = all(isinstance(x, (str, int, float)) for x in values)
        if not values or not plain or len(set(values)) < len(values):
            raise InputError(f"{name}: give different values, texts or numbers, not {value!r}.")
        found = Choice(values)
    numbers = (found.low, found.high) if isinstance(found, Range) else found.values
    fits = _FITS.get(name)
    if fits and not all(isinstance(x, (int, float)) and fits[0](x) for x in numbers):
        raise InputError(f"{name} must be {fits[1]}, not {value!r}.")
    return found


_FITS = {
    "learning_rate": (lambda x: x > 0, "above 0"),
    "lowest_rate": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "k": (lambda x: isinstance(x, int) and x >= 0, "whole numbers of stages, 0 or more"),
    "dropout": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
}


def _range(name, field, value):
    unknown = value.keys() - {"low", "high", "log"}
    low, high = value.get("low"), value.get("high")
    numbers = all(isinstance(x, (int, float)) and math.isfinite(x) for x in (low, high))
    if unknown or not numbers or isinstance(low, bool) or low > high or name == "augment":
        raise InputError(f"{name}: give low and high, numbers with low ≤ high, not {value!r}.")
    log = value.get("log", field in _LOGARITHMIC and low > 0)
    if log and low <= 0:
        raise InputError(f"{name}: on a logarithmic scale low must be above 0, not {low!r}.")
    whole = field in _WHOLE
    return (
        Range(low, high, bool(log), whole) if whole else Range(float(low), float(high), bool(log))
    )


def plain_space(space: Space) -> dict:
    """The same as plain data, for a file."""
    return {
        name: list(part.values) if isinstance(part, Choice) else asdict(part)
        for name, part in space.items()
    }


def check_base(schedule: Schedule) -> None:
    """Raises InputError for a schedule whose last phase is not the one to search around."""
    *before, last = schedule.phases
    searchable = last.freeze != "all" and all(phase.freeze == "all" for phase in before)
    if not schedule.pretrained or not searchable:
        raise InputError(
            f"Cannot search around '{schedule.name}': give lp_ft, freeze_k, discriminative or "
            "fine_tune, or a schedule in which a last phase follows phases of the head alone."
        )


def check_fields(space: Space, schedule: Schedule) -> None:
    """Raises InputError where a PHASE.FIELD of the space is none of the schedule's, or out of range."""
    for name, part in space.items():
        if "." in name:
            for value in (part.low, part.high) if isinstance(part, Range) else part.values:
                schedule.override({name: value})


class Search:
    """The space around a schedule: where it starts, and what its points are.

    Args:
        schedule: that of the default; see `check_base`.
        frozen: how many leading stages its last phase freezes.
        stages: of the backbone.
        augment: of the trainer, see `data.resolve_augmentation`.
        dropout: of the head; None where it was built without.
        closed: the head has a closed form.
        given: what the user says of the space, see `read_space`; it replaces parts of the default.

    Attributes:
        space: name → `Range` or `Choice`.
        default: name → the schedule's own value, or the nearest one in the space.

    Raises:
        InputError: see `read_space`, `check_base`, `check_fields`; more stages than there are; an
            augmentation that has no such name.
    """

    def __init__(self, schedule, *, frozen, stages, augment, dropout, closed, given=None):
        check_base(schedule)
        self.schedule, self.stages, self.closed = schedule, stages, closed
        self.augmentations, usual = _augmentations(augment)
        last = schedule.phases[-1]
        own = {
            "learning_rate": last.learning_rate,
            "lowest_rate": last.lowest_rate,
            "k": frozen,
            "dropout": dropout if last.dropout is None else last.dropout,
            "augment": usual,
        }
        space: Space = {
            "learning_rate": Range(last.learning_rate / 10, last.learning_rate * 10, log=True),
            "lowest_rate": Range(min(0.01, last.lowest_rate), 1.0, log=True),
            "k": Range(0, stages, whole=True),
            "dropout": Range(0.0, max(0.5, own["dropout"] or 0.0)),
            "augment": Choice(tuple(self.augmentations)),
        }
        given = read_space(given or {})
        check_fields(given, schedule)
        if not dropout:  # no layer, nothing to vary
            if "dropout" in given:
                raise InputError("dropout: this head was built with dropout 0, which has no layer.")
            del space["dropout"], own["dropout"]
        self.space = {**space, **given}
        for name in given.keys() - own.keys():
            where, _, field = name.rpartition(".")
            phase = next((p for p in schedule.phases if p.name == where), last)
            own[name] = getattr(phase, field)
        self._check()
        self.default = {
            name: part.nearest(_lowest(part) if own[name] is None else own[name])
            for name, part in self.space.items()
        }

    def _check(self):
        depth = self.space["k"]
        most = depth.high if isinstance(depth, Range) else max(depth.values)
        if most > self.stages:
            raise InputError(f"k: {most} stages cannot be frozen, there are {self.stages}.")
        unknown = [x for x in self.space["augment"].values if x not in self.augmentations]
        if unknown:
            raise InputError(
                f"augment: {', '.join(map(str, unknown))} is none of {', '.join(self.augmentations)}."
            )

    def training(self, values: dict) -> tuple[Schedule, str | dict]:
        """(schedule, augmentation) that a point of the space means.

        With all stages frozen only the head learns: in closed form where it has one.
        """
        *before, last = self.schedule.phases
        k = values["k"]
        if k == self.stages and self.closed:
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
    """(name → augmentation, name of the given one): the presets, without mirror images where the
    given one has none, and the given one where it is another."""
    given = resolve_augmentation(augment)
    mirrors = given.flip or given == AUGMENTATIONS["none"]
    found = {
        name if mirrors or name == "none" else f"{name} without flip": name
        if mirrors or name == "none"
        else {"preset": name, "flip": False}
        for name in _PRESETS
    }
    for name, other in found.items():
        if resolve_augmentation(other) == given:
            return found, name
    name = augment if isinstance(augment, str) and augment in AUGMENTATIONS else "given"
    return {name: plain_augmentation(augment), **found}, name


def space_of(file: Path | None, pairs: Iterable[str] | None) -> dict:
    """What `read_space` takes, of a YAML file and of pairs as typed, which win over it.

    Args:
        pairs: `NAME=LOW..HIGH`, `NAME=A,B,C` or `NAME=VALUE`.

    Raises:
        InputError: no such file, no YAML, or a pair of another form.
    """
    space = {} if file is None else _space_in(file)
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        low, dots, high = text.partition("..")
        if not equals or not text:
            raise InputError(
                f"--search {pair}: give NAME=LOW..HIGH, NAME=A,B,C or NAME=VALUE, e.g. "
                "--search learning_rate=1e-5..1e-3."
            )
        if dots:
            space[name] = {"low": _typed(low), "high": _typed(high)}
        else:
            values = [_typed(part) for part in text.split(",")]
            space[name] = values if len(values) > 1 else values[0]
    return space


def _space_in(file):
    import yaml

    if not file.is_file():
        raise InputError(f"No search space {file}: give a .yaml file.")
    try:
        space = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise InputError(f"{file} is no YAML: {where}") from None
    if not isinstance(space, dict):
        raise InputError(f"{file} is no search space: it must hold names and ranges.")
    # YAML reads 1e-4, without a dot, as text.
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


def shown_values(values: dict) -> str:
    """A point of a space in a line."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )
