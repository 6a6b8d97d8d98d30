"""Schedules as plain data: which part trains, how fast and for how long, phase by phase.

No Keras here, so that a schedule can be read and checked before Keras is imported.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from keras_transfer.errors import InputError


@dataclass(frozen=True)
class Phase:
    """One `compile` + `fit`. Everything about it is written here.

    Attributes:
        name: shown in logs and files.
        freeze: what is frozen, as `keras_transfer.freezing.frozen_stages` takes it.
        epochs: number of passes over the training pictures, ≥ 1.
        learning_rate: highest rate of the phase, > 0.
        warmup: share of the steps in which the rate rises from 0, 0 ≤ warmup < 1.
        weight_decay: of AdamW, ≥ 0.
        batch_norm: `"frozen"` or `"train"`, for the trained part of the backbone.
    """

    name: str
    freeze: str | int | float
    epochs: int
    learning_rate: float
    warmup: float = 0.1
    weight_decay: float = 1e-4
    batch_norm: str = "frozen"

    def __post_init__(self):
        for field, good in (
            ("epochs", isinstance(self.epochs, int) and self.epochs >= 1),
            ("learning_rate", self.learning_rate > 0),
            ("warmup", 0 <= self.warmup < 1),
            ("weight_decay", self.weight_decay >= 0),
            ("batch_norm", self.batch_norm in ("frozen", "train")),
        ):
            if not good:
                raise InputError(
                    f"Phase '{self.name}': {field} cannot be {getattr(self, field)!r}."
                )


@dataclass(frozen=True)
class Schedule:
    """A list of phases, run one after the other.

    Attributes:
        name: the recipe's name, or the user's.
        phases: at least one.
        pretrained: False where the backbone starts from random weights.
    """

    name: str
    phases: tuple[Phase, ...]
    pretrained: bool = True

    def __post_init__(self):
        object.__setattr__(self, "phases", tuple(self.phases))
        if not self.phases:
            raise InputError(f"Schedule '{self.name}' has no phases.")

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    def to_dict(self) -> dict:
        """Plain data for YAML; `from_dict` takes it back."""
        return {
            "name": self.name,
            "pretrained": self.pretrained,
            "phases": [asdict(phase) for phase in self.phases],
        }

    @classmethod
    def from_dict(cls, data: dict) -> "Schedule":
        """Raises InputError where a key is unknown or missing."""
        try:
            phases = [Phase(**phase) for phase in data["phases"]]
            return cls(data["name"], tuple(phases), data.get("pretrained", True))
        except (KeyError, TypeError) as error:
            raise InputError(f"This is no schedule: {error}.") from None


def default_epochs(pictures: int) -> int:
    """Epochs where nobody gave a number: fewer pictures are seen more often, 6 to 18 times.

    So that small data gets enough steps, and large data does not take all day.
    """
    return min(18, max(6, round(14_000 / max(1, pictures))))


def default_rate(pictures: int) -> float:
    """Highest rate for pretrained layers where nobody gave a number: 1e-4 to 1e-3.

    The more pictures, the faster: on a few hundred, a rate that suits thousands destroys more than
    it teaches.
    """
    return min(1e-3, max(1e-4, 6e-7 * pictures))


def feature_extraction(
    pictures: int = 1000, epochs: int | None = None, learning_rate: float = 3e-3
) -> Schedule:
    """The backbone stays as it is; only the new head learns."""
    epochs = default_epochs(pictures) if epochs is None else epochs
    return Schedule("feature_extraction", (Phase("head", "all", epochs, learning_rate),))


def fine_tune(
    pictures: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    head_epochs: int | None = None,
    head_learning_rate: float = 3e-3,
    batch_norm: str = "frozen",
) -> Schedule:
    """The head on frozen features first, then every layer at a lower rate, warmed up, cosine.

    Training everything behind a random head would wreck the features (LP-FT, arXiv:2202.10054).
    `epochs` counts both phases; the head gets a third of them unless `head_epochs` says otherwise.
    """
    epochs = default_epochs(pictures) if epochs is None else epochs
    head_epochs = max(1, epochs // 3) if head_epochs is None else head_epochs
    learning_rate = default_rate(pictures) if learning_rate is None else learning_rate
    if not 0 < head_epochs < epochs:
        raise InputError(f"fine_tune needs at least 2 epochs, one a phase: not {epochs}.")
    return Schedule(
        "fine_tune",
        (
            Phase("head", "all", head_epochs, head_learning_rate),
            Phase(
                "all",
                "none",
                epochs - head_epochs,
                learning_rate,
                warmup=0.2,
                batch_norm=batch_norm,
            ),
        ),
    )


def from_scratch(
    pictures: int = 1000, epochs: int | None = None, learning_rate: float = 1e-3
) -> Schedule:
    """Random weights, everything trains, BatchNorm included: what transfer is measured against."""
    epochs = 3 * default_epochs(pictures) if epochs is None else epochs
    phase = Phase("all", "none", epochs, learning_rate, batch_norm="train", weight_decay=1e-2)
    return Schedule("from_scratch", (phase,), pretrained=False)


RECIPES: dict[str, Callable[..., Schedule]] = {
    recipe.__name__: recipe for recipe in (feature_extraction, fine_tune, from_scratch)
}


def resolve_schedule(schedule: "str | Schedule", **numbers) -> Schedule:
    """A recipe by name with its numbers overridden, or a schedule as it is.

    Args:
        schedule: a name of `RECIPES` or a `Schedule`.
        numbers: arguments of the recipe, among them `pictures`, the number of training pictures,
            from which the default number of epochs follows; None means the default.

    Raises:
        InputError: no recipe has this name.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if schedule not in RECIPES:
        raise InputError(f"Unknown strategy '{schedule}': give one of {', '.join(RECIPES)}.")
    return RECIPES[schedule](**{k: v for k, v in numbers.items() if v is not None})
