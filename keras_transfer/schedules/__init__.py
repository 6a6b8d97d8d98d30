"""Schedules: phases as plain data, named recipes, and plans with optimizers for one model.

Phases and recipes import neither Keras nor TensorFlow. Modules here may import `runs`, `models`,
`data`, `modalities`, `utils` and `errors`.
"""

from keras_transfer.utils.names import lazy_names

_NAMES = {"WeightRule": "plans", "per_weight": "plans", "resolve_schedule": "recipes"}

__all__ = list(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
