"""The candidates for backbones, and the textbooks' rules as a baseline. Neither needs data or Keras."""

from dataclasses import dataclass, field, fields

from keras_transfer.errors import InputError
from keras_transfer.modalities import Framing, framing_from
from keras_transfer.models.sources.applications import BACKBONES, find_spec, weights_path
from keras_transfer.schedules.recipes import AUTO, resolve_schedule
from keras_transfer.training.config import POLICIES, TrainConfig
from keras_transfer.utils.console import say
from keras_transfer.utils.image_sizes import checked_size, sides

DEFAULT_POLICY = TrainConfig.policy
CLASSICAL_POLICY = "classical"

# Candidates if no weights are on this machine: small and medium-sized backbones.
SHORTLIST = ("mobilenet_v2", "efficientnet_v2_b0", "resnet50")
_MAX_CANDIDATES = 6

# Limits of the textbooks' matrix, which states none. Of `activation_shift`: insects, a part of ImageNet,
# have 0.01 to 0.03, hands on white 0.11 to 0.16, digits 0.19 or more.
SIMILAR, DIFFERENT = 0.05, 0.09
# Numbers of examples, and of examples per class.
SMALL, SMALL_CLASS = 2000, 20
LARGE, LARGE_CLASS = 20_000, 100

# The four scenarios of the textbooks: (size, likeness) → strategy.
CLASSICAL = {
    ("small", "similar"): ("feature_extraction", {}),
    ("small", "different"): ("freeze_k", {"k": 1 / 3}),
    ("large", "similar"): ("lp_ft", {}),
    ("large", "different"): ("from_scratch", {}),
}

# Every strategy that the advisor can choose.
STRATEGIES = ("feature_extraction", "freeze_k", "lp_ft", "from_scratch")


@dataclass(frozen=True)
class Facts:
    """What the textbooks' rules ask of the data.

    Attributes:
        examples: number of training examples.
        per_class: their mean number for each class or label; None for numbers.
        shift: result of `activation_shift`; None if the backbone has no BatchNorm.
    """

    examples: int
    per_class: float | None
    shift: float | None

    @property
    def size(self) -> str:
        """`"small"`, `"medium"` or `"large"`."""
        per_class = self.examples if self.per_class is None else self.per_class
        if self.examples < SMALL or per_class < SMALL_CLASS:
            return "small"
        return "large" if self.examples >= LARGE and per_class >= LARGE_CLASS else "medium"

    @property
    def likeness(self) -> str:
        """Similarity to the pretraining examples: `"similar"`, `"between"`, `"different"` or `"unknown"`."""
        if self.shift is None:
            return "unknown"
        if self.shift < SIMILAR:
            return "similar"
        return "different" if self.shift > DIFFERENT else "between"


@dataclass(frozen=True)
class Choice:
    """A backbone, what it sees, and a schedule.

    Attributes:
        backbone: a backbone name, or several joined by `+`, or the path of a source model.
        strategy: a name of `recipes.RECIPES`.
        overrides, augment: arguments of `Trainer`.
        taps: argument of `build_model`; None leaves it open.
        framing: how an example becomes an input; None leaves it open.
        why: the reason, in complete sentences.
        minutes: estimated training time on this machine; None if it was not estimated.
    """

    backbone: str
    strategy: str
    overrides: dict = field(default_factory=dict)
    augment: str | dict = AUTO
    taps: str | None = None
    framing: Framing | None = None
    why: str = ""
    minutes: float | None = None

    def to_dict(self) -> dict:
        """Return plain data for JSON."""
        values = dict(vars(self))
        framing = values.pop("framing")
        return {**values, **(framing.settings() if framing else {})}

    @classmethod
    def from_dict(cls, values: dict) -> "Choice":
        """Return the choice of which `to_dict` returned the values."""
        size = values.get("image_size")
        known = {spec.name: values[spec.name] for spec in fields(cls) if spec.name in values}
        return cls(**known, framing=framing_from(values).at(size) if size else None)

    def __str__(self):
        seen = [f"taps {self.taps}"] if self.taps else []
        seen += [self.framing.description] if self.framing else []
        return f"{self.backbone} ({', '.join(seen)}) with {self.recipe}"

    @property
    def recipe(self) -> str:
        """The strategy and its overrides as text."""
        settings = "".join(
            f" {key}={value:.3g}" if isinstance(value, float) else f" {key}={value}"
            for key, value in self.overrides.items()
        )
        return f"{self.strategy}{settings}"


def classical(facts: Facts) -> tuple[str, dict, str]:
    """Return (strategy, its numbers, the reason) by the textbooks' matrix of size and similarity."""
    case = facts.size, facts.likeness
    if case in CLASSICAL:
        strategy, overrides = CLASSICAL[case]
        why = f"The textbook's rule for a {facts.size} dataset with {facts.likeness} examples."
        return strategy, dict(overrides), why
    why = (
        f"The textbook has no rule for this case (size {facts.size}, similarity {facts.likeness}): "
        "every layer is trained."
    )
    return "lp_ft", {}, why


def check_policy(policy: str) -> None:
    """Raise InputError if the policy is unknown."""
    if policy not in POLICIES:
        raise InputError(f"Unknown policy '{policy}'. Choose one of {', '.join(POLICIES)}.")


def check_overrides(overrides: dict) -> None:
    """Check overrides that must be valid for every strategy, before one is chosen.

    Raises:
        InputError: a strategy has no such setting, or the value is out of its range.
    """
    for strategy in STRATEGIES:
        try:
            resolve_schedule(strategy, overrides)
        except InputError as error:
            raise InputError(
                f"The advisor may choose {strategy}: {error} Name a strategy to use its own settings."
            ) from None


def named(backbones: str) -> list[str] | None:
    """Return the backbones of a comma-separated option, as `advise` takes them.

    `"auto"` alone is None; among other names it stands for all candidates.
    """
    names = [name.strip() for name in backbones.split(",") if name.strip()]
    if names == [AUTO]:
        return None
    expanded = [each for name in names for each in (candidates() if name == AUTO else [name])]
    return list(dict.fromkeys(expanded))


def candidates(image_size: int | str | None = None) -> list[str]:
    """Return the backbones to compare by default.

    They are at most six whose ImageNet weights are on this machine and that accept the image size,
    those of `SHORTLIST` first, then the smallest. If there are none, `SHORTLIST` itself.
    """
    image_size = checked_size(image_size)
    fitting = [
        spec for spec in BACKBONES.values() if spec.min_size <= min(sides(image_size or spec.size))
    ]
    present = [spec for spec in fitting if weights_path(spec).is_file()]
    if not present:
        return [find_spec(name).name for name in SHORTLIST]
    present.sort(key=lambda spec: (spec.name not in SHORTLIST, spec.parameters))
    names = [spec.name for spec in present]
    if len(names) > _MAX_CANDIDATES:
        skipped = ", ".join(names[_MAX_CANDIDATES:])
        say(f"The advisor compares {_MAX_CANDIDATES} backbones and skips {skipped}.")
    return names[:_MAX_CANDIDATES]


def fallback_backbone(image_size: int | str | None = None) -> str:
    """Return the backbone to use if nothing can be measured.

    It is the first of the shortlist, or the largest backbone whose weights are on this machine.
    """
    names = candidates(image_size)
    if names[0] in SHORTLIST:
        return names[0]
    return max(names, key=lambda name: BACKBONES[name].parameters)
