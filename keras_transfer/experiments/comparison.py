"""Result of a comparison of transfer with training from scratch: numbers, table, verdict."""

import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.experiments.learning_curves import (
    CONFIDENCE,
    Curve,
    Interval,
    Saving,
    common_level,
    savings,
    slope,
)
from keras_transfer.utils.console import Table, counted
from keras_transfer.utils.files import write_text

JSON, IMAGE, TABLE = "comparison.json", "comparison.png", "comparison.md"
ARMS = {"transfer": "transfer", "scratch": "from scratch"}  # name → label


@dataclass(frozen=True)
class Advantages:
    """Transfer minus training from scratch, each the mean of differences within a seed.

    Attributes:
        start: accuracy after the first epoch.
        slope: accuracy gained per epoch up to the common level; None if an arm learned nothing
            with a seed.
        asymptote: mean accuracy of the last quarter of the epochs.
    """

    start: Interval
    slope: Interval | None
    asymptote: Interval


@dataclass(frozen=True)
class AtSize:
    """Both arms at one size of the training split.

    Attributes:
        a_class: requested training images per class (in all, without classes); a smaller class
            contributes all it has.
        images: training images in total.
        transfer, scratch: a curve per seed.
        chance: score of a model that learned nothing, such as always predicting the largest class.
        baseline, baseline_accuracy: name of the simple model that the modality has, and its accuracy for
            each seed; empty without one.
    """

    a_class: int
    images: int
    transfer: tuple[Curve, ...]
    scratch: tuple[Curve, ...]
    chance: float
    baseline: str = ""
    baseline_accuracy: tuple[float, ...] = ()

    def curves(self, arm: str) -> tuple[Curve, ...]:
        """Return the curves of `"transfer"` or `"scratch"`."""
        return getattr(self, arm)

    @cached_property
    def levels(self) -> list[float] | None:
        """For each seed the accuracy that both arms reach; None if an arm learned nothing."""
        levels = [common_level(pair, self.chance) for pair in zip(self.transfer, self.scratch)]
        known = [level for level in levels if level is not None]
        return known if len(known) == len(levels) else None

    def slopes(self, arm: str) -> np.ndarray | None:
        """Return the slope up to the common level for each seed, or None without a level."""
        if not self.levels:
            return None
        pairs = zip(self.curves(arm), self.levels)
        return np.array([slope(curve, level, self.chance) for curve, level in pairs])

    @cached_property
    def advantages(self) -> Advantages:
        pairs = list(zip(self.transfer, self.scratch))
        slopes = [self.slopes(arm) for arm in ARMS]
        return Advantages(
            start=Interval.of([t.start - s.start for t, s in pairs]),
            slope=None if slopes[0] is None else Interval.of(slopes[0] - slopes[1]),
            asymptote=Interval.of([t.asymptote - s.asymptote for t, s in pairs]),
        )

    def slope(self, arm: str) -> float | None:
        """Return the mean slope over the seeds."""
        slopes = self.slopes(arm)
        return None if slopes is None else float(np.mean(slopes))

    def epochs_to_level(self, arm: str) -> float | None:
        """Return the number of epochs to the common level, mean over the seeds."""
        if not self.levels:
            return None
        pairs = zip(self.curves(arm), self.levels)
        return float(np.mean([curve.epochs_to(level) for curve, level in pairs]))

    def mean(self, arm: str, measure: str) -> float:
        """Return the mean of `start` or `asymptote` over the seeds."""
        return float(np.mean([getattr(curve, measure) for curve in self.curves(arm)]))

    @property
    def negative(self) -> bool:
        """True if transfer ends significantly worse than training from scratch."""
        return self.advantages.asymptote.sign < 0


@dataclass(frozen=True)
class Comparison:
    """Transfer against training from scratch, at several sizes of the training split.

    Attributes:
        backbone, strategy: of transfer.
        classes, val_images: number of classes, and of validation images.
        seeds: one per curve of a size.
        scratch_budget: epochs from scratch per epoch of transfer.
        sizes: from the smallest to the largest.
        score: what the curves show, in words.
        each: completes the sizes: " per class", or "" where they count all images.
    """

    backbone: str
    strategy: str
    classes: int
    val_images: int
    seeds: tuple[int, ...]
    scratch_budget: float
    sizes: tuple[AtSize, ...]
    score: str = "accuracy"
    each: str = " per class"

    @cached_property
    def savings(self) -> list[Saving]:
        """Images saved at each size."""
        ends = [
            np.array([[curve.asymptote for curve in size.curves(arm)] for size in self.sizes]).T
            for arm in ARMS
        ]
        return savings([size.images for size in self.sizes], *ends)

    @property
    def negative(self) -> tuple[int, ...]:
        """The sizes (images per class) with negative transfer."""
        return tuple(size.a_class for size in self.sizes if size.negative)

    def at(self, a_class: int | None = None) -> AtSize:
        """Return one size by its images per class; by default the one in the middle.

        Raises:
            InputError: this size was not compared.
        """
        if a_class is None:
            return self.sizes[(len(self.sizes) - 1) // 2]
        for size in self.sizes:
            if size.a_class == a_class:
                return size
        compared = ", ".join(str(size.a_class) for size in self.sizes)
        raise InputError(
            f"{a_class} examples{self.each} were not compared. Choose from {compared}."
        )

    @property
    def verdict(self) -> str:
        """Conclusion for each size, in one or two sentences."""
        lines = [self._conclusion(*pair) for pair in zip(self.sizes, self.savings)]
        if len(self.seeds) == 1:
            lines.append("With one seed, none of these differences can be told from chance.")
        return "\n".join(lines)

    def _conclusion(self, size, saving):
        text = f"{size.a_class} example{'s' * (size.a_class != 1)}{self.each}: "
        best = max(size.mean(arm, "asymptote") for arm in ARMS)
        error = math.sqrt(size.chance * (1 - size.chance) / self.val_images)
        if best <= size.chance + 2 * error:
            return (
                f"{text}neither arm learns anything measurable on {self.val_images} examples "
                f"(transfer {_percent(size.mean('transfer', 'asymptote'))}, from scratch "
                f"{_percent(size.mean('scratch', 'asymptote'))}, chance {_percent(size.chance)})."
            )
        parts = (
            _difference(size.advantages.start, "start"),
            _speed(size),
            _difference(size.advantages.asymptote, "end"),
        )
        text += f"transfer {', '.join(parts)}; training from scratch "
        if saving.bound == "least":
            text += f"is not as good at any size ({saving} the examples)."
        else:
            text += f"needs {saving} the examples."
        if size.negative:
            text += (
                f" Negative transfer: the weights of {self.backbone} hurt here. Train from scratch, "
                "or try another backbone, a higher learning rate or fewer frozen stages."
            )
        return text

    def to_dict(self) -> dict:
        """Return all numbers as plain data, for JSON; scores are at most 1."""
        return {
            "backbone": self.backbone,
            "strategy": self.strategy,
            "score": self.score,
            "sizes_are": f"images{self.each}",
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
                    **{arm: _plain_arm(size, arm) for arm in ARMS},
                    "advantages": asdict(size.advantages),
                    "images_saved": asdict(saving),
                    "negative_transfer": size.negative,
                    **_plain_baseline(size),
                }
                for size, saving in zip(self.sizes, self.savings)
            ],
            "negative_transfer": list(self.negative),
            "verdict": self.verdict,
        }

    def table(self) -> str:
        """Return three rows per size as Markdown: accuracies in percent, differences in points."""
        rows = []
        for size, saving in zip(self.sizes, self.savings):
            for arm, label in ARMS.items():
                epochs, rise = size.epochs_to_level(arm), size.slope(arm)
                rows.append(
                    [
                        size.a_class if arm == "transfer" else "",
                        label,
                        f"{100 * size.mean(arm, 'start'):.1f}",
                        None if rise is None else f"{100 * rise:.1f}",
                        None if epochs is None else f"{epochs:.1f}",
                        f"{100 * size.mean(arm, 'asymptote'):.1f}",
                        "",
                    ]
                )
            if size.baseline:
                end = f"{100 * float(np.mean(size.baseline_accuracy)):.1f}"
                rows.append(["", size.baseline, None, None, None, end, ""])
            found = size.advantages
            rise = None if found.slope is None else found.slope.points()
            ends = [found.asymptote.points(), f"{saving} the examples"]
            rows.append(["", "**difference**", found.start.points(), rise, "", *ends])
        columns = (
            *(f"examples{self.each}", "", "start", "slope per epoch", "epochs to the same level"),
            *("end", "as good as from scratch with"),
        )
        return Table(columns, rows, "l" * len(columns)).markdown()

    def draw(self, path, *, a_class: int | None = None, title: str | None = None) -> None:
        """Draw the curves at one size (see `at`) and the accuracy at all sizes into a PNG file."""
        from keras_transfer.experiments.comparison_plot import draw

        draw(self, self.at(a_class), Path(path), title)

    def write(self, folder, *, a_class: int | None = None) -> None:
        """Write `comparison.json`, `comparison.md` and `comparison.png`; `a_class` as in `draw`."""
        folder = Path(folder)
        self.draw(folder / IMAGE, a_class=a_class)
        write_text(folder / TABLE, f"{self}\n")
        write_text(folder / JSON, json.dumps(self.to_dict(), indent=2) + "\n")

    def __str__(self):
        return f"{self.table()}\n\n{self.verdict}"


def _plain_arm(size, arm):
    return {
        "curves": [list(curve.accuracy) for curve in size.curves(arm)],
        "start": size.mean(arm, "start"),
        "slope": size.slope(arm),
        "epochs_to_level": size.epochs_to_level(arm),
        "asymptote": size.mean(arm, "asymptote"),
    }


def _plain_baseline(size):
    if not size.baseline:
        return {}
    return {"baseline": {"name": size.baseline, "accuracy": list(size.baseline_accuracy)}}


def _difference(change, what):
    if change.uncertain:
        return f"shows no significant advantage at the {what} ({change.points()} points)"
    if change.mean == 0:
        return f"is equal at the {what}"
    return f"{what}s {'higher' if change.mean > 0 else 'lower'} ({change.points()} points)"


def _speed(size):
    change = size.advantages.slope
    if change is None:
        ahead = size.advantages.asymptote.mean > 0
        return "is the only arm that learns" if ahead else "does not learn"
    level = _percent(float(np.mean(size.levels)))
    transfer, scratch = (size.epochs_to_level(arm) for arm in ARMS)
    epochs = (
        f"{level} after {counted(f'{transfer:.3g}', 'epoch')}, from scratch after {scratch:.3g}"
    )
    if change.uncertain:
        return f"learns at no significantly different speed ({epochs})"
    if transfer == scratch:
        return f"learns equally fast ({epochs})"
    return f"learns {'faster' if change.mean > 0 else 'slower'} ({epochs})"


def _percent(share):
    return f"{100 * share:.1f} %"
