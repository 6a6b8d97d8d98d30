"""What a comparison measures after each epoch, for every task: a number that is higher where a model is better."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


def _largest_class(labels):
    return float(np.bincount(labels).max() / len(labels))


def _mean_share(labels):
    """Return the mean average precision of an order by chance: the labels' mean share."""
    shares = labels.mean(axis=0)
    varied = (shares > 0) & (shares < 1)
    return float(shares[varied].mean()) if varied.any() else 0.0


@dataclass(frozen=True)
class _Measure:
    """The score of one head.

    Attributes:
        metric: its name in history and metrics.
        title: its name in words.
        chance: labels → what a model that learns nothing reaches.
    """

    metric: str
    title: str
    chance: Callable[[np.ndarray], float]


_MEASURES = {
    "single_label": _Measure("accuracy", "accuracy", _largest_class),
    "multi_label": _Measure("map", "mean average precision", _mean_share),
    "regression": _Measure("r2", "R²", lambda labels: 0.0),
}


@dataclass(frozen=True)
class Score:
    """The score of a dataset's models: of several heads, the mean.

    Attributes:
        metrics: name of each head, "" if there is one → its metric.
        title: in words.
        chance: what models that learn nothing reach.
    """

    metrics: Mapping[str, str]
    title: str
    chance: float

    @classmethod
    def of(cls, targets, labels) -> "Score":
        """Return the score for targets of a dataset, with the chance on some of its labels."""
        several = isinstance(targets, dict)
        tasks = {name: t.task for name, t in targets.items()} if several else {"": targets.task}
        chances = [
            _MEASURES[task].chance(np.asarray(labels[name] if several else labels))
            for name, task in tasks.items()
        ]
        titles = {_MEASURES[task].title for task in tasks.values()}
        title = titles.pop() if len(titles) == 1 else "mean score"
        metrics = {name: _MEASURES[task].metric for name, task in tasks.items()}
        return cls(metrics, title, float(np.mean(chances)))

    def in_epoch(self, row: Mapping) -> float:
        """Return the score on the validation examples from a row of a run's history."""
        parts = (
            f"val_{name}_{metric}" if name else f"val_{metric}"
            for name, metric in self.metrics.items()
        )
        return float(np.mean([float(row[part]) for part in parts]))

    def in_metrics(self, metrics: Mapping) -> float:
        """Return the score from what `compute_metrics` returned; its chance where it is undefined."""
        values = [
            (metrics["heads"][name] if name else metrics)[metric]
            for name, metric in self.metrics.items()
        ]
        return float(np.mean([self.chance if value is None else value for value in values]))


ACCURACY = Score({"": "accuracy"}, "accuracy", 0.0)
