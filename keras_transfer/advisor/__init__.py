"""The advisor: which backbone and schedule suit the data, from measured evidence."""

from keras_transfer.utils.lazy import lazy_names

__all__ = ["auto_trainer"]
__getattr__, __dir__ = lazy_names(__name__, {"auto_trainer": "auto"})
