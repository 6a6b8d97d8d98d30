"""What a search found: for people, for files, and as an image."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.experiments.search_space import Space, shown_values
from keras_transfer.experiments.study import ended
from keras_transfer.runs import Run
from keras_transfer.utils.files import csv_text, write_file, write_text
from keras_transfer.utils.plotting import GREEN, OCHRE, RED

BEST = "best.yaml"
CSV = "trials.csv"
_SHOWN = 8  # trials in the printed table
_LEAST = 6  # complete trials from which on importances are estimated
_COLOURS = {"complete": GREEN, "pruned": OCHRE, "failed": RED}


@dataclass(frozen=True)
class Trial:
    """A training of the search.

    Attributes:
        number: from 0.
        state: `"complete"`, `"pruned"` (given up) or `"failed"`.
        values: name → value of each parameter.
        value: what is maximised, on the validation images; of a pruned one that of its last
            epoch, None of a failed one.
        loss: on the validation images, None where there is none.
        epochs, seconds: that it took.
        reason: why it failed.
    """

    number: int
    state: str
    values: dict
    value: float | None
    loss: float | None
    epochs: int
    seconds: float
    reason: str = ""


def trials_of(study) -> tuple[Trial, ...]:
    """Those of an `optuna.Study` that came to an end."""
    states = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    return tuple(
        Trial(
            t.number,
            states[t.state.name],
            dict(t.params),
            t.value,
            t.user_attrs["val"].get("loss"),
            t.user_attrs["epochs"],
            t.user_attrs["seconds"],
            t.user_attrs["reason"],
        )
        for t in ended(study)
    )


def _quality(trial: Trial) -> tuple[float, float]:
    """More is better."""
    assert trial.value is not None and trial.loss is not None, "it came to its end"
    return trial.value, -trial.loss


@dataclass(frozen=True, eq=False)
class Tuned:
    """The outcome of a search.

    Attributes:
        folder: of the search.
        metric: by which the best was chosen; of `"loss"` the least, else the highest value.
        images: in the validation split.
        space: name → `Range` or `Choice` of each parameter.
        default: values of the schedule that was searched around.
        trials: in the order they were made.
        test: numbers of the best trial on the test images, where there are any.
        importances: see `importances_of`.
    """

    folder: Path
    metric: str
    images: int
    space: Space
    default: dict
    trials: tuple[Trial, ...]
    test: dict | None = None
    importances: dict[str, float] = field(default_factory=dict)

    @cached_property
    def best(self) -> Trial | None:
        """The complete trial with the highest value, of equal ones the least loss."""
        complete = [t for t in self.trials if t.state == "complete"]
        return max(complete, key=_quality, default=None)

    def _found(self) -> Trial:
        if self.best is None:
            raise InputError(f"No trial in {self.folder} came to its end: there is no best one.")
        return self.best

    @cached_property
    def first(self) -> Trial | None:
        """The trial of the default, where it came to its end."""
        same = (t for t in self.trials if t.values == self.default and t.state == "complete")
        return next(same, None)

    @property
    def run(self) -> Run:
        """The run of the best trial."""
        return Run(self.folder / f"trial-{self._found().number}")

    @property
    def config(self) -> Path:
        """The best configuration, for `train --config`."""
        return self.folder / BEST

    def shown(self, trial: Trial) -> str:
        """`accuracy 0.9500`."""
        if trial.value is None:
            return "–"
        return f"{self.metric} {self._number(trial.value):.4f}"

    def _number(self, value):
        return -value if self.metric == "loss" else value

    @property
    def verdict(self) -> str:
        """What the search brought, in a few sentences."""
        best = self._found()
        text = f"Best is trial {best.number} of {len(self.trials)}: val {self.shown(best)} ({shown_values(best.values)})."
        if self.first is None:
            text += " The default failed."
        elif best is self.first:
            text += " That is the default: nothing was found to be better."
        else:
            text += f" The default has {self.shown(self.first)}."
            text += self._chance(_quality(best)[0] - _quality(self.first)[0])
        text += " The best of many is flattered by the choice"
        if self.test:
            name = self.metric
            return f"{text}; on the test images its {name} is {self.test[name]:.4f}."
        return f"{text}: images kept apart (--test-split) would tell."

    def _chance(self, gain):
        if self.metric != "accuracy":
            return ""
        share = self.first.value
        error = np.sqrt(share * (1 - share) / self.images)
        if gain > 2 * error:
            return ""
        return (
            f" The gain of {100 * gain:.1f} points is within two standard errors of an accuracy on "
            f"{self.images} images ({100 * error:.1f} points each): it may be chance."
        )

    def to_dict(self) -> dict:
        """Plain data, for JSON."""
        return {
            "metric": self.metric,
            "best": self._plain(self.best),
            "default": self.first and self._plain(self.first),
            "test": self.test,
            "importances": self.importances,
            "config": str(self.config),
            "run": str(self.run.path),
            "verdict": self.verdict,
            "trials": [self._plain(trial) for trial in self.trials],
        }

    def _plain(self, trial):
        value = None if trial.value is None else self._number(trial.value)
        return {**vars(trial), "value": value}

    def table(self) -> str:
        """The best trials and the default, a line each."""
        order = {"complete": 0, "pruned": 1, "failed": 2}
        rows = sorted(self.trials, key=lambda t: (order[t.state], -(t.value or 0.0), t.number))
        shown = rows[:_SHOWN]
        if self.first and self.first not in shown:
            shown.append(self.first)
        lines = [f"{'trial':>5}  {'state':<9}{self.metric:>10}{'epochs':>8}{'seconds':>9}  values"]
        for trial in shown:
            value = "–" if trial.value is None else f"{self._number(trial.value):.4f}"
            mark = "  (default)" if trial is self.first else ""
            lines.append(
                f"{trial.number:>5}  {trial.state:<9}{value:>10}{trial.epochs:>8}"
                f"{trial.seconds:>9.1f}  {shown_values(trial.values)}{mark}"
            )
        if len(rows) > len(shown):
            lines.append(f"… {len(rows) - len(shown)} more in {self.folder / CSV}")
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """All trials as a table, a row each."""
        header = ("trial", "state", self.metric, "loss", "epochs", "seconds", *self.space, "reason")
        if self.metric == "loss":
            header = tuple(name for i, name in enumerate(header) if i != 3)
        rows = []
        for t in self.trials:
            value = "" if t.value is None else self._number(t.value)
            loss = [] if self.metric == "loss" else [t.loss]
            values = [t.values.get(name, "") for name in self.space]
            rows.append(
                [t.number, t.state, value, *loss, t.epochs, round(t.seconds, 1), *values, t.reason]
            )
        write_text(folder / CSV, csv_text(header, rows))

    def draw(self, path) -> None:
        """Draws the trials, the best so far, and the value over each parameter, into a PNG file."""
        from matplotlib.figure import Figure  # no pyplot: it would look for a screen

        names = [name for name in self.space if len({t.values.get(name) for t in self.trials}) > 1]
        figure = Figure(figsize=(10, 7 if names else 4), layout="constrained", facecolor="white")
        grid = figure.add_gridspec(2 if names else 1, max(1, len(names)))
        self._draw_course(figure.add_subplot(grid[0, :]))
        first = None
        for column, name in enumerate(names):
            axes = figure.add_subplot(grid[1, column], sharey=first)
            self._draw_parameter(axes, name)
            if first is None:
                axes.set_ylabel(f"val {self.metric}")
            else:
                axes.tick_params(labelleft=False)
            first = first or axes
        write_file(Path(path), lambda temporary: figure.savefig(temporary, dpi=110))

    def _draw_course(self, axes):
        for state, marker in (("complete", "o"), ("pruned", "v")):
            points = [t for t in self.trials if t.state == state and t.value is not None]
            axes.plot(
                [t.number for t in points],
                [self._number(t.value) for t in points],
                marker,
                color=_COLOURS[state],
                label="complete" if state == "complete" else "given up (its last epoch)",
            )
        complete = [t for t in self.trials if t.state == "complete"]
        so_far = np.maximum.accumulate([t.value for t in complete])
        axes.step(
            [*(t.number for t in complete), self.trials[-1].number],
            [self._number(value) for value in (*so_far, so_far[-1])],
            where="post",
            color=_COLOURS["complete"],
            label="best so far",
        )
        if self.first:
            axes.axhline(self._number(self.first.value), color="#7a7a7a", ls=":", label="default")
        for trial in self.trials:
            if trial.state == "failed":
                axes.axvline(trial.number, color=_COLOURS["failed"], lw=1, label="failed")
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles))
        axes.figure.legend(
            once.values(), once.keys(), loc="outside upper center", ncols=5, fontsize=9
        )
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="trial", ylabel=f"val {self.metric}")
        axes.set_title(f"best: trial {self.best.number}, val {self.shown(self.best)}", fontsize=10)
        axes.grid(alpha=0.3)

    def _draw_parameter(self, axes, name):
        """Value over one parameter."""
        for state in ("complete", "pruned"):
            points = [t for t in self.trials if t.state == state and t.value is not None]
            axes.plot(
                [t.values[name] for t in points],
                [self._number(t.value) for t in points],
                "o" if state == "complete" else "v",
                color=_COLOURS[state],
                alpha=0.8,
            )
        values = [t.values[name] for t in self.trials]
        if all(isinstance(v, (int, float)) for v in values):
            if getattr(self.space[name], "log", False):
                axes.set_xscale("log")
            axes.plot(
                self.best.values[name], self._number(self.best.value), "*", color="black", ms=12
            )
        else:
            axes.tick_params(axis="x", rotation=45)
        share = self.importances.get(name)
        axes.set_title(name if share is None else f"{name}: {100 * share:.0f} %", fontsize=10)
        axes.grid(alpha=0.3)


def importances_of(study) -> dict[str, float]:
    """Share of the differences between the complete trials of an `optuna.Study` that each parameter
    explains (fANOVA, Hutter et al. 2014); empty where too few trials tell."""
    import optuna

    values = {t.value for t in study.trials if t.state.name == "COMPLETE"}
    complete = [t for t in ended(study) if t.state.name == "COMPLETE"]
    if len(complete) < _LEAST or len(values) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items()}
