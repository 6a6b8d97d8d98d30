"""Experiments of many trainings: transfer compared with training from scratch, and hyper-parameter search.

`compare` trains the runs of a `Comparison`; `tune` runs the trials of a search, whose `study` needs
Optuna. The room imports from `training` and the rooms below it.
"""

from keras_transfer.utils.names import lazy_names

_NAMES = {"Comparison": "comparison", "Experiment": "compare", "Tuned": "study"}

__all__ = list(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
