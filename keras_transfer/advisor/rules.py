"""From facts of the data to a backbone and a strategy: the rules, as a pure function."""

from dataclasses import dataclass, field, replace

from keras_transfer.errors import InputError
from keras_transfer.schedules.recipes import default_epochs, resolve_schedule

POLICIES = ("evidence", "classical")
DEFAULT_POLICY = "evidence"
MINUTES = 30.0  # that training may take, where nobody said

# Shift of activations (`likeness.activation_shift`): insects, a part of ImageNet, have 0.01 to
# 0.03, hands on white 0.11 to 0.16, digits 0.19 and more. Set with seed 0 of `scripts/regret.py`.
SIMILAR, DIFFERENT = 0.05, 0.09
# Images, and images a class.
SMALL, SMALL_CLASS = 2000, 20
LARGE, LARGE_CLASS = 20_000, 100
FEW, FEW_CLASS = 20, 5  # of fewer a real signal is missed too often to say that there is none
FEW_A_CLASS = 50  # more augmentation below
BOLD_RATE = 1e-3  # where the features have to change
BOLD_IMAGES = 14_000  # seen over all epochs, at least, and
BOLD_EPOCHS = 200  # at most so many epochs for it

# The field's four scenarios: (size, likeness) → strategy.
CLASSICAL = {
    ("small", "similar"): ("feature_extraction", {}),
    ("small", "different"): ("freeze_k", {"k": 1 / 3}),
    ("large", "similar"): ("lp_ft", {}),
    ("large", "different"): ("from_scratch", {}),
}

# With less time than the choice takes, in this order.
CHEAPER: tuple[tuple[str, dict], ...] = (
    ("freeze_k", {"k": 1 / 3}),
    ("freeze_k", {"k": 2 / 3}),
    ("feature_extraction", {}),
)
# All that can come out.
STRATEGIES = ("feature_extraction", "freeze_k", "lp_ft", "from_scratch")


@dataclass(frozen=True)
class Facts:
    """What is known of the data and the backbones before anything is trained.

    Attributes:
        images, classes: of the training part; `least` and `most` are those of its smallest and
            largest class.
        shift: see `likeness.activation_shift`; None where no backbone has one.
        signal: the features say something about the labels.
        ranked: names of backbones, the one to take first.
        tied: how many of them, from the first, are not told apart by their features.
        probe: accuracy of a linear probe on the first one's features; None where it cannot be had.
        mirror: a mirror image shows the same class, as far as can be told.
    """

    images: int
    classes: int
    least: int
    most: int
    shift: float | None
    signal: bool
    ranked: tuple[str, ...]
    tied: int = 1
    probe: float | None = None
    mirror: bool = True

    @property
    def size(self) -> str:
        """`"small"`, `"medium"` or `"large"`."""
        a_class = self.images / self.classes
        if self.images < SMALL or a_class < SMALL_CLASS:
            return "small"
        return "large" if self.images >= LARGE and a_class >= LARGE_CLASS else "medium"

    @property
    def likeness(self) -> str:
        """`"similar"`, `"between"`, `"different"`, or `"unknown"`."""
        if self.shift is None:
            return "unknown"
        if self.shift < SIMILAR:
            return "similar"
        return "different" if self.shift > DIFFERENT else "between"


@dataclass(frozen=True)
class Choice:
    """A backbone and a schedule.

    Attributes:
        backbone: a name of the table or a source model.
        strategy: a name of `recipes.RECIPES`.
        overrides: as `Trainer` takes them.
        augment: as `Trainer` takes it.
        why: in plain words.
        seconds: estimated time of training on this machine; None where no batch was timed.
    """

    backbone: str
    strategy: str
    overrides: dict = field(default_factory=dict)
    augment: str | dict = "light"
    why: str = ""
    seconds: float | None = None

    def to_dict(self) -> dict:
        return {
            "backbone": self.backbone,
            "strategy": self.strategy,
            "overrides": self.overrides,
            "augment": self.augment,
            "seconds": self.seconds,
            "why": self.why,
        }

    def __str__(self):
        numbers = "".join(
            f" {key}={value:.3g}" if isinstance(value, float) else f" {key}={value}"
            for key, value in self.overrides.items()
        )
        return f"{self.backbone} {self.strategy}{numbers}"

    @property
    def with_time(self) -> str:
        """In words, with the time it takes where that was estimated."""
        if self.seconds is None:
            return str(self)
        seconds = self.seconds
        shown = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
        return f"{self}, about {shown}"

    @property
    def kind(self) -> tuple:
        """Equal for choices that differ only in numbers of the training."""
        return self.strategy, self.overrides.get("k")


def choose(facts: Facts, policy: str = DEFAULT_POLICY) -> tuple[Choice, ...]:
    """The choices for these facts, the best first; a second one is worth a race against the first.

    Args:
        policy: `"classical"`: the matrix of the field's textbooks, size by likeness, the same
            backbone for all; or `"evidence"`: what was best on real tasks (`scripts/regret.py`).

    Raises:
        InputError: no such policy.
    """
    if policy not in POLICIES:
        raise InputError(f"Unknown policy '{policy}': give one of {', '.join(POLICIES)}.")
    best = facts.ranked[0]
    if not facts.signal:
        few = facts.images < FEW or facts.images / facts.classes < FEW_CLASS
        why = (
            "so few images show no signal, nor that there is none: the cheapest choice; more "
            "images would tell"
            if few
            else "the features carry no signal for these labels, so nothing is gained by training "
            "longer: the cheapest choice; look at the labels first"
        )
        return (Choice(best, "feature_extraction", {}, "none", why),)
    found = (_classical if policy == "classical" else _evidence)(facts)
    return tuple(replace(choice, augment=_augment(facts)) for choice in found)


def _augment(facts):
    """More of it where few images would be learned by heart (docs/data-augmentation.md)."""
    preset = "medium" if facts.images / facts.classes < FEW_A_CLASS else "light"
    return preset if facts.mirror else {"preset": preset, "flip": False}


def check_overrides(overrides: dict) -> None:
    """Refuses numbers that not every strategy has, before one is chosen.

    Raises:
        InputError: such a number, or one out of its range.
    """
    for strategy in STRATEGIES:
        try:
            resolve_schedule(strategy, overrides)
        except InputError as error:
            raise InputError(
                f"The advisor may choose {strategy}: {error} Name a strategy to set numbers of its own."
            ) from None


def _classical(facts):
    strategy, overrides = CLASSICAL.get((facts.size, facts.likeness), ("lp_ft", {}))
    where = f"{facts.size} and {facts.likeness}"
    why = f"textbook: {where}"
    if (facts.size, facts.likeness) not in CLASSICAL:
        why = f"between the textbook's scenarios ({where}): everything, from pretrained weights"
    return (Choice(facts.ranked[0], strategy, overrides, why=why),)


def _evidence(facts):
    """LP-FT, whose rate depends on the likeness: on few images nothing else was better by more
    than chance, the textbook's head alone for what looks familiar included."""
    best = facts.ranked[0]
    similar = facts.likeness == "similar"
    rate = {} if similar else {"learning_rate": BOLD_RATE, **_longer(facts.images)}
    because = {
        "similar": "the images look like those of the pretraining: every layer is trained, gently",
        "between": "the images differ somewhat from those of the pretraining",
        "different": "the images differ from those of the pretraining: every layer has to adapt",
        "unknown": "it cannot be told how much the images look like those of the pretraining",
    }[facts.likeness]
    first = Choice(
        best, "lp_ft", rate, why=f"{because}; the head first, so that it does not wreck them"
    )
    if facts.tied > 1:
        other = replace(
            first, backbone=facts.ranked[1], why="its features are as good, as far as can be told"
        )
    elif similar:
        other = Choice(best, "feature_extraction", why="its features may fit as they are")
    else:
        other = Choice(best, "freeze_k", {"k": 1 / 3, **rate}, why="the first layers are general")
    return (first, other)


def _longer(images):
    """Epochs beyond the recipe's, which is a compromise, where few images have to change much: 50
    hands were named rightly in 89 % rather than 81 to 85 % after 200 epochs rather than 57."""
    epochs = min(BOLD_EPOCHS, round(BOLD_IMAGES / max(1, images)))
    return {"epochs": epochs} if epochs > default_epochs(images) else {}
