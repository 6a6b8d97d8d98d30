"""Training: the configuration, the trainer, its run loop and phases, checkpoints, several devices.

`config` imports neither Keras nor TensorFlow. Modules here may import `evaluation`, `features`,
`schedules`, `runs`, `models`, `data`, `modalities`, `utils` and `errors`.
"""

from keras_transfer.utils.names import lazy_names

_NAMES = {
    "TrainConfig": "config",
    "find_rate": "rate_finder",
    "start_workers": "distributed.environment",
}

__all__ = list(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
