"""What a schedule means for one model and one data set: the trainer runs it, people look at it."""

import math
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.models.builders import backbone_of, check_other_size
from keras_transfer.models.freezing import frozen_stages
from keras_transfer.schedules.optimizers import rate_of, stage_rates
from keras_transfer.schedules.phases import Phase, Schedule, differences
from keras_transfer.utils.files import write_file

FORWARD = 1 / 3  # of a training step: one of its three passes, the others go back


@dataclass(frozen=True)
class PlannedPhase:
    """A phase with its numbers worked out.

    Attributes:
        phase: what the schedule says.
        epochs: epochs, the last of which may be cut short (where the phase is given in steps).
        steps: batches of the whole phase.
        steps_per_epoch: batches of one pass over the training images.
        batch_size, image_size: of the phase, or the trainer's and the model's.
        frozen: number of leading stages that are frozen.
        rates: multiplier of each stage, from the image upwards; 0 where it is frozen.
        head_rate: multiplier of the head.
    """

    phase: Phase
    epochs: int
    steps: int
    steps_per_epoch: int
    batch_size: int
    image_size: int
    frozen: int
    rates: tuple[float, ...]
    head_rate: float

    def learning_rate(self, steps) -> np.ndarray:
        """The rate [N] at steps [N] of the phase, before multipliers."""
        rate, steps = rate_of(self.phase, self.steps), np.asarray(steps, "float32")
        if isinstance(rate, float):
            return np.full(steps.shape, rate, "float32")
        return keras.ops.convert_to_numpy(rate(steps))


@dataclass(frozen=True)
class Plan:
    """The phases of a schedule, one after the other, for one model and one data set.

    Attributes:
        schedule: that this is the plan of.
        phases: with their numbers worked out.
        stage_names: of the backbone, from the image upwards.
    """

    schedule: Schedule
    phases: tuple[PlannedPhase, ...]
    stage_names: tuple[str, ...]

    @property
    def epochs(self) -> int:
        return sum(planned.epochs for planned in self.phases)

    def table(self) -> str:
        """A line a phase: what is frozen, how long, at which rates, and what else differs."""
        lines = [
            f"{'phase':<12}{'frozen':<12}{'epochs':>6}{'steps':>8}{'px':>6}{'batch':>7}  "
            f"{'shape':<10}{'rate: head':>11}{'last stage':>11}{'first':>10}  more"
        ]
        for p in self.phases:
            # From the image upwards; of the rates only those of stages that train.
            trained = [f"{p.phase.learning_rate * rate:.3g}" for rate in p.rates if rate] or ["-"]
            closed = p.phase.solver == "logistic"
            head = "-" if closed else f"{p.phase.learning_rate * p.head_rate:.3g}"
            shape = "closed" if closed else p.phase.shape
            frozen = f"{p.frozen} of {len(p.rates)}"
            lines.append(
                f"{p.phase.name:<12}{frozen:<12}{p.epochs:>6}{p.steps:>8}{p.image_size:>6}"
                f"{p.batch_size:>7}  {shape:<10}{head:>11}"
                f"{trained[-1]:>11}{trained[0]:>10}  {_more(p.phase)}"
            )
        return "\n".join(lines)

    def draw(self, path) -> None:
        """Draws the rate of each stage over the epochs into a PNG file; grey is frozen."""
        from matplotlib.figure import Figure  # no pyplot: it would look for a screen

        figure = Figure(figsize=(8, self.height), layout="constrained")
        self.draw_on(figure.add_subplot())
        write_file(Path(path), lambda temporary: figure.savefig(temporary, dpi=120))

    @property
    def height(self) -> float:
        """Of the drawing, in inches, where it is 8 wide."""
        return 2.2 + 0.16 * min(len(self.stage_names) + 1, 60)

    def draw_on(self, axes) -> None:
        """Draws the same into matplotlib's `axes`, with a bar of colours beside them."""
        from matplotlib import colormaps
        from matplotlib.colors import LogNorm

        rows = len(self.stage_names) + 1
        epochs, rates, marks = [0.0], [], [0.0]
        for p in self.phases:
            steps = np.unique(np.linspace(0, p.steps - 1, min(p.steps, 200)).astype(int))
            closed = p.phase.solver == "logistic"  # no rate at all
            multipliers = np.array([*p.rates, 0.0 if closed else p.head_rate])
            rates.append(multipliers[:, None] * p.learning_rate(steps))
            ends = np.append(steps[1:], p.steps) / p.steps_per_epoch
            epochs.extend(marks[-1] + ends)
            marks.append(marks[-1] + p.steps / p.steps_per_epoch)
        rates = np.concatenate(rates, axis=1)
        highest = rates.max() or 1.0
        shown = np.ma.masked_equal(rates, 0)
        colours = colormaps["viridis"].with_extremes(bad="#b9b9b9")
        norm = LogNorm(highest * 1e-3, highest)
        mesh = axes.pcolormesh(
            np.array(epochs), np.arange(rows + 1), shown, norm=norm, cmap=colours, rasterized=True
        )
        for mark, p in zip(marks, self.phases):
            axes.axvline(mark, color="white", linewidth=1.5)
            closed = " (closed form)" if p.phase.solver == "logistic" else ""
            name = f" {p.phase.name}{closed}"
            axes.text(mark, rows, name, va="bottom", fontsize=9, parse_math=False)
        every = math.ceil(rows / 20)
        ticks = [*range(0, rows - 1, every), rows - 1]
        axes.set_yticks([t + 0.5 for t in ticks])
        axes.set_yticklabels(
            ["head" if t == rows - 1 else f"stage {t + 1}" for t in ticks], fontsize=7
        )
        axes.set(xlabel="epoch")
        title = f"{self.schedule.name}: learning rate by stage (grey: frozen)"
        axes.set_title(title, pad=18, parse_math=False)
        axes.figure.colorbar(mesh, ax=axes, label="learning rate")


def _more(phase):
    return ", ".join(
        differences(phase, without=("rates", "lowest_rate", "batch_size", "image_size"))
    )


def make_plan(model: keras.Model, schedule: Schedule, images: int, batch_size: int = 32) -> Plan:
    """Works out a schedule for a model of `build_model` and a number of training images.

    Raises:
        InputError: a layer or stage that the backbone does not have, or an image size that it
            cannot take.
    """
    backbone = backbone_of(model)
    stages = len(backbone.stages)
    size = model.input_shape[1]
    phases = []
    for phase in schedule.phases:
        frozen = frozen_stages(backbone, phase.freeze)
        rates, head_rate = stage_rates(phase, stages)
        batch = phase.batch_size or batch_size
        per_epoch = math.ceil(images / batch)
        steps = phase.steps or (phase.epochs or 0) * per_epoch  # one of them is given
        image_size = phase.image_size or size
        try:
            check_other_size(model, image_size)
        except InputError as error:
            raise InputError(f"Phase '{phase.name}': {error}") from None
        phases.append(
            PlannedPhase(
                phase=phase,
                epochs=phase.epochs or math.ceil(steps / per_epoch),
                steps=steps,
                steps_per_epoch=per_epoch,
                batch_size=batch,
                image_size=image_size,
                frozen=frozen,
                rates=tuple(0.0 if i < frozen else rate for i, rate in enumerate(rates)),
                head_rate=head_rate,
            )
        )
    return Plan(schedule, tuple(phases), tuple(stage.name for stage in backbone.stages))
