"""Rules that turn facts about the data into a backbone and a strategy.

They are a pure function, `choose`. This module also lists the candidate backbones. It needs neither
the data nor Keras.
"""

from dataclasses import dataclass, field, replace

from keras_transfer.errors import InputError
from keras_transfer.models.sources.applications import BACKBONES, find_spec, weights_path
from keras_transfer.schedules.recipes import AUTO, default_epochs, resolve_schedule
from keras_transfer.training.config import POLICIES, TrainConfig
from keras_transfer.utils.console import say
from keras_transfer.utils.names import require_image_size

DEFAULT_POLICY = TrainConfig.policy
MINUTES = TrainConfig.minutes  # default limit of the training time

# Candidates if no weights are on this machine: small and medium-sized backbones.
SHORTLIST = ("mobilenet_v2", "efficientnet_v2_b0", "resnet50")
_MAX_CANDIDATES = 6

# Limits of `activation_shift`. Insects, which are part of ImageNet, have 0.01 to 0.03, hands on white
# 0.11 to 0.16, and digits 0.19 or more. Set with seed 0 of `scripts/regret.py`.
SIMILAR, DIFFERENT = 0.05, 0.09
# Numbers of images, and of images per class.
SMALL, SMALL_CLASS = 2000, 20
LARGE, LARGE_CLASS = 20_000, 100
FEW, FEW_CLASS = 20, 5  # with fewer, the test misses real signals too often to report "no signal"
MORE_AUGMENTATION_BELOW = 50  # images per class
BOLD_RATE = 1e-3  # learning rate if the features have to change
BOLD_IMAGES = 14_000  # minimum number of images seen over all epochs at that rate
BOLD_EPOCHS = 200  # maximum number of epochs to reach it

# The four scenarios of the textbooks: (size, likeness) → strategy.
CLASSICAL = {
    ("small", "similar"): ("feature_extraction", {}),
    ("small", "different"): ("freeze_k", {"k": 1 / 3}),
    ("large", "similar"): ("lp_ft", {}),
    ("large", "different"): ("from_scratch", {}),
}

# Replacements that are tried in this order if the choice exceeds the time limit.
CHEAPER: tuple[tuple[str, dict], ...] = (
    ("freeze_k", {"k": 1 / 3}),
    ("freeze_k", {"k": 2 / 3}),
    ("feature_extraction", {}),
)
# Every strategy that the rules can choose.
STRATEGIES = ("feature_extraction", "freeze_k", "lp_ft", "from_scratch")

_LIKENESS_REASONS = {
    "similar": "The images resemble those of the pretraining, so every layer is trained at a low "
    "learning rate.",
    "between": "The images differ somewhat from those of the pretraining, so every layer is trained.",
    "different": "The images differ from those of the pretraining, so every layer has to adapt.",
    "unknown": "The similarity to the pretraining images is unknown, so every layer is trained.",
}
_HEAD_FIRST = "The head is trained first, so that it does not damage the pretrained layers."


@dataclass(frozen=True)
class Facts:
    """Facts about the data and the backbones that are known before training.

    Attributes:
        images, classes: numbers of training images and classes.
        smallest_class, largest_class: numbers of training images.
        shift: result of `activation_shift`; None if the backbone has no BatchNorm.
        signal: True if the features predict the labels better than chance.
        ranked: names of the backbones, best first.
        tied: how many of the first backbones have features of equal quality within the error.
        mirror: True unless mirror images are recognized less well.
    """

    images: int
    classes: int
    smallest_class: int
    largest_class: int
    shift: float | None
    signal: bool
    ranked: tuple[str, ...]
    tied: int = 1
    mirror: bool = True

    @property
    def per_class(self) -> float:
        """Mean number of training images per class."""
        return self.images / self.classes

    @property
    def size(self) -> str:
        """`"small"`, `"medium"` or `"large"`."""
        if self.images < SMALL or self.per_class < SMALL_CLASS:
            return "small"
        return "large" if self.images >= LARGE and self.per_class >= LARGE_CLASS else "medium"

    @property
    def likeness(self) -> str:
        """Similarity to the pretraining images: `"similar"`, `"between"`, `"different"` or `"unknown"`."""
        if self.shift is None:
            return "unknown"
        if self.shift < SIMILAR:
            return "similar"
        return "different" if self.shift > DIFFERENT else "between"


@dataclass(frozen=True)
class Choice:
    """A backbone and a schedule.

    Attributes:
        backbone: a backbone name or the path of a source model.
        strategy: a name of `recipes.RECIPES`.
        overrides, augment: arguments of `Trainer`.
        why: the reason, in complete sentences.
        seconds: estimated training time on this machine; None if it was not estimated.
    """

    backbone: str
    strategy: str
    overrides: dict = field(default_factory=dict)
    augment: str | dict = "light"
    why: str = ""
    seconds: float | None = None

    def to_dict(self) -> dict:
        """Return plain data for JSON."""
        return dict(vars(self))

    def __str__(self):
        return f"{self.backbone} {self.recipe}"

    @property
    def recipe(self) -> str:
        """The strategy and its overrides as text."""
        settings = "".join(
            f" {key}={value:.3g}" if isinstance(value, float) else f" {key}={value}"
            for key, value in self.overrides.items()
        )
        return f"{self.strategy}{settings}"

    @property
    def time(self) -> str:
        """The estimated training time as text; empty if it was not estimated."""
        if self.seconds is None:
            return ""
        return f"{self.seconds:.0f} s" if self.seconds < 100 else f"{self.seconds / 60:.0f} min"

    @property
    def kind(self) -> tuple:
        """Equal for choices that differ only in the numbers of the training."""
        return self.strategy, self.overrides.get("k")


def choose(facts: Facts, policy: str = DEFAULT_POLICY) -> tuple[Choice, ...]:
    """Return the choices for these facts, best first; a second one is worth a race with the first.

    Args:
        policy: `"evidence"`, which was best on real tasks (`scripts/regret.py`), or `"classical"`,
            the textbooks' matrix of size and similarity, which treats all backbones the same way.

    Raises:
        InputError: the policy is unknown.
    """
    check_policy(policy)
    if not facts.signal:
        if facts.images < FEW or facts.per_class < FEW_CLASS:
            why = (
                "There are too few images to tell whether the features carry a signal for these "
                "labels, so the cheapest strategy is used. More images would tell."
            )
        else:
            why = (
                "The features carry no signal for these labels, so longer training would gain "
                "nothing and the cheapest strategy is used. Check the labels first."
            )
        return (Choice(facts.ranked[0], "feature_extraction", {}, "none", why),)
    choices = _classical(facts) if policy == "classical" else _evidence(facts)
    return tuple(replace(choice, augment=_augment(facts)) for choice in choices)


def check_policy(policy: str) -> None:
    """Raise InputError if the policy is unknown."""
    if policy not in POLICIES:
        raise InputError(f"Unknown policy '{policy}'. Choose one of {', '.join(POLICIES)}.")


def _augment(facts):
    """Augment more if there are few images, which would be memorized (docs/data-augmentation.md)."""
    preset = "medium" if facts.per_class < MORE_AUGMENTATION_BELOW else "light"
    return preset if facts.mirror else {"preset": preset, "flip": False}


def _classical(facts):
    case = facts.size, facts.likeness
    if case in CLASSICAL:
        why = f"This is the textbook rule for a {facts.size} dataset with {facts.likeness} images."
    else:
        why = (
            f"The textbook has no rule for this case (size {facts.size}, similarity "
            f"{facts.likeness}), so every layer is trained from the pretrained weights."
        )
    strategy, overrides = CLASSICAL.get(case, ("lp_ft", {}))
    return (Choice(facts.ranked[0], strategy, overrides, why=why),)


def _evidence(facts):
    """Return LP-FT with a learning rate that depends on the similarity.

    On few images no other strategy was significantly better, including the textbooks' training of the
    head alone on images that resemble those of the pretraining.
    """
    best = facts.ranked[0]
    similar = facts.likeness == "similar"
    rate = {} if similar else {"learning_rate": BOLD_RATE, **_more_epochs(facts.images)}
    why = f"{_LIKENESS_REASONS[facts.likeness]} {_HEAD_FIRST}"
    first = Choice(best, "lp_ft", rate, why=why)
    if facts.tied > 1:
        why = "Its features are as good within the error."
        other = replace(first, backbone=facts.ranked[1], why=why)
    elif similar:
        other = Choice(best, "feature_extraction", why="The features may fit without training.")
    else:
        why = "The first layers are often general enough."
        other = Choice(best, "freeze_k", {"k": 1 / 3, **rate}, why=why)
    return (first, other)


def _more_epochs(images):
    """Return more epochs than the recipe's compromise if few images have to change the features.

    On 50 images of hands, accuracy was 89 % after 200 epochs and 81 to 85 % after 57.
    """
    epochs = min(BOLD_EPOCHS, round(BOLD_IMAGES / max(1, images)))
    return {"epochs": epochs} if epochs > default_epochs(images) else {}


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


def candidates(image_size: int | None = None) -> list[str]:
    """Return the backbones to compare by default.

    They are at most six whose ImageNet weights are on this machine and that accept the image size,
    those of `SHORTLIST` first, then the smallest. If there are none, `SHORTLIST` itself.
    """
    require_image_size(image_size)
    fitting = [spec for spec in BACKBONES.values() if spec.min_size <= (image_size or spec.size)]
    present = [spec for spec in fitting if weights_path(spec).is_file()]
    if not present:
        return [find_spec(name).name for name in SHORTLIST]
    present.sort(key=lambda spec: (spec.name not in SHORTLIST, spec.parameters))
    names = [spec.name for spec in present]
    if len(names) > _MAX_CANDIDATES:
        skipped = ", ".join(names[_MAX_CANDIDATES:])
        say(f"The advisor compares {_MAX_CANDIDATES} backbones and skips {skipped}.")
    return names[:_MAX_CANDIDATES]


def fallback_backbone(image_size: int | None = None) -> str:
    """Return the backbone to use if nothing can be measured.

    It is the first of the shortlist, or the largest backbone whose weights are on this machine.
    """
    names = candidates(image_size)
    if names[0] in SHORTLIST:
        return names[0]
    return max(names, key=lambda name: BACKBONES[name].parameters)
