"""What a comparison found: numbers with intervals, a table, and plain words."""

import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.experiments.examples_saved import Saving, savings
from keras_transfer.experiments.learning_curves import (
    CONFIDENCE,
    Curve,
    Interval,
    common_level,
    slope,
)
from keras_transfer.utils.files import write_text

JSON, IMAGE, TABLE = "comparison.json", "comparison.png", "comparison.md"


@dataclass(frozen=True)
class Advantages:
    """Transfer less training from scratch, each the mean of differences within a seed.

    Attributes:
        start: of the accuracy after the first epoch.
        slope: of the accuracy gained an epoch up to the common level (`curves.slope`); None where
            one of the two learned nothing with some seed.
        asymptote: of the mean accuracy of the last quarter of the epochs.
    """

    start: Interval
    slope: Interval | None
    asymptote: Interval


@dataclass(frozen=True)
class AtSize:
    """Both arms at one size of the training part.

    Attributes:
        a_class: training images a class that were asked for; a smaller class has all of its own.
        images: training images.
        transfer, scratch: a curve for each seed.
        chance: accuracy of always naming the largest class.
    """

    a_class: int
    images: int
    transfer: tuple[Curve, ...]
    scratch: tuple[Curve, ...]
    chance: float

    @cached_property
    def levels(self) -> list[float] | None:
        """For each seed the accuracy that both come to; None where one of them learned nothing."""
        levels = [common_level(pair, self.chance) for pair in zip(self.transfer, self.scratch)]
        known = [level for level in levels if level is not None]
        return known if len(known) == len(levels) else None

    @cached_property
    def advantages(self) -> Advantages:
        pairs = list(zip(self.transfer, self.scratch))
        rise = None
        if self.levels:
            rise = Interval.of(
                [
                    slope(t, level, self.chance) - slope(s, level, self.chance)
                    for (t, s), level in zip(pairs, self.levels)
                ]
            )
        return Advantages(
            start=Interval.of([t.start - s.start for t, s in pairs]),
            slope=rise,
            asymptote=Interval.of([t.asymptote - s.asymptote for t, s in pairs]),
        )

    def epochs_to_level(self, arm: str) -> float | None:
        """Epochs to the common level, mean over the seeds, of `"transfer"` or `"scratch"`."""
        if not self.levels:
            return None
        pairs = zip(getattr(self, arm), self.levels)
        return float(np.mean([curve.epochs_to(level) for curve, level in pairs]))

    def mean(self, arm: str, measure: str) -> float:
        """Mean over the seeds of `start` or `asymptote`."""
        return float(np.mean([getattr(curve, measure) for curve in getattr(self, arm)]))

    def slope(self, arm: str) -> float | None:
        """Mean over the seeds of the slope up to the common level."""
        if not self.levels:
            return None
        pairs = zip(getattr(self, arm), self.levels)
        return float(np.mean([slope(curve, level, self.chance) for curve, level in pairs]))

    @property
    def negative(self) -> bool:
        """Transfer ends worse than training from scratch by more than the seeds explain."""
        return self.advantages.asymptote.sign < 0


@dataclass(frozen=True)
class Comparison:
    """Transfer against training from scratch, at some sizes of the training part.

    Attributes:
        backbone, strategy: what was transferred, and how.
        classes, val_images: number of classes, and of images measured on.
        seeds: one for each curve of a size.
        scratch_budget: epochs from scratch for each epoch of transfer.
        sizes: from the smallest to the largest.
    """

    backbone: str
    strategy: str
    classes: int
    val_images: int
    seeds: tuple[int, ...]
    scratch_budget: float
    sizes: tuple[AtSize, ...]

    @cached_property
    def savings(self) -> list[Saving]:
        """Images saved, for each size."""
        ends = [
            np.array([[curve.asymptote for curve in getattr(size, arm)] for size in self.sizes]).T
            for arm in ("transfer", "scratch")
        ]
        return savings([size.images for size in self.sizes], *ends)

    @property
    def negative(self) -> tuple[int, ...]:
        """The sizes (images a class) with negative transfer."""
        return tuple(size.a_class for size in self.sizes if size.negative)

    def at(self, a_class: int | None = None) -> AtSize:
        """One size, by its images a class; by default the one in the middle.

        Raises:
            InputError: it was not tried.
        """
        if a_class is None:
            return self.sizes[(len(self.sizes) - 1) // 2]
        for size in self.sizes:
            if size.a_class == a_class:
                return size
        tried = ", ".join(str(size.a_class) for size in self.sizes)
        raise InputError(f"{a_class} images a class were not compared; there are {tried}.")

    @property
    def verdict(self) -> str:
        """What follows, a sentence or two for each size."""
        lines = [self._said(size, saving) for size, saving in zip(self.sizes, self.savings)]
        if len(self.seeds) == 1:
            lines.append("One seed: whether any of this is more than chance cannot be told.")
        return "\n".join(lines)

    def _said(self, size, saving):
        where = f"{size.a_class} image{'s' * (size.a_class != 1)} a class: "
        if not self._learned(size):
            return (
                f"{where}neither learned anything that {self.val_images} images can show "
                f"(transfer {_percent(size.mean('transfer', 'asymptote'))}, from scratch "
                f"{_percent(size.mean('scratch', 'asymptote'))}, chance {_percent(size.chance)})."
            )
        found = size.advantages
        parts = [
            _put(found.start, "starts higher", "starts lower", "start"),
            self._put_slope(size),
            _put(found.asymptote, "ends higher", "ends lower", "end"),
        ]
        text = f"{where}transfer {', '.join(parts)}; {_put_saving(saving)}."
        if size.negative:
            text += (
                f" Negative transfer: what {self.backbone} brings with it does harm here. Train from "
                "scratch, or try another backbone, a higher rate or fewer frozen stages."
            )
        return text

    def _learned(self, size):
        """Whether the better arm is above chance by two standard errors."""
        best = max(size.mean(arm, "asymptote") for arm in ("transfer", "scratch"))
        chance = size.chance
        return best > chance + 2 * math.sqrt(chance * (1 - chance) / self.val_images)

    def _put_slope(self, size):
        change = size.advantages.slope
        if change is None:
            return (
                "is the only one to learn" if size.advantages.asymptote.mean > 0 else "learns not"
            )
        level = _percent(float(np.mean(size.levels)))
        own, other = (size.epochs_to_level(arm) for arm in ("transfer", "scratch"))
        shown = f"{level} after {own:.3g} epochs, from scratch after {other:.3g}"
        if change.low is not None and change.sign == 0:
            return f"climbs neither faster nor slower for certain ({shown})"
        if own == other:
            return f"climbs alike ({shown})"
        return f"climbs {'faster' if change.mean > 0 else 'slower'} ({shown})"

    def to_dict(self) -> dict:
        """All numbers as plain data, for JSON; accuracies are 0–1."""
        return {
            "backbone": self.backbone,
            "strategy": self.strategy,
            "classes": self.classes,
            "val_images": self.val_images,
            "chance": self.sizes[0].chance,
            "seeds": list(self.seeds),
            "scratch_budget": self.scratch_budget,
            "confidence": CONFIDENCE,
            "sizes": [
                {
                    "a_class": size.a_class,
                    "images": size.images,
                    **{arm: _plain_arm(size, arm) for arm in ("transfer", "scratch")},
                    "advantages": asdict(size.advantages),
                    "images_saved": asdict(saving),
                    "negative_transfer": size.negative,
                }
                for size, saving in zip(self.sizes, self.savings)
            ],
            "negative_transfer": list(self.negative),
            "verdict": self.verdict,
        }

    def table(self) -> str:
        """Three rows a size, as Markdown: accuracies in percent, differences in points."""
        lines = [
            "| images a class | | start | slope an epoch | epochs to the same level | end | as good as "
            "from scratch with |",
            "|---|---|---|---|---|---|---|",
        ]
        for size, saving in zip(self.sizes, self.savings):
            for arm, name in (("transfer", "transfer"), ("scratch", "from scratch")):
                epochs, rise = size.epochs_to_level(arm), size.slope(arm)
                lines.append(
                    f"| {size.a_class if arm == 'transfer' else ''} | {name} "
                    f"| {100 * size.mean(arm, 'start'):.1f} "
                    f"| {'–' if rise is None else f'{100 * rise:.1f}'} "
                    f"| {'–' if epochs is None else f'{epochs:.1f}'} "
                    f"| {100 * size.mean(arm, 'asymptote'):.1f} | |"
                )
            found = size.advantages
            rise = "–" if found.slope is None else found.slope.points()
            lines.append(
                f"| | **difference** | {found.start.points()} | {rise} | "
                f"| {found.asymptote.points()} | {saving} the images |"
            )
        return "\n".join(lines)

    def draw(self, path, *, a_class: int | None = None, title: str | None = None) -> None:
        """Draws the curves of one size (`at`) and the accuracy at all sizes into a PNG file."""
        from keras_transfer.experiments.comparison_plot import draw

        draw(self, self.at(a_class), Path(path), title)

    def write(self, folder, *, a_class: int | None = None) -> None:
        """Writes `comparison.json`, `comparison.md` and `comparison.png`; `a_class` as in `draw`."""
        folder = Path(folder)
        self.draw(folder / IMAGE, a_class=a_class)
        write_text(folder / TABLE, f"{self}\n")
        write_text(folder / JSON, json.dumps(self.to_dict(), indent=2) + "\n")

    def __str__(self):
        return f"{self.table()}\n\n{self.verdict}"


def _plain_arm(size, arm):
    return {
        "curves": [list(curve.accuracy) for curve in getattr(size, arm)],
        "start": size.mean(arm, "start"),
        "slope": size.slope(arm),
        "epochs_to_level": size.epochs_to_level(arm),
        "asymptote": size.mean(arm, "asymptote"),
    }


def _put(change, higher, lower, what):
    if change.low is not None and change.sign == 0:
        return f"has no certain advantage at the {what} ({change.points()} points)"
    if change.mean == 0:
        return f"is equal at the {what}"
    return f"{higher if change.mean > 0 else lower} ({change.points()} points)"


def _put_saving(saving):
    if saving.bound == "least":
        return f"no size from scratch is as good ({saving} the images)"
    return f"it is as good as from scratch with {saving} the images"


def _percent(share):
    return f"{100 * share:.1f} %"
